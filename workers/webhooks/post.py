"""How is a body posted to an address that was checked, under the name that was asked for? Once, and no further than told."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx

from app.webhooks.address import Address, Target

MAX_RESPONSE_BYTES = 16 * 1024
KEPT_BYTES = 1024  # of it
FAREWELL_S = 1.0  # how long an answer that is known may still be read, so that its sender can end in order


@dataclass(frozen=True, slots=True)
class Response:
    """As much of an answer as matters."""

    status: int
    retry_after: str | None
    beginning: bytes = b""  # of the body


class PinnedTransport(httpx.AsyncHTTPTransport):
    """Connects to one address whatever the request's host is; the certificate must fit that host all the same."""

    def __init__(self, address: Address, verify: ssl.SSLContext) -> None:
        super().__init__(verify=verify, trust_env=False, http2=False, retries=0)
        self._address = address

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. Its Host header and the name in SNI stay those of its URL."""
        # As it goes over the wire: `host` turns xn-- into letters, of which ssl would make another name.
        request.extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")}
        request.url = request.url.copy_with(host=str(self._address))
        return await super().handle_async_request(request)


async def post(
    target: Target, address: Address, body: bytes, headers: dict[str, str], *, timeout_s: float, verify: ssl.SSLContext,
    on_answer: Callable[[], None] = lambda: None,
) -> Response:  # fmt: skip
    """POST `body`. No redirect is followed, no proxy used, nothing read of the environment, no connection kept for the next.

    The time is the caller's to bound until `on_answer`, from which on the status is known and all ends within `FAREWELL_S`;
    `timeout_s` bounds each step.

    Raises:
        httpx.HTTPError: no answer came.
    """
    # Put together from the parts that were checked, so that no second parser has a say in where this goes.
    host = f"[{target.host}]" if ":" in target.host else target.host
    url = httpx.URL(scheme=target.scheme, host=host, port=target.port, raw_path=target.resource.encode())
    async with (
        httpx.AsyncClient(
            transport=PinnedTransport(address, verify), follow_redirects=False, trust_env=False, timeout=timeout_s
        ) as client,
        client.stream(
            "POST",
            url,
            content=body,
            headers={
                "User-Agent": "Penstock-Webhooks/1",
                "Content-Type": "application/json",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                **headers,
            },
        ) as response,
    ):
        on_answer()
        read = bytearray()
        with suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await _read_some(response, read)
        return Response(response.status_code, response.headers.get("retry-after"), bytes(read))


async def _read_some(response: httpx.Response, read: bytearray) -> None:
    """Read on, and keep the beginning in `read`, also of an answer that breaks off."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        read += chunk[: max(0, KEPT_BYTES - len(read))]
        if size >= MAX_RESPONSE_BYTES:
            return
