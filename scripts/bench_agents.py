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
from typing import Any, NamedTuple

import orjson
import uvloop

from scripts import load, mock_upstream
from scripts.mock_upstream import STREAM_HEAD, Mock, chunk_event, http_chunk
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
_reply_numbers = itertools.count(1)
_random = random.Random(7)


class Upstream(Mock):
    """Streams a reply at once, or slowly where the newest message asks for it; first calls a memory tool for a note."""

    def serve(self, head: bytes, body: bytes) -> None:
        """Answers a request of an agent: by calls of tools, then by text."""
        newest = body[max(0, body.rfind(b'"role":"user"')) :]
        if b"chat/completions" not in head.split(b"\r\n", 1)[0] or SLOWLY.encode() in newest:
            super().serve(head, body)
            return
        number = next(_reply_numbers)
        has_result = b'"role":"tool"' in newest
        if SLEEPER in body and has_result:
            deltas, finish = [_call_delta(number, "memory_finish_edits", {})], CALLS
        elif SLEEPER in body or (NOTE.encode() in newest and not has_result):
            edit = {"label": "human", "new_memory": f"Fact {number}."}
            deltas, finish = [_call_delta(number, "memory_rethink", edit)], CALLS
        else:
            text = f"Reply {number:08}: " + mock_upstream.WORDS * 8
            pieces = [text[start : start + 80] for start in range(0, 80 * PIECES, 80)]
            deltas, finish = [orjson.dumps({"content": piece}) for piece in pieces], b'"stop"'
        events = [chunk_event(number, delta) for delta in deltas]
        end = chunk_event(number, b"{}", finish) + http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.transport.write(STREAM_HEAD + b"".join(events) + end)


def _call_delta(number: int, name: str, arguments: dict[str, Any]) -> bytes:
    """Returns a delta with a call of a tool. number: the number of the reply, for the id of the call."""
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    call = {"index": 0, "id": f"call_{number:08}", "type": "function", "function": function}
    return orjson.dumps({"role": "assistant", "tool_calls": [call]})


# -- what is sent


@dataclass(slots=True)
class RepeatedRequests:
    """The flow of some requests in turn, up to a number of requests."""

    requests: list[bytes]
    remaining: int

    def next_request(self, worker: int) -> bytes | None:
        self.remaining -= 1
        return self.requests[self.remaining % len(self.requests)] if self.remaining >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


@dataclass(slots=True)
class RequestPerConnection:
    """The flow in which each connection sends to an agent of its own, so that no send waits for another one."""

    requests: list[bytes]
    remaining: int

    def next_request(self, worker: int) -> bytes | None:
        self.remaining -= 1
        return self.requests[worker] if self.remaining >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


# The header by which a chat completion continues the agent's own conversation.
TO_DEFAULT = b"x-mnemogate-conversation: default\r\n"


def post(path: str, body: dict[str, Any], headers: bytes = b"") -> bytes:
    return load.chat_request(orjson.dumps(body), headers).replace(b"/v1/chat/completions", path.encode(), 1)


def about(text: str) -> str:
    """Returns a message with words of its own, as people's have: otherwise each message would recall all others."""
    return " ".join([text, *(f"topic{n}" for n in _random.sample(range(TOPICS), 3))])


def to_agent(agent: str, text: str, *, is_streamed: bool = False) -> bytes:
    """Returns a message to an agent, with words of its own."""
    return send_text(agent, about(text), is_streamed=is_streamed)


def send_text(agent: str, text: str, *, is_streamed: bool = False) -> bytes:
    """Returns a message to an agent, with this text alone."""
    options = {"streaming": True, "stream_tokens": True} if is_streamed else {}
    return post(f"/v1/agents/{agent}/messages", {"messages": [{"role": "user", "content": text}], **options})


def chat(text: str, model: str = "bench", headers: bytes = b"") -> bytes:
    messages = [{"role": "user", "content": about(text)}]
    return post("/v1/chat/completions", {"model": model, "stream": True, "messages": messages}, headers)


def direct_tool_calls() -> list[bytes]:
    """Returns the two calls that a message with one memory tool makes."""
    call = {"id": "call_1", "type": "function", "function": {"name": "memory_rethink", "arguments": "{}"}}
    reply = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Done."}
    question = {"role": "user", "content": NOTE}
    second = {"model": "bench", "stream": True, "messages": [question, *reply, result]}
    return [post("/v1/chat/completions", second), chat(NOTE)]


# -- measured


