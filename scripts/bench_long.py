"""Measures a conversation of 2,000 turns: whether it stays inside its window, and what a turn costs at its end.

First a client that resends everything chats for 2,000 turns on a window of 8k, with a tool result of 20 kB every
hundred turns. The upstream is the tests' strict one, which refuses what the real API refuses. Printed: the requests
that were refused, the share of each prompt's bytes with which the next prompt begins, and how often that prefix broke.

Then clients with a conversation each, and a mock upstream that answers at once: one resends everything, two their last
20 messages, one only the new message (append mode). Printed: the time of a turn, p50 and p99 of 100 turns at a time, of
the gateway and of a direct call.

Last a client in append mode, with a window of 128k into which the whole conversation fits. Printed: the processor time
of the gateway for a turn, of 100 turns at a time.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from scripts import load
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.memory.long_conversation import measure_prefix

TURNS = 2_000
CONTEXT = 8_192  # tokens
LARGE_CONTEXT = 128_000
LARGE_TURNS = 1_300  # nearly fill the large context
RESULT = "The station reported sunshine and warm weather around the harbour, as it did before. " * 240
PAUSE_S = 0.05  # after each turn, far less than a person takes; the background model works meanwhile
APPEND = {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}
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


def settings(port: int, context: int = CONTEXT) -> str:
    return SETTINGS.format(port=port, context=context)


def user_text(turn: int) -> str:
    """Returns what the user says in a turn. No two turns share a rare word."""
    return f"Message {turn}:" + "".join(f" word{turn}x{k}" for k in range(12))


class Client:
    """A client with one connection, for one conversation."""

    def __init__(self, port: int, user: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._user = user
        self._headers = {"content-type": "application/json", **headers}

    def post(self, messages: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, Any], float]:
        """Returns the reply's message and the seconds it took. Raises: SystemExit: the reply is an error."""
        request = {"model": "bench", "user": self._user, "max_tokens": 512, "messages": messages, **fields}
        body = orjson.dumps(request)
        started = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, self._headers)
        reply = self._connection.getresponse()
        data = reply.read()
        took_s = time.perf_counter() - started
        if reply.status != 200:
            raise SystemExit(f"{reply.status}: {data[:500]!r}")
        message: dict[str, Any] = orjson.loads(data)["choices"][0]["message"]
        return message, took_s


# -- inside its window


def stay_inside(turns: int, folder: Path) -> None:
    """Has a conversation that is much longer than its window, and prints what the upstream received."""
    numbers = itertools.count(1)

    def answer(request: UpstreamRequest) -> Reply:
        number = next(numbers)
        if request.json["model"] == "small":
            return say(f"Notes {number}: " + " ".join(f"fact{number}x{k}" for k in range(60)))
        if request.messages[-1]["role"] == "user" and "the weather" in request.messages[-1]["content"]:
            return call_tools(Call("weather", {"n": number}), text=None)
        return say(f"Answer {number}: yes, and no.")

    with (
        StrictUpstream(script=answer) as upstream,
        load.serve_gateway(folder, settings(upstream.port)) as served,
    ):
        client = Client(served.port, "full")
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        for turn in range(turns):
            question = " What is the weather?" if turn % 100 == 60 else ""
            messages.append({"role": "user", "content": user_text(turn) + question})
            reply, _ = client.post(messages, tools=[WEATHER])
            messages.append(reply)
            for call in reply.get("tool_calls") or ():
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": RESULT})
                answer_to_result, _ = client.post(messages, tools=[WEATHER])
                messages.append(answer_to_result)
            time.sleep(PAUSE_S)
        requests = list(upstream.chats)
    turn_requests = [request for request in requests if request.json["model"] != "small"]
    background_calls = len(requests) - len(turn_requests)
    refused = sum(request.refusal is not None for request in requests)
    share = measure_prefix(turn_requests)
    results = sum(message["role"] == "tool" for message in messages)
    title = f"{turns:,} turns on a window of {CONTEXT:,} tokens, {results} results of {len(RESULT):,} bytes"
    print(f"{title}: {len(turn_requests):,} requests, {refused} refused")
    stable = f"{share.ratio:.2%} of the bytes stable, {len(share.breaks)} breaks"
    print(f"prefix: {stable}, {background_calls} background calls")
    longest = max(len(request.body) for request in turn_requests)
    print(
        f"longest request: {longest:,} bytes; the client's list at the end: {len(orjson.dumps(messages)):,}"
    )


# -- what a turn costs


@dataclass
class Conversation:
    """A conversation that goes on, and the times of its turns."""

    client: Client
    # The number of last messages that the client sends; None: all.
    sent_messages: int | None
    times_ms: list[float] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def take_turn(self, number: int) -> None:
        self.messages.append({"role": "user", "content": user_text(number)})
        tail = self.messages if self.sent_messages is None else self.messages[-self.sent_messages :]
        start = next(index for index, message in enumerate(tail) if message["role"] == "user")
        reply, took_s = self.client.post(tail[start:])
        self.messages.append({"role": "assistant", "content": reply["content"]})
        self.times_ms.append(took_s * 1e3)


def compare(turns: int, folder: Path) -> None:
    """Prints the times of turns, by the messages that the client sends and by the length of the conversation."""
    with load.run_mock(folder / "log") as mock, load.serve_gateway(folder, settings(mock)) as served:
        conversation_header = {"x-mnemogate-conversation": "c1"}
        conversations = {
            "direct, all": Conversation(Client(mock, "direct"), None),
            "resends all": Conversation(Client(served.port, "all"), None),
            f"last {TAIL}": Conversation(Client(served.port, "tail"), TAIL),
            f"last {TAIL}, named": Conversation(Client(served.port, "named", **conversation_header), TAIL),
            "new message alone": Conversation(Client(served.port, "append", **APPEND), 1),
        }
        for number in range(turns):
            for conversation in conversations.values():
                conversation.take_turn(number)
    starts = [start for start in (100, 500, 1_000, 1_500, 1_900) if start + 100 <= turns]
    print("\nms a turn takes, p50 / p99 of a hundred turns from")
    print(" " * 20 + "".join(f"{start:>16,}" for start in starts))
    for name, conversation in conversations.items():
        cells = []
        for start in starts:
            hundred = sorted(conversation.times_ms[start : start + 100])
            cells.append(f"{statistics.median(hundred):.2f} / {hundred[98]:.2f}")
        print(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))


def stay_whole(turns: int, folder: Path) -> None:
    """Prints the processor time of a turn in append mode while the whole conversation fits into the window."""
    turns = min(turns, LARGE_TURNS)
    with (
        load.run_mock(folder / "log") as mock,
        load.serve_gateway(folder, settings(mock, LARGE_CONTEXT)) as served,
    ):
        conversation = Conversation(Client(served.port, "append", **APPEND), 1)
        spent_s = [load.read_cpu_s(served.pid)]
        for number in range(turns):
            conversation.take_turn(number)
            spent_s.append(load.read_cpu_s(served.pid))
    print(
        f"\nnew message alone on a window of {LARGE_CONTEXT:,} tokens: processor ms of a turn, a hundred turns from"
    )
    for start in (100, 400, 800, 1_200):
        if start + 100 <= turns:
            print(f"{start:>6,}: {(spent_s[start + 100] - spent_s[start]) * 10:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench long", description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    turns = parser.parse_args().turns
    for measure in (stay_inside, compare, stay_whole):
        with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder:
            measure(turns, Path(folder))


if __name__ == "__main__":
    main()
