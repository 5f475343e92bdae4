"""How do a batch's lines become jobs? Some at a time, in their order, each line's row and its job in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.batches.bodies import unfit_line
from app.batches.lines import Told, line_id, lock_batch, record
from app.batches.parsing import decode_line
from app.batches.store import Batch
from app.batches.translate import Body, names_in, to_request
from app.errors import (
    BudgetExhausted,
    InvalidRequest,
    OverTenantLimit,
    PenstockError,
    QueueLimitReached,
    TenantSuspended,
    Unavailable,
)
from app.files.store import Span, read_spans
from app.jobs.breakers import BreakerBoard, take_probe
from app.jobs.models import Model, ModelCatalog
from app.jobs.prepare import PreparedJob, prepare
from app.jobs.spending import prices_of
from app.jobs.submit import Accepted, Caller, accept, ask_of
from app.jobs.tokenizing import PromptEncoder
from app.killpoints import kill_point
from app.openai.refusals import in_openais_words
from app.quotas.rights import RIGHT_COLUMNS, Rights, check_size, read_rights
from app.quotas.tables import tenants
from app.settings import Settings

CHUNK = 500  # lines that one transaction submits
MOST_BYTES = 8 * 2**20  # of its lines, and one line more; while one is written, as many are prepared
_BUDGET_RETRY_S = 2.0
_CAP_RETRY_S = 1.0
_CHANGED_RETRY_S = 0.2
_BREAKER_RETRY_S = 5.0
_AHEAD_FOR_S = 2.0  # of one call: the batch's end, cancels and other batches wait for it

_ROOM = text("SELECT count(*) FROM batch_lines WHERE batch_id = :batch AND state = 'submitted'")
_NEXT = text("""
    SELECT number, custom_id, start, length, rank FROM (
        SELECT number, custom_id, start, length, rank,
               sum(length) OVER (ORDER BY rank ROWS UNBOUNDED PRECEDING) - length AS before
        FROM batch_lines WHERE batch_id = :batch AND state = 'waiting' AND rank > :after ORDER BY rank LIMIT :most) next
    WHERE before < :bytes ORDER BY rank
""")
_OPEN = text(
    "SELECT number FROM batch_lines WHERE batch_id = :batch AND number = ANY(CAST(:numbers AS integer[])) AND state = 'waiting'"
)
_BIND = text("""
    UPDATE batch_lines l SET state = 'submitted', job_id = s.job_id
    FROM unnest(CAST(:numbers AS integer[]), CAST(:jobs AS uuid[])) AS s (number, job_id)
    WHERE l.batch_id = :batch AND l.number = s.number AND l.state = 'waiting'
    RETURNING l.number
""")


@dataclass(frozen=True, slots=True)
class AskedLine:
    """A line as the file has it."""

    number: int
    custom_id: str
    body: Body


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """A line whose request was checked against its model."""

    line: AskedLine
    job: PreparedJob


@dataclass(slots=True)
class Chunk:
    """The next lines of a batch: those that can be jobs, and those that never can."""

    ready: list[ReadyLine]
    failed: list[Told]

    def __len__(self) -> int:
        return len(self.ready) + len(self.failed)


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk, where it ends in the batch's order, and how many lines the window has room for beside it."""

    chunk: Chunk
    last_rank: int
    room: int


@dataclass(frozen=True, slots=True)
class Pumped:
    """What a call did. `waiting_for` says why it didn't do more, where that isn't the window; then `retry_s` says when to try again."""

    accepted: Sequence[Accepted] = ()
    num_failed: int = 0
    waiting_for: dict[str, Any] | None = None
    retry_s: float = 0.0

    def and_then(self, later: "Pumped") -> "Pumped":
        """This, and what was done after it."""
        return replace(later, accepted=[*self.accepted, *later.accepted], num_failed=self.num_failed + later.num_failed)


Nominate = Callable[[Sequence[Accepted]], Awaitable[None]]
Models = dict[str | None, tuple[Model, PromptEncoder] | InvalidRequest]


class _Held(Exception):
    """Nothing of this chunk can be submitted now."""

    def __init__(self, reason: str, detail: str, retry_s: float) -> None:
        super().__init__(detail)
        self.pumped = Pumped(waiting_for={"reason": reason, "detail": detail}, retry_s=retry_s)


