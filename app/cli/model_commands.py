"""Which commands are there for models? Their names and options; the work is in a module that is loaded when it is done."""

from enum import StrEnum
from typing import Annotated

import typer

from app.cli.configured import settings_of
from app.cli.options import DataDir

commands = typer.Typer(
    help="See and set models' circuit breakers and prices, directly on the database.", no_args_is_help=True
)


class BreakerMode(StrEnum):
    """Who decides on a model's breaker."""

    OPEN = "open"
    CLOSE = "close"
    AUTO = "auto"


@commands.command("breaker")
def breaker(
    model: Annotated[
        str | None, typer.Argument(help="The model's name. Left out: show all models' breakers.", show_default=False)
    ] = None,
    mode: Annotated[
        BreakerMode | None,
        typer.Argument(help="open: take no new jobs; close: take all; auto: by its error rate. Left out: show it."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Show circuit breakers, or set a model's until told otherwise; accepted jobs run on in any case."""
    from app.cli import models

    models.breaker(settings_of(data_dir), model, mode.value if mode else None)


@commands.command("price")
def price(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    input_price: Annotated[
        int | None, typer.Option("--input", min=0, help="Millionths of the currency for a million tokens of prompt.")
    ] = None,
    output_price: Annotated[int | None, typer.Option("--output", min=0, help="The same, of output.")] = None,
    fallback: Annotated[
        str | None, typer.Option("--fallback", metavar="NAME|none", help="Stands in for jobs that name no fallback.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Show a model's prices and fallback, or change them; a job pays the price of its submission."""
    from app.cli import models

    options = {"input_price": input_price, "output_price": output_price, "fallback": fallback}
    models.price(settings_of(data_dir), model, {name: each for name, each in options.items() if each is not None})
