"""Transcripts of a turn: `>>` feeds an event, `<<` names the next command that must have come of it.

    assert Playbook(chat_turn(terms)) >> ReplyStarted(200) >> Received([...]) << SendHead(...) << SendBody(...)

A step that goes wrong fails at once, with the transcript so far. The closing `assert` (truth of the playbook) fails
if a command is left that nobody named. In place of a command a type or a predicate will do.
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
Expected = Command | type[Command] | Callable[[Command], bool]

SSE = (("content-type", "text/event-stream"),)
JSON = (("content-type", "application/json"),)


class Playbook:
    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.seen: list[Command] = []
        self._due: list[Command] = []
        self._log: list[str] = []

    def __rshift__(self, happened: TurnEvent) -> Playbook:
        self._nothing_left(f">> {happened}")
        self._log.append(f">> {happened}")
        self._due = fed(self.turn, happened)
        self.seen += self._due
        return self

    def __lshift__(self, expected: Expected) -> Playbook:
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
        self._nothing_left("the end")
        return True

    @property
    def outcome(self) -> TurnOutcome:
        (save,) = [command for command in self.seen if isinstance(command, Save)]
        return save.outcome

    @property
    def sent(self) -> bytes:
        return sent_by(self.seen)

    def _nothing_left(self, expected: str) -> None:
        if self._due:
            raise AssertionError(self._mismatch(expected, f"<< {self._due[0]}"))

    def _mismatch(self, expected: str, seen: str) -> str:
        return "\n".join(["the transcript so far:", *self._log, f"expected: {expected}", f"came:     {seen}"])


def fed(turn: Turn, event: TurnEvent) -> list[Command]:
    """Feeds an event as the shell does: texts that say nothing else go past the commands."""
    texts = turn.feed_texts(event.events) if isinstance(event, Received) else None
    if texts is None:
        return turn.feed(event)
    return [SendBody(texts)] if texts else []


def sent_by(commands: Iterable[Command]) -> bytes:
    """Returns the body that the client gets: pieces of a stream, or one."""
    bodies = (
        command.data if isinstance(command, SendBody) else command.body
        for command in commands
        if isinstance(command, SendBody | SendWhole)
    )
    return b"".join(bodies)


def chat_turn(terms: TurnTerms, max_rounds: int = 10) -> Turn:
    """Returns a turn without rules, whose client speaks chat completions."""
    return Turn(terms, ChatView(terms), FreeGuide(max_rounds))


# What an upstream sends


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


# What a client makes of what it gets


@dataclass
class Client:
    """A stream, accumulated as OpenAI's SDK does it."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, Json] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    roles: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    usages: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)
    done: int = 0

    def message(self) -> Json:
        made = [self.calls[index] for index in sorted(self.calls)]
        return {"text": self.text, "calls": [(c["id"], c["name"], c["arguments"]) for c in made]}


def read_stream(data: bytes) -> Client:
    client = Client()
    for body in _datas(data):
        if body == b"[DONE]":
            client.done += 1
            continue
        parsed = orjson.loads(body)
        if parsed.get("error"):
            client.errors.append(parsed["error"])
            continue
        client.ids.add(parsed["id"])
        if parsed.get("usage"):
            client.usages.append(parsed["usage"])
        for choice in parsed["choices"]:
            _take_choice(client, choice)
    return client


def _datas(data: bytes) -> Iterator[bytes]:
    for part in data.split(b"\n\n"):
        for line in part.split(b"\n"):
            if line.startswith(b"data: "):
                yield line[6:]


def _take_choice(client: Client, choice: Json) -> None:
    delta = choice["delta"]
    client.text += delta.get("content") or ""
    client.reasoning += delta.get("reasoning_content") or ""
    if delta.get("role"):
        client.roles.append(delta["role"])
    if choice.get("finish_reason"):
        client.finish.append(choice["finish_reason"])
    for piece in delta.get("tool_calls") or ():
        call = client.calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
        call["id"] += piece.get("id") or ""
        call["name"] += piece["function"].get("name") or ""
        call["arguments"] += piece["function"].get("arguments") or ""


# A whole turn, played against scripted rounds


def completion(
    content: str | None = None,
    calls: tuple[tuple[str, str, str], ...] = (),
    finish: str | None = None,
    *,
    id: str = "chatcmpl-1",
    tokens: tuple[int, int] | None = (10, 5),
    **fields: Any,
) -> Json:
    """Returns a whole reply. calls: (id, name, arguments)."""
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
        prompt, made = tokens
        body["usage"] = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return body


def streamed(body: Json, cut: Callable[[str], list[str]] = lambda text: [text]) -> list[Event]:
    """Returns the same reply as a stream. cut: how a string is spread over deltas."""
    choice = body["choices"][0]
    message, id = choice["message"], body["id"]
    events = [chunk({"role": "assistant", "content": ""}, id=id)]
    for key in ("reasoning_content", "content"):
        if message.get(key):
            events += [chunk({key: piece}, id=id) for piece in cut(message[key])]
    for index, made in enumerate(message.get("tool_calls") or ()):
        function = made["function"]
        names, pieces = cut(function["name"]), cut(function["arguments"])
        events.append(calls(call_piece(index, id=made["id"], name=names[0]), id=id))
        events += [calls(call_piece(index, name=name), id=id) for name in names[1:]]
        events += [calls(call_piece(index, piece), id=id) for piece in pieces]
    events.append(chunk({}, choice["finish_reason"], id=id))
    if "usage" in body:
        counts = body["usage"]
        events.append(usage(counts["prompt_tokens"], counts["completion_tokens"], id=id))
    return [*events, DONE]


@dataclass
class Played:
    outcome: TurnOutcome
    sent: bytes
    heads: list[SendHead | SendWhole]
    ran: list[RunTool]
    called: list[CallModel]

    @property
    def client(self) -> Client:
        return read_stream(self.sent)

    @property
    def body(self) -> Json:
        parsed: Json = orjson.loads(self.sent)
        return parsed


def play(
    turn: Turn,
    rounds: list[Json],
    *,
    stream: bool,
    cut: Callable[[str], list[str]] = lambda text: [text],
    batches: Callable[[list[Event]], list[list[Event]]] = lambda events: [events],
    result: Callable[[RunTool], str] = lambda run: f"result of {run.call_id}",
) -> Played:
    """Plays a turn to its end as the shell would: every RunTool gets a result, every Save is durable."""
    seen: list[Command] = []
    script = iter(rounds)

    def begin() -> list[TurnEvent]:
        body = next(script)
        if stream:
            parts: list[TurnEvent] = [Received(batch) for batch in batches(streamed(body, cut))]
            return [ReplyStarted(200, SSE), *parts, ReplyEnded()]
        return [ReplyStarted(200, JSON), ReceivedWhole(orjson.dumps(body))]

    todo = begin()
    while todo:
        commands = fed(turn, todo.pop(0))
        seen += commands
        for command in commands:
            if isinstance(command, RunTool):
                todo.append(ToolFinished(ToolResult(command.call_id, result(command))))
            elif isinstance(command, CallModel):
                todo += begin()
            elif isinstance(command, Save):
                todo.append(Saved())
    assert next(script, None) is None, "the script has rounds that were never asked for"
    return Played(
        outcome=next(command.outcome for command in seen if isinstance(command, Save)),
        sent=sent_by(seen),
        heads=[command for command in seen if isinstance(command, SendHead | SendWhole)],
        ran=[command for command in seen if isinstance(command, RunTool)],
        called=[command for command in seen if isinstance(command, CallModel)],
    )
