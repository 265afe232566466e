"""Each bound over real HTTP on a real (tiny) model: at the cap a request works, one over it is refused by name."""

import gzip
import json
from typing import Any

import pytest
from stress.running_pool import RunningPool, chat_body

from tests.support.pool_fixtures import CONTEXT

pytestmark = pytest.mark.mlx

BODY = 20 * 1024 * 1024
JSON_KIND = {"Content-Type": "application/json"}
TINY: dict[str, Any] = {"max_tokens": 1}


def tool(name: str) -> dict[str, Any]:
    """A function without parameters."""
    return {"type": "function", "function": {"name": name}}


def schema(depth: int) -> dict[str, Any]:
    """A JSON Schema of so many levels."""
    found: dict[str, Any] = {"type": "object"}
    for _ in range(depth - 1):
        found = {"not": found}
    return found


def with_schema(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """One tool with these parameters."""
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def messages(count: int) -> list[dict[str, str]]:
    """A conversation of so many messages."""
    return [{"role": "user", "content": ""} for _ in range(count)]


CAPS: list[tuple[str, Any, Any]] = [
    ("temperature", 2, 2.001),
    ("temperature", 0, -0.001),
    ("top_p", 1, 1.001),
    ("top_p", 0, -0.1),
    ("top_k", -1, -2),
    ("min_p", 1, 1.1),
    ("presence_penalty", 2, 2.01),
    ("presence_penalty", -2, -2.01),
    ("frequency_penalty", 2, 3),
    ("frequency_penalty", -2, -3),
    ("n", 8, 9),
    ("n", 1, 0),
    ("max_tokens", 1, 0),
    ("max_completion_tokens", 1, 0),
    ("seed", 2**63 - 1, 2**63),
    ("stop", ["x" * 256] * 32, ["x"] * 33),
    ("stop", "x" * 256, "x" * 257),
    ("stop", ["é" * 256], ["é" * 257]),
    ("logit_bias", {str(at): 1 for at in range(1024)}, {str(at): 1 for at in range(1025)}),
    ("logit_bias", {"5": 100}, {"5": 100.5}),
    ("logit_bias", {"5": -100}, {"5": -101}),
    ("logit_bias", {"2047": 1}, {"2048": 1}),
    ("top_logprobs", 20, 21),
    ("top_logprobs", 0, -1),
    ("tools", [tool(f"f{at}") for at in range(128)], [tool(f"f{at}") for at in range(129)]),
    ("tools", [tool("f" * 64)], [tool("f" * 65)]),
    ("tools", with_schema(schema(32)), with_schema(schema(33))),
    ("tools", with_schema({"d": "x" * (65536 - 8)}), with_schema({"d": "x" * (65536 - 7)})),
    ("messages", messages(1), []),
    ("user", "u" * 1024, "u" * 1025),
]


@pytest.mark.parametrize(("field", "cap", "over"), CAPS, ids=[f"{at}-{entry[0]}" for at, entry in enumerate(CAPS)])
def test_field_works_at_its_bound_and_is_refused_beyond(qwen: RunningPool, field: str, cap: Any, over: Any) -> None:
    """200 at the cap; one over it a 400 whose `param` begins with the field's name."""
    base = chat_body("hello", **(TINY if field not in ("max_tokens", "max_completion_tokens") else {}))
    if field == "top_logprobs":
        base["logprobs"] = True
    within = qwen.post("/v1/chat/completions", {**base, field: cap})
    # What is legal may still be too long for this model's 2,048 tokens; that it is legal is what counts.
    assert within.status == 200 or within.error["code"] == "context_length_exceeded", within.body
    beyond = qwen.post("/v1/chat/completions", {**base, field: over})
    assert beyond.status == 400
    assert beyond.error["param"].split(".")[0].split("[")[0] == field, beyond.error
    assert beyond.error["code"] in ("invalid_request", "context_length_exceeded")
    assert beyond.headers["x-should-retry"] == "false"


def test_most_messages_are_taken_and_one_more_is_not(qwen: RunningPool, fake: RunningPool) -> None:
    """2,048 messages are answered (by an engine whose context holds them), 2,049 are refused."""
    assert fake.post("/v1/chat/completions", {"messages": messages(2048), **TINY}).status == 200
    refused = qwen.post("/v1/chat/completions", {"messages": messages(2049), **TINY})
    assert (refused.status, refused.error["param"]) == (400, "messages")


def test_all_bounds_at_once_still_work(qwen: RunningPool) -> None:
    """Every cap in one request, streamed, gives eight answers."""
    answer = qwen.chat(
        temperature=2,
        top_p=1,
        presence_penalty=2,
        frequency_penalty=-2,
        n=8,
        stop=["x" * 256] * 32,
        logit_bias={str(at): -100 for at in range(1024)},
        logprobs=True,
        top_logprobs=20,
        max_tokens=16,
    )
    assert answer.status == 200
    assert len(answer.json()["choices"]) == 8
    tops = [
        len(entry["top_logprobs"]) for choice in answer.json()["choices"] for entry in choice["logprobs"]["content"]
    ]
    assert set(tops) == {20}


def test_context_is_filled_to_the_last_token_and_no_further(qwen: RunningPool) -> None:
    """An answer ends where the context does, whatever was asked for; a prompt without room for any is refused."""
    prompt = [7] * (CONTEXT - 2)
    full = qwen.post("/v1/completions", {"prompt": prompt, "max_tokens": 2, "ignore_eos": True})
    assert full.status == 200
    assert full.json()["usage"]["total_tokens"] == CONTEXT
    over = qwen.post("/v1/completions", {"prompt": prompt, "max_tokens": 3, "ignore_eos": True})
    assert over.json()["usage"] == full.json()["usage"] | {"prompt_tokens_details": {"cached_tokens": CONTEXT - 3}}
    assert over.json()["choices"][0]["finish_reason"] == "length"
    for size in (CONTEXT, CONTEXT + 1):
        refused = qwen.post("/v1/completions", {"prompt": [7] * size, "max_tokens": 1})
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
        text = f"This model's maximum context length is {CONTEXT} tokens. However, "
        assert refused.error["message"].startswith(text)


def padded(size: int) -> bytes:
    """A legal request of exactly so many bytes: JSON may be followed by blanks."""
    body = json.dumps(chat_body("hello", **TINY)).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "chunked"])
