"""Where may a webhook go? To public addresses only, whatever a URL or a DNS answer says."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from app.errors import InvalidRequest, PenstockError

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

# `is_global` of the standard library isn't enough: it says yes to 64:ff9b::a9fe:a9fe, 2002:a9fe:a9fe::1 and 224.0.0.1.
# Sources: the IANA special-purpose registries for IPv4 and IPv6; RFC 6890, RFC 5156.
DENIED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # "this network"; 0.0.0.0 reaches the local host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's host agent behind a public-looking address
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# Only 2000::/3 is handed out. Outside of it lie loopback, IPv4-mapped and -compatible, NAT64 (64:ff9b::/96, 64:ff9b:1::/48),
# unique local, link-local, site-local and multicast.
GLOBAL_IPV6 = IPv6Network("2000::/3")
DENIED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # 6bone, given back
        "3fff::/20",  # documentation
    )
)
ISATAP = {0x0000_5EFE, 0x0200_5EFE}  # an IPv4 address in the last 32 bits of any prefix (RFC 5214)

# Names that never leave a machine, a network or a cloud's own DNS.
LOCAL_SUFFIXES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "onion")
# Ports of other protocols that lie above 1023 (Fetch standard, "bad ports").
OTHER_PROTOCOLS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080}
)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
PRINTABLE = re.compile(r"[!-~]+")
_LOCAL_HINT = " (for development, PENSTOCK_WEBHOOK_ALLOW_LOCAL=true allows the local host, by http too)"


class AddressRefused(PenstockError):
    """The name of a webhook's target leads nowhere, or to an address that is nobody's business."""

    code = "webhook_address_refused"
    status = 422
    retryable = True


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts. `host` is a lower-case name or an address without brackets; `resource` is path and query."""

    scheme: str
    host: str
    port: int
    resource: str

    @property
    def authority(self) -> str:
        """What stands in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """What makes two targets the same endpoint."""
        return f"{self.scheme}://{self.authority}"


def web_url(url: str) -> str:
    """The URL itself. Raises ValueError for what is none of http or https; which of both is allowed `check_url` says."""
    if not url.lower().startswith(("https://", "http://")):
        raise ValueError("must be a URL that starts with https://")
    return url


def check_url(url: str, *, allow_local: bool, param: str = "webhook.url") -> None:
    """Refuse a URL that no delivery could ever go to. By its text alone: nothing is looked up.

    `allow_local` also allows http to the local host, and loopback addresses. `param` is what the field is called.

    Raises:
        InvalidRequest: with `param` and a message that says what to do.
    """
    try:
        parse_url(url, allow_local=allow_local)
    except InvalidRequest as refused:
        raise InvalidRequest(refused.detail.replace("webhook.url", param, 1), param=param) from None


def parse_url(url: str, *, allow_local: bool) -> Target:
    """The parts of a URL that passes `check_url`; raises as it does."""
    if len(url) > 2048:
        raise _refused("must have at most 2048 characters")
    # Before any parsing: parsers drop or turn such characters, each in its own way.
    if not PRINTABLE.fullmatch(url) or "\\" in url:
        raise _refused(
            "must be plain ASCII without spaces or backslashes: percent-encode the path, write the host in its xn-- form"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("isn't a URL: write https://host/path, with a port from 1 to 65535 if any") from None
    if parts.scheme not in {"https", "http"}:
        raise _refused("must start with https://")
    if "@" in parts.netloc:
        raise _refused("must not carry a user name or password: the signature says who is calling")
    if "#" in url:
        raise _refused("must not have a fragment (#...): it would never be sent")
    host = _host(parts.netloc, parts.hostname)
    address = _literal(host)
    local = _is_local(host, address)
    if parts.scheme == "http" and not (allow_local and local):
        hint = " (http is for localhost only)" if allow_local else _LOCAL_HINT if local else ""
        raise _refused("must start with https://" + hint)
    _check_port(port, parts.netloc)
    if address is None:
        _check_name(host, local=local, allow_local=allow_local)
    elif not is_allowed(address, allow_local=allow_local):
        raise _refused(
            f"leads to {address}, which isn't a public address: use a public one, best by name"
            + (_LOCAL_HINT if local else "")
        )
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or {"https": 443, "http": 80}[parts.scheme], resource)


def is_allowed(address: Address, *, allow_local: bool) -> bool:
    """Whether a webhook may go to this address. With `allow_local`, loopback is allowed too, and nothing else."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address == IPv6Address("::1"):
            return allow_local
        if address not in GLOBAL_IPV6 or (int(address) >> 32) & 0xFFFF_FFFF in ISATAP:
            return False
        return not any(address in network for network in DENIED_IPV6)
    if address in IPv4Network("127.0.0.0/8"):
        return allow_local
    return not any(address in network for network in DENIED_IPV4)


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """All addresses that this machine's resolver gives for a name.

    Raises:
        OSError: it doesn't resolve.
    """
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


