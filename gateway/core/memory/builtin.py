"""The gateway's own tools of agents: their uses and their schemas, by the names of Letta's tools.

`gateway.core.memory.memory_tools` describes their relation to the tools of profiles. A call that edits blocks becomes
operations (gateway.core.memory.edit_calls), a call that searches a `Lookup` (gateway.core.memory.memory_lookup).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from adapters.types import Json
from gateway.core.memory.memory_tools import (
    LABEL_SCHEMA,
    MEMORY_TOOLS,
    make_string_schema,
    make_tool_schema,
)

# The tools that speak to the user, with the argument that has the words.
SPEAKING_TOOLS: Final[Mapping[str, str]] = MappingProxyType({"send_message": "message"})

# The descriptions of arguments that several tools have.
_BOUND_TEXT = "Only what is {side} this date or time (ISO 8601, such as 2026-03-01 or 2026-03-01T09:30)."
_SINCE_TEXT = _BOUND_TEXT.format(side="from")
_UNTIL_TEXT = _BOUND_TEXT.format(side="up to the end of")
_TAGS: Json = {"type": "array", "items": {"type": "string"}}
_PATH_EXAMPLE = "such as /memories/human"


def _make_integer_schema(description: str, **bounds: Any) -> Json:
    return {"type": "integer", **bounds, "description": description}


class ToolUse(Enum):
    """The effect of a call of one of the gateway's own tools."""

    # The call has the agent's words to the user.
    SPEAK = "speak"
    # The call edits blocks.
    EDIT = "edit"
    # The call stores a passage.
    STORE_PASSAGE = "store_passage"
    # The call stores a fact.
    STORE_FACT = "store_fact"
    # The call searches memory.
    SEARCH = "search"
    # The call sends a message to other agents.
    ASK_AGENT = "ask_agent"
    # The call searches the files that are attached.
    SEARCH_FILES = "search_files"
    # The call reports that all edits are made.
    FINISH = "finish"


# The uses that read or change memory. Their calls run one after the other, so that a search finds earlier edits.
MEMORY_USES: Final = frozenset({ToolUse.EDIT, ToolUse.STORE_PASSAGE, ToolUse.STORE_FACT, ToolUse.SEARCH})


class BuiltInTool(NamedTuple):
    """One of the gateway's own tools of agents."""

    # The use of the tool.
    use: ToolUse
    # The definition of the tool, without its name.
    schema: Json


def _make_tool(use: ToolUse, description: str, required: Iterable[str], /, **properties: Json) -> BuiltInTool:
    return BuiltInTool(use, make_tool_schema(description, required, **properties))


