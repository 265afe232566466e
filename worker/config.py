"""What one worker is told: flags, environment, defaults, in that order, as one frozen object.

The only module here that reads the environment. It must stay light: the supervisor imports it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from protocol.address import default_run_dir
from protocol.confidential import without_secrets
from protocol.messages import Kind
from protocol.settings import ConfigError, Setting, SettingsParser, from_environment, from_flags, read_settings
from protocol.values import choice, seconds, size, switch, whole
from worker import values

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
    truncate_embeddings: bool = False
    spare: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    run_dir: Path = msgspec.field(default_factory=default_run_dir)

    @property
    def source(self) -> str:
        """Where the model came from, fit to be shown: the hub id, or the last part of a local path."""
        if HUB_ID.fullmatch(self.model_path) and not Path(self.model_path).exists():
            return self.model_path
        return tail(self.model_path)


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> WorkerConfig:
    """Read flags over `environment` (this process's own unless given). Raises `ConfigError`; `--help` exits."""
    environment = os.environ if environment is None else environment
    parser = SettingsParser(
        prog="python -m worker",
        description="Supervise one model: start its engine process, and start it again whenever it dies.",
        epilog="A flag overrides the variables named in brackets. A worker exits when told to, with 2 for a bad flag.",
    )
    flags = from_flags(parser.read_flags(SETTINGS, argv))
    # What kind of worker this is decides which variables are for it.
    kind, _ = read_settings([KIND], [flags, from_environment(environment)])
    if kind.get("kind") is not Kind.EMBEDDING:
        environment = {name: text for name, text in environment.items() if not name.startswith(EMBEDDING_ONLY)}
    found, _ = read_settings(SETTINGS, [flags, from_environment(environment)])
    if "model_path" not in found:
        raise ConfigError("--model-path is required: a hub id (mlx-community/Qwen3-0.6B-4bit) or a local path")
    found["served_name"] = found.get("served_name") or _default_name(found["model_path"])
    config = WorkerConfig(**found)
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
    """Return the environment of a process that compiles grammars, and fetches nothing."""
    return without_secrets(os.environ, hub=False)


def engine_environment(blas: Mapping[str, str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the engine process's environment: ours without secrets, with what its `Blas` needs."""
    child = without_secrets(os.environ if environment is None else environment, hub=True)
    for name, value in blas.items():
        if not name.startswith("LD_"):
            child.setdefault(name, value)
        elif Path(value).name not in child.get(name, ""):
            child[name] = ":".join(filter(None, (value, child.get(name))))
    if blas:
        # Its threads spin while they wait: with one for every core they take from the gateway what they give.
        child.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    return child


def honcho_process(environment: Mapping[str, str] | None = None) -> str | None:
    """Return what honcho calls this process (`chat.1`); None where honcho did not start it."""
    return (os.environ if environment is None else environment).get("HONCHO_PROCESS_NAME")


def tail(path: str) -> str:
    """Return the last part of a path, which may be shown."""
    return Path(path).name if Path(path).name not in ("", "..") else Path(path).resolve().name


def _check_adapters(config: WorkerConfig) -> None:
    if config.adapters and config.adapter_path:
        raise ConfigError("--adapter: goes with the bare model; give the one of --adapter-path a name, too")
    if config.served_name in config.adapters:
        raise ConfigError(f"--adapter: {config.served_name} is what the model itself is called")


def _default_name(model_path: str) -> str:
    name = tail(model_path)
    if not values.NAME.fullmatch(name):
        raise ConfigError(f"--served-name: give one, {name!r} (from the model path) holds characters a name can't have")
    return name


KIND = Setting(
    "model_type",
    values.kind,
    "chat (or lm), vision (or multimodal), embedding (or embeddings); default chat",
    field="kind",
    more_variables=("MODEL_TYPE",),
)

SETTINGS = (
    Setting(
        "model_path",
        values.location,
        "hub id or local path; required",
        more_variables=("MODEL_PATH", "EMBEDDING_MODEL_PATH"),
    ),
    Setting(
        "revision",
        values.revision,
        "commit, tag or branch of a model of the hub; default its newest, looked up once for all workers of a run",
    ),
    KIND,
    Setting(
        "served_name",
        values.name,
        "what clients call the model; default the last part of the model path",
        more_variables=("MODEL_NAME",),
    ),
    Setting(
        "context_length",
        whole(1, 100_000_000),
        "tokens of prompt and answer together; may exceed what the model's files promise; default the model's",
        more_variables=("CONTEXT_LENGTH",),
    ),
    Setting(
        "max_concurrency", whole(1, 4096), "requests that run together; default 32", more_variables=("MAX_CONCURRENCY",)
    ),
    Setting("queue_size", whole(0, 100_000), "requests that may wait; default 100", more_variables=("QUEUE_SIZE",)),
    Setting(
        "queue_timeout",
        seconds,
        "seconds a request may wait; default 300",
        field="queue_timeout_s",
        more_variables=("QUEUE_TIMEOUT",),
    ),
    Setting(
        "mlx_warmup",
        switch,
        "true or false: run the model once before it is reported ready; default true",
        field="warmup",
        more_variables=("MLX_WARMUP",),
    ),
    Setting(
        "tokenizer_path",
        values.location,
        "tokenizer, where it is not with the model",
        more_variables=("TOKENIZER_PATH",),
    ),
    Setting("adapter_path", values.location, "LoRA adapter to load with the model"),
    Setting(
        "adapters",
        values.adapters,
        "name=path of a LoRA adapter, served under that name beside the bare model; may be repeated",
        repeats=True,
    ),
    Setting(
        "draft_model",
        values.location,
        "hub id or local path of a smaller model with the same vocabulary, which proposes tokens to a chat model",
    ),
    Setting(
        "draft_tokens",
        whole(1, 16),
        "tokens that a draft model proposes at a time; default 3",
        aliases=("num_draft_tokens",),
    ),
    Setting(
        "quantize",
        choice("auto", "q4", "q8", "none"),
        "auto, q4, q8 or none: bits of weights that do not come quantised; default none",
        more_variables=("EMBEDDING_QUANTIZATION",),
    ),
    Setting(
        "device",
        choice("auto", "gpu", "cpu", also={"mps": "gpu"}),
        "auto, gpu (or mps) or cpu; default auto",
        more_variables=("EMBEDDING_DEVICE",),
    ),
    Setting("engine", values.engine, "package.module:Class of an engine of your own"),
    Setting("prefix_cache_bytes", size, "most memory for prompts kept for reuse, such as 512MB; 0 is off; default 2GB"),
    Setting(
        "prefix_kv_bits",
        values.bits,
        "8, 4 or none: keep prompts in so many bits, which makes room and changes answers a little; default none",
    ),
    Setting(
        "prefix_disk_folder",
        values.folder,
        "private folder where prompts are kept on disk, too, so that they outlive the process; default none",
    ),
    Setting("prefix_disk_bytes", size, "most that folder may hold, of all models; 0 is off; default 32GB"),
    Setting(
        "feature_cache_bytes",
        size,
        "most memory for what a vision model made of images, such as 256MB; 0 is off; default 512MB",
    ),
    Setting(
        "prefill_chunk",
        whole(0, 1_000_000),
        "tokens of a prompt computed between two steps of running streams; default 0, adaptive",
        aliases=("prefill_step_size",),
    ),
    Setting(
        "truncate_embeddings",
        switch,
        "true or false: cut texts that are too long for an embedding model, instead of refusing them; default false",
    ),
    Setting(
        "spare", switch, "true or false: keep a process at hand that has imported what an engine needs; default true"
    ),
    Setting(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "debug, info, warning or error; default info",
        more_variables=("LOG_LEVEL",),
    ),
    Setting("log_json", switch, "true or false: log one JSON object per line; default false"),
    Setting("run_dir", values.folder, "folder of the gateway's socket; default ~/.mlx-pool/run"),
)
"""Every setting, in the order of `--help`. docs/settings.md is checked against this one."""
