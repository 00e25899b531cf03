"""A task that does what is due, sleeps until more will be, and can be woken before. It never polls.

What is due, and when, its owner says; what fails is logged and makes a round late, never the task's end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from storage.errors import StoreError

__all__ = ["AFTER_FAULT_S", "PeriodicTask"]

AFTER_FAULT_S = 30.0  # until a failed round is tried again
_log = logging.getLogger("mnemogate")


class PeriodicTask:
    """name: in the log. start: once, before the first round.

    step: one round. Returns the seconds until the next; None: not before it is woken.
    """

    def __init__(
        self, name: str, start: Callable[[], Awaitable[None]], step: Callable[[], Awaitable[float | None]]
    ) -> None:
        self._name = name
        self._start = start
        self._step = step
        self._wake = asyncio.Event()
        self.is_open_ended = True  # nothing was due when it last looked: it sleeps until it is woken

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._start()
        except StoreError as error:
            _log.warning("%s: %s", self._name, error.message)
        except Exception:
            _log.exception("%s: the start failed", self._name)
        while True:
            try:
                pause = await self._step()
            except StoreError as error:
                _log.warning("%s: %s", self._name, error.message)
                pause = AFTER_FAULT_S
            except Exception:  # whatever it is: nobody would begin the task again
                _log.exception("%s: a round failed", self._name)
                pause = AFTER_FAULT_S
            self.is_open_ended = pause is None
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
