"""How do operators look at dead letters and resolve them over HTTP? /v1/admin/dead-letters, of all tenants, for keys with the scope `admin`."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.authentication import Admin
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.jobs import JobId, id_of
from app.api.letter_documents import (
    DeadLetterGroups,
    DeadLetterPage,
    DeadLetterResolution,
    DeadLetterStory,
    group_object,
    letter_object,
    resolved_object,
    story_object,
)
from app.api.letter_query import GROUP_QUERY, PAGE_QUERY, cursor_of, parse_letter_page
from app.api.openapi import body_of, problems, shows
from app.api.paging import page_answer, wrong
from app.api.runtime import Runtime, runtime_of
from app.errors import NotFound
from app.ids import job_name
from app.jobs.dead.edit import Edit, prepare_edit, read_request
from app.jobs.dead.outputs import published_texts
from app.jobs.dead.read import LetterStory, list_groups, list_letters, open_jobs, read_story
from app.jobs.dead.resolve import RENEW, Order, Refusal, Requeued, discard_one, requeue_one, tell_workers
from app.jobs.dead.selection import DiscardRequest, RequeueRequest, Selection
from app.quotas.acts import record_act
from app.redis import RedisError

MAX_BODY_BYTES = 64 * 2**10
TEXTS_TIMEOUT_S = 2.0
_PROMPTS: dict[str, Any] = {
    "name": "prompts",
    "in": "query",
    "description": "Also show the prompt, and what the job had written. The look is written down.",
    "schema": {"type": "string", "enum": ["true", "false"]},
}

router = APIRouter(prefix="/v1/admin/dead-letters", tags=["dead letters"])


@router.get(
    "",
    operation_id="listDeadLetters",
    summary="List dead letters",
    responses=shows(200, "A page of letters of all tenants, newest first.", DeadLetterPage)
    | problems(401, 403, 422, 503),
    openapi_extra={"parameters": PAGE_QUERY},
)
async def page_of_letters(request: Request, _: Admin) -> Response:
    """Letters without their evidence: the open ones, unless `state` says otherwise."""
    runtime = runtime_of(request)
    page = parse_letter_page(request.query_params, default_limit=runtime.settings.page_size)
    async with runtime.transaction() as conn:
        found = await list_letters(conn, page.wanted, limit=page.limit + 1, after=page.after)
    return page_answer(found, page.limit, letter_object, lambda each: cursor_of(each.place))


@router.get(
    "/groups",
    operation_id="listDeadLetterGroups",
    summary="List groups of dead letters",
    responses=shows(200, "The largest groups, largest first.", DeadLetterGroups) | problems(401, 403, 422, 503),
    openapi_extra={"parameters": GROUP_QUERY},
)
async def groups_of_letters(request: Request, _: Admin) -> Response:
    """Letters by fingerprint: one kind of death, one group."""
    runtime = runtime_of(request)
    page = parse_letter_page(request.query_params, default_limit=runtime.settings.page_size, has_cursor=False)
    async with runtime.transaction() as conn:
        found = await list_groups(conn, page.wanted, limit=page.limit)
    return answer({"object": "list", "data": [group_object(each) for each in found]})


@router.get(
    "/{id}",
    operation_id="getDeadLetter",
    summary="Read a job's dead letter",
    responses=shows(200, "The newest letter with its evidence.", DeadLetterStory) | problems(401, 403, 404, 422, 503),
    openapi_extra={"parameters": [_PROMPTS]},
)
async def read_letter(request: Request, name: JobId, admin: Admin) -> Response:
    """All that is known of a job that was given up; without prompts and outputs, unless they are asked for."""
    runtime = runtime_of(request)
    with_prompts = _wants_prompts(request)
    job_id = id_of(name)
    async with runtime.transaction() as conn:
        story = await read_story(conn, job_id)
        if story is None:
            raise NotFound(f"there is no dead letter of {job_name(job_id)}")
        if with_prompts:
            await record_act(conn, admin.actor, "dead_letter.show_prompts", job_name(job_id), {})
    return answer(story_object(story, await _private(runtime, story) if with_prompts else None))


@router.post(
    "/requeue",
    operation_id="requeueDeadLetters",
    summary="Send jobs back into the queue",
    responses=shows(200, "Which wait again, and which couldn't be sent back.", DeadLetterResolution)
    | problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(RequeueRequest)},
)
async def requeue_letters(request: Request, admin: Admin) -> Response:
    """Each job begins a new life, with budgets reserved anew: by `ids`, or by `filter` up to `limit` of them a request.

    Each is a transaction of its own, so that what is done stays done whatever becomes of the others.
    """
    runtime = runtime_of(request)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), RequeueRequest)
    deadline_s = RENEW if wanted.deadline_s is None else wanted.deadline_s
    order = Order(admin.actor, wanted.reason, None if wanted.clear_deadline else deadline_s)
    edit = await _edit(runtime, wanted)
    job_ids, cursor = await _meant(runtime, wanted)
    found = [await requeue_one(runtime.transaction, each, order, edit) for each in job_ids]
    requeued = [each for each in found if isinstance(each, Requeued)]
    await tell_workers(runtime.queue, requeued)
    refused = [each for each in found if isinstance(each, Refusal)]
    return answer(resolved_object([job_name(each.job_id) for each in requeued], refused, cursor))


@router.post(
    "/discard",
    operation_id="discardDeadLetters",
    summary="Close dead letters for good",
    responses=shows(200, "Which are closed, and which couldn't be.", DeadLetterResolution)
    | problems(400, 401, 403, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(DiscardRequest)},
)
async def discard_letters(request: Request, admin: Admin) -> Response:
    """The jobs stay dead; the letters stay readable, with who closed them and why."""
    runtime = runtime_of(request)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), DiscardRequest)
    job_ids, cursor = await _meant(runtime, wanted)
    done, refused = [], []
    for each in job_ids:
        refusal = await discard_one(runtime.transaction, each, actor=admin.actor, reason=wanted.reason)
        if refusal is None:
            done.append(job_name(each))
        else:
            refused.append(refusal)
    return answer(resolved_object(done, refused, cursor))


def _wants_prompts(request: Request) -> bool:
    given = request.query_params.multi_items()
    for name, value in given:
        if name != "prompts":
            raise wrong(name.replace("\x00", "�")[:64], "isn't a known parameter; there is prompts")
        if value not in {"true", "false"} or len(given) > 1:
            raise wrong("prompts", "must be true or false, once")
    return given == [("prompts", "true")]


async def _private(runtime: Runtime, story: LetterStory) -> dict[str, Any]:
    texts = None
    try:
        async with asyncio.timeout(TEXTS_TIMEOUT_S):
            texts = await published_texts(runtime.events, story.letter.job_id, story.n)
    except (RedisError, TimeoutError):
        pass
    return {"request": story.hidden_request, "texts": texts}


async def _edit(runtime: Runtime, wanted: RequeueRequest) -> Edit | None:
    if wanted.changes is None:
        return None
    async with runtime.transaction() as conn:
        stored = await read_request(conn, wanted.job_ids[0])
    changes: dict[str, Any] = wanted.changes.model_dump(exclude_unset=True)
    return await prepare_edit(stored, changes, runtime.catalog, runtime.settings)


async def _meant(runtime: Runtime, wanted: Selection) -> tuple[Sequence[UUID], str | None]:
    """The jobs whose letters are meant, and where the next request goes on."""
    if wanted.ids is not None:
        return wanted.job_ids, None
    async with runtime.transaction() as conn:
        found = await open_jobs(conn, wanted.wanted, limit=wanted.limit + 1, after=wanted.after)
    shown = found[: wanted.limit]
    return shown, job_name(shown[-1]) if len(found) > wanted.limit else None
