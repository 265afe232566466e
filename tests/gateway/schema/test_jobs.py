"""What a request becomes for a worker."""

from typing import Any

import orjson
import pytest

from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode
from gateway.schema.errors import ApiError
from gateway.schema.tokenize import DetokenizeRequest, TokenizeRequest
from protocol.messages import ChatPrompt, GenerateJob, Grammar, Ready, TextPrompt, TokenPrompt

USER = {"role": "user", "content": "hi"}
READY = Ready(
    context_length=10, vocab_size=100, family="", description="", tags=[], capabilities=[], weights_bytes=0, load_s=0,
    warmup_enabled=True, warmup_s=0,
)  # fmt: skip


def chat_job(**fields: Any) -> GenerateJob:
    request = decode(orjson.dumps({"messages": [USER], **fields}), ChatCompletionRequest)
    return request.make_job(READY, request_id="rid", tenant="t")


def template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    prompt = chat_job(messages=messages).prompt
    assert isinstance(prompt, ChatPrompt)
    return orjson.loads(prompt.messages)


def completion_jobs(**fields: Any) -> list[GenerateJob]:
    return decode(orjson.dumps({"prompt": "x", **fields}), CompletionRequest).make_jobs(
        READY, request_id="rid", tenant="t"
    )


def test_job_carries_every_sampling_field_when_given() -> None:
    """No sampling parameter is lost between the request and the job."""
    job = chat_job(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=-0.3, logit_bias={"5": 2, "99": -100}, seed=42, stop=["a", "b"], max_tokens=9, n=3,
        logprobs=True, top_logprobs=4, ignore_eos=True, parallel_tool_calls=False,
    )  # fmt: skip
    sampling = job.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k) == (42, 0.5, 0.9, 7)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, -0.3)
    assert sampling.logit_bias == {5: 2.0, 99: -100.0}
    assert sampling.ignore_eos
    assert (job.stop, job.max_tokens, job.n, job.logprobs, job.parallel_tool_calls) == (["a", "b"], 9, 3, 4, False)
    assert (job.request_id, job.tenant, job.job, job.attempt) == ("rid", "t", 0, 0)


def test_defaults_are_left_to_the_model_when_nothing_is_given() -> None:
    """Absent parameters travel as None, so that the model's own defaults apply."""
    job = chat_job()
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.top_k, job.max_tokens) == (
        None,
        None,
        None,
        None,
    )
    assert (job.n, job.logprobs, job.stop, job.parallel_tool_calls) == (1, None, [], True)


def test_seed_is_drawn_when_absent_and_never_negative() -> None:
    """Without a seed each job gets its own of 63 bits; a negative one is folded into them."""
    assert len({chat_job().sampling.seed for _ in range(10)}) == 10
    assert 0 <= chat_job().sampling.seed < 2**63
    assert chat_job(seed=-1).sampling.seed == 2**63 - 1
    assert chat_job(seed=-(2**63)).sampling.seed == 0


def test_top_k_is_off_when_minus_one() -> None:
    """vLLM's way of saying off becomes the wire's."""
    assert chat_job(top_k=-1).sampling.top_k == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3), ({"logprobs": False}, None)],
)
def test_logprobs_count_alternatives_when_on(fields: dict[str, Any], expected: int | None) -> None:
    """Log-probabilities without alternatives are 0, off is None."""
    assert chat_job(**fields).logprobs == expected


def test_max_completion_tokens_counts_when_given() -> None:
    """The newer name works alone."""
    assert chat_job(max_completion_tokens=3).max_tokens == 3


