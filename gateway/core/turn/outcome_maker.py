"""Makes the outcome of a turn: the messages that are stored, and the one reply that the client gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from msgspec.structs import replace

from adapters.types import NATIVE_REPLY, Json
from gateway.core.finish_reasons import CUT_REASONS, read_finish_reason
from gateway.core.turn.calls import GatewayCalls
from gateway.core.turn.commands import FINISHED, End, TurnOutcome
from gateway.core.turn.earlier_rounds import EarlierRounds
from gateway.core.turn.round import Round
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from storage.run_records import WaitKind

NONE_WAIT: Final[Mapping[str, WaitKind]] = MappingProxyType({})


class FinishedTurn(NamedTuple):
    """The outcome of a complete turn."""

    # The outcome with all rounds of the turn.
    outcome: TurnOutcome
    # The outcome that is saved: where steps are saved, it has the last reply alone.
    saved_outcome: TurnOutcome


class OutcomeMaker(NamedTuple):
    """Makes the outcome of a turn that ends now, of its rounds."""

    # The terms of the turn.
    terms: TurnTerms
    # The rounds that have ended.
    earlier_rounds: EarlierRounds
    # The round that is under way.
    last_round: Round
    # The gateway calls of `last_round`.
    gateway_calls: GatewayCalls
    # The number of replies that have begun, with the present one.
    reply_count: int

    def make_finished(
        self, reason: StopReason, client_finish_reason: str | None, waiting: Mapping[str, WaitKind]
    ) -> FinishedTurn:
        """Returns the outcome of a turn with a complete reply.

        client_finish_reason: the client's finish_reason; None: the upstream's.
        waiting: the calls that wait for an answer, as in `TurnOutcome`.
        """
        finish_reason = self.last_round.draft.finish_reason
        # A call that was cut may be broken, and where steps are saved a client call could not be repaired.
        is_cut = read_finish_reason(finish_reason) in CUT_REASONS
        client_calls = [] if self.terms.saves_steps and is_cut else self.last_round.client_calls
        shown_reply = self.last_round.make_shown_reply(client_calls)
        last_messages = self._list_last_messages(shown_reply, client_calls)
        earlier_rounds = self.earlier_rounds
        joined_reply = earlier_rounds.join_reply(shown_reply) if earlier_rounds.messages else shown_reply
        full_reply = (*earlier_rounds.messages, *last_messages)
        outcome = self._make_outcome(
            FINISHED, reason, full_reply, joined_reply, client_finish_reason or finish_reason, waiting
        )
        saved_outcome = outcome
        if self.terms.saves_steps:
            saved_outcome = self._as_last_step(outcome, shown_reply, last_messages)
        if saved_outcome.is_filtered:
            saved_outcome = self._as_refused(saved_outcome)
        return FinishedTurn(outcome, saved_outcome)

    def make_unfinished(self, end: End, reason: StopReason, *, are_tools_running: bool) -> TurnOutcome:
        """Returns the outcome of a turn that ends before its reply is complete."""
        if self.terms.saves_steps or self.last_round.is_stored:
            return self._make_unfinished_step(end, reason)
        shown_reply = self.last_round.make_shown_reply(self.last_round.client_calls)
        last_messages = self._list_begun_calls() if are_tools_running else ()
        full_reply = (*self.earlier_rounds.messages, *last_messages)
        return self._make_outcome(end, reason, full_reply, self.earlier_rounds.join_reply(shown_reply))

    def _list_begun_calls(self) -> tuple[Json, ...]:
        """Returns the messages of a round with running calls: its reply, and the results of all calls.

        The messages are stored, so that the model does not repeat in another turn what the calls may have done.
        """
        if self.last_round.spoken.text:
            # A call that speaks would be stored with its whole text, of which the user may have heard a part.
            return ()
        return self._make_call_messages(self.gateway_calls.final_results)

    def _make_unfinished_step(self, end: End, reason: StopReason) -> TurnOutcome:
        """Returns the outcome of a turn that saves each step, and ends within a step."""
        if self.last_round.is_stored:
            return self._make_outcome(end, reason, (), None, results=self.gateway_calls.interrupted_results)
        # The reply is stored without its calls: calls without an answer would block the conversation.
        return self._make_outcome(end, reason, (), self.last_round.make_shown_reply())

    def _list_last_messages(self, shown_reply: Json, client_calls: list[ToolCall]) -> tuple[Json, ...]:
        """Returns the messages of the last round as they go upstream again. The first row that fits decides.

        | the round                                        | its messages                              |
        |--------------------------------------------------|-------------------------------------------|
        | has results of gateway calls                     | its reply with all calls, the results     |
        | is a step with a filler before the model's text  | its reply without the filler              |
        | follows hidden rounds, has a provider's own form | the shown reply, with the provider's form |
        | any other                                        | the shown reply                           |
        """
        last_round = self.last_round
        if results := self.gateway_calls.results:
            return self._make_call_messages(results)
        if self.terms.saves_steps and last_round.spoken.filler and last_round.draft.text:
            return (last_round.make_upstream_message(client_calls),)
        follows_hidden_rounds = bool(self.earlier_rounds.messages)
        if follows_hidden_rounds and (native_reply := last_round.draft.make_message().get(NATIVE_REPLY)):
            return ({**shown_reply, NATIVE_REPLY: native_reply},)
        return (shown_reply,)

    def _make_call_messages(self, results: Iterable[ToolResult]) -> tuple[Json, ...]:
        """Returns the reply of the last round with all its calls, and the results after it."""
        return (self.last_round.make_upstream_message(), *(result.as_stored() for result in results))

    def _as_last_step(
        self, outcome: TurnOutcome, shown_reply: Json, last_messages: tuple[Json, ...]
    ) -> TurnOutcome:
        """Returns the outcome of the last reply alone, for a turn that saves each step.

        If this reply is stored already, the outcome has only the results that followed it.
        """
        results = self.gateway_calls.results
        if self.last_round.is_stored:
            return replace(outcome, full_reply=(), shown_reply=None, results=results)
        usage = self.last_round.draft.usage
        if not outcome.waiting:
            return replace(outcome, full_reply=last_messages, shown_reply=shown_reply, step_usage=usage)
        message = self.last_round.make_upstream_message()
        return replace(
            outcome,
            full_reply=(message,),
            shown_reply=shown_reply if self.last_round.spoken.text else message,
            step_usage=usage,
            results=results,
        )

    def _as_refused(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns the outcome of a filtered reply as refused, if the gateway would send the messages again itself."""
        if self.terms.saves_steps:
            return replace(outcome, full_reply=(), is_refused=True)
        # A later round may be filtered because of the results of tools.
        if self.terms.is_appended and self.reply_count == 1:
            return replace(outcome, state=End.FAILED, full_reply=(), is_refused=True)
        return outcome

    def _make_outcome(
        self,
        end: End,
        reason: StopReason,
        full_reply: tuple[Json, ...],
        shown_reply: Json | None,
        finish_reason: str | None = None,
        waiting: Mapping[str, WaitKind] = NONE_WAIT,
        results: tuple[ToolResult, ...] = (),
    ) -> TurnOutcome:
        """Returns the outcome of the turn. The parameters are those of `TurnOutcome`."""
        full_reply = self.earlier_rounds.rename_clashing_calls(full_reply, shown_reply)
        usage = self.earlier_rounds.ledger.make_turn_usage(self.last_round.draft.usage)
        has_hidden_results = len(full_reply) > 1 and any(message["role"] == "tool" for message in full_reply)
        # The fields are given by position: keywords take longer than the rest of this function (measured).
        return TurnOutcome(
            end,
            full_reply,
            shown_reply,
            finish_reason,
            usage,
            self.reply_count,
            has_hidden_results,
            reason,
            waiting,
            results,
        )
