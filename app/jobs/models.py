"""Which models are served? Workers register them, with their tokenizers; the API looks them up."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import Clock
from app.errors import UnknownModel
from app.jobs import tables as t
from app.jobs.tokenizing import PromptEncoder


@dataclass(frozen=True, slots=True)
class Model:
    """A model that jobs may name. `max_model_len` is prompt + output in tokens."""

    name: str
    pool: str
    tokenizer_hash: str
    model_hash: str
    max_model_len: int
    vocab_size: int
    registered_at: datetime | None = field(default=None, compare=False)  # as Postgres knows it


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """All that is needed to turn text into a model's tokens."""

    hash: str
    tokenizer_json: bytes
    chat_template: str | None
    special_tokens: dict[str, str]


async def register_model(conn: AsyncConnection, model: Model, tokenizer: TokenizerFiles) -> None:
    """Write down what a worker serves; a newer registration of the name replaces the older one."""
    await conn.execute(
        insert(t.tokenizers)
        .values(
            hash=tokenizer.hash,
            tokenizer_json=tokenizer.tokenizer_json,
            chat_template=tokenizer.chat_template,
            special_tokens=tokenizer.special_tokens,
        )
        .on_conflict_do_nothing()
    )
    row = {
        "pool": model.pool,
        "tokenizer_hash": model.tokenizer_hash,
        "model_hash": model.model_hash,
        "max_model_len": model.max_model_len,
        "vocab_size": model.vocab_size,
    }
    await conn.execute(
        insert(t.models)
        .values(name=model.name, **row)
        .on_conflict_do_update(index_elements=["name"], set_={**row, "registered_at": func.now()})
    )


async def list_models(conn: AsyncConnection) -> list[Model]:
    """All models that were ever registered, by name."""
    columns = [t.models.c[name] for name in Model.__slots__]
    return [Model(*row) for row in await conn.execute(select(*columns).order_by(t.models.c.name))]


class ModelCatalog:
    """The models as one process knows them, with their tokenizers loaded once. Looks again when a name is unknown or `ttl_s` old."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock, ttl_s: float = 5.0) -> None:
        self._engine = engine
        self._clock = clock
        self._ttl_s = ttl_s
        self._models: dict[str, Model] = {}
        self._read_at: float | None = None
        self._encoders: dict[str, PromptEncoder] = {}

    async def all(self) -> list[Model]:
        """All models, by name."""
        if self._read_at is None or self._clock.monotonic() - self._read_at > self._ttl_s:
            await self._refresh()
        return list(self._models.values())

    async def find(self, name: str | None, *, default: str | None = None, field: str = "model") -> Model:
        """The model of this name; without one, the default or the only one. `field` is where the name stands.

        Raises:
            UnknownModel: there is no such model, or none to choose by default.
        """
        models = {model.name: model for model in await self.all()}
        wanted = name or default
        if wanted is not None and wanted not in models:
            await self._refresh()
            models = self._models
        if wanted is None and len(models) == 1:
            return next(iter(models.values()))
        if wanted is not None and wanted in models:
            return models[wanted]
        known = ", ".join(models) or "none: start a worker, which registers its model"
        reason = f"{field}: {wanted!r} is not known" if wanted else "model: name one, there is no default"
        raise UnknownModel(f"{reason}; known models: {known}", param=field)

    async def encoder(self, model: Model) -> PromptEncoder:
        """The model's tokenizer, loaded once a process."""
        encoder = self._encoders.get(model.tokenizer_hash)
        if encoder is None:
            async with self._engine.connect() as conn:
                columns = t.tokenizers.c
                row = (
                    await conn.execute(
                        select(columns.tokenizer_json, columns.chat_template, columns.special_tokens).where(
                            columns.hash == model.tokenizer_hash
                        )
                    )
                ).one()
            # A large vocabulary takes long to load: other requests go on meanwhile.
            encoder = await asyncio.to_thread(PromptEncoder, row.tokenizer_json, row.chat_template, row.special_tokens)
            self._encoders[model.tokenizer_hash] = encoder
        return encoder

    async def _refresh(self) -> None:
        async with self._engine.connect() as conn:
            self._models = {model.name: model for model in await list_models(conn)}
        self._read_at = self._clock.monotonic()
