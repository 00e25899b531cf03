"""One turn as a machine: it decides what the model and the client get, given what the upstream sends. No IO, no clock.

The shell makes the first call of the model by itself. Then it feeds the machine each event and performs the commands
that `feed` returns, in their order. `TRANSITIONS` (gateway.core.turn.states) lists the states and the events that each
takes. Every turn ends with exactly one `Save` and one `Finish`, whatever goes wrong.

A `RoundReader` (gateway.core.turn.round_reader) reads each reply into its `Round`, a `Guide` decides which calls run
and what follows a reply, a `ClientView` makes the bytes for the client, and a `SentReply` sends them.

Gateway calls run here, client calls are left to the client. There are two ways to go from one round to the next:

- In a chat completion a round with gateway calls alone is a hidden round: its calls and results become messages of the
  next request, and the client gets all rounds as one reply. A round with client calls is the last one.
- Where steps are saved (`TurnTerms.saves_steps`) a reply is committed before its tools run, and their results before
  the model is called again.

Calls decide what follows, never the finish_reason: some upstreams say `stop` with a forced call
(vllm-project/vllm#25054).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

import orjson
from msgspec.structs import replace

from adapters.reply_headers import replace_content_type
from adapters.types import JSON_TYPE, Event, Json
from gateway.core.conversation.private import with_private, with_transcript, without_private
from gateway.core.finish_reasons import BROKE, read_finish_reason
from gateway.core.turn import commands, events
from gateway.core.turn.call_ids import assign_call_ids
from gateway.core.turn.calls import NO_CALLS, GatewayCalls, ResumedCalls
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.commands import Command, End, TurnOutcome
from gateway.core.turn.continued_reply import ContinuedReply
from gateway.core.turn.earlier_rounds import EarlierRounds
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.guide import FREE_OFFER, Guide, Offer, Stop
from gateway.core.turn.ledger import Ledger
from gateway.core.turn.outcome_maker import NONE_WAIT, OutcomeMaker
from gateway.core.turn.refusal import is_permanent_refusal
from gateway.core.turn.round import AS_BODY, AS_EVENTS, DONE_EVENT, Round, StoredIn
from gateway.core.turn.round_reader import (
    BrokenReply,
    CompleteReply,
    ErrorEvent,
    ErrorReply,
    RoundEnd,
    RoundReader,
)
from gateway.core.turn.sent_reply import SentReply
from gateway.core.turn.states import (
    DONE,
    READING,
    RUNNING_TOOLS,
    SAVING_CALLS,
    SAVING_RESULTS,
    SAVING_TURN,
    TRANSITIONS,
    WAITING,
    TurnState,
)
from gateway.core.turn.stop_reason import OUT_OF_QUOTA, StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from gateway.core.turn.upstream_error import make_openai_error_of_reply, make_stream_exception
from gateway.core.usage.reported import ReplyUsage
from gateway.errors import Conflict, GatewayError, LimitReached, UpstreamError, UpstreamReplyBroken
from storage.run_records import WaitKind

# Why a turn with a cut reply ends, by each of `CUT_REASONS`. The last call may lack its end, so
# gateway calls are dropped instead of run.
_STOP_BY_CUT_REASON = {
    "length": StopReason.MAX_TOKENS,
    "content_filter": StopReason.BAD_REPLY,
    BROKE: StopReason.UPSTREAM_ERROR,
}
# The first call of a turn without rules, which needs no value of its own.
_FREE_CALL = commands.CallModel(messages=(), budget_tokens=None, offer=FREE_OFFER)


class Turn:
    """The machine of one turn. It takes all events of one reply before events of the next reply."""

    def __init__(self, terms: TurnTerms, view: ClientView, guide: Guide) -> None:
        # Given once.
        self.terms = terms
        self._guide = guide
        self._view = view
        # The sent reply and the rounds that have ended, which grow with the turn.
        self._sent_reply = SentReply(terms, view)
        self._earlier_rounds = EarlierRounds()
        # The round that is under way, with its offer and its gateway calls. `_begin_round` replaces all four.
        self._offer = guide.offer()
        self._round = Round(terms, view, AS_EVENTS if terms.shows_steps else None)
        self._reader = RoundReader(self._round, terms, view)
        self._calls = NO_CALLS
        # The state, and the values that change with the events.
        self._state = WAITING
        # The number of replies that have begun, with the present one.
        self._reply_count = 0
        # A reply of a step was saved in this turn.
        self._has_saved_reply = False
        # The commands that follow when the step is saved.
        self._after_step: list[Command] = []
        # The filler for tools that take long; None: no filler is set, or the filler was sent.
        self._filler = terms.filler
        # A filler that was sent after its reply was saved. It is stored with the next reply.
        self._next_filler = ""
        # Decided at the end: the client's finish_reason, if it differs from the upstream's.
        self._client_finish_reason: str | None = None
        # The outcome that is being saved; None: the turn has not ended yet.
        self._outcome: TurnOutcome | None = None

    @property
    def state(self) -> TurnState:
        return self._state

    @property
    def usage(self) -> ReplyUsage:
        """The usage of the round that is under way, as far as its reply has come."""
        return self._round.draft

    @property
    def first_call(self) -> commands.CallModel:
        """The call of the model that the shell makes by itself."""
        return (
            _FREE_CALL
            if self._offer is FREE_OFFER
            else commands.CallModel(messages=(), budget_tokens=None, offer=self._offer)
        )

    def feed_texts(self, batch: list[Event]) -> bytes | None:
        """Reads events that add text and do nothing else, as nearly all of a stream do.

        Returns the bytes that the client gets; None: the events have to be fed.
        """
        is_taken = self._state is READING and self._reader.read_texts(batch)
        return self._view.take() if is_taken else None

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns the commands that follow from an event, in order; []: the event comes too late."""
        if type(event) not in TRANSITIONS[self._state]:
            return []
        match event:  # the most frequent first
            case events.Received():
                return self._on_received(self._reader.read(event.events))
            case events.ReplyStarted():
                return self._on_reply_started(event)
            case events.ReceivedWhole():
                return self._on_received(self._reader.read_whole(event.body))
            case events.Saved():
                return [*self._show_end(event), commands.FINISH]
            case events.ReplyEnded():
                return self._on_received(self._reader.end())
            case events.ReplyFailed():
                return self._on_received(self._reader.fail(event.error))
            case events.ToolFinished(result):
                return self._on_tool_finished(result)
            case events.ToolsLate():
                return self._send_filler()
            case events.Silence():
                return self._sent_reply.keep_alive(self._round, self._state)
            case events.LongWait():
                return self._release_held()
            case events.StepSaved():
                return self._on_step_saved(event)
            case events.StepFailed():
                return self._fail(event.error)
            case events.ClientLeft():
                return self._on_client_left()
            case events.Stopped():
                return self._on_stopped(event.reason)
            case ResumedCalls():
                return self._resume_with_calls(event)
            case _:
                assert_never(event)

    def with_stored_fields(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome as it is written: its reply has the fields that the client's dialect stores.

        It changes the view, which prepares these fields (`ClientView.prepare_stored_fields`).
        """
        shown_reply = outcome.shown_reply
        if shown_reply is None:
            return outcome
        fields = self._view.prepare_stored_fields(outcome, self._round.list_last_events())
        stored_reply = with_private(with_transcript(shown_reply), **fields)
        if stored_reply is shown_reply:
            return outcome
        full_reply = (stored_reply,) if outcome.full_reply == (shown_reply,) else outcome.full_reply
        return replace(outcome, shown_reply=stored_reply, full_reply=full_reply)

    # -- a reply comes in

    def _on_reply_started(self, reply: events.ReplyStarted) -> list[Command]:
        self._state = READING
        self._reader.start(reply.status, reply.headers)
        self._reply_count += 1
        return []

    def _on_received(self, round_end: RoundEnd | None) -> list[Command]:
        """Returns the commands after one read. round_end: the way in which the reply ended; None: no end."""
        # One read of the upstream is one write to the client, however many events it brought.
        if round_end is None:
            return self._sent_reply.flush(self._round)
        self._reader.end_texts()
        match round_end:
            case CompleteReply():
                return self._on_reply_complete()
            case ErrorReply(body):
                return self._on_error_reply(body)
            case ErrorEvent(error, raw):
                return self._on_error_event(error, raw)
            case BrokenReply(error):
                return self._fail(error)

    # -- a reply goes wrong

    def _on_error_event(self, error: Json, raw: bytes | None) -> list[Command]:
        """Ends the stream with the upstream's error. raw: the event, as in `ErrorEvent`."""
        reason = StopReason.UPSTREAM_ERROR
        self._reader.show_tail()
        self._view.note_stop(reason, {})
        self._view.show_upstream_error(error, raw)
        is_refused = self._is_refused(orjson.dumps({"error": error}))
        message = str(error.get("message") or "")
        ending = self._end_unfinished(End.FAILED, reason, message, is_refused=is_refused)
        shown_commands = self._sent_reply.flush(self._round)
        exception = make_stream_exception(error)
        if not shown_commands and not self._is_past_status:  # a view that reads no stream
            shown_commands = [commands.SendError(exception)]
        return [*shown_commands, commands.CloseUpstream(exception), *ending]

    def _on_error_reply(self, body: bytes) -> list[Command]:
        """Answers with the upstream's error, or with an error in place of a body that is no chat completion.

        The error is sent as a status, as long as a status can be sent.
        """
        status, is_success = self._round.status, self._round.is_success
        if is_success:
            reason = StopReason.BAD_REPLY
        else:
            reason = StopReason.NO_CREDITS if status == 402 else StopReason.UPSTREAM_ERROR
        is_refused = self._is_refused(body)
        fields = make_openai_error_of_reply(status, body)
        message = str(fields["message"])
        # A reply that is no completion may have a status of success, which is not the error's.
        error_status = status if status >= 400 else UpstreamReplyBroken.status
        # A success status cannot carry an error; where steps are shown the reader waits for events.
        if self._is_past_status or (self.terms.shows_steps and is_success):
            self._view.note_stop(reason, {})
            self._view.show_upstream_error(fields, raw=None)
            shown_commands = self._sent_reply.flush(self._round)
            ending = self._end_unfinished(
                End.FAILED, reason, message, is_refused=is_refused, error_status=error_status
            )
            return [*shown_commands, *ending]
        answer = self._sent_reply.make_error_answer(self._round, body, fields)
        if isinstance(answer, commands.SendError):
            message = answer.error.message
        ending = self._end_unfinished(
            End.FAILED, reason, message, is_refused=is_refused, error_status=error_status
        )
        return [answer, *ending]

    def _is_refused(self, body: bytes) -> bool:
        """Returns whether an error is a refusal of the input, before there was anything of a reply."""
        if self._reply_count > 1 and not self.terms.saves_steps:
            return False
        if self._round.has_text or self._round.draft.calls:
            return False
        return is_permanent_refusal(self._round.status, body)

    def _fail(self, error: GatewayError) -> list[Command]:
        """Ends the turn with an error of the gateway's: as a status, as long as a status can be sent."""
        reason = StopReason.UPSTREAM_ERROR if isinstance(error, UpstreamError) else StopReason.ERROR
        error_kind = OUT_OF_QUOTA if isinstance(error, LimitReached) else ""
        is_event = self._is_past_status
        if is_event:
            self._reader.show_tail()
            self._view.note_stop(reason, {})
            self._view.fail(error)
        ending = self._end_unfinished(
            End.FAILED, reason, error.message, error_kind=error_kind, error_status=error.status
        )
        shown_commands = self._sent_reply.flush(self._round) if is_event else [commands.SendError(error)]
        return [*shown_commands, commands.CloseUpstream(error), *ending]

    @property
    def _is_past_status(self) -> bool:
        """True where no error can be a status: a status was sent, or the client would resend stored messages."""
        terms = self.terms
        return self._sent_reply.has_head or terms.has_status or (terms.shows_steps and self._has_saved_reply)

    def _on_client_left(self) -> list[Command]:
        """Ends the turn without its client. A turn that is being saved needs no other end."""
        if self._state is SAVING_TURN:  # the command to save the turn was given
            self._state = DONE
            return [commands.CloseUpstream(), commands.FINISH]
        self._reader.end_texts()
        return [commands.CloseUpstream(), *self._end_unfinished(End.CANCELLED, StopReason.CANCELLED)]

    def _on_stopped(self, reason: StopReason) -> list[Command]:
        """Ends the turn before its reply is complete; its client waits for a proper end."""
        end = End.CANCELLED if reason is StopReason.CANCELLED else End.FAILED
        if not self._is_past_status and not self.terms.shows_steps:
            error = Conflict("The reply was cancelled before it began.")
            return [commands.SendError(error), commands.CloseUpstream(), *self._end_unfinished(end, reason)]
        self._reader.end_texts()
        self._outcome = self._make_unfinished(end, reason)
        self._round.tail = []
        self._round.done_event = DONE_EVENT
        self._client_finish_reason = "stop"
        self._state = SAVING_TURN
        return [commands.CloseUpstream(), commands.Save(self._outcome)]

    def _end_unfinished(
        self,
        end: End,
        reason: StopReason,
        message: str = "",
        *,
        is_refused: bool = False,
        error_kind: str = "",
        error_status: int = 0,
    ) -> list[Command]:
        """Ends the turn before its reply is complete, without waiting for the commit.

        The parameters are those of `TurnOutcome`.
        """
        outcome = replace(
            self._make_unfinished(end, reason),
            is_refused=is_refused,
            error_message=message,
            error_kind=error_kind,
            error_status=error_status,
        )
        self._state = DONE
        return [commands.Save(outcome), commands.FINISH]

    def _make_unfinished(self, end: End, reason: StopReason) -> TurnOutcome:
        return self._maker.make_unfinished(end, reason, are_tools_running=self._state is RUNNING_TOOLS)

    @property
    def _maker(self) -> OutcomeMaker:
        return OutcomeMaker(self.terms, self._earlier_rounds, self._round, self._calls, self._reply_count)

    # -- a reply is complete

    def _on_reply_complete(self) -> list[Command]:
        """Decides what follows a complete reply, which is noted first if the terms demand that."""
        if not self.terms.notes_replies:
            return self._decide_on_reply()
        # The reply is noted as it came, before its calls are judged, which changes them.
        note_reply = commands.NoteReply(self._reply_count - 1, self._round.render_as_received())
        return [note_reply, *self._decide_on_reply()]

    def _decide_on_reply(self) -> list[Command]:
        """Decides how the turn goes on after a complete reply: with its calls, with another round, or not at all."""
        draft = self._round.draft
        cut_reason = _STOP_BY_CUT_REASON.get(read_finish_reason(draft.finish_reason))
        if cut_reason is not None:
            return self._end_turn(cut_reason)
        if draft.calls:
            if self.terms.shows_steps:
                self._round.claim_unreadable_calls()
            return self._on_calls(self._round.gateway_calls, self._round.client_calls)
        decision = self._guide.decide_next()
        if isinstance(decision, Stop):
            return self._end_turn(decision.reason)
        return [*self._hide_round(), *self._begin_next_round(decision)]

    def _on_calls(self, gateway_calls: list[ToolCall], client_calls: list[ToolCall]) -> list[Command]:
        """Decides what follows a reply with calls."""
        assign_call_ids(
            gateway_calls,
            client_calls,
            self._earlier_rounds.call_ids,
            self._reply_count,
            renews_client_ids=self.terms.saves_steps,
        )
        if gateway_calls and self._offer.is_final:
            # The model calls tools against `tool_choice`. The client must not wait for their results.
            if client_calls:
                return self._end_turn(StopReason.REQUIRES_APPROVAL)
            self._client_finish_reason = "stop"
            return self._end_turn(StopReason.END_TURN)
        return self._begin_tools(gateway_calls) if gateway_calls else self._pause_for_calls()

    def _begin_tools(self, gateway_calls: list[ToolCall]) -> list[Command]:
        """Runs gateway calls. A call that cannot be run gets its result at once."""
        client_calls = self._round.client_calls
        self._calls = GatewayCalls(self.terms, self._guide, gateway_calls)
        runs = self._calls.judge()
        if self._calls.waiting:
            return self._pause_for_calls()
        shown_commands: list[Command] = []
        if self._is_last_round:
            self._client_finish_reason = "tool_calls" if client_calls else "length"
        else:
            shown_commands += self._hide_round()
        if self._round.form is AS_EVENTS:
            self._view.show_calls(gateway_calls)
        self._show_results(self._calls.results)
        shown_commands += self._sent_reply.flush(self._round)
        if not runs:
            return [*shown_commands, *self._on_tools_finished()]
        if not self.terms.saves_steps:
            self._state = RUNNING_TOOLS
            return [*shown_commands, *runs]
        step = self._make_step(waiting={call.id: "client" for call in client_calls})
        self._round.stored_in = StoredIn.THIS_TURN
        self._state = SAVING_CALLS
        return [*shown_commands, *self._save_step(step, runs)]

    @property
    def _is_last_round(self) -> bool:
        """True where the client has calls to answer, or no tokens of its budget are left for another reply."""
        remaining_tokens = self._count_remaining_budget(
            self._earlier_rounds.make_ledger_with(self._round, self.terms.estimate)
        )
        return bool(self._round.client_calls) or (remaining_tokens is not None and remaining_tokens <= 0)

    def _on_tool_finished(self, result: ToolResult) -> list[Command]:
        """Shows the result of a call. After the last result, decides what follows."""
        finished_result = self._calls.finish(result)
        if finished_result is None:
            return []
        self._show_results([finished_result])
        shown_commands = self._sent_reply.flush(self._round)
        return shown_commands if self._calls.is_running else [*shown_commands, *self._on_tools_finished()]

    def _send_filler(self) -> list[Command]:
        """Sends the fixed sentence, once a turn and where the reply has no text itself."""
        filler = self._filler
        if filler is None or self._round.form is not AS_EVENTS:
            return []
        if self._round.has_text or self._is_last_round:
            return []
        self._filler = None
        self._round.add_filler(filler.say)
        if self._round.is_stored:
            self._next_filler = filler.say
        return self._sent_reply.flush(self._round)

    def _release_held(self) -> list[Command]:
        """Sends the bytes that the view holds back, and the status, unless the round has calls: it may be hidden."""
        if self._round.draft.calls:
            return []
        self._view.release()
        return self._sent_reply.flush(self._round)

    def _show_results(self, results: Iterable[ToolResult]) -> None:
        if self._round.form is AS_EVENTS:
            for result in results:
                self._view.show_tool_result(result)

    def _on_tools_finished(self) -> list[Command]:
        """Judges the calls that depend on these results. If there are none, ends the turn or begins the next round."""
        if not self._calls.is_judged:
            return self._judge_dependent_calls()
        if self._round.client_calls:
            return self._pause_for_calls()
        if self._is_last_round:
            return self._end_turn(StopReason.MAX_TOKENS)
        decision = self._guide.decide_next()
        if isinstance(decision, Stop):
            return self._end_turn(decision.reason)
        return self._begin_next_round(decision)

    def _judge_dependent_calls(self) -> list[Command]:
        """Judges the calls that waited for the results of other calls, and runs the calls that are allowed."""
        shown_ids = {result.call_id for result in self._calls.results}
        runs = self._calls.judge()
        if self._calls.waiting:
            return self._pause_for_calls()
        self._show_results(result for result in self._calls.results if result.call_id not in shown_ids)
        shown_commands = self._sent_reply.flush(self._round)
        if not runs:
            return [*shown_commands, *self._on_tools_finished()]
        self._state = RUNNING_TOOLS
        return [*shown_commands, *runs]

    def _pause_for_calls(self) -> list[Command]:
        """Ends the turn with calls that wait for an answer. If one waits for an approval, all gateway calls wait."""
        if self._calls.waiting:
            self._calls.hold()
        waiting = self._calls.waiting | {call.id: "client" for call in self._round.client_calls}
        return self._end_turn(StopReason.REQUIRES_APPROVAL, waiting)

    def _resume_with_calls(self, resumed: ResumedCalls) -> list[Command]:
        """Begins with calls of a stored step in place of a reply."""
        self._state = RUNNING_TOOLS
        self._round.resume(resumed.calls, resumed.unanswered_ids)
        self._calls = GatewayCalls(self.terms, self._guide, self._round.gateway_calls, resumed)
        self._show_results(self._calls.results)
        return self._on_tools_finished()

    # -- from one round to the next

    def _hide_round(self) -> list[Command]:
        """Notifies the view that the round is not the last one."""
        self._round.is_hidden = True
        # The text of a whole reply waits for the end: nothing has been sent, so there is nothing to be hidden.
        self._view.hide_round(self._round.tail if self._round.form is AS_EVENTS else ())
        return self._sent_reply.flush(self._round)

    def _begin_next_round(self, offer: Offer) -> list[Command]:
        """Saves the round, where steps are saved, and calls the model again."""
        step = replace(self._make_step(), results=self._calls.results, nudge=offer.nudge)
        self._earlier_rounds.add(self._round, step, self.terms.estimate)
        # At once, since the next round may fail before it has begun.
        self._begin_round(offer)
        remaining_tokens = self._count_remaining_budget(self._earlier_rounds.ledger)
        if self.terms.saves_steps:
            self._state = SAVING_RESULTS
            return self._save_step(step, [commands.CallModel((), remaining_tokens, offer)])
        self._state = WAITING
        messages = tuple(map(without_private, self._earlier_rounds.messages))
        return [commands.CallModel(messages, remaining_tokens, offer)]

    def _begin_round(self, offer: Offer) -> None:
        """Replaces the round, its reader and its calls by those of the next round."""
        terms = self.terms
        self._offer = offer
        self._calls = NO_CALLS
        if offer.is_final:  # a call that comes nevertheless is not run, so its asides are not shown either
            terms = replace(terms, asides=None)
        reply_before = {} if terms.shows_steps else self._earlier_rounds.shown_reply
        content_before = reply_before.get("content", "")
        continued = None
        if reply_before and not self._view.has_signed_thoughts:
            # Other dialects begin a new item or block with thoughts that follow a text.
            is_one_text = self._view.speaks_chat or not content_before
            continued = ContinuedReply(reply_before, separates_thoughts=is_one_text)
        filler, self._next_filler = self._next_filler, ""
        self._round = Round(terms, self._view, self._round.form, content_before, filler, self._reply_count)
        turn_usage_maker = self._earlier_rounds.turn_usage_maker
        self._reader = RoundReader(self._round, terms, self._view, turn_usage_maker, continued)

    def _save_step(self, step: commands.SaveStep, after_step: Sequence[Command]) -> list[Command]:
        """Returns the command to save a step. after_step: the commands that follow when the step is saved."""
        self._after_step = [*after_step]
        self._has_saved_reply |= step.reply is not None
        return [step]

    def _on_step_saved(self, saved: events.StepSaved) -> list[Command]:
        """Shows a saved step, and returns the commands that have waited for it."""
        after_step, self._after_step = self._after_step, []
        if self._state is SAVING_CALLS:
            self._state = RUNNING_TOOLS
            return after_step
        self._state = WAITING
        self._view.show_results(saved.first_seq, saved.results)
        self._view.begin_step(saved.first_seq, saved.reply_seq)
        return [*self._sent_reply.flush(self._round), *after_step]

    def _make_step(self, waiting: Mapping[str, WaitKind] | None = None) -> commands.SaveStep:
        """Returns the reply of the round as a step to be saved; an empty step if the reply is stored already."""
        if self._round.is_stored:
            return commands.SaveStep()
        return commands.SaveStep(
            reply=self._round.make_upstream_message(),
            shown_reply=self._round.make_shown_reply() if self._round.spoken.text else None,
            usage=self._round.draft.usage,
            waiting=waiting or {},
        )

    def _count_remaining_budget(self, ledger: Ledger) -> int | None:
        """Returns the tokens that are left of the client's budget; None: the client sets no budget."""
        budget_tokens = self.terms.budget_tokens
        return None if budget_tokens is None else budget_tokens - ledger.completion_tokens

    # -- the turn ends

    def _end_turn(self, reason: StopReason, waiting: Mapping[str, WaitKind] = NONE_WAIT) -> list[Command]:
        """Ends a complete reply. Its end leaves after the turn is saved, or before if not `TurnTerms.holds_end`."""
        if self._round.is_hidden:
            # The upstream's finish_reason is of a round with calls that the client never saw.
            self._client_finish_reason = "stop"
        finished_turn = self._maker.make_finished(reason, self._client_finish_reason, waiting)
        self._outcome = finished_turn.outcome
        self._state = SAVING_TURN
        save = commands.Save(finished_turn.saved_outcome)
        if self.terms.holds_end:
            return [*self._sent_reply.flush(self._round), save]
        return [*self._show_end(events.Saved()), save, commands.FINISH]

    def _show_end(self, saved: events.Saved) -> list[Command]:
        """Sends the end of the reply. `Finish` follows."""
        self._state = DONE
        assert self._outcome is not None  # it was set before the turn was saved
        outcome = self._outcome
        view = self._view
        if saved.loss is not None and self.terms.shows_steps:
            # The client was shown ids of messages that will never be stored.
            view.note_stop(StopReason.ERROR, {})
            view.fail(Conflict(saved.loss))
            return self._sent_reply.flush(self._round)
        view.note_stop(outcome.stop_reason, outcome.waiting, self._list_unshown_calls(outcome.waiting))
        if not (saved.is_durable or saved.is_late):
            view.note_not_stored()
        if self._round.form is AS_BODY:
            return [self._show_body(outcome)]
        return self._show_stream_end(saved, outcome)

    def _show_body(self, outcome: TurnOutcome) -> Command:
        """Sends a reply that the upstream sent as one body."""
        last_round = self._round
        is_unchanged = self._reply_count == 1 and not last_round.gateway_calls
        client_body = self._view.render_body(last_round.body, outcome, is_unchanged=is_unchanged)
        headers = self._sent_reply.list_headers(last_round, JSON_TYPE)
        return commands.SendWhole(last_round.status, headers, client_body)

    def _show_stream_end(self, saved: events.Saved, outcome: TurnOutcome) -> list[Command]:
        """Sends the last events of a stream, or the whole stream as a body if the client reads no stream."""
        last_round = self._round
        view = self._view
        if saved.after_stop is not None:
            view.show_results(saved.after_stop.first_seq, saved.after_stop.results, is_last=True)
        elif self.terms.saves_steps and not (last_round.is_stored or outcome.waiting):
            view.show_results(first_seq=None, results=[result.as_stored() for result in self._calls.results])
        view.end(last_round.list_last_events(), self._client_finish_reason, last_round.done_event)
        if not saved.is_durable:
            view.note_not_durable()
        shown_commands = self._sent_reply.flush(last_round)
        if shown_commands or self._sent_reply.has_head:
            return shown_commands
        # The view reads no stream.
        body = last_round.render_stream_as_body(last_round.client_calls)
        client_body = view.render_body(body, outcome, is_unchanged=False)
        headers = replace_content_type(last_round.headers, JSON_TYPE)
        return [commands.SendWhole(last_round.status, headers, client_body)]

    def _list_unshown_calls(self, waiting: Mapping[str, WaitKind]) -> Sequence[ToolCall]:
        """Returns the calls that wait, and other calls that were not shown yet."""
        if not waiting:
            return ()
        # With an approval nothing was shown yet, not even the calls that have their results.
        is_shown = self._round.is_stored or not self._calls.waiting
        return [call for call in self._round.draft.calls if call.id in waiting or not is_shown]
