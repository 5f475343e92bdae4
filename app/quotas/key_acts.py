"""How does an operator see, change, rotate and end API keys? A rotation gives a key a new secret; the key, with all that hangs on it, stays."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidRequest, KeyEnded, NotFound
from app.quotas.acts import record_act
from app.quotas.keys import create_key, new_secret
from app.quotas.tables import api_keys
from app.quotas.tenants import read_tenant
from app.quotas.wanted import MAX_EXPIRY_S, KeyChange, KeyRotation, KeyWanted, Rates
from app.seen import Seen, refuse_unless_seen, version_of


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

    @property
    def version(self) -> str:
        """Of what `change_key` may change."""
        return version_of(*(getattr(self, name) for name in KeyChange.model_fields))


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


async def read_key(conn: AsyncConnection, prefix: str) -> KeyView:
    """The key with this prefix, or with this one before its last rotation; revoked or expired ones, too.

    Raises:
        NotFound: there is no such key.
    """
    return await _found(conn, prefix)


async def change_key(
    conn: AsyncConnection, prefix: str, change: KeyChange, *, actor: str, seen: Seen = None, reason: str | None = None
) -> KeyView:
    """Change name, scopes, expiry or rates of a valid key; its secrets and its budgets stay. API processes notice within seconds.

    `seen`: the `version` that whoever changes it has seen.

    Raises:
        NotFound: there is no such key.
        KeyEnded: it was revoked, or has expired.
        ChangedMeanwhile: it isn't what was seen.
        InvalidRequest: nothing is given, or the new expiry isn't to come.
    """
    given = change.given()
    if not given:
        raise InvalidRequest("name at least one field that shall be different", errors=[])
    before = await _found(conn, prefix, locked=True)
    _refuse_ended(before)
    changed = {name: value for name, value in given.items() if value != getattr(before, name)}
    if not changed:
        return before
    refuse_unless_seen(seen, before.version, {name: getattr(before, name) for name in changed})
    if changed.get("expires_at") is not None:
        _refuse_unless_to_come(changed["expires_at"], (await conn.execute(select(_NOW))).scalar_one())
    await conn.execute(update(api_keys).where(api_keys.c.id == before.id).values(**changed))
    detail = {name: [_told(getattr(before, name)), _told(value)] for name, value in changed.items()}
    await record_act(conn, actor, "key.change", f"{before.tenant_id}/{before.prefix}", detail, reason=reason)
    return await _by_id(conn, before.id)


async def rotate_key(
    conn: AsyncConnection, prefix: str, rotation: KeyRotation, *, pepper: str, actor: str, reason: str | None = None
) -> FreshKey:
    """Give the key that has this prefix now a new secret. The one before is valid for `overlap_s` more; one before that ends at once.

    Raises:
        NotFound: there is no such key.
        KeyEnded: it was revoked, has expired, or this prefix is the one before its last rotation.
    """
    before = await _found(conn, prefix, locked=True)
    _refuse_ended(before)
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
    before = await _found(conn, prefix, locked=True)
    if before.revoked_at is not None:
        return before
    await conn.execute(update(api_keys).where(api_keys.c.id == before.id).values(revoked_at=_NOW))
    await record_act(conn, actor, "key.revoke", f"{before.tenant_id}/{before.prefix}", {}, reason=reason)
    return await _by_id(conn, before.id)


def _in(seconds: float) -> Any:
    return _NOW + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _refuse_ended(key: KeyView) -> None:
    if key.state != "valid":
        raise KeyEnded(f"the key {key.prefix} is {key.state}: make a new one", state=key.state)


def _refuse_unless_to_come(expires_at: datetime, now: datetime) -> None:
    if not now < expires_at <= now + timedelta(seconds=MAX_EXPIRY_S):
        raise InvalidRequest(
            "expires_at: must be later than now, and within ten years; a key that shall end now is revoked",
            param="expires_at",
        )


def _told(value: Any) -> Any:
    """For the log of acts, as the API writes times."""
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


async def _found(conn: AsyncConnection, prefix: str, *, locked: bool = False) -> KeyView:
    is_it = or_(api_keys.c.prefix == prefix, api_keys.c.old_prefix == prefix)
    query = select(*_COLUMNS).where(is_it).order_by((api_keys.c.prefix == prefix).desc()).limit(1)
    row = (await conn.execute(query.with_for_update() if locked else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no key with the prefix {prefix!r}")
    return KeyView(*row)


async def _by_id(conn: AsyncConnection, key_id: UUID) -> KeyView:
    row = (await conn.execute(select(*_COLUMNS).where(api_keys.c.id == key_id))).one()
    return KeyView(*row)
