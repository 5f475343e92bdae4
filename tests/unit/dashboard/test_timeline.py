"""Does a job's timeline tell what happened in its order, from a row, its attempts and its events?"""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.dashboard.queries.job import AttemptRow, JobStory, LetterRow, NoticeRow, Retiering
from app.dashboard.timeline import Begun, how_begun, timeline
from app.ids import new_id
from app.queue.events import EventPlace, JobEvent, StoredEvent

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def story(**changes: Any) -> JobStory:
    """A job that succeeded at its first attempt."""
    values: dict[str, Any] = dict.fromkeys(JobStory.__slots__)
    values |= {
        "id": new_id(), "tier": "standard", "status": "succeeded", "attempt": 1, "prompt_tokens": 16, "created_at": at(0),
        "eligible_at": at(0), "started_at": at(2), "finished_at": at(9), "attempts": [attempt(1)], "usage": [], "letters": [],
        "notices": [], "asked": {}, "retierings": [],
    }  # fmt: skip
    return JobStory(**(values | changes))


def attempt(number: int, **changes: Any) -> AttemptRow:
    values = {
        "attempt": number, "incarnation": new_id(), "outcome": "succeeded", "detail": None, "ended_at": at(9), "host": "node-1",
        "pid": 1, "device": "cpu", "queued_s": 2.0, "prefill_s": 1.0, "decode_s": 5.0,
    }  # fmt: skip
    return AttemptRow(**(values | changes))  # type: ignore[arg-type]


def told(job: JobStory, begun: dict[int, Begun] | None = None) -> list[tuple[str, float]]:
    return [(each.name, (each.at - START).total_seconds()) for each in timeline(job, begun or {})]


def test_from_queued_to_delivered() -> None:
    notice = NoticeRow(new_id(), "job.succeeded", "delivered", 1, at(9), at(10))
    moments = timeline(story(notices=[notice]), {})
    assert [(each.name, (each.at - START).total_seconds()) for each in moments] == [
        ("queued", 0), ("claimed", 2), ("prefill", 3), ("decode", 8), ("finished", 9), ("delivered", 10),
    ]  # fmt: skip
    assert [each.since_s for each in moments] == [None, 2, 1, 5, 1, 1]
    assert [each.kind for each in moments][-2:] == ["good", "good"]


def test_a_change_of_tier_stands_at_its_time_and_the_tier_before_it_where_it_was() -> None:
    changes = [
        Retiering(at(1), "operator:ann", "batch", "standard"),
        Retiering(at(1.5), "cli:bo", "standard", "interactive"),
    ]
    moments = timeline(story(tier="interactive", asked={"tier": "batch"}, retierings=changes), {})
    assert [(each.text, (each.at - START).total_seconds()) for each in moments[:3]] == [
        ("queued in batch", 0), ("put into standard by operator:ann", 1), ("put into interactive by cli:bo", 1.5),
    ]  # fmt: skip
    of_a_batch = timeline(story(tier="interactive", asked={"tier": "batch"}), {})[0]
    assert of_a_batch.text == "queued in batch"
    assert of_a_batch.note == "16 prompt tokens; in interactive since its batch changed"


def test_an_attempt_that_was_given_back_is_followed_by_one_that_goes_on() -> None:
    first = attempt(1, outcome="drained", ended_at=at(5), prefill_s=1.0, decode_s=2.0)
    second = attempt(2, queued_s=1.0, prefill_s=0.5, decode_s=2.0)
    job = story(attempt=2, eligible_at=at(5), attempts=[first, second])
    assert told(job, {2: Begun(57, is_anew=False)}) == [
        ("queued", 0), ("claimed", 2), ("prefill", 3), ("decode", 5), ("preempted", 5), ("queued", 5), ("claimed", 6),
        ("resumed", 6), ("prefill", 6.5), ("decode", 8.5), ("finished", 9),
    ]  # fmt: skip
    texts = [each.text for each in timeline(job, {2: Begun(57, is_anew=False)})]
    assert "went on after 57 tokens of the attempt before" in texts
    assert "began anew" in " ".join(each.text for each in timeline(job, {2: Begun(0, is_anew=True)}))


def test_a_preemption_and_its_end_stand_between_the_tokens() -> None:
    out = [{"choice": 0, "out_s": 2.0, "back_s": 3.5}, {"choice": 1, "out_s": 4.0, "back_s": None}]
    assert told(story(attempts=[attempt(1, detail={"preempted": out})])) == [
        ("queued", 0), ("claimed", 2), ("prefill", 3), ("preempted", 4), ("resumed", 5.5), ("preempted", 6), ("decode", 8),
        ("finished", 9),
    ]  # fmt: skip


def test_what_was_not_measured_is_left_out() -> None:
    lost = attempt(1, outcome="worker_lost", queued_s=None, prefill_s=None, decode_s=None, ended_at=at(5))
    second = attempt(2, queued_s=None, prefill_s=None, decode_s=None)
    job = story(attempt=2, eligible_at=at(5), attempts=[lost, second])
    assert told(job) == [("queued", 0), ("claimed", 2), ("preempted", 5), ("queued", 5), ("finished", 9)]


def test_two_clocks_never_put_the_last_token_after_the_end() -> None:
    assert ("decode", 9.0) in told(story(attempts=[attempt(1, decode_s=60.0)]))


def test_a_job_that_runs_and_one_that_waits() -> None:
    running = story(status="running", finished_at=None, attempts=[])
    assert told(running) == [("queued", 0), ("claimed", 2)]
    waiting = story(status="queued", finished_at=None, started_at=None, attempt=0, attempts=[])
    assert told(waiting) == [("queued", 0)]


def test_a_second_life_and_what_was_not_delivered() -> None:
    dead = attempt(1, outcome="engine_crash", ended_at=at(4), decode_s=0.0)
    letter = LetterRow(1, 1, "engine_crashes", "f", at(4), at(6), "requeued", "operator:ada", "mended")
    notice = NoticeRow(new_id(), "job.dead", "failed", 10, at(4), at(8))
    job = story(attempt=2, eligible_at=at(6), attempts=[dead, attempt(2, queued_s=0.5, prefill_s=1, decode_s=1)], letters=[letter],
                notices=[notice])  # fmt: skip
    names = [name for name, _ in told(job)]
    assert names == [
        "queued", "claimed", "preempted", "queued", "requeued", "claimed", "prefill", "undelivered", "decode", "finished",
    ]  # fmt: skip


def test_how_attempts_began_is_read_from_what_readers_were_told() -> None:
    def event(run: int, seq: int, attempt: int, kind: str) -> StoredEvent:
        return StoredEvent(EventPlace(run, seq, attempt, 1), JobEvent(kind=kind, attempt=attempt))

    events = [
        event(1, 0, 1, "started"),
        event(1, 9, 1, "tokens"),
        event(1, 9, 2, "started"),
        event(3, 0, 3, "restarted"),
    ]
    assert how_begun(events) == {1: Begun(0, False), 2: Begun(9, False), 3: Begun(0, True)}
