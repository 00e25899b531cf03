"""The tags of the gateway's own texts, and the mark that only its notes and summaries bear.

Text from elsewhere must not pass for the gateway's. If the gateway renders such text itself, it escapes the tags in it
(`escape_tags`). A client's own messages are sent as they came; the model distinguishes the gateway's notes from them
by a mark that the client cannot know. The memory section, or else the first note, shows the mark to the model.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Iterable, Mapping
from functools import cache, cached_property, lru_cache
from hashlib import blake2b
from string import ascii_lowercase
from unicodedata import combining, normalize

# 40 bits are enough: a guess brings no hint whether it was right.
_MARK_BYTES = 5
# The pattern of a mark: base 32, in which 5 bytes are 8 characters.
MARK_PATTERN = "[a-z2-7]{8}"
# A tag with a mark.
_MARKED_TAG = re.compile(f"<memory {MARK_PATTERN}>")

# Characters that no text of the gateway's has; tabs and line feeds stay.
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Replaces the first character of a tag.
_ESCAPED_BRACKET = "‹"
# "<", with its forms that compatibility folds, and characters that look the same.
_LESS = "<﹤＜˂ᐸ⟨〈〈❬❮\U000e003c"
# "/" and "\\", with the characters that look the same.
_SLASHES = r"/\\⁄∕⧸／＼" + "\U000e002f"
# Characters that a reader does not see between two letters: white space, control and format characters, variation
# selectors, fillers and marks above a letter (Unicode's Default_Ignorable_Code_Point, and more).
_UNSEEN_CHARACTERS = (
    r"\s\x00-\x20\x7f-\xa0\xad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\u20d0-\u20ff\u2800\u3164\ufe00-\ufe0f\ufe20-\ufe2f\ufeff\uffa0"
    r"\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0020\U000e007f-\U000e0fff"
)
# The first of Unicode's tag characters, which are ASCII once more and invisible.
_TAG_CHARACTERS = 0xE0000
# Unicode ranges, without their ends, of letters in other forms: accented, raised, full width, mathematical, circled.
_FORM_RANGES = (
    (0x00AA, 0x0250), (0x02B0, 0x02B9), (0x1D2C, 0x1D6B), (0x1E00, 0x1F00), (0x2070, 0x209D), (0x2100, 0x214F),
    (0x2460, 0x24EA), (0xFF21, 0xFF5B), (0x1D400, 0x1D800), (0x1F110, 0x1F18A),
)  # fmt: skip
# The letters of other alphabets that look like a Latin letter, by that letter.
_LOOKALIKES = {
    "a": "аɑαАΑ", "c": "сϲСϹ", "e": "еҽЕΕ", "i": "іıΙІι", "m": "мМΜ", "n": "ոΝ", "o": "оοОΟօ", "r": "гᴦ",
    "s": "ѕЅ", "t": "тТΤτ", "u": "υսц", "v": "ѵνν", "y": "уүγУΥҮ",
}  # fmt: skip


@cache
def _map_letter_forms() -> dict[str, str]:
    """Returns the characters that are read as each small letter."""
    # The small letter, the capital, and both as tag characters.
    forms = {
        small: [
            small,
            small.upper(),
            chr(_TAG_CHARACTERS + ord(small)),
            chr(_TAG_CHARACTERS + ord(small.upper())),
        ]
        for small in ascii_lowercase
    }
    for first, end in _FORM_RANGES:
        for character in map(chr, range(first, end)):
            letter = "".join(c for c in normalize("NFKD", character) if not combining(c)).casefold()
            if letter in forms:
                forms[letter].append(character)
    same_characters = {
        letter: "".join(letter_forms) + _LOOKALIKES.get(letter, "") for letter, letter_forms in forms.items()
    }
    return same_characters | {"_": "_＿"}


class Tags:
    """Tags by their names, which are prefixes: `memory` is also in `memory_block`, and not in `memorial`."""

    def __init__(self, *names: str) -> None:
        self._names = names
        letters = {letter: f"{letter}{letter.upper()}" for letter in ascii_lowercase} | {"_": "_"}
        # The pattern of a tag in a text of ASCII.
        self._ascii = re.compile("<" + _make_tag_pattern(names, letters, r"[\x00-\x20\x7f]*+", r"/\\"))

    @cached_property
    def _unicode(self) -> re.Pattern[str]:
        # Compiled when it is first needed, since that takes some 20 ms.
        return re.compile(
            f"[{_LESS}]"
            + _make_tag_pattern(self._names, _map_letter_forms(), f"[{_UNSEEN_CHARACTERS}]*+", _SLASHES)
        )

    def escape(self, text: str) -> str:
        """Returns the text with the first character of each of these tags replaced; all else stays."""
        if text.isascii():
            return self._ascii.sub(_ESCAPED_BRACKET, text) if "<" in text else text
        return self._unicode.sub(_ESCAPED_BRACKET, text) if any(less in text for less in _LESS) else text


def _make_tag_pattern(names: Iterable[str], letters: Mapping[str, str], unseen: str, slashes: str) -> str:
    """Returns the pattern of a tag after its first character. It reads each character once (no backtracking).

    names: the names of the tags.
    letters: the characters that are read as a letter of a name, by that letter.
    unseen: the pattern of the characters that may lie between two letters.
    slashes: the characters that may close a tag, for a character class.
    """
    name_pattern = "|".join(unseen.join(f"[{letters[c]}]" for c in name) for name in names)
    return rf"(?={unseen}(?:[{slashes}]{unseen})*+(?:{name_pattern})(?![^\W_]))"


escape_tags = Tags("memory", "system_message").escape


def quote_text(text: str) -> str:
    """Returns a text from elsewhere in quotation marks, on one line and without tags of the gateway's."""
    return escape_tags(repr(text))


@lru_cache(maxsize=64)
def quote_name(name: str) -> str:
    """Returns a name from elsewhere on one line and in quotation marks, which no label of the gateway's has."""
    return '"' + escape_tags(" ".join(name.split())).replace('"', "'") + '"'


def with_mark(note: str, mark: str) -> str:
    """Returns a copy of a note with another mark. mark: the new mark."""
    return _MARKED_TAG.sub(f"<memory {mark}>", note)


# A turn asks three times.
@lru_cache(maxsize=64)
def make_mark(secret: bytes) -> str:
    """Returns the mark of a memory's notes and summaries. secret: the secret of the memory."""
    return b32encode(blake2b(b"mark", key=secret, digest_size=_MARK_BYTES).digest()).decode().lower()
