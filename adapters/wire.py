"""One request and its response on a connection of aiohttp's pool, without aiohttp's session.

The session makes a request, a response, a writer, two timers and a task for each call; together they take more than
half of the processor time of a bare proxy. A body that is here as a whole needs none of them: it goes out behind its
head in one write. The pool, the opening of connections and the parser stay aiohttp's. Uploads go through its session.
Which header fields go on to the other end, and in which bytes, is said at the end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from adapters.types import Header

HEADER_LIMIT_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024  # aiohttp's own: with twice as much unread the connection is read no further
# The list of RFC 9110 7.6.1, and headers of the connection's own framing; `alt-svc` is about the upstream's host.
_HOP_BY_HOP: Final = frozenset(
    re.findall(
        r"[\w-]+",
        "alt-svc connection content-length keep-alive proxy-authenticate proxy-authorization proxy-connection te "
        "trailer transfer-encoding upgrade",
    )
)
# Encodings that aiohttp undoes by itself.
_DECODED: Final = frozenset((b"br", b"deflate", b"gzip", b"identity", b"zstd"))
_WITHOUT_LENGTH: Final = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "TRACE"))  # RFC 9110 8.6


class _Pooled(aiohttp.ClientRequest):
    """Asks the pool for a connection, which knows host, port and TLS from a request. It is never sent."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class Proxy:
    """An HTTP proxy, or none. A request over TLS is tunnelled through it, another is handed to it (RFC 9112 3.2.2)."""

    __slots__ = ("headers", "url")

    def __init__(self, url: str | None) -> None:
        """url: http://host:port, with user and password before the host where it asks for them; None: there is none."""
        whole = URL(url) if url is not None else None
        self.url = None if whole is None else whole.with_user(None)
        self.headers: dict[str, str] = {}
        if whole is not None and whole.user is not None:
            login = aiohttp.encode_basic_auth(whole.user, whole.password or "")
            self.headers["Proxy-Authorization"] = login

    def is_handed(self, url: URL) -> bool:
        """Returns whether a request is handed to it, and so has a whole URL and the login in its own head."""
        return self.url is not None and url.scheme == "http"

    def headers_for(self, url: URL) -> dict[str, str]:
        return self.headers if self.is_handed(url) else {}


class Address:
    """Where requests of one URL go: what the pool asks for, and how a head begins."""

    __slots__ = ("fixed", "pooled", "target", "url")

    def __init__(self, url: URL, proxy: Proxy) -> None:
        self.url = url
        self.pooled = _Pooled(
            "GET",
            url,
            loop=asyncio.get_running_loop(),
            ssl=True,
            proxy=proxy.url,
            proxy_headers=proxy.headers,
        )
        self.target = f"{url if proxy.is_handed(url) else url.raw_path_qs} HTTP/1.1\r\n"
        self.fixed = [("Host", str(url.host_port_subcomponent)), *proxy.headers_for(url).items()]

    def head(self, method: str, headers: Mapping[str, str], size: int | None) -> bytes:
        """Returns the head of a request.

        headers: `Host` only where another one is meant. size: of the body; None: there is none.
        Raises: ValueError: a header has a character that would end it.
        """
        fixed = self.fixed[1:] if "Host" in headers else self.fixed
        fields = [*fixed, *headers.items()]
        if size is not None or method not in _WITHOUT_LENGTH:
            fields.append(("Content-Length", str(size or 0)))
        text = "\r\n".join(map(": ".join, fields))
        breaks = len(fields) - 1
        if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
            raise ValueError("a header with a control character")
        return f"{method} {self.target}{text}\r\n\r\n".encode()


class RawReply:
    """A response whose head has arrived. connection: None from the end of its body on."""

    __slots__ = ("connection", "content", "raw_headers", "status")

    def __init__(
        self,
        connection: Connection,
        status: int,
        raw_headers: tuple[tuple[bytes, bytes], ...],
        content: aiohttp.StreamReader,
    ) -> None:
        self.connection: Connection | None = connection
        self.status = status
        self.raw_headers = raw_headers
        self.content = content
        content.on_eof(self._ended)

    def close(self) -> None:
        """Gives up the connection, unless the body was read to its end. Idempotent."""
        connection, self.connection = self.connection, None
        if connection is not None:
            if self.content.exception() is None:
                self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
            connection.close()

    def _ended(self) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        transport = connection.transport
        if transport is not None and transport.get_write_buffer_size():
            connection.close()  # answered before the request was taken, of which the rest may never be
        else:
            connection.release()


