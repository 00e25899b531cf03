"""The memory tools of profiles: their definitions, when they are offered to a model, and their arguments.

The gateway has two vocabularies of tools for memory:

- `MEMORY_TOOLS`, here, are those of the settings' profiles. The gateway offers them by itself. The columns of a row say
  what a call does.
- `BUILT_IN_TOOLS` (gateway.core.memory.builtin) are those that an agent made over REST may have attached. They have
  the names that Letta's clients know; six of them are also the profiles', some with more arguments. Others speak,
  ask agents or search files, so a row there has a `ToolUse` in place of these columns.

Both end in the same operations on blocks (`EditOperation`), which `apply_edit` (gateway.core.memory.block_edit) applies
and the store has by these names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from adapters.types import Json
from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep
from gateway.core.nul import without_nul

PREFIX = "mnemogate_"


def tool_schema(description: str, required: Iterable[str], /, **properties: Json) -> Json:
    """Returns a tool's definition without its name."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"description": description, "parameters": parameters}


def string_schema(description: str, **bounds: Any) -> Json:
    """Returns the schema of an argument that is a text. bounds: more of JSON Schema's keywords."""
    return {"type": "string", **bounds, "description": description}


class EditOperation(StrEnum):
    """The kind of an edit of memory (`MemoryEdit.op`)."""

    INSERT = "insert"
    REPLACE = "replace"
    RETHINK = "rethink"
    # Only agents of the agents API have a tool for it.
    PATCH = "patch"
    ARCHIVAL_INSERT = "archival_insert"
    # Likewise, so `MemoryTools.run` has no case for it.
    REMEMBER_FACT = "remember_fact"


# The operations that replace the whole text of a block, which the model must have seen before.
REWRITE_OPERATIONS = frozenset({EditOperation.RETHINK})
# The arguments of `BLOCK_TOOLS` that have new text of a block. Learning refuses secrets and marks orders in them.
NEW_TEXT_ARGUMENTS = ("new_string", "new_memory")
# The operations that store a text of their own and change no block -> the kind of it (`Message.source`).
STORED_SOURCES: Mapping[str, str] = MappingProxyType(
    {EditOperation.ARCHIVAL_INSERT: "passage", EditOperation.REMEMBER_FACT: "fact"}
)


class MemoryTool(Struct, frozen=True):
    """A memory tool of a profile."""

    # The definition of the tool, without its name.
    schema: Json
    # The kind of edit that a call of it is; None: it changes nothing.
    operation: EditOperation | None = None
    # The kinds of entries that it searches (`Message.source`); empty: it searches nothing.
    sources: frozenset[str] = frozenset()
    # The tool reads what edits of the same round change, so its calls run after them.
    reads_edits: bool = False

    @property
    def is_serial(self) -> bool:
        """Its calls run in their order, one after the other."""
        return self.operation is not None or self.reads_edits


LABEL_SCHEMA = string_schema("Label of the memory block, as it stands in the system prompt.")
_SEARCH = {
    "query": string_schema("Words to look for: names, things, topics."),
    "limit": {"type": "integer", "description": "How many results at most. Default: 5."},
}

MEMORY_TOOLS: Mapping[str, MemoryTool] = MappingProxyType(
    {
        "memory_insert": MemoryTool(
            tool_schema(
                "Add a line to a memory block. Use it as soon as you learn something about the user, their wishes or "
                "their work that will matter in later conversations: one fact a line, short, with names and dates. "
                "The user does not see this call.",
                ("label", "new_string"),
                label=LABEL_SCHEMA,
                new_string=string_schema("The text to add."),
                insert_line={
                    "type": "integer",
                    "description": "Insert after this line; 0: at the beginning. Default: -1, at the end.",
                },
            ),
            EditOperation.INSERT,
        ),
        "memory_replace": MemoryTool(
            tool_schema(
                "Replace a passage of a memory block, to correct what has changed or (with an empty new_string) to "
                "remove it. The old passage must be given exactly and occur exactly once.",
                ("label", "old_string", "new_string"),
                label=LABEL_SCHEMA,
                old_string=string_schema("The passage as it stands now, exactly."),
                new_string=string_schema("What shall stand there instead."),
            ),
            EditOperation.REPLACE,
        ),
        "memory_rethink": MemoryTool(
            tool_schema(
                "Rewrite a whole memory block, to put it in order or to shorten one that is full. Everything that the "
                "new text leaves out is gone from the block. For single changes use memory_insert or memory_replace.",
                ("label", "new_memory"),
                label=LABEL_SCHEMA,
                new_memory=string_schema("The block's whole new text."),
            ),
            EditOperation.RETHINK,
        ),
        "archival_memory_insert": MemoryTool(
            tool_schema(
                "Keep a piece of text in long-term memory, outside of the system prompt. Use it for details that need "
                "not be in sight all the time; they can be found with archival_memory_search.",
                ("content",),
                content=string_schema("The text to keep; it must make sense by itself."),
            ),
            EditOperation.ARCHIVAL_INSERT,
        ),
        "archival_memory_search": MemoryTool(
            tool_schema(
                "Search what was kept with archival_memory_insert. Returns the passages that fit best, with dates.",
                ("query",),
                **_SEARCH,
            ),
            sources=frozenset({"passage"}),
            reads_edits=True,
        ),
        "conversation_search": MemoryTool(
            tool_schema(
                "Search all earlier conversations with this user. Use it when something is mentioned that is not in "
                "sight. Returns the messages that fit best, with dates and speakers.",
                ("query",),
                query=_SEARCH["query"],
                role=string_schema("Only what this side said. Default: both.", enum=["user", "assistant"]),
                limit=_SEARCH["limit"],
            ),
            sources=frozenset({"message", "fact"}),
        ),
    }
)

