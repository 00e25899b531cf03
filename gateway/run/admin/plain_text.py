"""Texts of users and models as a terminal or a shell may be given them, and numbers with their nouns."""

from __future__ import annotations

import re
import shlex

# Characters that a terminal obeys (ECMA-48) or that reorder a line (Unicode's TR9). Users and models wrote what is
# printed, and must not control the operator's terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Those, and what would end a field or a line.
_FIELD_CONTROLS = re.compile(f"[\\t\\n]|{_CONTROLS.pattern}")


def plural(number: int, name: str) -> str:
    """Returns a number with its noun: 1 turn, 2 turns. name: the noun in the plural."""
    return f"{number} {name.removesuffix('s') if number == 1 else name}"


def shell_word(text: str) -> str:
    """Quotes a word for the shell. Its control characters, which a terminal would obey, become escapes."""
    if not _FIELD_CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{escape_field(escaped)}'"


def escape_controls(text: str) -> str:
    """Replaces control characters but tabs and line feeds by their escapes."""
    return _CONTROLS.sub(_escape, text)


def escape_field(text: str) -> str:
    """Replaces all control characters by their escapes."""
    return _FIELD_CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
