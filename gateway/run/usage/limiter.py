"""Checks requests against limits: lets them in, refuses them, or has another model answer.

A request of a project without limits costs one look-up in a dictionary. `LimitBuckets` counts what is used. Processes
that share a database divide limits of a minute, and of concurrent requests, among themselves.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Set
from typing import Final

from msgspec import Struct

from gateway.core.usage.limit_answer import make_rate_headers, make_refusal
from gateway.core.usage.limit_rules import (
    MEASURED_UNITS,
    Amounts,
    Bucket,
    LimitReservation,
    collect_full_buckets,
    convert_amount,
    count_used_amounts,
    estimate_amounts,
    have_room,
)
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.usage.limit_buckets import LimitBuckets
from gateway.run.usage.limit_table import LimitTable
from gateway.run.usage.meter import Meter
from gateway.run.usage.planned_call import PlannedCall
from storage.sql.store import Store
from storage.usage_records import REFUSE, UsageLimit

# Processes that have written usage within this time share the limits of a minute. Not measured: a process that has
# stopped holds its share for as long.
_SHARED_S: Final = 90.0
# The same time as a multiple of the time between two writes; the longer of both counts.
_SHARED_WRITES: Final = 1.5
# Rounds of the event loop from a connection that closes to the end of its request. Measured: up to 11, if several tools
# run.
_ENDING_TICKS: Final = 30
_NO_TOKENS: Final = estimate_amounts()


class LimitState(Struct, frozen=True):
    """A limit with what one caller has used of it."""

    # The limit.
    limit: UsageLimit
    # The used amount, in the limit's unit.
    used: float
    # The remaining amount, in the limit's unit.
    remaining: float
    # Seconds since the epoch; None: the limit has no period.
    resets_at: float | None


class Limiter:
    """The limits of all projects in this process, with the reservations of its requests."""

    def __init__(
        self,
        *,
        store: Store,
        meter: Meter,
        now: Callable[[], float],
        metrics: Metrics,
        aliases: Collection[str],
        write_s: float,
        read_s: float,
        takes_requests: bool,
    ) -> None:
        """Begins without limits; `limits.load` reads them.

        now: returns the seconds since the epoch.
        aliases: the names of the models in the settings.
        write_s: the seconds between two writes of the meter.
        read_s: the most seconds that a request waits for its limits and their use to be read.
        takes_requests: True: the process answers requests; False: it performs jobs alone, and has no share in limits of
            a minute.
        """
        self._store = store
        self._meter = meter
        self._now = now
        self._aliases = aliases
        self._read_s = read_s
        # The seconds since its last write for which a process counts among those that share the limits.
        self._shared_s = max(_SHARED_S, _SHARED_WRITES * write_s)
        # Counts limited requests by unit and period of the limit, and by the answer.
        self._limited_requests = metrics.add_counter(
            "limited",
            "Requests that a limit refused, or had answered by another model.",
            "unit",
            "per",
            "then",
        )
        # The limits of the store.
        self.limits = LimitTable(store, self._change_limits)
        # The use of the limits in their present periods.
        self._buckets = LimitBuckets(store.usage, meter, now)
        # The reservations of the requests and the work under way.
        self._reservations: dict[Receipt, LimitReservation] = {}
        # The name by which other processes know this one; None: this process takes no requests.
        self._process_name = secrets.token_hex(8) if takes_requests else None
        # The number of processes that share the limits.
        self._process_count = 1

    def _change_limits(self, new_ids: Set[int]) -> None:
        """Puts changed limits into force. New limits count the requests that are under way."""
        self._buckets.replace_limits(self.limits.by_id, self._process_count)
        if not new_ids:
            return
        for receipt, reservation in self._reservations.items():
            limits = [limit for limit in self.limits.choose(receipt) if limit.id in new_ids]
            for bucket in self._buckets.get(limits, receipt.user):
                # The tokens of a request are counted when it ends.
                reservation.reserve(bucket, _NO_TOKENS[bucket.amount_index])

    def _list_buckets(self, receipt: Receipt) -> list[Bucket]:
        """Returns the present buckets of the limits that hold for a request, by their ids."""
        return self._buckets.get(self.limits.choose(receipt), receipt.user)

    # -- a request begins

    async def admit(
        self,
        receipt: Receipt,
        call: PlannedCall | None,
        *,
        may_answer: Callable[[str], bool] = lambda name: False,
    ) -> str | None:
        """Lets a request in, and reserves the amounts that it may use until `settle`.

        call: the call that the request plans; None: the request calls no model.
        may_answer: returns whether another model may answer the request.

        Returns the name of another model that is to answer, or None for the model that the request names.

        Raises: LimitReached.
        """
        if (reservation := self._reservations.get(receipt)) is not None:
            return reservation.substitute  # the request was let in already
        await self.limits.try_load(self._read_s)
        if not self.limits.has_any(receipt.project):
            self._reservations[receipt] = LimitReservation()
            return None
        wanted_amounts = _NO_TOKENS if call is None else call.estimate_use(self._meter.find_price)
        buckets = self._list_buckets(receipt)
        substitute = None
        if receipt.work is not None:
            # The request that has begun this work was let in. Its reservation is not known here.
            self._reserve(receipt, buckets, wanted_amounts)
            return None
        if not have_room(buckets, wanted_amounts):
            buckets = await self._wait_for_room(receipt, wanted_amounts)
            substitute = self._choose_substitute(receipt, buckets, wanted_amounts, may_answer)
        # Nothing was awaited since the buckets were checked, so they still have the room that is reserved now.
        self._reserve(receipt, buckets, wanted_amounts, substitute)
        receipt.limits.headers = make_rate_headers(buckets, self._now())
        return substitute

    def _choose_substitute(
        self,
        receipt: Receipt,
        buckets: Iterable[Bucket],
        wanted_amounts: Amounts,
        may_answer: Callable[[str], bool],
    ) -> str | None:
        """Returns the model that answers in place of a full limit, or None if no limit is full. Raises: LimitReached.

        wanted_amounts: the amounts that the request may use.
        """
        # The alias of a limit may be gone from the settings.
        refusing, substituting = collect_full_buckets(
            buckets, wanted_amounts, lambda alias: alias in self._aliases and may_answer(alias)
        )
        if refusing is not None:
            receipt.limits.is_refused = True
            receipt.limits.limit_id = refusing.limit.id
            self._count_limited(refusing.limit, REFUSE)
            raise make_refusal(refusing, self._now())
        if substituting is None:
            return None
        limit = substituting.limit
        receipt.headers["x-mnemogate-limit"] = str(limit.id)
        receipt.limits.limit_id = limit.id
        self._count_limited(limit, "alias")
        return limit.then

    async def admit_step(self, receipt: Receipt, call: PlannedCall) -> None:
        """Admits another call of the model in a run. Reserves the run's use so far and the call's estimated use.

        Raises: LimitReached.
        """
        if receipt.work_agent_row or (receipt in self._reservations and receipt.last_call is None):
            return  # background work, or a request that was just let in
        await self.limits.try_load(self._read_s)
        limits = [limit for limit in self.limits.choose(receipt) if limit.unit in MEASURED_UNITS]
        if not limits:
            return
        reservation = self._reservations.get(receipt) or LimitReservation()
        used_amounts = self._meter.measure_use_so_far(receipt)
        wanted_amounts = call.estimate_use(self._meter.find_price)
        reservation.count_ended_minutes(used_amounts, self._now())
        reserved_buckets = {bucket.limit.id: bucket for bucket in reservation.amounts}
        present_buckets = self._buckets.get(limits, receipt.user)
        buckets = [reserved_buckets.get(bucket.limit.id, bucket) for bucket in present_buckets]
        await self._buckets.load(buckets, self._read_s)
        # From here on nothing is awaited, as in `admit`.
        amounts = {}
        for bucket in buckets:
            reserved_amount = reservation.amounts.get(bucket, 0)
            used_amount = reservation.count_uncounted(used_amounts, bucket)
            wanted_amount = wanted_amounts[bucket.amount_index]
            if not bucket.lets_go_on(reserved_amount, used_amount, wanted_amount):
                raise make_refusal(bucket, self._now(), used_amount)
            amounts[bucket] = used_amount + wanted_amount
        for bucket, amount in amounts.items():
            reservation.reserve(bucket, amount)
        self._reservations[receipt] = reservation

    async def _wait_for_room(self, receipt: Receipt, wanted_amounts: Amounts) -> list[Bucket]:
        """Returns the buckets of a request, loaded if they can be.

        If other requests have reserved all, this waits a moment for the requests of clients that have just hung up, so
        that a voice agent that interrupts a reply is let in.

        wanted_amounts: the amounts that the request may use.
        """
        buckets = self._list_buckets(receipt)
        for _ in range(_ENDING_TICKS):
            if all(bucket.lets_in(wanted_amounts) for bucket in buckets if bucket.reserved):
                break
            await asyncio.sleep(0)
            buckets = self._list_buckets(receipt)
        while not all(bucket.is_loaded for bucket in buckets):
            await self._buckets.load(buckets, self._read_s)
            # Meanwhile limits may be made or removed, a period may end, and buckets may be dropped.
            loaded_buckets, buckets = buckets, self._list_buckets(receipt)
            if buckets == loaded_buckets:
                break  # a bucket that could not be loaded counts from 0
        return buckets

    def _reserve(
        self,
        receipt: Receipt,
        buckets: Iterable[Bucket],
        wanted_amounts: Amounts,
        substitute: str | None = None,
    ) -> None:
        """Reserves amounts in buckets until `settle`. substitute: the value of `LimitReservation.substitute`."""
        amounts: dict[Bucket, int] = {}
        for bucket in buckets:
            amounts[bucket] = amount = wanted_amounts[bucket.amount_index]
            bucket.reserved += amount
        self._reservations[receipt] = LimitReservation(amounts, substitute)

    def _count_limited(self, limit: UsageLimit, then: str) -> None:
        self._limited_requests.inc(limit.unit, limit.per or "", then)

    # -- work that goes on with a request

    def pop_reservation(self, receipt: Receipt) -> LimitReservation:
        """Removes a request's reservation of tokens and cost, and returns it for work that the request has begun."""
        return self._reservations[receipt].pop_measured()

    def assign_reservation(self, receipt: Receipt, reservation: LimitReservation) -> None:
        """Gives work the reservation of its request, which ends with `settle`."""
        self._reservations[receipt] = reservation

    def release_reservation(self, reservation: LimitReservation) -> None:
        """Ends a reservation for work that is not done here."""
        reservation.settle(count_used_amounts())

    # -- a request ends

    def settle(self, receipt: Receipt, used_amounts: Amounts) -> None:
        """Counts the used amounts in place of the reserved ones; without a reservation, the used amounts alone."""
        reservation = self._reservations.pop(receipt, None)
        if reservation is not None:
            reservation.settle(used_amounts)
        elif receipt.work is not None and not receipt.work.agent_row:
            # Work that continues a request: the request was counted, and the use of the work is counted here.
            self.count(receipt, used_amounts)

    def count(self, receipt: Receipt, used_amounts: Amounts) -> None:
        """Counts the tokens and the cost that were used without a reservation."""
        for limit in self.limits.choose(receipt):
            bucket = self._buckets.find(limit, receipt.user)
            if bucket is not None and limit.unit in MEASURED_UNITS:
                bucket.used += used_amounts[bucket.amount_index]

    # -- the state of the limits

    async def list_states(self, project: str, key_id: int, user: str) -> list[LimitState]:
        """Returns the limits that hold for requests of a key and a user. Raises: StoreError."""
        await self.limits.load()
        buckets = self._buckets.get(self.limits.choose_for(project, key_id, user), user)
        await self._buckets.load(buckets, wait_s=None)
        return [
            LimitState(
                limit=bucket.limit,
                used=convert_amount(bucket.limit, bucket.used + bucket.reserved),
                remaining=convert_amount(bucket.limit, bucket.count_remaining()),
                resets_at=None if bucket.limit.per is None else bucket.period.end,
            )
            for bucket in buckets
        ]

    async def refresh(self) -> None:
        """Reads the use by other gateways again, if gateways share the database. Raises: StoreError."""
        if not self._store.database.is_shared:
            return
        now = self._now()
        writers = await self._store.usage.record_writer(self._process_name, now, now - self._shared_s)
        if self._process_count != max(1, writers):
            self._process_count = max(1, writers)
            self._buckets.replace_limits(self.limits.by_id, self._process_count)
        await self._buckets.refresh()

    async def leave(self) -> None:
        """Gives this process's share of the limits of a minute to the other processes. Raises: StoreError."""
        if self._store.database.is_shared and self._process_name is not None:
            await self._store.usage.drop_writer(self._process_name)
