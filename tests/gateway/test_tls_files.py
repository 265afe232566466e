"""HTTPS with wrong files: the flag and the file are named, whatever is wrong with it."""

import subprocess
from pathlib import Path

import pytest

from gateway.http.tls import load_tls
from protocol.settings import ConfigError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A certificate with its key, another key, one with a passphrase, and what is none of these."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-subj", "/CN=a")
    openssl("genrsa", "-out", "other", "2048")
    openssl("rsa", "-in", "key", "-aes256", "-passout", "pass:word", "-out", "locked")
    openssl("x509", "-in", "cert", "-outform", "DER", "-out", "der")
    (tmp_path / "folder").mkdir()
    damaged = (tmp_path / "cert").read_text().replace("MII", "M!!", 1)
    (tmp_path / "damaged").write_text(damaged)
    return {path.name: path for path in tmp_path.iterdir()} | {"missing": tmp_path / "missing"}


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        ("missing", "key", "--tls-cert: .*/missing can't be read: No such file"),
        ("cert", "missing", "--tls-key: .*/missing can't be read: No such file"),
        ("folder", "key", "--tls-cert: .*/folder can't be read: Is a directory"),
        ("key", "cert", "--tls-cert: .*/key holds no certificate in PEM form"),
        ("der", "key", "--tls-cert: .*/der holds no certificate in PEM form"),
        ("cert", "cert", "--tls-key: .*/cert holds no private key"),
        ("cert", "other", "--tls-key: .*/other is not the key of the certificate .*/cert"),
        ("cert", "locked", "--tls-key: .*/locked asks for a passphrase"),
        ("damaged", "key", "--tls-cert and --tls-key: .*/damaged and .*/key can't be used"),
    ],
)
def test_file_is_named_when_https_can_not_be_served_with_it(
    files: dict[str, Path], cert: str, key: str, says: str
) -> None:
    """Nobody is asked for a passphrase, which would wait for ever under honcho."""
    with pytest.raises(ConfigError, match=says):
        load_tls(files[cert], files[key])


def test_certificate_is_served_when_it_fits(files: dict[str, Path]) -> None:
    """With its key; without either, nothing is encrypted."""
    assert load_tls(files["cert"], files["key"]) is not None
    assert load_tls(None, None) is None
