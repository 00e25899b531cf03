"""The memory tools that the model may call within a turn: edits of its blocks, searches of what was said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.core.dates import day_of
from gateway.core.memory import edits, tools
from gateway.core.prompt import note
from gateway.core.prompt.section import digest
from gateway.core.turn.commands import RunTool
from gateway.run.memory.known import Known
from gateway.run.memory.recall import EmbedQuery
from gateway.run.memory.record import BlockEdits
from storage.errors import StoreError
from storage.records import BlockOp, Message
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
# The number of results of a search that names no limit.
SEARCH_RESULTS = 5
SEARCH_MS = 1000.0
CHANGED_MEANWHILE = (
    "Error: the block {label!r} was changed by somebody else since you saw it. Nothing was done. It now reads:"
    "\n{value}"
)
# The budget of a search's results where automatic recall is switched off.
DEFAULT_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class MemoryTools:
    """The memory tools of one turn, which reads and edits blocks as its path sees them.

    changes: the turn's blocks and edits, written with it and pending until it is confirmed.
    """

    store: Store
    known: Known
    changes: BlockEdits
    recall_tokens: int
    now: Callable[[], float]
    embed_query: EmbedQuery | None = None

    def definitions(self) -> list[dict[str, Any]]:
        return tools.definitions(self.known.offered)

    def owns(self, name: str) -> bool:
        return name in self.known.offered

    def lane(self, call: RunTool) -> str | None:
        # Edits are kept in the order of their calls, and a search finds what was kept just before it.
        tool = self.known.offered.get(call.name)
        return "edits" if tool in tools.EDITS or tool == "archival_memory_search" else None

    async def run(self, call: RunTool) -> str:
        tool, changes = self.known.offered[call.name], self.changes
        if tool in tools.BLOCK_TOOLS:
            # A block's edit checks its arguments itself, because it is done again when the turn is confirmed.
            op = self._op(tool, call)
            if (unknown := self._unknown(op)) is not None:
                return unknown
            changes.blocks, edit = edits.perform(changes.blocks, op)
            if edit.value is not None:
                changes.ops.append(op)
                if changes.told is not None:
                    changes.told[op.label] = digest(edit.value)
            return edit.result
        wrong = tools.check(tool, call.arguments)
        if wrong is not None:
            return wrong
        if tool in tools.EDITS:
            changes.ops.append(self._op(tool, call))
            return "Stored in archival memory."
        return await self._search(tool, call.arguments)

    def _unknown(self, op: BlockOp) -> str | None:
        """Returns an error where the model would write over what somebody else wrote and it has not seen."""
        told = self.changes.told
        block = next((each for each in self.changes.blocks if each.label == op.label), None)
        if op.op != "rethink" or told is None or block is None or told.get(op.label) == digest(block.value):
            return None
        told[op.label] = digest(block.value)
        return CHANGED_MEANWHILE.format(label=op.label, value=block.value)

    def _op(self, tool: str, call: RunTool) -> BlockOp:
        return BlockOp(
            id=0,
            exchange=0,
            call_id=call.call_id,
            op=tools.EDITS[tool],
            label=str(call.arguments.get("label", "")),
            arguments=orjson.dumps(call.arguments),
            at=self.now(),
        )

    async def _search(self, tool: str, arguments: Mapping[str, Any]) -> str:
        try:
            found = await self._found(str(arguments.get("query", "")))
        except StoreError as error:
            _log.warning("search failed: %s", error.message)
            return "Error: memory cannot be searched at the moment."
        is_archive = tool == "archival_memory_search"
        role, limit = arguments.get("role"), max(1, arguments.get("limit") or SEARCH_RESULTS)
        hits = [m for m in found if (m.source == "passage") is is_archive and role in (None, m.role)]
        # The pending edits of this path count, and those of this turn.
        path = self.known.path_ids
        pending = [*(op for op in self.known.look.ops if op.exchange in path), *self.changes.ops]
        kept = [_kept(op, n) for n, op in enumerate(pending) if is_archive and op.op == edits.ARCHIVAL_INSERT]
        budget = self.recall_tokens or DEFAULT_TOKENS
        # Edits that are not confirmed are in no index. They come first, the newest before the others.
        mine = [f"- {c.text}" for c in note.choose(kept[: -limit - 1 : -1], "", budget_tokens=budget)]
        budget -= note.estimate_tokens("\n".join(mine))
        chosen = note.choose(hits[:limit], "", budget_tokens=budget)
        lines = [*mine, *(_result_line(c) for c in chosen)]
        return "\n".join(lines) if lines else "Nothing was found."

    async def _found(self, query: str) -> list[Message]:
        agent, look = self.known.agent, self.known.look
        if not agent.scope.spans or not agent.id:
            return []
        vector = None if self.embed_query is None else await self.embed_query(agent.id, query, SEARCH_MS)
        return await self.store.recall.search(
            agent, query, size=look.next_seq, indexed=look.indexed_seq, deadline_ms=SEARCH_MS, vector=vector
        )


def _kept(op: BlockOp, number: int) -> Message:
    """A passage of a turn that is not confirmed. number: in the order of the turns' edits."""
    text = str(orjson.loads(op.arguments).get("content", ""))
    return Message(number, op.exchange, "assistant", text, op.at, 0, source="passage")


def _result_line(hit: note.Recalled) -> str:
    at = day_of(hit.message.at).split()[0]
    who = hit.message.speaker or hit.message.role
    return f"- [{at}, {who}] {hit.text}" if hit.message.source == "message" else f"- [{at}] {hit.text}"
