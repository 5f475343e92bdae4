"""Who is suspected after an engine's death, and how long does a worker wait before it starts the next?"""

import pytest

from app.queue.places import MAX_SOLO_SUSPECTS
from tests.unit.generation import test_hand
from workers.engine.flight import FlightRecord
from workers.generation.crash_loop import CrashLoop
from workers.generation.hand import RunningJob
from workers.generation.suspicion import shown, sort_out


def job() -> RunningJob:
    """One that the engine was given."""
    running = test_hand.job()
    running.is_handed_over = True
    return running


def names(jobs: list[RunningJob]) -> list[str]:
    return [each.request_id for each in jobs]


def test_those_who_were_new_in_the_last_step_are_suspects() -> None:
    a, b, c, waiting = (job() for _ in range(4))
    found = sort_out([a, b, c, waiting], FlightRecord(9, names([a, b, c]), names([b])))
    assert (found.suspects, found.bystanders, found.lane) == ([b], [a, c, waiting], "solo")


def test_if_none_was_new_all_in_the_step_are() -> None:
    a, b, waiting = (job() for _ in range(3))
    found = sort_out([a, b, waiting], FlightRecord(9, names([a, b]), []))
    assert (found.suspects, found.bystanders) == ([a, b], [waiting])


def test_one_that_was_new_and_is_not_ours_any_more_clears_nobody() -> None:
    a, gone = job(), job()
    found = sort_out([a], FlightRecord(9, names([a, gone]), names([gone])))
    assert found.suspects == [a]


@pytest.mark.parametrize("flight", [None, FlightRecord(1, [], [])])
def test_without_a_record_all_are(flight: FlightRecord | None) -> None:
    jobs = [job(), job()]
    assert sort_out(jobs, flight).suspects == jobs


def test_one_that_the_engine_was_not_given_yet_is_none() -> None:
    given, claimed = job(), test_hand.job()
    found = sort_out([given, claimed], None)
    assert (found.suspects, found.bystanders) == ([given], [claimed])


def test_a_self_test_that_kills_the_engine_makes_no_suspects() -> None:
    jobs = [job(), job()]
    found = sort_out(jobs, FlightRecord(1, ["canary.1"], ["canary.1"]))
    assert (found.suspects, found.bystanders) == ([], jobs)


@pytest.mark.parametrize(("count", "lane"), [(MAX_SOLO_SUSPECTS, "solo"), (MAX_SOLO_SUSPECTS + 1, "bisect")])
def test_many_run_in_groups_first(count: int, lane: str) -> None:
    assert sort_out([job() for _ in range(count)], None).lane == lane


def test_evidence_is_bounded() -> None:
    found = shown(FlightRecord(7, [f"{i}" for i in range(1000)], ["1"]))
    assert found is not None
    assert (found["step"], len(found["members"]), found["num_members"], found["admitted"]) == (7, 100, 1000, ["1"])


def test_starts_wait_from_the_limit_on_and_longer_each_time() -> None:
    loop = CrashLoop(limit=3, window_s=100, pause_s=30)
    waited = []
    for now in (0.0, 1.0, 2.0, 3.0, 4.0):
        loop.note(now)
        waited.append(loop.pause_s(now))
    assert waited == [0, 0, 30, 60, 120]
    assert loop.pause_s(200.0) == 0, "all that is forgotten"
    loop.note(200.0)
    assert loop.pause_s(200.0) == 0


def test_no_wait_is_longer_than_ten_minutes() -> None:
    loop = CrashLoop(limit=1, window_s=1e9, pause_s=30)
    for now in range(2000):
        loop.note(float(now))
        longest = loop.pause_s(float(now))
    assert longest == 600
