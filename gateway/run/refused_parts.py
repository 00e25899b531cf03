"""The parts of a turn's prompt that its upstream refuses to read: the turn is sent and stored without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.private import with_private
from gateway.core.prompt.composition import without_result
from gateway.core.turn.commands import SaveStep, TurnOutcome
from gateway.core.turn.refusal import RefusedContent
from gateway.run.memory.prompt import Prompt

# Returns a prompt without a part of it, or None if the prompt has no such part.
_LeaveOut = Callable[[Prompt], Prompt | None]
# What is refused -> the parts that are left out one after the other: (name in `ChatCall.left_out`, function).
_LEAVE_OUT: Mapping[RefusedContent, Sequence[tuple[str, _LeaveOut]]] = {
    RefusedContent.FILTERED: (
        ("memory", Prompt.without_memory_texts),
        ("results", Prompt.without_earlier_results),
    ),
    RefusedContent.UNREACHABLE: (("media", Prompt.without_stored_media),),
}
# The functions that leave out results. A reply that was made without results is stored with a note, which makes later
# prompts leave them out as well.
_LEAVE_OUT_RESULTS: Sequence[_LeaveOut] = (Prompt.without_last_results, Prompt.without_earlier_results)
# The parts that are left out of a run that a filter refuses. The last results go first: the steps before them are
# stored, and were refused only if another model has read them.
_LEAVE_OUT_IN_RUN: Sequence[tuple[str, _LeaveOut]] = (
    ("results", Prompt.without_last_results),
    ("memory", Prompt.without_memory_texts),
    ("results", Prompt.without_earlier_results),
)


@dataclass(slots=True)
class RefusedParts:
    """The parts that are left out of one turn; none at first."""

    # Each step of the turn is saved.
    saves_steps: bool
    _left_out: tuple[_LeaveOut, ...] = ()
    # How many messages of hidden rounds, from the first on, are sent without their results.
    _round_messages: int = 0
    # The value of `_round_messages` when the upstream last answered.
    _answered_round_messages: int = 0

    def leave_out(self, refused: RefusedContent, prompt: Prompt, rounds: Sequence[WireMessage]) -> str | None:
        """Leaves out one more part, of the kind that is refused. Returns its name, as `ChatCall.left_out` has it.

        Returns None if the gateway has added nothing more of that kind. The parts that were left out before are sent
        again then, since they were not the cause.

        rounds: the messages of the hidden rounds that are sent.
        """
        # The results of the last tools first, since the request before them was not refused.
        if refused is RefusedContent.FILTERED and any(map(_is_result, rounds[self._round_messages :])):
            self._round_messages = len(rounds)
            return "results"
        prompt = self.without(prompt)
        is_run = self.saves_steps and refused is RefusedContent.FILTERED
        for name, leave_out in _LEAVE_OUT_IN_RUN if is_run else _LEAVE_OUT[refused]:
            if name == "results" and rounds:
                continue  # those of earlier turns were read in the first round
            if leave_out(prompt) is not None:
                self._left_out = (*self._left_out, leave_out)
                return name
        self._left_out = ()
        self._round_messages = self._answered_round_messages
        return None

    def note_answer(self) -> None:
        """Notes that the upstream has answered, so it does not refuse what was sent."""
        self._answered_round_messages = self._round_messages

    def without(self, prompt: Prompt) -> Prompt:
        """Returns a prompt without the parts that are left out."""
        for leave_out in self._left_out:
            prompt = leave_out(prompt) or prompt
        return prompt

    def rounds_without(self, rounds: Sequence[WireMessage]) -> tuple[WireMessage, ...]:
        """Returns messages that begin with those of hidden rounds, without the results that are left out."""
        refused, others = rounds[: self._round_messages], rounds[self._round_messages :]
        return *map(without_result, refused), *others

    def step_to_save(self, step: SaveStep) -> SaveStep:
        """Returns a step as it is stored: with a note by which the next prompts leave out the results that it lacks."""
        if step.reply is None:
            return step
        shown_reply = step.shown_reply and self._noted(step.shown_reply)
        step = replace(step, reply=self._noted(step.reply), shown_reply=shown_reply)
        self._left_out = tuple(each for each in self._left_out if each not in _LEAVE_OUT_RESULTS)
        return step

    def outcome_to_save(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome as it is stored, so that later prompts leave out the same."""
        if self._round_messages:  # the messages of hidden rounds come first
            outcome = replace(outcome, full_reply=self.rounds_without(outcome.full_reply))
        if self._left_out:
            # With hidden rounds, only the shown reply has the note.
            is_noted = self.saves_steps or len(outcome.full_reply) == 1
            full_reply = tuple(map(self._noted, outcome.full_reply)) if is_noted else outcome.full_reply
            shown_reply = outcome.shown_reply and self._noted(outcome.shown_reply)
            outcome = replace(outcome, full_reply=full_reply, shown_reply=shown_reply)
        return outcome

    def _noted(self, reply: WireMessage) -> WireMessage:
        """Returns a reply with notes of the results that it was made without, if there are any."""
        last, earlier = (leave_out in self._left_out or None for leave_out in _LEAVE_OUT_RESULTS)
        return with_private(reply, unread=last, unread_earlier=earlier)


def _is_result(message: WireMessage) -> bool:
    return message.get("role") == "tool"
