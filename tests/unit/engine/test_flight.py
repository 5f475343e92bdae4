"""Can the parent read what its engine was about to do, whatever became of it?"""

import os
import signal
import subprocess
import sys

import pytest

from workers.engine.config import EngineConfig
from workers.engine.engine import PagedEngine
from workers.engine.flight import FlightRecord, FlightRecorder, open_record, read_record
from workers.engine.null import NullEngine
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams


@pytest.fixture
def descriptor():
    descriptor = open_record()
    yield descriptor
    os.close(descriptor)


def test_the_last_record_is_read(descriptor: int) -> None:
    assert read_record(descriptor) is None
    recorder = FlightRecorder(descriptor)
    recorder(["a"], ["a"])
    recorder(["a", "b"], ["b"])
    assert read_record(descriptor) == FlightRecord(2, ["a", "b"], ["b"])
    recorder([], [])
    assert read_record(descriptor) == FlightRecord(3, [], [])


def test_what_does_not_fit_is_told_as_unknown(descriptor: int) -> None:
    recorder = FlightRecorder(descriptor)
    recorder([f"{i:040}" for i in range(4096)], ["x"])
    assert read_record(descriptor) == FlightRecord(1, [f"{i:040}" for i in range(4096)], ["x"])
    recorder([f"{i:0100}" for i in range(4096)], ["x"])
    assert read_record(descriptor) == FlightRecord(2, [], [])


def test_nonsense_is_no_record(descriptor: int) -> None:
    FlightRecorder(descriptor)(["a"], [])
    os.pwrite(descriptor, b"\xff" * 64, 8 + (1 << 18))
    assert read_record(descriptor) is None


def test_a_process_killed_while_it_writes_leaves_a_whole_record(descriptor: int) -> None:
    code = (
        "import sys; from workers.engine.flight import FlightRecorder\n"
        "recorder = FlightRecorder(int(sys.argv[1]))\n"
        "while True: recorder([f'{i:040}' for i in range(2000)], ['x'] * 100)"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor])
        while (first := read_record(descriptor)) is None or first.step < 20:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        record = read_record(descriptor)
        assert record is not None
        assert (len(record.members), len(record.admitted)) == (2000, 100)


def engine_with_record() -> tuple[PagedEngine, list[tuple[list[str], list[str]]]]:
    engine = NullEngine(EngineConfig(engine="null", max_batch_tokens=64, max_num_seqs=8))
    records: list[tuple[list[str], list[str]]] = []
    engine.recorder = lambda members, admitted: records.append((list(members), list(admitted)))
    return engine, records


def request(name: str, length: int = 4) -> Request:
    return Request(id=name, prompt_ids=[1] * length, sampling=SamplingParams(max_tokens=5))


def test_each_step_tells_its_members_and_who_has_brought_nothing_yet() -> None:
    engine, records = engine_with_record()
    engine.add(request("a"))
    engine.step()
    engine.add(request("b", length=100))  # two steps for its prompt
    for _ in range(3):
        engine.step()
    assert records == [
        (["a"], ["a"]),  # taken in
        (["a"], ["a"]),
        (["b"], ["b"]),
        (["a", "b"], ["b"]),
        (["a", "b"], ["b"]),
        (["a", "b"], []),
    ]


async def test_a_dead_engine_leaves_its_record_until_it_is_stopped() -> None:
    options = {"poison_token": 300}
    engine = await EngineProcess.start(EngineConfig(engine="null", engine_options=options))
    assert engine.last_flight() is None
    await engine.add(Request(id="bad", prompt_ids=[300], sampling=SamplingParams(max_tokens=5)))
    with pytest.raises(Exception, match="died with exit status -9"):
        async for _ in engine:
            pass
    record = engine.last_flight()
    assert record is not None
    assert (record.members, record.admitted) == (["bad"], ["bad"])
    await engine.stop()
    assert engine.last_flight() is None
