"""Where requests go: an upstream's address, the proxy before it, and how the head of a request begins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cached_property
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict
from yarl import URL

from adapters.wire.connection import Wire

_WITHOUT_LENGTH: Final = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "TRACE"))  # RFC 9110 8.6


class _Dialled(aiohttp.ClientRequest):
    """Asks aiohttp for a connection, which knows host, port and TLS from a request. It is never sent."""

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


class Address:
    """Where requests of one URL go: who is dialled, and how a head begins. resting: connections to there."""

    __slots__ = ("_begun", "_fixed", "_last_headers", "_last_method", "_target", "dialled", "resting", "url")

    def __init__(self, url: URL, proxy: Proxy, resting: dict[ConnectionKey, list[Wire]]) -> None:
        self.url = url
        self.dialled = _Dialled(
            "GET",
            url,
            loop=asyncio.get_running_loop(),
            ssl=True,
            proxy=proxy.url,
            proxy_headers=proxy.headers,
        )
        self.resting = resting.setdefault(self.dialled.connection_key, [])
        self._target = f"{url.raw_path_qs} HTTP/1.1\r\n"
        self._fixed = [("Host", str(url.host_port_subcomponent))]
        if proxy.is_handed(url):
            self._target = f"{url} HTTP/1.1\r\n"
            self._fixed += proxy.headers.items()
        self._begun = b""
        self._last_method = ""
        self._last_headers = CIMultiDict[str]()

    def head(
        self, method: str, headers: Mapping[str, str], size: int | None, *, is_chunked: bool = False
    ) -> bytes:
        """Returns the head of a request.

        headers: `Host` only where another one is meant.
        size: of the body; None: there is none, or it goes in chunks.
        Raises: ValueError: a header has a character that would end it.
        """
        # Callers change their headers less often than their words.
        if headers != self._last_headers or method != self._last_method:
            self._begun = self._begin(method, headers)
            self._last_method, self._last_headers = method, CIMultiDict(headers)
        if is_chunked:
            return self._begun + b"Transfer-Encoding: chunked\r\n\r\n"
        if size is not None or method not in _WITHOUT_LENGTH:
            return b"%bContent-Length: %d\r\n\r\n" % (self._begun, size or 0)
        return self._begun + b"\r\n"

    def _begin(self, method: str, headers: Mapping[str, str]) -> bytes:
        fixed = self._fixed[1:] if "Host" in headers else self._fixed
        fields = [*fixed, *headers.items()]
        text = "\r\n".join(map(": ".join, fields))
        breaks = len(fields) - 1
        if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
            raise ValueError("a header with a control character")
        return f"{method} {self._target}{text}\r\n".encode()
