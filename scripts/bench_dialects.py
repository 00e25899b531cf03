"""What a whole reply takes longer through the gateway, for each dialect: added p50, against the mock upstream itself.

One mock upstream that answers chat completions and Anthropic's messages, one gateway, each a process of its own. The
same talks are held in every dialect, one request after the other, in interleaved rounds: each of a new user (of none
with memory off), three turns to begin with and three that are measured. "messages" are translated to chat completions,
"native" pass.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import load
import mock_upstream
import orjson
import uvloop
from mock_upstream import WORDS, Mock, answer

WARM_TURNS, MEASURED_TURNS = 3, 3
GOAL_MS = 0.2  # more than chat completions add
users = itertools.count(1)
_numbers = itertools.count(1)
_SYSTEM = "You are a friendly assistant that answers in plain words."
Json = dict[str, Any]


def message(number: int) -> bytes:
    """Returns a reply in Anthropic's dialect, as long as those of chat completions."""
    text = f"Reply {number:08d}: " + (WORDS * 8)[:720]
    return answer(
        b'{"id":"msg_%08d","type":"message","role":"assistant","model":"claude-bench","content":[{"type":"text",'
        b'"text":"%b"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":100,'
        b'"output_tokens":150}}' % (number, text.encode())
    )


class Upstream(Mock):
    def serve(self, head: bytes, body: bytes) -> None:
        if b" /v1/messages" in head:
            self.transport.write(message(next(_numbers)))
        else:
            super().serve(head, body)


@dataclass(frozen=True)
class Way:
    """A dialect."""

    path: str
    # The path at which the mock is asked by itself.
    direct_path: str
    model: str
    # Returns a request's body, given the messages and the user.
    body: Callable[[list[Json], str], Json]
    # Returns the text of a reply.
    text: Callable[[Json], str]


def _chat(messages: list[Json], user: str) -> Json:
    named = {"user": user} if user else {}
    return {"messages": [{"role": "system", "content": _SYSTEM}, *messages], **named}


def _messages(messages: list[Json], user: str) -> Json:
    named = {"metadata": {"user_id": user}} if user else {}
    return {"max_tokens": 1000, "system": _SYSTEM, "messages": messages, **named}


def _responses(messages: list[Json], user: str) -> Json:
    named = {"user": user} if user else {}
    return {"instructions": _SYSTEM, "input": messages, **named}


def _of_chat(reply: Json) -> str:
    return str(reply["choices"][0]["message"]["content"])


def _of_message(reply: Json) -> str:
    return str(reply["content"][0]["text"]) if "content" in reply else _of_chat(reply)


def _of_response(reply: Json) -> str:
    return str(reply["output"][0]["content"][0]["text"]) if "output" in reply else _of_chat(reply)


CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
WAYS = {
    "chat": Way(CHAT, CHAT, "gpt-bench", _chat, _of_chat),
    "responses": Way("/v1/responses", CHAT, "gpt-bench", _responses, _of_response),
    "messages": Way(MESSAGES, CHAT, "gpt-bench", _messages, _of_message),
    "native": Way(MESSAGES, MESSAGES, "claude-bench", _messages, _of_message),
}


@dataclass
class Talks:
    """Some talks in one dialect, one after the other."""

    way: Way
    count: int
    # They are with the mock itself.
    is_direct: bool
    headers: bytes
    wrong: int = 0
    talk: list[Json] = field(default_factory=list)
    user: str = ""
    turn: int = 0

    def next_request(self, worker: int) -> bytes | None:
        if self.turn % (WARM_TURNS + MEASURED_TURNS) == 0:
            if self.turn == self.count * (WARM_TURNS + MEASURED_TURNS):
                return None
            self.talk, self.user = [], f"u{next(users)}"
        question = orjson.loads(load.render_question(self.user, self.turn))
        self.talk.append(question)
        self.turn += 1
        way = self.way
        form = _chat if self.is_direct and way.direct_path == CHAT else way.body
        body = orjson.dumps({"model": way.model, **form(self.talk, "" if self.headers else self.user)})
        path = way.direct_path if self.is_direct else way.path
        return load.chat_request(body, self.headers + b"anthropic-version: 2023-06-01\r\n").replace(
            CHAT.encode(), path.encode(), 1
        )

    def take_reply(self, worker: int, body: bytes) -> None:
        try:
            text = self.way.text(orjson.loads(body))
        except (ValueError, LookupError):
            text = ""
        self.wrong += not text.startswith("Reply ")
        self.talk.append({"role": "assistant", "content": text})


def settings(mock: int) -> str:
    """Returns the settings of a gateway before the mock upstream at this port."""
    row = '[[upstreams]]\nname = "{0}"\nkind = "{0}"\nmodels = ["{2}*"]\napi_key = "sk-bench"\n'
    row += 'base_url = "http://127.0.0.1:{1}/v1"\ntakes = {{ responses = false }}\n'
    kinds = {"openai": "gpt", "anthropic": "claude"}
    rows = "".join(row.format(kind, mock, model) for kind, model in kinds.items())
    return "[server]\naccess_log = false\n" + rows


async def measure(port: int, way: Way, count: int, *, is_direct: bool, headers: bytes) -> list[float]:
    """Returns how long the measured turns took, in milliseconds."""
    flow = Talks(way, count, is_direct, headers)
    result = await load.drive(port, flow, 1)
    turns = WARM_TURNS + MEASURED_TURNS
    if result.errors or flow.wrong or len(result.total_ms) != count * turns:
        raise SystemExit(f"{way.path}: {flow.wrong} replies wrong, {result.errors[:3]}")
    return [ms for at, ms in enumerate(result.total_ms) if at % turns >= WARM_TURNS]


async def bench(port: int, mock: int, rounds: int, count: int) -> int:
    memories = {"off": load.MEMORY_OFF_HEADER, "on": b""}
    added: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, rounds):  # the first only warms
        cells = list(itertools.product(memories, WAYS))
        for memory, name in cells if turn % 2 else reversed(cells):
            times = [
                statistics.median(
                    await measure(where, WAYS[name], count, is_direct=where == mock, headers=memories[memory])
                )
                for where in (mock, port)
            ]
            if turn >= 0:
                added.setdefault((memory, name), []).append(times[1] - times[0])
    rows = [["memory", *WAYS, "goal: more than chat by"]]
    worst = 0.0
    for memory in memories:
        medians = {name: statistics.median(added[memory, name]) for name in WAYS}
        worst = max(worst, *(value - medians["chat"] for value in medians.values()))
        rows.append([memory, *(f"{value:.2f}" for value in medians.values()), f"<= {GOAL_MS}"])
    print(
        f"added p50 ms of a whole reply; {rounds} rounds of {count} talks, {MEASURED_TURNS} turns of each measured"
    )
    print(load.render_table(rows))
    return 0 if worst <= GOAL_MS else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench dialects", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--talks", type=int, default=30, help="of each dialect and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        port = stack.enter_context(load.run_mock(folder / "log", __file__, "--mock"))
        gateway = stack.enter_context(load.serve_gateway(folder, settings(port)))
        return uvloop.run(bench(gateway.port, port, options.rounds, options.talks))


if __name__ == "__main__":
    if sys.argv[1:] == ["--mock"]:
        uvloop.run(mock_upstream.main(Upstream))
    else:
        sys.exit(main())
