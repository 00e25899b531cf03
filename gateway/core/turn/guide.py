"""The guide of a turn: it decides which tools a model may call, which of its calls run, and when the turn ends.

A guide serves one turn. The machine asks it in this order: `offer` once; then for each reply of the model `judge` for
each gateway call, in the order of the calls, `take_result` for each result, and `decide_next`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.conversation.private import with_private
from gateway.core.prompt.shown_blocks import Shown

LIMIT_REACHED = (
    "Not run: the limit of {rounds} rounds of memory tools for one reply is reached. "
    "Answer now, without tools."
)
# The error of a step that did not begin because a limit was reached.
OUT_OF_QUOTA: Final = "insufficient_quota"


class StopReason(StrEnum):
    """The reason for which a turn ended. The words are those of Letta's API."""

    END_TURN = "end_turn"
    TOOL_RULE = "tool_rule"
    MAX_STEPS = "max_steps"
    REQUIRES_APPROVAL = "requires_approval"  # a person or the client must answer first
    MAX_TOKENS = "max_tokens_exceeded"
    BAD_TOOL_CALL = "invalid_tool_call"
    NO_TOOL_CALL = "no_tool_call"  # the model calls nothing, though it has to
    BAD_REPLY = "invalid_llm_response"
    UPSTREAM_ERROR = "llm_api_error"
    NO_CREDITS = "insufficient_credits"
    SYSTEM_OVERFLOW = "context_window_overflow_in_system_prompt"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def is_proper(self) -> bool:
        """True where the turn came to a regular end."""
        return self in _PROPER_REASONS


_PROPER_REASONS: Final = frozenset(
    {StopReason.END_TURN, StopReason.TOOL_RULE, StopReason.MAX_STEPS, StopReason.REQUIRES_APPROVAL}
)


# Why a turn failed, for the reader of its run or item, if the cause is no error of an upstream.
STOP_MESSAGES: Final[Mapping[str, str]] = {
    StopReason.MAX_TOKENS: "The reply was cut off at the limit of its tokens.",
    StopReason.BAD_REPLY: "The reply cannot be read, or a filter of the upstream cut it off.",
    StopReason.BAD_TOOL_CALL: "Three replies in a row called tools with arguments that are no JSON.",
    StopReason.NO_TOOL_CALL: "Three replies in a row called no tool, and a rule demands a call.",
}


class Offer(Struct, frozen=True):
    """The freedom that the next call of the model has. By default: any tool or none."""

    # Names of the tools that may be called; None: all.
    names: tuple[str, ...] | None = None
    # One of them has to be called.
    must_call: bool = False
    # The model is asked for no more than one call a reply.
    one_at_a_time: bool = False
    # A message of the gateway to the model, in the system's role; "": none.
    nudge: str = ""
    # No tool may be called, and a call that comes nevertheless ends the turn without being run.
    is_final: bool = False

    def fields(self, *, can_force: bool = True, has_client_tools: bool = False) -> Json:
        """Returns the fields of a request for this offer. `tools` is not among them, because providers cache it.

        No field names the tools that may be called: a call of another tool gets an error as its result.

        can_force: the model can be made to call a tool.
        has_client_tools: the request has tools of the client's, which the offer does not cover.
        """
        if self.is_final or (self.names == () and not has_client_tools):
            return {"tool_choice": "none"}
        fields: Json = {}
        if self.must_call and can_force:
            fields["tool_choice"] = "required"
            if self.names is not None and len(self.names) == 1:
                fields["tool_choice"] = {"type": "function", "function": {"name": self.names[0]}}
        if self.one_at_a_time:
            fields["parallel_tool_calls"] = False
        return fields


class ProposedCall(Struct, frozen=True):
    """A call of a gateway tool, as the model proposes it."""

    id: str
    name: str
    # The arguments without asides; None: they are no JSON object.
    arguments: Json | None
    # The asides that the model gave.
    asides: Mapping[str, object] = field(default_factory=dict)
    # A person has approved the call.
    is_approved: bool = False


# Fields of a result that are stored with its message if they are set.
_STORED_FIELDS = ("stdout", "stderr", "approval", "reason")


class ToolResult(Struct, frozen=True):
    """The result of a call."""

    call_id: str
    # The tool's own text.
    content: str
    # success or error.
    status: str = "success"
    # The output of code that the tool ran.
    stdout: str = ""
    stderr: str = ""
    # "approved" or "denied", where a person was asked.
    approval: str = ""
    # The person's reason.
    reason: str = ""
    # False: a rule forbids the call, or it is unreadable.
    was_run: bool = True
    # The call needs an approval, and no client can give it.
    is_unapproved: bool = False
    # A note of what has changed in memory meanwhile, which stands after the content.
    changes: str = ""
    # The memory blocks that content and changes show.
    shown: Shown = field(default_factory=dict)

    def message(self) -> Json:
        """Returns the message that goes upstream, with private fields for what it shows."""
        message = {"role": "tool", "tool_call_id": self.call_id, "content": self.content}
        if self.changes:
            # A person is shown the tool's own text.
            message["content"] += f"\n\n{self.changes}"
            message = with_private(message, own_length=len(self.content))
        return with_private(message, shown_blocks=dict(self.shown)) if self.shown else message

    def stored(self) -> Json:
        """Returns the message as it is stored."""
        return with_private(
            self.message(),
            status=self.status if self.status != "success" else None,
            unrun=None if self.was_run else True,
            unapproved=self.is_unapproved or None,
            **{name: value for name in _STORED_FIELDS if (value := getattr(self, name))},
        )


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

    # The result of the call, with the reason and what may be called.
    result_text: str
    # The call needs an approval that no one can give.
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
        """Returns what the turn's first call of the model may do. It changes nothing."""

    def judge(self, call: ProposedCall) -> Verdict:
        """Judges the next call of a reply. The calls before it count as run, if they were judged so."""

    def take_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        """Takes the result of a call that waited when the turn began: a person or the client has answered it.

        No `judge` comes before it.
        """

    def take_result(self, result: ToolResult) -> None:
        """Takes the result of a call that was run. Calls of one reply may end in any order."""

    def decide_next(self) -> Offer | Stop:
        """Returns what follows a reply, when all of its calls have their results."""


class FreeGuide:
    """The guide of a turn without rules: any call goes on, a reply without calls ends the turn.

    `Guide` documents the methods.

    max_rounds: how many rounds of tools there may be; then a message tells the model that the limit is reached, and it
    is called a last time.
    """

    def __init__(self, max_rounds: int) -> None:
        self._max_rounds = max_rounds
        self._rounds = 0
        self._has_calls = False

    def offer(self) -> Offer:
        return FREE_OFFER

    def judge(self, call: ProposedCall) -> Verdict:
        self._has_calls = True
        if self._rounds >= self._max_rounds:
            return Forbidden(LIMIT_REACHED.format(rounds=self._max_rounds))
        return Allowed()

    def take_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        self._has_calls = True

    def take_result(self, result: ToolResult) -> None:
        """Learns nothing: no result changes what follows."""

    def decide_next(self) -> Offer | Stop:
        if not self._has_calls:
            return _ANSWERED_STOP
        self._has_calls = False
        self._rounds += 1
        return Offer(is_final=self._rounds > self._max_rounds)
