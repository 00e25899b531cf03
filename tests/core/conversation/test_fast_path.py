"""The plain turn: which turns are, and that it decides what would be decided with everything in view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.change import plan_change
from gateway.core.conversation.fast_path import finish_opening, finish_plain, plan_opening, plan_plain
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.plan import Plan, plan_turn
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.compose import compose
from gateway.core.prompt.composition import Composition
from storage.commands import Additions, CandidateExchanges, MemorySnapshot
from storage.records import EvictedPart, Exchange, ExchangeState
from tests.core.conversations import (
    GATEWAY_TOOLS,
    IDLE_S,
    SECRET,
    World,
    assistant,
    call,
    picture,
    result,
    user,
    without_numbers,
)

HIDDEN = [assistant("Moment. ", call("m1", "memory_insert")), result("m1", "ok"), assistant("Noted.")]


def look_for(tree: Tree, listing: HashedList) -> MemorySnapshot:
    """What a store would say of a list, worked out from all there is."""
    path_hash = listing.hasher.hash_path(listing.list_atoms(listing.answered_count))
    found = [e for e in tree if e.path_hash == path_hash and listing.answered_count]
    snapshot = MemorySnapshot(exchange=max(found, key=lambda e: (e.begun, e.id), default=None))
    if snapshot.exchange is not None:
        snapshot.is_continued = bool(tree.list_children(snapshot.exchange))
        snapshot.has_rivals = snapshot.exchange.parent is None and bool(tree.list_siblings(snapshot.exchange))
        snapshot.additions = Additions().extended(*tree.list_path(snapshot.exchange))
    snapshot.has_tombstones = any(e.state is ExchangeState.OFF for e in tree)
    return snapshot


def planned(
    world: World, messages: list[WireMessage], **how: Any
) -> tuple[Tree, MemorySnapshot, Query, Plan | None]:
    tree = Tree(world.memory().list_candidates("c1"))
    listing = HashedList(MessageHasher(SECRET), messages)
    world.now += 1
    usual: dict[str, Any] = {"is_named": True, "mode": MemoryUse.ON, "now": world.now, "idle_s": IDLE_S}
    query = Query(listing, **{**usual, **how})
    snapshot = look_for(tree, listing)
    return tree, snapshot, query, plan_plain(snapshot, query)


@pytest.fixture
def world() -> World:
    return World(recall=lambda question: f"<{question}>" if "?" in question else "")


def long_chat(world: World) -> list[WireMessage]:
    """With notes, a hidden round, a picture, and a tool turn in it."""
    history = world.chat(("what is up?", "Much."), key="c1")
    history += [user("I like tea")]
    world.say(history, HIDDEN, "c1")
    history += [assistant("Moment. Noted."), picture("and this?", "data:1")]
    world.say(history, "A cat.", "c1")
    history += [assistant("A cat."), user("weather?")]
    world.say(history, assistant("Let me look.", call("w1")), "c1")
    history += [assistant("Let me look.", call("w1")), result("w1", "sunny")]
    world.say(history, "Sunny.", "c1")
    history += [assistant("Sunny."), user("thanks")]
    world.say(history, "Welcome.", "c1")
    return [*history, assistant("Welcome.")]


NEXT: dict[str, list[WireMessage]] = {
    "a question": [user("and now?")],
    "two messages": [user("and"), user("now?")],
    "a picture": [picture("and this?", "data:2")],
    "a system message first": [{"role": "system", "content": "It is late."}, user("and now?")],
}


@pytest.mark.parametrize("new", NEXT.values(), ids=NEXT.keys())
@pytest.mark.parametrize("offered", [GATEWAY_TOOLS, frozenset[str]()], ids=["tools", "no tools"])
def test_the_fast_path_decides_as_the_whole_tree_would(
    world: World, new: list[WireMessage], offered: frozenset[str]
) -> None:
    messages = [*long_chat(world), *new]
    tree, snapshot, query, plain = planned(world, messages)
    assert plain is not None
    general = plan_turn(tree, query)
    assert (plain.match.match_point, plain.new_indices) == (general.match.match_point, general.new_indices)
    assert (plain.omitted, plain.is_off_record, plain.redactions) == (
        general.omitted,
        general.is_off_record,
        general.redactions,
    )
    fresh = {len(plain.messages) - 1: "<note>"}
    counted = compose(Tree(snapshot.additions.rounds), plain, offered, fresh, snapshot.additions)
    assert sent(counted) == sent(compose(tree, general, offered, fresh))
    ended = RequestEnd(99, HIDDEN, assistant("Moment. Noted."), world.now, fresh, frozenset({"m1"}))
    written = replace(finish_plain(plain, ended), id=99)
    assert without_numbers(written) == without_numbers(settle.finish(tree, general, ended))
    others = [tree.by_id[i] for i in tree.changed_ids if i != 99]
    moved = [e.id for e in others if _without_words(e) != _without_words(world.memory().records[e.id])]
    assert written.ends_with_user
    assert moved == []  # not even marked as continued


def _without_words(e: Exchange) -> Exchange:
    # Brought back word for word, the last turn's words are written again by the general path.
    return replace(e, input=None)


def test_results_of_a_tool_go_on_plainly(world: World) -> None:
    rome = call("w2", arguments='{"city":"Rome"}')
    asked = [*long_chat(world), user("weather?")]
    world.say(asked, assistant(None, rome), "c1")
    tree, _, query, plain = planned(world, [*asked, assistant(None, rome), result("w2", "rain")])
    assert plain is not None
    ended = RequestEnd(99, [assistant("Rain.")], assistant("Rain."), world.now, {})
    written = replace(finish_plain(plain, ended), id=99)
    assert without_numbers(written) == without_numbers(settle.finish(tree, plan_turn(tree, query), ended))
    assert written.parent == max(e.id for e in world.memory().records.values())


Setting = Callable[[World, list[WireMessage]], None]


def fork(world: World, history: list[WireMessage]) -> None:
    world.say([*history, user("another way?")], "Yes.", "c1")


def cancelled(world: World, history: list[WireMessage]) -> None:
    world.cancel(world.begin([*history, user("another way?")], "c1"))


def off(world: World, history: list[WireMessage]) -> None:
    world.say([*history[:2], user("a secret")], "Sorry.", "c1", mode=MemoryUse.OFF)


NOT_PLAIN: list[tuple[str, Setting, list[WireMessage], dict[str, Any]]] = [
    ("already continued", fork, [user("and now?")], {}),
    ("a cancelled request hangs on it", cancelled, [user("and now?")], {}),
    ("a turn off the record may be among the new ones", off, [user("a secret"), user("and now?")], {}),
    ("it is off itself", lambda w, h: None, [user("and now?")], {"mode": MemoryUse.OFF}),
    ("read only", lambda w, h: None, [user("and now?")], {"mode": MemoryUse.READ}),
    ("append mode", lambda w, h: None, [user("and now?")], {"kind": ConversationKind.APPENDED}),
    ("nothing new", lambda w, h: None, [], {}),
]


@pytest.mark.parametrize(("why", "before", "new", "how"), NOT_PLAIN, ids=[row[0] for row in NOT_PLAIN])
def test_a_turn_with_rivals_or_changes_is_not_plain(
    world: World, why: str, before: Setting, new: list[WireMessage], how: dict[str, Any]
) -> None:
    history = long_chat(world)
    before(world, history)
    assert planned(world, [*history, *new], **how)[3] is None


def test_a_first_turn_a_trimmed_list_and_a_cut_reply_are_not_plain(world: World) -> None:
    history = long_chat(world)
    assert planned(world, [user("Hi")])[3] is None
    assert planned(world, [*history[2:], user("and now?")])[3] is None
    assert planned(world, [*history[:-1], assistant("Welc"), user("and now?")])[3] is None


def test_edits_that_wait_to_be_confirmed_are_weighed(world: World) -> None:
    world.say([user("I like tea")], HIDDEN, "c1", edits=["tea"])
    messages = [user("I like tea"), assistant("Moment. Noted."), user("and?")]
    assert planned(world, messages)[3] is None
    world.say(messages, "That is all.", "c1")  # now they are merged
    assert planned(world, [*messages, assistant("That is all."), user("bye")])[3] is not None


def test_a_second_opening_is_weighed(world: World) -> None:
    world.say([user("one")], "First.", "c1")
    world.say([user("other")], "Second.", "c1")
    assert planned(world, [user("other"), assistant("Second."), user("on")])[3] is None


def test_an_imported_head_is_weighed(world: World) -> None:
    head = [user("My name is Zoe"), assistant("Extracted: name.")]
    world.say([*head, user("I am 30")], "Extracted: age.", "c1")
    asked = [*head, user("I am 30"), assistant("Extracted: age."), user("on")]
    assert planned(world, asked)[3] is None


def test_a_list_that_is_also_a_head_made_elsewhere_is_weighed(world: World) -> None:
    _, snapshot, query, plain = planned(world, [*long_chat(world), user("on")])
    assert plain is not None
    snapshot.matches_prefix = True
    assert plan_plain(snapshot, query) is None


def test_a_hidden_round_whose_reply_came_back_in_pieces_stays_out(world: World) -> None:
    full = [*HIDDEN[:2], assistant("Noted.", call("w1"))]
    world.say([user("I like tea")], full, "c1")
    pieces = [assistant("Moment. Noted."), assistant(None, call("w1")), result("w1", "sunny")]
    tree, snapshot, query, plain = planned(world, [user("I like tea"), *pieces])
    assert plain is not None
    composition = compose(Tree(snapshot.additions.rounds), plain, GATEWAY_TOOLS, {}, snapshot.additions)
    assert composition.replacements == {}
    assert sent(composition) == sent(compose(tree, plan_turn(tree, query), GATEWAY_TOOLS, {}))


def sent(composition: Composition) -> Composition:
    """Returns a composition without the places of what the client sent, which only a whole tree knows."""
    return replace(composition, elements_by_index={})


OPENINGS: dict[str, list[WireMessage]] = {**NEXT, "calls without a question": [result("w1", "sunny")]}


@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
@pytest.mark.parametrize("messages", OPENINGS.values(), ids=OPENINGS.keys())
@pytest.mark.parametrize("edits", [True, False], ids=["edits", "no edits"])
def test_an_opening_is_written_as_the_rules_would(
    messages: list[WireMessage], edits: bool, named: bool
) -> None:
    listing = HashedList(MessageHasher(SECRET), messages)
    query = Query(listing, is_named=named, mode=MemoryUse.ON, now=5.0, idle_s=IDLE_S, model="a/b")
    plan = plan_turn(Tree(), query)
    assert plan_opening(query) == plan
    ended = RequestEnd(
        -1,
        HIDDEN,
        assistant("Moment. Noted."),
        7.0,
        {0: "<note>"},
        frozenset({"m1"}),
        edits,
        EvictedPart(1, 2, 3, 4),
    )
    change = plan_change(CandidateExchanges((), None), plan, ended, settle.finish)
    assert change.exchange == finish_opening(Tree(), plan, ended)
    assert not any((change.others, change.prefixes, change.tombstone_hashes, change.stale, change.merge))


@pytest.mark.parametrize(
    ("messages", "how"),
    [
        ([user("Hi")], {"mode": MemoryUse.OFF}),
        ([user("Hi")], {"mode": MemoryUse.READ}),
        ([user("Hi")], {"kind": ConversationKind.APPENDED}),
        ([user("Q"), assistant("made elsewhere"), user("Hi")], {}),
    ],
    ids=["off", "read", "append", "a prefix made elsewhere"],
)
def test_an_opening_that_has_to_be_weighed(messages: list[WireMessage], how: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"is_named": True, "mode": MemoryUse.ON, "now": 5.0, "idle_s": IDLE_S}
    query = Query(HashedList(MessageHasher(SECRET), messages), **{**usual, **how})
    assert plan_opening(query) is None
    plan = plan_turn(Tree(), query)
    ended = RequestEnd(-1, [assistant("Ok.")], assistant("Ok."), 7.0, {})
    assert finish_opening(Tree(), plan, ended) is None
    assert (
        finish_opening(Tree([Exchange(1, 1, None, 0, 0, (), (), (), b"", None, 1.0, 1.0)]), plan, ended)
        is None
    )
