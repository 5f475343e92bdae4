"""What became of this job, and what can be done about it? /admin/jobs/{id}: its timeline, cancel, another tier, its texts."""

import asyncio
import contextlib
import json
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.batches.store import batch_name
from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.assets import PREFIX
from app.dashboard.forms import tier_of
from app.dashboard.pages import is_htmx, page
from app.dashboard.queries.job import JobStory, JobTexts, batch_of, read_job, read_texts
from app.dashboard.services import Services, services_of
from app.dashboard.timeline import Begun, how_begun, timeline
from app.errors import InvalidRequest, NotFound, Unavailable
from app.ids import delivery_name, job_name, parse_job_name
from app.jobs.cancel import cancel, spread_cancel
from app.jobs.dead.outputs import published_texts
from app.jobs.outlook import outlook_of
from app.jobs.retier import change_tier
from app.jobs.states import TIERS
from app.quotas.acts import record_act
from app.redis import RedisError

REDIS_TIMEOUT_S = 0.5  # a page isn't held up for what Redis alone knows
MOST_EVENTS = 10_000

router = APIRouter(prefix="/jobs")
JobId = Annotated[str, Path(alias="id")]


@router.get("/{id}")
async def job(request: Request, name: JobId, _: Viewer) -> Response:
    """The page."""
    return await _shown(request, _id(name))


@router.get("/{id}/live")
async def job_live(request: Request, name: JobId, _: Viewer) -> Response:
    """What of the page changes while the job lives."""
    return page(request, "job_live.html", **await _values(request, _id(name)))


@router.post("/{id}/cancel")
async def cancel_job(request: Request, name: JobId, session: Operator) -> Response:
    """Stop it: at once where it waits, within a second where it runs."""
    job_id = _id(name)

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            story = await read_job(conn, job_id)
            if story is None:
                raise _missing(job_id)
            cancelled = await cancel(conn, story.tenant_id, job_id)
            if story.status in {"queued", "running"}:
                await wanted.record(conn, "job.cancel", job_name(job_id))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await spread_cancel(wanted.services.queue(cancelled.pool), cancelled)
        return "job-cancelled" if cancelled.ended else "job-cancelling"

    return await act(request, session, do, to=_path(job_id), refused=partial(_shown, request, job_id))


@router.post("/{id}/tier")
async def retier_job(request: Request, name: JobId, session: Operator) -> Response:
    """Put it into another tier; a batch's lines change theirs with the batch."""
    job_id = _id(name)

    async def do(wanted: Act) -> str:
        tier, services = tier_of(wanted.form), wanted.services
        async with wanted.transaction() as conn:
            batch = await batch_of(conn, job_id)
        if batch is not None:
            raise InvalidRequest(
                f"tier: the job is line {batch.number} of {batch_name(batch.batch_id)}: change the batch's",
                param="tier",
            )
        try:
            async with asyncio.timeout(services.settings.database_timeout_s):
                done = await change_tier(
                    services.transaction, services.queue, job_id, tier, actor=wanted.actor, reason=wanted.reason
                )
        except (RedisError, TimeoutError) as error:
            raise Unavailable("Redis doesn't answer, so that the tier can't be changed now; try again") from error
        return "job-retiered" if done.is_nominated else "job-retiered-later"

    return await act(request, session, do, to=_path(job_id), refused=partial(_shown, request, job_id))


@router.post("/{id}/texts")
async def show_texts(request: Request, name: JobId, session: Operator) -> Response:
    """The prompt, and what the job has written; the look is in the log of acts before anything is shown."""
    services, job_id = services_of(request), _id(name)
    async with services.transaction() as conn:
        texts = await read_texts(conn, job_id)
        if texts is None:
            raise _missing(job_id)
        await record_act(conn, session.actor, "job.show_texts", job_name(job_id), {"tenant": texts.tenant_id})
    shown: dict[str, Any] = {
        "texts": texts,
        "prompt": _prompt(texts),
        "outputs": await _outputs(services, job_id, texts),
    }
    if is_htmx(request):
        return page(request, "job_texts.html", **shown)
    return await _shown(request, job_id, **shown)


async def _shown(request: Request, job_id: UUID, problem: str = "", status: int = 200, **texts: Any) -> Response:
    values = {"texts": None, "prompt": [], "outputs": [], **texts}
    return page(
        request, "job.html", section="jobs", title=job_name(job_id), status=status, problem=problem,
        **await _values(request, job_id), **values,
    )  # fmt: skip


async def _values(request: Request, job_id: UUID) -> dict[str, Any]:
    services = services_of(request)
    async with services.transaction() as conn:
        story = await read_job(conn, job_id)
        if story is None:
            raise _missing(job_id)
        ahead = None
        if not story.has_ended:
            ahead = await outlook_of(conn, services.loads, services.lengths, story.tenant_id, job_id)
    return {
        "job": story,
        "name": job_name(job_id),
        "outlook": ahead,
        "moments": timeline(story, await _begun(services, story)),
        "progress": await _progress(services, story),
        "tiers": [tier for tier in TIERS if tier != story.tier],
        "batch_name": batch_name,
        "delivery_name": delivery_name,
        "job_name": job_name,
    }


async def _begun(services: Services, story: JobStory) -> dict[int, Begun]:
    """How later attempts began, as long as the job's events are kept."""
    if story.attempt < 2:
        return {}
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            return how_begun(await services.events.read(story.id, count=MOST_EVENTS))
    except (RedisError, TimeoutError):
        return {}


async def _progress(services: Services, story: JobStory) -> int | None:
    """Tokens that a running job has made, by its newest event."""
    if story.status != "running":
        return None
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            last = await services.events.last(story.id)
    except (RedisError, TimeoutError):
        return None
    return last.seq if last is not None and last.place.attempt == story.attempt else None


def _prompt(texts: JobTexts) -> list[tuple[str, str]]:
    """Name and text of each part of the request that is its owner's own."""
    found: list[tuple[str, str]] = []
    for name, value in (texts.request or {}).items():
        if name == "messages" and isinstance(value, list):
            for each in value:
                content = each.get("content") if isinstance(each, dict) else each
                rest = (
                    {key: part for key, part in each.items() if key not in {"role", "content"}}
                    if isinstance(each, dict)
                    else {}
                )
                text = content if isinstance(content, str) else _json(content)
                found.append((str(each.get("role", "message")) if isinstance(each, dict) else "message",
                              text + (f"\n{_json(rest)}" if rest else "")))  # fmt: skip
        else:
            found.append((name, value if isinstance(value, str) else _json(value)))
    return found


async def _outputs(services: Services, job_id: UUID, texts: JobTexts) -> list[str]:
    """The text of each choice: the result's, or what readers were told so far."""
    if texts.forgotten_at is not None:
        return []
    if texts.choices:
        return [_choice(each) for each in texts.choices]
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            published = await published_texts(services.events, job_id, texts.n)
    except (RedisError, TimeoutError):
        return []
    return published if any(published) else []


def _choice(choice: dict[str, Any]) -> str:
    text = choice.get("text")
    return text if isinstance(text, str) else _json(choice)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


def _id(name: str) -> UUID:
    job_id = parse_job_name(name)
    if job_id is None:
        raise NotFound("there is no such job: ids look like job_ and 32 hex digits")
    return job_id


def _path(job_id: UUID) -> str:
    return f"{PREFIX}/jobs/{job_name(job_id)}"


def _missing(job_id: UUID) -> NotFound:
    return NotFound(f"there is no job {job_name(job_id)}")
