"""The relay of a reply in which memory has no part: its bytes go to the client as they arrive.

Events go on whole, so that a comment or a last event of the gateway's own can stand between them. The reply is read
meanwhile for its usage, for the receipt of the call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import lru_cache
from typing import Final

from adapters.base import ModelReply
from adapters.errors import ProviderError, UnfinishedEvent
from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.sse import EventDecoder
from adapters.types import Header
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.turn.upstream_error import find_stream_exception
from gateway.core.usage.reported import UsageReader
from gateway.core.usage.withheld_usage import without_usage
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.endpoint import RequestMaker
from gateway.run.upstream.keepalive import KEEP_ALIVE, keep_alive
from gateway.run.upstream.provider_errors import translate_provider_error

# Cookies are between the upstream and the gateway. The gateway itself gives the response its date, the headers for web
# pages (access-control-*) and the receipt (x-mnemogate-*).
_WITHHELD_HEADERS: Final = frozenset(("date", "set-cookie"))
# The beginnings of the headers that are the gateway's alone.
_RESERVED_PREFIXES: Final = ("access-control-", "x-mnemogate-")
# Events have some hundred bytes; only an event with an image may be larger than this.
_MAX_EVENT_BYTES: Final = 1024 * 1024
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")  # the longest last
# The ends of the last piece of a whole stream.
_DONE: Final = tuple(done + end for done in (b"data: [DONE]", b"data:[DONE]") for end in _EVENT_ENDS)


async def relay(
    attempts: Attempts,
    make: RequestMaker,
    sink: Sink,
    receipt: Receipt,
    keep_alive_s: float,
    json_bytes: int | None = None,
    change: ReplyChange | None = None,
) -> None:
    """Answers `sink` with the upstream's reply.

    make: returns the request, which is sent only if the client is still connected.
    keep_alive_s: the seconds without an event after which an event stream gets a comment; 0: no comments are sent.
    json_bytes: the size up to which a body of JSON is held until it is whole; other bodies go on as they arrive. None:
        every body that is no event stream is held, as `change` needs it.
    change: the function that changes a successful reply; None: the reply goes on in its own bytes.

    Raises: UpstreamError and below; ClientGone, with the upstream's connection closed.
    """
    reader: _ReplyReader | None = None
    try:
        with sink.cancel_on_leave():
            receipt.clock.note_call()
            reply = await attempts.send(make)
            reader = _ReplyReader(attempts, reply)
            if reply.is_stream:
                await _pass_stream(reader, sink, receipt, keep_alive_s, change)
            elif json_bytes is not None:
                await _pass_body(reader, sink, receipt, json_bytes)
            else:
                body = await reply.read(MAX_REPLY_BYTES)
                reader.read_body(body)
                if change is not None and reply.status < 300:
                    body = change.change_body(body)
                receipt.clock.note_answer()
                await _send_whole(reply, body, sink, receipt)
    except ProviderError as error:
        raise translate_provider_error(error) from error
    finally:
        if reader is not None:
            reader.note_usage()
            await reader.reply.aclose()


async def _pass_stream(
    reader: _ReplyReader, sink: Sink, receipt: Receipt, keep_alive_s: float, change: ReplyChange | None
) -> None:
    """Writes the events of a stream to `sink` as they arrive."""
    reply, call = reader.reply, reader.call
    events = WholeEvents() if change is None else ChangedEvents(change)
    is_done = False
    try:
        async with keep_alive(reply.chunks(), keep_alive_s) as chunks:
            async for chunk in chunks:
                if not sink.has_started:
                    _send_head(reply, sink, receipt)
                if chunk is not KEEP_ALIVE:
                    chunk = events.feed(chunk)
                    reader.read_events(chunk)
                    is_done = chunk.endswith(_DONE)
                    # Another endpoint may have taken over after the head.
                    if call.hides_usage:
                        chunk = without_usage(chunk)
                await sink.write(chunk)
    except ProviderError:
        # Some servers close the connection after their [DONE], without the end that HTTP asks for.
        if not is_done:
            raise
    if not sink.has_started:
        _send_head(reply, sink, receipt)
    last_bytes = events.take_rest()
    reader.read_events(last_bytes)
    await sink.write(without_usage(last_bytes) if call.hides_usage else last_bytes)
    reader.end()
    await sink.end()


async def _pass_body(reader: _ReplyReader, sink: Sink, receipt: Receipt, json_bytes: int) -> None:
    """Writes a body that is no event stream to `sink` as it arrives.

    json_bytes: the largest JSON that is held back until it is whole. If the upstream breaks off before, the client
        still gets a status.
    """
    reply = reader.reply
    chunks = reply.chunks()
    if dict(reply.headers).get("content-type", "").startswith("application/json"):
        held_body = await _read_past_limit(chunks, json_bytes)
        if 0 < len(held_body) <= json_bytes:
            reader.read_body(held_body)
            receipt.clock.note_answer()
            await _send_whole(reply, held_body, sink, receipt)
            return
        # The body is too large to hold, or empty. (The reply to a HEAD is empty, but has the length of a GET's.)
        _send_head(reply, sink, receipt)
        reader.read_piece(held_body)
        await sink.write(held_body)
    async for chunk in chunks:
        if not sink.has_started:
            _send_head(reply, sink, receipt)
        reader.read_piece(chunk)
        await sink.write(chunk)
    if not sink.has_started:
        _send_head(reply, sink, receipt)
    reader.read_piece(b"")  # an empty body has come as well
    reader.end()
    await sink.end()


async def _read_past_limit(chunks: AsyncIterator[bytes], limit_bytes: int) -> bytes:
    """Returns a body, or as much of it as first exceeds the limit."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            break
    return b"".join(pieces)


