"""Finding a conversation with turns that are off the record or forgotten."""

from __future__ import annotations

import pytest

from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage
from tests.core.conversation.keyed import both
from tests.core.conversations import (
    World,
    assistant,
    outline,
    system,
    user,
)

# -- off the record


@both
@pytest.mark.parametrize("mode", [MemoryUse.OFF, MemoryUse.READ])
def test_a_turn_that_was_off_stays_so_when_it_is_resent(
    world: World, key: str | None, mode: MemoryUse
) -> None:
    secret = [user("my diagnosis is X")]
    world.say(secret, "Sorry to hear.", key, mode=mode)
    assert world.tree() == "off: ... > ..."
    history = [*secret, assistant("Sorry to hear.")]
    request = world.say([*history, user("my bicycle is red")], "Good.", key)
    assert request.is_untouched
    world.chat(("bye", "Bye."), key=key, start=[*history, user("my bicycle is red"), assistant("Good.")])
    assert world.active() == ["my bicycle is red", "Good.", "bye", "Bye."]
    assert world.confirmed() == ["my bicycle is red", "Good."]
    assert world.tree() == outline("""
        off: ... > ...
          continued: my bicycle is red > Good.
            active: bye > Bye.
    """)


@both
def test_a_turn_that_was_off_stays_so_in_other_forms(filling_world: World, key: str | None) -> None:
    history = filling_world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my diagnosis is X")]
    filling_world.say(asked, "Sorry to hear that.", key, mode=MemoryUse.OFF)
    lists = (
        ([*asked, assistant("Sorry to hear..."), user("ok one")], []),  # its reply was cut
        ([asked[-1], assistant("Sorry to hear..."), user("ok two")], history),  # and the list trimmed
        ([*asked, user("ok three")], []),  # its reply is gone
    )
    for messages, front in lists:
        request = filling_world.say(messages, "Fine.", key)
        assert request.sent == [*(("+ ", m) for m in front), *(("", m) for m in messages)]
        assert not any("diagnosis" in text or "Sorry" in text for text in filling_world.active())
        assert not any(b"diagnosis" in (e.input or b"") for e in filling_world.memory().records.values())


