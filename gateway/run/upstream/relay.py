"""The pass-through: one upstream call, its bytes handed on as they arrive. Memory has no part in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from adapters.base import ModelReply
from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from adapters.types import Header, ModelRequest
from gateway.core.turn.stream import is_event_stream
from gateway.errors import GatewayError, UpstreamBroke, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.keepalive import BEAT, with_beats

__all__ = ["MAX_REPLY_BYTES", "handed_on", "kind_of", "relay", "split_events", "translate"]

# Cookies are between the upstream and us; the date of this response is our server's to say, and which web pages may
# read it (access-control-*) and what was done here (x-mnemogate-*) ours too.
_NOT_HANDED_ON = frozenset(("date", "set-cookie"))
_OURS = ("access-control-", "x-mnemogate-")
MAX_EVENT_BYTES = (
    1024 * 1024
)  # chosen: events are some hundred bytes; one with an image may be larger than this
MAX_REPLY_BYTES = 256 * 1024 * 1024  # chosen: far above any completion, far below what would hurt the process


class Sends(Protocol):
    """What is asked of whoever is called: gateway.run.upstream.failover.Tries, or a provider."""

    async def send(self, request: ModelRequest) -> ModelReply: ...


async def relay(
    upstream: Sends, request: ModelRequest, sink: Sink, receipt: Receipt, beat_s: float = 0.0
) -> int:
    """Answer `sink` with what the upstream says; returns its status.

    beat_s: a comment goes into an event stream after so much silence; 0: never.
    Raises: UpstreamError and below; ClientGone, with the upstream's connection closed.
    """
    reply: ModelReply | None = None
    beats: AsyncGenerator[bytes] | None = None
    try:
        with sink.while_here():
            receipt.upstream_called()
            reply = await upstream.send(request)
            headers = handed_on(reply.headers)
            if not is_event_stream(reply.status, headers):
                # A whole reply is handed on whole: if the upstream breaks in its middle, that is still a status.
                body = await reply.read(MAX_REPLY_BYTES)
                receipt.upstream_answered()
                await sink.whole(reply.status, [*headers, *receipt.lines()], body)
                return reply.status
            rest = b""  # of an event that is not complete: what follows its break must stand on a line of its own
            beats = with_beats(reply.chunks(), beat_s) if beat_s else None
            async for chunk in beats or reply.chunks():
                if not sink.started:
                    receipt.upstream_answered()
                    sink.start(reply.status, [*headers, *receipt.lines()])
                if chunk is BEAT:
                    await sink.write(BEAT)
                    continue
                if rest or not chunk.endswith(b"\n\n"):
                    chunk, rest = split_events(rest + chunk)
                await sink.write(chunk)
            if not sink.started:
                sink.start(reply.status, [*headers, *receipt.lines()])
            await sink.write(rest)
            await sink.end()
            return reply.status
    except ProviderError as error:
        raise translate(error) from error
    finally:
        if beats is not None:
            await beats.aclose()
        if reply is not None:
            await reply.aclose()


def split_events(data: bytes) -> tuple[bytes, bytes]:
    """Whole events, and the beginning of the next. Nobody can read an event before its end, so this holds up nothing.

    One that is larger than `MAX_EVENT_BYTES`, or told apart by lone carriage returns, is not waited for.
    """
    end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in (b"\n\n", b"\r\n\r\n"))
    if not end and (b"\r\r" in data or len(data) > MAX_EVENT_BYTES):
        return data, b""
    return data[:end], data[end:]


def kind_of(error: GatewayError) -> str:
    """An upstream's error in the words of the metrics."""
    match error:
        case UpstreamTimeout():
            return "timeout"
        case UpstreamUnreachable():
            return "unreachable"
        case _:
            return "broke"


def handed_on(headers: Sequence[Header]) -> list[Header]:
    """The upstream's headers that the client gets."""
    return [each for each in headers if each[0] not in _NOT_HANDED_ON and not each[0].startswith(_OURS)]


def translate(error: ProviderError) -> GatewayError:
    """The gateway's error for a provider's."""
    message = str(error) or "The upstream could not be used."
    match error:
        case ProviderTimeout():
            return UpstreamTimeout(message)
        case ProviderUnreachable():
            return UpstreamUnreachable(message)
        case ProviderBroke() | ProviderTooLarge():
            return UpstreamBroke(message)
        case _:
            return UpstreamError(message)
