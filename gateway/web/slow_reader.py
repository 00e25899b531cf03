"""The bound on the time for which a client reads nothing, for all protocols of uvicorn."""

from __future__ import annotations

import asyncio


class SlowReaderWatch(asyncio.Protocol):
    """Drops a connection if its client has read nothing for `send_timeout_s`.

    A whole reply is written at once, and would stay in memory until its client reads it, also while the connection
    closes in order.
    """

    # The seconds for which a client may read nothing.
    send_timeout_s = 60.0
    # The event loop of the connection, which the protocol sets.
    loop: asyncio.AbstractEventLoop
    # The transport of the connection, which the protocol sets.
    transport: asyncio.Transport
    # Calls `_check_reader`; None: no byte waits for the client.
    _reader_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        # While the connection closes, the last byte has to be read as well.
        if self._reader_timer is not None and not self.transport.is_closing():
            self._reader_timer.cancel()
            self._reader_timer = None

    def watch_reader(self) -> None:
        """Checks from now on that the client reads: fewer bytes are left to send each time."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes and self._reader_timer is None:
            self._reader_timer = self.loop.call_later(self.send_timeout_s, self._check_reader, unsent_bytes)

    def _check_reader(self, earlier_bytes: int) -> None:
        self._reader_timer = None
        if self.transport.get_write_buffer_size() < earlier_bytes:
            self.watch_reader()
        else:
            self.transport.abort()
