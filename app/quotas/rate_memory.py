"""Who may pass while Redis is away? What one process knows of the buckets, and the share of each limit that it admits by itself."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from app.quotas.buckets import PARTS, Bucket, Standing, longest_wait

MAX_KNOWN = 20_000
_LATE_US = 1_000_000  # answers may come in another order than Redis gave them; what is older than that is a clock that was set back


@dataclass(frozen=True, slots=True)
class Known:
    """A bucket's level at a moment of this process's clock."""

    bucket: Bucket
    level: int
    at_us: int
    outages: int  # how often Redis had been away by then
    is_ours: bool = False  # this process has let somebody in by itself: Redis doesn't know all of it
    redis_us: int = 0  # else: when Redis said so, by its own clock


class RateMemory:
    """The buckets as this process saw them last; the least recently used is forgotten first.

    A bucket goes on from the level that Redis had told, and holds `share` of its burst; once this process lets somebody in it leaks at
    `share` of its rate. A job that the share can't hold, but the limit can, passes when the bucket is empty, and is paid off before the
    next. So a process that is alone admits no more than the limit over any span of time, also one in which Redis went and came, with
    or without its memory. Of n processes each decides alone: together they keep to the rate if `share` is at most 1/n, and to the burst
    but for jobs that a share can't hold.
    """

    def __init__(self, *, share: float, most: int = MAX_KNOWN) -> None:
        self._share = share
        self._most = most
        self._outages = 0
        self._known: OrderedDict[str, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def doubt(self) -> None:
        """Redis is away: when it is back it may have lost its memory, and has to be told of all that is known here."""
        self._outages += 1

    def take(self, buckets: Sequence[Bucket], amounts: Sequence[int], now_us: int) -> tuple[bool, list[Standing]]:
        """Take from all of these buckets or from none; whether it was done, and how they are now."""
        before = self.standings(buckets, now_us)
        _, wait_us = longest_wait(before, amounts)
        if wait_us > 0:
            return False, before
        after = []
        for standing, amount in zip(before, amounts, strict=True):
            level = standing.level + amount * PARTS
            self._put(Known(standing.bucket, level, now_us, self._outages, is_ours=True))
            after.append(Standing(standing.bucket, level, self._share))
        return True, after

    def standings(self, buckets: Sequence[Bucket], now_us: int) -> list[Standing]:
        """How these buckets stand while this process decides alone."""
        return [Standing(each, self.level(each, now_us), self._share) for each in buckets]

    def put_back(self, buckets: Sequence[Bucket], amounts: Sequence[int], taken_us: int, now_us: int) -> list[Standing]:
        """Undo a `take`, but for what has leaked since."""
        standings = []
        for bucket, amount in zip(buckets, amounts, strict=True):
            back = max(0, amount * PARTS - (now_us - taken_us) * bucket.rate.per_minute)
            level = max(0, self.level(bucket, now_us) - back)
            known = self._known.get(bucket.key)
            if known is not None and known.is_ours:
                self._put(Known(bucket, level, now_us, self._outages, is_ours=True))
            standings.append(Standing(bucket, level, self._share))
        return standings

    def level(self, bucket: Bucket, now_us: int) -> int:
        """The bucket's level by what is known here, in parts."""
        known = self._known.get(bucket.key)
        if known is None:
            return 0
        leaked = max(0, now_us - known.at_us) * bucket.rate.per_minute
        return max(0, known.level - (int(leaked * self._share) if known.is_ours else leaked))

    def owed(self, now_us: int) -> list[Bucket]:
        """The buckets of which Redis has to be told, and that aren't empty by now."""
        owed = [known.bucket for known in self._known.values() if self._is_owed(known)]
        return [bucket for bucket in owed if self.level(bucket, now_us) > 0]

    def debt(self, bucket: Bucket) -> Known | None:
        """What Redis has to be told of this bucket; None where it knows."""
        known = self._known.get(bucket.key)
        return known if known is not None and self._is_owed(known) else None

    def learn(self, bucket: Bucket, level: int, now_us: int, *, redis_us: int, paid: Known | None) -> None:
        """Redis said at `redis_us` of its clock how full the bucket is, and knew of `paid`; what was taken here since is still owed."""
        known = self._known.get(bucket.key)
        if known is not None and known is not paid:
            if self._is_owed(known):
                return
            if known.redis_us - _LATE_US < redis_us < known.redis_us:
                return
        self._put(Known(bucket, level, now_us, self._outages, redis_us=redis_us))

    def _is_owed(self, known: Known) -> bool:
        return known.is_ours or known.outages != self._outages

    def _put(self, known: Known) -> None:
        self._known[known.bucket.key] = known
        self._known.move_to_end(known.bucket.key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
