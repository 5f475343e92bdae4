"""How does the command line talk to the API? With the client that anybody may use, patient where the API asks for patience."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.cli.errors import CommandFailed, one_line
from app.cli.folder import DataFolder
from app.client import AsyncPenstock, PenstockError, Retries
from app.settings import Settings

_WORTH_SAYING_S = 5.0  # a wait that is shorter needs no word
# An API that never answered isn't waited for: it wasn't started.
RETRIES = Retries(patience_s=600.0, lost_s=20.0, first_contact=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the API is, and who we are to it."""

    url: str
    api_key: str


def find_target(settings: Settings, url: str | None, api_key: str | None) -> Target:
    """What the caller gave, completed from the data folder of a running `penstock up`.

    Raises:
        CommandFailed: one of both is nowhere to be found.
    """
    folder = DataFolder(settings.data_dir)
    url = url or folder.url
    if not url:
        raise CommandFailed(
            f"where is the API? {folder.path} knows of none: run `penstock up` in this folder first (it tells when it is ready), or give the --data-dir of the one that runs, or --url or PENSTOCK_URL"
        )
    api_key = api_key or folder.api_key
    if not api_key:
        raise CommandFailed("there is no API key: give --key or PENSTOCK_API_KEY; `penstock keys create` makes one")
    if not url.startswith(("http://", "https://")):
        raise CommandFailed(f"--url must begin with http:// or https://, and {url!r} doesn't")
    return Target(url.rstrip("/").removesuffix("/v1"), api_key)


class Api(AsyncPenstock):
    """The client, which here says on standard error when it has to wait long. Use it as an async context manager."""

    def __init__(self, target: Target, *, connections: int = 32) -> None:
        super().__init__(target.url, target.api_key, retries=RETRIES, on_retry=_say, connections=connections)


def _say(error: PenstockError | None, delay_s: float) -> None:
    if error is not None and delay_s >= _WORTH_SAYING_S:
        say = f"penstock: {one_line(error)}; trying again in {delay_s:.0f} s, Ctrl-C gives up"
        print(say, file=sys.stderr, flush=True)


def describe_error(job: Mapping[str, Any]) -> str:
    """Why a job didn't succeed, in a line."""
    error = job.get("error") or {}
    reason = error.get("message") or error.get("detail") or ""
    code = f" ({error['code']})" if error.get("code") else ""
    return f"{job.get('status')}{f': {reason}' if reason else ''}{code}"


def tokens_of(job: Mapping[str, Any]) -> int:
    """Tokens that it wrote, as far as is known: those that were billed, or its progress."""
    done = (job.get("usage") or {}).get("completion_tokens") or 0
    return int(done or (job.get("progress") or {}).get("completion_tokens") or 0)
