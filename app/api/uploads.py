"""How does a file come in? multipart/form-data (RFC 7578) as it arrives: fields into memory, the file into pieces, never whole."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from app.api.runtime import Runtime
from app.errors import BodyTooLarge, InvalidRequest, MalformedBody, StorageFull, UnsupportedMedia
from app.files.store import PIECE_BYTES, append, discard, kept_bytes, open_file

MAX_FIELD_BYTES = 4096
MAX_PARTS = 16
MAX_NAME_CHARS = 255
_OVERHEAD_BYTES = 64 * 2**10  # of boundaries, headers and fields, beside the file
_FILE = "file"


@dataclass(slots=True)
class Upload:
    """What came in: the file's id, still open, its name, and the other fields."""

    file_id: UUID
    filename: str
    fields: dict[str, str]


@dataclass(slots=True)
class _Part:
    name: str
    filename: str | None


@dataclass(slots=True)
class _Form:
    """What the parser has told so far."""

    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)  # of the file, not yet written
    num_bytes: int = 0  # of the file
    num_parts: int = 0
    is_whole: bool = False
    _part: _Part | None = None
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""

    def on_part_begin(self) -> None:
        self.num_parts += 1
        if self.num_parts > MAX_PARTS:
            raise InvalidRequest(f"body: must have at most {MAX_PARTS} parts", limit=MAX_PARTS)
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = map(bytes, self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            self._disposition = value

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if name in self.fields or (name == _FILE and self.filename is not None):
            raise InvalidRequest(f"{name[:64]}: is given twice", param=name[:64])
        self._part = _Part(name, None if filename is None else filename.decode("utf-8", "replace"))
        if name == _FILE:
            if self._part.filename is None:
                raise InvalidRequest("file: must be a file, with a filename", param=_FILE)
            self.filename = self._part.filename
        else:
            self.fields[name] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        if self._part.name == _FILE:
            self.data.extend(data[start:end])
            self.num_bytes += end - start
            return
        value = self.fields[self._part.name]
        value.extend(data[start:end])
        if len(value) > MAX_FIELD_BYTES:
            name = self._part.name[:64]
            raise InvalidRequest(
                f"{name}: must have at most {MAX_FIELD_BYTES} bytes", param=name, limit=MAX_FIELD_BYTES
            )

    def on_end(self) -> None:
        self.is_whole = True

    def texts(self) -> dict[str, str]:
        """The fields."""
        found = {}
        for name, value in self.fields.items():
            try:
                found[name] = value.decode()
            except UnicodeError:
                raise InvalidRequest(f"{name[:64]}: isn't UTF-8", param=name[:64]) from None
        return found


async def receive(request: Request, runtime: Runtime, tenant_id: str) -> Upload:
    """Write the file of the request's form as it comes; it stays open, for the caller to close or discard.

    Raises:
        UnsupportedMedia: it isn't a form with a file.
        BodyTooLarge: the file passes `max_file_bytes`, or StorageFull: all of the tenant's files do theirs.
        InvalidRequest: there is no file in it, or a field is too long or given twice (or MalformedBody).
    """
    most = runtime.settings.max_file_bytes
    parser, form = _parser(request)
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > most + _OVERHEAD_BYTES):
        raise _too_large(most)
    async with runtime.transaction() as conn:
        await _refuse_full(conn, runtime, tenant_id)
        file_id = await open_file(conn, tenant_id, purpose="", filename="")
    try:
        await _take(request, parser, form, most, lambda: _write(runtime, file_id, form))
        filename = (form.filename or "")[-MAX_NAME_CHARS:].replace("\x00", "")
        return Upload(file_id, filename or "file", form.texts())
    except BaseException:
        await give_up(runtime, file_id)
        raise


async def _take(
    request: Request, parser: MultipartParser, form: _Form, most: int, write: Callable[[], Awaitable[None]]
) -> None:
    """The whole body, from which `write` takes a piece whenever there is one."""
    async for chunk in request.stream():
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise MalformedBody(f"the body isn't multipart/form-data: {error}"[:200]) from None
        if form.num_bytes > most:
            raise _too_large(most)
        while len(form.data) >= PIECE_BYTES:
            await write()
    if not form.is_whole:
        raise MalformedBody("the body ends before its last boundary")
    if form.filename is None:
        raise InvalidRequest("file: is required", param=_FILE)
    if form.data:
        await write()


async def give_up(runtime: Runtime, file_id: UUID) -> None:
    """Take back what was written of a file that is refused."""
    async with runtime.transaction() as conn:
        await discard(conn, file_id)


async def _write(runtime: Runtime, file_id: UUID, form: _Form) -> None:
    async with runtime.transaction() as conn:
        await append(conn, file_id, bytes(form.data[:PIECE_BYTES]))
    del form.data[:PIECE_BYTES]


def _parser(request: Request) -> tuple[MultipartParser, _Form]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise UnsupportedMedia("Content-Type: must be multipart/form-data with a boundary", param="Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Content-Encoding: must be left out", param="Content-Encoding")
    form = _Form()
    names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
    callbacks = {f"on_{name}": getattr(form, f"on_{name}") for name in names}
    try:
        return MultipartParser(boundary, callbacks), form  # type: ignore[arg-type]
    except FormParserError:
        raise UnsupportedMedia("Content-Type: the boundary is too long", param="Content-Type") from None


async def _refuse_full(conn: AsyncConnection, runtime: Runtime, tenant_id: str) -> None:
    most, kept = runtime.settings.max_tenant_file_bytes, await kept_bytes(conn, tenant_id)
    if kept >= most:
        raise StorageFull(f"this tenant keeps {kept} bytes of files, at most {most} may be: delete some", limit=most)


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"file: must have at most {most} bytes", param=_FILE, limit=most)
