"""Transcripts of a turn: `>>` feeds an event, and `<<` expects the next command that the turn returns for it.

    assert Playbook(chat_turn(terms)) >> ReplyStarted(200) >> Received([...]) << SendHead(...) << SendBody(...)

An expectation is a command, a type of commands or a predicate. An unmet one fails at once, with the transcript so far.
The `assert` fails if a command is left that no `<<` expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from adapters.types import Event
from gateway.core.turn.commands import (
    CallModel,
    Command,
    RunTool,
    Save,
    SendBody,
    SendHead,
    SendWhole,
    TurnOutcome,
)
from gateway.core.turn.events import (
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyStarted,
    Saved,
    ToolFinished,
    TurnEvent,
)
from gateway.core.turn.guide import FreeGuide
from gateway.core.turn.machine import Turn
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.dialects.chat.render import ChatView

Json = dict[str, Any]
Expectation = Command | type[Command] | Callable[[Command], bool]

SSE = (("content-type", "text/event-stream"),)
JSON = (("content-type", "application/json"),)


class Playbook:
    """The transcript of one turn."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        # All commands so far.
        self.commands: list[Command] = []
        # The commands of the last event that no `<<` has expected yet.
        self._due: list[Command] = []
        self._log: list[str] = []

    def __rshift__(self, fed: TurnEvent) -> Playbook:
        self._check_none_due(f">> {fed}")
        self._log.append(f">> {fed}")
        self._due = feed_event(self.turn, fed)
        self.commands += self._due
        return self

    def __lshift__(self, expected: Expectation) -> Playbook:
        if not self._due:
            raise AssertionError(self._mismatch(f"<< {expected}", "nothing"))
        command = self._due.pop(0)
        if isinstance(expected, type):
            fits = isinstance(command, expected)
        elif callable(expected):
            fits = expected(command)
        else:
            fits = command == expected
        if not fits:
            raise AssertionError(self._mismatch(f"<< {expected}", f"<< {command}"))
        self._log.append(f"<< {command}")
        return self

    def __bool__(self) -> bool:
        self._check_none_due("the end")
        return True

    @property
    def outcome(self) -> TurnOutcome:
        (save,) = [command for command in self.commands if isinstance(command, Save)]
        return save.outcome

    @property
    def client_body(self) -> bytes:
        """The body that the client has got so far."""
        return join_bodies(self.commands)

    def _check_none_due(self, expected: str) -> None:
        if self._due:
            raise AssertionError(self._mismatch(expected, f"<< {self._due[0]}"))

    def _mismatch(self, expected: str, actual: str) -> str:
        return "\n".join(
            ["the transcript so far:", *self._log, f"expected: {expected}", f"actual:   {actual}"]
        )


def feed_event(turn: Turn, event: TurnEvent) -> list[Command]:
    """Feeds an event as `gateway.run.turn` does: chunks that have only text take a shorter way (`feed_texts`)."""
    texts = turn.feed_texts(event.events) if isinstance(event, Received) else None
    if texts is None:
        return turn.feed(event)
    return [SendBody(texts)] if texts else []


def join_bodies(commands: Iterable[Command]) -> bytes:
    """Returns the body that the client gets by these commands: joined pieces of a stream, or a whole body."""
    bodies = (
        command.data if isinstance(command, SendBody) else command.body
        for command in commands
        if isinstance(command, SendBody | SendWhole)
    )
    return b"".join(bodies)


def chat_turn(terms: TurnTerms, max_rounds: int = 10) -> Turn:
    """Returns a turn without rules, whose client speaks chat completions."""
    return Turn(terms, ChatView(terms), FreeGuide(max_rounds))


# -- the upstream's events


def event(data: Json | bytes, name: str | None = None) -> Event:
    body = data if isinstance(data, bytes) else orjson.dumps(data)
    head = f"event: {name}\n".encode() if name else b""
    return Event(head + b"data: " + body + b"\n\n", body, name)


def comment(text: str) -> Event:
    return Event(f": {text}\n\n".encode(), None)


DONE = event(b"[DONE]")


def chunk(delta: Json, finish: str | None = None, *, id: str = "chatcmpl-1", **fields: Any) -> Event:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": id, "object": "chat.completion.chunk", "created": 1700000000, "model": "m-1"}
    return event({**head, "choices": [choice], **fields})


def call_piece(index: int, arguments: str = "", *, id: str | None = None, name: str | None = None) -> Json:
    function: Json = {"arguments": arguments}
    if name is not None:
        function = {"name": name, **function}
    return {"index": index, **({"id": id, "type": "function"} if id else {}), "function": function}


def calls(*pieces: Json, **fields: Any) -> Event:
    return chunk({"tool_calls": list(pieces)}, **fields)


def usage(prompt: int, completion: int, *, id: str = "chatcmpl-1", **fields: Any) -> Event:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    head = {"id": id, "object": "chat.completion.chunk", "created": 1700000000, "model": "m-1"}
    return event({**head, "choices": [], "usage": {**counts, **fields}})


# -- the client's view of a stream


@dataclass
class ClientStream:
    """The parts of a stream, accumulated as OpenAI's SDK accumulates them."""

    text: str = ""
    reasoning: str = ""
    # index -> call, with id, name and arguments
    calls: dict[int, Json] = field(default_factory=dict)
    # The ids of all chunks.
    ids: set[str] = field(default_factory=set)
    roles: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    usages: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)
    # The number of [DONE] events.
    done: int = 0

    def message(self) -> Json:
        """Returns the text, and the calls as (id, name, arguments)."""
        calls = [self.calls[index] for index in sorted(self.calls)]
        return {"text": self.text, "calls": [(c["id"], c["name"], c["arguments"]) for c in calls]}


