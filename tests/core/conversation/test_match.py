"""Finding the conversation: one test for each way in which clients send their history.

Each draws the stored tree and says what stands, what is confirmed and what goes upstream. Most hold with an id of the
client's own and without one; where they differ, the test says how.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.conversation import match as history
from gateway.core.conversation.canonical import Canon, Listing, WireMessage, text_of
from gateway.core.conversation.lookup import full_probes
from gateway.core.conversation.match import Keeping, Query, lcs, spans_of
from gateway.core.conversation.plan import left_out
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.memory import visibility
from tests.core.conversations import (
    World,
    assistant,
    call,
    drawn,
    goes_on_from,
    picture,
    result,
    system,
    user,
)

both = pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])


@pytest.fixture
def world() -> World:
    """Whatever is sent here goes upstream as it is."""
    return World(adds_nothing=True)


@pytest.fixture
def filling() -> World:
    """Here what a list left out goes before it."""
    return World()


# -- resent as it was


@both
def test_a_full_resend_goes_on(world: World, key: str | None) -> None:
    history = world.chat(("my cat is Tom", "Nice cat."), key=key)
    first = world.begin(history[:1], key)
    then = world.say([*history, user("bye now")], "Bye.", key)
    assert world.tree() == drawn("""
        carried: my cat is Tom > Nice cat.
          stands: bye now > Bye.
    """)
    assert then.is_untouched
    assert goes_on_from(then, first)
    assert world.standing() == ["my cat is Tom", "Nice cat.", "bye now", "Bye."]
    assert world.confirmed() == ["my cat is Tom", "Nice cat."]
    world.wait(200)
    assert world.confirmed() == world.standing()


@both
@pytest.mark.parametrize("kept", [3, 5], ids=["keeps 3", "keeps 5"])
def test_what_a_trimmed_history_left_out_is_put_before_it(filling: World, key: str | None, kept: int) -> None:
    history: list[WireMessage] = []
    last = None
    for k in range(6):
        history.append(user(f"step {k}"))
        request = filling.begin(history[-kept:], key)
        assert [m for _, m in request.sent] == history
        assert [line for line in request.lines if line.startswith("+")] == [
            f"+ {m['role']}: {m['content']}" for m in history[:-kept]
        ]
        assert last is None or goes_on_from(request, last)
        last = filling.finish(request, f"step {k} is done")
        history.append(assistant(f"step {k} is done"))
    assert filling.tree() == "\n".join(
        f"{'  ' * k}{'carried' if k < 5 else 'stands'}: step {k} > step {k} is done" for k in range(6)
    )


def test_of_two_messages_a_short_reply_is_evidence_only_under_an_id(filling: World) -> None:
    for key in ("c1", None):
        history = filling.chat(("step 0", "is done"), ("step 1", "so is this"), key=key)
        request = filling.begin([history[-1], user("step 2")], key)
        left_out = ["+ user: step 0", "+ assistant: is done", "+ user: step 1"] if key else []
        assert request.lines == [*left_out, "assistant: so is this", "user: step 2"]


def test_without_an_id_a_long_reply_is_evidence_alone(filling: World) -> None:
    said = "Nobody else has ever written this sentence word for word."
    filling.chat(("step 0", "is done"), ("step 1", said))
    request = filling.begin([assistant(said), user("step 2")])
    assert request.lines == [
        "+ user: step 0",
        "+ assistant: is done",
        "+ user: step 1",
        f"assistant: {said}",
        "user: step 2",
    ]


def test_of_two_chats_that_are_as_near_none_goes_on(world: World) -> None:
    said = "Nobody else has ever written this sentence word for word."
    for head in ("my word is W1", "my word is W2"):
        world.chat((head, f"Noted: {head}."), ("go on", said), ("more", "More."), ("bye", "Bye."))
    rewritten = [user("the word was another"), assistant("Was it?"), user("go on"), assistant(said)]
    world.say([*rewritten, user("and now?")], "Now.")
    assert world.tree().splitlines()[-1].startswith("stands: the word was another")


@both
def test_a_clock_in_the_system_prompt_changes_nothing(world: World, key: str | None) -> None:
    history: list[WireMessage] = []
    for k in range(3):
        history.append(user(f"key {k}"))
        clock = system(f"The time is 12:0{k}")
        request = world.say([clock, *history], "Ok.", key)
        assert [m for _, m in request.sent] == [clock, *history]
        history.append(assistant("Ok."))
    assert world.tree() == drawn("""
        carried: key 0 > Ok.
          carried: key 1 > Ok.
            stands: key 2 > Ok.
    """)
    assert not any("12:0" in text for text in world.standing())


@both
def test_a_retry_is_one_turn(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my dog is Rex")]
    world.cancel(world.begin(asked, key))
    for _ in range(2):
        again = world.say(asked, "Nice dog.", key, retry=True)
        assert again.is_untouched
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          cut: my dog is Rex
          stands: my dog is Rex > Nice dog.
    """)
    assert world.standing().count("my dog is Rex") == 1
    assert world.confirmed() == ["hello there", "Good day."]


# -- asked again


