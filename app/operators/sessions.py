"""Who is logged in? A random token in the browser's cookie, its hash in Postgres, an end that comes by idleness or by time."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.operators.people import BEFORE_A_ROW, Person, find_person
from app.operators.roles import Role
from app.operators.tables import operator_sessions, operators
from app.quotas.acts import record_act

_SEEN_EVERY_S = 60  # how exact idleness is: a page doesn't cost a write
_s = operator_sessions.c


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in of an operator. `csrf` goes into its forms and comes back with each act."""

    person_id: UUID
    name: str
    role: Role
    csrf: str
    expires_at: datetime

    @property
    def actor(self) -> str:
        """What the log of acts calls them."""
        return f"operator:{self.name}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An operator and the hash of their password: for `passwords.is_right`, outside of any transaction."""

    person: Person | None
    password_hash: str | None


async def open_session(conn: AsyncConnection, person: Person, *, longest_s: float, by: str) -> str:
    """Log the operator in; return the token for the cookie, which is kept nowhere. `by`: password or link."""
    token = secrets.token_urlsafe(32)
    await conn.execute(delete(operator_sessions).where(_s.expires_at < func.statement_timestamp()))
    await conn.execute(
        insert(operator_sessions).values(
            token_hash=digest(token),
            operator_id=person.id,
            expires_at=text("statement_timestamp() + make_interval(secs => :longest)").bindparams(longest=longest_s),
        )
    )
    await conn.execute(
        update(operators).where(operators.c.id == person.id).values(logged_in_at=func.statement_timestamp())
    )
    await record_act(conn, f"operator:{person.name}", "operator.login", person.name, {"by": by})
    return token


async def read_session(conn: AsyncConnection, token: str, *, idle_s: float, is_act: bool) -> Session | None:
    """The session behind a cookie; None where it is none, has ended, or idled for `idle_s`.

    `is_act`: somebody did something, so that its idleness begins anew; a page that refreshes itself is nobody.
    """
    row = (
        await conn.execute(
            select(
                operators.c.id, operators.c.name, operators.c.role, _s.expires_at,
                (_s.seen_at < func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, _SEEN_EVERY_S)).label("is_stale"),
            )
            .join_from(operator_sessions, operators)
            .where(
                _s.token_hash == digest(token),
                _s.expires_at > func.statement_timestamp(),
                _s.seen_at > func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, idle_s),
                operators.c.disabled_at.is_(None),
            )
        )
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    if is_act and row.is_stale:
        await conn.execute(
            update(operator_sessions).where(_s.token_hash == digest(token)).values(seen_at=func.statement_timestamp())
        )
    return Session(row.id, row.name, row.role, csrf_of(token), row.expires_at)


async def close_session(conn: AsyncConnection, token: str) -> None:
    """Log out."""
    await conn.execute(delete(operator_sessions).where(_s.token_hash == digest(token)))


async def credentials_of(conn: AsyncConnection, name: str) -> Credentials:
    """What there is to compare a log-in with; both None where nobody of this name may log in."""
    person = await find_person(conn, name)
    if person is None or person.disabled_at is not None:
        return Credentials(None, None)
    return Credentials(person, await conn.scalar(select(operators.c.password_hash).where(operators.c.id == person.id)))


async def still_holds(conn: AsyncConnection, known: Credentials) -> bool:
    """Whether the operator may log in yet, with the password that was compared; locks them until the transaction's end.

    To be asked first where something is made of the comparison: while it ran, the password may have been changed, and every session
    ended. The table comes before the row, as everywhere: whoever has all of it, and wants this row, would wait for us, and we for them.
    """
    if known.person is None or known.password_hash is None:
        return False
    await conn.execute(BEFORE_A_ROW)
    now = await conn.execute(
        select(operators.c.password_hash, operators.c.disabled_at)
        .where(operators.c.id == known.person.id)
        .with_for_update()
    )
    row = now.one_or_none()
    return row is not None and row.disabled_at is None and row.password_hash == known.password_hash


def digest(token: str) -> bytes:
    """What is stored of a token: it is random, so that a fast hash will do."""
    return hashlib.sha256(token.encode()).digest()


def csrf_of(token: str) -> str:
    """The session's secret against forged requests: computed, so that there is nothing more to keep."""
    return hmac.new(token.encode(), b"penstock csrf", hashlib.sha256).hexdigest()
