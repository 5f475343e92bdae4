"""How is a whole group of dead letters requeued or discarded, all at once or at a rate? In steps that the open page asks for.

Each step is a request of its own: so many letters, each in a transaction of its own, then a fragment that asks for the next step after
its pause. Nothing is kept on the server: whoever closes the page stops, and what is done stays done.
"""

from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Operator
from app.dashboard.forms import read_form, reason_of, text_of
from app.dashboard.letter import order_of
from app.dashboard.letters import PATH
from app.dashboard.pages import is_htmx, page
from app.dashboard.services import Services, services_of
from app.errors import InvalidRequest
from app.ids import job_name, parse_job_name
from app.jobs.dead.read import LetterFilter, open_jobs
from app.jobs.dead.resolve import Order, Refusal, Requeued, discard_one, requeue_one, tell_workers

MOST_A_STEP = 50
MOST_RATE = 50  # a second
MOST_TOLD = 5  # refusals

Act = Literal["requeue", "discard"]
router = APIRouter(prefix="/dead-letters/group")


@dataclass(frozen=True, slots=True)
class Run:
    """How far it is. `per_s` is the most letters a second, None as many as go; `cursor` the job after which the next step begins."""

    act: Act
    fingerprint: str
    reason: str
    deadline: str
    deadline_in_s: str
    per_s: float | None
    cursor: str = ""
    done: int = 0
    refused: int = 0
    told: tuple[str, ...] = ()
    has_ended: bool = False

    @property
    def a_step(self) -> int:
        """Letters of one step."""
        return MOST_A_STEP if self.per_s is None else max(1, min(MOST_A_STEP, round(self.per_s)))

    @property
    def pause_ms(self) -> int:
        """Before the next step."""
        return 50 if self.per_s is None else round(1000 * self.a_step / self.per_s)


@router.post("/{act}")
async def run(request: Request, act: Act, session: Operator) -> Response:
    """One step, the first or a later one."""
    form = await read_form(request)
    so_far = _run_of(act, form)
    order = order_of(form, session.actor)
    after = await _step(services_of(request), so_far, order)
    template = "letter_run.html" if is_htmx(request) else "letter_run_page.html"
    return page(request, template, section="dead-letters", title="Dead letters of one kind", run=after, path=PATH)


def _run_of(act: Act, form: dict[str, list[str]]) -> Run:
    fingerprint = text_of(form, "fingerprint")
    if not fingerprint or len(fingerprint) > 256:
        raise InvalidRequest("fingerprint: name the group", param="fingerprint")
    told = tuple(each[:300] for each in form.get("told", [])[:MOST_TOLD])
    return Run(
        act, fingerprint, reason_of(form), text_of(form, "deadline", "renew"),
        text_of(form, "deadline_in_s"), _rate(text_of(form, "per_s")), text_of(form, "cursor"),
        _count(text_of(form, "done", "0")), _count(text_of(form, "refused", "0")), told,
    )  # fmt: skip


async def _step(services: Services, so_far: Run, order: Order) -> Run:
    after = parse_job_name(so_far.cursor) if so_far.cursor else None
    if so_far.cursor and after is None:
        raise InvalidRequest("cursor: isn't one that a step has given", param="cursor")
    async with services.transaction() as conn:
        wanted = LetterFilter(fingerprint=so_far.fingerprint)
        found = list(await open_jobs(conn, wanted, limit=so_far.a_step + 1, after=after))
    mine = found[: so_far.a_step]
    refusals = await (_requeue if so_far.act == "requeue" else _discard)(services, mine, order)
    told = (*so_far.told, *(f"{job_name(each.job_id)}: {each.error.detail}" for each in refusals))
    return replace(
        so_far,
        cursor=job_name(mine[-1]) if mine else so_far.cursor,
        done=so_far.done + len(mine) - len(refusals),
        refused=so_far.refused + len(refusals),
        told=told[:MOST_TOLD],
        has_ended=len(found) <= so_far.a_step,
    )


async def _requeue(services: Services, job_ids: list[UUID], order: Order) -> list[Refusal]:
    done = [await requeue_one(services.transaction, each, order) for each in job_ids]
    await tell_workers(services.queue, [each for each in done if isinstance(each, Requeued)])
    return [each for each in done if isinstance(each, Refusal)]


async def _discard(services: Services, job_ids: list[UUID], order: Order) -> list[Refusal]:
    done = [await discard_one(services.transaction, each, actor=order.actor, reason=order.reason) for each in job_ids]
    return [each for each in done if each is not None]


def _rate(text: str) -> float | None:
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.01 <= rate <= MOST_RATE:
        raise InvalidRequest(
            f"per_s: must be 0.01 to {MOST_RATE} letters a second, or empty for all at once", param="per_s"
        )
    return rate


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
