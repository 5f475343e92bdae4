"""Are the answers that the quickstart shows as the API gives them?"""

import json
from pathlib import Path
from typing import Any

from app.api.job_documents import JobObject
from tests.support.shell import blocks_of, commands_of

TEXT = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")


def shown_jobs() -> list[dict[str, Any]]:
    """The JSON objects of jobs that commands print, some behind an answer's headers."""
    commands = [each for block in blocks_of(TEXT) if block.language == "console" for each in commands_of(block)]
    bodies = [each.wanted.partition("\n\n")[2].strip() or each.wanted for each in commands]
    found = [json.loads(each) for each in bodies if each.startswith("{") and "\n{" not in each]
    return [each for each in found if each.get("object") == "job"]


def test_each_shown_job_has_the_fields_of_a_job_in_their_order() -> None:
    jobs = shown_jobs()
    assert [job["status"] for job in jobs] == ["queued", "succeeded"]
    for job in jobs:
        assert list(job) == [name for name in JobObject.model_fields if name != "forgotten"], "that one is rarely there"
