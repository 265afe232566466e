"""Every message that crosses the socket, by receiver.

All structs are encoded as positional arrays that open with their tag: a field is only ever
added at the end, with a default; a receiver ignores trailing fields it does not know.
Durations are seconds, sizes bytes, times of day Unix seconds, token ids indices of the model's vocabulary.
"""

import msgspec

from protocol.states import Kind as Kind
from protocol.states import State as State
from protocol.states import Watch as Watch


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything that travels."""


# -- Parts of jobs


class ChatPrompt(Message, frozen=True):
    """A conversation, to be rendered by the model's own chat template.

    `messages` and `tools` are JSON as the client sent them (validated), so that the gateway pays one
    copy and the worker one parse. `template` holds allow-listed scalars for the template.
    """

    messages: bytes
    tools: bytes | None = None
    template: dict[str, bool | int | float | str] = {}


class TextPrompt(Message, frozen=True):
    """Plain text, tokenised as it is."""

    text: str
    add_special_tokens: bool = True


class TokenPrompt(Message, frozen=True):
    """Token ids, used as they are."""

    tokens: list[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Sampling(Message, frozen=True):
    """How one row picks its next token. `None` means: the model's own default.

    A row's draws depend on `(seed, choice, position)` alone, so an answer depends neither on its
    neighbours nor on where it is resumed. `top_k` 0 and `min_p` 0 are off.
    """

    seed: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False


# -- To a worker


class Hello(Message, frozen=True):
    """The gateway greets a worker it does not know (after any frame of it) and starts an epoch.

    The worker cancels jobs of older epochs and answers with `Announce`, then `Ready` once it is.
    """

    gateway_pid: int


class GenerateJob(Message, frozen=True):
    """Generate text: chat, plain completion or, later, vision.

    `delivered` holds, per choice, the tokens that the client already has (a job that goes on after its
    worker died); generation resumes behind them and only later deltas are sent.
    `logprobs` is None (off) or the number of alternatives, 0 to 20.
    `max_tokens` None means: as much as the context holds.
    """

    job: int
    attempt: int
    request_id: str
    tenant: str
    prompt: Prompt
    sampling: Sampling
    max_tokens: int | None = None
    stop: list[str] = []
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    parallel_tool_calls: bool = True
    delivered: list[list[int]] = []


class TokenizeJob(Message, frozen=True):
    """Tokenise a prompt as a generation would; answered by `Tokens`."""

    job: int
    attempt: int
    prompt: Prompt


class DetokenizeJob(Message, frozen=True):
    """Turn token ids into text; answered by `Text`."""

    job: int
    attempt: int
    tokens: list[int]


class EmbedJob(Message, frozen=True):
    """Turn inputs (either `texts` or `tokens`, one each) into vectors; answered by `Vectors`.

    `max_tokens_per_text` cuts longer inputs; None refuses those that exceed the model's limit. `dimensions` keeps the
    leading ones. `prompt_name` and `input_type` (`query`, `document`) pick one of the model's own prompts.
    """

    job: int
    attempt: int
    request_id: str
    tenant: str
    texts: list[str] = []
    tokens: list[list[int]] = []
    max_tokens_per_text: int | None = None
    normalize: bool = True
    dimensions: int | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    batch_size: int | None = None


class Cancel(Message, frozen=True):
    """Stop a job; idempotent. Answered by `Failed(cancelled)` if the job was still running, else not at all."""

    job: int
    attempt: int


class Drain(Message, frozen=True):
    """Finish what is running, refuse what is not, then exit. Jobs not done after `grace_s` fail as `draining`."""

    grace_s: float


# -- To the gateway


class Announce(Message, frozen=True):
    """Who a worker is. Sent after each `Hello`, whatever the worker's state.

    `worker` is unique per process start, `model` the served name, `source` the hub id or path tail it came from.
    """

    worker: str
    model: str
    source: str
    kind: Kind
    state: State
    pid: int
    slots: int
    queue_size: int
    queue_timeout_s: float
    created: int


class Ready(Message, frozen=True):
    """What only start-up could know. Sent once warm, and again after each `Hello` to a ready worker.

    `dimensions` is the length of an embedding model's vectors, `revision` changes with anything that changes them.
    """

    context_length: int
    vocab_size: int
    family: str
    description: str
    tags: list[str]
    capabilities: list[str]
    weights_bytes: int
    load_s: float
    warmup_enabled: bool
    warmup_s: float
    dimensions: int = 0
    revision: str = ""
    backend: str = "mlx"
    device: str = ""


class Beat(Message, frozen=True):
    """A sign of life from the IO thread, with proof of life of the engine: its step counter.

    `step_age_s` is the time since the counter last moved; `busy` says whether it should be moving.
    """

    state: State
    step: int
    step_age_s: float
    busy: bool
    running: int = 0
    waiting: int = 0
    active_bytes: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    resident_bytes: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_lookups: int = 0


class Accepted(Message, frozen=True):
    """The job passed every check that needs the model; it will run."""

    job: int
    attempt: int
    prompt_tokens: int


class Progress(Message, frozen=True):
    """How far the prompt is."""

    job: int
    attempt: int
    done_tokens: int
    total_tokens: int


class ToolCall(Message, frozen=True):
    """One parsed tool call; `arguments` is JSON text."""

    index: int
    id: str
    name: str
    arguments: str


class TokenLogprob(Message, frozen=True):
    """One generated token with its log-probability (nats) and the most likely alternatives.

    `token` is the text of the token, lossy where it is part of a character; `raw` its bytes.
    """

    token: str
    raw: bytes
    logprob: float
    top: list[tuple[str, bytes, float]] = []


class Delta(Message, frozen=True):
    """What one engine step added to one choice of one job.

    `tokens` are the ids that this delta accounts for, also when their text is still held back
    (half a character, a possible stop string): what a resumed job needs to go on.
    `finish` is set once per choice: `stop`, `length` or `tool_calls`.
    """

    job: int
    attempt: int
    choice: int
    tokens: list[int]
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    finish: str | None = None


class Usage(Message, frozen=True):
    """What a job cost, in tokens and seconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    wait_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Done(Message, frozen=True):
    """Terminal: every choice has finished."""

    job: int
    attempt: int
    usage: Usage


