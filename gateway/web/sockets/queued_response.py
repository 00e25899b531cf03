"""A response that was requested over a WebSocket, with a connection of its own.

Several responses wait or are under way on one socket, and each can be cancelled alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.responses.socket import server_events
from gateway.dialects.responses.socket.client_events import CancelEvent, CreateEvent
from gateway.dialects.responses.socket.partial_output import PartialOutput
from gateway.web.body import ByteQuota


class ResponseConnection:
    """The client's connection for the request of one response. It has the members of `HttpConnection` that web uses."""

    has_whole_body = True
    is_refused = False  # the handshake of its socket was accepted

    def __init__(self, socket: Any) -> None:
        # A function that is called when the client has left. The reply under way (`ClientReply`) sets it.
        self.on_lost: Callable[[], object] | None = None
        self._socket = socket
        # True if `leave` was called.
        self._has_left = False

    @property
    def is_writing_paused(self) -> bool:
        return bool(self._socket.is_writing_paused)

    def is_closing(self) -> bool:
        return self._has_left

    def abort(self) -> None:
        """Closes the socket, unless this response was cancelled: then the socket stays open for other responses."""
        if not self._has_left:
            self._socket.abort()

    def leave(self) -> None:
        """Ends the response as if its client had closed the connection."""
        self._has_left = True
        if self.on_lost is not None:
            self.on_lost()


@dataclass(eq=False, slots=True)
class QueuedResponse:
    """A response that the client has requested, and that waits or is under way."""

    # The client's event that requests the response.
    request: CreateEvent
    # Counts the bytes of the request.
    quota: ByteQuota
    # The connection of the client for this response.
    connection: ResponseConnection
    # The id of the response that had ended just before this one was requested; None: no response had ended.
    ended_before_id: str | None
    # True: the client has cancelled the response.
    is_cancelled: bool = field(default=False, init=False)
    # True: the last event was sent.
    has_ended: bool = field(default=False, init=False)
    # The id of the response; None: not known yet.
    id: str | None = field(default=None, init=False)
    # The response as it was first sent; b"": nothing was sent.
    first_response: bytes = field(default=b"", init=False)
    # The number of events that were sent.
    sent_event_count: int = field(default=0, init=False)
    # The part of the output that was sent.
    output: PartialOutput = field(default_factory=PartialOutput, init=False)

    def begin(self, response: bytes) -> None:
        """Records the response as it is first sent."""
        self.first_response = response
        self.id = server_events.find_response_id(response)

    @property
    def client_id(self) -> str | None:
        """The id by which a client names this response.

        Before this response begins, the client does not know its id: Pipecat then names the response that ended before.
        """
        return self.id if self.id is not None else self.ended_before_id

    def matches(self, cancel: CancelEvent) -> bool:
        """Returns whether a client's `response.cancel` means this response."""
        if cancel.response_id is None:
            return self.request.stream_id == cancel.stream_id
        return cancel.response_id == self.client_id

    def cancel(self) -> None:
        """Ends a waiting response, or a response under way, for its client."""
        self.is_cancelled = True
        self.connection.leave()
