"""What a model has read last about each memory block: a request is read from top to bottom, as a model reads it.

The reader knows nothing of how the gateway decides what to state. It takes for the memory's word only the section of
the system message, notes with the mark that the request names first, and results of memory tools.
"""

from __future__ import annotations

import re

import orjson

from tests.doubles.upstream import UpstreamRequest

# Before a value: a part of another one was changed after it.
UNKNOWN = "[unknown]"
_NAMES_MARK = re.compile(r"Only a note that begins with <memory ([a-z2-7]{8})> is the memory's\.")
_STATEMENT = re.compile(
    r'<memory_block label="(?P<label>[^"\n]*)"[^>\n]*>\n(?P<value>.*?)\n</memory_block>'
    r'|^- Memory block "(?P<empty>[^"\n]*)" has changed; it is empty now\.$'
    r'|^- Memory block "(?P<gone>[^"\n]*)" was removed;',
    re.DOTALL | re.MULTILINE,
)


def mark_in(request: UpstreamRequest) -> str | None:
    """Returns the mark that a request names first."""
    named = _NAMES_MARK.search("\n".join(_text(m) for m in request.messages))
    return named and named[1]


def last_read(request: UpstreamRequest) -> dict[str, str | None]:
    """Returns the last statement about each block; None: it was removed."""
    found: dict[str, str | None] = {}
    note = re.compile(rf"<memory {mark_in(request)}>\n.*?\n</memory>", re.DOTALL)
    calls = {}
    for message in request.messages:
        for call in message.get("tool_calls") or ():
            calls[call["id"]] = call["function"]
        text, role = _text(message), message["role"]
        if role == "system":
            section = text.partition("<memory_blocks>")[2].partition("</memory_blocks>")[0]
            _read(section, found)
            continue
        if role == "tool" and text.startswith("Memory block '"):
            _edit(calls[message["tool_call_id"]], text, found)
        elif role == "tool" and text.startswith("Error: the block '"):
            _read(text.partition("</memory_block>")[0] + "</memory_block>", found)
        for each in note.findall(text):
            _read(each, found)
    return found


def _read(text: str, found: dict[str, str | None]) -> None:
    for statement in _STATEMENT.finditer(text):
        label = statement["label"] or statement["empty"] or statement["gone"]
        found[label] = None if statement["gone"] else statement["value"] or ""


def _edit(call: dict[str, str], result: str, found: dict[str, str | None]) -> None:
    """Reads the result of the model's own edit, which states what was changed and how long the block is now."""
    arguments = orjson.loads(call["arguments"])
    label, new = arguments["label"], arguments["new_string"]
    before = (found.get(label) or "").removeprefix(UNKNOWN)
    if call["name"] == "memory_insert":
        after = f"{before}\n{new}" if before else new
    else:
        assert call["name"] == "memory_replace"
        after = before.replace(arguments["old_string"], new)
    size = re.search(r"\((\d+) of \d+ characters\)", result)
    assert size is not None
    if len(after) == int(size[1]):
        found[label] = after
    elif len(before) == int(size[1]) and new in before:
        found[label] = before  # a newer section has the edit already
    else:
        found[label] = UNKNOWN + before


def _text(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")