# The position of a tool here is stored with the agents that have it: a new tool is appended.
BUILT_IN_TOOLS: Final[Mapping[str, BuiltInTool]] = MappingProxyType(
    {
        "send_message": _make_tool(
            ToolUse.SPEAK,
            "Say something to the user. This is the only way to answer.",
            ("message",),
            message=make_string_schema("The words, as the user reads them."),
        ),
        "conversation_search": _make_tool(
            ToolUse.SEARCH,
            "Search all earlier messages with this user. Returns those that fit best, with dates and speakers.",
            (),
            query=make_string_schema("Words to look for: names, things, topics."),
            roles={
                "type": "array",
                "items": {"type": "string", "enum": ["user", "assistant", "tool"]},
                "description": "Only what these said. Default: all.",
            },
            limit=_make_integer_schema("How many results at most. Default: 5.", minimum=1, maximum=100),
            start_date=make_string_schema(_SINCE_TEXT),
            end_date=make_string_schema(_UNTIL_TEXT),
        ),
        "archival_memory_insert": _make_tool(
            ToolUse.STORE_PASSAGE,
            "Keep a piece of text in long-term memory, outside of the system prompt. It is found again with "
            "archival_memory_search.",
            ("content",),
            content=make_string_schema("The text to keep; it must make sense by itself."),
            tags={**_TAGS, "description": "Words under which it is filed, for later searches."},
        ),
        "archival_memory_search": _make_tool(
            ToolUse.SEARCH,
            "Search long-term memory by meaning and words. Returns the passages that fit best, with dates.",
            ("query",),
            query=make_string_schema("Words to look for: names, things, topics."),
            tags={**_TAGS, "description": "Only passages that are filed under these."},
            tag_match_mode=make_string_schema(
                "Whether one of the tags is enough. Default: any.", enum=["any", "all"]
            ),
            top_k=_make_integer_schema("How many results at most. Default: 5.", minimum=1, maximum=100),
            start_datetime=make_string_schema(_SINCE_TEXT),
            end_datetime=make_string_schema(_UNTIL_TEXT),
        ),
        "core_memory_append": _make_tool(
            ToolUse.EDIT,
            "Add text at the end of a memory block.",
            ("label", "content"),
            label=LABEL_SCHEMA,
            content=make_string_schema("The text to add."),
        ),
        "core_memory_replace": _make_tool(
            ToolUse.EDIT,
            "Replace a text in a memory block wherever it occurs. An empty new_content removes it.",
            ("label", "old_content", "new_content"),
            label=LABEL_SCHEMA,
            old_content=make_string_schema("The text as it stands now, exactly."),
            new_content=make_string_schema("What shall stand there instead."),
        ),
        "memory": _make_tool(
            ToolUse.EDIT,
            "Edit a memory block: `str_replace` (path, old_string, new_string) replaces a text that occurs exactly "
            "once, `insert` (path, insert_line, insert_text) adds lines.",
            ("command",),
            command=make_string_schema(
                "What to do.", enum=["str_replace", "insert", "create", "delete", "rename"]
            ),
            path=make_string_schema(f"The block, {_PATH_EXAMPLE}."),
            old_string=make_string_schema("For str_replace: the text as it stands now, exactly."),
            new_string=make_string_schema("For str_replace: what shall stand there instead."),
            insert_line=_make_integer_schema(
                "For insert: after this line; 0: at the beginning; -1: at the end."
            ),
            insert_text=make_string_schema("For insert: the lines to add."),
            file_text=make_string_schema("For create: the new block's text."),
            description=make_string_schema("For create: what the block is for."),
            old_path=make_string_schema(f"For rename: the block, {_PATH_EXAMPLE}."),
            new_path=make_string_schema("For rename: its new name."),
        ),
        "memory_insert": _make_tool(
            ToolUse.EDIT,
            "Add lines to a memory block, one short fact a line. The user does not see this call.",
            ("label", "new_string"),
            label=LABEL_SCHEMA,
            new_string=make_string_schema("The text to add."),
            insert_line=_make_integer_schema(
                "Insert after this line; 0: at the beginning. Default: -1, at the end."
            ),
        ),
        "memory_replace": BuiltInTool(ToolUse.EDIT, MEMORY_TOOLS["memory_replace"].schema),
        "memory_rethink": _make_tool(
            ToolUse.EDIT,
            "Rewrite a whole memory block, to put it in order or to shorten it. Everything that the new text leaves "
            "out is gone from the block. For single changes use memory_insert or memory_replace.",
            ("label", "new_memory"),
            label=LABEL_SCHEMA,
            new_memory=make_string_schema("The block's whole new text."),
        ),
        "memory_apply_patch": _make_tool(
            ToolUse.EDIT,
            "Change several places of a memory block at once, by a patch: lines that stay begin with a blank, lines "
            "to remove with '-', lines to add with '+', and a line '@@' separates places. Several blocks go into one "
            "patch, each under a line '*** Update Block: <label>'.",
            ("label", "patch"),
            label=make_string_schema("Label of the memory block, where the patch names none itself."),
            patch=make_string_schema("The patch."),
        ),
        "memory_finish_edits": _make_tool(
            ToolUse.FINISH, "Say that all that had to be changed in memory is changed.", ()
        ),
        "recall_memory": _make_tool(
            ToolUse.SEARCH,
            "Look for something in all that is remembered: messages, facts and kept texts.",
            ("query",),
            query=make_string_schema("Words to look for: names, things, topics."),
        ),
        "search_memory": _make_tool(
            ToolUse.SEARCH,
            "Look for something in all that is remembered, by several keywords and by how long ago it was.",
            (),
            convo_keyword_queries={
                "type": "array",
                "items": {"type": "string"},
                "description": "Keywords to look for in earlier messages.",
            },
            start_minutes_ago=_make_integer_schema("Only what is at most so many minutes old.", minimum=0),
            end_minutes_ago=_make_integer_schema("Only what is at least so many minutes old.", minimum=0),
        ),
        "remember_fact": _make_tool(
            ToolUse.STORE_FACT,
            "Keep one fact about the user in long-term memory: one sentence that makes sense by itself.",
            ("fact",),
            fact=make_string_schema("The fact."),
        ),
        "grep_files": _make_tool(
            ToolUse.SEARCH_FILES,
            "Search the lines of the attached files by a regular expression, whatever the case. Returns the lines with "
            "their files and numbers, 20 at a time.",
            ("pattern",),
            pattern=make_string_schema("The regular expression."),
            include=make_string_schema("Only files whose names fit this, such as *.md."),
            context_lines=_make_integer_schema(
                "How many lines around each are shown. Default: 1.", minimum=0, maximum=10
            ),
            offset=_make_integer_schema(
                "How many of the lines that fit are passed over.", minimum=0, maximum=100_000
            ),
        ),
        "semantic_search_files": _make_tool(
            ToolUse.SEARCH_FILES,
            "Search the attached files by meaning and words. Returns the parts that fit best, with their files.",
            ("query",),
            query=make_string_schema("Words to look for: names, things, topics."),
            limit=_make_integer_schema("How many results at most. Default: 5.", minimum=1, maximum=20),
        ),
        "send_message_to_agent_and_wait_for_reply": _make_tool(
            ToolUse.ASK_AGENT,
            "Send a message to another agent, and wait for its answer.",
            ("message", "other_agent_id"),
            message=make_string_schema("The message. The other agent knows nothing of this conversation."),
            other_agent_id=make_string_schema("The id of the other agent, or its name."),
        ),
        "send_message_to_agent_async": _make_tool(
            ToolUse.ASK_AGENT,
            "Send a message to another agent, and go on without waiting. If it answers, then by a message of its own.",
            ("message", "other_agent_id"),
            message=make_string_schema("The message. The other agent knows nothing of this conversation."),
            other_agent_id=make_string_schema("The id of the other agent, or its name."),
        ),
        "send_message_to_agents_matching_tags": _make_tool(
            ToolUse.ASK_AGENT,
            "Send a message to all other agents that have certain tags, and wait for their answers. Returns a list "
            "with the answer of each.",
            ("message", "match_all", "match_some"),
            message=make_string_schema("The message. The other agents know nothing of this conversation."),
            match_all={
                **_TAGS,
                "description": "Only agents that have all of these tags; [] asks for none.",
            },
            match_some={
                **_TAGS,
                "description": "Only agents that have one of these tags at least; [] asks for none.",
            },
        ),
    }
)


def list_built_in_tools(*uses: ToolUse) -> tuple[str, ...]:
    """Returns the names of the built-in tools with these uses, in the order of `BUILT_IN_TOOLS`."""
    return tuple(name for name, tool in BUILT_IN_TOOLS.items() if tool.use in uses)


def find_tool_entry(name: str) -> Json | None:
    """Returns the entry for a request's `tools`; None: the gateway has no such tool of its own."""
    tool = BUILT_IN_TOOLS.get(name)
    return None if tool is None else {"type": "function", "function": {"name": name, **tool.schema}}
