"""`/admin/api-keys`: making, changing, rotating and revoking keys. Every act is in the audit log."""

import time
from collections.abc import Coroutine
from types import MappingProxyType
from typing import Any, TypeVar

from aiohttp import hdrs, web

from gateway.access.audit import audit
from gateway.access.gate import CALLER, GATE
from gateway.access.keys.grants import NotGranted, check_grant, may_see_key
from gateway.access.keys.key import BadKey, Key, new_key
from gateway.access.keys.store import RevokedKey, UnknownKey
from gateway.access.keys.sync import KeysUnavailable
from gateway.bodies.body import answer, read
from gateway.context import KEY_SYNC
from gateway.http.openapi import Operation, mount
from gateway.schema.admin import KeyChange, KeyInfo, KeyList, KeyRequest, KeyRotation
from gateway.schema.errors import ApiError, invalid

GRACE_S = 86_400.0

T = TypeVar("T")


async def create(request: web.Request) -> web.Response:
    """Make a key; its text is told this once. It may do nothing that the caller's own may not."""
    wanted = await read(request, KeyRequest)
    fields = {"name": wanted.name, "permissions": tuple(wanted.permissions), **_fields(wanted)}

    def make(pepper: bytes) -> tuple[Key, str]:
        key, text = new_key(pepper, time.time(), **fields)
        _check(request, key)
        return key, text

    key, text = await _written(request, "key.create", request.app[KEY_SYNC].write_key(make))
    return answer(_info(key, text=text))


async def list_keys(request: web.Request) -> web.Response:
    """Answer with all keys, revoked ones too; to who may use some models, with those of its own models."""
    return answer(KeyList(data=[_info(key) for key in await _keys(request) if may_see_key(request[CALLER], key)]))


async def get_key(request: web.Request) -> web.Response:
    """Answer with one key, without its secret."""
    return answer(_info(await _find(request)))


async def change(request: web.Request) -> web.Response:
    """Change what a key may do, how much of it, or how long: what is not named stays as it is by then."""
    wanted = await read(request, KeyChange)
    fields = _fields(wanted)
    if wanted.name is not None:
        fields["name"] = wanted.name
    if wanted.permissions is not None:
        fields["permissions"] = tuple(wanted.permissions)

    def make(_pepper: bytes, key: Key) -> tuple[Key, None]:
        changed = key.changed(time.time(), **fields)
        _check_seen(request, key)
        # Both: who may not have given what a key has, may not handle it either.
        for one in (key, changed):
            _check(request, one)
        return changed, None

    work = request.app[KEY_SYNC].change_key(request.match_info["id"], make)
    changed, _ = await _written(request, "key.change", work, *fields)
    return answer(_info(changed))


async def revoke(request: web.Request) -> web.Response:
    """Close a key for good, at once, whatever state the database is in. Streams that run are not cut off."""
    known = request.app[GATE].keyring.find_key(request.match_info["id"])
    if known is not None:
        _check_seen(request, known)
    elif request[CALLER].models:
        raise _unknown()
    key, kept = await _written(
        request, "key.revoke", request.app[KEY_SYNC].revoke_key(request.match_info["id"], time.time())
    )
    return answer(_info(key, pending=None if kept == "database" else kept))


async def rotate(request: web.Request) -> web.Response:
    """Give a key a new secret; the old one stays good for a while."""
    wanted = await read(request, KeyRotation) if request.can_read_body else KeyRotation()
    grace_s = GRACE_S if wanted.grace is None else wanted.grace

    def make(pepper: bytes, key: Key) -> tuple[Key, str]:
        _check_seen(request, key)
        _check(request, key)
        return key.rotated(pepper, time.time(), grace_s)

    work = request.app[KEY_SYNC].change_key(request.match_info["id"], make)
    rotated, text = await _written(request, "key.rotate", work)
    return answer(_info(rotated, text=text))


def _check(request: web.Request, key: Key) -> None:
    """Check that the caller may give away what `key` holds. Raises `NotGranted`."""
    check_grant(request[CALLER], key, request.app[GATE].usage.defaults)


