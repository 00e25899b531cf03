"""The memory tools: their definitions, when they are offered to a model, and the edits of blocks that they make.

This module knows nothing of stores and turns. An edit is a function of a block and a call's arguments, so that its
result can be shown to the next model call at once, and the edit applied again to the block when the turn is confirmed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct, field

from adapters.types import Json
from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep
from gateway.core.nul import without_nul
from gateway.core.prompt.shown_blocks import Shown
from gateway.core.tags import quoted
from storage.records import Block

PREFIX = "mnemogate_"


def tool_schema(description: str, required: Iterable[str], /, **properties: Json) -> Json:
    """Returns a tool's definition without its name."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"description": description, "parameters": parameters}


def string_schema(description: str, **bounds: Any) -> Json:
    """Returns the schema of an argument that is a text. bounds: more of JSON Schema's keywords."""
    return {"type": "string", **bounds, "description": description}


_LABEL = string_schema("Label of the memory block, as it stands in the system prompt.")
_SEARCH = {
    "query": string_schema("Words to look for: names, things, topics."),
    "limit": {"type": "integer", "description": "How many results at most. Default: 5."},
}

MEMORY_TOOLS: Mapping[str, Json] = MappingProxyType(
    {
        "memory_insert": tool_schema(
            "Add a line to a memory block. Use it as soon as you learn something about the user, their wishes or "
            "their work that will matter in later conversations: one fact a line, short, with names and dates. "
            "The user does not see this call.",
            ("label", "new_string"),
            label=_LABEL,
            new_string=string_schema("The text to add."),
            insert_line={
                "type": "integer",
                "description": "Insert after this line; 0: at the beginning. Default: -1, at the end.",
            },
        ),
        "memory_replace": tool_schema(
            "Replace a passage of a memory block, to correct what has changed or (with an empty new_string) to "
            "remove it. The old passage must be given exactly and occur exactly once.",
            ("label", "old_string", "new_string"),
            label=_LABEL,
            old_string=string_schema("The passage as it stands now, exactly."),
            new_string=string_schema("What shall stand there instead."),
        ),
        "memory_rethink": tool_schema(
            "Rewrite a whole memory block, to put it in order or to shorten one that is full. Everything that the "
            "new text leaves out is gone from the block. For single changes use memory_insert or memory_replace.",
            ("label", "new_memory"),
            label=_LABEL,
            new_memory=string_schema("The block's whole new text."),
        ),
        "archival_memory_insert": tool_schema(
            "Keep a piece of text in long-term memory, outside of the system prompt. Use it for details that need "
            "not be in sight all the time; they can be found with archival_memory_search.",
            ("content",),
            content=string_schema("The text to keep; it must make sense by itself."),
        ),
        "archival_memory_search": tool_schema(
            "Search what was kept with archival_memory_insert. Returns the passages that fit best, with dates.",
            ("query",),
            **_SEARCH,
        ),
        "conversation_search": tool_schema(
            "Search all earlier conversations with this user. Use it when something is mentioned that is not in "
            "sight. Returns the messages that fit best, with dates and speakers.",
            ("query",),
            query=_SEARCH["query"],
            role=string_schema("Only what this side said. Default: both.", enum=["user", "assistant"]),
            limit=_SEARCH["limit"],
        ),
    }
)


class EditOperation(StrEnum):
    """The kind of an edit of memory (`BlockOp.op`)."""

    INSERT = "insert"
    REPLACE = "replace"
    RETHINK = "rethink"
    # Only agents of the agents API have a tool for it.
    PATCH = "patch"
    ARCHIVAL_INSERT = "archival_insert"
    REMEMBER_FACT = "remember_fact"


# The operations that replace the whole text of a block, which the model must have seen before.
REWRITE_OPERATIONS = frozenset({EditOperation.RETHINK})
# The operations that store a text of their own and change no block.
STORING_OPERATIONS = frozenset({EditOperation.ARCHIVAL_INSERT, EditOperation.REMEMBER_FACT})

# A tool that edits a block -> its operation. Without a named user only these are offered: the others reach what the
# prompt does not show.
BLOCK_TOOLS: Mapping[str, EditOperation] = MappingProxyType(
    {
        "memory_insert": EditOperation.INSERT,
        "memory_replace": EditOperation.REPLACE,
        "memory_rethink": EditOperation.RETHINK,
    }
)
# The tools that change memory.
WRITING_TOOLS = frozenset({*BLOCK_TOOLS, "archival_memory_insert"})
# The tools that read what the edits of the same round change, and so run in order with them.
RUN_AFTER_EDITS = frozenset(("archival_memory_search",))


# Offering