def read_stream(body: bytes) -> ClientStream:
    stream = ClientStream()
    for data in _iterate_data(body):
        if data == b"[DONE]":
            stream.done += 1
            continue
        chunk = orjson.loads(data)
        if chunk.get("error"):
            stream.errors.append(chunk["error"])
            continue
        stream.ids.add(chunk["id"])
        if chunk.get("usage"):
            stream.usages.append(chunk["usage"])
        for choice in chunk["choices"]:
            _add_choice(stream, choice)
    return stream


def _iterate_data(body: bytes) -> Iterator[bytes]:
    """Yields the data of each event."""
    for event in body.split(b"\n\n"):
        for line in event.split(b"\n"):
            if line.startswith(b"data: "):
                yield line[6:]


def _add_choice(stream: ClientStream, choice: Json) -> None:
    delta = choice["delta"]
    stream.text += delta.get("content") or ""
    stream.reasoning += delta.get("reasoning_content") or ""
    if delta.get("role"):
        stream.roles.append(delta["role"])
    if choice.get("finish_reason"):
        stream.finish.append(choice["finish_reason"])
    for piece in delta.get("tool_calls") or ():
        call = stream.calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
        call["id"] += piece.get("id") or ""
        call["name"] += piece["function"].get("name") or ""
        call["arguments"] += piece["function"].get("arguments") or ""


# -- a whole turn, with scripted replies


def completion(
    content: str | None = None,
    calls: tuple[tuple[str, str, str], ...] = (),
    finish: str | None = None,
    *,
    id: str = "chatcmpl-1",
    tokens: tuple[int, int] | None = (10, 5),
    **fields: Any,
) -> Json:
    """Returns the body of a whole reply.

    calls: the calls as (id, name, arguments).
    finish: the finish reason; by default the one that fits the calls.
    tokens: the numbers of prompt and completion tokens. None: a reply without usage.
    fields: further fields of the message.
    """
    message: Json = {"role": "assistant", "content": content, **fields}
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    finish = finish or ("tool_calls" if calls else "stop")
    body = {
        "id": id,
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if tokens:
        body["usage"] = {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
        }
    return body


def make_stream(body: Json, split: Callable[[str], list[str]] = lambda text: [text]) -> list[Event]:
    """Returns the events of a stream with the same reply as a whole body.

    split: returns the pieces of a text or of arguments, one for each delta.
    """
    choice = body["choices"][0]
    message, id = choice["message"], body["id"]
    events = [chunk({"role": "assistant", "content": ""}, id=id)]
    for key in ("reasoning_content", "content"):
        if message.get(key):
            events += [chunk({key: piece}, id=id) for piece in split(message[key])]
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        names = split(function["name"])
        pieces = split(function["arguments"])
        events.append(calls(call_piece(index, id=call["id"], name=names[0]), id=id))
        events += [calls(call_piece(index, name=name), id=id) for name in names[1:]]
        events += [calls(call_piece(index, piece), id=id) for piece in pieces]
    events.append(chunk({}, choice["finish_reason"], id=id))
    if "usage" in body:
        counts = body["usage"]
        events.append(usage(counts["prompt_tokens"], counts["completion_tokens"], id=id))
    return [*events, DONE]


@dataclass
class PlayedTurn:
    """A turn at its end, with its commands by kind."""

    outcome: TurnOutcome
    # The whole body that the client has got.
    client_body: bytes
    heads: list[SendHead | SendWhole]
    tool_runs: list[RunTool]
    # The calls of the model after the first one.
    model_calls: list[CallModel]

    @property
    def client(self) -> ClientStream:
        """The stream that the client has got."""
        return read_stream(self.client_body)

    @property
    def body(self) -> Json:
        """The whole reply that the client has got."""
        parsed: Json = orjson.loads(self.client_body)
        return parsed


def play(
    turn: Turn,
    rounds: list[Json],
    *,
    stream: bool,
    split: Callable[[str], list[str]] = lambda text: [text],
    group: Callable[[list[Event]], list[list[Event]]] = lambda events: [events],
    result: Callable[[RunTool], str] = lambda run: f"result of {run.call_id}",
) -> PlayedTurn:
    """Plays a turn to its end: each call of a gateway tool gets a result, each save succeeds.

    rounds: the whole replies of the model, one a call.
    stream: whether the upstream streams them.
    split: as for `make_stream`.
    group: returns the events of a stream in the batches in which the turn receives them.
    result: returns the result of a call of a gateway tool.
    """
    commands: list[Command] = []
    replies = iter(rounds)

    def begin_reply() -> list[TurnEvent]:
        body = next(replies)
        if stream:
            batches: list[TurnEvent] = [Received(batch) for batch in group(make_stream(body, split))]
            return [ReplyStarted(200, SSE), *batches, ReplyEnded()]
        return [ReplyStarted(200, JSON), ReceivedWhole(orjson.dumps(body))]

    todo = begin_reply()
    while todo:
        new_commands = feed_event(turn, todo.pop(0))
        commands += new_commands
        for command in new_commands:
            if isinstance(command, RunTool):
                todo.append(ToolFinished(ToolResult(command.call_id, result(command))))
            elif isinstance(command, CallModel):
                todo += begin_reply()
            elif isinstance(command, Save):
                todo.append(Saved())
    assert next(replies, None) is None, "the turn did not ask for all replies"
    return PlayedTurn(
        outcome=next(command.outcome for command in commands if isinstance(command, Save)),
        client_body=join_bodies(commands),
        heads=[command for command in commands if isinstance(command, SendHead | SendWhole)],
        tool_runs=[command for command in commands if isinstance(command, RunTool)],
        model_calls=[command for command in commands if isinstance(command, CallModel)],
    )
