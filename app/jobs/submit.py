"""How does a request become a job? Prepare (count tokens, check limits), accept (one transaction), nominate (Redis, after the commit)."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from sqlalchemy import Uuid, any_, bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    PromptTooLong,
    QueueLimitReached,
    TenantSuspended,
    Unavailable,
)
from app.ids import new_id
from app.jobs import tables as t
from app.jobs.arrival import Arrival, arrive
from app.jobs.copying import insert_rows
from app.jobs.models import Model
from app.jobs.request import MAX_SEED, JobRequest
from app.jobs.sharing import Work, share, work_key
from app.jobs.spending import Answer, Ask, let_in, prices_of
from app.jobs.tokenizing import PromptEncoder, texts_in
from app.observe.tracing import current_traceparent
from app.queue.streams import JobQueue, Nomination
from app.quotas.budgets import Prices
from app.quotas.caps import hold_to_caps, hold_to_locked
from app.quotas.limits import NO_LIMITS, Limits
from app.quotas.rights import ALL_RIGHTS, Rights
from app.redis import RedisError
from app.settings import Settings

NOMINATE_CHUNK = 250  # jobs: a script holds Redis up for as long as it runs
MAX_CHARS_PER_TOKEN = 64  # no text has that many on average: 3 to 5 are usual


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: taken from the API key, never from the request."""

    tenant_id: str
    api_key_id: UUID | None
    limits: Limits = NO_LIMITS
    rights: Rights = ALL_RIGHTS


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A request that was checked against its model: nothing but a budget or a race can refuse it now."""

    id: UUID
    request: JobRequest
    model: Model
    prompt_ids: list[int]
    max_tokens: int
    sampling: dict[str, Any]
    requested_model: str | None = None  # where another one runs it than its owner asked for
    changes: dict[str, Any] | None = None  # what it runs with that its owner asked differently, and why

    @property
    def cost(self) -> int:
        """Most tokens that it can need: prompt and all choices' output."""
        return len(self.prompt_ids) + self.request.n * self.max_tokens

    @property
    def is_deterministic(self) -> bool:
        """Whether the same request gives the same output."""
        return self.request.temperature == 0 or self.request.seed is not None

    @property
    def work_key(self) -> bytes | None:
        """What its output follows from; None where chance has a part in it."""
        model, form = self.model, "prompt" if self.request.messages is None else "messages"
        return work_key(
            (model.name, model.model_hash, model.tokenizer_hash, form), self.prompt_ids, self.request.n, self.sampling,
            has_own_seed=self.request.seed is not None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ManyKey:
    """An Idempotency-Key that stands for many jobs together, and the hash of what was asked."""

    key: str
    body_hash: bytes

    @classmethod
    def of(cls, key: str, requests: Sequence[JobRequest]) -> "ManyKey":
        """Of these requests in their order; one alone isn't the same as that one submitted by itself."""
        digest = hashlib.sha256()
        for each in requests:
            digest.update(_body_hash(each))
        return cls(key, digest.digest())


@dataclass(frozen=True, slots=True)
class Accepted:
    """The promise that a 202 gives. `replayed`: it was given before, under the same Idempotency-Key.

    `arrival`: of a job that came alone and is as its owner asked, waiting for nothing but its turn.
    """

    job_id: UUID
    replayed: bool
    nomination: Nomination | None
    pool: str
    arrival: Arrival | None = None


def prepare(request: JobRequest, model: Model, encoder: PromptEncoder, settings: Settings) -> PreparedJob:
    """Count the tokens and check all that the model limits. Runs for long on long prompts: call it in a thread.

    Raises:
        InvalidRequest: a limit is passed; `param` names the field.
        PromptTooLong: prompt and output don't fit into the model's context.
    """
    for field, message in request.check_limits(settings):
        raise InvalidRequest(f"{field}: {message}", param=field)
    _refuse_hopeless(request, model)
    ids = _encode(request, encoder)
    if not ids:
        raise InvalidRequest("prompt: holds no token", param="prompt")
    for field, tokens in (("prompt", ids), ("logit_bias", list(request.logit_biases))):
        if tokens and max(tokens) >= model.vocab_size:
            raise InvalidRequest(
                f"{field}: token ids must be below {model.vocab_size}, the model's vocabulary", param=field
            )
    room = model.max_model_len - len(ids)
    if room < 1:
        raise PromptTooLong(
            f"prompt: {len(ids)} tokens leave no room for output: the model's context is {model.max_model_len} tokens",
            param="messages" if request.messages else "prompt",
            limit=model.max_model_len,
        )
    if request.max_tokens is not None and request.max_tokens > room:
        raise PromptTooLong(
            f"max_tokens: must be at most {room}: the prompt has {len(ids)} of the model's {model.max_model_len} tokens",
            param="max_tokens",
            limit=room,
        )
    max_tokens = request.max_tokens or min(settings.default_max_tokens, room)
    if request.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: must not be more than max_tokens ({max_tokens})", param="min_tokens")
    if request.logprobs is not None and request.n * max_tokens * (request.logprobs + 1) > settings.max_logprobs:
        raise InvalidRequest(
            f"logprobs: n x max_tokens x (logprobs + 1) must be at most {settings.max_logprobs}: ask for fewer of one of them",
            param="logprobs",
            limit=settings.max_logprobs,
        )
    return PreparedJob(new_id(), request, model, ids, max_tokens, _sampling(request, max_tokens))


def prepare_fallback(
    request: JobRequest, wanted: Model, fallback: Model, encoder: PromptEncoder, settings: Settings
) -> PreparedJob:
    """The same request for the model that stands in, held to all of that one's limits. In a thread, as `prepare`.

    Raises:
        InvalidRequest: as `prepare`; or the request speaks in token ids that mean others there.
    """
    assert fallback.name != wanted.name
    if fallback.tokenizer_hash != wanted.tokenizer_hash:
        for field, has_ids in (("prompt", isinstance(request.prompt, list)), ("logit_bias", request.logit_bias)):
            if has_ids:
                raise InvalidRequest(
                    f"fallback_model: {field} holds token ids of {wanted.name!r}, and {fallback.name!r} has another "
                    "tokenizer: send text, leave logit_bias out, or name a model with the same tokenizer",
                    param="fallback_model",
                )
    try:
        prepared = prepare(request, fallback, encoder, settings)
    except InvalidRequest as error:
        raise type(error)(f"{error.detail} (fallback_model {fallback.name!r})", **error.extra) from error
    return replace(prepared, requested_model=wanted.name)


async def accept(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], *, idempotency_key: str | None = None
) -> list[Accepted]:
    """Reserve the budget and write the rows, in the caller's transaction; the jobs exist when it commits.

    With `idempotency_key`, `prepared` is one job, and a key that was used before gives the first job.

    Raises:
        TenantSuspended: the tenant may submit nothing now.
        QueueLimitReached: its caps have no room for them (or OverTenantLimit: they never will).
        BudgetExhausted: a budget can't hold them; roll back.
        IdempotencyMismatch: the key came with another body before.
    """
    assert idempotency_key is None or len(prepared) == 1
    key = None if idempotency_key is None else ManyKey(idempotency_key, _body_hash(prepared[0].request))
    return await _accept(conn, caller, prepared, key)


