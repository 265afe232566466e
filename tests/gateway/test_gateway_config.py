"""Settings: which source wins, what is refused, what is shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.config import SETTINGS, GatewayConfig, load, parse_arguments
from protocol.settings import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without configuration files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_hold_when_nobody_says_anything() -> None:
    """No file, no variable, no flag: the defaults of the object."""
    assert parse_arguments([], {}) == GatewayConfig()


def test_sources_override_each_other_when_all_speak(elsewhere: Path) -> None:
    """Flag over variable over alias over file over default, setting by setting."""
    (elsewhere / "config.yaml").write_text("port: 1\ntier: file\nsse_ping_interval: 7\ndrain: 2\n")
    environment = {"POOL_PORT": "2", "SERVER_PORT": "3", "EMBEDDING_HOST": "localhost", "POOL_TIER": "env"}
    loaded = load(["--port", "4"], environment)
    config = loaded.config
    assert (config.port, config.tier, config.sse_ping_interval_s, config.drain_s) == (4, "env", 7.0, 2.0)
    assert (config.host, config.write_timeout_s) == ("localhost", 30.0)
    assert loaded.origins == {
        "port": "--port", "tier": "POOL_TIER", "sse_ping_interval": "config.yaml", "drain": "config.yaml",
        "host": "EMBEDDING_HOST",
    }  # fmt: skip


def test_first_of_several_variables_wins_and_empty_ones_count_for_nothing() -> None:
    """POOL_ names go before the others; a variable set to nothing is not set."""
    both = {"POOL_PORT": "2", "SERVER_PORT": "3", "EMBEDDING_PORT": "4"}
    assert parse_arguments([], both).port == 2
    assert parse_arguments([], both | {"POOL_PORT": ""}).port == 3


def test_file_is_the_development_one_when_both_lie_there(elsewhere: Path) -> None:
    """config.dev.yaml, else config.yaml; POOL_CONFIG names another, --config overrides that."""
    for number, name in enumerate(("config.yaml", "config.dev.yaml", "other.yaml", "last.yaml"), 1):
        (elsewhere / name).write_text(f"port: {number}")
    assert parse_arguments([], {}).port == 2
    assert parse_arguments([], {"POOL_CONFIG": "other.yaml"}).port == 3
    assert parse_arguments(["--config", "last.yaml"], {"POOL_CONFIG": "other.yaml"}).port == 4
    (elsewhere / "config.dev.yaml").unlink()
    assert parse_arguments([], {}).port == 1


def test_setting_is_read_when_either_of_its_names_is_given(elsewhere: Path) -> None:
    """The old name does everywhere what the new one does. Both may say the same. A better source overrides either."""
    both = {"POOL_KEEP_ALIVE": "3", "POOL_SSE_PING_INTERVAL": "3.0"}
    assert parse_arguments(["--keep-alive", "2"], both).sse_ping_interval_s == 2.0
    assert parse_arguments(["--sse-ping-interval", "2"], both).sse_ping_interval_s == 2.0
    assert load([], both).origins == {"sse_ping_interval": "POOL_SSE_PING_INTERVAL"}
    assert load([], {"POOL_KEEP_ALIVE": "3"}).origins == {"sse_ping_interval": "POOL_KEEP_ALIVE"}
    (elsewhere / "config.yaml").write_text("keep_alive: 4\n")
    assert parse_arguments([], {}).sse_ping_interval_s == 4.0
    assert parse_arguments([], {"POOL_SSE_PING_INTERVAL": "5"}).sse_ping_interval_s == 5.0


def test_values_are_typed_when_the_file_has_yaml_types(elsewhere: Path) -> None:
    """Lists, mappings, switches, sizes and null mean in a file what their text means in a flag."""
    (elsewhere / "config.yaml").write_text(
        "log_json: yes\naliases: {gpt-4o: a, fast: b}\ncache_bytes: 1KB\nplugins: [a.b, c]\ntier:\nlog_file: x/y.log\n"
    )
    config = parse_arguments([], {})
    assert config.log_json is True
    assert config.aliases == {"gpt-4o": "a", "fast": "b"}
    assert (config.cache_bytes, config.plugins, config.tier) == (1024, ("a.b", "c"), "3A")
    assert config.log_file == elsewhere / "x" / "y.log"
    assert parse_arguments(["--debug"], {}).debug is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hots: 1", r"config.yaml: hots: no such setting; did you mean host\?"),
        ("zzz: 1", "config.yaml: zzz: no such setting$"),
        ("port: 70000", "config.yaml: port: must be a whole number from 0 to 65535, not '70000'"),
        ("port: 1\nport: 2", "config.yaml: 'port' stands there twice"),
        ("- a", "config.yaml: must hold settings"),
        ("a: [", "config.yaml: while parsing"),
        ("tier: 2020-01-01", "config.yaml: tier: must be text"),
        ("tier: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("debug: maybe", "config.yaml: debug: must be true or false, not 'maybe'"),
        ("keep_alive: 0", "keep_alive: must be a number of seconds"),
        ("sse_ping_interval: 0", "sse_ping_interval: must be a number of seconds"),
        (
            "sse_ping_interval: 1\nkeep_alive: 2",
            "config.yaml: sse_ping_interval and keep_alive: are one setting, and say different things",
        ),
        ("plugins: [a b]", "plugins: must be modules"),
        ("aliases: {a: null}", "aliases: must be text"),
    ],
)
def test_file_is_refused_when_it_says_nonsense(elsewhere: Path, text: str, said: str) -> None:
    """One line: which file, which setting, what is allowed; nothing is guessed or executed."""
    (elsewhere / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load([], {})


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["--prot", "1"], {}, r"--prot: no such flag; did you mean --port\?"),
        (["--port", "-1"], {}, "--port: must be a whole number"),
        ([], {"SERVER_PORT": "x"}, "SERVER_PORT: must be a whole number from 0 to 65535, not 'x'"),
        ([], {"POOL_CONFIG": "nowhere.yaml"}, "there is no configuration file nowhere.yaml"),
        (["--host", "0.0.0.0", "--auth", "no"], {}, "reachable from other machines"),
        (["--host", "::"], {"POOL_ENV": "development"}, "reachable from other machines"),
        (["--host", "box.local"], {"EMBEDDING_ENV": "dev"}, "reachable from other machines"),
        (["--api-key", "x"], {}, "--api-key: no such flag"),
        (
            ["--keep-alive", "1", "--sse-ping-interval", "2"],
            {},
            "--sse-ping-interval and --keep-alive: are one setting, and say different things",
        ),
        (
            [],
            {"POOL_SSE_PING_INTERVAL": "1", "POOL_KEEP_ALIVE": "2"},
            "POOL_SSE_PING_INTERVAL and POOL_KEEP_ALIVE: are",
        ),
    ],
)
def test_flags_and_variables_are_refused_when_they_say_nonsense(
    argv: list[str], environment: dict[str, str], said: str
) -> None:
    """The same for the other two sources."""
    with pytest.raises(ConfigError, match=said):
        load(argv, environment)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_no_leave_when_named(host: str) -> None:
    """Only this machine: nobody has to say that it is insecure."""
    assert parse_arguments(["--host", host, "--env", "development"], {}).host == host
    assert parse_arguments(["--host", "0.0.0.0", "--auth", "off", "--insecure"], {}).insecure
    assert parse_arguments(["--host", "0.0.0.0"], {}).auth


def test_keys_and_limits_follow_the_environment_unless_told_otherwise() -> None:
    """Development asks for no key and limits nothing; either can be switched on, or off in production."""

    def switches(environment: dict[str, str]) -> tuple[bool, bool]:
        config = parse_arguments([], environment)
        return config.auth, config.rate_limit_enabled

    assert switches({}) == (True, True)
    assert switches({"EMBEDDING_ENV": "development"}) == (False, False)
    assert switches({"POOL_ENV": "development", "POOL_AUTH": "1"}) == (True, False)
    assert switches({"EMBEDDING_RATE_LIMIT_ENABLED": "false"}) == (True, False)


def test_secret_is_masked_when_the_configuration_is_shown() -> None:
    """The master key has a variable, no flag, and shows nowhere."""
    loaded = load([], {"EMBEDDING_API_KEY": "hunter-of-94-quinces"})
    assert loaded.config.api_key == "hunter-of-94-quinces"
    assert "hunter2" not in "\n".join(loaded.setting_lines())
    assert "api_key" in "\n".join(loaded.setting_lines())


def test_shipped_file_names_every_setting_when_read() -> None:
    """config.yaml shows all of them, commented; with every line switched on it is legal; defaults are as they say."""
    text = (ROOT / "config.yaml").read_text()
    everything = yaml.safe_load(re.sub(r"^# (?=\w+:)", "", text, flags=re.MULTILINE))
    assert set(everything) == {setting.key for setting in SETTINGS if not setting.secret}
    Path("config.yaml").write_text(yaml.safe_dump(everything))
    everywhere = load([], {}).config
    differ = {"run_dir", "log_file", "tls_cert", "tls_key", "aliases", "plugins"}
    changed = set(yaml.safe_load(text))
    for setting in SETTINGS:
        if not setting.secret and setting.key not in differ | changed:
            assert getattr(everywhere, setting.name) == getattr(GatewayConfig(), setting.name), setting.key


@pytest.mark.parametrize("name", ["config.yaml", "config.dev.yaml"])
def test_shipped_file_is_legal_when_read_as_it_is(name: str) -> None:
    """Both load."""
    assert load(["--config", str(ROOT / name)], {}).file == ROOT / name


def test_configuration_is_shown_when_asked_for(elsewhere: Path) -> None:
    """--print-config writes legal YAML with the origin of each value, and starts nothing."""
    (elsewhere / "config.yaml").write_text("tier: gold\n")
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "--print-config", "--port", "9"],
        capture_output=True, text=True, timeout=60, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    shown = yaml.safe_load(run.stdout)
    assert set(shown) == {setting.key for setting in SETTINGS}
    assert (shown["tier"], shown["port"], shown["host"]) == ("gold", 9, "127.0.0.1")
    assert re.search(r"^tier: +gold +# config.yaml$", run.stdout, re.MULTILINE)
    assert re.search(r"^port: +9 +# --port$", run.stdout, re.MULTILINE)


def test_program_ends_with_two_and_a_line_when_a_setting_is_wrong() -> None:
    """Whoever starts it learns what to change; no traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "--plugins", "no_such_module_here"],
        capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (2, "gateway: plugins: No module named 'no_such_module_here'\n")
