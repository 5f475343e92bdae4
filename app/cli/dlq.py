"""`penstock dlq ...`: jobs that were given up. Directly on the database: whoever can reach that is the operator."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from rich.console import Console
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli.actor import actor
from app.cli.dlq_edit import edited
from app.cli.dlq_shown import group_cells, group_document, letter_cells, letter_document, print_story, say
from app.cli.errors import CommandFailed, one_line
from app.cli.tables import print_table
from app.clock import SystemClock
from app.db import create_engine, database_now
from app.ids import job_name, parse_job_name
from app.jobs import tables as t
from app.jobs.dead.edit import Edit, prepare_edit, show_request
from app.jobs.dead.outputs import published_texts
from app.jobs.dead.read import (
    Letter,
    LetterFilter,
    LetterGroup,
    LetterStory,
    count_letters,
    list_groups,
    list_letters,
    open_jobs,
    read_story,
)
from app.jobs.dead.resolve import RENEW, Order, Refusal, Requeued, discard_one, requeue_one, tell_workers
from app.jobs.models import ModelCatalog
from app.queue.dead import follow_obituaries
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.quotas.acts import record_act
from app.racing import race
from app.redis import Redis, RedisError, create_redis
from app.settings import Settings

INTERRUPTED = 130
_NONE_FITS = "no open dead letter fits"
_PAGE = 500
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters a command means: some jobs', or all open ones that fit."""

    job_ids: list[UUID]
    wanted: LetterFilter | None


def selection(
    names: Sequence[str], *, pool: str | None, tenant: str | None, reason: str | None, fingerprint: str | None
) -> Selection:
    """What the command line says.

    Raises:
        CommandFailed: nothing, both, or an id that can't be one.
    """
    has_filter = any(value is not None for value in (pool, tenant, reason, fingerprint))
    if bool(names) == has_filter:
        raise CommandFailed("say which dead letters: ids, or a group by --fingerprint, --pool, --tenant or --of-reason")
    return Selection(
        sorted({_id(name) for name in names}),
        LetterFilter("open", pool, tenant, reason, fingerprint) if has_filter else None,
    )


def age_s(text: str) -> float:
    """Seconds of an age such as `90s`, `15m`, `2h`, `7d`.

    Raises:
        CommandFailed: it is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text)
    if found is None:
        raise CommandFailed(f"{text!r} isn't an age: write a number with s, m, h, d or w, such as 15m")
    return float(found[1]) * _UNITS[found[2]]


# --- list, show, watch -----------------------------------------------------------------------------------------------


def list_dead(
    settings: Settings, wanted: LetterFilter, *, older_than: str | None, newer_than: str | None, limit: int,
    groups: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print letters, newest first, or their groups, largest first."""
    ages = [None if text is None else age_s(text) for text in (older_than, newer_than)]

    async def look(db: AsyncEngine) -> tuple[list[Letter] | list[LetterGroup], int]:
        async with db.connect() as conn:
            now = await database_now(conn)
            before, after = (None if age is None else now - timedelta(seconds=age) for age in ages)
            meant = LetterFilter(
                wanted.state, wanted.pool, wanted.tenant, wanted.reason, wanted.fingerprint, before, after
            )
            if groups:
                return await list_groups(conn, meant, limit=limit), await count_letters(conn, meant)
            return await list_letters(conn, meant, limit=limit), await count_letters(conn, meant)

    found, total = asyncio.run(_with_db(settings, look))
    if as_json:
        for each in found:
            print(json.dumps(group_document(each) if isinstance(each, LetterGroup) else letter_document(each)))
        return
    names = ("fingerprint", "count", "tenants", "last", "pools", "signature") if groups else (
        "job", "died", "tenant", "pool", "reason", "fingerprint", "state")  # fmt: skip
    cells = [group_cells(each) if isinstance(each, LetterGroup) else letter_cells(each) for each in found]
    print_table(names, cells, nothing="no dead letters", wide="signature")
    shown = sum(each.count if isinstance(each, LetterGroup) else 1 for each in found)
    if shown < total:
        print(f"{shown:,} of {total:,} dead letters: --limit shows more", file=sys.stderr)


