"""What an agent says ahead of a tool: noted on the reply, left out of what memory keeps, whatever form comes back."""

from __future__ import annotations

import pytest

from gateway.core.conversation.fillers import (
    make_filler_message,
    read_filler_spans,
    with_filler_spans,
    with_fillers_of,
    without_fillers,
)
from gateway.core.turn.draft import join_messages
from tests.core.conversations import assistant

WORDS = "One moment."
SAID = with_filler_spans(assistant("One moment. It rains in Oslo."), [(0, 11)])


@pytest.mark.parametrize(
    ("text", "spans", "own"),
    [
        ("One moment. It rains.", [(0, 11)], "It rains."),
        ("One moment.", [(0, 11)], ""),
        ("Well. One moment. It rains.", [(6, 17)], "Well. It rains."),
        ("One. A. Two. B.", [(0, 4), (8, 12)], "A. B."),
        ("It rains.", [], "It rains."),
    ],
)
def test_memory_keeps_the_rest(text: str, spans: list[tuple[int, int]], own: str) -> None:
    assert without_fillers(with_filler_spans(assistant(text), spans))["content"] == own


@pytest.mark.parametrize(
    ("came_back", "own"),
    [
        ("One moment. It rains in Oslo.", "It rains in Oslo."),
        ("One moment. It ra", "It ra"),
        ("one moment... it rains", "it rains"),
        ("One moment.", ""),
        ("One mo", ""),
        ("One moment - ", ""),
        ("One moment. No, it snows.", "No, it snows."),
        ("It rains in Oslo.", "It rains in Oslo."),
    ],
)
def test_the_form_that_comes_back_keeps_the_note_as_far_as_it_begins_so(came_back: str, own: str) -> None:
    assert without_fillers(with_fillers_of(assistant(came_back), SAID))["content"] == own


def test_replies_in_a_row_have_all_their_fillers() -> None:
    joined = join_messages(
        [
            make_filler_message(WORDS),
            assistant("So."),
            make_filler_message("And now."),
            assistant("It rains."),
        ]
    )
    assert joined["content"] == "One moment. So. And now. It rains."
    assert [joined["content"][start:end] for start, end in read_filler_spans(joined)] == [WORDS, "And now."]
