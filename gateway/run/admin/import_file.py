"""Reads a file that another application has exported: one conversation or fact at a time, within limits.

Nothing of it is unpacked to disk, and of JSON one conversation at a time is in memory. A file that is no export, or is
made to harm, is a `BadRequest` on `file`; a conversation that cannot be read is left out (`Unreadable`). No error
quotes the file.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import IO, Any, Final

import orjson

from adapters.json_escapes import replace_lone_surrogates, without_lone_surrogates
from gateway.core.imports import chatgpt, claude, simple_formats
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable, WrongForm, read_time
from gateway.errors import BadRequest

FORMATS: Final = ("chatgpt", "claude", "list", "jsonl", "mem0", "mastra")
Source = SourceConversation | SourceFact | Unreadable

MAX_ENTRIES: Final = 10_000  # of a ZIP
MAX_RATIO: Final = 200  # of what a ZIP unpacks to, to its size
MAX_JSON_BYTES: Final = 4 << 30
MAX_LEVELS: Final = 100
MAX_LINE_BYTES: Final = 10_000_000
# Of one conversation as JSON or as lines, and of all messages of Mastra's, which are not sorted by conversation.
MAX_ITEM_BYTES: Final = 64 << 20
# Conversations whose messages are lines of their own. Each takes some 200 bytes while the file is read.
MAX_GATHERED_CONVERSATIONS: Final = 200_000
# Of the list of a ZIP's entries.
_MAX_DIRECTORY_BYTES: Final = 8 << 20
# While a piece is parsed no other thread runs, for some half a millisecond.
_PIECE_BYTES: Final = 16 << 10
_MAX_PIECE_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 64 << 10
_BOM: Final = b"\xef\xbb\xbf"
_ZIP: Final = b"PK\x03\x04"
_ZIP_END: Final = b"PK\x05\x06"
# The record at the end of a ZIP; its fifth field counts the entries, its sixth the bytes of their list.
_ZIP_END_RECORD: Final = struct.Struct("<4s4H2LH")
# A record with numbers of 64 bits and its locator, which may stand before that one: its own hold then.
_ZIP64_END, _ZIP64_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_ZIP64_END_RECORD: Final = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR_BYTES: Final = 20
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LARGE_CONVERSATION: Final = f"one conversation has more than {MAX_ITEM_BYTES >> 20} MiB"
_TOO_MANY_ENTRIES: Final = (
    f"it has more than {MAX_ENTRIES:,} entries, or their list is too long;"
    " unpack it, and import its conversations.json"
)
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
        self.string_bytes = 0  # of the last pieces, as far as a string goes through the whole of them
        self._depth = 0
        self._is_in_string = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Counts the brackets of the next piece. Raises: BadRequest: it is nested too deeply."""
        data = self._rest + data
        # A backslash at the end may escape what the next piece begins with.
        slashes = len(data) - len(data.rstrip(b"\\"))
        self._rest = b"\\" if slashes % 2 else b""
        data = data.removesuffix(self._rest)
        signs = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_BRACKETS)
        # Each quote begins or ends a string, so every second part is inside of one.
        parts = signs.split(b'"')
        brackets = b"".join(parts[self._is_in_string :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        self.string_bytes = self.string_bytes + len(data) if self._is_in_string and len(parts) == 1 else 0
        opened = brackets.count(b"[") + brackets.count(b"{")
        # In whatever order they come, they are not too deep.
        if self._depth + opened <= MAX_LEVELS:
            self._depth += 2 * opened - len(brackets)
            return
        for bracket in brackets:
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_LEVELS:
                raise wrong_file(f"its JSON is nested deeper than {MAX_LEVELS} levels")


class _JsonStream:
    """A file of JSON, as ijson reads it: within the limits, and without lone surrogates, which ijson refuses."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._depth = DepthLimit()
        self._is_begun = False
        self._total_bytes = 0
        self._cut = b""  # an escape that the next piece completes
        self.item_bytes = 0  # since the last conversation has ended

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
        # With each piece ijson reads a string from its beginning again, so the pieces of a long one grow.
        size = min(max(_PIECE_BYTES, self._depth.string_bytes), _MAX_PIECE_BYTES)
        data = self._file.read(size)
        if not self._is_begun:
            self._is_begun, data = True, data.removeprefix(_BOM)
        self._total_bytes += len(data)
        self.item_bytes += len(data)
        if self._total_bytes > MAX_JSON_BYTES:
            raise wrong_file(f"it has more than {MAX_JSON_BYTES >> 30} GiB of JSON")
        if self.item_bytes > MAX_ITEM_BYTES:
            raise wrong_file(_LARGE_CONVERSATION)
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
            stream.item_bytes = 0


# -- the format of a file


def find_format(file: IO[bytes]) -> str:
    """Returns the format of a file. Raises: BadRequest."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    text = head.removeprefix(_BOM).lstrip()
    if head.startswith((_ZIP, _ZIP_END)):
        with _open_parts(file) as parts, parts[0]() as part:
            return _find_json_format(part)
    file.seek(0)
    if text.startswith(b"{") or (text.startswith(b"[") and not _DATED_LINE.match(text)):
        return _find_json_format(file)
    if not text or b"\0" in head:
        raise wrong_file("it is neither a ZIP nor JSON nor a list of lines in UTF-8")
    return "list"


def _find_json_format(file: IO[bytes]) -> str:
    """Returns the format by the keys of an object, or of the first object of a list."""
    import ijson

    has_messages = False
    with _as_bad_request():
        events = ijson.parse(_JsonStream(file), use_float=True, buf_size=_PIECE_BYTES)
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
            elif prefix == "messages.item" and event == "map_key" and value == "threadId":
                return "mastra"
            elif prefix == "messages.item" and event == "end_map":
                return "jsonl"  # its first message belongs to no thread
    if has_messages:
        return "jsonl"
    raise wrong_file(f"its format is not known; name one of {', '.join(FORMATS)}")


@contextmanager
def _open_parts(file: IO[bytes]) -> Iterator[list[Callable[[], AbstractContextManager[IO[bytes]]]]]:
    """Yields what opens each part with conversations: the entries of a ZIP, or the file itself. Raises: BadRequest."""
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
    if len(entries) > MAX_ENTRIES:
        raise wrong_file(_TOO_MANY_ENTRIES)
    conversations = [entry for entry in entries if _JSON_NAME.search(entry.filename)]
    if not conversations:
        raise wrong_file("it has no conversations.json")
    if any(entry.flag_bits & 1 for entry in conversations):
        raise wrong_file("it is encrypted")
    # Other methods unpack as much at a time as they like.
    if any(entry.compress_type not in _ZIP_METHODS or entry.header_offset < 0 for entry in conversations):
        raise wrong_file(_UNREADABLE_ZIP)
    size = sum(entry.file_size for entry in conversations)
    if size > MAX_JSON_BYTES:
        raise wrong_file(f"it has more than {MAX_JSON_BYTES >> 30} GiB of JSON")
    if size > MAX_RATIO * max(1, sum(entry.compress_size for entry in conversations)):
        raise wrong_file(f"it unpacks to more than {MAX_RATIO} times its size")
    return sorted(conversations, key=lambda entry: entry.filename)


def _rewind(file: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """Returns the file at its beginning; the context does not close it."""
    file.seek(0)
    return nullcontext(file)


def _check_directory(file: IO[bytes]) -> None:
    """Checks the size that a ZIP gives for its list of entries, before the list is read. Raises: BadRequest."""
    size = file.seek(0, 2)
    # A comment of at most 64 KiB may follow the record.
    records = _ZIP_END_RECORD.size + _ZIP64_LOCATOR_BYTES + _ZIP64_END_RECORD.size
    file.seek(max(0, size - _HEAD_BYTES - records))
    tail = file.read()
    end_at = tail.rfind(_ZIP_END)
    if end_at < 0 or len(tail) < end_at + _ZIP_END_RECORD.size:
        raise wrong_file("it is a ZIP whose end is missing")
    *_, count, directory_bytes, _, _ = _ZIP_END_RECORD.unpack_from(tail, end_at)
    locator_at = end_at - _ZIP64_LOCATOR_BYTES
    zip64_end_at = locator_at - _ZIP64_END_RECORD.size
    if (
        zip64_end_at >= 0
        and tail.startswith(_ZIP64_LOCATOR, locator_at)
        and tail.startswith(_ZIP64_END, zip64_end_at)
    ):
        *_, count, directory_bytes, _ = _ZIP64_END_RECORD.unpack_from(tail, zip64_end_at)
    if count > MAX_ENTRIES or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise wrong_file(_TOO_MANY_ENTRIES)


# -- the contents of a file


def read_file(file: IO[bytes], format: str) -> Iterator[Source]:
    """Yields the conversations and facts of a file, in order. Raises: BadRequest."""
    if format in _READERS:
        with _open_parts(file) as parts:
            for open_part in parts:
                with open_part() as part:
                    for item in _read_items(part, "item"):
                        yield _read_or_unreadable(_READERS[format], item)
        return
    file.seek(0)
    if format == "list":
        yield from _read_facts(file)
    elif format == "jsonl":
        yield from _read_conversations(file)
    elif format == "mem0":
        is_list = file.read(_HEAD_BYTES).removeprefix(_BOM).lstrip().startswith(b"[")
        file.seek(0)
        for item in _read_items(file, "item" if is_list else "results.item"):
            if (fact := _read_or_unreadable(simple_formats.read_memory, item)) is not None:
                yield fact
    else:
        yield from _read_threads(file)


def _read_or_unreadable(read: Callable[[Any], Any], item: Any, messages: int = 0) -> Any:
    try:
        return read(item)
    except WrongForm as error:
        return Unreadable(str(error), messages)


def _read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Yields each line with its offset."""
    while True:
        offset = file.tell()
        line = file.readline(MAX_LINE_BYTES + 2)
        if not line:
            return
        if len(line) <= MAX_LINE_BYTES + 1:
            yield offset, line.removeprefix(_BOM) if not offset else line
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
    """Yields the conversations of which each is a line, and then those of which each message is a line."""
    offsets_by_id: dict[str | None, array[int]] = {}
    end = 0
    for offset, line in _read_lines(file):
        end = file.tell()
        value = _parse_line(line)
        if isinstance(value, Unreadable):
            yield value
        elif value is not None and "messages" in value:
            yield _read_or_unreadable(
                simple_formats.read_conversation, value, _message_count(value["messages"])
            )
            file.seek(end)
        elif value is not None:
            id = value.get("conversation")
            offsets_by_id.setdefault(id if isinstance(id, str) else None, array("Q")).append(offset)
            if len(offsets_by_id) > MAX_GATHERED_CONVERSATIONS:
                raise wrong_file(
                    f"its lines are messages of more than {MAX_GATHERED_CONVERSATIONS:,} conversations"
                )
    for id, offsets in offsets_by_id.items():
        yield _read_or_unreadable(
            partial(simple_formats.join_messages, id), [*_read_messages_at(file, offsets)], len(offsets)
        )


def _message_count(messages: Any) -> int:
    return len(messages) if isinstance(messages, list) else 0


def _read_messages_at(file: IO[bytes], offsets: array[int]) -> Iterator[Any]:
    """Yields the messages of one conversation. Raises: BadRequest."""
    size = 0
    for offset in offsets:
        file.seek(offset)
        line = file.readline(MAX_LINE_BYTES + 2)
        size += len(line)
        if size > MAX_ITEM_BYTES:
            raise wrong_file(_LARGE_CONVERSATION)
        yield _loads(line.removeprefix(_BOM))


def _parse_line(line: bytes | Unreadable) -> dict[str, Any] | Unreadable | None:
    """Returns the object of a line; None: it is blank. Raises: BadRequest."""
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
    """Yields Mastra's threads, once all messages are read: these come in any order."""
    threads: dict[str | None, list[Any]] = {}
    size = 0
    for item in _read_items(file, "messages.item"):
        if not isinstance(item, dict):
            yield Unreadable("a message is no object", 1)
            continue
        id = item.get("threadId")
        message = {name: item.get(name) for name in ("role", "content", "createdAt")}
        size += len(json.dumps((id, message), ensure_ascii=False))
        if size > MAX_ITEM_BYTES:
            raise wrong_file(
                f"its messages have more than {MAX_ITEM_BYTES >> 20} MiB; export fewer threads at a time"
            )
        threads.setdefault(id if isinstance(id, str) else None, []).append(message)
    for id, messages in threads.items():
        messages.sort(key=lambda message: read_time(message["createdAt"]) or float("-inf"))
        yield _read_or_unreadable(partial(simple_formats.join_messages, id), messages, len(messages))
