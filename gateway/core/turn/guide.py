"""The guide of a turn: it decides which tools a model may call, which of its calls run, and when the turn ends.

A guide serves one turn. The machine asks it in this order: `offer` once; then for each reply of the model `judge` for
each gateway call, in the order of the calls, `add_result` for each result, and `decide_next`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult

_LIMIT_REACHED = (
    "Not run: the limit of {rounds} rounds of memory tools for one reply is reached. "
    "Answer now, without tools."
)


class Offer(Struct, frozen=True):
    """The freedom that the next call of the model has. By default: any tool or none."""

    # Names of the tools that may be called; None: all tools.
    names: tuple[str, ...] | None = None
    # True: one of these tools has to be called.
    must_call: bool = False
    # True: the model is asked for no more than one call a reply.
    asks_for_one_call: bool = False
    # A message of the gateway to the model, in the system's role; "": no message.
    nudge: str = ""
    # True: no tool may be called, and a call that comes nevertheless ends the turn without being run.
    is_final: bool = False

    def make_fields(self, *, can_force: bool = True, has_client_tools: bool = False) -> Json:
        """Returns the fields of a request for this offer. `tools` is not among them, because providers cache it.

        No field names the tools that may be called: a call of another tool gets an error as its result.

        can_force: True if the model can be made to call a tool.
        has_client_tools: True if the request has tools of the client's, which the offer does not cover.
        """
        if self.is_final or (self.names == () and not has_client_tools):
            return {"tool_choice": "none"}
        fields: Json = {}
        if self.must_call and can_force:
            fields["tool_choice"] = "required"
            if self.names is not None and len(self.names) == 1:
                fields["tool_choice"] = {"type": "function", "function": {"name": self.names[0]}}
        if self.asks_for_one_call:
            fields["parallel_tool_calls"] = False
        return fields


class ProposedCall(Struct, frozen=True):
    """A call of a gateway tool, as the model proposes it."""

    # The id of the call.
    id: str
    # The name of the tool, as the model wrote it.
    name: str
    # The arguments without asides; None: the arguments are no JSON object.
    arguments: Json | None
    # The asides that the model gave.
    asides: Mapping[str, object] = field(default_factory=dict)
    # True: a person has approved the call.
    is_approved: bool = False


class Allowed(Struct, frozen=True):
    """The call is run."""

    # Arguments that take the place of the model's.
    prefilled: Mapping[str, object] = field(default_factory=dict)


class NeedsApproval(Struct, frozen=True):
    """A person has to approve the call first."""


class Undecided(Struct, frozen=True):
    """The call cannot be judged before the calls that are running have their results."""


class Forbidden(Struct, frozen=True):
    """The call is not run."""

    # The result of the call, with the reason and the tools that may be called.
    result_text: str
    # True: the call needs an approval that no one can give.
    is_unapproved: bool = False


Verdict = Allowed | NeedsApproval | Undecided | Forbidden


class Stop(Struct, frozen=True):
    """The turn ends."""

    reason: StopReason


FREE_OFFER: Final = Offer()
_ANSWERED_STOP: Final = Stop(StopReason.END_TURN)


class Guide(Protocol):
    """Decides for one turn. `RuleGuide` (gateway.agents.core.rule_guide) follows the rules of an agent."""

    def offer(self) -> Offer:
        """Returns the offer for the turn's first call of the model. The guide stays as it is."""

    def judge(self, call: ProposedCall) -> Verdict:
        """Judges the next call of a reply. Earlier calls that were allowed count as run."""

    def add_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        """Adds the result of a call that waited when the turn began: a person or the client has answered it.

        No `judge` comes before it.
        """

    def add_result(self, result: ToolResult) -> None:
        """Adds the result of a call that was run. Calls of one reply may end in any order."""

    def decide_next(self) -> Offer | Stop:
        """Returns the offer of the next round, or the end of the turn. All calls of the reply have their results."""


class FreeGuide:
    """The guide of a turn without rules: any call goes on, a reply without calls ends the turn.

    `Guide` documents the methods.
    """

    def __init__(self, max_rounds: int) -> None:
        """Begins a turn.

        max_rounds: the most rounds of tools. After the last one the model is called once more, with a message that the
            limit is reached.
        """
        self._max_rounds = max_rounds
        # The number of rounds of tools so far.
        self._round_count = 0
        # True: the present round has calls.
        self._has_calls = False

    def offer(self) -> Offer:
        return FREE_OFFER

    def judge(self, call: ProposedCall) -> Verdict:
        self._has_calls = True
        if self._round_count >= self._max_rounds:
            return Forbidden(_LIMIT_REACHED.format(rounds=self._max_rounds))
        return Allowed()

    def add_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        self._has_calls = True

    def add_result(self, result: ToolResult) -> None:
        """Learns nothing: no result changes what follows."""

    def decide_next(self) -> Offer | Stop:
        if not self._has_calls:
            return _ANSWERED_STOP
        self._has_calls = False
        self._round_count += 1
        return Offer(is_final=self._round_count > self._max_rounds)
