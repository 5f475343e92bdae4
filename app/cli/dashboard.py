"""`penstock dashboard ...`: the way in for operators. Directly on the database: whoever can reach that may let people in."""

from typing import Any
from urllib.parse import urlsplit

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.cli.folder import DataFolder
from app.cli.operating import in_transaction
from app.cli.stack import base_url
from app.cli.tables import print_table, shown_time
from app.operators import links, people
from app.operators.addresses import is_local
from app.settings import Settings

# The API listens for others, in a container or a network, and nobody said where those find it.
_ELSEWHERE = (
    "Open it where port {port} is forwarded to 127.0.0.1 (Compose does; kubectl port-forward; ssh -L). From elsewhere browsers keep no "
    "session but over https: serve it so, and set PENSTOCK_DASHBOARD_URL to the address that they open."
)


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
    url = link_url(settings, token)
    print(f"{url}\n\nFor {person.name}, {person.role}. It works once, for {links.VALID_S // 60} minutes.")
    if settings.dashboard_url is None and not is_local(settings.api_host):
        print(_ELSEWHERE.format(port=urlsplit(url).port))


def operators(settings: Settings) -> None:
    """Print who may use the dashboard."""
    rows = [
        (
            each.name, each.role,
            "disabled" if each.disabled_at else "active" if each.has_password or each.has_identity else "no password yet",
            shown_time(each.logged_in_at, "never"),
        )
        for each in in_transaction(settings, people.list_people)
    ]  # fmt: skip
    print_table(
        ("operator", "role", "state", "last log-in"), rows, nothing="nobody: `penstock dashboard link` makes the owner"
    )


def link_url(settings: Settings, token: str) -> str:
    """The whole address of a one-time link: where browsers find the API, or else whoever is on its machine."""
    base = settings.dashboard_url or DataFolder(settings.data_dir).url or base_url(settings)
    return f"{base.rstrip('/')}/admin/link/{token}"
