"""What the tests of the demo models share: a tokenizer learnt once, with an encoder of samples."""

import pytest
from tokenizers import Tokenizer

from training.text import SampleEncoder
from training.train import BRIEF, learn_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small one; the shipped model's is in its folder."""
    return learn_tokenizer(BRIEF)


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer) -> SampleEncoder:
    """Samples to the ids of that tokenizer."""
    return SampleEncoder(tokenizer)
