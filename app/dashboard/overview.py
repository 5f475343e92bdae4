"""How does it go now? /admin/overview: tokens a second, queues, waits, refusals, workers; it refreshes itself."""

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Viewer
from app.dashboard.pages import page

router = APIRouter()


@router.get("/overview")
async def overview(request: Request, _: Viewer) -> Response:
    """The page."""
    return page(request, "overview.html", section="overview")
