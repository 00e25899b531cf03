"""The hosts that tools may connect to: the settings name them, and their addresses must be public.

The author of a tool chooses a URL. The gateway can reach hosts of the operator's network, which the author must not
reach. So a host name is resolved once, all its addresses are checked, and the connection goes to a checked address,
with the name in SNI and `Host`. No redirect is followed, no proxy of the environment is used, and no header of a caller
is sent.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct
from yarl import URL

from gateway.settings import HostRule, ToolSettings

# The most seconds to resolve a name, and again to connect. Not measured: the model waits for as long for a host that
# does not answer.
_CONNECT_S = 10.0
_READ_BYTES = 64 * 1024
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# A host whose last label resolvers read as part of an IPv4 address: 127.1, 2130706433, 0x7f.1 (WHATWG URL, 3.5).
_NUMERIC_HOST = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")

# Returns the addresses of a host, given its name and a port. Raises: OSError.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class HostError(Exception):
    """A URL that is not allowed, or a host that does not answer. The text is for the author of the tool."""


class ReplyFault(HostError):
    """A request was sent, and has no readable reply: the host may have performed it."""


class StatusFault(HostError):
    """An MCP server answered a message with an HTTP status, and perhaps with a message of its own."""


class HostReply(Struct, frozen=True):
    """A reply with its headers, before its body is read."""

    # The HTTP status.
    status: int
    # The headers by their names in lower case.
    headers: Mapping[str, str]
    # The stream of the body.
    _content: aiohttp.StreamReader

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives. Raises: ReplyFault if it breaks off."""
        try:
            async for chunk in self._content.iter_chunked(_READ_BYTES):
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise ReplyFault("its reply broke off") from error

    def break_off(self) -> None:
        """Makes the reader of the body fail with a ReplyFault."""
        self._content.set_exception(aiohttp.ClientConnectionError("broken off"))

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the body. Raises: ReplyFault if it breaks off, or is longer than the limit."""
        body = bytearray()
        async for chunk in self.read_chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise ReplyFault(f"its reply has more than {limit_bytes:,} bytes")
        return bytes(body)


class ToolHosts:
    """Sends requests to the hosts that the settings name. Each request has its own check and its own connection."""

    def __init__(
        self, settings: ToolSettings, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Reads the rules of the settings.

        settings: the settings of tools, with the hosts.
        resolve: the function that resolves names; None: the system's resolver.
        tls: the TLS context of connections; None: TLS with the system's certificates.
        """
        self._private = _parse_rules(settings.private_hosts)
        self._rules = (*_parse_rules(settings.hosts), *self._private)
        self._resolve = resolve or _resolve
        self._tls = tls

    def check(self, url: str) -> None:
        """Checks that the settings allow a URL, without resolving its name. Raises: HostError."""
        self._parse_allowed_url(url)

    @asynccontextmanager
    async def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[HostReply]:
        """Sends a request. Only connecting has a timeout; the caller sets one for the reply.

        headers: the headers of the request, without `Host` and `Content-Length`.
        body: the body of the request; None: it has no body.

        Raises: HostError; ReplyFault once the request was sent.
        """
        parsed = self._parse_allowed_url(url)
        addresses = await self._resolve_checked(parsed)
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(addresses), use_dns_cache=False, force_close=True
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
        ) as session:
            try:
                response = await session.request(
                    method,
                    parsed,
                    # The limit of a reply's size would not hold for a compressed reply.
                    headers={"User-Agent": "mnemogate", "Accept-Encoding": "identity", **headers},
                    data=body,
                    allow_redirects=False,
                    ssl=self._tls or True,
                )
            except aiohttp.ClientSSLError as error:
                raise HostError("its certificate is not accepted") from error
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError) as error:
                raise HostError("it could not be reached") from error
            except (aiohttp.ClientError, OSError) as error:
                raise ReplyFault("it broke off before its reply") from error
            try:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ReplyFault("its reply is compressed, which was not requested")
                lower_headers = {name.lower(): value for name, value in response.headers.items()}
                yield HostReply(response.status, lower_headers, response.content)
            finally:
                response.close()

    def _parse_allowed_url(self, text: str) -> URL:
        """Returns a URL that the settings allow. Raises: HostError."""
        if not self._rules:
            raise HostError("no host may be spoken to: the setting tools.hosts names none")
        if re.search(r"[\x00-\x20\x7f]", text):
            raise HostError("the URL has a space or a control character in it")
        try:
            url = URL(text)
            host, port = _read_host(url), url.port
        except ValueError as error:
            raise HostError("the URL cannot be read") from error
        if url.scheme not in ("https", "http") or not host or port is None:
            raise HostError("the URL must be https://host/…")
        if url.raw_user is not None or url.raw_password is not None:
            raise HostError("a user or password in the URL would be a secret, which is not kept here")
        if _read_ip(host) is None and (not _HOST_NAME.fullmatch(host) or _NUMERIC_HOST.fullmatch(host)):
            raise HostError("the URL names no host")
        if not any(rule.allows(url.scheme, host, port) for rule in self._rules):
            raise HostError(f"the setting tools.hosts does not name {url.scheme}://{host}:{port}")
        return url

    async def _resolve_checked(self, url: URL) -> Sequence[str]:
        """Returns the addresses of a host. Raises: HostError if one of them is not allowed, or the host has none."""
        host, port = _read_host(url), url.port or 0
        if _read_ip(host) is not None:
            addresses: Sequence[str] = [host]
        else:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    addresses = await self._resolve(host, port)
            except (OSError, TimeoutError, UnicodeError) as error:
                raise HostError("its name cannot be resolved") from error
        if not addresses:
            raise HostError("its name cannot be resolved")
        may_be_private = any(rule.allows(url.scheme, host, port) for rule in self._private)
        if not may_be_private and not all(map(is_public, addresses)):
            raise HostError(
                "its address is not a public one, and the setting tools.private_hosts does not name it"
            )
        return addresses


