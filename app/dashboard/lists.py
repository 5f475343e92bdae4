"""How is a list shown? What its filters find; where one of them is wrong, the form as it was filled in, with what is wrong beside its field."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.listing import Listing
from app.dashboard.pages import page
from app.dashboard.queries.walk import MOST_LOOKED_AT
from app.dashboard.services import services_of
from app.db import database_now

Search = Callable[[AsyncConnection], Awaitable[Any]]


async def list_page(
    request: Request, template: str, listing: Listing, search: Callable[[datetime], Search], /, **values: Any
) -> Response:
    """The page with what was found as `found`; with a wrong filter nothing is looked for, `found` is None, and the status is 422.

    A list that left the wrong field out would show what nobody asked for, and somebody might act on it.

    Args:
        search: reads the filters by the listing, given what time it is in Postgres, and says how to find what they mean.
        values: the template's others.
    """
    async with services_of(request).transaction() as conn:
        find = search(await database_now(conn))
        found = None if listing.problems else await find(conn)
    status = 422 if listing.problems else 200
    values = {"status": status, "most": MOST_LOOKED_AT} | values
    return page(request, template, listing=listing, found=found, **values)
