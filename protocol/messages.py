"""Every message that crosses the socket, by receiver.

All structs are encoded as positional arrays that open with their tag: a field is only ever
added at the end, with a default; a receiver ignores trailing fields it does not know.
Durations are seconds, sizes bytes, times of day Unix seconds, token ids indices of the model's vocabulary.
"""

from protocol.parts import ChatPrompt as ChatPrompt
from protocol.parts import Grammar as Grammar
from protocol.parts import Image as Image
from protocol.parts import Message as Message
from protocol.parts import Prompt as Prompt
from protocol.parts import Sampling as Sampling
from protocol.parts import TextPrompt as TextPrompt
from protocol.parts import TokenLogprob as TokenLogprob
from protocol.parts import TokenPrompt as TokenPrompt
from protocol.parts import ToolCall as ToolCall
from protocol.parts import Usage as Usage
from protocol.states import Kind as Kind
from protocol.states import State as State
from protocol.states import Watch as Watch
from protocol.supervision import EndEngine as EndEngine
from protocol.supervision import KillEngine as KillEngine
from protocol.supervision import StartEngine as StartEngine
from protocol.supervision import Supervision as Supervision

# -- To a worker


class Hello(Message, frozen=True):
    """The gateway greets a worker it does not know (after any frame of it) and starts an epoch.

    The worker cancels jobs of older epochs and answers with `Announce`, then `Ready` once it is.
    """

    gateway_pid: int


class GenerateJob(Message, frozen=True):
    """Generate text: chat or plain completion, with images or without.

    `delivered` holds, per choice, the tokens that the client already has (a job that goes on after its
    worker died); generation resumes behind them and only later deltas are sent.
    `logprobs` is None (off) or the number of alternatives, 0 to 20; `max_tokens` None: as much as the context holds.
    `images` are those of the prompt's `{"type": "image"}` parts, in order.
    `priority` orders jobs that wait in the gateway: 1 before 0 before -1. Workers take them as they come.
    `tool_choice` `required`: calls and nothing else; `tool_names`: the only ones that may be called (empty: any).
    `adapter` is one of those that the worker announced; empty: the bare model. After `thinking_budget` tokens of
    reasoning the thought is closed; None: as the worker sees fit. With `tell_prompt`, `Accepted` has the prompt's ids;
    with `number_tokens`, log-probabilities name tokens by their ids.
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
    images: list[Image] = []
    priority: int = 0
    grammar: Grammar | None = None
    tool_choice: str = "auto"
    tool_names: list[str] = []
    adapter: str = ""
    thinking_budget: int | None = None
    tell_prompt: bool = False
    number_tokens: bool = False

    @property
    def constrained(self) -> bool:
        """Whether answers are held to a grammar, which has to be compiled first."""
        if self.grammar is not None or self.tool_choice == "required" or self.tool_names:
            return True
        tools = self.prompt.tools if isinstance(self.prompt, ChatPrompt) else None
        return tools is not None and b'"strict":true' in tools


class TokenizeJob(Message, frozen=True):
    """Tokenise a prompt as a generation would; answered by `Tokens`. `tenant` as in `GenerateJob`."""

    job: int
    attempt: int
    prompt: Prompt
    images: list[Image] = []
    tenant: str = ""


class DetokenizeJob(Message, frozen=True):
    """Turn token ids into text; answered by `Text`."""

    job: int
    attempt: int
    tokens: list[int]
    tenant: str = ""


class EmbedJob(Message, frozen=True):
    """Turn inputs (either `texts` or `tokens`, one each) into vectors; answered by `Vectors`.

    `images` are inputs of their own; beside as many `texts`, each input is a text with its image.
    `max_tokens_per_text` cuts longer inputs; `truncate` says whether those over the model's limit are cut there (None:
    as the worker is set), or refused. `dimensions` keeps the leading ones. `prompt_name` and `input_type` (`query`,
    `document`) pick one of the model's own prompts.
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
    images: list[Image] = []
    backend: str | None = None
    device: str | None = None
    truncate: bool | None = None


class SimilarityJob(Message, frozen=True):
    """Compare vectors, each with each; answered by `Scores`. Needs no model: any worker can do it.

    `left` and `right` say which of the raw frames behind the envelope hold them, as little-endian float32, row by row;
    a `right` of None compares `left` with itself. `metric` is `cosine`, `dot` or `euclidean`. `top_k` asks for the most
    similar pairs only, of one list with itself each pair once.
    """

    job: int
    attempt: int
    dimensions: int
    left: int
    right: int | None = None
    metric: str = "cosine"
    top_k: int | None = None
    tenant: str = ""


