"""Measure a response against a chat completion: the added p50 of growing conversations, by way of the same upstream.

Conversations of the same words are played in both dialects over one connection, in interleaved rounds against one
mock upstream: with memory (a user is named), and with memory off. "added" is the time above a direct call of the
upstream in the same round. A response is stored, as it is by default; its client sends all items again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import load
import orjson
import uvloop

WARM_TURNS, TURNS = 3, 3
GOAL_MS = 0.2  # more than a chat completion
SETTINGS = """
[server]
access_log = false
[[upstreams]]
name = "mock"
kind = "vllm"
base_url = "http://127.0.0.1:{port}/v1"
models = ["bench*"]
"""
_users = itertools.count()


@dataclass(slots=True)
class ResponseTalk(load.Talk):
    """One user's conversation in items."""

    def request(self, stream: bool) -> bytes:
        self.messages.append(load.question(self.user, self.turn))
        self.turn += 1
        items = b",".join(self.messages)
        body = b'{"model":"bench","input":[%b],"user":"%b"}' % (items, self.user.encode())
        asked = load.http(body)
        return asked.replace(b"/v1/chat/completions", b"/v1/responses", 1)

    def answered(self, body: bytes, stream: bool) -> None:
        text = orjson.loads(body)["output"][-1]["content"][0]["text"]
        self.messages.append(load.message("assistant", text))


class Plain(load.Talks):
    """Conversations with a header in each request."""

    def __init__(self, talks: list[load.Talk], turns: int, headers: bytes) -> None:
        super().__init__(talks, turns)
        self.headers = headers

    def next(self, worker: int) -> bytes | None:
        asked = super().next(worker)
        return asked and asked.replace(b"content-length:", self.headers + b"content-length:", 1)


async def p50(port: int, kind: type[load.Talk], users: int, headers: bytes) -> float:
    """Returns the median time of a request of conversations that have gone on for some turns, in milliseconds."""
    talks = [kind(f"u{next(_users)}") for _ in range(users)]
    await load.drive(port, Plain(talks, WARM_TURNS, headers), 1)
    result = await load.drive(port, Plain(talks, TURNS, headers), 1)
    if result.errors:
        raise SystemExit(f"{kind.__name__}: {result.errors[:3]}")
    return statistics.median(result.total_ms)


async def bench(gateway: int, mock: int, rounds: int, users: int) -> None:
    ways = {"chat completion": load.Talk, "response": ResponseTalk}
    memories = {"off": load.HEADERS_OFF, "on": b""}
    added: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, rounds):  # the first only warms
        direct = await p50(mock, load.Talk, users, b"")
        cells = list(itertools.product(memories, ways))
        for memory, way in cells if turn % 2 else reversed(cells):
            took = await p50(gateway, ways[way], users, memories[memory])
            if turn >= 0:
                added.setdefault((memory, way), []).append(took - direct)
    print(f"added p50 ms; {rounds} rounds of {users} conversations, {TURNS} turns measured of each")
    rows = [["memory", *ways, "more", "goal"]]
    for memory in memories:
        chat, response = (statistics.median(added[memory, way]) for way in ways)
        rows.append([memory, f"{chat:.2f}", f"{response:.2f}", f"{response - chat:.2f}", f"< {GOAL_MS}"])
    print(load.table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench responses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=100, help="conversations of each kind and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name:
        folder = Path(name)
        with (
            load.mock(folder / "mock.log") as port,
            load.gateway(folder, SETTINGS.format(port=port)) as gateway,
        ):
            uvloop.run(bench(gateway.port, port, options.rounds, options.users))


if __name__ == "__main__":
    main()
