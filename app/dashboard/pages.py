"""How does a page come about? A template and values; what stands around them is the same everywhere."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.dashboard.assets import PREFIX, asset_url
from app.dashboard.figures import FILTERS
from app.dashboard.words import FILTERS as WORDS
from app.errors import PenstockError
from app.operators.roles import Role, includes
from app.operators.sessions import Session


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the navigation; shown where its page exists and the viewer's role is enough."""

    section: str
    label: str
    role: Role = "viewer"

    @property
    def path(self) -> str:
        """Of its page, without the prefix."""
        return f"/{self.section}"


NAVIGATION = (
    Entry("overview", "Overview"),
    Entry("tenants", "Tenants & quotas"),
    Entry("jobs", "Jobs"),
    Entry("dead-letters", "Dead letters"),
    Entry("webhooks", "Webhooks"),
    Entry("batches", "Batches"),
    Entry("workers", "Workers"),
    Entry("models", "Models"),
    Entry("audit", "Audit log"),
    Entry("operators", "Operators", "owner"),
)

environment = Environment(
    loader=PackageLoader("app.dashboard", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters.update(FILTERS | WORDS)
environment.globals.update(asset=asset_url, admin=PREFIX)


def page(
    request: Request, template: str, /, *, section: str = "", title: str = "", status: int = 200, **values: Any
) -> HTMLResponse:
    """The template with these values, which may use `session`, `may(role)`, `is_htmx` and the filters of figures.py.

    `section` is the entry of the navigation that it belongs to. A template for a fragment extends nothing.
    """
    session: Session | None = getattr(request.state, "session", None)
    paths = {route.path for route in request.app.state.all_routes}
    entries = [
        each for each in NAVIGATION if each.path in paths and session is not None and includes(session.role, each.role)
    ]
    text = environment.get_template(template).render(
        {
            "session": session,
            "may": lambda role: session is not None and includes(session.role, role),
            "is_htmx": is_htmx(request),
            "navigation": entries,
            "section": section,
            "title": title or next((each.label for each in NAVIGATION if each.section == section), "Penstock"),
            "said": SAYINGS.get(request.query_params.get("said", "")),
            **values,
        }
    )
    return HTMLResponse(text, status)


def is_htmx(request: Request) -> bool:
    """Whether htmx asks, which wants a fragment."""
    return request.headers.get("hx-request") == "true"


def go(request: Request, path: str, *, said: str = "") -> HTMLResponse | RedirectResponse:
    """Send the browser to the page at `path` (with its prefix) after an act; `said` names the sentence of `SAYINGS` it shows there."""
    assert not said or said in SAYINGS
    to = f"{path}{'&' if '?' in path else '?'}said={said}" if said else path
    if is_htmx(request):
        return HTMLResponse("", 200, {"HX-Redirect": to})
    return RedirectResponse(to, 303)


# What an act says on the page that follows it. By name, so that a URL can't put words into our mouth.
SAYINGS: dict[str, str] = {
    "saved": "Saved.",
    "done": "Done.",
    "password": "Your password was changed. Other sessions were logged out.",
    "welcome": "Your password is set, and you are logged in.",
    "logged-out": "You are logged out.",
    "job-cancelled": "The job is cancelled.",
    "job-cancelling": "Its worker was asked to stop the job.",
    "job-retiered": "The job waits in the other tier now.",
    "job-retiered-later": "The tier is changed. Redis doesn't answer: the job is nominated anew within a few seconds of its return.",
    "letter-requeued": "The job is queued again.",
    "letter-discarded": "The letter is discarded; its job stays dead.",
    "endpoint-enabled": "The endpoint is enabled: what comes true from now on is sent to it.",
    "endpoint-disabled": "The endpoint is disabled; what waited for it was given up.",
    "endpoint-recovered": "What had failed, or waited for its next try, is sent again.",
    "endpoint-had-nothing": "Nothing of that time had failed or waited for its next try: nothing is sent again.",
    "delivery-resent": "It is sent again.",
    "batch-cancelling": "The batch was asked to end; lines that have a result keep it.",
    "batch-changed": "The batch is changed; lines that wait follow it.",
    "worker-drained": "The worker claims nothing more; what it has ends as it would.",
    "worker-undrained": "The worker claims again within seconds.",
}


def refusal(request: Request, error: PenstockError, status: int | None = None) -> HTMLResponse:
    """The error as a page, or as a fragment for htmx."""
    template = "problem_fragment.html" if is_htmx(request) else "problem.html"
    return page(
        request, template, title=error.code.replace("_", " ").capitalize(), status=status or error.status, error=error
    )
