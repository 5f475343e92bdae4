"""Which commands are there for jobs that were given up? Their names and options; the work is in a module that is loaded when it is done."""

from typing import Annotated, Literal

import typer

from app.cli.configured import settings_of
from app.cli.options import DataDir

commands = typer.Typer(
    help="List, show, requeue and discard jobs that were given up, directly on the database.", no_args_is_help=True
)

Pool = Annotated[str | None, typer.Option("--pool", help="Only this pool's: it bears the name of its model.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
OfReason = Annotated[
    str | None, typer.Option("--of-reason", help="Only those that died of this, such as engine_crashes.")
]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", help="Only those of one kind, as `dlq list` shows it.")
]
LetterIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Jobs.", show_default=False)]


@commands.command("list")
def list_dead(
    pool: Pool = None,
    tenant: OfTenant = None,
    reason: OfReason = None,
    fingerprint: Fingerprint = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only those that died before that, such as 2h.")
    ] = None,
    newer_than: Annotated[
        str | None, typer.Option("--newer-than", metavar="AGE", help="Only those that died since then, such as 15m.")
    ] = None,
    state: Annotated[
        Literal["open", "requeued", "discarded", "any"], typer.Option("--state", help="What became of them.")
    ] = "open",
    groups: Annotated[bool, typer.Option("--groups", help="Group them by fingerprint, the largest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most lines.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs that were given up, newest first."""
    from app.cli import dlq
    from app.jobs.dead.read import LetterFilter

    wanted = LetterFilter(state, pool, tenant, reason, fingerprint)
    dlq.list_dead(
        settings_of(data_dir), wanted, older_than=older_than, newer_than=newer_than, limit=limit, groups=groups,
        as_json=as_json,
    )  # fmt: skip


@commands.command("show")
def show_dead(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Also the prompt and what was written; the look is audited.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show the evidence: error, attempts with what each left behind, earlier lives."""
    from app.cli import dlq

    dlq.show_dead(settings_of(data_dir), job_id, prompts=prompts, as_json=as_json)


@commands.command("requeue")
def requeue_dead(
    job_ids: LetterIds = None,
    pool: Pool = None,
    tenant: OfTenant = None,
    of_reason: OfReason = None,
    fingerprint: Fingerprint = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log of acts.")] = "requeued by hand",
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, max=10_000, help="At most so many a second.")
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change one job's parameters in $EDITOR first.")] = False,
    deadline_s: Annotated[
        float | None,
        typer.Option("--deadline-s", min=0.001, max=31_536_000, help="A new deadline, from the requeue on."),
    ] = None,
    clear_deadline: Annotated[
        bool, typer.Option("--clear-deadline", help="No deadline any more; else the first one's span begins anew.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Send jobs back into the queue, by ids or by group; budgets are reserved anew.

    Ctrl-C stops between two jobs; the same command goes on with the rest. Exit status 1 if any was refused.
    """
    if clear_deadline and deadline_s is not None:
        raise typer.BadParameter("give only one of --deadline-s and --clear-deadline")
    from app.cli import dlq

    meant = dlq.selection(job_ids or [], pool=pool, tenant=tenant, reason=of_reason, fingerprint=fingerprint)
    status = dlq.requeue_dead(
        settings_of(data_dir), meant, reason=_said(reason), rate=rate, edit=edit, deadline_s=deadline_s,
        clear_deadline=clear_deadline,
    )  # fmt: skip
    raise typer.Exit(status)


@commands.command("discard")
def discard_dead(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log of acts.", show_default=False)],
    job_ids: LetterIds = None,
    pool: Pool = None,
    tenant: OfTenant = None,
    of_reason: OfReason = None,
    fingerprint: Fingerprint = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Close dead letters for good: their jobs stay dead, the letters stay readable."""
    from app.cli import dlq

    meant = dlq.selection(job_ids or [], pool=pool, tenant=tenant, reason=of_reason, fingerprint=fingerprint)
    raise typer.Exit(dlq.discard_dead(settings_of(data_dir), meant, reason=_said(reason), is_sure=yes))


@commands.command("watch")
def watch_dead(
    pool: Pool = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print the latest deaths and each new one as it is announced, until Ctrl-C."""
    from app.cli import dlq

    dlq.watch_dead(settings_of(data_dir), pool, as_json=as_json)


def _said(reason: str) -> str:
    if not 1 <= len(reason.strip()) <= 500:
        raise typer.BadParameter("must have 1 to 500 characters", param_hint="--reason")
    return reason
