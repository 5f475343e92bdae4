"""How does an operator see, rotate and end API keys? A rotation gives a key a new secret; the key, with all that hangs on it, stays."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import KeyEnded, NotFound
from app.quotas.acts import record_act
from app.quotas.keys import create_key, new_secret
from app.quotas.tables import api_keys
from app.quotas.tenants import read_tenant
from app.quotas.wanted import KeyRotation, KeyWanted, Rates


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as operators see it: without its secrets. `old_prefix` is valid beside `prefix` until `old_until`."""

    id: UUID
    tenant_id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    old_prefix: str | None
    old_until: datetime | None
    requests_per_minute: int | None
    request_burst: int | None
    tokens_per_minute: int | None
    token_burst: int | None
    state: str  # valid, expired or revoked


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key with its token, the only time."""

    key: KeyView
    token: str


_NOW = func.statement_timestamp()
_OVERLAPS = api_keys.c.old_until > _NOW
# An overlap that is over isn't shown.
_SHOWN: dict[str, ColumnElement[Any]] = {
    "old_prefix": case((_OVERLAPS, api_keys.c.old_prefix)),
    "old_until": case((_OVERLAPS, api_keys.c.old_until)),
    "state": case(
        (api_keys.c.revoked_at.is_not(None), "revoked"), (api_keys.c.expires_at <= _NOW, "expired"), else_="valid"
    ),
}
_COLUMNS: list[ColumnElement[Any]] = [
    _SHOWN[name] if name in _SHOWN else api_keys.c[name] for name in KeyView.__slots__
]


async def make_key(
    conn: AsyncConnection, tenant_id: str, wanted: KeyWanted, *, pepper: str, actor: str, reason: str | None = None
) -> FreshKey:
    """Make a key for a tenant that exists.

    Raises:
        NotFound: there is no such tenant.
    """
    await read_tenant(conn, tenant_id)
    rates = {name: getattr(wanted, name) for name in Rates.model_fields}
    key_id, token = await create_key(
        conn, tenant_id, pepper=pepper, name=wanted.name, scopes=wanted.scopes, expires_in_s=wanted.expires_in_s,
        rates=rates, actor=actor, reason=reason,
    )  # fmt: skip
    return FreshKey(await _by_id(conn, key_id), token)


async def list_keys(
    conn: AsyncConnection, tenant_id: str | None = None, *, limit: int, after: UUID | None = None
) -> list[KeyView]:
    """Keys, all or one tenant's, oldest first, those that come after `after`."""
    query = select(*_COLUMNS).order_by(api_keys.c.id).limit(limit)
    if tenant_id is not None:
        query = query.where(api_keys.c.tenant_id == tenant_id)
    if after is not None:
        query = query.where(api_keys.c.id > after)
    return [KeyView(*row) for row in await conn.execute(query)]


async def rotate_key(
    conn: AsyncConnection, prefix: str, rotation: KeyRotation, *, pepper: str, actor: str, reason: str | None = None
) -> FreshKey:
    """Give the key that has this prefix now a new secret. The one before is valid for `overlap_s` more; one before that ends at once.

    Raises:
        NotFound: there is no such key.
        KeyEnded: it was revoked, has expired, or this prefix is the one before its last rotation.
    """
    before = await _locked(conn, prefix)
    if before.state != "valid":
        raise KeyEnded(f"the key {prefix} is {before.state}: make a new one", state=before.state)
    if before.prefix != prefix:
        raise KeyEnded(
            f"the key {prefix} was rotated already, its prefix is {before.prefix} now: rotate that one", state="rotated"
        )
    secret = new_secret(pepper)
    values: dict[str, Any] = {"prefix": secret.prefix, "hash": secret.hash}
    overlaps = rotation.overlap_s > 0
    values |= {
        "old_prefix": api_keys.c.prefix if overlaps else None,
        "old_hash": api_keys.c.hash if overlaps else None,
        "old_until": _in(rotation.overlap_s) if overlaps else None,
    }
    if "expires_in_s" in rotation.given():
        values["expires_at"] = None if rotation.expires_in_s is None else _in(rotation.expires_in_s)
    await conn.execute(update(api_keys).where(api_keys.c.id == before.id).values(**values))
    detail = rotation.given() | {"from": prefix, "to": secret.prefix, "overlap_s": rotation.overlap_s}
    await record_act(conn, actor, "key.rotate", f"{before.tenant_id}/{secret.prefix}", detail, reason=reason)
    return FreshKey(await _by_id(conn, before.id), secret.token)


async def revoke_key(conn: AsyncConnection, prefix: str, *, actor: str, reason: str | None = None) -> KeyView:
    """End the key with this prefix, or with this one before its last rotation: all its secrets, from now on. Again changes nothing.

    Raises:
        NotFound: there is no such key.
    """
    before = await _locked(conn, prefix)
    if before.revoked_at is not None:
        return before
    await conn.execute(update(api_keys).where(api_keys.c.id == before.id).values(revoked_at=_NOW))
    await record_act(conn, actor, "key.revoke", f"{before.tenant_id}/{before.prefix}", {}, reason=reason)
    return await _by_id(conn, before.id)


def _in(seconds: float) -> Any:
    return _NOW + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


async def _locked(conn: AsyncConnection, prefix: str) -> KeyView:
    is_it = or_(api_keys.c.prefix == prefix, api_keys.c.old_prefix == prefix)
    query = select(*_COLUMNS).where(is_it).order_by((api_keys.c.prefix == prefix).desc()).limit(1)
    row = (await conn.execute(query.with_for_update())).one_or_none()
    if row is None:
        raise NotFound(f"there is no key with the prefix {prefix!r}")
    return KeyView(*row)


async def _by_id(conn: AsyncConnection, key_id: UUID) -> KeyView:
    row = (await conn.execute(select(*_COLUMNS).where(api_keys.c.id == key_id))).one()
    return KeyView(*row)
