"""One turn as a machine: it decides what the model and the client get, given what the upstream sends. No IO, no clock.

The shell calls the model once by itself, then feeds what happens and performs the commands in their order.
Every turn ends with exactly one `Save` and one `Finish`, whatever goes wrong.

    WAITING   a model has been called           ReplyStarted -> READING
    READING   its reply comes in                the reply's end -> TOOLS, SAVING, DONE
    TOOLS     calls of ours are being run       the last ToolFinished -> WAITING (next round), SAVING, DONE
    SAVING    the end is held for the commit    Saved -> DONE
    DONE      late events are tolerated, nothing is commanded

The machine decides event by event what the client gets; a `ClientView` (gateway.core.turn.client) makes the bytes.
Text goes to the view at once. Only these are kept back: a tool call until its name tells whose it is; and everything
from the first chunk with a finish_reason on (the `tail`), since some upstreams put the last text there and only the
end tells what the round was.

A round whose calls are all ours is hidden: its calls and results become messages of the next request. A round
with both is the last one: ours are run and kept, theirs are the client's to answer. What a reply looks
like (events or one body) follows the upstream, not the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import orjson

from adapters.types import Event, Header, Json
from gateway.core.conversation.canonical import gap
from gateway.core.memory.tools import read_arguments
from gateway.core.turn import commands, events
from gateway.core.turn.client import ClientView, ReplyEvent
from gateway.core.turn.commands import Command, End, TurnOutcome
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.guide import LIMIT_REACHED, FreeGuide, Guide, ToolResult
from gateway.core.turn.ledger import Ledger
from gateway.core.turn.spec import TurnSpec
from gateway.core.turn.stream import CallOwner, Draft, ToolCall, chunk_of, is_event_stream, join_messages
from gateway.core.turn.upstream_error import error_in, error_of
from gateway.errors import GatewayError, UpstreamBroke

BAD_ARGUMENTS = "Error: the arguments of {name} are not a JSON object: {arguments!r}. Nothing was done."

# After these the last call may lack its end, so calls of ours are dropped instead of run.
CUT = frozenset({"length", "content_filter"})


class _State(Enum):
    WAITING = "waiting"
    READING = "reading"
    TOOLS = "tools"
    SAVING = "saving"
    DONE = "done"


class _ReplyForm(Enum):
    """The form in which the client is answered. The upstream's first reply decides, unless it is a hidden body."""

    EVENTS = "events"
    BODY = "body"


def _is_success(status: int) -> bool:
    return 200 <= status < 300


