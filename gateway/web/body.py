"""Reads a request's body within three limits: its size, the size of all large bodies in flight, and its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope

from gateway.dialects.fields import read_object
from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge, Overloaded, UnsupportedEncoding
from gateway.run.sink import ClientGone
from gateway.web.client_connection import find_connection
from gateway.web.raw_headers import find_header

_Parsed = TypeVar("_Parsed")
# Bodies up to this size do not count as in flight: the server buffers as much of a body before a route asks for it. A
# higher bound leaves too much uncounted: parsed, a body can take eleven times its size, and a thousand bodies of 1 MiB
# take 11 GB.
LARGE_BYTES = 64 * 1024
# Bodies over this size are parsed in a thread. Parsing takes some 8 ms a MiB, so that smaller ones hold other requests
# up for less than a reply takes by itself.
_LOOP_BYTES = 1024 * 1024
# The digits of a content-length that are read: 20 are above any limit, and Python would parse thousands of them.
_MAX_LENGTH_DIGITS = 20
# A body that arrives more slowly runs out of time. Not measured: it is the pace of a poor mobile network; with less a
# sender that stalls holds its connection longer.
SLOWEST_BYTES_PER_S = 16 * 1024


@dataclass(eq=False, slots=True)
class BodyReader:
    """The reader of all bodies of the process."""

    # The most bytes of one body.
    limit_bytes: int
    # The bytes that further bodies over LARGE_BYTES may have; quotas take from it. A body counts until its request is
    # answered.
    left_bytes: int
    # The time for one body; it is extended while the body keeps coming.
    timeout_s: float

    def read(self, scope: Scope, receive: Receive) -> _BodyBlock:
        """Reads the whole body, in an `async with` block. A large body counts as in flight until the block is left.

        Raises: BodyTooLarge (by content-length before anything is read), BodyTimeout, Overloaded, BadRequest,
        ClientGone.
        """
        return _BodyBlock(self, scope, receive)

    def make_quota(self) -> ByteQuota:
        """Returns a share of the bytes in flight, for a caller that reads a body itself and keeps some of it."""
        return ByteQuota(self)


class ByteQuota:
    """The share that one request takes of the bytes in flight, until its block is left."""

    __slots__ = ("_reader", "_taken_bytes")

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._taken_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Extends the share to a size, once more than LARGE_BYTES are missing; a small body takes no share.

        Raises: Overloaded.
        """
        missing_bytes = size_bytes - self._taken_bytes
        if missing_bytes <= LARGE_BYTES:
            return
        if missing_bytes > self._reader.left_bytes:
            raise Overloaded("Too many large requests are in flight. Try again shortly.", retry_after_s=1)
        self._reader.left_bytes -= missing_bytes
        self._taken_bytes = size_bytes

    def release(self) -> None:
        """Gives the share back."""
        self._reader.left_bytes += self._taken_bytes
        self._taken_bytes = 0

    def __enter__(self) -> ByteQuota:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _BodyBlock:
    """The block inside which a body counts. It is a class because contextlib's generators cost 12 us a request."""

    __slots__ = ("_quota", "_reader", "_receive", "_scope")

    def __init__(self, reader: BodyReader, scope: Scope, receive: Receive) -> None:
        self._reader = reader
        self._quota = reader.make_quota()
        self._scope = scope
        self._receive = receive

    async def __aenter__(self) -> bytes:
        limit_bytes = self._reader.limit_bytes
        _refuse_encoded(self._scope)
        try:
            connection = find_connection(self._scope)
            if connection is not None and connection.has_whole_body:
                # The body is there, so its arrival needs no bound.
                body = _read_body_part(await self._receive())
                self._quota.grow(len(body))
            else:
                announced_bytes = read_content_length(self._scope) or 0
                if announced_bytes > limit_bytes:
                    raise _make_too_large_error(limit_bytes, announced_bytes)
                # A body for which there is no room is refused before any of it is read.
                self._quota.grow(announced_bytes)
                body = await self._read_parts()
            if len(body) > limit_bytes:
                raise _make_too_large_error(limit_bytes, len(body))
            return body
        except BaseException:
            # `__aexit__` does not run for a block that was not entered.
            self._quota.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._quota.release()

    async def _read_parts(self) -> bytes:
        """Reads a body that is still under way."""
        body = bytearray()
        limit_bytes = self._reader.limit_bytes
        deadline = asyncio.get_running_loop().time() + self._reader.timeout_s
        try:
            async with asyncio.timeout_at(deadline) as timer:
                while True:
                    message = await self._receive()
                    part = _read_body_part(message)
                    if not body and not message.get("more_body", False):
                        return part  # one message, which needs no copy
                    body += part
                    if len(body) > limit_bytes:
                        raise _make_too_large_error(limit_bytes)
                    self._quota.grow(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
                    # A body that keeps coming may take longer than the timeout: arrived bytes extend the deadline.
                    timer.reschedule(deadline + len(body) / SLOWEST_BYTES_PER_S)
        except TimeoutError:
            raise BodyTimeout(
                f"The request body did not arrive in time ({len(body)} bytes were there). Send it faster."
            ) from None


async def parse_off_loop(body: bytes, parse: Callable[[], _Parsed]) -> _Parsed:
    """Returns the result of `parse`, which parses this body. Other requests go on while a large body is parsed."""
    if len(body) <= _LOOP_BYTES:
        return parse()
    return await asyncio.to_thread(parse)


async def parse_json_body(body: bytes) -> dict[str, Any]:
    """Returns a body's JSON object. Other requests go on while a large body is parsed. Raises: as `read_object`."""
    return await parse_off_loop(body, partial(read_object, body))


def read_content_length(scope: Scope) -> int | None:
    """Returns the announced length of a body; None where none is announced. Raises: BadRequest."""
    value = find_header(scope["headers"], b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise BadRequest("The content-length header is not a number.", param="content-length")
    return int(value[:_MAX_LENGTH_DIGITS])


def _make_too_large_error(limit_bytes: int, size_bytes: int | None = None) -> BodyTooLarge:
    """Returns the error of a body over the limit. size_bytes: the size of the body; None: it is not known yet."""
    if size_bytes is None:
        message = f"The request body has more than the limit of {limit_bytes} bytes (server.max_body_bytes)."
    else:
        message = (
            f"The request body has {size_bytes} bytes; the limit is {limit_bytes} (server.max_body_bytes)."
        )
    return BodyTooLarge(message)


def _read_body_part(message: Message) -> bytes:
    """Returns the part of the body in an ASGI message. Raises: ClientGone."""
    if message["type"] == "http.disconnect":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def _refuse_encoded(scope: Scope) -> None:
    """Refuses a compressed body, which is not decoded here. Raises: UnsupportedEncoding."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedEncoding(
                "The request body is compressed (content-encoding); send it as it is.",
                param="content-encoding",
            )
