"""A task that does what is due, sleeps until more will be, and can be woken before. It never polls.

Its owner says what is due, and when. A failed run is logged and repeated later; it never ends the task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from storage.errors import StoreError

# The pause before a failed run is repeated.
AFTER_FAULT_S = 30.0
_log = logging.getLogger("mnemogate")


class PeriodicTask:
    """Repeats `step` when it is due or woken. name: in the log. start: runs once, before the first step.

    step: does what is due. Returns the seconds until more will be; None: not before it is woken.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[None]],
        step: Callable[[], Awaitable[float | None]],
    ) -> None:
        self._name = name
        self._start = start
        self._step = step
        self._wake = asyncio.Event()
        # Nothing was due when it last looked: it sleeps until it is woken.
        self.is_open_ended = True

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
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
            except Exception:
                # Whatever it is: nobody would start the task again.
                _log.exception("%s: a step failed", self._name)
                pause = AFTER_FAULT_S
            self.is_open_ended = pause is None
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
