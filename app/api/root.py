"""What is at this address? GET / says where to go on: browsers to the dashboard, programs to the API's parts."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.api.documents import answer
from app.dashboard.assets import PREFIX

LINKS = {"api": "/v1", "docs": "/docs", "openapi": "/openapi.json", "admin": PREFIX, "health": "/readyz"}

router = APIRouter()


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """A redirect for who asks for HTML, links for everybody else."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{PREFIX}/", 303)
    return answer({"name": "Penstock", "links": LINKS})
