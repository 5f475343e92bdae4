"""What killed this job, and what shall become of it? /admin/dead-letters/{id}: evidence; requeue, edited or as it was; discard."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.evidence import facts_of
from app.dashboard.forms import Form, read_form, reason_of, text_of
from app.dashboard.letter_edit import changes_of, shown_fields
from app.dashboard.letters import PATH
from app.dashboard.pages import go, page
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound, PenstockError
from app.ids import job_name, parse_job_name
from app.jobs.dead.edit import Edit, prepare_edit, read_request, show_request
from app.jobs.dead.read import read_story
from app.jobs.dead.resolve import RENEW, Order, Refusal, discard_one, requeue_one, tell_workers
from app.operators.sessions import Session

MAX_DEADLINE_S = 31_536_000

router = APIRouter(prefix="/dead-letters")
JobId = Annotated[str, Path(alias="id")]


@router.get("/{id}")
async def letter(request: Request, name: JobId, _: Viewer) -> Response:
    """The newest letter of the job with its evidence, and those before it."""
    return await _shown(request, _id(name))


@router.get("/{id}/edit")
async def edit_form(request: Request, name: JobId, session: Operator) -> Response:
    """The fields that may be changed, as they are; that stop strings were shown is in the log of acts."""
    return await _form(request, _id(name), session)


@router.post("/{id}/requeue")
async def requeue_letter(request: Request, name: JobId, session: Operator) -> Response:
    """A new life as it was, with budgets reserved anew."""
    job_id = _id(name)

    async def do(wanted: Act) -> str:
        await _requeue(request, job_id, order_of(wanted.form, wanted.actor))
        return "letter-requeued"

    return await act(request, session, do, to=_path(job_id), refused=partial(_shown, request, job_id))


@router.post("/{id}/edit")
async def edit_letter(request: Request, name: JobId, session: Operator) -> Response:
    """A new life with other parameters; the prompt stays."""
    services, job_id, form = services_of(request), _id(name), await read_form(request)
    try:
        order = order_of(form, session.actor)
        async with services.transaction() as conn:
            stored = await read_request(conn, job_id)
        # What was read when the form was made: an edit of an earlier life is refused.
        stored = replace(stored, reservation=_whole(text_of(form, "life"), "life"))
        changes = changes_of(stored.shown(), form)
        edit = await prepare_edit(stored, changes, services.catalog, services.settings)
        await _requeue(request, job_id, order, edit)
    except PenstockError as error:
        return await _form(
            request, job_id, session, error.detail, {each: values[0] for each, values in form.items()}, error.status
        )
    return go(request, _path(job_id), said="letter-requeued")


@router.post("/{id}/discard")
async def discard_letter(request: Request, name: JobId, session: Operator) -> Response:
    """Close it for good: the job stays dead."""
    job_id = _id(name)

    async def do(wanted: Act) -> str:
        refusal = await discard_one(wanted.transaction, job_id, actor=wanted.actor, reason=wanted.reason)
        if refusal is not None:
            raise refusal.error
        return "letter-discarded"

    return await act(request, session, do, to=_path(job_id), refused=partial(_shown, request, job_id))


def order_of(form: Form, actor: str) -> Order:
    """What is wanted of a requeue: its reason, and which deadline.

    Raises:
        InvalidRequest: no reason, or a deadline that isn't one.
    """
    reason, choice = reason_of(form), text_of(form, "deadline", "renew")
    if choice == "none":
        return Order(actor, reason, None)
    if choice != "in":
        return Order(actor, reason, RENEW)
    seconds = _whole(text_of(form, "deadline_in_s"), "deadline_in_s")
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise InvalidRequest(f"deadline_in_s: must be 1 to {MAX_DEADLINE_S} s", param="deadline_in_s")
    return Order(actor, reason, float(seconds))


async def _requeue(request: Request, job_id: UUID, order: Order, edit: Edit | None = None) -> None:
    services = services_of(request)
    done = await requeue_one(services.transaction, job_id, order, edit)
    if isinstance(done, Refusal):
        raise done.error
    await tell_workers(services.queue, [done])


async def _shown(request: Request, job_id: UUID, problem: str = "", status: int = 200) -> Response:
    async with services_of(request).transaction() as conn:
        story = await read_story(conn, job_id)
    if story is None:
        raise NotFound(f"there is no dead letter of {job_name(job_id)}")
    return page(
        request, "letter.html", section="dead-letters", title=f"Dead letter of {job_name(job_id)}", status=status,
        story=story, letter=story.letter, facts=facts_of(job_id.hex, story.evidence), name=job_name(job_id), problem=problem,
    )  # fmt: skip


async def _form(
    request: Request, job_id: UUID, session: Session, problem: str = "", given: Mapping[str, str] | None = None,
    status: int = 200,
) -> Response:  # fmt: skip
    async with services_of(request).transaction() as conn:
        stored = await show_request(conn, job_id, actor=session.actor)
    fields = shown_fields(stored.shown())
    values: dict[str, Any] = {"reason": "", "deadline": "renew", "deadline_in_s": "", "life": stored.reservation}
    return page(
        request, "letter_edit.html", section="dead-letters", title="Edit and requeue", status=status, fields=fields,
        values=values | dict(given or {}), name=job_name(job_id), problem=problem,
    )  # fmt: skip


def _path(job_id: UUID) -> str:
    return f"{PATH}/{job_name(job_id)}"


def _whole(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name}: must be a whole number", param=name)
    return int(text)


def _id(name: str) -> UUID:
    job_id = parse_job_name(name)
    if job_id is None:
        raise NotFound("there is no such letter: ids look like job_ and 32 hex digits")
    return job_id
