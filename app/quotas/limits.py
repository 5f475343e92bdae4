"""How fast may a key and its tenant ask? Requests and tokens a minute, read together with the key; None is no limit."""

from dataclasses import dataclass
from typing import Any, Self

from app.quotas.tables import api_keys, tenants

# The level of a bucket is kept in parts of a token; up to this burst it is an exact number in Lua (app/quotas/lua/admit.lua).
MAX_BURST = 75_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a minute in the long run, `burst` of them at once."""

    per_minute: int
    burst: int

    @classmethod
    def read(cls, per_minute: int | None, burst: int | None) -> Self | None:
        """The rate as it stands in Postgres: no rate is no limit, no burst is what a minute brings."""
        if per_minute is None:
            return None
        return cls(per_minute, min(MAX_BURST, per_minute if burst is None else burst))


@dataclass(frozen=True, slots=True)
class Rates:
    """What one owner, a key or a tenant, may submit. Tokens count as a job may need them at most: prompt + n x max_tokens."""

    requests: Rate | None = None
    tokens: Rate | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller is held to: its key's limits and its tenant's, both."""

    key: Rates = Rates()
    tenant: Rates = Rates()


NO_LIMITS = Limits()

_RATE_COLUMNS = ("requests_per_minute", "request_burst", "tokens_per_minute", "token_burst")
# To be selected beside a key, from `api_keys` joined with `tenants`.
LIMIT_COLUMNS = [owner.c[name].label(f"{owner.name}_{name}") for owner in (api_keys, tenants) for name in _RATE_COLUMNS]


def read_limits(row: Any) -> Limits:
    """The limits in a row that has LIMIT_COLUMNS."""
    return Limits(_rates(row, api_keys.name), _rates(row, tenants.name))


def _rates(row: Any, owner: str) -> Rates:
    per_minute, burst, tokens_per_minute, token_burst = (getattr(row, f"{owner}_{name}") for name in _RATE_COLUMNS)
    return Rates(Rate.read(per_minute, burst), Rate.read(tokens_per_minute, token_burst))
