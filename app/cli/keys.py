"""`penstock keys ...`: who may enter. Directly on the database: whoever can reach that is the operator."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.cli.operating import NONE, document, in_transaction, print_fields, whole
from app.cli.tables import print_table, shown_time
from app.errors import NotFound
from app.quotas import key_acts, keys
from app.quotas.wanted import MAX_EXPIRY_S, KeyChange, KeyRotation, KeyWanted, Rates, checked
from app.settings import Settings

_PAGE = 500
_COLUMNS = ("prefix", "tenant", "name", "scopes", "created", "expires", "state", "old secret")


def create(settings: Settings, tenant: str, options: dict[str, Any], *, expires_days: float | None) -> None:
    """Make a key and print its token, the only time, on standard output; the tenant, too, if it is new.

    Raises:
        InvalidRequest: an option is out of its bounds.
    """
    given = _given(options)
    if expires_days is not None:
        given["expires_in_s"] = round(expires_days * 86_400)
    wanted = checked(KeyWanted, given)
    pepper = settings.key_pepper.get_secret_value()

    async def act(conn: Any) -> tuple[bool, key_acts.FreshKey]:
        is_new = await keys.ensure_tenant(conn, tenant, actor=actor())
        return is_new, await key_acts.make_key(conn, tenant, wanted, pepper=pepper, actor=actor())

    is_new, fresh = in_transaction(settings, act)
    if is_new:
        print(f"tenant {tenant} was new: it is made", file=sys.stderr)
    _hand_over(fresh)


def webhook_secret(settings: Settings, tenant: str) -> None:
    """Print the secret that verifies the tenant's webhooks, on standard output.

    Raises:
        NotFound: there is no such tenant.
    """
    print(in_transaction(settings, lambda conn: keys.webhook_secret(conn, tenant, actor=actor())))


def rotate_webhook_secret(settings: Settings, tenant: str, *, overlap_s: float) -> None:
    """Give the tenant a new secret for webhooks to jobs' own URLs and print it.

    Raises:
        NotFound: there is no such tenant.
    """
    print(
        in_transaction(
            settings, lambda conn: keys.rotate_webhook_secret(conn, tenant, overlap_s=overlap_s, actor=actor())
        )
    )


def show(settings: Settings, tenant: str | None, *, as_json: bool = False) -> None:
    """Print the keys, oldest first, without their secrets."""

    async def act(conn: Any) -> list[key_acts.KeyView]:
        found: list[key_acts.KeyView] = []
        while page := await key_acts.list_keys(conn, tenant, limit=_PAGE, after=found[-1].id if found else None):
            found += page
        return found

    found = in_transaction(settings, act)
    if as_json:
        for each in found:
            print(document(each))
        return
    rows = [
        (
            each.prefix, each.tenant_id, each.name, ",".join(each.scopes), shown_time(each.created_at),
            shown_time(each.expires_at, "never"), each.state,
            f"{each.old_prefix} until {shown_time(each.old_until, '-')}" if each.old_prefix else "-",
        )
        for each in found
    ]  # fmt: skip
    print_table(_COLUMNS, rows, nothing="no keys: `penstock keys create TENANT` makes one")


def change(settings: Settings, prefix: str, options: dict[str, Any], *, expires_days: str | None) -> None:
    """Change what is given of a valid key; print the key. The whole token is taken for its prefix.

    Raises:
        CommandFailed: there is no such key, or an option is no number.
        KeyEnded: it was revoked, or has expired.
        InvalidRequest: nothing is given, or an option is out of its bounds.
    """
    given = _given(options)
    if expires_days is not None:
        given["expires_at"] = _in_days(expires_days)
    wanted = checked(KeyChange, given)
    try:
        key = in_transaction(settings, lambda conn: key_acts.change_key(conn, _prefix(prefix), wanted, actor=actor()))
    except NotFound:
        raise _no_such(prefix) from None
    print_fields(key)


def rotate(settings: Settings, prefix: str, *, overlap_hours: float | None, expires_days: float | None) -> None:
    """Give a key a new secret and print its token, the only time. The whole token is taken for its prefix.

    Raises:
        CommandFailed: there is no such key.
        KeyEnded: it isn't valid, or was rotated before.
        InvalidRequest: an option is out of its bounds.
    """
    given = {} if overlap_hours is None else {"overlap_s": round(overlap_hours * 3600)}
    given |= {} if expires_days is None else {"expires_in_s": round(expires_days * 86_400)}
    rotation = checked(KeyRotation, given)
    pepper = settings.key_pepper.get_secret_value()
    try:
        fresh = in_transaction(
            settings, lambda conn: key_acts.rotate_key(conn, _prefix(prefix), rotation, pepper=pepper, actor=actor())
        )
    except NotFound:
        raise _no_such(prefix) from None
    until = f"valid until {shown_time(fresh.key.old_until, '-')}" if fresh.key.old_until else "void"
    print(f"the secret before is {until}", file=sys.stderr)
    _hand_over(fresh)


def revoke(settings: Settings, prefix: str) -> None:
    """Make a key invalid at once. The whole token is taken for its prefix.

    Raises:
        CommandFailed: there is no such key.
    """
    try:
        key = in_transaction(settings, lambda conn: key_acts.revoke_key(conn, _prefix(prefix), actor=actor()))
    except NotFound:
        raise _no_such(prefix) from None
    print(f"{key.prefix} is revoked")


def _hand_over(fresh: key_acts.FreshKey) -> None:
    print("keep it, it isn't shown again:", file=sys.stderr, flush=True)
    print(fresh.token)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was said of a key's fields."""
    given = {name: value for name, value in options.items() if value is not None}
    return given | {
        name: whole(f"--{name.replace('_', '-')}", given[name]) for name in Rates.model_fields if name in given
    }


def _in_days(given: str) -> datetime | None:
    if given.lower() == NONE:
        return None
    try:
        days = float(given)
    except ValueError:
        days = 0.0
    if not 0 < days * 86_400 <= MAX_EXPIRY_S:
        raise CommandFailed(
            f"--expires-days: must be more than 0 and at most {MAX_EXPIRY_S // 86_400}, or {NONE} for never"
        )
    return datetime.now(UTC) + timedelta(days=days)


def _prefix(given: str) -> str:
    parts = given.split("_")
    return parts[1] if len(parts) > 1 and parts[0] == "pk" else given


def _no_such(given: str) -> CommandFailed:
    return CommandFailed(f"there is no key with the prefix {_prefix(given)}: `penstock keys list` shows all")
