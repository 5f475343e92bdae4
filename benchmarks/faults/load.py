"""Who uses the stack while it is broken? Clients that insist: the same Idempotency-Key until there is an answer."""

import asyncio
import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

TENANTS = ("acme", "globex", "initech")
_TIERS = ("interactive", "standard", "batch")
_TIMEOUT_S = 8.0
_AGAIN_S = 0.4
_MAX_POSTS = 64  # at once
_NUM_KINDS = 40  # different jobs; those of a kind must have the same text


@dataclass(slots=True)
class Tally:
    """What the clients know, which is all that counts: what was accepted, and what they were told."""

    accepted: dict[str, int] = field(default_factory=dict)  # job -> its kind
    refused: list[str] = field(default_factory=list)  # answers that no client should get
    num_keys: int = 0  # Idempotency-Keys that were sent: there may be no more jobs than that
    num_posts: int = 0
    told: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))  # job, event -> webhook-ids
    num_told: int = 0


class Load:
    """Submits `rate` jobs a second until it is stopped."""

    def __init__(self, url: str, tokens: dict[str, str], *, seed: int, rate: float, hook_port: int) -> None:
        self._url = url
        self._tokens = tokens
        self._seed = seed
        self._rate = rate
        self._hook = f"http://127.0.0.1:{hook_port}/hook"
        self.tally = Tally()
        self.is_over = False  # no new job; those under way insist on
        self._open: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_MAX_POSTS)

    @property
    def num_open(self) -> int:
        """Clients that haven't got their answer yet."""
        return len(self._open)

    async def run(self) -> None:
        """Submit until `is_over`, then wait until every client has its answer."""
        # A full pool would lose connections to those who give up while they wait for one, for ever (httpcore issue 1093).
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        async with httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT_S, limits=limits) as client:
            number = 0
            while not self.is_over:
                task = asyncio.create_task(self._use(client, number))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
                number += 1
                await asyncio.sleep(1 / self._rate)
            while self._open:
                await asyncio.wait(set(self._open))

    async def _use(self, client: httpx.AsyncClient, number: int) -> None:
        random = Random(self._seed * 1_000_003 + number)
        kind = random.randrange(_NUM_KINDS)
        tenant = random.choice(TENANTS)
        headers = {"Authorization": f"Bearer {self._tokens[tenant]}"}
        body = self._body(kind, random)
        self.tally.num_keys += 1
        job = await self._submit(client, headers | {"Idempotency-Key": f"chaos-{self._seed}-{number}"}, body)
        if job is None:
            return
        self.tally.accepted[job] = kind
        what = random.random()
        if what < 0.05:
            await asyncio.sleep(random.random() * 2)
            await self._try(client, "POST", f"/v1/jobs/{job}/cancel", headers)
        elif what < 0.2:
            await self._try(client, "GET", f"/v1/jobs/{job}", headers | {"Prefer": "wait=5"})

    def _body(self, kind: int, random: Random) -> dict[str, Any]:
        of_kind = Random(kind)
        body: dict[str, Any] = {
            "prompt": f"job of kind {kind}",
            "max_tokens": of_kind.randint(5, 80),
            "seed": kind,
            "n": of_kind.choice([1, 1, 1, 2]),
            "tier": random.choice(_TIERS),
        }
        if random.random() < 0.05:
            body["deadline_s"] = random.choice([1, 5, 60])
        if random.random() < 0.2:
            body["webhook"] = {"url": self._hook}
        return body

    async def _submit(self, client: httpx.AsyncClient, headers: dict[str, str], body: dict[str, Any]) -> str | None:
        while True:
            self.tally.num_posts += 1
            with suppress(httpx.HTTPError):
                async with self._slots:
                    answer = await client.post("/v1/jobs", json=body, headers=headers)
                if answer.is_success:
                    return str(answer.json()["id"])
                if answer.json().get("code") == "deadline_unreachable":
                    return None  # what can't be done in its time isn't insisted on
                if answer.status_code < 500:
                    self.tally.refused.append(f"{answer.status_code}: {answer.text[:200]}")
                    return None
            await asyncio.sleep(_AGAIN_S)

    async def _try(self, client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]) -> None:
        for _ in range(3):
            with suppress(httpx.HTTPError):
                answer = await client.request(method, path, headers=headers)
                if answer.status_code < 500:
                    return
            await asyncio.sleep(_AGAIN_S)


async def receive_hooks(tally: Tally) -> asyncio.Server:
    """A receiver of webhooks on a free port, which answers 204 and notes what it was told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError, KeyError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = (line.partition(":") for line in head.split("\r\n")[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in lines}
            event = json.loads(await reader.readexactly(int(headers["content-length"])))
            tally.told[event["data"]["id"], event["type"]].add(headers["webhook-id"])
            tally.num_told += 1
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)
