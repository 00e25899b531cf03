"""Replays the replies of the model that an earlier attempt at a turn has noted, and then asks an upstream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from adapters.base import ModelReply
from adapters.sse import EventDecoder
from adapters.types import EVENT_STREAM_HEADER, JSON_HEADER, Event
from adapters.whole_reply import BufferedReply
from gateway.errors import GatewayError
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.endpoint import Endpoint, RequestMaker, RequestRepairer
from gateway.run.upstream_call import UpstreamCall


class _BufferedStream(BufferedReply):
    """A noted reply that its upstream sent as a stream."""

    is_stream = True

    async def events(self) -> AsyncIterator[list[Event]]:
        yield EventDecoder().feed(self.body)


@dataclass(slots=True)
class ReplayedReplies:
    """The noted replies, then the replies of an upstream. Implements `ModelSource`, which documents the methods.

    No upstream is asked for a noted reply, so none of its tokens count again.
    """

    # The attempts at an upstream, which follow the noted replies.
    attempts: Attempts
    # The noted replies that were not returned yet, each a stream or a body.
    replies: list[bytes]
    # The call of the noted reply that was returned last, which is in no receipt; None: an upstream was asked since.
    _noted_call: UpstreamCall | None = field(default=None, init=False)

    @property
    def endpoint(self) -> Endpoint:
        return self.attempts.endpoint

    @property
    def call(self) -> UpstreamCall:
        return self.attempts.call if self._noted_call is None else self._noted_call

    async def send(self, make: RequestMaker, repairer: RequestRepairer | None = None) -> ModelReply:
        if not self.replies:
            self._noted_call = None
            return await self.attempts.send(make, repairer)
        self._noted_call = UpstreamCall(time.perf_counter())
        reply = self.replies.pop(0)
        # A stream was noted as the gateway has read it, a body as its upstream sent it.
        is_stream = reply.startswith(b"data: ")
        if is_stream:
            return _BufferedStream(200, (EVENT_STREAM_HEADER,), reply)
        return BufferedReply(200, (JSON_HEADER,), reply)

    def note_prompt_tokens(self, estimated: int, actual: int, max_tokens: int) -> None:
        self.attempts.note_prompt_tokens(estimated, actual, max_tokens)

    def note_broken(self, error: GatewayError) -> None:
        self.attempts.note_broken(error)
