"""Which functions may the model call, and which must it? A forced call is written under a grammar, so its arguments keep to their schema.

A forced output is a JSON list of calls, `[{"name": "f", "arguments": {...}}, ...]`, with the members in this order and no other space
between them: `calls.ForcedCalls` reads it as it comes.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidRequest
from app.jobs.request import FunctionDefinition, Tool
from app.jobs.structure import broken_tool
from app.settings import Settings

MAX_CALLS = 8  # that one forced output makes

Tools = Annotated[list[Tool], Field(max_length=128)]


class FunctionName(BaseModel):
    """The name of a function that must be called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class NamedTool(BaseModel):
    """OpenAI's `tool_choice` for one function, as chat/completions have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: FunctionName


ToolWord = Literal["none", "auto", "required"]


class Calling(BaseModel):
    """How a request's tools are to be used, whichever way it was said. `forced`: the functions one of which must be called."""

    model_config = ConfigDict(frozen=True)

    tools: list[FunctionDefinition] = []
    choice: Literal["none", "auto", "required", "named"] = "none"
    forced: list[str] = []
    is_parallel: bool = True
    path: str = "tools[{}].function"  # where the caller has written the function of this number

    @property
    def names(self) -> frozenset[str]:
        """Of the functions that there are."""
        return frozenset(each.name for each in self.tools)

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What the chat template is told; nothing where no call is wanted."""
        if self.choice == "none" or not self.tools:
            return None
        return [{"type": "function", "function": each.model_dump(exclude_none=True)} for each in self.tools]

    def grammar(self) -> str | None:
        """The Lark grammar of a forced output; None where nothing is forced."""
        forced = [each for each in self.tools if each.name in self.forced]
        if not forced:
            return None
        most = MAX_CALLS if self.is_parallel and self.choice == "required" else 1
        more = f' (", " call){{0,{most - 1}}}' if most > 1 else ""
        rules = [f'start: "[" call{more} "]"', "call: " + " | ".join(f"call_{i}" for i in range(len(forced)))]
        for i, function in enumerate(forced):
            head = json.dumps(f'{{"name": "{function.name}", "arguments": ')
            rules += [f'call_{i}: {head} args_{i} "}}"', f"args_{i}: %json {json.dumps(_schema_of(function))}"]
        return "\n".join(rules)

    def check(self, settings: Settings) -> None:
        """Raises InvalidRequest for a schema that is larger or deeper than any may be."""
        for i, function in enumerate(self.tools):
            field = f"{self.path.format(i)}.parameters"
            for name, message in broken_tool(function.parameters, field, settings):
                raise InvalidRequest(f"{name}: {message}", param=name)


def calling(
    tools: Sequence[FunctionDefinition] | None,
    choice: str | None,
    named: str | None,
    *,
    is_parallel: bool | None,
    path: str = "tools[{}].function",
) -> Calling:
    """How the tools are to be used; `choice` is OpenAI's word, `named` a function that must be called, `path` where each is written.

    Raises:
        InvalidRequest: a choice without tools, of a function that isn't among them, two of one name, or arguments that are no object.
    """
    parallel = is_parallel is not False
    if not tools and choice in {None, "none"} and named is None:
        return _NO_TOOLS[parallel]
    known = list(tools or [])
    names = [each.name for each in known]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tools: two functions have the name {twice!r}", param="tools")
    for i, tool in enumerate(known):
        if (tool.parameters or {}).get("type", "object") != "object":
            field = f"{path.format(i)}.parameters.type"
            raise InvalidRequest(f"{field}: must be 'object': arguments have names", param=field)
    if named is not None and named not in names:
        raise InvalidRequest(f"tool_choice: there is no function {named!r} among the tools", param="tool_choice")
    if choice in {"required", "auto"} and not known:
        raise InvalidRequest(f"tool_choice: {choice!r} goes with tools", param="tool_choice")
    if named is not None:
        return Calling(tools=known, choice="named", forced=[named], is_parallel=parallel, path=path)
    if choice == "required":
        return Calling(tools=known, choice="required", forced=names, is_parallel=parallel, path=path)
    return Calling(tools=known, choice="none" if choice == "none" else "auto", is_parallel=parallel, path=path)


# As most calls are, made once: to make one costs as much as to read a whole request.
_NO_TOOLS = {parallel: Calling(is_parallel=parallel) for parallel in (True, False)}


def _schema_of(function: FunctionDefinition) -> dict[str, Any]:
    """The schema of its arguments, which are an object; a function without one takes none."""
    schema = dict(function.parameters or {"properties": {}, "additionalProperties": False})
    schema.setdefault("type", "object")
    # At most one space between two things, as for all JSON of ours.
    return {"x-guidance": {"whitespace_pattern": " "}} | {k: v for k, v in schema.items() if k != "x-guidance"}
