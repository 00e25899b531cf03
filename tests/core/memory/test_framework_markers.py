"""What nobody said is not learned from; what somebody said stays as it is."""

from __future__ import annotations

import pytest

from gateway.core.memory.framework_markers import strip_marks


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("✓ Your cat is Miso.", "Your cat is Miso."),  # Pipecat's marks of complete turns, by version
        ("● Your cat is Miso.", "Your cat is Miso."),
        ("○", ""),  # and of incomplete ones
        ("◐", ""),
        ("Hello.<flush /> Your cat", "Hello. Your cat"),  # Vapi
        ('<break time="1s"/>Well then', "Well then"),
        ("Let me check...", ""),
        ("Okay, one moment please.", ""),
        ("Let me check the weather in Oslo.", "Let me check the weather in Oslo."),
        ("Please introduce yourself to the user.", ""),
        ("Are you still there?", ""),
        ("Are you still there in Oslo?", "Are you still there in Oslo?"),
        ("My favourite sign is ✓", "My favourite sign is ✓"),
        ("", ""),
        ("I am Ok", "I am Ok"),
    ],
)
def test_only_what_was_said_is_left(text: str, left: str) -> None:
    assert strip_marks(text) == left
