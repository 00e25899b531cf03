"""Which calls of memory tools depend on one another, and under which names they run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.memory.memory_tools import EditOperation, MemoryTool, make_tool_schema
from gateway.core.request.memory_mode import Mode
from gateway.core.turn.commands import RunTool
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.tools import memory
from gateway.run.tools.memory import MemoryTools
from storage.records import Block
from tests.gateway.tools.run_round import run_all

OFFERED = {
    "mnemogate_memory_insert": "memory_insert",
    "memory_replace": "memory_replace",
    "archival_memory_insert": "archival_memory_insert",
    "archival_memory_search": "archival_memory_search",
    "conversation_search": "conversation_search",
}


def tools(block_edits: BlockEdits) -> MemoryTools:
    request = SimpleNamespace(identity=SimpleNamespace(mode=Mode.ON))
    known = cast("Any", SimpleNamespace(offered_tools=OFFERED, request=request))
    return MemoryTools(cast("Any", None), known, block_edits, lambda: 1.0, cast("Any", None))


def insert(id: str, label: str, text: str) -> RunTool:
    return RunTool(id, "mnemogate_memory_insert", {"label": label, "new_string": text})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (insert("a", "human", "x"), insert("b", "human", "y")),
        (insert("a", "human", "x"), RunTool("b", "memory_replace", {"label": "human"})),
        # What is written of a turn keeps the order of its calls.
        (insert("a", "human", "x"), insert("b", "persona", "y")),
        (insert("a", "human", "x"), RunTool("b", "archival_memory_insert", {})),
        # What was just stored is found by the search that follows.
        (RunTool("a", "archival_memory_insert", {}), RunTool("b", "archival_memory_search", {})),
    ],
)
def test_edits_and_what_reads_them_share_a_lane(one: RunTool, other: RunTool) -> None:
    box = tools(BlockEdits())
    assert box.find_serial_group(one) is not None
    assert box.find_serial_group(one) == box.find_serial_group(other)


def test_a_search_of_conversations_depends_on_nothing() -> None:
    assert tools(BlockEdits()).find_serial_group(RunTool("a", "conversation_search", {"query": "x"})) is None


async def test_edits_of_one_round_are_done_in_their_order() -> None:
    block_edits = BlockEdits([Block(1, "human", "", "", 100), Block(2, "persona", "", "", 100)])
    box = tools(block_edits)
    kept = RunTool("k", "archival_memory_insert", {"content": "kept"})
    wanted = [insert("a", "human", "one"), insert("b", "persona", "p"), kept, insert("c", "human", "two")]
    results = await run_all(box, wanted)
    assert [b.value for b in block_edits.blocks] == ["one\ntwo", "p"]
    assert [op.call_id for op in block_edits.edits] == ["a", "b", "k", "c"]
    assert all("changed" in result.content or "Stored" in result.content for result in results)


@pytest.mark.parametrize("arguments", [{}, {"label": 3, "new_string": "x"}, {"label": "human"}])
async def test_wrong_arguments_change_nothing_and_are_explained(arguments: dict[str, Any]) -> None:
    block_edits = BlockEdits([Block(1, "human", "", "", 100)])
    (result,) = await run_all(tools(block_edits), [RunTool("a", "mnemogate_memory_insert", arguments)])
    assert result.content.startswith("Error:")
    assert result.status == "error"
    assert block_edits.edits == []
    assert block_edits.blocks[0].value == ""


async def test_a_tool_whose_operation_has_no_case_is_a_fault_and_edits_no_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = MemoryTool(make_tool_schema("Stores a fact.", ()), EditOperation.REMEMBER_FACT)
    monkeypatch.setattr(memory, "MEMORY_TOOLS", {"memory_replace": toy})
    monkeypatch.setattr("gateway.core.memory.call_arguments.MEMORY_TOOLS", {"memory_replace": toy})
    with pytest.raises(NotImplementedError, match="memory_replace"):
        await tools(BlockEdits()).run(RunTool("a", "memory_replace", {}))
