"""What may an operator change of a job before it is requeued? Parameters, never the prompt; checked as a submission is."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import AlreadyResolved, InputForgotten, InvalidRequest, NotFound
from app.ids import job_name
from app.jobs import tables as t
from app.jobs.models import ModelCatalog
from app.jobs.prepare import PreparedJob, prepare
from app.jobs.request import JobRequest
from app.quotas.acts import record_act
from app.settings import Settings

CHANGEABLE = (
    "model", "tier", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "stop", "stop_repeating", "speculate", "deadline_s",
)  # fmt: skip
MAX_TOLD = 3


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """What an open letter's job asked for. `reservation` says which of the job's lives this was read in."""

    job_id: UUID
    reservation: int
    model: str
    max_tokens: int
    request: dict[str, Any]
    sampling: dict[str, Any]

    def shown(self) -> dict[str, Any]:
        """The fields that may be changed, as they are."""
        as_it_is = _validated(self.request)
        fields: dict[str, Any] = {name: getattr(as_it_is, name) for name in CHANGEABLE}
        return fields | {"model": self.model, "max_tokens": self.max_tokens, "seed": self.sampling["seed"]}


@dataclass(frozen=True, slots=True)
class Edit:
    """A changed job, checked against its model. It holds for the life that it was read in, no later one."""

    reservation: int
    prepared: PreparedJob
    sampling: dict[str, Any]
    changed: dict[str, Any]  # field -> [before, after], for the record; of stop strings, which are texts, how many


async def show_request(conn: AsyncConnection, job_id: UUID, *, actor: str) -> StoredRequest:
    """`read_request` for an operator's eyes: where stop strings are among it, which are its owner's texts, the look is written down."""
    stored = await read_request(conn, job_id)
    if stored.request.get("stop"):
        await record_act(conn, actor, "dead_letter.show_texts", job_name(job_id), {"fields": ["stop"]})
    return stored


async def read_request(conn: AsyncConnection, job_id: UUID) -> StoredRequest:
    """What the job of an open letter asked for.

    Raises:
        NotFound: the job has no dead letter.
        AlreadyResolved: it has none that is open.
        InputForgotten: its prompt was wiped.
    """
    d, j, i = t.dead_letters.c, t.jobs.c, t.job_inputs.c
    row = (
        await conn.execute(
            select(j.id, j.reservation, j.model, j.max_tokens, i.request, i.sampling, d.resolution)
            .select_from(t.jobs.outerjoin(t.job_inputs).join(t.dead_letters, d.job_id == j.id))
            .where(and_(j.id == job_id))
            .order_by(d.reservation.desc())
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no dead letter of {job_name(job_id)}: `penstock dlq list` shows those that are open")
    if row.resolution is not None:
        raise AlreadyResolved(f"the dead letter of {job_name(job_id)} was {row.resolution} before")
    if row.request is None:
        raise input_forgotten(job_id)
    return StoredRequest(*row[:-1])


def input_forgotten(job_id: UUID) -> InputForgotten:
    """The error that says what can be done."""
    return InputForgotten(
        f"the prompt of {job_name(job_id)} isn't kept any more (content_retention_s of its tenant): discard the letter"
    )


async def prepare_edit(
    stored: StoredRequest, changes: dict[str, Any], catalog: ModelCatalog, settings: Settings
) -> Edit:
    """The job with these changes, its tokens counted anew.

    Raises:
        InvalidRequest: a field that can't be changed, or a rule of submissions is broken (or PromptTooLong, UnknownModel).
    """
    for name in changes:
        if name not in CHANGEABLE:
            raise InvalidRequest(
                f"{name[:64]}: can't be changed; what can: {', '.join(CHANGEABLE)}", param=name[:64]
            )  # fmt: skip
    before = stored.shown()
    changed = {
        name: [_on_record(name, before[name]), _on_record(name, value)]
        for name, value in changes.items()
        if value != before[name]
    }
    # What a default has decided stays decided, though the default may be another one today.
    request = _validated({**stored.request, "max_tokens": stored.max_tokens, **changes})
    model = await catalog.find(request.model if "model" in changes else stored.model)
    encoder = await catalog.encoder(model)
    prepared = await asyncio.to_thread(prepare, request, model, encoder, settings)
    drawn = {} if request.seed is not None else {"seed": stored.sampling["seed"]}
    return Edit(stored.reservation, prepared, prepared.sampling | drawn, changed)


def _on_record(name: str, value: Any) -> Any:
    if name != "stop" or value is None:
        return value
    return {"strings": 1 if isinstance(value, str) else len(value)}


def _validated(body: dict[str, Any]) -> JobRequest:
    try:
        return JobRequest.model_validate(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        fields = [".".join(str(part) for part in each["loc"]) or "request" for each in errors]
        detail = "; ".join(f"{field}: {each['msg']}" for field, each in zip(fields[:MAX_TOLD], errors, strict=False))
        raise InvalidRequest(detail, param=fields[0]) from None