async def resolve(host: str, port: int, *, allow_local: bool, resolver: Resolver = system_resolver) -> Address:
    """Look a target up, once, and return the address to connect to: whoever looks again may get another answer.

    One bad address among the answers spoils them all: it is how a name that is meant to mislead looks.

    Raises:
        AddressRefused: there is no answer, or one that isn't allowed.
    """
    literal = _literal(host)
    if literal is not None:
        addresses = [literal]
    else:
        try:
            addresses = [ip_address(answer) for answer in await resolver(host, port)]
        except (OSError, UnicodeError) as error:
            raise AddressRefused(f"the host doesn't resolve: {getattr(error, 'strerror', None) or error}") from error
        except ValueError as error:
            raise AddressRefused("the host resolves to something that isn't an address") from error
    if not addresses:
        raise AddressRefused("the host has no address")
    for address in addresses:
        if not is_allowed(address, allow_local=allow_local):
            raise AddressRefused("the host resolves to an address that isn't public")
    return addresses[0]


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(f"webhook.url {message}", param="webhook.url")


def _host(netloc: str, hostname: str | None) -> str:
    """The host, with a final dot dropped; brackets are for IPv6 only and hold nothing but an address."""
    if not hostname:
        raise _refused("has no host: write https://host/path")
    if netloc.startswith("["):
        if not re.fullmatch(r"\[[^\[\]]*\](:[0-9]*)?", netloc):
            raise _refused("has something between the IPv6 address in [ ] and the port")
        if "%" in hostname:
            raise _refused("must not name a network interface (%...)")
        try:
            return str(IPv6Address(hostname))
        except ValueError:
            raise _refused("holds something in [ ] that isn't an IPv6 address") from None
    return hostname.removesuffix(".")


def _literal(host: str) -> Address | None:
    """The address that a host is; None where it is a name.

    Raises:
        InvalidRequest: a number in another notation (2130706433, 0x7f.1, 0177.0.0.1), which resolvers read as an address.
    """
    try:
        return ip_address(host)
    except ValueError:
        # WHATWG URL, "ends in a number": no top-level domain does.
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
            raise _refused("has a host that ends in a number: write an IPv4 address as four decimal numbers") from None
        return None


def _is_local(host: str, address: Address | None) -> bool:
    if address is not None:
        return address.is_loopback and is_allowed(address, allow_local=True)
    return host == "localhost" or host.endswith(".localhost")


def _check_name(host: str, *, local: bool, allow_local: bool) -> None:
    labels = host.split(".")
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise _refused("has a host that isn't a domain name: use letters, digits, hyphens and dots")
    if not (local and allow_local) and (
        len(labels) < 2 or any(host == suffix or host.endswith("." + suffix) for suffix in LOCAL_SUFFIXES)
    ):
        hint = _LOCAL_HINT if local else ""
        raise _refused("has a host that is known on a local network only: use a public domain name" + hint)


def _check_port(port: int | None, netloc: str) -> None:
    if netloc.endswith(":"):
        raise _refused("has a colon without a port: drop the colon")
    if port is not None and ((port not in {80, 443} and port < 1024) or port in OTHER_PROTOCOLS):
        raise _refused(f"has port {port}, which belongs to another protocol: use 443, or one from 1024 up")