class _CheckedResolver(AbstractResolver):
    """Resolves every name to the checked addresses, so that the connection cannot go to another address."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Has nothing to close."""


def _parse_rules(entries: Sequence[str]) -> tuple[HostRule, ...]:
    return tuple(rule for entry in entries if (rule := HostRule.parse(entry)) is not None)


def _read_host(url: URL) -> str:
    """Returns the host of a URL in the form that the settings and the address checks compare."""
    return (url.raw_host or "").lower().removesuffix(".")


async def _resolve(host: str, port: int) -> Sequence[str]:
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in addresses]


# -- public addresses


# The networks that are not public, although `ipaddress` of some version of Python takes them for public.
_NOT_PUBLIC_IPV4 = (
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments; a cloud's metadata at 192.0.0.192
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, deprecated (RFC 7526)
    IPv4Network("168.63.129.16/32"),  # a cloud's own services, seen from its machines alone (Azure)
)
_NOT_PUBLIC_IPV6 = (
    IPv6Network("2001::/23"),  # IETF protocol assignments, Teredo among them
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
# All addresses that IANA has allocated (iana.org/assignments/ipv6-address-space).
_ALLOCATED_IPV6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 address


def is_public(address: str) -> bool:
    """Returns whether an address is reachable from anywhere on the internet."""
    ip = _read_ip(address)
    if isinstance(ip, IPv6Address):
        embedded = _find_embedded_ipv4(ip)
        if embedded is None:
            return ip in _ALLOCATED_IPV6 and not any(ip in network for network in _NOT_PUBLIC_IPV6)
        ip = embedded
    return (
        ip is not None
        and ip.is_global
        and not (ip.is_multicast or ip.is_reserved)
        and not any(ip in network for network in _NOT_PUBLIC_IPV4)
    )


def _find_embedded_ipv4(ip: IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 address that packets to this address reach in the end, or None."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _read_ip(host: str) -> IPv4Address | IPv6Address | None:
    """Returns the address of a host that is written as an address; None if the host is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
