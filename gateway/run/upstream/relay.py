"""The relay of a reply in which memory has no part: its bytes are handed on as they arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Final

from adapters.base import MAX_REPLY_BYTES, ModelReply
from adapters.errors import ProviderError, UnfinishedEvent
from adapters.sse import EventDecoder
from adapters.types import Header
from gateway.core.turn.native_form import ReplyChange
from gateway.core.usage.asked import without_usage
from gateway.core.usage.reported import UsageReader
from gateway.run.receipt import Receipt, UpstreamCall
from gateway.run.sink import Sink
from gateway.run.upstream.failover import Attempts, RequestMaker
from gateway.run.upstream.keepalive import BEAT, beating
from gateway.run.upstream.provider_errors import translate

# Cookies are between the upstream and the gateway. The gateway itself gives the response its date, the headers for web
# pages (access-control-*) and the receipt (x-mnemogate-*).
_NOT_HANDED_ON: Final = frozenset(("date", "set-cookie"))
_RESERVED: Final = ("access-control-", "x-mnemogate-")
# Events have some hundred bytes; only one with an image may be larger than this.
_MAX_EVENT_BYTES: Final = 1024 * 1024
_MARKS: Final = (b"\n\n", b"\r\n\r\n")  # the ends of an event, the longest last


async def relay(
    attempts: Attempts,
    make: RequestMaker,
    sink: Sink,
    receipt: Receipt,
    beat_s: float,
    json_bytes: int | None = None,
    change: ReplyChange | None = None,
) -> None:
    """Answers `sink` with the upstream's reply.

    make: makes the request, which is sent only if the client is still there.
    beat_s: a comment goes into an event stream after so much silence; 0: never.
    json_bytes: of the bodies that are no event stream only JSON is held until it is whole, and no more than
        this of it; None: every body is held, as it has to be for a change.
    change: of a success; None: it goes on in its own bytes.

    Raises: UpstreamError and below; ClientGone, with the upstream's connection closed.
    """
    reply: ModelReply | None = None
    try:
        with sink.while_here():
            receipt.upstream_called()
            reply = await attempts.send(make)
            account = _CallReader(attempts.call)
            if reply.is_stream or json_bytes is not None:
                await _hand_on(reply, sink, receipt, account, beat_s, json_bytes or 0, change)
            else:
                body = await reply.read(MAX_REPLY_BYTES)
                account.take_body(body)
                if change is not None and reply.status < 300:
                    body = change.whole(body)
                receipt.upstream_answered()
                await _whole(reply, body, sink, receipt)
    except ProviderError as error:
        raise translate(error) from error
    finally:
        if reply is not None:
            await reply.aclose()


async def _hand_on(
    reply: ModelReply,
    sink: Sink,
    receipt: Receipt,
    account: _CallReader,
    beat_s: float,
    json_bytes: int,
    change: ReplyChange | None,
) -> None:
    """Writes a reply to `sink` as it arrives.

    json_bytes: JSON that is no larger than this is sent only when it is whole, so that one that breaks in its middle is
    still a status. A larger one goes on from there as it comes.
    """
    chunks, hides_usage = reply.chunks(), account.call.hides_usage and reply.is_stream
    if not reply.is_stream and dict(reply.headers).get("content-type", "").startswith("application/json"):
        held: list[bytes] = []
        size = 0
        async for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size > json_bytes:
                break
        if 0 < size <= json_bytes:
            body = b"".join(held)
            account.take_body(body)
            receipt.upstream_answered()
            await _whole(reply, body, sink, receipt)
            return
        # Too large to hold: from here on it goes as it comes. Or there is nothing, to a HEAD with the length of a GET.
        _start(reply, sink, receipt)
        account.take_piece(b"".join(held))
        await sink.write(b"".join(held))
    events = WholeEvents() if change is None else ChangedEvents(change)
    async with beating(chunks, beat_s if reply.is_stream else 0.0) as beats:
        async for chunk in beats:
            if not sink.started:
                _start(reply, sink, receipt)
            if chunk is not BEAT:
                if reply.is_stream:
                    chunk = events.feed(chunk)
                    account.take_events(chunk)
                    if hides_usage:
                        chunk = without_usage(chunk)
                else:
                    account.take_piece(chunk)
            await sink.write(chunk)
    if not sink.started:
        _start(reply, sink, receipt)
    rest = events.rest()
    account.take_events(rest)
    await sink.write(without_usage(rest) if hides_usage else rest)
    account.end()
    await sink.end()


def _start(reply: ModelReply, sink: Sink, receipt: Receipt) -> None:
    receipt.upstream_answered()
    headers = receipt.reply_headers(handed_on(reply.headers))
    # A stream may get comments from the gateway, and an error event at its end.
    if not reply.is_stream and reply.size is not None:
        headers.append(("content-length", str(reply.size)))
    sink.start(reply.status, headers)


def _whole(reply: ModelReply, body: bytes, sink: Sink, receipt: Receipt) -> Awaitable[None]:
    return sink.whole(reply.status, receipt.reply_headers(handed_on(reply.headers)), body)


def handed_on(headers: Sequence[Header]) -> tuple[Header, ...]:
    """Returns the upstream's headers that the client gets."""
    return tuple([each for each in headers if _is_handed_on(each[0])])


