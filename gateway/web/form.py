"""Multipart forms (RFC 7578, RFC 2046 5.1): a parser, and a search for one field in a form too large for memory.

The search reports no mistakes: a body that is no form has no fields.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

from msgspec import Struct

_BOUNDARY = re.compile(r""";\s*boundary=(?:"([^"]+)"|([^\s;"]+))""", re.IGNORECASE)
_BOUNDARY_FIELD = re.compile(r"boundary[\d*]*\s*=", re.IGNORECASE)
# The field may go on in further lines, which begin with a blank (RFC 5322 2.2.3).
_DISPOSITION = re.compile(rb"^content-disposition:((?:[^\r\n]|\r\n[ \t])*)", re.I | re.M)
# A parameter as `parse_form` reads it.
_PARAMETER = re.compile(rb""";\s*([\w*-]+)=(?:"([^"]*)"|([^\s;"]+))""")
# All texts that some reader may take for a name. Readers differ in blanks, in quotes, and in which of two names counts.
_POSSIBLE_NAME = re.compile(rb"""(?<![\w-])name(\*[\d*]*)?\s*=\s*"?([^"\r\n;]*)""", re.I)
_HEAD_END = b"\r\n\r\n"
_DELIMITER_END = re.compile(rb"[ \t]*\r\n")
_CONTENT_TYPE = re.compile(rb"^content-type:([^\r\n]*)", re.I | re.M)
# Chosen: far above the head of any part, and the search's cost stays linear.
_MAX_HEAD_BYTES = 16 * 1024
# Chosen: far above the parts of any form; millions of empty parts would take long to read.
_MAX_PARTS = 1_000


def read_boundary(content_type: str) -> bytes | None:
    """Returns the one boundary that a `multipart/form-data` type names; None: not one boundary, or another type."""
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    if len(_BOUNDARY_FIELD.findall(content_type)) > 1:
        return None
    match = _BOUNDARY.search(content_type)
    return (match[1] or match[2]).encode("latin-1") if match else None


class _SearchState(Enum):
    """The state of a `FieldSearch`."""

    SEARCHING = auto()
    # The form has ended in order.
    ENDED = auto()
    # Readers may read the rest differently (a second field of the name, a head that is too long, very many parts).
    GAVE_UP = auto()


class ValueSpan(NamedTuple):
    """The span of a field's value, as offsets in its form."""

    start: int
    end: int


class FieldSearch:
    """A search for the fields with one name. Feed it the form as it comes; it holds the head of one part at most."""

    def __init__(self, boundary: bytes, name: str) -> None:
        # The span of the first field's value; None: the field has not ended yet.
        self.span: ValueSpan | None = None
        self._state = _SearchState.SEARCHING
        self._delimiter = _make_delimiter(boundary)
        self._name = name.encode()
        # The bytes that are not searched yet, and their offset in the form. A form without a preamble begins with a
        # delimiter that has no line break before it, so a line break is put there.
        self._pending = b"\r\n"
        self._offset = -2
        self._parts = 0
        # The offset of the value that is being read; None: no value is being read.
        self._value_start: int | None = None

    @property
    def is_over(self) -> bool:
        """True once the search has ended: the form has ended, or readers may read the rest differently."""
        return self._state is not _SearchState.SEARCHING

    @property
    def is_whole(self) -> bool:
        """True if the form has ended in order."""
        return self._state is _SearchState.ENDED

    @property
    def is_ambiguous(self) -> bool:
        """True if some reader may find a second field of the name after the first one."""
        return self._state is _SearchState.GAVE_UP and self.span is not None

    def feed(self, piece: bytes) -> None:
        """Searches the next bytes of the form."""
        self._pending += piece
        while not self.is_over and self._read_part():
            pass

    def _read_part(self) -> bool:
        """Reads up to the next part. Returns False when that takes more bytes, or when the search is over."""
        if not self._skip_to_delimiter():
            return False
        if self._value_start is not None:
            # An empty value has no line break of its own: the delimiter begins with the one that ends the head.
            self.span = ValueSpan(start=min(self._value_start, self._offset), end=self._offset)
            self._value_start = None
        head_start = len(self._delimiter)
        if self._pending.startswith(b"--", head_start):
            self._state = _SearchState.ENDED
            return False
        head_end = self._pending.find(_HEAD_END)
        if head_end < 0:
            if len(self._pending) > head_start + _MAX_HEAD_BYTES:
                self._state = _SearchState.GAVE_UP
            return False
        self._parts += 1
        is_named = _may_be_named(self._name, self._pending[head_start:head_end])
        is_second = is_named and self.span is not None
        has_line_break = _DELIMITER_END.match(self._pending, head_start) is not None
        if is_second or self._parts > _MAX_PARTS or not has_line_break:
            self._state = _SearchState.GAVE_UP
            return False
        if is_named:
            self._value_start = self._offset + head_end + len(_HEAD_END)
        # The line break that ends the head stays, since an empty value's delimiter begins with it.
        self._skip(head_end + len(b"\r\n"))
        return True

    def _skip_to_delimiter(self) -> bool:
        """Skips what comes before the next delimiter. Returns False if it has not come, or readers differ about it."""
        # Some readers accept a delimiter after a bare line feed, too, and so read other parts than other readers.
        start = self._pending.find(self._delimiter[1:]) - 1
        if start < 0:
            self._skip(max(0, len(self._pending) + 1 - len(self._delimiter)))
            return False
        self._skip(start)
        if not self._pending.startswith(self._delimiter):
            self._state = _SearchState.GAVE_UP
            return False
        return True

    def _skip(self, count: int) -> None:
        self._pending = self._pending[count:]
        self._offset += count


