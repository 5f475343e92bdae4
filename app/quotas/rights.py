"""May this tenant ask for that? Tiers and the size of one request: what is read together with its key, and believed as long as that."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import OverTenantLimit, TenantSuspended, TierNotAllowed
from app.quotas.tables import tenants
from app.quotas.wanted import TIERS


@dataclass(frozen=True, slots=True)
class Rights:
    """What one request of a tenant may be; None is no limit."""

    tiers: tuple[str, ...] = TIERS
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    is_suspended: bool = False


ALL_RIGHTS = Rights()

# To be selected beside a key, from `api_keys` joined with `tenants`.
RIGHT_COLUMNS = [
    tenants.c.tiers.label("right_tiers"),
    tenants.c.max_prompt_tokens.label("right_prompt"),
    tenants.c.max_output_tokens.label("right_output"),
    tenants.c.suspended_at.is_not(None).label("right_suspended"),
]


def read_rights(row: Any) -> Rights:
    """The rights in a row that has RIGHT_COLUMNS."""
    return Rights(tuple(row.right_tiers), row.right_prompt, row.right_output, row.right_suspended)


async def rights_of(conn: AsyncConnection, tenant_id: str) -> Rights:
    """The tenant's rights as they are now."""
    return read_rights((await conn.execute(select(*RIGHT_COLUMNS).where(tenants.c.id == tenant_id))).one())


def check_rights(rights: Rights, *, tier: str) -> None:
    """Refuse what the tenant may not ask for at all; before the prompt is counted.

    Raises:
        TenantSuspended: it may ask for nothing now.
        TierNotAllowed: not for this tier.
    """
    if rights.is_suspended:
        raise suspended()
    if tier not in rights.tiers:
        allowed = ", ".join(rights.tiers) or "none"
        raise TierNotAllowed(
            f"tier: this tenant may not use {tier}; it may use {allowed}", param="tier", allowed=list(rights.tiers)
        )


def check_size(rights: Rights, *, prompt_tokens: int, n: int, max_tokens: int, prompt_field: str = "prompt") -> None:
    """Refuse one request that is larger than its tenant may send.

    Raises:
        OverTenantLimit: `param` names the field, `limit` the most.
    """
    most = rights.max_prompt_tokens
    if most is not None and prompt_tokens > most:
        raise OverTenantLimit(
            f"{prompt_field}: has {prompt_tokens} tokens, and this tenant's requests must have at most {most}: shorten it",
            param=prompt_field,
            limit=most,
        )
    most = rights.max_output_tokens
    if most is not None and n * max_tokens > most:
        raise OverTenantLimit(
            f"max_tokens: {f'n x max_tokens is {n} x {max_tokens}' if n > 1 else f'is {max_tokens}'}, and this tenant's requests must "
            f"keep to {most}: ask for less",
            param="max_tokens",
            limit=most,
        )


def suspended() -> TenantSuspended:
    """The refusal of a suspended tenant's job."""
    return TenantSuspended("this tenant is suspended: no new jobs are taken; ask the operator")
