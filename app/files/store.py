"""How are a file's bytes kept? In pieces, in Postgres: appended by one writer, read from anywhere, gone with their row."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.errors import FileInUse, InvalidRequest, NotFound
from app.files.tables import file_pieces, files
from app.ids import FILE_PREFIX, new_id, parse_name

PIECE_BYTES = 256 * 2**10  # of an upload: a transaction each
_PAGE_PIECES = 8  # that a reader holds in memory at a time


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as its owner sees it."""

    id: UUID
    purpose: str
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None


_SEEN = [files.c[name] for name in StoredFile.__slots__]


def file_name(file_id: UUID) -> str:
    """The id that callers see: `file-` and 32 hex digits."""
    return FILE_PREFIX + file_id.hex


def file_id_of(name: str) -> UUID:
    """The id behind a name.

    Raises:
        NotFound: it can't be one.
    """
    file_id = parse_name(FILE_PREFIX, name)
    if file_id is None:
        raise NotFound(f"there is no file {name[:64]!r}: ids look like {FILE_PREFIX} and 32 hex digits")
    return file_id


async def open_file(
    conn: AsyncConnection, tenant_id: str, *, purpose: str, filename: str, batch_id: UUID | None = None
) -> UUID:
    """A new file without a byte, which only its writer knows of until `close_file`."""
    file_id = new_id()
    await conn.execute(
        insert(files).values(id=file_id, tenant_id=tenant_id, purpose=purpose, filename=filename, batch_id=batch_id)
    )
    return file_id


