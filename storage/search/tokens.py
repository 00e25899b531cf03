"""Splits texts into terms, the words that the search index counts: folded, stemmed, without function words.

This module knows scripts and languages. It knows neither messages nor how terms are stored.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any

import Stemmer  # type: ignore[import-not-found, unused-ignore]

# The version of the terms that texts have. A change of the terms of any text raises the version: the new terms do not
# find texts that were indexed before, so an index of an earlier version is made again (storage/search/blob.py).
VERSION = 4

# No word of a language is longer; a stemmer may take the square of a word's length.
_MAX_WORD_CHARS = 64
# Unicode sorts the marks after a letter in the square of their number, so of a long run only the beginning counts
# (UAX 15, 13: 30 are more than any text needs). In a run there may be signs, too, of which no word is made.
_RUN_OF_MARKS = re.compile(r"([^\w\s]{30})[^\w\s]+")
# The only letters that NFKC makes marks of.
_MARK_LETTERS = (("\uff9e", "\u3099"), ("\uff9f", "\u309a"))
# The marks of so many characters are sorted in 0.2 ms.
_SHORT_CHARS = 256
# Longer words are hashes and the like, which come once: their terms are not cached.
_CACHED_WORD_CHARS = 40
# The words whose terms are cached, in about 3 MB.
_CACHED_WORDS = 1 << 14
# The beginnings and ends of a word, of so many letters, may be words in it where so many are left. Measured on the
# German compounds of scripts/talk/languages.py, by the half for developing: 54% of the evidence, 42% with parts of 6
# letters and more, 13% without (by parts of stems, which then found 76, and stemmed themselves 86). What leaves 5 does
# not find short ones ("Stehlampe").
_PART_CHARS = 5
_REST_CHARS = 4

# `\w` leaves out the vowel signs and tone marks of many scripts, which would cut their words to pieces.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u0900-\u0963\u0966-\u0dff\u0e00-\u0e4e\u0e50-\u0ece\u1000-\u1049\u1780-\u17d3\u3099\u309a"
)
_WORD = re.compile(rf"[\w{_MARKS}]+(?:['’][\w{_MARKS}]+)*")
# A table of ASCII for `bytes.translate`: capitals become small letters, and signs that no word has become spaces.
# Apostrophes stay; `_OUTER_APOSTROPHE` finds those that are not inside a word.
_ASCII_WORDS = (
    "".join(c.lower() if c.isalnum() or c in "_'" else " " for c in map(chr, range(128))).ljust(256).encode()
)
_OUTER_APOSTROPHE = re.compile(r"'(?:(?<![a-zA-Z0-9_]')|(?![a-zA-Z0-9_]))")
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Scripts written without spaces, and Hangul, where words carry their particles.
_UNSPACED_CHARS = (
    f"{_HAN}\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7af"
)
_UNSPACED_RUN = re.compile(f"([{_UNSPACED_CHARS}]+)")
# A letter, digit or underscore of a script with spaces, next to which a word of that script does not end.
SPACED_LETTER = re.compile(rf"[^\W{_UNSPACED_CHARS}]")
# The units that count as one character: in the scripts of Thailand, Laos, Burma and Cambodia a consonant with its
# vowels and marks, since there are too few letters to tell words apart by pairs of them.
_SYLLABLE = re.compile(
    "[\u0e40-\u0e44\u0ec0-\u0ec4]?[^\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]"
    "[\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]*|."
)
_IS_HAN = re.compile(f"[{_HAN}]")
_IS_HIRAGANA = re.compile("[\u3041-\u309f]{2}")
# Accents, and the points of Hebrew, which hardly anybody types.
_ACCENT = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")
# In pasted text. It is seen only at the end of a line.
_SOFT_HYPHEN = "\u00ad"
# Letters that Unicode does not take apart. Isik has no dot in Turkish; its capital is an I, and the small letter of
# that is another one elsewhere. Polish is typed without the stroke as without its other marks.
_PLAIN_LETTERS = str.maketrans("ıł", "il")

# Function words of English, which make up 40% of a text and decide nothing. Not in it: `may` and `will`, a month
# and a name.
_FUNCTION_WORD_LIST = """
a about after all also am an and any are as at be because been before being but by can could did do
does doing don down for from had has have having he her here hers him his how i if in into is it its
itself just me more most my myself no nor not of off on once only or other our ours out over own
please s same she should so some such t than that the their theirs them then there these they this
those through to too under until up us very was we were what when where which while who whom why
with would you your yours yourself d ll m re ve
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())

# The stemmers by the script of a first letter; Latin letters are English, since one message seldom shows its language.
_STEMMERS = (
    (0x0370, 0x03FF, "greek"),
    (0x0400, 0x052F, "russian"),
    (0x0530, 0x058F, "armenian"),
    (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "hindi"),
    (0x0B80, 0x0BFF, "tamil"),
)

