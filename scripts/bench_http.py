"""Measures the processor time of a request to an upstream with aiohttp and with httpx, for the choice between them.

Both call scripts/mock_upstream.py on 127.0.0.1 over open connections, in turn, so that other work on the machine slows
both alike. Only the processor time of this process is counted; the mock upstream has a process of its own. A reply is
about 1 kB, or a stream of 50 events 10 ms apart.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
import uvloop

from scripts import load

BODY = b'{"model":"bench","messages":[{"role":"user","content":"Say something."}]}'
STREAMED = BODY[:-1] + b',"stream":true}'
HEADERS = {"content-type": "application/json", "authorization": "Bearer key"}
Call = Callable[[bytes], Awaitable[int]]  # the request's body -> the size of the reply's body


def call_aiohttp(session: aiohttp.ClientSession, url: str) -> Call:
    async def call(body: bytes) -> int:
        async with session.post(url, data=body, headers=HEADERS) as reply:
            return sum([len(chunk) async for chunk in reply.content.iter_any()])

    return call


def call_httpx(client: httpx.AsyncClient, url: str) -> Call:
    async def call(body: bytes) -> int:
        async with client.stream("POST", url, content=body, headers=HEADERS) as reply:
            return sum([len(chunk) async for chunk in reply.aiter_raw()])

    return call


async def cpu_ms(call: Call, body: bytes, requests: int, at_once: int) -> float:
    """Returns the processor time of this process for one request, in milliseconds."""
    numbers = iter(range(requests))

    async def work() -> None:
        for _ in numbers:
            assert await call(body) > 500

    began_at = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())
    return (time.process_time() - began_at) / requests * 1000


async def measure(url: str, rounds: int) -> None:
    """Prints the CPU time of a request, whole and streamed, by aiohttp and by httpx."""
    requests_by_kind = {"whole": (BODY, 1000, 20), "streamed": (STREAMED, 100, 50)}
    figures: dict[tuple[str, str], list[float]] = {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        httpx.AsyncClient(limits=limits, timeout=60.0, trust_env=False) as client,
    ):
        calls = {"aiohttp": call_aiohttp(session, url), "httpx": call_httpx(client, url)}
        for name, call in calls.items():
            await cpu_ms(call, BODY, 200, 50)  # opens the connections
            print(f"{name} {aiohttp.__version__ if name == 'aiohttp' else httpx.__version__}")
        for _ in range(rounds):
            for body_kind, (body, requests, at_once) in requests_by_kind.items():
                for name, call in calls.items():
                    figures.setdefault((body_kind, name), []).append(
                        await cpu_ms(call, body, requests, at_once)
                    )
    print(f"CPU ms a request, median of {rounds} rounds (least to most)")
    for (body_kind, name), times_ms in figures.items():
        print(
            f"{body_kind:9} {name:8} {statistics.median(times_ms):.3f} ({min(times_ms):.3f} to {max(times_ms):.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder,
        load.run_mock(Path(folder) / "log") as port,
    ):
        uvloop.run(measure(f"http://127.0.0.1:{port}/v1/chat/completions", options.rounds))


if __name__ == "__main__":
    main()
