"""Is this ID token the provider's, for us, for this log-in, and for now? OpenID Connect Core 1.0, 3.1.3.7."""

from collections.abc import Collection, Mapping
from typing import Any

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet, import_key

from app.operators.client import InvalidToken

# By public keys only. HMAC would make the public key a secret that everybody knows; `none` is no signature.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA",
)  # fmt: skip
LEEWAY_S = 60  # by which the clocks may differ
MAX_SUBJECT_CHARS = 255


class UnknownKey(Exception):
    """It was signed with a key that isn't among those that we know: they may have been changed since."""


def signing_keys(document: Mapping[str, Any]) -> KeySet | None:
    """The public keys of a JWKS document (RFC 7517) that may sign; those that aren't understood are left out. None: there is none."""
    listed = document.get("keys")
    found: list[Key] = []
    for each in listed if isinstance(listed, list) else ():
        if not isinstance(each, dict) or each.get("kty") == "oct" or each.get("use", "sig") != "sig":
            continue
        try:
            found.append(import_key(each))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    return KeySet(found) if found else None


def check_id_token(
    token: str,
    keys: KeySet,
    *,
    algorithms: Collection[str],
    issuer: str,
    client_id: str,
    nonce: str,
    access_token: str | None,
    now: int,
) -> Mapping[str, Any]:
    """The token's claims; `sub` among them is a text that can be stored. `now` is in seconds since the epoch.

    Raises:
        UnknownKey: none of the keys has its `kid`: they may have been changed.
        InvalidToken: anything else is wrong with it.
    """
    allowed = [each for each in algorithms if each in ALGORITHMS]
    try:
        signed = jwt.decode(token, keys, algorithms=allowed)
    except InvalidKeyIdError as error:
        raise UnknownKey from error
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidToken(f"its signature isn't the provider's: {type(error).__name__}") from error
    claims = CodeIDToken(
        signed.claims,
        signed.header,
        options={
            "iss": {"essential": True, "value": issuer},
            "aud": {"essential": True, "value": client_id},
        },
        params={"nonce": nonce, "client_id": client_id, "access_token": access_token},
    )
    try:
        claims.validate(now=now, leeway=LEEWAY_S)
    except (JoseError, ValueError, TypeError, AttributeError) as error:
        raise InvalidToken(f"a claim is wrong: {type(error).__name__} {getattr(error, 'claim', '')}".strip()) from error
    subject = claims["sub"]
    if not 0 < len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise InvalidToken("sub isn't a plain text of at most 255 characters")
    return dict(claims)
