"""One turn as a machine: it decides what the model and the client get, given what the upstream sends. No IO, no clock.

The shell calls the model once by itself, then feeds what happens and performs the commands in their order.
Every turn ends with exactly one `Save` and one `Finish`, whatever goes wrong.

`gateway.core.turn.states` has its states and transitions as a table.

A `Round` (gateway.core.turn.round) reads each reply, a `Guide` decides which calls run and what follows a reply, a
`ClientView` makes the bytes.

Where steps are not stored, a round with gateway calls alone is hidden: its calls and results become messages of the
next request. A round with client calls as well is the last one: the gateway's are run and stored, the others left for
the client to answer. Where steps are stored (`TurnSpec.keeps_steps`) a round is committed before its tools run, and
their results before the model is called again. Calls decide what follows, never the finish_reason: some upstreams say
`stop` with a forced call (vllm-project/vllm#25054).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson
from msgspec.structs import replace

from adapters.types import Event, Json
from gateway.core.conversation.private import as_system, without_private
from gateway.core.turn import commands, events
from gateway.core.turn.calls import NO_CALLS, OwnCalls, ResumedCalls, name_calls
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.commands import FINISHED, Command, End, TurnOutcome
from gateway.core.turn.draft import AllBut, ToolCall, join_messages
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.guide import (
    ANYTHING,
    Guide,
    Offer,
    Stop,
    StopReason,
    ToolResult,
)
from gateway.core.turn.ledger import NOTHING, Ledger
from gateway.core.turn.round import (
    AS_BODY,
    AS_EVENTS,
    EVENTS,
    BrokeOff,
    Complete,
    ErrorEvent,
    Refused,
    Round,
    RoundEnd,
)
from gateway.core.turn.spec import TurnSpec
from gateway.core.turn.states import TRANSITIONS, TurnState
from gateway.core.turn.upstream_error import error_of, is_for_good
from gateway.errors import Conflict, GatewayError, UpstreamBroke

# After these the last call may lack its end, so gateway calls are dropped instead of run.
CUT = {"length": StopReason.MAX_TOKENS, "content_filter": StopReason.BAD_REPLY}
_DONE_EVENT = b"data: [DONE]\n\n"
_FINISH = commands.Finish()
_FREE_CALL = commands.CallModel((), None, ANYTHING)


# Bound once: to read a member off its class takes 70 ns (measured, Python 3.11), with each event of a stream.
_WAITING, _READING, _KEEPING, _TOOLS, _SAVING, _DONE = TurnState


class Turn:
    """The machine. Feed it all events of one reply before those of the next."""

    def __init__(self, spec: TurnSpec, view: ClientView, guide: Guide) -> None:
        self.spec = spec
        self._guide = guide
        self._view = view
        self._enter(_WAITING)
        self._head_sent = False
        self._offer = self._guide.offer()
        self._round = Round(spec, view, AS_EVENTS if spec.shows_steps else None)
        # The rounds before it
        self._ledger = NOTHING
        self._rounds = 0
        self._messages: list[Json] = []
        self._shown_replies: list[Json] = []
        self._steps = 0  # that are stored
        # Its gateway calls
        self._calls = NO_CALLS
        self._waiting: dict[str, str] = {}
        self._is_last_round = True
        self._is_hidden = False  # the view knows that the round's end is not the reply's
        self._is_kept = False  # the reply is stored, with its calls
        self._is_resumed = False  # the reply is one of an earlier turn
        self._has_filled = False  # the fixed sentence was sent
        self._late = ""  # the same, where the reply before it is stored
        self._after_keep: list[Command] = []
        # The end
        self._finish_instead: str | None = None  # the client's finish_reason, where it is not the upstream's
        self._outcome: TurnOutcome | None = None  # as reported to the client

    @property
    def first_call(self) -> commands.CallModel:
        """The call of the model that the shell makes by itself."""
        return _FREE_CALL if self._offer is ANYTHING else commands.CallModel((), None, self._offer)

    def take_texts(self, read: list[Event]) -> bytes | None:
        """Takes events of the upstream that say a text and nothing else, as nearly all of a stream do.

        Returns the bytes that the client gets; None: they have to be fed.
        """
        is_taken = self._state is _READING and self._round.take_texts(read)
        return self._view.take() if is_taken else None

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns what is to be done about an event, in order. An event that comes too late commands nothing."""
        if type(event) not in self._transitions:
            return []
        match event:  # the most frequent first
            case events.Received():
                return self._received(self._round.take(event.events))
            case events.ReplyStarted():
                return self._started(event)
            case events.ReceivedWhole():
                return self._received(self._round.take_whole(event.body))
            case events.Saved():
                return self._release(event.durable, is_lost=event.is_lost, after_stop=event.after_stop)
            case events.ReplyEnded():
                return self._received(self._round.end())
            case events.ReplyFailed():
                return self._received(self._round.fail(event.error))
            case events.ToolFinished():
                return self._tool_finished(event)
            case events.ToolsLate():
                return self._fill_silence()
            case events.Kept():
                return self._kept(event)
            case events.ClientLeft():
                return self._client_left()
            case events.Stopped():
                return self._stopped(event.reason)
        return []

    def _enter(self, state: TurnState) -> None:
        self._state = state
        self._transitions = TRANSITIONS[state]

    # A reply comes in

    def _started(self, reply: events.ReplyStarted) -> list[Command]:
        self._enter(_READING)
        self._round.start(reply.status, reply.headers)
        self._rounds += 1
        return []

    def _received(self, end: RoundEnd | None) -> list[Command]:
        # One read of the upstream is one write to the client, however many events it brought.
        match end:
            case None:
                return self._flush()
            case Complete():
                return self._round_over()
            case Refused(body):
                return self._refused(body)
            case ErrorEvent(error, raw):
                reason = StopReason.UPSTREAM_ERROR
                self._view.stop(reason, {})
                self._view.upstream_error(error, raw)
                is_refused = self._is_refused(orjson.dumps({"error": error}))
                words = str(error.get("message") or "")
                over = self._break_off(End.FAILED, reason, words, is_refused=is_refused)
                return [*self._flush(), commands.CloseUpstream(), *over]
            case BrokeOff(error):
                return self._broken(error)

    # A reply goes wrong

    def _refused(self, body: bytes) -> list[Command]:
        """Answers with the upstream's error (or what cannot be read): as a status, while one can be sent."""
        reply = self._round
        if reply.is_success:
            reason = StopReason.BAD_REPLY
        else:
            reason = StopReason.NO_CREDITS if reply.status == 402 else StopReason.UPSTREAM_ERROR
        is_refused, fields = self._is_refused(body), error_of(reply.status, body)
        words = str(fields["message"])
        # A success status cannot carry an error; where steps are shown the reader waits for events.
        if self._is_past_status or (self.spec.shows_steps and reply.is_success):
            self._view.stop(reason, {})
            self._view.upstream_error(fields, None)
            return [*self._flush(), *self._break_off(End.FAILED, reason, words, is_refused=is_refused)]
        shown, headers = self._view.refused(reply.status, body), reply.headers
        if shown is None:
            what = (
                "a chat completion" if reply.is_success else f"the JSON of an error (status {reply.status})"
            )
            error = UpstreamBroke(f"The upstream's answer is not {what}.")
            over = self._break_off(End.FAILED, reason, error.message, is_refused=is_refused)
            return [commands.Refuse(error), *over]
        if shown != body:  # in a dialect's own form, whatever form it came in
            headers = (
                *(each for each in headers if each[0] != "content-type"),
                ("content-type", "application/json"),
            )
        whole = commands.SendWhole(reply.status, headers, shown)
        return [whole, *self._break_off(End.FAILED, reason, words, is_refused=is_refused)]

    def _is_refused(self, body: bytes) -> bool:
        """Returns whether an error is a refusal of the input, before there was anything of a reply."""
        reply = self._round
        has_reply = self._rounds > 1 and not self.spec.keeps_steps
        return not (has_reply or reply.has_spoken or reply.draft.calls) and is_for_good(reply.status, body)

    def _broken(self, error: GatewayError) -> list[Command]:
        reason = StopReason.UPSTREAM_ERROR
        if self._is_past_status:
            self._view.stop(reason, {})
            self._view.fail(error)
            over = self._break_off(End.FAILED, reason, error.message)
            return [*self._flush(), commands.CloseUpstream(), *over]
        over = self._break_off(End.FAILED, reason, error.message)
        return [commands.Refuse(error), commands.CloseUpstream(), *over]

    @property
    def _is_past_status(self) -> bool:
        """True where no status can carry an error any more. On one a client would resend what is stored already."""
        spec = self.spec
        return self._head_sent or spec.has_status or (spec.shows_steps and self._steps > 0)

    def _client_left(self) -> list[Command]:
        if self._state is _SAVING:  # its outcome is on its way already
            self._enter(_DONE)
            return [commands.CloseUpstream(), _FINISH]
        return [commands.CloseUpstream(), *self._break_off(End.CANCELLED, StopReason.CANCELLED)]

    def _stopped(self, reason: StopReason) -> list[Command]:
        """Ends the turn before its reply is complete; its client waits for a proper end."""
        state = End.CANCELLED if reason is StopReason.CANCELLED else End.FAILED
        if not self._is_past_status and not self.spec.shows_steps:
            error = Conflict("The reply was cancelled before it began.")
            return [commands.Refuse(error), commands.CloseUpstream(), *self._break_off(state, reason)]
        self._outcome = self._unfinished(state, reason)
        self._round.tail, self._round.done = [], _DONE_EVENT
        self._finish_instead = "stop"
        self._enter(_SAVING)
        return [commands.CloseUpstream(), commands.Save(self._outcome)]

    def _break_off(
        self, end: End, reason: StopReason, words: str = "", *, is_refused: bool = False
    ) -> list[Command]:
        """Ends the turn before its reply is complete, without waiting for the commit."""
        outcome = self._unfinished(end, reason)
        if is_refused or words:
            outcome = replace(outcome, is_refused=is_refused, words=words)
        self._enter(_DONE)
        return [commands.Save(outcome), _FINISH]

    def _unfinished(self, end: End, reason: StopReason) -> TurnOutcome:
        if self._is_kept:
            return self._make_outcome(end, reason, (), None, results=self._calls.results_so_far)
        if self.spec.keeps_steps:
            # Calls without an answer would block the conversation.
            return self._make_outcome(end, reason, (), self._round.shown_reply())
        shown_reply = join_messages([*self._shown_replies, self._round.shown_reply(self._round.client_calls)])
        return self._make_outcome(end, reason, tuple(self._messages), shown_reply)

    # A reply is complete

    def _round_over(self) -> list[Command]:
        draft = self._round.draft
        if draft.finish_reason in CUT:
            return self._end(CUT[draft.finish_reason])
        if draft.calls:
            if self.spec.shows_steps:
                self._round.take_unreadable()
            return self._called(self._round.gateway_calls, self._round.client_calls)
        follows = self._guide.after()
        if isinstance(follows, Stop):
            return self._end(follows.reason)
        return [*self._hide(), *self._go_on(follows)]

    def _called(self, gateway_calls: list[ToolCall], client_calls: list[ToolCall]) -> list[Command]:
        name_calls(
            gateway_calls,
            client_calls,
            _ids(self._messages),
            self._rounds,
            names_client_calls=self.spec.keeps_steps,
        )
        if gateway_calls and self._offer.is_final:
            # The model calls tools against `tool_choice`. The client must not wait for their results.
            self._finish_instead = None if client_calls else "stop"
            return self._end(StopReason.REQUIRES_APPROVAL if client_calls else StopReason.END_TURN)
        return self._begin_tools(gateway_calls) if gateway_calls else self._pause()

    def _begin_tools(self, gateway_calls: list[ToolCall]) -> list[Command]:
        """Runs gateway calls; those that cannot be run have their result at once."""
        client_calls = self._round.client_calls
        self._calls = OwnCalls(self.spec, self._guide, gateway_calls)
        runs = self._calls.judge()
        if self._calls.waiting:
            return self._pause()
        left = self._budget_left(self._counted())
        self._is_last_round = bool(client_calls) or (left is not None and left <= 0)
        shown: list[Command] = []
        if self._is_last_round:
            self._finish_instead = "tool_calls" if client_calls else "length"
        else:
            shown += self._hide()
        if self._round.form is AS_EVENTS:
            self._view.call_tools(gateway_calls)
        self._show_results(self._calls.results)
        shown += self._flush()
        if not runs:
            return [*shown, *self._tools_finished()]
        if self.spec.keeps_steps:
            step = self._step(waits={call.id: "client" for call in client_calls})
            self._is_kept = True
            return [*shown, *self._keep(step, runs)]
        self._enter(_TOOLS)
        return [*shown, *runs]

    def _tool_finished(self, tool: events.ToolFinished) -> list[Command]:
        answer = (tool.content, tool.status, tool.stdout, tool.stderr)
        result = self._calls.finish(ToolResult(tool.call_id, *answer, changes=tool.changes, shown=tool.shown))
        if result is None:
            return []
        self._show_results([result])
        return [*self._flush(), *(() if self._calls.is_running else self._tools_finished())]

    def _fill_silence(self) -> list[Command]:
        """Sends the fixed sentence, once a turn and where the reply has no text itself."""
        spec, reply = self.spec, self._round
        is_last = self._is_last_round or reply.form is not AS_EVENTS
        if spec.filler is None or self._has_filled or is_last or reply.has_spoken:
            return []
        self._has_filled = True
        reply.fill(spec.filler.say)
        # A reply that is stored already cannot take it in: it is the next one's.
        self._late = spec.filler.say if self._is_kept else ""
        return self._flush()

    def _show_results(self, results: Iterable[ToolResult]) -> None:
        if self._round.form is AS_EVENTS:
            for result in results:
                self._view.tool_result(result)

    def _tools_finished(self) -> list[Command]:
        """Judges the calls that depend on these results; without any it ends the turn or begins the next round."""
        if not self._calls.is_judged:
            return self._judge_on()
        if self._round.client_calls:
            return self._pause()
        if self._is_last_round:
            return self._end(StopReason.MAX_TOKENS)
        follows = self._guide.after()
        return self._end(follows.reason) if isinstance(follows, Stop) else self._go_on(follows)

    def _judge_on(self) -> list[Command]:
        before = {each.call_id for each in self._calls.results}
        runs = self._calls.judge()
        if self._calls.waiting:
            return self._pause()
        self._show_results(each for each in self._calls.results if each.call_id not in before)
        shown = self._flush()
        if not runs:
            return [*shown, *self._tools_finished()]
        self._enter(_TOOLS)
        return [*shown, *runs]

    def _pause(self) -> list[Command]:
        """Ends the turn with calls that wait for an answer. With an approval among them the gateway's wait, too."""
        if self._calls.waiting:
            self._calls.hold()
        self._waiting = self._calls.waiting | {call.id: "client" for call in self._round.client_calls}
        return self._end(StopReason.REQUIRES_APPROVAL)

    def resume(self, resumed: ResumedCalls) -> list[Command]:
        """Begins with calls of a stored step, in place of a reply. Returns what is to be done."""
        self._is_kept = self._is_resumed = True
        self._is_last_round = False
        self._enter(_TOOLS)
        self._round.draft.take_calls([*resumed.calls], AllBut(), is_over=True)
        self._calls = OwnCalls(self.spec, self._guide, self._round.gateway_calls, resumed)
        self._show_results(self._calls.results)
        return self._tools_finished()

    # From one round to the next

    def _hide(self) -> list[Command]:
        """Notifies the view that the round is not the last one."""
        self._is_hidden = True
        # The text of a whole reply waits for the end: nothing has been sent, so there is nothing to be hidden.
        self._view.hide_round(self._round.tail if self._round.form is AS_EVENTS else ())
        return self._flush()

    def _go_on(self, offer: Offer) -> list[Command]:
        """Begins the next round: everything that belongs to one reply starts again."""
        spec = self.spec
        step = replace(self._step(), results=self._calls.results, nudge=offer.nudge)
        self._messages += [self._round.made(), *(each.message() for each in step.results)]
        if offer.nudge:
            self._messages.append(without_private(as_system(offer.nudge)))
        self._shown_replies.append(self._round.shown_reply())
        self._ledger = self._counted()
        shown_reply = "" if spec.shows_steps else join_messages(self._shown_replies)["content"]
        merged = self._ledger.merged if self._ledger.rounds else None
        late, self._late = self._late, ""
        if offer.is_final:  # a call that comes nevertheless is not run, so it has nothing to say either
            spec = replace(spec, asides=None)
        # At once, since the next round may fail before it has begun.
        self._round = Round(spec, self._view, self._round.form, merged, shown_reply, late)
        self._calls = NO_CALLS
        self._is_hidden = self._is_kept = self._is_resumed = False
        self._offer = offer
        left = self._budget_left(self._ledger)
        if spec.keeps_steps:
            return self._keep(step, [commands.CallModel((), left, offer)])
        self._enter(_WAITING)
        return [commands.CallModel(tuple(map(without_private, self._messages)), left, offer)]

    def _keep(self, step: commands.Keep, then: Sequence[Command]) -> list[Command]:
        self._enter(_KEEPING)
        self._after_keep = [*then]
        self._steps += step.reply is not None
        return [step]

    def _kept(self, kept: events.Kept) -> list[Command]:
        then, self._after_keep = self._after_keep, []
        if self._is_kept:
            self._enter(_TOOLS)
            return then
        self._enter(_WAITING)
        self._view.results(kept.first, kept.results)
        self._view.step(kept.first, kept.reply)
        return [*self._flush(), *then]

    def _step(self, waits: Mapping[str, str] | None = None) -> commands.Keep:
        """Returns the reply of the round as a step to be stored; nothing if it is stored already."""
        draft = self._round.draft
        if self._is_kept:
            return commands.Keep()
        shown_reply = self._round.shown_reply() if self._round.spoken else None
        return commands.Keep(self._round.made(), shown_reply, draft.usage, waits or {})

    def _counted(self) -> Ledger:
        return self._ledger if self._is_resumed else self._ledger.plus(self._round.draft, self.spec.count)

    def _budget_left(self, ledger: Ledger) -> int | None:
        return None if self.spec.budget_tokens is None else self.spec.budget_tokens - ledger.completion

    # The turn ends

    def _end(self, reason: StopReason) -> list[Command]:
        """Ends a reply that is complete: it is saved first, then its end leaves (or the other way round)."""
        draft, spec = self._round.draft, self.spec
        # Among the client's calls a cut one may be broken, and where steps are stored it could not be repaired.
        client_calls = [] if spec.keeps_steps and draft.finish_reason in CUT else self._round.client_calls
        shown_reply = self._round.shown_reply(client_calls)
        results = self._calls.results
        full: tuple[Json, ...] = (shown_reply,)
        if results:
            after_stop = (each.stored() if spec.keeps_steps else each.message() for each in results)
            full = (self._round.made(), *after_stop)
        elif spec.keeps_steps and self._round.filler and draft.text:
            full = (self._round.made(client_calls),)  # the filler is no part of it upstream
        self._shown_replies.append(shown_reply)
        joined = shown_reply if len(self._shown_replies) == 1 else join_messages(self._shown_replies)
        if self._is_hidden:
            # The upstream's finish_reason is of a round with calls that the client never saw.
            self._finish_instead = "stop"
        finish = self._finish_instead or draft.finish_reason
        self._outcome = self._make_outcome(FINISHED, reason, (*self._messages, *full), joined, finish)
        save = commands.Save(self._last_step(shown_reply, full) if spec.keeps_steps else self._outcome)
        self._enter(_SAVING)
        if spec.hold_end:
            return [*self._flush(), save]
        *sends, finished = self._release(durable=True)
        return [*sends, save, finished]

    def _last_step(self, shown_reply: Json, full: tuple[Json, ...]) -> TurnOutcome:
        """Returns the outcome where steps are stored: of the last reply alone, or of what followed on it."""
        assert self._outcome is not None
        draft, results = self._round.draft, self._calls.results
        if self._is_kept:
            return replace(self._outcome, full=(), shown_reply=None, results=results)
        if self._waiting:
            made = self._round.made()
            shown_reply = shown_reply if self._round.spoken else made
            return replace(
                self._outcome, full=(made,), shown_reply=shown_reply, step_usage=draft.usage, results=results
            )
        return replace(self._outcome, full=full, shown_reply=shown_reply, step_usage=draft.usage)

    def _release(
        self, durable: bool, *, is_lost: bool = False, after_stop: events.Kept | None = None
    ) -> list[Command]:
        """Lets the end go. The parameters are those of `Saved`."""
        self._enter(_DONE)
        assert self._outcome is not None
        if is_lost and self.spec.shows_steps:
            # Its messages have ids here, which no stored message has.
            self._view.stop(StopReason.ERROR, {})
            self._view.fail(Conflict(events.LOST))
            return [*self._flush(), _FINISH]
        waiting = self._outcome.waiting
        # With an approval nothing was shown yet, not even the calls that have their results.
        is_shown = self._is_kept or not self._calls.waiting
        calls = (
            [call for call in self._round.draft.calls if call.id in waiting or not is_shown]
            if waiting
            else ()
        )
        self._view.stop(self._outcome.stop, waiting, calls)
        if self._round.form is AS_BODY:
            reply = self._round
            is_unchanged = self._rounds == 1 and not reply.gateway_calls
            data = self._view.whole(reply.body, self._outcome, is_unchanged=is_unchanged)
            return [commands.SendWhole(reply.status, reply.headers, data), _FINISH]
        if after_stop is not None:
            self._view.results(after_stop.first, after_stop.results, is_last=True)
        elif self.spec.keeps_steps and not (self._is_kept or waiting):
            self._view.results(None, [each.stored() for each in self._calls.results])
        if not durable:
            self._view.not_durable()
        self._view.end(self._tail(), self._finish_instead, self._round.done)
        return [*self._flush(), _FINISH]

    def _tail(self) -> list[ReplyEvent]:
        """Returns the last events of the stream. Of a round that was hidden already only its usage is left to send.

        A view that shows the rounds one by one has got that as well.
        """
        if not self._is_hidden:
            return self._round.tail
        if self.spec.shows_steps:
            return []
        last = [
            event for event in self._round.tail if event.chunk and isinstance(event.chunk.get("usage"), dict)
        ]
        if not last or not self.spec.wants_usage:
            return []
        return [ReplyEvent(None, None, {**(last[-1].chunk or {}), "choices": []}, None, last[-1].usage)]

    def _flush(self) -> list[Command]:
        """Sends what the view has ready; the head leaves with the first of it."""
        if self._round.form is AS_BODY:  # leaves as a whole, unless a later round turns out to be a stream
            return []
        data = self._view.take()
        if not data:
            return []
        if self._head_sent:
            return [commands.SendBody(data)]
        self._head_sent = True
        return [self._head(), commands.SendBody(data)]

    def _head(self) -> commands.SendHead:
        if self.spec.shows_steps:
            return commands.SendHead(200, (EVENTS,))
        return commands.SendHead(self._round.status, self._round.headers)

    def _make_outcome(
        self,
        end: End,
        reason: StopReason,
        full: tuple[Json, ...],
        shown_reply: Json | None,
        finish: str | None = None,
        results: tuple[ToolResult, ...] = (),
    ) -> TurnOutcome:
        clashes = _ids(self._messages) & _ids([shown_reply or {}]) if self._messages else ()
        if (
            clashes
        ):  # the client has its call under that name already, so the gateway's of an earlier round gives way
            names = {id: f"call_mnemogate_0_{n}" for n, id in enumerate(sorted(clashes))}
            hidden = len(self._messages)
            full = (*(_renamed(message, names) for message in full[:hidden]), *full[hidden:])
        usage = self._ledger.reported(self._round.draft.usage)
        is_hidden = len(full) > 1 and any(message["role"] == "tool" for message in full)
        # By their places, since the names take longer than all the rest of it (measured).
        return TurnOutcome(
            end, full, shown_reply, finish, usage, self._rounds, is_hidden, reason, self._waiting, results
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
