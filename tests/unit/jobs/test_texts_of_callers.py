"""Does any SQL look into JSON that callers wrote? It may hold U+0000, at which `->` and `->>` are errors, and so all that the statement does."""

import re
from pathlib import Path

from sqlalchemy import JSON

from app.db import metadata
from app.jobs import tables

APP = Path(__file__).parents[3] / "app"
OF_CALLERS = {
    column.name
    for table in metadata.tables.values()
    for column in table.columns
    if type(column.type) is JSON and column is not tables.job_inputs.c.sampling  # of numbers and of checked texts
}


def test_no_statement_does() -> None:
    """A response whose input held one could not be ended: nor could what ended with it, by whomever. Rows of before are asked with care."""
    assert {"request", "choices", "body"} <= OF_CALLERS
    looks = re.compile(rf"\b(?:{'|'.join(sorted(OF_CALLERS))})\s*(?:::jsonb?\s*)?->")
    found = [
        f"{path.relative_to(APP)}: {line.strip()}"
        for path in sorted(APP.rglob("*.py"))
        for line in path.read_text().splitlines()
        if looks.search(line) and "strpos(" not in line
    ]
    assert found == []
