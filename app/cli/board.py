"""How does a stack's start look? A live table on a terminal, one line an event elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from app.cli.watch import Report

WIDTH = 12


class Board:
    """Shows reports. As a context manager it is live; afterwards every report is a line of its own."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._rows: dict[str, Report] = {}
        self._spinners: dict[str, Spinner] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=12)
            self._live.start()
        else:
            self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._spinners.clear()
            self._live.update(self._table())
            self._live.stop()
            self._live = None

    def show(self, report: Report) -> None:
        """Take a report in."""
        if report.event in {"starting", "ready"}:
            self._rows[report.part] = report
            if self._live is not None:
                if report.event == "starting":
                    self._spinners[report.part] = Spinner("dots")
                self._live.update(self._table())
            elif report.event == "ready":
                self._print(
                    f"  {'ready':<{WIDTH}} {report.part:<{WIDTH}} {report.seconds:5.1f} s  {report.detail}".rstrip()
                )
        elif report.event == "stopping":
            self._print(f"  {'stopping':<{WIDTH}} {report.part}")
        else:
            self._print(f"  {report.event:<{WIDTH}} {report.part:<{WIDTH}} {report.detail}")

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for report in self._rows.values():
            waits = report.event == "starting"
            mark = self._spinners.get(report.part, Text("-")) if waits else Text("✓", style="green")
            seconds = Text("" if waits else f"{report.seconds:.1f} s", style="dim", justify="right")
            table.add_row(Text(""), mark, Text(report.part), seconds, Text(report.detail, style="dim"))
        return Group(Text(self._title), table)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
