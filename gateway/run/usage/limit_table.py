"""The limits as they were last read from the store, and which of them hold for a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from operator import attrgetter
from typing import Final

from gateway.core.usage.limit_rules import MEASURED_UNITS, list_limits
from gateway.run.receipt import Receipt
from storage.errors import StoreError, is_known
from storage.sql.store import Store
from storage.usage_records import EACH_USER, UsageLimit

_log = logging.getLogger("mnemogate")

# The pause before limits that could not be read are read again. Not measured: the limits stay as they were for as long.
_RETRY_S: Final = 1.0
# The most callers with cached limits. Not measured: the limits of another caller are looked up again.
_MAX_CALLERS: Final = 4096
# Sorts limits.
_ID: Final = attrgetter("id")


class LimitTable:
    """The limits of all projects. There is one for the process."""

    def __init__(self, store: Store, on_change: Callable[[Set[int]], None]) -> None:
        """Begins without limits; `load` reads them. on_change: is called with the ids of the new ones."""
        self._store = store
        self._on_change = on_change
        # All limits by their ids.
        self.by_id: dict[int, UsageLimit] = {}
        # The limits by project, then by key and user. Only projects with limits are in it.
        self._limits: dict[str, dict[tuple[int | None, str | None], list[UsageLimit]]] = {}
        # The keys and users that limits name.
        self._named_holders: set[int | str | None] = set()
        # The results of `_find_limits`, until the limits change.
        self._cached_limits = lru_cache(maxsize=_MAX_CALLERS)(self._find_limits)
        # Held while the limits are read.
        self._lock = asyncio.Lock()
        # The number of the last change of the limits.
        self._last_change = 1
        # The number of the last change when the limits were last read.
        self._loaded_change = 0
        # Set when the limits may have changed.
        self._wake = asyncio.Event()
        self._wake.set()
        store.limits.add_listener(self._note_change)
        store.database.add_recovery_listener(self._note_change)

    async def load(self) -> None:
        """Reads the limits, if they may have changed. Raises: StoreError."""
        async with self._lock:
            if self._loaded_change < self._last_change:
                # It may rise while the limits are read.
                last_change = self._last_change
                self._replace(await self._store.limits.list())
                self._loaded_change = last_change

    async def try_load(self, wait_s: float) -> None:
        """Reads the limits before a request, if they may have changed. After an error, the old ones hold."""
        if self._loaded_change == self._last_change:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self.load()
        except TimeoutError:
            pass  # `run` reads them
        except StoreError as error:
            if not is_known(error):
                _log.warning("Limits are not known, and hold as they were: %s", error.message)

    async def run(self) -> None:
        """Reads the limits again when they have changed, until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.load()
            except StoreError as error:
                if not is_known(error):
                    _log.warning("Limits could not be read, and stay as they were: %s", error.message)
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _note_change(self) -> None:
        self._last_change += 1
        self._wake.set()

    def _replace(self, limits: Sequence[UsageLimit]) -> None:
        """Replaces the limits by those that were read."""
        self._limits = {}
        for limit in limits:
            project_limits = self._limits.setdefault(limit.project, {})
            project_limits.setdefault((limit.key_id, limit.user), []).append(limit)
        old_ids = self.by_id.keys()
        self.by_id = {limit.id: limit for limit in limits}
        self._named_holders = {name for limit in limits for name in (limit.key_id, limit.user)}
        self._cached_limits.cache_clear()
        self._on_change(self.by_id.keys() - old_ids)

    def has_any(self, project: str) -> bool:
        return project in self._limits

    def choose(self, receipt: Receipt) -> Sequence[UsageLimit]:
        """Returns the limits that hold for a request, or for the work that continues it, by their ids."""
        limits = self.choose_for(receipt.project, receipt.key_id, receipt.user)
        if receipt.work is not None:
            return [limit for limit in limits if limit.unit in MEASURED_UNITS]
        return limits if receipt.asks_model else [limit for limit in limits if limit.unit == "requests"]

    def choose_for(self, project: str, key_id: int, user: str) -> Sequence[UsageLimit]:
        """Returns the limits that hold for requests of a key and a user, by their ids."""
        # All callers that no limit names are looked up as one caller, so their names are not cached.
        known_key_id = key_id if key_id in self._named_holders else 0
        known_user = user if user in self._named_holders else ""
        return self._cached_limits(project, known_key_id, known_user)

    def _find_limits(self, project: str, key_id: int, user: str) -> Sequence[UsageLimit]:
        """Returns the limits that hold for requests of a key and a user, which `choose_for` caches."""
        project_limits = self._limits.get(project)
        if project_limits is None:
            return []
        # Looked up by holder: a project may have a limit for each of thousands of keys or users.
        holders = [
            (holder_key, holder_user)
            for holder_key in (None, key_id)
            for holder_user in {None, EACH_USER, user}
        ]
        limits = [limit for holder in holders for limit in project_limits.get(holder, ())]
        return list_limits(sorted(limits, key=_ID), key_id, user)
