"""One turn as a machine: what happens between the upstream's events and the client's bytes. No IO, no clock.

The shell calls the model once by itself, then feeds what happens and performs the commands in their order.
Every turn ends with exactly one `Save` and one `Finish`, whatever goes wrong.

    WAITING   a model has been called           ReplyStarted -> READING
    READING   its reply comes in                the reply's end -> TOOLS, SAVING, DONE
    TOOLS     calls of ours are being run       the last ToolFinished -> WAITING (next round), SAVING, DONE
    SAVING    the end is held for the commit    Saved -> DONE
    DONE      late events are tolerated, nothing is commanded

What the client gets is decided event by event. Text leaves at once, with the bytes in which it came. Only these
are kept back: a tool call until its name tells whose it is; the first chunks while they say nothing and a
hidden round is possible (an upstream's error is still a status then); and everything from the first chunk with
a finish_reason on (the `tail`), since some upstreams put the last text there and only the end tells
what the round was.

A round whose calls are all ours is hidden: its calls and results become messages of the next request. A round
with both is the last one: ours are run and kept, theirs are the client's to answer. What a reply looks
like (events or one body) follows the upstream, not the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import orjson

from adapters.types import Event, Header
from gateway.core.conversation.canonical import gap
from gateway.core.memory.tools import read_arguments
from gateway.core.turn.commands import (
    CallModel,
    CloseUpstream,
    Command,
    End,
    Finish,
    Refuse,
    RunTool,
    Save,
    SendBody,
    SendHead,
    TurnOutcome,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    ToolFinished,
    TurnEvent,
)
from gateway.core.turn.ledger import Ledger
from gateway.core.turn.spec import TurnSpec
from gateway.core.turn.stream import (
    CallOwner,
    Draft,
    HeldText,
    Json,
    ToolCall,
    View,
    chunk_of,
    frame,
    is_event_stream,
    join_messages,
)
from gateway.core.turn.upstream_error import error_body, error_in
from gateway.errors import GatewayError, UpstreamBroke

__all__ = ["Turn"]

NOT_DURABLE = b": mnemogate not durable\n\n"
LIMIT_REACHED = (
    "Not run: the limit of {rounds} rounds of memory tools for one reply is reached. "
    "Answer now, without tools."
)
BAD_ARGUMENTS = "Error: the arguments of {name} are not a JSON object: {arguments!r}. Nothing was done."

# After these the last call may lack its end, so calls of ours are dropped instead of run.
CUT = frozenset({"length", "content_filter"})


class _TurnState(Enum):
    WAITING = "waiting"
    READING = "reading"
    TOOLS = "tools"
    SAVING = "saving"
    DONE = "done"


class _Then(Enum):
    """What follows when calls of ours are done."""

    CALL = "call"
    END = "end"


class _ReplyForm(Enum):
    """How the client is answered; the first reply that is used decides."""

    EVENTS = "events"
    BODY = "body"


def _is_success(status: int) -> bool:
    return 200 <= status < 300


class Turn:
    """The machine. Feed it one reply's facts before the next one's."""

    def __init__(self, spec: TurnSpec) -> None:
        self.spec = spec
        self._state = _TurnState.WAITING
        self._keeps_tail = spec.hold_end or bool(spec.ours)
        self._form: _ReplyForm | None = None
        self._head_sent = False
        strips_usage = spec.usage_added and not spec.wants_usage
        self._view = View(waits=bool(spec.ours), strips_usage=strips_usage)
        self._is_plain = not spec.ours and not strips_usage  # nothing is ever rewritten
        self._ledger = Ledger(spec.count)
        # The reply that is read
        self._status = 200
        self._headers: tuple[Header, ...] = ()
        self._draft = Draft()
        self._choices_done = 0
        self._tail: list[HeldText] = []
        self._in_tail = False
        self._done = b""  # the `[DONE]` event
        self._refusal: list[bytes] = []  # an error reply that comes as events
        self._body = b""  # a reply that is one body
        # The rounds before it, and the calls of ours in it
        self._rounds = 0
        self._hidden = 0
        self._messages: list[Json] = []
        self._said: list[Json] = []
        self._text_before: Any = ""  # what they said, until this round says something
        self._is_final = False
        self._running: dict[str, str | None] = {}  # call id -> result
        self._then = _Then.END
        self._finish: str | None = None  # as the client is told
        self._instead: str | None = None  # where that is not what the upstream said

    def feed(self, fact: TurnEvent) -> list[Command]:
        """What is to be done about a fact, in order. Facts that come too late command nothing."""
        state = self._state
        match fact:
            case Received() if state is _TurnState.READING:
                return self._received(fact.events)
            case ReplyStarted() if state is _TurnState.WAITING:
                return self._started(fact)
            case ReceivedWhole() if state is _TurnState.READING:
                return self._received_whole(fact.body)
            case ReplyEnded() if state is _TurnState.READING:
                return self._reply_ended()
            case ReplyFailed() if state in (_TurnState.WAITING, _TurnState.READING):
                return self._reply_failed(fact.error)
            case ToolFinished() if state is _TurnState.TOOLS:
                return self._tool_finished(fact)
            case Saved() if state is _TurnState.SAVING:
                return self._release(fact.durable)
            case ClientLeft() if state is not _TurnState.DONE:
                return self._client_gone()
        return []

    # A reply comes in

    def _started(self, fact: ReplyStarted) -> list[Command]:
        self._state = _TurnState.READING
        self._status, self._headers = fact.status, fact.headers
        self._rounds += 1
        return []

    def _received(self, events: list[Event]) -> list[Command]:
        if not _is_success(self._status):
            self._refusal.extend(event.raw for event in events)
            return []
        if self._form is not _ReplyForm.EVENTS:
            self._begin_events()
        after: list[Command] = []
        for event in events:
            after = self._take(event)
            if self._state is not _TurnState.READING:
                break
        return [*self._send(), *after]

    def _begin_events(self) -> None:
        if self._form is _ReplyForm.BODY:  # a round that came as one body had text: it has not been sent yet
            text = join_messages(self._said)["content"]
            if text:
                self._view.make({"role": "assistant", "content": text})
        self._form = _ReplyForm.EVENTS

    def _take(self, event: Event) -> list[Command]:
        """One event. What of it the client gets now is put into the view; commands are what follows after that."""
        data = event.data
        if data is None:
            self._pass(event)
            return []
        if data.startswith(b"[DONE]"):
            self._done = event.raw
            return self._round_over()
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self._pass(event)
            return []
        if "error" in chunk or "choices" not in chunk or event.name == "error":
            error = error_in(chunk, event.name)
            if error is not None:
                own = chunk.get("error")
                is_shaped = isinstance(own, dict) and own.get("message") == error["error"]["message"]
                self._view.put(event.raw if is_shaped else frame(error))
                return [*self._send(), CloseUpstream(), *self._stop(End.FAILED)]
        self._take_chunk(event, chunk)
        return []

    def _pass(self, event: Event) -> None:
        """An event without a chunk goes where it stands in the stream."""
        if self._in_tail:
            self._tail.append(HeldText(event.raw))
        else:
            self._view.put(event.raw, says=False)

    def _take_chunk(self, event: Event, chunk: Json) -> None:
        """Add a chunk to the draft; put it into the view as it came, or rewritten, or keep it with the tail."""
        draft, ours = self._draft, self.spec.ours
        calls: list[Json] | None = None
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            reason = choice.get("finish_reason")
            if reason:
                self._choices_done += 1
            if choice.get("index"):
                continue
            if reason and draft.finish_reason is None:
                draft.finish_reason = str(reason)
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            if self._text_before and (text := delta.get("content")):
                if self._form is _ReplyForm.EVENTS and (between := gap(self._text_before, text)):
                    self._view.make({"content": between})
                self._text_before = ""
            draft.add(delta)
            pieces = delta.get("tool_calls")
            if pieces or (reason and ours):
                calls = draft.take_calls(pieces if isinstance(pieces, list) else [], ours, bool(reason))
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            draft.usage = usage
        if self._view.identity is None:
            self._view.identify(chunk)
        if self._keeps_tail and self._choices_done >= self.spec.choices:
            self._in_tail = True
        if self._is_plain and not self._in_tail:
            self._view.out.append(event.raw)
            return
        held = HeldText(event.raw, event.name, chunk, calls)
        # Usage mostly ends a round, even without a finish_reason.
        if self._in_tail or (ours and held.is_usage):
            self._tail.append(held)
            return
        while self._tail:
            self._view.show(self._tail.pop(0))
        self._view.show(held)

    def _received_whole(self, body: bytes) -> list[Command]:
        """A body is the stream of one delta; only how it is sent in the end differs."""
        if not _is_success(self._status):
            return self._refused(body)
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict) or not isinstance(parsed.get("choices"), list) or parsed.get("error"):
            return self._refused(body)
        chunk = chunk_of(parsed)
        if self._form is _ReplyForm.EVENTS:
            usage = chunk.pop("usage", None)
            self._take_chunk(Event(frame(chunk), None), chunk)
            self._draft.usage = usage if isinstance(usage, dict) else None
            if self._draft.usage is not None and self.spec.wants_usage:
                last = {**chunk, "choices": [], "usage": usage}
                self._take_chunk(Event(frame(last), None), last)
            self._done = b"data: [DONE]\n\n"
            return self._round_over()
        self._form = _ReplyForm.BODY
        self._body = body
        self._in_tail = True
        self._take_chunk(Event(b"", None), chunk)
        return self._round_over()

    def _reply_ended(self) -> list[Command]:
        if not _is_success(self._status):
            return self._refused(b"".join(self._refusal))
        if self._form is not _ReplyForm.EVENTS and not is_event_stream(self._status, self._headers):
            return self._refused(b"")
        if not self._choices_done:
            return self._reply_failed(
                UpstreamBroke("The upstream's stream ended before its reply was complete")
            )
        return self._round_over()

    # A reply goes wrong

    def _refused(self, body: bytes) -> list[Command]:
        """Not a reply but an error, or nothing known: the client gets it as it is while a status can be sent."""
        if self._head_sent:
            self._view.put(frame(error_body(self._status, body)))
            return [*self._send(), *self._stop(End.FAILED)]
        return [SendHead(self._status, self._headers), SendBody(body), *self._stop(End.FAILED)]

    def _reply_failed(self, error: GatewayError) -> list[Command]:
        if self._form is _ReplyForm.EVENTS and self._choices_done >= self.spec.choices:
            return self._round_over()  # all was said; what broke is its wrapping
        if self._head_sent:
            self._view.put(frame(error.body()))
            return [*self._send(), CloseUpstream(), *self._stop(End.FAILED)]
        return [Refuse(error), CloseUpstream(), *self._stop(End.FAILED)]

    def _client_gone(self) -> list[Command]:
        if self._state is _TurnState.SAVING:  # its outcome is on its way already
            self._state = _TurnState.DONE
            return [CloseUpstream(), Finish()]
        return [CloseUpstream(), *self._stop(End.CANCELLED)]

    def _stop(self, end: End) -> list[Command]:
        """End the turn before its reply was complete."""
        if self._state is not _TurnState.WAITING:
            self._ledger = self._ledger.plus(self._draft)
        self._state = _TurnState.DONE
        shown = [call for call in self._draft.calls if call.owner is not CallOwner.OURS]
        said = join_messages([*self._said, self._draft.message(shown)])
        return [Save(self._outcome(end, tuple(self._messages), said)), Finish()]

    # A reply is complete

    def _round_over(self) -> list[Command]:
        draft, spec = self._draft, self.spec
        calls = draft.take_calls([], spec.ours, is_over=True)
        if (
            calls and self._form is _ReplyForm.EVENTS
        ):  # kept back to the end of a stream without a finish_reason
            self._view.make({"tool_calls": calls})
        ours = [call for call in draft.calls if call.owner is CallOwner.OURS]
        theirs = [call for call in draft.calls if call.owner is not CallOwner.OURS]
        if not ours or draft.finish_reason in CUT:
            return self._end(theirs)
        if self._is_final:
            self._instead = None if theirs else "stop"
            return self._end(theirs)
        left = self._left(self._ledger.plus(draft))
        if theirs or (left is not None and left <= 0):
            self._then = _Then.END
            self._instead = "tool_calls" if theirs else "length"
        else:
            self._then = _Then.CALL
            if self._form is _ReplyForm.EVENTS:
                self._view.show_tail(self._tail, None, is_hidden=True)
        return [*self._send(), *self._run(ours)]

    def _run(self, ours: list[ToolCall]) -> list[Command]:
        """Run calls of ours; those that cannot be run have their result at once."""
        self._state = _TurnState.TOOLS
        self._running = {}
        commands: list[Command] = []
        # Some servers begin to count anew with each reply ("call_0"); a name stands for one call of the turn.
        taken = {call.id for call in self._draft.calls if call.owner is not CallOwner.OURS} | _ids(
            self._messages
        )
        for n, call in enumerate(ours):
            if not call.id or call.id in taken:
                call.fields["id"] = f"call_mnemogate_{self._rounds}_{n}"
            taken.add(call.id)
            arguments = read_arguments(call.text)
            if arguments is None:
                result: str | None = BAD_ARGUMENTS.format(name=call.name, arguments=call.text[:500])
                # Strict servers parse the arguments of earlier calls, and refuse the request over broken ones.
                call.arguments = ["{}"]
            else:
                call.arguments = call.arguments if call.text.strip() else ["{}"]
                result = None
            if self._hidden >= self.spec.max_rounds:
                result = LIMIT_REACHED.format(rounds=self.spec.max_rounds)
            self._running[call.id] = result
            if result is None:
                tool = self.spec.ours[call.name]
                commands.append(RunTool(call.id, tool, arguments or {}))
        return commands or self._tools_finished()

    def _tool_finished(self, fact: ToolFinished) -> list[Command]:
        if fact.call_id not in self._running or self._running[fact.call_id] is not None:
            return []
        self._running[fact.call_id] = fact.content
        return [] if None in self._running.values() else self._tools_finished()

    def _tools_finished(self) -> list[Command]:
        draft = self._draft
        if self._then is _Then.END:
            return self._end([call for call in draft.calls if call.owner is not CallOwner.OURS])
        self._messages += [draft.message(draft.calls), *self._tool_messages()]
        self._said.append(draft.message())
        self._text_before = join_messages(self._said)["content"]
        self._ledger = self._ledger.plus(draft)
        self._draft = Draft()  # the next round's, which may fail before it has begun
        self._choices_done = 0
        self._tail = []
        self._in_tail = False
        self._done = b""
        self._is_final = self._hidden >= self.spec.max_rounds
        self._hidden += 1
        self._running = {}
        self._view.merge_usage = self._ledger.merged
        self._state = _TurnState.WAITING
        return [CallModel(tuple(self._messages), self._left(self._ledger), self._is_final)]

    def _tool_messages(self) -> list[Json]:
        return [
            {"role": "tool", "tool_call_id": call_id, "content": content}
            for call_id, content in self._running.items()
        ]

    def _left(self, ledger: Ledger) -> int | None:
        return None if self.spec.budget_tokens is None else self.spec.budget_tokens - ledger.completion

    # The turn ends

    def _end(self, theirs: list[ToolCall]) -> list[Command]:
        """The reply is complete: have it saved, then let its end go (or the other way round)."""
        draft = self._draft
        said = draft.message(theirs)
        last = [draft.message(draft.calls), *self._tool_messages()] if self._running else [said]
        self._ledger = self._ledger.plus(draft)  # (the view goes on telling by the rounds before)
        self._finish = self._instead or draft.finish_reason
        self._said.append(said)
        said = said if len(self._said) == 1 else join_messages(self._said)
        save = Save(self._outcome(End.FINISHED, (*self._messages, *last), said))
        self._state = _TurnState.SAVING
        if self.spec.hold_end:
            return [*self._send(), save]
        *sends, finish = self._release(durable=True)
        return [*sends, save, finish]

    def _release(self, durable: bool) -> list[Command]:
        self._state = _TurnState.DONE
        if self._form is _ReplyForm.BODY:
            return [SendHead(self._status, self._headers), SendBody(self._whole()), Finish()]
        if not durable:
            self._view.put(NOT_DURABLE)
        self._view.show_tail(self._tail, self._instead)
        if self._done:
            self._view.put(self._done)
        self._view.waits = False
        return [*self._send(), Finish()]

    def _whole(self) -> bytes:
        """The body that the client gets: the last round's, saying what all of them said."""
        ours = any(call.owner is CallOwner.OURS for call in self._draft.calls)
        if self._rounds == 1 and not ours:
            return self._body
        body = orjson.loads(self._body)
        for choice in body["choices"]:
            if isinstance(choice, dict) and not choice.get("index"):
                choice["message"] = join_messages(self._said)
                choice["finish_reason"] = self._finish
        if self._rounds > 1:
            body |= self._view.identity or {}
            if isinstance(body.get("usage"), dict):
                body["usage"] = self._ledger.usage
        return orjson.dumps(body)

    def _send(self) -> list[Command]:
        data = self._view.flush()
        if not data:
            return []
        if self._head_sent:
            return [SendBody(data)]
        self._head_sent = True
        return [SendHead(self._status, self._headers), SendBody(data)]

    def _outcome(self, end: End, full: tuple[Json, ...], said: Json) -> TurnOutcome:
        clashes = _ids(self._messages) & _ids([said])
        if clashes:  # the client has its call under that name already, so ours of an earlier round gives way
            names = {id: f"call_mnemogate_0_{n}" for n, id in enumerate(sorted(clashes))}
            hidden = len(self._messages)
            full = (*(_renamed(message, names) for message in full[:hidden]), *full[hidden:])
        return TurnOutcome(
            state=end,
            full=full,
            said=said,
            finish_reason=self._finish if end is End.FINISHED else None,
            usage=self._ledger.usage,
            rounds=self._rounds,
            hidden=any(message["role"] == "tool" for message in full),
        )


def _ids(messages: Iterable[Json]) -> set[str]:
    """Of the calls in messages, as far as they have any."""
    found = [call.get("id") for message in messages for call in message.get("tool_calls") or []]
    return {id for id in found if isinstance(id, str) and id}


def _renamed(message: Json, names: Mapping[str, str]) -> Json:
    """A message of ours with calls, or with the result of one. names: old -> new."""
    if message.get("tool_calls"):
        calls = [{**call, "id": names.get(call["id"], call["id"])} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    if message["role"] == "tool":
        return {**message, "tool_call_id": names.get(message["tool_call_id"], message["tool_call_id"])}
    return message
