"""Finding the conversation of a voice client: growing transcripts, and replies that were cut."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, read_text
from tests.core.conversation.keyed import both, path_texts
from tests.core.conversations import (
    World,
    assistant,
    call,
    extends_prompt,
    outline,
    result,
    system,
    user,
)
from tests.rows import each_row

# -- voice


@pytest.mark.parametrize(
    ("before", "after", "is_whole"),
    [("room-1", "room-2", True), ("room-1", "room-1", False), (None, None, False)],
    ids=["another room", "the same", "unnamed"],
)
def test_the_heard_part_of_a_reply_in_another_room(
    world: World, before: str | None, after: str | None, is_whole: bool
) -> None:
    """No request of the first room shows that its last reply was cut."""
    told = ("tell me of a fox please", "Once there was a fox who slept.")
    history = world.chat(("hello there", "Good day."), told, key=before)
    world.say([*history[:-1], assistant("Once there was"), user("stop")], "Sorry.", after)
    assert (told[1] in world.active()) is is_whole


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
    assert world.active() == [*before, "I would like a table", "A table."]
    world.say([*whole, assistant("A table."), user("for two")], "Two.", key)
    assert world.confirmed() == [*before, "I would like a table", "A table."]
    states = [line.strip().split(":")[0] for line in world.tree().splitlines()]
    fallen = {"finished": "superseded", "overlapping": "superseded", "cancelled": "cancelled"}[end]
    assert states.count(fallen) == 3
    assert "--" not in states


@both
def test_a_transcript_that_shrank_again_stands_as_it_was_sent_last(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    for text, reply in (("a table", "said"), ("a table for", "UNSPOKEN"), ("a table", "said")):
        world.say([*history, user(text)], reply, key)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          active: a table > said
          superseded: a table for > UNSPOKEN
    """)


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_a_draft_without_a_reply_that_was_heard_after_all_is_nothing(
    world: World, key: str | None, is_first: bool
) -> None:
    """The caller cuts in, and is answered just in case before the client notes what was heard (LiveKit, Pipecat)."""
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("what is there to eat?")]
    world.say(asked, "We have soup and UNSPOKEN.", key)
    world.say([*asked, user("stop")], "UNSPOKEN", key)
    world.say([*asked, assistant("We have soup"), user("stop it")], "Very well.", key)
    before = [] if is_first else ["hello there", "Good day."]
    said = ["what is there to eat?", "We have soup", "stop it", "Very well."]
    assert world.active() == [*before, *said]


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_a_question_during_a_reply_comes_after_the_reply(
    world: World, key: str | None, is_first: bool
) -> None:
    """Somebody types while the agent speaks (LiveKit's `generate_reply(user_input=...)`)."""
    soup, eight = "We have soup today, and bread with it.", "At eight there is a table for the two of you."
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("what is there to eat?")]
    first, second = world.begin(asked, key), world.begin([*asked, user("a table")], key)
    world.finish(first, soup)
    world.finish(second, eight)
    whole = [*asked, assistant(soup), user("a table"), assistant(eight)]
    world.say([*whole, user("fine")], "Until then.", key)
    before = [] if is_first else ["hello there", "Good day."]
    said = ["what is there to eat?", soup, "a table", eight, "fine", "Until then."]
    assert world.active() == [*before, *said]


def test_a_short_beginning_in_another_chat_takes_nothing_away(world: World) -> None:
    world.say([user("I would like a table at eight")], "At eight.")
    world.say([user("I would")], "Yes?")
    assert world.tree() == outline("""
        active: I would like a table at eight > At eight.
        --
        active: I would > Yes?
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
    assert world.tree() == outline(f"""
        continued: which hotel did you book? > {cut}
          active: stop, I like tea > Tea, good.
    """)
    assert world.confirmed() == [asked, cut]
    assert world.list_learned() == ["hotel"]  # the turn was had, and so were its edits: once
    then = world.say([*spoken, user("stop, I like tea"), assistant("Tea, good."), user("bye")], "Bye.", key)
    assert extends_prompt(then, request)
    assert world.list_learned() == ["hotel"]


@both
def test_a_reply_that_came_back_altered_is_the_one_that_was_asked_for(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("and so?")]
    world.say(asked, "<think>UNSPOKEN</think>It is so.", key)
    world.say([*asked, assistant("So it is, yes."), user("thanks")], "Welcome.", key)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          continued: and so? > So it is, yes.
            active: thanks > Welcome.
    """)


