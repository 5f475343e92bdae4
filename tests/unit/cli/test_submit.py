"""Does `penstock submit` end when its results can't be printed?"""

import asyncio
import io
import sys

import pytest

from app.cli.http import Target
from app.cli.submit import Submission, _submit
from tests.support.hostile import hostile, http

ACCEPTED = http(202, b'{"id": "job_1", "status": "queued"}')
ENDED = http(200, b'{"id": "job_1", "status": "succeeded", "choices": [{"index": 0, "text": "the end"}]}')


class Closed(io.StringIO):
    """Standard output that nobody reads any more, as behind `| head`."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, _: str) -> int:
        raise self._error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("count", [1, 3])
async def test_who_cannot_print_a_result_ends_with_its_error(
    error: OSError, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Closed(error))
    with hostile(*[ACCEPTED] * count, ENDED) as server:
        jobs = [Submission("", {"prompt": "Once"}) for _ in range(count)]
        with pytest.raises(OSError, match=error.strerror) as raised:
            async with asyncio.timeout(30):
                await _submit(Target(server.url, "pk_000000000000_secret"), jobs, wait=True, as_json=False)
    assert raised.value is error
