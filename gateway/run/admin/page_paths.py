"""The paths below `/ui/`, relative to it, as records and links name them: of screens, and of static files."""

from __future__ import annotations

import re
from urllib.parse import quote

STATIC = "static/"
_ESCAPES = {"~": "~7E", ".": "~2E", "/": "~2F"}
_ESCAPED_CHARACTER = re.compile("~(7E|2E|2F)")


def page_path(*parts: str | int) -> str:
    """Returns the path of a screen, relative to `/ui/`: page_path("m", uid, "b", label).

    A part may have any characters. `~`, `.` and `/` in it are escaped, so that it is read neither as the JSON form of a
    screen (`.json`) nor as two parts.
    """
    return "/".join(map(_segment_of, parts))


def part_of(segment: str) -> str:
    """Returns the part that a percent-decoded segment of a path stands for."""
    return _ESCAPED_CHARACTER.sub(lambda match: chr(int(match[1], 16)), segment)


def _segment_of(part: str | int) -> str:
    text = str(part)
    # Most parts are numbers and hex digits, and a list has hundreds of links: quoting took a sixth of its rendering.
    if text.isascii() and text.isalnum():
        return text
    return quote(re.sub("[~./]", _escape, text), safe="~")


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES[match[0]]
