"""The part of a chat completion's list that repeats a conversation of ours."""

from __future__ import annotations

from gateway.core.conversation.repeated import repeated_indices
from tests.core.conversations import assistant, result, system, user


def test_what_a_list_repeats_ends_with_its_last_assistant_message() -> None:
    messages = [system("Be kind."), user("one"), assistant("First."), result("1", "sunny"), user("two")]
    assert repeated_indices(messages) == [1, 2]
    assert repeated_indices([system("Be kind."), user("one")]) == []
    assert repeated_indices([user("one"), assistant("First.")]) == [0, 1]
