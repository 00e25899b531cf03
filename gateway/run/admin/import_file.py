"""Reads a file that another application has exported: one conversation or fact at a time, within limits.

Nothing of it is unpacked to disk, and of JSON one conversation is in memory. A file that is no export, or is made to
harm, is a `BadRequest` on `file`; a conversation that cannot be read is left out (`Unreadable`). No error quotes it.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, Final

import orjson

from gateway.core.imports import chatgpt, claude, lines
from gateway.core.imports.json_escapes import replace_lone_surrogates
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable, WrongForm, time_of
from gateway.errors import BadRequest

FORMATS: Final = ("chatgpt", "claude", "list", "jsonl", "mem0", "mastra")
Source = SourceConversation | SourceFact | Unreadable

MOST_ENTRIES: Final = 10_000
MOST_JSON_BYTES: Final = 4 << 30
MOST_RATIO: Final = 200
MOST_LEVELS: Final = 100
MOST_LINE_BYTES: Final = 10_000_000
# One conversation as JSON, and all messages of Mastra's, which are not sorted by conversation.
MOST_ITEM_BYTES: Final = 64 << 20
# Conversations whose messages are lines of their own. Each takes some 200 bytes while the file is read.
MOST_GATHERED_CONVERSATIONS: Final = 200_000
# The list of a ZIP's entries, by the length that its end gives.
_MOST_DIRECTORY_BYTES: Final = 8 << 20
# While so much is parsed no other thread runs: some half a millisecond.
_PIECE_BYTES: Final = 16 << 10
_HEAD_BYTES: Final = 64 << 10
_BOM: Final = b"\xef\xbb\xbf"
_ZIP: Final = b"PK\x03\x04"
_ZIP_END: Final = b"PK\x05\x06"
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNREADABLE_ZIP: Final = "it is a ZIP that is damaged, encrypted, or packed in a way that is not read here"
_JSON_NAME: Final = re.compile(r"(?:^|/)conversations(?:-\d+)?\.json$")
_DATED_LINE: Final = re.compile(rb"\[\d{4}-\d{2}-\d{2}\]")
_QUOTE_AND_BRACKETS: Final = b'"[]{}'
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_QUOTE_AND_BRACKETS))
_READERS: Final[dict[str, Callable[[Any], SourceConversation | Unreadable]]] = {
    "chatgpt": chatgpt.read_conversation,
    "claude": claude.read_conversation,
}
# The format of a list, by a key of its first item.
_FORMAT_BY_ITEM_KEY: Final = {"mapping": "chatgpt", "chat_messages": "claude", "memory": "mem0"}
# The format of an object, by a key of it.
_FORMAT_BY_OBJECT_KEY: Final = {
    "threads": "mastra",
    "results": "mem0",
    "role": "jsonl",
    "conversation": "jsonl",
}


def wrong_file(why: str) -> BadRequest:
    return BadRequest(f"This file cannot be imported: {why}.", param="file")


class DepthLimit:
    """Counts how deep JSON is nested, piece by piece."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Counts the brackets of the next piece. Raises: BadRequest: it is nested too deeply."""
        data = self._rest + data
        # An escape may go on in the next piece.
        slashes = len(data) - len(data.rstrip(b"\\"))
        self._rest = b"\\" if slashes % 2 else b""
        if self._rest:
            data = data[:-1]
        signs = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_BRACKETS)
        texts = signs.split(b'"')
        brackets = b"".join(texts[self._in_text :: 2])
        self._in_text ^= not len(texts) % 2
        opened = brackets.count(b"[") + brackets.count(b"{")
        if self._depth + opened <= MOST_LEVELS:
            self._depth += 2 * opened - len(brackets)
            return
        for bracket in brackets:
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MOST_LEVELS:
                raise wrong_file(f"its JSON is nested deeper than {MOST_LEVELS} levels")