class Figures(load.Figures):
    """The figures of a gateway with agents."""

    async def drive(self, port: int, flow: Any, workers: int = 1, spread_s: float = 0.0) -> load.LoadResult:
        """Raises: SystemExit: a reply is an error, so that the figures mean nothing."""
        result = await load.drive(port, flow, workers, spread_s)
        if result.errors:
            raise SystemExit(f"not to be trusted: {result.errors[:3]}")
        return result

    async def p50(self, port: int, requests: Iterable[bytes], count: int) -> float:
        return statistics.median((await self.drive(port, RepeatedRequests([*requests], count))).total_ms)

    async def first_text(self, port: int, requests: list[bytes], count: int, delay_s: float = 0.0) -> float:
        await asyncio.sleep(delay_s)
        flow = RepeatedRequests(requests, count)
        return statistics.median((await self.drive(port, flow, STREAMS_AT_ONCE, SPREAD_S)).first_ms)

    async def make(self, name: str, **options: Any) -> str:
        """Makes an agent. Returns its id."""
        body = {"name": name, "system": "You help.", "model": "mock/bench", "memory_blocks": HUMAN, **options}
        reply = await asyncio.to_thread(load.fetch, self.port, "/v1/agents", orjson.dumps(body))
        return str(orjson.loads(reply)["id"])

    def archive(self, agent: str, text: str) -> None:
        """Adds a passage to an agent's archive."""
        load.fetch(self.port, f"/v1/agents/{agent}/archival-memory", orjson.dumps({"text": text}))


async def measure_alone(figures: Figures, count: int, agents: list[str]) -> None:
    """Measures a message at a time: with and without a tool, against the direct calls of the same round."""
    await asyncio.sleep(SETTLE_S)
    two_calls = direct_tool_calls()
    measurements: dict[str, Callable[[], Any]] = {
        "direct": partial(figures.p50, figures.mock_port, [chat(PLAIN)], count),
        "direct, two calls": partial(figures.p50, figures.mock_port, two_calls, count * 2),
        "plain": partial(figures.p50, figures.port, [to_agent(agent, PLAIN) for agent in agents], count),
        "tool": partial(figures.p50, figures.port, [to_agent(agent, NOTE) for agent in agents], count),
    }
    medians = {name: await measure() for name, measure in measurements.items()}
    figures.note("plain", medians["plain"] - medians["direct"])
    figures.note("tool", medians["tool"] - 2 * medians["direct, two calls"])


