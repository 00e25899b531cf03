"""How common words are in what people write: the background against which a memory's own words are counted.

A memory of ten messages cannot show that "go" is a common word and "whale" is not. A table can: common_words.txt, made
by scripts/make_common_words.py, which names its source and licence. Another table, said_to_assistants.txt, has phrases
that people use with any assistant.

How common a word is depends on the language. The language of a text is the one in which its words and their pairs of
letters (letter_pairs.txt) are likeliest: most words of a short text are in no table of common words.
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

_COMMON_WORDS = Path(__file__).with_name("common_words.txt")
_SAID_TO_ASSISTANTS = Path(__file__).with_name("said_to_assistants.txt")
_LETTER_PAIRS = Path(__file__).with_name("letter_pairs.txt")
# A term of line N of the table of common words is 10^(-N/2) of all words. Its degree is 1 in the last line and 6 in the
# first. A term in no line has degree 0 and counts as never used.
_FIRST_LINE, _LAST_LINE = 2, 7
_MAX_DEGREE = _LAST_LINE + 1 - _FIRST_LINE
# Words in a message: turns a word's share of all words into the share of messages that have it. Measured on
# LongMemEval in histories of 22 messages with 100, 150 and 300: evidence in the note 91.5, 91.3 and 90.8%; questions
# about something else that get a note: 31, 30 and 27%.
_MESSAGE_WORDS = 150
# By degree, the share of messages that has a term.
_SHARES = [
    0.0, *(min(1.0, _MESSAGE_WORDS * 10 ** (-line / 2)) for line in range(_LAST_LINE, _FIRST_LINE - 1, -1))
]  # fmt: skip
# Half of the pairs of characters in a text without spaces belong to two words, and no table has such pairs. At most, a
# pair is in as many messages as both of its characters; if characters were side by side by chance, it would be in one
# of _MESSAGE_WORDS of these messages. The mean of the two logarithms is taken.
_SIDE_BY_SIDE = _MESSAGE_WORDS**-0.5
# A word that is in a larger share of people's messages distinguishes nothing.
COMMON_SHARE = 0.5
# A word that is in a larger share than this names nothing. These are some 150 words of a language, besides those used
# with assistants. One of LongMemEval's 500 questions has no others, and none of short talk's 1,088. With all words of
# the table, some 500, these were 8 and 43.
MAX_NAMING_SHARE = 0.1
# The first words of a text by which its language is recognised, and the first letters of each word.
_LANGUAGE_WORDS, _LANGUAGE_LETTERS = 64, 40
# A pair of letters of line N of the table follows in 10^(-N/2) of the cases; one below the last line counts as if it
# stood in the next. The same holds for a word and the table of common words.
_LAST_PAIR_LINE = 5
# How much likelier English is than another language before anything is read, in half powers of ten: short words are
# words of several languages ("van"). Only for letters that English is written in. Measured as `language_of` says, on
# every other text, with 3, 5, 6 and 8: of the English texts 5, 2, 1 and 0.3% are taken for another language, of the
# others 16, 18, 19 and 23%.
_ENGLISH_LEAD = 7
_ENGLISH_LETTER = re.compile("[a-z]")


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
_TERMS_OF_TIME = frozenset(words_of(" ".join(_PHRASES.pop("-"))))
_WORDS_OF_BEGINNING = frozenset(split_words(" ".join(_PHRASES.pop("="))))
# Of two with the same score the first counts.
_LANGUAGES = (*_PHRASES, "el", "fi", "hu", "ro")
# A word's numbers for all languages are packed into one integer, 16 bits for each language, so that one addition adds
# the numbers of all languages.
_NUMBER_BITS, _NUMBER = 16, 0xFFFF
_NUMBERS = Struct(f"<{len(_LANGUAGES)}H")


def shares_in_general(words: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Returns for each term of a text which share of people's messages has it, in the text's most likely language.

    words: all words of the text. If all of them only begin or test a conversation ("Let's start."), every message
        counts as having each term.
    """
    if _WORDS_OF_BEGINNING.issuperset(words):
        return [1.0] * len(terms)
    degrees = load_tables()
    shift = _NUMBER_BITS * _LANGUAGES.index(language_of(words))

    def share_of(term: str) -> float:
        return _SHARES[degrees.get(term, 0) >> shift & _NUMBER]

    return [
        share_of(term) or (share_of(term[0]) * share_of(term[1]) * _SIDE_BY_SIDE if is_pair(term) else 0.0)
        for term in terms
    ]


