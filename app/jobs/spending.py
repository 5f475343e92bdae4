"""What does a job cost, and what becomes of it where a budget can't hold it? Reject, wait, or fewer tokens; the fallback is the API's to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t
from app.jobs.states import OnBudget
from app.quotas.budgets import MICROS, Account, Crossing, Prices, Reservation, Spending, Window, open_account
from app.webhooks.events import THRESHOLD_EVENT, wants
from app.webhooks.outbox import Event, emit, listeners


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that wants to be let in, or in again: what it may use at most, and what it wants if that is too much."""

    job_id: UUID
    number: int  # of the reservation
    tenant_id: str
    api_key_id: UUID | None
    prices: Prices
    prompt_tokens: int
    n: int
    max_tokens: int
    min_tokens: int = 0
    on_budget: OnBudget = "reject"
    webhook: dict[str, Any] | None = None

    def wanted(self, max_tokens: int | None = None) -> Spending:
        """The most that it can spend, with its own `max_tokens` or another."""
        output = self.n * (self.max_tokens if max_tokens is None else max_tokens)
        return Spending.at(self.prices, self.prompt_tokens, output)

    def reservation(self, max_tokens: int | None = None) -> Reservation:
        """What is to be set aside for it."""
        tells = wants(self.webhook, THRESHOLD_EVENT)
        return Reservation(self.job_id, self.number, self.tenant_id, self.api_key_id, self.wanted(max_tokens), tells)


@dataclass(frozen=True, slots=True)
class Hold:
    """The budget that a job waits for, and when its next window begins."""

    budget_id: UUID
    until: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job is let in: with so many tokens, at once or not before a budget has room for it."""

    max_tokens: int
    hold: Hold | None = None
    changes: dict[str, Any] | None = None


async def prices_of(conn: AsyncConnection, models: set[str]) -> dict[str, Prices]:
    """What these models cost now."""
    m = t.models.c
    rows = await conn.execute(select(m.name, m.input_price, m.output_price).where(m.name.in_(models)))
    found = {row.name: Prices(row.input_price, row.output_price) for row in rows}
    return {name: found.get(name, Prices()) for name in models}


async def fallback_of(conn: AsyncConnection, model: str) -> str | None:
    """The model that stands in for this one where a job names none, if an operator has set one."""
    fallback: str | None = await conn.scalar(select(t.models.c.fallback).where(t.models.c.name == model))
    return fallback


async def let_in(conn: AsyncConnection, asks: Sequence[Ask], opened: Sequence[Any] | None = None) -> list[Answer]:
    """Reserve for each of these jobs in every budget that applies, as each wants it where one is short, in the caller's transaction.

    `opened`: as `open_account` takes it.

    Raises:
        BudgetExhausted: a job can't be let in; roll back.
    """
    account = await open_account(conn, {(each.tenant_id, each.api_key_id) for each in asks}, opened)
    await listen(conn, account)
    answers = [answer(account, each) for each in asks]
    await tell(conn, await account.write(conn), {each.job_id: each.webhook for each in asks})
    return answers


def answer(account: Account, ask: Ask) -> Answer:
    """How the job is let in, and what that takes from the account.

    Raises:
        BudgetExhausted: it isn't.
    """
    refusing = account.refusing(ask.tenant_id, ask.api_key_id, ask.wanted())
    if not refusing:
        account.take(ask.reservation())
        return Answer(ask.max_tokens)
    refusal = refusing[0].refusal(ask.wanted().amount(refusing[0].metric))
    applying = account.applying(ask.tenant_id, ask.api_key_id)
    if ask.on_budget == "truncate":
        tightest = min(applying, key=lambda each: most_tokens(ask, each))
        most = most_tokens(ask, tightest)
        if most < max(1, ask.min_tokens):
            raise refusal
        account.take(ask.reservation(most))
        change = {"asked": ask.max_tokens, "given": most, "reason": "budget", "budget_id": str(tightest.budget_id)}
        return Answer(most, None, {"max_tokens": change})
    if ask.on_budget != "wait":
        raise refusal
    for each in applying:
        # What no window could ever hold, or no new window will ever come for, isn't waited for.
        amount = ask.wanted().amount(each.metric)
        if amount > each.hard_limit or (each.ends_at is None and not each.holds(amount)):
            raise each.refusal(amount)
    return Answer(ask.max_tokens, hold_of(refusing))


def hold_of(refusing: Sequence[Window]) -> Hold:
    """What a job waits for that these can't hold: the one that is last to have a new window."""
    last = max(refusing, key=lambda each: (each.ends_at is None, each.look_again_at))
    return Hold(last.budget_id, last.look_again_at)


def most_tokens(ask: Ask, window: Window) -> int:
    """The most `max_tokens` that this window can hold, at most what is asked; below 1 where not even one."""
    if window.metric == "output_tokens":
        return min(ask.max_tokens, window.left // ask.n)
    if window.metric == "total_tokens":
        return min(ask.max_tokens, (window.left - ask.prompt_tokens) // ask.n)
    if window.metric == "cost" and ask.prices.output_price:
        room = window.left * MICROS - ask.prompt_tokens * ask.prices.input_price
        return min(ask.max_tokens, room // (ask.n * ask.prices.output_price))
    return ask.max_tokens if window.holds(ask.wanted().amount(window.metric)) else 0


def model_change(wanted: str, given: str, budget_id: str) -> dict[str, Any]:
    """How a job's `changes` say that another model runs it."""
    return {"model": {"asked": wanted, "given": given, "reason": "budget", "budget_id": budget_id}}


async def listen(conn: AsyncConnection, account: Account) -> None:
    """Note which tenants have an endpoint that wants to hear of thresholds. To be asked before anything is taken."""
    account.heard = await listeners(conn, {each.tenant_id for each in account.windows}, THRESHOLD_EVENT)


async def tell(
    conn: AsyncConnection, crossings: Sequence[Crossing], webhooks: Mapping[UUID, dict[str, Any] | None]
) -> None:
    """Write the deliveries of thresholds that were crossed, to the tenant's endpoints and the webhook of the job that crossed each, in the caller's transaction."""
    if not crossings:
        return
    now: datetime = (await conn.execute(select(func.now()))).scalar_one()
    events = []
    for each in crossings:
        webhook = webhooks[each.job_id]
        data = {
            "object": "budget",
            "id": str(each.budget_id),
            "api_key_id": None if each.api_key_id is None else str(each.api_key_id),
            "metric": each.metric,
            "period": each.period,
            "window_start": each.start,
            "threshold": each.threshold,
            "limit": each.hard_limit,
            "used": each.used,
            "reserved": each.reserved,
        }
        url = webhook["url"] if webhook and wants(webhook, THRESHOLD_EVENT) else None
        events.append(Event(each.tenant_id, THRESHOLD_EVENT, now, data, url=url))
    await emit(conn, events)
