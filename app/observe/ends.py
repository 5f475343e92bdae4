"""How are jobs' ends counted? By whoever ends them, when the transaction that ended them is over: what was rolled back was no end."""

from collections import Counter as Count
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.observe.metrics import counter

_NOTED = "penstock.ends"  # in this transaction
_COMMITTING = "penstock.ends.committing"


def count_ends(engine: AsyncEngine, registry: CollectorRegistry) -> Counter:
    """Count in this registry what connections of `engine` end. Returns `penstock_jobs_total`.

    A COMMIT whose reply is lost isn't counted: whether it went through isn't known. Its repetition finds the jobs ended.
    """
    ends = counter("penstock_jobs_total", registry)

    def checked_out(_: Any, record: Any, __: Any) -> None:
        record.info[_NOTED] = []

    def committing(conn: Any) -> None:  # it may fail yet
        conn.info[_COMMITTING], conn.info[_NOTED] = conn.info.get(_NOTED, []), []

    def failed(context: Any) -> None:
        if context.connection is not None and not context.connection.invalidated:
            context.connection.info.pop(_COMMITTING, None)

    def rolled_back(conn: Any) -> None:
        if not conn.invalidated:  # else it has lost its memory, too
            conn.info[_NOTED] = []

    def begun(conn: Any) -> None:
        count(conn.info)

    def checked_in(connection: Any, record: Any) -> None:
        record.info.pop(_NOTED, None)
        if connection is not None:  # else it was lost
            count(record.info)

    def count(info: dict[Any, Any]) -> None:
        """The COMMIT before this went through."""
        for labels, times in Count(info.pop(_COMMITTING, ())).items():
            ends.labels(*labels).inc(times)

    for name, listener in (
        ("checkout", checked_out), ("begin", begun), ("commit", committing), ("handle_error", failed),
        ("rollback", rolled_back), ("checkin", checked_in),
    ):  # fmt: skip
        event.listen(engine.sync_engine, name, listener)
    return ends


def note_ends(conn: AsyncConnection, ended: Iterable[tuple[str, str, str]]) -> None:
    """These jobs (status, tier, model) end in this transaction. Nothing where nobody counts."""
    noted = conn.info.get(_NOTED)
    if noted is not None:
        noted.extend(ended)
