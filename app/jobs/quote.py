"""What would this job cost, and would its tenant's caps and budgets hold it? Asked without locks, answered without a promise."""

from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import PenstockError
from app.jobs.prepare import PreparedJob
from app.jobs.spending import Answer, Ask, answer, prices_of
from app.jobs.submit import Caller, ask_of
from app.quotas.budgets import Account, Window, look
from app.quotas.caps import look_at_caps


@dataclass(frozen=True, slots=True)
class Quote:
    """What a submission would get now: `answer`, unless it is `refused`. `windows` are all that apply, as they are."""

    job: PreparedJob
    ask: Ask
    windows: list[Window]
    answer: Answer | None
    refused: PenstockError | None


async def quote(conn: AsyncConnection, caller: Caller, job: PreparedJob) -> Quote:
    """Judge the job as a submission would; nothing is written or reserved."""
    prices = await prices_of(conn, {job.model.name})
    ask = ask_of(caller, job, prices[job.model.name])
    windows = await look(conn, caller.tenant_id, caller.api_key_id)
    try:
        await look_at_caps(conn, caller.tenant_id, tokens=job.cost)
        return Quote(job, ask, windows, answer(Account([replace(each) for each in windows]), ask), None)
    except PenstockError as error:
        return Quote(job, ask, windows, None, error)
