"""Every parameter that shapes an answer does so: on each endpoint, on chat and vision models, streamed and not."""

import json
from collections import Counter
from typing import Any

import pytest
from stress.running_pool import RunningPool

from tests.support.picture_files import data_url, picture
from tests.support.pool_fixtures import QWEN_NAME, SIGHT_NAME

pytestmark = pytest.mark.mlx

SURFACES = ("chat", "completions", "vision")
RANDOM = {"temperature": 1.0, "seed": 11}
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


class Surface:
    """One endpoint of one model: what it answers with some parameters, the same streamed and not."""

    def __init__(self, name: str, pool: RunningPool) -> None:
        self.name = name
        self.pool = pool
        text: Any = "tell me about the sea"
        if name == "vision":
            image = {"type": "image_url", "image_url": {"url": data_url(picture(colour="red"))}}
            text = [{"type": "text", "text": text}, image]
        self.base: dict[str, Any] = {"model": SIGHT_NAME if name == "vision" else QWEN_NAME, "max_tokens": 24}
        if name == "completions":
            self.path = "/v1/completions"
            self.base["prompt"] = "the sea is"
        else:
            self.path = "/v1/chat/completions"
            self.base |= {"messages": [{"role": "user", "content": text}], **QUIET}

    def whole(self, **fields: Any) -> dict[str, Any]:
        """An answer that is not streamed."""
        answer = self.pool.post(self.path, self.base | fields)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def frames(self, **fields: Any) -> list[dict[str, Any]]:
        """The same streamed."""
        body = self.pool.post(self.path, self.base | fields | {"stream": True}).body.decode()
        lines = [line[6:] for line in body.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", body
        return [json.loads(line) for line in lines[:-1]]

    def texts(self, **fields: Any) -> list[str]:
        """The text of each choice, found the same both ways."""
        whole = [self._text(choice) for choice in self.whole(**fields)["choices"]]
        streamed = [""] * len(whole)
        for frame in self.frames(**fields):
            for choice in frame["choices"]:
                part = choice.get("delta") or {"content": choice.get("text")}
                streamed[choice["index"]] += (part.get("reasoning_content") or "") + (part.get("content") or "")
        assert streamed == whole
        return whole

    def text(self, **fields: Any) -> str:
        """The only choice's."""
        [text] = self.texts(**fields)
        return text

    def _text(self, choice: dict[str, Any]) -> str:
        if self.name == "completions":
            return str(choice["text"])
        message = choice["message"]
        return (message.get("reasoning_content") or "") + (message["content"] or "")

    def tokens(self, text: str) -> list[int]:
        """The ids of a text."""
        asked = {"model": self.base["model"], "prompt": text, "add_special_tokens": False}
        found: list[int] = self.pool.post("/v1/tokenize", asked).json()["tokens"]
        return found

    def finish(self, **fields: Any) -> str:
        """How the answer ended."""
        return str(self.whole(**fields)["choices"][0]["finish_reason"])


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> Surface:
    """Each endpoint on each kind of model that has it."""
    return Surface(request.param, request.getfixturevalue("sight" if request.param == "vision" else "qwen"))


@pytest.fixture(params=["chat", "vision"])
def talk(request: pytest.FixtureRequest) -> Surface:
    """Chat on each kind of model."""
    return Surface(request.param, request.getfixturevalue("sight" if request.param == "vision" else "qwen"))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
def test_draw_is_greedy_when_only_the_likeliest_is_left(surface: Surface, narrow: dict[str, Any]) -> None:
    """`temperature` 0 and each way to leave one token say the same; without them it is another answer."""
    greedy = surface.text(temperature=0)
    assert surface.text(**RANDOM, **narrow) == greedy
    assert surface.text(**RANDOM) != greedy


def test_answer_follows_its_seed(surface: Surface) -> None:
    """The same seed, the same answer; another one, another."""
    found = [surface.text(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 5.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}], ids=str
)
def test_penalty_makes_tokens_rarer(surface: Surface, penalty: dict[str, Any]) -> None:
    """A token that is made likely comes again and again, unless that is punished."""
    [token] = surface.tokens("a")
    forced = {"temperature": 0, "logit_bias": {str(token): 12}}
    plain = Counter(surface.tokens(surface.text(**forced)))
    punished = Counter(surface.tokens(surface.text(**forced, **penalty)))
    assert plain[token] > punished[token]


def test_bias_decides_when_it_is_100(surface: Surface) -> None:
    """The token that is forced is all there is; one that is forbidden never comes."""
    [token] = surface.tokens("a")
    assert surface.text(logit_bias={str(token): 100}, **RANDOM) == "a" * 24
    assert surface.text(logit_bias={str(token): -100}, temperature=0) != "a" * 24


@pytest.mark.parametrize("form", [lambda stop: stop, lambda stop: ["never said", stop]], ids=["text", "list"])
def test_each_choice_ends_before_its_stop(surface: Surface, form: Any) -> None:
    """A stop that spans tokens cuts every choice where it first stands, and no other."""
    whole = surface.texts(**RANDOM, n=3)
    stop = whole[1][9:15]
    cut = surface.texts(**RANDOM, n=3, stop=form(stop))
    assert cut == [text.partition(stop)[0] for text in whole]
    assert len(cut[1]) < len(whole[1])


def test_choices_are_as_many_as_asked(surface: Surface) -> None:
    """`n` up to 8, all different, the first as without it."""
    texts = surface.texts(**RANDOM, n=8)
    assert len(set(texts)) == 8
    assert texts[0] == surface.text(**RANDOM)


