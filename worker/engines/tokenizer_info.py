"""What a tokenizer's files say that clients ask for who tokenise or render on their own: `/tokenizer_info`."""

import json
from typing import Any

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
LARGEST_TEMPLATE = 256 * 1024
"""Characters of a chat template that are told: it travels with each greeting of a gateway."""


def describe_tokenizer(tokenizer: Any, *, context_length: int) -> bytes:
    """Return it as JSON, by the names of `tokenizer_config.json`. No path is in it."""
    template = getattr(tokenizer, "chat_template", None)
    told = isinstance(template, str | dict | list) and len(json.dumps(template)) <= LARGEST_TEMPLATE
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    found = {
        "tokenizer_class": type(inner).__name__,
        "chat_template": template if told else None,
        "model_max_length": context_length,
        "add_bos_token": bool(getattr(tokenizer, "add_bos_token", False)),
        "add_eos_token": bool(getattr(tokenizer, "add_eos_token", False)),
        "additional_special_tokens": [str(token) for token in getattr(tokenizer, "all_special_tokens", ())],
    }
    found |= {name: _text(getattr(tokenizer, name, None)) for name in TOKENS}
    return json.dumps(found).encode()


def _text(token: Any) -> str | None:
    return None if token is None else str(token)
