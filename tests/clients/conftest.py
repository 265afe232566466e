"""An unmodified OpenAI client in front of running pools."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
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
from running_pool import RunningPool

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


@pytest.fixture
def client(qwen: RunningPool) -> Iterator[OpenAI]:
    """Talks to the tiny Qwen3 model; never retries."""
    with OpenAI(base_url=qwen.base_url, api_key="none", max_retries=0) as client:
        yield client