@both
@pytest.mark.parametrize("trimmed", [0, 1])
def test_a_cut_reply_whose_question_a_trimmed_list_left_out(
    filling_world: World, key: str | None, trimmed: int
) -> None:
    """The two requests after it were cancelled, so that the third is the first to finish on it."""
    said: list[WireMessage] = []
    for k in range(3):
        said.append(user(f"what is thing {k}?"))
        request = filling_world.begin(said[trimmed if k == 2 else 0 :], key)
        filling_world.cancel(request, [assistant(f"This is a long answer number {k}, UNSPOKEN.")])
        said.append(assistant(f"This is a long answer number {k}"))
    filling_world.say([*said[trimmed:], user("thanks")], "Welcome.", key)
    assert filling_world.tree() == outline("""
        continued: what is thing 0? > This is a long answer number 0
          continued: what is thing 1? > This is a long answer number 1
            continued: what is thing 2? > This is a long answer number 2
              active: thanks > Welcome.
    """)


@both
@pytest.mark.parametrize("trimmed", [2, 3, 4])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cancelled"])
def test_a_trimmed_list_of_interrupted_turns_gets_its_front(
    filling_world: World, key: str | None, trimmed: int, is_whole: bool
) -> None:
    list_ = filling_world.chat(("first thing", "One it is."), ("second thing", "Two it is."), key=key)
    for name in ("third", "fourth"):
        list_.append(user(f"the {name} thing"))
        request = filling_world.begin(list_, key)
        if is_whole and name == "fourth":
            filling_world.finish(request, f"It is the {name}, UNSPOKEN")
        else:
            filling_world.cancel(request, [assistant(f"It is the {name}, UNSPOKEN")])
        list_.append(assistant(f"It is the {name}"))
    list_.append(user("go on"))
    sent = filling_world.begin(list_[trimmed:], key).sent
    assert [message for _, message in sent] == list_
    assert [kind for kind, _ in sent].count("+ ") == trimmed


@both
def test_a_cut_reply_that_a_speculative_list_lacked(world: World, key: str | None) -> None:
    """A voice agent asks before it has noted down what it was able to say, then with it."""
    history = world.chat(("hello there", "Good day."), key=key)
    second = [*history, user("second thing")]
    world.say(second, "long answer that was UNSPOKEN", key)
    world.say([*second, user("third")], "SPECULATIVE", key)
    world.say([*second, assistant("long answer..."), user("third thing")], "Good.", key)
    assert world.active() == [
        "hello there",
        "Good day.",
        "second thing",
        "long answer...",
        "third thing",
        "Good.",
    ]


@both
@pytest.mark.parametrize(
    ("reply", "is_merged"),
    [
        ([assistant(None, call("c1"))], False),
        ([assistant(None, call("c1"))], True),  # items of a response in a row become one message
        ([assistant("At eight there is a table for the two of you.")], False),
    ],
    ids=["calls", "one message", "text"],
)
def test_the_heard_part_may_come_after_the_next_question(
    world: World, key: str | None, reply: list[WireMessage], is_merged: bool
) -> None:
    """Pipecat on a busy machine: the words that the caller cut off come into the list after what the caller said."""
    history = world.chat(("hello there", "Good day."), ("look twice", "Looking."), key=key)
    looked = assistant("Looking.", call("c2"), call("c3"))
    asked = [*history[:-2], user("look again")]
    world.say(asked, looked, key)
    # Pipecat sends each call with its result alone, and the words before them when they were spoken.
    for id in ("c2", "c3"):
        asked += [assistant(None, call(id)), result(id, "nothing")]
    asked += [assistant("Looking."), user("what is there to eat?")]
    world.cancel(world.begin(asked, key), [assistant("We have soup and UNSPOKEN")])
    asked.append(user("a table please"))
    world.finish(world.begin(asked, key), reply)
    after = [result("c1", "8 pm")] if reply[0].get("tool_calls") else []
    listed = [{**reply[0], "content": "We have soup"}] if is_merged else [assistant("We have soup"), *reply]
    whole = [*asked, *listed, *after, user("fine")]
    world.say(whole, "Until then.", key)
    heard = " ".join(["We have soup", *filter(None, map(read_text, reply))])
    assert world.active()[-5:] == ["what is there to eat?", "a table please", heard, "fine", "Until then."]
    (line,) = world.say([*whole, assistant("Until then."), user("bye")], "Bye.", key).lines[-1:]
    assert line == "user: bye"


