"""`/admin/api-keys`: making, changing, rotating and revoking keys. Every act is in the audit log."""

import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from aiohttp import hdrs, web

from gateway.access.audit import audit
from gateway.access.custody import Unavailable
from gateway.access.gate import CALLER
from gateway.access.record import BadKey, Key, new_key
from gateway.context import CUSTODY
from gateway.errors import ApiError, invalid
from gateway.openapi import Operation, mount
from gateway.routes.body import answer, read
from gateway.schema.admin import KeyChange, KeyInfo, KeyList, KeyRequest, KeyRotation

GRACE_S = 86_400.0


async def create(request: web.Request) -> web.Response:
    """Make a key; its text is told this once."""
    wanted = await read(request, KeyRequest)
    fields = {"name": wanted.name, "permissions": tuple(wanted.permissions), **_fields(wanted)}
    key, text = await _put(request, "key.create", lambda pepper: new_key(pepper, time.time(), **fields))
    return answer(_info(key, text=text))


async def every(request: web.Request) -> web.Response:
    """All keys, revoked ones too."""
    return answer(KeyList(data=[_info(key) for key in await _keys(request)]))


async def one(request: web.Request) -> web.Response:
    """One key."""
    return answer(_info(await _find(request)))


async def change(request: web.Request) -> web.Response:
    """Change what a key may do, how much of it, or how long."""
    wanted = await read(request, KeyChange)
    fields = _fields(wanted)
    if wanted.name is not None:
        fields["name"] = wanted.name
    if wanted.permissions is not None:
        fields["permissions"] = tuple(wanted.permissions)
    key = await _find(request)
    changed, _ = await _put(request, "key.change", lambda _: (key.changed(time.time(), **fields), None), *fields)
    return answer(_info(changed))


async def revoke(request: web.Request) -> web.Response:
    """Close a key for good. Streams that run are not cut off."""
    key = await _find(request)
    at = key.revoked_at or time.time()
    revoked, _ = await _put(request, "key.revoke", lambda _: (key.changed(at, revoked_at=at), None))
    return answer(_info(revoked))


async def rotate(request: web.Request) -> web.Response:
    """Give a key a new secret; the old one stays good for a while."""
    wanted = await read(request, KeyRotation) if request.can_read_body else KeyRotation()
    key = await _find(request)
    grace_s = GRACE_S if wanted.grace is None else wanted.grace
    rotated, text = await _put(request, "key.rotate", lambda pepper: key.rotated(pepper, time.time(), grace_s))
    return answer(_info(rotated, text=text))


async def _keys(request: web.Request) -> list[Key]:
    try:
        return await request.app[CUSTODY].keys()
    except Unavailable as error:
        raise ApiError("keys_unavailable", detail=str(error)) from None


async def _find(request: web.Request) -> Key:
    for key in await _keys(request):
        if key.id == request.match_info["id"]:
            return key
    raise ApiError("not_found", "There is no such key.", "id")


async def _put(
    request: web.Request, act: str, make: Callable[[bytes], tuple[Key, Any]], *details: str
) -> tuple[Key, Any]:
    try:
        key, rest = await request.app[CUSTODY].put(make)
    except BadKey as error:
        raise invalid(f"'{error.field}' {error}.", error.field) from None
    except Unavailable as error:
        raise ApiError("keys_unavailable", detail=str(error)) from None
    audit(act, by=request[CALLER].id, subject=key.id, name=key.name, fields=",".join(details))
    return key, rest


def _fields(wanted: KeyRequest | KeyChange) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if wanted.models is not None:
        fields["models"] = tuple(wanted.models)
    if wanted.limits is not None:
        fields["limits"] = wanted.limits.limits()
    if wanted.expires_in is not None:
        fields["expires_at"] = time.time() + wanted.expires_in
    return fields


def _info(key: Key, *, text: str | None = None) -> KeyInfo:
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
    )


_READING = ("invalid_request", "unsupported_parameter", "body_too_large", "unsupported_media_type")
_EXAMPLE = MappingProxyType(
    {"name": "Ada's laptop", "permissions": ["chat", "models"], "limits": {"rpm": 120}, "expires_in": 7_776_000}
)
_ONE = "/admin/api-keys/{id}"


def _operation(method: str, path: str, handler: Any, summary: str, **more: Any) -> Operation:
    errors = (*more.pop("errors", ()), *(("not_found",) if "{" in path else ()))
    shown = {"answer": KeyInfo, **more}
    return Operation(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        tag="Admin",
        access=("admin",),
        errors=errors,
        **shown,
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
    _operation(hdrs.METH_GET, "/admin/api-keys", every, "List all keys", answer=KeyList),
    _operation(hdrs.METH_GET, _ONE, one, "Show a key"),
    _operation(hdrs.METH_PATCH, _ONE, change, "Change a key", body=KeyChange, example={"name": "Ada"}, errors=_READING),
    _operation(hdrs.METH_DELETE, _ONE, revoke, "Revoke a key"),
    _operation(
        hdrs.METH_POST,
        f"{_ONE}/rotate",
        rotate,
        "Give a key a new secret",
        body=KeyRotation,
        example={"grace": 86400},
        errors=_READING,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
