"""What does the OIDC provider say? Its documents, its keys, and an ID token for a code; each call bounded in time and size.

OpenID Connect Core 1.0 and Discovery 1.0; RFC 6749 with PKCE (RFC 7636) and the issuer in the answer (RFC 9207).
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc.jwk import KeySet

from app.clock import Clock
from app.operators.addresses import is_local
from app.operators.client import Client, CodeRefused, InvalidToken, ProviderFailed
from app.operators.flows import Secrets
from app.operators.id_tokens import ALGORITHMS, UnknownKey, check_id_token, signing_keys

KEEP_S = 600.0  # of its documents and keys
MAX_BYTES = 2**20
MOST_CALLS = 16  # at once, in one process


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What is used of the provider's discovery document; `until` by the monotonic clock."""

    authorization: str
    token: str
    keys: str
    algorithms: tuple[str, ...]
    auth_method: str
    names_itself: bool
    until: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's status and its JSON object, which is empty where it has none."""

    status: int
    document: dict[str, Any]


class Provider:
    """The provider, as one API process knows it."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self.client = client
        self._clock = clock
        self._endpoints: Endpoints | None = None
        self._keys: KeySet | None = None
        self._keys_until = 0.0
        self._calls = 0

    async def login_url(self, secrets: Secrets, *, redirect_uri: str) -> str:
        """Where to send the browser.

        Raises:
            ProviderFailed: its discovery document can't be had.
        """
        found = await self._discovered()
        return str(
            prepare_grant_uri(
                found.authorization,
                self.client.client_id,
                "code",
                redirect_uri=redirect_uri,
                scope=self.client.scopes,
                state=secrets.state,
                nonce=secrets.nonce,
                code_challenge=create_s256_code_challenge(secrets.verifier),
                code_challenge_method="S256",
            )
        )

    async def redeem(
        self, code: str, secrets: Secrets, *, redirect_uri: str, answered_as: str | None
    ) -> Mapping[str, Any]:
        """The claims of the ID token that the provider gives for the code, checked; `answered_as` is the issuer in its answer.

        Raises:
            ProviderFailed: it doesn't answer as it should.
            CodeRefused: it refuses the code.
            InvalidToken: its token isn't one for us, for this log-in and for now.
        """
        found = await self._discovered()
        if answered_as != self.client.issuer and (answered_as is not None or found.names_itself):
            raise CodeRefused("the answer came from another provider")
        given = await self._token(found, code, secrets, redirect_uri)
        id_token, access_token = given.get("id_token"), given.get("access_token")
        if not isinstance(id_token, str):
            raise ProviderFailed("the token endpoint gave no ID token: does the client have the scope openid?")
        for is_last in (False, True):
            keys = await self._signing_keys(found, anew=is_last)
            try:
                return check_id_token(
                    id_token,
                    keys,
                    algorithms=found.algorithms,
                    issuer=self.client.issuer,
                    client_id=self.client.client_id,
                    nonce=secrets.nonce,
                    access_token=access_token if isinstance(access_token, str) else None,
                    now=int(self._clock.now()),
                )
            except UnknownKey as error:  # its keys were changed since they were read
                if is_last:
                    raise InvalidToken("its key isn't among the provider's") from error
        raise AssertionError("unreachable")

    async def _token(self, found: Endpoints, code: str, secrets: Secrets, redirect_uri: str) -> dict[str, Any]:
        body = prepare_token_request(
            "authorization_code", redirect_uri=redirect_uri, code=code, code_verifier=secrets.verifier
        )
        client_id, client_secret = self.client.client_id, self.client.client_secret
        if found.auth_method == "client_secret_basic":  # RFC 6749, 2.3.1: both are encoded first
            client_id, client_secret = quote(client_id, safe=""), quote(client_secret, safe="")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        url, headers, body = ClientAuth(client_id, client_secret, found.auth_method).prepare(
            "POST", found.token, headers, body
        )
        answer = await self._ask("POST", url, headers=headers, body=body)
        if answer.status == 400 and answer.document.get("error") in {"invalid_grant", "invalid_request"}:
            raise CodeRefused("the provider takes this log-in's code no more")
        if answer.status != 200:
            raise ProviderFailed(f"the token endpoint answered {answer.status} {_word(answer.document.get('error'))}")
        return answer.document

    async def _discovered(self) -> Endpoints:
        if self._endpoints is None or self._clock.monotonic() >= self._endpoints.until:
            url = f"{self.client.issuer.rstrip('/')}/.well-known/openid-configuration"
            answer = await self._ask("GET", url)
            if answer.status != 200:
                raise ProviderFailed(f"the discovery document answered {answer.status}")
            self._endpoints = self._endpoints_of(answer.document)
        return self._endpoints

    def _endpoints_of(self, document: dict[str, Any]) -> Endpoints:
        if document.get("issuer") != self.client.issuer:
            raise ProviderFailed(
                "the discovery document is of another issuer than PENSTOCK_OIDC_ISSUER: compare letter by letter"
            )
        urls = [document.get(name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
        if not all(isinstance(url, str) and _is_safe(url, self.client.issuer) for url in urls):
            raise ProviderFailed("the discovery document lacks an endpoint, or has one that isn't https")
        signed_by = _listed(document, "id_token_signing_alg_values_supported") or ["RS256"]
        algorithms = tuple(each for each in ALGORITHMS if each in signed_by)
        if not algorithms:
            raise ProviderFailed(f"the provider signs by none of {', '.join(ALGORITHMS)}")
        methods = _listed(document, "token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if not {"client_secret_basic", "client_secret_post"} & set(methods):
            raise ProviderFailed(
                "the provider takes our secret neither by client_secret_basic nor by client_secret_post"
            )
        return Endpoints(
            authorization=str(urls[0]),
            token=str(urls[1]),
            keys=str(urls[2]),
            algorithms=algorithms,
            auth_method="client_secret_basic" if "client_secret_basic" in methods else "client_secret_post",
            names_itself=document.get("authorization_response_iss_parameter_supported") is True,
            until=self._clock.monotonic() + KEEP_S,
        )

    async def _signing_keys(self, found: Endpoints, *, anew: bool) -> KeySet:
        if self._keys is None or anew or self._clock.monotonic() >= self._keys_until:
            answer = await self._ask("GET", found.keys)
            keys = signing_keys(answer.document)
            if answer.status != 200 or not keys:
                raise ProviderFailed(f"the provider's keys answered {answer.status}, with none that could have signed")
            self._keys, self._keys_until = keys, self._clock.monotonic() + KEEP_S
        return self._keys

    async def _ask(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: str | None = None
    ) -> Answer:
        """A JSON object. No redirect is followed: a secret goes where the discovery document says, or nowhere."""
        if self._calls >= MOST_CALLS:
            raise ProviderFailed("too many calls to the provider are under way")
        self._calls += 1
        try:
            async with asyncio.timeout(self.client.timeout_s):
                trusted = await asyncio.to_thread(_trusted)
                return await _fetch(trusted, method, url, {"Accept": "application/json", **(headers or {})}, body)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise ProviderFailed(f"{type(error).__name__} from {urlsplit(url).netloc}") from error
        finally:
            self._calls -= 1


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed: reads files, once."""
    return httpx.create_ssl_context()


