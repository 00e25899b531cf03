"""The memory tools of profiles.

The gateway has two vocabularies of tools for memory:

- `MEMORY_TOOLS`, here, are the tools of the settings' profiles, which the gateway offers by itself. The columns of a
  row describe the effect of a call.
- `BUILT_IN_TOOLS` (gateway.core.memory.builtin) are the tools that an agent of the agents API may have attached, by the
  names that Letta's clients know. Six of them are also tools of profiles, some with more arguments. Others speak, ask
  agents or search files, so a row there has a `ToolUse` in place of these columns.

Both end in the same operations on blocks (`EditOperation`), which `apply_edit` (gateway.core.memory.block_edit) applies
and the store has by these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from adapters.types import Json


def make_tool_schema(description: str, required: Iterable[str], /, **properties: Json) -> Json:
    """Returns a tool's definition without its name."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"description": description, "parameters": parameters}


def make_string_schema(description: str, **bounds: Any) -> Json:
    """Returns the schema of an argument that is a text. bounds: further keywords of JSON Schema."""
    return {"type": "string", **bounds, "description": description}


class EditOperation(StrEnum):
    """The kind of an edit of memory (`MemoryEdit.op`)."""

    INSERT = "insert"
    REPLACE = "replace"
    RETHINK = "rethink"
    # Only agents of the agents API have a tool for it.
    PATCH = "patch"
    ARCHIVAL_INSERT = "archival_insert"
    # Only agents of the agents API have a tool for it, so `MemoryTools.run` has no case for it.
    REMEMBER_FACT = "remember_fact"


# The operations that replace the whole text of a block, which the model must have seen before.
REWRITE_OPERATIONS = frozenset({EditOperation.RETHINK})
# The arguments of `BLOCK_TOOLS` that have new text of a block. Learning refuses secrets and marks orders in them.
NEW_TEXT_ARGUMENTS = ("new_string", "new_memory")
# The kinds of texts (`Message.kind`) by the operations that store a text of their own and change no block.
STORED_SOURCES: Mapping[str, str] = MappingProxyType(
    {EditOperation.ARCHIVAL_INSERT: "passage", EditOperation.REMEMBER_FACT: "fact"}
)


class MemoryTool(Struct, frozen=True):
    """A memory tool of a profile."""

    # The definition of the tool, without its name.
    schema: Json
    # The kind of edit that a call makes; None: a call changes nothing.
    operation: EditOperation | None = None
    # The kinds of entries that a call searches (`Message.kind`); empty: a call searches nothing.
    sources: frozenset[str] = frozenset()
    # True: the tool reads what edits of the same round change, so its calls run after them.
    reads_edits: bool = False

    @property
    def is_serial(self) -> bool:
        """True if the tool's calls run in their order, one after the other."""
        return self.operation is not None or self.reads_edits


# The schema of the argument that names a block.
LABEL_SCHEMA = make_string_schema("Label of the memory block, as it stands in the system prompt.")
# The schema of the arguments of a search.
_SEARCH = {
    "query": make_string_schema("Words to look for: names, things, topics."),
    "limit": {"type": "integer", "description": "How many results at most. Default: 5."},
}

# The memory tools of profiles, by name.
MEMORY_TOOLS: Mapping[str, MemoryTool] = MappingProxyType(
    {
        "memory_insert": MemoryTool(
            make_tool_schema(
                "Add a line to a memory block. Use it as soon as you learn something about the user, their wishes or "
                "their work that will matter in later conversations: one fact a line, short, with names and dates. "
                "The user does not see this call.",
                ("label", "new_string"),
                label=LABEL_SCHEMA,
                new_string=make_string_schema("The text to add."),
                insert_line={
                    "type": "integer",
                    "description": "Insert after this line; 0: at the beginning. Default: -1, at the end.",
                },
            ),
            EditOperation.INSERT,
        ),
        "memory_replace": MemoryTool(
            make_tool_schema(
                "Replace a passage of a memory block, to correct what has changed or (with an empty new_string) to "
                "remove it. The old passage must be given exactly and occur exactly once.",
                ("label", "old_string", "new_string"),
                label=LABEL_SCHEMA,
                old_string=make_string_schema("The passage as it stands now, exactly."),
                new_string=make_string_schema("What shall stand there instead."),
            ),
            EditOperation.REPLACE,
        ),
        "memory_rethink": MemoryTool(
            make_tool_schema(
                "Rewrite a whole memory block, to put it in order or to shorten one that is full. Everything that the "
                "new text leaves out is gone from the block. For single changes use memory_insert or memory_replace.",
                ("label", "new_memory"),
                label=LABEL_SCHEMA,
                new_memory=make_string_schema("The block's whole new text."),
            ),
            EditOperation.RETHINK,
        ),
        "archival_memory_insert": MemoryTool(
            make_tool_schema(
                "Keep a piece of text in long-term memory, outside of the system prompt. Use it for details that need "
                "not be in sight all the time; they can be found with archival_memory_search.",
                ("content",),
                content=make_string_schema("The text to keep; it must make sense by itself."),
            ),
            EditOperation.ARCHIVAL_INSERT,
        ),
        "archival_memory_search": MemoryTool(
            make_tool_schema(
                "Search what was kept with archival_memory_insert. Returns the passages that fit best, with dates.",
                ("query",),
                **_SEARCH,
            ),
            sources=frozenset({"passage"}),
            reads_edits=True,
        ),
        "conversation_search": MemoryTool(
            make_tool_schema(
                "Search all earlier conversations with this user. Use it when something is mentioned that is not in "
                "sight. Returns the messages that fit best, with dates and speakers.",
                ("query",),
                query=_SEARCH["query"],
                role=make_string_schema(
                    "Only what this side said. Default: both.", enum=["user", "assistant"]
                ),
                limit=_SEARCH["limit"],
            ),
            sources=frozenset({"message", "fact"}),
        ),
    }
)

# The operations of the tools that edit a block. Without a named user only these tools are offered: the others reach
# texts that the prompt does not show.
BLOCK_TOOLS: Mapping[str, EditOperation] = MappingProxyType(
    {
        name: tool.operation
        for name, tool in MEMORY_TOOLS.items()
        if tool.operation is not None and tool.operation not in STORED_SOURCES
    }
)
