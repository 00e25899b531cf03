"""The buckets of limits, as this process counts them, and what was used of each before.

The sums of a day or month are read once for each subject; then this process counts along, and where gateways share a
database each write reads them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.core.usage.limit_rules import STORED_PERIODS, Bucket, bound_of
from gateway.run.usage.meter import ANSWERED, COST, DAY_S, INPUT, OUTPUT, Meter
from storage.errors import StoreError, is_known
from storage.sql.usage import Usage
from storage.usage_records import EACH_USER, UsageLimit, UsageQuery

_log = logging.getLogger("mnemogate")

# The number of buckets from which on those that can be read again are dropped. Callers name users, who each have some.
_MAX_BUCKETS: Final = 50_000
# The deadline of a read of what was used. Requests wait less long, and go on without it.
_READ_MS: Final = 60_000.0


class LimitBuckets:
    """The buckets of the present periods. There is one for the process."""

    def __init__(self, usage: Usage, meter: Meter, now: Callable[[], float]) -> None:
        """Makes it without buckets. now: seconds since the epoch."""
        self._usage = usage
        self._meter = meter
        self._now = now
        # By the limit's id and the subject: the user where each has a bucket, else "".
        self._buckets: dict[tuple[int, str], Bucket] = {}
        # How many buckets there are when they are dropped the next time.
        self._dropped_at = _MAX_BUCKETS
        # How many processes share the limits.
        self._processes = 1
        # By the bucket that is being loaded.
        self._loads: dict[Bucket, asyncio.Task[None]] = {}
        usage.when_forgotten(self._forget)

    def get(self, limits: Iterable[UsageLimit], user: str) -> list[Bucket]:
        """Returns the buckets of limits and a user for the present periods, in the same order; new ones have to be
        loaded.

        limits: as they are now, since only buckets that are there take part in the next change.
        """
        if len(self._buckets) >= self._dropped_at:
            self._drop_some()
        buckets, now = [], self._now()
        for limit in limits:
            subject = user if limit.user == EACH_USER else ""
            bucket = self._buckets.get((limit.id, subject))
            if bucket is None or not bucket.period.begin <= now < bucket.period.end:
                # A clock that was ahead and is put right leaves periods of the future. What is under way has one
                # bucket for ever.
                bucket = Bucket.begin(limit, bound_of(limit, self._processes), subject, now)
                self._buckets[limit.id, subject] = bucket
            bucket.was_asked_for = True
            buckets.append(bucket)
        return buckets

    def find(self, limit: UsageLimit, user: str) -> Bucket | None:
        """Returns the last bucket of a limit and a user; None: the table has all that was used."""
        return self._buckets.get((limit.id, user if limit.user == EACH_USER else ""))

    def replace_limits(self, limits: Mapping[int, UsageLimit], processes: int) -> None:
        """Takes limits as they are now, by their ids, and how many processes share them. What was used stays."""
        self._processes = processes
        bounds = {id: bound_of(limit, processes) for id, limit in limits.items()}
        self._buckets = {key: each for key, each in self._buckets.items() if key[0] in limits}
        for (id, _), bucket in self._buckets.items():
            bucket.limit = limits[id]
            bucket.bound = bounds[id]

    async def load(self, buckets: Iterable[Bucket], wait_s: float | None) -> None:
        """Reads what was used before of the buckets that do not know it yet.

        wait_s: it is waited for this long, and read on; None: to its end.
        """
        loads = [self._begin_to_load(bucket) for bucket in buckets if not bucket.is_loaded]
        if loads:
            await asyncio.wait(loads, timeout=wait_s)

    async def refresh(self) -> None:
        """Reads again what others have used. Raises: StoreError."""
        now = self._now()
        for key, bucket in [*self._buckets.items()]:
            if bucket.limit.per not in STORED_PERIODS or self._buckets.get(key) is not bucket:
                continue
            if not (bucket.was_asked_for or bucket.reserved):
                del self._buckets[key]  # it is read again with its user's next request
            elif bucket.is_loaded and bucket.period.has(now):
                bucket.was_asked_for = False
                async with self._meter.pause_writes():
                    bucket.used = await self._read_used(bucket)

    def _begin_to_load(self, bucket: Bucket) -> asyncio.Task[None]:
        load = self._loads.get(bucket)
        if load is None:
            load = self._loads[bucket] = asyncio.create_task(self._load_used(bucket))
            load.add_done_callback(lambda _: self._loads.pop(bucket, None))
        return load

    async def _load_used(self, bucket: Bucket) -> None:
        try:
            async with self._meter.pause_writes():
                bucket.used = await self._read_used(bucket)
                bucket.is_loaded = True
        except StoreError as error:
            # Limits never break chat: this process counts from now on, and asks again with the next request.
            if not is_known(error):
                _log.warning("What was used of limit %d is not known yet: %s", bucket.limit.id, error.message)

    async def _read_used(self, bucket: Bucket) -> int:
        """Returns what is used of a limit's period, by all processes. The meter writes nothing meanwhile.

        Of a month no day before yesterday is read again: each process has written what began there.
        """
        first, last = int(bucket.period.begin // DAY_S), int(bucket.period.end // DAY_S) - 1
        yesterday = max(first, int(self._now() // DAY_S) - 1)
        begun = bucket.read_from or first
        if begun < yesterday:
            bucket.earlier += await self._read_days(bucket, begun, yesterday - 1)
            bucket.read_from = yesterday
        return bucket.earlier + await self._read_days(bucket, max(begun, yesterday), last)

    async def _read_days(self, bucket: Bucket, first: int, last: int) -> int:
        """Returns what is used of a limit on some days, by all processes."""
        limit = bucket.limit
        only: list[tuple[str, str | int]] = [("project", limit.project)]
        if limit.key_id is not None:
            only.append(("key", limit.key_id))
        if limit.user is not None:
            only.append(("user", bucket.user if limit.user == EACH_USER else limit.user))
        query = UsageQuery((), first, last, tuple(only))
        sums = await self._usage.sums(query, deadline_ms=_READ_MS)
        rows = [list(each.counters) for each in sums]
        rows += self._meter.unwritten_counters(first, last, dict(only))
        if limit.unit == "requests":
            return sum(row[ANSWERED] for row in rows)
        if limit.unit == "tokens":
            return sum(row[INPUT] + row[OUTPUT] for row in rows)
        return sum(row[COST] for row in rows)

    def _drop_some(self) -> None:
        """Drops buckets where there are too many. Those of what is under way and of this minute are known here alone,
        and stay."""
        now = self._now()
        self._buckets = {
            key: each
            for key, each in self._buckets.items()
            if each.reserved or (each.limit.per == "minute" and each.period.has(now))
        }
        # Where many have to stay, they are not looked through for each new one.
        self._dropped_at = max(_MAX_BUCKETS, 2 * len(self._buckets))

    def _forget(self, project: str, user: str) -> None:
        """Drops the buckets of a forgotten user: what is left of them in the table is read again."""
        self._buckets = {
            key: each
            for key, each in self._buckets.items()
            if each.limit.per not in STORED_PERIODS
            or each.limit.project != project
            or user not in (each.user, each.limit.user)
        }
