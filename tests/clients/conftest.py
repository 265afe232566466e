"""An unmodified OpenAI client in front of running pools."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from running_pool import RunningPool


@pytest.fixture
def client(qwen: RunningPool) -> Iterator[OpenAI]:
    """Talks to the tiny Qwen3 model; never retries."""
    with OpenAI(base_url=qwen.base_url, api_key="none", max_retries=0) as client:
        yield client