@both
def test_a_regenerated_reply_replaces_the_old_one(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("name for my parrot?")]
    old, new = world.say(asked, "OLD", key), world.say(asked, "NEW", key)
    assert old.lines == new.lines
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          replaced: name for my parrot? > OLD
          stands: name for my parrot? > NEW
    """)
    world.say([*asked, assistant("NEW"), user("good")], "Yes.", key)
    assert world.confirmed() == ["hello there", "Good day.", "name for my parrot?", "NEW"]


@both
def test_going_on_from_the_reply_that_was_replaced_brings_it_back(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("name for my parrot?")]
    world.say(asked, "OLD", key)
    world.say(asked, "NEW", key)
    world.say([*asked, assistant("OLD"), user("I prefer the first")], "Fine.", key)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          carried: name for my parrot? > OLD
            stands: I prefer the first > Fine.
          replaced: name for my parrot? > NEW
    """)


@both
def test_a_regenerated_first_reply_stays_in_its_conversation(world: World, key: str | None) -> None:
    asked = [user("name for my parrot?")]
    world.say(asked, "OLD", key)
    world.say(asked, "NEW", key)
    assert world.tree() == drawn("""
        replaced: name for my parrot? > OLD
        stands: name for my parrot? > NEW
    """)


@both
def test_an_edit_of_an_earlier_message_leaves_what_was_carried(world: World, key: str | None) -> None:
    history = world.chat(("one", "r1"), ("two", "r2"), ("three", "r3"), key=key)
    edited = world.say([*history[:2], user("two EDITED")], "r2b", key)
    assert edited.is_untouched
    assert world.tree() == drawn("""
        carried: one > r1
          carried: two > r2
            stands: three > r3
          stands: two EDITED > r2b
    """)
    world.say([*history[:2], user("two EDITED"), assistant("r2b"), user("more")], "r3b", key)
    assert world.confirmed() == ["one", "r1", "two", "r2", "two EDITED", "r2b"]


@both
def test_an_edit_of_the_last_message_replaces_it(world: World, key: str | None) -> None:
    history = world.chat(("one", "r1"), ("all WRONG", "r2"), key=key)
    world.say([*history[:2], user("now RIGHT")], "r2b", key)
    assert world.tree() == drawn("""
        carried: one > r1
          replaced: all WRONG > r2
          stands: now RIGHT > r2b
    """)


@pytest.mark.parametrize(("key", "state"), [("c1", "replaced"), (None, "stands")], ids=["named", "found"])
def test_an_edit_after_the_idle_time_replaces_only_under_an_id(
    world: World, key: str | None, state: str
) -> None:
    history = world.chat(("one", "r1"), ("all WRONG", "r2"), key=key)
    world.wait(1000)
    world.say([*history[:2], user("now RIGHT")], "r2b", key)
    assert f"  {state}: all WRONG > r2" in world.tree().splitlines()


def test_an_edited_first_message_stands_once_it_is_continued(world: World) -> None:
    world.chat(("alpha WRONG", "r1"), key="c1")
    world.chat(("beta RIGHT", "r1b"), ("on", "r2"), key="c1")
    assert world.tree() == drawn("""
        waits: alpha WRONG > r1
        carried: beta RIGHT > r1b
          stands: on > r2
    """)


# -- voice


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("end", ["finished", "cancelled", "overlapping"])
def test_a_growing_message_is_one_turn(world: World, key: str | None, is_first: bool, end: str) -> None:
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    under_way = []
    for text in ("I would", "I would li", "I would like"):
        request = world.begin([*history, user(text)], key)
        if end == "finished":
            world.finish(request, "UNSPOKEN")
        elif end == "cancelled":
            world.cancel(request)
        else:
            under_way.append(request)
    whole = [*history, user("I would like a table")]
    world.say(whole, "A table.", key)
    for request in under_way:
        world.finish(request, "UNSPOKEN")
    before = [] if is_first else ["hello there", "Good day."]
    assert world.standing() == [*before, "I would like a table", "A table."]
    world.say([*whole, assistant("A table."), user("for two")], "Two.", key)
    assert world.confirmed() == [*before, "I would like a table", "A table."]
    states = [line.strip().split(":")[0] for line in world.tree().splitlines()]
    fallen = {"finished": "replaced", "overlapping": "replaced", "cancelled": "cut"}[end]
    assert states.count(fallen) == 3
    assert "--" not in states


@both
def test_a_transcript_that_shrank_again_stands_as_it_was_sent_last(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    for text, reply in (("a table", "said"), ("a table for", "UNSPOKEN"), ("a table", "said")):
        world.say([*history, user(text)], reply, key)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          stands: a table > said
          replaced: a table for > UNSPOKEN
    """)


def test_a_short_beginning_in_another_chat_takes_nothing_away(world: World) -> None:
    world.say([user("I would like a table at eight")], "At eight.")
    world.say([user("I would")], "Yes?")
    assert world.tree() == drawn("""
        stands: I would like a table at eight > At eight.
        --
        stands: I would > Yes?
    """)


CUTS = ["I booked a hotel", "I booked a hotel...", "I booked a ho-", "I booked a hotel [interrupted]"]


@both
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("template", ["", " [template]"], ids=["same words", "from a template"])
def test_a_reply_cut_by_barge_in_is_what_was_spoken(
    world: World, key: str | None, cut: str, template: str
) -> None:
    asked = "which hotel did you book?"
    world.say([user(asked + template)], "I booked a hotel. It is UNSPOKEN.", key, edits=["hotel"])
    spoken = [user(asked), assistant(cut)]
    request = world.say([*spoken, user("stop, I like tea")], "Tea, good.", key)
    assert request.is_untouched
    assert world.tree() == drawn(f"""
        carried: which hotel did you book? > {cut}
          stands: stop, I like tea > Tea, good.
    """)
    assert world.confirmed() == [asked, cut]
    assert world.learned() == ["hotel"]  # the turn was had, and so were its edits: once
    then = world.say([*spoken, user("stop, I like tea"), assistant("Tea, good."), user("bye")], "Bye.", key)
    assert goes_on_from(then, request)
    assert world.learned() == ["hotel"]


@both
def test_a_reply_that_came_back_altered_is_the_one_that_was_asked_for(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("and so?")]
    world.say(asked, "<think>UNSPOKEN</think>It is so.", key)
    world.say([*asked, assistant("So it is, yes."), user("thanks")], "Welcome.", key)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          carried: and so? > So it is, yes.
            stands: thanks > Welcome.
    """)


