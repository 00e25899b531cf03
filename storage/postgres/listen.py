"""Notifications between processes that share a database (PostgreSQL's LISTEN and NOTIFY).

One connection listens; past a pooler it is a direct one. The process notifies itself now and then, to check that
notifications arrive: a pooler in transaction mode takes LISTEN and passes nothing on, and a machine that vanished
closes no connection. While the connection is lost, notifications may be missed, so all callbacks are called with None,
at once and then every `POLL_S` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from storage.database import POLL_S, Connection
from storage.errors import StoreError, StoreFailed
from storage.postgres.connection import NOW, PostgresTarget, RawConnection, connect
from storage.postgres.sqlstates import ASYNCPG_ERRORS, translate_error

NotificationCallback = Callable[[str | None], None]
_log = logging.getLogger("mnemogate")

# Channels belong to a whole database, in which other programs may have some, too.
_PREFIX = "mnemogate_"
# The channel on which a process notifies itself.
_PROBE_CHANNEL = f"{_PREFIX}self"
# The seconds within which the server has to answer a probe, its notification has to arrive, and all channels have to be
# listened to. Not measured: a third of `POLL_S`, so that a connection that has broken is noticed within `POLL_S`.
_ANSWER_S = POLL_S / 3
_NOTIFY = (
    "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS notification(channel, payload)"
)
_PROBE = f"SELECT pg_notify($1, $2), {NOW}"
_LOST_MESSAGE = (
    "Notifications from PostgreSQL are lost; changes by other gateways may be seen up to %d s late. "
    "Reconnecting: %s"
)
# The pause before the first attempt to connect again. The pause doubles with each attempt, up to the longest, until a
# notification arrives. Chosen, not measured.
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 10.0


class Notification(NamedTuple):
    """A notification to the other processes."""

    channel: str
    payload: str


class NotificationSender:
    """A process's sender of notifications. Notifications that come while it sends are sent together."""

    def __init__(self, send: Callable[[Sequence[Notification]], Awaitable[None]]) -> None:
        """Makes the sender. send: the function that sends notifications."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        # The notifications that are not sent yet.
        self._waiting: list[Notification] = []
        # The task that sends notifications; None: no notification waits.
        self._task: asyncio.Task[None] | None = None

    def add(self, notification: Notification) -> None:
        """Sends a notification soon, unless an equal notification waits already."""
        if notification in self._waiting:
            return
        self._waiting.append(notification)
        if self._task is None:
            self._task = self._loop.create_task(self._send_waiting())

    async def finish(self) -> None:
        """Waits until all that was added is sent."""
        if self._task is not None:
            await self._task

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                notifications = self._waiting
                self._waiting = []
                await self._send(notifications)
        finally:
            self._task = None


class NotificationListener:
    """A process's listener for notifications."""

    def __init__(
        self,
        target: PostgresTarget | None,
        report_reading: Callable[[float, float, float], None],
        report_loss: Callable[[], None],
    ) -> None:
        """Makes the listener; `begin` begins to listen.

        target: a database where notifications arrive; None: there is none, and the process polls.
        report_reading: the function that is called now and then with a reading of the database's clock (SharedClock).
        report_loss: the function that is called when the connection is lost.
        """
        self._target = target
        self._report_reading = report_reading
        self._report_loss = report_loss
        # Set when the notification of the last probe has arrived.
        self._probe_arrived = asyncio.Event()
        # Set when the present connection is lost, or is to be replaced.
        self._connection_lost = asyncio.Event()
        # True from the log of the connection's loss to the log of its return.
        self._has_failed = False
        # The pause before the next attempt to connect.
        self._pause_s = _FIRST_PAUSE_S
        # Each notification begins with its sender's name, so that a process ignores its own.
        self._name = secrets.token_hex(6)
        # The functions that are called with notifications, by the channel.
        self._callbacks: dict[str, list[NotificationCallback]] = {}
        # The task that listens; None: it has not begun, or has ended.
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to listen."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    def reconnect(self) -> None:
        """Replaces the connection: the database may have recovered on another server, and the old one still answer."""
        self._connection_lost.set()

    def add_listener(self, channel: str, callback: NotificationCallback) -> None:
        """Calls a function with the notifications of a channel, as `Database.add_listener`; before `begin`."""
        self._callbacks.setdefault(channel, []).append(callback)

    async def notify(self, connection: Connection, notifications: Sequence[Notification]) -> None:
        """Sends notifications over a connection, with the name of this process."""
        channels = [_PREFIX + notification.channel for notification in notifications]
        payloads = [f"{self._name} {notification.payload}" for notification in notifications]
        await connection.fetch_rows(_NOTIFY, (channels, payloads))

    async def close(self) -> None:
        """Ends listening. Idempotent."""
        task = self._task
        self._task = None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self) -> None:
        """Listens until it is cancelled, and connects again each time that the connection is lost."""
        loop = asyncio.get_running_loop()
        reported_at = -POLL_S
        while True:
            try:
                await self._listen_once()
            except (StoreError, *ASYNCPG_ERRORS) as error:
                if not self._has_failed:
                    self._has_failed = True
                    store_error = (
                        error if isinstance(error, StoreError) else translate_error(error, "PostgreSQL")
                    )
                    _log.warning(_LOST_MESSAGE, POLL_S, store_error.message)
            if loop.time() - reported_at >= POLL_S:
                reported_at = loop.time()
                self._report_missed()
            await asyncio.sleep(POLL_S if self._target is None else self._pause_s)
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    async def _listen_once(self) -> None:
        """Listens until the connection is lost."""
        if self._target is None:
            return
        # From here, so that `reconnect` also replaces a connection that is being opened.
        connection_lost = self._connection_lost = asyncio.Event()
        raw = await connect(self._target)
        try:
            raw.add_termination_listener(lambda _: connection_lost.set())
            async with asyncio.timeout(_ANSWER_S):
                for channel in self._callbacks:
                    await raw.add_listener(_PREFIX + channel, self._handle_notification)
                await raw.add_listener(_PROBE_CHANNEL, self._handle_probe)
            # Notifications from before the connection listened are lost.
            self._report_missed()
            while not connection_lost.is_set():
                await self._probe(raw)
                self._pause_s = _FIRST_PAUSE_S
                if self._has_failed:
                    self._has_failed = False
                    _log.warning("Notifications from PostgreSQL arrive again.")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await connection_lost.wait()
        finally:
            raw.terminate()
            self._report_loss()
        self._report_missed()

    async def _probe(self, raw: RawConnection) -> None:
        """Notifies itself, and asks for the time. Raises: StoreFailed if the notification does not arrive."""
        self._probe_arrived.clear()
        asked_at = time.time()
        ((_, at),) = await raw.fetch(_PROBE, _PROBE_CHANNEL, self._name, timeout=_ANSWER_S)
        self._report_reading(asked_at, at, time.time())
        try:
            # Python 3.11's `wait_for` may lose a cancellation that comes as the wait is over: `close` would not end.
            async with asyncio.timeout(_ANSWER_S):
                await self._probe_arrived.wait()
        except TimeoutError:
            raise StoreFailed("no notification arrives; behind a pooler set database.listen_url") from None

    def _handle_probe(self, raw: RawConnection, pid: int, channel: str, payload: str) -> None:
        if payload == self._name:
            self._probe_arrived.set()

    def _handle_notification(self, raw: RawConnection, pid: int, channel: str, payload: str) -> None:
        sender, _, content = payload.partition(" ")
        if sender != self._name:
            for callback in self._callbacks.get(channel.removeprefix(_PREFIX), ()):
                callback(content)

    def _report_missed(self) -> None:
        """Reports to all callbacks that notifications may have been missed."""
        for callbacks in self._callbacks.values():
            for callback in callbacks:
                callback(None)
