"""What the text of a URL can say, and what becomes of it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.media.remote_urls import MAX_LENGTH, BadUrl, UrlRules, read_url

RULES = UrlRules()
PIECES = ["http://", "https://", "HTTP://", "a.example", "127.0.0.1", "[::1]", ":80", ":443", ":8000", "@", "/", "?",
          "#", "\\", "%2f", "%00", "\t", "\n", " ", "é", "。", "..", "-", "0x7f.1", "user", ":", "[", "]"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("http://a.example", "http://a.example"),
        ("https://a.example/b%2Fc?d=%41+e#f", "https://a.example/b%2Fc?d=%41+e"),
        ("HTTPS://A.Example:443/", "https://A.Example/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://my_bucket.s3.example/a", "https://my_bucket.s3.example/a"),
        ("http://93.184.216.34/", "http://93.184.216.34/"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
        ("http://a.example./", "http://a.example./"),
    ],
)
def test_a_url_is_left_as_it_was_written_when_it_may_be_fetched(text: str, read: str) -> None:
    """But for its fragment, which is nobody's business, and the scheme's case and usual port."""
    assert str(read_url(text, RULES)) == read


def test_a_url_is_refused_when_it_is_too_long() -> None:
    """At the bound it is not."""
    text = "http://a.example/"
    read_url(text + "x" * (MAX_LENGTH - len(text)), RULES)
    with pytest.raises(BadUrl, match="characters"):
        read_url(text + "x" * (MAX_LENGTH + 1 - len(text)), RULES)


@pytest.mark.parametrize("port", [0, 22, 25, 8000, 8080, 65535])
def test_a_url_is_refused_when_its_port_is_not_for_images(port: int) -> None:
    """80 and 443, unless others are configured."""
    with pytest.raises(BadUrl, match="port"):
        read_url(f"http://a.example:{port}/", RULES)
    read_url(f"http://a.example:{port}/", UrlRules(ports=(port,)))


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=8).map("".join))
@example("http://a.example:٨٠/")
@example("http://[::ffff:1.2.3.4.5]/")
@example("http://[v1.x]/")
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else is raised, and what is read has a host, no credentials, and a port that is allowed."""
    try:
        url = read_url(text, RULES)
    except BadUrl:
        return
    assert url.scheme in ("http", "https")
    assert url.host
    assert url.port in RULES.ports
    assert (url.user, url.password) == (None, None)
