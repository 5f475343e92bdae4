"""Is the command that is kept packed the one that Redis is to get, whatever came and went?"""

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from app.streams.xread import Wanted

KEYS = st.sampled_from([b"ev:a", b"ev:bb", b"ev:ccc", b"wake"])
STEPS = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 10**6).map(lambda n: b"%d-7" % n)), max_size=20)


@given(STEPS, st.integers(1, 1000), st.integers(0, 5000))
def test_each_stream_is_asked_for_from_where_it_was_read_last(
    steps: list[tuple[bytes, bytes | None]], count: int, block_ms: int
) -> None:
    wanted, expected = Wanted(), dict[bytes, bytes]()
    for key, entry_id in steps:
        if entry_id is None:
            wanted.drop(key)
            expected.pop(key, None)
        else:
            wanted.ask(key, entry_id)
            expected[key] = entry_id
    reader = hiredis.Reader()
    reader.feed(wanted.command(count=count, block_ms=block_ms))
    words = reader.gets()
    options = [b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % block_ms, b"STREAMS"]
    assert words[:6] == options
    half = (len(words) - 6) // 2
    assert dict(zip(words[6 : 6 + half], words[6 + half :], strict=True)) == expected
    assert len(wanted) == half == len(expected)
