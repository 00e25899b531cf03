"""The gateway's own tools of agents: their schemas, by the names of Letta's, and what their calls mean.

A call that edits blocks becomes operations (`edit_calls`), one that searches becomes a `Lookup`. Neither touches
memory: `gateway.core.memory.edits` applies operations, and `gateway.agents.tools.agent_tools` asks the store.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, tzinfo
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from adapters.types import Json
from gateway.core.dates import parse_moment
from gateway.core.memory.memory_tools import (
    BLOCK_TOOLS,
    MEMORY_TOOLS,
    EditOperation,
    string_schema,
    tool_schema,
)
from storage.records import Message

# The argument of a tool that is its words to the user.
SPEAKING_TOOLS: Final[Mapping[str, str]] = MappingProxyType({"send_message": "message"})

# The tools that put a passage or a fact into long-term memory, with the argument that has it.
REMEMBERING_TOOLS: Final[Mapping[str, str]] = MappingProxyType(
    {"archival_memory_insert": "content", "remember_fact": "fact"}
)

_LABEL = string_schema("Label of the memory block, as it stands in the system prompt.")
_WHEN = "Only what is {side} this date or time (ISO 8601, such as 2026-03-01 or 2026-03-01T09:30)."
_SINCE, _UNTIL = _WHEN.format(side="from"), _WHEN.format(side="up to the end of")
_TAGS: Json = {"type": "array", "items": {"type": "string"}}
_NAME = "such as /memories/human"


def _number(description: str, **bounds: Any) -> Json:
    return {"type": "integer", **bounds, "description": description}


SCHEMAS: Final[Mapping[str, Json]] = MappingProxyType(
    {
        "send_message": tool_schema(
            "Say something to the user. This is the only way to answer.",
            ("message",),
            message=string_schema("The words, as the user reads them."),
        ),
        "core_memory_append": tool_schema(
            "Add text at the end of a memory block.",
            ("label", "content"),
            label=_LABEL,
            content=string_schema("The text to add."),
        ),
        "core_memory_replace": tool_schema(
            "Replace a text in a memory block wherever it occurs. An empty new_content removes it.",
            ("label", "old_content", "new_content"),
            label=_LABEL,
            old_content=string_schema("The text as it stands now, exactly."),
            new_content=string_schema("What shall stand there instead."),
        ),
        "memory": tool_schema(
            "Edit a memory block: `str_replace` (path, old_string, new_string) replaces a text that occurs exactly "
            "once, `insert` (path, insert_line, insert_text) adds lines.",
            ("command",),
            command=string_schema(
                "What to do.", enum=["str_replace", "insert", "create", "delete", "rename"]
            ),
            path=string_schema(f"The block, {_NAME}."),
            old_string=string_schema("For str_replace: the text as it stands now, exactly."),
            new_string=string_schema("For str_replace: what shall stand there instead."),
            insert_line=_number("For insert: after this line; 0: at the beginning; -1: at the end."),
            insert_text=string_schema("For insert: the lines to add."),
            file_text=string_schema("For create: the new block's text."),
            description=string_schema("For create: what the block is for."),
            old_path=string_schema(f"For rename: the block, {_NAME}."),
            new_path=string_schema("For rename: its new name."),
        ),
        "memory_insert": tool_schema(
            "Add lines to a memory block, one short fact a line. The user does not see this call.",
            ("label", "new_string"),
            label=_LABEL,
            new_string=string_schema("The text to add."),
            insert_line=_number("Insert after this line; 0: at the beginning. Default: -1, at the end."),
        ),
        "memory_replace": MEMORY_TOOLS["memory_replace"],
        "memory_rethink": tool_schema(
            "Rewrite a whole memory block, to put it in order or to shorten it. Everything that the new text leaves "
            "out is gone from the block. For single changes use memory_insert or memory_replace.",
            ("label", "new_memory"),
            label=_LABEL,
            new_memory=string_schema("The block's whole new text."),
        ),
        "memory_apply_patch": tool_schema(
            "Change several places of a memory block at once, by a patch: lines that stay begin with a blank, lines "
            "to remove with '-', lines to add with '+', and a line '@@' separates places. Several blocks go into one "
            "patch, each under a line '*** Update Block: <label>'.",
            ("label", "patch"),
            label=string_schema("Label of the memory block, where the patch names none itself."),
            patch=string_schema("The patch."),
        ),
        "memory_finish_edits": tool_schema("Say that all that had to be changed in memory is changed.", ()),
        "archival_memory_insert": tool_schema(
            "Keep a piece of text in long-term memory, outside of the system prompt. It is found again with "
            "archival_memory_search.",
            ("content",),
            content=string_schema("The text to keep; it must make sense by itself."),
            tags={**_TAGS, "description": "Words under which it is filed, for later searches."},
        ),
        "archival_memory_search": tool_schema(
            "Search long-term memory by meaning and words. Returns the passages that fit best, with dates.",
            ("query",),
            query=string_schema("Words to look for: names, things, topics."),
            tags={**_TAGS, "description": "Only passages that are filed under these."},
            tag_match_mode=string_schema(
                "Whether one of the tags is enough. Default: any.", enum=["any", "all"]
            ),
            top_k=_number("How many results at most. Default: 5.", minimum=1, maximum=100),
            start_datetime=string_schema(_SINCE),
            end_datetime=string_schema(_UNTIL),
        ),
        "conversation_search": tool_schema(
            "Search all earlier messages with this user. Returns those that fit best, with dates and speakers.",
            (),
            query=string_schema("Words to look for: names, things, topics."),
            roles={
                "type": "array",
                "items": {"type": "string", "enum": ["user", "assistant", "tool"]},
                "description": "Only what these said. Default: all.",
            },
            limit=_number("How many results at most. Default: 5.", minimum=1, maximum=100),
            start_date=string_schema(_SINCE),
            end_date=string_schema(_UNTIL),
        ),
        "recall_memory": tool_schema(
            "Look for something in all that is remembered: messages, facts and kept texts.",
            ("query",),
            query=string_schema("Words to look for: names, things, topics."),
        ),
        "search_memory": tool_schema(
            "Look for something in all that is remembered, by several keywords and by how long ago it was.",
            (),
            convo_keyword_queries={
                "type": "array",
                "items": {"type": "string"},
                "description": "Keywords to look for in earlier messages.",
            },
            start_minutes_ago=_number("Only what is at most so many minutes old.", minimum=0),
            end_minutes_ago=_number("Only what is at least so many minutes old.", minimum=0),
        ),
        "send_message_to_agent_and_wait_for_reply": tool_schema(
            "Send a message to another agent, and wait for its answer.",
            ("message", "other_agent_id"),
            message=string_schema("The message. The other agent knows nothing of this conversation."),
            other_agent_id=string_schema("The id of the other agent, or its name."),
        ),
        "send_message_to_agent_async": tool_schema(
            "Send a message to another agent, and go on without waiting. If it answers, then by a message of its own.",
            ("message", "other_agent_id"),
            message=string_schema("The message. The other agent knows nothing of this conversation."),
            other_agent_id=string_schema("The id of the other agent, or its name."),
        ),
        "send_message_to_agents_matching_tags": tool_schema(
            "Send a message to all other agents that have certain tags, and wait for their answers. Returns a list "
            "with the answer of each.",
            ("message", "match_all", "match_some"),
            message=string_schema("The message. The other agents know nothing of this conversation."),
            match_all={**_TAGS, "description": "Only agents that have all of these tags; [] asks for none."},
            match_some={
                **_TAGS,
                "description": "Only agents that have one of these tags at least; [] asks for none.",
            },
        ),
        "remember_fact": tool_schema(
            "Keep one fact about the user in long-term memory: one sentence that makes sense by itself.",
            ("fact",),
            fact=string_schema("The fact."),
        ),
        "grep_files": tool_schema(
            "Search the lines of the attached files by a regular expression, whatever the case. Returns the lines with "
            "their files and numbers, 20 at a time.",
            ("pattern",),
            pattern=string_schema("The regular expression."),
            include=string_schema("Only files whose names fit this, such as *.md."),
            context_lines=_number("How many lines around each are shown. Default: 1.", minimum=0, maximum=10),
            offset=_number("How many of the lines that fit are passed over.", minimum=0, maximum=100_000),
        ),
        "semantic_search_files": tool_schema(
            "Search the attached files by meaning and words. Returns the parts that fit best, with their files.",
            ("query",),
            query=string_schema("Words to look for: names, things, topics."),
            limit=_number("How many results at most. Default: 5.", minimum=1, maximum=20),
        ),
    }
)

EDITING_TOOLS: Final = frozenset(
    {
        "core_memory_append",
        "core_memory_replace",
        "memory",
        "memory_insert",
        "memory_replace",
        "memory_rethink",
        "memory_apply_patch",
    }
)
SEARCHING_TOOLS: Final = frozenset(
    {"archival_memory_search", "conversation_search", "recall_memory", "search_memory"}
)


def definition_of(name: str) -> Json | None:
    """Returns the entry for a request's `tools`; None: the gateway has no such tool of its own."""
    schema = SCHEMAS.get(name)
    return None if schema is None else {"type": "function", "function": {"name": name, **schema}}