async def send_whole(
    connector: aiohttp.BaseConnector,
    address: Address,
    head: bytes,
    body: bytes,
    *,
    loop: asyncio.AbstractEventLoop,
    ends_at: float,
    connect: aiohttp.ClientTimeout,
) -> RawReply:
    """Sends a request; returns when the head of its response is there.

    ends_at: by the clock of the loop, how long the head is waited for. connect: the bound of a new connection.
    Raises: what aiohttp's session raises; a TimeoutError of `connect` is a ConnectionTimeoutError.
    """
    try:
        connection = await connector.connect(address.pooled, [], connect)
    except TimeoutError as error:
        raise aiohttp.ConnectionTimeoutError from error
    protocol = connection.protocol
    assert protocol is not None
    timer = loop.call_at(ends_at, _expire, protocol)
    try:
        protocol.set_response_params(
            skip_payload=head.startswith(b"HEAD "),
            read_until_eof=True,
            read_bufsize=_READ_BYTES,
            max_line_size=HEADER_LIMIT_BYTES,
            max_field_size=HEADER_LIMIT_BYTES,
        )
        transport = protocol.transport
        assert transport is not None
        transport.write(head + body if body else head)
        while True:
            message, content = await protocol.read()
            if message.code >= 200 or message.code == 101:
                break
    except BaseException:
        if connection.transport is not None:
            connection.transport.abort()  # a close in order would wait until our body is taken
        connection.close()
        raise
    finally:
        timer.cancel()
    return RawReply(connection, message.code, message.raw_headers, content)


def _expire(protocol: ResponseHandler) -> None:
    protocol.set_exception(aiohttp.SocketTimeoutError("no response in time"))


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """Returns the headers for the other end: without hop-by-hop ones and those that `Connection` names."""
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for spelled, value in headers:
        name = spelled.lower()
        if name == "connection":
            named |= _tokens(value)
        elif name not in _HOP_BY_HOP:
            kept.append((name, value))
    return [pair for pair in kept if pair[0] not in named] if named else kept


def _tokens(value: str) -> frozenset[str]:
    return frozenset(token.strip().lower() for token in value.split(","))


def received(raw: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """Returns the headers of a response for its client, without hop-by-hop ones and what is undone here."""
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for raw_name, raw_value in raw:
        name = _seen.get(raw_name)
        if name is None:
            name = _kept_name(raw_name)
        if name:
            # What is no text becomes surrogates, so that it goes on to the client in its own bytes.
            kept.append((name, raw_value.decode("utf-8", "surrogateescape")))
            continue
        match raw_name.lower():
            case b"connection":
                named |= _tokens(raw_value.decode("latin-1")) - _HOP_BY_HOP
            case b"content-encoding" if raw_value.strip().lower() not in _DECODED:
                kept.append(("content-encoding", raw_value.decode("latin-1")))
    return tuple(pair for pair in kept if pair[0] not in named) if named else tuple(kept)


# Upstreams send the same few names with every reply: name -> itself as text; "": its value decides, or it is dropped.
_seen: dict[bytes, str] = {}


def _kept_name(raw: bytes) -> str:
    name = raw.decode("latin-1").lower()
    if name in _HOP_BY_HOP or name == "content-encoding":
        name = ""
    if len(raw) <= 64 and len(_seen) < 1024:
        _seen[raw] = name
    return name


def as_sent(value: str) -> str:
    """Returns a header's value as it is to be given to `send`, which writes UTF-8; it came in as latin-1."""
    if not value.isascii():
        # A value that was not UTF-8 goes as it is.
        with suppress(UnicodeError):
            return value.encode("latin-1").decode("utf-8")
    return value
