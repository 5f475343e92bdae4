"""An OIDC provider for tests, over HTTP: it keeps the rules, unless a test tells it to lie."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import httpx
import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from app.settings import Settings

CLIENT_ID, CLIENT_SECRET = "penstock", "s3cret: with/odd+letters%"
Forge = Callable[[dict[str, Any]], str]


@lru_cache
def rsa_key() -> RSAKey:
    """Drawing one is slow."""
    return RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})


def ec_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})


def unsigned(claims: dict[str, Any]) -> str:
    parts = [json.dumps(each).encode() for each in ({"alg": "none"}, claims)]
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts) + "."


def signed_with_the_public_key(claims: dict[str, Any]) -> str:
    """Whoever takes an RSA key's public text for a secret of HMAC's believes it."""
    parts = [json.dumps(each).encode() for each in ({"alg": "HS256", "kid": "rsa"}, claims)]
    content = ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)
    mac = hmac.digest(rsa_key().as_pem(private=False), content.encode(), "sha256")
    return f"{content}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def signed_by_another(claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "ES256", "kid": "first"}, claims, ec_key("first"))


def signed_by_a_key_of_its_own(claims: dict[str, Any]) -> str:
    own = ec_key("first")
    return jwt.encode({"alg": "ES256", "jwk": own.as_dict(private=False)}, claims, own)


FORGERIES: tuple[Forge, ...] = (unsigned, signed_with_the_public_key, signed_by_another, signed_by_a_key_of_its_own)


@dataclass
class OidcProvider:
    """Whoever comes is `person` and agrees. `lies` are claims that its tokens have instead; None leaves one out."""

    url: str = ""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "preferred_username": "Ada"})
    lies: dict[str, Any] = field(default_factory=dict)
    forge: Forge | None = None  # the whole token, from its claims
    document: dict[str, Any] = field(default_factory=dict)  # what its discovery document says otherwise
    key: Key = field(default_factory=lambda: ec_key("first"))
    published: list[Key] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Response] = field(default_factory=dict)  # by path, instead of its own
    hangs: asyncio.Event | None = None  # set: it goes on
    requests: list[dict[str, str]] = field(default_factory=list)  # for a code
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/ops"

    def rotate(self, key: Key) -> None:
        """Sign with another key from now on, and publish it alone."""
        self.key, self.published = key, [key]

    def configured(self, settings: Settings, **more: Any) -> Settings:
        """The settings with this provider in them."""
        given = {
            "oidc_issuer": self.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            **more,
        }
        checked = Settings.model_validate({**settings.model_dump(exclude_unset=True), **given})
        return settings.model_copy(update={name: getattr(checked, name) for name in given})

    async def visited(self, url: str) -> str:
        """Go there as a browser would; return where it is sent back to."""
        async with httpx.AsyncClient(verify=False) as browser:
            answer = await browser.get(url)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    async def discovery(self, _: Request) -> Response:
        return await self._answer(
            "discovery",
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256", "ES256"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
                **self.document,
            },
        )

    async def keys(self, _: Request) -> Response:
        keys = self.published or [self.key]
        return await self._answer("keys", {"keys": [each.as_dict(private=False) for each in keys]})

    async def authorize(self, request: Request) -> Response:
        self.asked["authorize"] += 1
        given = dict(request.query_params)
        if (
            given["client_id"] != CLIENT_ID
            or given["response_type"] != "code"
            or given["code_challenge_method"] != "S256"
        ):
            return Response(status_code=400)
        code = secrets.token_urlsafe(8)
        self._codes[code] = given
        self.requests.append(given)
        back = urlencode({"code": code, "state": given["state"], "iss": self.issuer})
        return RedirectResponse(f"{given['redirect_uri']}?{back}", 302)

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        kind, _, basic = request.headers.get("authorization", "").partition(" ")
        if kind == "Basic":
            client_id, _, client_secret = base64.b64decode(basic).decode().partition(":")
            client = unquote(client_id), unquote(client_secret)
        else:
            client = form.get("client_id", ""), form.get("client_secret", "")
        if client != (CLIENT_ID, CLIENT_SECRET):
            return await self._answer("token", {"error": "invalid_client"}, 401)
        asked = self._codes.pop(form["code"], None)  # once
        challenge = (
            base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        )
        if asked is None or asked["redirect_uri"] != form["redirect_uri"] or asked["code_challenge"] != challenge:
            return await self._answer("token", {"error": "invalid_grant", "error_description": "<b>no</b>"}, 400)
        token = {"access_token": "a", "token_type": "Bearer", "id_token": self._signed(asked["nonce"])}
        return await self._answer("token", token)

    def _signed(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce, **self.person, **self.lies,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.forge is not None:
            return self.forge(claims)
        alg = "RS256" if isinstance(self.key, RSAKey) else "ES256"
        return jwt.encode({"alg": alg, "kid": self.key.kid}, claims, self.key)

    async def _answer(self, name: str, document: dict[str, Any], status: int = 200) -> Response:
        self.asked[name] += 1
        if self.hangs is not None:
            await self.hangs.wait()
        return self.answers.get(name) or JSONResponse(document, status)


@asynccontextmanager
async def oidc_provider(host: str = "127.0.0.1") -> AsyncIterator[OidcProvider]:
    """One on a port of this machine, until the block ends; `host` is what it calls the machine."""
    provider = OidcProvider()
    app = Starlette(
        routes=[
            Route("/realms/ops/.well-known/openid-configuration", provider.discovery),
            Route("/keys", provider.keys),
            Route("/authorize", provider.authorize),
            Route("/token", provider.token, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", ws="none", log_config=None, access_log=False)
    server, sock = uvicorn.Server(config), config.bind_socket()
    provider.url = f"http://{host}:{sock.getsockname()[1]}"
    serving = asyncio.create_task(server._serve([sock]))
    try:
        async with asyncio.timeout(30):
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
        yield provider
    finally:
        if provider.hangs is not None:
            provider.hangs.set()
        server.should_exit = True
        await serving
        sock.close()


def asked_for(url: str) -> dict[str, str]:
    """The parameters of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
