"""Which commands are there for the retention? Their names and options; the work is in a module that is loaded when it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where servers' data, secrets and logs live.  [default: .penstock]")
]


def commands_of(settings: Callable[[Path | None], "Settings"]) -> typer.Typer:
    """`penstock retention`; `settings` reads what is configured."""
    commands = typer.Typer(help="See what is deleted and when, directly on the database.", no_args_is_help=True)

    @commands.command("status")
    def status(
        limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most runs.")] = 10,
        as_json: AsJson = False,
        data_dir: DataDir = None,
    ) -> None:
        """Show what is kept for how long, the newest runs, and what they have deleted."""
        from app.cli import retention

        retention.show(settings(data_dir), limit=limit, as_json=as_json)

    @commands.command("plan")
    def plan(as_json: AsJson = False, data_dir: DataDir = None) -> None:
        """Count what a run would delete now. Nothing is changed."""
        from app.cli import retention

        retention.show_plan(settings(data_dir), as_json=as_json)

    @commands.command("run")
    def run(
        here: Annotated[bool, typer.Option("--here", help="In this process, rather than by maintenance.")] = False,
        data_dir: DataDir = None,
    ) -> None:
        """Delete what has had its time, now."""
        from app.cli import retention

        retention.run(settings(data_dir), here=here)

    return commands
