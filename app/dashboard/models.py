"""Which models are served? /admin/models: price, fallback, and the breaker with its stop and its allow."""

from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.assets import PREFIX
from app.dashboard.forms import MICROS, conflict_of, micros_of, read_form, text_of, why_of
from app.dashboard.pages import go, page
from app.dashboard.queries.models import list_models
from app.dashboard.services import services_of
from app.errors import ChangedMeanwhile, InvalidRequest, NotFound, PenstockError
from app.jobs.breaker import Mode
from app.jobs.breakers import set_mode
from app.jobs.prices import MAX_PRICE, ModelChange, change_price
from app.seen import version_of

_MODES: dict[str, Mode] = {"stop": "open", "allow": "closed", "auto": "auto"}

router = APIRouter(prefix="/models")
_PAGE = f"{PREFIX}/models"


@router.get("")
async def models(request: Request, _: Viewer) -> Response:
    """All models by name."""
    return await _shown(request)


@router.get("/live")
async def models_live(request: Request, _: Viewer) -> Response:
    """What changes by itself: workers and breakers."""
    async with services_of(request).transaction() as conn:
        found = await list_models(conn)
    return page(request, "models_live.html", found=found)


@router.get("/edit")
async def edit_model(request: Request, _: Operator, name: str = "") -> Response:
    """The form of one model's prices and fallback, and of its breaker."""
    return await _form(request, name)


@router.post("/price")
async def price(request: Request, session: Operator) -> Response:
    """From the next submission on."""
    services, form = services_of(request), await read_form(request)
    name = text_of(form, "name")
    try:
        change = ModelChange(
            input_price=price_of(text_of(form, "input_price"), "input_price"),
            output_price=price_of(text_of(form, "output_price"), "output_price"),
            fallback=text_of(form, "fallback") or None,
        )
        async with services.transaction() as conn:
            await change_price(conn, name, change, actor=session.actor, seen=text_of(form, "seen"), reason=why_of(form))
    except ChangedMeanwhile as error:
        problem = conflict_of(error, form, amounts=("input_price", "output_price"))
        return await _form(request, name, problem, error.status, entered=form)
    except (PenstockError, ValueError) as error:
        problem = error.detail if isinstance(error, PenstockError) else "fallback: isn't a model's name"
        return await _form(request, name, problem, getattr(error, "status", 422), entered=form)
    return go(request, _PAGE, said="saved")


@router.post("/breaker/{word}")
async def breaker(request: Request, word: str, session: Operator) -> Response:
    """`stop`: no new jobs; `allow`: new jobs whatever happens; `auto`: as attempts go. Until the next word."""
    if word not in _MODES:
        raise NotFound("there is no such page")
    name = text_of(await read_form(request), "name")

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            await set_mode(conn, name, _MODES[word], actor=wanted.actor, reason=wanted.reason)
        wanted.services.breakers.forget()
        return "saved"

    return await act(request, session, do, to=_PAGE, refused=partial(_form, request, name))


def price_of(text: str, name: str) -> int:
    """A price in the currency for a million tokens, as millionths of it.

    Raises:
        InvalidRequest: it isn't one.
    """
    micros = micros_of(text or "0")
    if micros is None or not 0 <= micros <= MAX_PRICE:
        raise InvalidRequest(
            f"{name}: must be 0 to {MAX_PRICE // MICROS:,} for a million tokens, with at most six decimals after a point",
            param=name,
        )
    return micros


async def _shown(request: Request) -> Response:
    async with services_of(request).transaction() as conn:
        found = await list_models(conn)
    return page(request, "models.html", section="models", found=found)


async def _form(
    request: Request, name: str, problem: str = "", status: int = 200, entered: Mapping[str, list[str]] | None = None
) -> Response:
    async with services_of(request).transaction() as conn:
        found = await list_models(conn)
    model = next((each for each in found if each.name == name), None)
    if model is None:
        raise NotFound(f"there is no model {name[:100]!r}: no worker has ever registered it")
    others = [("", "none"), *(each.name for each in found if each.name != name)]
    return page(
        request, "model.html", section="models", title=name, status=status, model=model, others=others, problem=problem,
        version=version_of(model.input_price, model.output_price, model.fallback), typed=entered or {},
    )  # fmt: skip
