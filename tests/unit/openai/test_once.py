"""Is each character, token and end of a choice told once, however often an attempt begins anew and however it is cut?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.once import Once, OtherText

TEXT = "Once upon a time"
IDS = [ord(letter) for letter in TEXT]


class Told:
    """What a reader has been told."""

    def __init__(self, *, minds_tokens: bool = True) -> None:
        self.once = Once(minds_tokens=minds_tokens)
        self.text, self.ids, self.reasons = "", list[int](), list[str]()

    def take(self, text: str, ids: list[int], reason: str | None = None) -> None:
        news = self.once.take(text, ids, reason)
        self.text += news.text
        self.ids += ids[news.known_tokens :]
        if news.reason:
            self.reasons.append(news.reason)


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=4), st.integers(1, 5))
def test_it_is_told_once_whatever_is_lost(lost: list[list[int]], step: int) -> None:
    told = Told()
    for run in [*lost, [step] * len(TEXT)]:
        told.once.again()
        at = 0
        for size in run:
            end = min(at + size, len(TEXT))
            told.take(TEXT[at:end], IDS[at:end], "stop" if at < end == len(TEXT) else None)
            at = end
    assert (told.text, told.ids, told.reasons) == (TEXT, IDS, ["stop"])


def test_text_may_lag_behind_its_tokens() -> None:
    told = Told()
    told.take("", [1])
    told.take("ü", [2])
    told.once.again()
    told.take("ü", [1, 2])
    told.take("x", [3], "length")
    assert (told.text, told.ids, told.reasons) == ("üx", [1, 2, 3], ["length"])


@pytest.mark.parametrize(
    ("text", "ids", "reason"),
    [("Twice", [1, 2], None), ("Once", [1, 3], None), ("On", [1], "stop"), ("Once upon", [1, 2, 3], None)],
)
def test_another_run_with_something_else_cant_be_told(text: str, ids: list[int], reason: str | None) -> None:
    told = Told()
    told.take("Once", [1, 2], "stop")
    told.once.again()
    with pytest.raises(OtherText):
        told.take(text, ids, reason)


def test_whoever_sees_no_tokens_minds_none() -> None:
    told = Told(minds_tokens=False)
    told.take("Once", [1, 2])
    told.once.again()
    told.take("Once upon", [3, 4, 5])
    assert told.text == "Once upon"
