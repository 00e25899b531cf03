"""The guide of an agent's turn: it records the calls of the turn, and decides by the agent's tool rules. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from gateway.agents.core.tool_rules import CalledTool, JudgedCall, RuleState
from gateway.core.agent import SpeakingStyle
from gateway.core.tool_rule import ToolRule
from gateway.core.turn.asides import HEARTBEAT
from gateway.core.turn.guide import (
    Allowed,
    Forbidden,
    NeedsApproval,
    Offer,
    ProposedCall,
    Stop,
    Undecided,
    Verdict,
)
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult

# The most steps of a run that names no number, as on Letta's server.
DEFAULT_MAX_STEPS: Final = 50
# The bad replies in a row after which a turn ends. A reply is bad if it lacks a call that the model must make, or if
# none of its calls can run. Otherwise an upstream that ignores `tool_choice`, or a model that repeats a call whatever
# its result, would go on up to the limit of steps. Not measured.
BAD_REPLIES: Final = 3
_NO_APPROVAL_ERROR: Final = (
    "Not run: {name} needs a person's approval, and there is no client that could give it."
)


class RuleGuide:
    """The guide of an agent's turn. Implements `Guide`, which documents the methods."""

    def __init__(
        self,
        rules: Sequence[ToolRule],
        tool_names: Sequence[str],
        *,
        style: SpeakingStyle = "reply",
        max_steps: int = DEFAULT_MAX_STEPS,
        calls: Iterable[CalledTool] = (),
        approval_tools: Collection[str] = (),
        can_ask: bool = True,
        has_later_message: bool = False,
    ) -> None:
        """Begins a turn.

        tool_names: the names of the agent's tools.
        max_steps: the most steps of the turn.
        calls: the calls of earlier runs since the user's newest message.
        approval_tools: the names of the tools that a person has to approve, without a rule.
        can_ask: True if a person can be asked for approval. If False, calls that need approval get an error.
        has_later_message: True if a user's message follows the results of the first reply; rules start over with it.
        """
        self._max_steps = max_steps
        self._approval_tools = approval_tools
        self._can_ask = can_ask
        self._has_later_message = has_later_message
        self._rules = tuple(rules)
        self._tool_names = tuple(tool_names)
        self._style = style
        self._calls = [*calls]
        # The indices of calls in `_calls`, by call id.
        self._indices: dict[str, int] = {}
        # The calls of the reply, by call id.
        self._reply: dict[str, JudgedCall] = {}
        self._steps = 0
        # The bad replies in a row.
        self._bad_replies = 0
        # An earlier turn has made the reply, and has counted its step.
        self._is_resumed = False

    def offer(self) -> Offer:
        return self._make_state().offer()

    def judge(self, call: ProposedCall) -> Verdict:
        verdict = self._make_state().judge(
            call.name, approval_tools=self._approval_tools, is_approved=call.is_approved
        )
        if isinstance(verdict, Undecided):
            return verdict
        if isinstance(verdict, NeedsApproval) and not self._can_ask:
            reason = _NO_APPROVAL_ERROR.format(name=call.name)
            # Counts as a denial by a person, so that no rule demands the call again.
            self._calls.append(CalledTool(call.name, "denied", reason))
            verdict = Forbidden(reason, is_unapproved=True)
        is_readable = call.arguments is not None
        is_run = isinstance(verdict, Allowed) and is_readable
        # Models send a boolean or a string.
        goes_on = str(call.asides.get(HEARTBEAT)).strip().lower() == "true"
        self._reply[call.id] = JudgedCall(
            call.name, has_run=is_run, is_readable=is_readable, has_failed=not is_run, goes_on=goes_on
        )
        if is_run:
            self._indices[call.id] = len(self._calls)
            self._calls.append(CalledTool(call.name, result=None))
        return verdict

    def add_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        self._is_resumed = True
        if result.is_unapproved:
            self._calls.append(CalledTool(name, "denied", result.content))
        if not result.was_run:
            self._reply[result.call_id] = JudgedCall(name, has_run=False, has_failed=True)
            return
        self._calls.append(CalledTool(name, "denied" if is_denied else result.status, result.content))
        self._reply[result.call_id] = JudgedCall(name, has_run=not is_denied, goes_on=True)

    def add_result(self, result: ToolResult) -> None:
        index = self._indices.get(result.call_id)
        if index is None:
            return
        name, has_failed = self._calls[index].name, result.status == "error"
        self._calls[index] = CalledTool(name, result.status, result.content)
        judged = self._reply[result.call_id]
        self._reply[result.call_id] = JudgedCall(name, has_failed=has_failed, goes_on=judged.goes_on)

    def decide_next(self) -> Offer | Stop:
        self._steps += 0 if self._is_resumed else 1
        self._is_resumed = False
        reply, self._reply = [*self._reply.values()], {}
        next_step = self._choose_next(reply)
        fault = self._find_fault(reply, next_step)
        self._bad_replies = 0 if fault is None else self._bad_replies + 1
        return next_step if fault is None or self._bad_replies < BAD_REPLIES else Stop(fault)

    def _make_state(self) -> RuleState:
        return RuleState(self._rules, self._calls, self._tool_names, self._style)

    def _choose_next(self, reply: Sequence[JudgedCall]) -> Offer | Stop:
        if self._has_later_message:
            self._has_later_message = False
            self._calls.clear()
            return self.offer()
        return self._make_state().decide_next(reply, is_last_step=self._steps >= self._max_steps)

    def _find_fault(self, reply: Sequence[JudgedCall], next_step: Offer | Stop) -> StopReason | None:
        """Returns the fault for which a reply can end the turn; None if the reply has no fault.

        next_step: the step after the reply.
        """
        if not reply:
            must_call = isinstance(next_step, Offer) and bool(next_step.nudge)
            return StopReason.NO_TOOL_CALL if must_call else None
        if any(call.has_run for call in reply):
            return None
        # Such replies would let the turn go on up to the limit of steps, so they end the turn with the same reason.
        is_readable = all(call.is_readable for call in reply)
        return StopReason.MAX_STEPS if is_readable else StopReason.BAD_TOOL_CALL