@both
def test_messages_after_a_turn_off_the_record_are_not_stored_either(world: World, key: str | None) -> None:
    """Another reply in the place of the one that was given, while what was said later rests on that one."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my diagnosis is X")]
    world.say(asked, "Sorry to hear that.", key, mode=MemoryUse.OFF)
    world.chat(
        ("bye now", "Bye."), ("thanks", "Welcome."), key=key, start=[*asked, assistant("Sorry to hear that.")]
    )
    request = world.say([*asked, assistant("X is harmless."), user("my bicycle is red")], "Good.", key)
    assert request.is_untouched
    stored = b"".join(e.input or b"" for e in world.memory().records.values())
    assert b"bicycle" in stored
    assert b"harmless" not in stored


@both
def test_a_turn_that_was_off_stays_so_without_its_template_in_a_trimmed_list(
    filling_world: World, key: str | None
) -> None:
    history = filling_world.chat(("hello there", "Good day."), key=key)
    reply = assistant("Sorry to hear that, I did not expect it at all.")
    asked = [*history, user("Documents: none.\nQuestion: my diagnosis is X")]
    filling_world.say(asked, reply, key, mode=MemoryUse.OFF)
    plain = user("my diagnosis is X")
    filling_world.say([plain, reply, user("ok one")], "Fine.", key)
    filling_world.say([plain, assistant("X is harmless."), user("my bicycle is red")], "Good.", key)
    stored = b"".join(e.input or b"" for e in filling_world.memory().records.values())
    assert b"bicycle" in stored
    assert b"diagnosis" not in stored


@both
def test_turns_off_the_record_are_not_put_before_a_trimmed_list(
    filling_world: World, key: str | None
) -> None:
    history = filling_world.chat(("my word is W1", "Noted W1."), key=key)
    asked = [*history, user("my diagnosis is X")]
    filling_world.say(asked, "Sorry.", key, mode=MemoryUse.OFF)
    then = (
        ("two", "This is the second reply of them all."),
        ("three", "This is the third reply of them all."),
    )
    history = filling_world.chat(*then, key=key, start=[*asked, assistant("Sorry.")])
    request = filling_world.begin([*history[-2:], user("four")], key)
    assert request.lines[:5] == [
        "+ user: my word is W1",
        "+ assistant: Noted W1.",
        "+ user: two",
        f"+ assistant: {then[0][1]}",
        "user: three",
    ]


@both
def test_a_reply_like_one_that_was_imported_is_cut_and_nothing_is_put_before_it(
    world: World, key: str | None
) -> None:
    asked, reply = (
        user("What is the weather in Rome?"),
        "It is sunny and warm in Rome today, with a light wind.",
    )
    history = [asked, assistant(reply), asked]
    world.say(history, reply, key)
    request = world.begin([*history, assistant(reply[:20]), user("And tomorrow?")], key)
    assert not request.composition.inserted


def test_a_turn_that_was_off_and_is_asked_again_stays_off_for_the_idle_time(world: World) -> None:
    messages = [user("my diagnosis is X")]
    world.say(messages, "Sorry.", mode=MemoryUse.OFF)
    world.say(messages, "Oh.")
    assert world.active() == []
    world.wait(5000)
    world.say(messages, "Oh.")
    assert world.active() == ["my diagnosis is X", "Oh."]  # another day: said again


@both
def test_a_last_message_that_was_off_is_new_where_it_comes_alone(world: World, key: str | None) -> None:
    """With a message of its list before it, it is recognised."""
    messages = [user("hello there"), assistant("Good day."), user("my diagnosis is X")]
    world.say(messages, "Sorry.", key, mode=MemoryUse.OFF)
    world.say(messages, "Oh.", key)
    assert world.active() == []
    world.say(messages[-1:], "Oh.", key)
    assert world.active() == ["my diagnosis is X", "Oh."]


@both
@pytest.mark.parametrize("before", [[], [user("hello"), assistant("Good day.")]])
def test_a_turn_that_was_off_and_went_on_stays_off_when_it_is_asked_again(
    world: World, key: str | None, before: list[WireMessage]
) -> None:
    if before:
        world.say(before[:1], "Good day.", key)
    asked = [*before, user("my diagnosis is X")]
    world.say(asked, "Sorry.", key, mode=MemoryUse.OFF)
    world.say([*asked, assistant("Sorry."), user("my bicycle is red")], "Good.", key)
    world.say(asked, "Oh.", key)
    assert not any(b"diagnosis" in (e.input or b"") for e in world.memory().records.values())
    world.say([*asked, assistant("Oh."), user("bye")], "Bye.", key)
    said = [text for text in world.active() if text not in ("hello", "Good day.")]
    assert said == ["my bicycle is red", "Good.", "bye", "Bye."]


def test_a_forgotten_message_stays_forgotten_when_it_is_resent(world: World) -> None:
    history = world.chat(("my pin is 1234", "Noted."), ("bye", "Bye."))
    world.forget(1)
    request = world.say([*history, user("again")], "Again.")
    assert request.is_untouched
    assert world.tree() == outline("""
        forgotten: ... > ...
          continued: bye > Bye.
            active: again > Again.
    """)
    assert not any("1234" in text for text in world.active())
    trimmed = world.begin([history[-1], user("again")])
    assert "1234" not in "".join(trimmed.lines)  # nor is it filled in


@pytest.mark.parametrize("heard", ["Sorry about your diagnosis", "Sorry about your diagnosis X, dear."])
@pytest.mark.parametrize("has_begun", [True, False])
def test_the_heard_part_of_a_reply_off_the_record_is_not_stored_in_append_mode(
    filling_world: World, heard: str, has_begun: bool
) -> None:
    said = []
    if has_begun:
        filling_world.say([user("one")], "First.", "c1", append=True)
        said = ["one", "First."]
    whole = "Sorry about your diagnosis X, dear."
    filling_world.say([user("my diagnosis is X")], whole, "c1", mode=MemoryUse.OFF, append=True)
    messages = [assistant(heard), user("two")]
    for retry in (False, True):
        request = filling_world.say(messages, "Second.", "c1", append=True, retry=retry)
        sent = [
            *(["+ user: one", "+ assistant: First."] if has_begun else []),
            f"assistant: {heard}",
            "user: two",
        ]
        assert request.lines == sent
        assert filling_world.active(key="c1") == [*said, "two", "Second."]
    then = filling_world.begin([user("three")], "c1", append=True)
    assert then.lines[-3:] == ["+ user: two", "+ assistant: Second.", "user: three"]
    stored = b"".join(
        (e.input or b"") + (e.shown_reply or b"") for e in filling_world.memory().records.values()
    )
    assert b"diagnosis" not in stored


def test_what_was_heard_of_a_cut_reply_after_a_turn_off_the_record_is_stored(filling_world: World) -> None:
    filling_world.say([user("one")], "First.", "c1", append=True)
    filling_world.say([user("my diagnosis is X")], "Sorry.", "c1", mode=MemoryUse.OFF, append=True)
    cut = filling_world.begin([user("two")], "c1", append=True)
    filling_world.cancel(cut, [assistant("Second, and more of it.")])
    filling_world.say([assistant("Second, and"), user("three")], "Third.", "c1", append=True)
    then = filling_world.begin([user("four")], "c1", append=True)
    assert then.texts == ["one", "First.", "two", "Second, and", "three", "Third.", "four"]


# -- what was said on the record before


@both
@pytest.mark.parametrize("mode", [MemoryUse.OFF, MemoryUse.READ])
@pytest.mark.parametrize("asks", ["hello there", "Is the user angry? hello there"])
def test_an_exchange_off_the_record_supersedes_none(
    world: World, key: str | None, mode: MemoryUse, asks: str
) -> None:
    """An application asks about the user's message, with memory off, once it has been answered."""
    world.say([user("hello there")], "Good day.", key)
    world.say([user(asks)], "No.", key, mode=mode)
    assert world.active() == ["hello there", "Good day."]
    history = world.chat(("two", "Second."), key=key, start=[user("hello there"), assistant("Good day.")])
    asked = [*history, user("three")]
    world.say(asked, "Third.", key)
    world.say([*history, user(asks)], "No.", key, mode=mode)
    assert world.active() == ["hello there", "Good day.", "two", "Second.", "three", "Third."]


