"""The memory tools that the model may call within a turn: edits of memory, and searches (`MemorySearches`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.memory.call_arguments import drop_unknown_arguments, find_argument_error
from gateway.core.memory.edit_ids import make_edit_id
from gateway.core.memory.fact_words import FACT_CHARS, make_fact_key
from gateway.core.memory.memory_lookup import Lookup
from gateway.core.memory.memory_tools import MEMORY_TOOLS, STORED_SOURCES, EditOperation
from gateway.core.memory.offered_tools import make_tool_definitions
from gateway.core.request.memory_mode import Mode
from gateway.core.turn.asides import FILLER, with_asides
from gateway.core.turn.commands import RunTool
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.tools.memory_searches import ArchiveSearch, MemorySearches
from gateway.run.tools.toolbox import ToolAnswer
from storage.records import MemoryEdit
from storage.sql.store import Store

# The result of an edit in a request that may not write.
READ_ONLY_ERROR = "Error: this request only reads memory. Nothing was done."
# The number of results of a search that names no limit.
_SEARCH_RESULTS = 5


class MemoryTools(Struct, frozen=True):
    """The memory tools of one turn. They read and edit the blocks as the path of the turn sees them.

    Implements `Toolbox`, which documents the methods.
    """

    # The store of the memories.
    store: Store
    # The memory as it was read for the turn.
    context: MemoryContext
    # The blocks and the edits of the turn. The edits are stored with the turn, and stay pending until it is confirmed.
    block_edits: BlockEdits
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The searches of messages, passages and conversations.
    searches: MemorySearches

    def list_definitions(self) -> list[dict[str, Any]]:
        definitions = make_tool_definitions(self.context.offered_tools)
        if self.context.request.spec.filler != "model":
            return definitions
        return [with_asides(each, {FILLER}) for each in definitions]

    def owns(self, name: str) -> bool:
        return name in self.context.offered_tools

    def find_serial_group(self, call: RunTool) -> str | None:
        tool = MEMORY_TOOLS.get(self.context.offered_tools.get(call.name, ""))
        return "edits" if tool is not None and tool.is_serial else None

    async def run(self, call: RunTool) -> ToolAnswer:
        """Runs a memory tool. An error of the call is its answer."""
        name = self.context.offered_tools[call.name]
        tool = MEMORY_TOOLS[name]
        if tool.operation is not None and self.context.request.identity.mode is Mode.READ:
            return ToolAnswer.failed(READ_ONLY_ERROR)
        error = find_argument_error(name, call.arguments)
        if error is not None:
            return ToolAnswer.failed(error)
        arguments = drop_unknown_arguments(name, call.arguments)
        if tool.sources:
            return await self.searches.look_up(_make_lookup(tool.sources, arguments))
        match tool.operation:
            case EditOperation.ARCHIVAL_INSERT:
                return self.remember(call.call_id, arguments)
            case EditOperation() as operation if operation not in STORED_SOURCES:
                return self.edit(call.call_id, operation, arguments["label"], arguments)
        raise NotImplementedError(f"{name} is in MEMORY_TOOLS and has no case here")

    def edit(
        self,
        call_id: str,
        operation: str,
        label: str,
        arguments: Mapping[str, Any],
        *,
        number: int = 0,
        is_by_model: bool = True,
    ) -> ToolAnswer:
        """Edits a block as the path sees it.

        number: the number of the edit among the edits of its call, from 0.
        is_by_model: as for `BlockEdits.apply`.
        """
        edit = self.block_edits.apply(
            self._make_edit(call_id, operation, label, arguments, number), is_by_model=is_by_model
        )
        return ToolAnswer(edit.message, edit.status, shown=edit.shown)

    def remember(self, call_id: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Stores a text in archival memory. arguments: the `content`, and perhaps `tags`."""
        if not str(arguments["content"]).strip():
            return ToolAnswer.failed("Error: there is no text to keep. Nothing was done.")
        self.block_edits.edits.append(self._make_edit(call_id, EditOperation.ARCHIVAL_INSERT, "", arguments))
        return ToolAnswer("Stored in archival memory.")

    def remember_fact(self, call_id: str, fact: str) -> ToolAnswer:
        """Stores a fact. It is recalled when it fits a message, and a search of the whole memory finds it."""
        if not make_fact_key(fact):
            return ToolAnswer.failed("Error: there is no fact to keep. Nothing was done.")
        if len(fact) > FACT_CHARS:
            return ToolAnswer.failed(
                f"Error: a fact has at most {FACT_CHARS} characters. Nothing was done; for a longer text there is "
                "archival_memory_insert."
            )
        edit = self._make_edit(call_id, EditOperation.REMEMBER_FACT, "", {"content": fact})
        self.block_edits.edits.append(edit)
        return ToolAnswer("The fact is kept.")

    def _make_edit(
        self, call_id: str, operation: str, label: str, arguments: Mapping[str, Any], number: int = 0
    ) -> MemoryEdit:
        return MemoryEdit(
            id=0,
            exchange_row=0,
            call_id=make_edit_id(call_id, number),
            op=operation,
            label=label,
            arguments=orjson.dumps(arguments),
            at=self.now(),
        )


def make_memory_tools(
    keeper: MemoryKeeper, context: MemoryContext, edits: BlockEdits, archives: ArchiveSearch | None = None
) -> MemoryTools:
    """Returns the memory tools of a turn. archives: the archives that a search reads besides the memory's own."""
    searches = MemorySearches(
        store=keeper.store,
        context=context,
        block_edits=edits,
        recall_tokens=keeper.settings.recall_tokens,
        embed_query=keeper.embed_query,
        archives=archives,
    )
    return MemoryTools(keeper.store, context, edits, keeper.now, searches)


def _make_lookup(sources: frozenset[str], arguments: Mapping[str, Any]) -> Lookup:
    """Returns the search that a call of a tool asks for. sources: the kinds of entries that the tool searches."""
    role = arguments.get("role")
    return Lookup(
        (str(arguments.get("query", "")),),
        sources,
        frozenset() if role is None else frozenset({role}),
        limit=max(1, arguments.get("limit") or _SEARCH_RESULTS),
    )
