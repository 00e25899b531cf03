"""The counters of usage that are not in the table yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.masks import mask_keys_in_name
from storage.usage_records import COUNTERS, FORGOTTEN_USER, UsageKey, add_counters

# The number of keys in memory from which on new keys have no user. From twice this number on they have no model either:
# callers can make up both.
MAX_KEYS: Final = 50_000
# The most characters of a model's name: more than a real one has.
_NAME_CHARS: Final = 256
# The positions of the counters in a row.
(
    REQUESTS, REFUSED, ERRORS, CANCELLED, CALLS, INPUT, OUTPUT, CACHED, WRITTEN, REASONING, ESTIMATED_INPUT,
    ESTIMATED_OUTPUT, INJECTED, EVICTED, BACKGROUND_INPUT, BACKGROUND_OUTPUT, BATCH_INPUT, BATCH_OUTPUT, COST,
    UNPRICED, ANSWERED, QUESTIONS,
) = range(len(COUNTERS))  # fmt: skip


class UnwrittenCounters:
    """Rows of counters by their keys: one row for each key, however many requests it counts."""

    def __init__(self) -> None:
        # The counters by their keys.
        self._rows: dict[UsageKey, list[int]] = {}
        # The keys by user, for the limits of one user.
        self._keys_of_user: dict[str, set[UsageKey]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: UsageKey) -> bool:
        return key in self._rows

    def list_keys(self) -> list[UsageKey]:
        return sorted(self._rows)

    def get_or_create(self, key: UsageKey) -> list[int]:
        """Returns the counters of a key, and makes them if there are none.

        If there are too many keys (`MAX_KEYS`), a new key loses its user or its model.
        """
        row = self._rows.get(key)
        if row is None:
            size, model = len(self._rows), mask_keys_in_name(key.model[:_NAME_CHARS])
            key = key._replace(
                user="" if size >= MAX_KEYS else key.user, model="" if size >= 2 * MAX_KEYS else model
            )
            row = self._rows.setdefault(key, [0] * len(COUNTERS))
            self._keys_of_user.setdefault(key.user, set()).add(key)
        return row

    def select(self, first_day: int, last_day: int, filters: Mapping[str, str | int]) -> list[list[int]]:
        """Returns the counters of some days, both included. filters: the values that fields of the keys have."""
        user = filters.get("user")
        keys = self._rows if user is None else self._keys_of_user.get(str(user), ())
        return [
            self._rows[key]
            for key in keys
            if first_day <= key.day <= last_day
            and all(getattr(key, name) == value for name, value in filters.items())
        ]

    def pop(self, key: UsageKey) -> list[int]:
        """Returns the counters of a key, and drops them."""
        keys = self._keys_of_user[key.user]
        keys.discard(key)
        if not keys:
            del self._keys_of_user[key.user]
        return self._rows.pop(key)

    def forget(self, project: str, user: str) -> None:
        """Removes a user's name from the keys."""
        for key in [key for key in self._keys_of_user.get(user, ()) if key.project == project]:
            row = self.pop(key)
            add_counters(self.get_or_create(key._replace(user=FORGOTTEN_USER)), row)
