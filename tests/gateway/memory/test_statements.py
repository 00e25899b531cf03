"""A turn's cost in SQL statements, counted end to end: how many reads, and writes of which table.

BEGIN and COMMIT are counted apart. Step 7 of a request in docs/architecture.md names the statements of plain turns.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.run.memory import context_reading, turn_write
from gateway.settings import BlockSettings
from storage.database import Row
from storage.records import Exchange
from storage.sql import exchange_rows, exchanges
from storage.sql.exchange_rows import make_exchange
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.sdk import Chat, World, agent, remember

pytestmark = pytest.mark.sqlite


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        made.chat(user="somebody").say("Good morning.")  # whether there are keys is looked up once
        yield made


def cost(world: World, chat: Chat, text: str) -> list[str]:
    return world.statements_of(lambda: chat.say(text))


def begun(world: World, turns: int = 1, **options: Any) -> Chat:
    chat = world.chat(user="alice", **options)
    for n in range(turns):
        chat.say(f"Topic {n}.")
    return chat


ADD, MARK_PARENT, MARK_CONVERSATION = "insert exchanges", "update exchanges", "update conversations"
LOOK = ["read"]  # where the turn before was a moment ago, all is known
POOL = ["read"]
SEEN = ["read"]  # inside the transaction: nothing has changed since the look
RESOLVE = ["read"] * 2  # something has
PLAIN = [ADD]  # which marks its parent where that is a first one
# What opens a conversation is known since then; what it says later is read when another one asks.
HEARD = ["read"]
FIRST_TURN = [*LOOK, *POOL, *SEEN, "insert conversations", ADD]
ANOTHER_OPENING = [*SEEN, "insert conversations", ADD]
FIRST_TURN_OF_A_USER = ["read", "insert agents", *POOL, "insert conversations", ADD]
FORK = [*LOOK, *POOL, *HEARD, *SEEN, ADD, MARK_PARENT, MARK_CONVERSATION]
REGENERATED = [*LOOK, *POOL, *SEEN, ADD, MARK_PARENT, MARK_CONVERSATION]
HIDDEN_ROUND = [ADD, "insert block_ops"]
CARRYING_EDITS = [
    *LOOK, *POOL, "read", *SEEN, ADD, MARK_PARENT, MARK_CONVERSATION, "read", "read", "read",
    "insert block_history", "update blocks", "update block_ops",
]  # fmt: skip
# Two turns: the second to end finds that the conversation has moved (its insert adds nothing) and is resolved.
CONFLICT = [ADD, ADD, *RESOLVE, ADD]
# Two transactions, the user's message being written first. What was recalled is noted with the second.
APPEND = 10


def test_a_plain_turn_is_one_insert(world: World) -> None:
    chat = begun(world)
    assert cost(world, chat, "Second.") == [*LOOK, *PLAIN]  # the first has made the memory
    for text in ("Third.", "Fourth."):
        assert cost(world, chat, text) == PLAIN


@pytest.mark.parametrize("profile", [None, "agent/helper"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_turn_is_one_statement_without_a_transaction_around_it(
    world: World, profile: str | None, stream: bool
) -> None:
    chat = begun(world, turns=2, **({"model": profile} if profile else {}))
    for text in ("Third.", "Fourth."):
        statements = world.all_statements_of(partial(chat.say, text, stream=stream))
        assert statements == PLAIN


def test_a_plain_turn_of_a_named_conversation_costs_the_same(world: World) -> None:
    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
    chat.say("First.")
    chat.say("Second.")
    assert cost(world, chat, "Third.") == PLAIN


def test_a_plain_turn_of_an_agent_with_tools_costs_the_same(world: World) -> None:
    chat = begun(world, turns=2, model="agent/helper")
    assert cost(world, chat, "Third.") == PLAIN


def test_a_streamed_turn_costs_the_same(world: World) -> None:
    chat = begun(world, turns=2)
    assert world.statements_of(lambda: chat.say("Third.", stream=True)) == PLAIN


def test_a_turn_without_a_user_costs_nothing(world: World) -> None:
    chat = world.chat()
    assert cost(world, chat, "Hi") == []


def test_the_first_turn_of_a_conversation(world: World) -> None:
    world.chat(user="alice").say("Good morning.")
    world.clock.sleep(1000)
    found = cost(world, world.chat(user="alice"), "Xylophone?")
    assert found == FIRST_TURN


def test_messages_of_other_conversations_are_read_once(world: World) -> None:
    world.chat(user="alice").say("Good morning.")
    world.clock.sleep(1000)
    chat = world.chat(user="alice")
    assert cost(world, chat, "Xylophone?") == FIRST_TURN
    assert cost(world, chat, "Or a marimba?") == PLAIN
    assert cost(world, chat, "Or a drum?") == PLAIN


def test_the_first_turn_of_a_user(world: World) -> None:
    found = cost(world, world.chat(user="carol"), "Hi")
    assert found == FIRST_TURN_OF_A_USER


def test_a_fork_costs_so_many_statements(world: World) -> None:
    chat = begun(world, turns=2)
    del chat.messages[-2:]
    assert cost(world, chat, "Something else altogether.") == FORK


def test_a_regenerated_reply_costs_so_many_statements(world: World) -> None:
    chat = begun(world, turns=3)
    chat.messages.pop()
    world.upstream.queue(say("Another answer."))
    assert world.statements_of(chat.go_on) == REGENERATED


def test_a_turn_with_a_hidden_round_and_the_one_that_carries_it(world: World) -> None:
    chat = begun(world, turns=2, model="agent/helper")
    insert = Call("memory_insert", {"label": "human", "new_string": "x"})
    world.upstream.queue(call_tools(insert, text=None), say("Noted."))
    assert cost(world, chat, "Note x.") == HIDDEN_ROUND
    assert cost(world, chat, "Thanks.") == CARRYING_EDITS
    assert cost(world, chat, "Bye.") == [*LOOK, *PLAIN]  # a block has another value


def test_a_new_conversation_with_something_to_recall(world: World) -> None:
    world.chat(user="alice").say("My tortoise is called Sheldon.")
    world.clock.sleep(1000)
    found = cost(world, world.chat(user="alice"), "What is my tortoise called?")
    assert "Sheldon" in world.upstream.last.body.decode()
    assert found == FIRST_TURN


def test_recall_costs_the_same_however_much_there_is(world: World) -> None:
    for n in range(20):
        chat = world.chat(user="alice")
        chat.say(f"My tortoise number {n} is called Sheldon {n}.")
        chat.say("It is slow.")
    fresh = cost(world, world.chat(user="alice"), "What is my tortoise called?")
    assert "Sheldon" in world.upstream.last.body.decode()
    assert fresh == [*HEARD, *ANOTHER_OPENING]
    world.pass_time(1000)  # and from the index
    found = cost(world, world.chat(user="alice"), "Which name does my tortoise have?")
    assert "Sheldon" in world.upstream.last.body.decode()
    assert sorted(found) == sorted([*ANOTHER_OPENING, "read"])  # and the words of what was found
    world.clock.sleep(1000)
    found = cost(world, world.chat(user="alice"), "How do I call my tortoise?")
    assert found == ANOTHER_OPENING  # these are known now


def test_an_opening_that_names_nothing_costs_what_one_does_that_recalls(world: World) -> None:
    for n in range(20):
        world.chat(user="alice").say(f"My tortoise number {n} is called Sheldon {n}.")
    assert cost(world, world.chat(user="alice"), "Hi!") == ANOTHER_OPENING
    assert "Sheldon 19" in world.upstream.last.body.decode()
    world.pass_time(1000)  # and from the index
    found = cost(world, world.chat(user="alice"), "Who am I?")
    assert "Sheldon 19" in world.upstream.last.body.decode()
    assert sorted(found) == sorted([*ANOTHER_OPENING, "read"])  # and the words of what was found


def test_openings_are_read_only_for_one_that_may_be_the_same_chat(world: World) -> None:
    for n in range(12):
        world.chat(user="alice").say(f"Question {n} of many.")
    assert cost(world, world.chat(user="alice"), "Another question.") == ANOTHER_OPENING
    chat = world.chat(user="alice")
    assert len(cost(world, chat, "Question 3 of many, and more.")) > len(ANOTHER_OPENING)


def test_recall_within_a_conversation(world: World) -> None:
    world.chat(user="alice").say("My tortoise is called Sheldon.")
    chat = begun(world)
    found = cost(world, chat, "What is my tortoise called?")
    assert "Sheldon" in world.upstream.last.body.decode()
    assert found == PLAIN  # nothing was said elsewhere since the turn before


def test_a_conflict_is_resolved_inside_the_transaction(world: World) -> None:
    """Two answers to one list: the second finds that the conversation has moved since it was planned."""
    chat = begun(world, turns=2)
    gate = Gate()
    world.upstream.queue(say("Slow.", hold_before_headers=gate), say("Quick."))
    count = len(world.upstream.requests)

    def both() -> None:
        asked = [*chat.messages, {"role": "user", "content": "Slow one?"}]
        arrived = world.upstream.request_gate(count + 1)
        slow = threading.Thread(target=lambda: world.post(asked, user="alice"))
        slow.start()
        arrived.wait_sync()
        world.post([*chat.messages, {"role": "user", "content": "Quick one?"}], user="alice")
        gate.open()
        slow.join()

    statements = world.statements_of(both)
    assert statements == CONFLICT
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0 AND depth = 2") == [2]


def test_an_append_turn_writes_the_users_message_first(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}

    def send(text: str) -> None:
        assert world.post([{"role": "user", "content": text}], headers, user="alice").status == 200

    send("First.")
    send("Second.")
    assert len(world.statements_of(lambda: send("Third."))) == APPEND


def test_a_turn_in_append_mode_reads_each_exchange_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the conversation is; but for its first exchange, which comes with each part of it."""
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}

    def send(text: str) -> None:
        assert world.post([{"role": "user", "content": text}], headers, user="alice").status == 200

    for module in (context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", 2)
    for number in range(8):
        send(f"Message {number}.")
    read: Counter[int] = Counter()

    def counted(row: Row, *contents: bytes | None) -> Exchange:
        exchange = make_exchange(row, *contents)
        read[exchange.depth] += 1
        return exchange

    for rows_module in (exchanges, exchange_rows):
        monkeypatch.setattr(rows_module, "make_exchange", counted)
    statements = world.statements_of(lambda: send("The last one."))
    texts = [message["content"] for message in world.upstream.last.messages]
    assert texts == [*(text for n in range(8) for text in (f"Message {n}.", "Ok.")), "The last one."]
    assert read == {0: 2, **dict.fromkeys(range(1, 8), 1)}
    assert len(statements) == APPEND + 2  # where its end is not enough, the rest is read


def test_blocks_shared_by_a_profile_cost_one_look(upstream: StrictUpstream, tmp_path: Path) -> None:
    blocks = (BlockSettings("human"), BlockSettings("rules", value="Be kind.", shared=True))
    with remember(upstream, tmp_path, agent(blocks=blocks)) as world:
        chat = begun(world, turns=2, model="agent/helper")
        assert cost(world, chat, "Third.") == [*LOOK, *PLAIN]  # whose they are is looked up
