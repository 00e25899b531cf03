"""What stands after requests have ended: parallel sends, repeats, memory edits, what is confirmed."""

from __future__ import annotations

import orjson
import pytest

from gateway.core.conversation.match_query import MemoryUse
from tests.core.conversations import IDLE_S, World, assistant, call, outline, result, user

both = pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])


def kept(text: str, id: str = "m1") -> list[dict[str, object]]:
    """A reply with a memory edit in it, as the upstream saw it."""
    return [assistant("", call(id, "memory_insert", "{}")), result(id, "inserted"), assistant(text)]


@pytest.fixture
def world() -> World:
    return World()


# -- parallel


@both
def test_parallel_sends_all_stand(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    lists = [[*history, user(f"My drawer {n} holds socks")] for n in ("one", "two", "three")]
    requests = [world.begin(messages, key) for messages in lists]
    for request in reversed(requests):
        world.finish(request, "Socks.")
    assert world.tree() == outline("""
        continued: hello there > Good day.
          active: My drawer three holds socks > Socks.
          active: My drawer two holds socks > Socks.
          active: My drawer one holds socks > Socks.
    """)
    world.say([*lists[1], assistant("Socks."), user("ok")], "Ok.", key)
    assert [line.split(":")[0] for line in world.tree().splitlines()] == [
        "continued",
        "  active",
        "  continued",
        "    active",
        "  active",
    ]


@pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])
def test_parallel_first_turns_all_stand(world: World, key: str | None) -> None:
    requests = [world.begin([user(f"fact {k}")], key) for k in range(3)]
    for k, request in enumerate(requests):
        world.finish(request, f"r{k}")
    world.say([user("fact 1"), assistant("r1"), user("on")], "On.", key)
    assert world.active() == ["fact 0", "r0", "fact 1", "r1", "fact 2", "r2", "on", "On."]


VERDICT = '{"is_homework": false}'


@both
@pytest.mark.parametrize(
    "verdict",
    [VERDICT, call("v", "judge", VERDICT), f"<think>\nA sledge?\n</think>\n\n{VERDICT}"],
    ids=["json", "call", "behind-a-thought"],
)
@pytest.mark.parametrize("begun", [0, 1])
@pytest.mark.parametrize("ended", [0, 1, None])
def test_a_programs_answer_supersedes_no_answer_in_text(
    world: World, key: str | None, verdict: str | dict[str, object], begun: int, ended: int | None
) -> None:
    """A guardrail or a router sends the whole list too. begun, ended: which of both was first; None: side by side."""
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("I sold my sledge")]
    replies = ["Who bought it?", verdict if isinstance(verdict, str) else assistant(None, verdict)]
    if ended is None:
        for n in (begun, 1 - begun):
            world.say(asked, replies[n], key)
    else:
        begins = [0, 1] if begun == 0 else [1, 0]
        requests = {n: world.begin(asked, key) for n in begins}
        for n in (ended, 1 - ended):
            world.finish(requests[n], replies[n])
    assert world.active() == ["hello there", "Good day.", "I sold my sledge", "Who bought it?"]


@both
def test_an_answer_that_begins_with_a_call_takes_the_place_of_one_in_words(
    world: World, key: str | None
) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("the weather in Paris")]
    world.say(asked, "I do not know.", key)
    world.say(asked, assistant(None, call("1")), key)
    world.say([*asked, assistant(None, call("1")), result("1", "sunny")], "It is sunny.", key)
    assert world.active() == ["hello there", "Good day.", "the weather in Paris", "It is sunny."]


