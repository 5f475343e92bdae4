"""Is a URL's part of a list read strictly, and written so that the next page is the same list?"""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from starlette.requests import Request

from app.dashboard.listing import id_end_of, listing_of, one_of, pairs_of, time_of, uuid_of
from app.dashboard.words import brief, pretty, sentence, short_id, without_query
from app.errors import InvalidRequest


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_filters_that_are_empty_are_none_and_the_next_page_keeps_the_others() -> None:
    listing = listing_of(request("tenant=a%26b&status=&x=1&cursor=abc"), "/admin/jobs", ("tenant", "status"))
    assert (listing.get("tenant"), listing.get("status"), listing["status"], listing.cursor) == ("a&b", None, "", "abc")
    assert listing.url("next one") == "/admin/jobs?tenant=a%26b&cursor=next+one"
    assert listing.first == "/admin/jobs?tenant=a%26b"
    assert listing_of(request(""), "/admin/jobs", ("tenant",)).first is None


def test_what_is_wrong_is_noted_once_by_its_field_and_counts_as_any() -> None:
    listing = listing_of(request("status=gone&after=soon&tenant=" + "x" * 301), "/", ("status", "after", "tenant"))
    assert listing.read("status", one_of(("queued", "running"))) is None
    assert listing.read("after", time_of) is None
    assert (listing.get("tenant"), listing.get("status"), listing["status"]) == (None, None, "gone")
    assert listing.problems["status"] == "Must be one of queued, running"
    assert set(listing.problems) == {"status", "after", "tenant"}


@pytest.mark.parametrize(
    "given", ["job_" + "0a" * 16, "0a" * 16, "0A" * 16, str(UUID(hex="0a" * 16)), " wd_" + "0a" * 16 + " "]
)
def test_an_id_is_read_however_it_was_pasted(given: str) -> None:
    assert uuid_of(given, "id") == UUID(hex="0a" * 16)


@pytest.mark.parametrize("given", ["", "job_", "job_" + "0g" * 16, "0a" * 15, "x" * 32])
def test_what_is_no_id_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="id: must be"):
        uuid_of(given, "id")


def test_the_end_of_an_id_is_read_as_lists_show_it() -> None:
    for given in ("job_…3e4f5a6b", "…3e4f5a6b", " 3E4F5A6B ", "job_...3e4f5a6b"):
        assert id_end_of(given) == "3e4f5a6b", given
    for given in ("", "job_", "3e4f5a6", "3e4f5a6b7", "xe4f5a6b", "job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"):
        assert id_end_of(given) is None, given


def test_times_are_utc_unless_they_say_otherwise() -> None:
    def read(value: str) -> datetime | None:
        return listing_of(request(f"after={value}"), "/", ("after",)).read("after", time_of)

    assert read("2026-01-31T18:00") == datetime(2026, 1, 31, 18, tzinfo=UTC)
    assert read("2026-01-31T18:00:00%2B02:00") == datetime(2026, 1, 31, 16, tzinfo=UTC)
    assert read("") is None


def test_metadata_as_people_write_it() -> None:
    assert pairs_of("team=search, run = 7=8 ,", "metadata") == {"team": "search", "run": "7=8"}
    assert pairs_of(" , ", "metadata") is None
    for wrong in ("team", "=x"):
        with pytest.raises(InvalidRequest, match="metadata"):
            pairs_of(wrong, "metadata")


def test_words() -> None:
    assert short_id("job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b") == "job_…3e4f5a6b"
    assert short_id("tiny_1") == "tiny_1"
    assert short_id("acme/0197a1b2-c3d4-7e8f-9a0b-1c2d3e4f5a6b") == "acme/…3e4f5a6b", "whose it is"
    assert short_id("acme/pk_0197a1b2c3d4") == "acme/pk_0197a1b2c3d4"
    assert short_id("a-tenant-with-a-long-name") == "a-tenant-with-a-long-name"
    assert sentence("the GPU died") == "The GPU died"
    assert without_query("https://x.test/a?token=1#b") == "https://x.test/a?…"
    assert without_query("https://x.test/a") == "https://x.test/a"
    assert brief({"a": "x" * 500}).endswith("…")
    assert pretty({"log": "a\nb"}) == '{\n "log": "a\nb"\n}'
