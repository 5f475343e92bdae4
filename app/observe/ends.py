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
_SAVED = "penstock.ends.saved"  # how many were noted when each savepoint was made that is open


def count_ends(engine: AsyncEngine, registry: CollectorRegistry) -> Counter:
    """Count in this registry what connections of `engine` end. Returns `penstock_jobs_total`.

    A COMMIT whose reply is lost isn't counted: whether it went through isn't known. Its repetition finds the jobs ended.
    """
    ends = counter("penstock_jobs_total", registry)
    listening = _Listening(ends)
    for name in (
        "checkout", "begin", "commit", "handle_error", "rollback", "checkin", "savepoint", "release_savepoint",
        "rollback_savepoint",
    ):  # fmt: skip
        event.listen(engine.sync_engine, name, getattr(listening, name))
    return ends


class _Listening:
    """What SQLAlchemy's events say of a connection, by their names. What ends in a transaction is kept with its connection."""

    def __init__(self, ends: Counter) -> None:
        self._ends = ends

    def checkout(self, _: Any, record: Any, __: Any) -> None:
        record.info[_NOTED], record.info[_SAVED] = [], []

    def begin(self, conn: Any) -> None:
        self._count(conn.info)

    def commit(self, conn: Any) -> None:  # it may fail yet
        conn.info[_SAVED] = []
        conn.info[_COMMITTING], conn.info[_NOTED] = conn.info.get(_NOTED, []), []

    def handle_error(self, context: Any) -> None:
        if context.connection is not None and not context.connection.invalidated:
            context.connection.info.pop(_COMMITTING, None)

    def rollback(self, conn: Any) -> None:
        if not conn.invalidated:  # else it has lost its memory, too
            conn.info[_NOTED], conn.info[_SAVED] = [], []

    def savepoint(self, conn: Any, _: str) -> None:
        conn.info[_SAVED].append(len(conn.info[_NOTED]))

    def release_savepoint(self, conn: Any, _: str, __: Any) -> None:
        if not conn.invalidated:
            conn.info[_SAVED].pop()

    def rollback_savepoint(self, conn: Any, _: str, __: Any) -> None:
        if not conn.invalidated:  # else it has lost its memory, too
            del conn.info[_NOTED][conn.info[_SAVED].pop() :]

    def checkin(self, connection: Any, record: Any) -> None:
        record.info.pop(_NOTED, None)
        if connection is not None:  # else it was lost
            self._count(record.info)

    def _count(self, info: dict[Any, Any]) -> None:
        """The COMMIT before this went through."""
        for labels, times in Count(info.pop(_COMMITTING, ())).items():
            self._ends.labels(*labels).inc(times)


def note_ends(conn: AsyncConnection, ended: Iterable[tuple[str, str, str]]) -> None:
    """These jobs (status, tier, model) end in this transaction. Nothing where nobody counts."""
    noted = conn.info.get(_NOTED)
    if noted is not None:
        noted.extend(ended)
