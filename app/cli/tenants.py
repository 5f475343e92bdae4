"""`penstock tenants ...`: who there is and what they may have. Directly on the database: whoever can reach that is the operator."""

from typing import Any

from app.cli.actor import actor
from app.cli.operating import document, in_transaction, print_fields, whole
from app.cli.tables import print_table, shown_time
from app.quotas import tenants
from app.quotas.wanted import Because, TenantChange, TenantWanted, checked
from app.settings import Settings

_PAGE = 500
_COLUMNS = (
    "tenant", "weight", "tiers", "max running", "max queued", "max queued tokens", "requests/min", "tokens/min", "state",
)  # fmt: skip


def show_all(settings: Settings, state: tenants.State, *, as_json: bool) -> None:
    """Print the tenants, by id."""

    async def act(conn: Any) -> list[tenants.Tenant]:
        found: list[tenants.Tenant] = []
        while page := await tenants.list_tenants(conn, limit=_PAGE, after=found[-1].id if found else None, state=state):
            found += page
        return found

    found = in_transaction(settings, act)
    if as_json:
        for each in found:
            print(document(each))
        return
    rows = [
        (
            each.id, each.weight, ",".join(each.tiers), each.max_running_jobs, each.max_queued_jobs,
            each.max_queued_tokens, each.requests_per_minute, each.tokens_per_minute,
            "suspended" if each.suspended_at else "active",
        )
        for each in found
    ]  # fmt: skip
    print_table(_COLUMNS, rows, nothing="no tenants: `penstock tenants create ID` makes one")


def show(settings: Settings, tenant_id: str, *, as_json: bool) -> None:
    """Print all that is known of a tenant.

    Raises:
        NotFound: there is no such tenant.
    """
    found = in_transaction(settings, lambda conn: tenants.read_tenant(conn, tenant_id))
    if as_json:
        print(document(found))
    else:
        print_fields(found)


def create(settings: Settings, tenant_id: str, options: dict[str, Any]) -> None:
    """Make a tenant.

    Raises:
        AlreadyExists: there is one of this id.
        InvalidRequest: an option is out of its bounds.
    """
    wanted = checked(TenantWanted, {"id": tenant_id} | _values(options))
    in_transaction(settings, lambda conn: tenants.create_tenant(conn, wanted, actor=actor()))
    print(f"{tenant_id} is made: `penstock keys create {tenant_id}` makes it a key")


def change(settings: Settings, tenant_id: str, options: dict[str, Any]) -> None:
    """Change what is given; print the tenant.

    Raises:
        NotFound: there is no such tenant.
        InvalidRequest: nothing is given, or an option is out of its bounds.
    """
    wanted = checked(TenantChange, _values(options))
    print_fields(in_transaction(settings, lambda conn: tenants.change_tenant(conn, tenant_id, wanted, actor=actor())))


def suspend(settings: Settings, tenant_id: str, reason: str) -> None:
    """Take no new jobs of the tenant.

    Raises:
        NotFound: there is no such tenant.
    """
    why = checked(Because, {"reason": reason}).reason
    found = in_transaction(settings, lambda conn: tenants.suspend_tenant(conn, tenant_id, actor=actor(), reason=why))
    print(f"{found.id} is suspended since {shown_time(found.suspended_at, '')}: accepted jobs run on")


def resume(settings: Settings, tenant_id: str, reason: str) -> None:
    """Take its jobs again.

    Raises:
        NotFound: there is no such tenant.
    """
    why = checked(Because, {"reason": reason}).reason
    found = in_transaction(settings, lambda conn: tenants.resume_tenant(conn, tenant_id, actor=actor(), reason=why))
    print(f"{found.id} is active")


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, as fields: limits are numbers or `none`."""
    given = {name: value for name, value in options.items() if value is not None and value != []}
    texts = {"display_name", "tiers", "bill_shared", "weight"}
    return {
        name: value if name in texts else whole(f"--{name.replace('_', '-')}", value) for name, value in given.items()
    }
