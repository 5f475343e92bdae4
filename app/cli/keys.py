"""`penstock keys ...`: who may enter. Directly on the database: whoever can reach that is the operator."""

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.db import create_engine
from app.quotas import keys
from app.settings import Settings


def create(settings: Settings, tenant: str, *, name: str, scopes: Sequence[str], expires_days: float | None) -> None:
    """Make a key and print its token, the only time, on standard output."""
    asyncio.run(_create(settings, tenant, name, scopes, expires_days))


async def _create(
    settings: Settings, tenant: str, name: str, scopes: Sequence[str], expires_days: float | None
) -> None:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        async with db.begin() as conn:
            is_new = await keys.ensure_tenant(conn, tenant)
            _, token = await keys.create_key(
                conn,
                tenant,
                pepper=settings.key_pepper.get_secret_value(),
                name=name,
                scopes=scopes,
                expires_in_s=None if expires_days is None else expires_days * 86_400,
                actor=actor(),
            )
    finally:
        await db.dispose()
    if is_new:
        print(f"tenant {tenant} was new: it is made", file=sys.stderr)
    print("keep it, it isn't shown again:", file=sys.stderr, flush=True)
    print(token)


def webhook_secret(settings: Settings, tenant: str) -> None:
    """Print the secret that verifies the tenant's webhooks, on standard output.

    Raises:
        NotFound: there is no such tenant.
    """
    print(asyncio.run(_webhook_secret(settings, tenant)))


async def _webhook_secret(settings: Settings, tenant: str) -> str:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        async with db.begin() as conn:
            return await keys.webhook_secret(conn, tenant, actor=actor())
    finally:
        await db.dispose()


def show(settings: Settings, tenant: str | None) -> None:
    """Print the keys, oldest first, without their secrets."""
    found = asyncio.run(_list(settings, tenant))
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("prefix", "tenant", "name", "scopes", "created", "expires", "state"):
        table.add_column(column, no_wrap=True)
    for each in found:
        state = "revoked" if each.revoked_at else "valid"
        expires = f"{each.expires_at:%Y-%m-%d %H:%M}" if each.expires_at else "never"
        cells = (
            each.prefix,
            each.tenant_id,
            each.name,
            ",".join(each.scopes),
            f"{each.created_at:%Y-%m-%d %H:%M}",
            expires,
            state,
        )
        table.add_row(*cells)
        if not console.is_terminal:
            print("\t".join(cells))
    if console.is_terminal:
        console.print(table if found else "no keys: `penstock keys create TENANT` makes one", highlight=False)


async def _list(settings: Settings, tenant: str | None) -> list[keys.ApiKey]:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        async with db.connect() as conn:
            return await keys.list_keys(conn, tenant)
    finally:
        await db.dispose()


def revoke(settings: Settings, prefix: str) -> None:
    """Make a key invalid at once. The whole token is taken for its prefix.

    Raises:
        CommandFailed: there is no such key that is valid.
    """
    parts = prefix.split("_")
    prefix = parts[1] if len(parts) > 1 and parts[0] == "pk" else prefix
    if not asyncio.run(_revoke(settings, prefix)):
        raise CommandFailed(f"there is no valid key with the prefix {prefix}: `penstock keys list` shows all")
    print(f"{prefix} is revoked")


async def _revoke(settings: Settings, prefix: str) -> bool:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        async with db.begin() as conn:
            return await keys.revoke_key(conn, prefix, actor=actor())
    finally:
        await db.dispose()
