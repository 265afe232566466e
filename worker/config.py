"""What one worker is told: flags, environment, defaults, in that order, as one frozen object.

The only module here that reads the environment. It must stay light: the supervisor imports it.
"""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import msgspec

from protocol import RELEASE
from protocol.address import default_run_dir
from protocol.confidential import without_secrets
from protocol.messages import Kind
from protocol.values import seconds, size, switch
from worker import parsing

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BUILT_IN_ENGINES = MappingProxyType(
    {
        Kind.CHAT: "worker.engines.chat.engine:ChatEngine",
        Kind.VISION: "worker.engines.vision.engine:VisionEngine",
        Kind.EMBEDDING: "worker.engines.embedding.engine:EmbeddingEngine",
    }
)
"""Which engine serves a kind of model when none is named."""


EMBEDDING_ONLY = "EMBEDDING_"
"""Variables that begin so mean workers of that kind alone: the others run in the same environment."""


class ConfigError(Exception):
    """A setting that can't be used. One line: which setting, what is allowed."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's settings. `engine` None means the built-in one of `kind`; `prefill_chunk` 0 means adaptive.

    `revision` is a commit, tag or branch of a model of the hub; empty: its newest, as it is when a run begins.
    """

    model_path: str
    served_name: str
    kind: Kind = Kind.CHAT
    revision: str = ""
    engine: str | None = None
    context_length: int | None = None
    max_concurrency: int = 32
    queue_size: int = 100
    queue_timeout_s: float = 300.0
    warmup: bool = True
    tokenizer_path: str | None = None
    adapter_path: str | None = None
    adapters: dict[str, str] = {}
    draft_model: str | None = None
    draft_tokens: int = 3
    quantize: Literal["auto", "q4", "q8", "none"] = "none"
    device: Literal["auto", "gpu", "cpu"] = "auto"
    prefix_cache_bytes: int = 2 << 30
    prefix_kv_bits: int = 0
    prefix_disk_folder: Path | None = None
    prefix_disk_bytes: int = 32 << 30
    feature_cache_bytes: int = 512 << 20
    prefill_chunk: int = 0
    spare: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    run_dir: Path = msgspec.field(default_factory=default_run_dir)

    @property
    def source(self) -> str:
        """Where the model came from, fit to be shown: the hub id, or the last part of a local path."""
        if HUB_ID.fullmatch(self.model_path) and not Path(self.model_path).exists():
            return self.model_path
        return tail(self.model_path)


class Setting(msgspec.Struct, frozen=True):
    """One row of the table of settings: a field, its flag, its names in the environment (first one wins)."""

    field: str
    flag: str
    environment: tuple[str, ...]
    parse: Callable[[str], object]
    help: str
    repeats: bool = False
    """Whether the flag may be given more than once; in the environment, commas do that."""


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> WorkerConfig:
    """Read flags over `environment` (this process's own unless given). Raises `ConfigError`; `--help` exits."""
    environment = os.environ if environment is None else environment
    given = _read_flags(argv)
    values: dict[str, Any] = {}
    # What kind of worker this is decides which variables are for it.
    for setting in sorted(SETTINGS, key=lambda setting: setting.field != "kind"):
        text, where = given.get(setting.field), setting.flag
        if text is None:
            embeds = values.get("kind") is Kind.EMBEDDING
            names = [name for name in setting.environment if embeds or not name.startswith(EMBEDDING_ONLY)]
            where = next((name for name in names if environment.get(name)), "")
            text = environment.get(where)
        if text is not None:
            try:
                values[setting.field] = setting.parse(text)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}, not {text!r}") from None
    if "model_path" not in values:
        raise ConfigError("--model-path is required: a hub id (mlx-community/Qwen3-0.6B-4bit) or a local path")
    values["served_name"] = values.get("served_name") or _default_name(values["model_path"])
    config = WorkerConfig(**values)
    _check_adapters(config)
    if config.revision and (Path(config.model_path).exists() or not HUB_ID.fullmatch(config.model_path)):
        raise ConfigError(f"--revision: is for models of the hub; {config.model_path} is none")
    return config


