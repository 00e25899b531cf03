"""Append mode before two upstreams of either kind: random sends, compared with a model of what the history must be.

The upstreams are strict: a result without its call, or a field of the other's, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import pytest

from tests.doubles.upstream import Call, Rules, UpstreamRequest, call_tools, fail, say
from tests.gateway.upstream.failover_world import FailoverWorld, OpenFailover

Json = dict[str, Any]

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def is_result(message: Json) -> bool:
    return bool(message["role"] == "tool")


def came_with(id: str) -> str:
    return "_".join(id.split("_")[:2])


def texts_sent(request: UpstreamRequest) -> list[str]:
    """What an upstream was sent, in order, whatever its dialect: words, calls and results.

    Ids that are unique there ("toolu_5_1") are those that the call came with.
    """
    found: list[str] = []
    for message in request.json["messages"]:
        content = message.get("content") or []
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            match block["type"]:
                case "text" if message["role"] != "tool":
                    found.append(block["text"].split("</memory>\n\n")[-1])
                case "text":
                    found.append(f"result {message['tool_call_id']}: {block['text']}")
                case "tool_use":
                    found.append(f"call {came_with(block['id'])}")
                case "tool_result":
                    found.append(f"result {came_with(block['tool_use_id'])}: {block['content']}")
        found += [f"call {call['id']}" for call in message.get("tool_calls") or ()]
    return found


@dataclass
class Phone:
    """A client in append mode, and what the gateway must have of its conversation.

    said: finished. held: of sends that failed, results of tools first. open: calls that wait for a result.
    late: calls that a reply has passed over.
    """

    failover: FailoverWorld
    dice: Random
    said: list[str] = field(default_factory=list)
    held: list[Json] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))

    def turn(self) -> None:
        results = [m for m in self.held if is_result(m)]
        waits = bool(self.open) and not results
        if self.late and not self.open and not self.held and self.dice.random() < 0.3:
            self.brings_late_result(self.late.pop())
            return
        if waits and self.dice.random() < 0.7:
            new = {"role": "tool", "tool_call_id": self.open[0], "content": f"found {next(self.numbers)}"}
            goes, stays = results, [m for m in self.held if not is_result(m)]
        else:
            new = user(self.dice.choice(["Yes.", f"Message {next(self.numbers)}."]))
            goes, stays = self.held, []
        if goes and goes[-1] == new:
            goes = goes[:-1]
        match self.dice.randrange(9):
            case 0:
                self.fails(500, goes, new, stays)
            case 1:
                self.fails(400, goes, new, stays)
            case 2:
                self.asks_aside()
            case kind:
                self.succeeds(goes, new, stays, stands_in=kind == 3, calls=kind > 6)

    def brings_late_result(self, id: str) -> None:
        """A tool was slower than the next reply, which has the call from now on, too."""
        new = {"role": "tool", "tool_call_id": id, "content": f"found {next(self.numbers)}"}
        self.said.append(f"call {id}")
        self.open = [id]
        self.succeeds([], new, [], stands_in=self.dice.random() < 0.3, calls=self.dice.random() < 0.3)

    def succeeds(
        self, goes: Sequence[Json], new: Json, stays: list[Json], *, stands_in: bool, calls: bool
    ) -> None:
        number = next(self.numbers)
        text, first, second = f"Reply {number}.", self.failover.first, self.failover.second
        if stands_in:
            first.queue(fail(503))
        upstream = second if stands_in else first
        thoughts: Json = (
            {"reasoning_content": "Hm."} if self.failover.kind == "openai" and not stands_in else {}
        )
        call = Call("look", {"at": number}, f"call_{number}")
        reply = call_tools(call, text=text) if calls else say(text, delta=thoughts)
        upstream.queue(reply)
        expected = self._path([*goes, new])
        assert self._ask(new) == 200
        assert (upstream.last.refusal, texts_sent(upstream.last)) == (None, expected)
        self.said = [*expected, text]
        answered = {m["tool_call_id"] for m in [*goes, new] if is_result(m)}
        self.late += [id for id in self.open if id not in answered]
        self.held, self.open = stays, []
        if calls:
            # Claude's calls have ids of another form.
            id = (
                f"call_{number}"
                if upstream is second or self.failover.kind == "openai"
                else f"toolu_{number}"
            )
            self.said.append(f"call {id}")
            self.open = [id]

    def fails(self, status: int, goes: Sequence[Json], new: Json, stays: list[Json]) -> None:
        self.failover.first.queue(fail(status))
        if status == 500:
            self.failover.second.queue(fail(status))
        expected = self._path([*goes, new])
        assert self._ask(new) == status
        assert texts_sent(self.failover.first.last) == expected
        # What is refused is not sent again, nor what was held back for it.
        self.held = stays if status == 400 else [*goes, new, *stays]

    def asks_aside(self) -> None:
        """A front end asks for a title: it is not recalled later."""
        title = user(f"A title, number {next(self.numbers)}?")
        expected = self._path([*self.held, title])
        stands_in = self.dice.random() < 0.5
        upstream = self.failover.second if stands_in else self.failover.first
        if stands_in:
            self.failover.first.queue(fail(503))
        assert self._ask(title, {"x-mnemogate-memory": self.dice.choice(["off", "read"])}) == 200
        assert (upstream.last.refusal, texts_sent(upstream.last)) == (None, expected)

    def _path(self, new: Sequence[Json]) -> list[str]:
        """The history with what comes after it, where each call has a result right after it."""
        answered = {m["tool_call_id"]: m["content"] for m in new if is_result(m)}
        results = [f"result {id}: {answered.get(id, 'No result was given.')}" for id in self.open]
        return [*self.said, *results, *(m["content"] for m in new if not is_result(m))]

    def _ask(self, new: Json, more: dict[str, str] | None = None) -> int:
        stream = self.dice.random() < 0.5
        reply = self.failover.world.post(
            [new], {**APPEND, **(more or {})}, user="alice", tools=TOOLS, stream=stream
        )
        self.failover.world.settle()
        return reply.status


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_doubled_or_moved(open_failover: OpenFailover, seed: int) -> None:
    with open_failover() as world:
        # It gets its thoughts back; the other one would refuse them.
        world.first.rules = Rules(unknown_parameters=False)
        phone = Phone(world, Random(seed))
        for _ in range(40):
            # Nobody rests: each send finds the first upstream ready.
            world.now += 1000.0
            phone.turn()
