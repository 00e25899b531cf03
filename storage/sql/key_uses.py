"""The times at which keys were used last. They are written now and then, and no request waits for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from storage.database import Database
from storage.errors import StoreUnavailable, is_known
from storage.key_record import Key
from storage.sql.statements import load

SQL = load("keys.sql")
_log = logging.getLogger("mnemogate")

# The pause between two records of a key's use, so that few requests write. Not measured: operators ask about days.
RECORDED_S = 3600.0
# The pause after a record that failed.
_RETRY_S = 60.0
# The most keys with a time at which their use is recorded again. Not measured: for another key it is read from the key.
_MAX_KEYS = 1024


class KeyUses:
    """Records the uses of keys. now: a clock, in seconds since the epoch."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now
        # The time at which the use of each key is to be recorded again, by its id.
        self._due: dict[int, float] = {}

    def record(self, key: Key) -> None:
        """Records that a key was presented, if a record is due. Returns before the record is written."""
        now = self._now()
        due = self._due.get(key.id)
        if due is None and key.used is not None:
            # The last use was recorded before this process started, or by another process.
            due = key.used + RECORDED_S
        # A record from a later time than now was made before the clock was put back, and does not count.
        if due is not None and due - RECORDED_S <= now < due:
            return
        if len(self._due) >= _MAX_KEYS:
            self._due.pop(next(iter(self._due)))
        self._due[key.id] = now + RECORDED_S
        values = (now, key.id, now - RECORDED_S)

        def handle_end(write: asyncio.Future[int]) -> None:
            if write.cancelled() or (error := write.exception()) is None:
                return
            self._due[key.id] = now + _RETRY_S
            if not is_known(error):
                _log.warning("The last use of key %d was not recorded: %s", key.id, error)

        try:
            write = self._database.bulk_write(lambda connection: connection.run(SQL["key_used"], values))
        except StoreUnavailable:  # which the store's health shows
            self._due[key.id] = now + _RETRY_S
        else:
            write.add_done_callback(handle_end)