async def submit_many(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], *, key: ManyKey | None = None
) -> list[Accepted]:
    """All of these jobs of one tenant or none, in the caller's transaction; the jobs exist when it commits. Then `nominate` them.

    Caps and budgets see them together, in the order given: a job that the ones before it leave no room for refuses all, unless it
    may wait (`on_budget`). The rows go by COPY. With `key`, one that was used before gives the jobs that it made, in their order.

    Raises:
        TenantSuspended, QueueLimitReached, OverTenantLimit, BudgetExhausted, IdempotencyMismatch: as `accept`; roll back.
    """
    return await _accept(conn, caller, prepared, key) if prepared else []


async def _accept(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], key: ManyKey | None
) -> list[Accepted]:
    tokens, arrival = sum(each.cost for each in prepared), None
    # What a budget may cut isn't known before it was asked; under a key there may be a job already.
    if len(prepared) == 1 and key is None and prepared[0].request.on_budget != "truncate":
        row, deadline_s = _job_row(caller, prepared[0]), prepared[0].request.deadline_s
        arrival = await arrive(conn, row, _input_row(prepared[0]), deadline_s=deadline_s)
        await hold_to_locked(conn, caller.tenant_id, arrival.caps, jobs=1, tokens=tokens, are_written=True)
        prices = {prepared[0].model.name: arrival.prices}
    else:
        try:
            await hold_to_caps(conn, caller.tenant_id, jobs=len(prepared), tokens=tokens)
        except (QueueLimitReached, TenantSuspended):
            # What the same key has made a moment ago is a promise, full or not: that request held the lock before us.
            first = await replay_of(conn, caller, key) if key else None
            if first is None:
                raise
            return first
        prices = await prices_of(conn, {each.model.name for each in prepared})
        await _insert_jobs(conn, caller, prepared, prices)
    if key is not None:
        first = await _claim_key(conn, caller, key, prepared)
        if first is not None:
            return first
    asks = [ask_of(caller, each, prices[each.model.name]) for each in prepared]
    answers = await let_in(conn, asks, arrival.budgets if arrival else None)
    await _write_answers(conn, prepared, answers)
    final = [_cut(each, answer) for each, answer in zip(prepared, answers, strict=True)]
    if arrival is None:
        await insert_rows(conn, t.job_inputs, [_input_row(each) for each in final])
    held = {each.id for each, answer in zip(final, answers, strict=True) if answer.hold}
    certain = [each for each in final if each.is_deterministic and each.id not in held]
    waiting = set(held)
    if certain:
        waiting |= await share(
            conn, caller.tenant_id, lambda: [Work(each.id, each.request.tier, each.work_key) for each in certain]
        )
    return [
        Accepted(each.id, False, None, each.model.pool)
        if each.id in waiting
        else Accepted(each.id, False, _nomination(caller, each), each.model.pool, arrival)
        for each in final
    ]


