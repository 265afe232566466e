"""Parameters of other servers: what changes nothing is taken and named, what would change the answer is refused."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.schema import ignored
from gateway.schema.base import Request
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode
from gateway.schema.embed import EmbedTextRequest
from gateway.schema.embedding import EmbeddingRequest
from gateway.schema.errors import ApiError
from gateway.schema.tokenize import DetokenizeRequest, TokenizeRequest

LEAST: dict[type[Request], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"prompt": "x"},
    EmbeddingRequest: {"input": "x"},
    EmbedTextRequest: {"texts": ["x"]},
    TokenizeRequest: {"prompt": "x"},
    DetokenizeRequest: {"tokens": [1]},
}
GENERATIONS = (ChatCompletionRequest, CompletionRequest)


def read(kind: type[Request], **fields: Any) -> tuple[Request, set[str]]:
    names: set[str] = set()
    return decode(orjson.dumps(LEAST[kind] | fields), kind, ignored=names), names


@pytest.mark.parametrize("kind", GENERATIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "explicit"}},
        {"cache_prompt": True, "id_slot": 3, "keep_alive": "5m", "ttl": 300, "draft_model": "x"},
        {"session_id": "a", "trace_id": "b", "tags": ["c"], "client_metadata": {"d": 1}, "priority": 5},
        {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "tfs_z": 1, "typical_p": 1.0, "top_a": 0},
        {"dry_multiplier": 0.0, "dry_base": 1.75, "xtc_probability": 0, "xtc_threshold": 0.1, "dynatemp_range": 0},
        {"use_beam_search": False, "length_penalty": 1.0, "skip_special_tokens": True, "num_beams": 1},
        {"repeat_last_n": -1, "repetition_penalty": 1.3},
        {"repeat_last_n": 64, "repetition_penalty": 1},
        {"prediction": {"type": "content", "content": "x"}, "functions": [], "guided_json": "", "bad_words": []},
        {"do_sample": True, "truncation": "disabled", "transforms": [], "provider": {"order": ["x"]}},
    ],
)
def test_parameter_is_named_when_it_changes_nothing(kind: type[Request], fields: dict[str, Any]) -> None:
    """The request is the one without them, and all names are told, but for those that are read."""
    request, names = read(kind, **fields)
    known = {name: value for name, value in fields.items() if name in kind.__struct_encode_fields__}
    assert request == read(kind, **known)[0]
    assert names == fields.keys() - known.keys()


@pytest.mark.parametrize("kind", GENERATIONS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mirostat", 2),
        ("typical_p", 0.9),
        ("tfs_z", 0.5),
        ("top_a", 0.2),
        ("dry_multiplier", 0.8),
        ("xtc_probability", 0.5),
        ("use_beam_search", True),
        ("num_beams", 4),
        ("length_penalty", 1.2),
        ("no_repeat_ngram_size", 3),
        ("skip_special_tokens", False),
        ("include_stop_str_in_output", True),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("allowed_token_ids", [1]),
        ("bad_words", ["no"]),
        ("num_ctx", 8192),
        ("options", {"num_ctx": 8192}),
        ("do_sample", False),
        ("truncate_prompt_tokens", 5),
        ("prompt_logprobs", 1),
        ("negative_prompt", "bad"),
        ("no_such_thing", None or 0),
    ],
)
def test_parameter_is_refused_when_it_would_change_the_answer(kind: type[Request], name: str, value: Any) -> None:
    """The words are those that middlewares look for; a name that nobody knows counts among them."""
    with pytest.raises(ApiError) as raised:
        read(kind, **{name: value})
    assert (raised.value.code, raised.value.param, raised.value.status) == ("unsupported_parameter", name, 400)
    assert raised.value.message.startswith(f"Unsupported parameter: '{name}'")


def test_window_of_penalties_is_refused_when_there_is_a_penalty_to_look_for() -> None:
    """Here a penalty looks at all of the text; a shorter look would give another answer."""
    for penalty in ("repetition_penalty", "repeat_penalty"):
        with pytest.raises(ApiError, match="Unsupported parameter: 'repeat_last_n'"):
            read(ChatCompletionRequest, repeat_last_n=64, **{penalty: 1.1})


def test_read_field_is_named_when_it_changes_nothing() -> None:
    """Fields for the caller's own records are checked as before, and told."""
    fields = {"user": "u", "metadata": {"a": "b"}, "store": True, "safety_identifier": "s", "verbosity": "low"}
    assert read(ChatCompletionRequest, **fields)[1] == set(fields)
    assert read(CompletionRequest, **fields)[1] == set(fields)
    assert read(EmbeddingRequest, user="u", input="y")[1] == {"user"}
    assert read(ChatCompletionRequest, temperature=1, service_tier="flex", prompt_cache_key="k")[1] == set()


