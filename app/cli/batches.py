"""`penstock batches ...`: a file of requests handed in, watched and read as a whole, over HTTP."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import httpx
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.cli.batch_failures import Failures
from app.cli.batch_lines import endpoint_of
from app.cli.errors import CommandFailed
from app.cli.http import Api, Target
from app.cli.tables import print_table, shown_time
from app.client import BATCH_ENDED, Batch, refusal_of

REFRESH_S = 0.5
_PAGE = 100


class BatchApi(Api):
    """Calls of /v1/files and /v1/batches. Use it as an async context manager."""

    async def upload_file(self, file: Path) -> str:
        """Hand a file in, as it is read; its id."""
        try:
            with file.open("rb") as stream:
                form = {"data": {"purpose": "batch"}, "files": {"file": (file.name, stream)}}
                return str((await self.request("POST", "/v1/files", **form))["id"])
        except OSError as error:
            raise CommandFailed(f"{file} can't be read: {error.strerror}") from error

    async def batches(self, *, limit: int) -> list[Batch]:
        """The newest batches, newest first."""
        found: list[Batch] = []
        after: dict[str, str] = {}
        while len(found) < limit:
            query = {"limit": str(min(_PAGE, limit - len(found)))} | after
            page = await self.request("GET", "/v1/batches", params=query)
            found += page["data"]
            if not page.get("has_more"):
                break
            after = {"after": page["last_id"]}
        return found

    async def change(self, batch_id: str, body: dict[str, Any]) -> Batch:
        """Another tier or deadline."""
        return cast("Batch", await self.request("POST", f"/v1/batches/{batch_id}", json=body))

    async def save(self, path: str, write: Callable[[bytes], Any]) -> int:
        """Give what stands at a path to `write`, as it comes; how many bytes."""
        total = 0
        async with self._http.stream("GET", path) as response:
            if not response.is_success:
                await response.aread()
                raise refusal_of(response)
            async for chunk in response.aiter_bytes():
                total += len(chunk)
                write(chunk)
        return total


def submit(target: Target, file: Path, options: dict[str, Any], *, wait: bool, as_json: bool) -> bool:
    """Upload a file and make a batch of it; whether it went well, as far as was waited for.

    Raises:
        CommandFailed: the lines' url and `endpoint` of the options, if that isn't None, aren't one endpoint; nothing was uploaded.
    """
    options = options | {"endpoint": endpoint_of(file, options["endpoint"])}

    async def act(api: BatchApi) -> Batch:
        batch = await api.create_batch(await api.upload_file(file), **options)
        try:
            return await _watch(api, batch) if wait else batch
        except asyncio.CancelledError:  # Ctrl-C
            name = batch["id"]
            told = f"{name} goes on: `penstock batches show {name}` shows it, `penstock batches cancel {name}` ends it"
            print(f"penstock: {told}", file=sys.stderr, flush=True)
            raise

    batch = _with_api(target, act)
    if as_json:
        print(json.dumps(batch, ensure_ascii=False))
    elif wait:
        _print_batch(batch)
        _print_failures(target, batch)
    else:
        print(batch["id"])
    return not wait or (batch["status"] == "completed" and not batch["request_counts"]["failed"])


def list_batches(target: Target, *, limit: int, as_json: bool) -> None:
    """Print the newest batches, newest first."""
    batches = _with_api(target, lambda api: api.batches(limit=limit))
    if as_json:
        for batch in batches:
            print(json.dumps(batch, ensure_ascii=False))
        return
    rows = [
        (each["id"], each["status"], _counts(each), each["tier"], shown_time(each["created_at"])) for each in batches
    ]
    print_table(("batch", "status", "lines", "tier", "created"), rows, nothing="no batches")


def show_batch(target: Target, batch_id: str, *, watch: bool, as_json: bool) -> None:
    """Print all that is known of a batch; with `watch`, when it has ended."""

    async def act(api: BatchApi) -> Batch:
        batch = await api.get_batch(batch_id)
        return await _watch(api, batch) if watch else batch

    batch = _with_api(target, act)
    if as_json:
        print(json.dumps(batch, ensure_ascii=False, indent=2))
    else:
        _print_batch(batch)
        _print_failures(target, batch)


def change_batch(target: Target, batch_id: str, change: dict[str, Any]) -> None:
    """Give a batch another tier or deadline.

    Raises:
        CommandFailed: nothing is asked for, or the API refuses.
    """
    wanted = {name: value for name, value in change.items() if value is not None}
    if not wanted:
        raise CommandFailed("what shall be different? Give --tier, --window or --deadline-s")
    _print_batch(_with_api(target, lambda api: api.change(batch_id, wanted)))


def cancel_batches(target: Target, batch_ids: list[str]) -> None:
    """Cancel batches; a line for each.

    Raises:
        CommandFailed: the API refuses one: it doesn't exist, or has ended.
    """

    async def act(api: BatchApi) -> None:
        for batch_id in batch_ids:
            batch = await api.cancel_batch(batch_id)
            print(f"{batch_id} is {batch['status']}")

    _with_api(target, act)


def download(target: Target, batch_id: str, output: Path | None, errors: Path | None) -> None:
    """Save what is there now, in the middle of the batch, too: answers, errors or both, as files are given; without any the answers are printed.

    Raises:
        CommandFailed: a file can't be written.
    """

    async def act(api: BatchApi) -> None:
        for kind, file in (("output", output), ("errors", errors)):
            path = f"/v1/batches/{batch_id}/{kind}"
            if file is not None:
                await _save(api, path, file)
            elif kind == "output" and errors is None:
                await api.save(path, sys.stdout.buffer.write)

    _with_api(target, act)


async def _save(api: BatchApi, path: str, file: Path) -> None:
    try:
        with file.open("wb") as stream:
            total = await api.save(path, stream.write)
    except OSError as error:
        raise CommandFailed(f"{file} can't be written: {error.strerror}") from error
    print(f"{file}: {total} bytes")


def _with_api(target: Target, act: Callable[[BatchApi], Coroutine[Any, Any, Any]]) -> Any:
    async def work() -> Any:
        async with BatchApi(target) as api:
            return await act(api)

    try:
        return asyncio.run(work())
    except httpx.TransportError as error:
        raise CommandFailed(f"the connection to {target.url} was lost: {error}") from error


async def _watch(api: BatchApi, batch: Batch) -> Batch:
    """Until it has ended, with its counts on a terminal."""
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while batch["status"] not in BATCH_ENDED:
            if console.is_terminal:
                live.update(Text(_line(batch)))
            await asyncio.sleep(REFRESH_S)
            batch = await api.get_batch(batch["id"])
    return batch


def _print_batch(batch: Mapping[str, Any]) -> None:
    for name in ("id", "status", "endpoint", "model", "tier", "input_file_id", "output_file_id", "error_file_id"):
        if batch.get(name) is not None:
            print(f"{name.removesuffix('_file_id'):<12} {batch[name]}")
    print(f"{'lines':<12} {_counts(batch)}")
    for name in ("created_at", "expires_at", "eta"):
        if batch.get(name) is not None:
            print(f"{name.removesuffix('_at'):<12} {shown_time(batch[name])}")
    if batch.get("waiting_for"):
        print(f"{'waiting':<12} {batch['waiting_for']['detail']}")
    for each in (batch.get("errors") or {}).get("data", []):
        place = f"line {each['line']}" if each.get("line") is not None else "file"
        print(f"{place}: {each['message']} ({each['code']})")


def _print_failures(target: Target, batch: Batch) -> None:
    """Why lines have failed, where some have, and how to get them all."""
    if not batch["request_counts"]["failed"]:
        return
    failures, name = Failures(), batch["id"]
    _with_api(target, lambda api: api.save(f"/v1/batches/{name}/errors", failures.feed))
    reasons = list(failures.told())
    if not reasons:
        print("  why they failed can't be read: their file was deleted, or isn't written yet")
        return
    for told in reasons:
        print(f"  {told}")
    print(f"`penstock batches download {name} --errors FILE` saves the failed lines with their errors")


def _line(batch: Mapping[str, Any]) -> str:
    eta = f", done about {shown_time(batch['eta'])}" if batch.get("eta") else ""
    waits = f", waiting: {batch['waiting_for']['detail']}" if batch.get("waiting_for") else ""
    return f"{batch['id']} {batch['status']}, {_counts(batch)}{eta}{waits}"


def _counts(batch: Mapping[str, Any]) -> str:
    counts = batch["request_counts"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['completed']} of {counts['total']}{failed}"
