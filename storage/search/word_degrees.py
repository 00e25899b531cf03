"""How common a term is in each language, as a degree, by tables of words.

common_words.txt was made by scripts/make_common_words.py, which names its source and licence. The other table,
said_to_assistants.txt, has words that people use with any assistant, whatever they talk about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from struct import Struct

from storage.search.tokens import list_terms, split_words

_COMMON_WORDS = Path(__file__).with_name("common_words.txt")
_WORDS_TO_ASSISTANTS = Path(__file__).with_name("said_to_assistants.txt")
# The keys of lines of that table with words of all languages, where other lines have a language.
_TIME_KEY = "-"
_OPENING_KEY = "="
# A term of line N of the table of common words makes up 10^(-N/2) of all words. Its degree is 1 in the last line and 6
# in the first. A term in no line has degree 0 and counts as never used.
FIRST_LINE = 2
LAST_LINE = 7
_MAX_DEGREE = LAST_LINE + 1 - FIRST_LINE


def _read_lines(table: Path) -> Iterator[list[str]]:
    """Yields the words of each line of a table that is no comment."""
    yield from (line.split() for line in table.read_text("utf-8").splitlines() if not line.startswith("#"))


def _read_words_to_assistants() -> dict[str, str]:
    """Returns the words that people use with any assistant, by the keys of their lines, with spaces between them."""
    words_by_key: dict[str, list[str]] = {}
    for key, *words in _read_lines(_WORDS_TO_ASSISTANTS):
        words_by_key.setdefault(key, []).extend(words)
    return {key: " ".join(words) for key, words in words_by_key.items()}


_WORDS_BY_LANGUAGE = _read_words_to_assistants()
# The terms of all languages that name a time, such as "yesterday".
TIME_TERMS = frozenset(list_terms(_WORDS_BY_LANGUAGE.pop(_TIME_KEY)))
# The words of all languages that open or test a conversation, such as "let's start".
OPENING_WORDS = frozenset(split_words(_WORDS_BY_LANGUAGE.pop(_OPENING_KEY)))
# The languages of texts. Of two languages with the same score the first counts.
LANGUAGES = (*_WORDS_BY_LANGUAGE, "el", "fi", "hu", "ro")
# The degrees of a term in all languages are packed into one integer, 16 bits for each language, so that one addition
# adds the degrees of two terms in all languages.
_DEGREE_BITS = 16
_DEGREE_MASK = 0xFFFF
_DEGREES = Struct(f"<{len(LANGUAGES)}H")


def pack_degree(degree: int, language: str) -> int:
    """Returns the degrees of a term that has a degree in one language and 0 in the others, packed."""
    return degree << _DEGREE_BITS * LANGUAGES.index(language)


def unpack_degree(packed: int, language: str) -> int:
    """Returns the degree in a language."""
    return packed >> _DEGREE_BITS * LANGUAGES.index(language) & _DEGREE_MASK


def unpack_degrees(packed: int) -> tuple[int, ...]:
    """Returns the degree in each language, in the order of `LANGUAGES`."""
    return _DEGREES.unpack(packed.to_bytes(_DEGREES.size, "little"))


def pack_degrees(degrees: Iterable[int]) -> int:
    """Returns degrees in the order of `LANGUAGES`, packed."""
    return int.from_bytes(_DEGREES.pack(*degrees), "little")


def read_degrees(table: Path, last_line: int) -> dict[str, int]:
    """Returns the degrees of each term of a table, packed.

    last_line: the number of the table's last line, whose terms have the degree 1.
    """
    degrees: dict[str, int] = {}
    for language, line, *terms in _read_lines(table):
        degree = pack_degree(last_line + 1 - int(line), language)
        degrees.update((term, degrees.get(term, 0) + degree) for term in terms)
    return degrees


@cache
def load_degrees() -> dict[str, int]:
    """Returns the degrees of each common term, packed. Reading the 9,000 terms takes 6 ms, and they take 0.7 MB."""
    degrees = read_degrees(_COMMON_WORDS, LAST_LINE)
    for language, words in _WORDS_BY_LANGUAGE.items():
        for term in list_terms(words):
            others = degrees.get(term, 0) & ~pack_degree(_DEGREE_MASK, language)
            degrees[term] = others | pack_degree(_MAX_DEGREE, language)
    # Many of these large numbers are equal. One object for all equal numbers saves memory.
    distinct = {packed: packed for packed in degrees.values()}
    return {term: distinct[packed] for term, packed in degrees.items()}
