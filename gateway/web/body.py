"""Reads a request's body within three limits: its size, the size of all large bodies in flight, and its time."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope

from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge, Overloaded, UnsupportedEncoding
from gateway.run.sink import ClientGone
from gateway.web.raw_headers import find_header

# Chosen: so much the server takes before anybody asks for it. As values a body may take eleven times as much memory, so
# that a thousand of 1 MiB were 11 GB.
LARGE_BYTES = 64 * 1024
SLOWEST_BYTES_PER_S = 16 * 1024  # chosen: what arrives more slowly than this runs out of time


class BodyReader:
    """The reader of all bodies of the process.

    limit_bytes: of one body.
    in_flight_bytes: of all bodies over LARGE_BYTES, each until its request is answered.
    """

    def __init__(self, limit_bytes: int, in_flight_bytes: int, timeout_s: float) -> None:
        self.limit_bytes = limit_bytes
        self._left_bytes = in_flight_bytes
        self.timeout_s = timeout_s

    def read(self, scope: Scope, receive: Receive) -> _BodyBlock:
        """Reads the whole body, as `async with`; a large one counts as in flight until the block is left.

        Raises: BodyTooLarge (by content-length before anything is read), BodyTimeout, Overloaded, BadRequest,
        ClientGone.
        """
        return _BodyBlock(self, scope, receive)

    def quota(self) -> ByteQuota:
        """Returns a share of the bytes in flight, for a caller that reads a body itself and keeps some of it."""
        return ByteQuota(self)

    async def _read_parts(self, held: _BodyBlock, receive: Receive) -> bytes:
        """Reads a body that is still under way."""
        body = bytearray()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        try:
            async with asyncio.timeout_at(deadline) as timer:
                while True:
                    message = await receive()
                    part = _body_part(message)
                    if not body and not message.get("more_body", False):
                        return part  # one message, which needs no copy
                    body += part
                    if len(body) > self.limit_bytes:
                        raise self._too_large()
                    held.grow(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
                    # A body may take longer than the timeout if it keeps coming: what has arrived buys time.
                    timer.reschedule(deadline + len(body) / SLOWEST_BYTES_PER_S)
        except TimeoutError:
            raise BodyTimeout(
                f"The request body did not arrive in time ({len(body)} bytes were there). Send it faster."
            ) from None

    def _give_back(self, count: int) -> None:
        self._left_bytes += count

    def _reserve(self, count: int) -> int:
        if count > self._left_bytes:
            raise Overloaded("Too many large requests are in flight. Try again shortly.", retry_after_s=1)
        self._left_bytes -= count
        return count

    def _too_large(self, size: int | None = None) -> BodyTooLarge:
        """Returns the error of a body over the limit. size: in bytes; None: it is still under way."""
        if size is None:
            message = f"The request body has more than the limit of {self.limit_bytes} bytes (server.max_body_bytes)."
        else:
            message = (
                f"The request body has {size} bytes; the limit is {self.limit_bytes} (server.max_body_bytes)."
            )
        return BodyTooLarge(message)


class ByteQuota:
    """The share that one request takes of the bytes in flight, until its block is left."""

    __slots__ = ("_reader", "_taken")

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._taken = 0

    def grow(self, size: int) -> None:
        """Takes what is missing for `size` bytes in all; small bodies take nothing. Raises: Overloaded."""
        # In steps of LARGE_BYTES: a chunked body that grows would otherwise be counted again with every piece.
        if size - self._taken > LARGE_BYTES:
            self._taken += self._reader._reserve(size - self._taken)

    def __enter__(self) -> ByteQuota:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader._give_back(self._taken)


class _BodyBlock(ByteQuota):
    """The block inside which a body counts. It is a class because contextlib's generators cost 12 us a request."""

    __slots__ = ("_receive", "_scope")

    def __init__(self, reader: BodyReader, scope: Scope, receive: Receive) -> None:
        self._reader = reader
        self._taken = 0
        self._scope = scope
        self._receive = receive

    async def __aenter__(self) -> bytes:
        reader, scope = self._reader, self._scope
        _refuse_encoded(scope)
        try:
            connection = scope["state"].get("connection")
            if connection is not None and connection.has_whole_body:
                whole = _body_part(await self._receive())  # there is nothing to wait for, so nothing to time
                self.grow(len(whole))
            else:
                announced = content_length(scope) or 0
                if announced > reader.limit_bytes:
                    raise reader._too_large(announced)
                # Taken before anything is read: a body that finds no place is refused at once, not in its middle.
                self.grow(announced)
                whole = await reader._read_parts(self, self._receive)
            if len(whole) > reader.limit_bytes:
                raise reader._too_large(len(whole))
            return whole
        except BaseException:
            # A block that was never entered is never left: what was taken so far goes back here.
            reader._give_back(self._taken)
            raise

    async def __aexit__(self, *_: object) -> None:
        if self._taken:
            self._reader._give_back(self._taken)


def _body_part(message: Message) -> bytes:
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


def content_length(scope: Scope) -> int | None:
    """Returns the announced length of a body; None where none is announced. Raises: BadRequest."""
    value = find_header(scope["headers"], b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise BadRequest("The content-length header is not a number.")
    # Twenty digits are more than any limit, and keep a number of many thousand digits from being worked out.
    return int(value[:20])
