"""`python -m gateway`: read the settings, listen, serve until told to stop. `python -m gateway keys`: API keys."""

import asyncio
import gc
import logging
import signal
import ssl
import sys

import uvloop
from aiohttp import web

from gateway.access import cli as keys
from gateway.allocator import map_large_blocks
from gateway.app import make_app
from gateway.config import GatewayConfig, load
from gateway.context import LISTENER
from gateway.http.listener import bind
from gateway.http.tls import load_tls
from gateway.telemetry.logs import setup_logging
from protocol.address import AddressError, GatewayLock, prepare_run_dir
from protocol.confidential import forbid_core_dumps
from protocol.settings import ConfigError

log = logging.getLogger("gateway")

EXIT_CONFIG = 2
LAST_WORDS_S = 0.3
"""What connections get to write their ends once the pool has drained; aiohttp may wait twice as long."""


def main() -> int:
    """Run the gateway, or what `keys` was asked to do; returns the exit code."""
    if sys.argv[1:2] == ["keys"]:
        return keys.main(sys.argv[2:])
    try:
        loaded = load(sys.argv[1:])
    except ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return EXIT_CONFIG
    if loaded.show:
        print("\n".join(loaded.setting_lines()))
        return 0
    config = loaded.config
    forbid_core_dumps()
    try:
        setup_logging(config)
        app = make_app(config, loaded)
        tls = load_tls(config.tls_cert, config.tls_key)
        if loaded.check:
            asyncio.run(_check_address(config))
            return 0
    except (ConfigError, AddressError, OSError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return EXIT_CONFIG
    log.info("Settings: %s", loaded.file or "no file")
    map_large_blocks()
    # Start-up objects live as long as the process: the collector need not walk them, nor hurry over requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, config, tls))
    except (AddressError, OSError) as error:
        log.error("the gateway can't start: %s", error)
        return 1
    return 0


async def _check_address(config: GatewayConfig) -> None:
    """Take the run folder's lock and the port, and give them back. Raises `OSError`, `AddressError`, `ConfigError`."""
    lock = GatewayLock(prepare_run_dir(config.run_dir))
    try:
        for listening in await bind(config.host, config.port):
            listening.close()
    finally:
        lock.release()


async def _serve(app: web.Application, config: GatewayConfig, tls: ssl.SSLContext | None) -> None:
    """Listen until a signal says stop. Raises `OSError`, `AddressError`.

    Not by `web.run_app`: its end races with a second signal, and Ctrl-C under honcho is two.
    """
    loop = asyncio.get_running_loop()
    loop.set_debug(config.debug)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        loop.add_signal_handler(number, stop.set)
    # Without cancellation a handler that waits for its first token never learns that its client has left.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=LAST_WORDS_S)
    listener = app[LISTENER]
    try:
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("the application has no server")
        log.info("Running on %s", await listener.open(runner.server, config.host, config.port, tls))
        await stop.wait()
    finally:
        listener.close()
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
