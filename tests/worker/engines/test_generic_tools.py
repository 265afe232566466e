"""Tools on models whose chat template leaves them out: told by the pool, called in its own form, enforced as others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.messages import ChatPrompt
from protocol.parts import joined_calls
from tests.support.chat_templates import TEMPLATES
from tests.support.engine_runs import job, run
from tests.support.real_tokenizers import fetch_tokenizer, make_tiny_model
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "New York"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}}]


def asked(*messages: dict[str, Any]) -> ChatPrompt:
    return ChatPrompt(
        msgspec.json.encode([{"role": "user", "content": "Weather?"}, *messages]), msgspec.json.encode(TOOLS)
    )


@pytest.fixture(scope="module", params=["chatml", "gemma3"])
def engine(request: pytest.FixtureRequest, model_folder: Callable[[str], Path], tmp_path_factory: Any) -> ChatEngine:
    """A tiny model without a template for tools: one of the pool's own, one with Gemma's tokenizer."""
    folder = tmp_path_factory.mktemp("generic") / "model"
    if request.param == "gemma3":
        make_tiny_model(fetch_tokenizer("gemma3"), folder)
    else:
        shutil.copytree(model_folder("qwen3"), folder)
        (folder / "chat_template.jinja").write_text(TEMPLATES[request.param])
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="any", prefix_cache_bytes=0))
    engine.load()
    return engine


def test_kind_of_tools_is_told(engine: ChatEngine) -> None:
    """For the list of models."""
    assert {"tools", "generic_tools"} <= set(engine.describe().capabilities)
    assert "tool_results" not in engine.describe().capabilities


@pytest.mark.parametrize("parallel", [True, False])
def test_call_is_read_when_one_is_demanded(engine: ChatEngine, parallel: bool) -> None:
    """The form is enforced as any other's, token by token, on weights that know none."""
    wanted = job(
        1, asked(), max_tokens=160, tool_choice="required", parallel_tool_calls=parallel, sampling={"temperature": 0.8}
    )
    outcome = run(engine, [wanted])[1]
    calls = joined_calls([call for delta in outcome.deltas for call in delta.calls])
    assert calls
    assert outcome.finish == {0: "tool_calls"} or parallel
    assert not outcome.text.get(0, "").strip()
    for call in calls if not parallel else calls[:1]:
        assert call.name == "get_weather"
        arguments = json.loads(call.arguments)
        assert arguments["city"] in ("Oslo", "New York")
        assert 1 <= arguments["days"] <= 9


def test_answer_to_a_result_is_text_when_no_call_is_demanded(engine: ChatEngine) -> None:
    """The history of a call is rendered, and the answer is what the model says."""
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    earlier = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5 degrees", "tool_call_id": "c"},
    ]
    outcome = run(engine, [job(1, asked(*earlier), max_tokens=8)])[1]
    assert outcome.failed is None
    assert outcome.finish[0] in ("length", "stop")
