"""What the events of a run in the background have not shown yet of its messages."""

from __future__ import annotations

from typing import Any

from gateway.agents.api.run_events import _list_missing

ID = "message-" + "a" * 32 + "-2"


def message(place: int, text: str, kind: str = "assistant_message", id: str = ID) -> dict[str, Any]:
    return {"id": id, "otid": f"{id}:{place}", "message_type": kind, "content": text}


def test_several_messages_of_one_kind_and_id_are_one_event() -> None:
    said = [message(0, "Well."), message(1, "Hello."), message(2, "", "tool_return_message")]
    more = message(3, "", "tool_return_message")
    pieces = [message(0, "We"), message(0, "ll."), *said[1:]]
    assert list(_list_missing([*said, more], pieces, 2)) == [more]


def test_a_message_that_was_shown_in_another_form_is_shown_again() -> None:
    found = list(_list_missing([message(0, "Anew.")], [message(0, "Before.")], 2))
    assert [(each["id"], each["content"]) for each in found] == [(f"{ID}-2", "Anew.")]
    assert list(_list_missing([message(0, "Anew.")], [message(0, "Anew.", id=f"{ID}-2")], 3)) == []
