"""Measures the time that the gateway adds to a whole reply in each dialect: its p50 less that of the mock upstream.

The mock upstream answers chat completions and Anthropic's messages. It and the gateway have a process each. Each
dialect has the same conversations, one request after the other, in interleaved rounds. A conversation has a new user
(with memory off: no user), and three turns before the three that are measured. "messages" are translated to chat
completions, "native" ones pass.
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

import orjson
import uvloop

from scripts import load, mock_upstream
from scripts.mock_upstream import WORDS, Mock, json_response

WARM_TURNS, MEASURED_TURNS = 3, 3
GOAL_MS = 0.2  # more than chat completions add
users = itertools.count(1)
_numbers = itertools.count(1)
_SYSTEM = "You are a friendly assistant that answers in plain words."
Json = dict[str, Any]


def message(number: int) -> bytes:
    """Returns a reply in Anthropic's dialect, as long as those of chat completions."""
    text = f"Reply {number:08d}: " + (WORDS * 8)[:720]
    return json_response(
        b'{"id":"msg_%08d","type":"message","role":"assistant","model":"claude-bench","content":[{"type":"text",'
        b'"text":"%b"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":100,'
        b'"output_tokens":150}}' % (number, text.encode())
    )


class Upstream(Mock):
    """A mock upstream that also answers messages of Anthropic's dialect."""

    def serve(self, head: bytes, body: bytes) -> None:
        if b" /v1/messages" in head:
            self.transport.write(message(next(_numbers)))
        else:
            super().serve(head, body)


@dataclass(frozen=True)
class Dialect:
    """How a dialect is spoken."""

    path: str
    # The path at which the mock is asked directly.
    direct_path: str
    model: str
    # Returns a request's body, given the messages and the user.
    body: Callable[[list[Json], str], Json]
    # Returns the text of a reply.
    text: Callable[[Json], str]


def _chat(messages: list[Json], user: str) -> Json:
    user_field = {"user": user} if user else {}
    return {"messages": [{"role": "system", "content": _SYSTEM}, *messages], **user_field}


def _messages(messages: list[Json], user: str) -> Json:
    user_field = {"metadata": {"user_id": user}} if user else {}
    return {"max_tokens": 1000, "system": _SYSTEM, "messages": messages, **user_field}


def _responses(messages: list[Json], user: str) -> Json:
    user_field = {"user": user} if user else {}
    return {"instructions": _SYSTEM, "input": messages, **user_field}


def _of_chat(reply: Json) -> str:
    return str(reply["choices"][0]["message"]["content"])


def _of_message(reply: Json) -> str:
    return str(reply["content"][0]["text"]) if "content" in reply else _of_chat(reply)


def _of_response(reply: Json) -> str:
    return str(reply["output"][0]["content"][0]["text"]) if "output" in reply else _of_chat(reply)


CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
DIALECTS = {
    "chat": Dialect(CHAT, CHAT, "gpt-bench", _chat, _of_chat),
    "responses": Dialect("/v1/responses", CHAT, "gpt-bench", _responses, _of_response),
    "messages": Dialect(MESSAGES, CHAT, "gpt-bench", _messages, _of_message),
    "native": Dialect(MESSAGES, MESSAGES, "claude-bench", _messages, _of_message),
}


@dataclass
class DialectFlow:
    """The flow of some conversations in one dialect, one after the other."""

    dialect: Dialect
    # The number of conversations.
    count: int
    # Whether the requests go to the mock upstream, and not to a gateway.
    is_direct: bool
    # Further lines of each request's head.
    headers: bytes
    # The number of replies that are not the mock's.
    wrong_replies: int = 0
    # The messages of the present conversation.
    messages: list[Json] = field(default_factory=list)
    # The user of the present conversation.
    user: str = ""
    # The number of the next turn, counted over all conversations.
    turn: int = 0

    def next_request(self, worker: int) -> bytes | None:
        """Returns the next turn of the present conversation, or the first turn of the next one."""
        if self.turn % (WARM_TURNS + MEASURED_TURNS) == 0:
            if self.turn == self.count * (WARM_TURNS + MEASURED_TURNS):
                return None
            self.messages, self.user = [], f"u{next(users)}"
        question = orjson.loads(load.render_question(self.user, self.turn))
        self.messages.append(question)
        self.turn += 1
        dialect = self.dialect
        make_body = _chat if self.is_direct and dialect.direct_path == CHAT else dialect.body
        body = orjson.dumps(
            {"model": dialect.model, **make_body(self.messages, "" if self.headers else self.user)}
        )
        path = dialect.direct_path if self.is_direct else dialect.path
        return load.chat_request(body, self.headers + b"anthropic-version: 2023-06-01\r\n").replace(
            CHAT.encode(), path.encode(), 1
        )

    def take_reply(self, worker: int, body: bytes) -> None:
        try:
            text = self.dialect.text(orjson.loads(body))
        except (ValueError, LookupError):
            text = ""
        self.wrong_replies += not text.startswith("Reply ")
        self.messages.append({"role": "assistant", "content": text})


def settings(mock: int) -> str:
    """Returns the settings of a gateway before the mock upstream at this port."""
    row = '[[upstreams]]\nname = "{0}"\nkind = "{0}"\nmodels = ["{2}*"]\napi_key = "sk-bench"\n'
    row += 'base_url = "http://127.0.0.1:{1}/v1"\ntakes = {{ responses = false }}\n'
    kinds = {"openai": "gpt", "anthropic": "claude"}
    rows = "".join(row.format(kind, mock, model) for kind, model in kinds.items())
    return "[server]\naccess_log = false\n" + rows


async def measure(port: int, dialect: Dialect, count: int, *, is_direct: bool, headers: bytes) -> list[float]:
    """Returns the times of the measured turns, in milliseconds."""
    flow = DialectFlow(dialect, count, is_direct, headers)
    result = await load.drive(port, flow, 1)
    turns = WARM_TURNS + MEASURED_TURNS
    if result.errors or flow.wrong_replies or len(result.total_ms) != count * turns:
        raise SystemExit(f"{dialect.path}: {flow.wrong_replies} replies wrong, {result.errors[:3]}")
    return [ms for index, ms in enumerate(result.total_ms) if index % turns >= WARM_TURNS]


async def bench(port: int, mock: int, rounds: int, count: int) -> int:
    """Measures all dialects in rounds, and prints the table. Returns the exit code.

    mock: the port of the mock upstream.
    rounds: the number of rounds that count.
    count: the number of conversations of a cell in a round.
    """
    memories = {"off": load.MEMORY_OFF_HEADER, "on": b""}
    added: dict[tuple[str, str], list[float]] = {}
    for number in range(-1, rounds):  # the first round, which imports modules, does not count
        cells = list(itertools.product(memories, DIALECTS))
        for memory, name in cells if number % 2 else reversed(cells):
            times = [
                statistics.median(
                    await measure(
                        target_port,
                        DIALECTS[name],
                        count,
                        is_direct=target_port == mock,
                        headers=memories[memory],
                    )
                )
                for target_port in (mock, port)
            ]
            if number >= 0:
                added.setdefault((memory, name), []).append(times[1] - times[0])
    rows = [["memory", *DIALECTS, "goal: more than chat by"]]
    worst = 0.0
    for memory in memories:
        medians = {name: statistics.median(added[memory, name]) for name in DIALECTS}
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
