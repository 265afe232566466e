"""`POST /v1/tokenize` and `/v1/detokenize`."""

from typing import Any

import msgspec
import orjson
import pytest

from gateway.version import installed_version
from protocol.messages import DetokenizeJob, Text, TextPrompt, TokenizeJob, Tokens


async def test_tokens_are_counted_when_text_is_tokenized(client: Any, pool: Any) -> None:
    """Ids, their number and the model's context, as vLLM answers."""

    async def script(play: Any) -> None:
        await play.answer(Tokens(job=0, attempt=0, tokens=[5, 6]))

    pool.script = script
    response = await client.post("/v1/tokenize", json={"prompt": "x y", "add_special_tokens": False})
    assert await response.json() == {"tokens": [5, 6], "count": 2, "max_model_len": 4096}
    assert pool.played[0].job == TokenizeJob(job=0, attempt=0, prompt=TextPrompt(text="x y", add_special_tokens=False))


async def test_text_comes_back_when_tokens_are_detokenized(client: Any, pool: Any) -> None:
    """The text under vLLM's name for it."""

    async def script(play: Any) -> None:
        await play.answer(Text(job=0, attempt=0, text="x y"))

    pool.script = script
    response = await client.post("/v1/detokenize", json={"tokens": [5, 6]})
    assert await response.json() == {"prompt": "x y"}
    assert pool.played[0].job == DetokenizeJob(job=0, attempt=0, tokens=[5, 6])


async def test_failure_has_its_status_when_the_worker_refuses(client: Any, pool: Any) -> None:
    """A worker's refusal is an ordinary error."""

    async def script(play: Any) -> None:
        await play.fail("invalid_request", "no template", param="messages")

    pool.script = script
    response = await client.post("/v1/tokenize", json={"messages": [{"role": "user", "content": "x"}]})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "messages"


async def test_answer_of_the_wrong_kind_is_a_500_when_a_worker_errs(client: Any, pool: Any) -> None:
    """A worker that breaks the protocol is not believed."""

    async def script(play: Any) -> None:
        await play.answer(Text(job=0, attempt=0, text="x"))

    pool.script = script
    assert (await client.post("/v1/tokenize", json={"prompt": "x"})).status == 500


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_path_may_be_at_the_root_when_a_client_speaks_as_to_vllm(client: Any, pool: Any, prefix: str) -> None:
    """The same handlers, whether the base URL has `/v1` or not."""

    async def script(play: Any) -> None:
        job = play.job
        if isinstance(job, TokenizeJob):
            await play.answer(Tokens(job=0, attempt=0, tokens=[5]))
        else:
            await play.answer(Text(job=0, attempt=0, text="x"))

    pool.script = script
    tokens = await client.post(f"{prefix}/tokenize", json={"prompt": "x"})
    assert (await tokens.json())["count"] == 1
    text = await client.post(f"{prefix}/detokenize", json={"tokens": [5]})
    assert await text.json() == {"prompt": "x"}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenizer_is_described_when_it_is_asked_for(client: Any, pool: Any, prefix: str) -> None:
    """What its worker said of it; an engine that says nothing is named."""
    found = {
        "tokenizer_class": "T", "chat_template": "{{ x }}", "model_max_length": 5, "add_bos_token": True,
        "add_eos_token": False, "additional_special_tokens": ["<s>"], "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": None, "pad_token": None,
    }  # fmt: skip
    model = pool.served[0]
    model.ready = msgspec.structs.replace(model.ready, tokenizer_info=orjson.dumps(found))
    for query in ("", "?model=small"):
        assert await (await client.get(f"{prefix}/tokenizer_info{query}")).json() == found
    assert (await client.get(f"{prefix}/tokenizer_info?model=other")).status == 404
    model.ready = msgspec.structs.replace(model.ready, tokenizer_info=b"")
    silent = await client.get(f"{prefix}/tokenizer_info")
    assert (silent.status, (await silent.json())["error"]["param"]) == (400, "model")
    model.ready = None
    assert (await client.get(f"{prefix}/tokenizer_info")).status == 503


async def test_version_is_told_when_a_client_asks(client: Any) -> None:
    """As vLLM tells it."""
    assert await (await client.get("/version")).json() == {"version": installed_version()}
