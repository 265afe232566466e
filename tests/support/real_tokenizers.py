"""Tokenizers and chat templates of models that people run, for tests: without npm, a test is skipped."""

import os
from pathlib import Path

import pytest
from vocabularies import fetching
from vocabularies.tiny_models import make_tiny_model

__all__ = ["PACKAGES", "fetch_tokenizer", "make_tiny_model"]

PACKAGES = fetching.PACKAGES
"""By the names that tests use."""


def fetch_tokenizer(name: str) -> Path:
    """Return a folder with a model's `tokenizer.json` and `tokenizer_config.json`; skip the test without npm."""
    try:
        return fetching.fetch_tokenizer(name)
    except fetching.UnavailableError as error:
        assert os.environ.get("CI") != "true", f"a part of the suite needs them: {error}"
        pytest.skip(str(error))