@pytest.mark.parametrize("heard", [[], [assistant("Good day to")]], ids=["alone", "barge-in"])
@pytest.mark.parametrize("reply", [VERDICT, assistant(None, call("1"))], ids=["json", "call"])
def test_a_message_that_is_sent_alone_again_has_its_last_answer(
    world: World, reply: str | dict[str, object], heard: list[dict[str, object]]
) -> None:
    """Its client never got the first one, and what it sends next follows the last: results of a call, for one."""
    world.say([user("hello there")], "Good day to you all.", "c1", append=True)
    asked = [*heard, user("the weather in Paris")]
    world.say(asked, "I do not know.", "c1", append=True)
    world.say(asked, reply, "c1", append=True, retry=True)
    after = user("and now?") if isinstance(reply, str) else result("1", "sunny")
    sent = world.begin([after], "c1", append=True).lines
    assert len(sent) == 5
    assert "I do not know." not in str(sent)


@both
def test_the_last_of_two_answers_for_a_program_is_active(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    for reply in ('{"say": "One."}', '{"say": "Two."}'):
        world.say([*history, user("a number")], reply, key)
    assert world.active()[-1] == '{"say": "Two."}'


@both
@pytest.mark.parametrize("overlap", [False, True])
def test_two_finished_requests_for_one_turn_give_one_turn(
    world: World, key: str | None, overlap: bool
) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("I like tea")]
    first = world.begin(asked, key)
    if not overlap:
        world.finish(first, "one")
    second = world.begin(asked, key)
    if overlap:
        world.finish(first, "one")
    world.finish(second, "two")
    assert world.tree() == outline("""
        continued: hello there > Good day.
          superseded: I like tea > one
          active: I like tea > two
    """)
    world.say([*asked, assistant("one"), user("ok")], "Ok.", key)
    assert world.confirmed() == ["hello there", "Good day.", "I like tea", "one"]
    assert "two" not in world.active()


def test_the_same_answer_twice_is_stored_once(world: World) -> None:
    first, again = (world.say([user("I like tea")], "Noted.") for _ in range(2))
    assert first.exchange_row == again.exchange_row
    assert world.tree() == "active: I like tea > Noted."


@both
def test_the_longest_of_growing_openings_is_active_in_any_order_of_their_ends(
    world: World, key: str | None
) -> None:
    requests = [world.begin([user(text)], key) for text in ("I", "I would", "I would like tea")]
    for request in (requests[2], requests[0], requests[1]):
        world.finish(request, "Yes.")
    assert world.active() == ["I would like tea", "Yes."]
    assert "--" not in world.tree()


# -- confirmed


def test_a_one_turn_conversation_stands_at_once_and_is_confirmed_by_time(world: World) -> None:
    world.say([user("my sister is Ann")], "A lovely name.")
    assert world.active() == ["my sister is Ann", "A lovely name."]
    assert world.confirmed() == []
    world.wait(119)
    assert world.confirmed() == []
    world.wait(2)
    assert world.confirmed() == ["my sister is Ann", "A lovely name."]


def test_tool_results_alone_confirm_nothing(world: World) -> None:
    messages = [user("weather?"), assistant(None, call("1")), result("1", "sunny")]
    world.say(messages[:1], messages[1])
    world.say(messages, "Sunny.")
    assert world.confirmed() == []
    world.say([*messages, assistant("Sunny."), user("thanks")], "Welcome.")
    assert world.confirmed() == ["weather?", "Sunny."]


def test_a_request_that_was_cancelled_confirms_nothing(world: World) -> None:
    history = world.chat(("hello there", "Good day."))
    world.cancel(world.begin([*history, user("and")]))
    assert world.tree() == outline("""
        active: hello there > Good day.
          cancelled: and
    """)
    assert world.confirmed() == []


@both
def test_a_partial_reply_is_never_shown(world: World, key: str | None) -> None:
    world.cancel(world.begin([user("a story?")], key), [assistant("Once upon a time")])
    world.wait(500)
    assert world.active() == world.confirmed() == []


# -- memory edits


