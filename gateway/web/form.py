"""Multipart forms (RFC 7578, RFC 2046 5.1): one field found in the first bytes of a form, or all of a whole one.

Forms that are searched are too large to be held, so only the bytes fed in are known. Nothing is judged there: a body
that is no form has no fields.
"""

from __future__ import annotations

import re

from msgspec import Struct

_BOUNDARY = re.compile(r""";\s*boundary=(?:"([^"]+)"|([^\s;"]+))""", re.IGNORECASE)
_BOUNDARY_FIELD = re.compile(r"boundary[\d*]*\s*=", re.IGNORECASE)
_NAME = re.compile(rb"""^content-disposition:[^\r\n]*;\s*name=(?:"([^"\r\n]*)"|([^\s;]+))""", re.I | re.M)
_FILE_NAME = re.compile(
    rb"""^content-disposition:[^\r\n]*;\s*filename=(?:"([^"\r\n]*)"|([^\s;]+))""", re.I | re.M
)
# Wherever a reader might find a name: readers differ in which of two they take, in blanks and in what quotes hide.
_MAY_NAME = re.compile(rb"""(?<![\w-])name(\*[\d*]*)?\s*=\s*"?([^"\r\n;]*)""", re.I)
_DELIMITER_END = re.compile(rb"[ \t]*\r\n")
_TYPE = re.compile(rb"^content-type:([^\r\n]*)", re.I | re.M)
_MAX_HEAD_BYTES = 16 * 1024  # chosen: far above the head of any part, and the search's cost stays linear
_MOST_PARTS = 1_000  # chosen: far above those of any form; millions of empty ones would take long to read


def boundary_of(content_type: str) -> bytes | None:
    """Returns the boundary of a `multipart/form-data` type; None for other types, and where it has not just one."""
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    if len(_BOUNDARY_FIELD.findall(content_type)) > 1:
        return None
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1") if found else None


class FieldSearch:
    """A search for the fields of a name. Feed it the form as it comes; it keeps the head of one part at most.

    span: where the first one's value lies in the form, as soon as it has ended. is_over: there will be no other one.
    is_twice: another one has begun after it, or what readers may take in two ways, as a head that is too long to be
    judged, or very many parts. is_whole: the form has ended in order.
    """

    def __init__(self, boundary: bytes, name: str) -> None:
        self.span: tuple[int, int] | None = None
        self.is_over = self.is_twice = self.is_whole = False
        self._mark = b"\r\n--" + boundary
        self._name = name.encode()
        # A form without a preamble begins with a delimiter that has no line break before it.
        self._left, self._at = b"\r\n", -2  # what is not yet judged, and where in the form it lies
        self._parts = 0
        self._value: int | None = None  # where the value that is being read begins

    def feed(self, piece: bytes) -> None:
        self._left += piece
        while not self.is_over and self._step():
            pass

    def _step(self) -> bool:
        """Goes on by one part. Returns False when that takes more bytes, or when the search is over."""
        # Some readers take a delimiter after a bare line feed, too, and then read another form than the others.
        start = self._left.find(self._mark[1:]) - 1
        if start < 0:
            self._pass(max(0, len(self._left) + 1 - len(self._mark)))
            return False
        self._pass(start)
        if not self._left.startswith(self._mark):
            return self._lose()
        if self._value is not None:
            self.span, self._value = (min(self._value, self._at), self._at), None
        after = self._left[len(self._mark) : len(self._mark) + 2]
        if after == b"--":
            self.is_over = self.is_whole = True
            return False
        end = self._left.find(b"\r\n\r\n")
        if end < 0:
            return len(self._left) > len(self._mark) + _MAX_HEAD_BYTES and self._lose()
        self._parts += 1
        if self._parts > _MOST_PARTS or not _DELIMITER_END.match(self._left, len(self._mark)):
            return self._lose()
        if _may_be(self._name, self._left[len(self._mark) : end]):
            self.is_over = self.is_twice = self.span is not None
            self._value = self._at + end + 4
        # The line break of an empty line may be that of the next delimiter.
        self._pass(end + 2)
        return True

    def _lose(self) -> bool:
        """Ends the search where readers may differ in what follows."""
        self.is_over, self.is_twice = True, self.span is not None
        return False

    def _pass(self, count: int) -> None:
        self._left, self._at = self._left[count:], self._at + count


def _may_be(name: bytes, head: bytes | bytearray) -> bool:
    """Returns whether any reader of a part's head may take the part for the field of this name."""
    return any(found[1] or found[2].strip() == name for found in _MAY_NAME.finditer(head))


class FormPart(Struct, frozen=True):
    """One field of a form."""

    name: str
    # None where it is no file.
    file_name: str | None
    # As named in its head, "" where it has none.
    type: str
    data: bytes


def form_parts(data: bytes, boundary: bytes) -> list[FormPart] | None:
    """Returns the fields of a whole form, in their order; None: this is no form that ends, or has very many."""
    mark = b"\r\n--" + boundary
    found: list[FormPart] = []
    # Text before the first delimiter belongs to no part; the last one ends in "--".
    _, *pieces = (b"\r\n" + data).split(mark, _MOST_PARTS)
    for piece in pieces:
        if piece.startswith(b"--"):
            return found
        head, blank, value = piece.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not blank or len(head) > _MAX_HEAD_BYTES:
            return None
        named, file, type = _NAME.search(head), _FILE_NAME.search(head), _TYPE.search(head)
        if named is not None:
            found.append(
                FormPart(
                    _text(named[1] or named[2] or b""),
                    None if file is None else _text(file[1] or file[2] or b""),
                    "" if type is None else type[1].decode("latin-1").strip(),
                    value,
                )
            )
    return None


def _text(value: bytes) -> str:
    # As browsers write them (html.spec.whatwg.org/#multipart-form-data).
    return value.decode("utf-8", "replace").replace("%22", '"').replace("%0D", "").replace("%0A", "")
