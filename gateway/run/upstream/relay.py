"""The relay of a reply: its bytes are handed on as they arrive. Memory has no part in it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final

from adapters.base import MAX_REPLY_BYTES, ModelReply
from adapters.errors import ProviderError
from adapters.types import Header
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.errors import translate
from gateway.run.upstream.keepalive import BEAT, beating

# Cookies are between the upstream and us. The date of this response, which web pages may read it (access-control-*)
# and the receipt (x-mnemogate-*) are our own to say.
_NOT_HANDED_ON: Final = frozenset(("date", "set-cookie"))
_OURS: Final = ("access-control-", "x-mnemogate-")
# Chosen: events are some hundred bytes; one with an image may be larger than this.
_MAX_EVENT_BYTES: Final = 1024 * 1024


async def relay(
    sending: Awaitable[ModelReply],
    sink: Sink,
    receipt: Receipt,
    beat_s: float = 0.0,
    json_bytes: int | None = None,
) -> int:
    """Answers `sink` with the upstream's reply; returns its status.

    beat_s: a comment goes into an event stream after so much silence; 0: never. json_bytes: of the bodies that are no
    event stream only JSON is held until it is whole, and no more than this of it; None: every body is held.
    Raises: UpstreamError and below; ClientGone, with the upstream's connection closed.
    """
    reply: ModelReply | None = None
    try:
        with sink.while_here():
            receipt.upstream_called()
            reply = await sending
            held_bytes = json_bytes
            if json_bytes and not dict(reply.headers).get("content-type", "").startswith("application/json"):
                held_bytes = 0
            await _hand_on(reply, sink, receipt, beat_s, held_bytes)
            return reply.status
    except ProviderError as error:
        raise translate(error) from error
    finally:
        if reply is not None:
            await reply.aclose()


async def _hand_on(
    reply: ModelReply, sink: Sink, receipt: Receipt, beat_s: float, held_bytes: int | None
) -> None:
    """Writes a reply to `sink` as it arrives.

    held_bytes: a body that is no event stream and no larger than this is sent only when it is whole, so that one
    that breaks in its middle is still a status. A larger one goes on from there as it comes. None: every body is held.
    """
    headers = handed_on(reply.headers)

    def start() -> None:
        if not sink.started:
            receipt.upstream_answered()
            sink.start(reply.status, [*headers, *receipt.close()])

    async def whole(body: bytes) -> None:
        receipt.upstream_answered()
        await sink.whole(reply.status, [*headers, *receipt.close()], body)

    if not reply.is_stream and held_bytes is None:
        await whole(await reply.read(MAX_REPLY_BYTES))
        return
    chunks = reply.chunks()
    if not reply.is_stream and held_bytes:
        held: list[bytes] = []
        size = 0
        async for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size > held_bytes:
                break
        if size <= held_bytes:
            await whole(b"".join(held))
            return
        # Too large to hold: from here on it goes as it comes.
        start()
        await sink.write(b"".join(held))
    # Bytes of an event that is not complete. They wait, because a comment or our last event must not break into it.
    rest = b""
    async with beating(chunks, beat_s if reply.is_stream else 0.0) as beats:
        async for chunk in beats:
            start()
            # The common chunk ends with its event, and is passed on without a search.
            if reply.is_stream and chunk is not BEAT and (rest or not chunk.endswith(b"\n\n")):
                chunk, rest = _split_events(rest + chunk)
            await sink.write(chunk)
    start()
    await sink.write(rest)
    await sink.end()


def handed_on(headers: Sequence[Header]) -> list[Header]:
    """Returns the upstream's headers that the client gets."""
    return [each for each in headers if each[0] not in _NOT_HANDED_ON and not each[0].startswith(_OURS)]


def _split_events(data: bytes) -> tuple[bytes, bytes]:
    """Returns the whole events, and the beginning of the next. Nobody can read an event before its end.

    One that is larger than `_MAX_EVENT_BYTES`, or separated by lone carriage returns, is not waited for.
    """
    end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in (b"\n\n", b"\r\n\r\n"))
    if not end and (b"\r\r" in data or len(data) > _MAX_EVENT_BYTES):
        return data, b""
    return data[:end], data[end:]
