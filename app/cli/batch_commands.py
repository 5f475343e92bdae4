"""Which commands are there for batches? Their names and options; the work is in a module that is loaded when it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.options import DataDir, Key, TierName, Url

if TYPE_CHECKING:
    from app.cli.http import Target

FindTarget = Callable[[str | None, str | None, Path | None], "Target"]
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]

AsJson = Annotated[bool, typer.Option("--json", help="Print batch objects as JSON.")]
BatchId = Annotated[str, typer.Argument(metavar="ID")]


def batch_commands(target: FindTarget) -> typer.Typer:
    """`penstock batches`; `target` says where the API is."""
    app = typer.Typer(help="Submit, list, show, change, cancel and download batches, over HTTP.", no_args_is_help=True)

    @app.command("submit")
    def submit(
        file: Annotated[Path, typer.Argument(help="JSON Lines, as OpenAI's batches have them.")],
        endpoint: Annotated[
            Endpoint | None,
            typer.Option("--endpoint", help="What its lines call; as their url says if left out. They may not differ."),
        ] = None,
        tier: Annotated[TierName, typer.Option("--tier")] = "batch",
        window: Annotated[str, typer.Option("--window", help="How long it may take, as 90m, 24h or 3d.")] = "24h",
        wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for its end, or print its id.")] = True,
        as_json: AsJson = False,
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """Hand a file in and run it as a batch. Exit status 1 if any line of it failed."""
        from app.cli import batches

        options = {"endpoint": endpoint, "tier": tier, "completion_window": window}
        if not batches.submit(target(url, key, data_dir), file, options, wait=wait, as_json=as_json):
            raise typer.Exit(1)

    @app.command("list")
    def list_batches(
        limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most batches.")] = 20,
        as_json: AsJson = False,
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """List the newest batches."""
        from app.cli import batches

        batches.list_batches(target(url, key, data_dir), limit=limit, as_json=as_json)

    @app.command("show")
    def show(
        batch_id: BatchId,
        watch: Annotated[bool, typer.Option("--watch", help="Wait for its end first.")] = False,
        as_json: AsJson = False,
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """Show a batch: its counts, its ETA, what it waits for, what is wrong with its lines, why some failed."""
        from app.cli import batches

        batches.show_batch(target(url, key, data_dir), batch_id, watch=watch, as_json=as_json)

    @app.command("change")
    def change(
        batch_id: BatchId,
        tier: Annotated[TierName | None, typer.Option("--tier", help="Of all lines that haven't started.")] = None,
        window: Annotated[str | None, typer.Option("--window", help="Counted from its creation.")] = None,
        deadline_s: Annotated[float | None, typer.Option("--deadline-s", min=0, help="Counted from now.")] = None,
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """Give a batch another tier or another deadline."""
        from app.cli import batches

        wanted = {"tier": tier, "completion_window": window, "deadline_s": deadline_s}
        batches.change_batch(target(url, key, data_dir), batch_id, wanted)

    @app.command("cancel")
    def cancel(
        batch_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """Stop batches; what is done can be downloaded."""
        from app.cli import batches

        batches.cancel_batches(target(url, key, data_dir), batch_ids)

    @app.command("download")
    def download(
        batch_id: BatchId,
        output: Annotated[
            Path | None, typer.Option("--output", help="Where the answers go; printed without this and --errors.")
        ] = None,
        errors: Annotated[Path | None, typer.Option("--errors", help="Where the errors go; alone: no answers.")] = None,
        url: Url = None,
        key: Key = None,
        data_dir: DataDir = None,
    ) -> None:
        """Save the lines that are done, in the middle of a batch, too: answers, errors, or both."""
        from app.cli import batches

        batches.download(target(url, key, data_dir), batch_id, output, errors)

    return app