class Pump:
    """Submits lines of batches. Holds nothing: what it was about is in Postgres, and another process may go on with it."""

    def __init__(self, db: AsyncEngine, catalog: ModelCatalog, breakers: BreakerBoard, settings: Settings) -> None:
        self._db = db
        self._catalog = catalog
        self._breakers = breakers
        self._settings = settings

    async def submit(self, batch: Batch, nominate: Nominate) -> Pumped:
        """Fill the batch's window with its next lines, some at a time. Repeating it, at once or elsewhere, submits no line twice.

        `nominate` gets the jobs of each part after its commit. While one part is written, the next is prepared; but no longer than
        `_AHEAD_FOR_S`, and not beyond a part of which something was held back.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _AHEAD_FOR_S
        done = Pumped()
        part = await self._next(batch, -1, await self._room(batch))
        while part is not None:
            is_last = batch.waiting_for is not None or loop.time() >= until
            following = None if is_last else asyncio.create_task(self._next(batch, part.last_rank, part.room))
            try:
                now = await self._put(batch, part.chunk)
                await nominate(now.accepted)
                done = done.and_then(now)
                is_whole = len(now.accepted) + now.num_failed == len(part.chunk)
                part = await following if following is not None and is_whole else None
            finally:
                if following is not None:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
        return done

    async def _room(self, batch: Batch) -> int:
        async with self._db.connect() as conn:
            submitted = await conn.scalar(_ROOM, {"batch": batch.id})
        return self._settings.batch_window_lines - int(submitted or 0)

    async def _next(self, batch: Batch, after: int, room: int) -> _Part | None:
        """The lines after this rank, as many as the window has room for; None where there are none, or the room isn't worth it."""
        if room < max(1, min(CHUNK, self._settings.batch_window_lines // 4)):
            return None  # a few more would cost a transaction, and don't hurry
        # While something holds the batch up, one line is enough to see whether it still does.
        most = 1 if batch.waiting_for is not None else min(CHUNK, room)
        async with self._db.connect() as conn:
            wanted = {"batch": batch.id, "after": after, "most": most, "bytes": MOST_BYTES}
            rows = (await conn.execute(_NEXT, wanted)).all()
            if not rows:
                return None
            spans = [Span(row.number, row.start, row.length) for row in rows]
            raws = await read_spans(conn, batch.input_file_id, spans)
            rights = await _rights(conn, batch.tenant_id)
        chunk = await self._prepare(batch, rights, [(row.number, row.custom_id, raws[row.number]) for row in rows])
        return _Part(chunk, rows[-1].rank, room - len(rows))

    async def _put(self, batch: Batch, chunk: Chunk) -> Pumped:
        """As much of the chunk as can be submitted now."""
        if not chunk.ready:
            return await self._write(batch, chunk)
        try:
            return await self._write_what_fits(batch, await self._probed(chunk))
        except _Held as held:
            return held.pumped

    async def _prepare(self, batch: Batch, rights: Rights, lines: list[tuple[int, str, bytes]]) -> Chunk:
        """Count the tokens of the lines' prompts, in a thread."""
        models: Models = {}
        asked = await asyncio.to_thread(_read, lines)
        for each in asked:
            name = each.body.get("model")
            if name not in models:
                try:
                    model = await self._catalog.find(name, default=self._settings.default_model)
                    models[name] = model, await self._catalog.encoder(model)
                except InvalidRequest as error:  # the default isn't what it was at the validation
                    models[name] = error
        return await asyncio.to_thread(prepare_lines, batch, asked, models, rights, self._settings)

    async def _probed(self, chunk: Chunk) -> Chunk:
        """As much of the chunk as the breakers of its models let through now.

        Raises:
            _Held: nothing.
        """
        first = chunk.ready[0].job.model.name
        standing = await self._breakers.standing(first)
        if standing is not None and standing.is_refusing:
            detail = f"{first!r} fails too often to take new jobs now"
            raise _Held("breaker", detail, max(1.0, min(_BREAKER_RETRY_S, standing.retry_in_s)))
        if standing is not None and standing.shown == "half_open":
            return Chunk(chunk.ready[:1], chunk.failed)
        same = [each for each in chunk.ready if each.job.model.name == first]
        return Chunk(same, chunk.failed)

    async def _write_what_fits(self, batch: Batch, chunk: Chunk) -> Pumped:
        """The most of the chunk that budgets and caps hold, found by halves."""
        while True:
            try:
                return await self._write(batch, chunk)
            except (BudgetExhausted, QueueLimitReached) as error:
                if len(chunk.ready) > 1:
                    chunk = Chunk(chunk.ready[: len(chunk.ready) // 2], chunk.failed)
                    continue
                reason = "budget" if isinstance(error, BudgetExhausted) else "queue_limit"
                if isinstance(error, BudgetExhausted) and await self._never_fits(batch, chunk.ready[0].job, error):
                    return await self._write(batch, _without_first(batch, chunk, error))
                raise _Held(reason, error.detail, _BUDGET_RETRY_S if reason == "budget" else _CAP_RETRY_S) from error
            except Unavailable as error:  # a budget was changed just now
                raise _Held("budget", error.detail, _CHANGED_RETRY_S) from error
            except OverTenantLimit as error:
                if len(chunk.ready) > 1:  # all of them together: by halves the one is found that passes it by itself
                    chunk = Chunk(chunk.ready[: len(chunk.ready) // 2], chunk.failed)
                    continue
                return await self._write(batch, _without_first(batch, chunk, error))
            except TenantSuspended as error:
                raise _Held("suspended", error.detail, _BUDGET_RETRY_S) from error

    async def _never_fits(self, batch: Batch, job: PreparedJob, error: BudgetExhausted) -> bool:
        """Whether even an empty window of the budget that refuses could never hold the job."""
        async with self._db.connect() as conn:
            prices = await prices_of(conn, {job.model.name})
        wanted = ask_of(_caller(batch), job, prices[job.model.name]).wanted()
        return wanted.amount(str(error.extra["metric"])) > int(error.extra["limit"])

    async def _write(self, batch: Batch, chunk: Chunk) -> Pumped:
        """Jobs, what leads to them, and errors: in one transaction, whose commit makes all of it true."""
        async with self._db.begin() as conn:
            now = await lock_batch(conn, batch.id, {"in_progress"})
            if now is None:
                return Pumped()  # cancelled or expired meanwhile
            # Bound first: the budgets, which others wait for, are to be locked last.
            bound = {
                "numbers": [each.line.number for each in chunk.ready],
                "jobs": [each.job.id for each in chunk.ready],
            }
            bound_now = set(await conn.scalars(_BIND, {"batch": batch.id, **bound}))
            ready = [each for each in chunk.ready if each.line.number in bound_now]
            accepted = await accept(conn, _caller(batch), [each.job for each in ready])
            if ready:
                await self._take_probe(conn, ready)
            failed = await _still_open(conn, batch, chunk.failed)
            await record(conn, now, [], failed)
            kill_point("batches.before_submit_commit")
        kill_point("batches.after_submit_commit")
        return Pumped(accepted, len(failed))

    async def _take_probe(self, conn: AsyncConnection, ready: Sequence[ReadyLine]) -> None:
        model = ready[0].job.model.name
        standing = await self._breakers.standing(model)
        if standing is not None and await take_probe(conn, model) is not None:
            raise _Held("breaker", f"others took the last probe of {model!r}", 1.0)


def prepare_lines(
    batch: Batch,
    lines: Sequence[AskedLine],
    models: Models,
    rights: Rights,
    settings: Settings,
) -> Chunk:
    """Each line's job, or the error that it gets instead."""
    chunk = Chunk([], [])
    for line in lines:
        try:
            found = models[line.body.get("model")]
            if isinstance(found, InvalidRequest):
                raise found
            model, encoder = found
            request = to_request(batch.endpoint, line.body).model_copy(update={"tier": batch.tier})
            job = prepare(request, model, encoder, settings)
            check_size(
                rights, prompt_tokens=len(job.prompt_ids), n=request.n, max_tokens=job.max_tokens,
                prompt_field="prompt" if request.messages is None else "messages",
            )  # fmt: skip
        except InvalidRequest as error:
            chunk.failed.append(_unfit(batch, line, error))
        else:
            chunk.ready.append(ReadyLine(line, job))
    return chunk


def _without_first(batch: Batch, chunk: Chunk, error: PenstockError) -> Chunk:
    """What is written where the first line, by itself, can never be a job."""
    return Chunk([], [*chunk.failed, _unfit(batch, chunk.ready[0].line, error)])


async def _still_open(conn: AsyncConnection, batch: Batch, failed: Sequence[Told]) -> list[Told]:
    if not failed:
        return []
    still_open = set(await conn.scalars(_OPEN, {"batch": batch.id, "numbers": [each.number for each in failed]}))
    return [each for each in failed if each.number in still_open]


async def _rights(conn: AsyncConnection, tenant_id: str) -> Rights:
    return read_rights((await conn.execute(select(*RIGHT_COLUMNS).where(tenants.c.id == tenant_id))).one())


def _caller(batch: Batch) -> Caller:
    return Caller(batch.tenant_id, batch.api_key_id)


def _read(lines: Sequence[tuple[int, str, bytes]]) -> list[AskedLine]:
    return [AskedLine(number, custom_id, decode_line(raw)["body"]) for number, custom_id, raw in lines]


def _unfit(batch: Batch, line: AskedLine, error: PenstockError) -> Told:
    """The line's error as a call of its endpoint would get it."""
    refused = in_openais_words(error, names_in(batch.endpoint, line.body))
    return Told(line.number, unfit_line(line.custom_id, line_id(batch.id, line.number), refused))
