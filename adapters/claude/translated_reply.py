"""Replies of Anthropic's as replies of a provider: translated when they are whole or as they come, or annotated.

An annotated reply passes in its own bytes, and can be read as a chat completion as well.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import orjson

from adapters.base import ModelReply
from adapters.claude.error_form import find_error_under_success, translate_error_body
from adapters.claude.events import NamedEventDecoder
from adapters.claude.reply import make_native_reply, translate_message
from adapters.claude.stream import StreamTranslator
from adapters.errors import ProviderReplyBroken
from adapters.first_event import has_content
from adapters.json_escapes import read_json_exactly
from adapters.reply_headers import replace_content_type
from adapters.types import JSON_TYPE, NATIVE_MESSAGE, NATIVE_REPLY, Event, Header, Json
from adapters.whole_reply import WholeReply
from adapters.wrapped_stream import WrappedStream


class TranslatedReply(WholeReply):
    """A body that is translated when it is whole: an answer, an error, a list."""

    def __init__(self, reply: ModelReply, translate: Callable[[Json], Json], complaint: str) -> None:
        """Wraps a reply.

        translate: the function that translates the body of a 200.
        complaint: the message about a body that cannot be translated. It does not quote the body, since errors are
            logged.
        """
        self.status = reply.status
        self.headers = _with_request_id(reply.headers)
        if reply.status == 200:
            self.headers = replace_content_type(self.headers, JSON_TYPE)
        self._reply = reply
        self._translate_body = translate
        self._complaint = complaint

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        if not body or self.status != 200:
            return translate_error_body(body)
        try:
            value = read_json_exactly(body)
            return orjson.dumps(find_error_under_success(value) or self._translate_body(value))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderReplyBroken(self._complaint) from error

    async def aclose(self) -> None:
        await self._reply.aclose()


class StreamedReply(WrappedStream):
    """A stream with events that are translated as they come."""

    def __init__(
        self,
        reply: ModelReply,
        translator: StreamTranslator,
        translate_event: Callable[[Event], list[Event]],
    ) -> None:
        """Wraps a reply.

        translate_event: the method of the translator that returns the events for one event of the upstream.
        """
        super().__init__(reply)
        self.headers = _with_request_id(reply.headers)
        self._translator = translator
        self._translated_events = self._read_translated(translate_event)
        # Events that `peek` has read, and `events` has not yielded yet.
        self._peeked: list[Event] = []

    @property
    def prompt_usage(self) -> Json | None:
        return self._translator.prompt_usage

    async def events(self) -> AsyncIterator[list[Event]]:
        if self._peeked:
            peeked, self._peeked = self._peeked, []
            yield peeked
        async for events in self._translated_events:
            yield events

    async def peek(self) -> Event | None:
        # An error, or the first event with content.
        first = await self._reply.peek()
        self._peeked = await anext(self._translated_events, [])
        events = [event for event in self._peeked if event.data is not None] or self._peeked
        if not events:
            return None
        is_error = first is not None and first.name == "error"
        return events[-1] if is_error else next(filter(has_content, events), events[0])

    async def _read_translated(
        self, translate_event: Callable[[Event], list[Event]]
    ) -> AsyncIterator[list[Event]]:
        decoder = NamedEventDecoder()
        async for data in self._reply.chunks():
            events = decoder.feed(data)
            if translated := [chunk_event for event in events for chunk_event in translate_event(event)]:
                yield translated
        last_events = decoder.finish()
        if translated := [chunk_event for event in last_events for chunk_event in translate_event(event)]:
            yield translated
        self._translator.finish()


def annotate_reply(reply: ModelReply, first_block_index: int) -> ModelReply:
    """Returns a reply that passes in its own bytes, and can be read as a chat completion as well."""
    if reply.status != 200:
        return reply
    created = int(time.time())
    if not reply.is_stream:
        return _NativeReply(reply, created, first_block_index)
    translator = StreamTranslator(created, wants_usage=True, first_index=first_block_index, is_native=True)
    return StreamedReply(reply, translator, translator.annotate)


class _NativeReply(WholeReply):
    """A whole message as a chat completion, with itself as `NATIVE_MESSAGE`."""

    def __init__(self, reply: ModelReply, created: int, first_block_index: int) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._created = created
        self._first_block_index = first_block_index

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        try:
            message = read_json_exactly(body)
            if find_error_under_success(message) is not None:
                return body
            completion = translate_to_completion(message, self._created, self._first_block_index)
            completion["choices"][0]["message"][NATIVE_REPLY] = make_native_reply(message)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderReplyBroken("the upstream's answer is no message") from error
        return orjson.dumps({**completion, NATIVE_MESSAGE: orjson.Fragment(body)})

    async def aclose(self) -> None:
        await self._reply.aclose()


def translate_to_completion(message: Json, created: int, first_index: int) -> Json:
    """Returns a message as a chat completion. Raises: LookupError: `message` is no message."""
    if message["type"] != "message":
        raise KeyError("type")
    return translate_message(message, created, first_index)


def _with_request_id(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """Returns headers with the request's id also under the name that OpenAI's clients know."""
    values = dict(headers)
    if "request-id" in values and "x-request-id" not in values:
        return (*headers, ("x-request-id", values["request-id"]))
    return headers