@both
@pytest.mark.parametrize("is_second", [True, False])
def test_a_parallel_request_off_the_record_takes_nothing_of_a_turn(
    world: World, key: str | None, is_second: bool
) -> None:
    """A guardrail is asked while the turn is under way; of its messages, the first may have been left before."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my bicycle is red")]
    said = ["my bicycle is red"]
    turn = world.begin(asked, key)
    if is_second:
        world.cancel(turn)
        turn = world.begin([*asked, user("and fast")], key)
        said += ["and fast"]
    world.say(asked, "No.", key, mode=MemoryUse.OFF)
    world.finish(turn, "I see.")
    assert world.active() == ["hello there", "Good day.", *said, "I see."]


@both
@pytest.mark.parametrize("is_answered", [True, False])
def test_messages_on_the_record_stay_there_in_a_request_that_is_off(
    world: World, key: str | None, is_answered: bool
) -> None:
    """Nothing of a reply was heard, and the next message is off the record; the list reports both together."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my bicycle is red")]
    if is_answered:
        world.say(asked, "Red is a good colour.", key)
    else:
        world.cancel(world.begin(asked, key))
    for heard in ("my diagnosis", "my diagnosis is X"):  # a transcript that grows
        world.say([*asked, user(heard)], "X is harmless.", key, mode=MemoryUse.OFF)
        assert world.active() == ["hello there", "Good day.", "my bicycle is red"]
    asked += [user("my diagnosis is X")]
    for _ in range(2):
        world.say(asked, "Sorry to hear that.", key, mode=MemoryUse.OFF)
        assert world.active() == ["hello there", "Good day.", "my bicycle is red"]
    asked += [assistant("Sorry to"), user("bye")]
    assert world.say(asked, "Bye.", key).is_untouched
    assert world.active() == ["hello there", "Good day.", "my bicycle is red", "bye", "Bye."]
    stored = b"".join((e.input or b"") + (e.shown_reply or b"") for e in world.memory().records.values())
    assert b"diagnosis" not in stored
    assert b"Sorry" not in stored
    assert b"harmless" not in stored


