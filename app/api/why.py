"""Why doesn't my job run? GET /v1/jobs/{id}/why."""

from fastapi import APIRouter, Request, Response

from app.api.authentication import Reader
from app.api.documents import answer
from app.api.job_documents import WhyObject, forecast_object
from app.api.jobs import JobId, id_of
from app.api.openapi import problems, shows
from app.api.outlook import outlook
from app.api.runtime import runtime_of
from app.errors import NotFound
from app.ids import job_name

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{id}/why",
    operation_id="explainJob",
    summary="What a job is waiting for",
    responses=shows(200, "The constraint that holds it up now.", WhyObject) | problems(401, 403, 404, 503),
)
async def why(request: Request, name: JobId, caller: Reader) -> Response:
    """The one constraint that binds now, when it clears where that can be said, and the figures that it is made of."""
    job_id = id_of(name)
    found = await outlook(runtime_of(request), caller.tenant_id, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_name(job_id)}")
    return answer(
        {
            "object": "job.why",
            "id": job_name(job_id),
            "reason": found.why.reason,
            "detail": found.why.detail,
            "clears_at": found.why.clears_at,
            "forecast": forecast_object(found.forecast),
            "figures": found.why.figures,
        }
    )
