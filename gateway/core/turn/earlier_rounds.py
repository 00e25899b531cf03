"""The rounds of a turn that have ended: their messages for the upstream, the replies for the client, and the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from adapters.types import Json
from gateway.core.conversation.private import NUDGE_SENDER, make_framed_system_message
from gateway.core.turn.commands import SaveStep
from gateway.core.turn.draft import join_messages
from gateway.core.turn.ledger import EMPTY_LEDGER, Ledger
from gateway.core.turn.round import Round, StoredIn


class EarlierRounds:
    """The rounds that have ended. Most turns have one round, and so no earlier round."""

    def __init__(self) -> None:
        # The messages that go upstream again: replies with calls, their results, and nudges.
        self.messages: list[Json] = []
        # The tokens of the rounds.
        self.ledger = EMPTY_LEDGER
        # The replies as the client got them.
        self._shown_replies: list[Json] = []

    def add(self, ended_round: Round, step: SaveStep, estimate: Callable[[str], int]) -> None:
        """Adds a round. step: the results and the nudge of the round. estimate: estimates the tokens of a text."""
        self.messages += [
            ended_round.make_upstream_message(),
            *(result.as_stored() for result in step.results),
        ]
        if step.nudge:
            self.messages.append(make_framed_system_message(step.nudge, sender=NUDGE_SENDER))
        self._shown_replies.append(ended_round.make_shown_reply())
        self.ledger = self.make_ledger_with(ended_round, estimate)

    def make_ledger_with(self, ended_round: Round, estimate: Callable[[str], int]) -> Ledger:
        """Returns the ledger of all rounds of this turn, with one more. estimate: estimates the tokens of a text."""
        if ended_round.stored_in is StoredIn.EARLIER_TURN:
            return self.ledger
        return self.ledger.with_round(ended_round.draft, estimate)

    @property
    def call_ids(self) -> set[str]:
        return _collect_call_ids(self.messages)

    @property
    def shown_reply(self) -> Json:
        """The reply that the client has got so far."""
        return join_messages(self._shown_replies)

    @property
    def turn_usage_maker(self) -> Callable[[Json | None], Json | None] | None:
        """`Ledger.make_turn_usage`; None: no round has ended, so the usage of the first round is the turn's."""
        return self.ledger.make_turn_usage if self.ledger.round_count else None

    def join_reply(self, shown_reply: Json) -> Json:
        """Returns the one reply in which the client gets all rounds. shown_reply: the reply of the last round."""
        return join_messages([*self._shown_replies, shown_reply])

    def rename_clashing_calls(
        self, full_reply: tuple[Json, ...], shown_reply: Json | None
    ) -> tuple[Json, ...]:
        """Returns the messages of a turn, in which no hidden call has the id of a call that the client has.

        full_reply: the messages of the turn, which begin with the messages of these rounds.
        """
        clashes = self.call_ids & _collect_call_ids([shown_reply or {}]) if self.messages else ()
        if not clashes:
            return full_reply
        new_ids = {old_id: f"call_mnemogate_0_{n}" for n, old_id in enumerate(sorted(clashes))}
        hidden_count = len(self.messages)
        hidden_messages = [_rename_calls(message, new_ids) for message in full_reply[:hidden_count]]
        return (*hidden_messages, *full_reply[hidden_count:])


def _collect_call_ids(messages: Iterable[Json]) -> set[str]:
    """Returns the ids of the calls in messages; a call may have no id."""
    ids = [call.get("id") for message in messages for call in message.get("tool_calls") or []]
    return {each for each in ids if isinstance(each, str) and each}


def _rename_calls(message: Json, new_ids: Mapping[str, str]) -> Json:
    """Returns a message of a hidden round with other call ids. new_ids: the new ids by the old ones."""
    if message.get("tool_calls"):
        calls = [{**call, "id": new_ids.get(call["id"], call["id"])} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    if message["role"] == "tool":
        return {**message, "tool_call_id": new_ids.get(message["tool_call_id"], message["tool_call_id"])}
    return message