@both
def test_a_cut_reply_that_a_speculative_list_lacked(world: World, key: str | None) -> None:
    """A voice agent asks before it has noted down what it was able to say, then with it."""
    history = world.chat(("hello there", "Good day."), key=key)
    second = [*history, user("second thing")]
    world.say(second, "long answer that was UNSPOKEN", key)
    world.say([*second, user("third")], "SPECULATIVE", key)
    world.say([*second, assistant("long answer..."), user("third thing")], "Good.", key)
    assert world.standing() == [
        "hello there",
        "Good day.",
        "second thing",
        "long answer...",
        "third thing",
        "Good.",
    ]


@both
def test_what_was_spoken_of_a_cancelled_reply_counts(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("I like tea")]
    world.cancel(world.begin(asked, key), [assistant("Noted, tea it is and UNSPOKEN")], ["tea"])
    assert world.standing() == ["hello there", "Good day."]
    world.say([*asked, assistant("Noted, tea"), user("wait, coffee")], "Yes?", key)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          carried: I like tea > Noted, tea
            stands: wait, coffee > Yes?
    """)
    assert world.learned() == ["tea"]


@both
def test_of_an_assistant_message_that_vanished_nothing_stays(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    second = [*history, user("second thing")]
    first = world.say(second, "UNSPOKEN", key, edits=["dropped"])
    both_ = world.say([*second, user("third thing")], "Both.", key)
    assert goes_on_from(both_, first)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          replaced: second thing > UNSPOKEN
          stands: second thing / third thing > Both.
    """)
    world.say([*second, user("third thing"), assistant("Both."), user("fine")], "Fine.", key)
    world.wait(500)
    assert world.learned() == []
    assert world.confirmed()[2:5] == ["second thing", "third thing", "Both."]


# -- tools of the client's


@both
def test_parallel_calls_that_come_back_one_by_one(world: World, key: str | None) -> None:
    paris, rome = call("1"), call("2", arguments='{"city":"Rome"}')
    world.say([user("weather?")], assistant(None, paris, rome), key)
    split = [
        user("weather?"),
        assistant(None, paris),
        result("1", "sunny"),
        assistant(None, rome),
        result("2", "rain"),
    ]
    request = world.say(split, "Sunny and rain.", key)
    assert request.is_untouched
    then = world.say([*split, assistant("Sunny and rain."), user("thanks")], "Welcome.", key)
    assert goes_on_from(then, request)
    assert world.tree() == drawn("""
        carried: weather? > get_weather() get_weather()
          carried: =sunny / =rain > Sunny and rain.
            stands: thanks > Welcome.
    """)


@both
def test_tool_outputs_that_were_pruned_later(world: World, key: str | None) -> None:
    asked = [user("weather?"), assistant(None, call("1")), result("1", "a long OUTPUT")]
    world.say(asked[:1], asked[1], key)
    world.say(asked, "Sunny.", key)
    asked += [assistant("Sunny."), user("and?")]
    world.say(asked, "That is it.", key)
    asked[2] = result("1", "[pruned]")
    request = world.say([*asked, assistant("That is it."), user("bye now")], "Bye.", key)
    assert request.is_untouched
    assert world.tree() == drawn("""
        carried: weather? > get_weather()
          carried: =[pruned] > Sunny.
            carried: and? > That is it.
              stands: bye now > Bye.
    """)
    assert not any("OUTPUT" in text for text in world.standing())  # results are never told


@both
def test_arguments_dumped_anew_and_ids_renamed(world: World, key: str | None) -> None:
    world.say([user("weather?")], assistant(None, call("1", arguments='{"a":1,"city":"Paris"}')), key)
    mine = call("x9", arguments='{\n  "city": "Paris", "a": 1}')
    list_ = [user("weather?"), assistant("", mine), result("x9", "sunny")]
    assert world.say(list_, "Sunny.", key).is_untouched
    assert world.say([*list_, assistant("Sunny."), user("ok")], "Ok.", key).is_untouched
    assert world.tree() == drawn("""
        carried: weather? > get_weather()
          carried: =sunny > Sunny.
            stands: ok > Ok.
    """)


@both
@pytest.mark.parametrize(
    "middle",
    [
        [assistant("Let me look."), assistant(None, call("1"))],
        [assistant("Let me look.", call("1"))],
        [assistant("Let me"), assistant("look."), assistant(None, call("1"))],
    ],
    ids=["split", "as it was", "text apart"],
)
def test_text_and_calls_merged_or_split(world: World, key: str | None, middle: list[WireMessage]) -> None:
    world.say([user("weather?")], assistant("Let me look.", call("1")), key)
    request = world.say([user("weather?"), *middle, result("1", "sunny")], "Sunny.", key)
    assert request.is_untouched
    assert world.tree() == drawn("""
        stands: weather? > Let me look. get_weather()
          stands: =sunny > Sunny.
    """)


