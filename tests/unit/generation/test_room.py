"""Is whoever waits for room told of every step that may have made some?"""

from hypothesis import example, given
from hypothesis import strategies as st

from workers.engine.protocol import EngineStats, TierLoad
from workers.generation.outputs import _may_have_room

_LOADS = st.dictionaries(st.integers(0, 3), st.builds(TierLoad, st.integers(0, 4), st.integers(0, 50)), max_size=4)
_STATS = st.builds(
    EngineStats,
    token_capacity=st.sampled_from([0, 100, 120]),
    sequence_capacity=st.integers(0, 8),
    kv_blocks_total=st.sampled_from([0, 10]),
    load=_LOADS,
)


def stats(**load: tuple[int, int]) -> EngineStats:
    """An engine with room for 8 sequences and 100 tokens, and what it holds by priority (`p0=(sequences, tokens)`)."""
    return EngineStats(
        token_capacity=100, sequence_capacity=8, load={int(name[1:]): TierLoad(*held) for name, held in load.items()}
    )


@given(before=_STATS, after=_STATS)
@example(before=stats(p0=(1, 30), p2=(1, 10)), after=stats(p2=(1, 40)))  # the urgent one went, another grew by as much
def test_a_step_that_made_room_at_any_priority_is_told(before: EngineStats, after: EngineStats) -> None:
    if any(after.room_for(priority) > before.room_for(priority) for priority in range(4)):
        assert _may_have_room(before, after)


def test_a_step_that_only_grew_what_it_has_is_not() -> None:
    assert not _may_have_room(stats(p0=(2, 30), p2=(1, 10)), stats(p0=(2, 32), p2=(1, 11)))
    assert not _may_have_room(stats(p0=(2, 30)), stats(p0=(2, 30), p1=(1, 5)))
