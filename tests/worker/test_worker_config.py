"""Settings of a worker: flags over environment over defaults, and errors that help."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from protocol.address import default_run_dir
from protocol.messages import Kind
from protocol.settings import ConfigError, Setting
from worker.config import (
    SETTINGS,
    WorkerConfig,
    engine_environment,
    parse_arguments,
    public_environment,
)
from worker.process.launch import engine_command, read_config

MODEL = ["--model-path", "mlx-community/Qwen3-0.6B-4bit"]


def parse(*flags: str, **environment: str) -> WorkerConfig:
    return parse_arguments([*MODEL, *flags], environment)


def test_defaults_are_those_of_the_specification() -> None:
    """What a worker is with nothing but a model."""
    config = parse()
    assert config == WorkerConfig(
        model_path=MODEL[1],
        served_name="Qwen3-0.6B-4bit",
        revision="",
        kind=Kind.CHAT,
        engine=None,
        context_length=None,
        max_concurrency=32,
        queue_size=100,
        queue_timeout_s=300.0,
        warmup=True,
        tokenizer_path=None,
        adapter_path=None,
        adapters={},
        draft_model=None,
        draft_tokens=3,
        device="auto",
        prefix_cache_bytes=2 * 1024**3,
        prefix_kv_bits=0,
        prefix_disk_folder=None,
        prefix_disk_bytes=32 * 1024**3,
        feature_cache_bytes=512 * 1024**2,
        prefill_chunk=0,
        truncate_embeddings=False,
        spare=True,
        log_level="info",
        run_dir=default_run_dir(),
    )
    assert config.source == MODEL[1]


EXAMPLES = {
    "model_path": ("/models/qwen3", "/models/qwen3"),
    "revision": ("refs/pr/1", "refs/pr/1"),
    "kind": ("lm", Kind.CHAT),
    "served_name": ("team/qwen3", "team/qwen3"),
    "context_length": ("4096", 4096),
    "max_concurrency": ("8", 8),
    "queue_size": ("0", 0),
    "queue_timeout_s": ("1.5", 1.5),
    "warmup": ("false", False),
    "tokenizer_path": ("/t", "/t"),
    "adapter_path": ("/a", "/a"),
    "adapters": ("sql=/s,team/poems=~", {"sql": "/s", "team/poems": str(Path.home())}),
    "draft_model": ("~", str(Path.home())),
    "draft_tokens": ("16", 16),
    "quantize": ("Q8", "q8"),
    "device": ("CPU", "cpu"),
    "engine": ("my.engine:Mine", "my.engine:Mine"),
    "prefix_cache_bytes": ("512MB", 512 * 1024**2),
    "prefix_kv_bits": ("8", 8),
    "prefix_disk_folder": ("/p", Path("/p")),
    "prefix_disk_bytes": ("20GB", 20 * 1024**3),
    "feature_cache_bytes": ("64MB", 64 * 1024**2),
    "prefill_chunk": ("256", 256),
    "truncate_embeddings": ("true", True),
    "spare": ("no", False),
    "log_level": ("DEBUG", "debug"),
    "log_json": ("yes", True),
    "run_dir": ("/tmp/pool", Path("/tmp/pool")),
}


def test_table_of_settings_covers_every_field() -> None:
    """No field without a flag, no flag without a field."""
    assert set(EXAMPLES) == {setting.name for setting in SETTINGS} == set(WorkerConfig.__struct_fields__)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_setting_is_read_from_flag_and_environment_in_order(setting: Setting) -> None:
    """The flag wins over every name in the environment, the first name over the later ones; empty is unset."""
    text, value = EXAMPLES[setting.name]
    model = {} if setting.name == "model_path" else {"MODEL_PATH": "m/qwen3"}
    if setting.name != "kind":
        model["MODEL_TYPE"] = "embedding"  # every name counts for it
    names = setting.variables
    bad = dict.fromkeys(setting.more_variables, "\0")
    for flag in setting.flags:
        flagged = parse_arguments([flag, text], {**dict.fromkeys(names, "\0"), **model})
        assert getattr(flagged, setting.name) == value
    for position, name in enumerate(names):
        environment = {**model, **bad, **dict.fromkeys(names[:position], ""), name: text}
        assert getattr(parse_arguments([], environment), setting.name) == value


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--queue-size", "-1"], "--queue-size: must be a whole number from 0 to 100000, not '-1'"),
        (["--queue-size=1e3"], "--queue-size: must be a whole number from 0 to 100000, not '1e3'"),
        (["--revision", "../main"], "--revision: must be a commit, a tag or a branch"),
        (["--revision", "v1", "--model-path", "/tmp"], "--revision: is for models of the hub; /tmp is none"),
        (["--max-concurrency", "0"], "--max-concurrency: must be a whole number from 1 to 4096, not '0'"),
        (["--queue-timeout", "nan"], "--queue-timeout: must be a number of seconds"),
        (["--mlx-warmup", "perhaps"], "--mlx-warmup: must be true or false, not 'perhaps'"),
        (["--device", "tpu"], "--device: must be auto, gpu or cpu, not 'tpu'"),
        (["--model-type", "audio"], "--model-type: must be chat (or lm), vision"),
        (["--engine", "os.system"], "--engine: must look like package.module:Class"),
        (["--prefix-cache-bytes", "2 parsecs"], "--prefix-cache-bytes: must be a size such as 512MB or 2GB"),
        (["--served-name", "a b"], "--served-name: must be letters, digits"),
        (["--served-name", "x" * 129], "--served-name: must be letters, digits"),
        (["--context-length"], "--context-length: expected one argument"),
        (["--que-size", "3"], "--que-size: no such flag; did you mean --queue-size?"),
        (["--queue", "3"], "--queue: no such flag"),
        (["qwen3"], "qwen3: no such flag; see --help"),
        (["--adapter", "sql"], "--adapter: must be name=path"),
        (["--adapter", "sql="], "--adapter: must be name=path"),
        (["--adapter", "s q l=/a"], "--adapter: must be name=path"),
        (["--adapter", "sql=/a", "--adapter", "sql=/b"], "--adapter: must give sql to one adapter only"),
        (["--adapter", "Qwen3-0.6B-4bit=/a"], "--adapter: Qwen3-0.6B-4bit is what the model itself is called"),
        (["--adapter", "sql=/a", "--adapter-path", "/b"], "--adapter: goes with the bare model"),
    ],
)
def test_bad_flag_is_named_with_what_is_allowed(flags: list[str], says: str) -> None:
    """One line, the flag first."""
    with pytest.raises(ConfigError) as caught:
        parse(*flags)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_adapter_may_be_given_again_and_again() -> None:
    """Each with a name of its own; a path may hold what separates names elsewhere."""
    config = parse("--adapter", "sql=/a=b", "--adapter", "poems=c d", POOL_ADAPTERS="other=/x")
    assert config.adapters == {"sql": "/a=b", "poems": "c d"}


def test_bad_variable_is_named_by_its_own_name() -> None:
    """Whoever set QUEUE_SIZE has never heard of --queue-size."""
    with pytest.raises(ConfigError, match=r"^QUEUE_SIZE: must be a whole number"):
        parse(QUEUE_SIZE="many")


def test_second_name_is_refused_when_it_says_something_else() -> None:
    """Both names of mlx-lm are taken, here and in the environment, but not beside ours with another value."""
    assert parse("--draft-tokens", "4", "--num-draft-tokens", "4").draft_tokens == 4
    with pytest.raises(ConfigError, match=r"^--prefill-chunk and --prefill-step-size: are one setting"):
        parse("--prefill-chunk", "4", "--prefill-step-size", "5")
    with pytest.raises(ConfigError, match=r"^POOL_DRAFT_TOKENS and POOL_NUM_DRAFT_TOKENS: are one setting"):
        parse(POOL_DRAFT_TOKENS="4", POOL_NUM_DRAFT_TOKENS="5")


def test_model_path_is_required() -> None:
    """There is no default model."""
    with pytest.raises(ConfigError, match=r"^--model-path is required"):
        parse_arguments([], {"MODEL_PATH": ""})


@pytest.mark.parametrize(
    ("path", "name", "source"),
    [
        ("mlx-community/gemma-3-4b", "gemma-3-4b", "mlx-community/gemma-3-4b"),
        ("/models/qwen3/", "qwen3", "qwen3"),
        (".models/qwen3", "qwen3", "qwen3"),
        ("~/models/qwen3", "qwen3", "qwen3"),
    ],
)
def test_name_and_source_come_from_the_model_path(path: str, name: str, source: str) -> None:
    """The default name is the last part; what is shown of a local path is no more than that."""
    config = parse_arguments(["--model-path", path], {})
    assert (config.served_name, config.source) == (name, source)
    assert "~" not in config.model_path


def test_name_is_asked_for_when_the_path_has_none() -> None:
    """A folder with a space can be served, under a name."""
    with pytest.raises(ConfigError, match=r"^--served-name: give one"):
        parse_arguments(["--model-path", "/models/my model"], {})
    assert parse_arguments(["--model-path", "/models/my model", "--served-name", "mine"], {}).served_name == "mine"


def test_own_engine_serves_any_kind() -> None:
    """`--engine` is the seam for kinds that have no built-in engine."""
    config = parse("--model-type", "multimodal", "--engine", "my.engine:Mine")
    assert (config.kind, config.engine) == (Kind.VISION, "my.engine:Mine")


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("10", 10), ("1.5k", 1536), ("2GiB", 2 << 30), ("1 TB", 1 << 40)])
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    """With or without a unit, an `i`, a space."""
    assert parse("--prefix-cache-bytes", text).prefix_cache_bytes == size


def test_configuration_survives_the_hand_over() -> None:
    """What the engine process reads is what the supervisor was given."""
    config = msgspec.structs.replace(parse(), run_dir=Path("/tmp/ö pool"), tokenizer_path="/t k")
    python, *_, text, uid, fd, _parent = engine_command(config, "abc", 9)
    assert (python, uid, fd) == (sys.executable, "abc", "9")
    assert read_config(text) == config


def test_preload_goes_in_front_of_what_is_there() -> None:
    """The engine gets OpenBLAS once, and keeps what its user preloads."""
    library = "/usr/lib/libopenblas.so.0"
    blas = {"LD_PRELOAD": library, "LD_LIBRARY_PATH": "/w", "OPENBLAS_CORETYPE": "Haswell"}
    assert engine_environment({}, {"A": "b"}) == {"A": "b"}
    assert engine_environment(blas, {"A": "b"}).items() >= blas.items()
    theirs = {"LD_PRELOAD": "/x.so", "LD_LIBRARY_PATH": "/y", "OPENBLAS_CORETYPE": "Zen"}
    made = engine_environment(blas, theirs)
    assert [made[name] for name in theirs] == [f"{library}:/x.so", "/w:/y", "Zen"]
    assert engine_environment(blas, {"LD_PRELOAD": "/opt/libopenblas.so.0"})["LD_PRELOAD"] == "/opt/libopenblas.so.0"


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("POOL_API_KEY", "x", ()),
        ("EMBEDDING_API_KEY", "x", ()),
        ("POOL_RATE_LIMIT_STORAGE", "redis://10.0.0.5/0", ()),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b", ()),
        ("AWS_SECRET_ACCESS_KEY", "x", ()),
        ("github_token", "x", ()),
        ("CELERY", "redis://:secret@host/0", ()),
        ("HF_TOKEN", "x", ("hub",)),
        ("HTTPS_PROXY", "http://me:secret@proxy:8080", ("hub",)),
        ("HTTPS_PROXY", "http://proxy:8080", ("hub", "local")),
        ("PWD", "/home/me", ("hub", "local")),
        ("TOKENIZERS_PARALLELISM", "false", ("hub", "local")),
        ("MANPATH", "a:b@c", ("hub", "local")),
        *((name, "x", ("hub", "local")) for setting in SETTINGS for name in setting.variables),
    ],
)
def test_worker_is_given_no_secret_that_it_does_not_need(
    tmp_path: Path, name: str, value: str, stays: tuple[str, ...]
) -> None:
    """By name, or for a password in an address; the hub's token goes to those alone who may have to fetch a model."""
    environment = {name: value, "PATH": "/bin"}
    local = WorkerConfig(model_path=str(tmp_path), served_name="m")
    for where, config in (("local", local), ("hub", parse())):
        expected = None if where in stays else {"PATH": "/bin"}
        assert public_environment(config, environment) == expected
    assert (name in engine_environment({}, environment)) is ("hub" in stays)


