"""Which ID tokens prove who somebody is? The provider's, for us, for this log-in, for now; and no others."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import KeySet

from app.operators.client import InvalidToken
from app.operators.id_tokens import ALGORITHMS, UnknownKey, check_id_token, signing_keys
from app.operators.identities import role_of
from tests.support.oidc import (
    CLIENT_ID,
    FORGERIES,
    ec_key,
    rsa_key,
    signed_with_the_public_key,
    unsigned,
)

ISSUER, NONCE, NOW = "https://id.test/realms/ops", "n-1", 1_800_000_000
KEY = ec_key("first")
KNOWN = KeySet([KEY, rsa_key()])
RIGHT = {"iss": ISSUER, "aud": CLIENT_ID, "sub": "u-1", "iat": NOW, "exp": NOW + 300, "nonce": NONCE}
LIES: list[dict[str, Any]] = [
    {"nonce": "another"}, {"nonce": None}, {"nonce": 1}, {"aud": "another", "azp": CLIENT_ID}, {"aud": "another"}, {"aud": None}, {"aud": []}, {"aud": [CLIENT_ID, 7]},
    {"aud": [CLIENT_ID, "another"]}, {"aud": [CLIENT_ID, "another"], "azp": "another"}, {"azp": "another"}, {"azp": 7},
    {"iss": "https://evil.test"}, {"iss": f"{ISSUER}/"}, {"iss": None}, {"iss": [ISSUER]},
    {"exp": NOW - 61}, {"exp": None}, {"exp": "never"}, {"exp": True}, {"iat": NOW + 61}, {"iat": None}, {"nbf": NOW + 61},
    {"sub": ""}, {"sub": None}, {"sub": 7}, {"sub": "x" * 256}, {"sub": "a\x00b"}, {"sub": "\ud800"},
    {"at_hash": "wrong"}, {"at_hash": 7},
]  # fmt: skip


def signed(claims: dict[str, Any], key: Any = KEY, alg: str = "ES256") -> str:
    left = {name: value for name, value in claims.items() if value is not None}
    return jws.serialize_compact({"alg": alg, "kid": key.kid}, json.dumps(left), key, [alg])


def check(token: str, keys: KeySet = KNOWN, **changed: Any) -> Any:
    wanted = {
        "algorithms": ALGORITHMS, "issuer": ISSUER, "client_id": CLIENT_ID, "nonce": NONCE, "access_token": "a", "now": NOW,
    }  # fmt: skip
    return check_id_token(token, keys, **(wanted | changed))


@pytest.mark.parametrize(
    "more",
    [{}, {"aud": [CLIENT_ID]}, {"aud": [CLIENT_ID, "x"], "azp": CLIENT_ID}, {"exp": NOW - 59}, {"iat": NOW + 59}],
    ids=str,
)
def test_a_right_token_proves_its_subject(more: dict[str, Any]) -> None:
    assert check(signed(RIGHT | more))["sub"] == "u-1"
    assert check(signed(RIGHT | more, rsa_key(), "PS256"))["sub"] == "u-1"


@pytest.mark.parametrize(
    "lie", LIES, ids=lambda lie: ",".join(f"{name}={str(told)[:12]!a}" for name, told in lie.items())
)
def test_a_token_with_a_wrong_claim_proves_nothing(lie: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        check(signed(RIGHT | lie))


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_token_that_the_provider_did_not_sign_proves_nothing(forge: Callable[[dict[str, Any]], str]) -> None:
    with pytest.raises((InvalidToken, UnknownKey)):
        check(forge(RIGHT))


@pytest.mark.parametrize("forge", [unsigned, signed_with_the_public_key])
def test_no_provider_can_say_that_it_signs_by_secrets_or_not_at_all(forge: Callable[[dict[str, Any]], str]) -> None:
    with pytest.raises(InvalidToken):
        check(forge(RIGHT), algorithms=["none", "HS256", "RS256"])


def test_an_algorithm_that_the_provider_does_not_use_is_none_of_its_own() -> None:
    with pytest.raises(InvalidToken):
        check(signed(RIGHT), algorithms=["RS256"])


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "é.é.é", "." * 5, "[" * 100_000, f"{'W' * 90_000}.e30.x"])
def test_what_is_no_token_proves_nothing(token: str) -> None:
    with pytest.raises(InvalidToken):
        check(token)


def test_claims_that_are_no_object_prove_nothing() -> None:
    for claims in ("[1]", "7", "[" * 50_000):
        with pytest.raises(InvalidToken):
            check(jws.serialize_compact({"alg": "ES256", "kid": "first"}, claims, KEY))


def test_a_key_that_is_not_known_is_told_from_a_wrong_signature() -> None:
    with pytest.raises(UnknownKey):
        check(signed(RIGHT, ec_key("second")))


def test_of_keys_only_those_that_sign_in_public_are_taken() -> None:
    good = KEY.as_dict(private=False)
    odd: list[Any] = [
        {"kty": "PQ", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s"},
        {"kty": "EC"},
        {"kty": 7},
        7,
        None,
    ]
    encrypting = ec_key("e").as_dict(private=False) | {"use": "enc"}
    found = signing_keys(json.loads(json.dumps({"keys": [*odd, encrypting, good]})))
    assert found is not None
    assert [each.kid for each in found] == ["first"]
    for nothing in ({}, {"keys": 7}, {"keys": odd}, {"keys": [encrypting]}):
        assert signing_keys(nothing) is None


def test_groups_are_found_by_name_and_by_path() -> None:
    roles: Any = {"admins": "owner", "sre": "operator", "staff": "viewer"}
    claims = {"realm_access": {"roles": ["staff"]}, "https://x.test/groups": ["staff", "admins", "sre"], "one": "sre"}
    assert role_of(claims, claim="realm_access.roles", roles=roles) == "viewer"
    assert role_of(claims, claim="https://x.test/groups", roles=roles) == "owner"
    assert role_of(claims, claim="one", roles=roles) == "operator"
    assert role_of(claims, claim="realm_access.roles.x", roles=roles) is None
    for groups in (None, [], ["coffee"], "coffee", [["sre"]], {"sre": 1}, 7):
        assert role_of({"groups": groups}, claim="groups", roles=roles) is None
