"""Storms of parallel requests against a limit of each unit: how many are let in, and by how much that exceeds it.

The upstream answers when all others have been refused, so that as many as may are under way at once, and reports more
tokens for each reply than its request reserves: so much, and no more, may tokens and cost exceed their limits. Exits
with 1 where a limit did not hold, or a request that was refused reached the upstream.

Before it, what counting a request takes of the loop's thread: of the meter alone, and with three limits that hold for
the request; microseconds of processor time, added to a receipt without readers, the least of several runs.
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
from pathlib import Path

import httpx

from gateway.core.upstream.policy import Target
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts
from gateway.run.usage.accounting import Accounting
from gateway.run.usage.limiter import PlannedCall
from gateway.settings import ModelSettings, PriceSettings
from storage.records import TokenCounts
from storage.usage_records import UsageLimit
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.sdk import World, remember

USED = 100  # tokens of a reply
USAGE = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": USED}
MODELS = (ModelSettings("m", "m", "up", price=PriceSettings(input=1.0, output=1.0)),)
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "alice", "max_tokens": 10}
MILLION = 1_000_000
# unit, period, most; what one reply uses of it, and a token is of it.
LIMITS = (
    ("requests", "minute", 50.0, 1.0, 0.0),
    ("requests", "day", 50.0, 1.0, 0.0),
    ("requests", "month", 50.0, 1.0, 0.0),
    ("tokens", "minute", 900.0, float(USED), 1.0),
    ("tokens", "day", 900.0, float(USED), 1.0),
    ("cost", "month", 900 / MILLION, USED / MILLION, 1 / MILLION),
    ("concurrent", None, 20.0, 1.0, 0.0),
)
CHAT = json.dumps({**BODY, "messages": [{"role": "user", "content": "Hi. " * 80}]}).encode()
AT_ONCE = 500  # requests between two looks at the clock
THREE_LIMITS = (("requests", "minute"), ("tokens", "day"), ("cost", "month"))


async def request(
    accounting: Accounting, receipts: Receipts, planned: PlannedCall, *, is_admitted: bool
) -> None:
    """Does a request's share of the account: one call, which the upstream has answered."""
    receipt = Receipt(time.perf_counter(), "req_0123456789abcdef01234567", user="alice")
    if is_admitted:
        await accounting.limiter.admit(receipt, planned)
    call = receipt.begin_call()
    call.upstream, call.provider, call.model, call.path = "up", "openai", "m", "/chat/completions"
    call.status = receipt.status = 200
    call.note_piece(b"{}")
    call.counts = TokenCounts(40, 7)
    call.end()
    receipts.hand_on(receipt)


async def cost_us(accounting: Accounting, readers: int, runs: int) -> float:
    """Returns microseconds of this thread for a request. readers: 0: a receipt alone; 1: the meter; 2: limits too."""
    receipts = Receipts(None)
    if readers:
        receipts.when_handed_on(accounting.meter.count if readers == 1 else accounting.count)
    planned = PlannedCall(CHAT, 10, Target("up", "m"))
    times_us = []
    for _ in range(runs):
        begun = time.thread_time_ns()
        for _ in range(AT_ONCE):
            await request(accounting, receipts, planned, is_admitted=readers == 2)
        times_us.append((time.thread_time_ns() - begun) / AT_ONCE / 1000)
        await asyncio.sleep(0)
    return min(times_us)


def measure_cost(world: World, runs: int) -> None:
    """Prints what counting a request takes."""
    accounting = world.gateway.app.services.accounting

    def cost(readers: int) -> float:
        return world.gateway.call(cost_us(accounting, readers, runs))

    alone = cost(0)
    print(
        f"a receipt {alone:.1f} us; the meter {cost(1) - alone:+.1f}; without a limit {cost(2) - alone:+.1f}"
    )
    for unit, period in THREE_LIMITS:
        limit = UsageLimit(0, "default", None, "alice", unit, period, 1e9, "refuse")
        world.gateway.call(world.store.limits.add(limit))
    print(f"with three limits {cost(2) - alone:+.1f}")


async def storm(url: str, count: int, reached: Callable[[], int], gate: Gate) -> tuple[int, list[int]]:
    """Sends requests at once. Returns the bytes of one, and the status of each. reached: how many the upstream has."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(limits=limits, timeout=300.0) as client:
        request = client.build_request("POST", f"{url}/v1/chat/completions", json=BODY)
        answered: list[int] = []

        async def ask() -> None:
            reply = await client.post(request.url, content=request.content, headers=request.headers)
            answered.append(reply.status_code)

        tasks = [asyncio.create_task(ask()) for _ in range(count)]
        while len(answered) + reached() < count:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(*tasks)
        return len(request.content), answered


def measure(
    world: World, unit: str, per: str | None, most: float, each: float, token: float, count: int
) -> bool:
    """Prints one line. Returns whether the limit held."""
    upstream, gate = world.upstream, Gate()
    upstream.script = lambda seen: say("Hello.", usage=USAGE, hold_before_headers=gate)
    limit = UsageLimit(0, "default", None, "alice", unit, per, most, "refuse")
    world.gateway.call(world.store.limits.add(limit))
    size, statuses = asyncio.run(storm(world.gateway.url, count, lambda: len(upstream.chats), gate))
    let_in, refused, requests = statuses.count(200), statuses.count(429), len(upstream.chats)
    reserved = (size // 4 + BODY["max_tokens"]) * token  # type: ignore[operator]
    over, allowed = max(0.0, requests * each - most), requests * max(0.0, each - reserved) if token else 0.0
    is_held = over <= allowed + 1e-9 and let_in == requests > 0 and refused == count - requests
    name = unit if per is None else f"{unit} per {per}"
    print(
        f"{name:<20} most {most:<7g} let in {let_in:>3} of {count}, exceeds by {over:<7g} of {allowed:<8g} that its"
        f" requests may  {'held' if is_held else 'NOT HELD'}"
    )
    return is_held


@contextmanager
def fresh_world() -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        remember(upstream, Path(folder), models=MODELS) as world,
    ):
        yield world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="requests of a storm")
    parser.add_argument("--runs", type=int, default=40, help="of which the least time counts")
    options = parser.parse_args()
    with fresh_world() as world:
        measure_cost(world, options.runs)
    is_right = True
    for each in LIMITS:
        with fresh_world() as world:
            is_right &= measure(world, *each, options.count)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