def test_blas_leaves_cores_to_the_others_when_nothing_else_is_said() -> None:
    """Half of them; a number that somebody chose stays."""
    blas = {"LD_PRELOAD": "/usr/lib/libopenblas.so.0"}
    threads = int(engine_environment(blas, {})["OPENBLAS_NUM_THREADS"])
    assert threads == max(1, (os.cpu_count() or 1) // 2)
    assert engine_environment(blas, {"OPENBLAS_NUM_THREADS": "7"})["OPENBLAS_NUM_THREADS"] == "7"


def test_variables_of_embedding_workers_are_theirs_alone() -> None:
    """One environment for all workers: EMBEDDING_ names reach the one kind, behind the names that mean every worker."""
    environment = {"EMBEDDING_MODEL_PATH": "a/vectors", "EMBEDDING_QUANTIZATION": "q8", "EMBEDDING_DEVICE": "mps"}
    config = parse_arguments(["--model-type", "embedding"], environment)
    assert (config.model_path, config.quantize, config.device) == ("a/vectors", "q8", "gpu")
    assert parse_arguments(["--model-type", "embedding"], environment | {"POOL_MODEL_PATH": "b"}).model_path == "b"
    chat = parse_arguments(["--model-path", "a/chat"], environment)
    assert (chat.model_path, chat.quantize, chat.device) == ("a/chat", "none", "auto")
    with pytest.raises(ConfigError, match="--model-path is required"):
        parse_arguments([], environment)
