"""The text of an uploaded file: read from its bytes, and cut into the parts that are stored."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

PART_CHARS = 2000  # characters of a part
# Types without text, whatever their bytes look like.
_NO_TEXT: Final = ("image/", "audio/", "video/", "font/", "application/pdf", "application/zip")
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PDF: Final = b"%PDF-"
# Where a part may end, the best first.
_ENDS: Final = ("\n\n", "\n", ". ", " ")


def decode_text(data: bytes, type: str) -> str | None:
    """Returns the text of a file; None: the file is no text. UTF-8, and UTF-16 with a byte order mark, are read.

    type: as whoever sent it named it.
    """
    if type.lower().startswith(_NO_TEXT) or data.startswith(_PDF):
        return None
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def split_text(text: str, size: int = PART_CHARS) -> Iterator[str]:
    """Yields a text in parts of a size at most, which together are the text again.

    A part ends where a paragraph, a line, a sentence or a word ends, if that is not in its first half.
    """
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            cuts = (text.rfind(mark, start, end) + len(mark) for mark in _ENDS)
            end = next((cut for cut in cuts if cut > start + size // 2), end)
        yield text[start:end]
        start = end


def passages_in(text: str) -> list[str]:
    """Returns the passages of a text: its parts without the blanks around them."""
    return [clean for part in split_text(text.strip()) if (clean := part.strip())]


def clean_file_name(name: str) -> str:
    """Returns a name with its directories, without characters that do not print; "" where nothing is left.

    Nothing is opened by it: directories only distinguish files of one name.
    """
    parts = ("".join(filter(str.isprintable, part)).strip() for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:1000].rstrip("/")
