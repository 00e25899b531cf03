"""A stream that is made of another reply's events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from adapters.base import ModelReply
from adapters.types import Event, Header, Json
from adapters.whole_reply import join_chunks


class WrappedStream(ABC):
    """A reply around another reply. Implements `ModelReply`, which documents the methods.

    A subclass makes the events.
    """

    is_stream = True
    # The length that the other reply announces is not the length of what a subclass makes.
    size_bytes: int | None = None

    def __init__(self, reply: ModelReply) -> None:
        self.status: int = reply.status
        self.headers: tuple[Header, ...] = reply.headers
        self._reply = reply

    @property
    def prompt_usage(self) -> Json | None:
        return self._reply.prompt_usage

    async def chunks(self) -> AsyncIterator[bytes]:
        async for events in self.events():
            yield b"".join([event.raw for event in events])

    @abstractmethod
    def events(self) -> AsyncIterator[list[Event]]: ...

    async def peek(self) -> Event | None:
        return await self._reply.peek()

    async def read(self, limit_bytes: int) -> bytes:
        return await join_chunks(self, limit_bytes)

    async def aclose(self) -> None:
        await self._reply.aclose()
