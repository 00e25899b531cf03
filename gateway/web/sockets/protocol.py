"""uvicorn's WebSocket connection as the gateway needs it: it outlives a shutdown, and ends a flood of frames.

It is imported with the first handshake, since most gateways never see one.
"""

from __future__ import annotations

import asyncio
from asyncio import BaseTransport
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from gateway.errors import Overloaded
from gateway.web.slow_reader import SlowReaderWatch
from gateway.web.sockets.arrival import Arrival

# The most frames of a client within a second, beyond one for each `_USUAL_FRAME_BYTES`: pings and requests are few.
# Each frame takes some 25 us of the event loop, however short it is.
MAX_SHORT_FRAMES: Final = 1_000
# Libraries divide large messages into frames of 4 KiB and more.
_USUAL_FRAME_BYTES: Final = 1024
# The bytes that are parsed at a time, so that frames are counted before all that was read is parsed. Not measured.
_BYTES_PARSED_AT_ONCE: Final = 4096


class SocketConnection(SlowReaderWatch, WebSocketsSansIOProtocol):
    """A connection that the server's shutdown leaves open until its session ends it (`on_shutdown`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The session sets both when it begins, and then checks whether the server is shutting down.
        self.arrival: Arrival | None = None
        self.on_shutdown: Callable[[], object] = lambda: None
        # The seconds for which a closing handshake waits for the client. Not measured; a live client answers at once.
        self.close_timeout = 2.0
        # The short frames since the start of the current second, which is a time of the loop's clock.
        self._second_start = 0.0
        self._short_frame_count = 0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}

    def data_received(self, data: bytes) -> None:
        """Parses bytes of the client in parts, and ends the connection if too many are in memory."""
        for start in range(0, len(data), _BYTES_PARSED_AT_ONCE):
            if self.transport.is_closing():
                return
            part = data[start : start + _BYTES_PARSED_AT_ONCE]
            self._short_frame_count = max(0, self._short_frame_count - len(part) // _USUAL_FRAME_BYTES)
            super().data_received(part)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake(self.conn.handshake_exc)
        if self.arrival is not None and not self.close_sent:
            # The buffered part of the newest frame, and the earlier frames of its message.
            arrived_bytes = len(self.conn.reader.buffer) + (self.conn.current_size or 0)
            try:
                self.arrival.note_arrived(arrived_bytes)
            except Overloaded as error:
                self.fail(CloseCode.TRY_AGAIN_LATER, str(error))

    def handle_events(self) -> None:
        if (now := self.loop.time()) > self._second_start + 1:
            self._second_start, self._short_frame_count = now, 0
        self._short_frame_count += len(self.conn.events)
        if self._short_frame_count > MAX_SHORT_FRAMES and not self.close_sent:
            self.fail(CloseCode.POLICY_VIOLATION, "there are too many short frames")
        else:
            super().handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.arrival is not None:
            self.arrival.note_arrived(0)
        super().connection_lost(exc)

    def handle_text(self, event: Frame) -> None:
        """Passes a text on as bytes, since the session parses it as JSON and reports mistakes in it."""
        self.handle_bytes(event)

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.close_sent:
            raise ClientDisconnected  # the session receives `websocket.disconnect` next
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # otherwise uvicorn logs that the handshake was not answered

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
        else:  # its handshake is not answered yet, so a client reads no frame
            self.close_sent = True
            self.abort()

    def handle_ping(self) -> None:
        # Pongs for a client that reads nothing would fill the memory, so they are taken from the buffer and dropped.
        if self.is_writing_paused:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.watch_reader()  # the connection is being closed, and the client still has to read the last bytes

    # -- the methods for the session

    @property
    def is_writing_paused(self) -> bool:
        """True if a write would wait for the client to read."""
        return not self.writable.is_set()

    def fail(self, code: int, reason: str) -> None:
        """Closes the connection with an error, as after a frame that cannot be parsed."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def abort(self) -> None:
        self.transport.abort()

    def shutdown(self) -> None:
        """Begins the shutdown of the connection. A session ends it itself, after the responses under way."""
        if self.close_sent:
            super().shutdown()
        else:
            self.on_shutdown()

    def _refuse_handshake(self, error: Exception) -> None:
        """Answers a handshake that `websockets` cannot parse (with a body, or very long); uvicorn waits for more."""
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        response = self.conn.reject(400, f"This is no handshake of a WebSocket: {error.__cause__}.\n")
        self.transport.write(response.serialize())
        self.transport.close()
