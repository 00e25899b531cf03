"""Storms of parallel requests against a limit of each unit: how many are let in, and by how much that exceeds it.

The upstream answers when all other requests have been refused, so that as many as the limit lets in are under way at
once. It reports more tokens for each reply than its request reserves: by these, and no more, tokens and cost may exceed
their limits. The exit code is 1 if a limit did not hold, or if a refused request reached the upstream.

Before the storms, the processor time that counting a request takes of the loop's thread is printed: by the meter alone,
and with three limits that hold for the request; in microseconds beyond a receipt that is not counted, the least of
several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import httpx

from gateway.core.upstream.policy import Target
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts
from gateway.run.usage.accounting import Accounting
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import ModelSettings, PriceSettings
from storage.run_records import TokenCounts
from storage.usage_records import UsageLimit
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.sdk import World, remember

REPLY_TOKENS = 100  # that a reply reports
USAGE = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": REPLY_TOKENS}
MAX_TOKENS = 10
MODELS = (ModelSettings("m", "m", "up", price=PriceSettings(input=1.0, output=1.0)),)
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}],
    "user": "alice",
    "max_tokens": MAX_TOKENS,
}
MILLION = 1_000_000


class MeasuredLimit(NamedTuple):
    """A limit that is stormed."""

    unit: str
    period: str | None
    most: float
    # What one reply uses of it.
    of_reply: float
    # What one token uses of it; 0: it does not count tokens.
    of_token: float


LIMITS = (
    MeasuredLimit("requests", "minute", 50.0, 1.0, 0.0),
    MeasuredLimit("requests", "day", 50.0, 1.0, 0.0),
    MeasuredLimit("requests", "month", 50.0, 1.0, 0.0),
    MeasuredLimit("tokens", "minute", 900.0, float(REPLY_TOKENS), 1.0),
    MeasuredLimit("tokens", "day", 900.0, float(REPLY_TOKENS), 1.0),
    MeasuredLimit("cost", "month", 900 / MILLION, REPLY_TOKENS / MILLION, 1 / MILLION),
    MeasuredLimit("concurrent", None, 20.0, 1.0, 0.0),
)
CHAT = json.dumps({**BODY, "messages": [{"role": "user", "content": "Hi. " * 80}]}).encode()
RUN_REQUESTS = 500  # of one run, between two readings of the clock
THREE_LIMITS = (("requests", "minute"), ("tokens", "day"), ("cost", "month"))


class Counting(Enum):
    """The part of the accounting that counts a request."""

    NOTHING = "a receipt alone"
    METER = "the meter"
    LIMITS = "the meter and limits"


async def do_request(
    accounting: Accounting, receipts: Receipts, planned: PlannedCall, *, is_admitted: bool
) -> None:
    """Does what the accounting of a request does: one call, which the upstream has answered."""
    receipt = Receipt("req_0123456789abcdef01234567", user="alice")
    if is_admitted:
        await accounting.limiter.admit(receipt, planned)
    call = receipt.begin_call()
    call.upstream, call.provider, call.model, call.path = "up", "openai", "m", "/chat/completions"
    call.status = receipt.status = 200
    call.note_piece(b"{}")
    call.counts = TokenCounts(40, 7)
    call.end()
    receipts.publish(receipt)


async def cost_us(accounting: Accounting, counting: Counting, runs: int) -> float:
    """Returns the processor time of this thread for a request, in microseconds."""
    receipts = Receipts(None)
    if counting is not Counting.NOTHING:
        is_meter_alone = counting is Counting.METER
        receipts.add_listener(accounting.meter.count if is_meter_alone else accounting.count)
    planned = PlannedCall(CHAT, MAX_TOKENS, Target("up", "m"))
    times_us = []
    for _ in range(runs):
        started_ns = time.thread_time_ns()
        for _ in range(RUN_REQUESTS):
            await do_request(accounting, receipts, planned, is_admitted=counting is Counting.LIMITS)
        times_us.append((time.thread_time_ns() - started_ns) / RUN_REQUESTS / 1000)
        await asyncio.sleep(0)
    return min(times_us)


def measure_cost(world: World, runs: int) -> None:
    """Prints what counting a request takes."""
    accounting = world.gateway.app.services.accounting

    def cost(counting: Counting) -> float:
        return world.gateway.call(cost_us(accounting, counting, runs))

    alone_us = cost(Counting.NOTHING)
    meter_us, unlimited_us = cost(Counting.METER) - alone_us, cost(Counting.LIMITS) - alone_us
    print(f"a receipt {alone_us:.1f} us; the meter {meter_us:+.1f}; without a limit {unlimited_us:+.1f}")
    for unit, period in THREE_LIMITS:
        limit = UsageLimit(
            id=0, project="default", key_id=None, user="alice", unit=unit, per=period, most=1e9, then="refuse"
        )
        world.gateway.call(world.store.limits.add(limit))
    print(f"with three limits {cost(Counting.LIMITS) - alone_us:+.1f}")


class Storm(NamedTuple):
    """A storm: the size of its requests, and the statuses of their replies."""

    request_bytes: int
    statuses: list[int]


async def send_at_once(url: str, count: int, count_upstream: Callable[[], int], gate: Gate) -> Storm:
    """Sends requests at once, and opens the gate of the upstream when none is waiting any more.

    count_upstream: returns how many requests have reached the upstream.
    """
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(limits=limits, timeout=300.0) as client:
        request = client.build_request("POST", f"{url}/v1/chat/completions", json=BODY)
        statuses: list[int] = []

        async def ask() -> None:
            reply = await client.post(request.url, content=request.content, headers=request.headers)
            statuses.append(reply.status_code)

        tasks = [asyncio.create_task(ask()) for _ in range(count)]
        while len(statuses) + count_upstream() < count:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(*tasks)
        return Storm(len(request.content), statuses)


def measure(world: World, measured: MeasuredLimit, count: int) -> bool:
    """Storms a limit with `count` requests, and prints a line about it. Returns whether the limit held."""
    upstream, gate = world.upstream, Gate()
    upstream.script = lambda request: say("Hello.", usage=USAGE, hold_before_headers=gate)
    limit = UsageLimit(
        id=0,
        project="default",
        key_id=None,
        user="alice",
        unit=measured.unit,
        per=measured.period,
        most=measured.most,
        then="refuse",
    )
    world.gateway.call(world.store.limits.add(limit))
    storm = asyncio.run(send_at_once(world.gateway.url, count, lambda: len(upstream.chats), gate))
    admitted, refused = storm.statuses.count(200), storm.statuses.count(429)
    requests = len(upstream.chats)
    # The gateway estimates a token for every four bytes of a request.
    reserved = (storm.request_bytes // 4 + MAX_TOKENS) * measured.of_token
    excess = max(0.0, requests * measured.of_reply - measured.most)
    allowed_excess = requests * max(0.0, measured.of_reply - reserved) if measured.of_token else 0.0
    holds = excess <= allowed_excess + 1e-9 and admitted == requests > 0 and refused == count - requests
    name = measured.unit if measured.period is None else f"{measured.unit} per {measured.period}"
    print(
        f"{name:<20} most {measured.most:<7g} let in {admitted:>3} of {count}, exceeds by {excess:<7g} of "
        f"{allowed_excess:<8g} that its requests may  {'held' if holds else 'NOT HELD'}"
    )
    return holds


@contextmanager
def fresh_world() -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        remember(upstream, Path(folder), models=MODELS) as world,
    ):
        yield world


def main() -> int:
    """Measures the cost of limits, and checks that they hold in storms of requests. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="requests of a storm")
    parser.add_argument("--runs", type=int, default=40, help="of which the least time counts")
    options = parser.parse_args()
    with fresh_world() as world:
        measure_cost(world, options.runs)
    all_hold = True
    for limit in LIMITS:
        with fresh_world() as world:
            all_hold &= measure(world, limit, options.count)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
