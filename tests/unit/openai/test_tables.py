"""Does docs/openai.md say of each parameter and route what becomes of it?"""

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from app.api.openai import chat, completions, models, responses
from app.openai.chat_request import ChatRequest
from app.openai.completion_request import CompletionRequest
from app.openai.fields import Generation
from app.openai.response_request import ResponseRequest

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, str]:
    """Parameter -> what stands beside it."""
    section = PAGE.split(f"\n### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE)
    return {name: meaning for names, meaning in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize(
    ("heading", "model"),
    [("Chat completions", ChatRequest), ("Completions", CompletionRequest), ("Responses", ResponseRequest)],
)
def test_each_parameter_stands_in_its_table_and_no_other(heading: str, model: type[Generation]) -> None:
    common, own = table("In all three"), table(heading)
    assert set(common) == set(Generation.model_fields)
    assert set(own) == (set(model.model_fields) | set(model.unsupported)) - set(common)
    refused = {name for name, meaning in own.items() if meaning.startswith("400")}
    assert refused == set(model.unsupported)


def test_each_route_stands_in_the_page() -> None:
    routers = (chat.router, completions.router, models.router, responses.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    found = {f"`{method} {route.path_format}`" for route in routes for method in route.methods}
    assert len(found) == 10
    assert {each for each in found if each not in PAGE} == set()
