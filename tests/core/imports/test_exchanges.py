"""What the messages of an imported conversation become, before anything is stored."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.imports.exchanges import ImportDraft, draft_import
from gateway.core.imports.records import SourceConversation, SourceMessage, Unreadable

HASHER = MessageHasher(bytes(16))


class Counted(str):
    """A role that counts how often it is looked at."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str(self) == other

    __hash__ = str.__hash__


def drafted(*roles: Any) -> ImportDraft | Unreadable:
    messages = [SourceMessage(role, f"Text {n}") for n, role in enumerate(roles)]
    return draft_import(SourceConversation("c", messages), "jsonl", HASHER, 1.7e9, 0.0)


def test_messages_before_the_first_question_belong_to_it() -> None:
    made = drafted("assistant", "assistant", "user", "user", "assistant", "assistant", "user")
    assert isinstance(made, ImportDraft)
    assert made.counts == [6, 1]
    assert [len(e.inputs) for e in made.exchanges] == [4, 1]
    assert [e.prefix_length for e in made.exchanges] == [2, 0]


def test_a_conversation_of_greetings_alone_is_read_once() -> None:
    """Whoever writes the file decides how many there are, up to 50,000."""
    Counted.looks = 0
    count = 1_000
    made = drafted(*[Counted("assistant")] * count)
    assert made == Unreadable("it has no message of the user", count)
    assert Counted.looks <= 3 * count


@pytest.mark.parametrize("begun_at", [None, 1.5e9])
def test_a_message_without_a_date_is_no_older_than_the_message_before_it(begun_at: float | None) -> None:
    """ChatGPT's export has replies without a date."""
    first = begun_at or 1.6e9
    dates = [None, 1.6e9, None, 1.65e9, None]
    roles = ("user", "user", "assistant", "user", "assistant")
    messages = [SourceMessage(role, "Text", at) for role, at in zip(roles, dates, strict=True)]
    source = SourceConversation("c", messages, begun_at)
    made = draft_import(source, "chatgpt", HASHER, 1.7e9, 0.0)
    assert isinstance(made, ImportDraft)
    assert [(each.begun, each.ended) for each in made.exchanges] == [(first, 1.6e9), (1.65e9, 1.65e9)]
