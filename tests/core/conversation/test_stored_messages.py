"""Stored messages one by one: what is listed of an exchange, and what it says with another text."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.message_rewrite import CannotRewrite, cut_reply, rewrite_message
from gateway.core.conversation.stored_messages import has_open_calls, list_messages, map_calls_to_tool_names
from storage.records import Exchange, ExchangeState
from tests.core.conversations import SECRET, assistant, call, result, user

ATOM = (b"u" + bytes(11),)


def exchange(inputs: list[Any], said: Any, full: dict[str, Any] | None = None, **fields: Any) -> Exchange:
    made = Exchange(
        1, 1, None, 0, 0, (ATOM,) * len(inputs), (b"",) * len(inputs), ATOM, b"path", None, 1.0, 1.0, ended=2.0, seq=10,
        input=orjson.dumps(inputs), shown_reply=None if said is None else orjson.dumps(said),
        full_reply=None if full is None else orjson.dumps(full),
    )  # fmt: skip
    return replace(made, **fields)


def places(e: Exchange) -> list[tuple[int, int | None, Any]]:
    return [(m.seq, m.hidden_index, m.message.get("content")) for m in list_messages(e)]


CALLS = assistant("Let me look.", call("c1", "conversation_search", "{}"))
HIDDEN = {"messages": [CALLS, result("c1", "Found."), assistant("It is Miso.")], "gateway_calls": ["c1"]}
SAID = assistant("Let me look.\n\nIt is Miso.")


def test_inputs_come_at_their_numbers_and_the_reply_after_them() -> None:
    e = exchange([user("one"), user("two")], assistant("Both."))
    assert places(e) == [(10, None, "one"), (11, None, "two"), (12, None, "Both.")]
    assert [(m.at, m.is_reply) for m in list_messages(e)] == [(1.0, False), (1.0, False), (2.0, True)]


def test_hidden_rounds_stand_in_front_of_the_reply_without_its_words() -> None:
    e = exchange([user("one")], SAID, HIDDEN)
    assert places(e) == [(10, None, "one"), (11, 1, None), (11, 2, "Found."), (11, None, SAID["content"])]
    assert list_messages(e)[1].message["tool_calls"] == CALLS["tool_calls"]
    assert [m.sort_key for m in list_messages(e)] == sorted(m.sort_key for m in list_messages(e))
    assert map_calls_to_tool_names(e) == {"c1": "conversation_search"}


def test_a_call_of_a_custom_tool_has_its_name_and_a_broken_one_has_none() -> None:
    custom = {"id": "c2", "type": "custom", "custom": {"name": "run_sql", "input": "SELECT 1"}}
    broken: list[Any] = [{"id": "c3", "type": "function", "function": "look"}, None]
    said = {**assistant(None), "tool_calls": [call("c1", "look"), custom, *broken]}
    assert map_calls_to_tool_names(exchange([user("one")], said)) == {"c1": "look", "c2": "run_sql"}


def test_a_step_is_one_reply_with_its_calls() -> None:
    spoken = assistant(None, call("c1", "send_message", '{"message": "Hi."}'))
    e = exchange([user("one")], assistant("Hi."), {"messages": [spoken], "gateway_calls": [], "step": True})
    assert [m.hidden_index for m in list_messages(e)] == [None, None]
    assert list_messages(e)[1].message == spoken


@pytest.mark.parametrize("state", [ExchangeState.FORGOTTEN, ExchangeState.OFF])
def test_nothing_is_listed_of_a_tombstone(state: ExchangeState) -> None:
    assert list_messages(exchange([user("one")], assistant("Both."), state=state)) == []


def test_messages_that_are_redacted_or_missing_are_left_out() -> None:
    e = exchange([user("one"), user("two")], assistant("Both."))
    assert places(replace(e, redactions=frozenset({0}))) == [(11, None, "two"), (12, None, "Both.")]
    assert places(replace(e, redactions=frozenset({-1}))) == [(10, None, "one"), (11, None, "two")]
    assert places(exchange([user("one")], None)) == [(10, None, "one")]


def test_a_text_is_replaced_and_the_atoms_stay() -> None:
    e = exchange([user("one")], SAID, HIDDEN, has_full_reply=True, notes={0: "a note that quotes it"})
    asked = rewrite_message(e, 10, "uno")
    assert places(asked)[0] == (10, None, "uno")
    assert (asked.inputs, asked.path_hash, asked.reply, asked.notes) == (
        e.inputs,
        e.path_hash,
        e.reply,
        {0: ""},
    )
    told = rewrite_message(e, 11, "It is Tom.")
    assert places(told)[1:] == [(11, 1, None), (11, 2, "Found."), (11, None, "It is Tom.")]
    assert b"Miso" not in (told.full_reply or b"")
    assert b"Let me look" not in (told.full_reply or b"")
    assert orjson.loads(told.full_reply or b"")["messages"][-1]["content"] == "It is Tom."


def test_a_reply_that_was_cut_after_its_rounds_keeps_their_results() -> None:
    e = exchange([user("one")], SAID, {**HIDDEN, "messages": HIDDEN["messages"][:-1]}, has_full_reply=True)
    rounds = [(11, 1, None), (11, 2, "Found.")]
    assert places(e)[1:] == [*rounds, (11, None, SAID["content"])]
    assert places(rewrite_message(e, 11, "It is Tom."))[1:] == [*rounds, (11, None, "It is Tom.")]


def test_a_text_that_a_call_spoke_is_replaced_in_the_call() -> None:
    spoken = assistant(None, call("c1", "send_message", '{"message": "Hi.", "thinking": "t"}'))
    e = exchange(
        [user("one")],
        assistant("Hi."),
        {"messages": [spoken], "gateway_calls": [], "step": True},
        has_full_reply=True,
    )
    told = rewrite_message(e, 11, "Bye.")
    (m,) = orjson.loads(told.full_reply or b"")["messages"]
    assert orjson.loads(m["tool_calls"][0]["function"]["arguments"]) == {"message": "Bye.", "thinking": "t"}
    assert orjson.loads(told.shown_reply or b"")["content"] == "Bye."


@pytest.mark.parametrize("arguments", ['{"message": "Hi"}', '{"message": "Hi', "[1]"])
def test_a_tool_of_the_client_that_is_named_as_the_one_that_speaks_keeps_its_arguments(
    arguments: str,
) -> None:
    last = assistant("I will write to her.", call("c9", "send_message", arguments))
    said = assistant("Let me look.\n\nI will write to her.", call("c9", "send_message", arguments))
    e = exchange(
        [user("one")], said, {**HIDDEN, "messages": [*HIDDEN["messages"][:-1], last]}, has_full_reply=True
    )
    for changed, text in (
        (rewrite_message(e, 11, "I wrote."), "I wrote."),
        (cut_reply(e, "Let me"), "Let me"),
    ):
        *rounds, message = orjson.loads(changed.full_reply or b"")["messages"]
        assert (message["content"], message["tool_calls"]) == (text, last["tool_calls"])
        assert [each["content"] for each in rounds] == [None, "Found."]


@pytest.mark.parametrize("arguments", ['{"message": "Hi', "[1]"])
def test_the_text_next_to_a_call_that_cannot_be_read_is_replaced(arguments: str) -> None:
    step = assistant("One moment.", call("c1", "send_message", arguments))
    e = exchange(
        [user("one")], assistant("One moment."), {"messages": [step], "gateway_calls": [], "step": True}
    )
    told = rewrite_message(e, 11, "Bye.")
    assert orjson.loads(told.full_reply or b"")["messages"] == [{**step, "content": "Bye."}]


@pytest.mark.parametrize(
    ("e", "seq", "why"),
    [
        (exchange([user("one")], assistant(None, call("c1", "f", "{}"))), 11, "a tool call"),
        (exchange([user("one")], None), 11, "no reply"),
        (exchange([user("one")], assistant("x"), state=ExchangeState.OPEN), 10, "being answered"),
        (exchange([user("one")], assistant("x"), redactions=frozenset({0})), 10, "forgotten"),
        (exchange([user("one")], assistant("x"), redactions=frozenset({-1})), 11, "forgotten"),
        (exchange([user("one")], assistant("x"), state=ExchangeState.FORGOTTEN), 10, "forgotten"),
    ],
)
def test_some_messages_stay_as_they_are(e: Exchange, seq: int, why: str) -> None:
    with pytest.raises(CannotRewrite, match=why):
        rewrite_message(e, seq, "other")


@pytest.mark.parametrize(
    ("reply", "full", "is_left"),
    [
        (assistant("Done."), None, False),
        (assistant(None, call("1")), None, True),
        # Hidden rounds have their results.
        (
            assistant("Done."),
            {"messages": [assistant(None, call("1")), result("1", "x")], "gateway_calls": ["1"]},
            False,
        ),
        # A step may show its call as text, and have the results with it.
        (assistant("Done."), {"messages": [assistant(None, call("1"))], "step": True}, True),
        (
            assistant("Done."),
            {"messages": [assistant(None, call("1")), result("1", "x")], "step": True},
            False,
        ),
        (assistant("Done."), {"messages": [assistant("Done.")], "step": True}, False),
        (None, None, False),
    ],
)
def test_calls_that_wait_for_their_results(
    reply: dict[str, Any] | None, full: dict[str, Any] | None, is_left: bool
) -> None:
    atoms = None if reply is None else MessageHasher(SECRET).make_atoms(reply)
    assert has_open_calls(exchange([], reply, full, reply=atoms)) is is_left
