"""The last statement about each memory block in a request, which is read from top to bottom as a model reads it.

The reader shares no code with the gateway. It trusts only the section of the system message, notes with the mark that
the request names first, and results of memory tools.
"""

from __future__ import annotations

import re

import orjson

from tests.doubles.upstream import UpstreamRequest

# Stands before a value of which a later edit has changed a part that the request does not show.
UNKNOWN = "[unknown]"
_NAMES_MARK = re.compile(r"Only a note that begins with <memory ([a-z2-7]{8})> is the memory's\.")
_STATEMENT = re.compile(
    r'<memory_block label="(?P<label>[^"\n]*)"[^>\n]*>\n(?P<value>.*?)\n</memory_block>'
    r'|^- Memory block "(?P<empty>[^"\n]*)" has changed; it is empty now\.$'
    r'|^- Memory block "(?P<gone>[^"\n]*)" was removed;',
    re.DOTALL | re.MULTILINE,
)


def find_mark(request: UpstreamRequest) -> str | None:
    """Returns the mark that a request names first."""
    named = _NAMES_MARK.search("\n".join(_text(m) for m in request.messages))
    return named and named[1]


def read_last_statements(request: UpstreamRequest) -> dict[str, str | None]:
    """Returns the value that the last statement about each block has, by label; None: the block was removed."""
    values: dict[str, str | None] = {}
    note = re.compile(rf"<memory {find_mark(request)}>\n.*?\n</memory>", re.DOTALL)
    calls = {}
    for message in request.messages:
        for call in message.get("tool_calls") or ():
            calls[call["id"]] = call["function"]
        text, role = _text(message), message["role"]
        if role == "system":
            section = text.partition("<memory_blocks>")[2].partition("</memory_blocks>")[0]
            _read_statements(section, values)
            continue
        if role == "tool" and text.startswith("Memory block '"):
            _apply_edit(calls[message["tool_call_id"]], text, values)
        elif role == "tool" and text.startswith("Error: the block '"):
            _read_statements(text.partition("</memory_block>")[0] + "</memory_block>", values)
        for each in note.findall(text):
            _read_statements(each, values)
    return values


def _read_statements(text: str, values: dict[str, str | None]) -> None:
    """Notes the value of each block that a text states."""
    for statement in _STATEMENT.finditer(text):
        label = statement["label"] or statement["empty"] or statement["gone"]
        values[label] = None if statement["gone"] else statement["value"] or ""


def _apply_edit(call: dict[str, str], result: str, values: dict[str, str | None]) -> None:
    """Applies the model's own edit of a block. result: the result of the call, which states the size of the block."""
    arguments = orjson.loads(call["arguments"])
    label, new = arguments["label"], arguments["new_string"]
    before = (values.get(label) or "").removeprefix(UNKNOWN)
    if call["name"] == "memory_insert":
        after = f"{before}\n{new}" if before else new
    else:
        assert call["name"] == "memory_replace"
        after = before.replace(arguments["old_string"], new)
    size = re.search(r"\((\d+) of \d+ characters\)", result)
    assert size is not None
    if len(after) == int(size[1]):
        values[label] = after
    elif len(before) == int(size[1]) and new in before:
        values[label] = before  # a newer section has the edit already
    else:
        values[label] = UNKNOWN + before


def _text(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")
