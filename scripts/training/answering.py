"""Two ways to put questions to the model: in this process through mlx-lm, or to a running pool over HTTP."""

import json
import re
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from training.evaluation import Case, ModelAnswer, NamedCall

_MAX_TOKENS = 600
_TIMEOUT_S = 300
_IN_PARALLEL = 32


class AnswerSource(Protocol):
    """A way to put questions."""

    def answer_cases(self, cases: Sequence[Case]) -> list[ModelAnswer]:
        """Return an answer for each case, in their order."""
        ...


class LocalModel:
    """The model of a folder, in single precision, its answers batched."""

    def __init__(self, folder: Path) -> None:
        import mlx.core as mx
        from mlx_lm import load

        mx.set_default_device(mx.cpu)
        self._model, self._tokenizer = load(str(folder))[:2]
        self._model.set_dtype(mx.float32)

    def answer_cases(self, cases: Sequence[Case]) -> list[ModelAnswer]:
        """Return an answer for each case, in their order."""
        from mlx_lm.generate import batch_generate

        prompts = [self._prompt(case) for case in cases]
        said = batch_generate(self._model, self._tokenizer, prompts, max_tokens=_MAX_TOKENS).texts
        return [parse_answer(text) for text in said]

    def _prompt(self, case: Case) -> list[int]:
        tokens: list[int] = self._tokenizer.apply_chat_template(
            case.messages, tools=list(case.sample.tools) or None, add_generation_prompt=True
        )
        return tokens


class PoolClient:
    """A running pool, asked by many clients at once."""

    def __init__(self, url: str, model: str | None, key: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"not an address of a pool: {url}")
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._model = model
        self._key = key

    def answer_cases(self, cases: Sequence[Case]) -> list[ModelAnswer]:
        """Return an answer for each case, in their order. Raises `OSError` where the pool refuses one."""
        with ThreadPoolExecutor(_IN_PARALLEL) as clients:
            return list(clients.map(self._answer, cases))

    def _answer(self, case: Case) -> ModelAnswer:
        body: dict[str, Any] = {
            "messages": [*client_messages(case)],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        if self._model is not None:
            body["model"] = self._model
        if case.sample.tools:
            body["tools"] = list(case.sample.tools)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
            message = json.load(reply)["choices"][0]["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        return ModelAnswer(
            content=message.get("content") or "",
            reasoning=message.get("reasoning_content") or "",
            calls=tuple(NamedCall(name=call["name"], arguments=_parsed(call["arguments"])) for call in calls),
        )


def client_messages(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a question's messages as clients send them: arguments are text, and pictures `data:` URLs."""
    images = map(_image_part, case.sample.pictures)
    for message in case.messages:
        sent = dict(message)
        if calls := message.get("tool_calls"):
            functions = [{**call["function"], "arguments": json.dumps(call["function"]["arguments"])} for call in calls]
            sent["tool_calls"] = [{**call, "function": told} for call, told in zip(calls, functions, strict=True)]
        if isinstance(message["content"], list):
            sent["content"] = [next(images) if part["type"] == "image" else part for part in message["content"]]
        yield sent


def _image_part(picture: Any) -> dict[str, Any]:
    from training.pictures import data_url, in_its_size

    return {"type": "image_url", "image_url": {"url": data_url(in_its_size(picture))}}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_answer(text: str) -> ModelAnswer:
    """Parse an answer from the model's own words."""
    thought = re.match(r"<think>\n?(.*?)\n?</think>\n*", text, re.DOTALL)
    rest = text[thought.end() :] if thought else text
    calls = []
    for found in re.findall(r"<tool_call>\n?(.*?)\n?</tool_call>", rest, re.DOTALL):
        value = _parsed(found)
        is_call = isinstance(value, dict) and "name" in value
        calls.append(
            NamedCall(name=value["name"], arguments=value.get("arguments"))
            if is_call
            else NamedCall(name="", arguments=found)
        )
    content = re.sub(r"\n?<tool_call>.*?</tool_call>", "", rest, flags=re.DOTALL)
    return ModelAnswer(content=content.strip(), reasoning=thought[1] if thought else "", calls=tuple(calls))
