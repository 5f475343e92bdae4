"""Is a line's sender told what was its own fault, and nothing else?"""

import json
from uuid import UUID

import pytest

from app.batches.bodies import EndedJob, refused_line


@pytest.mark.parametrize(
    ("job_status", "code", "status", "kind"),
    [
        ("failed", "grammar_invalid", 400, "invalid_request_error"),
        ("failed", "internal_error", 500, "server_error"),
        ("failed", "result_not_storable", 500, "server_error"),
        ("dead", "engine_died", 500, "server_error"),
    ],
)
def test_a_line_that_failed_has_the_status_that_a_call_would_have(
    job_status: str, code: str, status: int, kind: str
) -> None:
    job = EndedJob(UUID(int=1), job_status, "tiny", 0, 1, 0, 0, None, {"code": code, "message": "so"})
    response = json.loads(refused_line("a", job))["response"]
    assert response["status_code"] == status
    assert (response["body"]["error"]["type"], response["body"]["error"]["code"]) == (kind, code)