@both
def test_edits_of_a_replaced_turn_leave_no_trace(world: World, key: str | None) -> None:
    history = world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("I like tea")]
    world.say(asked, kept("a"), key, edits=["OLD"])
    world.say(asked, kept("b", "m2"), key, edits=["NEW"])
    assert world.list_learned() == []
    request = world.begin([*asked, assistant("b"), user("on")], key)
    assert world.memory().list_block_lines([1, 3]) == ["NEW"]  # on its own path at once
    assert world.memory().list_block_lines([1]) == []
    world.finish(request, "c")
    assert world.list_learned() == ["NEW"]
    world.wait(999)
    assert world.list_learned() == ["NEW"]


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("end", ["finished", "cancelled"])
@pytest.mark.parametrize("pause_s", [0, 2 * IDLE_S], ids=["soon", "late"])
def test_a_reply_that_was_continued_is_one_with_its_edits(
    world: World, key: str | None, is_first: bool, end: str, pause_s: float
) -> None:
    """A front end's "Continue": the list ends with the reply, and what comes is put behind it in one message."""
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    asked = [*history, user("a poem on my boat please")]
    whole = "Her name is Nerea and"
    world.finish(world.begin(asked, key), whole, edits=["Nerea"])
    more = world.begin([*asked, assistant(whole)], key)
    if end == "finished":
        world.finish(more, " she sails")
        whole += " she sails"
    else:
        world.cancel(more, [assistant(" she sails")])
        whole += " she"
    world.finish(world.begin([*asked, assistant(whole)], key), " the sea.")
    whole += " the sea."
    world.wait(pause_s)
    world.say([*asked, assistant(whole), user("thanks")], "Welcome.", key)
    before = [] if is_first else ["hello there", "Good day."]
    assert world.active() == [*before, "a poem on my boat please", whole, "thanks", "Welcome."]
    assert world.list_learned() == ["Nerea"]


@both
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("prefill", ["Here it goes: ", "{", "Well"])
@pytest.mark.parametrize("pause_s", [0, 2 * IDLE_S], ids=["soon", "late"])
def test_a_reply_that_was_begun_for_the_model_is_one_with_its_edits(
    world: World, key: str | None, is_first: bool, prefill: str, pause_s: float
) -> None:
    """The list ends with the first words of the reply, and later ones have both in one message.

    The second reply is made twice, and the third one continued.
    """
    history = [] if is_first else world.chat(("hello there", "Good day."), key=key)
    said = [] if is_first else ["hello there", "Good day."]
    for n in range(3):
        asked = [*history, user(f"line {n} on my boat please")]
        if n == 1:
            world.finish(world.begin([*asked, assistant(prefill)], key), "Another boat", edits=["DROPPED"])
        world.finish(world.begin([*asked, assistant(prefill)], key), f"Nerea {n} sails", edits=[f"N{n}"])
        reply = f"{prefill}Nerea {n} sails"
        if n == 2:
            world.finish(world.begin([*asked, assistant(reply)], key), " away")
            reply += " away"
        history = [*asked, assistant(reply)]
        said += [f"line {n} on my boat please", prefill, reply]
        world.wait(pause_s)
    world.say([*history, user("thanks")], "Welcome.", key)
    assert world.active() == [*said, "thanks", "Welcome."]
    assert world.list_learned() == ["N0", "N1", "N2"]


def test_edits_of_a_retried_turn_enter_once(world: World) -> None:
    for k in range(3):
        world.say([user("I like tea")], kept("Noted.", f"m{k}"), edits=["tea"])
    world.wait(999)
    assert world.list_learned() == ["tea"]
    world.say([user("I like tea")], kept("Noted.", "m9"), edits=["tea"])
    world.wait(999)
    assert world.list_learned().count("tea") == 2  # another day: said again


def test_edits_of_a_turn_that_is_only_cancelled_leave_no_trace(world: World) -> None:
    world.cancel(world.begin([user("I like tea")]), kept("Noted")[:2], ["tea"])
    world.say([user("I like tea, and coffee")], kept("Both.", "m2"), edits=["both"])
    world.wait(500)
    assert world.list_learned() == ["both"]


