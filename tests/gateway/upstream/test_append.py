"""Append mode before two upstreams: random sends, compared with a model of the history that must go upstream.

The upstreams refuse a result without its call, and fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import pytest

from tests.doubles.upstream import Call, Rules, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.upstream.failover_world import FailoverWorld, OpenFailover

Json = dict[str, Any]

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def result(call_id: str, text: str) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def is_result(message: Json) -> bool:
    return bool(message["role"] == "tool")


def shorten_id(call_id: str) -> str:
    """Returns the id with which a call came: "toolu_5" for "toolu_5_1", which is unique in a request to Claude."""
    return "_".join(call_id.split("_")[:2])


def list_entries(request: UpstreamRequest) -> list[str]:
    """Returns the texts, calls and results of a request in order, in a form that no dialect changes."""
    entries: list[str] = []
    for message in request.json["messages"]:
        content = message.get("content") or []
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            match block["type"]:
                case "text" if message["role"] != "tool":
                    entries.append(block["text"].split("</memory>\n\n")[-1])
                case "text":
                    entries.append(f"result {message['tool_call_id']}: {block['text']}")
                case "tool_use":
                    entries.append(f"call {shorten_id(block['id'])}")
                case "tool_result":
                    entries.append(f"result {shorten_id(block['tool_use_id'])}: {block['content']}")
        entries += [f"call {call['id']}" for call in message.get("tool_calls") or ()]
    return entries


@dataclass(frozen=True)
class Send:
    """The new message of a send, and the earlier messages without a reply."""

    message: Json
    # The earlier messages that go upstream before the new one.
    earlier: Sequence[Json] = ()
    # The earlier messages that wait for a later send.
    deferred: Sequence[Json] = ()

    @property
    def messages(self) -> list[Json]:
        """The messages that go upstream after the history."""
        return [*self.earlier, self.message]


@dataclass
class Phone:
    """A client in append mode, and what the gateway must have of its conversation."""

    failover: FailoverWorld
    dice: Random
    # The entries of the turns that were answered (`list_entries`).
    history: list[str] = field(default_factory=list)
    # The messages of sends that failed. They go upstream with a later send.
    unanswered: list[Json] = field(default_factory=list)
    # The ids of calls that wait for a result.
    open_calls: list[str] = field(default_factory=list)
    # The ids of calls that had no result when the next reply came.
    passed_calls: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def take_turn(self) -> None:
        """Sends a message or the result of a tool, or makes a side request. The upstreams may fail."""
        is_idle = not self.open_calls and not self.unanswered
        if self.passed_calls and is_idle and self.dice.random() < 0.3:
            self.send_late_result(self.passed_calls.pop())
            return
        send = self.choose_send()
        match self.dice.randrange(9):
            case 0:
                self.send_and_fail(500, send)
            case 1:
                self.send_and_fail(400, send)
            case 2:
                self.make_side_request()
            case kind:
                self.send_and_succeed(send, uses_fallback=kind == 3, has_call=kind > 6)

    def choose_send(self) -> Send:
        results = [message for message in self.unanswered if is_result(message)]
        if self.open_calls and not results and self.dice.random() < 0.7:
            message = result(self.open_calls[0], f"found {next(self.numbers)}")
            earlier, deferred = results, [each for each in self.unanswered if not is_result(each)]
        else:
            message = user(self.dice.choice(["Yes.", f"Message {next(self.numbers)}."]))
            earlier, deferred = self.unanswered, []
        if earlier and earlier[-1] == message:
            earlier = earlier[:-1]  # the message is sent again
        return Send(message, earlier, deferred)

    def send_late_result(self, call_id: str) -> None:
        """Sends the result of a tool that was slower than the next reply. The history then has its call again."""
        send = Send(result(call_id, f"found {next(self.numbers)}"))
        self.history.append(f"call {call_id}")
        self.open_calls = [call_id]
        self.send_and_succeed(send, uses_fallback=self.dice.random() < 0.3, has_call=self.dice.random() < 0.3)

    def send_and_succeed(self, send: Send, *, uses_fallback: bool, has_call: bool) -> None:
        """Makes a send that is answered.

        uses_fallback: whether the first upstream fails, so that the second one answers.
        has_call: whether the reply calls a tool.
        """
        number = next(self.numbers)
        text = f"Reply {number}."
        upstream = self.choose_upstream(uses_fallback=uses_fallback)
        is_claude = upstream is self.failover.first and self.failover.kind != "openai"
        if has_call:
            upstream.queue(call_tools(Call("look", {"at": number}, f"call_{number}"), text=text))
        else:
            has_thoughts = not uses_fallback and not is_claude
            upstream.queue(say(text, delta={"reasoning_content": "Hm."} if has_thoughts else {}))
        expected = self.list_expected_entries(send.messages)
        assert self.post(send.message) == 200
        assert (upstream.last.refusal, list_entries(upstream.last)) == (None, expected)
        self.history = [*expected, text]
        answered_calls = {message["tool_call_id"] for message in send.messages if is_result(message)}
        self.passed_calls += [call_id for call_id in self.open_calls if call_id not in answered_calls]
        self.unanswered, self.open_calls = [*send.deferred], []
        if has_call:
            call_id = f"{'toolu' if is_claude else 'call'}_{number}"
            self.history.append(f"call {call_id}")
            self.open_calls = [call_id]

    def send_and_fail(self, status: int, send: Send) -> None:
        """Makes a send that the upstreams refuse with a 400, or fail with a 500."""
        self.failover.first.queue(fail(status))
        if status == 500:
            self.failover.second.queue(fail(status))
        expected = self.list_expected_entries(send.messages)
        assert self.post(send.message) == status
        assert list_entries(self.failover.first.last) == expected
        # Messages that were refused are not sent again.
        self.unanswered = [*([] if status == 400 else send.messages), *send.deferred]

    def make_side_request(self) -> None:
        """Asks for a title, as front ends do. No later prompt has the title."""
        title = user(f"A title, number {next(self.numbers)}?")
        expected = self.list_expected_entries([*self.unanswered, title])
        upstream = self.choose_upstream(uses_fallback=self.dice.random() < 0.5)
        assert self.post(title, {"x-mnemogate-memory": self.dice.choice(["off", "read"])}) == 200
        assert (upstream.last.refusal, list_entries(upstream.last)) == (None, expected)

    def choose_upstream(self, *, uses_fallback: bool) -> StrictUpstream:
        """Returns the upstream that answers next. uses_fallback: whether the first one fails."""
        if not uses_fallback:
            return self.failover.first
        self.failover.first.queue(fail(503))
        return self.failover.second

    def list_expected_entries(self, messages: Sequence[Json]) -> list[str]:
        """Returns the history with new messages after it. Each open call has a result right after the history."""
        texts = {each["tool_call_id"]: each["content"] for each in messages if is_result(each)}
        results = [f"result {each}: {texts.get(each, 'No result was given.')}" for each in self.open_calls]
        return [*self.history, *results, *(each["content"] for each in messages if not is_result(each))]

    def post(self, message: Json, headers: dict[str, str] | None = None) -> int:
        """Sends a message alone, and returns the status of the reply."""
        stream = self.dice.random() < 0.5
        reply = self.failover.world.post(
            [message], {**APPEND, **(headers or {})}, user="alice", tools=TOOLS, stream=stream
        )
        self.failover.world.settle()
        return reply.status


@pytest.mark.parametrize("seed", range(2))
def test_append_mode_loses_doubles_and_moves_no_message(open_failover: OpenFailover, seed: int) -> None:
    with open_failover() as world:
        # The first upstream gets its thoughts back. The second one would refuse them.
        world.first.rules = Rules(unknown_parameters=False)
        phone = Phone(world, Random(seed))
        for _ in range(40):
            # An upstream that has failed is tried again: it does not pause any more.
            world.now += 1000.0
            phone.take_turn()