# A tool that edits a block -> its operation. Without a named user only these are offered: the others reach what the
# prompt does not show.
BLOCK_TOOLS: Mapping[str, EditOperation] = MappingProxyType(
    {
        name: tool.operation
        for name, tool in MEMORY_TOOLS.items()
        if tool.operation is not None and tool.operation not in STORED_SOURCES
    }
)


# Offering


def tool_definitions(names: Mapping[str, str]) -> list[Json]:
    """Returns the entries for a request's `tools`. names: offered name -> canonical tool, in a fixed order."""
    return [
        {"type": "function", "function": {"name": name, **MEMORY_TOOLS[tool].schema}}
        for name, tool in names.items()
    ]


def allows_hidden_tools(body: Mapping[str, Any]) -> bool:
    """Returns whether a request can have tools that its client does not know of.

    It can if it asks for one choice, leaves the choice of tools to the model, and takes a reply in plain text. With
    anything else a hidden round of tools would change what the client asked for, or could not be hidden.
    """
    if body.get("n") not in (None, 1) or body.get("logprobs") or body.get("top_logprobs") is not None:
        return False
    if body.get("tool_choice") not in (None, "auto") or body.get("function_call") is not None:
        return False
    if body.get("functions") is not None or body.get("audio") is not None:
        return False
    if body.get("tools") is not None and not isinstance(body["tools"], list):
        return False
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        return False
    if body.get("modalities") not in (None, ["text"]):
        return False
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    # The model is to continue a last message that is the assistant's.
    return messages[-1].get("role") != "assistant"


def choose_tool_names(
    enabled: Iterable[str], client_names: Collection[str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns offered name -> canonical tool, for one request. Empty: offer nothing (and no `tools: []`).

    enabled: canonical names, in the order of the profile.
    earlier: offered name -> canonical tool, as this conversation was first offered them. These names stay; if a tool of
        the client's has taken one of them since, nothing is offered.
    """
    if earlier:
        if any(name in client_names for name in earlier):
            return {}
        allowed = frozenset(enabled)
        return {name: tool for name, tool in earlier.items() if tool in allowed}
    offered: dict[str, str] = {}
    for tool in enabled:
        if tool not in MEMORY_TOOLS:
            continue
        name = tool
        while name in client_names or name in offered:
            name = PREFIX + name
        offered[name] = tool
    return offered


# Arguments


def read_arguments(text: str) -> Json | None:
    """Returns a call's arguments; None if they are no JSON object. Models send "" for no arguments.

    A whole number is an int, also in a list, however it is written: some providers have floats alone, and write 5.0.
    """
    if not text.strip():
        return {}
    try:
        parsed = exact_json.loads(text)
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    arguments = {
        name: [*map(_as_int, value)] if isinstance(value, list) else _as_int(value)
        for name, value in parsed.items()
    }
    if "\\u0000" not in text:
        return arguments
    return None if is_too_deep(arguments) else without_nul(arguments)


def _as_int(value: Any) -> Any:
    """Returns a float that is a whole number as an int, unless a float of its size stands for several."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


# What Python's JSON has for a type of JSON Schema. A bool is an int as well, and no number of JSON.
_TYPES: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
)
# The bound of line numbers, limits and minutes in arguments; chosen, not measured.
_MAX_NUMBER = 2**31


def known_arguments(tool: str, arguments: Mapping[str, Any]) -> Json:
    """Returns the arguments that are in a tool's schema: models also send those of other tools of this name."""
    known = MEMORY_TOOLS[tool].schema["parameters"]["properties"]
    return {name: value for name, value in arguments.items() if name in known}


def argument_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a call's arguments, for the model to read; None if nothing is.

    Arguments that are not in the schema are ignored.
    """
    parameters = MEMORY_TOOLS[tool].schema["parameters"]
    for name, schema in parameters["properties"].items():
        value = arguments.get(name)
        if value is None:
            if name in parameters["required"]:
                return f"Error: {tool} needs `{name}`. Nothing was done."
        elif not _has_type(value, schema["type"]):
            return f"Error: `{name}` of {tool} must be of type {schema['type']}. Nothing was done."
        elif "enum" in schema and value not in schema["enum"]:
            return f"Error: `{name}` of {tool} must be one of {', '.join(schema['enum'])}. Nothing was done."
    return number_error(tool, arguments)


def _has_type(value: object, name: str) -> bool:
    """Returns whether a value is of a type of JSON Schema."""
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def number_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns the error of a call with a number that is too large for the gateway's tools, or None."""
    large = (
        name
        for name, value in arguments.items()
        if isinstance(value, int | float) and abs(value) > _MAX_NUMBER
    )
    name = next(large, None)
    return None if name is None else f"Error: `{name}` of {tool} is too large. Nothing was done."
