"""One example of every message, with no field at its default; run as a program, it prints the golden frames."""

import msgspec

from protocol.codec import encode
from protocol.messages import (
    Accepted,
    Announce,
    Beat,
    Bye,
    Cancel,
    ChatPrompt,
    ClearCaches,
    Delta,
    DetokenizeJob,
    Done,
    Drain,
    EmbedJob,
    EndEngine,
    Failed,
    GenerateJob,
    Grammar,
    Hello,
    Image,
    KillEngine,
    Kind,
    Message,
    Progress,
    Ready,
    Sampling,
    Scores,
    SimilarityJob,
    StartEngine,
    State,
    Supervision,
    Text,
    TextPrompt,
    TokenizeJob,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    ToolCall,
    Usage,
    Vectors,
    Watch,
)

EPOCH = 7
HEADER = """\
# The bytes of one example of each message in an envelope of epoch 7, as hex. Remade, once it is certain that peers of
# older builds still read them (docs/protocol.md, Evolution), by
#     python -m tests.support.wire_examples > tests/protocol/golden_frames.txt
"""

SAMPLING = Sampling(
    seed=2**63 - 1,
    temperature=0.5,
    top_p=0.25,
    top_k=40,
    min_p=0.125,
    repetition_penalty=1.5,
    presence_penalty=-2.0,
    frequency_penalty=2.0,
    logit_bias={17: -100.0},
    ignore_eos=True,
    min_tokens=3,
    stop_token_ids=[151_645],
)
CHAT = ChatPrompt(
    messages=b'[{"role":"user"}]',
    tools=b"[]",
    template={"enable_thinking": False, "effort": "low"},
    add_generation_prompt=False,
    continue_final_message=True,
)

IMAGE = Image(3, b"\xe3\xb0\xc4\x42", "low")
GRAMMAR = Grammar("regex", "[a-z]+", "structured_outputs.regex")
PARTS = (CHAT, TextPrompt("grüß dich", False), TokenPrompt([1, 151_643]), SAMPLING, IMAGE, GRAMMAR)
TO_WORKER = (
    Hello(4711),
    GenerateJob(
        job=5,
        attempt=2,
        request_id="req-1",
        tenant="tenant",
        prompt=CHAT,
        sampling=SAMPLING,
        max_tokens=64,
        stop=["\n\n", "END"],
        n=2,
        logprobs=3,
        echo=True,
        parallel_tool_calls=False,
        delivered=[[9, 8], []],
        images=[IMAGE],
        priority=1,
        grammar=GRAMMAR,
        tool_choice="required",
        tool_names=["weather"],
        adapter="sql",
        thinking_budget=100,
        tell_prompt=True,
        number_tokens=True,
    ),
    TokenizeJob(6, 1, PARTS[1], [IMAGE], "tenant"),
    DetokenizeJob(7, 1, [1, 2, 3], "tenant"),
    EmbedJob(
        job=8,
        attempt=1,
        request_id="req-2",
        tenant="tenant",
        texts=["grüß dich", "b"],
        tokens=[[1, 30_521]],
        max_tokens_per_text=256,
        truncate=True,
        normalize=False,
        dimensions=128,
        prompt_name="query",
        input_type="document",
        batch_size=32,
        images=[IMAGE],
        backend="torch",
        device="cpu",
    ),
    SimilarityJob(9, 1, 2, 1, 2, "dot", 3, "tenant"),
    Cancel(5, 2),
    Drain(3.5),
    KillEngine("0f1e2d", "no step for 60 s"),
    EndEngine("0f1e2d", 30.0, True, "asked to"),
    StartEngine(),
    ClearCaches(),
)
CALL = ToolCall(1, "call_1", "weather", '{"city":"Köln"}')
LOGPROB = TokenLogprob("\ufffd", b"\xe2\x82", -0.5, [("a", b"a", -1.5)])
USAGE = Usage(10, 20, 5, 3, 0.25, 0.5, 1.5, 25, 0.125)
TO_GATEWAY = (
    Announce(
        "0f1e2d", "qwen3", "org/Qwen3-0.6B", Kind.VISION, State.WARMING, 99, 32, 100, 300.0, 1_700_000_000, {"sql": "a"}
    ),
    Ready(
        32_768,
        151_936,
        "qwen",
        "A model",
        ["local"],
        ["chat", "tools"],
        2**33,
        1.5,
        True,
        0.5,
        384,
        "c0ffee",
        "torch",
        "gpu",
        "q4",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        ["enable_thinking"],
        b'{"eos_token":"</s>"}',
    ),
    Beat(
        State.READY, 1000, 0.125, True, 3, 2, 2**32, 2**20, 2**34, 2**35, 2**21, 4, 6, 2**22, 1, 2, 9, 7, 2**36, 7, 12
    ),
    Accepted(5, 2, 10, [1, 2]),
    Progress(5, 2, 512, 4096),
    Delta(5, 2, 1, [11, 12], "text", "thought", [CALL], [LOGPROB], "tool_calls"),
    Done(5, 2, USAGE),
    Tokens(6, 1, [1, 2]),
    Text(7, 1, "one two"),
    Vectors(8, 1, 2, [4, 3], bytes.fromhex("0000803f000000000000003f000000bf"), 0.25, 0.5, 3, 2, "torch", "gpu"),
    Scores(9, 1, 2, bytes.fromhex("000000000000e03f"), [1], [2]),
    Failed(5, 2, "invalid_request", "No such token.", "logit_bias", True, USAGE),
    Bye("stopped"),
    Supervision("qwen3", Kind.CHAT, Watch.CRASH_LOOP, 98, "0f1e2d", 99, 4, -9, 30.0, True, 5120, "it died"),
)
EXAMPLES: tuple[Message, ...] = (*PARTS, *TO_WORKER, CALL, LOGPROB, USAGE, *TO_GATEWAY)


def frame_of(message: Message) -> bytes:
    """An envelope with this message; a part travels inside of the message that it is a part of."""
    match message:
        case ChatPrompt() | TextPrompt() | TokenPrompt():
            message = TokenizeJob(6, 1, message)
        case Image():
            message = TokenizeJob(6, 1, PARTS[1], [message])
        case Grammar():
            message = GenerateJob(5, 2, "req-1", "tenant", PARTS[1], SAMPLING, grammar=message)
        case Sampling():
            message = GenerateJob(5, 2, "req-1", "tenant", PARTS[1], message)
        case ToolCall():
            message = Delta(5, 2, 1, [11], calls=[message])
        case TokenLogprob():
            message = Delta(5, 2, 1, [11], logprobs=[message])
        case Usage():
            message = Done(5, 2, message)
    return encode([message], epoch=EPOCH)


def defaults_in(message: Message) -> list[str]:
    """The fields that are at their default: nothing would be seen of them."""
    return [
        field.name
        for field in msgspec.structs.fields(message)
        if not field.required
        and getattr(message, field.name)
        == (field.default if field.default is not msgspec.NODEFAULT else field.default_factory())
    ]


if __name__ == "__main__":
    print(HEADER, end="")
    for example in EXAMPLES:
        print(type(example).__name__, frame_of(example).hex())