@both
def test_the_spoken_part_of_a_cancelled_reply_counts(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("I like tea")]
    world.cancel(world.begin(asked, key), [assistant("Noted, tea it is and UNSPOKEN")], ["tea"])
    assert world.active() == ["hello there", "Good day."]
    world.say([*asked, assistant("Noted, tea"), user("wait, coffee")], "Yes?", key)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          continued: I like tea > Noted, tea
            active: wait, coffee > Yes?
    """)
    assert world.list_learned() == ["tea"]


@both
def test_an_assistant_message_that_vanished_is_not_stored(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    second = [*history, user("second thing")]
    first = world.say(second, "UNSPOKEN", key, edits=["dropped"])
    both_ = world.say([*second, user("third thing")], "Both.", key)
    assert extends_prompt(both_, first)
    assert world.tree() == outline("""
        continued: hello there > Good day.
          superseded: second thing > UNSPOKEN
          active: second thing / third thing > Both.
    """)
    world.say([*second, user("third thing"), assistant("Both."), user("fine")], "Fine.", key)
    world.wait(500)
    assert world.list_learned() == []
    assert world.confirmed()[2:5] == ["second thing", "third thing", "Both."]


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_a_cut_turn_that_is_written_after_the_next_one_began_is_sent_once(
    world: World, key: str | None, is_first: bool
) -> None:
    """The next request has reached another gateway meanwhile, and keeps the words and what was heard itself."""
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    before = [read_text(m) for m in history]
    asked = [*history, user("Where is the market?")]
    cut = world.begin(asked, key)
    heard = [*asked, assistant("It is on the large..."), user("Stop, which river?")]
    following = world.begin(heard, key)
    world.cancel(cut, [assistant("It is on the large square near the river")])
    world.finish(following, "The Elbe.")
    said = [*before, "Where is the market?", "It is on the large...", "Stop, which river?", "The Elbe."]
    assert world.active() == said
    world.say([*heard, assistant("The Elbe."), user("Thanks")], "Welcome.", key)
    assert world.active() == [*said, "Thanks", "Welcome."]


@both
@pytest.mark.parametrize("heard", ["A long answer", "A long answer, of more than thirty-two letters"])
def test_two_replies_cut_to_the_same_words_are_two_turns(world: World, key: str | None, heard: str) -> None:
    history: list[WireMessage] = []
    for number in range(3):
        history.append(user(f"Question {number}?"))
        world.say(history, f"{heard} and the rest, unspoken {number}", key)
        history.append(assistant(heard))
    world.say([*history, user("bye")], "Bye.", key)
    assert world.active() == [
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


@both
@settings(max_examples=50)
@given(cuts=_CUTS, reply=st.sampled_from(["This is what I know about item", "Sure"]))
def test_a_path_is_what_the_client_had_however_short_its_replies_were_cut(
    key: str | None, cuts: list[tuple[str | None, int | None, int]], reply: str
) -> None:
    world = World(adds_nothing=True)
    history, _ = _barge_in(world, key, cuts, reply)
    last = world.say([*history, user("bye now")], "Bye bye then.", key)
    assert path_texts(world, last.exchange_row) == [*map(read_text, history), "bye now", "Bye bye then."]
    spoken = set(map(read_text, history))
    assert spoken <= set(world.active()), "every word that was had stands"


@both
@settings(max_examples=50)
@given(cuts=_CUTS, window=st.integers(3, 9))
def test_a_short_reply_never_puts_a_question_in_the_place_of_another(
    key: str | None, cuts: list[tuple[str | None, int | None, int]], window: int
) -> None:
    world = World()
    cuts = [(None, cut, heard) for _, cut, heard in cuts]
    _, finished = _barge_in(world, key, cuts, "This is what I know about item", window)
    tree = Tree(world.memory().records.values())
    stored = {read_text(m) for e in tree for m in tree.contents.get(e).messages or []}
    assert set(finished) <= stored


@both
def test_a_question_is_not_lost_where_the_words_of_three_cut_replies_come_late(
    world: World, key: str | None
) -> None:
    """Twice the caller was quicker than the client, which lists what was heard one question late."""
    asked = [*world.chat(("hello there", "Good day."), key=key), user("what is there to eat?")]
    world.cancel(world.begin(asked, key), [assistant("Soup is what we have")])
    asked.append(user("and the price?"))
    world.cancel(world.begin(asked, key), [assistant("Nine euros for a bowl of it")])
    asked += [assistant("Soup is"), user("is it hot?"), assistant("Nine euros for")]
    world.cancel(world.begin(asked, key), [assistant("It is very hot")])
    asked += [assistant("It is"), user("fine")]
    world.say(asked, "Until then.", key)
    assert [text for text in map(read_text, asked) if text not in " ".join(world.active())] == []


@both
def test_a_question_that_was_cancelled_is_not_lost_with_what_was_heard_of_its_reply(
    world: World, key: str | None
) -> None:
    """Results of tools are listed with their calls, so the cut reply after them is not found where it is stored."""
    asked = [*world.chat(("hello there", "Good day."), key=key), user("is it warm in Rome or in Paris?")]
    calls = [call("c1", arguments='{"city":"Rome"}'), call("c2")]
    world.say(asked, assistant(None, *calls), key)
    for each in calls:
        asked += [assistant(None, each), result(each["id"], f"{each['id']} warm")]
    world.cancel(world.begin(asked, key))
    asked.append(user("what is there to eat?"))
    world.cancel(world.begin(asked, key), [assistant("Soup is what we have")])
    asked.append(user("and the price?"))
    world.cancel(world.begin(asked, key), [assistant("Nine euros for a bowl of it")])
    asked += [assistant("Soup"), user("is it hot?")]
    world.cancel(world.begin(asked, key), [assistant("It is very hot")])
    asked += [assistant("It is"), user("fine")]
    world.say(asked, "Until then.", key)
    questions = [read_text(message) for message in asked if message["role"] == "user"]
    assert [text for text in world.active() if text in questions] == questions


# -- replies that nobody asked for: greetings, and "are you still there?" (a system message asks for them)


PROMPT = system("The user has been quiet.")


def test_a_transcript_grows_after_a_short_greeting_of_the_model(world: World) -> None:
    """Nothing was asked before it, so its path alone says that the list goes on from it."""
    world.say([system("Greet the caller.")], "Hello?")
    for text, reply in (
        ("I would", "UNSPOKEN"),
        ("I would like", "UNSPOKEN"),
        ("I would like a table", "A table."),
    ):
        world.say([assistant("Hello?"), user(text)], reply)
    assert world.active() == ["Hello?", "I would like a table", "A table."]
    assert "--" not in world.tree()


@both
def test_unrequested_replies_stay_apart(world: World, key: str | None) -> None:
    """In the list they stand one after the other, and the second does not take the words of the first along."""
    list_ = [*world.chat(("hello there", "Good day."), key=key), PROMPT]
    world.say(list_, "Are you there?", key)
    list_ = [*list_[:-1], assistant("Are you there?"), PROMPT]
    world.say(list_, "Hello?", key)
    list_ = [*list_[:-1], assistant("Hello?"), user("yes")]
    world.say(list_, "A table for two, or for three?", key)
    list_ = [*list_, assistant("A table"), user("for two")]
    world.say(list_, "For two.", key)
    assert world.active() == [
        *("hello there", "Good day.", "Are you there?", "Hello?"),
        *("yes", "A table", "for two", "For two."),
    ]


@both
@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_a_greeting_that_the_caller_cut_is_what_was_heard(world: World, key: str | None, end: str) -> None:
    """A system message alone asked for it, so the list of the next request begins with it."""
    greeting = world.begin([PROMPT], key)
    if end == "finished":
        world.finish(greeting, "Hello Anna, how was it UNSPOKEN in Rome?")
    else:
        world.cancel(greeting, [assistant("Hello Anna, how was it UNSPOKEN")])
    list_ = [assistant("Hello Anna, how"), user("a table please")]
    for question, reply in (("a table please", "For two?"), ("for three", "For three.")):
        list_ = [*list_[:-1], user(question)]
        world.say(list_, reply, key)
        list_ += [assistant(reply), user("")]
    heard = ["Hello Anna, how", "a table please", "For two?", "for three", "For three."]
    assert world.active() == heard
    assert "--" not in world.tree()


def test_a_greeting_is_found_within_the_idle_time_and_once(world: World) -> None:
    """Without an id, a list that begins as another call's greeting does is a call of its own."""
    world.say([PROMPT], "Hello Anna, how was it in Rome?")
    first = [assistant("Hello Anna,"), user("a table please")]
    world.say(first, "For two?")
    world.say([*first, assistant("For two?"), user("yes")], "Good.")
    world.say([assistant("Hello"), user("it is me again")], "Yes?")
    world.say([PROMPT], "Hello Anna, was it good?")
    world.wait(500)
    world.say([assistant("Hello Anna, was"), user("and again")], "Yes?")
    assert world.tree().count("--") == 3