def _send_head(reply: ModelReply, sink: Sink, receipt: Receipt) -> None:
    """Sets status and headers of the client's reply."""
    receipt.clock.note_answer()
    headers = receipt.note_reply_head(choose_forwarded_headers(reply.headers))
    # A stream has no length: the gateway may add comments, and an error event at its end.
    if not reply.is_stream and reply.size_bytes is not None:
        headers.append(("content-length", str(reply.size_bytes)))
    sink.start(reply.status, headers)


def _send_whole(reply: ModelReply, body: bytes, sink: Sink, receipt: Receipt) -> Awaitable[None]:
    return sink.send_body(
        reply.status, receipt.note_reply_head(choose_forwarded_headers(reply.headers)), body
    )


def choose_forwarded_headers(headers: Sequence[Header]) -> tuple[Header, ...]:
    """Returns the upstream's headers that the client gets."""
    return tuple([each for each in headers if _is_forwarded(each[0])])


@lru_cache(maxsize=1024)  # upstreams send the same few names with every reply
def _is_forwarded(name: str) -> bool:
    return name not in _WITHHELD_HEADERS and not name.startswith(_RESERVED_PREFIXES)


class _ReplyReader:
    """Reads the usage and the errors of a reply, as it passes."""

    def __init__(self, attempts: Attempts, reply: ModelReply) -> None:
        self._attempts = attempts
        self.reply = reply
        self.call = call = attempts.call
        has_usage = call.costs_tokens and call.status < 300
        # Reads the usage of the reply; None: the reply has none.
        self._usage = UsageReader(call.path) if has_usage else None

    def read_events(self, data: bytes) -> None:
        """Reads whole events."""
        self.call.note_piece(data)
        if self._usage is not None and data:
            self._usage.read_events(data)
            if (error := find_stream_exception(data)) is not None:
                self._attempts.note_broken(error)

    def read_body(self, body: bytes) -> None:
        self.call.note_piece(body)
        if self._usage is not None:
            self._usage.read_body(body)

    def read_piece(self, data: bytes) -> None:
        """Reads the usage of a piece of a body."""
        self.call.note_piece(b"")
        if self._usage is not None:
            self._usage.read_piece(data)

    def end(self) -> None:
        if self._usage is not None:
            self._usage.end()

    def note_usage(self) -> None:
        """Notes the usage of the reply in its call, as far as it came."""
        if self._usage is not None:
            self.call.note_usage(self._usage, self.reply.prompt_usage)


class ChangedEvents:
    """Cuts the events of a stream out of the pieces that arrive, and changes them."""

    def __init__(self, change: ReplyChange) -> None:
        self._change = change
        # Cuts the pieces into events.
        self._decoder = EventDecoder()

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now. Raises: ProviderTooLarge, UpstreamError."""
        return b"".join([self._change.change_event(event) for event in self._decoder.feed(data)])

    def take_rest(self) -> bytes:
        """Returns the changed events that are left at the end. Raises: UpstreamError."""
        try:
            return b"".join([self._change.change_event(event) for event in self._decoder.finish()])
        except UnfinishedEvent as error:
            return self._change.change_unfinished(error.rest)


class WholeEvents:
    """Holds back an event until it is whole, so that no comment of the gateway's stands in it.

    An event that is larger than `_MAX_EVENT_BYTES`, or that ends with lone carriage returns, is not held back.
    """

    def __init__(self) -> None:
        # The bytes that are held back, in the pieces in which they came.
        self._held: list[bytes] = []
        # The number of these bytes.
        self._size = 0
        # The last held bytes, in which the end of an event may have begun.
        self._searched = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now."""
        # Nearly all pieces end with their event, and are passed on without a search.
        if not self._held and data.endswith(b"\n\n"):
            return data
        searched = self._searched + data
        end = max(searched.rfind(mark) + len(mark) if mark in searched else 0 for mark in _EVENT_ENDS)
        whole_events = b""
        if end:
            cut_offset = end - len(self._searched)
            whole_events = self.take_rest() + data[:cut_offset]
            data = data[cut_offset:]
            searched = searched[end:]
        if data:
            self._held.append(data)
            self._size += len(data)
            self._searched = searched[1 - len(_EVENT_ENDS[-1]) :]
        if b"\r\r" in searched or self._size > _MAX_EVENT_BYTES:
            whole_events += self.take_rest()
        return whole_events

    def take_rest(self) -> bytes:
        """Returns the bytes that are held back, and drops them."""
        held_bytes = b"".join(self._held)
        self._held.clear()
        self._size = 0
        self._searched = b""
        return held_bytes
