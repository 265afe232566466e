"""Real processes, shared or of a test's own."""

from pool_fixtures import (
    _encoder_session,
    _fake_session,
    _minilm_session,
    _qwen_session,
    _seeing_session,
    encoder,
    fake,
    minilm,
    qwen,
    record,
    seeing,
    start_pool,
)

__all__ = [
    "_encoder_session",
    "_fake_session",
    "_minilm_session",
    "_qwen_session",
    "_seeing_session",
    "encoder",
    "fake",
    "minilm",
    "qwen",
    "record",
    "seeing",
    "start_pool",
]