class Tokens(Message, frozen=True):
    """Terminal of `TokenizeJob`."""

    job: int
    attempt: int
    tokens: list[int]


class Text(Message, frozen=True):
    """Terminal of `DetokenizeJob`."""

    job: int
    attempt: int
    text: str


class Vectors(Message, frozen=True):
    """Terminal of `EmbedJob`: one vector per input, in order, as little-endian float32, row by row.

    `batches` counts the forward passes that the job took part in, `batch_size` is the largest of them, in inputs.
    """

    job: int
    attempt: int
    dimensions: int
    token_counts: list[int]
    data: bytes
    wait_s: float = 0.0
    compute_s: float = 0.0
    batches: int = 0
    batch_size: int = 0


class Failed(Message, frozen=True):
    """Terminal: the job ends here. `retryable` says whether another worker might do better."""

    job: int
    attempt: int
    code: str
    message: str
    param: str | None = None
    retryable: bool = False


class Bye(Message, frozen=True):
    """The engine process leaves; jobs still aboard are lost."""

    reason: str


# -- Supervisors


class Supervision(Message, frozen=True):
    """What a supervisor knows of its engine. Sent on `Hello`, on every change and as its beat.

    `engine` is the `worker` of the engine process it runs or last ran (empty before the first),
    `exit_code` how that one ended (negative: by signal), `delay_s` how long until the next start.
    """

    model: str
    kind: Kind
    watch: Watch
    pid: int
    engine: str = ""
    engine_pid: int = 0
    restarts: int = 0
    exit_code: int | None = None
    delay_s: float = 0.0


class KillEngine(Message, frozen=True):
    """To a supervisor: SIGKILL the engine `worker` (if it still is the running one); it will be restarted."""

    worker: str
    reason: str


ToWorker = Hello | GenerateJob | TokenizeJob | DetokenizeJob | EmbedJob | Cancel | Drain | KillEngine
ToGateway = (
    Announce | Ready | Beat | Accepted | Progress | Delta | Done | Tokens | Text | Vectors | Failed | Bye | Supervision
)
Job = GenerateJob | TokenizeJob | DetokenizeJob | EmbedJob
Terminal = Done | Tokens | Text | Vectors | Failed
