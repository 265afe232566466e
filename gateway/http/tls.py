"""The certificate and the key of HTTPS, read with words for whoever named the wrong file."""

import ssl
from pathlib import Path

from protocol.settings import ConfigError


def load_tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return what HTTPS is served with; None without a certificate. Raises `ConfigError`, which names flag and file."""
    if cert is None or key is None:
        return None
    _check_file("--tls-cert", cert, b"CERTIFICATE-----", "certificate")
    _check_file("--tls-key", key, b"PRIVATE KEY-----", "private key")

    def refuse() -> str:
        raise ConfigError(f"--tls-key: {key} asks for a passphrase: write it without one (openssl pkey -in … -out …)")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key: {key} is not the key of the certificate {cert}") from None
        why = (error.reason or "").replace("_", " ").lower() or "it is damaged"
        raise ConfigError(f"--tls-cert and --tls-key: {cert} and {key} can't be used: {why}") from None
    return context


def _check_file(flag: str, path: Path, mark: bytes, what: str) -> None:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}: {path} can't be read: {error.strerror}") from None
    if mark not in text:
        raise ConfigError(f"{flag}: {path} holds no {what} in PEM form (-----BEGIN …)")
