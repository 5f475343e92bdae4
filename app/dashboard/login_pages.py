"""What does who isn't logged in get to see? The ways in that there are, and what went wrong."""

from fastapi import Request, Response

from app.dashboard.pages import page
from app.dashboard.services import services_of

_USED_UP = (
    "This link was used already, or its 15 minutes are over. Have a new one made: "
    "the command penstock dashboard link NAME prints it, and so can an owner on the page of operators."
)


def login_form(request: Request, *, to: str, name: str = "", problem: str | None = None, status: int = 200) -> Response:
    """The log-in page."""
    return page(
        request, "login.html", title="Log in", status=status, next=to, name=name, problem=problem,
        passwords=services_of(request).settings.dashboard_passwords, provider=provider_label(request),
    )  # fmt: skip


def used_up(request: Request) -> Response:
    """What is there instead of a one-time link's form."""
    return page(request, "link_used.html", title="This link is used up", status=410, problem=_USED_UP)


def provider_label(request: Request) -> str | None:
    """What buttons call the OIDC provider; None where there is none."""
    settings = services_of(request).settings
    return settings.oidc_label if settings.oidc_issuer else None
