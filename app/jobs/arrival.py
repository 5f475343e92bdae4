"""How is one job written that comes alone? With its input, the model's prices of now, its tenant's caps locked, its budgets opened: by one round trip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import in_one_trip
from app.quotas.budgets import OPEN_BUDGETS, Prices, whose
from app.quotas.caps import LOCK_CAPS

# Both times are the transaction's, as the columns' defaults are.
_WRITE = text("""
    WITH job AS (
        INSERT INTO jobs (id, tenant_id, api_key_id, pool, model, requested_model, tier, prompt_tokens, max_tokens, n, on_budget,
                          input_price, output_price, changes, metadata, webhook, traceparent, deadline_at)
        SELECT :id, :tenant_id, CAST(:api_key_id AS uuid), :pool, :model, CAST(:requested_model AS text), :tier, :prompt_tokens,
               :max_tokens, :n, :on_budget, coalesce(m.input_price, 0), coalesce(m.output_price, 0), CAST(:changes AS jsonb),
               CAST(:metadata AS jsonb), CAST(:webhook AS jsonb), CAST(:traceparent AS text),
               pg_catalog.now() + make_interval(secs => CAST(:deadline_s AS float8))
        FROM (SELECT 1) AS one LEFT JOIN models m ON m.name = :model
        RETURNING id, input_price, output_price, created_at, deadline_at),
    input AS (
        INSERT INTO job_inputs (job_id, request, sampling, prompt_ids, tokenizer_hash)
        SELECT id, CAST(:request AS json), CAST(:sampling AS json), :prompt_ids, :tokenizer_hash FROM job)
    SELECT input_price, output_price, created_at, deadline_at FROM job
""")
_JSON = ("changes", "metadata", "webhook", "request", "sampling")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Arrival:
    """What Postgres has added to the row, and what stood there for its tenant."""

    prices: Prices
    created_at: datetime
    deadline_at: datetime | None
    caps: Any  # of its tenant, locked; None where it has none
    budgets: Sequence[Any]  # that apply to it, by id, their windows opened


async def arrive(
    conn: AsyncConnection,
    job: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    deadline_s: float | None,
) -> Arrival:
    """Lock the caps of the job's tenant, insert the job (columns of `jobs`, prices left out) and its input (columns of `job_inputs`),
    and open its budgets, in this order, by one round trip; in the caller's transaction.
    """
    values: dict[str, Any] = {**job, **inputs, "deadline_s": deadline_s}
    del values["job_id"]
    for name in _JSON:
        values[name] = None if values[name] is None else _encode(values[name]).decode()
    caps, written, budgets = await in_one_trip(
        conn,
        [
            (LOCK_CAPS, {"tenant": job["tenant_id"]}),
            (_WRITE, values),
            (OPEN_BUDGETS, whose([(job["tenant_id"], job["api_key_id"])])),
        ],
    )
    (row,) = written
    prices = Prices(row.input_price, row.output_price)
    return Arrival(prices, row.created_at, row.deadline_at, caps[0] if caps else None, budgets)
