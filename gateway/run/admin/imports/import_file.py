"""Reads a file that another application has exported: one conversation or fact at a time, within limits.

Nothing is unpacked to disk, and only one conversation of a JSON file is in memory at a time. A file that is no export,
or is made to harm, is a `BadRequest` on `file`; a conversation that cannot be read is left out (`Unreadable`). No error
quotes the file.
"""

from __future__ import annotations

import json
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, Final, TypeVar

import orjson

from adapters.json_escapes import without_lone_surrogates
from gateway.core.imports import chatgpt, claude, simple_formats
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable, WrongForm, read_time
from gateway.run.admin.imports.import_archive import is_archive, open_parts
from gateway.run.admin.imports.import_faults import make_wrong_file_error, map_parser_errors
from gateway.run.admin.imports.import_json import (
    MAX_ITEM_BYTES,
    PIECE_BYTES,
    DepthLimit,
    JsonStream,
    read_items,
)

FORMATS: Final = ("chatgpt", "claude", "list", "jsonl", "mem0", "mastra")
# The formats of files with facts: an unreadable item of such a file counts as a fact, of others as a conversation.
FACT_FORMATS: Final = ("list", "mem0")
Source = SourceConversation | SourceFact | Unreadable
_SourceT = TypeVar("_SourceT")

# The most bytes of a line; a longer one is left out with a warning. Not measured: a line is in memory as a whole.
MAX_LINE_BYTES: Final = 10_000_000
# The most conversations of which each message is a line. Each takes some 200 bytes while the file is read.
MAX_GATHERED_CONVERSATIONS: Final = 200_000
# The bytes of a file's beginning, which show its format. A line that is too long is skipped in pieces of this size.
_HEAD_BYTES: Final = 64 << 10
# The beginning of a line of a list of facts with dates, which is no JSON.
_DATED_LINE: Final = re.compile(simple_formats.DATE_PATTERN.encode(), re.IGNORECASE)
# The format of a list, by a key of its first item.
_FORMAT_BY_ITEM_KEY: Final = {"mapping": "chatgpt", "chat_messages": "claude", "memory": "mem0"}
# The format of an object, by one of its keys.
_FORMAT_BY_OBJECT_KEY: Final = {
    "threads": "mastra",
    "results": "mem0",
    "role": "jsonl",
    "conversation": "jsonl",
}
# The keys of a row of Mastra's table of messages. Lines of other applications may have one of them.
_ROW_KEYS: Final = frozenset({"thread_id", "createdAt"})


# -- the format of a file


def detect_format(file: IO[bytes]) -> str:
    """Returns the format of a file. Raises: BadRequest."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    text = head.removeprefix(BOM_UTF8).lstrip()
    if is_archive(head):
        with open_parts(file) as parts, parts[0]() as part:
            return _detect_json_format(part)
    file.seek(0)
    if text.startswith(b"{") or (text.startswith(b"[") and not _DATED_LINE.match(text)):
        return _detect_json_format(file)
    if not text or b"\0" in head:
        raise make_wrong_file_error("it is neither a ZIP nor JSON nor a list of lines in UTF-8")
    return "list"


def _detect_json_format(file: IO[bytes]) -> str:
    """Returns the format by the keys of an object, or of the first object of a list."""
    import ijson

    has_messages = False
    row_keys: set[str] = set()
    with map_parser_errors():
        events = ijson.parse(JsonStream(file), use_float=True, buf_size=PIECE_BYTES)
        is_list = next(events)[1] == "start_array"
        object_prefix = "item" if is_list else ""
        format_by_key = _FORMAT_BY_ITEM_KEY if is_list else _FORMAT_BY_OBJECT_KEY
        for prefix, event, value in events:
            if prefix == object_prefix and event == "map_key":
                if value in format_by_key:
                    return format_by_key[value]
                has_messages = has_messages or (not is_list and value == "messages")
            elif prefix == object_prefix and event == "end_map":
                break
            elif prefix == "messages.item" and event == "map_key":
                if value == "threadId":
                    return "mastra"
                row_keys |= _ROW_KEYS & {value}
            elif prefix == "messages.item" and event == "end_map":
                return "mastra" if row_keys == _ROW_KEYS else "jsonl"
    if has_messages:
        return "jsonl"
    raise make_wrong_file_error(f"its format is not known; name one of {', '.join(FORMATS)}")


# -- the contents of a file


def read_file(file: IO[bytes], format: str) -> Iterator[Source]:
    """Yields the conversations and facts of a file, in order. Raises: BadRequest. format: one of `FORMATS`."""
    file.seek(0)
    yield from _READERS[format](file)


def _read_or_unreadable(
    read: Callable[[Any], _SourceT], item: Any, message_count: int = 0
) -> _SourceT | Unreadable:
    """Returns what a reader makes of a JSON value, or `Unreadable` with the number of its messages."""
    try:
        return read(item)
    except WrongForm as error:
        return Unreadable(str(error), message_count)


def _read_export(read: Callable[[Any], SourceConversation | Unreadable], file: IO[bytes]) -> Iterator[Source]:
    """Yields the conversations of a list of JSON, or of the lists in an archive. read: the reader of a conversation."""
    with open_parts(file) as parts:
        for open_part in parts:
            with open_part() as part:
                for item in read_items(part, "item"):
                    yield _read_or_unreadable(read, item)


def _read_memories(file: IO[bytes]) -> Iterator[Source]:
    """Yields the facts of mem0's list, alone or in an object."""
    is_list = file.read(_HEAD_BYTES).removeprefix(BOM_UTF8).lstrip().startswith(b"[")
    file.seek(0)
    for item in read_items(file, "item" if is_list else "results.item"):
        if (fact := _read_or_unreadable(simple_formats.read_memory, item)) is not None:
            yield fact


