"""Where in a grammar is what its compiler refuses? Told by keywords, numbers and characters counted: the rest is the caller's.

llguidance names a schema's value and not its place, and of a regex a place in a grammar that it has made of it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workers.engine.plain_words import plain_words
from workers.engine.protocol import Grammar

MAX_CHARS = 160
_REGEX = re.compile(r"regex parse error:\n {4}(?P<source>.*)\n {4}(?P<before> *)\^")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "/": "\\/"}  # as llguidance writes them into its own grammar
_SCHEMAS = (
    "items", "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_KEYWORD = "[$A-Za-z]{2,40}"
_Holds = Callable[[Any], bool]


def place_of(grammar: Grammar, reason: str) -> str:
    """Where it is, as `character 6` or `properties[2nd].items.type`; empty where that can't be told. At most `MAX_CHARS` characters."""
    if grammar.kind == "regex":
        return _place_in_regex(grammar.text, reason)
    if grammar.kind != "json_schema":
        return ""
    keyword, holds = _refused(reason)
    if plain_words(keyword) != keyword:  # what stands at a keyword's place in a message may be the caller's word
        return ""
    try:
        found = (path for path, schema in _schemas(json.loads(grammar.text), "") if _has(schema, keyword, holds))
        place = next(found, None) if keyword else None
    except (ValueError, RecursionError):
        return ""
    if place is None:
        return ""
    path = f"{place}.{keyword}" if place else keyword
    return path if len(path) <= MAX_CHARS else f"…{path[1 - MAX_CHARS :]}"


def _refused(reason: str) -> tuple[str, _Holds]:
    """The keyword that a message on a schema is about, none where it can't be told, and whether a value of it is the one that is meant."""
    if found := re.fullmatch("(Invalid type|Unknown format): (.*)", reason, re.DOTALL):
        value = found[2]
        keyword = {"Invalid type": "type", "Unknown format": "format"}[found[1]]
        return keyword, lambda each: each == value or (isinstance(each, list) and value in each)
    if found := re.match("(?:Pointer|Resource) '(.*?)'(?: does not exist| is not present)", reason, re.DOTALL):
        target = found[1]
        return "$ref", lambda each: isinstance(each, str) and each.removeprefix("#") == target
    if found := re.match(r"regex parse error:\n {4}(.*)\n", reason):
        regex = found[1]
        return "pattern", lambda each: each == regex
    if found := re.match(rf"Unimplemented keys: \[\"({_KEYWORD})\"", reason):
        return found[1], lambda _: True
    if found := re.fullmatch(rf"Expected .{{1,40}} for '({_KEYWORD})', got (.*)", reason, re.DOTALL):
        got = found[2]
        return found[1], lambda each: json.dumps(each, ensure_ascii=False) == got
    if found := re.match(rf"Unsatisfiable schema: ({_KEYWORD}) \((-?[0-9.]{{1,40}})\)", reason):
        bound = found[2]
        return found[1], lambda each: str(each) == bound
    if found := re.fullmatch(rf"({_KEYWORD}) must be an? (array|object)", reason):
        kind = {"array": list, "object": dict}[found[2]]
        return found[1], lambda each: not isinstance(each, kind)
    return "", lambda _: False


def _has(schema: Mapping[str, Any], keyword: str, holds: _Holds) -> bool:
    return keyword in schema and holds(schema[keyword])


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each schema in a schema, in the order in which it is written, with its place."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name, value in schema.items():
        below = f"{path}.{name}" if path else name
        if name in _MAPS and isinstance(value, dict):
            for number, each in enumerate(value.values(), 1):
                yield from _schemas(each, f"{below}[{_ordinal(number)}]")
        elif name in _LISTS and isinstance(value, list):
            for number, each in enumerate(value, 1):
                yield from _schemas(each, f"{below}[{_ordinal(number)}]")
        elif name in _SCHEMAS:
            yield from _schemas(value, below)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _place_in_regex(text: str, reason: str) -> str:
    """Which character of the regex its parser points at, counted from 1."""
    found = _REGEX.search(reason)
    if found is None:
        return ""
    at, until = 0, len(found["before"])
    shown = found["source"]
    place = 0
    while at < until and place < len(text):
        step = next(
            (each for each in (text[place], _ESCAPES.get(text[place], "\0")) if shown.startswith(each, at)), None
        )
        if step is None:
            return ""
        at, place = at + len(step), place + 1
    return f"character {place + 1}" if at == until else ""
