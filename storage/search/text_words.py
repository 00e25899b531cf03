"""The words of a query in one text: whether the text has them, where, and which words another text lacks.

Pure. A text has a word in any of its forms, as the index counts words. A long text takes some milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from unicodedata import category

from storage.search.common_words import select_distinctive, select_uncommon
from storage.search.document import list_distinct_terms
from storage.search.tokens import SPACED_LETTER, find_word_parts, find_word_spans, is_unspaced, list_terms

# The first words of a query that are looked for, and the first characters of it in which they lie.
_MAX_TERMS = 64
_MAX_CHARS = 10_000
# A text of so many characters has no more terms than the index takes of a text.
_PIECE_CHARS = 8_000
_WRITTEN_WORD = re.compile(r"\S+")
_PUNCTUATION_AROUND = re.compile(r"^\W+|\W+$")
_WORD_CHARACTER = re.compile(r"\w")
# The first written words of a text, and those of a query (which may have many function words), that are compared.
_MAX_TEXT_WORDS = 5_000
_MAX_QUERY_WORDS = 10 * _MAX_TERMS


def list_query_terms(query: str) -> list[str]:
    """Returns the terms that a text must have, each once. Function words are left out."""
    return [*islice(dict.fromkeys(list_terms(query[:_MAX_CHARS])), _MAX_TERMS)]


def has_terms(text: str, terms: Collection[str]) -> bool:
    """Returns whether a text has all of these terms, as the index counts them."""
    return list_distinct_terms(text).issuperset(terms)


def has_words(text: str, query: str) -> bool:
    """Returns whether a text has all words of a query, in any of their forms, as far as the index has the text."""
    return has_terms(text, list_query_terms(query))


def has_words_anywhere(text: str, query: str) -> bool:
    """Returns whether a text of any length has all words of a query. The index has only the first of a long text."""
    missing_terms = {*list_query_terms(query)}
    for _, piece in _split_pieces(text):
        missing_terms -= list_distinct_terms(piece)
        if not missing_terms:
            break
    return not missing_terms


def _split_pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yields the pieces of a text, each with its start: at most `_PIECE_CHARS`, which end between words if they can."""
    start = 0
    while start < len(text):
        end = start + _PIECE_CHARS
        if end < len(text):  # only a word as long as a piece is cut
            end = text.rfind(" ", start + 1, end) + 1 or end
        yield start, text[start:end]
        start = end


def list_written_words(text: str, without: str = "") -> list[str]:
    """Returns the words of a text that a search looks for, as they are written in it, each once.

    without: a text with the words to leave out, in all their forms.
    """
    seen_terms = {*list_terms(without)}
    words: list[str] = []
    for match in islice(_WRITTEN_WORD.finditer(text[:_MAX_CHARS]), _MAX_QUERY_WORDS):
        terms = list_terms(match[0])
        if not seen_terms.issuperset(terms):
            words.append(_PUNCTUATION_AROUND.sub("", match[0]))
            seen_terms.update(terms)
    return words[:_MAX_TERMS]


def list_uncommon_words(text: str, without: str = "") -> list[str]:
    """Returns the words of `list_written_words`, without the most common words of the text's language."""
    return select_uncommon(text, list_written_words(text, without))


def list_lost_words(text: str, later_text: str) -> list[str]:
    """Returns the words of a text that a later text lacks, as `list_written_words`.

    In a script without spaces a whole sentence is one written word, so the characters that the later text lacks are
    returned.
    """
    words = list_written_words(text, later_text)
    if later_text.isascii() or text.isascii():
        return words
    terms = {*list_terms(later_text)}
    return [*dict.fromkeys(chain.from_iterable(_list_parts_without(word, terms) for word in words))][
        :_MAX_TERMS
    ]


def list_distinctive_lost_words(text: str, later_text: str) -> list[str]:
    """Returns the words of `list_lost_words`, without words that most messages have, such as "und", if others are left.

    The search leaves out the function words of English alone.
    """
    words = list_lost_words(text, later_text)
    return select_distinctive(text, words) or words


def _list_parts_without(word: str, terms: set[str]) -> list[str]:
    """Returns the parts of a word of which some terms have no pair; the whole word if no search finds the parts."""
    own_terms = {*list_terms(word)}
    if not any(map(is_unspaced, own_terms)):
        return [word]
    characters = list(word)
    for start, end in find_word_spans(word):
        if end - start > 1 and terms.issuperset(list_terms(word[start:end])[:1]):
            characters[start:end] = " " * (end - start)
    # A comma or an emoji between two lost words is in neither of them. Thai vowels are none, but no \w either.
    written = "".join(" " if category(letter)[0] in "PS" else letter for letter in characters).split()
    # A selector of an emoji's form is no word.
    parts = [each for each in written if _WORD_CHARACTER.search(each)]
    are_found = all(own_terms.issuperset(list_terms(part)) for part in parts)
    return parts if parts and are_found else [word]


def find_spans_with_words(text: str, query: str) -> list[tuple[int, int]]:
    """Returns the start and end of each of a query's words in a text, in any of their forms and in order.

    A compound is left out if only a part of it is a word of the query.
    """
    terms = list_query_terms(query)
    whole_terms = {*terms} - find_word_parts(terms)
    spans: list[tuple[int, int]] = []
    for match in islice(_WRITTEN_WORD.finditer(text), _MAX_TEXT_WORDS):
        if whole_terms.isdisjoint(list_terms(match[0])):
            continue
        written_word = _PUNCTUATION_AROUND.sub("", match[0])
        start = match.start() + match[0].find(written_word)
        # One word of "room-12" may have the term. No part of "1,204" has it, which is one term as a whole.
        word_spans = [
            (begin, end)
            for begin, end in find_word_spans(written_word)
            if not whole_terms.isdisjoint(list_terms(written_word[begin:end])[:1])
        ]
        spans += [
            (start + begin, start + end) for begin, end in sorted(word_spans) or [(0, len(written_word))]
        ]
    return _join_spans(spans)


def _join_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns spans, in the order of their starts. Spans that overlap are joined."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start < joined[-1][1]:
            earlier_start, earlier_end = joined.pop()
            start = earlier_start
            end = max(end, earlier_end)
        joined.append((start, end))
    return joined


def cut_around_words(text: str, query: str, chars: int) -> str:
    """Returns the part of a text around the first of a query's words; "…" stands for the text that is left out."""
    if len(text) <= chars:
        return text
    hit = _locate_first_word(text, query)
    start = max(0, min(hit - chars // 3, len(text) - chars))
    if start:
        start = text.find(" ", start, hit) + 1 or start
    end = start + chars
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _locate_first_word(text: str, query: str) -> int:
    """Returns the start of the first of a query's words in a text of any length; 0: the text has none of them."""
    terms = {*list_query_terms(query)}
    for start, piece in _split_pieces(text):
        if not terms.isdisjoint(list_distinct_terms(piece)) and (
            spans := find_spans_with_words(piece, query)
        ):
            return start + spans[0][0]
    return 0


def has_whole_words(line: str, text: str) -> bool:
    """Returns whether a line has a text as whole words: "teacher" does not have "tea"."""
    letter = SPACED_LETTER.pattern
    word_start = f"(?<!{letter})" if SPACED_LETTER.match(text[0]) else ""
    word_end = f"(?!{letter})" if SPACED_LETTER.match(text[-1]) else ""
    return text in line and re.search(f"{word_start}{re.escape(text)}{word_end}", line) is not None
