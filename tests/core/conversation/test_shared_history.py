"""Chatbots whose handlers share one history: each adds the user's message, asks with all of it, and adds the reply.

So a reply may come after the next question, or after several. The list is what the client had: nothing of it is lost.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.conversation.active import supersede_repeated
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, read_text
from storage.records import ExchangeState, make_message_key
from tests.core import conversations
from tests.core.conversation.keyed import both
from tests.core.conversations import Request, World, assistant, user

LONG = "with quite a few words in it, so that nobody else will have written it"


@both
@pytest.mark.parametrize("end", ["finished", "cancelled", "silent"])
def test_a_question_before_the_long_reply_to_another_one_stays(
    world: World, key: str | None, end: str
) -> None:
    """How the second request ended does not matter: its question is in the list."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("what is there to eat?")]
    first = world.begin(asked, key)
    asked.append(user("a table please"))
    second = world.begin(asked, key)
    world.finish(first, f"Soup, {LONG}")
    if end == "finished":
        world.finish(second, "UNSPOKEN")
    else:
        world.cancel(second, [assistant("UNSPOKEN")] if end == "cancelled" else [])
    whole = [*asked, assistant(f"Soup, {LONG}"), user("fine")]
    world.say(whole, "Until then.", key)
    assert world.active() == [*map(read_text, whole), "Until then."]


@both
@pytest.mark.parametrize("reply", [LONG, "yes"], ids=["long", "short"])
@pytest.mark.parametrize("seed", [*range(12), 61, 79, 238])
def test_each_message_of_questions_that_are_answered_at_once_is_there_once(
    world: World, key: str | None, reply: str, seed: int
) -> None:
    random = Random(seed)
    messages: list[WireMessage] = []
    under_way: list[tuple[int, Request]] = []
    left = list(range(random.randint(3, 7)))
    while left or under_way:
        if left and (not under_way or random.random() < 0.5):
            number = left.pop(0)
            messages.append(user(f"question number {number}"))
            under_way.append((number, world.begin(messages, key)))
        else:
            number, request = under_way.pop(random.randrange(len(under_way)))
            messages.append(assistant(f"reply {number} {reply}"))
            world.finish(request, read_text(messages[-1]))
    messages.append(user("thanks"))
    world.say(messages, "Welcome.", key)
    active = " ".join(world.active())
    assert [text for text in map(read_text, messages) if active.count(text) != 1] == []


@both
def test_the_edits_of_a_turn_are_not_lost_where_another_path_has_its_messages(
    world: World, key: str | None
) -> None:
    first = world.begin([user("one")], key)
    messages = [user("one"), user("two")]
    second = world.begin(messages, key)
    world.finish(first, f"Reply one {LONG}")
    messages += [assistant(f"Reply one {LONG}"), user("three")]
    third = world.begin(messages, key)
    world.finish(second, f"Reply two {LONG}")
    messages += [assistant(f"Reply two {LONG}"), user("four")]
    fourth = world.begin(messages, key)
    world.finish(third, f"Reply three {LONG}", edits=["EDIT"])
    world.finish(fourth, f"Reply four {LONG}")
    messages += [assistant(f"Reply three {LONG}"), assistant(f"Reply four {LONG}"), user("five")]
    world.say(messages, "Reply five", key)
    world.wait(1000)
    assert world.list_learned() == ["EDIT"]


@both
@pytest.mark.parametrize(
    ("ends", "replies"),
    [
        (("cancelled", "finished"), [1]),
        (("silent", "finished"), [1]),
        (("finished", "finished"), []),  # neither was heard
        (("finished", "finished"), [0, 1]),
    ],
)
def test_messages_that_were_sent_at_once_are_there_once(
    world: World, key: str | None, ends: tuple[str, str], replies: list[int]
) -> None:
    """A caller types and speaks within a moment (LiveKit): neither request has the other one's message."""
    history = world.chat(("hello there", "Good day."), key=key)
    questions = [user("what is there to eat?"), user("a table please")]
    texts = ["Soup, as always.", "At eight there is one."]
    requests = [world.begin([*history, question], key) for question in questions]
    for request, end, text in zip(requests, ends, texts, strict=True):
        if end == "finished":
            world.finish(request, text)
        else:
            world.cancel(request, [assistant(text[:6])] if end == "cancelled" else [])
    whole = [*history, *questions, *(assistant(texts[n]) for n in replies), user("fine")]
    world.say(whole, "Until then.", key)
    assert sorted(world.active()) == sorted([*map(read_text, whole), "Until then."])


def test_the_words_of_a_chat_are_not_those_of_another_one_that_begins_alike(world: World) -> None:
    """Without an id, and after the idle time: "yes" is in the list, but it is not the "yes" of the older chat."""
    world.chat(("hi", "Hello."), ("yes", f"The red car, {LONG}"))
    world.wait(3 * 86_400)
    greeting, joke = [user("hi"), assistant("Hello.")], [user("a joke"), assistant("Is a long one fine?")]
    world.say([*greeting, *joke, user("yes")], "Once upon a time.")
    assert f"The red car, {LONG}" in world.active()


@both
def test_no_reply_is_lost_where_the_same_is_asked_twice_at_once(world: World, key: str | None) -> None:
    """The second request has ended first, so its reply comes first in the list."""
    history = world.chat(("hello there", "Good day."), key=key)
    first = world.begin([*history, user("why?")], key)
    second = world.begin([*history, user("why?"), user("why?")], key)
    world.finish(second, f"Because of the soup, {LONG}")
    world.finish(first, f"Because of the table, {LONG}")
    replies = [assistant(f"Because of the {cause}, {LONG}") for cause in ("soup", "table")]
    world.say([*history, user("why?"), user("why?"), *replies, user("fine")], "Until then.", key)
    active = " ".join(world.active())
    assert [text for text in map(read_text, replies) if text not in active] == []


