"""Is each line found where it is, whatever pieces its bytes come in, and each error told with its line?"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batches.parsing import MAX_ERRORS, BatchReader, LineError
from app.settings import Settings
from tests.support.batches import CHAT, chat_line, jsonl

SETTINGS = Settings(_env_file=None)


def read(content: bytes, sizes: list[int] | None = None, settings: Settings = SETTINGS) -> BatchReader:
    reader, at = BatchReader(CHAT, settings), 0
    for size in sizes or []:
        reader.feed(content[at : at + size])
        at += size
    reader.feed(content[at:])
    reader.close()
    return reader


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=20).filter(lambda text: "\x00" not in text), st.booleans()), max_size=8),
    st.lists(st.integers(0, 200), max_size=20),
    st.booleans(),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
)  # fmt: skip
def test_lines_are_found_in_pieces_of_any_size(
    given_lines: list[tuple[str, bool]], sizes: list[int], ends: bool, mark: bytes
) -> None:
    content, wanted = mark, []
    for place, (words, is_empty) in enumerate(given_lines):
        if is_empty:
            content += b"\r\n"
        line = json.dumps(chat_line(f"{place} {words}", words), ensure_ascii=place % 2 == 0).encode()
        wanted.append((len(content), len(line), f"{place} {words}"))
        content += line + b"\n"
    if not ends:
        content = content.removesuffix(b"\n")
    reader = read(content, sizes)
    assert [(each.start, each.length, each.custom_id) for each in reader.lines] == wanted
    assert reader.num_errors == (0 if wanted else 1)


def codes(content: bytes, settings: Settings = SETTINGS) -> list[tuple[int | None, str]]:
    return [(each["line"], each["code"]) for each in read(content, settings=settings).documents()]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"[]", "invalid_json_line"),
        (b"\xff\xfe", "invalid_json_line"),
        (b'{"custom_id": "a"', "invalid_json_line"),
        (jsonl([chat_line("a") | {"extra": 1}]), "unknown_parameter"),
        (jsonl([chat_line("a") | {"method": "GET"}]), "invalid_method"),
        (jsonl([chat_line("a") | {"url": "/v1/completions"}]), "mismatched_endpoint"),
        (jsonl([chat_line("a") | {"body": []}]), "invalid_type"),
        (jsonl([chat_line("a") | {"custom_id": 7}]), "invalid_custom_id"),
        (jsonl([chat_line("x" * 513)]), "invalid_custom_id"),
        (jsonl([chat_line("a\x00")]), "invalid_custom_id"),
        (jsonl([chat_line("a", stream=True)]), "invalid_request"),
        (jsonl([chat_line("a", n=17)]), "invalid_request"),
        (jsonl([chat_line("a", messages=[])]), "invalid_request"),
        (jsonl([chat_line("a", colour="red")]), "invalid_request"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line_is_told_by_code(line: bytes, code: str) -> None:
    assert codes(jsonl([chat_line("good")]) + line) == [(2, code)]


def test_a_limit_that_is_a_setting_is_told_by_the_lines_own_name_of_the_field() -> None:
    schema: dict[str, object] = {}
    for _ in range(40):
        schema = {"items": schema}
    body = {"input": "a", "text": {"format": {"type": "json_schema", "name": "deep", "schema": schema}}}
    reader = BatchReader("/v1/responses", SETTINGS)
    reader.feed(jsonl([{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}]))
    reader.close()
    (error,) = reader.documents()
    assert error["param"] == "text.format.schema"
    assert error["message"].startswith("text.format.schema: must be nested at most")


def test_a_thousand_errors_are_counted_and_a_hundred_told() -> None:
    found = read(b"x\n" * 1000).documents()
    assert len(found) == MAX_ERRORS + 1
    assert found[-1]["code"] == "more_errors"
    assert "900 more" in found[-1]["message"]


def test_errors_that_others_find_are_told_in_their_place_and_the_first_hundred_of_all_are_told() -> None:
    reader = read(b"".join(b"x\n" if n % 2 else jsonl([chat_line(str(n))]) for n in range(180)))
    reader.add_errors([LineError("model_not_found", "m", line.number, "model") for line in reader.lines])
    found = reader.documents()
    assert [each["line"] for each in found] == [*range(1, MAX_ERRORS + 1), None]
    assert [each["code"] for each in found[:3]] == ["model_not_found", "invalid_json_line", "model_not_found"]
    assert "80 more" in found[-1]["message"]


def test_lines_are_counted_up_to_the_limit() -> None:
    settings = SETTINGS.model_copy(update={"max_batch_lines": 3})
    assert codes(jsonl([chat_line(str(n)) for n in range(3)]), settings) == []
    assert codes(jsonl([chat_line(str(n)) for n in range(9)]), settings) == [(4, "too_many_lines")]


def test_a_line_without_an_end_is_not_kept() -> None:
    settings = SETTINGS.model_copy(update={"max_body_bytes": 1024})
    reader = BatchReader(CHAT, settings)
    for _ in range(1000):
        reader.feed(b"x" * 100)
    assert [each["code"] for each in reader.documents()] == ["line_too_long"]
    assert len(reader._rest) < 1200
