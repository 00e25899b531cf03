"""Background tasks: steps that are repeated when they are due or woken, and work that is done once at the start.

A failed step is logged and repeated later; it never ends its task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from storage.errors import StoreError, is_known
from storage.sql.store import Store

# The pause before a failed step is repeated.
AFTER_FAULT_S = 30.0
# The least pause between two steps of a task, so that one step does all work that falls due within it. Not
# measured.
MIN_PAUSE_S = 1.0
# The pause before failed work at the start is repeated. A database in the middle of an upgrade is soon free.
RETRY_START_S = 5.0
_log = logging.getLogger("mnemogate")


@dataclass(eq=False)
class PeriodicTask:
    """Repeats a step. Between two steps it sleeps until the next one is due, or until it is woken."""

    # The name in the log.
    name: str
    # Does the work that is due. Returns the seconds until the next step is due; None: not before the task is woken.
    step: Callable[[], Awaitable[float | None]]
    # True: no time is known for the next step, because the last step is under way or has returned None.
    sleeps_until_woken: bool = field(default=True, init=False)
    # Set when the task is woken.
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self.sleeps_until_woken = True
            try:
                pause_s = await self.step()
            except StoreError as error:
                # A fault that the store's health shows has been logged once for all tasks.
                if not is_known(error):
                    _log.warning(
                        "Background task %r failed and is repeated later: %s", self.name, error.message
                    )
                pause_s = AFTER_FAULT_S
            except Exception:
                # No error may end the task, because nothing would start it again.
                _log.exception(
                    "Background task %r failed by a fault in the gateway. It is repeated in %g s.",
                    self.name, AFTER_FAULT_S,
                )  # fmt: skip
                pause_s = AFTER_FAULT_S
            self.sleeps_until_woken = pause_s is None
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()


async def run_at_start(
    store: Store, work: Callable[[], Awaitable[None]], subject: str
) -> asyncio.Task[None] | None:
    """Does work that has to be done once when the process starts; later, if the store does not work yet.

    Returns the task that does the work later, or None if the work is done.

    subject: the name of the work's subject, for the log.
    """
    if store.health.is_up and await _try_work(work, subject):
        return None
    return asyncio.create_task(_run_later(store, work, subject))


async def _run_later(store: Store, work: Callable[[], Awaitable[None]], subject: str) -> None:
    """Does work once the store has recovered, and again until it succeeds. subject: its name, for the log."""
    recovered = asyncio.Event()
    store.database.add_recovery_listener(recovered.set)
    if not store.health.is_up:
        await recovered.wait()
    while True:
        if await _try_work(work, subject):
            return
        await asyncio.sleep(RETRY_START_S)


async def _try_work(work: Callable[[], Awaitable[None]], subject: str) -> bool:
    """Does the work. Returns False, and logs the reason, if the store does not work."""
    try:
        await work()
    except StoreError as error:
        _log.warning(
            "%s could not be looked up. Trying again in %g s: %s", subject, RETRY_START_S, error.message
        )
        return False
    return True
