"""Which models may jobs name? GET /v1/models."""

from fastapi import APIRouter, Request, Response

from app.api.authentication import Reader
from app.api.documents import ModelList, answer
from app.api.openapi import problems, shows
from app.api.runtime import runtime_of

router = APIRouter(prefix="/v1", tags=["models"])


@router.get(
    "/models",
    operation_id="listModels",
    summary="List models",
    responses=shows(200, "All models that workers have registered.", ModelList) | problems(401, 403, 503),
)
async def list_models(request: Request, _: Reader) -> Response:
    """The models by name."""
    runtime = runtime_of(request)
    models, breakers = await runtime.catalog.all(), await runtime.breakers.all()
    return answer(
        {
            "object": "list",
            "data": [
                {
                    "object": "model",
                    "name": model.name,
                    "max_model_len": model.max_model_len,
                    "breaker": breakers[model.name].shown if model.name in breakers else "closed",
                }
                for model in models
            ],
        }
    )