class Cancel(Message, frozen=True):
    """Stop a job; idempotent. Answered by `Failed(cancelled)` if the job was still running, else not at all."""

    job: int
    attempt: int


class Drain(Message, frozen=True):
    """Finish what is running, refuse what is not, then exit. Jobs not done after `grace_s` fail as `draining`."""

    grace_s: float


class ClearCaches(Message, frozen=True):
    """Drop what was kept of earlier jobs, in memory and on disk. Not answered."""


# -- To the gateway


class Announce(Message, frozen=True):
    """Who a worker is. Sent after each `Hello`, whatever the worker's state.

    `worker` is unique per process start, `model` the served name, `source` the hub id or path tail it came from.
    `adapters` are names of their own for the model with a LoRA adapter, each with the tail of the path it came from.
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
    adapters: dict[str, str] = {}


class Ready(Message, frozen=True):
    """What only start-up could know. Sent once warm, and again after each `Hello` to a ready worker.

    `dimensions` is the length of an embedding model's vectors, `revision` changes with anything that changes them.
    `capabilities` are plain words, `vision` and `embed_image` for models that take images. `quantization` says how the
    weights are held (`none`, `q4`, `q8`). `commit` is the hub's, of the snapshot that was loaded; empty: a folder.
    `template_names` are those that the chat template reads and a request may set; None: that is not known.
    `tokenizer_info` is JSON by the names of `tokenizer_config.json`; empty: not told.
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
    quantization: str = "none"
    commit: str = ""
    template_names: list[str] | None = None
    tokenizer_info: bytes = b""


class Beat(Message, frozen=True):
    """A sign of life from the IO thread, with proof of life of the engine: its step counter.

    `step_age_s` is the time since the counter last moved; `busy` says whether it should be moving. `progress` is the
    proof of one that loads or warms up: it grows while the process works, whatever at. 0: not told.
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
    feature_bytes: int = 0
    feature_hits: int = 0
    feature_lookups: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0
    prefix_disk_bytes: int = 0
    prefix_disk_hits: int = 0
    progress: int = 0


class Accepted(Message, frozen=True):
    """The job passed every check that needs the model; it will run. `prompt` is there where it was asked for."""

    job: int
    attempt: int
    prompt_tokens: int
    prompt: list[int] = []


class Progress(Message, frozen=True):
    """How far the prompt is."""

    job: int
    attempt: int
    done_tokens: int
    total_tokens: int


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
    `backend` and `device` say where they were computed.
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
    backend: str = "mlx"
    device: str = ""


class Scores(Message, frozen=True):
    """Terminal of `SimilarityJob`: in little-endian float64, each left vector's scores with all `columns` right ones.

    Where only the best pairs were asked for: one score per pair, best first, with the places of its vectors.
    """

    job: int
    attempt: int
    columns: int
    data: bytes
    left: list[int] = []
    right: list[int] = []


class Failed(Message, frozen=True):
    """Terminal: the job ends here. `retryable` says whether another worker might do better.

    `usage` is what it has cost up to here, where that was counted.
    """

    job: int
    attempt: int
    code: str
    message: str
    param: str | None = None
    retryable: bool = False
    usage: Usage | None = None


class Bye(Message, frozen=True):
    """The engine process leaves; jobs still in flight are lost."""

    reason: str


ToWorker = (
    Hello
    | GenerateJob
    | TokenizeJob
    | DetokenizeJob
    | EmbedJob
    | SimilarityJob
    | Cancel
    | Drain
    | KillEngine
    | EndEngine
    | StartEngine
    | ClearCaches
)
ToGateway = (
    Announce
    | Ready
    | Beat
    | Accepted
    | Progress
    | Delta
    | Done
    | Tokens
    | Text
    | Vectors
    | Scores
    | Failed
    | Bye
    | Supervision
)
ModelJob = GenerateJob | TokenizeJob | DetokenizeJob | EmbedJob
"""What an engine does."""
Job = ModelJob | SimilarityJob
Result = Tokens | Text | Vectors | Scores
"""The whole answer of a job that does not generate."""
Terminal = Done | Result | Failed