class _JsonStream:
    """JSON as it is read: no larger and no deeper than it may be, and without lone surrogates, which ijson refuses."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._depth = DepthLimit()
        self._is_begun = False
        self._total = 0
        self._cut = b""  # an escape that the next piece completes
        self.item = 0  # since a conversation has ended

    def read(self, size: int = -1) -> bytes:
        if not size:
            return b""  # asked by ijson, to see what it reads
        data = b""
        while not data and (piece := self._read_piece()):
            data, self._cut = replace_lone_surrogates(self._cut + piece)
        if not data:
            data, self._cut = self._cut, b""
        self._depth.feed(data)
        return data

    def _read_piece(self) -> bytes:
        data = self._file.read(_PIECE_BYTES)
        if not self._is_begun:
            self._is_begun, data = True, data.removeprefix(_BOM)
        self._total += len(data)
        self.item += len(data)
        if self._total > MOST_JSON_BYTES:
            raise wrong_file(f"it has more than {MOST_JSON_BYTES >> 30} GiB of JSON")
        if self.item > MOST_ITEM_BYTES:
            raise wrong_file(f"one conversation has more than {MOST_ITEM_BYTES >> 20} MiB")
        return data


@contextmanager
def _as_bad_request() -> Iterator[None]:
    """Raises a `BadRequest` in place of the errors of parsers, since these may quote the file."""
    import ijson

    try:
        yield
    except ijson.JSONError as error:
        raise wrong_file("it is no JSON, or a part of it is missing") from error
    except UnicodeDecodeError as error:
        raise wrong_file("its text is not Unicode") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise wrong_file(_UNREADABLE_ZIP) from error


def _read_items(file: IO[bytes], prefix: str) -> Iterator[Any]:
    """Yields the items of a list within JSON."""
    import ijson

    stream = _JsonStream(file)
    with _as_bad_request():
        for item in ijson.items(stream, prefix, use_float=True, buf_size=_PIECE_BYTES):
            yield item
            stream.item = 0


# -- what a file is


def find_format(file: IO[bytes]) -> str:
    """Returns the format of a file. Raises: BadRequest."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    text = head.removeprefix(_BOM).lstrip()
    if head.startswith((_ZIP, _ZIP_END)):
        with _open_parts(file) as parts, parts[0]() as part:
            return _format_of_json(part)
    file.seek(0)
    if text.startswith(b"{") or (text.startswith(b"[") and not _DATED_LINE.match(text)):
        return _format_of_json(file)
    if not text or b"\0" in head:
        raise wrong_file("it is neither a ZIP nor JSON nor a list of lines")
    return "list"


def _format_of_json(file: IO[bytes]) -> str:
    """Returns the format by the keys of an object, or of the first object of a list."""
    import ijson

    depth, object_depth, key, has_messages = 0, 0, "", False
    with _as_bad_request():
        for event, value in ijson.basic_parse(_JsonStream(file), use_float=True, buf_size=_PIECE_BYTES):
            is_object, is_in_messages = object_depth == 1, object_depth == 1 and key == "messages"
            if event == "map_key" and depth == object_depth:
                key = value
                has_messages = has_messages or (is_object and key == "messages")
                found = (_FORMAT_BY_OBJECT_KEY if is_object else _FORMAT_BY_ITEM_KEY).get(key)
                if found is not None:
                    return found
            elif event == "map_key" and is_in_messages and depth == 3:
                if value == "threadId":
                    return "mastra"
            elif event in ("start_map", "start_array"):
                depth += 1
                if depth <= 2 and event == "start_map" and not object_depth:
                    object_depth = depth
            elif event in ("end_map", "end_array"):
                depth -= 1
                if depth == 2 and is_in_messages:
                    return "jsonl"  # its first message belongs to no thread
                if depth < object_depth:
                    break
    if has_messages:
        return "jsonl"
    raise wrong_file(f"its format is not known; name one of {', '.join(FORMATS)}")


@contextmanager
def _open_parts(file: IO[bytes]) -> Iterator[list[Callable[[], Any]]]:
    """Opens the files with conversations: those of a ZIP, or the file itself. Raises: BadRequest."""
    file.seek(0)
    if not file.read(4).startswith((_ZIP, _ZIP_END)):
        file.seek(0)
        yield [partial(_rewind, file)]
        return
    _check_directory(file)
    with _as_bad_request(), zipfile.ZipFile(file) as archive:
        yield [partial(archive.open, entry) for entry in _conversation_entries(archive)]


def _conversation_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the entries of a ZIP that have conversations, in order. Raises: BadRequest."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise wrong_file(f"it has more than {MOST_ENTRIES:,} entries")
    found = sorted((e for e in entries if _JSON_NAME.search(e.filename)), key=lambda e: e.filename)
    if not found:
        raise wrong_file("it has no conversations.json")
    if any(each.flag_bits & 1 for each in found):
        raise wrong_file("it is encrypted")
    # Other methods unpack as much at a time as they like.
    if any(each.compress_type not in _ZIP_METHODS or each.header_offset < 0 for each in found):
        raise wrong_file(_UNREADABLE_ZIP)
    size = sum(each.file_size for each in found)
    if size > MOST_JSON_BYTES:
        raise wrong_file(f"it has more than {MOST_JSON_BYTES >> 30} GiB of JSON")
    if size > MOST_RATIO * max(1, sum(each.compress_size for each in found)):
        raise wrong_file(f"it unpacks to more than {MOST_RATIO} times its size")
    return found


def _rewind(file: IO[bytes]) -> _StaysOpen:
    file.seek(0)
    return _StaysOpen(file)


class _StaysOpen:
    """A file that its reader does not close."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read = file.read

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _check_directory(file: IO[bytes]) -> None:
    """Checks the length that a ZIP gives for its list of entries, before that is read. Raises: BadRequest."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _HEAD_BYTES - 22))
    tail = file.read()
    at = tail.rfind(_ZIP_END)
    if at < 0 or len(tail) < at + 22:
        raise wrong_file("it is a ZIP whose end is missing")
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    if count > MOST_ENTRIES:
        raise wrong_file(f"it has more than {MOST_ENTRIES:,} entries")
    if int.from_bytes(tail[at + 12 : at + 16], "little") > _MOST_DIRECTORY_BYTES:
        raise wrong_file("its list of entries is too long")


