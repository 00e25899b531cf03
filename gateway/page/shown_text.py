"""Texts as pages show them: hidden characters are written out, and read back from forms; differences are shortened."""

from __future__ import annotations

import re

from gateway.core.memory.word_diff import DiffPart

# Characters that reorder a line, controls but for tab and line end, and tags, which a model reads as letters while a
# person sees nothing.
_HIDDEN_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
# The flags of England, Scotland and Wales: a black flag, and tags. No other flags of regions are in use.
_FLAGS = [
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
]
_FLAG_OR_HIDDEN = re.compile("|".join((*_FLAGS, _HIDDEN_CHARACTER.pattern)))
# A hidden character as `write_out_hidden` writes it, with its code point.
_WRITTEN_CHARACTER = re.compile("\u2039U\\+([0-9A-F]{4,5})\u203a")


def write_out_hidden(text: str) -> str:
    """Returns a text in which characters that are hidden or reorder lines are written out: \u2039U+202E\u203a."""
    if text.isprintable():  # as most are
        return text

    def write_out(match: re.Match[str]) -> str:
        return match[0] if len(match[0]) > 1 else f"\u2039U+{ord(match[0]):04X}\u203a"

    return _FLAG_OR_HIDDEN.sub(write_out, text.replace("\r\n", "\n"))


def restore_hidden(text: str) -> str:
    """Returns the text of a form with the characters that `write_out_hidden` has written out, and plain line ends.

    Other characters that are written in this way stay so: a person has typed them.
    """

    def restore_character(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if _HIDDEN_CHARACTER.fullmatch(character) else match[0]

    return _WRITTEN_CHARACTER.sub(restore_character, text.replace("\r\n", "\n"))


def shorten_diff(
    parts: tuple[DiffPart, ...], around: int = 60, max_chars: int = 1_500
) -> tuple[DiffPart, ...]:
    """Returns a difference with at most `max_chars`, and with only the unchanged text next to each change.

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
