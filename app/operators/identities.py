"""Whom does the OIDC provider mean? A subject of an issuer is one operator, whatever their e-mail address or name there is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.operators.links import use_link_by_hash, whose_link_by_hash
from app.operators.people import ALL_OPERATORS, Person, create_person, end_sessions, find_person, read_person
from app.operators.roles import ROLES, Role
from app.operators.tables import operator_identities, operator_links, operators
from app.quotas.acts import record_act

ACTOR = "oidc"  # in the log of acts: what the provider's word brought about
_i = operator_identities.c
Claims = Mapping[str, Any]
Reason = Literal["unknown", "no_role", "disabled", "linked_elsewhere", "link_used_up"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """Who came from the provider: `person` may come in, or else `refused` says why not. `known` is whose account it would be."""

    person: Person | None = None
    refused: Reason | None = None
    known: str | None = None


def role_of(claims: Claims, *, claim: str, roles: Mapping[str, Role]) -> Role | None:
    """The highest role that one of the groups in this claim has; None where none has any.

    The claim's name is looked for as it is, then as a path into objects.
    """
    found: Any = claims.get(claim)
    if found is None:
        found = claims
        for part in claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    groups = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    given = [roles[each] for each in groups if isinstance(each, str) and each in roles]
    return max(given, key=ROLES.index, default=None)


async def arrive(
    conn: AsyncConnection, claims: Claims, *, role: Role | None, by_groups: bool, link_hash: bytes | None
) -> Arrival:
    """Find, link or make the operator of these claims, which were checked; to be committed whatever it says.

    `by_groups`: `role` is what their groups give them now, and holds: who has none is refused and logged out everywhere, and who is new
    is made. Otherwise roles are given here, and only a one-time link, by its `link_hash`, lets somebody new in. A link is used up.
    """
    issuer, subject = str(claims["iss"]), str(claims["sub"])
    await conn.execute(ALL_OPERATORS)  # two who come first at once are one
    person = await _known(conn, issuer, subject)
    known = person.name if person else None
    if by_groups and role is None:
        if person is not None:
            await end_sessions(conn, person.id)
            await conn.execute(delete(operator_links).where(operator_links.c.operator_id == person.id))
        return Arrival(refused="no_role", known=known)
    if person is not None and person.disabled_at is not None:
        return Arrival(refused="disabled", known=known)
    if link_hash is not None:
        linked = await whose_link_by_hash(conn, link_hash)
        if linked is not None and person is not None and person.id != linked.id:
            return Arrival(refused="linked_elsewhere", known=known)
        if linked is None or await use_link_by_hash(conn, link_hash) is None:
            return Arrival(refused="link_used_up", known=known)
        person = person or await _link(conn, linked, issuer, subject)
    if person is None:
        if role is None:
            return Arrival(refused="unknown")
        person = await _make(conn, claims, role, issuer, subject)
    if role is not None and role != person.role:
        person = await _change_role(conn, person, role)
    return Arrival(person, known=person.name)


async def unlink(conn: AsyncConnection, name: str, *, actor: str) -> None:
    """Let no provider's subject in as this operator any more, and log them out. Again changes nothing.

    Raises:
        NotFound: there is no such operator.
    """
    await conn.execute(ALL_OPERATORS)  # who is coming in by it just now is logged out, too
    person = await read_person(conn, name)
    gone = await conn.execute(delete(operator_identities).where(_i.operator_id == person.id))
    if gone.rowcount:
        await end_sessions(conn, person.id)
        await record_act(conn, actor, "operator.unlink", name, {})


async def _known(conn: AsyncConnection, issuer: str, subject: str) -> Person | None:
    name = await conn.scalar(
        select(operators.c.name)
        .join_from(operator_identities, operators)
        .where(_i.issuer == issuer, _i.subject == subject)
    )
    return await find_person(conn, name) if name else None


async def _link(conn: AsyncConnection, person: Person, issuer: str, subject: str) -> Person:
    """From now on the subject is this operator; who was so before no longer is, and every session of theirs ends."""
    await conn.execute(delete(operator_identities).where(_i.operator_id == person.id, _i.issuer == issuer))
    await end_sessions(conn, person.id)
    await conn.execute(insert(operator_identities).values(issuer=issuer, subject=subject, operator_id=person.id))
    await record_act(
        conn, f"operator:{person.name}", "operator.identity", person.name, {"issuer": issuer, "subject": subject}
    )
    return await read_person(conn, person.name)


async def _make(conn: AsyncConnection, claims: Claims, role: Role, issuer: str, subject: str) -> Person:
    person = await create_person(conn, await _free_name(conn, claims), role, actor=ACTOR)
    await conn.execute(insert(operator_identities).values(issuer=issuer, subject=subject, operator_id=person.id))
    await record_act(conn, ACTOR, "operator.identity", person.name, {"issuer": issuer, "subject": subject})
    return person


async def _free_name(conn: AsyncConnection, claims: Claims) -> str:
    """What they are called there, or like it: a name that is taken here is somebody else's."""
    for claim in ("preferred_username", "email", "name"):
        told = claims.get(claim)
        plain = re.sub(r"[^a-z0-9._@-]+", "-", told.lower()).strip("._@-")[:50] if isinstance(told, str) else ""
        if plain:
            break
    else:
        plain = "operator"
    name, number = plain, 1
    while await find_person(conn, name) is not None:
        number += 1
        name = f"{plain}-{number}"
    return name


async def _change_role(conn: AsyncConnection, person: Person, role: Role) -> Person:
    """Even of the last owner: the provider says that they are none, and who reaches the database can make another."""
    await conn.execute(update(operators).where(operators.c.id == person.id).values(role=role))
    await end_sessions(conn, person.id)
    await record_act(conn, ACTOR, "operator.role", person.name, {"role": [person.role, role]})
    return await read_person(conn, person.name)