@both
def test_a_message_on_the_record_that_is_asked_about_off_it_is_stored_with_its_followers(
    world: World, key: str | None
) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my bicycle is red")]
    world.say(asked, "Red is a good colour.", key)
    world.say(asked, '{"angry": false}', key, mode=MemoryUse.OFF)
    world.say([*asked, user("and fast")], "I see.", key)  # nothing of the reply was heard
    assert world.active() == ["hello there", "Good day.", "my bicycle is red", "and fast", "I see."]


@both
@pytest.mark.parametrize("asks", ["and fast", "Is the user angry?"])
def test_messages_asked_again_off_the_record_are_not_stored_again(
    world: World, key: str | None, asks: str
) -> None:
    """Nothing of a reply was heard, so that two messages were answered together; that is done again off the record."""
    bike = user("my bicycle is red")
    world.cancel(world.begin([bike], key))
    world.say([bike, user("and fast")], "I see.", key)
    world.say([bike, user(asks)], "No.", key, mode=MemoryUse.OFF)
    assert world.active() == ["my bicycle is red", "and fast", "I see."]


@both
def test_a_turn_after_an_edit_off_the_record_supersedes_the_edited_message(
    world: World, key: str | None
) -> None:
    """Nothing of the reply to the edit was heard."""
    history = world.chat(("hello there", "Good day."), key=key)
    bike = [*history, user("my bicycle is red")]
    world.cancel(world.begin(bike, key))
    world.say([*bike, user("and fast")], "I see.", key)
    world.say([*bike, user("and slow")], "Hm.", key, mode=MemoryUse.OFF)
    world.say([*bike, user("and slow"), user("and new")], "Nice.", key)
    assert world.active() == ["hello there", "Good day.", "my bicycle is red", "and new", "Nice."]


@both
def test_a_turn_off_the_record_that_goes_on_leaves_the_earlier_turn(world: World, key: str | None) -> None:
    """A first turn is asked once more off the record, and the client goes on from that answer."""
    world.say([user("my bicycle is red")], "Red is a good colour.", key)
    world.say([user("my bicycle is red")], "So is mine.", key, mode=MemoryUse.OFF)
    world.chat(("bye", "Bye."), key=key, start=[user("my bicycle is red"), assistant("So is mine.")])
    assert world.active() == ["my bicycle is red", "Red is a good colour.", "bye", "Bye."]


@both
def test_a_transcript_that_goes_on_off_the_record_is_not_stored(world: World, key: str | None) -> None:
    """A transcript that grew."""
    history = world.chat(("hello there", "Good day."), key=key)
    world.say([*history, user("my diagnosis")], "Yes?", key)
    world.say([*history, user("my diagnosis is X")], "Sorry.", key, mode=MemoryUse.OFF)
    assert world.active() == ["hello there", "Good day."]