def language_of(words: Sequence[str]) -> str:
    """Returns the most likely language of a text among the languages of the tables. words: of the text.

    Measured on 9,600 short texts of programs in 16 languages, each of two to six words: 1% of the English, 13% of the
    German and 21% of the others' are taken for another language; with common words alone 0, 64 and 76%.
    """
    first_words = dict.fromkeys(words[:_LANGUAGE_WORDS])
    # English is the first language, so its number is in the lowest bits.
    lead = _ENGLISH_LEAD if any(map(_ENGLISH_LETTER.search, first_words)) else 0
    scores = _unpack(sum(map(_likelihood, first_words), lead))
    return _LANGUAGES[scores.index(max(scores))]


@lru_cache(maxsize=4096)
def _likelihood(word: str) -> int:
    """Returns how likely a word is in each language, packed: by its letters, or by the table where that says more.

    The numbers are logarithms in half powers of ten. 0 means that no pair of its letters is ever used.
    """
    word = word[:_LANGUAGE_LETTERS]
    pairs = letter_pairs(word)
    by_letters = sum(filter(None, map(_load_pairs().get, pairs)))
    # A function word, which has no terms, stands for itself.
    by_table = sum(filter(None, map(load_tables().get, dict.fromkeys(terms_of_word(word) or (word,)))))
    if not by_letters or not by_table:
        return by_letters or by_table
    # What is never used counts as if it stood in the line after the last one: each of the pairs, but the word once. The
    # difference brings the numbers of the table to the zero of those of the letters.
    ahead = (_LAST_PAIR_LINE + 1) * len(pairs) - (_LAST_LINE + 1)
    likeliest = (
        max(of_letters, degree + ahead if degree else 0)
        for of_letters, degree in zip(_unpack(by_letters), _unpack(by_table), strict=True)
    )
    return int.from_bytes(_NUMBERS.pack(*likeliest), "little")


def forget_words() -> None:
    """Clears the caches of words, here and in storage/search/tokens.py."""
    forget_terms()
    _likelihood.cache_clear()


def _unpack(packed: int) -> tuple[int, ...]:
    """Returns the number of each language, in the order of `_LANGUAGES`."""
    return _NUMBERS.unpack(packed.to_bytes(_NUMBERS.size, "little"))


def letter_pairs(word: str) -> list[str]:
    """Returns the pairs of letters of a word. "_" stands for the beginning and the end of the word."""
    letters = f"_{word}_"
    return [*map(add, letters, letters[1:])]


def least_common(terms: Sequence[str], shares: Sequence[float]) -> float:
    """Returns which share of people's messages has the rarest of the terms that may name something.

    Returns 1 if none may. Words of time ("yesterday") name nothing.
    """
    return min(
        [share for term, share in zip(terms, shares, strict=True) if term not in _TERMS_OF_TIME], default=1.0
    )


def names_nothing(text: str) -> bool:
    """Returns whether a text has words, all of them among the most common of its language, as in "Who am I?".

    Such a text names nothing to look for. If it asks for anything, it asks for the memory as a whole.
    """
    words = split_words(text)
    terms = [*chain.from_iterable(map(terms_of_word, words))]
    return bool(words) and least_common(terms, shares_in_general(words, terms)) > MAX_NAMING_SHARE


def lacks_content(words: Sequence[str], terms: Sequence[str]) -> bool:
    """Returns whether each term of a text is in most of people's messages: "And now?" words: all of the text's."""
    return min(shares_in_general(words, terms), default=1.0) > COMMON_SHARE


def preload() -> None:
    """Reads the tables now instead of in the first query."""
    load_tables()
    _load_pairs()


@cache
def _load_pairs() -> dict[str, int]:
    """Returns for each pair of letters how often it is used in each language, packed.

    The 3,200 pairs take 2 ms and 0.5 MB.
    """
    degrees: dict[str, int] = {}
    for language, number, *pairs in _read_lines(_LETTER_PAIRS):
        degree = _LAST_PAIR_LINE + 1 - int(number) << _NUMBER_BITS * _LANGUAGES.index(language)
        degrees.update((pair, degrees.get(pair, 0) + degree) for pair in pairs)
    return degrees


@cache
def load_tables() -> dict[str, int]:
    """Returns for each common term its degree in each language, packed.

    The 9,000 terms take 6 ms and 0.7 MB.
    """
    degrees: dict[str, int] = {}
    for language, number, *terms in _read_lines(_COMMON_WORDS):
        degree = _LAST_LINE + 1 - int(number) << _NUMBER_BITS * _LANGUAGES.index(language)
        degrees.update((term, degrees.get(term, 0) + degree) for term in terms)
    for index, words in enumerate(_PHRASES.values()):
        shift = _NUMBER_BITS * index
        for term in words_of(" ".join(words)):
            degrees[term] = degrees.get(term, 0) & ~(_NUMBER << shift) | _MAX_DEGREE << shift
    # Few of these large numbers differ. One object for all equal numbers saves memory.
    distinct = {packed: packed for packed in degrees.values()}
    return {term: distinct[packed] for term, packed in degrees.items()}
