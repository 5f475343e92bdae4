"""How does a receiver know that a delivery is ours and fresh? Standard Webhooks, symmetric signatures.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence

from app.errors import PenstockError

SECRET_PREFIX = "whsec_"  # noqa: S105  a prefix, not a secret
TOLERANCE_S = 300.0


class SignatureInvalid(PenstockError):
    """A delivery that wasn't signed with any of the secrets, or too long ago."""

    code = "webhook_signature_invalid"
    status = 401
    retryable = False


def sign(secrets: Sequence[str], *, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a try. While a secret is rotated there are several, and a signature by each.

    Raises:
        ValueError: a secret isn't `whsec_` and base64.
    """
    assert secrets
    assert "." not in webhook_id
    signed = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets),
    }


def verify(
    secrets: Sequence[str], headers: Mapping[str, str], body: bytes, *, now: float, tolerance_s: float = TOLERANCE_S
) -> None:
    """Accept a delivery that any of the secrets signed less than `tolerance_s` from `now` (seconds since the epoch).

    Raises:
        SignatureInvalid: the message says what is wrong.
        ValueError: a secret isn't `whsec_` and base64.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, stamp, signatures = (
            given[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        )
    except KeyError as missing:
        raise SignatureInvalid(f"the header {missing} is missing") from None
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise SignatureInvalid("webhook-timestamp isn't a number of seconds")
    if abs(now - int(stamp)) > tolerance_s:
        raise SignatureInvalid("webhook-timestamp is too far from now: an old delivery, or a clock that is wrong")
    signed = b".".join((webhook_id.encode("utf-8", "replace"), stamp.encode(), body))
    wanted = [_signature(secret, signed).encode() for secret in secrets]
    for version, _, signature in (each.partition(",") for each in signatures.split()):
        if version == "v1" and any(hmac.compare_digest(signature.encode("utf-8", "replace"), each) for each in wanted):
            return
    raise SignatureInvalid("no signature fits: another secret, or the body was changed")


def _signature(secret: str, signed: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret is whsec_ followed by base64") from None
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
