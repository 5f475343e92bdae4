"""How much are others served before somebody's turn? By definition, and never more than waits."""

import math

from hypothesis import given
from hypothesis import strategies as st

from app.queue.standings import Standings

NAMES = [b"a", b"b", b"c", b"d", b"e"]
counters = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1e9))
weighted = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 100).map(float)), unique_by=lambda each: each[0])


@given(counters, weighted, st.floats(0.01, 100))
def test_who_was_served_ahead_waits_until_each_other_stands_where_it_does(
    known: dict[bytes, float], others: list[tuple[bytes, float]], per_token: float
) -> None:
    owed = Standings({"batch": known}, {}, per_token).owed("batch", NAMES, others)
    for name, tokens in zip(NAMES, owed, strict=True):
        at = known.get(name, 0.0)
        work = sum(weight * max(0.0, at - known.get(other, at)) for other, weight in others)
        assert math.isclose(tokens, work / per_token if name in known else 0.0, rel_tol=1e-6, abs_tol=1e-2)


def test_a_tier_is_owed_no_more_than_waits_in_it() -> None:
    far_behind = Standings({}, {"interactive": 0.0, "standard": 900.0, "batch": -1e9}, 0.5)
    owed = far_behind.owed_to_tiers({"interactive": 10**6, "standard": 0, "batch": 30})
    assert owed == {"interactive": 30, "standard": 900 * 16 / 0.5 + 30, "batch": 0}
