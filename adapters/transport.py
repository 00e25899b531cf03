"""The one HTTP seam of the hot path: bytes out, bytes in. Knows nothing of providers or models.

Each upstream has sessions of aiohttp, made in the running loop on first use: without a limit of connections, with
keep-alive, no cookies, no redirects, no credentials of the environment, and no proxy but one that is named. Every wait
has a bound (`Timeouts`), and so have the bytes that arrive outside of a body (`BoundedConnector`).

The other side may close an idle connection at the very moment a request is sent on it. Such a request is sent once more
if nothing of a response came back and the loss showed within `_IDLE_CLOSE_S`. A request that `sends_once` is never sent
again. Such requests have a pool of their own, in which no connection stays idle for long enough to be closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import lru_cache
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from adapters.body_pieces import LargeBody, Upload
from adapters.bounded_connector import (
    BEFORE_BODY_BYTES,
    BoundedConnector,
    ConnectionAttempt,
    TooManyBytes,
    begin_attempt,
)
from adapters.errors import NoDescriptor, ProviderError, ProviderTimeout, ProviderUnreachable
from adapters.http_reply import HttpReply
from adapters.pace import Pace
from adapters.reply_quota import REPLIES, ReplyQuota
from adapters.timeouts import Timeouts

# The time for which a connection may be idle. Chosen below the idle time of balancers (60 s), and above the gaps of a
# conversation.
_KEEP_ALIVE_S: Final = 30.0
# The time for which a connection may be idle if its requests must not be sent twice. Chosen below the shortest idle
# time of common servers: gunicorn closes connections after two seconds.
_KEEP_ALIVE_ONCE_S: Final = 1.0
# The time in which a loss shows, if the other side closed the idle connection just before the request: one round trip.
_IDLE_CLOSE_S: Final = 1.0
# The most bytes of a body that a transport takes without a wait.
_SMALL_BODY_BYTES: Final = 64 * 1024
# The most bytes of one header or trailer; aiohttp takes 128 headers and trailers together.
_HEADER_BYTES: Final = 64 * 1024
# Statuses that ask for the request to be sent elsewhere.
_REDIRECT_STATUSES: Final = frozenset((301, 302, 303, 307, 308))
# Headers that aiohttp would add to a request without them.
_AUTO_HEADERS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class HttpTransport:
    """Sends requests. Make one per upstream, and close it in the loop that used it."""

    def __init__(
        self, timeouts: Timeouts | None = None, proxy: str | None = None, replies: ReplyQuota = REPLIES
    ) -> None:
        """Opens no connection.

        proxy: the proxy's address, http://host:port, with user and password before the host if the proxy asks for them;
            None: no proxy.
        replies: the quota of memory for replies that are read whole.
        """
        self.timeouts = timeouts or Timeouts()
        self._replies = replies
        self._proxy_url: URL | None = None
        # The header with which the gateway logs in to the proxy; empty: the proxy asks for no login.
        self._proxy_login: dict[str, str] = {}
        if proxy is not None:
            proxy_url = URL(proxy)
            self._proxy_url = proxy_url.with_user(None)
            if proxy_url.user is not None:
                login = aiohttp.encode_basic_auth(proxy_url.user, proxy_url.password or "")
                self._proxy_login["Proxy-Authorization"] = login
        # Sessions by the seconds for which their connections may be idle.
        self._sessions: dict[float, aiohttp.ClientSession] = {}
        # Lets other work of the loop go on between pieces of replies; None: no request was sent yet.
        self._pace: Pace | None = None

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload | None = None,
        *,
        wants_stream: bool | None = None,
        sends_once: bool = False,
    ) -> HttpReply:
        """Sends a request; returns when the response's headers are there.

        url: the address in the form in which it is written to an upstream.
        headers: all headers to send, except `Host` and `Content-Length`.
        wants_stream: whether the request asks for a stream; None: not known. If a reply has another content type than
            the request asks for, its first bytes decide whether it is a stream.
        sends_once: True if the request must not be sent again, whatever becomes of it.

        Raises: ProviderTimeout; NoDescriptor; ProviderUnreachable, also for a POST that is redirected: the redirect is
        not followed, and if the client followed it, its words would bypass the gateway.
        """
        keep_alive_s = _KEEP_ALIVE_ONCE_S if sends_once else _KEEP_ALIVE_S
        timeouts = self.timeouts
        session = self._sessions.get(keep_alive_s)
        if session is None:
            session = self._open_session(keep_alive_s)
            self._sessions[keep_alive_s] = session
        if self._pace is None:
            self._pace = Pace()
        pace = self._pace
        began_at = pace.loop.time()
        address = _parse_url(url)
        try:
            response = await self._send_in_time(
                session, method, address, headers, body, sends_once=sends_once
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate_error(error, address.authority, timeouts, body) from error
        reply = HttpReply(response, timeouts, began_at, pace, self._replies)
        if reply.status == 101:
            await reply.aclose()
            raise ProviderUnreachable(f"{address.authority} answered, but not in HTTP that can be read")
        if method == "POST" and reply.status in _REDIRECT_STATUSES:
            await reply.aclose()
            target = _describe_redirect(address, reply)
            raise ProviderUnreachable(f"{address.authority} redirects to {target}, which is not followed")
        if wants_stream is not None and wants_stream != reply.is_stream:
            await reply.detect_events()
        return reply

    async def aclose(self) -> None:
        """Closes every connection, busy ones too. A later `send` opens others."""
        sessions = self._sessions
        self._sessions = {}
        self._pace = None
        for session in sessions.values():
            await session.close()

    def _open_session(self, keep_alive_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=BoundedConnector(keep_alive_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self.timeouts.for_connection,
            skip_auto_headers=_AUTO_HEADERS,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            proxy=self._proxy_url,
        )

    async def _send_in_time(
        self,
        session: aiohttp.ClientSession,
        method: str,
        address: URL,
        headers: Mapping[str, str],
        body: bytes | Upload | None,
        *,
        sends_once: bool,
    ) -> aiohttp.ClientResponse:
        """Returns the response to a request, with its head."""
        timeouts = self.timeouts
        if self._proxy_login and address.scheme == "http":
            # The proxy is handed the request itself (RFC 9112 3.2.2).
            headers = CIMultiDict([*headers.items(), *self._proxy_login.items()])
        if body is None or (isinstance(body, bytes) and len(body) <= _SMALL_BODY_BYTES):
            async with asyncio.timeout(timeouts.headers_s):
                return await self._send_with_retry(
                    session, method, address, headers, lambda: body, sends_once=sends_once
                )
        pieces = body if isinstance(body, Upload) else LargeBody(body)
        if pieces.size_bytes is not None:
            headers = CIMultiDict(headers, **{"Content-Length": str(pieces.size_bytes)})
        async with asyncio.timeout(timeouts.headers_s) as timer:
            return await self._send_with_retry(
                session,
                method,
                address,
                headers,
                lambda: pieces.begin(timer, timeouts),
                sends_once=sends_once,
            )

    async def _send_with_retry(
        self,
        session: aiohttp.ClientSession,
        method: str,
        address: URL,
        headers: Mapping[str, str],
        make_data: Callable[[], bytes | AsyncGenerator[bytes] | None],
        *,
        sends_once: bool,
    ) -> aiohttp.ClientResponse:
        """Sends a request, and once more where it was most likely not seen, unless it `sends_once`.

        make_data: a function that returns the body for an attempt, and raises an OSError if the body cannot be begun
            again.
        """
        began_at = asyncio.get_running_loop().time()
        # If the request `sends_once`, the first attempt is the last one.
        for is_last_attempt in (sends_once, True):
            attempt = begin_attempt()
            try:
                response = await session.request(
                    method,
                    address,
                    headers=headers,
                    data=make_data(),
                    allow_redirects=False,
                    proxy_headers=self._proxy_login,
                )
                # A response without a connection has been read to its end.
                if attempt.protocol is not None and response.connection is not None:
                    attempt.protocol.begin_body()
                return response
            except BaseException as error:
                if attempt.protocol is not None and attempt.protocol.transport.is_closing():
                    # aiohttp closes in order, which would wait until an upstream has taken all of a body.
                    attempt.protocol.transport.abort()
                took_s = asyncio.get_running_loop().time() - began_at
                if is_last_attempt or not _is_idle_close(attempt, error) or took_s > _IDLE_CLOSE_S:
                    raise
        raise AssertionError("the last attempt returns or raises")


def _is_idle_close(attempt: ConnectionAttempt, error: BaseException) -> bool:
    """Returns whether the other side had most likely closed an idle connection before it saw the request."""
    return attempt.protocol is not None and not attempt.is_new and _is_unanswered(error)


def _is_unanswered(error: BaseException) -> bool:
    """Returns whether a connection was lost before any part of a response came."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        # If a part of a response came, the error has this part as its message instead of a text.
        return isinstance(error.message, str)
    return isinstance(error, aiohttp.ClientOSError)


