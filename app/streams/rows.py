"""What does Postgres know of a job whose stream is read? Who may read it, whether it has ended, and all that its readers were told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.queue.events import ChoiceDelta, TokenLogprob
from app.queue.traces import Trace
from app.streams.event import Finished, last_id


@dataclass(frozen=True, slots=True)
class Ended:
    """A job's end as its readers are told."""

    job_id: UUID
    attempt: int
    status: str
    error: dict[str, Any] | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    is_forgotten: bool  # its output is past its retention

    @property
    def event(self) -> Finished:
        """The last event of its stream."""
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        return Finished(last_id(self.attempt), "finished", self.status, usage, self.error)


@dataclass(frozen=True, slots=True)
class Head:
    """A job as its reader finds it."""

    n: int
    ended: Ended | None


@dataclass(frozen=True, slots=True)
class Output:
    """All that an ended job's readers were told, in order; no deltas where it has no result."""

    run: int
    deltas: list[ChoiceDelta]
    is_forgotten: bool = False  # it, or all of the job, is past its retention


async def head(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> Head | None:
    """What has to be known of the tenant's job before it is read; None where the tenant has no such job."""
    row = (await conn.execute(_HEAD, {"id": job_id, "tenant": tenant_id})).one_or_none()
    if row is None:
        return None
    n, has_ended, *of_end = row
    return Head(n, Ended(*of_end) if has_ended else None)


async def ends(conn: AsyncConnection, job_ids: Sequence[UUID]) -> list[Ended]:
    """Those of these jobs that have ended. Whoever asks has proven that they may."""
    return [Ended(*row) for row in await conn.execute(_ENDS, {"ids": list(job_ids)})]


async def output(conn: AsyncConnection, job_id: UUID) -> Output:
    """What an ended job's readers were told."""
    row = (await conn.execute(_OUTPUT, {"id": job_id})).one_or_none()
    if row is None or row.is_forgotten:
        return Output(1, [], is_forgotten=True)
    if row.choices is None:
        return Output(1, [])
    choices: list[dict[str, Any]] = row.choices
    if row.trace is None:  # a result from before there were traces: nobody was told anything of it before
        return Output(1, [_whole(place, choice, row.status) for place, choice in enumerate(choices)])
    trace = Trace.unpack(bytes(row.trace))
    texts, reasons = [choice["text"] for choice in choices], [choice["finish_reason"] for choice in choices]
    logprobs = [_logprobs(choice) for choice in choices]
    # A job that shares another one's result has an attempt of its own: it must not be told as a later run than that.
    return Output(min(trace.run, row.attempt), list(trace.deltas(texts, reasons, logprobs)))


def _whole(place: int, choice: dict[str, Any], status: str) -> ChoiceDelta:
    logprobs = _logprobs(choice)
    token_ids = [entry["token_id"] for entry in (choice.get("logprobs") or {}).get("content", [])]
    reason = choice["finish_reason"] or status
    return ChoiceDelta(
        choice=place, offset=0, token_ids=token_ids, text=choice["text"], finish_reason=reason, logprobs=logprobs
    )


def _logprobs(choice: dict[str, Any]) -> list[TokenLogprob]:
    """As workers publish them, from the form in which results are stored."""
    return [
        TokenLogprob(
            entry["logprob"],
            [top["token_id"] for top in entry["top_logprobs"]],
            [top["logprob"] for top in entry["top_logprobs"]],
        )
        for entry in (choice.get("logprobs") or {}).get("content", [])
    ]


_OF_END = """
    j.id, j.attempt, j.status, j.error, j.prompt_tokens, coalesce(u.cached_tokens, 0), coalesce(u.completion_tokens, 0),
    r.forgotten_at IS NOT NULL
    FROM jobs j LEFT JOIN usage u ON u.job_id = j.id AND u.kind = 'billed' LEFT JOIN job_results r ON r.job_id = j.id
"""
_HEAD = text(f"SELECT j.n, j.finished_at IS NOT NULL, {_OF_END} WHERE j.id = :id AND j.tenant_id = :tenant")
_ENDS = text(f"SELECT {_OF_END} WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.finished_at IS NOT NULL")
_OUTPUT = text("""
    SELECT j.status, greatest(1, j.attempt) AS attempt, r.choices, r.trace, r.forgotten_at IS NOT NULL AS is_forgotten
    FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id WHERE j.id = :id
""")
