"""The buckets of limits: the used amount of each limit, as this process counts it.

The use of a day or month is read once, and then this process adds its own use. If gateways share a database, the use is
read again with each write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from gateway.core.dates import DAY_S
from gateway.core.usage.limit_rules import STORED_PERIODS, Bucket, divide_limit
from gateway.run.usage.meter import Meter
from gateway.run.usage.unwritten_counters import ANSWERED, COST, INPUT, OUTPUT
from storage.errors import StoreError, is_known
from storage.sql.usage import Usage
from storage.usage_records import EACH_USER, UsageLimit, UsageQuery

_log = logging.getLogger("mnemogate")

# The number of buckets from which on those that can be read again are dropped. Callers name users, and each user has
# some.
_MAX_BUCKETS: Final = 50_000
# The deadline of a read. Requests wait for a shorter time, and go on without the result.
_READ_MS: Final = 60_000.0


class _BucketKey(NamedTuple):
    """The key of a bucket."""

    # The id of the limit.
    limit_id: int
    # The user, if each user has a bucket of the limit; else "".
    subject: str


class LimitBuckets:
    """The buckets of the present periods. There is one for the process."""

    def __init__(self, usage: Usage, meter: Meter, now: Callable[[], float]) -> None:
        """Begins without buckets. now: returns the seconds since the epoch."""
        self._usage = usage
        self._meter = meter
        self._now = now
        # The buckets by limit and user.
        self._buckets: dict[_BucketKey, Bucket] = {}
        # The number of buckets at which some are dropped the next time.
        self._drops_at = _MAX_BUCKETS
        # The number of processes that share the limits.
        self._process_count = 1
        # The tasks that load buckets.
        self._loads: dict[Bucket, asyncio.Task[None]] = {}
        usage.add_forget_listener(self._forget)

    def get(self, limits: Iterable[UsageLimit], user: str) -> list[Bucket]:
        """Returns the buckets of limits and a user for the present periods, in the order of the limits.

        New buckets have to be loaded (`load`).

        limits: the present limits of the request; each gets a bucket, which the next change of limits then finds.
        """
        if len(self._buckets) >= self._drops_at:
            self._drop_some()
        buckets = []
        now = self._now()
        for limit in limits:
            key = _make_bucket_key(limit, user)
            bucket = self._buckets.get(key)
            if bucket is None or not bucket.period.has(now):
                # A bucket of a future period is replaced as well: a clock that was ahead has left it. A limit on
                # requests under way has one bucket for ever.
                bucket = Bucket.begin(limit, divide_limit(limit, self._process_count), key.subject, now)
                self._buckets[key] = bucket
            bucket.was_asked_for = True
            buckets.append(bucket)
        return buckets

    def find(self, limit: UsageLimit, user: str) -> Bucket | None:
        """Returns the last bucket of a limit and a user, or None if the table already has all their usage."""
        return self._buckets.get(_make_bucket_key(limit, user))

    def replace_limits(self, limits: Mapping[int, UsageLimit], process_count: int) -> None:
        """Sets the bounds of buckets to changed limits. The used amount of each limit stays.

        limits: all present limits, by their ids.
        process_count: the number of processes that share the limits.
        """
        self._process_count = process_count
        bounds = {limit_id: divide_limit(limit, process_count) for limit_id, limit in limits.items()}
        self._buckets = {key: each for key, each in self._buckets.items() if key.limit_id in limits}
        for key, bucket in self._buckets.items():
            bucket.limit = limits[key.limit_id]
            bucket.bound = bounds[key.limit_id]

    async def load(self, buckets: Iterable[Bucket], wait_s: float | None) -> None:
        """Reads the earlier use of the buckets that are not loaded yet.

        wait_s: the longest wait, after which the read goes on by itself; None: waits until the read has ended.
        """
        loads = [self._begin_load(bucket) for bucket in buckets if not bucket.is_loaded]
        if loads:
            await asyncio.wait(loads, timeout=wait_s)

    async def refresh(self) -> None:
        """Reads the use by all processes again. Raises: StoreError."""
        now = self._now()
        for key, bucket in [*self._buckets.items()]:
            if bucket.limit.per not in STORED_PERIODS or self._buckets.get(key) is not bucket:
                continue
            if not (bucket.was_asked_for or bucket.reserved):
                del self._buckets[key]  # the next request of its user makes and loads it again
            elif bucket.is_loaded and bucket.period.has(now):
                bucket.was_asked_for = False
                async with self._meter.writer.pause():
                    bucket.used = await self._read_used(bucket)

    def _begin_load(self, bucket: Bucket) -> asyncio.Task[None]:
        """Returns the task that loads a bucket; only one task at a time loads it."""
        load = self._loads.get(bucket)
        if load is None:
            load = self._loads[bucket] = asyncio.create_task(self._load_used(bucket))
            load.add_done_callback(lambda _: self._loads.pop(bucket, None))
        return load

    async def _load_used(self, bucket: Bucket) -> None:
        """Reads the amounts that all processes have used of a bucket. A fault of the store is logged."""
        try:
            async with self._meter.writer.pause():
                bucket.used = await self._read_used(bucket)
                bucket.is_loaded = True
        except StoreError as error:
            # Limits never break chat: this process counts from now on, and asks again with the next request.
            if not is_known(error):
                _log.warning("What was used of limit %d is not known yet: %s", bucket.limit.id, error.message)

    async def _read_used(self, bucket: Bucket) -> int:
        """Returns the amount that all processes have used in a limit's period. The meter may not write meanwhile.

        Days before yesterday are read only once, since every process has written what began on these days.
        """
        first_day = int(bucket.period.begin // DAY_S)
        last_day = int(bucket.period.end // DAY_S) - 1
        yesterday = max(first_day, int(self._now() // DAY_S) - 1)
        unread_day = bucket.first_reread_day or first_day
        if unread_day < yesterday:
            bucket.used_earlier += await self._read_days(bucket, unread_day, yesterday - 1)
            bucket.first_reread_day = yesterday
        return bucket.used_earlier + await self._read_days(bucket, max(unread_day, yesterday), last_day)

    async def _read_days(self, bucket: Bucket, first_day: int, last_day: int) -> int:
        """Returns the amount that all processes have used of a limit on some days, both included."""
        limit = bucket.limit
        filters: list[tuple[str, str | int]] = [("project", limit.project)]
        if limit.key_id is not None:
            filters.append(("key", limit.key_id))
        if limit.user is not None:
            filters.append(("user", bucket.user if limit.user == EACH_USER else limit.user))
        query = UsageQuery((), first_day, last_day, tuple(filters))
        sums = await self._usage.load_sums(query, deadline_ms=_READ_MS)
        rows = [list(each.counters) for each in sums]
        rows += self._meter.counters.select(first_day, last_day, dict(filters))
        if limit.unit == "requests":
            return sum(row[ANSWERED] for row in rows)
        if limit.unit == "tokens":
            return sum(row[INPUT] + row[OUTPUT] for row in rows)
        return sum(row[COST] for row in rows)

    def _drop_some(self) -> None:
        """Drops the buckets that can be read again.

        Buckets of requests under way and of this minute stay, since only this process knows them.
        """
        now = self._now()
        self._buckets = {
            key: each
            for key, each in self._buckets.items()
            if each.reserved or (each.limit.per == "minute" and each.period.has(now))
        }
        # If many had to stay, the next drop comes later: else each new bucket would have all of them looked through.
        self._drops_at = max(_MAX_BUCKETS, 2 * len(self._buckets))

    def _forget(self, project: str, user: str) -> None:
        """Drops the buckets of a forgotten user. They are read again from the rest of the table."""
        self._buckets = {
            key: each
            for key, each in self._buckets.items()
            if each.limit.per not in STORED_PERIODS
            or each.limit.project != project
            or user not in (each.user, each.limit.user)
        }


def _make_bucket_key(limit: UsageLimit, user: str) -> _BucketKey:
    return _BucketKey(limit.id, user if limit.user == EACH_USER else "")
