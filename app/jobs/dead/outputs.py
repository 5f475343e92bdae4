"""What had a job written before it was given up? What its event stream still has: a dead job has no result."""

from uuid import UUID

from app.queue.events import EventLog, StoredEvent

_PAGE = 1000
MAX_ENTRIES = 10_000


async def published_texts(log: EventLog, job_id: UUID, n: int) -> list[str]:
    """The text of each choice as far as readers of the newest run were told; empty ones where the stream is gone.

    Raises:
        RedisError: Redis doesn't answer.
    """
    entries: list[StoredEvent] = []
    after = "0-0"
    while len(entries) < MAX_ENTRIES and (page := await log.read(job_id, after=after, count=_PAGE)):
        entries += page
        after = page[-1].place.entry_id
    run = max((each.place.run for each in entries), default=0)
    texts, num_tokens = [""] * n, [0] * n
    for delta in (delta for each in entries if each.place.run == run for delta in each.event.deltas):
        if delta.choice < n and delta.offset >= num_tokens[delta.choice]:  # else it was published before
            texts[delta.choice] += delta.text
            num_tokens[delta.choice] = delta.offset + len(delta.token_ids)
    return texts