# Names and numbers inside a sentence: at its beginning any word has a capital. Words of small letters are found too,
# since what a hyphen or an apostrophe joins to one is no name. A sign is looked for first: signs are few.
_NAME = re.compile(r"\W(?<![.!?…:] )([^\W\d_][\w'’-]{2,}|\d{2,})\b")
# `_NAME` for texts in ASCII in which nothing is joined so: small letters are passed over, in half of the time.
_ASCII_NAME = re.compile(r"[^\w'-](?<![.!?:] )([A-Z][\w'-]{2,}|\d{2,})\b", re.ASCII)
_JOINED_NAME = re.compile(r"['-][A-Z\d]", re.ASCII)


class _Stemmers(threading.local):
    """One stemmer per language and thread, since Snowball's are not for two threads at once.

    Their own cache is off, because the terms of words are cached (`_Terms`).
    """

    def __init__(self) -> None:
        self._by_language: dict[str, Any] = {}

    def stem(self, word: str, language: str) -> str:
        """Returns the stem of a word. language: the name of the language, as Snowball has it."""
        stemmer = self._by_language.get(language)
        if stemmer is None:
            stemmer = self._by_language[language] = Stemmer.Stemmer(language, 0)
        stem: str = stemmer.stemWord(word)
        return stem


_stemmers = _Stemmers()


def split_words(text: str) -> list[str]:
    """Returns the words of a text in order, in lower case, function words too."""
    is_ascii = text.isascii()
    if not is_ascii:
        text = _normalize(text.casefold()).replace(_SOFT_HYPHEN, "")
    if "," in text:
        text = _THOUSANDS.sub("", text)
    if not is_ascii:
        return _WORD.findall(text)
    # In a third of the time that a pattern takes.
    if "'" in text:
        text = _OUTER_APOSTROPHE.sub(" ", text)
    return text.encode().translate(_ASCII_WORDS).decode().split()


def find_word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields start and end of each word of a text; in a script without spaces of characters and pairs of them."""
    for word in _WORD.finditer(text):
        start = word.start()
        for index, run in enumerate(_UNSPACED_RUN.split(word[0])):
            units = _SYLLABLE.findall(run) if index % 2 else [run]
            ends = [*accumulate(map(len, units), initial=start)]
            yield from pairwise(ends)
            if index % 2:
                yield from zip(ends, ends[2:], strict=False)
            start = ends[-1]


def _normalize(text: str) -> str:
    """Returns a text in NFKC, at most about four times as long.

    Signs that come often stand for three others (points between a chapter and its page) or four; one stands for 18.
    """
    most = 4 * len(text) + _MAX_WORD_CHARS
    # The check whether a text is in NFKC takes one pass; marks that are in order take no sorting.
    if len(text) > _SHORT_CHARS and not unicodedata.is_normalized("NFKC", text):
        for letter, mark in _MARK_LETTERS:
            text = text.replace(letter, mark)
        text = _RUN_OF_MARKS.sub(r"\1", text)
    return unicodedata.normalize("NFKC", text)[:most]


def list_terms(text: str) -> list[str]:
    """Returns the terms of a text in order. Numbers and identifiers stay, function words do not."""
    return list_terms_of_words(split_words(text))


def list_terms_of_words(words: Iterable[str]) -> list[str]:
    """Returns the terms of words, as `split_words` returns these, in order."""
    return list(chain.from_iterable(map(list_terms_of_word, words)))


def may_be_compound(word: str) -> bool:
    """Returns whether a word may be a compound of several."""
    return _PART_CHARS + _REST_CHARS <= len(word) <= _CACHED_WORD_CHARS and word.isalpha()


def split_compounds(compounds: Iterable[str]) -> Iterator[str]:
    """Yields the terms of possible words in compounds: "Zahnarzttermin" is found by "Zahnarzt" and by "Termin"."""
    return chain.from_iterable(map(_list_compound_terms, compounds))


@lru_cache(maxsize=1024)
def _list_compound_terms(word: str) -> tuple[str, ...]:
    """Returns the terms that the beginnings and ends of a word have as words: its own may be stemmed differently."""
    word = fold(word)
    if not word.isascii():
        return ()
    sizes = range(_PART_CHARS, len(word) - _REST_CHARS + 1)
    parts = chain.from_iterable((word[:size], word[-size:]) for size in sizes)
    return tuple(dict.fromkeys(chain.from_iterable(map(_split_ascii, parts))))


def list_names(text: str) -> list[str]:
    """Returns the terms of names, and of numbers of two digits and more, in order, but at a sentence's beginning."""
    if text.isascii() and not _JOINED_NAME.search(text):
        words: list[str] = _ASCII_NAME.findall(text)
    else:
        words = [word for word in _NAME.findall(text) if word[0].isupper() or word[0].isdigit()]
    return list_terms(" ".join(words)) if words else []