async def measure_sleeptime(figures: Figures, count: int, number: int) -> None:
    """Measures messages to agents with a sleeptime agent, which reads them, and to agents without one."""
    agents = {
        f"{kind}{number}": [
            await figures.make(f"{kind}{number}-{n}", enable_sleeptime=kind == "read")
            for n in range(READ_AGENTS)
        ]
        for kind in ("read", "unread")
    }
    times: dict[str, list[float]] = {"read": [], "unread": []}
    # The two kinds take turns, since the memories grow.
    for turn in range(count // READ_AGENTS):
        for n, kind in itertools.product(range(READ_AGENTS), sorted(times, reverse=bool(turn % 2))):
            await asyncio.sleep(PAUSE_S)
            times[kind].append(
                await figures.p50(figures.port, [to_agent(agents[f"{kind}{number}"][n], PLAIN)], 1)
            )
    for kind, values in times.items():
        figures.note(kind, statistics.median(values))


async def measure_rate(figures: Figures, count: int, agents: list[str]) -> None:
    """Measures how many messages a second the gateway answers, and their CPU time."""
    cpu_before_s = load.read_cpu_s(figures.pid)
    result = await figures.drive(
        figures.port, RequestPerConnection([to_agent(agent, PLAIN) for agent in agents], count), len(agents)
    )
    figures.note("rate", result.requests_per_s)
    figures.note("rate of a core", len(result.total_ms) / (load.read_cpu_s(figures.pid) - cpu_before_s))


async def measure_streams(
    figures: Figures, count: int, agents: list[str], names: list[str], turn: int
) -> None:
    """Measures streams of sends and of chats at once, each of one half of the agents. The halves change each turn."""
    direct_ms = await figures.first_text(figures.mock_port, [chat(SLOWLY)], count)
    send_half, chat_half = (slice(turn % 2, None, 2), slice(1 - turn % 2, None, 2))
    sends = [to_agent(agent, SLOWLY, is_streamed=True) for agent in agents[send_half]]
    chats = [chat(SLOWLY, f"agent/{agent}", TO_DEFAULT) for agent in names[chat_half]]
    # Streams of the two kinds never begin at the same time, since one would wait for the work of the other. Which kind
    # begins changes every two turns.
    offset_s = SPREAD_S / STREAMS_AT_ONCE / 2
    delay_s = offset_s if turn % 4 > 1 else 0.0
    first_texts = await asyncio.gather(
        figures.first_text(figures.port, sends, count, delay_s),
        figures.first_text(figures.port, chats, count, offset_s - delay_s),
    )
    figures.note("first text, agent", first_texts[0] - direct_ms)
    figures.note("first text, chat", first_texts[1] - direct_ms)


async def measure_steps(figures: Figures, long_agent: str, short_agent: str, archive_agent: str) -> None:
    """Measures messages to an agent of many steps and to two of few steps, in turn.

    archive_agent: an agent of few steps with an archive, so that as much is recalled for each message as with the long
    conversation. For `short_agent` nothing is recalled. A note costs the same wherever its lines come from.
    """
    questions = [about(PLAIN) for _ in range(FEW_STEPS)]
    for text in questions:
        *_, topic, second_topic, third_topic = text.split()
        for n in range(RECALLED):
            passage = about(f"What do you think about it? {(topic, second_topic, third_topic)[n % 3]}")
            await asyncio.to_thread(figures.archive, archive_agent, passage)
    await asyncio.sleep(REST_S)
    for text in questions:
        for name, request in (
            ("many", to_agent(long_agent, PLAIN)),
            ("few", to_agent(short_agent, PLAIN)),
            ("knowing", send_text(archive_agent, text)),
        ):
            figures.note(name, await figures.p50(figures.port, [request], 1))


async def bench(figures: Figures, rounds: int, count: int, steps: int) -> None:
    """Measures sends to agents and chat completions, in rounds.

    count: the number of messages of a round.
    steps: the number of steps of the agent with a long conversation.
    """
    names = [f"helper{n}" for n in range(2 * STREAMS_AT_ONCE)]
    agents = [await figures.make(name) for name in names]
    await figures.drive(
        figures.port, RepeatedRequests([to_agent(agent, PLAIN) for agent in agents], len(agents) * 2)
    )
    long_agent = await figures.make("many")
    await figures.drive(
        figures.port, RepeatedRequests([to_agent(long_agent, PLAIN) for _ in range(steps)], steps)
    )
    print(f"{steps} steps made", file=sys.stderr, flush=True)
    for number in range(rounds):
        # New agents in each round, so that their conversations do not grow with the rounds.
        fresh_agents = [await figures.make(f"fresh{number}-{n}") for n in range(max(CONNECTIONS, count // 5))]
        short_agent, archive_agent = [await figures.make(f"{name}{number}") for name in ("few", "knowing")]
        for agent in (short_agent, archive_agent):
            await figures.drive(
                figures.port, RepeatedRequests([to_agent(agent, PLAIN) for _ in range(FEW_STEPS)], FEW_STEPS)
            )
        await measure_alone(figures, count, fresh_agents)
        await measure_sleeptime(figures, count, number)
        await measure_rate(figures, count * 4, fresh_agents[:CONNECTIONS])
        await measure_steps(figures, long_agent, short_agent, archive_agent)
        await measure_streams(figures, STREAMS_AT_ONCE * 2, agents, names, number)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)


class StatementCounts(NamedTuple):
    """The SQL statements of a message, without BEGIN and COMMIT."""

    plain: int
    with_tool: int


def count_statements() -> StatementCounts:
    """Counts the statements of a plain message and of one with a memory tool, on a gateway inside this process."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        letta(upstream, Path(folder)) as fixture,
    ):
        agent = fixture.agent()

        def send() -> int:
            messages = fixture.letta.agents.messages
            return len(fixture.world.statements_of(lambda: messages.create(agent.id, input="Hi")))

        send()
        plain = send()
        call = Call("memory_rethink", {"label": "human", "new_memory": "Fact."})
        upstream.queue(call_tools(call), say("Noted."))
        return StatementCounts(plain, send())


def render_figures(figures: Figures, steps: int) -> str:
    """Returns the figures as a table, with the goals and Letta's figures."""
    statements = count_statements()
    short_ms, archive_ms, long_ms = (figures.median(name) for name in ("few", "knowing", "many"))
    agent_ms, chat_ms = figures.median("first text, agent"), figures.median("first text, chat")
    rows = [
        ("", "measured", "goal", "Letta"),
        ("a plain message: added, p50", f"{figures.median('plain'):.2f} ms", "<= 3 ms", "519 ms"),
        ("SQL statements", f"{statements.plain}", "6", "192"),
        ("with one memory tool: added to two calls", f"{figures.median('tool'):.2f} ms", "<= 6 ms", ""),
        ("SQL statements", f"{statements.with_tool}", "", ""),
        (f"messages/s, {CONNECTIONS} connections", f"{figures.median('rate'):.0f}", "", "6"),
        ("messages per processor second", f"{figures.median('rate of a core'):.0f}", ">= 200", ""),
        (f"p50 of an agent with {FEW_STEPS} steps, nothing to recall", f"{short_ms:.2f} ms", "", ""),
        (f"with {FEW_STEPS} steps and an archive to recall", f"{archive_ms:.2f} ms", "", ""),
        (f"with {steps:,} steps to recall", f"{long_ms:.2f} ms", "the same", ""),
        ("p50 of an agent that nobody reads", f"{figures.median('unread'):.2f} ms", "", ""),
        ("of one with sleeptime", f"{figures.median('read'):.2f} ms", "the same", ""),
        ("first text of a stream: added, p50", f"{agent_ms:.2f} ms", "", ""),
        ("of the same as a chat completion", f"{chat_ms:.2f} ms", "within 0.5 ms", ""),
    ]
    return load.render_table(rows, str.ljust)


def main() -> None:
    """Starts a mock upstream and a gateway, measures, and prints the table."""
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
        print(render_figures(figures, steps))


if __name__ == "__main__":
    uvloop.run(mock_upstream.main(Upstream)) if sys.argv[1:] == ["--mock"] else main()
