"""The parts of the match, each with what it may cost for a long list."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.conversation import altered_search, exact_search
from gateway.core.conversation.canonical import MessageHasher, is_user
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.lookup import make_probes_for_list
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.omitted_front import find_trimmed_front
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.turn_replies import TurnReplies, make_reply_keys
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.memory import visibility
from gateway.core.subsequence import pair_lcs
from tests.core.conversation.keyed import path_texts
from tests.core.conversations import (
    World,
    assistant,
    call,
    result,
    user,
)

# -- the small parts


def naive_lcs(a: list[bytes], b: list[bytes]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return naive_lcs(a[:-1], b[:-1]) + 1
    return max(naive_lcs(a[:-1], b), naive_lcs(a, b[:-1]))


letters = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=7)


@given(letters, letters)
def test_lcs_is_as_long_as_can_be_and_in_order(a: list[bytes], b: list[bytes]) -> None:
    pairs = pair_lcs(a, b)
    assert len(pairs) == naive_lcs(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x[0] > y[0] and x[1] > y[1] for x, y in pairwise(pairs))


class Counted(bytes):
    """An atom that counts how often it is compared."""

    compared = 0
    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)


def test_lcs_costs_no_more_for_longer_lists() -> None:
    costs = []
    for size in (400, 4000):
        Counted.compared = 0
        pair_lcs([Counted(b"a%d" % i) for i in range(size)], [b"b%d" % i for i in range(size)])
        costs.append(Counted.compared)
    assert costs[0] == costs[1]


def test_lcs_pairs_equal_ends_however_long_they_are() -> None:
    atoms = [b"%d" % i for i in range(2000)]
    assert len(pair_lcs([b"x", *atoms], [b"y", *atoms])) == 2000


@pytest.mark.parametrize("others", [1, 3])
def test_lcs_pairs_what_is_the_same_in_front_of_a_few_differences(others: int) -> None:
    """A reply that was cut is the last of a list, and a pruned result may be anywhere in it."""
    a, b = ([b"%d" % i for i in range(2000)] for _ in range(2))
    for k in range(others):
        a[1999 - 600 * k] = b"x"
    assert pair_lcs(a, b, others) == [(i, i) for i in range(1999, -1, -1) if a[i] != b"x"]


@pytest.mark.parametrize(
    ("module", "part", "key"), [(exact_search, "pair_lcs", None), (altered_search, "join_letters", "here")]
)
def test_looking_for_a_common_reply_costs_no_more_for_longer_lists(
    world: World, module: ModuleType, part: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither comparing paths nor comparing words: a few thousand messages held the loop for half a minute."""
    calls: list[int] = []
    compare = getattr(module, part)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return compare(*arguments)

    monkeypatch.setattr(module, part, counted)
    for number in range(12):
        world.say([user(f"question {number}")], "Ok.", key)
    costs = []
    for turns in (100, 300):
        calls.clear()
        world.begin([m for k in range(turns) for m in (user(f"other {k}"), assistant("Ok."))], key)
        costs.append(len(calls))
    assert costs[0] == costs[1] > 0


def test_looking_for_a_cut_reply_reads_a_list_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each stored reply that may be the one: some thousands of both held the loop for a second."""
    world = World()
    for _ in range(30):
        world.cancel(world.begin([user("go on")], "here"), [assistant("Well, here it is.")])
    read: list[int] = []

    def counted(atoms: tuple[bytes, ...]) -> bool:
        read.append(1)
        return is_user(atoms)

    monkeypatch.setattr(altered_search, "is_user", counted)
    request = world.begin([m for _ in range(100) for m in (user("go on"), assistant("Well"))], "here")
    assert request.plan is not None
    assert request.plan.match.altered is not None
    assert len(read) < 1_000


def test_a_long_first_list_is_parsed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing it once for each message took seconds in every search until the messages were indexed."""
    head = [m for k in range(50) for m in (user(f"q{k}"), assistant(f"a{k}"))]
    world.say([*head, user("bye")], "Bye.")
    (e,) = world.memory().records.values()
    read: list[int] = []

    def loads(data: bytes) -> Any:
        read.append(len(data))
        return orjson.loads(data)

    monkeypatch.setattr(visibility, "orjson", SimpleNamespace(loads=loads))
    found = visibility.list_recallable_messages(replace(e, continued=True), False, None)
    assert [m.text for m in found[:2]] == ["q0", "a0"]
    assert (len(found), len(read)) == (102, 2)