class _Terms(dict[str, tuple[str, ...]]):
    """A cache of the terms of words, by word. Common words are nearly all of a text.

    It may have words that were forgotten, so a forgetting empties it (`clear_terms`).
    """

    def __missing__(self, word: str) -> tuple[str, ...]:
        terms = tuple(_split_into_terms(word))
        if len(word) <= _CACHED_WORD_CHARS:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = terms
        return terms


_terms = _Terms()
# Returns the terms of a word. It is called for each word of a text, so there is no function around it.
list_terms_of_word = _terms.__getitem__


def clear_terms() -> None:
    """Empties the caches of the words that were met."""
    _terms.clear()
    _list_compound_terms.cache_clear()


def _split_into_terms(word: str) -> list[str]:
    """Returns the terms of a word, which the cache `_terms` does not have."""
    if word.isascii():
        parts = _split_ascii(word)
        # An identifier is found whole and by its parts.
        return [word, *parts] if "_" in word.strip("_") and len(word) <= _MAX_WORD_CHARS else parts
    terms: list[str] = []
    for index, run in enumerate(_UNSPACED_RUN.split(word)):
        if not run:
            continue
        if index % 2:
            # The pattern captures, so every second part is unspaced text. Its pairs of characters stand for words.
            units = _SYLLABLE.findall(run)
            terms += [a + b for a, b in pairwise(units)] if len(units) > 1 else [run]
            if len(run) > 1:
                # A word of one character is common in Chinese and must be found inside a run.
                terms += _IS_HAN.findall(run)
        else:
            terms += _split_spaced(run)
    return terms


def is_unspaced(term: str) -> bool:
    """Returns whether a term is of a script without spaces, and so mostly no whole word."""
    return not term.isascii() and _UNSPACED_RUN.fullmatch(term) is not None


def is_pair(term: str) -> bool:
    """Returns whether a term is two characters of a script without spaces."""
    return len(term) == 2 and is_unspaced(term)


def find_word_parts(terms: Collection[str]) -> frozenset[str]:
    """Returns the terms that say little by themselves: characters of a pair of Han, and pairs of hiragana.

    The pair has the character already, and hiragana are mostly endings and function words.
    """
    if "".join(terms).isascii():
        return frozenset()
    pairs = [term for term in terms if is_pair(term)]
    of_han = chain.from_iterable(pair for pair in pairs if all(map(_IS_HAN.match, pair)))
    return frozenset(of_han).union(filter(_IS_HIRAGANA.match, pairs))


def _split_ascii(word: str) -> list[str]:
    """Returns the terms of a word of ASCII: its parts between underscores, without function words."""
    terms = []
    for part in word.split("_"):
        base = part.partition("'")[0][:_MAX_WORD_CHARS]
        if base and base not in _FUNCTION_WORDS:
            terms.append(_stemmers.stem(base, "english") if base.isalpha() else base)
    return terms


def _split_spaced(run: str) -> list[str]:
    """Returns the terms of a word of a script with spaces."""
    script = ord(run[0])
    for first, last, language in _STEMMERS:
        if first <= script <= last:
            base = run.replace("’", "'").partition("'")[0][:_MAX_WORD_CHARS]
            return [fold(_stemmers.stem(base, language))] if base else []
    folded = fold(run.replace("’", "'"))
    return (
        _split_ascii(folded)
        if folded.isascii()
        else [part[:_MAX_WORD_CHARS] for part in folded.split("_") if part]
    )


def fold(word: str) -> str:
    """Returns a word without accents. Marks of other ranges (Hangul, kana) belong to their letters and stay."""
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFKD", word))).translate(
        _PLAIN_LETTERS
    )


@lru_cache(maxsize=512)
def make_date_words(day: int) -> tuple[str, ...]:
    """Returns year, month, day and weekday as a person would ask for them; nothing for a time no calendar has.

    day: the number of the day since the epoch, UTC.
    """
    try:
        date = datetime.fromtimestamp(day * 86_400, UTC)
    except (OverflowError, OSError, ValueError):
        return ()
    return tuple(list_terms(date.strftime("%Y %B %d %A").replace(" 0", " ")))


def is_date_word(term: str) -> bool:
    """Returns whether a term may be one of `make_date_words`: a year, a month, a day or a weekday."""
    return term in _list_days_of_year() or (len(term) == 4 and term.isdecimal())


@cache
def _list_days_of_year() -> frozenset[str]:
    return frozenset(chain.from_iterable(map(make_date_words, range(366))))
