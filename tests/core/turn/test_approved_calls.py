"""With an approval of each call, the same calls are run as without a rule of approval."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gateway.agents.core.rule_guide import RuleGuide
from gateway.agents.core.tool_rules import CalledTool
from gateway.core.tool_rule import RuleKind, ToolRule, read_rules
from gateway.core.turn.calls import GatewayCalls, ResumedCalls
from gateway.core.turn.guide import Stop
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from tests.rows import each_row

TOOLS = ["a", "b", "c", "d"]
KINDS = [kind for kind in RuleKind if kind is not RuleKind.APPROVAL]


def rule(random_: random.Random) -> dict[str, Any]:
    kind = random_.choice(KINDS)
    return {
        "type": kind,
        "tool_name": random_.choice(TOOLS),
        "children": random_.sample(TOOLS, random_.randint(1, 2)),
        "child_output_mapping": {str(random_.randint(0, 1)): random_.choice(TOOLS)},
        "default_child": random_.choice([None, *TOOLS]),
        "require_output_mapping": random_.random() < 0.3,
        "max_count_limit": random_.randint(1, 2),
    }


def call(id: str, name: str) -> ToolCall:
    made = ToolCall(0)
    made.fields["id"], made.name, made.argument_pieces = id, name, ["{}"]
    return made


def perform(calls: GatewayCalls, ran: set[str]) -> GatewayCalls:
    """Runs what may run now; where a call has to be approved, nothing."""
    while True:
        runs = calls.judge()
        if calls.waiting:
            calls.hold()
            return calls
        if not runs:
            return calls
        for each in runs:
            ran.add(each.call_id)
            calls.finish(ToolResult(each.call_id, str(sum(each.call_id.encode()) % 2)))


def run_of(
    rules: Sequence[ToolRule], replies: Sequence[Sequence[str]], approvals: frozenset[str]
) -> tuple[set[str], Stop | None]:
    """Returns the ids of the calls that were run, and how the turn ended."""
    ran, called = set[str](), list[CalledTool]()
    guide = RuleGuide(rules, TOOLS, approval_tools=approvals)
    for n, names in enumerate(replies):
        made = {f"{n}.{place}": name for place, name in enumerate(names)}
        approved: set[str] = set()
        calls = perform(GatewayCalls(TurnTerms(), guide, [call(*each) for each in made.items()]), ran)
        while calls.waiting:
            approved |= {id for id, kind in calls.waiting.items() if kind == "approval"}
            # Another run goes on, and knows what was called since the user's message.
            guide = RuleGuide(rules, TOOLS, approval_tools=approvals, calls=called)
            resumed = ResumedCalls((), calls.results, frozenset(approved))
            calls = perform(
                GatewayCalls(TurnTerms(), guide, [call(*each) for each in made.items()], resumed), ran
            )
        follows = guide.decide_next()
        called += [
            CalledTool(made[each.call_id], each.status, each.content)
            for each in calls.results
            if each.was_run
        ]
        if isinstance(follows, Stop):
            return ran, follows
    return ran, None


@each_row("hundred", range(20))
def test_the_same_calls_are_run_whether_a_person_is_asked_or_not(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        chosen = random.Random(seed)
        rules = read_rules([rule(chosen) for _ in range(chosen.randint(1, 4))])
        replies = [[chosen.choice(TOOLS) for _ in range(chosen.randint(1, 4))] for _ in range(3)]
        approvals = frozenset(chosen.sample(TOOLS, chosen.randint(1, 2)))
        free = run_of(rules, replies, frozenset())
        assert run_of(rules, replies, approvals) == free, (seed, rules, replies, approvals)