def test_an_unrequested_reply_leaves_the_greeting_of_the_application_alone(world: World) -> None:
    list_ = [assistant("This is Mia.")]
    world.say([*list_, PROMPT], "Are you there?")
    list_ += [assistant("Are you there?")]
    world.say([*list_, PROMPT], "Hello?")
    list_ += [assistant("Hello?")]
    for text in ("I would", "I would like a table"):
        world.say([*list_, user(text)], "A table.")
    assert world.active() == [
        "This is Mia.",
        "Are you there?",
        "Hello?",
        "I would like a table",
        "A table.",
    ]


@both
def test_a_result_is_no_question_of_an_unrequested_reply(world: World, key: str | None) -> None:
    list_ = [*world.chat(("hello there", "Good day."), key=key)]
    world.say([*list_, PROMPT], "Are you still there?", key)
    list_ += [
        user("rain?"),
        assistant(None, call("1")),
        result("1", "rain"),
        assistant("Are you"),
        user("sorry"),
    ]
    world.say(list_, "It rains.", key)
    assert world.active()[-2:] == ["sorry", "It rains."]


@both
@pytest.mark.parametrize(("partial", "question"), [("please", "please tell me more"), ("yes", "yes")])
def test_a_draft_with_the_same_short_reply_is_not_the_turn_that_was_cut(
    world: World, key: str | None, partial: str, question: str
) -> None:
    """The list is word for word a path on which the draft is not."""
    list_ = world.chat(("hello there", "Good day."), key=key)
    world.say([*list_, user(partial)], "Ok.", key)  # thrown away
    for text, reply in (("second thing", "Two."), ("third thing", "Three.")):
        list_ = [*list_, user(text)]
        world.say(list_, reply, key)
        list_ = [*list_, assistant(reply)]
    world.say([*list_, user("please")], "UNSPOKEN", key)
    list_ = [*list_, user(question)]
    world.cancel(world.begin(list_, key), [assistant("Ok. UNSPOKEN")])
    world.say([*list_, assistant("Ok."), user("go on")], "Four.", key)
    assert world.active() == [
        *("hello there", "Good day.", "second thing", "Two.", "third thing", "Three."),
        *(question, "Ok.", "go on", "Four."),
    ]


