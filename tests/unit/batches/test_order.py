"""Do lines that begin alike come next to one another?"""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.batches.order import CUTS, prefix_key, ranks_of

# Texts made of few long blocks: many begin alike, over several cuts, and part in the middle of a block.
BLOCKS = st.lists(st.sampled_from(["a" * 70, "b" * 70, "a" * 69 + "c", "xyz"]), max_size=6).map("".join)


def shared_cut(a: str, b: str) -> int:
    """The last cut up to which both begin alike."""
    return max((cut for cut in CUTS if a[:cut] == b[:cut] and len(a) >= cut and len(b) >= cut), default=0)


@given(st.lists(BLOCKS, max_size=12))
def test_between_two_texts_that_share_a_beginning_stand_only_such_that_share_it_too(texts: list[str]) -> None:
    keys = [prefix_key("m", each) for each in texts]
    ranks = ranks_of(keys)
    assert sorted(ranks) == list(range(len(texts)))
    order = [text for _, text in sorted(zip(ranks, texts, strict=True))]
    for first in range(len(order)):
        for last in range(first + 1, len(order)):
            cut = shared_cut(order[first], order[last])
            assert all(shared_cut(a, b) >= cut for a, b in pairwise(order[first : last + 1]))


def test_texts_of_equal_beginnings_keep_their_order() -> None:
    assert ranks_of([prefix_key(None, text) for text in ("same", "same too", "short")]) == [0, 1, 2]


def test_models_come_before_texts() -> None:
    keys = [prefix_key(model, "a" * 500) for model in ("x", "y", "x", "y")]
    ranks = ranks_of(keys)
    assert abs(ranks[0] - ranks[2]) == abs(ranks[1] - ranks[3]) == 1


def test_a_key_is_short_however_long_the_text() -> None:
    assert len(prefix_key("m", "x" * 3_000_000)) == 4 * (1 + len(CUTS)) < 200