def test_body_is_taken_up_to_its_limit_and_413_beyond(qwen: RunningPool, declared: bool) -> None:
    """20 MB work, one byte more is refused, whether or not the length was told in advance."""
    headers = dict(JSON_KIND)

    def sent(body: bytes) -> Any:
        if declared:
            return qwen.request("POST", "/v1/chat/completions", body, headers=headers)
        return qwen.post_chunked("/v1/chat/completions", body)

    assert sent(padded(BODY)).status == 200
    refused = sent(padded(BODY + 1))
    assert refused.status == 413
    assert refused.error["code"] == "body_too_large"
    assert str(BODY) in refused.error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "status", "param"),
    [
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "application/json", "", 400, None),
        (b'{"messages": [{"role": "user", "content": "a"}], "top_p": Infinity}', "application/json", "", 400, None),
        (b'{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', "application/json", "", 400, None),
        (b'{"messages": "\\ud800"}', "application/json", "", 400, None),
        (b'{"messages": ' + b"[" * 100_000, "application/json", "", 400, None),
        (b'{"messages": ' + b"[" * 1000 + b"]" * 1000 + b"}", "application/json", "", 400, "messages"),
        (b"[]", "application/json", "", 400, None),
        (b"", "application/json", "", 400, None),
        (b"null", "application/json", "", 400, None),
        (b"\xff\xfe", "application/json", "", 400, None),
        (b"{}", "application/json", "", 400, "messages"),
        (b"{}", "text/plain", "", 415, None),
        (b"{}", "multipart/form-data; boundary=a", "", 415, None),
        (gzip.compress(b"{}", mtime=0), "application/json", "gzip", 415, None),
        (b"{}", "application/json", "identity, br", 415, None),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "frobnicate": 1}',
            "application/json",
            "",
            400,
            "frobnicate",
        ),
        (b'{"messages": [{"role": "king", "content": "a"}]}', "application/json", "", 400, "messages.role"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "application/json", "", 400, "messages.content"),
        (b'{"messages": [{"role": "user"}]}', "application/json", "", 400, "messages.content"),
    ],
)
def test_bad_body_is_refused_in_shape(
    qwen: RunningPool, body: bytes, kind: str, encoding: str, status: int, param: str | None
) -> None:
    """Whatever is not a request gets a 400 or 415 of the usual shape, and the pool goes on."""
    headers = {"Content-Type": kind, **({"Content-Encoding": encoding} if encoding else {})}
    answer = qwen.request("POST", "/v1/chat/completions", body, headers=headers)
    assert answer.status == status, answer.body
    found = answer.error["param"]
    if param is not None:
        assert found is not None
        assert found.replace("[0]", "") == param
    assert answer.error["message"]
    assert "Traceback" not in answer.error["message"]
    assert qwen.chat(**TINY).status == 200


def test_types_with_parameters_are_json_too(qwen: RunningPool) -> None:
    """`application/json; charset=utf-8` is what many clients send."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert qwen.request("POST", "/v1/chat/completions", padded(500), headers=headers).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [2048]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "best_of": 9}, "best_of"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
def test_completion_is_refused_beyond_its_bounds(qwen: RunningPool, fields: dict[str, Any], param: str) -> None:
    """400 with the parameter's name."""
    answer = qwen.post("/v1/completions", {**fields, **TINY})
    assert answer.status == 400, answer.body
    assert answer.error["param"].split("[")[0] == param


def test_completion_works_at_its_bounds(qwen: RunningPool) -> None:
    """128 prompts and five log-probabilities."""
    answer = qwen.post("/v1/completions", {"prompt": ["a"] * 128, "logprobs": 5, **TINY})
    assert answer.status == 200
    assert len(answer.json()["choices"]) == 128
