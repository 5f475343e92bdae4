"""How is a grammar told to vLLM, in its process or over its API? Both take the same fields (`structured_outputs`)."""

from typing import Any

import msgspec

from workers.engine.protocol import Grammar


def structured_outputs_of(grammar: Grammar) -> dict[str, Any]:
    """The fields of vLLM's `StructuredOutputsParams`. Raises ValueError for a choice that isn't a list of texts."""
    match grammar.kind:
        case "json_schema":
            return {"json": grammar.text}
        case "json_object":
            return {"json_object": True}
        case "regex":
            return {"regex": grammar.text}
        case "lark":
            return {"grammar": grammar.text}
    try:
        choices = msgspec.json.decode(grammar.text, type=list[str])
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    if not choices or not all(choices):
        raise ValueError("a choice needs a JSON list of texts that aren't empty")
    return {"choice": choices}
