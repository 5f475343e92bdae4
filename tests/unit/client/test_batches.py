"""Is a batch made once, followed to its end, and read whole, also where answers are lost?"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from app.client import Batch, NoAnswer, TimedOut, batch_lines
from tests.unit.client.conftest import Driven

Drive = Callable[..., Driven]
WANTED = {"a": {"model": "m", "messages": []}, "b": {"model": "m", "messages": [{"role": "user", "content": "ü"}]}}


@dataclass
class Batches:
    """As much of /v1/files and /v1/batches as a client sees. `lose` names calls whose first answers are lost after they were served."""

    lose: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    looks_until_end: int = 4

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self._serve(request.method, request.url.path, request)
        what = f"{request.method} {request.url.path}"
        if self.lose.get(what, 0) > 0:
            self.lose[what] -= 1
            raise httpx.ReadError("lost")
        return answer

    def _serve(self, method: str, path: str, request: httpx.Request) -> httpx.Response:
        match method, path.split("/")[2:]:
            case "POST", ["files"]:
                body = request.read()
                assert b'name="purpose"\r\n\r\nbatch' in body
                boundary = request.headers["content-type"].partition("boundary=")[2].encode()
                part = next(each for each in body.split(b"--" + boundary) if b'filename="' in each)
                name = f"file-{len(self.files)}"
                self.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
                return httpx.Response(200, json={"id": name, "object": "file"})
            case "GET", ["files", name, "content"]:
                return httpx.Response(200, content=self.files[name])
            case "POST", ["batches"]:
                key = request.headers["idempotency-key"]
                if key not in self.keys:
                    made = json.loads(request.content) | {"id": f"batch_{len(self.batches)}", "status": "in_progress"}
                    self.batches.append(made | {"request_counts": {"total": 2, "completed": 0, "failed": 0}})
                    self.keys[key] = len(self.batches) - 1
                return httpx.Response(200, json=self.batches[self.keys[key]])
            case "GET", ["batches", _, "output"]:
                return httpx.Response(200, content=b'{"custom_id": "a"}\n')
            case "GET", ["batches", _, "errors"]:
                return httpx.Response(200, content=b"")
            case "GET", ["batches", _]:
                return httpx.Response(200, json=self._look())
        raise AssertionError((method, path))

    def _look(self) -> dict[str, Any]:
        self.looks += 1
        (batch,) = self.batches
        batch["request_counts"] = {"total": 2, "completed": int(self.looks > 1), "failed": 0}
        if self.looks >= self.looks_until_end:
            lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
            self.files |= {
                "out": json.dumps({"custom_id": lines[0]["custom_id"], "response": {"status_code": 200}}).encode()
                + b"\n",
                "err": json.dumps({"custom_id": lines[1]["custom_id"], "error": {"code": "batch_expired"}}).encode()
                + b"\n",
            }
            batch |= {"status": "completed", "output_file_id": "out", "error_file_id": "err"}
        return batch


def test_a_batch_is_uploaded_made_followed_and_read(driven: Drive) -> None:
    server, seen = Batches(), []

    def moved(batch: Batch) -> None:
        seen.append((batch["status"], batch["request_counts"]["completed"]))

    result = driven(handler=server).call("batch", WANTED, on_progress=moved, metadata={"run": "7"})
    assert seen == [("in_progress", 0), ("in_progress", 1), ("completed", 1)]
    assert server.files["file-0"] == batch_lines(WANTED, "/v1/chat/completions")
    assert [json.loads(line) for line in server.files["file-0"].splitlines()] == [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in WANTED.items()
    ]
    assert result.outputs == {"a": {"custom_id": "a", "response": {"status_code": 200}}}
    assert result.errors == {"b": {"custom_id": "b", "error": {"code": "batch_expired"}}}
    assert result.batch["status"] == "completed"
    assert server.batches[0]["metadata"]["run"] == "7"


@pytest.mark.parametrize(
    "lost",
    ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch_0", "GET /v1/files/out/content"],
)
def test_lost_answers_never_make_a_second_batch(driven: Drive, lost: str) -> None:
    server = Batches(lose={"POST /v1/batches": 1} | {lost: 1})
    result = driven(handler=server).call("batch", WANTED)
    assert len(server.batches) == 1
    assert result.outputs.keys() | result.errors.keys() == WANTED.keys()
    assert server.lose[lost] == 0


def test_a_batch_that_was_never_made_is_made_again(driven: Drive) -> None:
    server = Batches()
    refused = iter([httpx.ReadError("before it was served"), httpx.ConnectError("refused"), None])

    def serve(request: httpx.Request) -> httpx.Response:
        error = next(refused, None) if (request.method, request.url.path) == ("POST", "/v1/batches") else None
        if error is not None:
            raise error
        return server(request)

    driven(handler=serve).call("batch", WANTED)
    assert len(server.batches) == 1


def test_a_server_that_never_answers_is_given_up(driven: Drive) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            raise httpx.ReadError("lost")
        return httpx.Response(200, json={"data": []})

    with pytest.raises(NoAnswer):
        driven(handler=serve).call("create_batch", "file-0")


def test_a_batchs_metadata_is_its_makers(driven: Drive) -> None:
    """The client put a pair of its own in: who had as many as one may have was refused."""
    server = Batches()
    metadata = {f"k{n}": "v" for n in range(16)}
    driven(handler=server).call("create_batch", "file-0", metadata=metadata)
    driven(handler=server).call("create_batch", "file-0")
    assert [each.get("metadata") for each in server.batches] == [metadata, None]


def test_finished_lines_can_be_read_while_others_run(driven: Drive) -> None:
    """The batch names its files when it has ended: until then the lines were looked for nowhere."""
    server = Batches(looks_until_end=10**6)
    client = driven(handler=server)
    result = client.call("batch_result", client.call("create_batch", "file-0"))
    assert (result.batch["status"], result.outputs, result.errors) == ("in_progress", {"a": {"custom_id": "a"}}, {})


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("method", ["wait", "wait_batch"])
def test_waiting_ends_when_it_was_told_to_though_nobody_answers(driven: Drive, method: str, is_there: bool) -> None:
    """It went on for as long as any call is tried again: a minute and a half where two seconds were asked for."""

    def serve(_: httpx.Request) -> httpx.Response:
        if not is_there:
            raise httpx.ConnectError("refused")
        return httpx.Response(503, headers={"Retry-After": "30"})

    client = driven(handler=serve)
    with pytest.raises(TimedOut, match="no good answer in the time that was given; the last one: "):
        client.call(method, "job_1", timeout_s=2)
    assert sum(client.slept.seconds) <= 2


def test_waiting_ends_when_it_was_told_to_and_the_batch_goes_on(driven: Drive) -> None:
    server = Batches(looks_until_end=10**6)
    client = driven(handler=server)
    with pytest.raises(TimedOut, match="batch_0 is still in_progress after 30 s"):
        client.call("batch", WANTED, timeout_s=30)
    assert sum(client.slept.seconds) == pytest.approx(30)
    assert max(client.slept.seconds) <= 5
