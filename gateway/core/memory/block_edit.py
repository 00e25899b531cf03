"""The edits of a memory block: a function of the block and a call's arguments.

This module knows nothing of stores and turns. So the result of an edit can be shown to the next call of the model at
once, and the edit applied again to the block when the turn is confirmed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field

from gateway.core.conversation.private import CallStatus
from gateway.core.memory.call_arguments import find_argument_error
from gateway.core.memory.memory_tools import BLOCK_TOOLS, EditOperation
from gateway.core.prompt.shown_blocks import ShownBlocks
from gateway.core.tags import quote_text
from storage.records import Block

# A message quotes the old and the new text up to this length: enough to recognise the edit, not the whole block again.
_QUOTED_CHARS = 200
# The most line numbers that a message lists, if a text occurs more than once.
_MAX_LINE_NUMBERS = 10


class BlockEdit(Struct, frozen=True):
    """An edit of a block that a call of the model asks for."""

    # The operation.
    op: EditOperation
    # The arguments in the form in which `apply_edit` takes them.
    arguments: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The label of the block that is edited."""
        return str(self.arguments["label"])


class EditResult(Struct, frozen=True):
    """The outcome of an edit: the new value of a block, and the text for the model."""

    # The block's new value; None: the edit has failed, or the block has the text already.
    value: str | None
    # The text for the model.
    message: str
    # True: the edit was not made.
    has_failed: bool = False
    # The version of the block that the message shows. The caller sets it, from the versions that the prompt shows.
    shown: ShownBlocks = field(default_factory=dict)

    @property
    def status(self) -> CallStatus:
        """The outcome of the call."""
        return "error" if self.has_failed else "success"


class _Change(NamedTuple):
    """The text of a block after an operation, and a description for the model."""

    # The new text; None: the operation cannot be done.
    value: str | None
    # Half a sentence: the change, or the reason why nothing was changed.
    description: str


def apply_edit(op: str, arguments: Mapping[str, Any], block: Block | None) -> EditResult:
    """Applies an operation to a block.

    op: an `EditOperation`, and none of `STORED_SOURCES`.
    arguments: the arguments of the operation's tool, which are checked here, but for the arguments of PATCH, which were
        checked before. REPLACE may also have `every`, which replaces all places.
    block: the block that the arguments name; None: no block has this name.
    """
    tool = next((tool for tool, operation in BLOCK_TOOLS.items() if operation == op), None)
    error = None if tool is None else find_argument_error(tool, arguments)
    if error is not None:
        return EditResult(None, error, has_failed=True)
    label = arguments["label"]
    if block is None:
        return _refuse(f"there is no memory block {quote_text(label)}.")
    if block.read_only:
        return _refuse(f"the memory block {quote_text(label)} is read-only.")
    if op == EditOperation.REPLACE and arguments.get("every") and arguments["old_string"]:
        # The size is checked first: many places of a long text could grow to gigabytes.
        size = _measure_replaced(block.value, arguments["old_string"], arguments["new_string"])
        if (failure := _find_limit_error(block, size)) is not None:
            return failure
    change = _change_text(op, arguments, block.value)
    if change.value is None:
        return _refuse(change.description)
    if (failure := _find_limit_error(block, len(change.value))) is not None:
        return failure
    if change.value == block.value:
        return EditResult(None, f"The memory block {quote_text(label)} has this text already.")
    return EditResult(
        change.value,
        f"Memory block {quote_text(label)} {change.description} ({len(change.value)} of {block.limit} characters)",
    )


def _change_text(op: str, arguments: Mapping[str, Any], value: str) -> _Change:
    """Applies an operation to the text of a block. The parameters are those of `apply_edit`."""
    match op:
        case EditOperation.INSERT:
            return _insert(value, arguments["new_string"], arguments.get("insert_line"))
        case EditOperation.REPLACE:
            old, new = arguments["old_string"], arguments["new_string"]
            return _replace(value, old, new, replaces_all=bool(arguments.get("every")))
        case EditOperation.PATCH:
            return _patch(value, arguments["patch"])
        case EditOperation.RETHINK:
            new = arguments["new_memory"]
            return _Change(new, f"rewritten: {len(value)} -> {len(new)} characters")
    raise NotImplementedError(f"{op} edits no block, or lacks a case here")


def _refuse(reason: str, advice: str = "") -> EditResult:
    return EditResult(None, f"Error: {reason} Nothing was done.{advice}", has_failed=True)


