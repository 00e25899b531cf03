"""Wraps a stream that has sent only comments so far, so that another reply can still take its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import orjson

from adapters.base import ModelReply
from adapters.errors import ProviderError, ProviderReplyBroken
from adapters.json_escapes import read_json
from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.types import Event
from adapters.wrapped_stream import WrappedStream
from gateway.core.turn.chunks import as_deltas
from gateway.core.turn.round import DONE_EVENT
from gateway.core.turn.upstream_error import find_error_in_first_event, make_openai_error_of_reply
from gateway.core.upstream.policy import TRANSIENT_STATUSES, Failure
from gateway.run.upstream.provider_errors import classify_failure


class UnbegunStream(WrappedStream):
    """A stream that another reply can replace until its first event: until then its client has only comments."""

    def __init__(self, reply: ModelReply, replace: Callable[[Failure], Awaitable[ModelReply | None]]) -> None:
        """Wraps a stream. replace: returns the reply in its place if it fails, or None if the failure is the answer."""
        super().__init__(reply)
        self._replace = replace
        # True from the first event on, or since another reply was requested: no other reply can take its place.
        self._has_begun = False

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the events of the stream, or of the reply in its place if it fails before its first event."""
        failure: Failure | None = None
        last_read: list[Event] | ProviderError = []
        try:
            async for events in self._reply.events():
                if not self._has_begun:
                    if (failure := _find_failure(events)) is not None:
                        last_read = events
                        break
                    self._has_begun = any(event.data is not None for event in events)
                yield events
            if not self._has_begun and failure is None:
                raise ProviderReplyBroken("the upstream's stream ended before its first event")
        except ProviderError as error:
            if self._has_begun:
                raise
            failure = classify_failure(error)
            last_read = error
        self._has_begun = True
        if failure is None:
            return
        # A failed reply must hold no connection while another try waits, nor be in the way of closing the other reply.
        await self._reply.aclose()
        other_reply = await self._replace(failure)
        if other_reply is not None:
            self._reply = other_reply
            async for events in _iterate_events(other_reply):
                yield events
        elif isinstance(last_read, ProviderError):
            raise last_read
        else:
            yield last_read


def _find_failure(events: list[Event]) -> Failure | None:
    """Returns the failure that the first event with data reports, or None if no retry may help."""
    first_event = next((event for event in events if event.data is not None), None)
    error = None if first_event is None else find_error_in_first_event(first_event)
    return None if error is None or error.status not in TRANSIENT_STATUSES else Failure(str(error.status))


async def _iterate_events(reply: ModelReply) -> AsyncIterator[list[Event]]:
    """Yields the events of a reply. A reply that is no stream is a single event."""
    if reply.is_stream:
        async for events in reply.events():
            yield events
        return
    body = await reply.read(MAX_REPLY_BYTES)
    if reply.status >= 300:
        yield [_make_event({"error": make_openai_error_of_reply(reply.status, body)})]
        return
    completion = read_json(body)[0]
    # A client of a stream reads deltas.
    chunk = as_deltas(completion) if isinstance(completion, dict) else completion
    yield [_make_event(chunk), Event(DONE_EVENT, b"[DONE]")]


def _make_event(shown_json: object) -> Event:
    data = orjson.dumps(shown_json)
    return Event(b"data: %b\n\n" % data, data)
