"""What goes around the client's messages: hidden rounds byte for byte, notes written once, nothing else touched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.types import NATIVE_REPLY
from gateway.core.conversation.exchange_content import Content
from gateway.core.conversation.private import with_private
from gateway.core.conversation.wire_message import WireMessage, make_shown_reply, read_text, without_space
from gateway.core.message_text import with_text_before
from gateway.core.prompt.hidden_rounds import restore_rounds
from tests.core.conversations import (
    GATEWAY_TOOLS,
    World,
    assistant,
    call,
    extends_prompt,
    outline,
    picture,
    result,
    user,
)

both = pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])

ROUND = [assistant("One moment. ", call("m1", "memory_insert", '{"x":1}')), result("m1", "inserted")]
HIDDEN = [*ROUND, assistant("Noted, tea.")]
SAID = "One moment. Noted, tea."
WEATHER = call("w1", "weather", "{}")


@pytest.fixture
def world() -> World:
    return World()


# -- hidden rounds


@both
def test_a_hidden_round_is_put_back_byte_for_byte(world: World, key: str | None) -> None:
    first = world.begin([user("I like tea")], key)
    world.finish(first, HIDDEN, ["tea"])
    assert world.tree() == f"active: I like tea > {SAID}"
    history = [user("I like tea"), assistant(SAID)]
    second = world.begin([*history, user("and?")], key)
    assert [m for _, m in second.sent] == [user("I like tea"), *HIDDEN, user("and?")]
    assert extends_prompt(second, first)
    world.finish(second, "That is all.")
    third = world.begin([*history, user("and?"), assistant("That is all."), user("bye")], key)
    assert extends_prompt(third, second)
    assert third.composition.unrestored_rounds == 0


@both
def test_the_first_note_stays_however_much_later_a_reply_is_cut(key: str | None) -> None:
    """A note and a hidden round, a hundred turns in front of the barge-in."""
    world = World(recall=lambda question: "<memory>Tea.</memory>\n" if "tea" in question else "")
    world.say([user("I like tea")], HIDDEN, key, edits=["tea"])
    history = [user("I like tea"), assistant(SAID)]
    for n in range(100):
        request = world.say([*history, user(f"question {n}")], f"This is the whole answer {n}.", key)
        history = [*history, user(f"question {n}"), assistant(f"This is the whole answer {n}.")]
    history[-1] = assistant("This is the whole")
    assert extends_prompt(world.begin([*history, user("stop")], key), request)


@both
@pytest.mark.parametrize("cut", ["One moment. Not", "One moment. Noted, te..."])
def test_a_reply_cut_after_the_round_keeps_it(world: World, key: str | None, cut: str) -> None:
    world.say([user("I like tea")], HIDDEN, key)
    request = world.begin([user("I like tea"), assistant(cut), user("wait")], key)
    rest = cut.removeprefix("One moment. ")
    assert request.lines == [
        "user: I like tea",
        "~ assistant: One moment.  memory_insert()",
        "~ tool: =inserted",
        f"~ assistant: {rest}",
        "user: wait",
    ]


@both
@pytest.mark.parametrize(
    ("reply", "returned"),
    [
        (HIDDEN, [assistant("One mo"), user("wait")]),  # cut before its round ended
        (
            [*ROUND, assistant("Noted, tea.", WEATHER)],
            [assistant(SAID), assistant("", WEATHER), result("w1", "sun")],
        ),
    ],
    ids=["cut", "two messages"],
)
def test_a_reply_whose_round_has_no_place_goes_as_it_is(
    world: World, key: str | None, reply: list[WireMessage], returned: list[WireMessage]
) -> None:
    world.say([user("I like tea")], reply, key)
    history = [user("I like tea"), *returned]
    request = world.say(history, "Fine.", key)
    assert request.is_untouched
    assert request.composition.unrestored_rounds == 1
    later = world.begin([*history, assistant("Fine."), user("go on")], key)
    assert extends_prompt(later, request)
    assert later.composition.unrestored_rounds == 0


@both
def test_a_request_that_dropped_our_tools_gets_no_round(world: World, key: str | None) -> None:
    world.say([user("I like tea")], HIDDEN, key)
    history = [user("I like tea"), assistant(SAID), user("and?")]
    world.say(history, "That is all.", key)
    request = world.begin([*history, assistant("That is all."), user("bye")], key, tools=())
    assert request.is_untouched
    assert request.composition.unrestored_rounds == 1


def test_a_hidden_round_is_of_its_own_path_alone(world: World) -> None:
    world.say([user("I like tea")], HIDDEN, "c1")
    history = [user("I like tea"), assistant(SAID), user("and?")]
    for where in ({"key": "c2"}, {"key": "c1", "user_id": "bob"}, {"user_id": None}):
        assert world.begin(history, **where).is_untouched


@both
def test_a_hidden_round_is_filled_in_too(world: World, key: str | None) -> None:
    """What a trimmed list left out comes back with all that was hidden in it."""
    world.say([user("I like tea")], HIDDEN, key)
    history = world.chat(("and?", "That is all."), key=key, start=[user("I like tea"), assistant(SAID)])
    whole = world.begin([*history, user("bye")], key)
    trimmed = world.begin([*history[2:], user("bye")], key)
    assert [m for _, m in trimmed.sent] == [m for _, m in whole.sent]
    assert [m for _, m in trimmed.sent][1:4] == HIDDEN


@both
def test_each_message_of_a_round_that_is_filled_in_shows_its_own_edit(world: World, key: str | None) -> None:
    """The window may leave out the first rounds of a reply, and no longer shows then what these did."""
    edits = [{"human": "a>b"}, {"human": "b>c"}]
    rounds = [
        message
        for n, shown in enumerate(edits)
        for message in (
            assistant("", call(f"m{n}", "memory_insert", "{}")),
            with_private(result(f"m{n}", "inserted"), shown_blocks=shown),
        )
    ]
    world.say([user("I like tea")], [*rounds, assistant("Noted.")], key)
    history = world.chat(("and?", "That is all."), key=key, start=[user("I like tea"), assistant("Noted.")])
    fill = world.begin([*history[2:], user("bye")], key).composition.inserted
    assert [each.shown_blocks for each in fill] == [{}, {}, edits[0], {}, edits[1], {}]


@both
def test_a_reply_keeps_its_own_round_after_one_without_words(world: World, key: str | None) -> None:
    """The reply without words has no message in the list, and the other one follows the same question."""
    other = [assistant("", call("m2", "memory_insert", '{"x":2}')), result("m2", "inserted")]
    world.say([user("I like tea")], [assistant("", ROUND[0]["tool_calls"][0]), ROUND[1], assistant("")], key)
    world.say([user("I like tea"), assistant("")], [*other, assistant("Noted.")], key)
    request = world.begin([user("I like tea"), assistant("Noted."), user("and?")], key)
    messages = [user("I like tea"), *other, assistant("Noted."), user("and?")]
    assert [m for _, m in request.sent] == messages


@both
def test_both_halves_of_a_mixed_round_are_restored_or_none(world: World, key: str | None) -> None:
    theirs, ours = call("w1"), call("m1", "memory_insert", "{}")
    world.say([user("weather, and I like tea")], [assistant(None, ours, theirs), result("m1", "ok")], key)
    assert world.tree() == "active: weather, and I like tea > get_weather()"
    messages = [user("weather, and I like tea"), assistant(None, theirs)]
    answered = world.begin([*messages, result("w1", "sunny")], key)
    assert answered.lines == [
        "user: weather, and I like tea",
        "~ assistant: memory_insert() get_weather()",
        "~ tool: =ok",
        "tool: =sunny",
    ]
    assert world.begin([*messages, user("never mind")], key).is_untouched


@both
def test_a_renamed_call_of_a_mixed_round_keeps_the_clients_name(world: World, key: str | None) -> None:
    theirs, ours = call("w1"), call("m1", "memory_insert", "{}")
    world.say([user("weather?")], [assistant(None, ours, theirs), result("m1", "ok")], key)
    mine = call("x9", arguments='{ "city": "Paris" }')
    request = world.begin([user("weather?"), assistant(None, mine), result("x9", "sunny")], key)
    assert [c["id"] for c in request.sent[1][1]["tool_calls"]] == ["m1", "x9"]
    assert request.sent[1][1]["tool_calls"][1] == mine


# -- restore_rounds


words = st.text("abc .", max_size=8)


@given(st.lists(words, min_size=2, max_size=4), st.text("abc .", max_size=30), st.booleans())
def test_a_restored_round_has_the_text_of_the_clients_message(
    texts: Sequence[str], said: str, is_ours: bool
) -> None:
    full: list[WireMessage] = []
    for i, text in enumerate(texts[:-1]):
        full += [assistant(text, call(f"m{i}", "memory_insert")), result(f"m{i}", "ok")]
    full.append(assistant(texts[-1]))
    ours = frozenset(f"m{i}" for i in range(len(texts) - 1))
    message = make_shown_reply(full, ours) if is_ours else assistant(said)
    back = restore_rounds(Content(None, None, full, ours), message, [], GATEWAY_TOOLS)
    streamed = without_space(read_text(make_shown_reply(full[:-1], ours)))
    assert (back is None) == (not without_space(read_text(message)).startswith(streamed))
    if back is not None:
        assert without_space(read_text(make_shown_reply(back, ours))) == without_space(read_text(message))
        assert not is_ours or read_text(back[-1]) == (texts[-1] if texts[-1].strip() else "ok")
        assert back[: len(full) - 1] == full[:-1]


def test_a_reply_that_was_cut_goes_back_without_the_blank_between_its_rounds() -> None:
    full = [assistant("Noting.", call("m", "memory_insert")), result("m", "ok")]
    content = Content(None, None, full, frozenset({"m"}))
    assert restore_rounds(content, assistant("Noting. Your c"), [], GATEWAY_TOOLS) == [
        *full,
        assistant("Your c"),
    ]


def test_blocks_as_they_came_bring_back_nothing_that_the_client_has_cut() -> None:
    native = {"content": [{"type": "text", "text": "Noted, tea."}]}
    full = [*HIDDEN[:-1], {**HIDDEN[-1], NATIVE_REPLY: native}]
    content = Content(None, None, full, frozenset({"m1"}))
    whole = restore_rounds(content, assistant(SAID), [], GATEWAY_TOOLS)
    cut = restore_rounds(content, assistant(SAID.removesuffix(", tea.")), [], GATEWAY_TOOLS)
    assert whole == full
    assert cut == [*HIDDEN[:-1], assistant("Noted")]


def test_fields_of_the_clients_message_stay_on_its_part() -> None:
    content = Content(None, None, HIDDEN, frozenset({"m1"}))
    message = {**assistant(SAID), "refusal": None, "x": 1}
    back = restore_rounds(content, message, [], GATEWAY_TOOLS)
    assert back is not None
    assert back[-1] == {**assistant("Noted, tea."), "refusal": None, "x": 1}


def test_without_hidden_rounds_nothing_is_put_back() -> None:
    assert restore_rounds(Content(None, None, None), assistant("a"), [], GATEWAY_TOOLS) is None


# -- notes


def test_a_note_stands_before_the_text_in_the_same_message() -> None:
    assert with_text_before(user("a"), "") == user("a")
    assert with_text_before(user("a", name="Ann"), "N ") == user("N a", name="Ann")
    parts = with_text_before(picture("a", "data:1"), "N ")["content"]
    assert parts == picture("N a", "data:1")["content"]
    image = picture("a", "data:1")["content"][1:]
    assert with_text_before(user(image), "N ")["content"] == [{"type": "text", "text": "N "}, *image]


@both
def test_a_note_is_written_once_and_stays_where_it_was(world: World, key: str | None) -> None:
    notes = iter(["<1>", "", "<3>", "<4>"])
    world.recall = lambda question: next(notes)
    history = world.chat(("one", "r1"), key=key)
    asked = [*history, user("two")]
    world.cancel(world.begin(asked, key))  # looked, and found nothing: that is stored too
    second = world.say(asked, "r2", key)
    assert second.lines == ["user: <1>one", "assistant: r1", "user: two"]
    third = world.say([*asked, assistant("r2"), user("three")], "r3", key)
    assert extends_prompt(third, second)
    assert third.lines[-1] == "user: <3>three"
    again = world.begin([*asked, assistant("r2"), user("three")], key)
    assert again.lines == third.lines
    assert world.active() == ["one", "r1", "two", "r2", "three", "r3"]  # no note is anybody's words


@both
def test_a_note_leaves_with_the_words_it_was_written_for(world: World, key: str | None) -> None:
    notes = iter(["<1>", "<2>", "<3>"])
    world.recall = lambda question: next(notes)
    world.say([user("Documents: D. Question: one")], "r1", key)
    request = world.begin([user("one"), assistant("r1"), user("two")], key)
    assert request.lines == ["user: one", "assistant: r1", "user: <2>two"]


@both
def test_parallel_questions_each_have_their_note(world: World, key: str | None) -> None:
    world.recall = lambda question: f"<{question}>"
    history = world.chat(("Hi", "Hello!"), key=key)
    requests = [world.begin([*history, user(text)], key) for text in ("tea", "cake")]
    for request in requests:
        world.finish(request, "Yes.")
    for text in ("tea", "cake"):
        then = world.begin([*history, user(text), assistant("Yes."), user("on")], key)
        assert then.lines[2] == f"user: <{text}>{text}"


def test_a_filled_message_has_its_note(world: World) -> None:
    world.recall = lambda question: f"<{question}>"
    history = world.chat(("one", "r1"), ("two", "r2"), key="c1")
    request = world.begin([*history[2:], user("three")], "c1")
    assert request.lines == [
        "+ user: <one>one",
        "+ assistant: r1",
        "user: <two>two",
        "assistant: r2",
        "user: <three>three",
    ]


def test_there_is_no_note_after_tool_results(world: World) -> None:
    world.recall = lambda question: "<n>"
    messages = [user("weather?"), assistant(None, call("1")), result("1", "sunny")]
    first = world.say(messages[:1], messages[1])
    second = world.say(messages, "Sunny.")
    assert second.notes == {}
    assert extends_prompt(second, first)
    assert world.tree() == outline("""
        active: weather? > get_weather()
          active: =sunny > Sunny.
    """)


def test_words_that_a_call_said_are_not_said_twice() -> None:
    spoken = assistant("Hm.", call("m1", "memory_insert", '{"message":"Hello Anna."}'))
    full = [with_private(spoken, spoken="Hello Anna."), result("m1", "The user has read it.")]
    ours = frozenset({"m1"})
    said = assistant("Hm. Hello Anna.")
    assert restore_rounds(Content(None, said, full, ours), said, [], GATEWAY_TOOLS) == full
    more = [*full, assistant("Bye.")]
    whole = assistant("Hm. Hello Anna. Bye.")
    back = restore_rounds(Content(None, whole, more, ours), whole, [], GATEWAY_TOOLS)
    assert back == [*full, assistant("Bye.")]


@pytest.mark.parametrize("calls", ["look", ["look"], {"id": "1"}])
def test_malformed_calls_block_no_stored_conversation(calls: object) -> None:
    """A client's message of a send that failed goes with the next one, whatever it has."""
    world = World()
    world.cancel(world.begin([user("one"), {**assistant("Looked."), "tool_calls": calls}], "c1", append=True))
    request = world.begin([user("And?")], "c1", append=True)
    assert [m for _, m in request.sent] == [user("one"), assistant("Looked."), user("And?")]
