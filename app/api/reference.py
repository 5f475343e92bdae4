"""What is at /docs? Swagger UI over /openapi.json, from this package, held to where it may look: it shares its origin with the dashboard."""

import re
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from app.dashboard.assets import PREFIX, asset_url
from app.dashboard.guard import HEADERS
from app.settings import Settings

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API · Penstock</title>
<link rel="icon" href="{asset_url("penstock.svg")}" type="image/svg+xml">
<link rel="stylesheet" href="{asset_url("vendor/swagger-ui.css")}">
<script src="{asset_url("vendor/swagger-ui-bundle.js")}" defer></script>
<script src="{asset_url("reference.js")}" defer></script>
</head>
<body>
<main id="reference" data-description="/openapi.json"><noscript>This page needs scripts. What it shows is at /openapi.json.</noscript></main>
</body>
</html>
"""
# A host as a source of a CSP can be: no user, no IPv6 address, nothing that would end the directive.
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)


def install(app: FastAPI, settings: Settings) -> None:
    """Serve the page at /docs."""

    async def reference(request: Request) -> HTMLResponse:
        host = urlsplit(settings.dashboard_url).netloc if settings.dashboard_url else request.headers.get("host", "")
        policy = {"Content-Security-Policy": csp(host), "Cache-Control": "no-store"}
        return HTMLResponse(_PAGE, headers=HEADERS | policy)

    app.router.routes.append(Route("/docs", reference, include_in_schema=False))


def csp(host: str) -> str:
    """The page's policy: scripts are ours, and talk to the API at `host` but not to the dashboard.

    The sandbox keeps them from other windows of this origin, too. Where the host can't stand in a policy, they talk to nobody.
    """
    is_plain = _HOST.fullmatch(host) is not None
    ours = f"{host}{PREFIX}/static/" if is_plain else "'self'"
    api = f"{host}/v1/ {host}/openapi.json" if is_plain else "'none'"
    return (
        f"default-src 'none'; script-src {ours}; style-src {ours}; img-src {ours} data:; connect-src {api}; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-same-origin"
    )
