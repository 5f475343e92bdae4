"""Where is the upstream, and how is it spoken to?"""

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the upstream engine. Its text never shows the API key."""

    url: str  # http(s)://host[:port][/path], with or without /v1 at the end
    api_key: str = ""  # sent as a bearer token; "" = none
    model: str = ""  # the server's name for it; "" = the only one that it lists
    dialect: Literal["openai", "vllm"] = "openai"  # vllm = with its own parameters, and exact token ids
    send_priority: bool = False  # hand the tier's rank on; vLLM refuses it unless it schedules by priority
    timeout_s: Annotated[float, Meta(gt=0)] = 120.0  # seconds without a byte after which a request has failed
    outage_s: Annotated[float, Meta(gt=0)] = 30.0  # seconds without any answer after which the engine gives up

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the upstream's URL must look like http://host:8000 or https://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("the upstream's URL takes no user, query or fragment; a key goes into its own setting")
        _ = parts.port  # raises ValueError for one that isn't a port

    @property
    def base_url(self) -> str:
        """The URL up to and including /v1."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    def __repr__(self) -> str:
        return f"UpstreamConfig(url={self.url!r}, model={self.model!r}, dialect={self.dialect!r})"
