"""Which log-ins are at the OIDC provider? A random token in the browser's cookie, its hash in Postgres, used up at the return."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.operators.sessions import digest
from app.operators.tables import oidc_flows

VALID_S = 600
MOST_OF_NETWORK = (
    50  # the oldest make room: who opens log-ins by the thousand fills nothing, and closes nobody's but their own
)
_f = oidc_flows.c


@dataclass(frozen=True, slots=True)
class Secrets:
    """What binds the provider's answer to the browser that asked: all computed from its token, so that nothing more is kept."""

    state: str
    nonce: str
    verifier: str  # RFC 7636, 4.1: 43 characters


@dataclass(frozen=True, slots=True)
class Flow:
    """A log-in that has come back. `link_hash`: of the one-time link whose operator it is for."""

    next: str
    link_hash: bytes | None


def secrets_of(token: str) -> Secrets:
    """Those of the log-in with this token."""
    return Secrets(*(_derived(token, use) for use in ("state", "nonce", "verifier")))


def is_state(token: str, state: str) -> bool:
    """Whether the answer is to the log-in that this browser began."""
    return hmac.compare_digest(secrets_of(token).state.encode(), state.encode())


async def begin_flow(conn: AsyncConnection, *, network: str, to: str, link_hash: bytes | None) -> str:
    """Write a log-in down that is sent to the provider; return the token for the cookie, which is kept nowhere."""
    token = secrets.token_urlsafe(32)
    await conn.execute(delete(oidc_flows).where(_f.expires_at < func.statement_timestamp()))
    kept = select(_f.token_hash).where(_f.network == network).order_by(_f.expires_at.desc()).limit(MOST_OF_NETWORK - 1)
    await conn.execute(delete(oidc_flows).where(_f.network == network, _f.token_hash.not_in(kept)))
    await conn.execute(
        insert(oidc_flows).values(
            token_hash=digest(token),
            network=network,
            next=to,
            link_hash=link_hash,
            expires_at=text("statement_timestamp() + make_interval(secs => :valid)").bindparams(valid=VALID_S),
        )
    )
    return token


async def end_flow(conn: AsyncConnection, token: str) -> Flow | None:
    """The log-in, which is used up once the caller's transaction commits; None where there is none, or it is too old."""
    row = (
        await conn.execute(
            delete(oidc_flows)
            .where(_f.token_hash == digest(token), _f.expires_at > func.statement_timestamp())
            .returning(_f.next, _f.link_hash)
        )
    ).one_or_none()
    return Flow(row.next, row.link_hash) if row else None


def _derived(token: str, use: str) -> str:
    mac = hmac.new(token.encode(), f"penstock oidc {use}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
