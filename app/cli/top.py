"""What does `penstock top` show? Workers, tiers and busy tenants, a new picture each second, until q or Ctrl-C."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from app.cli.errors import CommandFailed
from app.cli.tables import visible
from app.cli.top_figures import Camera, Picture
from app.clock import SystemClock
from app.db import create_engine, is_outage
from app.jobs.loads import LoadBoard
from app.queue.streams import JobQueue
from app.redis import create_redis
from app.settings import Settings

EVERY_S = 1.0
_QUIT = {b"q", b"Q", b"\x03", b"\x04"}


def top(settings: Settings, *, once: bool, as_json: bool) -> int:
    """Show what is going on. The exit status: 0.

    Raises:
        CommandFailed: Postgres doesn't answer, with `once`; while it goes on, that is shown instead.
    """
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # whoever reads has had enough
        asyncio.run(_run(settings, once=once, as_json=as_json))
    return 0


async def _run(settings: Settings, *, once: bool, as_json: bool) -> None:
    db, redis = create_engine(settings, application_name="penstock-cli"), create_redis(settings)
    board = LoadBoard(
        db, lambda pool: JobQueue(redis, pool), clock=SystemClock(), timeout_s=settings.database_timeout_s
    )
    camera, console = Camera(db, board, settings.database_timeout_s), Console()
    try:
        if once:
            picture = await _only(camera)
            print(document(picture)) if as_json else console.print(shown(picture))
        elif as_json or not console.is_terminal:
            await _print_lines(camera, console, as_json=as_json)
        else:
            await _show_live(camera, console)
    finally:
        await redis.aclose()
        await db.dispose()


async def _only(camera: Camera) -> Picture:
    try:
        return await camera.take()
    except (SQLAlchemyError, OSError) as error:
        if not is_outage(error):
            raise
        raise CommandFailed(_away(error)) from error


async def _print_lines(camera: Camera, console: Console, *, as_json: bool) -> None:
    while True:
        picture = await _only(camera)
        if as_json:
            print(document(picture), flush=True)
        else:
            console.print(shown(picture))
        await asyncio.sleep(EVERY_S)


async def _show_live(camera: Camera, console: Console) -> None:
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ending.set)
    with _keys(ending), Live(Text("…"), console=console, screen=True, auto_refresh=False) as live:
        while not ending.is_set():
            try:
                picture: RenderableType = shown(await camera.take(), hears_keys=sys.stdin.isatty())
            except (SQLAlchemyError, OSError) as error:
                if not is_outage(error):
                    raise
                picture = Text(_away(error), style="red")
            live.update(picture, refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await ending.wait()


@contextlib.contextmanager
def _keys(ending: asyncio.Event) -> Iterator[None]:
    """Keys are heard one by one, and not shown, until the block ends, however it does."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        import os

        key = os.read(terminal, 1)
        if not key or key in _QUIT:
            ending.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def document(picture: Picture) -> str:
    """The picture as a line of JSON."""
    return json.dumps(asdict(picture), ensure_ascii=False, default=_plain)


def shown(picture: Picture, *, hears_keys: bool = False) -> Group:
    """The picture for people; `hears_keys`: for those who can press one."""
    title = Text.assemble(("penstock top", "bold"), f"  {picture.at:%H:%M:%S}Z")
    if hears_keys:
        title.append("   q: quit", style="dim")
    if picture.is_redis_away:
        title.append("   Redis doesn't answer: what waits is counted in Postgres, or as it was", style="red")
    return Group(title, Text(), _workers(picture), Text(), _tiers(picture), Text(), _tenants(picture))


def _workers(picture: Picture) -> RenderableType:
    if not picture.workers:
        return Text("No worker lives.", style="yellow")
    table = _table("WORKER", "POOL", "STATE", ">JOBS", ">BATCH", ">WAIT", ">TOKENS/S", ">KV", ">PREEMPTED", ">UP")
    for each in picture.workers:
        table.add_row(
            visible(f"{each.host}:{each.pid}"), visible(each.pool), each.state, str(each.jobs), str(each.batch_sequences),
            str(each.waiting_sequences), f"{each.tokens_per_s:,.0f}", f"{each.kv_usage:.0%}", f"{each.preemptions:,}",
            span(each.up_s),
        )  # fmt: skip
    return table


def _tiers(picture: Picture) -> RenderableType:
    if not picture.tiers:
        return Text("No model is registered.", style="yellow")
    table = _table("POOL", "TIER", ">QUEUED", ">TOKENS", ">RUNNING", ">PREDICTED WAIT")
    for each in picture.tiers:
        wait = "-" if each.predicted_wait_s is None else span(each.predicted_wait_s)
        table.add_row(
            visible(each.pool), each.tier, f"{each.queued:,}", f"{each.queued_tokens:,}", f"{each.running:,}", wait
        )
    return table


def _tenants(picture: Picture) -> RenderableType:
    if not picture.tenants:
        return Text("Nobody has a job.", style="dim")
    table = _table("TENANT", ">RUNNING", ">TOKENS", ">QUEUED")
    for each in picture.tenants:
        table.add_row(visible(each.tenant), f"{each.running:,}", f"{each.running_tokens:,}", f"{each.queued:,}")
    return table


def _table(*columns: str) -> Table:
    """`>` before a name: numbers, to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def span(seconds: float) -> str:
    """A time in one unit or two: 0.4 s, 12 s, 3 m 20 s, 5 h 10 m, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {name}"
    return f"{whole} s"


def _away(error: BaseException) -> str:
    return f"Postgres doesn't answer ({type(error).__name__}): is it running, and is DATABASE_URL right?"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
