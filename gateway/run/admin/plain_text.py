"""Escapes texts of users and models for a terminal or a shell, and writes numbers with their nouns."""

from __future__ import annotations

import re
import shlex

# Characters that a terminal obeys (ECMA-48) or that reorder a line (Unicode's TR9). Users and models wrote what is
# printed, and must not control the operator's terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# The same, and tabs and line feeds, which would end a field or a line.
_FIELD_CONTROLS = re.compile(f"[\\t\\n]|{_CONTROLS.pattern}")


def count_noun(number: float, plural_noun: str) -> str:
    """Returns a number with its noun: 1 turn, 2 turns, 0.5 days. plural_noun: has an s at its end."""
    return f"{number:.15g} {plural_noun.removesuffix('s') if number == 1 else plural_noun}"


def quote_shell_word(text: str) -> str:
    """Returns a word quoted for the shell. Control characters, which a terminal would obey, become escapes.

    The escapes are in `$'...'`, which is in POSIX since 2024: bash, zsh and ksh read it, dash does not.
    """
    if not _FIELD_CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{escape_field(escaped)}'"


def escape_controls(text: str) -> str:
    """Returns a text with escapes in place of control characters other than tabs and line feeds."""
    return _CONTROLS.sub(_escape, text)


def escape_field(text: str) -> str:
    """Returns a text with escapes in place of all control characters."""
    return _FIELD_CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    """Returns Python's escape of a character (\\x1b, \\u202e), which `$'...'` reads as well."""
    return ascii(match[0])[1:-1]
