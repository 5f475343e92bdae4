"""Which models are served, at what price, and how does each one's breaker stand?"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that a worker registered. Prices in millionths of the currency for a million tokens; `mode` is an operator's word."""

    name: str
    pool: str
    max_model_len: int
    input_price: int
    output_price: int
    fallback: str | None
    registered_at: datetime
    state: str
    mode: str
    since: datetime | None
    retry_at: datetime | None
    probes_left: int
    bad: int
    good: int
    ready: int
    draining: int

    @property
    def shown_state(self) -> str:
        """How its breaker works: the operator's word, or else what the keeper found."""
        return self.state if self.mode == "auto" else self.mode


_MODELS = text("""
    SELECT m.name, m.pool, m.max_model_len, m.input_price, m.output_price, m.fallback, m.registered_at,
           coalesce(b.state, 'closed'), coalesce(b.mode, 'auto'), b.since, b.retry_at, coalesce(b.probes_left, 0),
           coalesce(b.bad, 0), coalesce(b.good, 0), coalesce(w.ready, 0), coalesce(w.draining, 0)
    FROM models m LEFT JOIN breakers b ON b.model = m.name
    LEFT JOIN (
        SELECT model, count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'draining') AS draining
        FROM workers WHERE ended_at IS NULL AND expires_at > statement_timestamp() GROUP BY model) w ON w.model = m.name
    ORDER BY m.name LIMIT :most
""")
MOST_MODELS = 500


async def list_models(conn: AsyncConnection) -> list[ModelRow]:
    """All models by name, at most `MOST_MODELS`."""
    return [ModelRow(*row) for row in await conn.execute(_MODELS, {"most": MOST_MODELS})]