def show_dead(settings: Settings, name: str, *, prompts: bool, as_json: bool) -> None:
    """Print all that is known of a job that was given up.

    Raises:
        CommandFailed: it has no dead letter.
    """
    job_id = _id(name)

    async def look(db: AsyncEngine) -> tuple[LetterStory, dict[str, Any] | None]:
        async with db.begin() as conn:
            story = await read_story(conn, job_id)
            if story is None:
                raise CommandFailed(f"there is no dead letter of {job_name(job_id)}: `penstock dlq list` shows them")
            if prompts:
                await record_act(conn, actor(), "dead_letter.show_prompts", job_name(job_id), {})
        return story, await _private(settings, story) if prompts else None

    story, private = asyncio.run(_with_db(settings, look))
    document = letter_document(story.letter) | {
        "evidence": story.evidence,
        "job": {
            "status": story.job_status, "model": story.model, "tier": story.tier, "n": story.n,
            "prompt_tokens": story.prompt_tokens, "max_tokens": story.max_tokens, "request": story.shown_request,
            "created_at": story.created_at.isoformat(),
            "deadline_at": story.deadline_at.isoformat() if story.deadline_at else None,
        },
        "private": private,
        "earlier": [letter_document(each) for each in story.others],
    }  # fmt: skip
    if as_json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    print_story(Console(), story, private)


def watch_dead(settings: Settings, pool: str | None, *, as_json: bool) -> None:
    """Print deaths as they are announced, and the newest before, until Ctrl-C.

    Raises:
        CommandFailed: there is no Redis to watch.
    """
    if not settings.redis_url:
        raise CommandFailed("there is no Redis to watch: set REDIS_URL; `penstock dlq list` needs none")

    async def watch(db: AsyncEngine) -> None:
        console = Console()
        async with create_redis(settings) as redis:
            pools = [pool] if pool else await _pools(db)
            if not pools:
                raise CommandFailed("no worker has registered a model yet: there is nothing to watch")
            # A race, as its end is sure: redis-py takes a cancel now and then for its own time-out.
            await race(_print_deaths(console, redis, pools, as_json=as_json))

    asyncio.run(_with_db(settings, watch))


async def _print_deaths(console: Console, redis: Redis, pools: Sequence[str], *, as_json: bool) -> None:
    async for each in follow_obituaries(redis, pools, backlog=10):
        obituary = {"pool": each.pool, "job": each.job, "tenant": each.tenant, "reason": each.reason}
        obituary |= {"fingerprint": each.fingerprint, "at": each.at}
        say(console, json.dumps(obituary) if as_json else f"{each.at}  " + "  ".join(list(obituary.values())[:-1]))


# --- requeue, discard ------------------------------------------------------------------------------------------------


def requeue_dead(
    settings: Settings, meant: Selection, *, reason: str, rate: float | None, edit: bool, deadline_s: float | None,
    clear_deadline: bool,
) -> int:  # fmt: skip
    """Send jobs back, at most `rate` a second; return the exit status: 0 all, 1 some were refused, 130 after Ctrl-C."""
    deadline = None if clear_deadline else RENEW if deadline_s is None else deadline_s
    order = Order(actor(), reason, deadline)
    status: int = asyncio.run(_with_db(settings, lambda db: _requeue_all(settings, db, meant, order, rate, edit=edit)))
    return status


def discard_dead(settings: Settings, meant: Selection, *, reason: str, is_sure: bool) -> int:
    """Close letters for good, once the operator has said yes to how many; return the exit status."""
    who = actor()
    total: int = asyncio.run(_with_db(settings, lambda db: _count(db, meant)))
    if not total:
        print(_NONE_FITS, file=sys.stderr)
        return 0
    # Between two event loops: one that runs would keep Ctrl-C from ending the question.
    if not is_sure and not _confirmed(f"Discard {total:,} dead letter{'s' * (total != 1)} for good? [y/N] "):
        print("nothing was discarded", file=sys.stderr)
        return 1

    async def discard(db: AsyncEngine) -> int:
        async def one(job_id: UUID) -> Refusal | None:
            return await discard_one(db.begin, job_id, actor=who, reason=reason)

        return await _one_by_one(db, meant, total, None, one, "discarded")

    status: int = asyncio.run(_with_db(settings, discard))
    return status


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


async def _requeue_all(
    settings: Settings, db: AsyncEngine, meant: Selection, order: Order, rate: float | None, *, edit: bool
) -> int:
    change: Edit | None = None
    if edit:
        if len(meant.job_ids) != 1:
            raise CommandFailed("--edit changes one job: give one id")
        change = await _edit(settings, db, meant.job_ids[0])
    total = await _count(db, meant)
    if not total:
        print(_NONE_FITS, file=sys.stderr)
        return 0
    async with _queues(settings) as queue_of:
        reaches_redis = queue_of is not None

        async def one(job_id: UUID) -> Refusal | None:
            nonlocal reaches_redis
            found = await requeue_one(db.begin, job_id, order, change)
            if isinstance(found, Requeued) and queue_of is not None and reaches_redis:
                reaches_redis = await tell_workers(queue_of, [found])
            return found if isinstance(found, Refusal) else None

        status = await _one_by_one(db, meant, total, rate, one, "requeued")
    if not reaches_redis:
        print("Redis couldn't be told of all: maintenance tells it within 12 s", file=sys.stderr)
    return status


