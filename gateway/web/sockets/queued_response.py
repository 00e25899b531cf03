"""A response that was asked for over a WebSocket, and the connection that its request has.

Several responses wait or are under way on one socket, and each can be left by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.dialects.responses.socket import server_events
from gateway.dialects.responses.socket.client_events import Cancel, Create
from gateway.dialects.responses.socket.partial_output import PartialOutput
from gateway.web.body import ByteQuota


class ResponseConnection:
    """The client's connection for the request of one response. Has what the edge uses of `HttpConnection`."""

    has_whole_body = True

    def __init__(self, socket: Any) -> None:
        self.on_lost: Callable[[], object] | None = None
        self._socket = socket
        self._has_left = False

    @property
    def is_full(self) -> bool:
        return bool(self._socket.is_full)

    def is_closing(self) -> bool:
        return self._has_left

    def abort(self) -> None:
        """Closes the socket, unless this response alone was left."""
        # The socket of a cancelled response stays open for the others.
        if not self._has_left:
            self._socket.abort()

    def leave(self) -> None:
        """Ends the response as if its client had closed the connection."""
        self._has_left = True
        if self.on_lost is not None:
            self.on_lost()


class QueuedResponse:
    """A response that was asked for."""

    def __init__(
        self, create: Create, quota: ByteQuota, connection: ResponseConnection, ended_before: str | None
    ) -> None:
        self.create = create
        # Counts the bytes of the request.
        self.quota = quota
        self.connection = connection
        # The id of the response that had ended before this one was asked for; None: there was none.
        self.ended_before = ended_before
        self.is_cancelled = False
        self.has_ended = False
        self.id: str | None = None
        # The response as it was first sent; empty: nothing was sent.
        self.first_sent = b""
        self.sent_events = 0
        # The part of the output that was sent.
        self.output = PartialOutput()

    def begin(self, response: bytes) -> None:
        """Notes the response as it is first sent."""
        self.first_sent, self.id = response, server_events.id_of(response)

    @property
    def client_id(self) -> str | None:
        """The id by which a client names this response.

        Before this response begins, the client knows no id of it: Pipecat then names the response that ended before.
        """
        return self.ended_before if self.id is None else self.id

    def matches(self, cancel: Cancel) -> bool:
        """Returns whether a client wants this response cancelled."""
        if cancel.response is None:
            return self.create.stream_id == cancel.stream_id
        return cancel.response == self.client_id

    def cancel(self) -> None:
        """Ends this response for its client, whether it waits or is under way."""
        self.is_cancelled = True
        self.connection.leave()
