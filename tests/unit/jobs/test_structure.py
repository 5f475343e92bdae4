"""Does what a job says about its output's form reach the engine as it was meant?"""

import json
from typing import Any

import pytest

from app.jobs.request import JobRequest
from app.jobs.structure import Structure
from app.settings import Settings
from tests.support.jobs import prepared

SETTINGS = Settings(_env_file=None)
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": "é"}}, "required": ["b", "a"]}
TEXT = '{"type":"object","properties":{"b":{"type":"integer"},"a":{"const":"é"}},"required":["b","a"]}'


def of(**body: Any) -> Structure | None:
    return JobRequest.model_validate({"prompt": "a"} | body).structure


def test_all_ways_to_say_it() -> None:
    named = {"name": "it", "schema": SCHEMA, "strict": True, "description": "for people"}
    for body, kind, text in [
        ({"response_format": {"type": "json_schema", "json_schema": named}}, "json_schema", TEXT),
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["yes", "né"]}}, "choice", '["yes","né"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "regex", "a"),
    ]:
        found = of(**body)
        assert found is not None
        assert (found.kind, found.text) == (kind, text)
    assert of(response_format={"type": "text"}) is None
    assert of() is None


def test_it_is_stored_with_the_job() -> None:
    job = prepared(SETTINGS, response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}})
    assert job.sampling["grammar"] == {"kind": "json_schema", "text": TEXT}
    stored = json.loads(json.dumps(job.request.canonical()))
    assert JobRequest.model_validate(stored) == job.request, "what is stored can be read again"
    assert prepared(SETTINGS).sampling["grammar"] is None


def test_the_other_ways_to_end_or_hurry_are_stored_too() -> None:
    sampling = prepared(SETTINGS, stop_repeating=4, speculate=False).sampling
    assert (sampling["stop_repeating"], sampling["speculate"]) == (4, False)
    sampling = prepared(SETTINGS).sampling
    assert (sampling["stop_repeating"], sampling["speculate"]) == (0, True)


@pytest.mark.parametrize(("depth", "is_refused"), [(32, False), (33, True)])
def test_depth_counts_objects_and_lists(depth: int, is_refused: bool) -> None:
    request = JobRequest.model_validate({"prompt": "a", "structured_outputs": {"json": nested(depth)}})
    assert bool(request.check_limits(SETTINGS)) == is_refused


def nested(depth: int) -> dict[str, Any]:
    """Objects and lists by turns."""
    found: Any = {} if depth % 2 else []
    for level in range(depth - 1, 0, -1):
        found = {"x": found} if level % 2 else [found]
    assert isinstance(found, dict)
    return found