# -- what is in it


def read_file(file: IO[bytes], format: str) -> Iterator[Source]:
    """Yields what is in a file, in order. Raises: BadRequest."""
    if format in _READERS:
        with _open_parts(file) as parts:
            for open_part in parts:
                with open_part() as part:
                    for item in _read_items(part, "item"):
                        yield _read_or_unreadable(_READERS[format], item)
        return
    file.seek(0)
    if format == "list":
        yield from _facts_of_lines(file)
    elif format == "jsonl":
        yield from _conversations_of_lines(file)
    elif format == "mem0":
        is_list = file.read(_HEAD_BYTES).removeprefix(_BOM).lstrip().startswith(b"[")
        file.seek(0)
        for item in _read_items(file, "item" if is_list else "results.item"):
            if (fact := _read_or_unreadable(lines.read_memory, item)) is not None:
                yield fact
    else:
        yield from _threads(file)


def _read_or_unreadable(read: Callable[[Any], Any], item: Any, messages: int = 0) -> Any:
    try:
        return read(item)
    except WrongForm as error:
        return Unreadable(str(error), messages)


def _read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (offset, line); None: it is too long."""
    while True:
        at = file.tell()
        line = file.readline(MOST_LINE_BYTES + 2)
        if not line:
            return
        if len(line) <= MOST_LINE_BYTES + 1:
            yield at, line.removeprefix(_BOM) if not at else line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_HEAD_BYTES)
        yield at, None


def _facts_of_lines(file: IO[bytes]) -> Iterator[Source]:
    for _, line in _read_lines(file):
        try:
            text = None if line is None else line.decode()
        except UnicodeDecodeError:
            yield Unreadable("a line is no UTF-8")
            continue
        if text is None:
            yield Unreadable("a line has more than 10 MB")
        elif (fact := _read_or_unreadable(lines.read_fact, text)) is not None:
            yield fact


def _conversations_of_lines(file: IO[bytes]) -> Iterator[Source]:
    """Yields conversations of one line, and then those of which each line has a message."""
    offsets_by_id: dict[str | None, array[int]] = {}
    end = 0
    for at, line in _read_lines(file):
        end = file.tell()
        value = _parse_line(line)
        if isinstance(value, Unreadable):
            yield value
        elif value is not None and "messages" in value:
            yield _read_or_unreadable(lines.read_conversation, value, _message_count(value["messages"]))
            file.seek(end)
        elif value is not None:
            id = value.get("conversation")
            offsets_by_id.setdefault(id if isinstance(id, str) else None, array("Q")).append(at)
            if len(offsets_by_id) > MOST_GATHERED_CONVERSATIONS:
                raise wrong_file(
                    f"its lines are messages of more than {MOST_GATHERED_CONVERSATIONS:,} conversations"
                )
    for id, offsets in offsets_by_id.items():
        yield _read_or_unreadable(
            partial(lines.join_messages, id), [*_read_messages_at(file, offsets)], len(offsets)
        )


def _message_count(messages: Any) -> int:
    return len(messages) if isinstance(messages, list) else 0


def _read_messages_at(file: IO[bytes], offsets: array[int]) -> Iterator[Any]:
    for offset in offsets:
        file.seek(offset)
        yield _loads(file.readline(MOST_LINE_BYTES + 2).removeprefix(_BOM))


def _parse_line(line: bytes | None) -> dict[str, Any] | Unreadable | None:
    """Returns the object of a line; None: it is blank. Raises: BadRequest."""
    if line is None:
        return Unreadable("a line has more than 10 MB")
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
    return orjson.loads(b"".join(replace_lone_surrogates(line)))


def _threads(file: IO[bytes]) -> Iterator[Source]:
    """Yields Mastra's threads: their messages are gathered, as they come in any order."""
    threads: dict[str | None, list[Any]] = {}
    size = 0
    for item in _read_items(file, "messages.item"):
        if not isinstance(item, dict):
            yield Unreadable("a message is no object", 1)
            continue
        id = item.get("threadId")
        message = {name: item.get(name) for name in ("role", "content", "createdAt")}
        size += len(json.dumps((id, message), ensure_ascii=False))
        if size > MOST_ITEM_BYTES:
            raise wrong_file(
                f"its messages have more than {MOST_ITEM_BYTES >> 20} MiB; export fewer threads at a time"
            )
        threads.setdefault(id if isinstance(id, str) else None, []).append(message)
    for id, found in threads.items():
        found.sort(key=lambda each: time_of(each["createdAt"]) or 0.0)
        yield _read_or_unreadable(partial(lines.join_messages, id), found, len(found))
