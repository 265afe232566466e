"""Names of a chat template that no request may set: what the pool gives it, and parameters of what renders it."""

RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "raise_exception",
        "sanitize_control_tokens",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def is_reserved(name: str) -> bool:
    """Return whether that is one of them, or a special token of the tokenizer."""
    return name in RESERVED or name.endswith(("_token", "_tokens")) or name.startswith(("return_", "_"))
