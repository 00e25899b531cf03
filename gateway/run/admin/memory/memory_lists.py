"""`mnemogate users` and `mnemogate conversations`: lists of memories and conversations.

No text of a user is shown, only names, times and sizes. Each line has the arguments with which `mnemogate memory
forget` forgets the memory or the conversation.
"""

from __future__ import annotations

from math import inf
from typing import Any

from msgspec import Struct

from gateway.errors import BadRequest
from gateway.run.admin.memory_names import make_memory_flags, make_owner_fields
from gateway.run.admin.operation_arguments import NO_DEFAULTS, Arguments, Defaults, RawArguments
from storage.operator_records import ListedConversation, ListedMemory, RetainedContent
from storage.sql.store import Store

# The most lines of an answer. A list of 100,000 users takes 16 s without a server (measured), mostly for their last
# messages.
PAGE_LINES = 500


class ListOperations(Struct, frozen=True):
    """Lists memories and conversations, a page at a time. Answers are {"lines", "next"}."""

    store: Store
    defaults: Defaults = NO_DEFAULTS

    async def list_memories(self, raw: RawArguments) -> dict[str, Any]:
        """Lists memories, the oldest first.

        The arguments are `project` (left out: all projects) and `from`: the value of `next` in the answer before.
        """
        arguments = Arguments(raw)
        project = arguments.read_optional_text("project")
        after = arguments.read_optional_number("from")
        memories = await self.store.overview.list_memories(project, after=after or 0, limit=PAGE_LINES)
        cursor = memories[-1].id if len(memories) == PAGE_LINES else None
        return {"lines": [_render_memory_line(memory) for memory in memories], "next": cursor}

    async def list_conversations(self, raw: RawArguments) -> dict[str, Any]:
        """Lists the conversations of a user, or a conversation without a user, the newest first.

        The arguments are those of the owner, `profile` (left out: all profiles) and `from`: the value of
        `next` in the answer before.
        """
        arguments = Arguments(raw)
        owner = arguments.read_owner(self.defaults)
        if owner.subject is None:
            raise BadRequest("Say whose conversations: --user, --conversation or --agent.", param="user")
        profile = arguments.read_optional_text("profile")
        before = (inf, 0)
        if "from" in arguments:
            last_at, conversation_row = arguments.read_position("from", 2)
            before = (float(last_at), int(conversation_row))
        page = await self.store.overview.list_conversations(
            owner.project, profile, owner.subject, before=before, limit=PAGE_LINES
        )
        lines = [_render_conversation(conversation) for conversation in page.conversations]
        return {"lines": lines, "next": None if page.next is None else list(page.next)}


def _render_memory_line(memory: ListedMemory) -> dict[str, Any]:
    return {
        **make_owner_fields(memory.scope),
        "memory": memory.uid,
        "begun": memory.created,
        "conversations": memory.retained.conversations,
        **_make_size_fields(memory.retained),
        "blocks": memory.blocks,
        "facts": memory.facts,
        "passages": memory.passages,
        "forget": make_memory_flags(memory.scope),
    }


def _render_conversation(conversation: ListedConversation) -> dict[str, Any]:
    return {
        **make_owner_fields(conversation.scope),
        "id": conversation.uid,
        "client_id": conversation.key,
        **_make_size_fields(conversation.retained),
        "forget": [*make_memory_flags(conversation.scope), f"--in={conversation.uid}"],
    }


def _make_size_fields(retained: RetainedContent) -> dict[str, Any]:
    return {
        "last_turn": retained.last_at,
        "messages": retained.messages,
        "turns": retained.turns,
        "cancelled_turns": retained.cancelled,
        "bytes": retained.bytes,
    }
