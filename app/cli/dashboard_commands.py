"""Which commands are there for the dashboard? Their names and options; the work is in a module that is loaded when it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from app.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where servers' data, secrets and logs live.  [default: .penstock]")
]


def dashboard_commands(settings: Callable[[Path | None], "Settings"]) -> typer.Typer:
    """`penstock dashboard`; `settings` reads what is configured."""
    app = typer.Typer(help="Let operators into the dashboard, directly on the database.", no_args_is_help=True)

    @app.command("link")
    def link(
        name: Annotated[
            str | None, typer.Argument(help="The operator; the owner, if left out.", show_default=False)
        ] = None,
        role: Annotated[
            Literal["viewer", "operator", "owner"] | None,
            typer.Option("--role", help="Make the operator with this role, if there is none of this name."),
        ] = None,
        data_dir: DataDir = None,
    ) -> None:
        """Print a link with which an operator chooses a password and logs in. It works once, for 15 minutes."""
        from app.cli import dashboard

        dashboard.link(settings(data_dir), name, role)

    @app.command("operators")
    def operators(data_dir: DataDir = None) -> None:
        """Print who may use the dashboard."""
        from app.cli import dashboard

        dashboard.operators(settings(data_dir))

    return app
