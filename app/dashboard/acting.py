"""How is an operator's act done? The form and its reason are read, it is done, the browser goes on; a refusal is said on the page it came from."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.forms import Form, read_form, reason_of
from app.dashboard.pages import go
from app.dashboard.services import Services, services_of
from app.errors import PenstockError
from app.operators.sessions import Session
from app.quotas.acts import record_act

Refused = Callable[[str, int], Awaitable[Response]]  # shows the page with the refusal's words and its HTTP status


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be done: the form's fields, who wants it, and why."""

    services: Services
    form: Form
    actor: str
    reason: str

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """One transaction, committed at its end."""
        return self.services.transaction()

    async def record(self, conn: AsyncConnection, action: str, target: str, **detail: Any) -> None:
        """Write it into the log of acts, with its reason where one was asked for."""
        because = {"reason": self.reason} if self.reason else {}
        await record_act(conn, self.actor, action, target, because | detail)


async def act(
    request: Request,
    session: Session,
    do: Callable[[Act], Awaitable[str]],
    *,
    to: str,
    refused: Refused,
    wants_reason: bool = True,
) -> Response:
    """Do it, and go to the path `to`, where the sentence of `SAYINGS` is shown that `do` names. A `PenstockError` of `do` is `refused`."""
    form = await read_form(request)
    try:
        reason = reason_of(form) if wants_reason else ""
        said = await do(Act(services_of(request), form, session.actor, reason))
    except PenstockError as error:
        return await refused(error.detail, error.status)
    return go(request, to, said=said)
