"""Maintenance after turns, for which no reply waits: idle time confirms memory edits.

One task does it for the process. It sleeps until a conversation's idle time is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from gateway.core.conversation.change import plan_confirmation
from gateway.run.background.tasks import AFTER_FAULT_S, MIN_PAUSE_S, PeriodicTask
from storage.errors import StoreUnavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The most conversations with edits that one step confirms. Not measured: the next step follows after `MIN_PAUSE_S`.
_MAX_CONVERSATIONS = 64


class Maintenance:
    """Confirms the memory edits of conversations that were idle for some time."""

    def __init__(self, store: Store, idle_s: float, now: Callable[[], float]) -> None:
        """Confirms nothing yet: `task` does. idle_s: the idle time. now: returns seconds since the epoch."""
        self._store = store
        self._idle_s = idle_s
        self._now = now
        # The task that confirms turns.
        self.task = PeriodicTask("maintenance", self.perform_due)

    def note_pending_edits(self) -> None:
        """Notes a turn with memory edits: they are confirmed when no request has come for the idle time."""
        if self.task.sleeps_until_woken:
            self.task.wake()

    async def perform_due(self) -> float | None:
        """Confirms the edits that are due. Returns the seconds until the next step, or None if no edit is pending."""
        now = self._now()
        due = await self._store.turns.list_due(now - self._idle_s, now + self._idle_s, _MAX_CONVERSATIONS)
        has_failed = False
        for agent_row, conversation_row, is_named, last_at in due:
            decide = partial(plan_confirmation, now=now, idle_s=self._idle_s, is_named=is_named)
            try:
                await self._store.turns.confirm_edits(agent_row, conversation_row, last_at, now, decide)
            except StoreUnavailable:
                raise
            except Exception:  # the edits of the other conversations are confirmed all the same
                has_failed = True
                _log.exception(
                    "Memory edits of a conversation could not be confirmed, by a fault in the gateway."
                )
        if has_failed:
            return AFTER_FAULT_S
        if len(due) == _MAX_CONVERSATIONS:
            return MIN_PAUSE_S
        oldest_at = await self._store.turns.find_next_due()
        return None if oldest_at is None else max(MIN_PAUSE_S, oldest_at + self._idle_s - self._now() + 0.01)
