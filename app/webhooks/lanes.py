"""How many deliveries may a lane have under way, so that one slow endpoint delays nobody else?

A lane is a tenant's deliveries to the server of one of its endpoints. The servers of jobs' own URLs share `ONE_OFF_LANES` of the tenant's
among them, by hash, since nothing bounds how many there are. A lane's room doubles with each quick answer and halves with each slow one;
what the server answered doesn't matter here. Lanes that haven't shown to be quick are cautious: all together they get half of a worker's
slots at most, and one tenant's three quarters of those.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

# Of one tenant, a divisor of 256. Together with those of its endpoints they are what a dispatch may have to look at because of it.
ONE_OFF_LANES = 64
_ORIGIN = re.compile(r"[^/]*//[^/?#]*")
# `one_off_lane` of rows `d` of deliveries and `t` of tenants.
ONE_OFF_LANE_SQL = rf"""
    concat(d.tenant_id, ' #', get_byte(sha256(convert_to(
        concat(t.webhook_secret, ' ', lower(coalesce(substring(d.url FROM '^{_ORIGIN.pattern}'), d.url))), 'UTF8')), 0) % {ONE_OFF_LANES})
"""

FIRST_ROOM = 4  # of a lane that isn't known
QUICK_S = 2.0
# A tenant may have its first cautious delivery under way, and more as long as they are at most so many times what stays free: three quarters
# of the slots where it is alone, less where others are about. Source: A. K. Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds
# for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998.
TIMES_FREE = 3


@dataclass(frozen=True, slots=True)
class Busy:
    """A lane that has `count` deliveries under way."""

    lane: str
    tenant_id: str
    count: int
    room: int

    @property
    def is_cautious(self) -> bool:
        """Whether it hasn't shown to be quick."""
        return self.room <= FIRST_ROOM


@dataclass(frozen=True, slots=True)
class Candidate:
    """A delivery that is due. `turn`: the how manieth it would be that its tenant has under way; `room` is its lane's."""

    delivery_id: UUID
    number: int
    lane: str
    tenant_id: str
    room: int
    turn: int

    @property
    def is_cautious(self) -> bool:
        """Whether its lane hasn't shown to be quick."""
        return self.room <= FIRST_ROOM


def endpoint_lane(tenant_id: str, url: str) -> str:
    """The lane of an endpoint with this URL: of the tenant's deliveries to its server."""
    return f"{tenant_id} {_origin(url)}"


def one_off_lane(tenant_id: str, url: str, *, key: str) -> str:
    """The lane of a job's own URL. `key` is the tenant's secret: who doesn't know it can't choose whom a server shares its lane with."""
    digest = sha256(f"{key} {_origin(url)}".encode()).digest()
    return f"{tenant_id} #{digest[0] % ONE_OFF_LANES}"


def _origin(url: str) -> str:
    found = _ORIGIN.match(url)
    return (found[0] if found else url).lower()


def next_room(room: int, duration_s: float, *, most: int) -> int:
    """The room of a lane after a try that took so long."""
    return min(most, max(room, 1) * 2) if duration_s < QUICK_S else max(1, room // 2)


def pick(
    candidates: Sequence[Candidate], busy: Sequence[Busy], *, limit: int, most: int, cautious: int
) -> list[Candidate]:
    """Those to hand over now, by their turns, as long as there is room: in all, in their lane, in what cautious lanes may have.

    `most` is the most that any lane may have under way; `cautious` how many all cautious ones may have together.
    """
    picked: list[Candidate] = []
    taken = Counter({each.lane: each.count for each in busy})
    held: Counter[str] = Counter()  # by tenant, in its cautious lanes
    for lane in busy:
        held[lane.tenant_id] += lane.count if lane.is_cautious else 0
    free = cautious - held.total()
    for each in sorted(candidates, key=lambda each: each.turn):
        if len(picked) == limit:
            break
        if taken[each.lane] >= min(each.room, most):
            continue
        if each.is_cautious:
            own = held[each.tenant_id] + 1
            if free < 1 or (own > 1 and own > TIMES_FREE * (free - 1)):
                continue
            held[each.tenant_id] += 1
            free -= 1
        taken[each.lane] += 1
        picked.append(each)
    return picked