@both
def test_two_replies_merged_into_one_message(world: World, key: str | None) -> None:
    """The other way round: what was two messages for us is one for the client."""
    full = [assistant("Let me look."), assistant("Not yet.", call("1"))]
    world.say([user("weather?")], full, key)
    world.say(
        [user("weather?"), assistant("Let me look.Not yet.", call("1")), result("1", "sunny")], "Sun.", key
    )
    assert world.tree() == drawn("""
        stands: weather? > Let me look. Not yet. get_weather()
          stands: =sunny > Sun.
    """)


@both
def test_only_the_final_text_of_a_tool_turn(world: World, key: str | None) -> None:
    asked = [user("weather?"), assistant("Let me look.", call("1")), result("1", "sunny")]
    world.say(asked[:1], asked[1], key)
    world.say(asked, "Sunny, then.", key)
    short = [user("weather?"), assistant("Sunny, then."), user("thanks")]
    request = world.say(short, "Welcome.", key)
    assert request.is_untouched
    then = world.say([*short, assistant("Welcome."), user("bye")], "Bye.", key)
    assert goes_on_from(then, request)
    assert world.tree() == drawn("""
        carried: weather? > Let me look. get_weather()
          carried: =sunny > Sunny, then.
            carried: thanks > Welcome.
              stands: bye > Bye.
    """)


@both
def test_a_sliding_window_without_tool_rounds_is_filled_up(filling: World, key: str | None) -> None:
    history = filling.chat(("my word is W1", "Noted W1."), key=key)
    asked = [*history, user("weather?")]
    filling.say(asked, assistant(None, call("1")), key)
    filling.say([*asked, assistant(None, call("1")), result("1", "sunny")], "Sunny, then.", key)
    request = filling.begin([user("weather?"), assistant("Sunny, then."), user("thanks")], key)
    assert request.lines == [
        "+ user: my word is W1",
        "+ assistant: Noted W1.",
        "user: weather?",
        "assistant: Sunny, then.",
        "user: thanks",
    ]


@both
def test_a_template_in_a_trimmed_list_takes_nothing_from_what_goes_before_it(
    filling: World, key: str | None
) -> None:
    history = filling.chat(
        *((f"step {k}", f"Step {k} is done, and was not easy.") for k in range(4)), key=key
    )
    tail = [*history[2:4], user("Documents: DOC lorem. step 2"), *history[5:]]
    request = filling.begin([*tail, user("step 4")], key)
    assert request.lines[:3] == ["+ user: step 0", f"+ assistant: {history[1]['content']}", "user: step 1"]


# -- which conversation


@both
@pytest.mark.parametrize("gap", [5, 5000], ids=["at once", "a day later"])
def test_the_same_greeting_on_monday_and_on_tuesday(world: World, key: str | None, gap: float) -> None:
    for day in ("Monday", "Tuesday"):
        turns = (("Hi", "Hello! How can I help?"), (f"My cat is {day}", "Nice."), ("That is all", "Bye."))
        world.chat(*turns, key=day if key else None)
        world.wait(gap)
    assert world.tree() == drawn("""
        carried: Hi > Hello! How can I help?
          carried: My cat is Monday > Nice.
            stands: That is all > Bye.
        --
        carried: Hi > Hello! How can I help?
          carried: My cat is Tuesday > Nice.
            stands: That is all > Bye.
    """)


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
    assert world.tree() == drawn("""
        carried: Hi > Hello!
          carried: my pet is a cat > A cat.
            stands: more > More.
          carried: my pet is a dog > A dog.
            stands: more > More.
    """)


def test_a_whole_path_comes_before_the_end_of_another(world: World) -> None:
    world.chat(("go on", "Hello!"))
    world.chat(("something else", "Fine."), ("go on", "Hello!"))
    request = world.say([user("go on"), assistant("Hello!"), user("where is it?")], "There.")
    assert request.is_untouched
    assert world.tree() == drawn("""
        carried: go on > Hello!
          stands: where is it? > There.
        --
        carried: something else > Fine.
          stands: go on > Hello!
    """)


def test_of_two_chats_that_went_alike_the_newer_goes_on(world: World) -> None:
    world.chat(("Hi", "Hello!"), ("my cat is Tom", "Nice."), ("and a dog", "Two!"))
    world.wait(5000)
    world.chat(("Hi", "Hello!"), ("my cat is Tom", "Nice."))
    assert world.tree() == drawn("""
        carried: Hi > Hello!
          carried: my cat is Tom > Nice.
            stands: and a dog > Two!
        --
        carried: Hi > Hello!
          stands: my cat is Tom > Nice.
    """)


@both
def test_two_users_with_the_same_opening_share_nothing(world: World, key: str | None) -> None:
    world.chat(("Hi", "Hello!"), ("my pin is 1234", "Noted."), key=key, who="bob")
    world.say([user("Hi")], "Hello!", key)
    request = world.say([user("Hi"), assistant("Hello!"), user("what is my pin?")], "No idea.", key)
    assert request.is_untouched
    assert world.tree() == drawn("""
        carried: Hi > Hello!
          stands: what is my pin? > No idea.
    """)
    assert world.standing("bob")[2] == "my pin is 1234"


