"""What holds for every answer and every act under /admin? Security headers; an Origin that is ours."""

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import Settings

SAFE = {"GET", "HEAD", "OPTIONS"}
# No inline script, no inline style, nothing from elsewhere.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers say `Origin: null` of our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FOREIGN = (
    "This form was sent from another site, or through a proxy that changes Host: open the page anew. "
    "Behind such a proxy, set PENSTOCK_DASHBOARD_URL to the address that browsers use."
)


class Guard:
    """ASGI middleware around the dashboard, its error pages included."""

    def __init__(self, app: ASGIApp, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if scope["scheme"] == "https":
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        if scope["method"] not in SAFE and not is_ours(Headers(scope=scope), self._settings().dashboard_url):
            await PlainTextResponse(_FOREIGN, 403)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)


def is_ours(headers: Headers, url: str | None) -> bool:
    """Whether a page of ours sent this: by Origin, or by Sec-Fetch-Site where a browser leaves Origin out."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") == "same-origin"
    try:
        given, ours = urlsplit(origin.lower()), urlsplit((url or "").lower())
    except ValueError:  # such as http://[
        return False
    if url is not None:
        return origin.lower() == f"{ours.scheme}://{ours.netloc}"
    return given.netloc == headers.get("host", "").lower() != ""
