"""What may a job ask its output to look like? A JSON schema, any JSON object, a regex, one of some texts, a Lark grammar.

Only what can be said without a tokenizer is checked here. Whether a grammar compiles, the engine finds out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from app.settings import Settings

_MAX_NAME_CHARS = 64
_MAX_DEPTH = 128  # of any JSON that a caller may write as it likes; pydantic writes down 255


def storable(value: str) -> str:
    """The text itself. Raises ValueError for one that Postgres can't hold."""
    if "\x00" in value:
        raise ValueError("must not contain U+0000")
    return value


def storable_json(value: Any) -> Any:
    """The value itself. Raises ValueError for one that Postgres can't look into, or that is too deep to be written down."""
    depth, has_nul = _shape_of(value)
    if has_nul:
        raise ValueError("must not contain U+0000")
    if depth > _MAX_DEPTH:
        raise ValueError(f"must be nested at most {_MAX_DEPTH} deep, not {depth}")
    return value


Words = Annotated[StrictStr, AfterValidator(storable)]
Schema = Annotated[dict[StrictStr, Any], AfterValidator(storable_json), Field(description="A JSON schema: an object.")]


@dataclass(frozen=True, slots=True)
class Structure:
    """What an output must look like, as the engine takes it, and the field that said so."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    text: str  # the schema, regex or grammar; for "choice" a JSON list of texts
    field: str


SchemaName = Annotated[StrictStr, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{_MAX_NAME_CHARS}}}$", description="Yours.")]


class NamedSchema(BaseModel):
    """OpenAI's `json_schema` object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SchemaName
    description: Words | None = None
    schema_: Schema = Field(alias="schema")
    strict: StrictBool | None = Field(None, description="Accepted; the schema is kept to either way.")


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: goes with the type json_schema, and only with that")
        return self


class StructuredOutputs(BaseModel):
    """Exactly one of them. The names are vLLM's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    json_: Schema | None = Field(None, alias="json")
    regex: Annotated[Words, Field(min_length=1)] | None = Field(None, description="What the whole output must match.")
    choice: Annotated[list[Annotated[Words, Field(min_length=1)]] | None, Field(min_length=1, fail_fast=True)] = Field(
        None, description="Texts, one of which the output must be."
    )
    grammar: Annotated[Words, Field(min_length=1)] | None = Field(
        None, description="A Lark grammar; `start` is its root."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [each for each in (self.json_, self.regex, self.choice, self.grammar) if each is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of json, regex, choice and grammar")
        return self


def structure_of(response_format: ResponseFormat | None, outputs: StructuredOutputs | None) -> Structure | None:
    """What a job's fields ask for; at most one of them does. None: any text."""
    if outputs is not None:
        if outputs.json_ is not None:
            return Structure("json_schema", _dumped(outputs.json_), "structured_outputs.json")
        if outputs.regex is not None:
            return Structure("regex", outputs.regex, "structured_outputs.regex")
        if outputs.choice is not None:
            return Structure("choice", _dumped(outputs.choice), "structured_outputs.choice")
        return Structure("lark", outputs.grammar or "", "structured_outputs.grammar")
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return Structure("json_object", "", "response_format")
    return Structure("json_schema", _dumped(response_format.json_schema.schema_), "response_format.json_schema.schema")


def broken_limits(structure: Structure, settings: Settings) -> Iterator[tuple[str, str]]:
    """(field, message) for each limit that is passed."""
    field, size = structure.field, len(structure.text.encode())
    if structure.kind == "regex" and len(structure.text) > settings.max_regex_chars:
        yield field, f"must have at most {settings.max_regex_chars} characters, not {len(structure.text)}"
    elif size > settings.max_schema_bytes:
        yield field, f"must have at most {settings.max_schema_bytes} bytes, not {size}"
    elif structure.kind == "choice":
        count = len(json.loads(structure.text))
        if count > settings.max_choices:
            yield field, f"must be at most {settings.max_choices} texts, not {count}"
    elif structure.kind == "json_schema":
        depth, _ = _shape_of(json.loads(structure.text))
        if depth > settings.max_schema_depth:
            yield field, f"must be nested at most {settings.max_schema_depth} deep, not {depth}"


def broken_tool(parameters: dict[str, Any] | None, field: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """(field, message) for each limit of a schema that a tool's `parameters` pass."""
    return broken_limits(Structure("json_schema", _dumped(parameters or {}), field), settings)


def _dumped(value: Any) -> str:
    # In the sender's order: an object's members come in the order of its properties.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shape_of(value: Any) -> tuple[int, bool]:
    """How deep objects and lists are nested, and whether any text holds U+0000."""
    deepest, has_nul = 0, False
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, str):
            has_nul |= "\x00" in each
        elif isinstance(each, dict | list):
            deepest = max(deepest, depth)
            parts = [*each, *each.values()] if isinstance(each, dict) else each
            waiting += [(part, depth + 1) for part in parts]
    return deepest, has_nul