def test_the_messages_of_a_path_are_placed_in_one_pass(world: World) -> None:
    """A first list of some thousand messages held the loop for a fifth of a second with each later one."""

    class Inputs(tuple[tuple[bytes, ...], ...]):
        def __getitem__(self, key: Any) -> Any:
            assert not isinstance(key, slice), "the messages before one are counted again"
            return super().__getitem__(key)

    world.say([user("one"), assistant(None, call("1"), call("2")), result("1", "a"), user("two")], "Both.")
    (e,) = world.memory().records.values()
    e = replace(e, depth=2, offset=10, inputs=Inputs(e.inputs))
    assert [element.position for element in Tree([e]).list_path_elements(e)] == [
        (2, 10),
        (2, 11),
        (2, 13),
        (2, 14),
        (2, 15),
    ]


def test_questions_are_looked_up_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [assistant(None, call("1")), result("1", "found")] * 300
    listing = HashedList(MessageHasher(b""), [user("q"), *calls, user("and?")])
    roles: list[int] = []
    read_role = HashedList.read_role

    def counted(self: HashedList, i: int) -> str:
        roles.append(i)
        return read_role(self, i)

    monkeypatch.setattr(HashedList, "read_role", counted)
    assert make_probes_for_list(Query(listing, False, MemoryUse.ON, 0.0, 120.0), None).questions
    assert len(roles) < 20 * len(listing)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 20))
def test_left_out_is_what_a_list_and_the_path_need_to_be_whole(words: list[int], cut: int) -> None:
    """Of a path cut anywhere, what is left out and what is listed are the path again; of a whole one nothing is."""
    world = World()
    world.chat(*((f"q{k} {w}", f"a{k}") for k, w in enumerate(words)))
    tree = Tree(world.memory().records.values())
    line = tree.list_path_elements(tree.by_id[len(words)])
    tail = line[cut % len(line) :]
    out = find_trimmed_front(line, [a for el in tail for a in el.atoms])
    assert out == [*line[: cut % len(line)]]


def test_a_path_is_taken_apart_once_until_its_tree_changes(world: World) -> None:
    world.chat(("one", "r1"), ("two", "r2"), ("three", "r3"))
    tree = Tree(world.memory().records.values())
    above, line = tree.list_path_elements(tree.by_id[2]), tree.list_path_elements(tree.by_id[3])
    assert tree.list_path_elements(tree.by_id[3]) is line
    assert line[: len(above)] == above
    assert [a for element in line for a in element.atoms] == tree.list_path_atoms(tree.by_id[3])
    tree.change(2, reply=(), superseded=True)
    assert [(x.exchange.id, x.message_index) for x in tree.list_path_elements(tree.by_id[3])] == [
        (x.exchange.id, x.message_index) for x in line
    ]
    assert tree.list_path_elements(tree.by_id[3])[3].exchange is tree.by_id[2]
    tree.change(2, reply=None)
    assert len(tree.list_path_elements(tree.by_id[3])) == len(line) - 1


def test_left_out_is_nothing_where_the_tail_is_not_the_paths(world: World) -> None:
    world.chat(("one", "r1"), ("two", "r2"), ("three", "r3"))
    tree = Tree(world.memory().records.values())
    line = tree.list_path_elements(tree.by_id[3])
    listed = HashedList(world.memory().hasher, [user("2"), assistant("r2"), user("three"), assistant("r3")])
    assert find_trimmed_front(line, listed.list_atoms(4)) == []
    assert find_trimmed_front(line, []) == []


def test_replies_are_looked_up_in_the_last_turns_only(world: World) -> None:
    messages = [m for k in range(6) for m in (user(f"q{k}"), assistant(f"a{k}", call("1")))]
    listing = HashedList(world.memory().hasher, messages)
    keys = make_reply_keys(listing, 2)
    found = [k for k in range(6) if listing.hasher.make_reply_key(listing.atoms[2 * k + 1]) in keys]
    assert found == [3, 4, 5]


# -- longer than any call stack is deep