def test_of_two_anonymous_callers_nothing_is_kept(world: World) -> None:
    world.chat(("help?", "Sure!"), ("my code is 1234", "Sure!"), who=None)
    lists = (
        [user("my code?")],
        [user("help?"), assistant("Sure!"), user("my code?")],
        [assistant("Sure!"), user("my code?")],
    )
    for messages in lists:
        assert world.begin(messages, who=None).is_untouched
    assert world.tree(None) == ""


def test_an_anonymous_conversation_with_an_id_is_remembered_alone(filling: World) -> None:
    history = filling.chat(("one", "r1"), ("two", "r2"), key="call 7", who=None)
    here = filling.begin([history[-1], user("three")], "call 7", who=None)
    assert here.lines == [
        "+ user: one",
        "+ assistant: r1",
        "+ user: two",
        "assistant: r2",
        "user: three",
    ]
    assert filling.begin([history[-1], user("three")], "call 8", who=None).is_untouched


def test_a_lone_message_in_a_known_conversation_waits_until_it_is_continued(world: World) -> None:
    world.chat(("the word is W1", "Noted."), ("go on", "Going."), key="c1")
    lone = [user("something else")]
    assert world.say(lone, "Sure.", "c1").is_untouched
    assert world.tree() == drawn("""
        carried: the word is W1 > Noted.
          stands: go on > Going.
        waits: something else > Sure.
    """)
    world.say([*lone, assistant("Sure."), user("more")], "More.", "c1")
    assert world.tree() == drawn("""
        carried: the word is W1 > Noted.
          stands: go on > Going.
        carried: something else > Sure.
          stands: more > More.
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
    assert world.tree() == drawn("""
        carried: my horse is Bo > A fine horse.
          carried: he likes apples > Good.
            stands: and carrots > Those too.
        waits: Write a HEADING for this chat: my horse > Horses
    """)
    assert not any("HEADING" in text for text in world.confirmed())


@both
def test_a_title_request_as_one_more_question_falls_with_the_next(world: World, key: str | None) -> None:
    history = world.chat(("my horse is Bo", "A fine horse."), key=key)
    world.say([*history, user("Give this chat a HEADING")], "Horses", key)
    world.say([*history, user("and carrots")], "Those too.", key)
    assert world.tree() == drawn("""
        carried: my horse is Bo > A fine horse.
          replaced: Give this chat a HEADING > Horses
          stands: and carrots > Those too.
    """)


# -- heads and templates


@both
@pytest.mark.parametrize("reply", ["answer {}", "Ok."], ids=["telling replies", "replies all alike"])
def test_a_template_on_the_last_message_only(world: World, key: str | None, reply: str) -> None:
    history: list[WireMessage] = []
    for k, question in enumerate(("my boat is Ada", "the capital of Peru", "thanks")):
        wrapped = user(f"Documents: DOC{k} lorem.\nQuestion: {question}")
        assert world.say([*history, wrapped], reply.format(k), key).is_untouched
        history += [user(question), assistant(reply.format(k))]
    said = [reply.format(k) for k in range(3)]
    assert (
        world.tree()
        == drawn(f"""
        carried: my boat is Ada > {said[0]}
          carried: the capital of Peru > {said[1]}
            stands: Documents: DOC2 lorem.
    """)
        + f"\nQuestion: thanks > {said[2]}"
    )
    assert world.confirmed() == ["my boat is Ada", said[0], "the capital of Peru", said[1]]


@both
def test_the_clients_own_summary_in_place_of_the_head(world: World, key: str | None) -> None:
    history = world.chat(*((f"fact {k}", f"reply number {k}") for k in range(4)), key=key)
    request = world.say([user("Summary: four facts"), *history[-4:], user("next")], "Next.", key)
    assert request.is_untouched
    assert world.tree().splitlines()[-2:] == [
        "      carried: fact 3 > reply number 3",
        "        stands: next > Next.",
    ]
    assert not any("Summary" in text for text in world.standing())


def shots() -> list[WireMessage]:
    return [
        user("My name is Zoe"),
        assistant("Extracted: name."),
        user("I am 30"),
        assistant("Extracted: age."),
    ]


@both
def test_a_fixed_few_shot_head_is_nobodys_memory(world: World, key: str | None) -> None:
    for k in range(3):
        turns = ((f"I like tea {k}", f"Extracted: tea {k}."), ("Bye", "Bye."))
        world.chat(*turns, key=f"c{k}" if key else None, start=shots())
    head = "My name is Zoe / Extracted: name. / I am 30 / Extracted: age."
    assert world.tree() == "\n--\n".join(
        f"carried: {head} / I like tea {k} > Extracted: tea {k}.\n  stands: Bye > Bye." for k in range(3)
    )
    assert world.standing() == [
        text for k in range(3) for text in (f"I like tea {k}", f"Extracted: tea {k}.", "Bye", "Bye.")
    ]


@pytest.mark.parametrize(
    "answer", ["Extracted: age.", "Extracted: age, and nothing else worth a field of its own."]
)
def test_a_few_shot_answer_that_the_model_repeats_is_no_evidence(world: World, answer: str) -> None:
    for k in range(3):
        world.say([*shots()[:3], assistant(answer), user(f"born in {1970 + k}")], answer)
    assert world.tree().count("--") == 2
    assert world.tree().count("stands:") == 3


@both
def test_an_imported_history_is_shown_once_it_was_carried_on(world: World, key: str | None) -> None:
    start = [user("my boat is Ada"), assistant("A boat.")]
    history = world.chat(("one", "r1"), key=key, start=start)
    world.wait(900)
    assert world.standing() == world.confirmed() == ["one", "r1"]
    world.chat(("two", "r2"), key=key, start=history)
    assert world.standing() == ["my boat is Ada", "A boat.", "one", "r1", "two", "r2"]


@both
def test_an_opening_that_was_cancelled_here_was_not_made_elsewhere(world: World, key: str | None) -> None:
    """Nothing is known of a reply that came while the first request was let go; the question was asked here."""
    asked = [user("I like tea")]
    world.cancel(world.begin(asked, key))
    world.say([*asked, assistant("Noted."), user("and coffee")], "Both.", key)
    assert world.standing() == ["I like tea", "Noted.", "and coffee", "Both."]


def test_a_greeting_of_the_app_that_the_model_also_said_elsewhere(world: World) -> None:
    greeting = "Hello! How can I help?"
    world.chat(("Hi", greeting), ("my pin is 1234", "Noted."), ("say that again", greeting))
    assert world.say([assistant(greeting), user("what is the weather?")], "Fine.").is_untouched
    assert world.tree() == drawn("""
        carried: Hi > Hello! How can I help?
          carried: my pin is 1234 > Noted.
            stands: say that again > Hello! How can I help?
        --
        stands: Hello! How can I help? / what is the weather? > Fine.
    """)


@both
def test_another_image_with_the_same_words_is_another_question(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    world.say([*history, picture("what is this?", "data:1")], "A cat.", key)
    world.say([*history, picture("what is this?", "data:2")], "A dog.", key)
    assert world.tree() == drawn("""
        carried: hello there > Good day.
          replaced: what is this? > A cat.
          stands: what is this? > A dog.
    """)


def test_another_image_opens_another_conversation(world: World) -> None:
    world.say([picture("what is this?", "data:1")], "A cat.")
    world.say([picture("what is this?", "data:2")], "A dog.")
    assert world.tree() == drawn("""
        stands: what is this? > A cat.
        --
        stands: what is this? > A dog.
    """)


# -- append mode


def test_append_mode_puts_the_conversation_before_the_message(filling: World) -> None:
    last = None
    for k in range(3):
        request = filling.say([user(f"word {k}")], f"got {k}", "c1", append=True)
        earlier = [line for j in range(k) for line in (f"+ user: word {j}", f"+ assistant: got {j}")]
        assert request.lines == [*earlier, f"user: word {k}"]
        assert last is None or goes_on_from(request, last)
        last = request
    filling.cancel(filling.begin([user("lost?")], "c1", append=True))
    request = filling.begin([user("and now?")], "c1", append=True)
    assert request.lines[-2:] == ["+ user: lost?", "user: and now?"]
    filling.finish(request, "Now.")
    assert filling.tree() == drawn("""
        carried: word 0 > got 0
          carried: word 1 > got 1
            carried: word 2 > got 2
              cut: lost?
              stands: lost? / and now? > Now.
    """)
    again = filling.say([user("and now?")], "Again.", "c1", append=True, retry=True)
    assert again.lines == request.lines
    assert filling.standing()[-3:] == ["lost?", "and now?", "Again."]


def test_a_cancelled_message_that_is_sent_again_in_append_mode_is_there_once(filling: World) -> None:
    filling.say([user("one")], "r1", "c1", append=True)
    filling.cancel(filling.begin([user("lost?")], "c1", append=True))
    request = filling.say([user("lost?")], "Found.", "c1", append=True)
    assert request.lines == ["+ user: one", "+ assistant: r1", "user: lost?"]
    assert filling.standing() == ["one", "r1", "lost?", "Found."]


def test_an_appending_client_that_resends_after_all_is_taken_at_its_word(world: World) -> None:
    world.say([user("one")], "r1", "c1", append=True)
    request = world.say([user("one"), assistant("r1"), user("two")], "r2", "c1", append=True)
    assert request.is_untouched
    assert world.tree() == drawn("""
        carried: one > r1
          stands: two > r2
    """)


# -- off the record


@both
@pytest.mark.parametrize("mode", [Keeping.OFF, Keeping.READ])
def test_a_turn_that_was_off_stays_so_when_it_is_resent(world: World, key: str | None, mode: Keeping) -> None:
    secret = [user("my diagnosis is X")]
    world.say(secret, "Sorry to hear.", key, mode=mode)
    assert world.tree() == "off: ... > ..."
    history = [*secret, assistant("Sorry to hear.")]
    request = world.say([*history, user("my bicycle is red")], "Good.", key)
    assert request.is_untouched
    world.chat(("bye", "Bye."), key=key, start=[*history, user("my bicycle is red"), assistant("Good.")])
    assert world.standing() == ["my bicycle is red", "Good.", "bye", "Bye."]
    assert world.confirmed() == ["my bicycle is red", "Good."]
    assert world.tree() == drawn("""
        off: ... > ...
          carried: my bicycle is red > Good.
            stands: bye > Bye.
    """)


@both
def test_a_turn_that_was_off_stays_so_in_other_forms(filling: World, key: str | None) -> None:
    history = filling.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my diagnosis is X")]
    filling.say(asked, "Sorry to hear that.", key, mode=Keeping.OFF)
    lists = (
        ([*asked, assistant("Sorry to hear..."), user("ok one")], []),  # its reply was cut
        ([asked[-1], assistant("Sorry to hear..."), user("ok two")], history),  # and the list trimmed
        ([*asked, user("ok three")], []),  # its reply is gone
    )
    for messages, front in lists:
        request = filling.say(messages, "Fine.", key)
        assert request.sent == [*(("+ ", m) for m in front), *(("", m) for m in messages)]
        assert not any("diagnosis" in text or "Sorry" in text for text in filling.standing())
        assert not any(b"diagnosis" in (e.input or b"") for e in filling.memory().records.values())


@both
def test_what_follows_a_turn_that_was_off_is_not_kept_either(world: World, key: str | None) -> None:
    """Another reply in the place of the one that was given, while what was said later rests on that one."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("my diagnosis is X")]
    world.say(asked, "Sorry to hear that.", key, mode=Keeping.OFF)
    world.chat(
        ("bye now", "Bye."), ("thanks", "Welcome."), key=key, start=[*asked, assistant("Sorry to hear that.")]
    )
    request = world.say([*asked, assistant("X is harmless."), user("my bicycle is red")], "Good.", key)
    assert request.is_untouched
    stored = b"".join(e.input or b"" for e in world.memory().records.values())
    assert b"bicycle" in stored
    assert b"harmless" not in stored


@both
def test_what_is_put_before_a_trimmed_list_is_all_but_what_is_off(filling: World, key: str | None) -> None:
    history = filling.chat(("my word is W1", "Noted W1."), key=key)
    asked = [*history, user("my diagnosis is X")]
    filling.say(asked, "Sorry.", key, mode=Keeping.OFF)
    then = (
        ("two", "This is the second reply of them all."),
        ("three", "This is the third reply of them all."),
    )
    history = filling.chat(*then, key=key, start=[*asked, assistant("Sorry.")])
    request = filling.begin([*history[-2:], user("four")], key)
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
    assert request.composition.fill == []


def test_a_turn_that_was_off_and_is_asked_again_stays_off_for_the_idle_time(world: World) -> None:
    asked = [user("my diagnosis is X")]
    world.say(asked, "Sorry.", mode=Keeping.OFF)
    world.say(asked, "Oh.")
    assert world.standing() == []
    world.wait(5000)
    world.say(asked, "Oh.")
    assert world.standing() == ["my diagnosis is X", "Oh."]  # another day: said anew


def test_what_was_forgotten_stays_forgotten(world: World) -> None:
    history = world.chat(("my pin is 1234", "Noted."), ("bye", "Bye."))
    world.forget(1)
    request = world.say([*history, user("again")], "Again.")
    assert request.is_untouched
    assert world.tree() == drawn("""
        forgotten: ... > ...
          carried: bye > Bye.
            stands: again > Again.
    """)
    assert not any("1234" in text for text in world.standing())
    trimmed = world.begin([history[-1], user("again")])
    assert "1234" not in "".join(trimmed.lines)  # nor is it filled in


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
    pairs = lcs(a, b)
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
        lcs([Counted(b"a%d" % i) for i in range(size)], [b"b%d" % i for i in range(size)])
        costs.append(Counted.compared)
    assert costs[0] == costs[1]


def test_lcs_pairs_equal_ends_however_long_they_are() -> None:
    atoms = [b"%d" % i for i in range(2000)]
    assert len(lcs([b"x", *atoms], [b"y", *atoms])) == 2000


@pytest.mark.parametrize(("part", "key"), [("lcs", None), ("letters", "here")])
def test_looking_for_a_common_reply_costs_no_more_for_longer_lists(
    world: World, part: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither comparing paths nor comparing words: a few thousand messages held the loop for half a minute."""
    calls: list[int] = []
    compare = getattr(history, part)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return compare(*arguments)

    monkeypatch.setattr(history, part, counted)
    for number in range(12):
        world.say([user(f"question {number}")], "Ok.", key)
    costs = []
    for turns in (100, 300):
        calls.clear()
        world.begin([m for k in range(turns) for m in (user(f"other {k}"), assistant("Ok."))], key)
        costs.append(len(calls))
    assert costs[0] == costs[1] > 0


def test_what_is_shown_of_a_long_head_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each of its messages took seconds, with every search until they were indexed."""
    head = [m for k in range(50) for m in (user(f"q{k}"), assistant(f"a{k}"))]
    world.say([*head, user("bye")], "Bye.")
    (e,) = world.memory().records.values()
    read: list[int] = []

    def loads(data: bytes) -> Any:
        read.append(len(data))
        return orjson.loads(data)

    monkeypatch.setattr(visibility, "orjson", SimpleNamespace(loads=loads))
    found = visibility.messages_of(replace(e, carried=True), False, None)
    assert [m.text for m in found[:2]] == ["q0", "a0"]
    assert (len(found), len(read)) == (102, 2)


def test_questions_are_looked_up_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [assistant(None, call("1")), result("1", "found")] * 300
    listing = Listing(Canon(b""), [user("q"), *calls, user("and?")])
    roles: list[int] = []
    role = Listing.role

    def counted(self: Listing, i: int) -> str:
        roles.append(i)
        return role(self, i)

    monkeypatch.setattr(Listing, "role", counted)
    assert full_probes(Query(listing, False, Keeping.ON, 0.0, 120.0), None).inputs
    assert len(roles) < 20 * len(listing)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 20))
