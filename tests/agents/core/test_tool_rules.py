"""Tool rules: a table for each, an oracle for each pair of them, and adversarial models against random sets of them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from gateway.agents.api.tool_rule_bodies import ToolRuleBody
from gateway.agents.core.rule_guide import BAD_REPLIES, RuleGuide
from gateway.agents.core.rule_words import render_rules
from gateway.agents.core.tool_rules import CalledTool, JudgedCall, RuleState
from gateway.core.agent import SpeakingStyle
from gateway.core.tool_rule import RuleKind, read_rules
from gateway.core.turn.guide import Allowed, Forbidden, NeedsApproval, Offer, ProposedCall, Stop, Undecided
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult
from tests.rows import each_row

Raw = dict[str, Any]
ROOT = Path(__file__).parents[3]
TOOLS = ("a", "b", "c", "d")
REPLY: Final = "reply"
MESSAGE: Final = "message"


def rule(kind: str, tool: str = "a", **fields: Any) -> Raw:
    return {"type": kind, "tool_name": tool, **fields}


FIRST = rule("run_first")
CHILDREN = rule("constrain_child_tools", children=["b", "c"])
CONDITIONAL = rule("conditional", child_output_mapping={"true": "b", "3": "c", "blue": "d"})
PARENT = rule("parent_last_tool", children=["b"])
TWICE = rule("max_count_per_step", max_count_limit=2)
ON = rule("continue_loop")
EXIT = rule("exit_loop")
REQUIRED = rule("required_before_exit")
APPROVAL = rule("requires_approval")
STRICT = {**CONDITIONAL, "require_output_mapping": True}


def called(*names: str, result: str = "done") -> list[CalledTool]:
    return [CalledTool(name, result=result) for name in names]


# One rule at a time


@each_row(
    ("rules", "before", "names", "must"),
    [
        ([], called("a"), None, False),
        ([FIRST], [], "a", True),
        ([FIRST, rule("run_first", "b")], [], "ab", True),
        ([FIRST], called("b"), None, False),
        ([FIRST], [CalledTool("b", "error", "no")], None, False),
        ([FIRST], [CalledTool("b", "denied", "no")], "a", True),
        ([FIRST], [CalledTool("a", "denied", "no")], "a", False),
        ([FIRST, rule("run_first", "b")], [CalledTool("a", "denied", "no")], "ab", True),
        ([rule("run_first", "gone")], [], None, False),
        ([rule("run_first", "gone"), FIRST], [], "a", True),
        ([CHILDREN], [], None, False),
        ([CHILDREN], called("a"), "bc", True),
        ([CHILDREN], [CalledTool("a", "error", "no")], "bc", True),
        ([CHILDREN], called("a", "b"), None, False),
        ([CHILDREN], [*called("a"), CalledTool("b", "denied", "no")], "bc", True),
        ([CHILDREN], [*called("a"), *[CalledTool(name, "denied", "no") for name in "bc"]], "bc", False),
        ([CHILDREN], [CalledTool("b", "denied", "no"), *called("a")], "bc", True),
        ([rule("constrain_child_tools", children=["gone"])], called("a"), None, False),
        ([rule("constrain_child_tools", children=["gone", "b"])], called("a"), "b", True),
        ([CONDITIONAL], called("a", result="true"), "b", True),
        ([CONDITIONAL], called("a", result=" True\n"), "b", True),
        ([CONDITIONAL], called("a", result="3.0"), "c", True),
        ([CONDITIONAL], called("a", result="blue"), "d", True),
        ([CONDITIONAL], called("a", result="Blue"), None, False),
        ([CONDITIONAL], called("a", result="1"), None, False),
        ([rule("conditional", child_output_mapping={"1": "b"})], called("a", result="true"), None, False),
        ([{**CONDITIONAL, "default_child": "a"}], called("a", result="red"), "a", True),
        ([{**STRICT, "default_child": "a"}], called("a", result="red"), "a", True),
        ([STRICT], called("a", result="red"), "", False),
        ([STRICT], called("a", "b"), None, False),
        ([rule("conditional", child_output_mapping={"x": "gone"})], called("a", result="x"), None, False),
        ([PARENT], [], "acd", False),
        ([PARENT], called("a"), "b", True),
        ([PARENT], called("a", "c"), "acd", False),
        ([rule("parent_last_tool", children=["gone"])], called("a"), None, False),
        ([TWICE], called("a"), None, False),
        ([TWICE], called("a", "a"), "bcd", False),
        ([TWICE], [*called("a"), CalledTool("a", "error", "no")], "bcd", False),
        ([TWICE], [*called("a"), CalledTool("a", "denied", "no")], None, False),
        ([ON], called("a"), None, False),
        ([EXIT], called("a"), None, False),
        ([REQUIRED], [], None, False),
        ([APPROVAL], [], None, False),
        # What they allow together may be nothing.
        ([CHILDREN, PARENT], called("a"), "b", True),
        ([CHILDREN, STRICT], called("a", result="blue"), "", False),
        ([FIRST, rule("parent_last_tool", "b", children=["a"])], [], "a", True),
    ],
)
def test_rules_decide_which_tools_are_offered(
    rules: list[Raw], before: list[CalledTool], names: str | None, must: bool
) -> None:
    found = RuleState(read_rules(rules), before, TOOLS).offer()
    assert (found.names if found.names is None else "".join(found.names), found.must_call) == (names, must)


def test_nothing_may_be_called_where_the_intersection_is_empty() -> None:
    empty = RuleState(read_rules([CHILDREN, STRICT]), called("a", result="blue"), TOOLS).offer()
    assert empty.make_fields() == {"tool_choice": "none"}


@pytest.mark.parametrize("kind", [FIRST, CHILDREN, CONDITIONAL, PARENT])
def test_an_ordering_rule_asks_for_one_call_at_a_time(kind: Raw) -> None:
    assert RuleState(read_rules([kind]), called("d"), TOOLS).offer().make_fields() == {
        "parallel_tool_calls": False
    }


@pytest.mark.parametrize("kind", [TWICE, ON, EXIT, REQUIRED, APPROVAL])
def test_other_rules_change_nothing_of_the_offer(kind: Raw) -> None:
    assert RuleState(read_rules([kind]), [], TOOLS).offer().make_fields() == {}


def test_an_agent_that_speaks_by_a_tool_has_to_call_one() -> None:
    assert RuleState([], [], TOOLS, MESSAGE).offer().make_fields() == {"tool_choice": "required"}
    assert RuleState([], [], (), MESSAGE).offer().make_fields() == {}
    assert RuleState(read_rules([STRICT]), called("a", result="?"), TOOLS, MESSAGE).offer().make_fields() == {
        "tool_choice": "none"
    }


def test_a_count_of_three_allows_three() -> None:
    guide = RuleGuide(read_rules([rule("max_count_per_step", max_count_limit=3)]), TOOLS)
    verdicts = []
    for n in range(5):
        verdicts.append(type(guide.judge(ProposedCall(str(n), "a", {}))))
        guide.add_result(ToolResult(str(n), "done"))
        guide.decide_next()
    assert verdicts == [Allowed, Allowed, Allowed, Forbidden, Forbidden]


def test_a_reply_is_judged_in_the_order_of_its_calls() -> None:
    rules = read_rules([CHILDREN, rule("max_count_per_step", "b", max_count_limit=1)])
    guide = RuleGuide(rules, TOOLS)
    verdicts = [guide.judge(ProposedCall(str(n), name, {})) for n, name in enumerate("adbb")]
    assert [type(verdict) for verdict in verdicts] == [Allowed, Forbidden, Allowed, Forbidden]


def test_a_call_after_a_condition_waits_for_its_result() -> None:
    guide = RuleGuide(read_rules([CONDITIONAL]), TOOLS)
    assert isinstance(guide.judge(ProposedCall("1", "a", {})), Allowed)
    assert isinstance(guide.judge(ProposedCall("2", "c", {})), Undecided)
    guide.add_result(ToolResult("1", "3"))
    assert isinstance(guide.judge(ProposedCall("2", "c", {})), Allowed)


def test_the_result_of_a_forbidden_call_says_why_and_what_may_be_called() -> None:
    verdict = RuleState(read_rules([CHILDREN]), called("a"), TOOLS).judge("d")
    assert verdict == Forbidden(
        "Not run: right after a one of these has to be called: b, c. You may call: b, c."
    )
    verdict = RuleState(read_rules([STRICT]), called("a"), TOOLS).judge("d")
    assert isinstance(verdict, Forbidden)
    assert verdict.result_text.endswith("nothing follows. No tool may be called now: answer.")
    unknown = RuleState([], [], TOOLS).judge("z")
    assert unknown == Forbidden("Error: there is no tool 'z'.")


def test_a_forbidden_call_asks_nobody() -> None:
    rules = read_rules([rule("requires_approval", "d"), CHILDREN])
    assert isinstance(RuleState(rules, called("a"), TOOLS).judge("d"), Forbidden)
    assert isinstance(RuleState(rules, called("b"), TOOLS).judge("d"), NeedsApproval)
    assert isinstance(RuleState([], [], TOOLS).judge("d", approval_tools={"d"}), NeedsApproval)


def test_where_approval_cannot_be_asked_for_the_call_gets_an_error() -> None:
    guide = RuleGuide(read_rules([APPROVAL]), TOOLS, can_ask=False)
    assert isinstance(guide.judge(ProposedCall("1", "a", {})), Forbidden)
    assert not isinstance(guide.decide_next(), Stop)


@pytest.mark.parametrize("demand", [FIRST, REQUIRED])
def test_a_call_that_cannot_be_approved_is_not_demanded_again(demand: Raw) -> None:
    guide = RuleGuide(read_rules([demand, APPROVAL]), TOOLS, can_ask=False)
    assert isinstance(guide.judge(ProposedCall("1", "a", {})), Forbidden)
    follows = guide.decide_next()
    assert isinstance(follows, Offer)
    assert not follows.must_call
    assert guide.decide_next() == Stop(END)


def test_arguments_of_a_rule_outrank_the_models() -> None:
    first = rule("run_first", args={"x": 1})
    assert RuleState(read_rules([first]), [], TOOLS).judge("a") == Allowed({"x": 1})
    assert RuleState(read_rules([first]), called("b"), TOOLS).judge("a") == Allowed()
    nodes = [{"name": "b", "args": {"y": 2}}, {"name": "c", "args": None}]
    children = {**CHILDREN, "child_arg_nodes": nodes}
    assert RuleState(read_rules([children]), called("a"), TOOLS).judge("b") == Allowed({"y": 2})
    assert RuleState(read_rules([children]), called("a"), TOOLS).judge("c") == Allowed()
    assert RuleState(read_rules([children]), [], TOOLS).judge("b") == Allowed()


# What follows on a reply

END, RULE, STEPS = StopReason.END_TURN, StopReason.TOOL_RULE, StopReason.MAX_STEPS
FAILED = JudgedCall("a", has_failed=True)
BARRED = JudgedCall("a", has_run=False, has_failed=True)
BEAT = JudgedCall("a", goes_on=True)
OTHER = JudgedCall("b")


@each_row(
    ("rules", "style", "reply", "ends"),
    [
        ([], REPLY, [], END),
        ([], REPLY, [JudgedCall("a")], None),
        ([], REPLY, [BARRED], None),
        ([], MESSAGE, [], END),
        ([], MESSAGE, [JudgedCall("a")], END),
        ([], MESSAGE, [BEAT], None),
        ([], MESSAGE, [JudgedCall("a"), BEAT], None),
        ([], MESSAGE, [FAILED], None),
        ([], MESSAGE, [BARRED], None),
        ([ON], MESSAGE, [JudgedCall("a")], None),
        ([ON], MESSAGE, [OTHER], END),
        ([CHILDREN], MESSAGE, [JudgedCall("a")], None),
        ([CONDITIONAL], MESSAGE, [JudgedCall("a")], END),
        ([STRICT], MESSAGE, [JudgedCall("a")], END),
        ([TWICE], MESSAGE, [JudgedCall("a")], END),
        ([EXIT], REPLY, [JudgedCall("a")], RULE),
        ([EXIT], REPLY, [JudgedCall("b")], None),
        ([EXIT], REPLY, [BARRED], None),
        ([EXIT], REPLY, [JudgedCall("b"), JudgedCall("a"), JudgedCall("c")], RULE),
        ([EXIT, ON], REPLY, [JudgedCall("a")], RULE),
        ([EXIT, CHILDREN], REPLY, [JudgedCall("a")], RULE),
        ([EXIT], MESSAGE, [BEAT], RULE),
        ([EXIT], MESSAGE, [JudgedCall("a")], END),
        ([EXIT, rule("continue_loop", "b")], MESSAGE, [OTHER, JudgedCall("a")], RULE),
        ([rule("required_before_exit", "c")], REPLY, [], None),
        ([rule("required_before_exit", "c"), EXIT], REPLY, [JudgedCall("a")], None),
        ([REQUIRED, EXIT], REPLY, [JudgedCall("a")], RULE),
        ([rule("required_before_exit", "gone")], REPLY, [], END),
        ([FIRST], REPLY, [], None),
    ],
)
def test_rules_decide_whether_a_turn_goes_on(
    rules: list[Raw], style: SpeakingStyle, reply: list[JudgedCall], ends: StopReason | None
) -> None:
    before = [
        CalledTool(call.name, "error" if call.has_failed else "success", "x")
        for call in reply
        if call.has_run
    ]
    follows = RuleState(read_rules(rules), before, TOOLS, style).decide_next(reply)
    assert (follows.reason if isinstance(follows, Stop) else None) is ends
    # The limit of steps yields to no rule.
    last = RuleState(read_rules(rules), before, TOOLS, style).decide_next(reply, is_last_step=True)
    assert last == Stop(ends or STEPS)


def test_a_reply_without_a_call_that_is_due_is_nudged() -> None:
    missing = RuleState(read_rules([rule("required_before_exit", "c")]), [], TOOLS).decide_next([])
    assert isinstance(missing, Offer)
    assert missing.nudge == "Before you end your turn, you have to call: c."
    first = RuleState(read_rules([FIRST]), [], TOOLS).decide_next([])
    assert isinstance(first, Offer)
    assert first.nudge == "You have to call a tool now. You may call: a."
    assert first.must_call


def test_a_tool_that_a_person_denied_is_not_required_any_more() -> None:
    guide = RuleGuide(read_rules([REQUIRED]), TOOLS)
    guide.add_answer("a", ToolResult("1", "Denied.", "error"), is_denied=True)
    assert isinstance(guide.decide_next(), Offer)  # the model hears of it
    assert guide.decide_next() == Stop(END)


@pytest.mark.parametrize("style", get_args(SpeakingStyle))
def test_an_agent_may_speak_where_a_person_denied_what_it_has_to_call(style: SpeakingStyle) -> None:
    """It is to call it again and again, up to its most steps."""
    guide = RuleGuide(read_rules([FIRST, APPROVAL]), TOOLS, style=style)
    guide.add_answer("a", ToolResult("1", "Denied.", "error"), is_denied=True)
    follows = guide.decide_next()
    assert isinstance(follows, Offer)
    assert (follows.names, follows.must_call) == (("a",), False)
    assert guide.decide_next() == Stop(END)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([("a", None)], StopReason.BAD_TOOL_CALL),  # arguments that cannot be read
        ([("z", {})], STEPS),  # a tool that the agent lacks
        ([("b", {})], STEPS),  # forbidden by a rule: the model repeated it up to the limit of steps
        ([("b", {}), ("a", None)], StopReason.BAD_TOOL_CALL),
    ],
)
def test_three_replies_in_a_row_of_which_nothing_can_be_run_end_the_turn(
    bad: list[tuple[str, Raw | None]], reason: StopReason
) -> None:
    guide = RuleGuide(read_rules([rule("parent_last_tool", children=["b"])]), TOOLS)

    def reply(calls: list[tuple[str, Raw | None]]) -> Offer | Stop:
        for n, (name, arguments) in enumerate(calls):
            guide.judge(ProposedCall(str(n), name, arguments))
        return guide.decide_next()

    good = [("c", {}), *bad]
    found = [reply(each) for each in (bad, bad, good, *[bad] * BAD_REPLIES)]
    assert [isinstance(each, Stop) for each in found] == [False] * (len(found) - 1) + [True]
    assert found[-1] == Stop(reason)


@pytest.mark.parametrize("must", [FIRST, rule("required_before_exit")])
def test_three_replies_in_a_row_without_a_call_that_is_due_end_the_turn(must: Raw) -> None:
    """An upstream that ignores `tool_choice` was asked up to the limit of steps."""
    guide = RuleGuide(read_rules([must]), TOOLS)
    found = [guide.decide_next() for _ in range(BAD_REPLIES)]
    assert [isinstance(each, Offer) for each in found] == [True, True, False]
    assert found[-1] == Stop(StopReason.NO_TOOL_CALL)


def test_replies_without_calls_and_with_none_that_can_be_run_count_together() -> None:
    guide = RuleGuide(read_rules([rule("required_before_exit")]), TOOLS)
    for name in ("", "z", "b", "", "z"):  # "b" runs
        if name:
            guide.judge(ProposedCall("1", name, {}))
        assert isinstance(guide.decide_next(), Offer)
    assert guide.decide_next() == Stop(StopReason.NO_TOOL_CALL)


def test_an_unreadable_call_does_not_count() -> None:
    guide = RuleGuide(read_rules([FIRST]), TOOLS)
    guide.judge(ProposedCall("1", "a", None))
    follows = guide.decide_next()
    assert isinstance(follows, Offer)
    assert follows.names == ("a",)


@pytest.mark.parametrize(
    ("value", "goes_on"), [(True, True), ("True", True), ("no", False), (1, False), (None, False)]
)
def test_a_heartbeat_is_a_bool_or_the_word(value: object, goes_on: bool) -> None:
    guide = RuleGuide([], TOOLS, style=MESSAGE)
    guide.judge(ProposedCall("1", "a", {}, {"request_heartbeat": value}))
    guide.add_result(ToolResult("1", "done"))
    assert isinstance(guide.decide_next(), Offer) is goes_on


def test_a_turn_that_is_resumed_goes_on_counting() -> None:
    rules = read_rules([rule("max_count_per_step", max_count_limit=1)])
    guide = RuleGuide(rules, TOOLS, calls=called("a"))
    assert isinstance(guide.judge(ProposedCall("1", "a", {})), Forbidden)
    resumed = RuleGuide(rules, TOOLS, max_steps=1)
    resumed.add_answer("a", ToolResult("1", "x"), is_denied=False)
    follows = resumed.decide_next()  # the step was counted by the turn that began it
    assert isinstance(follows, Offer)
    assert follows.names == ("b", "c", "d")
    assert resumed.decide_next() == Stop(END)


def test_rules_are_described_to_the_model() -> None:
    rules = [
        FIRST,
        CHILDREN,
        {**CONDITIONAL, "default_child": "a"},
        PARENT,
        TWICE,
        ON,
        EXIT,
        REQUIRED,
        APPROVAL,
    ]
    assert render_rules(read_rules([*rules, FIRST, rule("exit_loop", "gone")]), TOOLS).splitlines() == [
        "- Call a before any other tool.",
        "- Right after a call one of: b, c.",
        "- Right after a call b if it returns true, c if it returns 3, d if it returns blue, a otherwise.",
        "- Right after a, and only then, call one of: b.",
        "- Call a at most 2 times for one message of the user.",
        "- a ends your turn.",
        "- Call a before you end your turn.",
        "- A person has to approve each call of a.",
    ]
    assert render_rules(read_rules([rule("max_count_per_step", max_count_limit=1)]), TOOLS) == (
        "- Call a at most once for one message of the user."
    )
    assert render_rules(read_rules([ON]), TOOLS) == ""


def test_each_kind_can_be_sent_and_is_described() -> None:
    bodies = {body.__struct_config__.tag for body in get_args(ToolRuleBody)}
    assert bodies == set(RuleKind), "ToolRuleBody of agents/api/tool_rule_bodies.py has a body for each kind"
    described = set(re.findall(r"^\| ([a-z_, ]+) \|", (ROOT / "docs/agents.md").read_text("utf-8"), re.M))
    assert set(", ".join(described).split(", ")) >= set(RuleKind), "docs/agents.md has a row for each kind"


def test_each_kind_is_compared_with_the_oracle_and_played() -> None:
    assert {each["type"] for each in KINDS} == set(RuleKind), "KINDS, and a case in may_call, have each kind"
    random_sets = (random_rules(random.Random(seed)) for seed in range(100))
    assert {each["type"] for rules in random_sets for each in rules} == set(RuleKind), "so has random_rules"


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="until_dawn"):
        read_rules([rule("until_dawn")])


# An oracle: the table of the rules said once more, name by name and not as sets


def may_call(
    rules: Sequence[Raw], history: Sequence[tuple[str, str]], tools: Sequence[str], name: str
) -> bool:
    if name not in tools:
        return False
    first = [r["tool_name"] for r in rules if r["type"] == "run_first" and r["tool_name"] in tools]
    if not history and first:
        return name in first
    last, result = history[-1] if history else ("", "")
    for r in rules:
        is_last = r["tool_name"] == last
        children = [child for child in r.get("children", ()) if child in tools]
        match r["type"]:
            case "constrain_child_tools" if is_last and children and name not in children:
                return False
            case "parent_last_tool" if is_last and children and name not in children:
                return False
            case "parent_last_tool" if not is_last and name in children:
                return False
            case "max_count_per_step":
                if name == r["tool_name"] and [n for n, _ in history].count(name) >= r["max_count_limit"]:
                    return False
            case "conditional" if is_last:
                child = r["child_output_mapping"].get(result, r.get("default_child"))
                if child is None and r.get("require_output_mapping"):
                    return False
                if child in tools and name != child:
                    return False
    return True


KINDS = [
    FIRST,
    CHILDREN,
    {**CONDITIONAL, "default_child": "c"},
    STRICT,
    PARENT,
    TWICE,
    ON,
    EXIT,
    REQUIRED,
    APPROVAL,
]
RESULTS = ("true", "blue", "?")


def variants(raw: Raw) -> list[Raw]:
    """The rule on tool a, and the same about tool b with children c and d."""
    swapped = {**raw, "tool_name": "b"}
    if "children" in raw:
        swapped["children"] = ["c", "gone"]
    if "child_output_mapping" in raw:
        swapped["child_output_mapping"] = {"true": "d", "blue": "gone"}
    return [raw, swapped]


@each_row("pair", [*itertools.combinations_with_replacement(range(len(KINDS)), 2)])
def test_every_pair_of_rules_allows_what_the_oracle_allows(pair: tuple[int, int]) -> None:
    seen: set[bool] = set()
    for one, other in itertools.product(variants(KINDS[pair[0]]), variants(KINDS[pair[1]])):
        rules = read_rules([one, other])
        asks = {each["tool_name"] for each in (one, other) if each["type"] == "requires_approval"}
        for length in range(4):
            for names in itertools.product("abc", repeat=length):
                for result in RESULTS:
                    history = [(name, result) for name in names]
                    before = [CalledTool(name, result=result) for name in names]
                    wanted = [n for n in (*TOOLS, "z") if may_call([one, other], history, TOOLS, n)]
                    found = RuleState(rules, before, TOOLS).offer()
                    assert list(TOOLS if found.names is None else found.names) == wanted
                    assert found.must_call <= bool(wanted)
                    for name in (*TOOLS, "z"):
                        verdict = RuleState(rules, before, TOOLS).judge(name)
                        assert isinstance(verdict, Forbidden) is (name not in wanted)
                        assert isinstance(verdict, NeedsApproval) is (name in asks and name in wanted)
                        seen.add(name in wanted)
    assert seen == {True, False}


# Adversarial models


def random_rules(dice: random.Random) -> list[Raw]:
    rules: list[Raw] = []
    for _ in range(dice.randrange(7)):
        tool = dice.choice("abcde")
        some = dice.sample("abcde", dice.randrange(4))
        mapping = {result: dice.choice("abcde") for result in dice.sample(RESULTS, dice.randrange(3))}
        rules.append(
            dice.choice(
                [
                    rule("run_first", tool),
                    rule("constrain_child_tools", tool, children=some),
                    rule(
                        "conditional",
                        tool,
                        child_output_mapping=mapping,
                        require_output_mapping=dice.random() < 0.5,
                    ),
                    rule(
                        "conditional", tool, child_output_mapping=mapping, default_child=dice.choice("abcde")
                    ),
                    rule("parent_last_tool", tool, children=some),
                    rule("max_count_per_step", tool, max_count_limit=dice.randrange(3)),
                    rule("continue_loop", tool),
                    rule("exit_loop", tool),
                    rule("required_before_exit", tool),
                    rule("requires_approval", tool),
                ]
            )
        )
    return rules


def play(seed: int) -> StopReason:
    """Plays one turn against a model that calls what it likes. Returns why it ended, after all is compared."""
    dice = random.Random(seed)
    rules, tools = random_rules(dice), tuple("abcde"[: dice.randrange(1, 6)])
    max_steps, style = dice.randrange(1, 12), dice.choice([REPLY, MESSAGE])
    guide = RuleGuide(read_rules(rules), tools, style=style, max_steps=max_steps)
    history: list[tuple[str, str]] = []
    asks = {each["tool_name"] for each in rules if each["type"] == "requires_approval"}
    ids = itertools.count()
    obeys = dice.random() < 0.5
    follows: Offer | Stop = guide.offer()
    for step in range(max_steps + 1):
        if isinstance(follows, Stop):
            break
        assert step < max_steps, "a run has more steps than it may have"
        allowed = [name for name in tools if may_call(rules, history, tools, name)]
        assert list(tools if follows.names is None else follows.names) == allowed
        choice = allowed if obeys and allowed else [*tools, "z"]
        wanted = [(str(next(ids)), dice.choice(choice)) for _ in range(dice.choice([0, 1, 1, 1, 2, 3]))]
        running: list[tuple[str, str]] = []

        def finish(running: list[tuple[str, str]]) -> None:
            results = [(id, name, dice.choice(RESULTS)) for id, name in running]
            history.extend((name, result) for _, name, result in results)
            dice.shuffle(results)
            for id, _, result in results:
                guide.add_result(ToolResult(id, result, dice.choice(["success", "error"])))
            running.clear()

        while wanted:
            id, name = wanted[0]
            arguments = None if dice.random() < 0.05 else {}
            verdict = guide.judge(
                ProposedCall(id, name, arguments, {"request_heartbeat": dice.random() < 0.5})
            )
            if isinstance(verdict, Undecided):
                assert running, "nothing runs whose result could decide it"
                finish(running)
                continue
            wanted.pop(0)
            conditions = {each["tool_name"] for each in rules if each["type"] == "conditional"}
            if not running or running[-1][1] not in conditions:
                seen = [*history, *((n, "") for _, n in running)]
                assert isinstance(verdict, Forbidden) is (not may_call(rules, seen, tools, name))
            if isinstance(verdict, NeedsApproval):
                assert name in asks
                return StopReason.REQUIRES_APPROVAL
            if isinstance(verdict, Allowed) and arguments is not None:
                assert name not in asks, "a call ran that a person had to approve"
                running.append((id, name))
        finish(running)
        follows = guide.decide_next()
    assert isinstance(follows, Stop)
    required = {each["tool_name"] for each in rules if each["type"] == "required_before_exit"} & {*tools}
    if follows.reason in (StopReason.END_TURN, StopReason.TOOL_RULE):
        assert required <= {name for name, _ in history}
    for each in rules:
        if each["type"] == "max_count_per_step":
            first = bool(history) and history[0][0] == each["tool_name"]
            # What runs first outranks a count.
            assert [name for name, _ in history].count(each["tool_name"]) <= max(
                each["max_count_limit"], first
            )
    return follows.reason


def test_every_run_ends_and_nothing_forbidden_runs() -> None:
    reasons = {play(seed) for seed in range(10_000)}
    faults = {StopReason.BAD_TOOL_CALL, StopReason.NO_TOOL_CALL}
    assert reasons == {END, RULE, STEPS, StopReason.REQUIRES_APPROVAL, *faults}
