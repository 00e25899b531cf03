"""Tool rules: which tools an agent's model may call next, which of its calls run, and when its turn ends. Pure.

`RuleState` decides from the rules and the calls so far; `RuleGuide` remembers the calls of one turn. A call counts once
it has run, whether or not it failed. A call that was forbidden, denied or unreadable does not count.

A rule allows a set of tools. Tools that the agent lacks are left out of the set, and a rule with an empty set is
ignored. If no tool is allowed by all rules together, no tool may be called. If a person has just denied all tools that
may be called, none of them has to be called. If one rule ends the turn after a tool and another goes on, the turn ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Final

from msgspec import Struct, field

from gateway.core.agent import SpeakingStyle
from gateway.core.prompt.hidden_rounds import NO_TOOL
from gateway.core.tags import quoted
from gateway.core.tool_rule import RuleKind, ToolRule
from gateway.core.turn.asides import HEARTBEAT
from gateway.core.turn.guide import (
    Allowed,
    Forbidden,
    NeedsApproval,
    Offer,
    ProposedCall,
    Stop,
    StopReason,
    ToolResult,
    Undecided,
    Verdict,
)

# The most steps of a run that names no number, as on Letta's server.
DEFAULT_MAX_STEPS = 50
# A turn ends after so many bad replies in a row: without a call that is due, or with calls of which none can run.
# Otherwise an upstream that ignores `tool_choice`, or a model that repeats a call whatever its result, would go on up
# to the limit of steps. Chosen, not measured.
BAD_REPLIES = 3

_ORDERING_KINDS: Final = frozenset(
    {RuleKind.RUN_FIRST, RuleKind.CHILDREN, RuleKind.CONDITIONAL, RuleKind.PARENT_LAST}
)


class CalledTool(Struct, frozen=True):
    """A call since the user's newest message."""

    name: str
    # success, error, or denied by a person.
    status: str = "success"
    # None while it runs.
    result: str | None = ""


class JudgedCall(Struct, frozen=True):
    """A call of the reply that is judged."""

    name: str
    has_run: bool = True
    # The arguments are JSON.
    is_readable: bool = True
    # The result is an error, or the call was not run.
    has_failed: bool = False
    # The model requested another step, or the client gave the result and waits for the answer.
    goes_on: bool = False


# -- the limit that one rule sets after some calls


class _Limit(Struct, frozen=True):
    """The tools to which a rule limits the next call."""

    names: frozenset[str]
    # The reason why other tools may not be called, as the model reads it.
    reason: str
    # The model must call one of them.
    must_call: bool = False
    # Arguments that the rule sets, by tool.
    arguments: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def _is_last_call(rule: ToolRule, called: Sequence[CalledTool]) -> bool:
    return bool(called) and called[-1].name == rule.tool


