"""Does this process live, and can it serve? /healthz and /readyz."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from app.api.documents import Health, Readiness, answer
from app.api.openapi import problems, shows
from app.api.problems import problem
from app.api.runtime import Runtime, runtime_of
from app.errors import Unavailable
from app.redis import RedisError
from app.revisions import head_revision, known_revisions

CHECK_TIMEOUT_S = 2.0

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    operation_id="health",
    summary="Liveness",
    responses=shows(200, "The event loop turns.", Health),
)
async def healthz() -> Response:
    """Says nothing of the servers behind: a restart of this process would mend none of them."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    operation_id="readiness",
    summary="Readiness",
    responses=shows(200, "Requests can be served.", Readiness) | problems(503),
)
async def readyz(request: Request) -> Response:
    """Asks Postgres, its schema, Redis and this process's own loops. Without Redis it is degraded but ready: jobs are taken in, and start later.

    Degraded, too, while a model takes no new jobs, or few, because it fails too often.
    """
    runtime = runtime_of(request)
    (postgres, schema), redis, models = await asyncio.gather(_postgres(runtime), _redis(runtime), _models(runtime))
    loops = _loops(runtime)
    checks = {"postgres": postgres, "schema": schema, "redis": redis, "models": models, "loops": loops}
    broken = [f"{name}: {check['detail']}" for name, check in checks.items() if not check["ok"]]
    if postgres["ok"] and schema["ok"] and loops["ok"]:
        return answer({"status": "degraded" if broken else "ready", "checks": checks})
    return problem(Unavailable("; ".join(broken), checks=checks))


async def _postgres(runtime: Runtime) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whether it answers, and whether its schema is the one that this code wants."""
    unknown = _check(False, "unknown")
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), runtime.engine.connect() as conn:
            revision = await conn.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:
        return _check(True, "answers"), _check(False, "not migrated: run `penstock migrate`")
    except (SQLAlchemyError, TimeoutError, OSError):
        return _check(False, "doesn't answer"), unknown
    return _check(True, "answers"), await asyncio.to_thread(_schema, revision)


def _schema(revision: str | None) -> dict[str, Any]:
    head, known = head_revision(), known_revisions()
    if head is None:
        return _check(False, "this installation has no migrations")
    if revision == head:
        return _check(True, f"at {revision}")
    if revision is None or revision in known:
        return _check(False, f"at {revision}, behind {head}: run `penstock migrate`")
    return _check(True, f"at {revision}, newer than {head}: newer code has migrated it")


async def _redis(runtime: Runtime) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await runtime.redis.ping()
    except (RedisError, TimeoutError, OSError):
        return _check(False, "doesn't answer; jobs start later, when the sweeper has found them")
    return _check(True, "answers")


async def _models(runtime: Runtime) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            breakers = await runtime.breakers.all()
    except (SQLAlchemyError, TimeoutError, OSError):
        return _check(False, "unknown")
    resting = [f"{name}'s breaker is {each.shown}" for name, each in breakers.items() if each.shown != "closed"]
    return _check(not resting, ", ".join(resting) or "all take new jobs")


def _loops(runtime: Runtime) -> dict[str, Any]:
    """What this process does in the background; while a part of it is broken, callers are better served elsewhere."""
    broken = runtime.loops.broken
    return _check(not broken, "; ".join(broken.values()) or "turn")


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