async def _one_by_one(
    db: AsyncEngine, meant: Selection, total: int, rate: float | None,
    one: Callable[[UUID], Coroutine[Any, Any, Refusal | None]], done_word: str,
) -> int:  # fmt: skip
    """Resolve letters in the order of their jobs' ids, each in its own transaction, until done or Ctrl-C."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    done = refused = 0
    columns = (TextColumn(done_word), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    loop.add_signal_handler(signal.SIGINT, stop.set)  # the letter that is under way is finished first
    try:
        with Progress(*columns, console=shown, disable=not shown.is_terminal) as progress:
            task = progress.add_task(done_word, total=total)
            began = loop.time()
            async for number, job_id in _each(db, meant):
                if rate is not None and await _stopped_before(stop, began + number / rate):
                    break
                if stop.is_set():
                    break
                refusal = await one(job_id)
                if refusal is None:
                    done += 1
                    print(job_name(job_id), flush=True)
                else:
                    refused += 1
                    print(f"penstock: {refusal.error.detail} ({refusal.error.code})", file=sys.stderr)
                progress.advance(task)
    finally:  # also where Postgres went away in the middle: what is done is done
        loop.remove_signal_handler(signal.SIGINT)
        more = f", {refused:,} refused and as they were" if refused else ""
        print(f"{done:,} {done_word}{more}", file=sys.stderr)
    if stop.is_set():
        print("stopped: the same command again goes on with the rest", file=sys.stderr)
        return INTERRUPTED
    return 1 if refused else 0


async def _each(db: AsyncEngine, meant: Selection) -> AsyncIterator[tuple[int, UUID]]:
    """The jobs that are meant, numbered from 0; one that dies again meanwhile isn't met again."""
    number = 0
    if meant.wanted is None:
        for job_id in meant.job_ids:
            yield number, job_id
            number += 1
        return
    after: UUID | None = None
    while True:
        async with db.connect() as conn:
            page = await open_jobs(conn, meant.wanted, limit=_PAGE, after=after)
        for job_id in page:
            yield number, job_id
            number += 1
        if len(page) < _PAGE:
            return
        after = page[-1]


async def _stopped_before(stop: asyncio.Event, due: float) -> bool:
    """Wait until `due`, by the loop's clock; return whether it was stopped before."""
    try:
        async with asyncio.timeout_at(due):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def _edit(settings: Settings, db: AsyncEngine, job_id: UUID) -> Edit:
    """The job as the operator changed it; their editor again and again until it is right, or emptied."""
    async with db.begin() as conn:
        stored = await show_request(conn, job_id, actor=actor())
    catalog = ModelCatalog(db, clock=SystemClock())

    async def check(changes: dict[str, Any]) -> Edit:
        return await prepare_edit(stored, changes, catalog, settings)

    return await edited(job_name(job_id), stored.shown(), check)


async def _count(db: AsyncEngine, meant: Selection) -> int:
    if meant.wanted is None:
        return len(meant.job_ids)
    async with db.connect() as conn:
        return await count_letters(conn, meant.wanted)


# --- what it stands on -----------------------------------------------------------------------------------------------


def _id(name: str) -> UUID:
    job_id = parse_job_name(name)
    if job_id is None:
        raise CommandFailed(f"{name[:64]!r} isn't a job's id: ids look like job_ and 32 hex digits")
    return job_id


async def _with_db(settings: Settings, act: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        return await act(db)
    finally:
        await db.dispose()


@asynccontextmanager
async def _queues(settings: Settings) -> AsyncIterator[Callable[[str], JobQueue] | None]:
    """The pools' queues; None where no Redis is configured."""
    if not settings.redis_url:
        yield None
        return
    async with create_redis(settings) as redis:
        known: dict[str, JobQueue] = {}
        yield lambda pool: known.get(pool) or known.setdefault(pool, JobQueue(redis, pool))


async def _private(settings: Settings, story: LetterStory) -> dict[str, Any]:
    texts = None
    if settings.redis_url:
        async with create_redis(settings) as redis:
            log = EventLog(redis, ttl_s=settings.event_ttl_s, max_entries=settings.event_max_entries)
            try:
                texts = await published_texts(log, story.letter.job_id, story.n)
            except (RedisError, OSError) as error:
                print(f"penstock: the output isn't shown: {one_line(error) or error}", file=sys.stderr)
    return {"request": story.hidden_request, "texts": texts}


async def _pools(db: AsyncEngine) -> list[str]:
    async with db.connect() as conn:
        return list(await conn.scalars(select(t.models.c.pool).distinct().order_by(t.models.c.pool)))
