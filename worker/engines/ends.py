"""Which tokens end an answer: all that a model's files name, and those that its template writes behind an answer. Pure.

No single file is to be relied on. Conversions lose `generation_config.json`; some `config.json` name the end of a text,
but not that of a turn; then an answer would run on through `<|im_end|>`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from worker.engines.context import parts_of

PROBE = "Zq7answer"
"""An answer that no template writes itself."""
QUESTION = ("user", "Zq7question")
CONVERSATIONS = ((QUESTION, ("assistant", PROBE)), (QUESTION, ("assistant", PROBE), ("user", "Zq7more")))
"""Some templates write the end of the last turn alone, others that of all but the last."""
KNOWN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
"""Ends of turns that count where a template names them, wherever it writes them."""
HARMONY = "<|channel|>"
HARMONY_ENDS = ("<|return|>", "<|call|>")
"""What ends an answer in several channels; their `<|end|>` ends a channel alone."""


def end_tokens(configs: Mapping[str, Mapping[str, Any]], tokenizer: Any) -> set[int]:
    """Return the ids that end an answer. `configs` are the JSON files of the folder, `tokenizer` is mlx-lm's."""
    ends = {token for config in configs.values() for part in parts_of(config) for token in _ids(part)}
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    template = tokenizer.chat_template or ""
    text = " ".join(map(str, template.values())) if isinstance(template, Mapping) else str(template)
    ends |= {added[name] for name in KNOWN if name in added and name in text}
    if HARMONY in added:
        ends |= {added[name] for name in HARMONY_ENDS if name in added}
    begins = {tokenizer.think_start, tokenizer.tool_call_start}
    ends |= {added[name] for name in _written_ends(tokenizer, added) if name not in begins}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return {token for token in ends if 0 <= token < len(tokenizer)}


def _ids(config: Mapping[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    return [token for token in listed if isinstance(token, int) and not isinstance(token, bool)]


def _written_ends(tokenizer: Any, added: Mapping[str, int]) -> Iterator[str]:
    """Yield the control tokens that stand right behind an answer of the chat template."""
    if not tokenizer.has_chat_template:
        return
    for conversation in CONVERSATIONS[: 1 if HARMONY in added else None]:
        messages = [{"role": role, "content": content} for role, content in conversation]
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        except Exception:  # noqa: S112 - a template may refuse anything, in any way: it then says nothing about ends.
            continue
        _, _, behind = str(text).rpartition(PROBE)
        names = [name for name in added if name and behind.lstrip().startswith(name)]
        if names:
            yield max(names, key=len)
