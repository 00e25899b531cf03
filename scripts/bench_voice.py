"""Measures calls of voice agents: the first word, the silence after a filler, many calls at once.

`scripts/bench voice`. One mock upstream and one gateway have a process each. The upstream says its first word at once:
that of a reply, or of a filler with a call of `search_memory`, and of the answer when it has the result. "Added" is the
time beyond that of the upstream, which is asked directly in the same round. A figure is the median of the rounds.

Among many calls, replies stream for half a second and callers speak for one second. A full run takes five minutes, a
quick one 77 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop

from scripts import load, mock_upstream
from scripts.mock_upstream import STREAM_HEAD, Mock, chunk_event, http_chunk

SETTINGS = """\
[server]
access_log = false

[[upstreams]]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "none"
takes = {{ stream_usage = true }}
"""
PLAIN, LOOK, SLOWLY = "What do you think about it?", "Look it up, please.", " Slowly."
FILLER, ANSWER = "Let me look that up.", b"Reply "
PIECES = 10  # words of a reply, each an event of its own
AT_ONCE = 50  # calls
TURNS = 4  # of a call
SPREAD_S = 2.0  # within which calls begin
PAUSE_S = 1.0  # in which a caller speaks
_replies = itertools.count(1)


class Upstream(Mock):
    """Streams a reply at once; where the newest message asks to look something up, first a call with a filler."""

    def serve(self, head: bytes, body: bytes) -> None:
        """Answers a request of a voice agent: by a call of a tool, or by text."""
        if b"chat/completions" not in head.split(b"\r\n", 1)[0]:
            super().serve(head, body)
            return
        number = next(_replies)
        newest = body[max(0, body.rfind(b'"role":"user"')) :]
        if LOOK.encode() in newest and b'"role":"tool"' not in newest:
            deltas, finish = _tool_call_deltas(number), b'"tool_calls"'
        elif SLOWLY.encode() in newest:
            super().serve(head, body)
            return
        else:
            words = [f"Reply {number:08}:", *mock_upstream.WORD_LIST[:PIECES]]
            deltas, finish = [orjson.dumps({"content": f"{word} "}) for word in words], b'"stop"'
        role_event = chunk_event(number, b'{"role":"assistant","content":""}')
        end = chunk_event(number, b"{}", finish) + http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.transport.write(
            b"".join([STREAM_HEAD, role_event, *(chunk_event(number, delta) for delta in deltas), end])
        )


def _tool_call_deltas(number: int) -> list[bytes]:
    """Returns the deltas of a tool call: its beginning, then its arguments in two pieces, the first with the filler."""
    function = {"name": "search_memory", "arguments": ""}
    beginning = {"index": 0, "id": f"call_{number:08}", "type": "function", "function": function}
    pieces = [f'{{"pre_exec_msg":"{FILLER}"', ',"convo_keyword_queries":["bicycle"]}']
    further_deltas = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    return [orjson.dumps({"tool_calls": [call]}) for call in (beginning, *further_deltas)]


# -- calls


@dataclass(slots=True)
class PhoneCall:
    """One call as its voice stack has it, which resends all messages."""

    # The fields of its requests besides `messages` and `stream`.
    fields: dict[str, Any]
    headers: bytes
    # The end of each message of the caller.
    text: str
    messages: list[bytes] = field(default_factory=lambda: [load.SYSTEM])

    def request(self, turn: int) -> bytes:
        fact = load.FACTS[turn % len(load.FACTS)]
        self.messages.append(
            load.render_message("user", f"({turn}) I wanted to say that {fact}. {self.text}")
        )
        open_object = orjson.dumps({**self.fields, "stream": True})[:-1]
        body = open_object + b',"messages":[' + b",".join(self.messages) + b"]}"
        return load.chat_request(body, self.headers)


class Calls:
    """The flow of calls at once, each on a connection of its own."""

    def __init__(self, calls: Sequence[PhoneCall], pause_s: float = 0.0) -> None:
        self.calls, self.pause_s = calls, pause_s
        # By the connection.
        self.turns_left = [TURNS] * len(calls)
        # From the first word of each reply to the first word of its answer.
        self.answer_ms: list[float] = []

    def next_request(self, worker: int) -> bytes | None:
        turns_left = self.turns_left[worker]
        self.turns_left[worker] -= 1
        return self.calls[worker].request(turns_left) if turns_left else None

    def take_reply(self, worker: int, body: bytes) -> None:
        self.calls[worker].messages.append(load.render_message("assistant", load.read_stream_text(body)))


class Listener(load.LoadConnection):
    """A connection that pauses between turns, and notes when the answer after a filler begins."""

    flow: Calls
    # `time.perf_counter()` at the first word of the answer; 0: it has not come.
    answered_at = 0.0

    def send(self) -> None:
        if self.began_at and self.flow.pause_s:
            asyncio.get_running_loop().call_later(self.flow.pause_s, self.speak)
        else:
            self.speak()

    def speak(self) -> None:
        self.answered_at = 0.0
        super().send()

    def data_received(self, data: bytes) -> None:
        if not self.answered_at and ANSWER in data:
            self.answered_at = time.perf_counter()
            # The filler and the answer in one read: there was no silence.
            self.flow.answer_ms.append((self.answered_at - (self.first_text_at or self.answered_at)) * 1e3)
        super().data_received(data)


_numbers = itertools.count(1)


def make_calls(count: int, text: str, **fields: Any) -> list[PhoneCall]:
    """Returns calls, each a conversation of its own. fields: further fields of their requests."""
    headers = (b"x-mnemogate-conversation: call-%d\r\n" % next(_numbers) for _ in range(count))
    return [PhoneCall(fields, header, text) for header in headers]


# -- measured


class Figures(load.Figures):
    """The figures of a gateway with voice agents."""

    async def drive(self, port: int, flow: Calls, spread_s: float) -> load.LoadResult:
        """Raises: SystemExit: a reply is an error, so that the figures mean nothing."""
        result = await load.drive(port, flow, len(flow.calls), spread_s, Listener)
        if result.errors:
            raise SystemExit(f"not to be trusted: {result.errors[:3]}")
        return result

    async def make(self, name: str) -> None:
        """Makes a voice agent."""
        body = {"name": name, "agent_type": "voice_convo_agent", "system": "You help.", "model": "mock/bench"}
        await asyncio.to_thread(load.fetch, self.port, "/v1/agents", orjson.dumps(body))


async def measure_single_calls(figures: Figures, count: int, name: str) -> None:
    """Measures one call at a time: its first word with and without an agent, and the silence after a filler."""
    variants: dict[str, Callable[[], list[PhoneCall]]] = {
        "direct": lambda: make_calls(1, PLAIN, model="bench"),
        # The user's memory is as large as the agent's, so that recall searches as much.
        "plain": lambda: make_calls(1, PLAIN, model="bench", user=name),
        "agent": lambda: make_calls(1, PLAIN, model=f"agent/{name}"),
        "filler": lambda: make_calls(1, LOOK, model=f"agent/{name}-looks"),
    }
    first_ms: dict[str, list[float]] = {variant: [] for variant in variants}
    silences: list[float] = []
    # Each variant comes equally often after each other one, since its last write may overlap with the next call.
    orders = list(itertools.permutations(variants))
    random.Random(count).shuffle(orders)
    for number in range(count):
        for variant in orders[number % len(orders)]:
            flow = Calls(variants[variant]())
            port = figures.mock_port if variant == "direct" else figures.port
            result = await figures.drive(port, flow, 0.0)
            first_ms[variant] += result.first_ms
            silences += flow.answer_ms if variant == "filler" else []
    p50 = {variant: statistics.median(values) for variant, values in first_ms.items()}
    for variant in ("plain", "agent", "filler"):
        figures.note(variant, p50[variant] - p50["direct"])
    figures.note("silence", statistics.median(silences) - p50["direct"])


async def measure_calls_at_once(figures: Figures, name: str) -> None:
    """Measures `AT_ONCE` calls at once, with and without a tool, against the same calls to the upstream itself."""

    async def p99(port: int, text: str, model: str) -> float:
        flow = Calls(make_calls(AT_ONCE, text + SLOWLY, model=model), PAUSE_S)
        result = await figures.drive(port, flow, SPREAD_S)
        return statistics.quantiles(result.first_ms, n=100)[98]

    direct_ms = await p99(figures.mock_port, PLAIN, "bench")
    for text, variant in ((PLAIN, "plain"), (LOOK, "filler")):
        cpu_before_s = load.read_cpu_s(figures.pid)
        figures.note(f"p99, {variant}", await p99(figures.port, text, f"agent/{name}") - direct_ms)
        figures.note(
            f"cpu, {variant}", (load.read_cpu_s(figures.pid) - cpu_before_s) * 1e3 / (AT_ONCE * TURNS)
        )


async def bench(figures: Figures, rounds: int, count: int) -> None:
    for number in range(rounds + 1):
        # New agents in each round, so that their memories do not grow with the rounds.
        await figures.make(f"vera{number}")
        await figures.make(f"vera{number}-looks")
        await measure_single_calls(figures, count, f"vera{number}")
        await measure_calls_at_once(figures, f"vera{number}")
        if not number:
            figures.values.clear()  # the first round imports modules and compiles patterns
        print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)


def render_figures(figures: Figures) -> str:
    """Returns the figures as a table, with the goals."""
    agent_overhead_ms = figures.median("agent") - figures.median("plain")
    rows = [
        ("", "measured", "goal"),
        ("first word of an agent: added, p50", f"{figures.median('agent'):.2f} ms", ""),
        ("more than the same stream without an agent", f"{agent_overhead_ms:.2f} ms", "<= 0.5 ms"),
        ("first word of a filler: added, p50", f"{figures.median('filler'):.2f} ms", ""),
        (
            "from filler to answer, beyond the second call, p50",
            f"{figures.median('silence'):.2f} ms",
            "<= 6 ms",
        ),
        (
            f"first word, {AT_ONCE} calls at once: added, p99",
            f"{figures.median('p99, plain'):.1f} ms",
            "< 30 ms",
        ),
        (
            f"of a filler, {AT_ONCE} calls at once: added, p99",
            f"{figures.median('p99, filler'):.1f} ms",
            "< 30 ms",
        ),
        (
            f"processor time of a turn of {mock_upstream.EVENTS} words",
            f"{figures.median('cpu, plain'):.1f} ms",
            "",
        ),
        ("of a turn with filler, tool and answer", f"{figures.median('cpu, filler'):.1f} ms", ""),
    ]
    return load.render_table(rows, str.ljust)


def main() -> None:
    """Starts a mock upstream and a gateway, measures calls, and prints the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench voice", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls; rough figures")
    options = parser.parse_args()
    rounds, count = (2, 12) if options.quick else (10, 24)
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        mock = stack.enter_context(load.run_mock(folder / "log", __file__, "--mock"))
        gateway = stack.enter_context(load.serve_gateway(folder, SETTINGS.format(port=mock)))
        figures = Figures(gateway.port, gateway.pid, mock)
        uvloop.run(bench(figures, rounds, count))
        print(render_figures(figures))


if __name__ == "__main__":
    uvloop.run(mock_upstream.main(Upstream)) if sys.argv[1:] == ["--mock"] else main()
