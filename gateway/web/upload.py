"""Passes a request's body on as it comes, within limits of size and of time.

The `model` field of a form decides to which upstream the form goes. The data before that field is held until the field
arrives: many clients send the file first, as OpenAI's own examples do.

Only the time spent waiting for the client counts: a slow upstream is not the client's fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import Message, Receive, Scope

from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge
from gateway.run.sink import ClientGone
from gateway.web.body import SLOWEST_BYTES_PER_S, ByteQuota, read_content_length
from gateway.web.form import FieldSearch, ValueSpan

# Held data is passed on in pieces of this size. Not measured: larger pieces hold the loop longer, smaller ones cost
# more steps.
PIECE_BYTES = 256 * 1024


class UploadBody:
    """A body on its way to the upstream."""

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int, timeout_s: float) -> None:
        """Reads the announced length. Raises: BodyTooLarge, BadRequest."""
        # The error with which `pieces` ended. The upstream's client, which reads the pieces, raises another error.
        self.error: Exception | None = None
        self._arrived_bytes = 0
        # The announced length; None: the body is chunked.
        self.size_bytes = read_content_length(scope)
        self._limit_bytes = limit_bytes
        if self.size_bytes is not None and self.size_bytes > limit_bytes:
            raise self._make_size_error()
        self._receive = receive
        self._timeout_s = timeout_s
        self._time_left_s = timeout_s
        # The bytes that `read_until` has read, and the span in them of the field's value; None: no field was found.
        self._held_bytes = b""
        self._value_span: ValueSpan | None = None
        self._search: FieldSearch | None = None
        self._ended = asyncio.Event()

    async def read_until(self, search: FieldSearch, limit_bytes: int, quota: ByteQuota) -> None:
        """Reads until the search has found its field or is over, or until `limit_bytes` are held.

        quota: counts the bytes that are held.

        Raises: BodyTooLarge, BodyTimeout, Overloaded, ClientGone; BadRequest: the form has the field twice.
        """
        self._search = search
        held_bytes = bytearray()
        while search.span is None and not (
            search.is_over or len(held_bytes) >= limit_bytes or self._ended.is_set()
        ):
            held_bytes += await self._next_piece()
            quota.grow(len(held_bytes))
        self._held_bytes, self._value_span = bytes(held_bytes), search.span
        if search.span is None:
            self._search = None

    @property
    def field_value(self) -> str | None:
        """The field's value; None: `read_until` has not found the field."""
        if self._value_span is None:
            return None
        start, end = self._value_span
        return self._held_bytes[start:end].decode("utf-8", "replace")

    def replace_model(self, model: str) -> None:
        """Replaces the field's value. If the field was not found, nothing changes."""
        if self._value_span is None or model == self.field_value:
            return
        start, end = self._value_span
        value = model.encode()
        self._held_bytes = self._held_bytes[:start] + value + self._held_bytes[end:]
        self._value_span = ValueSpan(start, start + len(value))
        if self.size_bytes is not None:
            self.size_bytes += len(value) - (end - start)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the whole body, once. Raises: BodyTooLarge, BodyTimeout, ClientGone, BadRequest."""
        held_bytes, self._held_bytes = self._held_bytes, b""
        for start in range(0, len(held_bytes), PIECE_BYTES):
            yield held_bytes[start : start + PIECE_BYTES]
        while not self._ended.is_set():
            if piece := await self._next_piece():
                yield piece

    async def receive_rest(self) -> Message:
        """Returns the next ASGI message after the body. The reply uses it to wait for the client to leave."""
        await self._ended.wait()
        return await self._receive()

    async def _next_piece(self) -> bytes:
        try:
            return await self._receive_piece()
        except Exception as error:
            # The upstream's client, inside which this error is raised, raises an error of its own instead.
            self.error = error
            self._ended.set()
            raise

    async def _receive_piece(self) -> bytes:
        """Returns the next piece of the body. Raises: BodyTimeout, ClientGone, BodyTooLarge, BadRequest."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._time_left_s)):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(
                f"The request body did not arrive in time ({self._arrived_bytes} bytes were there). Send it faster."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        self._arrived_bytes += len(piece)
        # Bytes earn time at the slowest rate allowed, but never more than the timeout: a fast client earns no long
        # pause.
        earned_s = len(piece) / SLOWEST_BYTES_PER_S - (loop.time() - began_at)
        self._time_left_s = min(self._timeout_s, self._time_left_s + earned_s)
        if self._arrived_bytes > self._limit_bytes:
            raise self._make_size_error()
        if self._search is not None:
            self._search.feed(piece)
            if self._search.is_ambiguous:
                # Upstreams differ in which of two fields counts, and the route must be that of the field that counts.
                raise BadRequest("Duplicate field in the form: `model`.", param="model")
        if not message.get("more_body", False):
            self._ended.set()
        return piece

    def _make_size_error(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The upload has more than the limit of {self._limit_bytes} bytes (server.max_upload_bytes)."
        )
