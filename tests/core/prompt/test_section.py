"""The memory section stays what it was until taking it again is free; what changed meanwhile is in a note."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.prompt.section import Section, SectionParts, make_section
from gateway.core.prompt.shown_blocks import GONE, describe_mark, digest_shown, make_shown_by_block
from storage.records import Block, SentSection

HUMAN = Block(1, "human", "The user", "Name: Ann", 100)
OFFERED = {"memory_insert": "memory_insert"}


def make(blocks: list[Block], pinned: SentSection | None = None, **how: Any) -> Section:
    made: dict[str, Any] = {"offered_tools": OFFERED, "system": "Be kind.", "epoch": 1, "mark": "a2b3c4d5"}
    made |= {name: how.pop(name) for name in (*made, "summary_id", "definition_digest") if name in how}
    usual: dict[str, Any] = {"is_continued": pinned is not None, "may_rebuild": False, "takes_note": True}
    return make_section(SectionParts(blocks, **made), pinned_section=pinned, **{**usual, **how})


@pytest.fixture
def pinned() -> SentSection:
    """What the first turn sent, stored."""
    first = make([HUMAN])
    assert first.sent is not None
    return replace(first.sent, id=7)


CHANGED = replace(HUMAN, value="Name: Anna", version=2)


def test_the_first_turn_takes_it(pinned: SentSection) -> None:
    section = make([HUMAN])
    assert section.text.startswith("Be kind.\n\n")
    assert "Name: Ann" in section.text
    assert "memory_insert" in section.text
    assert section.sent == replace(pinned, id=0)  # to be stored


def test_nothing_changed_keeps_the_stored_one(pinned: SentSection) -> None:
    for may_rebuild in (False, True):
        section = make([HUMAN], pinned, may_rebuild=may_rebuild)
        assert section.sent is pinned
        assert section.changes == ()


def test_a_change_from_outside_is_stated_and_the_section_stays(pinned: SentSection) -> None:
    section = make([CHANGED], pinned)
    assert section.sent is pinned
    assert len(section.changes) == 1
    assert "Name: Anna" in section.changes[0]
    assert section.shown_blocks == make_shown_by_block(CHANGED)
    assert make([CHANGED], pinned, shown_after=make_shown_by_block(CHANGED)).changes == ()  # once


def test_a_change_waits_where_no_note_can_be_attached(pinned: SentSection) -> None:
    section = make([CHANGED], pinned, takes_note=False)
    assert section.sent is pinned
    assert section.changes == ()
    assert section.shown_blocks == make_shown_by_block(HUMAN)


def test_new_and_removed_blocks_are_stated(pinned: SentSection) -> None:
    other = Block(2, "plans", "", "To Rome", 100)
    changes = make([other], pinned).changes
    assert len(changes) == 2
    assert "To Rome" in changes[0]
    assert '"human"' in changes[1]


RENEWED: list[dict[str, Any]] = [
    {"epoch": 2},  # it may show what is to be forgotten
    {"may_rebuild": True},  # the provider's cache is gone
    {"summary_id": 3},  # the prefix breaks anyway
    {"mark": "other234"},  # it names another mark than the notes have
]


@pytest.mark.parametrize("how", RENEWED)
def test_the_section_is_made_again_when_that_is_free_or_due(pinned: SentSection, how: dict[str, Any]) -> None:
    section = make([CHANGED], pinned, **how)
    assert "Name: Anna" in section.text
    assert section.changes == ()


@pytest.mark.parametrize("how", RENEWED)
def test_taken_again_it_does_not_leave_the_last_word_to_an_older_note(
    pinned: SentSection, how: dict[str, Any]
) -> None:
    older = make_shown_by_block(replace(HUMAN, value="Name: Annie"))
    assert len(make([CHANGED], pinned, shown_after=older, **how).changes) == 1
    assert len(make([], pinned, shown_after=older, **how).changes) == 1
    assert make([], pinned, shown_after={"human": GONE}, **how).changes == ()


def test_where_no_note_can_follow_it_waits_with_the_older_note(pinned: SentSection) -> None:
    """The state of the turn's beginning is whole; a section of now before an older note would contradict itself."""
    older = make_shown_by_block(replace(HUMAN, value="Name: Annie"))
    section = make([CHANGED], pinned, shown_after=older, may_rebuild=True, takes_note=False)
    assert section.sent is pinned
    assert "Name: Anna" in make([CHANGED], pinned, may_rebuild=True, takes_note=False).text


def test_a_section_that_has_changed_is_noted_for_good(pinned: SentSection) -> None:
    """A model may bind its thoughts to it, and they come back with each later request."""
    assert not make([CHANGED], pinned).has_changed_prefix
    for how in ({"may_rebuild": True}, {"epoch": 2}, {"offered_tools": {}}):
        changed = make([CHANGED], pinned, **how)
        assert changed.sent is not None
        assert changed.has_changed_prefix
        kept = make([CHANGED], changed.sent, epoch=changed.sent.known["epoch"])
        assert kept.has_changed_prefix
        assert kept.sent is changed.sent


def test_a_conversation_that_began_without_one_gets_no_blocks_in_its_middle() -> None:
    section = make([HUMAN], None, is_continued=True)
    assert section.text == "Be kind."  # the profile's own prompt, which does not change
    assert "Name: Ann" in "".join(section.changes)
    assert make([HUMAN], None, is_continued=True, system="").sent is None
    assert "Name: Ann" in make([HUMAN], None, is_continued=True, may_rebuild=True).text


NOTHING: dict[str, Any] = {"offered_tools": {}, "system": ""}


@pytest.mark.parametrize("is_continued", [False, True])
@pytest.mark.parametrize("blocks", [[], [replace(HUMAN, value="")]])
def test_with_nothing_to_show_there_is_none(blocks: list[Block], *, is_continued: bool) -> None:
    section = make(blocks, is_continued=is_continued, **NOTHING)
    assert (section.sent, section.text, section.changes) == (None, "", ())


def test_the_section_names_the_mark_if_notes_may_come_without_a_users_message() -> None:
    """Elsewhere the first note names it, so that a conversation without notes pays nothing."""
    assert make([HUMAN], **{**NOTHING, "system": "Be kind."}).text.count("a2b3c4d5") == 1
    assert make([], **{**NOTHING, "system": "Be kind."}).text == "Be kind."
    assert make([], **{**NOTHING, "summary_id": 3}).text == describe_mark("a2b3c4d5")
    assert make([], definition_digest="an agent's", **NOTHING).text == describe_mark("a2b3c4d5")


def test_a_digest_distinguishes_values() -> None:
    assert digest_shown("a") == digest_shown("a") != digest_shown("b")
