"""The memory tools that the model may call within a turn: edits of its blocks, searches of what was said."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import orjson

from gateway.core.memory import edits, tools
from gateway.core.memory.visibility import messages_of
from gateway.core.prompt import note
from storage.base import Store
from storage.commands import Look
from storage.errors import StoreError
from storage.records import Agent, Block, BlockOp, Message, Vector

__all__ = ["MemoryTools"]

_log = logging.getLogger("mnemogate")
SEARCH_RESULTS = 5  # of a search that does not say how many it wants
SEARCH_MS = 1000.0
DEFAULT_TOKENS = 1000  # of a search's result, where automatic recall is switched off


class MemoryTools:
    """One turn's. blocks: as its path sees them, its own edits included. ops: its edits, pending until it is confirmed.

    path: exchanges on the turn's path, whose pending edits count here.
    """

    def __init__(
        self,
        store: Store,
        agent: Agent,
        look: Look,
        path: Collection[int],
        blocks: Sequence[Block],
        recall_tokens: int,
        now: Callable[[], float],
        embed_query: Callable[[int, str, float], Awaitable[Vector | None]] | None = None,
    ) -> None:
        self._store = store
        self._agent = agent
        self._look = look
        self._path = path
        self._recall_tokens = recall_tokens
        self._now = now
        self._embed_query = embed_query
        self.blocks = edits.view(blocks, look.ops, path)
        self.ops: list[BlockOp] = []

    async def run(self, call_id: str, tool: str, arguments: Mapping[str, Any]) -> str:
        """The result, as the model reads it. Edits are this turn's until it is confirmed."""
        wrong = tools.check(tool, arguments)
        if wrong is not None:
            return wrong
        if tool in ("conversation_search", "archival_memory_search"):
            return await self._search(tool, arguments)
        op = BlockOp(
            id=0,
            exchange=0,
            call_id=call_id,
            op=tools.EDITS[tool],
            label=str(arguments.get("label", "")),
            arguments=orjson.dumps(arguments),
            at=self._now(),
        )
        if op.op == edits.ARCHIVAL_INSERT:
            self.ops.append(op)
            return "Stored in archival memory."
        self.blocks, edit = edits.perform(self.blocks, op)
        if edit.value is not None:
            self.ops.append(op)
        return edit.result

    async def _search(self, tool: str, arguments: Mapping[str, Any]) -> str:
        try:
            found = await self._found(str(arguments.get("query", "")))
        except StoreError as error:
            _log.warning("search failed: %s", error.message)
            return "Error: memory cannot be searched at the moment."
        is_archive = tool == "archival_memory_search"
        role, limit = arguments.get("role"), max(1, arguments.get("limit") or SEARCH_RESULTS)
        hits = [m for m in found if (m.source == "passage") is is_archive and role in (None, m.role)]
        pending = [op for op in (*self._look.ops, *self.ops) if op.exchange in self._path or not op.exchange]
        kept = [_kept(op, n) for n, op in enumerate(pending) if is_archive and op.op == edits.ARCHIVAL_INSERT]
        budget = self._recall_tokens or DEFAULT_TOKENS
        # What is not confirmed is in no index. The newest first, and as short as all that is found.
        mine = [f"- {c.text}" for c in note.choose(kept[: -limit - 1 : -1], "", budget_tokens=budget)]
        budget -= note.estimate_tokens("\n".join(mine))
        chosen = note.choose(hits[:limit], "", budget_tokens=budget)
        lines = [*mine, *(_result_line(c) for c in chosen)]
        return "\n".join(lines) if lines else "Nothing was found."

    async def _found(self, query: str) -> list[Message]:
        if not self._agent.scope.is_person or not self._agent.id:
            return []
        vector = (
            None if self._embed_query is None else await self._embed_query(self._agent.id, query, SEARCH_MS)
        )
        return await self._store.recall.search(
            self._agent,
            query,
            messages_of,
            size=self._look.next_seq,
            indexed=self._look.indexed_seq,
            deadline_ms=SEARCH_MS,
            vector=vector,
        )


def _kept(op: BlockOp, number: int) -> Message:
    """A passage of a turn that is not confirmed. number: in the order of the turns' edits."""
    text = str(orjson.loads(op.arguments).get("content", ""))
    return Message(number, op.exchange, "assistant", text, op.at, 0, source="passage")


def _result_line(hit: note.Recalled) -> str:
    at = time.strftime("%Y-%m-%d", time.gmtime(hit.message.at))
    who = hit.message.speaker or hit.message.role
    return f"- [{at}, {who}] {hit.text}" if hit.message.source == "message" else f"- [{at}] {hit.text}"
