"""Which commands are there for webhooks? Their names and options; the work is in modules that are loaded when it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import DataDir, Key, Url

if TYPE_CHECKING:
    from app.cli.http import Target

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="we_...")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="wd_...")]
DeliveryIds = Annotated[list[str], typer.Argument(metavar="DELIVERY...", help="wd_...")]
EventNames = Annotated[
    list[str] | None,
    typer.Option("--event", help="Only these, or kinds as 'job.*': repeat it. All but job.started if left out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FindTarget = Callable[[str | None, str | None, Path | None], "Target"]


def commands_of(find: FindTarget, run_worker: Callable[[Path | None], None]) -> typer.Typer:
    """The commands; without one, `penstock webhooks` runs a webhook worker."""
    app = typer.Typer(help="Run one webhook worker in the foreground; or, with a command, manage webhooks over HTTP.")

    @app.callback(invoke_without_command=True)
    def webhooks(context: typer.Context, data_dir: DataDir = None) -> None:
        """Run one webhook worker in the foreground; or, with a command, manage webhooks over HTTP."""
        if context.invoked_subcommand is None:
            run_worker(data_dir)

    _add_endpoints(app, find)
    _add_deliveries(app, find)
    return app


def _add_endpoints(app: typer.Typer, find: FindTarget) -> None:
    @app.command("list")
    def list_endpoints(as_json: AsJson = False, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """List the endpoints, and why one is disabled."""
        from app.cli import webhooks as work

        work.list_endpoints(find(url, key, data_dir), as_json=as_json)

    @app.command()
    def create(
        endpoint_url: Annotated[str, typer.Argument(metavar="URL", help="Where events go: https://...")],
        event: EventNames = None,
        description: Annotated[str, typer.Option("--description", help="For people.")] = "",
        url: Url = None, key: Key = None, data_dir: DataDir = None,
    ) -> None:  # fmt: skip
        """Make an endpoint; print its id and its secret, the only time."""
        from app.cli import webhooks as work

        work.create(find(url, key, data_dir), endpoint_url, description=description, events=event)

    @app.command()
    def rotate(
        endpoint: EndpointId,
        overlap_hours: Annotated[
            float, typer.Option("--overlap-hours", min=0, max=720, help="So long both secrets sign.")
        ] = 24.0,
        url: Url = None, key: Key = None, data_dir: DataDir = None,
    ) -> None:  # fmt: skip
        """Give an endpoint a new secret and print it, the only time."""
        from app.cli import webhooks as work

        work.rotate(find(url, key, data_dir), endpoint, overlap_s=round(overlap_hours * 3600))

    @app.command()
    def enable(endpoint: EndpointId, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """Send events to an endpoint again, with a fresh start."""
        from app.cli import webhooks as work

        work.set_status(find(url, key, data_dir), endpoint, "enabled")

    @app.command()
    def disable(endpoint: EndpointId, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """Send nothing more to an endpoint; what waits for it is given up."""
        from app.cli import webhooks as work

        work.set_status(find(url, key, data_dir), endpoint, "disabled")

    @app.command()
    def delete(endpoint: EndpointId, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """End an endpoint; its history stays."""
        from app.cli import webhooks as work

        work.delete(find(url, key, data_dir), endpoint)

    @app.command()
    def ping(endpoint: EndpointId, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """Send an endpoint a test event."""
        from app.cli import webhooks as work

        work.ping(find(url, key, data_dir), endpoint)

    @app.command()
    def recover(
        endpoint: EndpointId,
        hours: Annotated[float, typer.Option("--hours", min=0.001, max=2160, help="Of the last so many hours.")] = 24.0,
        url: Url = None, key: Key = None, data_dir: DataDir = None,
    ) -> None:  # fmt: skip
        """Send again what failed for an endpoint that was away."""
        from app.cli import webhooks as work

        work.recover(find(url, key, data_dir), endpoint, since_s=max(1, round(hours * 3600)))


def _add_deliveries(app: typer.Typer, find: FindTarget) -> None:
    @app.command()
    def deliveries(
        endpoint: Annotated[str | None, typer.Option("--endpoint", help="To this one only.")] = None,
        job: Annotated[str | None, typer.Option("--job", help="Of this job's life only.")] = None,
        status: Annotated[str | None, typer.Option("--status", help="pending, delivered or failed.")] = None,
        event: Annotated[str | None, typer.Option("--event", help="Of this type only.")] = None,
        limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most that are shown.")] = 20,
        as_json: AsJson = False, url: Url = None, key: Key = None, data_dir: DataDir = None,
    ) -> None:  # fmt: skip
        """List the newest deliveries."""
        from app.cli import webhooks as work

        filters = {"endpoint": endpoint, "job": job, "status": status, "type": event}
        work.list_deliveries(find(url, key, data_dir), filters, limit=limit, as_json=as_json)

    @app.command()
    def show(
        delivery: DeliveryId, as_json: AsJson = False, url: Url = None, key: Key = None, data_dir: DataDir = None
    ) -> None:
        """Show a delivery with each of its tries, and its payload."""
        from app.cli import webhooks as work

        work.show_delivery(find(url, key, data_dir), delivery, as_json=as_json)

    @app.command()
    def resend(deliveries: DeliveryIds, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
        """Send deliveries again, now, under the ids that they had."""
        from app.cli import webhooks as work

        work.resend(find(url, key, data_dir), deliveries)

    @app.command()
    def listen(
        port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 9000,
        secret: Annotated[
            list[str] | None,
            typer.Option("--secret", envvar="PENSTOCK_WEBHOOK_SECRET", help="Verify by these: repeat it. Without any, "
                         "an endpoint is made for as long as this listens."),
        ] = None,
        event: EventNames = None,
        status: Annotated[int, typer.Option("--status", min=200, max=599, help="Answer this, to try failures.")] = 204,
        as_json: AsJson = False, url: Url = None, key: Key = None, data_dir: DataDir = None,
    ) -> None:  # fmt: skip
        """Print and verify what arrives on a local port, until Ctrl-C."""
        from app.cli.listen import listen as work

        work(
            lambda: find(url, key, data_dir),
            port=port,
            secrets=secret or [],
            events=event,
            status=status,
            as_json=as_json,
        )