# Edits

_NEXT: Final = " #"
# Some proxies put the signature of a thought into a call's id, some kilobytes. PostgreSQL indexes no more than 2,704
# bytes, and servers take headers of some thousand.
_MAX_ID_CHARS: Final = 200


class EditCall(Struct, frozen=True):
    """One operation on a block."""

    op: EditOperation
    label: str
    # As `apply_edit` takes them (gateway.core.memory.memory_tools).
    arguments: Json


def edit_id(call_id: str, n: int) -> str:
    """Returns the name of the n-th edit of a call: a turn has each name once."""
    name = short_call_id(call_id)
    return name if n == 0 else f"{name}{_NEXT}{n + 1}"


def short_call_id(call_id: str) -> str:
    """Returns a call's id as indexes and headers take it: of a long one a digest."""
    return call_id if len(call_id) <= _MAX_ID_CHARS else sha256(call_id.encode()).hexdigest()


def calls_by_name(calls: Iterable[str]) -> dict[str, str]:
    """Returns the ids of calls by the names of their first edits."""
    return {edit_id(call, 0): call for call in calls}


def call_of_edit(edit: str, calls: Mapping[str, str]) -> str:
    """Returns the id of the call that an edit belongs to; "": of none of these. calls: as `calls_by_name` has them."""
    return calls.get(edit) or calls.get(edit.rpartition(_NEXT)[0], "")