def test_tools_travel_when_they_may_be_used() -> None:
    """Tools reach the template as the client wrote them; `tool_choice: none` keeps them away from it."""
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    prompt = chat_job(tools=tools).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools is not None
    assert orjson.loads(prompt.tools) == tools
    for hidden in (chat_job(tools=tools, tool_choice="none").prompt, chat_job(tools=[]).prompt, chat_job().prompt):
        assert isinstance(hidden, ChatPrompt)
        assert hidden.tools is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
        ({"chat_template_kwargs": {"enable_thinking": None, "reasoning_effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
def test_template_options_are_scalars_when_given(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Only the allow-listed scalars reach the template; no effort also means no thinking."""
    prompt = chat_job(**fields).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template == expected


def test_messages_are_plain_when_rendered() -> None:
    """Parts are joined, developer becomes system, arguments that are an object become one, reasoning stays."""
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}, "index": 0},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "[1]"}},
        {"id": "c3", "type": "function", "function": {"name": "h", "arguments": ""}},
    ]
    assert template(
        [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "q", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": calls, "reasoning": "hm"},
            {"role": "tool", "content": [{"type": "text", "text": "7"}], "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "r"},
            {"role": "assistant", "content": None, "refusal": "never"},
        ]
    ) == [
        {"role": "system", "content": "ab"},
        {"role": "user", "content": "q", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "[1]"}},
                {"id": "c3", "type": "function", "function": {"name": "h", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "assistant", "content": "no", "reasoning_content": "r"},
        {"role": "assistant", "content": "never"},
    ]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"content": None},
        {"content": []},
        {"content": ""},
        {"tool_calls": []},
        {"content": None, "tool_calls": None},
    ],
)
def test_assistant_has_its_place_when_it_said_nothing(said: dict[str, Any]) -> None:
    """As it comes back from clients whose answer was cut off, or was a thought alone."""
    user = {"role": "user", "content": "q"}
    messages = [user, {"role": "assistant", **said}, user]
    assert template(messages) == [user, {"role": "assistant", "content": ""}, user]
    thought = [user, {"role": "assistant", "reasoning_content": "hm", **said}]
    assert template(thought) == [user, {"role": "assistant", "content": "", "reasoning_content": "hm"}]


@pytest.mark.parametrize("arguments", ["", " ", "\n\t", "{}", "{ }"])
@pytest.mark.parametrize("content", [None, [], ""])
def test_call_without_parameters_and_result_without_text_are_plain(arguments: str, content: Any) -> None:
    """Templates get a mapping and a text, whatever a client makes of nothing."""
    function = {"name": "f", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    result = {"role": "tool", "content": content, "tool_call_id": "c"}
    called, answered = template([{"role": "assistant", "content": content, "tool_calls": [call]}, result])
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert (called["content"], answered["content"]) == ("", "")


def test_bias_is_refused_when_its_token_is_not_in_the_vocabulary() -> None:
    """The last id of the vocabulary passes, the next one is a 400, also where the request came before the model."""
    assert chat_job(logit_bias={"99": 1}).sampling.logit_bias == {99: 1.0}
    with pytest.raises(ApiError) as raised:
        chat_job(logit_bias={"100": 1})
    assert raised.value.param == "logit_bias.100"
    with pytest.raises(ApiError) as raised:
        chat_job(stop_token_ids=[1, 100])
    assert raised.value.param == "stop_token_ids[1]"
    request = decode(orjson.dumps({"messages": [USER], "logit_bias": {"100": 1}}), ChatCompletionRequest)
    assert request.make_sampling(None).logit_bias == {100: 1.0}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", [TextPrompt(text="x")]),
        (["x", ""], [TextPrompt(text="x"), TextPrompt(text="")]),
        ([1, 2], [TokenPrompt(tokens=[1, 2])]),
        ([[1], [2, 3]], [TokenPrompt(tokens=[1]), TokenPrompt(tokens=[2, 3])]),
    ],
)
def test_prompts_become_jobs_when_of_any_kind(prompt: Any, expected: list[TextPrompt | TokenPrompt]) -> None:
    """One job per prompt, in order, with the same seed and OpenAI's default length."""
    jobs = completion_jobs(prompt=prompt)
    assert [job.prompt for job in jobs] == expected
    assert len({job.sampling.seed for job in jobs}) == 1
    assert {job.max_tokens for job in jobs} == {16}


def test_completion_fields_travel_when_given() -> None:
    """The fields that only this endpoint has."""
    (job,) = completion_jobs(echo=True, n=2, max_tokens=4, stop="s")
    assert (job.echo, job.n, job.max_tokens, job.stop, job.logprobs) == (True, 2, 4, ["s"], None)
    assert completion_jobs(logprobs=5)[0].logprobs == 5


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        ([99, 100], "invalid_request", "prompt"),
        ([[1], [100]], "invalid_request", "prompt[1]"),
        ([1] * 11, "context_length_exceeded", "prompt"),
        ([[1] * 10, [1] * 11], "context_length_exceeded", "prompt[1]"),
    ],
)
def test_token_prompt_is_refused_when_the_model_cannot_take_it(prompt: Any, code: str, param: str) -> None:
    """Ids outside the vocabulary and prompts over the context never leave the gateway."""
    completion_jobs(prompt=[99] * 10)
    with pytest.raises(ApiError) as raised:
        completion_jobs(prompt=prompt)
    assert (raised.value.code, raised.value.param) == (code, param)
    if code == "context_length_exceeded":
        assert raised.value.message.startswith("This model's maximum context length is 10 tokens. However, ")


def test_tokenize_job_takes_either_shape_when_asked() -> None:
    """Text with or without special tokens, or a conversation."""

    def prompt(**body: Any) -> Any:
        return decode(orjson.dumps(body), TokenizeRequest).make_job(tenant="t").prompt

    assert prompt(prompt="x") == TextPrompt(text="x", add_special_tokens=True)
    assert prompt(prompt="", add_special_tokens=False) == TextPrompt(text="", add_special_tokens=False)
    chat = prompt(messages=[USER], chat_template_kwargs={"enable_thinking": False})
    assert orjson.loads(chat.messages) == [USER]
    assert chat.template == {"enable_thinking": False}


def test_detokenize_job_is_refused_when_an_id_is_unknown() -> None:
    """Ids are checked against the vocabulary."""
    request = decode(b'{"tokens":[99]}', DetokenizeRequest)
    assert request.make_job(READY, tenant="t").tokens == [99]
    with pytest.raises(ApiError):
        decode(b'{"tokens":[100]}', DetokenizeRequest).make_job(READY, tenant="t")


TOOLS = [{"type": "function", "function": {"name": name, "strict": True}} for name in "fg"]
NAMED = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object", "", "response_format")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"b": 1, "a": "é"}}}},
            Grammar("json_schema", '{"b":1,"a":"é"}', "response_format.json_schema.schema"),
        ),
        (
            {"structured_outputs": {"json": '{"type": "null"}'}},
            Grammar("json_schema", '{"type":"null"}', "structured_outputs.json"),
        ),
        ({"structured_outputs": {"regex": "a|b"}}, Grammar("regex", "a|b", "structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a", "é"]}}, Grammar("choice", '["a","é"]', "structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "start: x"}}, Grammar("grammar", "start: x", "structured_outputs.grammar")),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object", "", "structured_outputs.json_object")),
    ],
)
def test_grammar_travels_when_a_structure_is_asked_for(fields: dict[str, Any], grammar: Grammar | None) -> None:
    """Properties in the order of the request, and the field that errors will name."""
    assert chat_job(**fields).grammar == grammar
    if "structured_outputs" in fields:
        assert completion_jobs(**fields)[0].grammar == grammar


@pytest.mark.parametrize(
    ("choice", "demand"),
    [
        ("auto", ("auto", [], True)),
        ("required", ("required", [], True)),
        (NAMED, ("required", ["g"], False)),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            ("auto", ["g"], True),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            ("required", ["g"], True),
        ),
    ],
)
def test_demand_travels_when_a_tool_is_chosen(choice: Any, demand: tuple[str, list[str], bool]) -> None:
    """What must be called, what may be, and whether more than once."""
    job = chat_job(tools=TOOLS, tool_choice=choice)
    assert (job.tool_choice, job.tool_names, job.parallel_tool_calls) == demand
    assert isinstance(job.prompt, ChatPrompt)
    assert job.prompt.tools is not None
    assert b'"strict":true' in job.prompt.tools
