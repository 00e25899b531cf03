"""One conversation opened after another: what shows that they are new, and what the rules decide where it does not."""

from __future__ import annotations

import random

import pytest

from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage
from storage.sql.store import Store
from tests.core.conversations import IDLE_S, Request, assistant, user
from tests.gateway.memory.test_two_paths import Pair


def _texts(dice: random.Random) -> list[str]:
    """A question as it grows, sometimes in the midst of a word."""
    choices = (["I", "You", "We", "They"], ["would", "want"], ["pie", "pies", "tea"])
    text = " ".join(map(dice.choice, choices[: dice.choice((1, 2, 3, 3))]))
    return [text[: dice.randrange(1, len(text) + 1)], text]


@pytest.mark.parametrize("seed", range(12))
async def test_openings_are_distinguished_as_the_rules_do(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair(store, has_edits=False)
    under_way: list[Request] = []
    begun = 0
    for n in range(12):
        heads: list[WireMessage] = [user("Good day")] if dice.random() < 0.1 else []
        for text in _texts(dice):
            mode = MemoryUse.OFF if n > 8 and dice.random() < 0.1 else MemoryUse.ON
            request = await pair.begin([*heads, user(text)], None, mode)
            begun += pair.stored[id(request)].begins_conversation
            if dice.random() < 0.15:
                under_way.append(request)
            elif dice.random() < 0.1:
                await pair.cancel(request, [])
            else:
                await pair.finish(request, [assistant(f"Answer {dice.randrange(9)}.")])
                if dice.random() < 0.2:
                    messages = [*heads, user(text), assistant("Answer 1."), user(f"And {n}?")]
                    await pair.finish(await pair.begin(messages, None), [assistant("So.")])
        if under_way and dice.random() < 0.3:
            await pair.finish(under_way.pop(), [assistant("At last.")])
        pair.world.now += 2 * IDLE_S if dice.random() < 0.1 else dice.random()
    assert begun > 0


@pytest.mark.parametrize(
    ("first", "then", "is_new"),
    [
        ("Where is the red bicycle", "Where is the blue one", True),
        ("Where is the red bicycle", "Where is the red bicycle", False),
        ("Where is the red bi", "Where is the red bicycle now", False),
        ("Where is the red bicycle now", "Where is the red", True),
        ("I", "I would like tea", False),
        ("It", "Italy?", True),
        ("...", "Where?", True),
    ],
)
async def test_only_what_may_extend_an_opening_is_weighed(
    store: Store, first: str, then: str, is_new: bool
) -> None:
    pair = Pair(store, has_edits=False)
    for text in ("Once.", "Twice!", first):
        await pair.finish(await pair.begin([user(text)], None), [assistant("Ok.")])
    request = await pair.begin([user(then)], None)
    assert pair.stored[id(request)].begins_conversation == is_new
    await pair.finish(request, [assistant("Fine.")])


async def test_an_opening_of_long_ago_is_not_weighed(store: Store) -> None:
    pair = Pair(store, has_edits=False)
    for text in ("Hi", "Hello", "Good day"):
        await pair.finish(await pair.begin([user(text)], None), [assistant("Ok.")])
    pair.world.now += 2 * IDLE_S
    request = await pair.begin([user("Hello")], None)
    assert pair.stored[id(request)].begins_conversation


async def test_openings_side_by_side_are_weighed_when_they_end(store: Store) -> None:
    pair = Pair(store, has_edits=False)
    for text in ("Hi", "Good day"):
        await pair.finish(await pair.begin([user(text)], None), [assistant("Ok.")])
    requests = [await pair.begin([user(text)], None) for text in ("I would", "I would like tea")]
    assert all(pair.stored[id(request)].begins_conversation for request in requests)
    for request in reversed(requests):
        await pair.finish(request, [assistant("Tea.")])
    assert "I would" not in pair.world.active()


@pytest.mark.parametrize("first", [0, 1], ids=["the earlier", "the later"])
async def test_one_of_two_running_openings_goes_on_before_the_other_ends(store: Store, first: int) -> None:
    pair = Pair(store, has_edits=False)
    await pair.finish(await pair.begin([user("Once.")], None), [assistant("Ok.")])
    tabs = [await pair.begin([user("Hi")], None) for _ in range(2)]
    await pair.finish(tabs[first], [assistant("Hello!")])
    messages = [user("Hi"), assistant("Hello!"), user("more")]
    await pair.finish(await pair.begin(messages, None), [assistant("More.")])
    await pair.finish(tabs[1 - first], [assistant("Good day!")])
    assert {row.conversation_row for row in (await pair.speaker.rows())[1:]} == {2}


async def test_an_opening_asked_again_after_a_reply_that_took_long_is_one_chat(store: Store) -> None:
    pair = Pair(store, has_edits=False)
    request = await pair.begin([user("Hi")], None)
    pair.world.now += 2 * IDLE_S
    await pair.finish(request, [assistant("Hello!")])
    await pair.finish(await pair.begin([user("Hi")], None), [assistant("Good day!")])
    assert [row.active for row in await pair.speaker.rows()] == [False, True]
