"""A message that names nothing gets a note of what stands out of earlier conversations, once in a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.prompt.note_text import estimate_tokens
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.memory.trial import TrialRunner
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import Chat, World, agent, remember

CLOSE = "</memory>\n\n"
SELECTION = "The message names nothing to look for; this is a small selection of what was said."
CAT = "My cat Miso hates thunderstorms and sleeps in the wardrobe."
BOAT = "I bought a wooden boat in Bergen, and its hull leaks."
WHO = "What do you know about me?"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def known(world: World) -> World:
    """Alice has said two things, Bob one."""
    for user, text in (("alice", CAT), ("bob", "I keep bees behind the church."), ("alice", BOAT)):
        world.chat(user=user).say(text)
    return world


def asked(chat: Chat, text: str) -> str:
    """Says something. Returns the note that went upstream with it, or ""."""
    chat.say(text)
    note, close, said = chat.world.upstream.last.messages[-1]["content"].rpartition(CLOSE)
    assert said == text
    return note + close


@pytest.mark.parametrize(
    "text", [WHO, "who am i", "Do you remember me?", "Was weißt du über mich?", "¿Te acuerdas de mí?", "Hi!"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_opens_so_gets_a_note_of_its_user_alone(
    known: World, text: str, stream: bool
) -> None:
    note = asked(known.chat(user="alice", stream=stream), text)
    assert note.splitlines()[3] == SELECTION  # after the frame and the name of its mark
    told = [line for line in note.splitlines() if line.startswith(("user: ", "you: "))]
    assert sorted(told) == [f"user: {BOAT}", f"user: {CAT}"]
    assert "bees" not in note


def test_an_empty_memory_gives_no_note(known: World) -> None:
    assert asked(known.chat(user="carol"), WHO) == ""


def test_the_whole_memory_is_noted_once_and_stays_at_its_place(known: World) -> None:
    chat = known.chat(user="alice")
    note = asked(chat, "Hi!")
    for text in (WHO, "Thanks.", "Why?", "And what else do you know?"):
        assert asked(chat, text) == ""
        assert known.upstream.last.messages[0]["content"] == f"{note}Hi!"


def test_within_a_conversation_only_a_question_is_answered_so(known: World) -> None:
    chat = known.chat(user="alice")
    assert asked(chat, "Write a haiku about penguins.") == ""
    for text in ("Thanks.", "Ok, go on", "hi"):
        assert asked(chat, text) == ""
    note = asked(chat, WHO)
    assert SELECTION in note
    assert CAT in note
    assert BOAT in note
    assert asked(chat, WHO) == ""


def test_a_line_of_an_earlier_note_is_not_noted_again(known: World) -> None:
    chat = known.chat(user="alice")
    first = asked(chat, "What does Miso hate?")
    assert CAT in first
    assert SELECTION not in first
    note = asked(chat, WHO)
    assert BOAT in note
    assert CAT not in note


def test_messages_of_the_conversation_itself_are_not_noted(known: World) -> None:
    chat = known.chat(user="alice")
    chat.say("My brother Kofi juggles with burning torches.")
    note = asked(chat, WHO)
    assert "torches" not in note
    assert CAT in note


def test_a_text_that_names_something_unknown_gets_no_note(known: World) -> None:
    assert asked(known.chat(user="alice"), "What is the capital of France?") == ""
    assert asked(known.chat(user="alice"), "Tell me a joke.") == ""


def test_a_part_of_the_budget_is_enough(world: World) -> None:
    for n in range(30):
        world.chat(user="alice").say(
            f"Letter {n} tells of lighthouse {n * 7} and of the storm near island {n}."
        )
    note = asked(world.chat(user="alice"), WHO)
    assert 200 < estimate_tokens(note) <= 250
    assert "Letter 29 " in note
    assert "Letter 0 " not in note


def test_a_long_message_is_noted_by_its_beginning(world: World) -> None:
    """It was chosen for that, and not for a word that the question happens to share with its end."""
    world.chat(user="alice").say(f"{BOAT} {'It is a long story. ' * 20} That is what you know about me.")
    assert BOAT in asked(world.chat(user="alice"), WHO)


def test_a_first_message_after_a_greeting_of_the_agent_opens_as_well(known: World) -> None:
    known.post(
        [{"role": "assistant", "content": "Good day!"}, {"role": "user", "content": "hello"}], user="alice"
    )
    assert CAT in known.upstream.last.messages[-1]["content"]


def test_a_list_that_began_elsewhere_does_not_open(known: World) -> None:
    turns = [("user", "My tulips are red."), ("assistant", "Nice."), ("user", "Thanks.")]
    known.post([{"role": role, "content": text} for role, text in turns], user="alice")
    assert known.upstream.last.messages[-1]["content"] == "Thanks."


def test_memory_show_says_what_would_be_noted(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        world.chat(model="agent/helper", user="alice").say(CAT)
        world.settle()
        show = ShowOperation(world.store, TrialRunner(world.store, 1000, world.clock)).show

        async def shown(query: str) -> str:
            where = {"project": "default", "profile": "helper", "user": "alice", "query": query}
            return str((await show(where))["text"])

        found = world.gateway.call(shown(WHO))
        assert SELECTION in found
        assert CAT in found.partition("Would be recalled")[2]
        assert "  nothing" in world.gateway.call(shown("Tell me a joke.")).partition("Would be recalled")[2]