def edit_calls(name: str, arguments: Mapping[str, Any]) -> list[EditCall] | str:
    """Returns the operations that a call asks for, or an error. arguments: they fit the schema."""
    label = str(arguments.get("label") or "")
    match name:
        case "core_memory_append":
            return [_edit(EditOperation.INSERT, label, new_string=arguments["content"])]
        case "core_memory_replace":
            old, new = arguments["old_content"], arguments["new_content"]
            return [_edit(EditOperation.REPLACE, label, old_string=old, new_string=new, every=True)]
        case "memory":
            return _memory_command(arguments)
        case "memory_apply_patch":
            return _patches(label, str(arguments["patch"]))
        case _:
            names = SCHEMAS[name]["parameters"]["properties"].keys() - {"label"}
            edited = {key: value for key, value in arguments.items() if key in names}
            return [_edit(BLOCK_TOOLS[name], label, **edited)]


def _edit(op: EditOperation, label: str, **arguments: Any) -> EditCall:
    return EditCall(op, label, {"label": label, **arguments})


_NEEDS: Final = {"str_replace": ("path", "old_string", "new_string"), "insert": ("path", "insert_text")}


def _memory_command(arguments: Mapping[str, Any]) -> list[EditCall] | str:
    command = str(arguments["command"])
    if command not in _NEEDS:
        return (
            f"Error: `{command}` is not possible here: blocks are made, named and removed by the agent's owner. "
            "Nothing was done."
        )
    for key in _NEEDS[command]:
        if arguments.get(key) is None:
            return f"Error: `{command}` needs `{key}`. Nothing was done."
    label = _block_at(str(arguments["path"]))
    if command == "insert":
        line = arguments.get("insert_line")
        return [_edit(EditOperation.INSERT, label, new_string=arguments["insert_text"], insert_line=line)]
    old, new = arguments["old_string"], arguments["new_string"]
    return [_edit(EditOperation.REPLACE, label, old_string=old, new_string=new)]


def _block_at(path: str) -> str:
    """Returns the label that a path names: /memories/human, memories/human and human are the same block."""
    return path.strip().removeprefix("/").removeprefix("memories/").strip("/")


_BLOCK = re.compile(r"^\*\*\* (Update|Add|Delete) Block: *(.*)$")