def ask_of(caller: Caller, job: PreparedJob, prices: Prices) -> Ask:
    """What the job asks of its budgets."""
    request = job.request
    webhook = request.webhook.model_dump(exclude_none=True) if request.webhook else None
    return Ask(
        job.id, 1, caller.tenant_id, caller.api_key_id, prices, len(job.prompt_ids), request.n, job.max_tokens,
        request.min_tokens, request.on_budget, webhook,
    )  # fmt: skip


async def find_replay(conn: AsyncConnection, caller: Caller, key: str, request: JobRequest) -> Accepted | None:
    """The job that this Idempotency-Key made before, if it did.

    Raises:
        IdempotencyMismatch: it was made of another body.
    """
    first = await replay_of(conn, caller, ManyKey(key, _body_hash(request)))
    return None if first is None else first[0]


async def replay_of(conn: AsyncConnection, caller: Caller, key: ManyKey) -> list[Accepted] | None:
    """The jobs that this Idempotency-Key made before, in their order, if it did.

    Raises:
        IdempotencyMismatch: they were made of another body.
    """
    keys = t.idempotency_keys
    row = (
        await conn.execute(
            select(keys.c.body_hash, keys.c.job_id, keys.c.job_ids).where(
                keys.c.tenant_id == caller.tenant_id, keys.c.key == key.key
            )
        )
    ).one_or_none()
    if row is None:
        return None
    if row.body_hash != key.body_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used with another body; use a new key for a new job")
    return [Accepted(job_id, True, None, "") for job_id in row.job_ids or [row.job_id]]


async def nominate(queue: JobQueue, accepted: Sequence[Accepted]) -> bool:
    """Tell the workers, after the commit, one call a chunk. Best effort: a job that this loses is found by the sweeper.

    Returns:
        Whether Redis has them now.
    """
    nominations = [each.nomination for each in accepted if each.nomination is not None]
    try:
        for start in range(0, len(nominations), NOMINATE_CHUNK):
            if await queue.enqueue(nominations[start : start + NOMINATE_CHUNK]) is None:
                return False
    except RedisError:
        return False
    return True


def _refuse_hopeless(request: JobRequest, model: Model) -> None:
    """A text far beyond the context is refused by its length: counting its tokens could keep a thread busy for a minute."""
    if request.messages is not None:
        texts: list[Any] = list(texts_in([message.model_dump() for message in request.messages]))
        texts += texts_in([tool.model_dump() for tool in request.tools or []])
    else:
        texts = [request.prompt]
    num_chars = sum(len(text) for text in texts if isinstance(text, str))
    most = model.max_model_len * MAX_CHARS_PER_TOKEN
    if num_chars > most:
        field = "messages" if request.messages is not None else "prompt"
        raise PromptTooLong(
            f"{field}: {num_chars} characters can't fit into the model's context of {model.max_model_len} tokens",
            param=field,
            limit=model.max_model_len,
        )


def _encode(request: JobRequest, encoder: PromptEncoder) -> list[int]:
    if request.messages is not None:
        tools = request.tools
        return encoder.encode_messages(
            [message.model_dump(exclude_none=True) for message in request.messages],
            None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools],
        )
    return encoder.encode_text(request.prompt) if isinstance(request.prompt, str) else list(request.prompt or [])


def _sampling(request: JobRequest, max_tokens: int) -> dict[str, Any]:
    """The parameters as the engine takes them, all of them, with the seed drawn: a retry repeats the same tokens."""
    same = (
        "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "logprobs", "ignore_eos", "stop_repeating", "speculate",
    )  # fmt: skip
    structure = request.structure
    return {
        **{name: getattr(request, name) for name in same},
        "max_tokens": max_tokens,
        "seed": request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
        "logit_bias": {str(token): bias for token, bias in request.logit_biases.items()},
        "stop": request.stop_strings,
        "grammar": None if structure is None else {"kind": structure.kind, "text": structure.text},
    }


