"""What the gateway is told, as one frozen object: flags over environment over file over defaults.

The only module here that reads the environment.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from gateway import values
from gateway.access.keys.strength import HOW, weakness
from gateway.settings_file import find_file, read_file, yaml_value
from protocol.address import default_run_dir
from protocol.settings import (
    ConfigError,
    Setting,
    SettingsParser,
    from_environment,
    from_file,
    from_flags,
    read_settings,
)
from protocol.values import choice, path, seconds, size, switch, whole

SECRET = "********"  # noqa: S105 - what is shown in the place of one

BODY_BYTES = 20 * 1024 * 1024
"""Largest JSON body."""
LEAST_BODY_MEMORY_BYTES = 64 << 20
FILES = ("config.dev.yaml", "config.yaml")
"""Looked for in the working folder; the first one that is there is read."""
FILE_VARIABLE = "POOL_CONFIG"


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's settings. Times in seconds.

    `sse_ping_interval_s`: a stream that was silent for so long gets a comment line. `write_timeout_s`: a client that
    has not read for so long is dropped. `drain_s`: how long running requests may go on after a SIGTERM (honcho kills
    after 5).
    `resume_timeout_s`: how long a stream whose engine died waits for another one. `stall_timeout_s`: a busy engine that
    has not stepped for so long is killed. `load_timeout_s`: so is one that loads and has made no progress for so long.
    `log_file_bytes`: 0 leaves rotation to others. `auth` and `rate_limit_enabled` are off in development, unless told
    otherwise; the other `rate_limit_` settings hold for keys without limits of their own, and 0 is no bound.
    """

    env: Literal["production", "development"] = "production"
    host: str = "127.0.0.1"
    port: int = 8000
    run_dir: Path = msgspec.field(default_factory=default_run_dir)
    data_dir: Path = msgspec.field(default_factory=lambda: Path("~/.mlx-pool").expanduser())
    auth: bool = True
    api_key: str | None = None
    rate_limit_enabled: bool = True
    rate_limit_burst: int = 10
    rate_limit_rpm: int = 60
    rate_limit_rph: int = 1000
    rate_limit_rpd: int = 10_000
    rate_limit_tpm: int = 0
    rate_limit_tpd: int = 0
    rate_limit_parallel: int = 0
    rate_limit_storage: str | None = None
    debug: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    log_file: Path | None = None
    log_file_bytes: int = 0
    log_file_count: int = 5
    tracing: bool = False
    sse_ping_interval_s: float = 5.0
    write_timeout_s: float = 30.0
    drain_s: float = 3.5
    resume_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    tier: str = "3A"
    aliases: dict[str, str] = {}
    remote_images: Literal["on", "off"] | tuple[str, ...] = "on"
    remote_image_ports: tuple[int, ...] = (80, 443)
    body_memory_bytes: int = 256 << 20
    cache_enabled: bool = True
    cache_bytes: int = 64 << 20
    cache_entries: int = 1_000_000
    cache_ttl_s: float = 3600.0
    plugins: tuple[str, ...] = ()
    insecure: bool = False
    require_https: bool = False
    trusted_proxies: tuple[values.Network, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


SETTINGS = (
    Setting(
        "env",
        choice("production", "development", also={"prod": "production", "dev": "development"}),
        "production, or development: without keys and limits (production)",
        more_variables=("EMBEDDING_ENV",),
    ),
    Setting("host", values.word, "address to listen on (127.0.0.1)", more_variables=("SERVER_HOST", "EMBEDDING_HOST")),
    Setting(
        "port",
        whole(0, 65535),
        "port to listen on (8000); 0 takes a free one",
        more_variables=("SERVER_PORT", "EMBEDDING_PORT"),
    ),
    Setting("run_dir", path, "private folder where workers find the gateway (~/.mlx-pool/run)"),
    Setting("data_dir", path, "private folder for keys, their usage and the audit log (~/.mlx-pool)"),
    Setting("auth", switch, "ask for API keys (true in production, false in development)"),
    Setting("api_key", values.word, "a key that may do everything", more_variables=("EMBEDDING_API_KEY",), secret=True),
    Setting(
        "rate_limit_enabled",
        switch,
        "limit keys that have no limits of their own (true in production, false in development)",
        more_variables=("EMBEDDING_RATE_LIMIT_ENABLED",),
    ),
    Setting("rate_limit_burst", whole(0, 100_000), "requests that may come at once (10); 0 is no bound"),
    Setting(
        "rate_limit_rpm", whole(0, 100_000), "requests per minute (60)", more_variables=("EMBEDDING_RATE_LIMIT_RPM",)
    ),
    Setting("rate_limit_rph", whole(0, 100_000), "requests per hour (1000)"),
    Setting("rate_limit_rpd", whole(0, 100_000), "requests per day (10000)"),
    Setting("rate_limit_tpm", whole(0, 10**12), "tokens per minute (0)"),
    Setting("rate_limit_tpd", whole(0, 10**12), "tokens per day (0)"),
    Setting("rate_limit_parallel", whole(0, 100_000), "requests that run at the same time (0)"),
    Setting(
        "rate_limit_storage",
        values.word,
        "a Redis or Valkey server where several gateways keep limits together, as in redis://host:6379/0; needs the "
        "extra redis",
        secret=True,
    ),
    Setting(
        "debug",
        switch,
        "log at debug level, and name what holds up the event loop (false)",
        more_variables=("EMBEDDING_DEBUG",),
    ),
    Setting(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "debug, info, warning or error (info)",
        more_variables=("LOG_LEVEL", "EMBEDDING_LOG_LEVEL"),
    ),
    Setting("log_json", switch, "one JSON object per line (false)"),
    Setting("log_file", path, "log to this file too", more_variables=("EMBEDDING_LOG_FILE",)),
    Setting(
        "log_file_bytes",
        size,
        "start a new log file at this size, such as 50MB (0: rotation is left to others)",
    ),
    Setting("log_file_count", whole(1, 1000), "old log files that are kept (5)"),
    Setting("tracing", switch, "send traces as OTEL_EXPORTER_OTLP_… say; needs the extra otel (false)"),
    Setting(
        "sse_ping_interval",
        seconds,
        "seconds of silence before a stream gets a comment line (5)",
        field="sse_ping_interval_s",
        aliases=("keep_alive",),
    ),
    Setting(
        "write_timeout",
        seconds,
        "seconds before a reader that is stuck is dropped (30)",
        field="write_timeout_s",
    ),
    Setting("drain", seconds, "seconds that running requests get at shutdown (3.5)", field="drain_s"),
    Setting(
        "resume_timeout",
        seconds,
        "seconds that a stream whose engine died waits for another one (60)",
        field="resume_timeout_s",
    ),
    Setting(
        "stall_timeout",
        seconds,
        "seconds without a step after which a busy engine is killed (60)",
        field="stall_timeout_s",
    ),
    Setting(
        "load_timeout",
        seconds,
        "seconds without any progress after which an engine that loads or warms up is killed (300)",
        field="load_timeout_s",
    ),
    Setting("tier", values.word, "shown by /v1/models (3A)"),
    Setting("aliases", values.pairs, "further names of models, as in gpt-4o=qwen3,fast=qwen3"),
    Setting(
        "remote_images",
        values.domains,
        "fetch images from http(s) URLs: on, off, or only from these domains and below, as in example.com (on)",
    ),
    Setting("remote_image_ports", values.ports, "ports that images are fetched from (80,443)"),
    Setting(
        "body_memory",
        size,
        "most memory for bodies, forms and images of all requests, such as 1GB (256MB)",
        field="body_memory_bytes",
    ),
    Setting(
        "cache_enabled",
        switch,
        "keep vectors for texts that come again (true)",
        more_variables=("EMBEDDING_CACHE_ENABLED",),
    ),
    Setting("cache_bytes", size, "most memory for them, such as 512MB (64MB)"),
    Setting(
        "cache_entries", whole(0, 1_000_000_000), "most of them (1000000)", more_variables=("EMBEDDING_CACHE_SIZE",)
    ),
    Setting("cache_ttl", seconds, "seconds that each is kept (3600)", field="cache_ttl_s"),
    Setting("plugins", values.modules, "Python modules whose setup(app) adds routes of your own"),
    Setting("insecure", switch, "listen beyond this machine although nobody is asked for a key (false)"),
    Setting(
        "require_https",
        switch,
        "refuse plain HTTP, unless a trusted proxy got it over HTTPS (false)",
        more_variables=("EMBEDDING_REQUIRE_HTTPS",),
    ),
    Setting("trusted_proxies", values.networks, "addresses of proxies whose X-Forwarded- headers count"),
    Setting("tls_cert", path, "certificate chain, to serve HTTPS"),
    Setting("tls_key", path, "its private key"),
    Setting("allowed_hosts", values.names, "names by which clients may call this server (any, if keys are asked for)"),
    Setting("cors_origins", values.names, "origins of web pages that may call from a browser, or *"),
)
"""Every setting, in the order of `--help`. docs/settings.md and the shipped files are checked against this one."""


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, and where those of its values came from that are no defaults.

    `show` and `check`: it is only to be shown, or tried out.
    """

    config: GatewayConfig
    file: Path | None
    origins: dict[str, str]
    show: bool = False
    check: bool = False

    def masked_settings(self) -> dict[str, object]:
        """Return every setting as a file would have it, secrets masked."""
        shown = {setting: getattr(self.config, setting.name) for setting in SETTINGS}
        return {
            setting.key: SECRET if setting.secret and value else yaml_value(value) for setting, value in shown.items()
        }

    def setting_lines(self) -> Iterator[str]:
        """Yield the configuration as YAML, secrets masked."""
        yield f"# {self.file or 'no configuration file'}"
        width = max(len(setting.key) for setting in SETTINGS) + 2
        for key, shown in self.masked_settings().items():
            text = yaml.safe_dump(shown, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
            yield f"{key + ':':{width}}{text}  # {self.origins.get(key, 'default')}"


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> GatewayConfig:
    """Return the configuration alone; see `load`."""
    return load(argv, environment).config


def load(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read flags over `environment` (this process's own unless given) over the file. Raises `ConfigError`."""
    environment = os.environ if environment is None else environment
    given = _parser().read_flags(SETTINGS, argv)
    sources = [from_flags(given), from_environment(environment)]
    file = find_file(given["config"] or environment.get(FILE_VARIABLE) or None, FILES)
    if file is not None:
        sources.append(from_file(file.name, read_file(file, [key for setting in SETTINGS for key in setting.keys])))
    found, origins = read_settings(SETTINGS, sources)
    for setting in SETTINGS:
        value = found.get(setting.name)
        if file is not None and origins.get(setting.key) == file.name and isinstance(value, Path):
            found[setting.name] = file.parent.absolute() / value
    in_production = found.get("env", "production") == "production"
    config = GatewayConfig(**{"auth": in_production, "rate_limit_enabled": in_production, **found})
    _check(config)
    return LoadedConfig(
        config=config,
        file=file,
        origins=origins,
        show=given["print_config"] is not None,
        check=given["check"] is not None,
    )


def honcho_process(environment: Mapping[str, str] | None = None) -> str | None:
    """Return what honcho calls this process (`gateway.1`); None where honcho did not start it."""
    return (os.environ if environment is None else environment).get("HONCHO_PROCESS_NAME")


def _check(config: GatewayConfig) -> None:
    if not (config.auth or config.insecure or _loopback(config.host)):
        raise ConfigError(
            f"--host: {config.host} is reachable from other machines and nobody is asked for a key: say --auth, "
            "listen on 127.0.0.1, or say --insecure"
        )
    if config.body_memory_bytes < LEAST_BODY_MEMORY_BYTES:
        raise ConfigError("--body-memory: must be 64MB or more")
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key: give both, or neither")
    guarded = config.auth and config.env == "production"
    if guarded and config.api_key is not None and (fault := weakness(config.api_key)):
        raise ConfigError(f"api_key: the master key {fault}; {HOW}")
    if config.require_https and config.tls_cert is None and not config.trusted_proxies:
        raise ConfigError("--require-https: nobody could connect; give --tls-cert and --tls-key, or --trusted-proxies")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parser() -> SettingsParser:
    parser = SettingsParser(
        prog="python -m gateway",
        description="Serve the pool over HTTP. A flag overrides the variables named in brackets, and those the file.",
        epilog="`python -m gateway keys --help`: API keys.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"settings ({' if present, else '.join(FILES)}) [{FILE_VARIABLE}]"
    )
    parser.add_argument("--print-config", nargs="?", const="true", help="show what all of this amounts to, and exit")
    parser.add_argument("--check", nargs="?", const="true", help="see whether it could run like that, and exit")
    return parser
