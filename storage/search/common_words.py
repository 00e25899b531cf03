"""How common words are in what people say: the background against which a memory's own words are counted.

A memory of ten messages cannot show that "go" is a common word and "whale" is none. The table next to this module
(common_words.txt; made by scripts/make_common_words.py, which names its source and licence) can. Another one by hand
(said_to_assistants.txt) has phrases that people use with any assistant.

What a word says depends on the language. A language is as likely as its words and the pairs of letters in them
(letter_pairs.txt) are: most words of a short text are in no table of common ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from operator import add
from pathlib import Path
from struct import Struct

from storage.search.tokens import forget_words as forget_terms
from storage.search.tokens import is_pair, split_words, terms_of_word, words_of

_TABLE = Path(__file__).with_name("common_words.txt")
_SAID_TO_ASSISTANTS = Path(__file__).with_name("said_to_assistants.txt")
_PAIRS = Path(__file__).with_name("letter_pairs.txt")
# A term of line N of the table is 10^(-N/2) of all words; one below the last line counts as never used. Those of the
# last line are common to the degree 1.
_FIRST_LINE, _LAST_LINE = 2, 7
_MAX_DEGREE = _LAST_LINE + 1 - _FIRST_LINE
# Words in a message, to make of a word's share of all words the share of messages that have it. Measured on
# LongMemEval in histories of 22 messages with 100, 150 and 300: evidence in the note 91.5, 91.3 and 90.8%; questions
# about something else that get a note: 31, 30 and 27%.
_MESSAGE_WORDS = 150
_SHARES = [
    0.0, *(min(1.0, _MESSAGE_WORDS * 10 ** (-line / 2)) for line in range(_LAST_LINE, _FIRST_LINE - 1, -1))
]  # fmt: skip
# Half of the pairs of characters in a text without spaces belong to two words, and no table has them. A pair is in at
# most as many messages as both characters; if these came by chance, it would be in one of _MESSAGE_WORDS of those. The
# mean of both (of their logarithms) is taken.
_SIDE_BY_SIDE = _MESSAGE_WORDS**-0.5
# A word that is in a larger share of people's messages distinguishes nothing.
COMMON_SHARE = 0.5
# A word that is in a larger share names nothing. These are some 150 words of a language, besides those used with
# assistants. One of LongMemEval's 500 questions has no others, and none of short talk's 1,088. With all words of the
# table, some 500, these were 8 and 43.
NAMES_NOTHING = 0.1
# Words of a text that show its language, and letters of each.
_TELLING_WORDS, _TELLING_LETTERS = 64, 40
# A pair of letters of line N of the table follows in 10^(-N/2) of the cases; one below the last line counts as if it
# stood in the next. So does a word.
_LAST_PAIR_LINE = 5
# How much likelier English is than another language before anything is read, in half powers of ten: short words are
# words of several languages ("van"). Only for letters that English is written in. Measured as `language_of` says, on
# every other text, with 3, 5, 6 and 8: of the English texts 5, 2, 1 and 0.3% are taken for another language, of the
# others 16, 18, 19 and 23%.
_ENGLISH_LEAD = 7
_ENGLISH_LETTER = re.compile("[a-z]")


def _read(table: Path) -> Iterator[list[str]]:
    """Yields the words of each line that is no comment."""
    yield from (line.split() for line in table.read_text("utf-8").splitlines() if not line.startswith("#"))


def _by_language(table: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for language, *words in _read(table):
        found.setdefault(language, []).extend(words)
    return found


_ADDRESSES = _by_language(_SAID_TO_ASSISTANTS)
_WHEN = frozenset(words_of(" ".join(_ADDRESSES.pop("-"))))
_BEGINS = frozenset(split_words(" ".join(_ADDRESSES.pop("="))))
# Of two with the same score the first counts. Each has 16 bits of a term's degrees.
_LANGUAGES = (*_ADDRESSES, "el", "fi", "hu", "ro")
_DEGREE_BITS, _DEGREE = 16, 0xFFFF
_BY_LANGUAGE = Struct(f"<{len(_LANGUAGES)}H")


def shares_in_general(words: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Returns for each term which share of people's messages has it, in the language that a text seems to be in.

    words: all of the text's. Those of a text that only begins or tests count as any message's.
    """
    if _BEGINS.issuperset(words):
        return [1.0] * len(terms)
    degrees = load_tables().get
    shift = _DEGREE_BITS * _LANGUAGES.index(language_of(words))
    shares = [_SHARES[degrees(term, 0) >> shift & _DEGREE] for term in terms]
    for place, (term, share) in enumerate(zip(terms, shares, strict=True)):
        if not share and is_pair(term):
            one, other = (_SHARES[degrees(each, 0) >> shift & _DEGREE] for each in term)
            shares[place] = one * other * _SIDE_BY_SIDE
    return shares


