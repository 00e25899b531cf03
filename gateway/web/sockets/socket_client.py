"""The client of an open WebSocket: the events that it gets, and its responses that nothing else stores."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from starlette.types import Send

from gateway.dialects.responses.socket import server_events
from gateway.dialects.responses.socket.client_events import CreateEvent
from gateway.dialects.responses.socket.unstored import UnstoredResponses

# A close code (its registry at IANA).
_SERVICE_RESTART: Final = 1012


class SocketClient:
    """The client at the other end of a socket."""

    def __init__(self, send: Send, limit_bytes: int) -> None:
        """Begins with an open socket. limit_bytes: the most that its unstored responses may take."""
        self.unstored = UnstoredResponses(limit_bytes)
        # Nothing more is sent.
        self.is_closed = False
        self._send = send

    async def send_event(self, event: bytes, stream_id: str | None = None) -> None:
        """Sends an event, unless the socket is closed."""
        if not self.is_closed:
            with suppress(OSError):  # the client is closing the connection; the session receives that next
                await self._send(
                    {
                        "type": "websocket.send",
                        "text": server_events.with_stream_id(event, stream_id).decode(errors="replace"),
                    }
                )

    async def send_failure(self, request: CreateEvent, event: bytes) -> None:
        """Sends the error that a response ends with, and drops the unstored response that it continued."""
        self.unstored.drop(request.previous_id)
        await self.send_event(event, request.stream_id)

    async def close(self) -> None:
        """Closes the socket, so that the client connects again. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            with suppress(OSError):
                await self._send({"type": "websocket.close", "code": _SERVICE_RESTART})
