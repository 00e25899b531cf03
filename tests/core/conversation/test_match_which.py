"""Which of several conversations a list goes on, and which lone message begins one."""

from __future__ import annotations

import pytest

from tests.core.conversation.keyed import both
from tests.core.conversations import (
    World,
    assistant,
    outline,
    user,
)

# -- which conversation


@both
@pytest.mark.parametrize("gap", [5, 5000], ids=["at once", "a day later"])
def test_the_same_greeting_on_monday_and_on_tuesday(world: World, key: str | None, gap: float) -> None:
    for day in ("Monday", "Tuesday"):
        turns = (("Hi", "Hello! How can I help?"), (f"My cat is {day}", "Nice."), ("That is all", "Bye."))
        world.chat(*turns, key=day if key else None)
        world.wait(gap)
    assert world.tree() == outline("""
        continued: Hi > Hello! How can I help?
          continued: My cat is Monday > Nice.
            active: That is all > Bye.
        --
        continued: Hi > Hello! How can I help?
          continued: My cat is Tuesday > Nice.
            active: That is all > Bye.
    """)


@both
def test_a_list_without_its_beginning_goes_on_from_the_last_time_that_its_words_were_said(
    filling_world: World, key: str | None
) -> None:
    """The client did not go back to the first time, though the same was asked after it."""
    turns = [
        ("go on", "Ok."),
        ("Why?", "Because."),
        ("Its colour?", "Green."),
        ("go on", "Ok."),
        ("Why?", ""),
    ]
    history = [*filling_world.chat(("Hello there", "Welcome, what shall we do?"), key=key)]
    for question, reply in turns:
        history.append(user(question))
        request = filling_world.say(history[-3:], reply, key)
        assert [m for _, m in request.sent] == history
        history.append(assistant(reply))


def test_the_same_opening_in_two_tabs_keeps_both_once_they_go_on(world: World) -> None:
    one, two = [user("Hi")], [user("Hi")]
    for tab in (one, two):
        world.say(tab, "Hello!")
        tab.append(assistant("Hello!"))
    for tab, pet in ((one, "cat"), (two, "dog")):
        tab.append(user(f"my pet is a {pet}"))
        world.say(tab, f"A {pet}.")
        tab.append(assistant(f"A {pet}."))
    for tab in (one, two):
        assert world.say([*tab, user("more")], "More.").is_untouched
    assert world.tree() == outline("""
        continued: Hi > Hello!
          continued: my pet is a cat > A cat.
            active: more > More.
          continued: my pet is a dog > A dog.
            active: more > More.
    """)


@pytest.mark.parametrize("first", [0, 1], ids=["the earlier", "the later"])
def test_one_of_two_running_openings_goes_on_before_the_other_ends(world: World, first: int) -> None:
    tabs = [world.begin([user("Hi")]) for _ in range(2)]
    world.finish(tabs[first], "Hello!")
    world.say([user("Hi"), assistant("Hello!"), user("more")], "More.")
    world.finish(tabs[1 - first], "Good day!")
    assert world.tree() == outline("""
        continued: Hi > Hello!
          active: more > More.
        superseded: Hi > Good day!
    """)


def test_a_short_opening_in_another_tab_is_no_part_of_a_longer_one(world: World) -> None:
    longer = world.begin([user("Hi there you")])
    world.say([user("Hi")], "Hello!")
    world.finish(longer, "Good day!")
    assert world.tree() == outline("""
        active: Hi > Hello!
        --
        active: Hi there you > Good day!
    """)


def test_an_opening_that_was_asked_again_meanwhile_takes_no_other_with_it(world: World) -> None:
    world.say([user("Hi there you")], "Hello!")
    shorter = world.begin([user("Hi")])
    world.say([user("Hi there you")], "Good day!")
    world.finish(shorter, "Yes?")
    assert world.tree() == outline("""
        superseded: Hi there you > Hello!
        active: Hi there you > Good day!
        --
        active: Hi > Yes?
    """)


def test_a_whole_path_comes_before_the_end_of_another(world: World) -> None:
    world.chat(("go on", "Hello!"))
    world.chat(("something else", "Fine."), ("go on", "Hello!"))
    request = world.say([user("go on"), assistant("Hello!"), user("where is it?")], "There.")
    assert request.is_untouched
    assert world.tree() == outline("""
        continued: go on > Hello!
          active: where is it? > There.
        --
        continued: something else > Fine.
          active: go on > Hello!
    """)


