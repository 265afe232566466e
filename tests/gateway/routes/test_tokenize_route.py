"""`POST /v1/tokenize` and `/v1/detokenize`."""

from typing import Any

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