def test_left_out_is_what_a_list_and_the_path_need_to_be_whole(words: list[int], cut: int) -> None:
    """Of a path cut anywhere, what is left out and what is listed are the path again; of a whole one nothing is."""
    world = World()
    world.chat(*((f"q{k} {w}", f"a{k}") for k, w in enumerate(words)))
    tree = Tree(world.memory().records.values())
    line = tree.line(tree.by_id[len(words)])
    tail = line[cut % len(line) :]
    out = left_out(line, [a for el in tail for a in el.atoms])
    assert out == line[: cut % len(line)]


def test_left_out_is_nothing_where_the_tail_is_not_the_paths(world: World) -> None:
    world.chat(("one", "r1"), ("two", "r2"), ("three", "r3"))
    tree = Tree(world.memory().records.values())
    line: list[PathElement] = tree.line(tree.by_id[3])
    listed = Listing(world.memory().canon, [user("2"), assistant("r2"), user("three"), assistant("r3")])
    assert left_out(line, listed.flat(4)) == []
    assert left_out(line, []) == []


def test_replies_are_looked_up_in_the_last_turns_only(world: World) -> None:
    messages = [m for k in range(6) for m in (user(f"q{k}"), assistant(f"a{k}", call("1")))]
    listing = Listing(world.memory().canon, messages)
    keys = spans_of(listing, 2)
    found = [k for k in range(6) if listing.canon.reply_key(listing.atoms[2 * k + 1]) in keys]
    assert found == [3, 4, 5]


