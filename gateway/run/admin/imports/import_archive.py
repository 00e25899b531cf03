"""Opens the parts of a file that have conversations: the entries of a ZIP, or the file itself.

Nothing is unpacked to disk.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import IO, Final

from gateway.run.admin.imports.import_faults import UNREADABLE_ZIP, make_wrong_file_error, map_parser_errors
from gateway.run.admin.imports.import_json import MAX_JSON_BYTES

# The most entries of a ZIP.
_MAX_ENTRIES: Final = 10_000
# The highest ratio of unpacked to packed bytes. A ZIP with a higher ratio is meant to fill the disk or the memory.
_MAX_RATIO: Final = 200
# The most bytes of the list of a ZIP's entries, which is read into memory.
_MAX_DIRECTORY_BYTES: Final = 8 << 20
# The most bytes of the comment that may follow the record at a ZIP's end, by the format.
_MAX_COMMENT_BYTES: Final = 64 << 10
_ZIP: Final = b"PK\x03\x04"
_ZIP_END: Final = b"PK\x05\x06"
# The record at the end of a ZIP; its fifth field counts the entries, its sixth the bytes of their list.
_ZIP_END_RECORD: Final = struct.Struct("<4s4H2LH")
# A ZIP with large numbers has another record, of 64 bits, and its locator before the record at the end.
_ZIP64_END: Final = b"PK\x06\x06"
_ZIP64_LOCATOR: Final = b"PK\x06\x07"
_ZIP64_END_RECORD: Final = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR_BYTES: Final = 20
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TOO_MANY_ENTRIES: Final = (
    f"it has more than {_MAX_ENTRIES:,} entries, or their list is too long;"
    " unpack it, and import its conversations.json"
)
_JSON_NAME: Final = re.compile(r"(?:^|/)conversations(?:-\d+)?\.json$")


def is_archive(head: bytes) -> bool:
    """Returns whether a file is a ZIP. head: the first bytes of the file, at least four."""
    return head.startswith((_ZIP, _ZIP_END))


@contextmanager
def open_parts(file: IO[bytes]) -> Iterator[list[Callable[[], AbstractContextManager[IO[bytes]]]]]:
    """Yields functions that open the parts of a file: entries of a ZIP, or the file itself. Raises: BadRequest."""
    file.seek(0)
    if not is_archive(file.read(4)):
        file.seek(0)
        yield [partial(_rewind, file)]
        return
    _check_directory(file)
    with map_parser_errors(), zipfile.ZipFile(file) as archive:
        yield [partial(archive.open, entry) for entry in _list_conversation_entries(archive)]


def _list_conversation_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the entries of a ZIP that have conversations, sorted by name. Raises: BadRequest."""
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES:
        raise make_wrong_file_error(_TOO_MANY_ENTRIES)
    conversation_entries = [entry for entry in entries if _JSON_NAME.search(entry.filename)]
    if not conversation_entries:
        raise make_wrong_file_error("it has no conversations.json")
    if any(entry.flag_bits & 1 for entry in conversation_entries):
        raise make_wrong_file_error("it is encrypted")
    # With other compression methods, the size that is unpacked at a time has no bound.
    if any(
        entry.compress_type not in _ZIP_METHODS or entry.header_offset < 0 for entry in conversation_entries
    ):
        raise make_wrong_file_error(UNREADABLE_ZIP)
    size = sum(entry.file_size for entry in conversation_entries)
    if size > MAX_JSON_BYTES:
        raise make_wrong_file_error(f"it has more than {MAX_JSON_BYTES >> 30} GiB of JSON")
    if size > _MAX_RATIO * max(1, sum(entry.compress_size for entry in conversation_entries)):
        raise make_wrong_file_error(f"it unpacks to more than {_MAX_RATIO} times its size")
    return sorted(conversation_entries, key=lambda entry: entry.filename)


def _rewind(file: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """Rewinds a file. Returns a context manager with the file, which does not close it."""
    file.seek(0)
    return nullcontext(file)


def _check_directory(file: IO[bytes]) -> None:
    """Checks the size that a ZIP gives for its list of entries, before the list is read. Raises: BadRequest."""
    size = file.seek(0, 2)
    record_bytes = _ZIP_END_RECORD.size + _ZIP64_LOCATOR_BYTES + _ZIP64_END_RECORD.size
    file.seek(max(0, size - _MAX_COMMENT_BYTES - record_bytes))
    tail = file.read()
    end_offset = tail.rfind(_ZIP_END)
    if end_offset < 0 or len(tail) < end_offset + _ZIP_END_RECORD.size:
        raise make_wrong_file_error("it is a ZIP whose end is missing")
    *_, count, directory_bytes, _, _ = _ZIP_END_RECORD.unpack_from(tail, end_offset)
    locator_offset = end_offset - _ZIP64_LOCATOR_BYTES
    zip64_end_offset = locator_offset - _ZIP64_END_RECORD.size
    if (
        zip64_end_offset >= 0
        and tail.startswith(_ZIP64_LOCATOR, locator_offset)
        and tail.startswith(_ZIP64_END, zip64_end_offset)
    ):
        *_, count, directory_bytes, _ = _ZIP64_END_RECORD.unpack_from(tail, zip64_end_offset)
    if count > _MAX_ENTRIES or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise make_wrong_file_error(_TOO_MANY_ENTRIES)
