"""Is a wrong filter told beside its field, on every list alike, with what was typed kept and nothing shown that wasn't asked for?"""

import re
from html import unescape

from tests.support.dashboard import Browser
from tests.support.world import World

LONG = "x" * 301
WRONG = [
    *[("/jobs", name, value) for name, value in (
        ("status", "nonsense"), ("tier", "fast"), ("after", "soon"), ("before", "9999-12-31T23:59"), ("metadata", "x"), ("id", "zzz"),
        ("since", "2y"), ("tenant", LONG), ("model", "a\x00b"),
    )],
    ("/dead-letters", "reason", LONG), ("/dead-letters/all", "state", "x"), ("/dead-letters/all", "pool", "\x00"),
    ("/webhooks", "state", "x"), ("/webhooks", "tenant", LONG), ("/webhooks/deliveries", "job", "1"),
    ("/webhooks/deliveries", "endpoint", "<b>"), ("/webhooks/deliveries", "status", "x"), ("/batches", "status", "x"),
    ("/audit", "since", "2y"), ("/audit", "before", "x"), ("/audit", "actor", LONG), ("/tenants", "state", "x"), ("/tenants", "q", "\x00"),
]  # fmt: skip
CURSORS = (
    "/jobs?cursor=x", "/dead-letters/all?cursor=1~2~3", "/webhooks?cursor=x", "/webhooks/deliveries?cursor=x", "/batches?cursor=x",
    "/workers?cursor=x", "/audit?cursor=-1", "/tenants?cursor=A", "/jobs?cursor=%00",
)  # fmt: skip


def control(page: str, name: str) -> str:
    """The element of a form that has this name; of a choice with its options."""
    found = re.search(rf'<input [^>]*name="{name}"[^>]*>|<select [^>]*name="{name}"[^>]*>.*?</select>', page)
    assert found, name
    return found[0]


def chosen(page: str, name: str) -> str:
    """What a form says in this field."""
    element = control(page, name)
    found = re.search(
        r'<option value="([^"]*)" selected>' if element.startswith("<select") else r'value="([^"]*)"', element
    )
    assert found, name
    return unescape(found[1])


def alert_of(page: str, name: str) -> str:
    """What is said beside this field, and heard with it."""
    element = control(page, name)
    assert 'aria-invalid="true"' in element
    at = re.search(r'aria-describedby="([^"]+)"', element)
    assert at, name
    found = re.search(rf'id="{at[1]}" role="alert">([^<]+)<', page)
    assert found, name
    return unescape(found[1])


async def test_a_wrong_filter_is_told_beside_its_field_and_stays_as_it_was_typed(world: World, viewer: Browser) -> None:
    for path, name, value in WRONG:
        answer = await viewer.get(f"/admin{path}", params={name: value})
        asked = f"{path} {name}"
        assert answer.status_code == 422, asked
        assert alert_of(answer.text, name).startswith("Must "), asked
        assert chosen(answer.text, name) == value.replace("\x00", "\ufffd"), asked
        assert answer.text.count('role="alert"') == 1, asked
        assert "Nothing was looked for" in answer.text, asked
        assert "<tbody>" not in answer.text, asked


async def test_each_wrong_field_is_told_and_the_right_ones_are_kept(world: World, viewer: Browser) -> None:
    wanted = {"tenant": "acme", "tier": "fast", "status": "queued", "after": "soon"}
    page = (await viewer.get("/admin/jobs", params=wanted)).text
    assert "interactive" in alert_of(page, "tier")
    assert "in UTC" in alert_of(page, "after")
    assert {name: chosen(page, name) for name in wanted} == wanted
    assert "aria-invalid" not in control(page, "tenant") + control(page, "status")


async def test_a_cursor_that_no_page_has_given_leads_to_the_first_page(world: World, viewer: Browser) -> None:
    for path in CURSORS:
        answer = await viewer.get(f"/admin{path}")
        assert answer.status_code == 422, path
        assert 'role="alert"' in answer.text, path
        assert f'href="/admin{path.partition("?")[0]}">First page' in answer.text, path
