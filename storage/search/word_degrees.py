"""Tables of words by language: how common a term is in each, as a degree.

common_words.txt was made by scripts/make_common_words.py, which names its source and licence. Another table,
said_to_assistants.txt, has phrases that people use with any assistant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from struct import Struct

from storage.search.tokens import list_terms, split_words

_COMMON_WORDS = Path(__file__).with_name("common_words.txt")
_SAID_TO_ASSISTANTS = Path(__file__).with_name("said_to_assistants.txt")
# A term of line N of the table of common words is 10^(-N/2) of all words. Its degree is 1 in the last line and 6 in the
# first. A term in no line has degree 0 and counts as never used.
FIRST_LINE, LAST_LINE = 2, 7
_MAX_DEGREE = LAST_LINE + 1 - FIRST_LINE


def _read_lines(table: Path) -> Iterator[list[str]]:
    """Yields the words of each line that is no comment."""
    yield from (line.split() for line in table.read_text("utf-8").splitlines() if not line.startswith("#"))


def _read_phrases() -> dict[str, list[str]]:
    """Returns the words that people use with any assistant, by language."""
    words_by_language: dict[str, list[str]] = {}
    for language, *words in _read_lines(_SAID_TO_ASSISTANTS):
        words_by_language.setdefault(language, []).extend(words)
    return words_by_language


_PHRASES = _read_phrases()
# Terms of all languages that say when something was, and words that begin or test a conversation.
TERMS_OF_TIME = frozenset(list_terms(" ".join(_PHRASES.pop("-"))))
WORDS_OF_BEGINNING = frozenset(split_words(" ".join(_PHRASES.pop("="))))
# The languages of texts. The first of two with the same score counts.
LANGUAGES = (*_PHRASES, "el", "fi", "hu", "ro")
# The degrees of a term in all languages are packed into one integer, 16 bits for each language, so that one addition
# adds those of all languages.
_DEGREE_BITS, _DEGREE_MASK = 16, 0xFFFF
_DEGREES = Struct(f"<{len(LANGUAGES)}H")


def pack_degree(degree: int, language: str) -> int:
    """Returns a degree in one language, packed. It is 0 in the others."""
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
    """Returns the degree of each term of a table in each language, packed. last_line: the highest line number."""
    degrees: dict[str, int] = {}
    for language, line, *terms in _read_lines(table):
        degree = pack_degree(last_line + 1 - int(line), language)
        degrees.update((term, degrees.get(term, 0) + degree) for term in terms)
    return degrees


@cache
def load_degrees() -> dict[str, int]:
    """Returns the degree of each common term in each language, packed.

    The 9,000 terms take 6 ms and 0.7 MB.
    """
    degrees = read_degrees(_COMMON_WORDS, LAST_LINE)
    for language, words in _PHRASES.items():
        for term in list_terms(" ".join(words)):
            others = degrees.get(term, 0) & ~pack_degree(_DEGREE_MASK, language)
            degrees[term] = others | pack_degree(_MAX_DEGREE, language)
    # Few of these large numbers differ. One object for all equal numbers saves memory.
    distinct = {packed: packed for packed in degrees.values()}
    return {term: distinct[packed] for term, packed in degrees.items()}
