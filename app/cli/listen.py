"""`penstock webhooks listen`: what arrives on a local port, verified and printed, for developers."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.cli.errors import CommandFailed
from app.cli.http import Target
from app.cli.webhooks import Webhooks
from app.webhooks.signing import SignatureInvalid, verify

MAX_BODY_BYTES = 8 * 2**20
HOST = "127.0.0.1"


class Listener:
    """A server on a local port. Each request is verified with the secrets and given to `show`; `status` is its answer where it verifies."""

    def __init__(
        self, port: int, secrets: Sequence[str], *, status: int, show: Callable[[dict[str, Any]], None]
    ) -> None:
        self._secrets = list(secrets)
        self._status = status
        self._show = show
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """One delivery."""
                listener._take(self)

            def log_message(self, *_: Any) -> None:
                """Nothing: `show` says it."""

        try:
            self._server = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise CommandFailed(
                f"port {port} on {HOST} can't be used ({error.strerror}): give another by --port"
            ) from error
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def trust(self, secret: str) -> None:
        """Accept what this secret signed, too."""
        self._secrets.append(secret)

    def serve(self) -> None:
        """Until `stop`."""
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """End `serve`; from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Give the port back."""
        self._server.server_close()

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        length = request.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            request.send_error(411 if not length.isdigit() else 413)
            return
        body = request.rfile.read(int(length))
        problem = self._problem(dict(request.headers.items()), body)
        webhook_id = request.headers.get("webhook-id")
        with self._lock:
            again = webhook_id in self._seen
            if webhook_id and problem is None:
                self._seen.add(webhook_id)
            self._show(
                {
                    "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    "path": request.path,
                    "webhook_id": webhook_id,
                    "verified": problem is None,
                    "problem": problem,
                    "repeated": again,
                    "event": _decoded(body),
                }
            )
        request.send_response(self._status if problem is None else 401)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _problem(self, headers: dict[str, str], body: bytes) -> str | None:
        try:
            verify(self._secrets, headers, body, now=time.time())
        except SignatureInvalid as invalid:
            return invalid.detail
        except ValueError as wrong:
            return str(wrong)
        return None


def listen(
    target: Callable[[], Target],
    *,
    port: int,
    secrets: Sequence[str],
    events: Sequence[str] | None,
    status: int,
    as_json: bool,
) -> None:
    """Print what arrives until Ctrl-C. Without `secrets` an endpoint is made for that time, and its secret used.

    Raises:
        CommandFailed: the port is taken, or the API refuses the endpoint.
    """
    listener = Listener(port, secrets, status=status, show=_print_json if as_json else _print)
    try:
        if secrets:
            _say(f"listening on {listener.url}; Ctrl-C ends")
            _serve(listener)
            return
        with Webhooks(target()) as api:
            made = api.create(listener.url, description="penstock webhooks listen", events=events)
            listener.trust(made["secret"])
            _say(f"listening on {listener.url} as {made['id']}, which is deleted at the end; Ctrl-C ends")
            try:
                _serve(listener)
            finally:
                api.delete(made["id"])
    finally:
        listener.close()


def _serve(listener: Listener) -> None:
    """Until SIGINT or SIGTERM."""

    def stop(*_: object) -> None:
        threading.Thread(target=listener.stop).start()  # it waits for `serve`, which this thread is in

    before = [(each, signal.signal(each, stop)) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        listener.serve()
    finally:
        for each, handler in before:
            signal.signal(each, handler)


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _print(found: dict[str, Any]) -> None:
    event = found["event"] if isinstance(found["event"], dict) else {}
    verdict = "verified" if found["verified"] else f"NOT VERIFIED: {found['problem']}"
    again = "  again" if found["repeated"] else ""
    print(f"{found['at']}  {event.get('type', '?')}  {found['webhook_id'] or 'no id'}  {verdict}{again}")
    print(json.dumps(event.get("data"), ensure_ascii=True), flush=True)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
