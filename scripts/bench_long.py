"""Measures a conversation of 2,000 turns: whether it stays inside its window, and what a turn costs at its end.

First a client that resends everything talks for 2,000 turns on an 8k window, with a tool result of 20 kB every
hundred turns (`--every`), to the tests' strict upstream, which refuses what the real API refuses. Printed: requests
refused, the share of the bytes of each prompt with which the next one begins, and how often the prefix broke.

Then three clients, each with a conversation of its own and a mock upstream that answers at once: one resends
everything, one its last 20 messages, one only the new message (append mode). Printed: what a turn took, p50 and p99
of 100 turns at a time, the gateway and a direct call alike.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import load
import orjson

sys.path.insert(0, str(load.HERE.parent))

from tests.doubles.upstream import Call, Reply, Seen, StrictUpstream, call_tools, say

TURNS = 2_000
CONTEXT = 8_192  # tokens
RESULT = "The station reported sunshine and warm weather around the harbour, as it did before. " * 240
PAUSE_S = 0.05  # after each turn, far less than a person takes; the background model works meanwhile
TAIL = 20  # messages that the second client keeps
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SETTINGS = """\
[memory]
background_model = "small"

[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "none"
context_window = {context}
"""


def words(n: int) -> str:
    """Returns a turn's text; no two share a rare word."""
    return f"Message {n}:" + "".join(f" word{n}x{k}" for k in range(12))


class Client:
    """One connection, one conversation."""

    def __init__(self, port: int, user: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._user = user
        self._headers = {"content-type": "application/json", **headers}

    def post(self, messages: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, Any], float]:
        """Returns the reply's message and the seconds it took. Raises: SystemExit: the reply is an error."""
        request = {"model": "bench", "user": self._user, "max_tokens": 512, "messages": messages, **fields}
        body = orjson.dumps(request)
        begun = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, self._headers)
        reply = self._connection.getresponse()
        data = reply.read()
        took = time.perf_counter() - begun
        if reply.status != 200:
            raise SystemExit(f"{reply.status}: {data[:500]!r}")
        message: dict[str, Any] = orjson.loads(data)["choices"][0]["message"]
        return message, took


@contextlib.contextmanager
def gateway(upstream_port: int, folder: Path) -> Iterator[int]:
    """Serves a gateway with an 8k window. Yields its port."""
    folder.mkdir()
    config = folder / "mnemogate.toml"
    config.write_text(SETTINGS.format(port=upstream_port, context=CONTEXT))
    port = load.free_port()
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    command += ["--db", str(folder / "bench.db"), "--config", str(config)]
    log = folder / "log"
    log.touch()
    with load.process(
        command, log, env=load.clean_environment(), cwd=load.HERE.parent, stdout=subprocess.DEVNULL
    ) as running:
        load.wait_ready(port, "/health/ready", running, log)
        yield port


# -- inside its window


def run_to_the_end(turns: int, every: int, folder: Path) -> None:
    numbers = itertools.count(1)

    def answer(seen: Seen) -> Reply:
        n = next(numbers)
        if seen.json["model"] == "small":
            return say(f"Notes {n}: " + " ".join(f"fact{n}x{k}" for k in range(60)))
        if seen.messages[-1]["role"] == "user" and "the weather" in seen.messages[-1]["content"]:
            return call_tools(Call("weather", {"n": n}), text=None)
        return say(f"Answer {n}: yes, and no.")

    with StrictUpstream(script=answer) as upstream, gateway(upstream.port, folder) as port:
        client = Client(port, "full")
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        for n in range(turns):
            asks = " What is the weather?" if n % every == 60 % every else ""
            messages.append({"role": "user", "content": words(n) + asks})
            said, _ = client.post(messages, tools=[WEATHER])
            messages.append(said)
            for call in said.get("tool_calls") or ():
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": RESULT})
                said, _ = client.post(messages, tools=[WEATHER])
                messages.append(said)
            time.sleep(PAUSE_S)
        seen = list(upstream.chats)
    summaries = sum(s.json["model"] == "small" for s in seen)
    refused = sum(s.refusal is not None for s in seen)
    talk = [prompt_bytes(s.body) for s in seen if s.json["model"] != "small"]
    stable = [shared(one, two) for one, two in itertools.pairwise(talk)]
    breaks = sum(same < len(one) for same, one in zip(stable, talk, strict=False))
    sent = sum(map(len, talk[:-1]))
    results = sum(m["role"] == "tool" for m in messages)
    title = f"{turns:,} turns on a window of {CONTEXT:,} tokens, {results} results of {len(RESULT):,} bytes"
    print(f"{title}: {len(talk):,} requests, {refused} refused")
    print(
        f"prefix: {sum(stable) / sent:.2%} of the bytes stable, {breaks} breaks, {summaries} background calls"
    )
    whole = len(orjson.dumps(messages))
    print(f"longest prompt: {max(map(len, talk)):,} bytes; the client's list at the end: {whole:,}")


def prompt_bytes(body: bytes) -> bytes:
    """Returns what a provider's prompt cache sees: the tools, then the messages, in their order."""
    request = orjson.loads(body)
    return b"\n".join(map(orjson.dumps, [*(request.get("tools") or ()), *request["messages"]]))


def shared(one: bytes, two: bytes) -> int:
    """Returns the length of the common prefix."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == two[:middle] else (low, middle - 1)
    return low


# -- what a turn costs


@dataclass
class Talk:
    """A conversation that goes on. keeps: messages that are resent; None: all."""

    client: Client
    keeps: int | None
    times: list[float] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def turn(self, n: int) -> None:
        self.messages.append({"role": "user", "content": words(n)})
        tail = self.messages if self.keeps is None else self.messages[-self.keeps :]
        said, took = self.client.post(tail[next(i for i, m in enumerate(tail) if m["role"] == "user") :])
        self.messages.append({"role": "assistant", "content": said["content"]})
        self.times.append(took * 1e3)


def compare(turns: int, folder: Path, log: Path) -> None:
    with load.mock(log) as mock_port, gateway(mock_port, folder) as port:
        talks = {
            "direct, all": Talk(Client(mock_port, "direct"), None),
            "resends all": Talk(Client(port, "all"), None),
            f"last {TAIL}": Talk(Client(port, "tail"), TAIL),
            f"last {TAIL}, named": Talk(Client(port, "named", **{"x-mnemogate-conversation": "c1"}), TAIL),
            "new message alone": Talk(
                Client(
                    port,
                    "append",
                    **{"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"},
                ),
                1,
            ),
        }
        for n in range(turns):
            for talk in talks.values():
                talk.turn(n)
    places = [p for p in (100, 500, 1_000, 1_500, 1_900) if p + 100 <= turns]
    print("\nms a turn takes, p50 / p99 of a hundred turns from")
    print(" " * 20 + "".join(f"{p:>16,}" for p in places))
    for name, talk in talks.items():
        cells = []
        for p in places:
            some = sorted(talk.times[p : p + 100])
            cells.append(f"{statistics.median(some):.2f} / {some[98]:.2f}")
        print(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--every", type=int, default=100, help="turns from one tool result to the next")
    parser.add_argument("--only", choices=("window", "cost"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name:
        folder = Path(name)
        if options.only != "cost":
            run_to_the_end(options.turns, options.every, folder / "window")
        if options.only != "window":
            log = folder / "mock-log"
            log.touch()
            compare(options.turns, folder / "cost", log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
