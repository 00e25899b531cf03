"""The window over small lists by hand, and its promises over random ones.

A list is written as a string: `u` user, `a` assistant, `c` assistant that calls a tool, `t` its result,
`s` system. `C` and `T` are a second pair of call and result, for answers that come late.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.agent import MessageBounds
from gateway.core.prompt.window import (
    Budget,
    Window,
    WindowItem,
    choose_window_start,
    fit_window,
    make_window_item,
    plan_budget,
)
from tests.rows import each_row

ROLES = {"u": "user", "a": "assistant", "c": "assistant", "t": "tool", "s": "system", "d": "developer"}


def build(text: str, bound: int = 10) -> list[WindowItem]:
    """A result answers the newest call of its kind before it."""
    elements = []
    for index, kind in enumerate(text):
        role = ROLES[kind.lower()]
        if kind in "cC":
            elements.append(WindowItem(role, bound, call_ids=(f"{kind}{index}",)))
        elif kind in "tT":
            wanted = "c" if kind == "t" else "C"
            caller = text.rfind(wanted, 0, index)
            elements.append(
                WindowItem(role, bound, answered_id=f"{wanted}{caller}" if caller >= 0 else "gone")
            )
        else:
            elements.append(WindowItem(role, bound))
    return elements


def fit(text: str, high: int, step: int = 10, tokens: Sequence[int] | None = None) -> Window:
    weights = [10] * len(text) if tokens is None else tokens
    return fit_window(build(text, max(weights, default=0)), Budget(high, step, high), lambda: weights)


def show(text: str, window: Window) -> str:
    kept = set(chain.from_iterable(window.ranges))
    return "".join(kind if index in kept else "." for index, kind in enumerate(text))


@each_row(
    ("text", "high", "kept"),
    [
        ("uauau", 50, "uauau"),  # it fits
        ("uauau", 40, "..uau"),  # 10 too many, and a list begins with a user message
        ("uauau", 30, "..uau"),
        ("uauau", 20, "....u"),
        ("uauau", 0, "....u"),  # the last user message stays, whatever it costs
        ("auau", 30, ".uau"),  # a greeting leaves alone
        ("auau", 40, "auau"),  # what fits is the client's own, whatever it begins with
        ("suau", 30, "s..u"),  # a system message at the head stays
        ("sduau", 30, "sd..u"),
        ("uasua", 40, "..sua"),  # a system message before a user message goes and stays with it
        ("usaua", 40, "...ua"),
        ("uctau", 40, "u..au"),  # the turn's user message is pinned, its first round leaves
        ("uctau", 20, "....u"),
        ("uctctct", 50, "u..ctct"),  # one long turn: rounds leave
        ("uctctct", 30, "u....ct"),
        ("uctctct", 10, "u....ct"),  # the round that is going on stays
        ("ucttct", 50, "u...ct"),  # parallel calls leave with all their results
        ("ucctt", 30, "u.ctt"),  # a call that nobody answered leaves alone
        ("uCctT", 30, "uCctT"),  # calls answered below each other: no place to cut
        ("uCuTua", 40, "....ua"),  # an answer one turn late: the user message between is no place to cut
        ("uCuT", 20, "uCuT"),
        ("uauta", 40, "..uta"),  # a result without a call stands in nobody's way
        ("aaaa", 10, "aaaa"),  # no user message to begin with
        ("uuu", 20, ".uu"),  # an assistant message that vanished
        ("uaas", 30, "u.as"),  # a system message at the end opens nothing
        ("uacs", 20, "u..s"),
        ("", 0, ""),
        ("s", 0, "s"),
        ("ss", 0, "ss"),
    ],
)
def test_the_oldest_messages_are_cut_at_a_place_where_a_list_may_begin(
    text: str, high: int, kept: str
) -> None:
    window = fit(text, high)
    assert show(text, window) == kept
    assert window.evicted_tokens == 10 * kept.count(".")
    assert window.is_whole == ("." not in kept)


def test_nothing_is_counted_while_the_bounds_fit() -> None:
    def refuse() -> list[int]:
        raise AssertionError("counted for nothing")

    window = fit_window(build("uaua", 10), Budget(40, 10, 40), refuse)
    assert window == Window((range(4),))


def test_the_same_ids_in_every_turn_mean_the_newest_call() -> None:
    turn = [
        WindowItem("user", 10),
        WindowItem("assistant", 10, call_ids=("call_0",)),
        WindowItem("tool", 10, answered_id="call_0"),
    ]
    assert fit_window(turn * 3, Budget(70, 10, 70), lambda: [10] * 9).ranges == (range(3, 9),)


def test_the_cut_stays_put_while_the_list_grows() -> None:
    """Sixty turns of 20 tokens, 400 in all, steps of 100: the first message changes every fifth turn."""
    firsts = [fit("ua" * turns + "u", 400, 100).ranges[0][0] for turns in range(1, 61)]
    assert firsts == sorted(firsts)
    assert len(set(firsts)) == 1 + -(-(60 * 20 + 10 - 400) // 100)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"capacity": 8_000, "max_tokens": 1_000}, Budget(7_000, 1_600, 7_000)),
        ({"capacity": 8_000, "max_tokens": 100_000}, Budget(6_000, 1_600, 6_000)),  # a quarter at most
        ({"capacity": 8_000}, Budget(6_000, 1_600, 6_000)),  # it did not say
        ({"capacity": 100_000}, Budget(95_904, 20_000, 95_904)),
        # Fixed tokens count 200 at a time, and a note may use what that leaves.
        ({"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 801}, Budget(7_000, 1_600, 7_199)),
        ({"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 999}, Budget(7_000, 1_600, 7_001)),
        (
            {"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 801, "note_tokens": 199},
            Budget(7_000, 1_600, 7_199),
        ),
        (
            {"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 801, "note_tokens": 299},
            Budget(6_900, 1_600, 7_199),
        ),
        ({"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 7_000}, Budget(1_000, 400, 1_000)),
        # The last turn is tried even where nothing is left.
        ({"capacity": 8_000, "max_tokens": 0, "fixed_tokens": 9_000}, Budget(0, 1, 0)),
        ({"capacity": 0}, Budget(0, 1, 0)),
    ],
)
def test_the_budget_leaves_room_for_the_reply_and_what_the_gateway_adds(
    arguments: dict[str, int | None], expected: Budget
) -> None:
    assert plan_budget(**arguments) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "x"}, WindowItem("user", 7)),
        (
            {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": 3}, 4]},
            WindowItem("assistant", 7, call_ids=("a",)),
        ),
        ({"role": "tool", "tool_call_id": "a"}, WindowItem("tool", 7, answered_id="a")),
        ({"role": 3, "tool_calls": "x", "tool_call_id": []}, WindowItem("", 7)),
    ],
)
def test_a_message_as_an_element(message: dict[str, object], expected: WindowItem) -> None:
    assert make_window_item(message, 7) == expected


TURN = st.one_of(
    st.just("u"),
    st.just("ua"),
    st.just("su"),
    st.just("us"),
    st.just("uCuT"),
    st.lists(st.sampled_from(["ct", "ctt", "a", "cctt", "s"]), min_size=1, max_size=6).map(
        lambda r: "u" + "".join(r)
    ),
)
LISTS = st.tuples(st.sampled_from(["", "s", "a", "sa", "t", "ct"]), st.lists(TURN, max_size=8)).map(
    lambda parts: parts[0] + "".join(parts[1])
)


@st.composite
def weighted(draw: st.DrawFn) -> tuple[str, list[int]]:
    text = draw(LISTS)
    return text, draw(st.lists(st.integers(0, 60), min_size=len(text), max_size=len(text)))


@settings(max_examples=400)
@given(weighted(), st.integers(0, 400), st.integers(1, 120))
def test_the_window_is_a_valid_list_within_the_budget(
    case: tuple[str, list[int]], high: int, step: int
) -> None:
    text, tokens = case
    elements = build(text, 60)
    window = fit(text, high, step, tokens)
    kept = [*chain.from_iterable(window.ranges)]
    assert kept == sorted(set(kept))
    sizes = [tokens[index] for index in kept]
    assert sum(sizes) + window.evicted_tokens == sum(tokens)
    if window.is_whole:
        return
    body = kept[len(text) - len(text.lstrip("s")) :]
    assert text[: len(text) - len(text.lstrip("s"))] == "".join(
        text[i] for i in kept[: len(kept) - len(body)]
    )
    assert text[body[0]] in "us"  # never begins with a tool's or an assistant's message
    assert text[body[0] :].lstrip("s").startswith("u")
    assert kept[-1] == len(text) - 1
    assert text.rfind("u") in kept
    gone = set(range(len(text))) - set(kept)
    for index in kept:  # no result without its call, no answered call without its result
        answers = elements[index].answered_id
        assert not any(answers in elements[left].call_ids for left in gone)
        assert not any(elements[left].answered_id in elements[index].call_ids for left in gone)
    if sum(sizes) > high:  # only where nothing more may leave
        assert fit(text, 0, 1, tokens) == window


@settings(max_examples=150)
@given(weighted(), st.integers(50, 400), st.integers(10, 120))
def test_a_growing_list_keeps_its_first_message_for_a_step(
    case: tuple[str, list[int]], high: int, step: int
) -> None:
    """Whenever the amount that must go is the same and enough may go, the cut is the same."""
    text, tokens = case
    seen: dict[int, list[int]] = {}
    for size in range(1, len(text) + 1):
        window = fit(text[:size], high, step, tokens[:size])
        excess = sum(tokens[:size]) - high
        wanted = -(-excess // step) * step
        if excess <= 0:
            assert window.is_whole
        elif (
            window.evicted_tokens >= wanted and "C" not in text and text[size - 1] != "s"
        ):  # a late answer moves a cut it would have split; a system message at the end may begin a turn or not
            starts = [each.start for each in window.ranges]
            assert seen.setdefault(wanted, starts) == starts


@pytest.mark.parametrize(
    ("roles", "begins"),
    [
        ("uaua", 0),
        ("uauauau", 4),
        ("uatatau", 0),
        ("uauatau", 2),
        ("uuuuuuu", 4),
    ],
)
def test_a_list_of_too_many_messages_begins_with_a_user_message(roles: str, begins: int) -> None:
    names = {"u": "user", "a": "assistant", "t": "tool"}
    assert choose_window_start([WindowItem(names[each], 1) for each in roles], MessageBounds(6, 3)) == begins
