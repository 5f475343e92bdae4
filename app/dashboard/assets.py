"""Where do style, scripts and pictures come from? From this package, under a path that changes with their content: cached for ever."""

import asyncio
import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from app.errors import NotFound

PREFIX = "/admin"
_FOR_EVER = "public, max-age=31536000, immutable"
_MIN_GZIP_BYTES = 1024

router = APIRouter()


@dataclass(frozen=True)
class Asset:
    """One file."""

    content: bytes
    media_type: str

    @property
    def is_zipped(self) -> bool:
        """Whether it is large enough to gain by it."""
        return len(self.content) >= _MIN_GZIP_BYTES

    @cached_property
    def zipped(self) -> bytes:
        """Takes a while the first time."""
        return gzip.compress(self.content, mtime=0)


def _read(folder: Traversable, before: str = "") -> dict[str, Asset]:
    found: dict[str, Asset] = {}
    for each in folder.iterdir():
        if each.is_dir():
            found |= _read(each, f"{before}{each.name}/")
        else:
            content = each.read_bytes()
            kind = mimetypes.guess_type(each.name)[0] or "application/octet-stream"
            charset = "; charset=utf-8" if kind.startswith("text/") or kind.endswith("javascript") else ""
            found[f"{before}{each.name}"] = Asset(content, kind + charset)
    return found


ASSETS = _read(files("app.dashboard") / "static")
_DIGEST = hashlib.sha256(b"".join(name.encode() + ASSETS[name].content for name in sorted(ASSETS))).hexdigest()[:16]


def asset_url(name: str) -> str:
    """Where the file `name` of `static/` is served, with the digest of all of them."""
    assert name in ASSETS, name
    return f"{PREFIX}/static/{_DIGEST}/{name}"


@router.get("/static/{digest}/{name:path}")
async def asset(request: Request, digest: str, name: str) -> Response:
    """A file. An old digest gets the file of today, and isn't kept."""
    found = ASSETS.get(name)
    if found is None:
        raise NotFound("there is no such file")
    zips = found.is_zipped and "gzip" in request.headers.get("accept-encoding", "")
    content = await asyncio.to_thread(lambda: found.zipped) if zips else found.content
    headers = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if zips else {})
    if digest == _DIGEST:
        headers["Cache-Control"] = _FOR_EVER
    return Response(content, headers=headers, media_type=found.media_type)