def _read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Yields the lines with their offsets. A line that is too long is `Unreadable`."""
    while True:
        offset = file.tell()
        line = file.readline(MAX_LINE_BYTES + 2)
        if not line:
            return
        if len(line) <= MAX_LINE_BYTES + 1:
            yield offset, (line if offset else line.removeprefix(BOM_UTF8))
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_HEAD_BYTES)
        yield offset, Unreadable("a line has more than 10 MB")


def _read_facts(file: IO[bytes]) -> Iterator[Source]:
    """Yields the facts of a list, one a line."""
    for _, line in _read_lines(file):
        fact = line if isinstance(line, Unreadable) else _read_fact(line)
        if fact is not None:
            yield fact


def _read_fact(line: bytes) -> SourceFact | Unreadable | None:
    try:
        return simple_formats.read_fact(line.decode())
    except UnicodeDecodeError:
        return Unreadable("a line is no UTF-8")
    except WrongForm as error:
        return Unreadable(str(error))


def _read_conversations(file: IO[bytes]) -> Iterator[Source]:
    """Yields first the conversations that are one line each, then those of which each message is a line."""
    offsets_by_id: dict[str | None, array[int]] = {}
    for offset, line in _read_lines(file):
        value = _parse_line(line)
        if isinstance(value, Unreadable):
            yield value
        elif value is not None and "messages" in value:
            yield _read_or_unreadable(
                simple_formats.read_conversation, value, _count_messages(value["messages"])
            )
        elif value is not None:
            name = value.get("conversation")
            conversation_id = name if isinstance(name, str) else None
            offsets_by_id.setdefault(conversation_id, array("Q")).append(offset)
            if len(offsets_by_id) > MAX_GATHERED_CONVERSATIONS:
                raise make_wrong_file_error(
                    f"its lines are messages of more than {MAX_GATHERED_CONVERSATIONS:,} conversations"
                )
    for conversation_id, offsets in offsets_by_id.items():
        make_conversation = partial(simple_formats.make_conversation, conversation_id)
        yield _read_or_unreadable(make_conversation, [*_read_messages_at(file, offsets)], len(offsets))


def _count_messages(messages: Any) -> int:
    return len(messages) if isinstance(messages, list) else 0


def _read_messages_at(file: IO[bytes], offsets: array[int]) -> Iterator[Any]:
    """Yields the messages of one conversation. Raises: BadRequest."""
    size = 0
    for offset in offsets:
        file.seek(offset)
        line = file.readline(MAX_LINE_BYTES + 2)
        size += len(line)
        if size > MAX_ITEM_BYTES:
            raise make_wrong_file_error(f"one conversation has more than {MAX_ITEM_BYTES >> 20} MiB")
        yield _loads(line.removeprefix(BOM_UTF8))


def _parse_line(line: bytes | Unreadable) -> dict[str, Any] | Unreadable | None:
    """Returns the object of a line, or None for a blank line. Raises: BadRequest."""
    if isinstance(line, Unreadable):
        return line
    if not line.strip():
        return None
    DepthLimit().feed(line)
    try:
        value = _loads(line)
    except orjson.JSONDecodeError:
        return Unreadable("a line is no JSON")
    return value if isinstance(value, dict) else Unreadable("a line is no object")


def _loads(line: bytes) -> Any:
    """Parses a line. Raises: orjson.JSONDecodeError."""
    return orjson.loads(without_lone_surrogates(line))


def _read_threads(file: IO[bytes]) -> Iterator[Source]:
    """Yields Mastra's threads, after all messages were read: messages come in any order."""
    threads: dict[str | None, list[Any]] = {}
    size = 0
    for item in read_items(file, "messages.item"):
        if not isinstance(item, dict):
            yield Unreadable("a message is no object", 1)
            continue
        thread_id = item.get("threadId", item.get("thread_id"))
        message = {name: item.get(name) for name in ("role", "content", "createdAt")}
        size += len(json.dumps((thread_id, message), ensure_ascii=False))
        if size > MAX_ITEM_BYTES:
            raise make_wrong_file_error(
                f"its messages have more than {MAX_ITEM_BYTES >> 20} MiB; export fewer threads at a time"
            )
        if "thread_id" in item:
            # Not before the size is computed: the JSON in a text may be too deep for `json.dumps`.
            message["content"] = _decode_row_content(message["content"])
        threads.setdefault(thread_id if isinstance(thread_id, str) else None, []).append(message)
    for conversation_id, messages in threads.items():
        messages.sort(key=lambda message: read_time(message["createdAt"]) or float("-inf"))
        make_conversation = partial(simple_formats.make_conversation, conversation_id)
        yield _read_or_unreadable(make_conversation, messages, len(messages))


def _decode_row_content(content: Any) -> Any:
    """Returns the content of a row of Mastra's table of messages: a text, or the parts that are JSON in a text."""
    try:
        value = _loads(content.encode()) if isinstance(content, str) else content
    except orjson.JSONDecodeError:
        return content
    parts = value.get("parts") if isinstance(value, dict) else value
    # The plain text of an older row may be JSON as well. An object may have no parts: an answer that was cut off.
    has_parts = value != [] and isinstance(parts, list) and all(map(_is_part, parts))
    return value if has_parts else content


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


# The readers of files by `FORMATS`, each from the beginning of a file.
_READERS: Final[dict[str, Callable[[IO[bytes]], Iterator[Source]]]] = {
    "chatgpt": partial(_read_export, chatgpt.read_conversation),
    "claude": partial(_read_export, claude.read_conversation),
    "list": _read_facts,
    "jsonl": _read_conversations,
    "mem0": _read_memories,
    "mastra": _read_threads,
}
