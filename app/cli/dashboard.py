"""`penstock dashboard ...`: the way in for operators. Directly on the database: whoever can reach that may let people in."""

from typing import Any

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.cli.folder import DataFolder
from app.cli.operating import in_transaction
from app.cli.tables import print_table, shown_time
from app.operators import links, people
from app.settings import Settings


def link(settings: Settings, name: str | None, role: str | None) -> None:
    """Print a one-time link with which the operator chooses a password; `role` makes one who isn't there.

    Raises:
        CommandFailed: no such operator, and no role to make one with.
        InvalidRequest: name or role can't be one, or the operator is disabled.
    """

    async def act(conn: Any) -> tuple[people.Person, str]:
        wanted = name or people.FIRST_OWNER
        person = await people.find_person(conn, wanted)
        if person is None:
            chosen = role or (None if name else "owner")
            if chosen is None:
                raise CommandFailed(f"there is no operator {wanted!r}: --role makes one, as viewer, operator or owner")
            person = await people.create_person(conn, wanted, chosen, actor=actor())
        return person, await links.make_link(conn, person, actor=actor())

    person, token = in_transaction(settings, act)
    print(
        f"{link_url(settings, token)}\n\nFor {person.name}, {person.role}. It works once, for {links.VALID_S // 60} minutes."
    )


def operators(settings: Settings) -> None:
    """Print who may use the dashboard."""
    rows = [
        (
            each.name, each.role,
            "disabled" if each.disabled_at else "active" if each.has_password else "no password yet",
            shown_time(each.logged_in_at, "never"),
        )
        for each in in_transaction(settings, people.list_people)
    ]  # fmt: skip
    print_table(
        ("operator", "role", "state", "last log-in"), rows, nothing="nobody: `penstock dashboard link` makes the owner"
    )


def link_url(settings: Settings, token: str, url: str | None = None) -> str:
    """The whole address of a one-time link; `url` is where the API of a running stack is."""
    base = settings.dashboard_url or url or DataFolder(settings.data_dir).url
    return f"{(base or f'http://{settings.api_host}:{settings.api_port}').rstrip('/')}/admin/link/{token}"