def test_null_is_not_named_when_a_field_is_not_given() -> None:
    """Null means absent, whatever the name."""
    assert read(ChatCompletionRequest, user=None, ttl=None, mirostat=None, anything=None)[1] == set()


@pytest.mark.parametrize("kind", [EmbeddingRequest, EmbedTextRequest])
def test_embedding_takes_what_changes_no_vector_when_clients_send_it(kind: type[Request]) -> None:
    """Attribution, and the defaults of other servers; another type of numbers is refused."""
    assert read(kind, keep_alive=0, tags=["x"], late_chunking=False)[1] == {"keep_alive", "tags", "late_chunking"}
    with pytest.raises(ApiError, match="Unsupported parameter: 'output_dtype'"):
        read(kind, output_dtype="int8")


def test_header_is_sorted_when_names_are_told() -> None:
    """Comma separated, in one order."""
    assert ignored.header_of({"user", "metadata", "cache_prompt"}) == "cache_prompt, metadata, user"


@pytest.mark.parametrize("rules", [ignored.GENERATION, ignored.EMBEDDING, ignored.TOKENS])
def test_no_value_breaks_a_rule_when_it_is_any_json(rules: dict[str, ignored.Rule]) -> None:
    """Whatever a client sends under such a name is taken or refused."""
    for value in (0, 1, -1, 1.5, True, False, "", "x", [], [1], {}, {"a": [1]}, float("nan")):
        for name, rule in rules.items():
            assert rule(value, {name: value}) in (True, False)


def test_log_probabilities_are_none_when_none_are_asked_for_twice() -> None:
    """Some clients send `top_logprobs` 0 with every request."""
    request, names = read(ChatCompletionRequest, top_logprobs=0)
    assert (request, names) == (read(ChatCompletionRequest)[0], {"top_logprobs"})


@pytest.mark.parametrize("rules", [ignored.GENERATION, ignored.EMBEDDING, ignored.TOKENS])
def test_parameter_is_documented_when_it_is_taken(rules: dict[str, ignored.Rule]) -> None:
    """Each name stands in the tables of docs/api.md."""
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    _, _, tables = text.partition("## Parameters of other servers")
    assert {name for name in rules if f"`{name}`" not in tables} == set()


@pytest.mark.parametrize("kind", GENERATIONS)
def test_documented_value_is_taken_when_it_is_sent(kind: type[Request]) -> None:
    """The tables say what is so: each name with the value of its row."""
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    _, _, tables = text.partition("## Parameters of other servers")
    values = {"0": 0, "1": 1, "false": False, "true": True, "nothing (an empty text, list or object)": []}
    seen = 0
    for row in tables.splitlines():
        first, _, rest = row.removeprefix("| ").partition(" | ")
        if not row.startswith("| ") or first not in values:
            continue
        for name in re.findall(r"`([a-z_]+)`", rest):
            if name in kind.__struct_encode_fields__:
                continue
            empty = "" if name == "guided_json" else values[first]
            assert name in read(kind, **{name: empty})[1], name
            seen += 1
    assert seen > 60
