"""The text of an uploaded file: read from its bytes, and cut into the parts that are stored."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

# The most characters of a file's name with its directories. Not measured: the names of real files are shorter.
_MAX_NAME_CHARS: Final = 1000
PART_CHARS = 2000  # the most characters of a part
# Media types without text, by their beginnings: such a file may still decode as UTF-8.
_BINARY_TYPES: Final = ("image/", "audio/", "video/", "font/", "application/pdf", "application/zip")
# The first bytes of a text in UTF-16.
_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The first bytes of a PDF.
_PDF: Final = b"%PDF-"
# The texts after which a part may end, the best first.
_BREAKS: Final = ("\n\n", "\n", ". ", " ")


def decode_text(data: bytes, media_type: str) -> str | None:
    """Returns the text of a file in UTF-8, or in UTF-16 with a byte order mark; None: the file is no text.

    media_type: the media type that the sender named.
    """
    if media_type.lower().startswith(_BINARY_TYPES) or data.startswith(_PDF):
        return None
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def split_text(text: str, size: int = PART_CHARS) -> Iterator[str]:
    """Yields a text in parts of at most `size` characters. The parts, joined, are the text.

    A part ends where a paragraph, a line, a sentence or a word ends, if that is not in its first half.
    """
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            cuts = (text.rfind(mark, start, end) + len(mark) for mark in _BREAKS)
            end = next((cut for cut in cuts if cut > start + size // 2), end)
        yield text[start:end]
        start = end


def split_passages(text: str) -> list[str]:
    """Returns the parts of a text to be stored, without white space around them and without empty parts."""
    return [clean for part in split_text(text.strip()) if (clean := part.strip())]


def clean_file_name(name: str) -> str:
    """Returns a name with its directories, without characters that do not print; "": no other character remains.

    No file is opened by this name. The directories distinguish files that have the same name otherwise.
    """
    parts = ("".join(filter(str.isprintable, part)).strip() for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_MAX_NAME_CHARS].rstrip("/")
