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
    listen = event.listen

    def checked_out(_: Any, record: Any, __: Any) -> None:
        record.info[_NOTED] = []

    def committing(conn: Any) -> None:
        conn.info.setdefault(_COMMITTING, []).extend(conn.info.get(_NOTED, ()))
        conn.info[_NOTED] = []

    def rolled_back(conn: Any) -> None:
        if conn.invalidated:  # it has lost its memory, too
            return
        conn.info[_NOTED] = []
        conn.info.pop(_COMMITTING, None)  # also where the COMMIT itself failed

    def checked_in(connection: Any, record: Any) -> None:
        ended = record.info.pop(_COMMITTING, ())
        record.info.pop(_NOTED, None)
        if connection is not None:  # else it was lost
            for labels, times in Count(ended).items():
                ends.labels(*labels).inc(times)

    listen(engine.sync_engine, "checkout", checked_out)
    listen(engine.sync_engine, "commit", committing)
    listen(engine.sync_engine, "rollback", rolled_back)
    listen(engine.sync_engine, "checkin", checked_in)
    return ends


def note_ends(conn: AsyncConnection, ended: Iterable[tuple[str, str, str]]) -> None:
    """These jobs (status, tier, model) end in this transaction. Nothing where nobody counts."""
    noted = conn.info.get(_NOTED)
    if noted is not None:
        noted.extend(ended)
