"""`penstock demo`: the whole stack in a temporary folder, real prompts of three tenants through it, and what became of them."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from app.cli.board import Board
from app.cli.errors import one_line
from app.cli.http import Api, Target, describe_error, tokens_of
from app.cli.jobs import STYLES
from app.cli.prompts import JOBS, TENANTS, DemoJob
from app.cli.stack import Access, Stack
from app.cli.up import until_signal
from app.cli.watch import Report
from app.client import ENDED, Job, PenstockError, texts
from app.db import create_engine
from app.quotas.keys import create_key, ensure_tenant
from app.quotas.usage import TenantUsage, usage_by_tenant
from app.settings import Settings

POLL_S = 0.4
TEXT_CHARS = 44
INTERRUPTED = 130


def demo(settings: Settings) -> int:
    """Run it; return the exit status: 0 if every job succeeded, 1 if not, 130 after Ctrl-C.

    Raises:
        app.errors.PenstockError: the stack doesn't start, or doesn't stay up.
    """
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    # A demo writes into no database but its own, whatever the environment names.
    own = {"data_dir": folder, "database_url": None, "redis_url": None, "api_host": "127.0.0.1", "api_port": 0}
    try:
        return asyncio.run(_Demo(settings.model_copy(update=own)).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class _Shown:
    """A job of the demo as it goes on."""

    wanted: DemoJob
    job: Job | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        return "refused" if self.error else str(self.job["status"]) if self.job else "..."

    @property
    def has_ended(self) -> bool:
        return self.error is not None or self.status in ENDED

    @property
    def text(self) -> str:
        """The end of what it wrote, on one line."""
        text = " ".join((self.error or " / ".join((texts(self.job) if self.job else []))).split())
        return text if len(text) <= TEXT_CHARS else "…" + text[1 - TEXT_CHARS :]


class _Demo:
    """One run."""

    def __init__(self, settings: Settings) -> None:
        self._console = Console()
        self._board = Board(
            self._console, "Penstock starts: a real Postgres, a real Redis, API, worker, maintenance, webhooks"
        )
        self._stack = Stack(settings, self._report, throwaway=True)
        self._shown = [_Shown(wanted) for wanted in JOBS]
        self._began = monotonic()
        self._jobs_s = 0.0

    async def run(self) -> int:
        """Start, submit, watch, show, stop; the exit status."""
        was_stopped = False
        self._stack.prepare()
        try:
            was_stopped = await until_signal(self._show_all(), self._stack)
        finally:
            await self._stack.stop()
        if was_stopped:
            self._say("Interrupted: all is stopped, the temporary folder is removed.")
            return INTERRUPTED
        return self._conclude()

    async def _show_all(self) -> None:
        with self._board:
            access = await self._stack.start()
        self._say(
            f"\nup after {monotonic() - self._began:.1f} s at {access.url}; {len(JOBS)} jobs of {len(TENANTS)} tenants over three tiers:\n"
        )
        watching = asyncio.create_task(self._stack.watch())
        running = asyncio.create_task(self._run_jobs(access))
        try:
            # Whatever ends first: the jobs, or a part that doesn't stay up.
            await asyncio.wait((watching, running), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            await running
        finally:
            for task in (watching, running):
                task.cancel()
            await asyncio.gather(watching, running, return_exceptions=True)
        self._print_texts()
        self._print_usage(await self._usage())

    async def _run_jobs(self, access: Access) -> None:
        keys = await self._make_keys()
        began = monotonic()
        apis = {tenant: Api(Target(access.url, key)) for tenant, key in keys.items()}
        try:
            with _Progress(self._console, self._shown, began):
                await asyncio.gather(*(self._run_job(apis[each.wanted.tenant], each) for each in self._shown))
        finally:
            self._jobs_s = monotonic() - began
            await asyncio.gather(*(api.close() for api in apis.values()))

    async def _run_job(self, api: Api, shown: _Shown) -> None:
        try:
            shown.job = await api.submit(**shown.wanted.body)
            while not shown.has_ended:
                await asyncio.sleep(POLL_S)
                shown.job = await api.get(shown.job)
        except PenstockError as error:
            shown.error = one_line(error)

    async def _make_keys(self) -> dict[str, str]:
        config = self._stack.settings
        db = create_engine(config, application_name="penstock-demo")
        keys = {}
        try:
            async with db.begin() as conn:
                for tenant in TENANTS:
                    await ensure_tenant(conn, tenant)
                    pepper = config.key_pepper.get_secret_value()
                    _, keys[tenant] = await create_key(conn, tenant, pepper=pepper, name="demo", actor="demo")
        finally:
            await db.dispose()
        return keys

    async def _usage(self) -> list[TenantUsage]:
        db = create_engine(self._stack.settings, application_name="penstock-demo")
        try:
            async with db.connect() as conn:
                return await usage_by_tenant(conn)
        finally:
            await db.dispose()

    def _print_texts(self) -> None:
        for each in self._shown:
            if not each.wanted.is_shown or each.job is None:
                continue
            for text in texts(each.job):
                self._say("")
                self._console.print(Text(f"> {each.wanted.title.strip()}", style="bold"))
                if self._console.is_terminal:
                    self._console.print(Padding(Text(text.strip()), (0, 0, 0, 2)))
                else:
                    self._say(indent(text.strip(), "  "))

    def _print_usage(self, usage: list[TenantUsage]) -> None:
        table = Table(box=None, pad_edge=False, title="usage by tenant", title_justify="left", title_style="bold")
        table.add_column("tenant", no_wrap=True)
        for name in ("jobs", "prompt tokens", "cached", "completion tokens"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in usage:
            counts = (each.jobs, each.prompt_tokens, each.cached_tokens, each.completion_tokens)
            table.add_row(each.tenant_id, *(f"{count:,}" for count in counts))
        self._say("")
        self._console.print(table, highlight=False)

    def _conclude(self) -> int:
        failed = [each for each in self._shown if each.status != "succeeded"]
        tokens = sum(tokens_of(each.job or {}) for each in self._shown)
        self._say(
            f"\n{len(self._shown) - len(failed)} of {len(self._shown)} jobs succeeded in {self._jobs_s:.1f} s: "
            f"{tokens:,} tokens, {tokens / max(self._jobs_s, 0.001):,.0f} tokens/s; the whole demo took {monotonic() - self._began:.1f} s."
        )
        for each in failed:
            reason = each.error or describe_error(each.job or {})
            self._say(f"penstock: {each.wanted.tenant}: {each.wanted.title.strip()!r}: {reason}")
        return 1 if failed else 0

    def _report(self, report: Report) -> None:
        if report.event != "stopping":
            self._board.show(report)

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class _Progress:
    """The jobs as they go on: a live table on a terminal, elsewhere a line for each that ended."""

    def __init__(self, console: Console, shown: list[_Shown], began: float) -> None:
        self._console = console
        self._shown = shown
        self._began = began
        self._said: set[int] = set()
        self._live: Live | None = None
        self._saying: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=8)
            self._live.start()
        else:
            self._saying = asyncio.create_task(self._say_changes())

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._saying is not None:
            self._saying.cancel()
            self._say_what_ended()

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("tier", "tenant", "prompt", "status"):
            table.add_column(name, no_wrap=True, max_width=36)
        table.add_column("tokens", justify="right")
        table.add_column("text", no_wrap=True, overflow="ellipsis", style="dim")
        for each in self._shown:
            status = Text(each.status, style=STYLES.get(each.status, ""))
            tokens = tokens_of(each.job or {})
            title = " ".join(each.wanted.title.split())
            table.add_row(
                each.wanted.tier,
                each.wanted.tenant,
                Text(title, overflow="ellipsis"),
                status,
                str(tokens or ""),
                Text(each.text),
            )
        ended = sum(each.has_ended for each in self._shown)
        return Group(
            table, Text(f"{ended} of {len(self._shown)} ended after {monotonic() - self._began:.1f} s", style="dim")
        )

    async def _say_changes(self) -> None:
        while True:
            self._say_what_ended()
            await asyncio.sleep(POLL_S)

    def _say_what_ended(self) -> None:
        for number, each in enumerate(self._shown):
            if each.has_ended and number not in self._said:
                self._said.add(number)
                seconds = monotonic() - self._began
                line = f"  {seconds:5.1f} s  {each.status:<10} {each.wanted.tier:<12} {each.wanted.tenant:<19} {tokens_of(each.job or {}):>4} tokens  {each.text}"
                self._console.print(line, soft_wrap=True, markup=False, highlight=False)
