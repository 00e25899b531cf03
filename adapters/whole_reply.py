"""Replies with a body that is read as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass

from adapters.base import ModelReply
from adapters.errors import ProviderError, ProviderTooLarge
from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.types import Event, Header, Json


class WholeReply(ABC):
    """A reply with a body in one piece. Implements `ModelReply`, which documents the methods and the fields.

    A subclass decides where the body is read from.
    """

    status: int
    headers: tuple[Header, ...]
    is_stream = False
    size_bytes: int | None = None
    prompt_usage: Json | None = None

    @abstractmethod
    async def read(self, limit_bytes: int) -> bytes: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        if body := await self.read(MAX_REPLY_BYTES):
            yield body

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as one event: an error in place of a stream has no events of its own."""
        async for body in self.chunks():
            yield [Event(body, body)]

    async def peek(self) -> Event | None:
        return None

    @abstractmethod
    async def aclose(self) -> None: ...


@dataclass(eq=False)
class BufferedReply(WholeReply):
    """A reply that has arrived, or is made here."""

    # The HTTP status.
    status: int
    # The headers of the reply.
    headers: tuple[Header, ...]
    # The whole body.
    body: bytes
    # The error that `read` raises, if the reply broke.
    error: ProviderError | None = None

    async def read(self, limit_bytes: int) -> bytes:
        """Ignores the limit, since the body is in memory already."""
        if self.error is not None:
            raise self.error
        return self.body

    async def aclose(self) -> None:
        pass


async def join_chunks(reply: ModelReply, limit_bytes: int) -> bytes:
    """Implements `read` for a reply that has its body only as `chunks`. Raises: as `ModelReply.read`."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in reply.chunks():
        pieces.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            await reply.aclose()
            raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
    return b"".join(pieces)
