"""Measures the agents API: what a message to an agent costs beyond the same direct call, `scripts/bench agents`.

One mock upstream, one gateway, each a process of its own. A direct call is the same streamed call of the mock, in the
same round; medians are taken over interleaved rounds. SQL statements are counted as the tests count them, on a gateway
inside this process. Letta's figures are of its own server (0.16.8 with PostgreSQL, one process) with a mock upstream.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import load
import mock_upstream
import orjson
import uvloop
from mock_upstream import STREAM_HEAD, Mock, event, framed

from tests.agents.letta import letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say

CONTEXT = 4_096  # tokens; ten steps fill it, so that the prompts of few and many steps are as long
SETTINGS = """\
[server]
access_log = false

[[upstreams]]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "none"
context_window = {context}
takes = {{ stream_usage = true }}
"""
PLAIN, NOTE, SLOWLY = "What do you think about it?", "Note this down, please.", "Say it slowly, please."
HUMAN = [{"label": "human", "value": "Name: Ann"}]
PIECES = 10  # of a reply of 1 kB, which come together unless they are to come slowly
FEW_STEPS, CONNECTIONS, STREAMS_AT_ONCE = 10, 16, 10
RECALLED = 30  # passages for each message to an agent of few steps: a note has room for a third of them
SPREAD_S = 0.5  # the streams begin one after the other
PAUSE_S = 0.05  # between messages to agents that others read: people do not answer at once
REST_S = 3.0  # an index follows when its memory rests
SETTLE_S = 0.5  # chosen: what the gateway does after replies is no part of the next figure
READ_AGENTS = 4  # with sleeptime, and as many without; others read after each fifth message
SLEEPER, CALLS = b"You keep the memory of another agent", b'"tool_calls"'
TOPICS = 2_000  # of which a message names three
_calls = itertools.count(1)
_dice = random.Random(7)


class Upstream(Mock):
    """Streams a reply at once, or slowly where the newest message asks for it; first calls a memory tool for a note."""

    def serve(self, head: bytes, body: bytes) -> None:
        newest = body[max(0, body.rfind(b'"role":"user"')) :]
        if b"chat/completions" not in head.split(b"\r\n", 1)[0] or SLOWLY.encode() in newest:
            super().serve(head, body)
            return
        n = next(_calls)
        if SLEEPER in body:
            is_done = b'"role":"tool"' in newest
            name = "memory_finish_edits" if is_done else "memory_rethink"
            deltas, finish = (
                [_call(n, name, {} if is_done else {"label": "human", "new_memory": f"Fact {n}."})],
                CALLS,
            )
        elif NOTE.encode() in newest and b'"role":"tool"' not in newest:
            deltas, finish = (
                [_call(n, "memory_rethink", {"label": "human", "new_memory": f"Fact {n}."})],
                CALLS,
            )
        else:
            text = f"Reply {n:08}: " + mock_upstream.WORDS * 8
            parts = [text[at : at + 80] for at in range(0, 80 * PIECES, 80)]
            deltas, finish = [orjson.dumps({"content": part}) for part in parts], b'"stop"'
        events = [event(n, delta) for delta in deltas]
        end = event(n, b"{}", finish) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.transport.write(STREAM_HEAD + b"".join(events) + end)


def _call(n: int, name: str, arguments: dict[str, Any]) -> bytes:
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    call = {"index": 0, "id": f"call_{n:08}", "type": "function", "function": function}
    return orjson.dumps({"role": "assistant", "tool_calls": [call]})


# -- what is sent


@dataclass(slots=True)
class Requests:
    """The same requests in turn, a number of times."""

    requests: list[bytes]
    left: int

    def next_request(self, worker: int) -> bytes | None:
        self.left -= 1
        return self.requests[self.left % len(self.requests)] if self.left >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


@dataclass(slots=True)
class Lanes:
    """Each connection sends to an agent of its own, so that no send waits for another one."""

    requests: list[bytes]
    left: int

    def next_request(self, worker: int) -> bytes | None:
        self.left -= 1
        return self.requests[worker] if self.left >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


# A chat completion that goes on with the agent's own conversation.
TO_DEFAULT = b"x-mnemogate-conversation: default\r\n"


def post(path: str, body: dict[str, Any], headers: bytes = b"") -> bytes:
    return load.chat_request(orjson.dumps(body), headers).replace(b"/v1/chat/completions", path.encode(), 1)


def about(text: str) -> str:
    """Returns a message that shares few words with others, as people's do: else each would be found for each."""
    return " ".join([text, *(f"topic{n}" for n in _dice.sample(range(TOPICS), 3))])


