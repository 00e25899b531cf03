"""The words of a text, in the forms in which they are searched, distinguished, and compared with heard words.

| form | for |
|---|---|
| `list_folded_words`, `stem` | whether two texts have a subject in common: notes, excerpts, facts, forgetting |
| `list_words_with_signs`, `blank_non_words` | whether two texts say the same: "C" and "C++" do not |
| `list_lower_words`, `list_transcript_words` | speech that grows while it is transcribed, or breaks off |
| `join_letters`, `join_heard_letters` | a reply and its spoken part, whatever stands between the words |
"""

from __future__ import annotations

import re
import unicodedata

# A run of letters, digits and "_".
_RUN = re.compile(r"\w+")
_SPACE = ord(" ")
# A table for `bytes.translate`: all but the characters of runs become spaces.
_RUN_TABLE_ASCII = bytes(code if _RUN.match(chr(code)) else _SPACE for code in range(256))
# Unicode categories (their first letters) and signs that are parts of words, as currencies and other symbols are (Sc,
# So): a vowel sign of Hindi or Thai, an emoji or "C++" distinguishes one word from another; a quotation mark does not.
_WORD_CATEGORIES = frozenset("LMN")
_WORD_SIGNS = frozenset("_#%+")
# The most characters of a `_WordTable`: more than the languages of most users have. All of Unicode would take 77 MB.
_MAX_CACHED_CHARACTERS = 1 << 14
# The characters before the first word.
_NO_WORD = re.compile(r"\W*+")
# The brackets of "[interrupted]", "(laughs)" and "*sighs*" at the end of a spoken text.
_OPENING_BRACKETS = "[(*<"
_CLOSING_BRACKETS = "])*>"
# The most characters of a transcript: two hours of speech, with words that are counted in some milliseconds.
_MAX_TRANSCRIPT_CHARS = 100_000
# The characters that end a question, in most scripts.
QUESTION_MARKS = ("?", "？", "؟")
# The fewest letters that show the beginning of a text. Fewer may be a beginning by chance.
MIN_HEARD_LETTERS = 4


class _WordTable(dict[int, int]):
    """A table for `str.translate`: a character that is a part of a word stays, any other becomes a space."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        category = unicodedata.category(character)
        is_in_words = category[0] in _WORD_CATEGORIES or category in ("Sc", "So") or character in _WORD_SIGNS
        shown_code = code if is_in_words else _SPACE
        if len(self) < _MAX_CACHED_CHARACTERS:
            self[code] = shown_code
        return shown_code


_WORD_TABLE = _WordTable()
# The same table for ASCII.
_WORD_TABLE_ASCII = bytes(_WORD_TABLE[code] if code < 128 else _SPACE for code in range(256))


def list_folded_words(text: str) -> list[str]:
    """Returns the words of a text, in lower case, by which its subject is found: Rome is in "Rome🎉" and "#rome"."""
    return _split_words(text.casefold())


def list_words_with_signs(text: str) -> list[str]:
    """Returns the words of a text, in lower case, with the signs that belong to them: C is not C++."""
    return blank_non_words(text.casefold()).split()


def blank_non_words(line: str) -> str:
    """Returns a line with a space for each character that is no part of a word. ASCII takes a tenth of the time."""
    return (
        line.encode().translate(_WORD_TABLE_ASCII).decode() if line.isascii() else line.translate(_WORD_TABLE)
    )


def stem(word: str) -> str:
    """Returns the word without a possible ending: enough to find "walk" in "walking", in most languages."""
    return word[: max(4, len(word) - 2)]


def list_lower_words(text: str) -> list[str]:
    """Returns the runs of letters and digits in a text, in lower case."""
    return _split_words(text.lower())


def list_transcript_words(text: str) -> list[str]:
    """Returns the words of a text, in lower case; []: the text is too long for a transcript."""
    return list_lower_words(text) if len(text) <= _MAX_TRANSCRIPT_CHARS else []


def is_grown_transcript(new: str, old: str) -> bool:
    """Returns whether `new` is a later transcript of the same speech; it may complete the last word of `old`.

    It has all words of `old`, and perhaps more.
    """
    new_words = list_transcript_words(new)
    old_words = list_transcript_words(old)
    if not old_words or len(new_words) < len(old_words) or new_words[: len(old_words) - 1] != old_words[:-1]:
        return False
    # A word that stands alone is no evidence when it is completed: "I" begins half of all sentences.
    word = new_words[len(old_words) - 1]
    cut_word = old_words[-1]
    return word == cut_word or (len(old_words) > 1 and word.startswith(cut_word))


def join_letters(text: str) -> str:
    """Returns the letters and digits of a text, in lower case, without the signs between its words."""
    return "".join(list_lower_words(text))


def join_heard_letters(text: str) -> str:
    """Returns the letters of a reply's spoken part, as the client reports it, without a remark (`cut_remark`)."""
    return join_letters(cut_remark(text))


def is_beginning(heard: str, whole: str, min_letters: int = MIN_HEARD_LETTERS) -> bool:
    """Returns whether letters are the beginning of a whole text's letters, or all of them.

    heard, whole: the letters of two texts, from `join_letters`.
    min_letters: the fewest letters that count as a beginning.
    """
    return bool(heard) and (heard == whole or (len(heard) >= min_letters and whole.startswith(heard)))


def cut_remark(text: str) -> str:
    """Returns the spoken part of a reply, without a bracketed remark at its end.

    For "Hi (Bob). I [laughs]." it is "Hi (Bob). I ": the words end with "laughs", the last bracket closed before that
    is the bracket after "Bob", and the remark begins with the first bracket opened after it. For "Hi. *sighs*" it is
    "Hi. ": an asterisk closes and opens, so the last asterisk before the end of the words begins the remark.

    A regular expression for this would try each bracket to the end of the text, so it is searched from the end.
    """
    # Between the last word and the end of the text there has to be a closing bracket.
    after_words = _NO_WORD.match(text[::-1])
    end = len(text) - (after_words.end() if after_words else 0)
    if not any(char in text[end:] for char in _CLOSING_BRACKETS):
        return text
    # The remark begins after the last bracket that is closed before its words; -1: no bracket is.
    closed_offset = max(text.rfind(char, 0, end) for char in _CLOSING_BRACKETS)
    # An asterisk there may also open the remark.
    begin = closed_offset if text[closed_offset : closed_offset + 1] == "*" else closed_offset + 1
    offsets = [offset for char in _OPENING_BRACKETS if (offset := text.find(char, begin, end)) >= 0]
    return text[: min(offsets, default=end)]


def _split_words(text: str) -> list[str]:
    """Returns the runs of letters and digits in a text, in its own case. ASCII takes a fifth of the time."""
    return (
        text.encode().translate(_RUN_TABLE_ASCII).decode().split() if text.isascii() else _RUN.findall(text)
    )
