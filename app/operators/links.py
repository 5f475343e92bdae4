"""How does an operator get in who has no password? By a link that works once, for a quarter of an hour."""

import secrets

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidRequest
from app.operators.people import BEFORE_A_ROW, Person, find_person
from app.operators.sessions import digest
from app.operators.tables import operator_links, operators
from app.quotas.acts import record_act

VALID_S = 900
_l = operator_links.c


async def make_link(conn: AsyncConnection, person: Person, *, actor: str) -> str:
    """A token with which the operator's password can be chosen, once, within `VALID_S`. Those made before end.

    Raises:
        InvalidRequest: the operator is disabled.
    """
    if person.disabled_at is not None:
        raise InvalidRequest(f"name: the operator {person.name!r} is disabled: enable them first", param="name")
    token = secrets.token_urlsafe(32)
    await conn.execute(delete(operator_links).where(_l.operator_id == person.id, _l.used_at.is_(None)))
    await conn.execute(
        insert(operator_links).values(
            token_hash=digest(token),
            operator_id=person.id,
            expires_at=text("statement_timestamp() + make_interval(secs => :valid)").bindparams(valid=VALID_S),
        )
    )
    await record_act(conn, actor, "operator.link", person.name, {"valid_s": VALID_S})
    return token


async def whose_link(conn: AsyncConnection, token: str) -> Person | None:
    """The operator of a link that can still be used; looking uses nothing up."""
    return await whose_link_by_hash(conn, digest(token))


async def whose_link_by_hash(conn: AsyncConnection, link_hash: bytes) -> Person | None:
    """As `whose_link`, for who kept the token's digest."""
    name = await conn.scalar(
        select(operators.c.name)
        .join_from(operator_links, operators)
        .where(
            _l.token_hash == link_hash, _l.used_at.is_(None), _l.expires_at > func.statement_timestamp(),
            operators.c.disabled_at.is_(None),
        )
    )  # fmt: skip
    return await find_person(conn, name) if name else None


async def use_link(conn: AsyncConnection, token: str) -> Person | None:
    """The operator of the link, which can't be used again once the caller's transaction commits; None where it can't be used."""
    return await use_link_by_hash(conn, digest(token))


async def use_link_by_hash(conn: AsyncConnection, link_hash: bytes) -> Person | None:
    """As `use_link`, for who kept the token's digest."""
    await conn.execute(BEFORE_A_ROW)
    person = await whose_link_by_hash(conn, link_hash)
    used = await conn.execute(
        operator_links.update()
        .where(_l.token_hash == link_hash, _l.used_at.is_(None), _l.expires_at > func.statement_timestamp())
        .values(used_at=func.statement_timestamp())
    )
    return person if used.rowcount else None