@both
@pytest.mark.parametrize("is_heard", [True, False])
def test_a_turn_off_the_record_that_ended_meanwhile_is_not_stored(
    world: World, key: str | None, is_heard: bool
) -> None:
    """The client left it and went on at another gateway, before that could know of it."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my diagnosis is X")]
    secret = world.begin(asked, key, mode=MemoryUse.OFF)
    heard = [assistant("Sorry to")] if is_heard else []
    later = world.begin([*asked, *heard, user("my bicycle is red")], key)
    world.cancel(secret, [assistant("Sorry to hear that.")])
    world.finish(later, "Good.")
    assert world.active() == ["hello there", "Good day.", "my bicycle is red", "Good."]
    stored = b"".join((e.input or b"") + (e.shown_reply or b"") for e in world.memory().records.values())
    assert b"diagnosis" not in stored
    assert b"Sorry" not in stored


def test_a_list_off_the_record_is_compared_with_all_messages_at_its_position_at_once() -> None:
    """`World` lets the rules ask for contents as often as the store does."""
    world = World()
    for n in range(5):
        world.say([user(f"message {n}.")], f"answer {n}.", "c1")
    world.say([user("message 0."), user("Is that so?")], "Yes.", "c1", mode=MemoryUse.READ)
    assert "message 0." in world.active(key="c1")


@both
def test_the_heard_part_of_a_reply_off_the_record_is_not_stored_when_it_is_listed_late(
    world: World, key: str | None
) -> None:
    """The reply to what was off the record comes, cut, after a question that is on the record."""
    asked = [*world.chat(("hello there", "Good day."), key=key), user("a secret")]
    world.say(asked, "HIDDEN words and more of them", key, mode=MemoryUse.OFF)
    asked.append(user("what is there to eat?"))
    soup = "We have soup today, and bread with it, and butter."
    world.say(asked, soup, key)
    whole = [*asked, assistant("HIDDEN words"), assistant(soup), user("fine")]
    world.say(whole, "Until then.", key)
    assert "HIDDEN" not in " ".join(world.active())
    assert world.active()[-4:] == ["what is there to eat?", soup, "fine", "Until then."]


@both
@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_the_heard_part_of_a_reply_off_the_record_is_not_stored_without_its_question(
    world: World, key: str | None, end: str
) -> None:
    """A client has deleted the question, so nothing of the turn comes back word for word."""
    history = world.chat(("hello there", "Good day to you and all of yours."), key=key)
    off = world.begin([*history, user("a secret")], key, mode=MemoryUse.OFF)
    if end == "finished":
        world.finish(off, "HIDDEN words and more of them")
    else:
        world.cancel(off, [assistant("HIDDEN words and more of them")])
    list_ = [*history, assistant("HIDDEN words"), user("what is there to eat?")]
    assert world.say(list_, "Soup.", key).is_untouched
    world.say([*list_, assistant("Soup."), user("fine")], "Until then.", key)
    assert world.active()[2:] == ["what is there to eat?", "Soup.", "fine", "Until then."]


@both
@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_a_greeting_off_the_record_stays_so_where_it_comes_back_cut(
    world: World, key: str | None, end: str
) -> None:
    """A system message alone asked for it, so the list of the next request begins with what was heard of it."""
    greeting = world.begin([system("Greet.")], key, mode=MemoryUse.OFF)
    if end == "finished":
        world.finish(greeting, "HIDDEN words and more of them")
    else:
        world.cancel(greeting, [assistant("HIDDEN words and more of them")])
    list_ = [assistant("HIDDEN words"), user("what is there to eat?")]
    world.say(list_, "Soup.", key)
    world.say([*list_, assistant("Soup."), user("fine")], "Until then.", key)
    assert world.active() == ["what is there to eat?", "Soup.", "fine", "Until then."]


def test_messages_alone_go_on_after_a_list_off_the_record(filling_world: World) -> None:
    filling_world.say([user("one")], "First.", "c1", mode=MemoryUse.OFF)
    filling_world.say([user("one"), assistant("First."), user("two")], "Second.", "c1", mode=MemoryUse.OFF)
    filling_world.say([user("three")], "Third.", "c1", append=True)
    assert filling_world.begin([user("four")], "c1", append=True).lines[-3:] == [
        "+ user: three",
        "+ assistant: Third.",
        "user: four",
    ]
    filling_world.say([user("four")], "Fourth.", "c1", append=True)
    assert filling_world.confirmed() == ["three", "Third."]
