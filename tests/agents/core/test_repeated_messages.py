"""The part of a chat completion's list that a stored conversation does not have."""

from __future__ import annotations

from gateway.agents.core.repeated_messages import find_new_messages
from tests.core.conversations import assistant, result, system, user


def test_messages_after_the_last_assistant_message_of_a_list_are_new() -> None:
    late = [result("1", "sunny"), system("Ask again."), user("two")]
    assert find_new_messages([system("Be kind."), user("one"), assistant("First."), *late]) == late
    assert find_new_messages([system("Be kind."), user("one")]) == [user("one")]
    assert find_new_messages([user("one"), assistant("First.")]) == []
