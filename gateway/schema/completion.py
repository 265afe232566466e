"""`POST /v1/completions`: the request, and the jobs it becomes, one per prompt."""

from typing import Annotated, ClassVar, cast

from msgspec import Meta

from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_PROMPTS, NUMBERS, Choices, EchoedMaxTokens, LegacyLogprobs, TokenId
from gateway.schema.parts.sampling import Generation, check_tokens
from gateway.schema.structure import Bounds
from protocol.messages import GenerateJob, Ready, TextPrompt, TokenPrompt

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class CompletionRequest(Generation, frozen=True, kw_only=True):
    """Text to continue: a string, token ids, or a list of up to 128 of either. `max_tokens` defaults to 16."""

    bounds: ClassVar[Bounds] = NUMBERS
    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1)]
    max_tokens: EchoedMaxTokens | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    logprobs: LegacyLogprobs | None = None
    add_special_tokens: bool | None = None

    def check_values(self) -> None:
        """Check that there is one kind of prompt, and no combination that can't be honoured. Raises `ApiError`."""
        super().check_values()
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise invalid("'best_of' must be at least 'n'.", "best_of")
        if self.ranked and self.stream:
            raise invalid("'best_of' above 'n' can't be streamed: the best is known at the end.", "best_of")
        if self.ceiling == 0 and not self.echo:
            raise invalid("'max_tokens' may be 0 only with 'echo'.", "max_tokens")
        if isinstance(self.prompt, str):
            return
        if len(kinds := set(map(type, self.prompt))) > 1:
            raise invalid("'prompt' mixes strings, token ids and lists of token ids.", "prompt")
        if kinds != {int} and len(self.prompt) > MAX_PROMPTS:
            raise invalid(f"'prompt' has {len(self.prompt)} entries; at most {MAX_PROMPTS} are allowed.", "prompt")

    @property
    def ceiling(self) -> int:
        """The most tokens of an answer. Raises `ApiError`."""
        asked = super().ceiling
        return DEFAULT_MAX_TOKENS if asked is None else asked

    @property
    def ranked(self) -> bool:
        """Whether more answers are made than are given."""
        return (self.best_of or 1) > (self.n or 1)

    def list_prompts(self, ready: Ready | None) -> list[TextPrompt | TokenPrompt]:
        """Return one per answer group, in order. Raises `ApiError` for token ids that the model can't take."""
        special = self.add_special_tokens is not False
        if isinstance(self.prompt, str):
            return [TextPrompt(text=self.prompt, add_special_tokens=special)]
        if isinstance(self.prompt[0], int):
            tokens = cast("list[int]", self.prompt)
            check_tokens(tokens, ready, "prompt")
            return [TokenPrompt(tokens=tokens)]
        found: list[TextPrompt | TokenPrompt] = []
        for index, prompt in enumerate(cast("list[str | list[int]]", self.prompt)):
            if isinstance(prompt, str):
                found.append(TextPrompt(text=prompt, add_special_tokens=special))
            else:
                check_tokens(prompt, ready, f"prompt[{index}]")
                found.append(TokenPrompt(tokens=prompt))
        return found

    def make_jobs(self, ready: Ready | None, *, request_id: str, tenant: str) -> list[GenerateJob]:
        """Make one job per prompt, all with the same seed. The pool fills in their numbers."""
        sampling = self.make_sampling(ready)
        return [
            GenerateJob(
                job=0,
                attempt=0,
                request_id=request_id,
                tenant=tenant,
                prompt=prompt,
                sampling=sampling,
                max_tokens=self.ceiling,
                stop=self.list_stops(),
                n=self.best_of or self.n or 1,
                # Answers are ranked by their log-probabilities.
                logprobs=0 if self.ranked and self.logprobs is None else self.logprobs,
                echo=bool(self.echo),
                grammar=self.make_grammar(),
                tell_prompt=bool(self.return_token_ids),
                number_tokens=bool(self.return_tokens_as_token_ids),
            )
            for prompt in self.list_prompts(ready)
        ]
