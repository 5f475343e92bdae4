"""`penstock jobs ...`: what a tenant's jobs are up to, over HTTP."""

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.cli.errors import CommandFailed
from app.cli.http import Api, Target, describe_error, tokens_of
from app.cli.tables import print_table, shown_time
from app.client import ENDED, Job, texts

REFRESH_S = 0.5
STYLES = {
    "succeeded": "green",
    "failed": "red",
    "dead": "red",
    "expired": "yellow",
    "cancelled": "yellow",
    "running": "cyan",
}
_COLUMNS = ("job", "status", "tier", "model", "tokens", "age")
_FIGURES = ("tokens", "age")


def list_jobs(target: Target, filters: dict[str, str | None], *, limit: int, as_json: bool) -> None:
    """Print the newest jobs, newest first."""
    jobs = asyncio.run(_with_api(target, lambda api: _newest(api, limit, **filters)))
    if as_json:
        for job in jobs:
            print(json.dumps(job, ensure_ascii=False))
        return
    styles = [STYLES.get(str(job["status"]), "") for job in jobs]
    print_table(_COLUMNS, [_cells(job) for job in jobs], nothing="no jobs", right=_FIGURES, styles=styles)


def show_job(target: Target, job_id: str, *, as_json: bool) -> None:
    """Print all that is known of a job."""
    job = asyncio.run(_with_api(target, lambda api: api.get(job_id)))
    if as_json:
        print(json.dumps(job, ensure_ascii=False, indent=2))
        return
    _print_job(Console(), job)


def cancel_jobs(target: Target, job_ids: list[str]) -> None:
    """Cancel jobs; a line for each.

    Raises:
        CommandFailed: the API refuses one: it doesn't exist, or has ended.
    """

    async def cancel_all(api: Api) -> None:
        for job_id in job_ids:
            job = await api.cancel(job_id)
            status = job.get("status")
            print(f"{job_id} {'is cancelled' if status == 'cancelled' else f'was asked to stop: it is {status}'}")

    asyncio.run(_with_api(target, cancel_all))


def watch_jobs(target: Target, *, limit: int) -> None:
    """Show the newest jobs until none of them waits or runs."""
    asyncio.run(_with_api(target, lambda api: _watch_all(api, limit)))


def watch_job(target: Target, job_id: str) -> bool:
    """Show a job until it ends; return whether it succeeded."""
    job: Job = asyncio.run(_with_api(target, lambda api: _watch_one(api, job_id)))
    return bool(job["status"] == "succeeded")


def table_of(jobs: list[Job]) -> Table:
    """Jobs as a table."""
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _FIGURES else "left", no_wrap=True)
    for job in jobs:
        job_id, status, *rest = _cells(job)
        table.add_row(job_id, Text(status, style=STYLES.get(status, "")), *rest)
    return table


async def _with_api(target: Target, act: Any) -> Any:
    async with Api(target) as api:
        work: Coroutine[Any, Any, Any] = act(api)
        return await work


async def _newest(api: Api, limit: int, **filters: Any) -> list[Job]:
    return [job async for job in api.list(limit=limit, **filters)]


async def _watch_all(api: Api, limit: int) -> None:
    console = Console()
    if not console.is_terminal:
        await _watch_in_lines(api, console, limit)
        return
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            jobs = await _newest(api, limit)
            going = sum(job["status"] not in ENDED for job in jobs)
            live.update(Group(table_of(jobs), Text(f"{going} of {len(jobs)} wait or run", style="dim")))
            if not going:
                return
            await asyncio.sleep(REFRESH_S)


async def _watch_in_lines(api: Api, console: Console, limit: int) -> None:
    """Where there is no terminal: a line for each change."""
    known: dict[str, str] = {}
    while True:
        jobs = await _newest(api, limit)
        for job in reversed(jobs):
            if known.get(job["id"]) != job["status"]:
                known[job["id"]] = job["status"]
                _say(console, "  ".join(_cells(job)))
        if all(job["status"] in ENDED for job in jobs):
            return
        await asyncio.sleep(REFRESH_S)


async def _watch_one(api: Api, job_id: str) -> Job:
    console = Console()
    job = await api.get(job_id)
    last = ""
    with console.status(_progress(job)) as status:
        while job["status"] not in ENDED:
            if not console.is_terminal and _progress(job) != last:
                _say(console, _progress(job))
            last = _progress(job)
            status.update(Text(last))
            await asyncio.sleep(REFRESH_S)
            job = await api.get(job_id)
    _print_job(console, job)
    return job


def _progress(job: Job) -> str:
    tokens = tokens_of(job)
    waiting_for = job.get("waiting_for")
    waits = f", waiting: {waiting_for['detail']}" if waiting_for else ""
    return f"{job['id']} {job['status']}{f', {tokens} tokens' if tokens else ''}{waits}"


def _print_job(console: Console, job: Job) -> None:
    usage = job.get("usage") or {}
    lines = {
        "job": job["id"],
        "status": describe_error(job) if job.get("error") else job["status"],
        "tier": job.get("tier"),
        "model": job.get("model"),
        "created": shown_time(job.get("created_at"), ""),
        "started": shown_time(job.get("started_at"), ""),
        "finished": shown_time(job.get("finished_at"), ""),
        "deadline": shown_time(job.get("deadline_at"), ""),
        "attempts": job.get("attempts"),
        "usage": ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in usage.items() if value),
        "cost": _cost(job),
        "metadata": ", ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items()),
    }
    for name, value in lines.items():
        if value not in {None, ""}:
            _say(console, f"{name:<9} {value}")
    written = texts(job)
    for number, text in enumerate(written, start=1):
        _say(console, f"\n--- choice {number}" if len(written) > 1 else "")
        _say(console, text)


def _cost(job: Job) -> str | None:
    micros = job.get("cost_micros")
    return None if micros is None else f"{micros} millionths of the currency"


def _cells(job: Job) -> list[str]:
    return [
        str(job["id"]), str(job["status"]), str(job.get("tier", "")), str(job.get("model", "")), str(tokens_of(job)),
        _age(job.get("created_at")),
    ]  # fmt: skip


def _age(created_at: Any) -> str:
    if isinstance(created_at, int | float):
        created = datetime.fromtimestamp(created_at, UTC)
    else:
        try:
            created = datetime.fromisoformat(str(created_at))
        except ValueError as error:
            raise CommandFailed(f"the API gave a time that can't be read: {created_at!r}") from error
    seconds = max(0.0, (datetime.now(UTC) - created).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
