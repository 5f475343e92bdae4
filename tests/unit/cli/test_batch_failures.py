"""Is it told in few words why lines of a batch failed, however many there are and whatever they are called?"""

import json
from typing import Any

from app.cli.batch_failures import MAX_ID_CHARS, MAX_MESSAGE_CHARS, MOST_CODES, Failures


def answered(custom_id: str, code: str, message: str = "so") -> dict[str, Any]:
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return {"custom_id": custom_id, "response": {"status_code": 500, "body": body}, "error": None}


def told(lines: list[dict[str, Any]], piece: int = 7) -> list[str]:
    content, failures = b"".join(json.dumps(each).encode() + b"\n" for each in lines), Failures()
    for start in range(0, len(content), piece):
        failures.feed(content[start : start + piece])
    return list(failures.told())


def test_the_most_frequent_comes_first_and_names_its_first_lines() -> None:
    lost = {"custom_id": "z", "response": None, "error": {"code": "batch_expired", "message": "too late"}}
    lines = [answered("a", "grammar_invalid", "bad"), lost, *(answered(f"l{n}", "out_of_memory") for n in range(4))]
    assert told(lines) == [
        "4 x out_of_memory (l0, l1, l2, …): so",
        "1 x grammar_invalid (a): bad",
        "1 x batch_expired (z): too late",
    ]


def test_many_codes_and_long_or_odd_words_take_few_lines_of_bounded_length() -> None:
    found = told([answered("\x1b[2J" + "i" * 500, f"code{n}", "m\n" * 500) for n in range(30)], piece=1000)
    assert len(found) == MOST_CODES + 1
    assert found[-1] == f"{30 - MOST_CODES} with {30 - MOST_CODES} other codes"
    assert all(len(each) < MAX_ID_CHARS + MAX_MESSAGE_CHARS + 40 and each.isprintable() for each in found)
