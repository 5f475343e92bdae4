"""How many deliveries may a lane have under way, so that one slow endpoint delays nobody else?

A lane is one tenant's deliveries to one server. Its room doubles with each quick answer and halves with each slow one; what the server
answered doesn't matter here. Lanes that haven't shown to be quick, all together, get half of a worker's slots at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

FIRST_ROOM = 4  # of a lane that isn't known
QUICK_S = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A delivery that is due. `place` counts those of its lane from 1, the oldest first; `room` is its lane's."""

    delivery_id: UUID
    number: int
    lane: str
    room: int
    place: int


def next_room(room: int, duration_s: float, *, most: int) -> int:
    """The room of a lane after a try that took so long."""
    return min(most, max(room, 1) * 2) if duration_s < QUICK_S else max(1, room // 2)


def pick(
    candidates: Sequence[Candidate],
    busy: Mapping[str, int],
    *,
    limit: int,
    most: int,
    cautious_busy: int,
    cautious: int,
) -> list[Candidate]:
    """Those to hand over now: the first of each lane, then the second of each, and so on, as long as there is room.

    `busy` says how many each lane has under way; `most` is the most that any lane may have; `cautious_busy` how many all lanes have that
    haven't shown to be quick, and `cautious` how many they may have.
    """
    picked: list[Candidate] = []
    taken = dict(busy)
    for each in sorted(candidates, key=lambda each: each.place):
        if len(picked) == limit:
            break
        is_cautious = each.room <= FIRST_ROOM
        if taken.get(each.lane, 0) >= min(each.room, most) or (is_cautious and cautious_busy >= cautious):
            continue
        taken[each.lane] = taken.get(each.lane, 0) + 1
        cautious_busy += is_cautious
        picked.append(each)
    return picked