def _check_seen(request: web.Request, key: Key) -> None:
    """Check that the caller may know of `key`. Raises `ApiError` as for a key that is not there."""
    if not may_see_key(request[CALLER], key):
        raise _unknown()


async def _keys(request: web.Request) -> list[Key]:
    try:
        return await request.app[KEY_SYNC].read_keys()
    except KeysUnavailable as error:
        raise ApiError("keys_unavailable", detail=str(error)) from None


async def _find(request: web.Request) -> Key:
    for key in await _keys(request):
        if key.id == request.match_info["id"] and may_see_key(request[CALLER], key):
            return key
    raise _unknown()


def _unknown() -> ApiError:
    return ApiError("not_found", "There is no such key.", "id")


async def _written(
    request: web.Request, act: str, work: Coroutine[Any, Any, tuple[Key, T]], *details: str
) -> tuple[Key, T]:
    try:
        key, rest = await work
    except BadKey as error:
        raise invalid(f"'{error.field}' {error}.", error.field) from None
    except NotGranted as error:
        message = f"The API key may not handle a key with {error}."
        raise ApiError("insufficient_permissions", message, error.field) from None
    except UnknownKey:
        raise _unknown() from None
    except RevokedKey:
        raise ApiError("key_revoked", param="id") from None
    except KeysUnavailable as error:
        raise ApiError("keys_unavailable", detail=str(error)) from None
    audit(act, by=request[CALLER].id, subject=key.id, name=key.name, fields=",".join(details))
    return key, rest


def _fields(wanted: KeyRequest | KeyChange) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if wanted.models is not None:
        fields["models"] = tuple(wanted.models)
    if wanted.limits is not None:
        fields["limits"] = wanted.limits.limits()
    if wanted.lifetime_s is not None:
        fields["expires_at"] = time.time() + wanted.lifetime_s
    return fields


def _info(key: Key, *, text: str | None = None, pending: str | None = None) -> KeyInfo:
    now = time.time()
    return KeyInfo(
        id=key.id,
        name=key.name,
        state=key.state(now),
        permissions=[*key.permissions],
        models=[*key.models],
        limits={
            name: value for name in key.limits.__struct_fields__ if (value := getattr(key.limits, name)) is not None
        },
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
        requests=key.requests,
        tokens=key.tokens,
        old_until=key.old_until if key.old_until > now else None,
        key=text,
        pending=pending,
    )


_READING = ("invalid_request", "unsupported_parameter", "body_too_large", "unsupported_media_type")
_CHANGING = (*_READING, "key_revoked")
_EXAMPLE = MappingProxyType(
    {"name": "Ada's laptop", "permissions": ["chat", "models"], "limits": {"rpm": 120}, "expires_in": 7_776_000}
)
_ONE = "/admin/api-keys/{id}"


def _operation(method: str, path: str, handler: Any, summary: str, **more: Any) -> Operation:
    errors = (*more.pop("errors", ()), *(("not_found",) if "{" in path else ()))
    fields = {"answer": KeyInfo, **more}
    return Operation(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        tag="Admin",
        access=("admin",),
        errors=errors,
        **fields,
    )


OPERATIONS = (
    _operation(
        hdrs.METH_POST,
        "/admin/api-keys",
        create,
        "Make a key",
        body=KeyRequest,
        example=dict(_EXAMPLE),
        errors=_READING,
    ),
    _operation(hdrs.METH_GET, "/admin/api-keys", list_keys, "List all keys", answer=KeyList),
    _operation(hdrs.METH_GET, _ONE, get_key, "Show a key"),
    _operation(
        hdrs.METH_PATCH, _ONE, change, "Change a key", body=KeyChange, example={"name": "Ada"}, errors=_CHANGING
    ),
    _operation(hdrs.METH_DELETE, _ONE, revoke, "Revoke a key"),
    _operation(
        hdrs.METH_POST,
        f"{_ONE}/rotate",
        rotate,
        "Give a key a new secret",
        body=KeyRotation,
        example={"grace": 86400},
        errors=_CHANGING,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
