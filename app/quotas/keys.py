"""Whose key is this? API keys: a prefix for the look-up, a peppered hash at rest, the secret shown once."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, case, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidRequest, NotFound, Unauthenticated
from app.ids import new_id
from app.quotas.acts import record_act
from app.quotas.limits import LIMIT_COLUMNS, NO_LIMITS, Limits, read_limits
from app.quotas.rights import ALL_RIGHTS, RIGHT_COLUMNS, Rights, read_rights
from app.quotas.tables import api_keys, tenants
from app.quotas.wanted import SCOPES

_PREFIX_HEX = 12


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown: without its secret."""

    id: UUID
    tenant_id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: Limits = NO_LIMITS  # what `authenticate` has read with it; lists don't
    rights: Rights = ALL_RIGHTS  # of its tenant: what `authenticate` has read with it


@dataclass(frozen=True, slots=True)
class Secret:
    """A fresh secret: what is stored of it, and the token, which is shown once and stored nowhere."""

    prefix: str
    hash: bytes
    token: str


def new_secret(pepper: str) -> Secret:
    """A token of 256 random bits behind a prefix for the look-up."""
    prefix = secrets.token_hex(_PREFIX_HEX // 2)
    token = f"pk_{prefix}_{secrets.token_urlsafe(32)}"
    return Secret(prefix, _digest(token, pepper), token)


def _digest(token: str, pepper: str) -> bytes:
    return hmac.new(pepper.encode(), token.encode(), hashlib.sha256).digest()


async def ensure_tenant(conn: AsyncConnection, tenant_id: str, *, actor: str | None = None) -> bool:
    """Make the tenant if there is none of this id; return whether it is new. Where there is an actor, the act is written down.

    Raises:
        InvalidRequest: the id is no slug.
    """
    import re

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", tenant_id):
        raise InvalidRequest("tenant: use 1 to 63 of a-z, 0-9 and -, not beginning with -", param="tenant")
    made = await conn.scalar(
        upsert(tenants)
        .values(id=tenant_id, webhook_secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
        .on_conflict_do_nothing()
        .returning(tenants.c.id)
    )
    if made is not None and actor is not None:
        await record_act(conn, actor, "tenant.create", tenant_id, {"id": tenant_id})
    return made is not None


async def create_key(
    conn: AsyncConnection,
    tenant_id: str,
    *,
    pepper: str,
    name: str = "",
    scopes: Sequence[str] = ("jobs:read", "jobs:write"),
    expires_in_s: float | None = None,
    rates: Mapping[str, int | None] | None = None,
    actor: str,
    reason: str | None = None,
) -> tuple[UUID, str]:
    """Make a key for the tenant; return its id and the token, which can't be read again. `rates`: columns of `api_keys`.

    Raises:
        InvalidRequest: an unknown scope.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidRequest(f"scopes: {scope!r} is unknown; there are {', '.join(SCOPES)}", param="scopes")
    secret = new_secret(pepper)
    key_id = new_id()
    expiry = text("statement_timestamp() + make_interval(secs => :seconds)").bindparams(seconds=expires_in_s)
    await conn.execute(
        insert(api_keys).values(
            id=key_id,
            tenant_id=tenant_id,
            name=name,
            prefix=secret.prefix,
            hash=secret.hash,
            scopes=list(scopes),
            expires_at=None if expires_in_s is None else expiry,
            **(rates or {}),
        )
    )
    limits = {name: value for name, value in (rates or {}).items() if value is not None}
    detail = {"scopes": list(scopes), "name": name, "expires_in_s": expires_in_s} | limits
    await record_act(conn, actor, "key.create", f"{tenant_id}/{secret.prefix}", detail, reason=reason)
    return key_id, secret.token


async def webhook_secret(conn: AsyncConnection, tenant_id: str, *, actor: str) -> str:
    """The secret that the tenant's webhooks are signed with. The look is audited.

    Raises:
        NotFound: there is no such tenant.
    """
    secret = await conn.scalar(select(tenants.c.webhook_secret).where(tenants.c.id == tenant_id))
    if secret is None:
        raise NotFound(f"there is no tenant {tenant_id!r}")
    await record_act(conn, actor, "webhook_secret.show", tenant_id, {})
    return str(secret)


async def rotate_webhook_secret(conn: AsyncConnection, tenant_id: str, *, overlap_s: float, actor: str) -> str:
    """Give the tenant a new secret for webhooks to jobs' own URLs; return it. For `overlap_s` both sign. Audited.

    Raises:
        NotFound: there is no such tenant.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    overlaps = overlap_s > 0
    until = func.statement_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, overlap_s)
    changed = await conn.execute(
        update(tenants)
        .where(tenants.c.id == tenant_id)
        .values(
            webhook_secret=secret,
            old_webhook_secret=tenants.c.webhook_secret if overlaps else None,
            old_webhook_until=until if overlaps else None,
        )
    )
    if changed.rowcount == 0:
        raise NotFound(f"there is no tenant {tenant_id!r}")
    await record_act(conn, actor, "webhook_secret.rotate", tenant_id, {"overlap_s": overlap_s})
    return secret


async def authenticate(conn: AsyncConnection, token: str, *, pepper: str) -> ApiKey:
    """The key behind a token, with the limits of key and tenant.

    Raises:
        Unauthenticated: it is malformed, unknown, expired or revoked; the message doesn't say which, but for expiry.
    """
    parts = token.split("_", 2)
    refused = Unauthenticated("the API key isn't valid: check it, or have a new one made")
    if len(parts) != 3 or parts[0] != "pk" or len(parts[1]) != _PREFIX_HEX or not token.isascii():
        raise refused
    digest, prefix = _digest(token, pepper), api_keys.c.prefix == parts[1]
    # The secret before the last rotation counts until its time is over.
    old_prefix = and_(api_keys.c.old_prefix == parts[1], api_keys.c.old_until > text("statement_timestamp()"))
    found = await conn.execute(
        select(
            *_COLUMNS,
            case((prefix, api_keys.c.hash), else_=api_keys.c.old_hash).label("hash"),
            (api_keys.c.expires_at <= text("statement_timestamp()")).label("expired"),
            *LIMIT_COLUMNS,
            *RIGHT_COLUMNS,
        )
        .join_from(api_keys, tenants)
        .where(or_(prefix, old_prefix))
    )
    row = next((each for each in found if hmac.compare_digest(each.hash, digest)), None)
    if row is None or row.revoked_at is not None:
        raise refused
    if row.expired:
        raise Unauthenticated("the API key has expired: have a new one made")
    return replace(_key(row[: len(_COLUMNS)]), limits=read_limits(row), rights=read_rights(row))


_COLUMNS = [
    api_keys.c[name]
    for name in ("id", "tenant_id", "name", "prefix", "scopes", "created_at", "expires_at", "revoked_at")
]


def _key(row: Sequence[object]) -> ApiKey:
    values = list(row)
    values[4] = tuple(values[4])  # type: ignore[arg-type]
    return ApiKey(*values)  # type: ignore[arg-type]
