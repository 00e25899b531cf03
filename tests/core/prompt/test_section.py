"""The memory section stays what it was until taking it anew is free; what changed meanwhile is told in a note."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.prompt.section import Section, SectionParts, digest, learned, make_section
from storage.records import Block, Snapshot

HUMAN = Block(1, "human", "The user", "Name: Ann", 100)
OFFERED = {"memory_insert": "memory_insert"}


def make(blocks: list[Block], pinned: Snapshot | None = None, **how: Any) -> Section:
    made: dict[str, Any] = {"offered": OFFERED, "system": "Be kind.", "epoch": 1}
    made |= {name: how.pop(name) for name in ("offered", "system", "epoch", "summary", "made") if name in how}
    usual: dict[str, Any] = {
        "goes_on": pinned is not None,
        "idle_s": 10.0,
        "cache_s": 300.0,
        "always": False,
        "takes_note": True,
    }
    return make_section(SectionParts(blocks, **made), pinned=pinned, **{**usual, **how})


@pytest.fixture
def pinned() -> Snapshot:
    """What the first turn sent, stored."""
    first = make([HUMAN])
    assert first.snapshot is not None
    return replace(first.snapshot, id=7)


CHANGED = replace(HUMAN, value="Name: Anna", version=2)


def test_the_first_turn_takes_it(pinned: Snapshot) -> None:
    section = make([HUMAN])
    assert section.text.startswith("Be kind.\n\n")
    assert "Name: Ann" in section.text
    assert "memory_insert" in section.text
    assert section.snapshot == replace(pinned, id=0)  # to be stored


def test_nothing_changed_keeps_the_stored_one(pinned: Snapshot) -> None:
    assert make([HUMAN], pinned) == Section(pinned)
    assert make([HUMAN], pinned, idle_s=300.0) == Section(pinned)


def test_a_change_from_outside_is_told_and_the_bytes_stay(pinned: Snapshot) -> None:
    section = make([CHANGED], pinned)
    assert section.text == pinned.text
    assert len(section.changes) == 1
    assert "Name: Anna" in section.changes[0]
    assert section.snapshot is not None
    assert section.snapshot.id == 0
    again = make([CHANGED], replace(section.snapshot, id=8))
    assert again.changes == ()  # told once


def test_a_change_waits_where_no_note_can_be_attached(pinned: Snapshot) -> None:
    assert make([CHANGED], pinned, takes_note=False) == Section(pinned)


def test_new_and_removed_blocks_are_told(pinned: Snapshot) -> None:
    other = Block(2, "plans", "", "To Rome", 100)
    changes = make([other], pinned).changes
    assert len(changes) == 2
    assert "To Rome" in changes[0]
    assert '"human"' in changes[1]


@pytest.mark.parametrize(
    "how",
    [
        {"epoch": 2},  # it may show what is to be forgotten
        {"idle_s": 301.0},  # the provider's cache is gone
        {"always": True},
        {"summary": 3},  # the prefix breaks anyway
    ],
)
def test_it_is_taken_anew_when_that_is_free_or_due(pinned: Snapshot, how: dict[str, Any]) -> None:
    section = make([CHANGED], pinned, **how)
    assert "Name: Anna" in section.text
    assert section.changes == ()


def test_taken_anew_and_found_the_same_it_is_the_stored_one(pinned: Snapshot) -> None:
    assert make([HUMAN], pinned, always=True) == Section(pinned)


def test_a_conversation_that_began_without_one_gets_no_blocks_in_its_middle() -> None:
    section = make([HUMAN], None, goes_on=True)
    assert section.text == "Be kind."  # the profile's own prompt, which does not change
    assert "Name: Ann" in "".join(section.changes)


def test_with_nothing_to_say_there_is_none() -> None:
    section = make([], offered={}, system="")
    assert (section.snapshot, section.text) == (None, "")


def test_what_the_model_changed_itself_is_not_told_again(pinned: Snapshot) -> None:
    known = learned(pinned, [CHANGED])
    assert known is not None
    assert (known.id, known.text) == (0, pinned.text)
    assert known.known["blocks"] == {"human": digest("Name: Anna")}
    assert make([CHANGED], replace(known, id=8)).changes == ()
    assert learned(pinned, [HUMAN]) is pinned
    assert learned(None, [HUMAN]) is None


def test_a_digest_tells_values_apart() -> None:
    assert digest("a") == digest("a") != digest("b")
