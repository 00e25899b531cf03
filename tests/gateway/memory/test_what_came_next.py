"""A question about what came next, or about an order, brings events that share no word with it, dated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, remember

DAY_S = 86_400
SAID = (
    "We found dry rot in the old wall.",
    "The joiner takes eleven weeks.",
    "I chose limestone for the floor.",
    "Our daughter passed her exam.",
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        for text in SAID:
            made.chat(user="alice").say(text)
            made.clock.now += DAY_S
        yield made


def note_for(world: World, question: str, user: str = "alice") -> str:
    world.post([{"role": "user", "content": question}], user=user)
    return str(world.upstream.last.messages[-1]["content"]).removesuffix(question)


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ("What came next after the limestone?", SAID[2:]),
        ("After we found the rot, what happened then?", SAID),
        ("What happened just before I chose the limestone?", SAID[:3]),
        ("Which stone is the limestone?", SAID[2:3]),
    ],
)
def test_later_events_are_shown_in_order(world: World, question: str, shown: tuple[str, ...]) -> None:
    note = note_for(world, question)
    assert [text for text in SAID if text in note] == [*shown]
    assert [note.index(text) for text in shown] == sorted(note.index(text) for text in shown)


def test_a_long_message_about_what_came_next_is_shown_as_long_as_any(world: World) -> None:
    talk = "It rained all day and the children stayed indoors. " * 6
    world.chat(user="alice").say("We hired the electrician.")
    world.clock.now += DAY_S
    world.chat(user="alice").say(f"{talk}Then the wrong sink was delivered.")
    assert "the wrong sink" in note_for(world, "What came next after we hired the electrician?")


def test_as_much_of_what_came_next_is_shown_as_the_note_has_room_for(world: World) -> None:
    world.chat(user="alice").say("We hired the electrician.")
    said = [f"I bought {number} {what}." for number, what in enumerate(("lamps", "chairs", "bowls") * 6, 10)]
    for text in said:
        world.clock.now += DAY_S
        world.chat(user="alice").say(text)
    note = note_for(world, "What came next after we hired the electrician?")
    assert [text for text in said if text in note] == said


def test_an_order_has_the_events_that_share_words_with_those_that_are_named(world: World) -> None:
    for text in ("My thesis compares river names.", "It rained in June.", "I showed Alvera the thesis."):
        world.clock.now += DAY_S
        world.chat(user="alice").say(text)
    note = note_for(world, "In which order did I see Alvera and choose the subject?")
    assert note.index("river names") < note.index("Alvera the thesis")
    assert "rained" not in note


def test_where_the_event_is_unknown_nothing_came_next(world: World) -> None:
    assert note_for(world, "What came next after the eclipse?") == ""
    assert note_for(world, "After we found the rot, what happened then?", user="bob") == ""