class FormPart(Struct, frozen=True):
    """One field of a form."""

    # The name of the field.
    name: str
    # The name of the file; None: the part is no file.
    file_name: str | None
    # The content type in the part's head; "": the head has no content type.
    content_type: str
    # The value of the field.
    data: bytes


def parse_form(data: bytes, boundary: bytes) -> list[FormPart] | None:
    """Returns the fields of a whole form, in their order.

    None: the data is no form, does not end in order, or has more than `_MAX_PARTS` parts.
    """
    parts: list[FormPart] = []
    # Text before the first delimiter belongs to no part. The last delimiter, one more than parts, ends in "--".
    _, *pieces = (b"\r\n" + data).split(_make_delimiter(boundary), _MAX_PARTS + 1)
    for piece in pieces:
        if piece.startswith(b"--"):
            return parts
        # A missing line break is not refused: no other program reads the form, so no two can differ about it.
        head, blank, value = piece.lstrip(b" \t").removeprefix(b"\r\n").partition(_HEAD_END)
        if not blank or len(head) > _MAX_HEAD_BYTES:
            return None
        parameters = _read_parameters(head)
        name = parameters.get("name")
        if name is not None:
            type_match = _CONTENT_TYPE.search(head)
            content_type = type_match[1].decode("latin-1").strip() if type_match else ""
            parts.append(FormPart(name, parameters.get("filename"), content_type, data=value))
    return None


def _make_delimiter(boundary: bytes) -> bytes:
    """Returns the bytes before each part's head and after the last part."""
    return b"\r\n--" + boundary


def _may_be_named(name: bytes, head: bytes) -> bool:
    """Returns whether some reader of a part's head may take the part for the field of this name."""
    # An extended name (`name*=`) may stand for any name.
    return any(match[1] or match[2].strip() == name for match in _POSSIBLE_NAME.finditer(head))


def _read_parameters(head: bytes) -> dict[str, str]:
    """Returns the values of a part's disposition by name, in lower case. The first value of a name counts."""
    line = _DISPOSITION.search(head)
    values: dict[str, str] = {}
    for match in _PARAMETER.finditer(line[1]) if line else ():
        values.setdefault(match[1].decode().lower(), _decode_text(match[2] or match[3] or b""))
    return values


def _decode_text(value: bytes) -> str:
    """Returns a name as its browser had it (html.spec.whatwg.org/#multipart-form-data), without line breaks."""
    return value.decode("utf-8", "replace").replace("%22", '"').replace("%0D", "").replace("%0A", "")
