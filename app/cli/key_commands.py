"""Which commands are there for API keys? Their names and options; the work is in a module that is loaded when it is done."""

from enum import StrEnum
from typing import Annotated

import typer

from app.cli.configured import settings_of
from app.cli.options import DataDir

commands = typer.Typer(help="Make, list, rotate and revoke API keys, directly on the database.", no_args_is_help=True)

ExpiresDays = Annotated[float | None, typer.Option("--expires-days", min=0, help="Never, if left out.")]
RequestsPerMinute = Annotated[str | None, typer.Option("--requests-per-minute", help="Of this key.")]
RequestBurst = Annotated[str | None, typer.Option("--request-burst", help="So many at once.")]
TokensPerMinute = Annotated[str | None, typer.Option("--tokens-per-minute", help="Of this key.")]
TokenBurst = Annotated[str | None, typer.Option("--token-burst", help="So many at once.")]


class Scope(StrEnum):
    """What a key may be used for."""

    READ = "jobs:read"
    WRITE = "jobs:write"
    ADMIN = "admin"


@commands.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(help="It is made if it doesn't exist.")],
    name: Annotated[str, typer.Option("--name", help="For your own memory.")] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="May be given often.  [default: jobs:read, jobs:write]")
    ] = None,
    expires_days: ExpiresDays = None,
    requests_per_minute: RequestsPerMinute = None,
    request_burst: RequestBurst = None,
    tokens_per_minute: TokensPerMinute = None,
    token_burst: TokenBurst = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, the only time."""
    from app.cli import keys

    options = {
        "name": name, "scopes": [each.value for each in scope or [Scope.READ, Scope.WRITE]],
        "requests_per_minute": requests_per_minute, "request_burst": request_burst,
        "tokens_per_minute": tokens_per_minute, "token_burst": token_burst,
    }  # fmt: skip
    keys.create(settings_of(data_dir), tenant, options, expires_days=expires_days)


@commands.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this one's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List keys, without their secrets."""
    from app.cli import keys

    keys.show(settings_of(data_dir), tenant, as_json=as_json)


@commands.command("set")
def change_key(
    prefix: Annotated[str, typer.Argument(help="As `keys list` shows it, or the whole key.")],
    name: Annotated[str | None, typer.Option("--name", help="For your own memory.")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="May be given often: all that it shall have.")
    ] = None,
    expires_days: Annotated[str | None, typer.Option("--expires-days", help="From now on; none: never.")] = None,
    requests_per_minute: RequestsPerMinute = None,
    request_burst: RequestBurst = None,
    tokens_per_minute: TokensPerMinute = None,
    token_burst: TokenBurst = None,
    data_dir: DataDir = None,
) -> None:
    """Change what is given of a valid key; its secrets, and the rest, stay. `none` takes a limit or the expiry away."""
    from app.cli import keys

    options = {
        "name": name, "scopes": [each.value for each in scope] if scope else None,
        "requests_per_minute": requests_per_minute, "request_burst": request_burst,
        "tokens_per_minute": tokens_per_minute, "token_burst": token_burst,
    }  # fmt: skip
    keys.change(settings_of(data_dir), prefix, options, expires_days=expires_days)


@commands.command("rotate")
def rotate_key(
    prefix: Annotated[str, typer.Argument(help="As `keys list` shows it, or the whole key.")],
    overlap_hours: Annotated[
        float | None,
        typer.Option("--overlap-hours", min=0, help="How long the secret before stays valid.  [default: 24]"),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", min=0, help="From now on; as before, if left out.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key a new secret and print it, the only time; budgets, rates and scopes stay."""
    from app.cli import keys

    keys.rotate(settings_of(data_dir), prefix, overlap_hours=overlap_hours, expires_days=expires_days)


@commands.command("webhook-secret")
def show_webhook_secret(
    tenant: Annotated[str, typer.Argument(help="Whose webhooks the secret verifies.")], data_dir: DataDir = None
) -> None:
    """Show the secret that a tenant's webhooks are signed with (Standard Webhooks); the look is audited."""
    from app.cli import keys

    keys.webhook_secret(settings_of(data_dir), tenant)


@commands.command("rotate-webhook-secret")
def rotate_webhook_secret(
    tenant: Annotated[str, typer.Argument(help="Whose webhooks it signs.")],
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", min=0, max=720, help="So long both secrets sign.")
    ] = 24.0,
    data_dir: DataDir = None,
) -> None:
    """Give a tenant a new secret for webhooks to jobs' own URLs, and print it; audited."""
    from app.cli import keys

    keys.rotate_webhook_secret(settings_of(data_dir), tenant, overlap_s=overlap_hours * 3600)


@commands.command("revoke")
def revoke_key(
    prefix: Annotated[str, typer.Argument(help="As `keys list` shows it, or the whole key.")], data_dir: DataDir = None
) -> None:
    """Make a key invalid: an API that has just seen it believes it for 5 more seconds."""
    from app.cli import keys

    keys.revoke(settings_of(data_dir), prefix)
