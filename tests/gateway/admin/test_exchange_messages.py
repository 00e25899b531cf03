"""The messages of an exchange as they are read, whatever a client has put into its list."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.run.admin.exchange_messages import make_message_records
from gateway.run.admin.memory_records import ShownCall
from storage.records import Exchange

CALL = {"id": "a", "type": "function", "function": {"name": "search", "arguments": "{}"}}


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
    atoms = ((b"u",), (b"a",))
    e = Exchange(
        1,
        1,
        None,
        0,
        0,
        atoms,
        (b"", b""),
        (),
        b"",
        None,
        1.0,
        1.0,
        active=True,
        seq=1,
        input=orjson.dumps(messages),
    )
    asked, answered = make_message_records(e, None)
    assert (asked.text, answered.text, answered.rounds) == ("Hi", "Wait.", rounds)
