"""What does its owner do with a batch? Make, read, list, change and cancel it: rows that the pump then acts on."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Float, and_, case, cast, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.batches.events import announce
from app.batches.tables import batches
from app.batches.translate import ENDPOINTS
from app.errors import IdempotencyMismatch, InvalidRequest, NotCancellable, NotFound, Unavailable
from app.files.store import get_file
from app.ids import BATCH_PREFIX, new_id, parse_name
from app.jobs.states import Tier
from app.jobs.submit import Caller
from app.quotas.rights import check_rights

PURPOSE = "batch"
ACTIVE = ("validating", "in_progress", "finalizing", "cancelling")
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's row."""

    id: UUID
    tenant_id: str
    api_key_id: UUID | None
    endpoint: str
    input_file_id: UUID
    output_file_id: UUID | None
    error_file_id: UUID | None
    tier: Tier
    completion_window: str
    metadata: dict[str, str] | None
    status: str
    ending: str | None
    errors: list[dict[str, Any]] | None
    total: int
    completed: int
    failed: int
    model: str | None
    lines_per_s: float | None
    waiting_for: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None
    progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None

    @property
    def left(self) -> int:
        """Lines that have no result yet."""
        return self.total - self.completed - self.failed

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status not in ACTIVE

    @property
    def eta_s(self) -> float | None:
        """Seconds until all lines have their result, at the rate of lately; None where that isn't known, as when none ends any more."""
        if self.status != "in_progress" or not self.lines_per_s:
            return None
        return self.left / self.lines_per_s


# A rate is believed while lines end: after so long without one, in seconds and in lines at that rate, it says nothing of what is left.
RATE_HOLDS_S, RATE_HOLDS_LINES = 60, 10
_QUIET_S = cast(func.extract("epoch", func.statement_timestamp() - batches.c.progress_at), Float)
_IS_OVER = and_(_QUIET_S > RATE_HOLDS_S, _QUIET_S * batches.c.lines_per_s > RATE_HOLDS_LINES)
_RATE = case((_IS_OVER, null()), else_=batches.c.lines_per_s).label("lines_per_s")
COLUMNS: list[ColumnElement[Any]] = [_RATE if name == "lines_per_s" else batches.c[name] for name in Batch.__slots__]


@dataclass(frozen=True, slots=True)
class BatchWanted:
    """What a caller asks for when it makes a batch."""

    input_file_id: UUID
    endpoint: str
    completion_window: str
    tier: Tier
    metadata: dict[str, str] | None

    @property
    def hash(self) -> bytes:
        """Of what is asked for as it was understood: the same for two bodies that mean the same."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).digest()


@dataclass(frozen=True, slots=True)
class BatchChange:
    """What a caller wants otherwise; None stays. `deadline_s` counts from now, `completion_window` from the batch's creation."""

    tier: Tier | None = None
    completion_window: str | None = None
    deadline_s: float | None = None
    metadata: dict[str, str] | None = None


# Whether there is a batch to be moved on now.
IS_ANY_DUE = """EXISTS (
    SELECT 1 FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND due_at <= statement_timestamp())"""


def batch_name(batch_id: UUID) -> str:
    """The id that callers see: `batch_` and 32 hex digits."""
    return BATCH_PREFIX + batch_id.hex


def batch_id_of(name: str) -> UUID:
    """The id behind a name.

    Raises:
        NotFound: it can't be one.
    """
    batch_id = parse_name(BATCH_PREFIX, name)
    if batch_id is None:
        raise NotFound(f"there is no batch {name[:64]!r}: ids look like {BATCH_PREFIX} and 32 hex digits")
    return batch_id


def window_of(text: str, *, most_s: float) -> timedelta:
    """How long a completion window is: a number with s, m, h or d behind it.

    Raises:
        InvalidRequest: it isn't one, or passes `most_s`.
    """
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= most_s:
        raise InvalidRequest(
            f"completion_window: must be a time such as 24h, at most {most_s / 3600:g}h",
            param="completion_window",
            limit=most_s,
        )
    return timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class MadeBatch:
    """A batch that was asked for. `replayed`: it was made before, under the same Idempotency-Key."""

    batch: Batch
    replayed: bool = False


async def create_batch(
    conn: AsyncConnection, caller: Caller, wanted: BatchWanted, *, most_s: float, key: str | None = None
) -> MadeBatch:
    """A batch that waits for its validation, in the caller's transaction; or, with `key`, the one that was made under it before.

    Raises:
        IdempotencyMismatch: the key came with another body before.
        NotFound: the tenant has no such file.
        InvalidRequest: the file has another purpose, the endpoint isn't known, or the window isn't one.
        TenantSuspended, TierNotAllowed: its tenant may not.
    """
    first = None if key is None else await _made_under(conn, caller.tenant_id, key, wanted)
    if first is not None:
        return first
    check_rights(caller.rights, tier=wanted.tier)
    if wanted.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint: must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    window = window_of(wanted.completion_window, most_s=most_s)
    file = await get_file(conn, caller.tenant_id, wanted.input_file_id, lock=True)
    if file.purpose != PURPOSE:
        raise InvalidRequest(
            f"input_file_id: the file's purpose must be {PURPOSE!r}, and it is {file.purpose!r}", param="input_file_id"
        )
    row = {
        "id": new_id(),
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "endpoint": wanted.endpoint,
        "input_file_id": wanted.input_file_id,
        "tier": wanted.tier,
        "completion_window": wanted.completion_window,
        "metadata": wanted.metadata,
        "expires_at": func.now() + window,
        "idempotency_key": key,
        "body_hash": None if key is None else wanted.hash,
    }
    # Of requests at once under one key the others wait here for the first one's commit.
    made = (
        await conn.execute(insert(batches).values(**row).on_conflict_do_nothing().returning(*COLUMNS))
    ).one_or_none()
    if made is not None:
        return MadeBatch(Batch(*made))
    assert key is not None, "only a key can be there already"
    first = await _made_under(conn, caller.tenant_id, key, wanted)
    if first is None:
        raise Unavailable("the batch of this Idempotency-Key is being deleted just now: send the request again")
    return first


