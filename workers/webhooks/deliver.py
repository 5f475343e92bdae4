"""What does RQ execute? This one function, with JSON arguments. Schedule, lease and history are Postgres' business, retries too."""

import asyncio
from random import SystemRandom
from uuid import UUID

from app.clock import SystemClock
from app.db import create_engine
from app.settings import settings
from app.webhooks.nominate import Nomination
from workers.webhooks.courier import Courier


class _Here:
    courier: Courier | None = None  # this process's, if it has one


def give_to(courier: Courier | None) -> None:
    """From now on `deliver` hands over to this courier."""
    _Here.courier = courier


def deliver(delivery_id: str, number: int) -> None:
    """Make try `number` of a delivery, unless it was begun already: it may be called twice, at once, late, or after a kill.

    In our own worker it hands over and returns; under a plain `rq worker --serializer json` it makes the delivery itself.
    """
    nomination = Nomination(UUID(hex=delivery_id), number)
    if _Here.courier is not None:
        _Here.courier.take(nomination)
    else:
        asyncio.run(_deliver_alone(nomination))


async def _deliver_alone(nomination: Nomination) -> None:
    config = settings()
    db = create_engine(config, application_name="penstock-webhooks")
    try:
        await Courier(config, SystemClock(), db, SystemRandom()).deliver(nomination)
    finally:
        await db.dispose()
