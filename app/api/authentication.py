"""Who calls? The API key in `Authorization: Bearer`, remembered for a few seconds so that a request doesn't cost a query."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.runtime import Runtime, runtime_of
from app.errors import Forbidden, Unauthenticated
from app.jobs.submit import Caller
from app.quotas.keys import ApiKey, authenticate

_TOKEN = re.compile(r"pk_[0-9a-f]{12}_[A-Za-z0-9_-]{1,128}")
_bearer = HTTPBearer(
    scheme_name="ApiKey",
    description="An API key, `pk_…`, made with `penstock keys create`.",
    auto_error=False,
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def identify(runtime: Runtime, token: str) -> ApiKey:
    """The key behind a token, by memory or by Postgres.

    Raises:
        Unauthenticated: it isn't valid.
    """
    if not _TOKEN.fullmatch(token):
        raise Unauthenticated("the API key isn't valid: it looks like pk_<12 hex digits>_<secret>")
    digest = hashlib.sha256(token.encode()).digest()
    key = runtime.known_keys.get(digest)
    if key is None:
        async with runtime.transaction() as conn:
            key = await authenticate(conn, token, pepper=runtime.settings.key_pepper.get_secret_value())
        runtime.known_keys.put(digest, key)
    return key


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts on all tenants' things; `actor` is what the log of acts calls them."""

    actor: str


def caller_with(scope: str) -> Callable[..., Awaitable[Caller]]:
    """A dependency: who calls, with a key that has this scope."""

    async def caller(request: Request, credentials: Credentials) -> Caller:
        key = await _key_with(scope, request, credentials)
        return Caller(key.tenant_id, key.id, key.limits, key.rights)

    return caller


async def operator(request: Request, credentials: Credentials) -> Operator:
    """A dependency: an operator, by a key with the scope `admin`."""
    key = await _key_with("admin", request, credentials)
    return Operator(_called(key))


async def actor(request: Request, credentials: Credentials) -> str:
    """A dependency: what the log of acts calls who calls, whatever its key may do."""
    return _called(await _key(request, credentials))


def _called(key: ApiKey) -> str:
    return f"key:{key.tenant_id}/{key.prefix}"


async def _key(request: Request, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    if credentials is None:
        raise Unauthenticated("send an API key: `Authorization: Bearer pk_…`")
    return await identify(runtime_of(request), credentials.credentials)


async def _key_with(scope: str, request: Request, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    key = await _key(request, credentials)
    if scope not in key.scopes:
        raise Forbidden(
            f"this API key lacks the scope {scope}: `penstock keys create TENANT --scope {scope}` makes one that has it",
            scope=scope,
        )
    return key


Reader = Annotated[Caller, Depends(caller_with("jobs:read"))]
Writer = Annotated[Caller, Depends(caller_with("jobs:write"))]
Actor = Annotated[str, Depends(actor)]
Admin = Annotated[Operator, Depends(operator)]
