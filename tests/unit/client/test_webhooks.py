"""Does the client's own verification take what the sender signs, and nothing else?"""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client import SignatureInvalid, verify_webhook
from app.webhooks.signing import sign

NOW = 1_700_000_000
EVENT = {
    "id": "evt_1",
    "object": "event",
    "type": "job.succeeded",
    "created_at": "2026-01-31T12:00:00Z",
    "data": {"id": "job_1"},
}
BODY = json.dumps(EVENT).encode()


def secret(byte: int) -> str:
    return "whsec_" + base64.b64encode(bytes([byte]) * 32).decode()


def signed(*secrets: str, at: int = NOW, body: bytes = BODY) -> dict[str, str]:
    return sign(secrets, webhook_id="msg_1", timestamp=at, body=body)


def test_what_was_signed_is_taken_and_read() -> None:
    assert verify_webhook(secret(1), signed(secret(1)), BODY, now=NOW) == EVENT
    upper = {name.title(): value for name, value in signed(secret(1)).items()}
    assert verify_webhook(secret(1), upper, BODY, now=NOW) == EVENT


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([1], [1, 2]), ([2], [1, 2]), ([1, 2], [1]), ([1, 2], [2]), ([2, 3], [1, 2])],
)
def test_while_a_secret_is_rotated_any_of_each_side_is_enough(ours: list[int], theirs: list[int]) -> None:
    verify_webhook([secret(each) for each in ours], signed(*map(secret, theirs)), BODY, now=NOW)


@given(
    ours=st.sets(st.integers(1, 5), min_size=1, max_size=3),
    theirs=st.sets(st.integers(1, 5), min_size=1, max_size=3),
    age=st.integers(-1000, 1000),
    flipped=st.none() | st.integers(0, len(BODY) - 1),
)
def test_it_is_taken_exactly_if_a_secret_the_time_and_each_byte_are_right(
    ours: set[int], theirs: set[int], age: int, flipped: int | None
) -> None:
    headers = signed(*[secret(each) for each in sorted(theirs)], at=NOW - age)
    body = bytearray(BODY)
    if flipped is not None:
        body[flipped] ^= 1
    is_good = bool(ours & theirs) and abs(age) <= 300 and flipped is None
    try:
        verify_webhook([secret(each) for each in sorted(ours)], headers, bytes(body), now=NOW)
    except SignatureInvalid:
        assert not is_good
    else:
        assert is_good


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("webhook-signature", None, "webhook-signature is missing"),
        ("webhook-id", None, "webhook-id is missing"),
        ("webhook-timestamp", None, "webhook-timestamp is missing"),
        ("webhook-id", "msg_2", "no signature fits"),
        ("webhook-timestamp", "soon", "isn't a number"),
        ("webhook-timestamp", "١٧", "isn't a number"),
        ("webhook-timestamp", str(NOW + 1), "no signature fits"),
        ("webhook-signature", "", "no signature fits"),
        ("webhook-signature", "v1,", "no signature fits"),
        ("webhook-signature", "v1a,AAAA v2,BBBB \ud800", "no signature fits"),
    ],
)
def test_what_is_wrong_is_said(name: str, value: str | None, said: str) -> None:
    headers = signed(secret(1))
    if value is None:
        del headers[name]
    else:
        headers[name] = value
    with pytest.raises(SignatureInvalid, match=said):
        verify_webhook(secret(1), headers, BODY, now=NOW)


def test_another_version_with_the_right_digest_is_not_taken() -> None:
    headers = signed(secret(1))
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1,", "v1a,")
    with pytest.raises(SignatureInvalid):
        verify_webhook(secret(1), headers, BODY, now=NOW)


def test_tolerance_is_the_callers_and_the_clock_is_the_machines_by_default() -> None:
    headers = signed(secret(1), at=NOW - 301)
    verify_webhook(secret(1), headers, BODY, now=NOW, tolerance_s=301)
    with pytest.raises(SignatureInvalid, match="more than 300 s"):
        verify_webhook(secret(1), headers, BODY)


@pytest.mark.parametrize("bad", ["", "whsec_", "whsec_not base64!", []])
def test_a_secret_that_is_none_verifies_nothing(bad: str | list[str]) -> None:
    with pytest.raises(ValueError, match="secret"):
        verify_webhook(bad, signed(secret(1)), BODY, now=NOW)
