"""What do dead letters look like on the command line? A row, an object, a story."""

import json
from typing import Any

from rich.console import Console

from app.cli.tables import shown_time, visible
from app.ids import job_name
from app.jobs.dead.read import Letter, LetterGroup, LetterStory


def letter_document(letter: Letter) -> dict[str, Any]:
    """A letter for machines."""
    return {
        "id": job_name(letter.job_id), "reservation": letter.reservation, "attempt": letter.attempt, "pool": letter.pool,
        "tenant": letter.tenant_id, "reason": letter.reason, "fingerprint": letter.fingerprint,
        "signature": letter.signature, "died_at": letter.at.isoformat(), "resolution": letter.resolution,
        "resolved_at": letter.resolved_at.isoformat() if letter.resolved_at else None, "resolved_by": letter.resolved_by,
        "resolution_reason": letter.resolution_reason,
    }  # fmt: skip


def group_document(group: LetterGroup) -> dict[str, Any]:
    """A group for machines."""
    return {
        "fingerprint": group.fingerprint, "signature": group.signature, "reason": group.reason, "count": group.count,
        "pools": sorted(group.pools), "tenants": group.tenants, "first_died_at": group.first_at.isoformat(),
        "last_died_at": group.last_at.isoformat(), "ids": [job_name(job_id) for job_id in group.job_ids],
    }  # fmt: skip


def letter_cells(letter: Letter) -> list[str]:
    """A letter as a row."""
    return [
        job_name(letter.job_id), shown_time(letter.at), letter.tenant_id, letter.pool, letter.reason, letter.fingerprint,
        letter.resolution or "open",
    ]  # fmt: skip


def group_cells(group: LetterGroup) -> list[str]:
    """A group as a row."""
    return [
        group.fingerprint, str(group.count), str(group.tenants), shown_time(group.last_at), ",".join(sorted(group.pools)),
        group.signature or group.reason,
    ]  # fmt: skip


def print_story(console: Console, story: LetterStory, private: dict[str, Any] | None) -> None:
    """All that is known of a job that was given up, for people."""
    letter, evidence = story.letter, story.evidence
    state = "open"
    if letter.resolution is not None and letter.resolved_at is not None:
        state = f"{letter.resolution} by {letter.resolved_by} at {shown_time(letter.resolved_at)}: {letter.resolution_reason}"
    error = evidence.get("error") or {}
    lines = {
        "job": job_name(letter.job_id),
        "letter": state,
        "life": f"{letter.reservation}, up to attempt {letter.attempt}",
        "died": shown_time(letter.at),
        "reason": f"{letter.reason}: {error.get('message', '')}",
        "group": f"{letter.fingerprint}  {letter.signature}",
        "tenant": letter.tenant_id,
        "pool": letter.pool,
        "now": f"{story.job_status}, model {story.model}, tier {story.tier}",
        "asked for": json.dumps(story.shown_request, ensure_ascii=False),
        "counters": ", ".join(f"{name} {value}" for name, value in evidence.items() if isinstance(value, int)),
    }
    for name, value in lines.items():
        say(console, f"{name:<10} {value}")
    for attempt in evidence.get("attempts") or []:
        worker = attempt.get("worker") or {}
        place = f" on {worker.get('host')}, {worker.get('device')}" if worker else ""
        say(
            console,
            f"\nattempt {attempt.get('attempt')}: {attempt.get('outcome')} at {shown_time(attempt.get('ended_at'))}{place}",
        )
        for name, value in (attempt.get("detail") or {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            say(console, f"  {name}: " + text.strip().replace("\n", "\n    "))
    for each in story.others:
        say(
            console,
            f"\nlife {each.reservation} died at {shown_time(each.at)}: {each.reason}, {each.resolution} by {each.resolved_by}",
        )
    if private is None:
        say(console, "\nprompt and output are hidden: --prompts shows them, and that is written down")
        return
    say(console, "\n" + json.dumps(private, ensure_ascii=False, indent=2))


def say(console: Console, line: str) -> None:
    """A line as it is, however long."""
    console.print(visible(line), soft_wrap=True, markup=False, highlight=False)