def language_of(words: Sequence[str]) -> str:
    """Returns the language in which the words of a text are most likely, of those that the tables know.

    Measured on 9,600 short texts of programs in 16 languages, each of two to six words: 1% of the English, 13% of the
    German and 21% of the others' are taken for another language; with common words alone 0, 64 and 76%.
    """
    some = dict.fromkeys(words[:_TELLING_WORDS])
    lead = _ENGLISH_LEAD if any(map(_ENGLISH_LETTER.search, some)) else 0
    # The numbers of all languages are added at once.
    by_language = _apart(sum(map(_likelihood, some), lead))
    return _LANGUAGES[by_language.index(max(by_language))]


@lru_cache(maxsize=4096)
def _likelihood(word: str) -> int:
    """Returns how likely a word is in each language, in one row: as its letters are, or more where its table has it."""
    word = word[:_TELLING_LETTERS]
    pairs = letter_pairs(word)
    by_letters = sum(filter(None, map(_load_pairs().get, pairs)))
    # A function word, which has no terms, stands for itself.
    by_table = sum(filter(None, map(load_tables().get, dict.fromkeys(terms_of_word(word) or (word,)))))
    if not by_letters or not by_table:
        return by_letters or by_table
    # What the letters have for pairs that are never used, the table has for words.
    ahead = (_LAST_PAIR_LINE + 1) * len(pairs) - (_LAST_LINE + 1)
    both = zip(_apart(by_letters), _apart(by_table), strict=True)
    likeliest = (max(letters, degree + ahead if degree else 0) for letters, degree in both)
    return int.from_bytes(_BY_LANGUAGE.pack(*likeliest), "little")


def forget_words() -> None:
    """Forgets the words that were met, here and in storage/search/tokens.py."""
    forget_terms()
    _likelihood.cache_clear()


def _apart(row: int) -> tuple[int, ...]:
    """Returns the numbers of a row, one for each language."""
    return _BY_LANGUAGE.unpack(row.to_bytes(_BY_LANGUAGE.size, "little"))


def letter_pairs(word: str) -> list[str]:
    """Returns each letter of a word with the one after it, and "_" for its beginning and end."""
    letters = f"_{word}_"
    return [*map(add, letters, letters[1:])]


def least_common(terms: Sequence[str], shares: Sequence[float]) -> float:
    """Returns which share of people's messages has the rarest of the terms that may name something; 1: none may."""
    return min([share for term, share in zip(terms, shares, strict=True) if term not in _WHEN], default=1.0)


def names_nothing(text: str) -> bool:
    """Returns whether a text has words, and each of them is among the most common of its language: "Who am I?"

    Such a text has nothing to look for; if it asks for anything, it asks for the memory as a whole.
    """
    words = split_words(text)
    terms = [*chain.from_iterable(map(terms_of_word, words))]
    return bool(words) and least_common(terms, shares_in_general(words, terms)) > NAMES_NOTHING


def lacks_content(words: Sequence[str], terms: Sequence[str]) -> bool:
    """Returns whether each term of a text is in most of people's messages: "And now?" words: all of the text's."""
    return min(shares_in_general(words, terms), default=1.0) > COMMON_SHARE


def preload() -> None:
    """Reads the tables now instead of in the first query."""
    load_tables()
    _load_pairs()


@cache
def _load_pairs() -> dict[str, int]:
    """Returns for each pair of letters how often it is used in each language, in one row as `load_tables` does.

    That are 3,200 pairs, in 2 ms and 0.5 MB.
    """
    found: dict[str, int] = {}
    for language, number, *pairs in _read(_PAIRS):
        degree = _LAST_PAIR_LINE + 1 - int(number) << _DEGREE_BITS * _LANGUAGES.index(language)
        found.update((pair, found.get(pair, 0) + degree) for pair in pairs)
    return found


@cache
def load_tables() -> dict[str, int]:
    """Returns for each common term to which degree it is common in each language, in one row.

    That are 9,000 terms, in 6 ms and 0.7 MB.
    """
    tables: dict[str, int] = {}
    for language, number, *terms in _read(_TABLE):
        degree = _LAST_LINE + 1 - int(number) << _DEGREE_BITS * _LANGUAGES.index(language)
        tables.update((term, tables[term] + degree if term in tables else degree) for term in terms)
    for place, words in enumerate(_ADDRESSES.values()):
        shift = _DEGREE_BITS * place
        for term in words_of(" ".join(words)):
            tables[term] = tables.get(term, 0) & ~(_DEGREE << shift) | _MAX_DEGREE << shift
    # Few of them differ, which then lie near to each other.
    values = {value: value for value in tables.values()}
    return {term: values[value] for term, value in tables.items()}
