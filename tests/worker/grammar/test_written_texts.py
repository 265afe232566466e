"""What a grammar allows comes out as it was written, by a model whose decoder drops the first space of a text."""

import json

import pytest
from tokenizers import Tokenizer, decoders

from protocol.messages import Grammar
from tests.support.engine_runs import chat, job, run
from tests.support.real_tokenizers import make_tiny_model
from tests.support.tokenizer_kinds import TOKENIZERS
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def spaced_engine(tmp_path_factory: pytest.TempPathFactory) -> ChatEngine:
    """Llama 2's kind: words begin with a mark, and what was put before the first one is dropped."""
    folder = tmp_path_factory.mktemp("spaced")
    content = json.loads(TOKENIZERS["whole text"]().to_str())
    # Trained as control tokens, which bytes are in no model.
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = make_tiny_model(folder, folder / "model", template=TEMPLATE)
    engine = ChatEngine(WorkerConfig(model_path=str(model), served_name="spaced", prefix_cache_bytes=0))
    engine.load()
    return engine


@pytest.mark.parametrize("text", [" yes", "yes", "  two", " ", "ö 日本 😀", " €", "\n x", "a  b"])
def test_choice_comes_out_as_it_was_written_when_spaces_are_dropped(spaced_engine: ChatEngine, text: str) -> None:
    """Spaces at its start, several of them, and characters that the vocabulary spells by bytes."""
    asked = job(1, chat("say"), grammar=Grammar("choice", json.dumps([text]), "p"), max_tokens=64)
    assert run(spaced_engine, [asked])[1].text == {0: text}


def test_first_space_is_dropped_when_there_is_no_grammar(spaced_engine: ChatEngine) -> None:
    """An answer begins a text of its own, as the tokenizer's decoder has it."""
    outcome = run(spaced_engine, [job(1, chat("say"), max_tokens=24, sampling={"ignore_eos": True})])[1]
    assert outcome.text[0] == spaced_engine.loaded.tokenizer.decode(outcome.tokens[0], skip_special_tokens=False)