def tool_definitions(names: Mapping[str, str]) -> list[Json]:
    """Returns the entries for a request's `tools`. names: offered name -> canonical tool, in a fixed order."""
    return [
        {"type": "function", "function": {"name": name, **MEMORY_TOOLS[tool]}} for name, tool in names.items()
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
    earlier: the names, likewise, under which this conversation was first offered them. They stay; if a tool of the
        client's has one of them by now, none is offered.
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
    found = {
        name: [*map(_as_int, value)] if isinstance(value, list) else _as_int(value)
        for name, value in parsed.items()
    }
    if "\\u0000" not in text:
        return found
    return None if is_too_deep(found) else without_nul(found)


def _as_int(value: Any) -> Any:
    """Returns a float that is a whole number as an int, unless a float of its size stands for several."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


_TYPES = {"string": str, "integer": int}
_MAX_NUMBER = 2**31  # of a line, a limit or minutes; no measurement


def known_arguments(tool: str, arguments: Mapping[str, Any]) -> Json:
    """Returns the arguments that are in a tool's schema: models also send those of other tools of this name."""
    known = MEMORY_TOOLS[tool]["parameters"]["properties"]
    return {name: value for name, value in arguments.items() if name in known}


def argument_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a call's arguments, for the model to read; None if nothing is.

    Arguments that are not in the schema are ignored.
    """
    parameters = MEMORY_TOOLS[tool]["parameters"]
    for name, schema in parameters["properties"].items():
        value = arguments.get(name)
        if value is None:
            if name in parameters["required"]:
                return f"Error: {tool} needs `{name}`. Nothing was done."
        elif not isinstance(value, _TYPES[schema["type"]]) or isinstance(value, bool):
            return f"Error: `{name}` of {tool} must be of type {schema['type']}. Nothing was done."
        elif "enum" in schema and value not in schema["enum"]:
            return f"Error: `{name}` of {tool} must be one of {', '.join(schema['enum'])}. Nothing was done."
    return number_error(tool, arguments)


def number_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns the error of a call of one of the gateway's tools with a number beyond their use; None: it has none."""
    large = (
        name
        for name, value in arguments.items()
        if isinstance(value, int | float) and abs(value) > _MAX_NUMBER
    )
    name = next(large, None)
    return None if name is None else f"Error: `{name}` of {tool} is too large. Nothing was done."


# Edits


class EditResult(Struct, frozen=True):
    """The outcome of an edit: the new value of a block, and what the model reads of it."""

    # The block's new value; None: it is unchanged, as the edit has failed or the block has the text already.
    value: str | None
    # The text for the model.
    message: str
    has_failed: bool = False
    # What the message shows of the block. Set by the caller, who knows what the prompt shows.
    shown: Shown = field(default_factory=dict)

    @property
    def status(self) -> str:
        """How the call went: success or error."""
        return "error" if self.has_failed else "success"


# A message quotes the old and the new text up to this length: enough to recognise the edit, not the whole block again.
_QUOTED_CHARS = 200
_MAX_LINE_NUMBERS = 10  # that a message lists, where a text occurs more than once


class _Change(NamedTuple):
    """The text of a block after an operation, and the words about it."""

    value: str | None  # the new text; None: the operation cannot be done
    words: str  # half a sentence for the model: what was done, or else why nothing was


def apply_edit(op: str, arguments: Mapping[str, Any], block: Block | None) -> EditResult:
    """Applies an operation to a block.

    op: an `EditOperation`, and none of `STORING_OPERATIONS`.
    arguments: those of the operation's tool, which are checked here. REPLACE may also have `every`, which replaces all
        places. Those of PATCH were checked.
    block: the one that the arguments name; None: there is none.
    """
    tool = next((tool for tool, operation in BLOCK_TOOLS.items() if operation == op), None)
    error = None if tool is None else argument_error(tool, arguments)
    if error is not None:
        return EditResult(None, error, has_failed=True)
    label = arguments["label"]
    if block is None:
        return _refusal(f"there is no memory block {quoted(label)}.")
    if block.read_only:
        return _refusal(f"the memory block {quoted(label)} is read-only.")
    if op == EditOperation.REPLACE and arguments.get("every") and arguments["old_string"]:
        # The size is checked first: many places of a long text could grow to gigabytes.
        size = _replaced_size(block.value, arguments["old_string"], arguments["new_string"])
        if (refusal := _limit_refusal(block, size)) is not None:
            return refusal
    change = _change_text(op, arguments, block.value)
    if change.value is None:
        return _refusal(change.words)
    if (refusal := _limit_refusal(block, len(change.value))) is not None:
        return refusal
    if change.value == block.value:
        return EditResult(None, f"The memory block {quoted(label)} says so already.")
    return EditResult(
        change.value,
        f"Memory block {quoted(label)} {change.words} ({len(change.value)} of {block.limit} characters)",
    )


def _change_text(op: str, arguments: Mapping[str, Any], value: str) -> _Change:
    """Applies an operation to the text of a block. The parameters are those of `apply_edit`."""
    match op:
        case EditOperation.INSERT:
            return _insert(value, arguments["new_string"], arguments.get("insert_line"))
        case EditOperation.REPLACE:
            old, new = arguments["old_string"], arguments["new_string"]
            return _replace(value, old, new, every=bool(arguments.get("every")))
        case EditOperation.PATCH:
            return _patch(value, arguments["patch"])
        case EditOperation.RETHINK:
            new = arguments["new_memory"]
            return _Change(new, f"rewritten: {len(value)} -> {len(new)} characters")
    raise NotImplementedError(f"{op} edits no block, or lacks a case here")


def _refusal(why: str, advice: str = "") -> EditResult:
    return EditResult(None, f"Error: {why} Nothing was done.{advice}", has_failed=True)


def _limit_refusal(block: Block, size: int) -> EditResult | None:
    """Returns the refusal of an edit after which a block would have `size` characters; None: it may have them."""
    # A block that is over its limit already (the limit was lowered) may be made shorter.
    if size <= block.limit or size < len(block.value):
        return None
    return _refusal(
        f"the memory block {quoted(block.label)} would have {size} characters; its limit is {block.limit}.",
        " Shorten it first, or keep the text in archival memory.",
    )


def _replaced_size(value: str, old: str, new: str) -> int:
    """Returns the size of a text after all places of `old` in it are replaced by `new`."""
    return len(value) + value.count(old) * (len(new) - len(old))


def _insert(value: str, new: str, line: int | None) -> _Change:
    """Inserts after a line, by its number from 1; 0: at the beginning; None or -1: at the end."""
    new = new.strip("\n")
    if not new.strip():
        return _Change(None, "the text to add is empty.")
    lines = value.split("\n") if value else []
    at = len(lines) if line is None or line == -1 else line
    if not 0 <= at <= len(lines):
        return _Change(None, f"insert_line must be from 0 to {len(lines)}, or -1; it is {at}.")
    return _Change("\n".join([*lines[:at], new, *lines[at:]]), f"changed: + {_quoted_short(new)}")


def _replace(value: str, old: str, new: str, *, every: bool = False) -> _Change:
    """Replaces a text that occurs exactly once; with `every`, all places where it occurs."""
    if not old:
        return _Change(None, "the text to replace is empty.")
    if every and old in value:
        return _Change(value.replace(old, new), f"changed: - {_quoted_short(old)} + {_quoted_short(new)}")
    count = value.count(old)
    # Overlapping places count as well: "aa" in "aaa" does not say which.
    if count == 1 and value.find(old, value.find(old) + 1) != -1:
        count = 2
    if count == 0:
        return _Change(None, f"the text to replace is not in the block: {_quoted_short(old)}.")
    if count > 1:
        lines = ", ".join(map(str, _lines_of(value, old)))
        return _Change(
            None,
            f"the text to replace is there more than once (lines {lines}); give more of what is around it.",
        )
    return _Change(value.replace(old, new), f"changed: - {_quoted_short(old)} + {_quoted_short(new)}")


def _lines_of(value: str, old: str) -> list[int]:
    """Returns the numbers, from 1, of the first lines in which a text begins."""
    line_numbers: list[int] = []
    line, counted, position = 1, 0, value.find(old)
    while position != -1 and len(line_numbers) < _MAX_LINE_NUMBERS:
        line += value.count("\n", counted, position)
        line_numbers.append(line)
        counted, end = position, value.find("\n", position)
        position = -1 if end == -1 else value.find(old, end + 1)
    return line_numbers


def _patch(value: str, patch: str) -> _Change:
    """Applies the hunks of a patch, one after the other; the old lines of each must occur exactly once."""
    # Each line with a break on both sides, so that whole lines are found in one search.
    text, shown = "\n" + _joined_lines(value.split("\n") if value else []), list[str]()
    for hunk in re.split(r"^@@.*\n?", patch, flags=re.MULTILINE):
        if not hunk.strip():
            continue
        # An empty line of the context may have lost its blank.
        rows = [row or " " for row in hunk.strip("\n").split("\n") if not row.startswith("\\")]
        change = _apply_hunk(text, rows)
        if change.value is None:
            return change
        text = change.value
        shown += [row for row in rows if row[0] != " "]
    if not shown:
        return _Change(None, "the patch changes nothing.")
    return _Change(text[1:-1], f"changed: {_quoted_short(chr(10).join(shown))}")


def _apply_hunk(text: str, rows: Sequence[str]) -> _Change:
    """Replaces the old lines of a hunk by its new ones. text: with a break before and after each line."""
    wrong = next((row for row in rows if row[0] not in " -+"), None)
    if wrong is not None:
        return _Change(
            None, f"a line of the patch begins with none of ' ', '-', '+': {_quoted_short(wrong)}."
        )
    old = [row[1:] for row in rows if row[0] != "+"]
    new = [row[1:] for row in rows if row[0] != "-"]
    sought = "\n" + _joined_lines(old)
    # A hunk without old lines is added at the end.
    at = text.find(sought) if old else len(text) - 1
    if at == -1 or (old and text.find(sought, at + 1) != -1):
        how = "not in the block" if at == -1 else "there more than once"
        return _Change(None, f"these lines of the patch are {how}: {_quoted_short(chr(10).join(old))}.")
    return _Change(text[: at + 1] + _joined_lines(new) + text[at + len(sought) :], "")


def _joined_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _quoted_short(text: str) -> str:
    return quoted(text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…")
