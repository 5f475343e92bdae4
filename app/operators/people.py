"""Who are the operators? Made, listed, given a role, disabled; each act is written down, and ends their sessions where it must."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import AlreadyExists, InvalidRequest, NotFound
from app.ids import new_id
from app.operators.roles import ROLES, Role
from app.operators.tables import operator_identities, operator_links, operator_sessions, operators
from app.quotas.acts import record_act

FIRST_OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Person:
    """An operator, without their secret."""

    id: UUID
    name: str
    role: Role
    has_password: bool
    has_identity: bool  # an OIDC provider knows them
    created_at: datetime
    logged_in_at: datetime | None
    disabled_at: datetime | None


# Who changes roles, or comes by OIDC, has all operators to themselves; who only writes one's row waits for that before locking anything.
ALL_OPERATORS = text("LOCK TABLE operators IN SHARE ROW EXCLUSIVE MODE")
BEFORE_A_ROW = text("LOCK TABLE operators IN ROW EXCLUSIVE MODE")
_o = operators.c
_HAS_IDENTITY = exists().where(operator_identities.c.operator_id == _o.id)
_COLUMNS = (
    _o.id, _o.name, _o.role, _o.password_hash.is_not(None), _HAS_IDENTITY, _o.created_at, _o.logged_in_at, _o.disabled_at,
)  # fmt: skip


async def create_person(conn: AsyncConnection, name: str, role: str, *, actor: str) -> Person:
    """Make an operator, who has no password yet: a link lets them choose one.

    Raises:
        InvalidRequest: the name or the role can't be one.
        AlreadyExists: there is one of this name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._@-]{0,62}", name):
        raise InvalidRequest("name: use 1 to 63 of a-z, 0-9 and ._@-, beginning with a letter or digit", param="name")
    checked_role = _role(role)
    if await find_person(conn, name) is not None:
        raise AlreadyExists(f"name: there is an operator {name!r} already", param="name")
    await conn.execute(insert(operators).values(id=new_id(), name=name, role=checked_role))
    await record_act(conn, actor, "operator.create", name, {"role": checked_role})
    return await read_person(conn, name)


async def ensure_owner(conn: AsyncConnection, *, actor: str, passwords: bool = True) -> Person | None:
    """The first owner, made where there is nobody; None where somebody can log in already: by password, if there are `passwords`, or by OIDC."""
    await conn.execute(ALL_OPERATORS)
    found = await list_people(conn)
    if any(((each.has_password and passwords) or each.has_identity) and each.disabled_at is None for each in found):
        return None
    owner = next((each for each in found if each.role == "owner" and each.disabled_at is None), None)
    return owner or await create_person(conn, FIRST_OWNER, "owner", actor=actor)


async def list_people(conn: AsyncConnection) -> list[Person]:
    """All operators, by name; there are few."""
    return [Person(*row) for row in await conn.execute(select(*_COLUMNS).order_by(_o.name).limit(1000))]


async def find_person(conn: AsyncConnection, name: str) -> Person | None:
    """The operator of this name, if there is one."""
    row = (await conn.execute(select(*_COLUMNS).where(_o.name == name))).one_or_none()
    return Person(*row) if row else None


async def read_person(conn: AsyncConnection, name: str) -> Person:
    """The operator of this name.

    Raises:
        NotFound: there is none.
    """
    found = await find_person(conn, name)
    if found is None:
        raise NotFound(f"there is no operator {name!r}")
    return found


async def change_role(conn: AsyncConnection, name: str, role: str, *, actor: str) -> Person:
    """Give another role; they must log in again.

    Raises:
        NotFound: there is none of this name.
        InvalidRequest: there is no such role, or nobody else is an owner.
    """
    before, wanted = await _locked(conn, name), _role(role)
    if before.role == wanted:
        return before
    await _keep_an_owner(conn, before)
    await conn.execute(update(operators).where(_o.id == before.id).values(role=wanted))
    await end_sessions(conn, before.id)
    await record_act(conn, actor, "operator.role", name, {"role": [before.role, wanted]})
    return await read_person(conn, name)


async def disable_person(conn: AsyncConnection, name: str, *, actor: str) -> Person:
    """Let them in no more, from now on. Again changes nothing.

    Raises:
        NotFound: there is none of this name.
        InvalidRequest: nobody else is an owner.
    """
    before = await _locked(conn, name)
    if before.disabled_at is not None:
        return before
    await _keep_an_owner(conn, before)
    await conn.execute(update(operators).where(_o.id == before.id).values(disabled_at=func.statement_timestamp()))
    await end_sessions(conn, before.id)
    await conn.execute(delete(operator_links).where(operator_links.c.operator_id == before.id))
    await record_act(conn, actor, "operator.disable", name, {})
    return await read_person(conn, name)


async def enable_person(conn: AsyncConnection, name: str, *, actor: str) -> Person:
    """Let them in again, with the password that they had. Again changes nothing.

    Raises:
        NotFound: there is none of this name.
    """
    before = await _locked(conn, name)
    if before.disabled_at is None:
        return before
    await conn.execute(update(operators).where(_o.id == before.id).values(disabled_at=None))
    await record_act(conn, actor, "operator.enable", name, {})
    return await read_person(conn, name)


async def set_password(conn: AsyncConnection, person_id: UUID, password_hash: str, *, actor: str) -> None:
    """Write a new password's hash; every session and every open link of theirs ends."""
    name = await conn.scalar(
        update(operators).where(_o.id == person_id).values(password_hash=password_hash).returning(_o.name)
    )
    await end_sessions(conn, person_id)
    await conn.execute(
        delete(operator_links).where(operator_links.c.operator_id == person_id, operator_links.c.used_at.is_(None))
    )
    await record_act(conn, actor, "operator.password", str(name), {})


async def end_sessions(conn: AsyncConnection, person_id: UUID) -> int:
    """Log them out everywhere; return of how many sessions."""
    ended = await conn.execute(delete(operator_sessions).where(operator_sessions.c.operator_id == person_id))
    return int(ended.rowcount)


async def _locked(conn: AsyncConnection, name: str) -> Person:
    # All of them: so two owners can't take each other's role away at once.
    await conn.execute(ALL_OPERATORS)
    return await read_person(conn, name)


async def _keep_an_owner(conn: AsyncConnection, person: Person) -> None:
    others: Any = await conn.scalar(
        select(func.count()).where(_o.role == "owner", _o.disabled_at.is_(None), _o.id != person.id)
    )
    if person.role == "owner" and not others:
        raise InvalidRequest("role: this is the only owner: make another one first", param="role")


def _role(role: str) -> Role:
    for each in ROLES:
        if each == role:
            return each
    raise InvalidRequest(f"role: must be one of {', '.join(ROLES)}", param="role")