@both
@pytest.mark.parametrize("heard", ["A long answer", "A long answer, of more than thirty-two letters"])
def test_two_replies_cut_to_the_same_words_are_two_turns(world: World, key: str | None, heard: str) -> None:
    history: list[WireMessage] = []
    for number in range(3):
        history.append(user(f"Question {number}?"))
        world.say(history, f"{heard} and the rest, unspoken {number}", key)
        history.append(assistant(heard))
    world.say([*history, user("bye")], "Bye.", key)
    assert world.standing() == [
        *(text for number in range(3) for text in (f"Question {number}?", heard)),
        "bye",
        "Bye.",
    ]


# What a voice client had of one turn: its question, how many words came before it cut, what of them was spoken.
_COMMON = st.sampled_from(["yes", "go on", "what"])
_CUTS = st.lists(
    st.tuples(st.none() | _COMMON, st.none() | st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=14
)


def _barge_in(
    world: World,
    key: str | None,
    cuts: list[tuple[str | None, int | None, int]],
    reply: str,
    window: int = 99,
) -> tuple[list[WireMessage], list[str]]:
    """The history of a client that cut all these replies, and the questions whose requests went to their end."""
    history: list[WireMessage] = []
    finished = []
    for number, (common, cut, heard) in enumerate(cuts):
        question = common or f"Item {number} is {chr(97 + number) * 4}."
        history.append(user(question))
        tail = history[-window:]
        while tail[0]["role"] != "user":
            tail = tail[1:]
        request = world.begin([system("A voice agent."), *tail], key)
        whole = f"{reply} {number} and some more."
        got = whole if cut is None else " ".join(whole.split()[:cut])
        if cut is None:
            world.finish(request, whole)
            finished.append(question)
        else:
            world.cancel(request, [assistant(got)] if got else [])
        if spoken := (got if heard == 12 else got[:heard].strip()):
            history.append(assistant(spoken))
    return history, finished


def _path_texts(world: World, exchange: int) -> list[str]:
    tree = Tree(world.memory().records.values())
    contents = [tree.content(e) for e in tree.chain(tree.by_id[exchange])]
    return [text_of(m) for c in contents for m in [*(c.messages or []), c.said] if m and text_of(m)]


@both
@given(cuts=_CUTS, reply=st.sampled_from(["This is what I know about item", "Sure"]))
def test_a_path_is_what_the_client_had_however_short_its_replies_were_cut(
    key: str | None, cuts: list[tuple[str | None, int | None, int]], reply: str
) -> None:
    world = World(adds_nothing=True)
    history, _ = _barge_in(world, key, cuts, reply)
    last = world.say([*history, user("bye now")], "Bye bye then.", key)
    assert _path_texts(world, last.exchange) == [*map(text_of, history), "bye now", "Bye bye then."]
    spoken = set(map(text_of, history))
    assert spoken <= set(world.standing()), "every word that was had stands"


@both
@given(cuts=_CUTS, window=st.integers(3, 9))
def test_a_short_reply_never_puts_a_question_in_the_place_of_another(
    key: str | None, cuts: list[tuple[str | None, int | None, int]], window: int
) -> None:
    world = World()
    cuts = [(None, cut, heard) for _, cut, heard in cuts]
    _, finished = _barge_in(world, key, cuts, "This is what I know about item", window)
    tree = Tree(world.memory().records.values())
    stored = {text_of(m) for e in tree for m in tree.content(e).messages or []}
    assert set(finished) <= stored


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
    assert _path_texts(world, last.exchange) == [*map(text_of, history), "bye", "Bye."]


def test_the_questions_of_many_short_replies_are_asked_for_together(world: World) -> None:
    # Each reply is found, and none of their questions is akin: the search compares one turn after the other.
    world.chat(*((f"question number {n}", f"Yes, {n}.") for n in range(7)), key="c1")
    rewritten: list[WireMessage] = []
    for n in range(7):
        rewritten += [user(f"something else entirely, {n}"), assistant(f"Yes, {n}.")]
    request = world.begin([*rewritten, user("and now?")], "c1")
    assert request.plan is not None
    assert request.plan.match.anchor is None