class Turn:
    """The machine. Feed it all events of one reply before those of the next. guide: None: a turn without rules."""

    def __init__(self, spec: TurnSpec, view: ClientView, guide: Guide | None = None) -> None:
        self.spec = spec
        self.guide: Guide = guide or FreeGuide(spec.max_rounds)
        self._view = view
        self._state = _State.WAITING
        self._keeps_tail = spec.hold_end or bool(spec.ours)
        self._form: _ReplyForm | None = None
        self._head_sent = False
        self._has_begun = False  # the view knows the first chunk
        # The reply that is read
        self._status = 200
        self._headers: tuple[Header, ...] = ()
        self._draft = Draft()
        self._choices_done = 0
        self._tail: list[ReplyEvent] = []
        self._in_tail = False
        self._done = b""  # the upstream's `[DONE]` event
        self._refusal: list[bytes] = []  # an error reply that comes as events
        self._body = b""  # a reply that is one body
        # The rounds before it
        self._ledger = Ledger(spec.count)
        self._rounds = 0
        self._hidden_rounds = 0
        self._messages: list[Json] = []
        self._said: list[Json] = []
        self._text_before: Any = ""  # what they said, until this round says something
        self._tools_are_off = False  # the limit of rounds is reached: the model was told to answer
        # The calls of ours in it
        self._results: dict[str, str | None] = {}  # call id -> result; None: it is still running
        self._is_last_round = True
        # The end
        self._finish_instead: str | None = None  # the client's finish_reason, where it is not the upstream's
        self._outcome: TurnOutcome | None = None

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns what is to be done about an event, in order. An event that comes too late commands nothing."""
        state = self._state
        match event:
            case events.Received() if state is _State.READING:
                return self._received(event.events)
            case events.ReplyStarted() if state is _State.WAITING:
                return self._started(event)
            case events.ReceivedWhole() if state is _State.READING:
                return self._received_whole(event.body)
            case events.ReplyEnded() if state is _State.READING:
                return self._reply_ended()
            case events.ReplyFailed() if state in (_State.WAITING, _State.READING):
                return self._reply_failed(event.error)
            case events.ToolFinished() if state is _State.TOOLS:
                return self._tool_finished(event)
            case events.Saved() if state is _State.SAVING:
                return self._release(event.durable)
            case events.ClientLeft() if state is not _State.DONE:
                return self._client_left()
        return []

    # A reply comes in

    def _started(self, reply: events.ReplyStarted) -> list[Command]:
        self._state = _State.READING
        self._status, self._headers = reply.status, reply.headers
        self._rounds += 1
        return []

    def _received(self, read: list[Event]) -> list[Command]:
        if not _is_success(self._status):
            self._refusal.extend(event.raw for event in read)
            return []
        if self._form is not _ReplyForm.EVENTS:
            self._begin_events()
        after: list[Command] = []
        for event in read:
            after = self._take(event)
            if self._state is not _State.READING:
                break
        # One read of the upstream is one write to the client, however many events it brought.
        return [*self._flush(), *after]

    def _begin_events(self) -> None:
        if self._form is _ReplyForm.BODY:
            # A round that came as one body was hidden. Its text waited for the end, which is a stream after all.
            text = join_messages(self._said)["content"]
            if text:
                self._view.add_text(text)
        self._form = _ReplyForm.EVENTS

    def _take(self, event: Event) -> list[Command]:
        """Reads one event, and shows what of it the client gets now. Returns what follows after that."""
        data = event.data
        if data is None:
            self._pass_on(event)
            return []
        if data.startswith(b"[DONE]"):
            self._done = event.raw
            return self._round_over()
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self._pass_on(event)
            return []
        if "error" in chunk or "choices" not in chunk or event.name == "error":
            error = error_in(chunk, event.name)
            if error is not None:
                own = chunk.get("error")
                is_shaped = isinstance(own, dict) and own.get("message") == error["message"]
                self._view.upstream_error(error, event.raw if is_shaped else None)
                return [*self._flush(), commands.CloseUpstream(), *self._stop(End.FAILED)]
        self._take_chunk(chunk, event.raw, event.name)
        return []

    def _pass_on(self, event: Event) -> None:
        """Hands on an event that is no chunk, at its place in the stream."""
        if self._in_tail:
            self._tail.append(ReplyEvent(event.raw))
        else:
            self._view.show(ReplyEvent(event.raw))

    def _take_chunk(self, chunk: Json, raw: bytes | None, name: str | None = None) -> None:
        """Adds a chunk to the draft, then shows it or keeps it with the tail. raw: None: no event of the upstream's."""
        draft, ours = self._draft, self.spec.ours
        calls: list[Json] | None = None
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            reason = choice.get("finish_reason")
            if reason:
                self._choices_done += 1
            # The turn follows the first of several choices. Tools of ours are offered only where there is just one.
            if choice.get("index"):
                continue
            if reason and draft.finish_reason is None:
                draft.finish_reason = str(reason)
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            if self._text_before and (text := delta.get("content")):
                # The words of two rounds must not run together in the one message that the client gets.
                if self._form is _ReplyForm.EVENTS and (between := gap(self._text_before, text)):
                    self._view.add_text(between)
                self._text_before = ""
            draft.add(delta)
            pieces = delta.get("tool_calls")
            if pieces or (reason and ours):
                calls = draft.take_calls(pieces if isinstance(pieces, list) else [], ours, bool(reason))
        usage = chunk.get("usage")
        total: Json | None = None
        if isinstance(usage, dict):
            draft.usage = usage
            if self._ledger.rounds:
                total = self._ledger.merged(usage)
        if not self._has_begun:
            self._has_begun = True
            self._view.begin(chunk)
        if self._keeps_tail and self._choices_done >= self.spec.choices:
            self._in_tail = True
        event = ReplyEvent(raw, name, chunk, calls, total)
        # Some upstreams never give a finish_reason; with most of them usage is what ends a round.
        if self._in_tail or (ours and usage is not None and event.is_usage):
            self._tail.append(event)
            return
        while self._tail:  # usage in the middle of a reply ended nothing
            self._view.show(self._tail.pop(0))
        self._view.show(event)

    def _received_whole(self, body: bytes) -> list[Command]:
        """Reads a body as a stream of one delta; only how it is sent in the end differs."""
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
            # An earlier round was streamed, so this one has to become events, its usage as a chunk of its own.
            usage = chunk.pop("usage", None)
            self._take_chunk(chunk, None)
            self._draft.usage = usage if isinstance(usage, dict) else None
            if self._draft.usage is not None and self.spec.wants_usage:
                self._take_chunk({**chunk, "choices": [], "usage": usage}, None)
            self._done = b"data: [DONE]\n\n"
            return self._round_over()
        self._form = _ReplyForm.BODY
        self._body = body
        self._in_tail = True
        self._take_chunk(chunk, None)
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
        """Answers with the upstream's error (or what cannot be read): as a status, while one can be sent."""
        if self._head_sent:
            self._view.upstream_error(error_of(self._status, body), None)
            return [*self._flush(), *self._stop(End.FAILED)]
        data = self._view.refused(self._status, body)
        return [
            commands.SendHead(self._status, self._headers),
            commands.SendBody(data),
            *self._stop(End.FAILED),
        ]

    def _reply_failed(self, error: GatewayError) -> list[Command]:
        if self._form is _ReplyForm.EVENTS and self._choices_done >= self.spec.choices:
            return self._round_over()  # all was said; what broke is its wrapping
        if self._head_sent:
            self._view.fail(error)
            return [*self._flush(), commands.CloseUpstream(), *self._stop(End.FAILED)]
        return [commands.Refuse(error), commands.CloseUpstream(), *self._stop(End.FAILED)]

    def _client_left(self) -> list[Command]:
        if self._state is _State.SAVING:  # its outcome is on its way already
            self._state = _State.DONE
            return [commands.CloseUpstream(), commands.Finish()]
        return [commands.CloseUpstream(), *self._stop(End.CANCELLED)]

    def _stop(self, end: End) -> list[Command]:
        """Ends the turn before its reply was complete."""
        if self._state is not _State.WAITING:
            self._ledger = self._ledger.plus(self._draft)
        self._state = _State.DONE
        said = join_messages([*self._said, self._draft.message(self._theirs())])
        return [commands.Save(self._make_outcome(end, tuple(self._messages), said)), commands.Finish()]

    # A reply is complete

    def _round_over(self) -> list[Command]:
        draft, spec = self._draft, self.spec
        calls = draft.take_calls([], spec.ours, is_over=True)
        if calls and self._form is _ReplyForm.EVENTS:
            # Nothing but the end said whose they are, and no finish_reason came to announce it.
            self._view.add_calls(calls)
        ours = [call for call in draft.calls if call.owner is CallOwner.OURS]
        theirs = self._theirs()
        if not ours or draft.finish_reason in CUT:
            return self._end(theirs)
        if self._tools_are_off:
            # The model calls tools although it was told not to. The client must not wait for their results.
            self._finish_instead = None if theirs else "stop"
            return self._end(theirs)
        left = self._budget_left(self._ledger.plus(draft))
        self._is_last_round = bool(theirs) or (left is not None and left <= 0)
        if self._is_last_round:
            self._finish_instead = "tool_calls" if theirs else "length"
        else:
            # What a whole reply said waits for the end: nothing has been sent, so there is nothing to be hidden.
            self._view.hide_round(self._tail if self._form is _ReplyForm.EVENTS else ())
        return [*self._flush(), *self._run(ours)]

    def _run(self, ours: list[ToolCall]) -> list[Command]:
        """Has calls of ours run; those that cannot be run have their result at once."""
        self._state = _State.TOOLS
        self._results = {}
        calls: list[Command] = []
        # Some servers begin to count anew with each reply ("call_0"), but an id stands for one call of the turn.
        taken = {call.id for call in self._theirs()} | _ids(self._messages)
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
            if self._hidden_rounds >= self.spec.max_rounds:
                result = LIMIT_REACHED.format(rounds=self.spec.max_rounds)
            self._results[call.id] = result
            if result is None:
                calls.append(commands.RunTool(call.id, call.name, arguments or {}))
        if self._form is _ReplyForm.EVENTS:
            self._view.call_tools(ours)
            for call_id, result in self._results.items():
                if result is not None:
                    self._view.tool_result(ToolResult(call_id, result))
        return [*self._flush(), *(calls or self._tools_finished())]

    def _tool_finished(self, tool: events.ToolFinished) -> list[Command]:
        if tool.call_id not in self._results or self._results[tool.call_id] is not None:
            return []
        self._results[tool.call_id] = tool.content
        if self._form is _ReplyForm.EVENTS:
            self._view.tool_result(ToolResult(tool.call_id, tool.content))
        is_over = None not in self._results.values()
        return [*self._flush(), *(self._tools_finished() if is_over else ())]

    def _tools_finished(self) -> list[Command]:
        """Ends the turn, or begins the next round: everything that belongs to one reply starts again."""
        draft = self._draft
        if self._is_last_round:
            return self._end(self._theirs())
        self._messages += [draft.message(draft.calls), *self._tool_messages()]
        self._said.append(draft.message())
        self._text_before = join_messages(self._said)["content"]
        self._ledger = self._ledger.plus(draft)
        self._draft = Draft()  # at once, since the next round may fail before it has begun
        self._choices_done = 0
        self._tail = []
        self._in_tail = False
        self._done = b""
        self._tools_are_off = self._hidden_rounds >= self.spec.max_rounds
        self._hidden_rounds += 1
        self._results = {}
        self._state = _State.WAITING
        return [
            commands.CallModel(tuple(self._messages), self._budget_left(self._ledger), self._tools_are_off)
        ]

    def _theirs(self) -> list[ToolCall]:
        """Returns the calls of the round that the client has to answer."""
        return [call for call in self._draft.calls if call.owner is not CallOwner.OURS]

    def _tool_messages(self) -> list[Json]:
        return [
            {"role": "tool", "tool_call_id": call_id, "content": content}
            for call_id, content in self._results.items()
        ]

    def _budget_left(self, ledger: Ledger) -> int | None:
        return None if self.spec.budget_tokens is None else self.spec.budget_tokens - ledger.completion

    # The turn ends

    def _end(self, theirs: list[ToolCall]) -> list[Command]:
        """Ends a reply that is complete: it is saved first, then its end leaves (or the other way round)."""
        draft = self._draft
        said = draft.message(theirs)
        last = [draft.message(draft.calls), *self._tool_messages()] if self._results else [said]
        self._ledger = self._ledger.plus(draft)
        self._said.append(said)
        said = said if len(self._said) == 1 else join_messages(self._said)
        finish = self._finish_instead or draft.finish_reason
        self._outcome = self._make_outcome(End.FINISHED, (*self._messages, *last), said, finish)
        save = commands.Save(self._outcome)
        self._state = _State.SAVING
        if self.spec.hold_end:
            return [*self._flush(), save]
        *sends, finished = self._release(durable=True)
        return [*sends, save, finished]

    def _release(self, durable: bool) -> list[Command]:
        """Lets the end go."""
        self._state = _State.DONE
        if self._form is _ReplyForm.BODY:
            assert self._outcome is not None
            is_unchanged = self._rounds == 1 and len(self._theirs()) == len(self._draft.calls)
            data = self._view.whole(self._body, self._outcome, is_unchanged=is_unchanged)
            return [
                commands.SendHead(self._status, self._headers),
                commands.SendBody(data),
                commands.Finish(),
            ]
        if not durable:
            self._view.not_durable()
        self._view.end(self._tail, self._finish_instead, self._done)
        return [*self._flush(), commands.Finish()]

    def _flush(self) -> list[Command]:
        """Sends what the view has ready; the head leaves with the first of it."""
        if self._form is _ReplyForm.BODY:  # leaves as a whole, unless a later round turns out to be a stream
            return []
        data = self._view.take()
        if not data:
            return []
        if self._head_sent:
            return [commands.SendBody(data)]
        self._head_sent = True
        return [commands.SendHead(self._status, self._headers), commands.SendBody(data)]

    def _make_outcome(
        self, end: End, full: tuple[Json, ...], said: Json, finish: str | None = None
    ) -> TurnOutcome:
        clashes = _ids(self._messages) & _ids([said])
        if clashes:  # the client has its call under that name already, so ours of an earlier round gives way
            names = {id: f"call_mnemogate_0_{n}" for n, id in enumerate(sorted(clashes))}
            hidden = len(self._messages)
            full = (*(_renamed(message, names) for message in full[:hidden]), *full[hidden:])
        return TurnOutcome(
            state=end,
            full=full,
            said=said,
            finish_reason=finish,
            usage=self._ledger.usage,
            rounds=self._rounds,
            hidden=any(message["role"] == "tool" for message in full),
        )


def _ids(messages: Iterable[Json]) -> set[str]:
    """Returns the ids of the calls in messages, as far as they have any."""
    found = [call.get("id") for message in messages for call in message.get("tool_calls") or []]
    return {id for id in found if isinstance(id, str) and id}


def _renamed(message: Json, names: Mapping[str, str]) -> Json:
    """Returns a message of a hidden round with other call ids. names: old -> new."""
    if message.get("tool_calls"):
        calls = [{**call, "id": names.get(call["id"], call["id"])} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    if message["role"] == "tool":
        return {**message, "tool_call_id": names.get(message["tool_call_id"], message["tool_call_id"])}
    return message
