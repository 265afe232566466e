"""What the gateway is told: flags, environment, defaults, in that order, as one frozen object.

The only module here that reads the environment.
"""

import argparse
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from protocol.address import default_run_dir

BODY_BYTES = 20 * 1024 * 1024
"""Largest JSON body."""


class ConfigError(Exception):
    """A setting that can't be used. One line: which setting, what is allowed."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's settings. Times in seconds.

    `keep_alive_s`: a stream that was silent for so long gets a comment line. `write_timeout_s`: a client that has not
    read for so long is dropped. `drain_s`: how long running requests may go on after a SIGTERM (honcho kills after 5).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    run_dir: Path = msgspec.field(default_factory=default_run_dir)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    log_file: Path | None = None
    keep_alive_s: float = 5.0
    write_timeout_s: float = 30.0
    drain_s: float = 3.5
    tier: str = "3A"
    aliases: dict[str, str] = {}
    cache_enabled: bool = True
    cache_bytes: int = 64 << 20
    cache_entries: int = 1_000_000
    cache_ttl_s: float = 3600.0
    insecure: bool = False


# Field, flag, names in the environment (the first one set wins), help.
SETTINGS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("host", "--host", ("POOL_HOST", "SERVER_HOST", "EMBEDDING_HOST"), "address to listen on (127.0.0.1)"),
    ("port", "--port", ("POOL_PORT", "SERVER_PORT", "EMBEDDING_PORT"), "port to listen on (8000); 0 takes a free one"),
    ("run_dir", "--run-dir", ("POOL_RUN_DIR",), "private folder where workers find the gateway (/tmp/mlx-pool-UID)"),
    ("log_level", "--log-level", ("POOL_LOG_LEVEL", "LOG_LEVEL", "EMBEDDING_LOG_LEVEL"), "debug|info|warning|error"),
    ("log_json", "--log-json", ("POOL_LOG_JSON",), "true for one JSON object per line (false)"),
    ("log_file", "--log-file", ("POOL_LOG_FILE", "EMBEDDING_LOG_FILE"), "log to this file too"),
    ("keep_alive_s", "--keep-alive", ("POOL_KEEP_ALIVE",), "seconds of silence before a stream gets a comment (5)"),
    ("write_timeout_s", "--write-timeout", ("POOL_WRITE_TIMEOUT",), "seconds before a stuck reader is dropped (30)"),
    ("drain_s", "--drain", ("POOL_DRAIN",), "seconds that running requests get at shutdown (3.5)"),
    ("tier", "--tier", ("POOL_TIER",), "tier shown by /v1/models (3A)"),
    ("aliases", "--aliases", ("POOL_ALIASES",), "further names of models, as in gpt-4o=qwen3,fast=qwen3"),
    ("cache_enabled", "--cache", ("POOL_CACHE_ENABLED", "EMBEDDING_CACHE_ENABLED"), "false to keep no vectors (true)"),
    ("cache_bytes", "--cache-bytes", ("POOL_CACHE_BYTES",), "most memory for vectors, such as 512MB (64MB)"),
    ("cache_entries", "--cache-entries", ("POOL_CACHE_ENTRIES", "EMBEDDING_CACHE_SIZE"), "most vectors kept (1000000)"),
    ("cache_ttl_s", "--cache-ttl", ("POOL_CACHE_TTL",), "seconds that a vector is kept (3600)"),
    ("insecure", "--insecure", ("POOL_INSECURE",), "true to listen beyond this machine without authentication (false)"),
)


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> GatewayConfig:
    """Read flags over `environment` (this process's own unless given). Raises `ConfigError`; `--help` exits."""
    environment = os.environ if environment is None else environment
    given = vars(_parser().parse_args(list(argv)))
    values: dict[str, Any] = {}
    for field, flag, names, _ in SETTINGS:
        text, where = given[field], flag
        if text is None:
            where = next((name for name in names if environment.get(name)), "")
            text = environment.get(where)
        if text is not None:
            values[field] = _parse(field, text, where)
    config = GatewayConfig(**values)
    _check(config)
    return config


def honcho_process(environment: Mapping[str, str] | None = None) -> str | None:
    """What honcho calls this process (`gateway.1`); None where honcho did not start it."""
    return (os.environ if environment is None else environment).get("HONCHO_PROCESS_NAME")


def _check(config: GatewayConfig) -> None:
    if not config.insecure and not _loopback(config.host):
        raise ConfigError(
            f"--host: {config.host} is reachable from other machines and this version has no authentication: "
            "listen on 127.0.0.1, or say --insecure true"
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(field: str, text: str, where: str) -> Any:
    try:
        if field == "aliases":
            return dict(_alias(part) for part in text.split(","))
        if field.endswith("_bytes"):
            return _bytes(text)
        kind = next(found.type for found in msgspec.structs.fields(GatewayConfig) if found.name == field)
        value = msgspec.convert(text, kind, strict=False, dec_hook=lambda wanted, given: wanted(given))
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if field == "port" and not 0 <= value <= 65535:
        raise ConfigError(f"{where}: must be from 0 to 65535, not {value}")
    if field == "cache_entries" and not 0 <= value <= 1_000_000_000:
        raise ConfigError(f"{where}: must be from 0 to 1000000000, not {value}")
    if field.endswith("_s") and not 0 < value < 86_400:
        raise ConfigError(f"{where}: must be a number of seconds from 0 to 86400, not {text}")
    return value


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(float(match[1]) * (1 << 10 * " KMGT".index(match[2].upper() or " "))) if match else -1
    if not 0 <= size <= 16 << 40:
        raise ValueError(f"must be a size such as 512MB or 2GB (powers of 1024), not {text!r}")
    return size


def _alias(part: str) -> tuple[str, str]:
    name, found, target = part.strip().partition("=")
    if not (name and found and target):
        raise ValueError(f"must be NAME=MODEL,..., not {part!r}")
    return name, target


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m gateway", description="Serve the pool over HTTP.", allow_abbrev=False)
    for field, flag, names, text in SETTINGS:
        parser.add_argument(flag, dest=field, metavar=field.upper(), help=f"{text} [{', '.join(names)}]")
    return parser