async def _made_under(conn: AsyncConnection, tenant_id: str, key: str, wanted: BatchWanted) -> MadeBatch | None:
    query = select(*COLUMNS, batches.c.body_hash).where(
        batches.c.tenant_id == tenant_id, batches.c.idempotency_key == key
    )
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    if row.body_hash != wanted.hash:
        raise IdempotencyMismatch("this Idempotency-Key was used with another body; use a new key for a new batch")
    return MadeBatch(Batch(*row[:-1]), replayed=True)


async def get_batch(conn: AsyncConnection, tenant_id: str, batch_id: UUID, *, lock: bool = False) -> Batch:
    """The tenant's batch.

    Raises:
        NotFound: the tenant has no such batch.
    """
    query = select(*COLUMNS).where(batches.c.id == batch_id, batches.c.tenant_id == tenant_id)
    row = (await conn.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no batch {batch_name(batch_id)}")
    return Batch(*row)


async def list_batches(conn: AsyncConnection, tenant_id: str, *, limit: int, after: UUID | None) -> Sequence[Batch]:
    """A page of the tenant's batches, newest first, from the one after `after` on."""
    query = select(*COLUMNS).where(batches.c.tenant_id == tenant_id).order_by(batches.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(batches.c.id < after)
    return [Batch(*row) for row in await conn.execute(query)]


async def change_batch(
    conn: AsyncConnection, caller: Caller, batch_id: UUID, change: BatchChange, *, most_s: float
) -> Batch:
    """The batch with another tier, deadline or metadata, in the caller's transaction. The pump moves lines that wait in the queue.

    Raises:
        NotFound: the tenant has no such batch.
        NotCancellable: it has ended, or is about to.
        InvalidRequest: the window isn't one.
        TierNotAllowed: its tenant may not use the tier.
    """
    batch = await get_batch(conn, caller.tenant_id, batch_id, lock=True)
    if batch.status not in {"validating", "in_progress"} and change != BatchChange(metadata=change.metadata):
        raise NotCancellable(
            f"{batch_name(batch_id)} is {batch.status}: its tier and deadline can't be changed any more",
            batch_status=batch.status,
        )
    values: dict[str, Any] = {"due_at": func.statement_timestamp()}
    if change.tier is not None:
        check_rights(caller.rights, tier=change.tier)
        values["tier"] = change.tier
    if change.completion_window is not None:
        values["expires_at"] = batch.created_at + window_of(change.completion_window, most_s=most_s)
        values["completion_window"] = change.completion_window
    if change.deadline_s is not None:
        if change.deadline_s > most_s:
            raise InvalidRequest(f"deadline_s: must be at most {most_s:g}", param="deadline_s", limit=most_s)
        values["expires_at"] = func.statement_timestamp() + timedelta(seconds=change.deadline_s)
    if change.metadata is not None:
        values["metadata"] = change.metadata
    changed = update(batches).where(batches.c.id == batch_id).values(**values).returning(*COLUMNS)
    return Batch(*(await conn.execute(changed)).one())


async def cancel_batch(conn: AsyncConnection, tenant_id: str, batch_id: UUID) -> Batch:
    """Ask for the batch's end, in the caller's transaction; asking again changes nothing. The pump stops its jobs.

    Raises:
        NotFound: the tenant has no such batch.
        NotCancellable: it has ended otherwise, or is about to.
    """
    batch = await get_batch(conn, tenant_id, batch_id, lock=True)
    if batch.status in {"cancelling", "cancelled"}:
        return batch
    if batch.status not in {"validating", "in_progress"}:
        raise NotCancellable(f"{batch_name(batch_id)} is {batch.status}", batch_status=batch.status)
    now = func.statement_timestamp()
    values: dict[str, Any] = {"status": "cancelling", "cancelling_at": now, "due_at": now, "waiting_for": None}
    if batch.status == "validating":  # no line was looked at: there is nothing to stop
        values |= {"status": "cancelled", "cancelled_at": now}
    cancelled = update(batches).where(batches.c.id == batch_id).values(**values).returning(*COLUMNS)
    after = Batch(*(await conn.execute(cancelled)).one())
    if after.has_ended:
        await announce(conn, after.tenant_id, batch_name(after.id), after.status, after.metadata)
    return after