BARGE_IN = [user("Tell me of a fox."), assistant("Once there was"), user("And then?")]


def begin_barge_in_twice(world: World, key: str | None) -> list[Request]:
    """Begins a request before the gateway sees that the client has left the reply before it, and again then."""
    told = world.begin(BARGE_IN[:1], key)
    early = world.begin(BARGE_IN, key)
    world.cancel(told, [assistant("Once there was a fox")])
    return [early, world.begin(BARGE_IN, key)]


@both
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first ends first", "second ends first"])
def test_a_request_that_came_before_the_end_of_its_barge_in_is_asked_again(
    world: World, key: str | None, order: tuple[int, int]
) -> None:
    requests = begin_barge_in_twice(world, key)
    for n in order:
        world.finish(requests[n], f"It woke {n}.")
    assert world.active() == [*map(read_text, BARGE_IN), f"It woke {order[-1]}."]


@both
@pytest.mark.parametrize("guardrail", [0, 1])
def test_a_guardrail_that_has_such_a_request_too_supersedes_no_answer(
    world: World, key: str | None, guardrail: int
) -> None:
    requests = begin_barge_in_twice(world, key)
    world.finish(requests[1 - guardrail], "It woke.")
    world.finish(requests[guardrail], '{"ok": true}')
    assert "It woke." in world.active()


@both
def test_a_message_that_was_forgotten_elsewhere_does_not_come_back_with_a_cancelled_request(
    world: World, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    questions = [user("a secret"), user("a table please")]
    first, second = [world.begin([*history, question], key) for question in questions]
    world.cancel(first)
    world.finish(second, "At eight there is one.")
    forgotten = make_message_key(world.memory().hasher.make_atoms(questions[0]))
    monkeypatch.setattr(
        "tests.core.conversations.Tree", partial(conversations.Tree, forgotten_hashes=frozenset([forgotten]))
    )
    whole = [*history, *questions, assistant("At eight there is one."), user("fine")]
    world.say(whole, "Until then.", key)
    assert "a secret" not in world.active()


# A path of two exchanges, an alternative to the first one, and what goes on from that.
FIRST, LAST, OTHER, MORE = "first", "last", "other", "more"
# An alternative to the last one, at the same time.
AFTER_FIRST: dict[str, Any] = {"parent": FIRST, "begun": 5.5, "ended": 6.0, "reply": [assistant("T")]}


@pytest.mark.parametrize(
    ("changes", "superseded"),
    [
        ({}, {OTHER}),
        # Requests that were not under way at once: which is active, other rules say.
        ({OTHER: {"begun": 0.25, "touched": 0.25, "ended": 0.5}}, set()),
        # A message of the other one is not in the path, or not as often, or not where it begins.
        ({OTHER: {"reply": [assistant("Z")]}}, set()),
        ({OTHER: {"inputs": [user("one"), user("one")]}}, set()),
        ({OTHER: AFTER_FIRST | {"inputs": [user("one")]}}, set()),
        ({OTHER: AFTER_FIRST | {"inputs": [assistant("S")]}}, {OTHER}),
        ({FIRST: {"prefix_length": 1}}, set()),  # its first message may be hidden
        # Nothing is decided by what was forgotten.
        ({OTHER: {"state": ExchangeState.FORGOTTEN}}, set()),
        ({OTHER: {"redactions": frozenset([0])}}, set()),
        ({FIRST: {"state": ExchangeState.FORGOTTEN}}, set()),
        ({LAST: {"redactions": frozenset([0])}}, set()),
        # It has not ended, or has edits of its own.
        ({OTHER: {"ended": None, "stopped": 4.0, "state": ExchangeState.CANCELLED}}, set()),
        ({OTHER: {"edits": True}}, set()),
        ({OTHER: {"edits": True, "merged": "idle"}}, {OTHER}),
        # What goes on from it is superseded if the path has that, too, after it.
        ({MORE: {"inputs": [user("three")], "reply": [assistant("T")]}}, {OTHER, MORE}),
        ({MORE: {"inputs": [user("two")], "reply": [assistant("R")]}}, {OTHER}),
    ],
)
def test_an_alternative_is_superseded_by_a_path_with_all_its_messages(
    world: World, changes: dict[str, dict[str, Any]], superseded: set[str]
) -> None:
    other, first = world.begin([user("one")], "c1"), world.begin([user("one"), user("two")], "c1")
    world.finish(other, "S")
    world.finish(first, "R")
    whole = [user("one"), user("two"), assistant("R"), assistant("S"), user("three")]
    last = world.say(whole, "T", "c1")
    memory = world.memory(key="c1")
    rows = {FIRST: first.exchange_row, LAST: last.exchange_row, OTHER: other.exchange_row, MORE: 100}
    records = memory.records | {100: replace(memory.records[last.exchange_row], id=100, parent=rows[OTHER])}
    for name, fields in changes.items():
        fields = dict(fields)
        if "parent" in fields:
            fields["parent"] = rows[fields["parent"]]
        if "inputs" in fields:
            fields["inputs"] = tuple(map(memory.hasher.make_atoms, fields["inputs"]))
        if "reply" in fields:
            fields["reply"] = memory.hasher.make_atoms(*fields["reply"])
        records[rows[name]] = replace(records[rows[name]], **fields)
    if MORE not in changes:
        del records[100]
    tree = Tree([replace(each, superseded=False) for each in records.values()])
    supersede_repeated(tree, tree.list_path_elements(tree.by_id[rows[LAST]]))
    assert {
        name for name, row in rows.items() if row in tree.by_id and tree.by_id[row].superseded
    } == superseded