def test_the_newer_of_two_equal_chats_goes_on(world: World) -> None:
    world.chat(("Hi", "Hello!"), ("my cat is Tom", "Nice."), ("and a dog", "Two!"))
    world.wait(5000)
    world.chat(("Hi", "Hello!"), ("my cat is Tom", "Nice."))
    assert world.tree() == outline("""
        continued: Hi > Hello!
          continued: my cat is Tom > Nice.
            active: and a dog > Two!
        --
        continued: Hi > Hello!
          active: my cat is Tom > Nice.
    """)


@both
def test_two_users_with_the_same_opening_share_nothing(world: World, key: str | None) -> None:
    world.chat(("Hi", "Hello!"), ("my pin is 1234", "Noted."), key=key, user_id="bob")
    world.say([user("Hi")], "Hello!", key)
    request = world.say([user("Hi"), assistant("Hello!"), user("what is my pin?")], "No idea.", key)
    assert request.is_untouched
    assert world.tree() == outline("""
        continued: Hi > Hello!
          active: what is my pin? > No idea.
    """)
    assert world.active("bob")[2] == "my pin is 1234"


def test_nothing_is_stored_of_two_anonymous_callers(world: World) -> None:
    world.chat(("help?", "Sure!"), ("my code is 1234", "Sure!"), user_id=None)
    lists = (
        [user("my code?")],
        [user("help?"), assistant("Sure!"), user("my code?")],
        [assistant("Sure!"), user("my code?")],
    )
    for messages in lists:
        assert world.begin(messages, user_id=None).is_untouched
    assert world.tree(None) == ""


def test_an_anonymous_conversation_with_an_id_is_remembered_alone(filling_world: World) -> None:
    history = filling_world.chat(("one", "r1"), ("two", "r2"), key="call 7", user_id=None)
    here = filling_world.begin([history[-1], user("three")], "call 7", user_id=None)
    assert here.lines == [
        "+ user: one",
        "+ assistant: r1",
        "+ user: two",
        "assistant: r2",
        "user: three",
    ]
    assert filling_world.begin([history[-1], user("three")], "call 8", user_id=None).is_untouched


def test_a_lone_message_in_a_known_conversation_waits_until_it_is_continued(world: World) -> None:
    world.chat(("the word is W1", "Noted."), ("go on", "Going."), key="c1")
    lone = [user("something else")]
    assert world.say(lone, "Sure.", "c1").is_untouched
    assert world.tree() == outline("""
        continued: the word is W1 > Noted.
          active: go on > Going.
        detached: something else > Sure.
    """)
    world.say([*lone, assistant("Sure."), user("more")], "More.", "c1")
    assert world.tree() == outline("""
        continued: the word is W1 > Noted.
          active: go on > Going.
        continued: something else > Sure.
          active: more > More.
    """)


def test_a_client_that_only_ever_sends_lone_messages_is_remembered(world: World) -> None:
    for k in range(3):
        assert world.say([user(f"fact {k}")], "Ok.", "kitchen").is_untouched
        world.wait(500)
    assert world.confirmed() == ["fact 0", "Ok.", "fact 1", "Ok.", "fact 2", "Ok."]


def test_a_title_request_inside_a_named_conversation_never_stands(world: World) -> None:
    history = world.chat(("my horse is Bo", "A fine horse."), ("he likes apples", "Good."), key="c1")
    world.say([user("Write a HEADING for this chat: my horse")], "Horses", "c1")
    world.wait(500)
    world.chat(("and carrots", "Those too."), key="c1", start=history)
    assert world.tree() == outline("""
        continued: my horse is Bo > A fine horse.
          continued: he likes apples > Good.
            active: and carrots > Those too.
        detached: Write a HEADING for this chat: my horse > Horses
    """)
    assert not any("HEADING" in text for text in world.confirmed())


@both
def test_a_title_request_as_one_more_question_falls_with_the_next(world: World, key: str | None) -> None:
    history = world.chat(("my horse is Bo", "A fine horse."), key=key)
    world.say([*history, user("Give this chat a HEADING")], "Horses", key)
    world.say([*history, user("and carrots")], "Those too.", key)
    assert world.tree() == outline("""
        continued: my horse is Bo > A fine horse.
          superseded: Give this chat a HEADING > Horses
          active: and carrots > Those too.
    """)
