"""Tool rules: which tools an agent's model may call next, which of its calls run, and when its turn ends. Pure.

`RuleState` decides from the rules and the calls so far. A call counts once it has run, whether or not it failed. A call
that was forbidden, denied or unreadable does not count.

A rule allows a set of tools. Tools that the agent lacks are left out of the set, and a rule with an empty set is
ignored. If no tool is allowed by all rules together, no tool may be called. If a person has just denied all tools that
may be called, the model need not call one. If one rule ends the turn after a tool and another goes on, the turn ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.agent import SpeakingStyle
from gateway.core.prompt.hidden_rounds import NO_TOOL
from gateway.core.tags import quote_text
from gateway.core.tool_rule import RuleKind, ToolRule
from gateway.core.turn.guide import Allowed, Forbidden, NeedsApproval, Offer, Stop, Undecided, Verdict
from gateway.core.turn.stop_reason import StopReason

_ORDERING_KINDS: Final = frozenset(
    {RuleKind.RUN_FIRST, RuleKind.CHILDREN, RuleKind.CONDITIONAL, RuleKind.PARENT_LAST}
)


class CalledTool(Struct, frozen=True):
    """A call since the user's newest message."""

    # The name of the tool.
    name: str
    # `success`, `error`, or `denied` by a person or since no client could be asked.
    status: str = "success"
    # The text of the result; None: the call still runs.
    result: str | None = ""


class JudgedCall(Struct, frozen=True):
    """A call of the reply that is judged."""

    # The name of the call's tool.
    name: str
    # True: the call was allowed, and its tool was called.
    has_run: bool = True
    # True: the arguments are JSON.
    is_readable: bool = True
    # True: the result is an error, or the call was not run.
    has_failed: bool = False
    # True: the model requested another step, or the client gave the result and waits for the answer.
    goes_on: bool = False


# -- the limit that one rule sets after some calls


class _Limit(Struct, frozen=True):
    """The tools to which a rule limits the next call."""

    # The names of the tools.
    names: frozenset[str]
    # The reason why other tools may not be called, as the model reads it.
    reason: str
    # True: the model must call one of these tools.
    must_call: bool = False
    # The arguments that the rule sets, by tool.
    arguments: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def _was_just_called(rule: ToolRule, calls: Sequence[CalledTool]) -> bool:
    return bool(calls) and calls[-1].name == rule.tool


