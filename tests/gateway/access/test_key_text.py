"""The text of a key: what is one, what is not, what may be shown of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.keys.text import digest, id_of, masked, mint


def test_key_is_recognised_when_minted() -> None:
    """Form, id, and a secret of at least 256 bits; no two alike."""
    key_id, text = mint()
    assert re.fullmatch(r"mlx_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", text)
    assert id_of(text) == key_id == text[4:12]
    assert len({mint()[1] for _ in range(200)}) == 200
    assert mint(key_id)[0] == key_id


@given(st.data())
def test_typo_is_noticed_when_any_character_changes(data: st.DataObject) -> None:
    """The checksum covers every character, the id included."""
    _, text = mint()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda c: c != text[at]))
    assert id_of(text[:at] + other + text[at + 1 :]) is None


@pytest.mark.parametrize(
    "text", ["", "mlx_", "mlx_12345678_", "' OR 1=1 --", "mlx_aaaaaaaa_" + "a" * 49, "x" * 1_000_000, "mlx_\0", "ключ"]
)
def test_nonsense_is_no_key_when_given(text: str) -> None:
    """Whatever is sent, nothing but a key is looked up."""
    assert id_of(text) is None
    assert len(digest(b"p" * 32, text)) == 32


def test_digest_depends_on_key_and_pepper() -> None:
    """Without the pepper a digest says nothing."""
    _, text = mint()
    assert digest(b"a" * 32, text) == digest(b"a" * 32, text)
    assert len({digest(b"a" * 32, text), digest(b"b" * 32, text), digest(b"a" * 32, text + "x")}) == 3


def test_secret_is_masked_when_a_line_holds_a_key() -> None:
    """The id may be read, the secret not."""
    key_id, text = mint()
    assert masked(f"GET /{text}/x?api_key={text}") == f"GET /mlx_{key_id}_…/x?api_key=mlx_{key_id}_…"
    assert masked("nothing here") == "nothing here"