def test_length_is_exact_and_eos_ends(surface: Surface) -> None:
    """`max_tokens` tokens and `length`; the end of sequence ends with `stop`, unless it is to be ignored."""
    [end] = surface.tokens("<|im_end|>")
    assert surface.whole(max_tokens=5, temperature=0)["usage"]["completion_tokens"] == 5
    assert surface.finish(max_tokens=5, temperature=0) == "length"
    likely = {"temperature": 0, "logit_bias": {str(end): 100}}
    assert (surface.text(**likely), surface.finish(**likely)) == ("", "stop")
    assert surface.whole(**likely, ignore_eos=True)["usage"]["completion_tokens"] == 24


def test_structure_holds(surface: Surface) -> None:
    """`structured_outputs` on every endpoint."""
    assert surface.text(**RANDOM, structured_outputs={"choice": ["north", "south"]}) in ("north", "south")


def test_usage_and_timings_come_when_asked_for(surface: Surface) -> None:
    """The last frame of a stream has no choices; without being asked for, neither comes."""
    asked = {"temperature": 0, "return_timing": True}
    frames = surface.frames(**asked, stream_options={"include_usage": True})
    whole = surface.whole(**asked)
    assert frames[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert frames[-1]["usage"][name] == whole["usage"][name]
    assert set(frames[-1]["timings"]) == set(whole["timings"])
    assert not any(frame.get("usage") or frame.get("timings") for frame in frames[:-1] + surface.frames(temperature=0))
    assert "timings" not in surface.whole(temperature=0)


def test_log_probabilities_are_the_same_streamed_and_not(surface: Surface) -> None:
    """Of every choice; in the shape of the endpoint."""
    asked = {"logprobs": 2} if surface.name == "completions" else {"logprobs": True, "top_logprobs": 2}
    fields: dict[str, Any] = {**RANDOM, **asked, "n": 2, "max_tokens": 8}
    whole = {choice["index"]: choice["logprobs"] for choice in surface.whole(**fields)["choices"]}
    streamed: dict[int, dict[str, list[Any]]] = {0: {}, 1: {}}
    for frame in surface.frames(**fields):
        for choice in frame["choices"]:
            for name, values in (choice["logprobs"] or {}).items():
                streamed[choice["index"]].setdefault(name, []).extend(values or [])
    for index, found in whole.items():
        assert {name: values for name, values in found.items() if values} == {
            name: values for name, values in streamed[index].items() if values
        }
        assert len(next(iter(found.values()))) == 8


def test_format_is_enforced_in_a_chat(talk: Surface) -> None:
    """`response_format` in each of its forms."""
    schema = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
    assert json.loads(talk.text(**RANDOM, response_format=schema, max_tokens=200))["city"] in ("Oslo", "Rome")
    bias = {str(token): 100 for token in talk.tokens("{}")}
    assert json.loads(talk.text(**RANDOM, response_format={"type": "json_object"}, logit_bias=bias)) == {}
    assert talk.text(temperature=0, response_format={"type": "text"}) == talk.text(temperature=0)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_call_comes_when_a_chat_demands_one(talk: Surface, choice: Any) -> None:
    """The same call streamed and not, of each choice."""
    fields = {**RANDOM, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "n": 2, "max_tokens": 60}
    whole = talk.whole(**fields)["choices"]
    arguments = ["", ""]
    for frame in talk.frames(**fields):
        for entry in frame["choices"]:
            for piece in entry["delta"].get("tool_calls") or ():
                arguments[entry["index"]] += piece["function"]["arguments"]
    for made, streamed in zip(whole, arguments, strict=True):
        [call] = made["message"]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": streamed}
        assert json.loads(streamed)["city"] in ("Oslo", "Rome")
        assert made["finish_reason"] == "tool_calls"


def test_tools_reach_the_prompt_unless_none_may_be_called(talk: Surface) -> None:
    """`tools` cost prompt tokens; with `tool_choice` `none` they do not, with `auto` they do."""

    def prompt(**fields: Any) -> int:
        return int(talk.whole(temperature=0, max_tokens=1, **fields)["usage"]["prompt_tokens"])

    plain = prompt()
    assert prompt(tools=[TOOL], tool_choice="none") == plain
    assert prompt(tools=[TOOL]) == prompt(tools=[TOOL], tool_choice="auto") > plain


def test_thinking_is_turned_off_by_either_switch(talk: Surface) -> None:
    """`reasoning_effort` `none` renders the prompt that `enable_thinking` false does, and another one than usual."""
    asked = {"temperature": 0, "chat_template_kwargs": None}
    off = talk.whole(**asked, reasoning_effort="none")
    assert off["usage"]["prompt_tokens"] == talk.whole(temperature=0)["usage"]["prompt_tokens"]
    assert off["usage"]["prompt_tokens"] != talk.whole(**asked, reasoning_effort="low")["usage"]["prompt_tokens"]


def test_newer_name_of_the_limit_counts(talk: Surface) -> None:
    """`max_completion_tokens` alone limits the answer."""
    answer = talk.whole(temperature=0, max_tokens=None, max_completion_tokens=7)
    assert answer["usage"]["completion_tokens"] == 7


def test_roles_and_parts_reach_the_template(talk: Surface) -> None:
    """`developer` is `system`; parts of a refusal and a tool's result count, and all of it is answered."""

    def prompt(*before: dict[str, Any]) -> int:
        messages = [*before, *talk.base["messages"]]
        return int(talk.whole(messages=messages, max_tokens=1)["usage"]["prompt_tokens"])

    plain = prompt()
    system = prompt({"role": "system", "content": "be brief"})
    assert prompt({"role": "developer", "content": [{"type": "text", "text": "be brief"}]}) == system > plain
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    before: list[dict[str, Any]] = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not say"}]},
    ]
    sizes = [prompt(*before[:count]) for count in (0, 1, 2, 3, 4)]
    assert sizes == sorted(set(sizes))
