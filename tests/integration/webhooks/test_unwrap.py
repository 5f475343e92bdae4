"""Does OpenAI's own client accept our deliveries, and no others?"""

from collections.abc import AsyncIterator
from random import Random

import openai
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.settings import Settings
from tests.support.receiver import Receiver, receiver
from tests.support.webhooks import DATA, first, notify, secret
from workers.webhooks.courier import Courier


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


async def test_openais_client_unwraps_a_delivery(settings: Settings, engine: AsyncEngine, server: Receiver) -> None:
    local = settings.model_copy(update={"webhook_allow_local": True})
    (one,) = await notify(engine, server.url("/"))
    await Courier(local, SystemClock(), engine, Random(0)).deliver(first(one))
    (got,) = server.received
    key = await secret(engine)
    with openai.OpenAI(api_key="none", webhook_secret=key) as client:
        event = client.webhooks.unwrap(got.body, got.headers)
        assert (event.type, event.id) == ("job.succeeded", got.headers["webhook-id"])
        assert event.data.id == DATA["id"]
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(got.body.replace(b"job_1", b"job_2"), got.headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(got.body, got.headers, secret="whsec_b3RoZXI=")
