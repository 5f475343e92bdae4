"""What did a benchmark find? Figures, and bars that they must reach."""

import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 140  # columns, where no terminal says how wide it is


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that is promised. `at_most` or not: which side is good."""

    name: str
    value: float
    limit: float
    unit: str
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the promise holds."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(slots=True)
class Result:
    """One run of one benchmark."""

    name: str
    settings: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)  # bars for which something hasn't run
    failed: list[str] = field(default_factory=list)  # what was asked for and couldn't be measured; --check minds
    tables: list[Table] = field(default_factory=list)  # shown instead of the figures one by one

    def show(self) -> None:
        """Print the figures and the bars as tables."""
        console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        for each in self.tables or [self.plain_table()]:
            console.print(each)
        for bar in self.bars:
            sign = "<=" if bar.at_most else ">="
            verdict = "[green]met[/]" if bar.is_met else "[red]MISSED[/]"
            console.print(f"{verdict}  {bar.name}: {bar.value:,.3f} {bar.unit} (bar: {sign} {bar.limit:,g} {bar.unit})")
        for name in self.not_judged:
            console.print(f"[dim]not judged  {name}[/]")
        for name in self.failed:
            console.print(f"[red]FAILED[/]  {name}")

    def plain_table(self) -> Table:
        """The figures one by one."""
        table = Table(title=f"{self.name} {self.settings}", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in self.figures.items():
            table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
        return table

    def write(self, path: Path) -> None:
        """Write all of it as JSON, with where and when it was measured."""
        document = {
            "benchmark": self.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": sys.version.split()[0],
            "machine": platform.machine(),
            "settings": self.settings,
            "figures": self.figures,
            "bars": [
                {"name": bar.name, "value": bar.value, "limit": bar.limit, "unit": bar.unit, "met": bar.is_met}
                for bar in self.bars
            ],
            "not_judged": self.not_judged,
            "failed": self.failed,
        }
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def missed(self) -> list[str]:
        """The names of the bars that aren't met, and of what couldn't be measured."""
        return [bar.name for bar in self.bars if not bar.is_met] + self.failed
