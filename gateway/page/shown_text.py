"""Makes the hidden characters of texts visible for pages, and reads such texts back from forms."""

from __future__ import annotations

import re

from gateway.core.memory.word_diff import DiffPart

# Characters that reorder a line, and controls but for tab and line end.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SHOWN = re.compile("\u2039U\\+([0-9A-F]{4})\u203a")


def visible(text: str) -> str:
    """Returns a text in which characters that are hidden or reorder lines are written out: \u2039U+202E\u203a."""
    if text.isprintable():  # as most are
        return text
    return _HIDDEN.sub(lambda match: f"\u2039U+{ord(match[0]):04X}\u203a", text.replace("\r\n", "\n"))


def as_typed(text: str) -> str:
    """Returns the text that a form means: hidden characters as `visible` writes them, and the line ends of browsers."""

    def character(match: re.Match[str]) -> str:
        meant = chr(int(match[1], 16))
        return meant if _HIDDEN.fullmatch(meant) else match[0]

    return _SHOWN.sub(character, text.replace("\r\n", "\n"))


def shorten_diff(
    parts: tuple[DiffPart, ...], around: int = 60, max_chars: int = 1_500
) -> tuple[DiffPart, ...]:
    """Returns a difference with only some of the unchanged text around each change, and with a bound.

    around: the characters of unchanged text that stay on each side of a change.
    max_chars: the most characters of the whole difference.
    """
    shortened: list[DiffPart] = []
    chars_left = max_chars
    for n, part in enumerate(parts):
        text = part.text
        if part.op == "same" and len(text) > 2 * around:
            head = text[:around] if n else ""
            tail = text[-around:] if n < len(parts) - 1 else ""
            text = f"{head} … {tail}"
        if len(text) > chars_left:
            return (*shortened, DiffPart(part.op, f"{text[:chars_left]}…"))
        chars_left -= len(text)
        shortened.append(DiffPart(part.op, text))
    return tuple(shortened)
