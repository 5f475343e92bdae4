"""Are lists the same for people and for what reads on, with one format of times?"""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.cli.tables import print_table, shown_time

AT = datetime(2026, 3, 10, 12, 0, 7, tzinfo=UTC)


def test_a_pipe_gets_the_header_and_whole_cells_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        ("job", "died", "why"), [("job_1", AT, "a\tb\nc \x1b[31m" + "x" * 300), ("job_2", None, 7)], nothing="none"
    )
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["job", "died", "why"]
    assert first.split("\t") == ["job_1", "2026-03-10 12:00:07Z", "a b c \ufffd[31m" + "x" * 300]
    assert second.split("\t") == ["job_2", "-", "7"]


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    print_table(("job", "status", "tokens"), [("job_1", "dead", 12)], nothing="none", right=("tokens",), styles=["red"])
    out = capsys.readouterr().out
    assert "\t" not in out
    assert "\x1b[31mdead" in out
    assert "job_1" in out


def test_an_empty_list_says_so_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("job",), [], nothing="no jobs")
    assert capsys.readouterr() == ("", "no jobs\n")


@pytest.mark.parametrize(
    "at", [AT, AT.astimezone(timezone(timedelta(hours=9))), AT.isoformat(), "2026-03-10T12:00:07Z", AT.timestamp()]
)
def test_a_time_is_written_one_way_wherever_it_comes_from(at: datetime | str | float) -> None:
    assert shown_time(at) == "2026-03-10 12:00:07Z"
    assert shown_time(None, "never") == "never"
