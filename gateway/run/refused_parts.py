"""The parts of a turn's prompt that its upstream refuses to read: the turn is sent and stored without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from gateway.core.conversation.private import with_private
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.composition import without_result
from gateway.core.turn.commands import SaveStep, TurnOutcome
from gateway.core.turn.refusal import RefusedContent
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_removals import (
    Removal,
    remove_earlier_results,
    remove_last_results,
    remove_memory_texts,
    remove_stored_media,
)

# The parts that are left out one after the other, by the refused content: (name in `ChatCall.left_out_parts`, removal).
_REMOVALS: Mapping[RefusedContent, Sequence[tuple[str, Removal]]] = {
    RefusedContent.FILTERED: (
        ("memory", remove_memory_texts),
        ("results", remove_earlier_results),
    ),
    RefusedContent.UNREACHABLE: (("media", remove_stored_media),),
}
# The parts that are left out of a run that a filter refuses. The last results go first: the filter has let the earlier
# steps pass, unless another model has read them.
_RUN_REMOVALS: Sequence[tuple[str, Removal]] = (
    ("results", remove_last_results),
    ("memory", remove_memory_texts),
    ("results", remove_earlier_results),
)
# A reply that was made without results is stored with a note, which makes later prompts leave them out as well.
_RESULT_REMOVALS: Sequence[Removal] = (remove_last_results, remove_earlier_results)


@dataclass(slots=True)
class RefusedParts:
    """The parts that are left out of one turn; none at first."""

    # True: each step of the turn is saved.
    saves_steps: bool
    # The removals that are made in each prompt, in this order.
    _removals: tuple[Removal, ...] = field(default=(), init=False)
    # The number of messages of hidden rounds, from the first on, that are sent without their results.
    _stripped_count: int = field(default=0, init=False)
    # The value of `_stripped_count` when the upstream last answered.
    _answered_stripped_count: int = field(default=0, init=False)

    def leave_out(self, refused: RefusedContent, prompt: Prompt, rounds: Sequence[WireMessage]) -> str | None:
        """Leaves out one more part, of the kind that is refused. Returns its name, as `ChatCall.left_out_parts` has it.

        Returns None if the gateway has added nothing more of that kind. The parts that were left out before are sent
        again then, since they were not the cause.

        rounds: the messages of the hidden rounds that are sent.
        """
        # The results of the last tools first, since the request before them was not refused.
        # The rounds are the gateway's own, without the older role "function".
        has_new_results = any(message.get("role") == "tool" for message in rounds[self._stripped_count :])
        if refused is RefusedContent.FILTERED and has_new_results:
            self._stripped_count = len(rounds)
            return "results"
        name = self._remove_next(refused, prompt, has_rounds=bool(rounds))
        if name is None:
            self._removals = ()
            self._stripped_count = self._answered_stripped_count
        return name

    def _remove_next(self, refused: RefusedContent, prompt: Prompt, *, has_rounds: bool) -> str | None:
        """Adds the next removal that finds something in the prompt. Returns the name of the part, or None."""
        prompt = self.without(prompt)
        is_run = self.saves_steps and refused is RefusedContent.FILTERED
        for name, remove in _RUN_REMOVALS if is_run else _REMOVALS[refused]:
            if name == "results" and has_rounds:
                continue  # the model has read the results of earlier turns in the first round
            if remove(prompt) is not None:
                self._removals = (*self._removals, remove)
                return name
        return None

    def note_answer(self) -> None:
        """Notes that the upstream has answered, so it does not refuse the parts that were sent."""
        self._answered_stripped_count = self._stripped_count

    def without(self, prompt: Prompt) -> Prompt:
        """Returns a prompt without the parts that are left out."""
        for remove in self._removals:
            prompt = remove(prompt) or prompt
        return prompt

    def without_results(self, rounds: Sequence[WireMessage]) -> tuple[WireMessage, ...]:
        """Returns messages that begin with hidden rounds, without the results that are left out."""
        stripped, others = rounds[: self._stripped_count], rounds[self._stripped_count :]
        return *map(without_result, stripped), *others

    def annotate_step(self, step: SaveStep) -> SaveStep:
        """Returns a step as it is stored: with a note of the results that it was made without.

        Later prompts leave out the results that a note names. So the next step's prompt needs no removal of results.
        """
        if step.reply is None:
            return step
        shown_reply = step.shown_reply and self._with_notes(step.shown_reply)
        step = replace(step, reply=self._with_notes(step.reply), shown_reply=shown_reply)
        self._removals = tuple(each for each in self._removals if each not in _RESULT_REMOVALS)
        return step

    def annotate_outcome(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome as it is stored: with notes by which later prompts leave out the same parts."""
        if self._stripped_count:  # the messages of hidden rounds come first
            outcome = replace(outcome, full_reply=self.without_results(outcome.full_reply))
        if self._removals:
            # Later prompts read the note in the shown reply, and a reply of one message is stored as the shown reply.
            is_noted = self.saves_steps or len(outcome.full_reply) == 1
            full_reply = tuple(map(self._with_notes, outcome.full_reply)) if is_noted else outcome.full_reply
            shown_reply = outcome.shown_reply and self._with_notes(outcome.shown_reply)
            outcome = replace(outcome, full_reply=full_reply, shown_reply=shown_reply)
        return outcome

    def _with_notes(self, reply: WireMessage) -> WireMessage:
        """Returns a reply with notes of the results that it was made without, if there are any."""
        return with_private(
            reply,
            unread=remove_last_results in self._removals or None,
            unread_earlier=remove_earlier_results in self._removals or None,
        )
