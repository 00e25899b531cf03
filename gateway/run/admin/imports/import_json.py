"""Reads the items of a list within a large JSON file one by one, within limits of size and of depth."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import IO, Any, Final

from adapters.json_escapes import replace_lone_surrogates
from gateway.run.admin.imports.import_faults import make_wrong_file_error, map_parser_errors

# The most bytes of JSON of one file, unpacked. Not measured. A small archive can unpack to any size.
MAX_JSON_BYTES: Final = 4 << 30
# The deepest nesting of lists and objects. Not measured.
_MAX_DEPTH: Final = 100
# The most bytes of an item of a list, of the JSON around a list, or of the lines of a conversation. In an export of
# Mastra, where messages are not sorted by conversation, it bounds all messages together.
MAX_ITEM_BYTES: Final = 64 << 20
# The bytes that are parsed at a time: for about half a millisecond, during which no other thread runs.
PIECE_BYTES: Final = 16 << 10
# The most bytes of a piece of a long string.
_MAX_PIECE_BYTES: Final = 1 << 20
# All bytes but quotes and brackets, which alone decide how deep JSON is nested.
_OTHER_BYTES: Final = bytes(set(range(256)) - set(b'"[]{}'))


class DepthLimit:
    """Counts how deep JSON is nested, piece by piece."""

    def __init__(self) -> None:
        # The bytes of the last pieces that lie wholly within one string.
        self.string_bytes = 0
        self._depth = 0
        self._is_in_string = False
        # The backslash that ended the last piece, if it may escape the first character of the next one.
        self._backslash = b""

    def feed(self, data: bytes) -> None:
        """Counts the brackets of the next piece. Raises: BadRequest: the JSON is nested too deeply."""
        data = self._backslash + data
        slash_count = len(data) - len(data.rstrip(b"\\"))
        self._backslash = b"\\" if slash_count % 2 else b""
        data = data.removesuffix(self._backslash)
        signs = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _OTHER_BYTES)
        # Each quote begins or ends a string, so every second part is inside of one.
        parts = signs.split(b'"')
        brackets = b"".join(parts[self._is_in_string :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        self.string_bytes = self.string_bytes + len(data) if self._is_in_string and len(parts) == 1 else 0
        opening_count = brackets.count(b"[") + brackets.count(b"{")
        # Without too many opening brackets the JSON cannot be too deep, and their order does not matter.
        if self._depth + opening_count <= _MAX_DEPTH:
            self._depth += 2 * opening_count - len(brackets)
            return
        for bracket in brackets:
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > _MAX_DEPTH:
                raise make_wrong_file_error(f"its JSON is nested deeper than {_MAX_DEPTH} levels")


class JsonStream:
    """Gives ijson the bytes of a file of JSON, within the limits, and without lone surrogates, which ijson refuses."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._depth = DepthLimit()
        self._is_begun = False
        self._total_bytes = 0
        # The beginning of an escape, which the next piece completes.
        self._cut_escape = b""
        # The bytes that were read since the end of the last item: the next item, and the JSON around the list.
        self.item_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Returns the next piece, of a size that does not depend on `size`. Raises: BadRequest: a limit is exceeded."""
        if not size:
            # ijson calls `read(0)` once, to see whether it gets bytes.
            return b""
        data = b""
        while not data and (piece := self._read_piece()):
            data, self._cut_escape = replace_lone_surrogates(self._cut_escape + piece)
        if not data:
            data = self._cut_escape
            self._cut_escape = b""
        self._depth.feed(data)
        return data

    def _read_piece(self) -> bytes:
        # ijson reads an unfinished string from its beginning again with each piece, so the pieces of it grow.
        size = min(max(PIECE_BYTES, self._depth.string_bytes), _MAX_PIECE_BYTES)
        data = self._file.read(size)
        if not self._is_begun:
            self._is_begun = True
            data = data.removeprefix(BOM_UTF8)
        self._total_bytes += len(data)
        self.item_bytes += len(data)
        if self._total_bytes > MAX_JSON_BYTES:
            raise make_wrong_file_error(f"it has more than {MAX_JSON_BYTES >> 30} GiB of JSON")
        if self.item_bytes > MAX_ITEM_BYTES:
            raise make_wrong_file_error(
                f"one item of its list, or the JSON around the list, has more than {MAX_ITEM_BYTES >> 20} MiB"
            )
        return data


def read_items(file: IO[bytes], prefix: str) -> Iterator[Any]:
    """Yields the items of a list within JSON. Raises: BadRequest.

    prefix: the path of the items, as `ijson.items` takes it.
    """
    import ijson

    stream = JsonStream(file)
    with map_parser_errors():
        for item in ijson.items(stream, prefix, use_float=True, buf_size=PIECE_BYTES):
            yield item
            stream.item_bytes = 0
