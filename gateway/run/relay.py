"""The pass-through: one upstream call, its bytes handed on as they arrive. Memory has no part in it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adapters.base import ModelReply, Provider
from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from adapters.types import ModelRequest
from gateway.errors import GatewayError, UpstreamBroke, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.run.sink import Sink

__all__ = ["Receipt", "handed_on", "is_event_stream", "relay", "translate"]

Header = tuple[str, str]
# Cookies are between the upstream and us; the date of this response is our server's to say.
_NOT_HANDED_ON = frozenset(("date", "set-cookie"))
MAX_REPLY_BYTES = 256 * 1024 * 1024  # chosen: far above any completion, far below what would hurt the process


class Receipt:
    """What a reply says about its own making: `x-mnemogate-*` headers, and the time we added."""

    __slots__ = ("_came", "_sent", "added_ms", "begun", "headers")

    def __init__(self, begun: float, headers: Sequence[Header]) -> None:
        """begun: when the request arrived, by time.perf_counter()."""
        self.begun = begun
        self.headers = list(headers)
        self.added_ms = 0.0
        self._sent = self._came = 0.0

    def upstream_called(self) -> None:
        self._sent = time.perf_counter()

    def upstream_answered(self) -> None:
        self._came = time.perf_counter()

    def lines(self) -> list[Header]:
        """The headers, `x-mnemogate-added-ms` with them: our time before the call and after its first bytes."""
        now = time.perf_counter()
        self.added_ms = ((self._sent or now) - self.begun + (now - self._came if self._came else 0.0)) * 1000
        return [*self.headers, ("x-mnemogate-added-ms", f"{self.added_ms:.2f}")]


async def relay(provider: Provider, request: ModelRequest, sink: Sink, receipt: Receipt) -> int:
    """Answer `sink` with what the provider says; returns the upstream's status.

    Raises: UpstreamError and below; ClientGone, with the upstream's connection closed.
    """
    reply: ModelReply | None = None
    try:
        with sink.while_here():
            receipt.upstream_called()
            reply = await provider.send(request)
            headers = handed_on(reply.headers)
            if not is_event_stream(headers):
                # A whole reply is handed on whole: if the upstream breaks in its middle, that is still a status.
                body = await reply.read(MAX_REPLY_BYTES)
                receipt.upstream_answered()
                await sink.whole(reply.status, [*headers, *receipt.lines()], body)
                return reply.status
            async for chunk in reply.chunks():
                if not sink.started:
                    receipt.upstream_answered()
                    sink.start(reply.status, [*headers, *receipt.lines()])
                await sink.write(chunk)
            if not sink.started:
                sink.start(reply.status, [*headers, *receipt.lines()])
            await sink.end()
            return reply.status
    except ProviderError as error:
        raise translate(error) from error
    finally:
        if reply is not None:
            await reply.aclose()


def handed_on(headers: Sequence[Header]) -> list[Header]:
    """The upstream's headers that the client gets."""
    return [each for each in headers if each[0] not in _NOT_HANDED_ON]


def is_event_stream(headers: Sequence[Header]) -> bool:
    """Whether these response headers (lower-case names) announce server-sent events."""
    return any(name == "content-type" and value.startswith("text/event-stream") for name, value in headers)


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
