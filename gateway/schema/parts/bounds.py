"""The range of every field that has one; validation and the OpenAPI document both read them here."""

from typing import Annotated, Literal

from msgspec import Meta

from gateway.schema.structure import Bounds

MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_PROMPTS = 128
MAX_EMBEDDING_INPUTS = 2048
MAX_SCORES = 262_144
"""Of one answer of `/similarity`; more pairs are compared where only the best are asked for."""
MAX_PRODUCTS = 2**32
"""Multiplications of one such request: about a second of a worker's time."""
MAX_LOGIT_BIAS = 1024
MAX_BIAS = 100
MAX_CHOICES = 1024
MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_JSON_DEPTH = 64
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 2**31 - 1
"""Of an answer; more is taken for so many."""
MAX_STOP_IDS = 128
MAX_IMAGES = 16
MAX_IMAGE_BYTES = 20 * 1024 * 1024
MAX_IMAGE_PIXELS = 33_000_000
MAX_IMAGE_SIDE = 65_535
"""Pixels of a row or a column: the most that JPEG knows. A longer line is slow to resize and shows nothing."""
FEW = Bounds(values=16_384, containers=4_096)
"""Structure of a body that is mostly text: 2,048 texts, keys, orders."""
CONVERSATION = Bounds(values=262_144, containers=131_072)
"""2,048 messages with 16 parts and some calls each, or 128 tools with 2,048 values in each schema."""
NUMBERS = Bounds(values=2**21 + 16_384, containers=32_768)
"""Token ids: 2,048 inputs of 1,024. Vectors: two sides of 2,048 with 512 numbers. And a schema beside them."""
ARGUMENTS = Bounds(values=131_072, containers=32_768)
"""Of all arguments of calls in a conversation together."""

NAME_PATTERN = r"^[a-zA-Z0-9_.-]{1,64}$(?!\n)"
"""Of functions and schemas. Python's `$` also matches before a line feed at the end; readers of the OpenAPI document
have no `\\Z`."""

ModelName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="Served name, alias, hub id or family name. Absent: the default model of the kind needed.",
    ),
]
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy. Default: the model's own.")]
TopP = Annotated[float, Meta(ge=0, le=1, description="Nucleus sampling. Default: the model's own.")]
TopK = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID, description="Sample from the k most likely; 0 or -1: off.")]
MinP = Annotated[float, Meta(ge=0, le=1, description="Least probability relative to the likeliest token; 0: off.")]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10, description="Above 1 discourages repetition.")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]
LogitBias = Annotated[
    dict[str, Bias], Meta(max_length=MAX_LOGIT_BIAS, description="Token id (as a string) to bias, -100 to 100.")
]
Seed = Annotated[
    int, Meta(ge=-(2**63), le=2**63 - 1, description="The same seed gives the same answer. Default: random.")
]
StopText = Annotated[str, Meta(max_length=256, description="An empty text stops nothing.")]
Stop = StopText | Annotated[list[StopText], Meta(max_length=32)]
MaxTokens = Annotated[
    int,
    Meta(ge=1, le=MAX_TOKENS, description="A ceiling, cut to the room that is left. -1: not given."),
]
EchoedMaxTokens = Annotated[
    int, Meta(ge=0, le=MAX_TOKENS, description="A ceiling, as in chat. 0, with `echo`: the prompt alone.")
]
MinTokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS, description="Nothing ends the answer before so many tokens.")]
Choices = Annotated[int, Meta(ge=1, le=8, description="Answers per prompt; the prompt is computed once.")]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
LegacyLogprobs = Annotated[int, Meta(ge=0, le=5)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
StopIds = Annotated[
    list[TokenId],
    Meta(
        max_length=MAX_STOP_IDS,
        description="Tokens that end the answer, besides the model's own. They have no text.",
    ),
]
EmbeddingText = Annotated[str, Meta(min_length=1)]
EmbeddingTokens = Annotated[list[TokenId], Meta(min_length=1)]
Dimensions = Annotated[
    int, Meta(ge=1, le=65_536, description="Keep so many leading dimensions, as vectors of length 1 again.")
]
BatchSize = Annotated[int, Meta(ge=1, le=128, description="Inputs computed together. Default: by their tokens.")]
MaxTokensPerText = Annotated[
    int, Meta(ge=1, le=8192, description="Longer inputs are cut. Absent: one over the model's limit is refused.")
]
CutTokens = Annotated[int, Meta(ge=-1, le=8192, description="As `max_tokens_per_text`; -1: the model's limit.")]
EmbeddingTexts = Annotated[list[EmbeddingText], Meta(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
VectorNumber = Annotated[float, Meta(ge=-1e15, le=1e15)]
EmbeddingVector = Annotated[list[VectorNumber], Meta(min_length=1, max_length=65_536)]
TopPairs = Annotated[int, Meta(ge=1, le=2048, description="Only so many of the most similar pairs.")]
PromptName = Annotated[str, Meta(min_length=1, max_length=256)]
ImageAddress = Annotated[
    str,
    Meta(
        min_length=1,
        description="A PNG, JPEG, WebP or GIF file of up to 20 MB and 33 megapixels: data:image/png;base64,..., or an "
        "http(s) address on the public internet.",
    ),
]
Bookkeeping = Annotated[str, Meta(max_length=1024, description="Accepted for the caller's own records.")]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Accepted for the caller's own records."),
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
