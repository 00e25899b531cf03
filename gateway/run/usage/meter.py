"""The meter: adds up the usage of requests in memory, and writes the sums from time to time.

There is never a row for one request. A process that is killed loses what it has counted since its last write; a process
that stops in order writes all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

from gateway.core.dates import DAY_S
from gateway.core.usage.limit_rules import Amounts, count_used_amounts
from gateway.run.clock_jumps import ClockJumps
from gateway.run.receipt import CLIENT_GONE, Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.run.usage.background_usage import BackgroundUsage
from gateway.run.usage.part_writer import PartWriter
from gateway.run.usage.prices import make_price_finder
from gateway.run.usage.unwritten_counters import (
    ANSWERED,
    CACHED,
    CALLS,
    CANCELLED,
    COST,
    ERRORS,
    ESTIMATED_INPUT,
    ESTIMATED_OUTPUT,
    EVICTED,
    INJECTED,
    INPUT,
    OUTPUT,
    REASONING,
    REFUSED,
    REQUESTS,
    UNPRICED,
    WRITTEN,
    UnwrittenCounters,
)
from gateway.settings import Settings
from storage.errors import StoreError, is_known
from storage.records import Agent
from storage.sql.usage import Usage
from storage.usage_records import COUNTERS, UsageKey, add_counters

_log = logging.getLogger("mnemogate")

# The greatest age of the counts that readers of usage are shown. Not measured: a shorter time writes more often while
# someone reads.
READ_S: Final = 1.0
# The interval at which old counters lose the names of their users.
_ANONYMIZE_INTERVAL_S: Final = 3600.0


class _CallUsage(NamedTuple):
    """The usage of one call of an upstream."""

    # The tokens of the prompt and the reply.
    tokens: int
    # The cost in billionths of the currency of the prices; 0: the model has no price.
    cost: int


class Meter:
    """Adds up the usage of the process's requests and background work."""

    def __init__(
        self,
        usage: Usage,
        load_memory: Callable[[int], Awaitable[Agent | None]],
        now: Callable[[], float],
        settings: Settings,
    ) -> None:
        """Makes the meter; `run` writes.

        load_memory: returns a memory by its row.
        now: returns the seconds since the epoch.
        """
        self._usage = usage
        self._now = now
        # Returns the price of a model.
        self.find_price = make_price_finder(settings)
        # The seconds between two writes.
        self._write_s = settings.usage.write_s
        # The days for which the usage of users is retained.
        self._keep_days = settings.usage.keep_users_days
        # Notices when the clock is set.
        self.clock_jumps = ClockJumps(now)
        # The counts that are not written yet.
        self.counters = UnwrittenCounters()
        # The tokens of calls for memories.
        self.background = BackgroundUsage(usage, self.counters, load_memory, now)
        # The functions that are called after each write.
        self._write_listeners: list[Callable[[], Awaitable[None]]] = []
        # The time of the last write, by `time.monotonic`.
        self._wrote_at = -READ_S
        # True: the last write has failed.
        self._has_failed = False
        # Writes the counts in parts.
        self.writer = PartWriter(usage, self.counters, now, note_write=self.background.drop_written)
        usage.add_forget_listener(self.writer.forget)

    # -- counting

    def count(self, receipt: Receipt) -> Amounts:
        """Adds a request that has ended, or work that has no request. Returns the amounts that it has used."""
        # The counters of the last call; None: no call was counted.
        counters: list[int] | None = None
        tokens = 0
        cost = 0
        is_answered = not receipt.asks_model
        agent_row = receipt.work_agent_row
        for call in receipt.calls:
            if not call.is_answered or call.is_background:
                continue
            if agent_row:
                counts = call.estimate_used_counts()
                self.background.add(receipt.project, agent_row, call.upstream, call.model, counts)
                continue
            counters = self._get_counters(receipt, call.upstream, call.model)
            counters[CALLS] += 1
            if call.costs_tokens:
                counters[INJECTED] += call.prompt.injected_tokens
                counters[EVICTED] += call.prompt.evicted_tokens
                used_by_call = self._add_tokens(counters, call)
                tokens += used_by_call.tokens
                cost += used_by_call.cost
                is_answered = True
        used_amounts = count_used_amounts(tokens, cost, is_answered=is_answered)
        if receipt.work is not None:
            return used_amounts
        if counters is None:
            counters = self._get_counters(receipt, upstream="", model="")
        if receipt.limits.is_refused:
            counters[REFUSED] += 1
            return used_amounts
        counters[REQUESTS] += 1
        counters[ANSWERED] += is_answered
        if receipt.status == CLIENT_GONE:
            counters[CANCELLED] += 1
        elif receipt.has_failed:
            counters[ERRORS] += 1
        return used_amounts

    def measure_use_so_far(self, receipt: Receipt) -> Amounts:
        """Returns the tokens and the cost that work under way has used so far."""
        counters = [0] * len(COUNTERS)
        for call in receipt.calls:
            if call.is_answered and call.costs_tokens and not call.is_background:
                self._add_tokens(counters, call)
        return count_used_amounts(counters[INPUT] + counters[OUTPUT], counters[COST])

    def correct(self, receipt: Receipt, before: UpstreamCall, after: UpstreamCall) -> Amounts:
        """Counts the tokens of a call in place of the tokens that were counted when its request ended.

        receipt: the receipt of the request.
        before: the call as it was counted.
        after: the call with its present tokens.

        Returns the amounts that the call has used beyond the counted ones.
        """
        change = [0] * len(COUNTERS)
        self._add_tokens(change, before)
        change = [-value for value in change]
        self._add_tokens(change, after)
        add_counters(self._get_counters(receipt, after.upstream, after.model), change)
        return count_used_amounts(change[INPUT] + change[OUTPUT], change[COST])

    def _get_counters(self, receipt: Receipt, upstream: str, model: str) -> list[int]:
        """Returns the counters of a request's caller and model, on the day on which the request began."""
        day = int((self._now() - time.perf_counter() + receipt.clock.started_at) // DAY_S)
        return self.counters.get_or_create(
            UsageKey(
                day=day,
                project=receipt.project,
                user=receipt.user,
                key=receipt.key_id,
                upstream=upstream,
                model=model,
            )
        )

    def _add_tokens(self, counters: list[int], call: UpstreamCall) -> _CallUsage:
        """Adds the tokens of a call and their cost to counters. Returns the tokens and the cost."""
        counts = call.estimate_used_counts()
        tokens = counts.total
        counters[INPUT] += counts.prompt
        counters[OUTPUT] += counts.completion
        counters[CACHED] += counts.cached
        counters[WRITTEN] += counts.written
        counters[REASONING] += counts.reasoning
        if call.counts is None:
            counters[ESTIMATED_INPUT] += 0 if call.prompt_counts else counts.prompt
            counters[ESTIMATED_OUTPUT] += counts.completion
        price = self.find_price(call.upstream, call.model)
        if price is None:
            counters[UNPRICED] += tokens
            return _CallUsage(tokens, cost=0)
        cost = price.compute_cost(counts.prompt, counts.completion, counts.cached)
        counters[COST] += cost
        return _CallUsage(tokens, cost)

    async def count_background_tokens(self, project: str) -> int:
        """Returns the tokens that a project's background calls used today, without questions. Raises: StoreError."""
        async with self.writer.pause():
            return await self.background.count(project)

    # -- writing

    def add_write_listener(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Adds a function that is called after each write of `run`."""
        self._write_listeners.append(listener)

    async def run(self) -> None:
        """Writes until it is cancelled."""
        anonymized_at = -_ANONYMIZE_INTERVAL_S
        while True:
            await asyncio.sleep(self._write_s)
            with suppress(StoreError):  # the error was logged, and the write is tried again
                await self.write()
                for listener in self._write_listeners:
                    await listener()
                if time.monotonic() - anonymized_at >= _ANONYMIZE_INTERVAL_S:
                    anonymized_at = time.monotonic()
                    await self._anonymize_old()

    async def write(self) -> None:
        """Writes the counts up to now. Raises: StoreError: the counts that are not written stay for the next write."""
        self._wrote_at = time.monotonic()
        try:
            await self.background.attribute()
            await self.writer.write()
        except StoreError as error:
            if not (self._has_failed or is_known(error)):
                _log.warning("Usage was not written, and is tried again: %s", error.message)
            self._has_failed = True
            raise
        self._has_failed = False

    async def flush(self) -> None:
        """Writes, unless the last write was within `READ_S`. Raises: StoreError."""
        has_counts = self.background or self.writer.has_counts
        if has_counts and time.monotonic() - self._wrote_at >= READ_S:
            await self.write()

    async def _anonymize_old(self) -> None:
        """Removes the names of users from the counters that are too old, unless the clock has just jumped."""
        if self.clock_jumps.has_jumped_lately():
            return
        before = int(self._now() // DAY_S) - self._keep_days
        while (day := await self._usage.find_oldest_day_of_users(before)) is not None:
            while await self._usage.anonymize_day(day):
                pass
