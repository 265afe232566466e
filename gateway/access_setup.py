"""Puts keys, limits, audit and events into an application, before anything that a request could reach."""

import logging
import secrets
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.access.audit import close_audit, open_audit
from gateway.access.connection import CONNECTIONS, LOCAL_NAMES, Connections
from gateway.access.gate import GATE, Gate, add_headers
from gateway.access.keys.key import UNLIMITED, RateLimits
from gateway.access.keys.keyring import Keyring
from gateway.access.keys.strength import HOW, weakness
from gateway.access.keys.sync import KeySync
from gateway.access.limiter import Limiter, MemoryLimiter
from gateway.access.usage import UsageLedger
from gateway.config import GatewayConfig, LoadedConfig
from gateway.context import EVENTS, KEY_SYNC, LOADED, REDACT
from gateway.telemetry.events import Events
from gateway.telemetry.logs import Redaction
from protocol.settings import ConfigError

log = logging.getLogger("gateway")


def guard_application(app: web.Application, loaded: LoadedConfig) -> None:
    """Add what `gateway.access.gate.guard` needs, and what keeps it up to date."""
    config = loaded.config
    usage, keyring = UsageLedger(_limits(config)), Keyring(config.api_key)
    app[LOADED] = loaded
    app[REDACT] = Redaction(config.api_key)
    app[EVENTS] = Events(app[REDACT])
    app[CONNECTIONS] = connections = _connections(config)
    limiter = _limiter(config, usage)
    app[GATE] = Gate(auth=config.auth, keyring=keyring, usage=usage, connections=connections, limiter=limiter)
    app[KEY_SYNC] = KeySync(config.data_dir, keyring, usage)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(_listen)
    app.cleanup_ctx.append(_keys)
    app.cleanup_ctx.append(_limiting)


def _limits(config: GatewayConfig) -> RateLimits:
    """Return what holds for a key that has no limits of its own."""
    if not config.rate_limit_enabled:
        return UNLIMITED
    return RateLimits(**{name: getattr(config, f"rate_limit_{name}") for name in RateLimits.__struct_fields__})


def _limiter(config: GatewayConfig, usage: UsageLedger) -> Limiter:
    """Return the limiter of this gateway, or the one of several that share a store. Raises `ConfigError`."""
    if config.rate_limit_storage is None or not config.auth:
        return MemoryLimiter(usage)
    try:
        from gateway.access.redis_limits import RedisLimiter
    except ImportError as error:
        advice = "'scripts/install redis' in the pool's folder adds it"
        raise ConfigError(f"rate_limit_storage: {error}; {advice}") from error
    try:
        return RedisLimiter(config.rate_limit_storage, usage)
    except ValueError as error:
        # What the library says may repeat the password.
        raise ConfigError("rate_limit_storage: must be an address as in redis://host:6379/0") from error


async def _limiting(app: web.Application) -> AsyncIterator[None]:
    await app[GATE].limiter.start()
    yield
    await app[GATE].limiter.close()


def _connections(config: GatewayConfig) -> Connections:
    hosts = {name.lower() for name in config.allowed_hosts}
    if not hosts and not config.auth and not config.insecure:
        hosts = {*LOCAL_NAMES, config.host}
    return Connections(
        hosts=frozenset(hosts),
        origins=frozenset(config.cors_origins),
        https=config.require_https,
        proxies=config.trusted_proxies,
    )


async def _listen(app: web.Application) -> AsyncIterator[None]:
    """Note events and acts from the first to the last moment."""
    logger = logging.getLogger("gateway")
    logger.addHandler(app[EVENTS])
    audit_file = None
    try:
        audit_file = open_audit(app[LOADED].config.data_dir, app[REDACT])
    except OSError as error:
        log.error("The audit log can't be written: %s; acts are noted in this log alone", error)
    yield
    if audit_file is not None:
        close_audit(audit_file)
    logger.removeHandler(app[EVENTS])


async def _keys(app: web.Application) -> AsyncIterator[None]:
    await app[KEY_SYNC].start()
    keyring = app[GATE].keyring
    master = app[LOADED].config.api_key
    if master is not None and (fault := weakness(master)):
        log.warning("The master key %s; %s", fault, HOW)
    if not app[GATE].auth:
        log.info("Keys are not asked for: any will do, such as dev-%s", secrets.token_hex(8))
    elif keyring.loaded and not len(keyring) and not keyring.has_master:
        log.warning("There is no API key: make one with '.venv/bin/python -m gateway keys create NAME'")
    yield
    await app[KEY_SYNC].close()
