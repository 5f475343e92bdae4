"""Who may pass while Redis is away? What one process knows of the buckets, and the share of each limit that it admits by itself."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from app.quotas.buckets import PARTS, Bucket, Standing, longest_wait

MAX_KNOWN = 20_000
_LATE_US = 1_000_000  # answers may come in another order than Redis gave them; what is older than that is a clock that was set back


@dataclass(frozen=True, slots=True)
class Known:
    """A bucket's level at a moment of this process's clock. `is_owed`: Redis doesn't know all of it."""

    bucket: Bucket
    level: int
    at_us: int
    is_owed: bool
    told_us: int = 0  # when that was by Redis' clock


class RateMemory:
    """The buckets as this process saw them last; the least recently used is forgotten first.

    A bucket goes on from the level that Redis had told, leaks at `share` of its rate and holds `share` of its burst. A job that the
    share can't hold, but the limit can, passes when the bucket is empty, and is paid off before the next. So a process that is alone
    admits no more than the limit over any span of time, also one in which Redis went and came. Of n processes each decides alone: together
    they keep to the rate if `share` is at most 1/n, and to the burst but for jobs that a share can't hold.
    """

    def __init__(self, *, share: float, most: int = MAX_KNOWN) -> None:
        self._share = share
        self._most = most
        self._known: OrderedDict[str, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def take(self, buckets: Sequence[Bucket], amounts: Sequence[int], now_us: int) -> tuple[bool, list[Standing]]:
        """Take from all of these buckets or from none; whether it was done, and how they are now."""
        before = [Standing(each, self.level(each, now_us), self._share) for each in buckets]
        _, wait_us = longest_wait(before, amounts)
        if wait_us > 0:
            return False, before
        after = []
        for standing, amount in zip(before, amounts, strict=True):
            level = standing.level + amount * PARTS
            self._put(Known(standing.bucket, level, now_us, is_owed=True))
            after.append(Standing(standing.bucket, level, self._share))
        return True, after

    def put_back(self, buckets: Sequence[Bucket], amounts: Sequence[int], taken_us: int, now_us: int) -> list[Standing]:
        """Undo a `take`, but for what has leaked since."""
        standings = []
        for bucket, amount in zip(buckets, amounts, strict=True):
            back = max(0, amount * PARTS - self._leak(bucket, now_us - taken_us))
            level = max(0, self.level(bucket, now_us) - back)
            if bucket.key in self._known:
                self._put(Known(bucket, level, now_us, is_owed=self._known[bucket.key].is_owed))
            standings.append(Standing(bucket, level, self._share))
        return standings

    def level(self, bucket: Bucket, now_us: int) -> int:
        """The bucket's level by what is known here, in parts."""
        known = self._known.get(bucket.key)
        return 0 if known is None else max(0, known.level - self._leak(bucket, now_us - known.at_us))

    def owed(self, now_us: int) -> list[Bucket]:
        """The buckets of which Redis has yet to hear, and that aren't empty by now."""
        owed = [known.bucket for known in self._known.values() if known.is_owed]
        return [bucket for bucket in owed if self.level(bucket, now_us) > 0]

    def debt(self, bucket: Bucket) -> Known | None:
        """What Redis has yet to hear of this bucket."""
        known = self._known.get(bucket.key)
        return known if known is not None and known.is_owed else None

    def learn(self, bucket: Bucket, level: int, now_us: int, *, told_us: int, paid: Known | None) -> None:
        """Redis said at `told_us` of its clock how full the bucket is, and knew of `paid`; what was taken here since is still owed."""
        known = self._known.get(bucket.key)
        if known is not None:
            if known.is_owed and known is not paid:
                return
            if known.told_us - _LATE_US < told_us < known.told_us:
                return
        self._put(Known(bucket, level, now_us, is_owed=False, told_us=told_us))

    def _leak(self, bucket: Bucket, span_us: int) -> int:
        return int(max(0, span_us) * bucket.rate.per_minute * self._share)

    def _put(self, known: Known) -> None:
        self._known[known.bucket.key] = known
        self._known.move_to_end(known.bucket.key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
