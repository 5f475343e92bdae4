"""What does a model cost, and which one stands in for it? Set by operators; a worker's registration leaves it as it is."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, StrictInt
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidRequest, UnknownModel
from app.jobs.request import ModelName
from app.jobs.tables import models
from app.quotas.acts import record_act
from app.quotas.wanted import Wanted
from app.seen import Seen, refuse_unless_seen, version_of

MAX_PRICE = 10**10  # the largest job's cost fits into a bigint by far

Price = Annotated[StrictInt, Field(ge=0, le=MAX_PRICE)]


@dataclass(frozen=True, slots=True)
class Priced:
    """A model as operators price it: millionths of the currency for a million tokens."""

    name: str
    max_model_len: int
    input_price: int
    output_price: int
    fallback: str | None

    @property
    def version(self) -> str:
        """Of what `change_price` may change."""
        return version_of(self.input_price, self.output_price, self.fallback)


class ModelChange(Wanted):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "examples": [{"input_price": 150_000, "output_price": 600_000}, {"fallback": None}],
        }
    )

    input_price: Price = Field(
        default_factory=int, description="Millionths of the currency for a million tokens of prompt."
    )
    output_price: Price = Field(default_factory=int, description="The same for a million tokens of output.")
    fallback: ModelName | None = Field(
        None, description="Stands in for jobs that name none themselves; null: none does."
    )


_COLUMNS = [models.c[name] for name in Priced.__slots__]


async def read_price(conn: AsyncConnection, name: str) -> Priced:
    """The model.

    Raises:
        UnknownModel: no worker has ever registered it.
    """
    return await _read(conn, name, locked=False)


async def change_price(
    conn: AsyncConnection,
    name: str,
    change: ModelChange,
    *,
    actor: str,
    seen: Seen = None,
    reason: str | None = None,
) -> Priced:
    """Change what is given, from the next submission on: a job pays the price of its reservation.

    `seen`: the `version` that whoever changes it has seen.

    Raises:
        UnknownModel: no worker has ever registered it.
        ChangedMeanwhile: it isn't what was seen.
        InvalidRequest: nothing is given, or the fallback is unknown or the model itself.
    """
    given = change.given()
    if not given:
        raise InvalidRequest("name at least one field that shall be different", errors=[])
    before = await _read(conn, name, locked=True)
    fallback = given.get("fallback")
    if fallback == name:
        raise InvalidRequest(f"fallback: must be another model than {name!r}", param="fallback")
    if fallback is not None and await conn.scalar(select(models.c.name).where(models.c.name == fallback)) is None:
        raise InvalidRequest(f"fallback: {fallback!r} is not known: no worker has ever registered it", param="fallback")
    changed = {field: value for field, value in given.items() if value != getattr(before, field)}
    if not changed:
        return before
    refuse_unless_seen(seen, before.version, {field: getattr(before, field) for field in changed})
    row = await conn.execute(update(models).where(models.c.name == name).values(**changed).returning(*_COLUMNS))
    detail = {field: [getattr(before, field), changed[field]] for field in changed}
    await record_act(conn, actor, "model.change", name, detail, reason=reason)
    return Priced(*row.one())


async def _read(conn: AsyncConnection, name: str, *, locked: bool) -> Priced:
    query = select(*_COLUMNS).where(models.c.name == name)
    row = (await conn.execute(query.with_for_update(key_share=True) if locked else query)).one_or_none()
    if row is None:
        raise UnknownModel(f"model: {name!r} is not known: no worker has ever registered it", param="model")
    return Priced(*row)