def _patches(label: str, patch: str) -> list[EditCall] | str:
    parts: list[tuple[str, list[str]]] = [(label, [])]
    for line in patch.split("\n"):
        match = _BLOCK.match(line)
        if match is None:
            if not line.startswith(("*** Begin Patch", "*** End Patch", "--- ", "+++ ")):
                parts[-1][1].append(line)
        elif match[1] == "Update":
            parts.append((_block_at(match[2]), []))
        else:
            return (
                f"Error: `*** {match[1]} Block` is not possible here: blocks are made and removed by the agent's "
                "owner. Nothing was done."
            )
    found = [(name, "\n".join(lines)) for name, lines in parts if "".join(lines).strip()]
    if not found:
        return "Error: the patch says nothing. Nothing was done."
    return [_edit(EditOperation.PATCH, name, patch=text) for name, text in found]


# Searches


class Lookup(Struct, frozen=True):
    """A search of memory."""

    # The texts to search for; empty: the newest entries.
    queries: tuple[str, ...]
    # Kinds of entries: "message", "passage", "fact".
    sources: frozenset[str]
    # Roles of messages; empty: any.
    roles: frozenset[str] = frozenset()
    # Tags of passages.
    tags: frozenset[str] = frozenset()
    # A passage must have all of the tags, not one of them.
    needs_all: bool = False
    # The earliest time, in epoch seconds; None: any.
    since: float | None = None
    # The latest time, in epoch seconds; None: any.
    until: float | None = None
    # The most results.
    limit: int = 5

    def matches(self, hit: Message) -> bool:
        """Returns whether a hit is one of those that are looked for, but for its tags."""
        return (
            hit.source in self.sources
            and (not self.roles or hit.role in self.roles)
            and self.matches_time(hit.at)
        )

    def matches_time(self, at: float) -> bool:
        """Returns whether an entry of this time, in epoch seconds, is."""
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)

    def matches_tags(self, tags: Collection[str]) -> bool:
        """Returns whether a passage with these tags is."""
        found = self.tags & frozenset(tags)
        return not self.tags or (found == self.tags if self.needs_all else bool(found))


_EVERYTHING = frozenset({"message", "passage", "fact"})
_ALL_RESULTS = 8  # of a search of everything
_MAX_QUERIES = 8


def read_lookup(name: str, arguments: Mapping[str, Any], now: float, timezone: str = "UTC") -> Lookup | str:
    """Returns the search that a call asks for, or an error.

    arguments: they fit the schema.
    timezone: of its dates.
    """
    query = str(arguments.get("query") or "").strip()
    queries = (query,) if query else ()
    since_key, until_key = _DATES.get(name, ("", ""))
    try:
        since = _moment(arguments.get(since_key), timezone, is_end=False)
        until = _moment(arguments.get(until_key), timezone, is_end=True)
    except ValueError:
        return f"Error: `{since_key}` and `{until_key}` are dates such as 2026-03-01. Nothing was done."
    match name:
        case "archival_memory_search":
            return Lookup(
                queries,
                frozenset({"passage"}),
                tags=frozenset(arguments.get("tags") or ()),
                needs_all=arguments.get("tag_match_mode") == "all",
                since=since,
                until=until,
                limit=arguments.get("top_k") or 5,
            )
        case "conversation_search":
            roles = frozenset(arguments.get("roles") or ())
            return Lookup(
                queries,
                frozenset({"message"}),
                roles,
                since=since,
                until=until,
                limit=arguments.get("limit") or 5,
            )
        case "search_memory":
            words = tuple(each for each in arguments.get("convo_keyword_queries") or () if each.strip())
            words = words[:_MAX_QUERIES]
            start, end = arguments.get("start_minutes_ago"), arguments.get("end_minutes_ago")
            return Lookup(
                words,
                _EVERYTHING,
                since=None if start is None else now - 60 * start,
                until=None if end is None else now - 60 * end,
                limit=max(_ALL_RESULTS, 3 * len(words)),
            )
        case _:
            return Lookup(queries, _EVERYTHING, limit=_ALL_RESULTS)


_DATES: Final = {
    "archival_memory_search": ("start_datetime", "end_datetime"),
    "conversation_search": ("start_date", "end_date"),
}


def _moment(text: object, timezone: str, *, is_end: bool) -> float | None:
    """Returns a date or time as epoch seconds; of a date alone its beginning or its end. Raises: ValueError."""
    return parse_moment(str(text).strip(), _zone(timezone), is_end=is_end) if text else None


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        # The definition of an agent may be older than a change of the zones.
        return UTC
