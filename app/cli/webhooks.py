"""`penstock webhooks ...`: a tenant's endpoints and what became of its deliveries, over HTTP."""

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from app.cli.errors import CommandFailed
from app.cli.http import Target
from app.cli.tables import print_table, shown_time
from app.errors import Unavailable

Shown = dict[str, Any]
_ENDPOINTS = "/v1/webhook_endpoints"
_DELIVERIES = "/v1/webhook_deliveries"
_TIMEOUT_S = 30.0
_MOST_A_PAGE = 100


class Webhooks:
    """Calls of /v1/webhook_endpoints and /v1/webhook_deliveries. Use it as a context manager.

    Raises:
        CommandFailed: the API says no.
        Unavailable: nothing answers.
    """

    def __init__(self, target: Target) -> None:
        self._url = target.url
        headers = {"Authorization": f"Bearer {target.api_key}"}
        self._http = httpx.Client(base_url=target.url, headers=headers, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def endpoints(self) -> list[Shown]:
        """All of them, oldest first."""
        return self._pages(_ENDPOINTS, {}, limit=None)

    def deliveries(self, *, limit: int, **filters: str | None) -> list[Shown]:
        """The newest that pass the filters, newest first."""
        return self._pages(_DELIVERIES, {k: v for k, v in filters.items() if v is not None}, limit=limit)

    def create(self, url: str, *, description: str, events: Sequence[str] | None) -> Shown:
        """Make an endpoint; the answer has its secret."""
        body = {"url": url, "description": description, "events": list(events) if events else None}
        return self._call("POST", _ENDPOINTS, body)

    def change(self, endpoint_id: str, **fields: object) -> Shown:
        """Change what is given."""
        return self._call("PATCH", f"{_ENDPOINTS}/{endpoint_id}", fields)

    def delete(self, endpoint_id: str) -> None:
        """End an endpoint."""
        self._call("DELETE", f"{_ENDPOINTS}/{endpoint_id}")

    def rotate(self, endpoint_id: str, *, overlap_s: int) -> Shown:
        """Give it a new secret; the answer has it."""
        return self._call("POST", f"{_ENDPOINTS}/{endpoint_id}/rotate", {"overlap_s": overlap_s})

    def ping(self, endpoint_id: str) -> Shown:
        """Send it a test event; the answer is the delivery."""
        return self._call("POST", f"{_ENDPOINTS}/{endpoint_id}/ping")

    def recover(self, endpoint_id: str, *, since_s: int) -> int:
        """Send again what failed; return how many."""
        return int(self._call("POST", f"{_ENDPOINTS}/{endpoint_id}/recover", {"since_s": since_s})["resent"])

    def delivery(self, delivery_id: str) -> Shown:
        """One with its tries."""
        return self._call("GET", f"{_DELIVERIES}/{delivery_id}")

    def resend(self, delivery_id: str) -> Shown:
        """Send it now."""
        return self._call("POST", f"{_DELIVERIES}/{delivery_id}/resend")

    def _pages(self, path: str, query: dict[str, str], *, limit: int | None) -> list[Shown]:
        found: list[Shown] = []
        cursor: str | None = None
        while limit is None or len(found) < limit:
            most = _MOST_A_PAGE if limit is None else min(_MOST_A_PAGE, limit - len(found))
            page = self._call("GET", path, query=query | {"limit": str(most)} | ({"cursor": cursor} if cursor else {}))
            found += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return found

    def _call(self, method: str, path: str, body: object = None, query: dict[str, str] | None = None) -> Shown:
        try:
            response = self._http.request(method, path, json=body, params=query)
        except httpx.TransportError as error:
            raise Unavailable(f"no answer from {self._url} ({error}): is `penstock up` running?") from error
        try:
            found = response.json() if response.content else {}
        except ValueError:
            found = {}
        if not response.is_success:
            code = found.get("code") or f"http_{response.status_code}"
            raise CommandFailed(f"{found.get('detail') or response.reason_phrase} ({code})")
        assert isinstance(found, dict)
        return found


def list_endpoints(target: Target, *, as_json: bool) -> None:
    """Print the endpoints, a line each."""
    with Webhooks(target) as api:
        found = api.endpoints()
    if as_json:
        for each in found:
            print(json.dumps(each))
        return
    rows = [
        (
            each["id"], each["status"], each["url"], _events(each), shown_time(each["failing_since"]),
            each["disabled_reason"],
        )
        for each in found
    ]  # fmt: skip
    columns = ("endpoint", "status", "url", "events", "failing since", "why disabled")
    print_table(columns, rows, nothing="no endpoints: `penstock webhooks create URL` makes one")


def create(target: Target, url: str, *, description: str, events: Sequence[str] | None) -> None:
    """Make an endpoint and print its id and secret."""
    with Webhooks(target) as api:
        made = api.create(url, description=description, events=events)
    print(f"{made['id']}\n{made['secret']}")


def rotate(target: Target, endpoint_id: str, *, overlap_s: int) -> None:
    """Print the new secret."""
    with Webhooks(target) as api:
        print(api.rotate(endpoint_id, overlap_s=overlap_s)["secret"])


def set_status(target: Target, endpoint_id: str, status: str) -> None:
    """Enable or disable an endpoint."""
    with Webhooks(target) as api:
        print(endpoint_line(api.change(endpoint_id, status=status)))


def delete(target: Target, endpoint_id: str) -> None:
    """End an endpoint."""
    with Webhooks(target) as api:
        api.delete(endpoint_id)
    print(f"{endpoint_id} is deleted")


def ping(target: Target, endpoint_id: str) -> None:
    """Send a test event and say which delivery it is."""
    with Webhooks(target) as api:
        print(f"{api.ping(endpoint_id)['id']} is on its way: `penstock webhooks show` tells what became of it")


def recover(target: Target, endpoint_id: str, *, since_s: int) -> None:
    """Send again what failed."""
    with Webhooks(target) as api:
        print(f"{api.recover(endpoint_id, since_s=since_s)} are sent again")


def list_deliveries(target: Target, filters: dict[str, str | None], *, limit: int, as_json: bool) -> None:
    """Print the newest deliveries, a line each."""
    with Webhooks(target) as api:
        found = api.deliveries(limit=limit, **filters)
    if as_json:
        for each in found:
            print(json.dumps(each))
        return
    rows = [
        (
            each["id"], each["status"], each["type"], each["tries"], each["url"], shown_time(each["next_try_at"]),
            each["error"],
        )
        for each in found
    ]  # fmt: skip
    print_table(("delivery", "status", "event", "tries", "url", "next try", "error"), rows, nothing="no deliveries")


def show_delivery(target: Target, delivery_id: str, *, as_json: bool) -> None:
    """Print one delivery with each of its tries."""
    with Webhooks(target) as api:
        found = api.delivery(delivery_id)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(delivery_line(found))
    for each in found["tries_made"]:
        outcome = each["error"] or each["http_status"] or "under way, or lost"
        took = "" if each["duration_ms"] is None else f"  {each['duration_ms']} ms"
        print(f"  {each['number']:>2}  {shown_time(each['at'])}  {outcome}{took}")
    print(json.dumps(found["payload"], indent=2))


def resend(target: Target, delivery_ids: Sequence[str]) -> None:
    """Send deliveries again, now."""
    with Webhooks(target) as api:
        for each in delivery_ids:
            print(delivery_line(api.resend(each)))


def endpoint_line(each: Shown) -> str:
    """An endpoint in a line."""
    why = f"  {each['disabled_reason']}" if each["disabled_reason"] else ""
    failing = f"  failing since {shown_time(each['failing_since'])}" if each["failing_since"] else ""
    return f"{each['id']}  {each['status']}  {each['url']}  {_events(each)}{why}{failing}"


def _events(each: Shown) -> str:
    return ",".join(each["events"]) if each["events"] else "all but job.started"


def delivery_line(each: Shown) -> str:
    """A delivery in a line."""
    why = f"  {each['error']}" if each["error"] else ""
    due = f"  due {shown_time(each['next_try_at'])}" if each["next_try_at"] else ""
    tries = f"{each['tries']} {'try' if each['tries'] == 1 else 'tries'}"
    return f"{each['id']}  {each['status']}  {each['type']}  {tries}  {each['url']}{due}{why}"
