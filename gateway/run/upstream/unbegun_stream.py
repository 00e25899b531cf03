"""A stream of which nothing but comments has come, so that another reply may still take its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import orjson

from adapters.base import ModelReply
from adapters.errors import ProviderBroke, ProviderError
from adapters.json_escapes import read_json
from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.types import Event, Json
from adapters.whole_reply import read_whole
from gateway.core.turn.draft import as_deltas
from gateway.core.turn.round import DONE_EVENT
from gateway.core.turn.upstream_error import describe_error, reveal_error_event
from gateway.core.upstream.policy import TRANSIENT, Failure
from gateway.run.upstream.provider_errors import failure_of


class UnbegunStream:
    """A stream that fails over until its first event: its client has comments alone, and sees one reply."""

    is_stream = True
    size: int | None = None

    def __init__(self, reply: ModelReply, replace: Callable[[Failure], Awaitable[ModelReply | None]]) -> None:
        """Wraps a stream. replace: returns the reply in its place; None: there is none, and its failure stays."""
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._replace = replace
        self._has_begun = False

    @property
    def prompt_usage(self) -> Json | None:
        return self._reply.prompt_usage

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the bytes of the events; once it has begun, the rest of its reply's."""
        if self._has_begun:
            async for chunk in self._reply.chunks():
                yield chunk
            return
        async for events in self.events():
            yield b"".join([event.raw for event in events])

    async def events(self) -> AsyncIterator[list[Event]]:
        failure: Failure | None = None
        last: list[Event] | ProviderError = []
        try:
            async for events in self._reply.events():
                if not self._has_begun:
                    if (failure := _failure_in(events)) is not None:
                        last = events
                        break
                    self._has_begun = any(event.data is not None for event in events)
                yield events
            if not self._has_begun and failure is None:
                raise ProviderBroke("the upstream's stream ended before its first event")
        except ProviderError as error:
            if self._has_begun:
                raise
            failure, last = failure_of(error), error
        self._has_begun = True
        if failure is None:
            return
        # What failed must hold no connection while another try waits, nor be in the way of closing the other reply.
        await self._reply.aclose()
        other = await self._replace(failure)
        if other is not None:
            self._reply = other
            async for events in _events_of(other):
                yield events
        elif isinstance(last, ProviderError):
            raise last
        else:
            yield last

    async def peek(self) -> Event | None:
        return await self._reply.peek()

    async def read(self, limit_bytes: int) -> bytes:
        return await read_whole(self, limit_bytes)

    async def aclose(self) -> None:
        await self._reply.aclose()


def _failure_in(events: list[Event]) -> Failure | None:
    """Returns the failure that the first event with data reports; None: it is none that another moment may mend."""
    first = next((event for event in events if event.data is not None), None)
    revealed = None if first is None else reveal_error_event(first)
    return None if revealed is None or revealed[0] not in TRANSIENT else Failure(str(revealed[0]))


async def _events_of(reply: ModelReply) -> AsyncIterator[list[Event]]:
    """Yields the events of a reply; one that is no stream is one event."""
    if reply.is_stream:
        async for events in reply.events():
            yield events
        return
    body = await reply.read(MAX_REPLY_BYTES)
    if reply.status >= 300:
        yield [_event_of({"error": describe_error(reply.status, body)})]
        return
    whole = read_json(body)[0]
    # A client of a stream reads deltas.
    yield [_event_of(as_deltas(whole) if isinstance(whole, dict) else whole), Event(DONE_EVENT, b"[DONE]")]


def _event_of(shown: object) -> Event:
    data = orjson.dumps(shown)
    return Event(b"data: %b\n\n" % data, data)
