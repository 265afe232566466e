"""An unmodified OpenAI client in front of running pools."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from stress.key_traces import CLIENT_KEY
from stress.running_pool import RunningPool


@pytest.fixture
def client(qwen: RunningPool) -> Iterator[OpenAI]:
    """Talks to the tiny Qwen3 model; never retries."""
    with OpenAI(base_url=qwen.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        yield client