async def append(conn: AsyncConnection, file_id: UUID, data: bytes) -> None:
    """Write these bytes at the end of an open file. Its row is locked: two writers of one file take turns.

    Raises:
        NotFound: the file isn't there any more: it was given up.
    """
    row = (
        await conn.execute(
            update(files)
            .where(files.c.id == file_id, files.c.status == "open")
            .values(bytes=files.c.bytes + len(data), pieces=files.c.pieces + 1, touched_at=func.statement_timestamp())
            .returning(files.c.bytes, files.c.pieces)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("the upload stood still for too long and was given up: send the file again")
    await conn.execute(
        insert(file_pieces).values(file_id=file_id, number=row.pieces, start=row.bytes - len(data), data=data)
    )


async def close_file(
    conn: AsyncConnection, file_id: UUID, *, purpose: str | None = None, filename: str | None = None,
    ttl_s: float | None = None,
) -> StoredFile:  # fmt: skip
    """open -> processed: whole, and seen by its owner. It goes `ttl_s` from now; None: when it is deleted.

    Raises:
        NotFound: the file isn't there any more.
    """
    values: dict[str, Any] = {"status": "processed"}
    values |= {"purpose": purpose} if purpose is not None else {}
    values |= {"filename": filename} if filename is not None else {}
    if ttl_s is not None:
        values["expires_at"] = func.statement_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, ttl_s)
    closing = update(files).where(files.c.id == file_id, files.c.status == "open").values(**values).returning(*_SEEN)
    row = (await conn.execute(closing)).one_or_none()
    if row is None:
        raise NotFound("the upload stood still for too long and was given up: send the file again")
    return StoredFile(*row)


async def discard(conn: AsyncConnection, file_id: UUID) -> None:
    """Give an open file up, with its bytes."""
    await conn.execute(delete(files).where(files.c.id == file_id, files.c.status == "open"))


def _seen(tenant_id: str) -> Select[Any]:
    """What its owner may see: whole, and not past its time."""
    return select(*_SEEN).where(
        files.c.tenant_id == tenant_id,
        files.c.status == "processed",
        (files.c.expires_at.is_(None)) | (files.c.expires_at > func.statement_timestamp()),
    )


async def get_file(conn: AsyncConnection, tenant_id: str, file_id: UUID, *, lock: bool = False) -> StoredFile:
    """The tenant's file; with `lock` it can't be deleted until the transaction ends.

    Raises:
        NotFound: the tenant has no such file.
    """
    query = _seen(tenant_id).where(files.c.id == file_id)
    row = (await conn.execute(query.with_for_update(key_share=True, read=True) if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no file {file_name(file_id)}")
    return StoredFile(*row)


async def list_files(
    conn: AsyncConnection, tenant_id: str, *, purpose: str | None, limit: int, after: UUID | None, ascending: bool
) -> Sequence[StoredFile]:
    """A page of the tenant's files, newest first unless `ascending`, from the one after `after` on."""
    query = _seen(tenant_id).limit(limit)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        query = query.where(files.c.id > after if ascending else files.c.id < after)
    rows = await conn.execute(query.order_by(files.c.id.asc() if ascending else files.c.id.desc()))
    return [StoredFile(*row) for row in rows]


async def kept_bytes(conn: AsyncConnection, tenant_id: str) -> int:
    """How many bytes the tenant's files have together, those under way too."""
    total = await conn.scalar(select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant_id == tenant_id))
    return int(total or 0)


# In the room above there may be a batch that reads it: the WHERE says so without knowing that room.
_DELETE = text("""
    DELETE FROM files f WHERE f.id = :id AND f.tenant_id = :tenant AND f.status = 'processed'
      AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.input_file_id = f.id
                      AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
    RETURNING f.id
""")
_LOCK = text("SELECT 1 FROM files WHERE id = :id AND tenant_id = :tenant AND status = 'processed' FOR UPDATE")


async def delete_file(conn: AsyncConnection, tenant_id: str, file_id: UUID) -> None:
    """Delete the tenant's file, bytes and all, in the caller's transaction.

    Raises:
        NotFound: the tenant has no such file.
        FileInUse: a batch that hasn't ended reads it.
    """
    named = {"id": file_id, "tenant": tenant_id}
    if (await conn.execute(_LOCK, named)).one_or_none() is None:
        raise NotFound(f"there is no file {file_name(file_id)}")
    if await conn.scalar(_DELETE, named) is None:
        raise FileInUse(f"a batch that hasn't ended reads {file_name(file_id)}: cancel the batch first")


async def read_pieces(db: AsyncEngine, file_id: UUID) -> AsyncIterator[bytes]:
    """The file's bytes in order, as far as they are there now, some pieces in memory at a time, each page in a short transaction.

    Raises:
        InvalidRequest: the file was deleted in the middle.
    """
    async with db.connect() as conn:
        num_pieces = int(await conn.scalar(select(files.c.pieces).where(files.c.id == file_id)) or 0)
    p = file_pieces.c
    for first in range(1, num_pieces + 1, _PAGE_PIECES):
        last = min(first + _PAGE_PIECES - 1, num_pieces)
        page = select(p.data).where(p.file_id == file_id, p.number.between(first, last)).order_by(p.number)
        async with db.connect() as conn:
            found = (await conn.scalars(page)).all()
        if len(found) != last - first + 1:
            raise InvalidRequest(f"{file_name(file_id)} was deleted while it was read")
        for each in found:
            yield each


_PARTS = text("""
    SELECT w.number, substring(p.data FROM CAST(greatest(w.start - p.start, 0) + 1 AS integer)
                               FOR CAST(w.start + w.length - greatest(w.start, p.start) AS integer)) AS part
    FROM unnest(CAST(:numbers AS integer[]), CAST(:starts AS bigint[]), CAST(:lengths AS integer[]))
        AS w (number, start, length)
    JOIN file_pieces p ON p.file_id = :file
     AND p.number BETWEEN w.start / :piece + 1 AND (w.start + w.length - 1) / :piece + 1
    ORDER BY w.number, p.number
""")


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a file, and the caller's own number for them."""

    number: int
    start: int
    length: int


async def read_spans(conn: AsyncConnection, file_id: UUID, spans: Sequence[Span]) -> dict[int, bytes]:
    """The bytes of these spans of an uploaded file, whose pieces all have PIECE_BYTES but the last."""
    wanted = {
        "file": file_id, "piece": PIECE_BYTES, "numbers": [each.number for each in spans],
        "starts": [each.start for each in spans], "lengths": [each.length for each in spans],
    }  # fmt: skip
    found: dict[int, bytes] = {}
    for row in await conn.execute(_PARTS, wanted):
        found[row.number] = found.get(row.number, b"") + row.part
    return found


async def forget_files(conn: AsyncConnection, *, idle_s: float, most: int) -> int:
    """Delete files past their time, and uploads that have stood still for `idle_s`; return how many."""
    gone = text("""
        DELETE FROM files WHERE id IN (
            SELECT id FROM files f WHERE (expires_at < statement_timestamp()
                    AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.input_file_id = f.id
                                    AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')))
               OR (status = 'open' AND batch_id IS NULL
                   AND touched_at < statement_timestamp() - make_interval(secs => :idle))
            LIMIT :most FOR UPDATE SKIP LOCKED)
    """)
    return int((await conn.execute(gone, {"idle": idle_s, "most": most})).rowcount)
