"""Does a signature say what Standard Webhooks says, and nothing else?"""

import base64
import hashlib
import hmac

import pytest

from app.webhooks.signing import SignatureInvalid, sign, verify

OLD, NEW, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))
BODY = b'{"a": "\xc3\xa4"}'
NOW = 1_700_000_000


def test_the_example_of_the_specification_has_its_signature() -> None:
    """From the reference libraries' tests."""
    headers = sign(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_headers_are_what_an_own_hmac_gives() -> None:
    headers = sign([OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    key = base64.b64decode(OLD.removeprefix("whsec_"))
    wanted = base64.b64encode(hmac.new(key, b"evt_1.%d." % NOW + BODY, hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": f"v1,{wanted}",
    }


def test_while_a_secret_is_rotated_either_one_verifies() -> None:
    headers = sign([NEW, OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    for secrets in ([OLD], [NEW], [OTHER, OLD]):
        verify(secrets, headers, BODY, now=NOW)
    with pytest.raises(SignatureInvalid):
        verify([OTHER], headers, BODY, now=NOW)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_delivery_too_far_from_now_is_refused(seconds: int) -> None:
    headers = sign([OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    verify([OLD], headers, BODY, now=NOW + seconds - (1 if seconds > 0 else -1))
    with pytest.raises(SignatureInvalid, match="too far"):
        verify([OLD], headers, BODY, now=NOW + seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "evt_2"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "²"},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,äöü\udc80"},
        {"webhook-id": "\udc80"},
    ],
)
def test_a_changed_header_is_refused(change: dict[str, str]) -> None:
    headers = sign([OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    with pytest.raises(SignatureInvalid):
        verify([OLD], headers | change, BODY, now=NOW)


def test_a_signature_of_another_version_counts_for_nothing() -> None:
    headers = sign([OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    signature = headers["webhook-signature"].removeprefix("v1,")
    with pytest.raises(SignatureInvalid):
        verify([OLD], headers | {"webhook-signature": f"v1a,{signature}"}, BODY, now=NOW)
    verify([OLD], headers | {"webhook-signature": f"v1a,x v1,{signature}"}, BODY, now=NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    headers = sign([OLD], webhook_id="evt_1", timestamp=NOW, body=BODY)
    del headers[missing]
    with pytest.raises(SignatureInvalid, match=missing):
        verify([OLD], headers, BODY, now=NOW)


def test_a_changed_body_is_refused_and_the_case_of_names_is_free() -> None:
    headers = {name.title(): value for name, value in sign([OLD], webhook_id="e", timestamp=NOW, body=BODY).items()}
    verify([OLD], headers, BODY, now=NOW)
    with pytest.raises(SignatureInvalid):
        verify([OLD], headers, BODY + b" ", now=NOW)


def test_a_secret_that_isnt_base64_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="whsec_"):
        sign(["whsec_!"], webhook_id="e", timestamp=NOW, body=BODY)
