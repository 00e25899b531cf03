"""The ears of a process end when they are told to, at whatever moment that is."""

from __future__ import annotations

import asyncio

from storage.postgres.connection import PostgresPlace, RawConnection
from storage.postgres.listen import NotificationListener
from tests.patience import PATIENCE_S
from tests.storage.conftest import PostgresServer


class Ears(NotificationListener):
    """Those of a process that is told to end at the moment in which the subclass calls `end`."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresPlace(url), lambda asked, at, answered: None)

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

    ears._hears_itself = Heard()
    await ears.have_ended()


async def test_a_listener_that_is_closed_as_it_loses_its_connection_ends(database: PostgresServer) -> None:
    class Losing(Ears):
        def _heard_itself(self, raw: RawConnection, pid: int, channel: str, payload: str) -> None:
            super()._heard_itself(raw, pid, channel, payload)
            loop = asyncio.get_running_loop()
            raw.add_termination_listener(lambda _: loop.call_soon(self.end))
            loop.call_later(0.05, raw.terminate)

    await Losing(database.url).have_ended()
