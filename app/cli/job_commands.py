"""Which commands are there for jobs? Their names and options; the work is in a module that is loaded when it is done."""

from typing import Annotated, Literal

import typer

from app.cli.configured import target_of
from app.cli.options import AsJson, DataDir, Key, TierName, Url

commands = typer.Typer(help="List, show, cancel and watch jobs, over HTTP.", no_args_is_help=True)

StatusName = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired", "dead"]


@commands.command("list")
def list_jobs(
    status: Annotated[StatusName | None, typer.Option("--status", help="Only these.")] = None,
    tier: Annotated[TierName | None, typer.Option("--tier", help="Only these.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only those of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most jobs.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the newest jobs."""
    from app.cli import jobs

    filters = {"status": status, "tier": tier, "model": model}
    jobs.list_jobs(target_of(url, key, data_dir), filters, limit=limit, as_json=as_json)


@commands.command("show")
def show_job(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show all that is known of a job, with its result."""
    from app.cli import jobs

    jobs.show_job(target_of(url, key, data_dir), job_id, as_json=as_json)


@commands.command("cancel")
def cancel_jobs(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel jobs: at once where they wait, within a second where they run."""
    from app.cli import jobs

    jobs.cancel_jobs(target_of(url, key, data_dir), job_ids)


@commands.command("watch")
def watch_jobs(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The newest jobs if left out.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most jobs, without an ID.")] = 20,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Watch a job until it ends, or the newest jobs until none of them waits or runs."""
    from app.cli import jobs

    target = target_of(url, key, data_dir)
    if job_id is None:
        jobs.watch_jobs(target, limit=limit)
    elif not jobs.watch_job(target, job_id):
        raise typer.Exit(1)
