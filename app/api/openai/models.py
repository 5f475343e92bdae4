"""Which models may callers name? GET /v1/models and GET /v1/models/{model}: OpenAI's members, and ours besides."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Reader
from app.api.documents import ModelList, ModelObject, answer
from app.api.openai.common_answer import seconds
from app.api.openai.errors import BothRoute
from app.api.openapi import problems, shows
from app.api.runtime import Runtime, runtime_of
from app.errors import UnknownModel
from app.jobs.models import Model

OWNER = "penstock"

router = APIRouter(prefix="/v1", tags=["models"], route_class=BothRoute)


@router.get(
    "/models",
    operation_id="listModels",
    summary="List models",
    responses=shows(200, "All models that workers have registered.", ModelList) | problems(401, 403, 503),
)
async def list_models(request: Request, _: Reader) -> Response:
    """The models by name."""
    runtime = runtime_of(request)
    models = await runtime.catalog.all()
    return answer({"object": "list", "data": [await _shown(runtime, model) for model in models]})


@router.get(
    "/models/{model:path}",
    operation_id="getModel",
    summary="Read a model",
    responses=shows(200, "The model.", ModelObject) | problems(401, 403, 404, 503),
)
async def read_model(
    request: Request, name: Annotated[str, Path(alias="model", description="Its name.")], _: Reader
) -> Response:
    """One model; a name may hold slashes."""
    runtime = runtime_of(request)
    model = next((each for each in await runtime.catalog.all() if each.name == name), None)
    if model is None:
        raise UnknownModel(f"model: {name[:128]!r} is not known", param="model")
    return answer(await _shown(runtime, model))


async def _shown(runtime: Runtime, model: Model) -> dict[str, Any]:
    standing = (await runtime.breakers.all()).get(model.name)
    return {
        "id": model.name,
        "object": "model",
        "created": seconds(model.registered_at),
        "owned_by": OWNER,
        "name": model.name,
        "max_model_len": model.max_model_len,
        "breaker": standing.shown if standing is not None else "closed",
    }