async def _fetch(
    trusted: ssl.SSLContext, method: str, url: str, headers: Mapping[str, str], body: str | None
) -> Answer:
    async with (
        httpx.AsyncClient(verify=trusted, timeout=None) as client,  # noqa: S113 - the caller's limit holds for the whole call
        client.stream(method, url, headers=dict(headers), content=body) as answer,
    ):
        text = bytearray()
        async for chunk in answer.aiter_bytes():
            text += chunk
            if len(text) > MAX_BYTES:
                raise ProviderFailed(f"{urlsplit(url).netloc} sent more than {MAX_BYTES} bytes")
    try:
        document = json.loads(bytes(text))
    except (ValueError, RecursionError):
        document = None
    return Answer(answer.status_code, document if isinstance(document, dict) else {})


def _listed(document: Mapping[str, Any], name: str) -> list[str]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ProviderFailed(f"the discovery document's {name} isn't a list of texts")
    return found


def _is_safe(url: str, issuer: str) -> bool:
    """Https; http on this machine only where the issuer is there, too."""
    try:
        parts, home = urlsplit(url), urlsplit(issuer)
        host = parts.hostname or ""
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == home.scheme == "http" and is_local(host))


def _word(error: object) -> str:
    """An error code of the provider's, if it is one: nothing else of its text is repeated."""
    return error if isinstance(error, str) and error.isascii() and error.isidentifier() and len(error) < 50 else ""
