"""Chat templates given as a list of names: the one that is used says how calls are written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.parts import joined_calls
from tests.support.deepseek_templates import V31_TEMPLATE
from tests.support.engine_runs import chat, job, run
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
HERMES = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{% set tool_call = call.function %}"
    '<tool_call>\n{"name": {{ tool_call.name | tojson }}, '
    '"arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
MISTRAL = "{{ tools or '' }}[TOOL_CALLS][ARGS]{% for message in messages %}{{ message.content }}{% endfor %}"
LLAMA = (
    '{% if tools %}{{ tools }}"parameters": dictionary of argument name and its value{% endif %}'
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)
THINKING = "{% for message in messages %}{{ message.content }}{% endfor %}<think>\n"
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.fixture
def engine_with(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., ChatEngine]:
    """An engine of the tiny Qwen3 with these templates."""

    def make(templates: dict[str, str], *, as_files: bool = False) -> ChatEngine:
        folder = tmp_path / "model"
        shutil.copytree(model_folder("qwen3"), folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if as_files:
            more = folder / "additional_chat_templates"
            more.mkdir()
            for name, text in templates.items():
                place = folder / "chat_template.jinja" if name == "default" else more / f"{name}.jinja"
                place.write_text(text)
        else:
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="named", prefix_cache_bytes=0))
        engine.load()
        return engine

    return make


def said(engine: ChatEngine, answer: str, *, tools: list[dict[str, Any]] | None = TOOLS) -> Any:
    """What comes of an answer that the model writes."""
    [text] = engine.prepare(job(1, chat("hello", tools=tools))).texts
    for token in engine.loaded.tokenizer.encode(answer, add_special_tokens=False):
        text.feed_token(token)
    return text.finish_text("stop")


@pytest.mark.parametrize("as_files", [False, True])
def test_calls_are_read_by_the_template_for_tools(engine_with: Callable[..., ChatEngine], as_files: bool) -> None:
    """Not by the default one, which knows none."""
    engine = engine_with({"default": PLAIN, "tool_use": HERMES, "rag": PLAIN}, as_files=as_files)
    assert "tools" in engine.describe().capabilities
    piece = said(engine, f"I look.{HERMES_CALL}")
    assert [(call.name, call.arguments, piece.finish) for call in piece.calls] == [("f", '{"x": 1}', "tool_calls")]
    assert piece.text == "I look."
    render = engine.preprocessor.prompter.render_chat
    assert render(chat("hello")) == "user: hello\nassistant: "
    assert "<|im_start|>user\nhello" in render(chat("hello", tools=TOOLS))


def test_calls_are_read_by_the_default_where_it_is_the_one_for_tools(engine_with: Callable[..., ChatEngine]) -> None:
    """Where no other is."""
    engine = engine_with({"default": HERMES, "rag": PLAIN})
    assert [call.name for call in said(engine, HERMES_CALL).calls] == ["f"]


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (HERMES.replace("tool_call.name", "called.name").replace("tool_call =", "called ="), HERMES_CALL),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"x": 1}'),
        (LLAMA, '{"name": "f", "parameters": {"x": 1}}'),
        (
            V31_TEMPLATE,
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ),
    ],
    ids=["other names", "mistral", "llama3", "deepseek_v31"],
)
def test_calls_are_read_whatever_the_format_of_the_template(
    engine_with: Callable[..., ChatEngine], template: str, answer: str
) -> None:
    """Those of mlx-lm's and our own."""
    engine = engine_with({"default": PLAIN, "tool_use": template})
    piece = said(engine, answer)
    assert [(call.name, json.loads(call.arguments)) for call in piece.calls] == [("f", {"x": 1})]


def test_markers_are_text_when_no_tools_are_offered(engine_with: Callable[..., ChatEngine]) -> None:
    """The default template is used then."""
    engine = engine_with({"default": PLAIN, "tool_use": HERMES})
    assert said(engine, HERMES_CALL, tools=None).text == HERMES_CALL


def test_first_template_is_the_default_where_none_is_called_so(engine_with: Callable[..., ChatEngine]) -> None:
    """A conversation without tools is rendered, too."""
    engine = engine_with({"tool_use": HERMES, "rag": PLAIN})
    assert "<|im_start|>user\nhello" in engine.preprocessor.prompter.render_chat(chat("hello"))


def test_thoughts_begin_where_the_template_that_is_used_opens_them(engine_with: Callable[..., ChatEngine]) -> None:
    """The one without tools does, the other one does not."""
    engine = engine_with({"default": THINKING, "tool_use": HERMES})
    assert said(engine, "Hm.</think>Hello", tools=None).reasoning == "Hm."
    assert said(engine, "Hello").reasoning == ""


def test_call_comes_when_one_is_demanded(engine_with: Callable[..., ChatEngine]) -> None:
    """The grammar is of the format of the template for tools."""
    engine = engine_with({"default": PLAIN, "tool_use": HERMES})
    schema = {"type": "object", "properties": {"x": {"enum": ["a"]}}, "required": ["x"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    prompt = chat("hello", tools=tools, enable_thinking=False)
    asked = job(1, prompt, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    outcome = run(engine, [asked])[1]
    [call] = joined_calls(call for delta in outcome.deltas for call in delta.calls)
    assert (call.name, json.loads(call.arguments), outcome.finish) == ("f", {"x": "a"}, {0: "tool_calls"})
    engine.close(0.0)
