"""The check of a database's health while no request uses it, so that an outage is known before the next request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from storage.errors import StoreError

# The seconds between two checks. Common load balancers ask for health every 5 to 15 s. Checks every second would cost
# more statements, and checks every 30 s would show an outage late.
CHECK_S = 5.0
_log = logging.getLogger("mnemogate")


class HealthCheck:
    """Repeats a check of one database."""

    def __init__(self, check: Callable[[], Awaitable[object]], every_s: float) -> None:
        """Makes the check; `start` starts it.

        check: the function that uses the database; the database notes its own faults.
        every_s: the seconds between two checks.
        """
        self._check = check
        self._every_s = every_s
        self._is_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the checks. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run_checks())

    def check_soon(self) -> None:
        """Makes the next check due now, since there is a sign of a fault."""
        self._is_due.set()

    async def close(self) -> None:
        """Ends the checks. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run_checks(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._check()
            except StoreError:
                # The database's health shows the error.
                pass
            except Exception:
                # No error may end the checks, because nothing would start them again.
                _log.exception(
                    "The check of the database's health failed. It is repeated in %g s.", self._every_s
                )