# Paths may carry ids, so the cache is bounded.
@lru_cache(256)
def _parse_url(url: str) -> URL:
    return URL(url, encoded=True)


def _translate_error(
    error: Exception, host: str, timeouts: Timeouts, body: bytes | Upload | None
) -> ProviderError:
    """Returns the provider's error for an exception before the response's headers."""
    match error:
        case aiohttp.ConnectionTimeoutError() if timeouts.connect_s <= timeouts.headers_s:
            return ProviderTimeout(f"no connection to {host} within {timeouts.connect_s} s", phase="connect")
        case aiohttp.ClientConnectorError() if error.os_error.errno in (errno.EMFILE, errno.ENFILE):
            return NoDescriptor(
                f"the gateway has no file descriptor left for a connection to {host} (see `ulimit -n`)",
                was_sent=False,
            )
        case aiohttp.ClientProxyConnectionError():
            return ProviderUnreachable(
                f"no connection to the proxy before {host}: {_describe_error(error)}", was_sent=False
            )
        case aiohttp.ClientHttpProxyError():
            return ProviderUnreachable(f"the proxy before {host} refused with {error.status}", was_sent=False)
        case aiohttp.ClientConnectorError():
            return ProviderUnreachable(f"no connection to {host}: {_describe_error(error)}", was_sent=False)
        case TimeoutError() if isinstance(body, Upload) and not body.is_over:
            return ProviderTimeout(
                f"{host} took no more of the upload for {timeouts.between_chunks_s} s", phase="between chunks"
            )
        case TimeoutError():
            return ProviderTimeout(
                f"no response from {host} within {timeouts.headers_s} s", phase="first byte"
            )
        case aiohttp.ServerDisconnectedError():
            return ProviderUnreachable(f"{host} closed the connection before it answered")
        case TooManyBytes():
            return ProviderUnreachable(f"{host} sent more than {BEFORE_BODY_BYTES} bytes before a response")
        case ValueError():
            # A control character in a header, which a server could read as two headers.
            return ProviderUnreachable(f"a request that cannot be sent to {host}: {error}")
        case aiohttp.ClientResponseError():
            # aiohttp's message quotes bytes that are no HTTP, and they may be a user's words.
            return ProviderUnreachable(f"{host} answered, but not in HTTP that can be read")
        case _:
            reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            return ProviderUnreachable(f"no answer from {host}: {reason}")


def _describe_redirect(address: URL, reply: HttpReply) -> str:
    """Returns the server to which a reply redirects; its path and its query may have secrets."""
    location = dict(reply.headers).get("location")
    if not location:
        return "an address that it does not name"
    try:
        target = address.join(URL(location)).origin()
    except ValueError:
        return "an address that cannot be read"
    return str(target) if target != address.origin() else "another path of its own"


def _describe_error(error: aiohttp.ClientConnectorError) -> str:
    """Returns what went wrong. aiohttp's own text repeats the address, and has "ssl:default" also without TLS."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    cause = error.os_error
    if cause.errno is not None and cause.errno > 0 and not isinstance(error, aiohttp.ClientSSLError):
        return os.strerror(cause.errno)
    return cause.strerror or str(cause)