@pytest.fixture
def shallow() -> Iterator[None]:
    """A stack that is full before these conversations are at their end."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("shallow")
def test_an_appending_conversation_may_be_as_long_as_it_likes() -> None:
    world = World()
    for number in range(100):
        last = world.say([user(f"question {number}")], f"Answer {number}.", "c1", append=True)
    assert len(last.sent) == 2 * 99 + 1


@pytest.mark.usefixtures("shallow")
def test_a_trimmed_conversation_may_be_as_long_as_it_likes() -> None:
    world = World()
    history: list[WireMessage] = []
    for number in range(100):
        history.append(user(f"question {number}"))
        last = world.say(history[-9:], f"Answer {number}, which is long enough to be known.")
        history.append(assistant(f"Answer {number}, which is long enough to be known."))
    assert [m for _, m in last.sent] == history[:-1]


@pytest.mark.usefixtures("shallow")
def test_a_turn_may_have_as_many_rounds_as_it_likes(world: World) -> None:
    history = [user("count the rainy days")]
    for number in range(100):
        asked = assistant(None, call(f"c{number}", arguments=f'{{"day":{number}}}'))
        world.say(history, asked)
        history += [asked, result(f"c{number}", "sunny")]
    world.say(history, "None at all.")
    world.say([*history, assistant("None at all."), user("thanks")], "You are welcome.")
    assert "count the rainy days" in world.confirmed()
    again = world.say(history, "Not a single one.")
    assert again.is_untouched


@pytest.mark.usefixtures("shallow")
def test_any_number_of_replies_in_a_row_may_be_cut(world: World) -> None:
    history: list[WireMessage] = []
    for number in range(100):
        history.append(user(f"question {number}"))
        world.cancel(world.begin(history, "c1"), [assistant(f"Answer {number} and much more")])
        history.append(assistant(f"Answer {number}"))
    last = world.say([*history, user("bye")], "Bye.", "c1")
    assert path_texts(world, last.exchange_row) == [*map(read_text, history), "bye", "Bye."]


def test_the_questions_of_many_short_replies_are_asked_for_together(world: World) -> None:
    # Each reply is found, and none of their questions is the same: the search compares one turn after the other.
    world.chat(*((f"question number {n}", f"Yes, {n}.") for n in range(7)), key="c1")
    rewritten: list[WireMessage] = []
    for n in range(7):
        rewritten += [user(f"something else entirely, {n}"), assistant(f"Yes, {n}.")]
    request = world.begin([*rewritten, user("and now?")], "c1")
    assert request.plan is not None
    assert request.plan.match.match_point is None


@pytest.mark.parametrize("key", ["k", None])
def test_a_list_of_other_replies_is_compared_with_few_stored_ones(
    world: World, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may render all replies again; each of its turns is compared with stored ones that begin as it does."""
    said = world.chat(*((f"question {k}", f"Yes {k}.") for k in range(40)), key=key)
    compared = 0
    find = TurnReplies.find

    def counted(turn: TurnReplies, reply: Any) -> Any:
        nonlocal compared
        compared += 1
        return find(turn, reply)

    monkeypatch.setattr(TurnReplies, "find", counted)
    altered = [assistant(f"<b>{k}</b>") if m["role"] == "assistant" else m for k, m in enumerate(said)]
    world.begin([*altered[:-2], user("hm"), said[-1], user("next")], key)
    assert compared < len(said)


def test_a_message_among_many_lone_ones_costs_no_more_than_each_of_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each asked all others whether the conversation went on from them: 250 held everybody for a second."""
    asked = 0
    plain = Tree.is_continued

    def counted(tree: Tree, e: Any) -> bool:
        nonlocal asked
        asked += 1
        return plain(tree, e)

    monkeypatch.setattr(Tree, "is_continued", counted)
    costs = []
    world = World()
    for size in (20, 80):
        for n in range(size):
            world.say([user(f"{size} things and {n}")], "Ok.", "c1")
        asked = 0
        world.say([user(f"after {size}")], "Ok.", "c1")
        costs.append(asked)
    assert costs[1] < 8 * costs[0]  # of 5 times as many


@pytest.mark.parametrize("key", ["c1", None])
def test_a_message_after_a_turn_of_many_rounds_costs_by_their_number(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round went through all of its turn: a thousand of them held everybody for seconds."""
    asked = 0
    plain = Tree.is_mid_turn

    def counted(tree: Tree, e: Any) -> bool:
        nonlocal asked
        asked += 1
        return plain(tree, e)

    monkeypatch.setattr(Tree, "is_mid_turn", counted)
    costs = []
    for rounds in (20, 80):
        world, history = World(), [user("count the rainy days")]
        for number in range(rounds):
            called = assistant(None, call(f"c{number}", arguments=f'{{"day":{number}}}'))
            world.say(history, called, key)
            history += [called, result(f"c{number}", "sunny")]
        world.say(history, "None at all.", key)
        asked = 0
        world.say([*history, assistant("None at all."), user("thanks")], "You are welcome.", key)
        costs.append(asked)
    assert costs[1] < 5 * costs[0]  # of 4 times as many
