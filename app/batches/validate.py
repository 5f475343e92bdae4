"""Does a batch hold? All of its lines or none: read in pieces, checked one by one, then written in one transaction."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.batches.events import announce
from app.batches.order import ranks_of
from app.batches.parsing import MAX_MESSAGE_CHARS, BatchReader, Line, LineError
from app.batches.store import Batch, batch_name
from app.batches.tables import batches
from app.db import storable
from app.errors import InvalidRequest, UnknownModel
from app.files.store import read_pieces
from app.jobs.models import ModelCatalog
from app.killpoints import kill_point
from app.settings import Settings

_PAGE = 5000
_INSERT = text("""
    INSERT INTO batch_lines (batch_id, number, custom_id, rank, start, length)
    SELECT :batch, * FROM unnest(CAST(:numbers AS integer[]), CAST(:ids AS text[]), CAST(:ranks AS integer[]),
                                 CAST(:starts AS bigint[]), CAST(:lengths AS integer[]))
""")


async def validate(db: AsyncEngine, catalog: ModelCatalog, settings: Settings, batch: Batch) -> bool:
    """validating -> in_progress with all its lines, or failed with its errors.

    Any number may do so at once: the last transaction asks whether it is still to be done.

    Returns:
        Whether this process has decided it.
    """
    reader = BatchReader(batch.endpoint, settings)
    try:
        async for piece in read_pieces(db, batch.input_file_id):
            await asyncio.to_thread(reader.feed, piece)
        await asyncio.to_thread(reader.close)
    except InvalidRequest as error:
        reader.errors, reader.num_errors = [LineError("file_not_found", error.detail)], 1
    else:
        reader.add_errors(await _unknown_models(catalog, settings, reader.lines))
    ranks = [] if reader.num_errors else await asyncio.to_thread(ranks_of, [each.key for each in reader.lines])
    kill_point("batches.before_validate_commit")
    async with db.begin() as conn:
        decided = await _decide(conn, batch, reader, ranks)
    kill_point("batches.after_validate_commit")
    return decided


async def _decide(conn: AsyncConnection, batch: Batch, reader: BatchReader, ranks: Sequence[int]) -> bool:
    now = func.statement_timestamp()
    models = {each.model for each in reader.lines}
    values: dict[str, Any] = {"status": "failed", "failed_at": now, "errors": storable(reader.documents())}
    if not reader.num_errors:
        model = next(iter(models)) if len(models) == 1 else None
        values = {"status": "in_progress", "in_progress_at": now, "progress_at": now, "due_at": now, "model": model}
        values["total"] = len(reader.lines)
    still = batches.c.id == batch.id, batches.c.status == "validating"
    decided = await conn.scalar(update(batches).where(*still).values(**values).returning(batches.c.id))
    if decided is None:
        return False
    await announce(conn, batch.tenant_id, batch_name(batch.id), str(values["status"]), batch.metadata)
    if not reader.num_errors:
        await _insert_lines(conn, batch.id, reader.lines, ranks)
    return True


async def _insert_lines(conn: AsyncConnection, batch_id: UUID, lines: Sequence[Line], ranks: Sequence[int]) -> None:
    pairs = list(zip(lines, ranks, strict=True))
    for first in range(0, len(pairs), _PAGE):
        page = pairs[first : first + _PAGE]
        await conn.execute(
            _INSERT,
            {
                "batch": batch_id,
                "numbers": [line.number for line, _ in page],
                "ids": [line.custom_id for line, _ in page],
                "ranks": [rank for _, rank in page],
                "starts": [line.start for line, _ in page],
                "lengths": [line.length for line, _ in page],
            },
        )


async def _unknown_models(catalog: ModelCatalog, settings: Settings, lines: Sequence[Line]) -> list[LineError]:
    """One error for each line whose model nobody serves."""
    reasons: dict[str | None, str] = {}
    for model in {line.model for line in lines}:
        try:
            await catalog.find(model, default=settings.default_model)
        except UnknownModel as error:
            reasons[model] = error.detail[:MAX_MESSAGE_CHARS]
    wrong = (line for line in lines if line.model in reasons)
    return [LineError("model_not_found", reasons[line.model], line.number, "model") for line in wrong]
