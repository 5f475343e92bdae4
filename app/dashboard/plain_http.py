"""Would the browser keep the session's cookie? Not over plain http, but from its own machine: said before a link is used up."""

from urllib.parse import urlsplit

from fastapi import Request, Response

from app.dashboard.pages import page
from app.operators.addresses import is_local
from app.settings import Settings


def lost_cookie(request: Request, settings: Settings) -> Response | None:
    """The page that says what to do, where the cookie, which is Secure, would be dropped without a word; else None."""
    host = request.headers.get("host", "")
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port or 8000
    except ValueError:  # such as [ or a port beyond 65535
        name, port = "", 8000
    if settings.dashboard_insecure_cookie or _is_secure(request, settings) or is_local(name):
        return None
    return page(request, "plain_http.html", title="Not over plain http", status=403, host=host, port=port)


def _is_secure(request: Request, settings: Settings) -> bool:
    """By whatever says so, trusted proxy or not: who lies about it, lies to themselves."""
    if request.scope["scheme"] == "https" or urlsplit(settings.dashboard_url or "").scheme == "https":
        return True
    headers = request.headers
    return (
        "sec-fetch-site" in headers  # browsers send it to secure places only (W3C, Fetch Metadata, 2)
        or headers.get("origin", "").startswith("https://")
        or headers.get("x-forwarded-proto", "").startswith("https")
    )
