"""Finding the conversation of a client that keeps, prunes or rewrites its tool rounds."""

from __future__ import annotations

import pytest

from gateway.core.conversation.wire_message import WireMessage
from tests.core.conversation.keyed import both
from tests.core.conversations import (
    World,
    assistant,
    call,
    extends_prompt,
    outline,
    result,
    user,
)

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
    assert extends_prompt(then, request)
    assert world.tree() == outline("""
        continued: weather? > get_weather() get_weather()
          continued: =sunny / =rain > Sunny and rain.
            active: thanks > Welcome.
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
    assert world.tree() == outline("""
        continued: weather? > get_weather()
          continued: =[pruned] > Sunny.
            continued: and? > That is it.
              active: bye now > Bye.
    """)
    assert not any("OUTPUT" in text for text in world.active())  # results are never recalled


@both
def test_arguments_dumped_again_and_ids_renamed(world: World, key: str | None) -> None:
    world.say([user("weather?")], assistant(None, call("1", arguments='{"a":1,"city":"Paris"}')), key)
    mine = call("x9", arguments='{\n  "city": "Paris", "a": 1}')
    list_ = [user("weather?"), assistant("", mine), result("x9", "sunny")]
    assert world.say(list_, "Sunny.", key).is_untouched
    assert world.say([*list_, assistant("Sunny."), user("ok")], "Ok.", key).is_untouched
    assert world.tree() == outline("""
        continued: weather? > get_weather()
          continued: =sunny > Sunny.
            active: ok > Ok.
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
    assert world.tree() == outline("""
        active: weather? > Let me look. get_weather()
          active: =sunny > Sunny.
    """)


@both
def test_two_replies_merged_into_one_message(world: World, key: str | None) -> None:
    """The other way round: what was two messages for us is one for the client."""
    full = [assistant("Let me look."), assistant("Not yet.", call("1"))]
    world.say([user("weather?")], full, key)
    world.say(
        [user("weather?"), assistant("Let me look.Not yet.", call("1")), result("1", "sunny")], "Sun.", key
    )
    assert world.tree() == outline("""
        active: weather? > Let me look. Not yet. get_weather()
          active: =sunny > Sun.
    """)


@both
def test_only_the_final_text_of_a_tool_turn(world: World, key: str | None) -> None:
    messages = [user("weather?"), assistant("Let me look.", call("1")), result("1", "sunny")]
    world.say(messages[:1], messages[1], key)
    world.say(messages, "Sunny, then.", key)
    short = [user("weather?"), assistant("Sunny, then."), user("thanks")]
    request = world.say(short, "Welcome.", key)
    assert request.is_untouched
    then = world.say([*short, assistant("Welcome."), user("bye")], "Bye.", key)
    assert extends_prompt(then, request)
    assert world.tree() == outline("""
        continued: weather? > Let me look. get_weather()
          continued: =sunny > Sunny, then.
            continued: thanks > Welcome.
              active: bye > Bye.
    """)


@both
def test_a_sliding_window_without_tool_rounds_is_filled_up(filling_world: World, key: str | None) -> None:
    history = filling_world.chat(("my word is W1", "Noted W1."), key=key)
    asked = [*history, user("weather?")]
    filling_world.say(asked, assistant(None, call("1")), key)
    filling_world.say([*asked, assistant(None, call("1")), result("1", "sunny")], "Sunny, then.", key)
    request = filling_world.begin([user("weather?"), assistant("Sunny, then."), user("thanks")], key)
    assert request.lines == [
        "+ user: my word is W1",
        "+ assistant: Noted W1.",
        "user: weather?",
        "assistant: Sunny, then.",
        "user: thanks",
    ]


@both
def test_a_template_in_a_trimmed_list_takes_nothing_from_what_goes_before_it(
    filling_world: World, key: str | None
) -> None:
    history = filling_world.chat(
        *((f"step {k}", f"Step {k} is done, and was not easy.") for k in range(4)), key=key
    )
    tail = [*history[2:4], user("Documents: DOC lorem. step 2"), *history[5:]]
    request = filling_world.begin([*tail, user("step 4")], key)
    assert request.lines[:3] == ["+ user: step 0", f"+ assistant: {history[1]['content']}", "user: step 1"]


@both
@pytest.mark.parametrize("pruned", [False, True], ids=["as told", "pruned"])
def test_a_list_that_begins_between_results_changes_none_of_those_before_them(
    filling_world: World, key: str | None, pruned: bool
) -> None:
    """The first result in it is no other form of the one that the round before it had."""
    city = '{{"city":"{}"}}'.format
    first = assistant(None, call("1", arguments=city("Paris")))
    second = assistant(None, call("2", arguments=city("Rome")), call("3", arguments=city("Bonn")))
    asked = [user("weather?")]
    filling_world.say(asked, first, key)
    asked += [first, result("1", "sunny")]
    filling_world.say(asked, second, key)
    asked += [second, result("2", "rain"), result("3", "snow")]
    filling_world.say(asked, "Sun, rain and snow.", key)
    listed = [result("3", "(cut)" if pruned else "snow"), assistant("Sun, rain and snow."), user("thanks")]
    request = filling_world.say(listed, "You are welcome.", key)
    # What begins otherwise than the path goes as it is.
    assert request.is_untouched == pruned
    assert pruned or request.lines[:5] == [
        "+ user: weather?",
        "+ assistant: get_weather()",
        "+ tool: =sunny",
        "+ assistant: get_weather() get_weather()",
        "+ tool: =rain",
    ]
    assert filling_world.tree() == outline("""
        continued: weather? > get_weather()
          continued: =sunny > get_weather() get_weather()
            continued: =rain / =snow > Sun, rain and snow.
              active: thanks > You are welcome.
    """)


@both
@pytest.mark.parametrize("heard", ["It rains a lot in that city of yours.", "It rains a lot"])
@pytest.mark.parametrize("then", ["Rain", "Much rain"], ids=["the same result", "another result"])
def test_text_before_a_call_may_come_back_after_its_result(
    world: World, key: str | None, heard: str, then: str
) -> None:
    """Pipecat reports a call when it is made, and the words in front of it once they are spoken."""

    def told(found: str) -> list[WireMessage]:
        return [
            user("how is the weather?"),
            assistant(None, call("a")),
            result("a", found),
            assistant("One moment."),
        ]

    world.say([user("how is the weather?")], assistant("One moment.", call("a")), key)
    world.say(told("Rain"), "It rains a lot in that city of yours.", key)
    later = [*told(then), assistant(heard), user("thanks")]
    world.say(later, "Bye.", key)
    world.say([*later, assistant("Bye."), user("hm")], "Yes?", key)
    said = ["how is the weather?", "One moment.", heard, "thanks", "Bye.", "hm", "Yes?"]
    assert world.active() == said