def _children_limit(rule: ToolRule, called: Sequence[CalledTool], attached: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule by which its children must follow its tool; None: it sets none."""
    names = frozenset(rule.children) & frozenset(attached)
    if not _is_last_call(rule, called) or not names:
        return None
    reason = f"right after {rule.tool} one of these has to be called: {', '.join(sorted(names))}."
    return _Limit(names, reason, must_call=True, arguments=rule.arguments)


def _parent_limit(rule: ToolRule, called: Sequence[CalledTool], attached: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule whose children may only be called right after its tool; None: it sets none."""
    if _is_last_call(rule, called):
        return _children_limit(rule, called, attached)
    names = frozenset(attached) - frozenset(rule.children)
    closed = sorted(frozenset(rule.children) & frozenset(attached))
    return (
        _Limit(names, f"only right after {rule.tool} may be called: {', '.join(closed)}.") if closed else None
    )


def _outcome_limit(rule: ToolRule, called: Sequence[CalledTool], attached: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule by which the result of a tool decides the next tool; None: it sets none."""
    if not _is_last_call(rule, called):
        return None
    result = _comparable(called[-1].result or "")
    child = next((child for value, child in rule.outcomes if _comparable(value) == result), rule.default)
    if child is None:
        return (
            _Limit(frozenset(), f"after this result of {rule.tool} nothing follows.")
            if rule.is_strict
            else None
        )
    if child not in attached:
        return None
    return _Limit(frozenset({child}), f"after this result of {rule.tool} comes {child}.", must_call=True)


def _count_limit(rule: ToolRule, called: Sequence[CalledTool], attached: Sequence[str]) -> _Limit | None:
    """Returns the limit of a rule on how often its tool may be called; None: it sets none."""
    if sum(call.name == rule.tool for call in called) < rule.max_calls:
        return None
    names = frozenset(attached) - {rule.tool}
    return _Limit(names, f"{rule.tool} may run {_times_text(rule)} for one message of the user, and no more.")


def _times_text(rule: ToolRule) -> str:
    return "once" if rule.max_calls == 1 else f"{rule.max_calls} times"


_LIMITS: Final[Mapping[RuleKind, Callable[..., _Limit | None]]] = {
    RuleKind.CHILDREN: _children_limit,
    RuleKind.PARENT_LAST: _parent_limit,
    RuleKind.CONDITIONAL: _outcome_limit,
    RuleKind.AT_MOST: _count_limit,
}


def _comparable(text: str) -> bool | tuple[float] | str:
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
    """The basis of decisions: the rules, the calls so far, and the names of the agent's tools.

    called: in order, including calls of the reply that is judged, as far as they ran.
    """

    rules: Sequence[ToolRule]
    called: Sequence[CalledTool]
    attached: Sequence[str]
    style: SpeakingStyle = "reply"

    def offer(self) -> Offer:
        """Returns what the model may call next."""
        limits = self._limits()
        names = self._names_within(limits)
        must = self.style == "message" or any(limit.must_call for limit in limits)
        return Offer(
            names=names if limits else None,
            must_call=must and self._can_be_asked(names),
            one_at_a_time=any(rule.kind in _ORDERING_KINDS for rule in self.rules),
        )

    def judge(self, name: str, *, approvals: Collection[str] = (), is_approved: bool = False) -> Verdict:
        """Judges one call. approvals: the tools that need approval without a rule."""
        if name not in self.attached:
            # The error names no tools, since the request may have tools of its own, which these rules do not know.
            return Forbidden(f"{NO_TOOL} {quoted(name)}.")
        last_calls = self._counted_calls()[-1:]
        if any(
            call.result is None and self._has_rule(RuleKind.CONDITIONAL, call.name) for call in last_calls
        ):
            return Undecided()
        limits = self._limits()
        broken = [limit.reason for limit in limits if name not in limit.names]
        if broken:
            return Forbidden(f"Not run: {' '.join(broken)} {_options(self._names_within(limits))}")
        if not is_approved and (name in approvals or self._has_rule(RuleKind.APPROVAL, name)):
            return NeedsApproval()
        arguments: dict[str, object] = {}
        for limit in limits:
            arguments |= limit.arguments.get(name, {})
        return Allowed(arguments)

    def decide_next(self, reply: Sequence[JudgedCall], *, is_last: bool = False) -> Offer | Stop:
        """Returns the next step once all calls of a reply have their results.

        is_last: the reply's step was the last that the turn may have.
        """
        next_step, ending = self.offer(), self._ending(reply)
        if ending is not None:
            missing = self._uncalled_tools()
            if not missing:
                return Stop(ending)
            next_step = _nudged(
                next_step, f"Before you end your turn, you have to call: {', '.join(missing)}."
            )
        elif not reply:
            next_step = _nudged(next_step, f"You have to call a tool now. {_options(next_step.names or ())}")
        return Stop(StopReason.MAX_STEPS) if is_last else next_step

    def _counted_calls(self) -> list[CalledTool]:
        return [call for call in self.called if call.status != "denied"]

    def _has_rule(self, kind: RuleKind, name: str) -> bool:
        return any(rule.kind is kind and rule.tool == name for rule in self.rules)

    def _limits(self) -> list[_Limit]:
        """Returns the limits that hold now."""
        counted, attached = self._counted_calls(), self.attached
        if not counted:
            first_rules = [
                rule for rule in self.rules if rule.kind is RuleKind.RUN_FIRST and rule.tool in attached
            ]
            if first_rules:
                names = frozenset(rule.tool for rule in first_rules)
                reason = f"one of these has to be called first: {', '.join(sorted(names))}."
                arguments = {rule.tool: rule.arguments.get(rule.tool, {}) for rule in first_rules}
                return [_Limit(names, reason, must_call=True, arguments=arguments)]
        limits = (_LIMITS[rule.kind](rule, counted, attached) for rule in self.rules if rule.kind in _LIMITS)
        return [limit for limit in limits if limit is not None]

    def _names_within(self, limits: Sequence[_Limit]) -> tuple[str, ...]:
        return tuple(name for name in self.attached if all(name in limit.names for limit in limits))

    def _can_be_asked(self, names: Sequence[str]) -> bool:
        """Returns whether one of these tools may be asked for: it was not denied since the last counted call."""
        denied = {
            call.name for call in takewhile(lambda call: call.status == "denied", reversed(self.called))
        }
        return not denied.issuperset(names)

    def _ending(self, reply: Sequence[JudgedCall]) -> StopReason | None:
        """Returns why this reply would end the turn, whatever is still uncalled; None: the turn goes on."""
        limits = self._limits()
        has_duty = any(limit.must_call for limit in limits) and self._can_be_asked(self._names_within(limits))
        if not reply:
            return None if has_duty else StopReason.END_TURN
        would_go_on = (
            self.style == "reply"
            or has_duty
            or any(
                call.has_failed or call.goes_on or self._has_rule(RuleKind.GO_ON, call.name) for call in reply
            )
        )
        if not would_go_on:
            return StopReason.END_TURN
        ends = any(call.has_run and self._has_rule(RuleKind.EXIT, call.name) for call in reply)
        return StopReason.TOOL_RULE if ends else None

    def _uncalled_tools(self) -> list[str]:
        """Returns the tools that must still be called before the turn ends, without those that a person denied."""
        done = {call.name for call in self.called}
        required = [rule.tool for rule in self.rules if rule.kind is RuleKind.BEFORE_EXIT]
        return [name for name in dict.fromkeys(required) if name in self.attached and name not in done]


def _options(names: Sequence[str]) -> str:
    return f"You may call: {', '.join(names)}." if names else "No tool may be called now: answer."


def _nudged(offer: Offer, nudge: str) -> Offer:
    return Offer(offer.names, offer.must_call, offer.one_at_a_time, nudge=nudge)


# -- the guide of one turn


class RuleGuide:
    """The guide of an agent's turn. Implements `Guide`, which documents the methods.

    called: the calls since the user's newest message in earlier turns.
    approvals: tools that a person has to approve, without a rule.
    can_ask: a person can be asked for approval. If not, calls that need it get an error.
    has_later_message: a user message follows the results of the first reply; the rules start over there.
    """

    def __init__(
        self,
        rules: Sequence[ToolRule],
        attached: Sequence[str],
        *,
        style: SpeakingStyle = "reply",
        max_steps: int = DEFAULT_MAX_STEPS,
        called: Iterable[CalledTool] = (),
        approvals: Collection[str] = (),
        can_ask: bool = True,
        has_later_message: bool = False,
    ) -> None:
        self._max_steps = max_steps
        self._approvals = approvals
        self._can_ask = can_ask
        self._has_later_message = has_later_message
        self._called = [*called]
        self._state = RuleState(tuple(rules), self._called, tuple(attached), style)
        self._indices: dict[str, int] = {}  # call id -> its index among the called
        self._reply: dict[str, JudgedCall] = {}  # the calls of the reply, by id
        self._bad_replies = 0
        self._steps = 0
        self._is_resumed = False  # an earlier turn has made the reply, and has counted its step

    def offer(self) -> Offer:
        return self._state.offer()

    def judge(self, call: ProposedCall) -> Verdict:
        verdict = self._state.judge(call.name, approvals=self._approvals, is_approved=call.is_approved)
        if isinstance(verdict, Undecided):
            return verdict
        if isinstance(verdict, NeedsApproval) and not self._can_ask:
            reason = (
                f"Not run: {call.name} needs a person's approval, and there is no client that could give it."
            )
            # As if a person had denied it: no rule asks for it again.
            self._called.append(CalledTool(call.name, "denied", reason))
            verdict = Forbidden(reason, is_unapproved=True)
        is_run = isinstance(verdict, Allowed) and call.arguments is not None
        self._reply[call.id] = JudgedCall(
            call.name,
            has_run=is_run,
            is_readable=call.arguments is not None,
            has_failed=not is_run,
            goes_on=_is_true(call.asides.get(HEARTBEAT)),
        )
        if is_run:
            self._indices[call.id] = len(self._called)
            self._called.append(CalledTool(call.name, result=None))
        return verdict

    def take_answer(self, name: str, result: ToolResult, *, is_denied: bool) -> None:
        self._is_resumed = True
        if result.is_unapproved:
            self._called.append(CalledTool(name, "denied", result.content))
        if not result.was_run:
            self._reply[result.call_id] = JudgedCall(name, has_run=False, has_failed=True)
            return
        self._called.append(CalledTool(name, "denied" if is_denied else result.status, result.content))
        self._reply[result.call_id] = JudgedCall(name, has_run=not is_denied, goes_on=True)

    def take_result(self, result: ToolResult) -> None:
        index = self._indices.get(result.call_id)
        if index is None:
            return
        name, has_failed = self._called[index].name, result.status == "error"
        self._called[index] = CalledTool(name, result.status, result.content)
        judged = self._reply[result.call_id]
        self._reply[result.call_id] = JudgedCall(name, has_failed=has_failed, goes_on=judged.goes_on)

    def decide_next(self) -> Offer | Stop:
        self._steps += not self._is_resumed
        self._is_resumed = False
        reply, self._reply = [*self._reply.values()], {}
        next_step = self._advance(reply)
        fault = self._fault_in(reply, next_step)
        self._bad_replies = 0 if fault is None else self._bad_replies + 1
        return next_step if fault is None or self._bad_replies < BAD_REPLIES else Stop(fault)

    def _advance(self, reply: Sequence[JudgedCall]) -> Offer | Stop:
        if self._has_later_message:
            self._has_later_message = False
            self._called.clear()
            return self.offer()
        return self._state.decide_next(reply, is_last=self._steps >= self._max_steps)

    def _fault_in(self, reply: Sequence[JudgedCall], next_step: Offer | Stop) -> StopReason | None:
        """Returns the fault for which a reply can end the turn; None if it has none. next_step: the step after it."""
        if not reply:
            has_to_call = isinstance(next_step, Offer) and bool(next_step.nudge)
            return StopReason.NO_TOOL_CALL if has_to_call else None
        if any(call.has_run for call in reply):
            return None
        # Such replies would let the turn go on up to the limit of steps, so they end it with the same reason.
        is_readable = all(call.is_readable for call in reply)
        return StopReason.MAX_STEPS if is_readable else StopReason.BAD_TOOL_CALL


def _is_true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


# -- the rules in the prompt


def in_words(rules: Sequence[ToolRule], attached: Collection[str]) -> str:
    """Returns the rules that the model has to know as sentences, one a line; "" if there are none."""
    lines = [_sentence(rule) for rule in rules if rule.tool in attached]
    return "\n".join(dict.fromkeys(f"- {line}" for line in lines if line))


def _sentence(rule: ToolRule) -> str:
    """Returns a rule in words, for the prompt."""
    tool, children = rule.tool, ", ".join(rule.children)
    match rule.kind:
        case RuleKind.RUN_FIRST:
            return f"Call {tool} before any other tool."
        case RuleKind.CHILDREN:
            return f"Right after {tool} call one of: {children}."
        case RuleKind.CONDITIONAL:
            cases = [f"{child} if it returns {value}" for value, child in rule.outcomes]
            if rule.default is not None:
                cases.append(f"{rule.default} otherwise")
            return f"Right after {tool} call {', '.join(cases)}." if cases else ""
        case RuleKind.PARENT_LAST:
            return f"Right after {tool}, and only then, call one of: {children}."
        case RuleKind.AT_MOST:
            return f"Call {tool} at most {_times_text(rule)} for one message of the user."
        case RuleKind.EXIT:
            return f"{tool} ends your turn."
        case RuleKind.BEFORE_EXIT:
            return f"Call {tool} before you end your turn."
        case RuleKind.APPROVAL:
            return f"A person has to approve each call of {tool}."
        case RuleKind.GO_ON:
            return ""
