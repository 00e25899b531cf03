"""One field of a multipart form, found in its first bytes, whatever pieces they come in (RFC 7578, RFC 2046 5.1).

It is for forms too large to be kept: what lies behind the bytes fed in is not known. Nothing is judged here; a form
that is none has no fields.
"""

from __future__ import annotations

import re

__all__ = ["FieldSearch", "boundary_of"]

_BOUNDARY = re.compile(r""";\s*boundary=(?:"([^"]+)"|([^\s;"]+))""", re.IGNORECASE)
_NAME = re.compile(rb"""^content-disposition:[^\r\n]*;\s*name=(?:"([^"\r\n]*)"|([^\s;]+))""", re.I | re.M)
_MAX_HEAD_BYTES = 16 * 1024  # of one part: far above any, and the search's cost stays linear


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a `multipart/form-data` type; None for other types and for one without."""
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1") if found else None


class FieldSearch:
    """Feed it until `is_over`.

    span: where the field's value lies in `head`; None: not found. head: all that was fed.
    """

    def __init__(self, boundary: bytes, name: str) -> None:
        self.head = bytearray()
        self.span: tuple[int, int] | None = None
        self.is_over = False
        self._mark = b"\r\n--" + boundary
        self._name = name.encode()
        self._part = 0  # where the part begins, behind its delimiter
        self._value: int | None = None  # where its value begins, once its head is complete
        self._from = 0  # where to go on looking
        self._in_preamble = True

    def feed(self, piece: bytes) -> None:
        self.head += piece
        while not self.is_over and self._step():
            pass

    def _step(self) -> bool:
        """One piece of the form further; False when that takes more bytes."""
        if self._in_preamble or self._value is not None:
            return self._find_delimiter()
        after = self.head[self._part : self._part + 2]
        if len(after) < 2:
            return False
        if after == b"--":
            self.is_over = True
            return False
        end = self.head.find(b"\r\n\r\n", max(self._part, self._from - 3))
        if end < 0:
            self._from = len(self.head)
            self.is_over = len(self.head) - self._part > _MAX_HEAD_BYTES
            return False
        self._value = self._from = end + 4
        return True

    def _find_delimiter(self) -> bool:
        if self._in_preamble and self.head.startswith(self._mark[2:]):  # usually the very first bytes
            self._in_preamble = False
            self._part = self._from = len(self._mark) - 2
            return True
        start = self.head.find(self._mark, max(0, self._from - len(self._mark) + 1, self._value or 0))
        if start < 0:
            self._from = len(self.head)
            return False
        if self._value is not None:
            named = _NAME.search(self.head[self._part : self._value])
            if named is not None and self._name in (named[1], named[2]):
                self.span = (self._value, start)
                self.is_over = True
                return False
        self._in_preamble, self._value = False, None
        self._part = self._from = start + len(self._mark)
        return True
