"""How is one delivery made? Begin, look up, post, record; many at once on one event loop."""

import asyncio
import logging
import ssl
from concurrent.futures import Future
from contextlib import suppress
from random import Random
from threading import BoundedSemaphore

import httpx
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock
from app.errors import InvalidRequest, Misconfigured
from app.ids import delivery_name, endpoint_name
from app.observe.tracing import Attribute, Tracing, current_traceparent
from app.quotas.acts import record_act
from app.settings import Settings
from app.telemetry import emit
from app.webhooks import delivery
from app.webhooks.address import AddressRefused, Resolver, parse_url, resolve, system_resolver
from app.webhooks.delivery import Made, Rules, Try
from app.webhooks.nominate import Nomination
from app.webhooks.retries import Answer, judge, parse_retry_after
from app.webhooks.signing import sign
from workers.webhooks.meters import Meters
from workers.webhooks.post import post
from workers.webhooks.together import Together

log = logging.getLogger(__name__)

_MOST_TOGETHER = 64  # tries in one transaction
MAX_EXCERPT_CHARS = 200


class Courier:
    """Makes the deliveries of one process. Stateless but for what is under way: it may be killed at any point.

    One slow endpoint must not delay the others. A delivery that waits costs a coroutine, not a process, so that there is room for
    `webhook_concurrency` of them; how many of those one endpoint may have, the dispatcher knows (app/webhooks/lanes.py).

    Raises:
        Misconfigured: a try could outlast its lease.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        db: AsyncEngine,
        random: Random,
        *,
        resolver: Resolver = system_resolver,
        verify: ssl.SSLContext | None = None,
        meters: Meters | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        if settings.webhook_lease_s <= settings.webhook_timeout_s:
            raise Misconfigured("PENSTOCK_WEBHOOK_LEASE_S must be more than PENSTOCK_WEBHOOK_TIMEOUT_S")
        self._settings = settings
        self._clock = clock
        self._db = db
        self._random = random
        self._resolver = resolver
        self._verify = verify or httpx.create_ssl_context(trust_env=False)
        self._rules = Rules(settings.webhook_disable_after_s, settings.webhook_endpoint_concurrency)
        self._begin = Together(self._begin_all, most=_MOST_TOGETHER)
        self._note = Together(self._note_all, most=_MOST_TOGETHER)
        self._meters = meters or Meters()
        self._tracing = tracing
        self._slots = BoundedSemaphore(settings.webhook_concurrency)
        self._loop = asyncio.get_running_loop()
        self._under_way: set[Future[None]] = set()

    def take(self, nomination: Nomination) -> None:
        """Start a delivery from another thread and return at once; wait only while all slots are taken."""
        self._slots.acquire()
        future = asyncio.run_coroutine_threadsafe(self._deliver_or_log(nomination), self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._put_down)

    async def drain(self) -> None:
        """Wait for all that is under way. Nothing may be taken any more."""
        await asyncio.gather(*map(asyncio.wrap_future, list(self._under_way)))

    async def deliver(self, nomination: Nomination) -> None:
        """Make one try, if it is due and nobody else is at it.

        Raises:
            DBAPIError: Postgres is away. The delivery is nominated again.
        """
        made = await self._begin(nomination)
        if made is not None:
            await self._record(made, await self._traced(made))

    async def _begin_all(self, nominations: list[Nomination]) -> list[Try | None]:
        unique = list(dict.fromkeys(nominations))
        async with self._db.begin() as conn:
            begun = await delivery.begin(conn, unique, lease_s=self._settings.webhook_lease_s)
        # One that came twice is begun once.
        return [begun.pop(each, None) for each in nominations]

    async def _note_all(self, results: list[Made]) -> list[None]:
        """In one transaction, or in as many as a delivery has tries here: late ones, and those that followed them."""
        left = results
        while left:
            now = list({each.made.delivery_id: each for each in reversed(left)}.values())
            left = [each for each in left if not any(each is one for one in now)]
            async with self._db.begin() as conn:
                recorded = await delivery.record(conn, now, self._rules)
                for each in recorded.disabled:
                    target = f"{each.tenant_id}/{endpoint_name(each.endpoint_id)}"
                    await record_act(conn, "penstock", "webhook_endpoint.disable", target, {"reason": each.reason})
            for each in recorded.disabled:
                emit(log, logging.WARNING, "webhook_endpoint_disabled", endpoint=endpoint_name(each.endpoint_id))
            if recorded.disabled:
                async with self._db.begin() as conn:
                    await delivery.close_disabled(conn, [each.endpoint_id for each in recorded.disabled])
        return [None] * len(results)

    async def _traced(self, made: Try) -> Answer:
        """`_ask`, in the trace of the job that it tells of."""
        if self._tracing is None or made.traceparent is None:
            return await self._ask(made)
        attributes: dict[str, Attribute] = {
            "penstock.delivery.id": made.name,
            "penstock.event.type": made.event_type,
            "http.request.method": "POST",
            "http.request.resend_count": made.number - 1,
        }
        with self._tracing.span("webhook delivery", attributes, kind="client", parent=made.traceparent) as span:
            answer = await self._ask(made)
            if answer.http_status is not None:
                span.set_attribute("http.response.status_code", answer.http_status)
            if answer.error is not None:  # its text may have parts of the URL
                self._tracing.fail(span, "no_answer" if answer.http_status is None else str(answer.http_status))
            return answer

    async def _ask(self, made: Try) -> Answer:
        """Post it and say what came of it."""
        settings = self._settings
        started = self._clock.monotonic()
        status: int | None = None
        error: str | None = None
        retry_after_s: float | None = None
        excerpt: str | None = None
        try:
            async with asyncio.timeout(settings.webhook_timeout_s) as limit:

                def answered() -> None:
                    with suppress(RuntimeError):  # the time is just up
                        limit.reschedule(None)

                target = parse_url(made.url, allow_local=settings.webhook_allow_local)
                address = await resolve(
                    target.host, target.port, allow_local=settings.webhook_allow_local, resolver=self._resolver
                )
                headers = sign(
                    made.secrets, webhook_id=made.webhook_id, timestamp=int(made.at.timestamp()), body=made.body
                )
                traceparent = current_traceparent()
                if traceparent is not None:
                    headers["traceparent"] = traceparent
                response = await post(
                    target, address, made.body, headers, timeout_s=settings.webhook_timeout_s, verify=self._verify,
                    on_answer=answered,
                )  # fmt: skip
            status = response.status
            error = _complaint(status)
            excerpt = None if error is None else excerpt_of(response.beginning)
            retry_after_s = parse_retry_after(response.retry_after, now=self._clock.now())
        except TimeoutError:
            error = f"no answer within {settings.webhook_timeout_s:g} s"
        except (InvalidRequest, AddressRefused) as refused:
            error = refused.detail
        except httpx.TimeoutException:
            error = f"no answer within {settings.webhook_timeout_s:g} s"
        except httpx.HTTPError as broken:
            error = f"the connection failed: {type(broken).__name__}: {broken}"[:500].replace("\x00", "")
        except (
            UnicodeError
        ) as wrong:  # idna's errors: a name in its xn-- form that stands for nothing, or for what isn't allowed
            error = f"the host isn't a valid name: {wrong}"[:500].replace("\x00", "")
        except httpx.InvalidURL as wrong:
            error = f"the URL can't be called: {wrong}"[:500].replace("\x00", "")
        return Answer(status, error, round((self._clock.monotonic() - started) * 1000), retry_after_s, excerpt)

    async def _record(self, made: Try, answer: Answer) -> None:
        """Write down what came of it; wait for a Postgres that is away as long as the lease runs, lest it be sent twice."""
        verdict = judge(answer, number=made.round, draw=self._random.random())
        give_up_at = self._clock.monotonic() + self._settings.webhook_lease_s - answer.duration_ms / 1000
        while True:
            try:
                await self._note(Made(made, answer, verdict))
                break
            except DBAPIError:
                if self._clock.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(1.0)
        self._meters.tried(verdict.outcome, answer.duration_ms / 1000)
        emit(
            log,
            logging.INFO,
            "webhook_tried",
            delivery=made.name,
            type=made.event_type,
            number=made.number,
            outcome=verdict.outcome,
            http_status=answer.http_status,
            duration_ms=answer.duration_ms,
        )

    async def _deliver_or_log(self, nomination: Nomination) -> None:
        try:
            await self.deliver(nomination)
        except Exception as error:  # noqa: BLE001  the edge of one delivery: the next one isn't concerned
            emit(
                log,
                logging.WARNING,
                "webhook_try_lost",
                error=error,
                delivery=delivery_name(nomination.delivery_id),
                number=nomination.number,
            )

    def _put_down(self, future: Future[None]) -> None:
        self._under_way.discard(future)
        self._slots.release()


def excerpt_of(body: bytes) -> str | None:
    """The beginning of an answer's body as one line of text; None where it has none."""
    text = " ".join(body.decode(errors="replace").split())
    return (
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)[:MAX_EXCERPT_CHARS]
        or None
    )


def _complaint(status: int) -> str | None:
    if 200 <= status <= 299:
        return None
    if status == 410:
        return "410: the endpoint says that it is gone for good"
    if 300 <= status <= 399:
        return f"{status}: redirects aren't followed; give the address that it leads to"
    return f"{status}: the endpoint didn't accept it"
