"""Memory edits of turns: seen on their path at once, merged into the blocks as they are when they are confirmed."""

from __future__ import annotations

import orjson
import pytest

from gateway.core.memory.edits import apply_to_blocks, list_blocks_on_path, make_block_merge
from gateway.core.memory.memory_tools import EditOperation
from storage.records import Block, MemoryEdit

HUMAN = Block(1, "human", "The user", "Name: Ann", 100)
NOTES = Block(2, "notes", "What matters", "", 20)


def op(id: int, op: str, exchange_row: int = 1, **arguments: str) -> MemoryEdit:
    return MemoryEdit(id, exchange_row, f"call_{id}", op, arguments.get("label", ""), orjson.dumps(arguments))


def insert(id: int, text: str, label: str = "human", exchange_row: int = 1) -> MemoryEdit:
    return op(id, "insert", exchange_row, label=label, new_string=text)


def replaced(id: int, old: str, new: str, exchange_row: int = 1) -> MemoryEdit:
    return op(id, "replace", exchange_row, label="human", old_string=old, new_string=new)


def test_a_path_sees_its_own_edits_and_no_others() -> None:
    ops = [insert(1, "likes tea", exchange_row=1), insert(2, "likes beer", exchange_row=2)]
    assert list_blocks_on_path([HUMAN, NOTES], ops, {1})[0].value == "Name: Ann\nlikes tea"
    assert list_blocks_on_path([HUMAN, NOTES], ops, {2})[0].value == "Name: Ann\nlikes beer"
    assert list_blocks_on_path([HUMAN, NOTES], ops, set()) == [HUMAN, NOTES]


def test_a_path_sees_edits_of_edits_in_order() -> None:
    ops = [insert(1, "likes tea"), replaced(2, "tea", "coffee")]
    assert list_blocks_on_path([HUMAN], ops, {1})[0].value == "Name: Ann\nlikes coffee"


def test_edits_are_merged_into_what_the_block_says_now() -> None:
    now = Block(1, "human", "The user", "Name: Anna", 100, version=4)
    done = make_block_merge([now, NOTES], [insert(1, "likes tea"), insert(2, "call her", "notes")])
    assert [(block, value, o.id) for block, value, o in done.writes] == [
        (1, "Name: Anna\nlikes tea", 1),
        (2, "call her", 2),
    ]
    assert (list(done.passages), list(done.dropped)) == ([], [])


def test_an_edit_that_cannot_be_done_any_more_is_dropped_alone() -> None:
    ops = [replaced(1, "Bob", "Rob"), insert(2, "likes tea"), insert(3, "x" * 200), insert(4, "y", "gone")]
    done = make_block_merge([HUMAN], ops)
    assert [value for _, value, _ in done.writes] == ["Name: Ann\nlikes tea"]
    assert [o.id for o in done.dropped] == [1, 3, 4]


def test_an_archival_memory_becomes_a_passage_and_touches_no_block() -> None:
    archival = op(1, EditOperation.ARCHIVAL_INSERT, content="prefers trains")
    done = make_block_merge([HUMAN], [archival])
    assert list(done.passages) == [("prefers trains", archival)]
    assert list(done.writes) == []
    assert list_blocks_on_path([HUMAN], [archival], {1}) == [HUMAN]


def test_the_result_of_an_edit_shows_what_it_came_to() -> None:
    blocks, edit = apply_to_blocks([HUMAN], replaced(1, "Bob", "Rob"))
    assert blocks == [HUMAN]
    assert edit.value is None
    assert edit.message
    blocks, edit = apply_to_blocks([HUMAN], replaced(1, "Ann", "Anna"))
    assert blocks[0].value == edit.value == "Name: Anna"


def test_a_stored_operation_without_a_case_becomes_no_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.core.memory.edits.STORED_SOURCES", {"store_poem": "poem"})
    with pytest.raises(NotImplementedError, match="store_poem"):
        make_block_merge([HUMAN], [op(1, "store_poem", content="tea")])