def test_edits_of_a_title_request_never_enter(world: World) -> None:
    world.chat(("my horse is Bo", "Good."), ("he likes apples", "Good."), key="c1")
    world.say([user("a title for: my horse")], kept("Horse"), "c1", edits=["title"])
    world.wait(500)
    assert world.list_learned() == []


def test_edits_of_parallel_turns_enter_in_the_order_in_which_they_were_asked(world: World) -> None:
    history = world.chat(("hello there", "Good day."))
    requests = [world.begin([*history, user(f"drawer {word}")]) for word in ("one", "two")]
    for word, request in zip(("two", "one"), reversed(requests), strict=True):
        world.finish(request, kept("Socks.", word), [word])
    world.wait(500)
    assert world.list_learned() == ["one", "two"]


# -- what a repeat brings with it


def test_a_repeat_that_hid_a_round_is_known_to_what_went_on_from_it(world: World) -> None:
    world.chat(("Hi", "Hello!"), ("go on", "Fine."), key="c1")
    again = world.say([user("Hi")], kept("Hello!"), "c1")
    assert again.exchange_row == 1
    first, then = world.memory().records[1], world.memory().records[2]
    assert first.has_full_reply
    assert then.prior == first.id


def test_a_turn_that_was_off_takes_no_notes_nor_edits(world: World) -> None:
    world.recall = lambda question: "<memory>x</memory>\n"
    world.say([user("a secret")], kept("Sorry."), mode=MemoryUse.OFF, edits=["secret"])
    world.wait(500)
    (e,) = world.memory().records.values()
    assert (e.input, e.shown_reply, e.full_reply, e.notes, e.edits) == (None, None, None, {}, False)
    assert world.list_learned() == []


def test_a_list_parallel_to_a_first_turn_stays_active_however_many_rounds_that_has(world: World) -> None:
    """The turn was under way when the list came, which shows once its last round has ended."""
    rounds = [user("What is the weather?"), assistant(None, call("w1"))]
    world.say(rounds[:1], rounds[1], "c1")
    rounds += [result("w1", "sunny"), assistant(None, call("w2"))]
    world.say(rounds[:3], rounds[3], "c1")
    world.say([*rounds[:3], user("And tomorrow?")], "Rain.", "c1")
    world.say([user("Are you there?")], "I am.", "c1")
    assert "I am." not in world.active(key="c1")
    world.say([*rounds, result("w2", "rain")], "Sunny, then rain.", "c1")
    assert "I am." in world.active(key="c1")


@both
def test_a_turn_without_the_path_that_it_was_planned_on_begins_a_tree(world: World, key: str | None) -> None:
    """So its place there is no place in the new one."""
    talk = world.chat(("one", "This is the first answer."), ("two", "This is the second answer."), key=key)
    request = world.begin([*talk, user("three")], key)
    memory = world.memory()
    memory.records.clear()
    world.finish(request, "This is the third answer.")
    (found,) = memory.records.values()
    assert (found.parent, found.depth, found.offset) == (None, 0, 0)


@pytest.mark.parametrize("broken", [None, 5, "look", {"id": "c1"}, [None], [1, call("c1")]])
@pytest.mark.parametrize("parts", [["The weather is"], ["The", "weather is"]])
def test_a_value_that_is_no_call_is_not_stored_with_a_reply(
    world: World, parts: list[str], broken: object
) -> None:
    """Nothing could read the memory any more that reads its calls."""
    world.say([user("one")], "The weather is fine today.", "c1")
    spoken = [{**assistant(part), "tool_calls": broken} for part in parts]
    world.say([user("one"), *spoken, user("two")], "Yes.", "c1")
    first = world.memory().records[1]
    shown_reply = orjson.loads(first.shown_reply or b"")
    assert first.size == len("Theweatheris")
    if isinstance(broken, list) and len(broken) > 1:
        assert {each["id"] for each in shown_reply["tool_calls"]} == {"c1"}
    else:
        assert "tool_calls" not in shown_reply  # upstreams refuse an empty list
