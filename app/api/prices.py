"""How do operators price models over HTTP? /v1/admin/models/{name}, for keys with the scope `admin`."""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Admin
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.openapi import body_of, problems, shows
from app.api.preconditions import IF_MATCH, VERSION, etag, precondition
from app.api.quota_documents import PriceObject, price_object
from app.api.runtime import runtime_of
from app.api.tenants import MAX_BODY_BYTES
from app.errors import UnknownModel
from app.ids import MODEL_NAME
from app.jobs import prices

router = APIRouter(prefix="/v1/admin/models", tags=["models"])

ModelPath = Annotated[str, Path(alias="name", description="As workers registered it; it may hold slashes.")]


def _name(given: str) -> str:
    if not re.fullmatch(MODEL_NAME.removeprefix("^").removesuffix("$"), given):
        raise UnknownModel("model: no model can have this name", param="model")
    return given


@router.get(
    "/{name:path}",
    operation_id="getModelPrice",
    summary="Read a model's prices",
    responses=shows(200, "Prices and fallback.", PriceObject, VERSION) | problems(401, 403, 404, 503),
)
async def read_price(request: Request, given: ModelPath, _: Admin) -> Response:
    """What its tokens cost, and which model stands in for it."""
    async with runtime_of(request).transaction() as conn:
        found = await prices.read_price(conn, _name(given))
    return answer(price_object(found), headers=etag(found.version))


@router.patch(
    "/{name:path}",
    operation_id="changeModelPrice",
    summary="Change a model's prices",
    responses=shows(200, "Prices and fallback as they are now.", PriceObject, VERSION)
    | problems(400, 401, 403, 404, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(prices.ModelChange), "parameters": [IF_MATCH]},
)
async def change_price(request: Request, given: ModelPath, admin: Admin) -> Response:
    """From the next submission on: a job pays what its tokens cost when it was reserved. What is left out stays."""
    change = parse_body(await read_body(request, most=MAX_BODY_BYTES), prices.ModelChange)
    with precondition(request.headers) as seen:
        async with runtime_of(request).transaction() as conn:
            changed = await prices.change_price(conn, _name(given), change, actor=admin.actor, seen=seen)
    return answer(price_object(changed), headers=etag(changed.version))