@lru_cache(maxsize=1024)  # upstreams send the same few names with every reply
def _is_handed_on(name: str) -> bool:
    return name not in _NOT_HANDED_ON and not name.startswith(_RESERVED)


class _CallReader:
    """Reads a reply along for the account of its call."""

    def __init__(self, call: UpstreamCall) -> None:
        self.call = call
        has_usage = call.costs_tokens and call.status < 300
        self._usage = UsageReader(call.path) if has_usage else None

    def take_events(self, data: bytes) -> None:
        """Takes events that are whole."""
        self.call.received(data)
        if self._usage is not None and data:
            self._usage.take_events(data)
            self._note(self._usage)

    def take_body(self, body: bytes) -> None:
        self.call.received(body)
        if self._usage is not None:
            self._usage.take_body(body)
            self._note(self._usage)

    def take_piece(self, data: bytes) -> None:
        """Takes a piece of a body that is not held."""
        self.call.received(b"")
        if self._usage is not None:
            self._usage.take_piece(data)

    def end(self) -> None:
        if self._usage is not None:
            self._usage.end()
            self._note(self._usage)

    def _note(self, usage: UsageReader) -> None:
        self.call.counts, self.call.received_chars = usage.counts, usage.chars


class ChangedEvents:
    """The bytes of a stream as they are changed, event by event."""

    def __init__(self, change: ReplyChange) -> None:
        self._change = change
        self._decoder = EventDecoder()

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now. Raises: ProviderTooLarge, UpstreamError."""
        return b"".join([self._change.event(event) for event in self._decoder.feed(data)])

    def rest(self) -> bytes:
        """Returns what is left at the end. Raises: UpstreamError."""
        try:
            return b"".join([self._change.event(event) for event in self._decoder.finish()])
        except UnfinishedEvent as error:
            return self._change.unfinished(error.rest)


class WholeEvents:
    """The bytes of a stream up to the last event that is complete.

    The rest waits, because a comment or our last event must not break into it. An event that is larger than
    `_MAX_EVENT_BYTES`, or separated by lone carriage returns, is not waited for.
    """

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0
        self._searched = b""  # the last bytes that wait, in which the end of an event may have begun

    def feed(self, data: bytes) -> bytes:
        # The common piece ends with its event, and is passed on without a search.
        if not self._waiting and data.endswith(b"\n\n"):
            return data
        found = self._searched + data
        end = max(found.rfind(mark) + len(mark) if mark in found else 0 for mark in _MARKS)
        whole = b""
        if end:
            at = end - len(self._searched)
            whole, data, found = self.rest() + data[:at], data[at:], found[end:]
        if data:
            self._waiting.append(data)
            self._size += len(data)
            self._searched = found[1 - len(_MARKS[-1]) :]
        return whole + self.rest() if b"\r\r" in found or self._size > _MAX_EVENT_BYTES else whole

    def rest(self) -> bytes:
        """Returns what waits, and forgets it."""
        rest = b"".join(self._waiting)
        self._waiting.clear()
        self._size, self._searched = 0, b""
        return rest