def to_agent(agent: str, text: str, *, stream: bool = False) -> bytes:
    return saying(agent, about(text), stream=stream)


def saying(agent: str, text: str, *, stream: bool = False) -> bytes:
    options = {"streaming": True, "stream_tokens": True} if stream else {}
    return post(f"/v1/agents/{agent}/messages", {"messages": [{"role": "user", "content": text}], **options})


def chat(text: str, model: str = "bench", headers: bytes = b"") -> bytes:
    messages = [{"role": "user", "content": about(text)}]
    return post("/v1/chat/completions", {"model": model, "stream": True, "messages": messages}, headers)


def direct_with_a_tool() -> list[bytes]:
    """Returns the two calls that a message with one memory tool makes."""
    call = {"id": "call_1", "type": "function", "function": {"name": "memory_rethink", "arguments": "{}"}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Done."}
    asked = {"role": "user", "content": NOTE}
    second = {"model": "bench", "stream": True, "messages": [asked, *said, result]}
    return [post("/v1/chat/completions", second), chat(NOTE)]


# -- measured


class Figures(load.Figures):
    """The figures of agents, and the calls that they are taken of."""

    async def drive(self, port: int, flow: Any, workers: int = 1, spread_s: float = 0.0) -> load.LoadResult:
        """Raises: SystemExit: a reply is an error, so that the figures mean nothing."""
        result = await load.drive(port, flow, workers, spread_s)
        if result.errors:
            raise SystemExit(f"not to be trusted: {result.errors[:3]}")
        return result

    async def p50(self, port: int, requests: Iterable[bytes], count: int) -> float:
        return statistics.median((await self.drive(port, Requests([*requests], count))).total_ms)

    async def first_text(self, port: int, requests: list[bytes], count: int, delay_s: float = 0.0) -> float:
        await asyncio.sleep(delay_s)
        flow = Requests(requests, count)
        return statistics.median((await self.drive(port, flow, STREAMS_AT_ONCE, SPREAD_S)).first_ms)

    async def make(self, name: str, **options: Any) -> str:
        """Makes an agent. Returns its id."""
        body = {"name": name, "system": "You help.", "model": "mock/bench", "memory_blocks": HUMAN, **options}
        reply = await asyncio.to_thread(load.fetch, self.port, "/v1/agents", orjson.dumps(body))
        return str(orjson.loads(reply)["id"])

    def archive(self, agent: str, text: str) -> None:
        """Adds a passage to an agent's archive."""
        load.fetch(self.port, f"/v1/agents/{agent}/archival-memory", orjson.dumps({"text": text}))


async def alone(figures: Figures, count: int, agents: list[str]) -> None:
    """Measures a message at a time: with and without a tool, against the direct calls of the same round."""
    await asyncio.sleep(SETTLE_S)
    two = direct_with_a_tool()
    ways: dict[str, Callable[[], Any]] = {
        "direct": partial(figures.p50, figures.mock_port, [chat(PLAIN)], count),
        "direct, two calls": partial(figures.p50, figures.mock_port, two, count * 2),
        "plain": partial(figures.p50, figures.port, [to_agent(each, PLAIN) for each in agents], count),
        "tool": partial(figures.p50, figures.port, [to_agent(each, NOTE) for each in agents], count),
    }
    took = {name: await way() for name, way in ways.items()}
    figures.note("plain", took["plain"] - took["direct"])
    figures.note("tool", took["tool"] - 2 * took["direct, two calls"])


async def slept_on(figures: Figures, count: int, number: int) -> None:
    """Measures messages to agents while others read what is said to them, and to agents without those."""
    ways = {
        f"{way}{number}": [
            await figures.make(f"{way}{number}-{n}", enable_sleeptime=way == "read")
            for n in range(READ_AGENTS)
        ]
        for way in ("read", "unread")
    }
    took: dict[str, list[float]] = {"read": [], "unread": []}
    # One after the other, since what is remembered grows.
    for turn in range(count // READ_AGENTS):
        for n, way in itertools.product(range(READ_AGENTS), sorted(took, reverse=bool(turn % 2))):
            await asyncio.sleep(PAUSE_S)
            took[way].append(await figures.p50(figures.port, [to_agent(ways[f"{way}{number}"][n], PLAIN)], 1))
    for way, values in took.items():
        figures.note(way, statistics.median(values))


async def together(figures: Figures, count: int, agents: list[str]) -> None:
    """Measures as many messages as the gateway can answer, and their processor time."""
    spent = load.read_cpu_s(figures.pid)
    result = await figures.drive(
        figures.port, Lanes([to_agent(each, PLAIN) for each in agents], count), len(agents)
    )
    figures.note("rate", result.requests_per_s)
    figures.note("rate of a core", len(result.total_ms) / (load.read_cpu_s(figures.pid) - spent))


async def streams(figures: Figures, count: int, agents: list[str], names: list[str], turn: int) -> None:
    """Measures streams of both kinds side by side, each of one half of the agents, which change places."""
    floor = await figures.first_text(figures.mock_port, [chat(SLOWLY)], count)
    ours, theirs = (slice(turn % 2, None, 2), slice(1 - turn % 2, None, 2))
    sends = [to_agent(each, SLOWLY, stream=True) for each in agents[ours]]
    chats = [chat(SLOWLY, f"agent/{each}", TO_DEFAULT) for each in names[theirs]]
    # Never two in one moment: of such a pair the first waits for the work that the second one makes. In every other
    # round the other kind begins.
    between = SPREAD_S / STREAMS_AT_ONCE / 2
    delay_s = between if turn % 4 > 1 else 0.0
    first_texts = await asyncio.gather(
        figures.first_text(figures.port, sends, count, delay_s),
        figures.first_text(figures.port, chats, count, between - delay_s),
    )
    figures.note("first text, agent", first_texts[0] - floor)
    figures.note("first text, chat", first_texts[1] - floor)


async def long_and_short(figures: Figures, many: str, few: str, knowing: str) -> None:
    """Measures messages to agents of many and of few steps, in turn.

    knowing: one of few steps whose archive has as much to recall for each message as the long conversation of the
    other: a note costs the same wherever its lines come from, and one of few steps alone has nothing for it.
    """
    asked = [about(PLAIN) for _ in range(FEW_STEPS)]
    for text in asked:
        *_, topic, other, third = text.split()
        for n in range(RECALLED):
            passage = about(f"What do you think about it? {(topic, other, third)[n % 3]}")
            await asyncio.to_thread(figures.archive, knowing, passage)
    await asyncio.sleep(REST_S)
    for text in asked:
        for name, request in (
            ("many", to_agent(many, PLAIN)),
            ("few", to_agent(few, PLAIN)),
            ("knowing", saying(knowing, text)),
        ):
            figures.note(name, await figures.p50(figures.port, [request], 1))


async def bench(figures: Figures, rounds: int, count: int, steps: int) -> None:
    names = [f"helper{n}" for n in range(2 * STREAMS_AT_ONCE)]
    agents = [await figures.make(name) for name in names]
    await figures.drive(figures.port, Requests([to_agent(each, PLAIN) for each in agents], len(agents) * 2))
    many = await figures.make("many")
    await figures.drive(figures.port, Requests([to_agent(many, PLAIN) for _ in range(steps)], steps))
    print(f"{steps} steps made", file=sys.stderr, flush=True)
    for number in range(rounds):
        # A few messages each, so that what they say does not grow with the rounds.
        fresh = [await figures.make(f"fresh{number}-{n}") for n in range(max(CONNECTIONS, count // 5))]
        few, knowing = [await figures.make(f"{name}{number}") for name in ("few", "knowing")]
        for each in (few, knowing):
            await figures.drive(
                figures.port, Requests([to_agent(each, PLAIN) for _ in range(FEW_STEPS)], FEW_STEPS)
            )
        await alone(figures, count, fresh)
        await slept_on(figures, count, number)
        await together(figures, count * 4, fresh[:CONNECTIONS])
        await long_and_short(figures, many, few, knowing)
        await streams(figures, STREAMS_AT_ONCE * 2, agents, names, number)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)


def statements() -> tuple[int, int]:
    """Returns the SQL statements of a plain message and of one with a memory tool, BEGIN and COMMIT left out."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        letta(upstream, Path(folder)) as made,
    ):
        agent = made.agent()

        def send() -> int:
            return len(
                made.world.statements_of(lambda: made.letta.agents.messages.create(agent.id, input="Hi"))
            )

        send()
        plain = send()
        call = Call("memory_rethink", {"label": "human", "new_memory": "Fact."})
        upstream.queue(call_tools(call), say("Noted."))
        return plain, send()


def table(figures: Figures, steps: int) -> str:
    plain, tool = statements()
    few, knowing, many = (figures.median(name) for name in ("few", "knowing", "many"))
    agent, other = figures.median("first text, agent"), figures.median("first text, chat")
    rows = [
        ("", "measured", "goal", "Letta"),
        ("a plain message: added, p50", f"{figures.median('plain'):.2f} ms", "<= 3 ms", "519 ms"),
        ("SQL statements", f"{plain}", "6", "192"),
        ("with one memory tool: added to two calls", f"{figures.median('tool'):.2f} ms", "<= 6 ms", ""),
        ("SQL statements", f"{tool}", "", ""),
        (f"messages/s, {CONNECTIONS} connections", f"{figures.median('rate'):.0f}", "", "6"),
        ("messages per processor second", f"{figures.median('rate of a core'):.0f}", ">= 200", ""),
        (f"p50 of an agent with {FEW_STEPS} steps, nothing to recall", f"{few:.2f} ms", "", ""),
        (f"with {FEW_STEPS} steps and an archive to recall", f"{knowing:.2f} ms", "", ""),
        (f"with {steps:,} steps to recall", f"{many:.2f} ms", "the same", ""),
        ("p50 of an agent that nobody reads", f"{figures.median('unread'):.2f} ms", "", ""),
        ("of one with sleeptime", f"{figures.median('read'):.2f} ms", "the same", ""),
        ("first text of a stream: added, p50", f"{agent:.2f} ms", "", ""),
        ("of the same as a chat completion", f"{other:.2f} ms", "within 0.5 ms", ""),
    ]
    return load.render_table(rows, str.ljust)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench agents", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and messages; rough figures")
    parser.add_argument("--steps", type=int, help="of the agent that has many")
    options = parser.parse_args()
    rounds, count, steps = (3, 50, 1_000) if options.quick else (10, 100, 10_000)
    steps = options.steps or steps
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        mock = stack.enter_context(load.run_mock(folder / "log", __file__, "--mock"))
        settings = SETTINGS.format(port=mock, context=CONTEXT)
        gateway = stack.enter_context(load.serve_gateway(folder, settings))
        figures = Figures(gateway.port, gateway.pid, mock)
        uvloop.run(bench(figures, rounds, count, steps))
        print(table(figures, steps))


if __name__ == "__main__":
    uvloop.run(mock_upstream.main(Upstream)) if sys.argv[1:] == ["--mock"] else main()
