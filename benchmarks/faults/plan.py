"""Which faults come when? A list that follows from a seed and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

PROCESSES = ("api", "worker-1", "worker-2", "maintenance", "webhooks")
ENGINES = ("engine-1", "engine-2")  # of worker-1 and worker-2
LINKS = tuple(f"{process}>{server}" for process in PROCESSES for server in ("postgres", "redis"))
SERVERS = ("postgres", "redis")

# By the kind of target: what can happen to it, and for how long at most, in seconds (0: it is over at once).
_OF_PROCESSES = {"kill": 0.0, "stop": 8.0, "restart": 0.0}
_OF_ENGINES = {"kill": 0.0, "stop": 8.0}
_OF_LINKS = {"cut": 0.0, "lose answer": 0.0, "refuse": 5.0, "partition 5 s": 5.0, "partition 20 s": 20.0}
_OF_SERVERS = {"kill": 0.0, "stop": 8.0, "restart": 0.0}
_WEIGHTS = ((PROCESSES, _OF_PROCESSES, 8), (ENGINES, _OF_ENGINES, 4), (LINKS, _OF_LINKS, 8), (SERVERS, _OF_SERVERS, 2))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `lasts_s` from `at_s` on, in seconds since the start."""

    at_s: float
    target: str
    kind: str
    lasts_s: float

    @property
    def name(self) -> str:
        """The kind of thing that it happens to, and what: by this it is counted."""
        what = self.target.rpartition("-")[0] or self.target
        if ">" in self.target:
            what = "link to " + self.target.rpartition(">")[2]
        return f"{what}: {self.kind}"

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:8.1f} s  {self.target}: {self.kind}{lasts}"


def make_plan(seed: int, count: int, seconds: float, *, scale: float = 1.0) -> list[Fault]:
    """`count` faults spread over `seconds`, each possible one at least once if there are enough of them.

    Faults overlap, but nothing happens to a target while something still does, unless all are busy. `scale`: of all durations.
    """
    random = Random(seed)
    every = [
        (target, kind, most) for targets, kinds, _ in _kinds() for target in targets for kind, most in kinds.items()
    ]
    random.shuffle(every)
    firsts = {Fault(0.0, target, kind, 0.0).name: (target, kind, most) for target, kind, most in every}
    chosen = [*firsts.values(), *(each for each in every if each not in firsts.values())][:count]
    random.shuffle(chosen)
    while len(chosen) < count:
        targets, kinds, _ = random.choices(_kinds(), [weight for _, _, weight in _kinds()])[0]
        kind = random.choice(list(kinds))
        chosen.append((random.choice(targets), kind, kinds[kind]))
    busy_until: dict[str, float] = {}
    plan = []
    for i in range(count):
        at_s = (i + random.random()) * seconds / count
        place = next((j for j in range(i, count) if busy_until.get(chosen[j][0], 0.0) <= at_s), None)
        if place is None:  # all that is left is for targets that are busy: something else, then
            free = [each for each in every if busy_until.get(each[0], 0.0) <= at_s]
            chosen[i] = random.choice(free or every)
        else:
            chosen[i], chosen[place] = chosen[place], chosen[i]
        target, kind, most = chosen[i]
        lasts_s = most * scale * (1.0 if kind.startswith("partition") else random.uniform(0.2, 1.0))
        busy_until[target] = max(at_s, busy_until.get(target, 0.0)) + lasts_s + 0.5
        plan.append(Fault(at_s, target, kind, lasts_s))
    return plan


def names_of_all() -> set[str]:
    """Every name that a fault can have."""
    return {
        Fault(0.0, target, kind, 0.0).name for targets, kinds, _ in _kinds() for target in targets for kind in kinds
    }


def _kinds() -> list[tuple[tuple[str, ...], dict[str, float], int]]:
    return [*_WEIGHTS, (("redis",), {"FLUSHALL": 0.0}, 1)]


def by_name(faults: list[Fault]) -> Iterator[tuple[str, int]]:
    """How many there were of each name, all names."""
    counts = dict.fromkeys(sorted(names_of_all()), 0)
    for fault in faults:
        counts[fault.name] += 1
    yield from counts.items()
