"""The time that a client may leave unread what it was sent."""

from __future__ import annotations

import asyncio


class WatchesReading(asyncio.Protocol):
    """A connection that is dropped when its client has read nothing for `send_timeout_s`.

    A whole reply is written at once, and nobody waits for its client: one that does not read would keep it in memory,
    and its connection, also where that is closed in order, for as long as it likes.
    """

    send_timeout_s = 60.0
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _reads_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # which waits for the last byte
            self.stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_watching()
        super().connection_lost(exc)

    def watch_reading(self) -> None:
        """Watches from now on whether what is left to send becomes less."""
        left = self.transport.get_write_buffer_size()
        if left and self._reads_timer is None:
            self._reads_timer = self.loop.call_later(self.send_timeout_s, self._look_at_reading, left)

    def _look_at_reading(self, before: int) -> None:
        self._reads_timer = None
        if self.transport.get_write_buffer_size() < before:
            self.watch_reading()
        else:
            self.transport.abort()

    def stop_watching(self) -> None:
        if self._reads_timer is not None:
            self._reads_timer.cancel()
            self._reads_timer = None