def public_environment(config: WorkerConfig, environment: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Return our environment without what a worker with that configuration need not know; None if it is that."""
    environment = os.environ if environment is None else environment
    paths = (
        config.model_path,
        config.tokenizer_path,
        config.adapter_path,
        config.draft_model,
        *config.adapters.values(),
    )
    public = without_secrets(environment, hub=not all(Path(path).exists() for path in paths if path))
    return None if public == environment else public


def grammar_environment() -> dict[str, str]:
    """The environment of a process that compiles grammars, and fetches nothing."""
    return without_secrets(os.environ, hub=False)


def engine_environment(preload: Path | None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The engine process's environment: ours without secrets, with `preload` in front of what the loader preloads."""
    child = without_secrets(os.environ if environment is None else environment, hub=True)
    if preload and preload.name not in child.get("LD_PRELOAD", ""):
        child["LD_PRELOAD"] = ":".join(filter(None, (str(preload), child.get("LD_PRELOAD"))))
    if preload:
        # Its threads spin while they wait: with one for every core they take from the gateway what they give.
        child.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    return child


def honcho_process(environment: Mapping[str, str] | None = None) -> str | None:
    """What honcho calls this process (`chat.1`); None where honcho did not start it."""
    return (os.environ if environment is None else environment).get("HONCHO_PROCESS_NAME")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _read_flags(argv: Sequence[str]) -> dict[str, str | None]:
    parser = _Parser(
        prog="python -m worker",
        description="Supervise one model: start its engine process, and start it again whenever it dies.",
        epilog="A flag overrides the variables named in brackets. A worker exits when told to, with 2 for a bad flag.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mlx-pool {RELEASE}")
    for setting in SETTINGS:
        names = ", ".join(setting.environment)
        action = "append" if setting.repeats else "store"
        text = f"{setting.help} [{names}]"
        parser.add_argument(setting.flag, dest=setting.field, action=action, metavar="VALUE", help=text)
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flags = [setting.flag for setting in SETTINGS]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        raise ConfigError(f"{unknown[0]}: no such flag" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    return {name: ",".join(text) if isinstance(text, list) else text for name, text in vars(known).items()}


def tail(path: str) -> str:
    """The last part of a path, which may be shown."""
    return Path(path).name if Path(path).name not in ("", "..") else Path(path).resolve().name


def _check_adapters(config: WorkerConfig) -> None:
    if config.adapters and config.adapter_path:
        raise ConfigError("--adapter: goes with the bare model; give the one of --adapter-path a name, too")
    if config.served_name in config.adapters:
        raise ConfigError(f"--adapter: {config.served_name} is what the model itself is called")


def _default_name(model_path: str) -> str:
    name = tail(model_path)
    if not parsing.NAME.fullmatch(name):
        raise ConfigError(f"--served-name: give one, {name!r} (from the model path) holds characters a name can't have")
    return name


SETTINGS = (
    Setting(
        "model_path",
        "--model-path",
        ("POOL_MODEL_PATH", "MODEL_PATH", "EMBEDDING_MODEL_PATH"),
        parsing.path,
        "hub id or local path; required",
    ),
    Setting(
        "revision",
        "--revision",
        ("POOL_REVISION",),
        parsing.revision,
        "commit, tag or branch of a model of the hub; default its newest, looked up once for all workers of a run",
    ),
    Setting(
        "kind",
        "--model-type",
        ("POOL_MODEL_TYPE", "MODEL_TYPE"),
        parsing.kind,
        "chat (or lm), vision (or multimodal), embedding (or embeddings); default chat",
    ),
    Setting(
        "served_name",
        "--served-name",
        ("POOL_SERVED_NAME", "MODEL_NAME"),
        parsing.name,
        "what clients call the model; default the last part of the model path",
    ),
    Setting(
        "context_length",
        "--context-length",
        ("POOL_CONTEXT_LENGTH", "CONTEXT_LENGTH"),
        parsing.whole(1, 100_000_000),
        "tokens of prompt and answer together; default the model's own",
    ),
    Setting(
        "max_concurrency",
        "--max-concurrency",
        ("POOL_MAX_CONCURRENCY", "MAX_CONCURRENCY"),
        parsing.whole(1, 4096),
        "requests that run together; default 32",
    ),
    Setting(
        "queue_size",
        "--queue-size",
        ("POOL_QUEUE_SIZE", "QUEUE_SIZE"),
        parsing.whole(0, 100_000),
        "requests that may wait; default 100",
    ),
    Setting(
        "queue_timeout_s",
        "--queue-timeout",
        ("POOL_QUEUE_TIMEOUT", "QUEUE_TIMEOUT"),
        seconds,
        "seconds a request may wait; default 300",
    ),
    Setting(
        "warmup",
        "--mlx-warmup",
        ("POOL_MLX_WARMUP", "MLX_WARMUP"),
        switch,
        "true or false: run the model once before it is reported ready; default true",
    ),
    Setting(
        "tokenizer_path",
        "--tokenizer-path",
        ("POOL_TOKENIZER_PATH", "TOKENIZER_PATH"),
        parsing.path,
        "tokenizer, where it is not with the model",
    ),
    Setting(
        "adapter_path", "--adapter-path", ("POOL_ADAPTER_PATH",), parsing.path, "LoRA adapter to load with the model"
    ),
    Setting(
        "adapters",
        "--adapter",
        ("POOL_ADAPTERS",),
        parsing.adapters,
        "name=path of a LoRA adapter, served under that name beside the bare model; may be repeated",
        repeats=True,
    ),
    Setting(
        "draft_model",
        "--draft-model",
        ("POOL_DRAFT_MODEL",),
        parsing.path,
        "hub id or local path of a smaller model with the same vocabulary, which proposes tokens to a chat model",
    ),
    Setting(
        "draft_tokens",
        "--draft-tokens",
        ("POOL_DRAFT_TOKENS",),
        parsing.whole(1, 16),
        "tokens that a draft model proposes at a time; default 3",
    ),
    Setting(
        "quantize",
        "--quantize",
        ("POOL_QUANTIZE", "EMBEDDING_QUANTIZATION"),
        parsing.choice("auto", "q4", "q8", "none"),
        "auto, q4, q8 or none: bits of weights that do not come quantised; default none",
    ),
    Setting(
        "device",
        "--device",
        ("POOL_DEVICE", "EMBEDDING_DEVICE"),
        parsing.device,
        "auto, gpu (or mps) or cpu; default auto",
    ),
    Setting("engine", "--engine", ("POOL_ENGINE",), parsing.engine, "package.module:Class of an engine of your own"),
    Setting(
        "prefix_cache_bytes",
        "--prefix-cache-bytes",
        ("POOL_PREFIX_CACHE_BYTES",),
        size,
        "most memory for prompts kept for reuse, such as 512MB; 0 is off; default 2GB",
    ),
    Setting(
        "prefix_kv_bits",
        "--prefix-kv-bits",
        ("POOL_PREFIX_KV_BITS",),
        parsing.bits,
        "8, 4 or none: keep prompts in so many bits, which makes room and changes answers a little; default none",
    ),
    Setting(
        "prefix_disk_folder",
        "--prefix-disk-folder",
        ("POOL_PREFIX_DISK_FOLDER",),
        parsing.folder,
        "private folder where prompts are kept on disk, too, so that they outlive the process; default none",
    ),
    Setting(
        "prefix_disk_bytes",
        "--prefix-disk-bytes",
        ("POOL_PREFIX_DISK_BYTES",),
        size,
        "most that folder may hold, of all models; 0 is off; default 32GB",
    ),
    Setting(
        "feature_cache_bytes",
        "--feature-cache-bytes",
        ("POOL_FEATURE_CACHE_BYTES",),
        size,
        "most memory for what a vision model made of images, such as 256MB; 0 is off; default 512MB",
    ),
    Setting(
        "prefill_chunk",
        "--prefill-chunk",
        ("POOL_PREFILL_CHUNK",),
        parsing.whole(0, 1_000_000),
        "tokens of a prompt computed between two steps of running streams; default 0, adaptive",
    ),
    Setting(
        "spare",
        "--spare",
        ("POOL_SPARE",),
        switch,
        "true or false: keep a process at hand that has imported what an engine needs; default true",
    ),
    Setting(
        "log_level",
        "--log-level",
        ("POOL_LOG_LEVEL", "LOG_LEVEL"),
        parsing.choice("debug", "info", "warning", "error"),
        "debug, info, warning or error; default info",
    ),
    Setting(
        "run_dir",
        "--run-dir",
        ("POOL_RUN_DIR",),
        parsing.folder,
        "folder of the gateway's socket; default /tmp/mlx-pool-UID",
    ),
)
"""Every setting, in the order of `--help`. docs/settings.md is checked against this one."""