def _limit_children(rule: ToolRule, calls: Sequence[CalledTool], tool_names: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule by which its children must follow its tool; None: no limit."""
    names = frozenset(rule.children) & frozenset(tool_names)
    if not _was_just_called(rule, calls) or not names:
        return None
    reason = f"right after {rule.tool} one of these has to be called: {', '.join(sorted(names))}."
    return _Limit(names, reason, must_call=True, arguments=rule.arguments)


def _limit_parent(rule: ToolRule, calls: Sequence[CalledTool], tool_names: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule that makes its children follow its tool, and only its tool; None: no limit."""
    if _was_just_called(rule, calls):
        return _limit_children(rule, calls, tool_names)
    names = frozenset(tool_names) - frozenset(rule.children)
    closed_names = sorted(frozenset(rule.children) & frozenset(tool_names))
    if not closed_names:
        return None
    return _Limit(names, f"only right after {rule.tool} may be called: {', '.join(closed_names)}.")


def _limit_outcome(rule: ToolRule, calls: Sequence[CalledTool], tool_names: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule by which the result of a tool decides the next tool; None: no limit."""
    if not _was_just_called(rule, calls):
        return None
    result = _make_comparable(calls[-1].result or "")
    child = next((child for value, child in rule.outcomes if _make_comparable(value) == result), rule.default)
    if child is None and rule.is_strict:
        return _Limit(frozenset(), f"after this result of {rule.tool} nothing follows.")
    if child is None or child not in tool_names:
        return None
    return _Limit(frozenset({child}), f"after this result of {rule.tool} comes {child}.", must_call=True)


def _limit_count(rule: ToolRule, calls: Sequence[CalledTool], tool_names: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule on the number of calls of its tool; None: no limit."""
    if sum(call.name == rule.tool for call in calls) < rule.max_calls:
        return None
    reason = f"{rule.tool} may run {rule.max_calls_text} for one message of the user, and no more."
    return _Limit(frozenset(tool_names) - {rule.tool}, reason)


_LIMITS: Final[Mapping[RuleKind, Callable[..., _Limit | None]]] = {
    RuleKind.CHILDREN: _limit_children,
    RuleKind.PARENT_LAST: _limit_parent,
    RuleKind.CONDITIONAL: _limit_outcome,
    RuleKind.MAX_COUNT: _limit_count,
}


def _limit_first_call(rules: Sequence[ToolRule], tool_names: Sequence[str]) -> _Limit | None:
    """Returns the limit that the rules for the first call set together; None: there are no such rules."""
    first_rules = [rule for rule in rules if rule.kind is RuleKind.RUN_FIRST and rule.tool in tool_names]
    if not first_rules:
        return None
    names = frozenset(rule.tool for rule in first_rules)
    reason = f"one of these has to be called first: {', '.join(sorted(names))}."
    arguments = {rule.tool: rule.arguments.get(rule.tool, {}) for rule in first_rules}
    return _Limit(names, reason, must_call=True, arguments=arguments)


def _make_comparable(text: str) -> bool | tuple[float] | str:
    """Returns a result as it is compared: as a bool, a number in a tuple (which equals no bool), or a text."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    return (number,) if math.isfinite(number) else text


# -- the decisions of all rules


class RuleState(Struct, frozen=True):
    """The basis of decisions: the rules, the calls so far, and the names of the agent's tools."""

    # The agent's rules.
    rules: Sequence[ToolRule]
    # The calls in order, with those calls of the judged reply that have run.
    calls: Sequence[CalledTool]
    # The names of the agent's tools.
    tool_names: Sequence[str]
    # The way in which the agent speaks: by its reply, or by a tool.
    style: SpeakingStyle = "reply"

    def offer(self) -> Offer:
        """Returns the tools that the model may call next."""
        limits = self._find_limits()
        return Offer(
            names=self._find_allowed(limits) if limits else None,
            must_call=self._must_call(limits, by_style=self.style == "message"),
            asks_for_one_call=any(rule.kind in _ORDERING_KINDS for rule in self.rules),
        )

    def judge(self, name: str, *, approval_tools: Collection[str] = (), is_approved: bool = False) -> Verdict:
        """Judges one call.

        name: the name of the call's tool.
        approval_tools: the tools that need approval without a rule.
        is_approved: True if a person has approved the call.
        """
        if name not in self.tool_names:
            # The error names no tools, since the request may have tools of its own, which these rules do not know.
            return Forbidden(f"{NO_TOOL} {quote_text(name)}.")
        counted_calls = self._list_counted_calls()
        last = counted_calls[-1] if counted_calls else None
        if last is not None and last.result is None and self._has_rule(RuleKind.CONDITIONAL, last.name):
            return Undecided()
        limits = self._find_limits()
        reasons = [limit.reason for limit in limits if name not in limit.names]
        if reasons:
            return Forbidden(f"Not run: {' '.join(reasons)} {_join_options(self._find_allowed(limits))}")
        if not is_approved and (name in approval_tools or self._has_rule(RuleKind.APPROVAL, name)):
            return NeedsApproval()
        arguments: dict[str, object] = {}
        for limit in limits:
            arguments |= limit.arguments.get(name, {})
        return Allowed(arguments)

    def decide_next(self, reply: Sequence[JudgedCall], *, is_last_step: bool = False) -> Offer | Stop:
        """Returns the next step once all calls of a reply have their results.

        is_last_step: True if the turn may have no step after the reply's.
        """
        offer, ending, nudge = self.offer(), self._find_ending(reply), ""
        if ending is not None:
            missing_tools = self._list_uncalled_tools()
            if not missing_tools:
                return Stop(ending)
            nudge = f"Before you end your turn, you have to call: {', '.join(missing_tools)}."
        elif not reply:
            nudge = f"You have to call a tool now. {_join_options(offer.names or ())}"
        return Stop(StopReason.MAX_STEPS) if is_last_step else replace(offer, nudge=nudge)

    def _list_counted_calls(self) -> list[CalledTool]:
        return [call for call in self.calls if call.status != "denied"]

    def _has_rule(self, kind: RuleKind, name: str) -> bool:
        return any(rule.kind is kind and rule.tool == name for rule in self.rules)

    def _find_limits(self) -> list[_Limit]:
        """Returns the limits of the next call."""
        counted_calls = self._list_counted_calls()
        if not counted_calls and (first_limit := _limit_first_call(self.rules, self.tool_names)) is not None:
            return [first_limit]
        rules = [rule for rule in self.rules if rule.kind in _LIMITS]
        limits = (_LIMITS[rule.kind](rule, counted_calls, self.tool_names) for rule in rules)
        return [limit for limit in limits if limit is not None]

    def _find_allowed(self, limits: Sequence[_Limit]) -> tuple[str, ...]:
        return tuple(name for name in self.tool_names if all(name in limit.names for limit in limits))

    def _must_call(self, limits: Sequence[_Limit], *, by_style: bool = False) -> bool:
        """Returns whether the model must call a tool.

        The model need not if a person has denied, since the last counted call, all tools that may be called.

        by_style: True if the model must call a tool even without a rule, since it speaks by a tool.
        """
        must_call = by_style or any(limit.must_call for limit in limits)
        denied_last = takewhile(lambda call: call.status == "denied", reversed(self.calls))
        return must_call and not {call.name for call in denied_last}.issuperset(self._find_allowed(limits))

    def _find_ending(self, reply: Sequence[JudgedCall]) -> StopReason | None:
        """Returns the reason for which a reply would end the turn if no required call were missing.

        Returns None if the turn goes on.
        """
        must_call = self._must_call(self._find_limits())
        if not reply:
            return None if must_call else StopReason.END_TURN
        if self.style == "message" and not must_call and not any(self._goes_on(call) for call in reply):
            return StopReason.END_TURN
        ends = any(call.has_run and self._has_rule(RuleKind.EXIT, call.name) for call in reply)
        return StopReason.TOOL_RULE if ends else None

    def _goes_on(self, call: JudgedCall) -> bool:
        return call.has_failed or call.goes_on or self._has_rule(RuleKind.CONTINUE, call.name)

    def _list_uncalled_tools(self) -> list[str]:
        """Returns the tools that must still be called before the turn ends, without the tools that a person denied."""
        called_names = {call.name for call in self.calls}
        required = [rule.tool for rule in self.rules if rule.kind is RuleKind.BEFORE_EXIT]
        return [
            name for name in dict.fromkeys(required) if name in self.tool_names and name not in called_names
        ]


def _join_options(names: Sequence[str]) -> str:
    return f"You may call: {', '.join(names)}." if names else "No tool may be called now: answer."
