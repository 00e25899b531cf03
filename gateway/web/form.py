"""Multipart forms (RFC 7578, RFC 2046 5.1): one field found in the first bytes of a form, or all of a whole one.

Forms that are searched are too large to be kept, so only the bytes fed in are known. Nothing is judged there: a body
that is no form has no fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOUNDARY = re.compile(r""";\s*boundary=(?:"([^"]+)"|([^\s;"]+))""", re.IGNORECASE)
_SAYS_BOUNDARY = re.compile(r"boundary[\d*]*\s*=", re.IGNORECASE)
_NAME = re.compile(rb"""^content-disposition:[^\r\n]*;\s*name=(?:"([^"\r\n]*)"|([^\s;]+))""", re.I | re.M)
_FILE_NAME = re.compile(
    rb"""^content-disposition:[^\r\n]*;\s*filename=(?:"([^"\r\n]*)"|([^\s;]+))""", re.I | re.M
)
# Wherever a reader might find a name: readers differ in which of two they take, in blanks and in what quotes hide.
_MAY_NAME = re.compile(rb"""(?<![\w-])name(\*[\d*]*)?\s*=\s*"?([^"\r\n;]*)""", re.I)
_TYPE = re.compile(rb"^content-type:([^\r\n]*)", re.I | re.M)
_MAX_HEAD_BYTES = 16 * 1024  # chosen: far above the head of any part, and the search's cost stays linear


def boundary_of(content_type: str) -> bytes | None:
    """Returns the boundary of a `multipart/form-data` type; None for other types, and where it has not just one."""
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    if len(_SAYS_BOUNDARY.findall(content_type)) > 1:
        return None
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1") if found else None


class FieldSearch:
    """A search for a field by its name. Feed it until `is_over`.

    head: all that was fed. span: where the field's value lies in it; None: it was not found. is_whole: the form ended
    in order without it.
    """

    def __init__(self, boundary: bytes, name: str) -> None:
        self.head = bytearray()
        self.span: tuple[int, int] | None = None
        self.is_over = self.is_whole = False
        self._mark = b"\r\n--" + boundary
        self._name = name.encode()
        # Three offsets in `head`: the part's beginning, behind its delimiter; its value's beginning, once the part's
        # head is complete; and the byte at which the next search goes on.
        self._part = 0
        self._value: int | None = None
        self._from = 0
        self._in_preamble = True

    def feed(self, piece: bytes) -> None:
        self.head += piece
        while not self.is_over and self._step():
            pass

    def watch(self) -> FieldWatch:
        """Returns a watch for another field of the name behind the one that was found."""
        assert self.span is not None
        watch = FieldWatch(self._mark, self._name)
        watch.feed(bytes(self.head[self.span[1] :]))
        return watch

    def _step(self) -> bool:
        """Goes on by one piece of the form. Returns False when that takes more bytes, or when the search is over."""
        if self._in_preamble or self._value is not None:
            return self._find_delimiter()
        after = self.head[self._part : self._part + 2]
        if len(after) < 2:
            return False
        if after == b"--":
            self.is_over = self.is_whole = True
            return False
        # The blank line may have been cut, so the search begins up to three bytes before what is new.
        end = self.head.find(b"\r\n\r\n", max(self._part, self._from - 3))
        if end < 0:
            self._from = len(self.head)
            self.is_over = len(self.head) - self._part > _MAX_HEAD_BYTES
            return False
        self._value = self._from = end + 4
        return True

    def _find_delimiter(self) -> bool:
        # A form without a preamble begins with a delimiter that has no line break before it.
        if self._in_preamble and self.head.startswith(self._mark[2:]):
            self._in_preamble = False
            self._part = self._from = len(self._mark) - 2
            return True
        start = self.head.find(self._mark, max(0, self._from - len(self._mark) + 1, self._value or 0))
        if start < 0:
            self._from = len(self.head)
            return False
        if self._value is not None and _may_be(self._name, self.head[self._part : self._value]):
            self.span = (self._value, start)
            self.is_over = True
            return False
        self._in_preamble, self._value = False, None
        self._part = self._from = start + len(self._mark)
        return True


class FieldWatch:
    """A watch for a field in what follows. Feed it all that comes; it keeps the head of one part.

    is_found: one of the name has begun, or a part whose head is too long to be judged.
    """

    def __init__(self, mark: bytes, name: bytes) -> None:
        self._mark = mark
        self._name = name
        self._left = b""
        self.is_found = self._is_over = False

    def feed(self, piece: bytes) -> None:
        self._left += piece
        while not (self._is_over or self.is_found):
            start = self._left.find(self._mark)
            if start < 0:
                self._left = self._left[1 - len(self._mark) :]
                return
            behind = start + len(self._mark)
            if len(self._left) < behind + 2:
                self._left = self._left[start:]
                return
            self._is_over = self._left.startswith(b"--", behind)
            end = self._left.find(b"\r\n\r\n", start)
            if end < 0:
                self._left = self._left[start:]
                self.is_found = len(self._left) > _MAX_HEAD_BYTES and not self._is_over
                return
            self.is_found = not self._is_over and _may_be(self._name, self._left[start:end])
            self._left = self._left[end:]


def _may_be(name: bytes, head: bytes | bytearray) -> bool:
    """Returns whether any reader of a part's head may take the part for the field of this name."""
    return any(found[1] or found[2].strip() == name for found in _MAY_NAME.finditer(head))


@dataclass(frozen=True, slots=True)
class FormPart:
    """One field of a form. file_name: None where it is no file. type: as it says, "" where it says none."""

    name: str
    file_name: str | None
    type: str
    data: bytes


def form_parts(data: bytes, boundary: bytes) -> list[FormPart] | None:
    """Returns the fields of a whole form, in their order; None: this is no form that ends."""
    mark = b"\r\n--" + boundary
    found: list[FormPart] = []
    # What stands before the first delimiter is nobody's; the last one ends in "--".
    _, *pieces = (b"\r\n" + data).split(mark)
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
