"""The listener of a process ends when it is stopped, at whatever moment that is, and says why it does not listen."""

from __future__ import annotations

import asyncio

import pytest

from storage.postgres import listen
from storage.postgres.connection import OwnConnection, PostgresTarget, RawConnection
from storage.postgres.listen import NotificationListener
from tests.gateway.two.proxy import Proxy
from tests.patience import PATIENCE_S, comes
from tests.storage.conftest import PostgresServer


class Ears(NotificationListener):
    """That of a process which ends at the moment in which the subclass calls `end`."""

    def __init__(self, url: str, factory: type[OwnConnection] = OwnConnection) -> None:
        super().__init__(PostgresTarget(url, factory=factory), lambda asked, at, answered: None, lambda: None)

    def end(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def have_ended(self) -> None:
        self.begin()
        assert self._task is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([self._task])
        assert self._task.cancelled()


async def test_a_listener_that_is_closed_as_it_hears_itself_ends(database: PostgresServer) -> None:
    ears = Ears(database.url)

    class Heard(asyncio.Event):
        async def wait(self) -> bool:  # type: ignore[override]
            await super().wait()
            ears.end()
            return True

    ears._probe_arrived = Heard()
    await ears.have_ended()


async def test_a_listener_that_is_closed_as_it_loses_its_connection_ends(database: PostgresServer) -> None:
    class Losing(Ears):
        def _handle_probe(self, raw: RawConnection, pid: int, channel: str, payload: str) -> None:
            super()._handle_probe(raw, pid, channel, payload)
            loop = asyncio.get_running_loop()
            raw.add_termination_listener(lambda _: loop.call_soon(self.end))
            loop.call_later(0.05, raw.terminate)

    await Losing(database.url).have_ended()


async def test_a_server_that_answers_no_more_is_said_to_be_the_reason(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "_ANSWER_S", 0.1)

    class Stalled(Ears):
        def _report_missed(self) -> None:
            if caplog.records:
                self.end()
            proxy.stall()  # it is connected, and about to ask

    await Stalled(proxy.url).have_ended()
    (said,) = caplog.messages
    assert said == (
        "Notifications from PostgreSQL are lost; changes by other gateways may be seen up to 15 s late. "
        "Reconnecting: PostgreSQL: no answer in time"
    )


async def test_a_connection_that_ends_is_logged_and_so_is_the_next_one(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mnemogate")
    ears = Ears(proxy.url)
    ears.begin()
    await comes(lambda: proxy.connection_count == 1 and ears._probe_arrived.is_set())
    proxy.refuse()
    await comes(lambda: any("are lost; changes by other gateways" in line for line in caplog.messages))
    proxy.allow()
    await comes(lambda: caplog.messages[-1] == "Notifications from PostgreSQL arrive again.")
    await ears.close()


async def test_a_connection_that_is_being_opened_is_replaced_too(proxy: Proxy) -> None:
    ears = Ears(proxy.url)
    proxy.stall()
    ears.begin()
    await comes(lambda: proxy.connection_count == 1)
    ears.reconnect()
    proxy.flow()
    await comes(lambda: proxy.connection_count == 2)
    await ears.close()


async def test_a_connection_that_listened_ends_the_long_pauses(proxy: Proxy) -> None:
    ears = Ears(proxy.url)
    proxy.refuse()
    ears.begin()
    await comes(lambda: ears._pause_s > listen._FIRST_PAUSE_S)
    proxy.allow()
    await comes(lambda: ears._probe_arrived.is_set() and ears._pause_s == listen._FIRST_PAUSE_S)
    await ears.close()


async def test_a_server_that_answers_no_listen_is_replaced(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler accepts a client before it has a session for it."""
    monkeypatch.setattr(listen, "_ANSWER_S", 0.1)

    class StalledConnection(OwnConnection):
        async def add_listener(self, channel: str, callback: object) -> None:
            proxy.stall()
            await super().add_listener(channel, callback)

    ears = Ears(proxy.url, StalledConnection)
    ears.begin()
    await comes(lambda: caplog.messages)
    assert caplog.messages[0].endswith("Reconnecting: PostgreSQL: no answer in time")
    await ears.close()
