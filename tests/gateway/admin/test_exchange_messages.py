"""The messages of an exchange as they are read, whatever a client has put into its list."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.run.admin.memory.exchange_messages import make_message_records
from gateway.run.admin.records.memory_records import ShownCall
from storage.records import Exchange

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "A cat, then."}]}
CALL = {"id": "a", "type": "function", "function": {"name": "search", "arguments": "{}"}}


def exchange_of(messages: list[Any]) -> Exchange:
    """Returns an exchange with these messages as its input."""
    count = len(messages)
    return Exchange(
        1,
        1,
        None,
        0,
        0,
        ((b"u",),) * count,
        (b"",) * count,
        (),
        b"",
        None,
        1.0,
        1.0,
        active=True,
        seq=1,
        input=orjson.dumps(messages),
    )


@pytest.mark.parametrize(
    ("calls", "rounds"),
    [
        ([CALL], (ShownCall("search", "{}", ""),)),
        ([{"id": "b", "function": "search"}, 7, CALL], (ShownCall("search", "{}", ""),)),
        (7, ()),
        ({"function": {"name": "search"}}, ()),
    ],
)
def test_broken_calls_hide_nothing_else(calls: Any, rounds: tuple[ShownCall, ...]) -> None:
    """A client's list goes upstream as it is, and some upstreams take broken calls."""
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
    ]
    asked, answered = make_message_records(exchange_of(messages), None)
    assert (asked.text, answered.text, answered.rounds) == ("Hi", "Wait.", rounds)


def test_a_thought_is_no_image() -> None:
    """Mistral sends thoughts as a part of the content."""
    messages = [{"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "It is a cat."}]}]
    (reply,) = make_message_records(exchange_of(messages), None)
    assert reply.text == "It is a cat."
