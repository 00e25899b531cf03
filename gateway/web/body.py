"""A request's body, read within limits: of one body, of all large bodies in flight, and of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope

from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge, Overloaded
from gateway.run.sink import ClientGone

__all__ = ["BodyReader"]

LARGE_BYTES = 1024 * 1024  # chosen: below it a thousand bodies in flight are not a matter for concern
SLOWEST_BYTES_PER_S = 16 * 1024  # chosen: what arrives more slowly than this runs out of time


class BodyReader:
    """limit_bytes: of one body. in_flight_bytes: of all those over LARGE_BYTES, until their requests are answered."""

    def __init__(self, limit_bytes: int, in_flight_bytes: int, timeout_s: float) -> None:
        self._limit = limit_bytes
        self._room = in_flight_bytes
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The whole body; large ones count as in flight until the block is left.

        Raises: BodyTooLarge (by content-length before anything is read), BodyTimeout, Overloaded, BadRequest,
        ClientGone.
        """
        announced = _content_length(scope)
        if announced > self._limit:
            raise self._too_large(f"{announced}")
        held = 0
        try:
            if announced > LARGE_BYTES:
                held = self._take(announced)
            message = None
            body = bytearray()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._timeout_s
            try:
                async with asyncio.timeout_at(deadline) as timer:
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        part = message.get("body", b"")
                        if not body and not message.get("more_body", False):
                            whole = part  # the usual case: one message, and no copy
                            break
                        body += part
                        if len(body) > self._limit:
                            raise self._too_large("more")
                        if len(body) - held > LARGE_BYTES:
                            held += self._take(len(body) - held)
                        if not message.get("more_body", False):
                            whole = bytes(body)
                            break
                        timer.reschedule(deadline + len(body) / SLOWEST_BYTES_PER_S)
            except TimeoutError:
                raise BodyTimeout(
                    f"The request body did not arrive in time ({len(body)} bytes were there). Send it faster."
                ) from None
            if len(whole) > self._limit:
                raise self._too_large(str(len(whole)))
            del body, message
            yield whole
        finally:
            self._room += held

    def _take(self, count: int) -> int:
        if count > self._room:
            raise Overloaded("Too many large requests are in flight. Try again shortly.", retry_after_s=1)
        self._room -= count
        return count

    def _too_large(self, seen: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body has {seen} bytes; the limit is {self._limit} (server.max_body_bytes)."
            if seen != "more"
            else f"The request body has more than the limit of {self._limit} bytes (server.max_body_bytes)."
        )


def _content_length(scope: Scope) -> int:
    """0 when there is none. Raises: BadRequest."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise BadRequest("The content-length header is not a number.")
            return int(value[:20])
    return 0