def _find_limit_error(block: Block, size: int) -> EditResult | None:
    """Returns the error of an edit after which a block would have `size` characters; None: the edit may be made."""
    # A block that is over its limit already (the limit was lowered) may be made shorter.
    if size <= block.limit or size < len(block.value):
        return None
    return _refuse(
        f"the memory block {quote_text(block.label)} would have {size} characters; its limit is {block.limit}.",
        " Shorten it first, or keep the text in archival memory.",
    )


def _measure_replaced(value: str, old: str, new: str) -> int:
    """Returns the size of a text after all places of `old` in it are replaced by `new`."""
    return len(value) + value.count(old) * (len(new) - len(old))


def _insert(value: str, new: str, line: int | None) -> _Change:
    """Inserts text after a line. line: the number of the line, from 1; 0: at the beginning; None or -1: at the end."""
    new = new.strip("\n")
    if not new.strip():
        return _Change(None, "the text to add is empty.")
    lines = value.split("\n") if value else []
    index = len(lines) if line is None or line == -1 else line
    if not 0 <= index <= len(lines):
        return _Change(None, f"insert_line must be from 0 to {len(lines)}, or -1; it is {index}.")
    return _Change("\n".join([*lines[:index], new, *lines[index:]]), f"changed: + {_quote_shortened(new)}")


def _replace(value: str, old: str, new: str, *, replaces_all: bool = False) -> _Change:
    """Replaces a text that occurs exactly once. replaces_all: True if the text is replaced wherever it occurs."""
    if not old:
        return _Change(None, "the text to replace is empty.")
    count = value.count(old)
    # Overlapping places count as well: "aa" in "aaa" does not say which.
    if count == 1 and value.find(old, value.find(old) + 1) != -1:
        count = 2
    if count == 0:
        return _Change(None, f"the text to replace is not in the block: {_quote_shortened(old)}.")
    if count > 1 and not replaces_all:
        line_numbers = ", ".join(map(str, _find_line_numbers(value, old)))
        return _Change(
            None,
            f"the text to replace is there more than once (lines {line_numbers}); give more of what is around it.",
        )
    return _Change(value.replace(old, new), f"changed: - {_quote_shortened(old)} + {_quote_shortened(new)}")


def _find_line_numbers(value: str, old: str) -> list[int]:
    """Returns the numbers, from 1, of the first lines in which a text begins."""
    line_numbers: list[int] = []
    line = 1
    counted = 0
    position = value.find(old)
    while position != -1 and len(line_numbers) < _MAX_LINE_NUMBERS:
        line += value.count("\n", counted, position)
        line_numbers.append(line)
        counted = position
        end = value.find("\n", position)
        position = -1 if end == -1 else value.find(old, end + 1)
    return line_numbers


def _patch(value: str, patch: str) -> _Change:
    """Applies the hunks of a patch, one after the other; the old lines of each must occur exactly once."""
    # Each line has a break on both sides, so that whole lines are found in one search.
    text = "\n" + _join_lines(value.split("\n") if value else [])
    changed_lines: list[str] = []
    for hunk in re.split(r"^@@.*\n?", patch, flags=re.MULTILINE):
        if not hunk.strip():
            continue
        # An empty line of the context may have lost its blank.
        lines = [line or " " for line in hunk.strip("\n").split("\n") if not line.startswith("\\")]
        change = _apply_hunk(text, lines)
        if change.value is None:
            return change
        text = change.value
        changed_lines += [line for line in lines if line[0] != " "]
    if not changed_lines:
        return _Change(None, "the patch changes nothing.")
    return _Change(text[1:-1], f"changed: {_quote_lines(changed_lines)}")


def _apply_hunk(text: str, lines: Sequence[str]) -> _Change:
    """Replaces the old lines of a hunk by its new ones. text: the text with a break before and after each line."""
    bad_line = next((line for line in lines if line[0] not in " -+"), None)
    if bad_line is not None:
        return _Change(
            None, f"a line of the patch begins with none of ' ', '-', '+': {_quote_shortened(bad_line)}."
        )
    old_lines = [line[1:] for line in lines if line[0] != "+"]
    new_lines = [line[1:] for line in lines if line[0] != "-"]
    old_text = "\n" + _join_lines(old_lines)
    # A hunk without old lines is added at the end.
    offset = text.find(old_text) if old_lines else len(text) - 1
    if offset == -1 or (old_lines and text.find(old_text, offset + 1) != -1):
        problem = "not in the block" if offset == -1 else "there more than once"
        return _Change(None, f"these lines of the patch are {problem}: {_quote_lines(old_lines)}.")
    return _Change(text[: offset + 1] + _join_lines(new_lines) + text[offset + len(old_text) :], "")


def _join_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _quote_lines(lines: Iterable[str]) -> str:
    return _quote_shortened("\n".join(lines))


def _quote_shortened(text: str) -> str:
    return quote_text(text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…")