def _body_hash(request: JobRequest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(request.canonical(), order="sorted")).digest()


_MAX_BINDS = 3


async def _claim_key(
    conn: AsyncConnection, caller: Caller, key: ManyKey, jobs: Sequence[PreparedJob]
) -> list[Accepted] | None:
    """Bind the key to the jobs. If another request has it (we wait for its commit), undo our rows and return its jobs."""
    keys = t.idempotency_keys
    ids = [each.id for each in jobs]
    row = {
        "tenant_id": caller.tenant_id, "key": key.key, "body_hash": key.body_hash, "job_id": ids[0],
        "job_ids": ids if len(ids) > 1 else None,
    }  # fmt: skip
    bind = upsert(keys).values(**row).on_conflict_do_nothing().returning(keys.c.job_id)
    for _ in range(_MAX_BINDS):
        if await conn.scalar(bind) is not None:
            return None
        first = await replay_of(conn, caller, key)
        if first is not None:
            await conn.execute(t.jobs.delete().where(t.jobs.c.id == any_(bindparam("ids", ids, type_=ARRAY(Uuid)))))
            return first
        # The key was past its time and forgotten between the two statements: now it is free.
    raise Unavailable("this Idempotency-Key is being forgotten just now: send the request again")


def _cut(job: PreparedJob, answer: Answer) -> PreparedJob:
    """The job with as many tokens as its budgets let it have."""
    if answer.max_tokens == job.max_tokens:
        return job
    return replace(job, max_tokens=answer.max_tokens, sampling=job.sampling | {"max_tokens": answer.max_tokens})


def _nomination(caller: Caller, job: PreparedJob) -> Nomination:
    return Nomination(job.id, 1, job.request.tier, caller.tenant_id, job.cost)


async def _write_answers(conn: AsyncConnection, prepared: Sequence[PreparedJob], answers: Sequence[Answer]) -> None:
    """What the budgets have changed of the rows that were written before they were asked."""
    for job, answer in zip(prepared, answers, strict=True):
        values: dict[str, Any] = {}
        if answer.max_tokens != job.max_tokens:
            values |= {"max_tokens": answer.max_tokens, "changes": (job.changes or {}) | (answer.changes or {})}
        if answer.hold is not None:
            values |= {"reservation": 0, "held_by": answer.hold.budget_id, "not_before": answer.hold.until}
        if values:
            await conn.execute(t.jobs.update().where(t.jobs.c.id == job.id).values(**values))


async def _insert_jobs(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], prices: dict[str, Prices]
) -> None:
    deadlines = [each.request.deadline_s for each in prepared]
    rows = [
        _job_row(caller, each)
        | {
            "input_price": prices[each.model.name].input_price,
            "output_price": prices[each.model.name].output_price,
        }
        for each in prepared
    ]
    await insert_rows(conn, t.jobs, rows)
    if any(deadline is not None for deadline in deadlines):
        # Deadlines are facts of Postgres' clock.
        timed = [
            (each.id, deadline) for each, deadline in zip(prepared, deadlines, strict=True) if deadline is not None
        ]
        await conn.execute(
            text(
                "UPDATE jobs SET deadline_at = jobs.created_at + make_interval(secs => d.seconds) "
                "FROM unnest(CAST(:ids AS uuid[]), CAST(:seconds AS float8[])) AS d (id, seconds) WHERE jobs.id = d.id"
            ),
            {"ids": [job_id for job_id, _ in timed], "seconds": [seconds for _, seconds in timed]},
        )


def _job_row(caller: Caller, job: PreparedJob) -> dict[str, Any]:
    request = job.request
    return {
        "id": job.id,
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "pool": job.model.pool,
        "model": job.model.name,
        "requested_model": job.requested_model,
        "tier": request.tier,
        "prompt_tokens": len(job.prompt_ids),
        "max_tokens": job.max_tokens,
        "n": request.n,
        "on_budget": request.on_budget,
        "changes": job.changes,
        "metadata": request.metadata,
        "webhook": request.webhook.model_dump(exclude_none=True) if request.webhook else None,
        "traceparent": current_traceparent(),
    }


def _input_row(job: PreparedJob) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "request": job.request.canonical(),
        "sampling": job.sampling,
        "prompt_ids": np.asarray(job.prompt_ids, dtype="<i4").tobytes(),
        "tokenizer_hash": job.model.tokenizer_hash,
    }
