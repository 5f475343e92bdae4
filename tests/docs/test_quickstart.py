"""Are the answers that the quickstart shows as the API gives them?"""

import json
import re
from pathlib import Path
from typing import Any

from app.api.job_documents import JobObject

TEXT = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")


def shown_jobs() -> list[dict[str, Any]]:
    """The JSON objects of jobs, in a fence of their own or behind an answer's headers."""
    bodies = [
        each.partition("\n\n")[2] or each for each in re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    ]
    found = [json.loads(each) for each in bodies if each.lstrip().startswith("{")]
    return [each for each in found if each.get("object") == "job"]


def test_each_shown_job_has_the_fields_of_a_job_in_their_order() -> None:
    jobs = shown_jobs()
    assert [job["status"] for job in jobs] == ["queued", "succeeded"]
    for job in jobs:
        assert list(job) == [name for name in JobObject.model_fields if name != "forgotten"], "that one is rarely there"
