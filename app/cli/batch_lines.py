"""Which endpoint do a file's lines call? Found out before anything is uploaded; all else that may be wrong with a line the API says."""

from pathlib import Path
from typing import Any, get_args

import msgspec

from app.cli.batch_commands import Endpoint
from app.cli.errors import CommandFailed

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)


class _Line(msgspec.Struct):
    url: Any = None


def endpoint_of(file: Path, wanted: str | None = None) -> str:
    """The endpoint that all lines of a batch's file name in `url`; or `wanted`, if none names another.

    Lines that can't be read are passed over: the API lists them all, each with its number.

    Raises:
        CommandFailed: the file can't be read, no line names an endpoint, a line names one that batches don't have, or another than the
            lines before it, or than `wanted`. The message says which line.
    """
    decode = msgspec.json.Decoder(_Line).decode
    found, found_at = wanted, 0
    try:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                try:
                    url = decode(raw).url
                except (msgspec.MsgspecError, ValueError):
                    continue
                if url is None or url == found:
                    continue
                if url not in ENDPOINTS:
                    raise CommandFailed(
                        f"{file}, line {number}: url is {str(url)[:80]!r}: use one of {', '.join(ENDPOINTS)}"
                    )
                if found is not None:
                    said = f"line {found_at} has" if found_at else "--endpoint says"
                    raise CommandFailed(
                        f"{file}, line {number}: url is {url}, and {said} {found}: a batch calls one endpoint, so make a file for each"
                    )
                found, found_at = url, number
    except OSError as error:
        raise CommandFailed(f"{file} can't be read: {error.strerror}") from error
    if found is None:
        raise CommandFailed(f"{file}: no line has a url: give each line one of {', '.join(ENDPOINTS)}")
    return found
