"""Storms of parallel requests against a limit of each unit: how many are let in, and by how much that exceeds it.

The upstream answers when all others have been refused, so that as many as may are under way at once, and reports more
tokens for each reply than its request reserves: so much, and no more, may tokens and cost exceed their limits. Exits
with 1 where a limit did not hold, or a request that was refused reached the upstream.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from gateway.settings import ModelSettings, PriceSettings
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
    size, found = asyncio.run(storm(world.gateway.url, count, lambda: len(upstream.chats), gate))
    let_in, refused, asked = found.count(200), found.count(429), len(upstream.chats)
    reserved = (size // 4 + BODY["max_tokens"]) * token  # type: ignore[operator]
    over, allowed = max(0.0, asked * each - most), asked * max(0.0, each - reserved) if token else 0.0
    held = over <= allowed + 1e-9 and let_in == asked > 0 and refused == count - asked
    name = unit if per is None else f"{unit} per {per}"
    print(
        f"{name:<20} most {most:<7g} let in {let_in:>3} of {count}, exceeds by {over:<7g} of {allowed:<8g} that its"
        f" requests may  {'held' if held else 'NOT HELD'}"
    )
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    is_right = True
    for each in LIMITS:
        with (
            tempfile.TemporaryDirectory() as folder,
            StrictUpstream() as upstream,
            remember(upstream, Path(folder), models=MODELS) as world,
        ):
            is_right &= measure(world, *each, options.count)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