@both
@pytest.mark.parametrize("is_tool", [True, False], ids=["tool", "user"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cancelled"])
def test_a_turn_that_could_not_be_stored_is_not_lost_before_the_same_words(
    world: World, key: str | None, is_tool: bool, is_whole: bool
) -> None:
    """The last turn that is known was asked with words, or had a tool's result, that came again in the outage."""
    asked = [*world.chat(("hello there", "Good day."), key=key), user("yes")]
    again = user("yes")
    if is_tool:
        world.say(asked, assistant(None, call("1")), key)
        asked += [assistant(None, call("1")), result("1", "ok")]
        again = result("2", "ok")
    request = world.begin(asked, key)
    if is_whole:
        world.finish(request, "Well, the market is open today, and tomorrow as well.")
    else:
        world.cancel(request, [assistant("Well, the market is open")])
    lost = [assistant("Well, the market"), user("my bicycle is red")]
    lost += [assistant(None, call("2", arguments='{"city":"Rome"}'))] if is_tool else [assistant("Nice.")]
    then = [*asked, *lost, again, assistant("Fine, so be it."), user("and fast")]
    world.say(then, "I see.", key)
    assert world.active().count("my bicycle is red") == 1
    assert world.active().count("Well, the market") == 1
    assert world.active().count("Fine, so be it.") == 1


@both
@pytest.mark.parametrize("greeting", ["Hello!", "Hello! How can I help you today, and who is calling?"])
@pytest.mark.parametrize("draft", ["Hi", "Hi, I need a plumber"], ids=["thrown away", "cut"])
def test_a_greeting_of_the_application_is_not_matched_with_a_stored_reply_of_the_same_words(
    world: World, key: str | None, greeting: str, draft: str
) -> None:
    """The model greets again, in the same words, and nobody hears the end of it."""
    list_ = [assistant(greeting), user(draft)]
    world.say(list_, greeting, key)
    question, heard = "Hi, I need a plumber", "Hello" if draft != "Hi" else "Sure, what"
    list_ = [assistant(greeting), user(question)]
    if draft == "Hi":
        world.cancel(world.begin(list_, key), [assistant("Sure, what is")])
    list_ += [assistant(heard), user("and quickly")]
    assert world.say(list_, "At eight.", key).is_untouched
    assert world.active() == [greeting, question, heard, "and quickly", "At eight."]


def test_a_question_that_the_client_did_not_keep_is_not_the_one_before_it(world: World) -> None:
    """The app has the model speak into a silence, in words that "no" is in."""
    list_ = [*world.chat(("no", "Why?"), key="call"), user("(The user has not answered, you would say:)")]
    world.say(list_, "Hello?", "call")
    list_ = [*list_[:-1], assistant("Hello?"), user("because")]
    world.say(list_, "I see, and then?", "call")
    list_ += [assistant("I see"), user("so")]
    world.say(list_, "Ok.", "call")
    assert world.active().count("no") == 1


@both
@pytest.mark.parametrize("first", ["Hello?", "Are you still there, or shall I call you again?"])
def test_a_short_word_into_a_second_silence_takes_nothing_from_the_turns_before_it(
    world: World, key: str | None, first: str
) -> None:
    """Neither of the questions is stored, and the last word alone could be anybody's."""
    list_ = world.chat(
        ("my name is Ann", "Nice to meet you, Ann."), ("so it is", "And what can I do?"), key=key
    )
    for word in (first, "Hello!"):
        world.say([*list_, user("(The user has not answered, you would say:)")], word, key)
        list_.append(assistant(word))
    list_.append(user("a plumber, please"))
    world.say(list_, "At eight.", key)
    assert [text for text in world.active() if not text.startswith("(")] == [read_text(m) for m in list_] + [
        "At eight."
    ]


def interrupt(seed: int) -> None:
    """A caller who interrupts replies that have hidden rounds, and whose client lists what was heard of each."""
    chance, world = Random(seed), World()
    talk: list[WireMessage] = []
    before = None
    for number in range(8):
        talk = [*talk, user(f"message {number}.")]
        request = world.begin(talk, "c1")
        assert before is None or extends_prompt(request, before)
        before = request
        text = f"It is {number}, and there is more to say."
        rounds = [
            assistant("Let me note.", call(f"m{number}", "memory_insert")),
            result(f"m{number}", "Done."),
        ]
        reply = [*rounds, assistant(text)] if chance.random() < 0.7 else [assistant(f"Let me note. {text}")]
        if chance.random() < 0.5:
            world.finish(request, reply)
        else:
            world.cancel(request, reply)
        words = ["Let", "me", "note.", *text.split()]
        heard = words[: chance.choice([0, 5, 6, 7])]
        talk = [*talk, assistant(" ".join(heard))] if heard else talk


@each_row("seed", range(60))
def test_hidden_rounds_stay_however_often_the_caller_interrupts(seed: int) -> None:
    interrupt(seed)


def test_hidden_rounds_stay_where_a_second_interruption_follows_the_first() -> None:
    world = World()
    talk = [user("one")]
    rounds = [assistant("Let me look.", call("m1", "memory_insert")), result("m1", "42 degrees")]
    world.say(talk, [*rounds, assistant("It is very hot there, so drink.")], "c1")
    talk = [*talk, assistant("Let me look. It is very"), user("two")]
    first = world.begin(talk, "c1")
    world.cancel(first, [assistant("In Rome it is cooler, as far as I know.")])
    talk = [*talk, assistant("In Rome it is"), user("three")]
    second = world.say(talk, "Fine.", "c1")
    third = world.begin([*talk, assistant("Fine."), user("four")], "c1")
    assert second.texts[1:4] == ["Let me look.", "42 degrees", "It is very"]
    assert extends_prompt(second, first)
    assert extends_prompt(third, second)
