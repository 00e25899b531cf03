"""Finding every message that has all words of a query, the newest first. No message that has them is missed.

Pure: values in, numbers out. Some messages that the index names do not have the words: the index also has the words of
dates and of speakers, and two words may share a hash. So callers check the texts of the messages (`has_terms`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from storage.search.blob import CHUNK, hash_terms
from storage.search.document import PRESENT, ROW_SHIFT, list_distinct_terms
from storage.search.index import LOW_HALF, Index
from storage.search.layout import IndexLayout
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail
from storage.search.tokens import find_word_parts, find_word_spans, is_unspaced, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The first words of a query that are looked for, and the first characters of it in which they lie.
_MAX_TERMS = 64
_MAX_CHARS = 10_000
# A text of so many characters has no more terms than the index takes of a text.
_PIECE_CHARS = 8_000
_WRITTEN_WORD = re.compile(r"\S+")
_PUNCTUATION_AROUND = re.compile(r"^\W+|\W+$")
# The first written words of a text, and those of a query (which may have many function words), that are compared.
_MAX_TEXT_WORDS = 5_000
_MAX_QUERY_WORDS = 10 * _MAX_TERMS


def list_query_terms(query: str) -> list[str]:
    """Returns the terms that a text must have, each once. Function words are left out."""
    return [*islice(dict.fromkeys(words_of(query[:_MAX_CHARS])), _MAX_TERMS)]


def has_terms(text: str, terms: Collection[str]) -> bool:
    """Returns whether a text has all of these terms, as the index counts them."""
    return list_distinct_terms(text).issuperset(terms)


def has_terms_anywhere(text: str, terms: Collection[str]) -> bool:
    """Returns whether a text of any length has all of these terms. The index has only the first of a long text."""
    missing = {*terms}
    start = 0
    while missing and start < len(text):
        end = start + _PIECE_CHARS
        if end < len(text):  # only a word as long as a piece is cut
            end = text.rfind(" ", start + 1, end) + 1 or end
        missing -= list_distinct_terms(text[start:end])
        start = end
    return not missing


def list_written_words(text: str, without: str = "") -> list[str]:
    """Returns the words of a text that a search looks for, as they are written in it, each once.

    without: a text with the words to leave out, in all their forms.
    """
    seen_terms = {*words_of(without)}
    words: list[str] = []
    for match in islice(_WRITTEN_WORD.finditer(text[:_MAX_CHARS]), _MAX_QUERY_WORDS):
        terms = words_of(match[0])
        if not seen_terms.issuperset(terms):
            words.append(_PUNCTUATION_AROUND.sub("", match[0]))
            seen_terms.update(terms)
    return words[:_MAX_TERMS]


def lost_words(text: str, later: str) -> list[str]:
    """Returns the words of a text that a later text has not, as `list_written_words`.

    In a script without spaces a whole sentence is one written word: of it the characters that the later text lacks.
    """
    words = list_written_words(text, later)
    if later.isascii() or text.isascii():
        return words
    terms = {*words_of(later)}
    return [*dict.fromkeys(chain.from_iterable(_list_parts_without(word, terms) for word in words))][
        :_MAX_TERMS
    ]


def _list_parts_without(word: str, terms: set[str]) -> list[str]:
    """Returns the parts of a word of which some terms have no pair; the whole word if no search finds the parts."""
    own_terms = {*words_of(word)}
    if not any(map(is_unspaced, own_terms)):
        return [word]
    rest = list(word)
    for start, end in find_word_spans(word):
        if end - start > 1 and terms.issuperset(words_of(word[start:end])[:1]):
            rest[start:end] = " " * (end - start)
    parts = [_PUNCTUATION_AROUND.sub("", part) for part in "".join(rest).split()]
    parts = [part for part in parts if part]
    are_found = all(own_terms.issuperset(words_of(part)) for part in parts)
    return parts if parts and are_found else [word]


def find_spans(text: str, terms: Collection[str]) -> list[tuple[int, int]]:
    """Returns the start and end of each word of a text that has one of these terms, in order.

    A compound is left out if only a part of it has a term.
    """
    whole_terms = {*terms} - find_word_parts(terms)
    spans: list[tuple[int, int]] = []
    for match in islice(_WRITTEN_WORD.finditer(text), _MAX_TEXT_WORDS):
        if whole_terms.isdisjoint(words_of(match[0])):
            continue
        written = _PUNCTUATION_AROUND.sub("", match[0])
        start = match.start() + match[0].find(written)
        # One word of "room-12" may have the term. No part of "1,204" has it, which is one term as a whole.
        words = [
            (first, end)
            for first, end in find_word_spans(written)
            if not whole_terms.isdisjoint(words_of(written[first:end])[:1])
        ]
        spans += [(start + first, start + end) for first, end in sorted(words) or [(0, len(written))]]
    return _join_spans(spans)


def _join_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns spans, in the order of their starts. Spans that overlap are joined."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start < joined[-1][1]:
            start, end = joined[-1][0], max(end, joined.pop()[1])
        joined.append((start, end))
    return joined


def find_containing(
    index: Index,
    terms: Sequence[str],
    secret: bytes,
    *,
    tail: Tail,
    before: int,
    limit: int,
    postings: Iterable[tuple[int, Postings]] = ((0, NO_POSTINGS),),
) -> list[int]:
    """Returns the numbers of the messages that have all terms, as far as the index knows, the newest first.

    terms: at least one.
    tail: messages that are not indexed yet; where the index has one of them too, the tail's text counts.
    before: only messages with lower numbers are looked for.
    postings: the terms in the segments of the index, as `Buckets.newest_first` yields them; only as many are taken as
        are needed. A term that was not read there is passed over, so that messages without it may be returned.
    """
    layout = index.make_layout(tail, range(0))
    end = min(layout.make_row_range(range(before)).stop, layout.end)
    rows = {row for row in _find_rows_in_tail(layout, tail, terms) if row < end}
    if index.blob_bytes:
        hashes = [*hash_terms(terms, secret).values()]
        stop = end
        for first_chunk, segment_postings in postings:
            start = layout.make_row_range(range(first_chunk * CHUNK)).stop
            if start < stop:
                read = segment_postings.read
                read_hashes = [term_hash for term_hash in hashes if not index.segments or term_hash in read]
                within = range(start, stop)
                segment_rows = _find_rows_in_index(index, layout, read_hashes, segment_postings, within)
                rows.update(segment_rows[-limit:].tolist())
                stop = start
            if sum(row >= stop for row in rows) >= limit:
                break
    newest = sorted(rows, reverse=True)[:limit]
    return [layout.chunks[row // CHUNK] * CHUNK + row % CHUNK for row in newest]


def _find_rows_in_tail(layout: IndexLayout, tail: Tail, terms: Sequence[str]) -> set[int]:
    """Returns the rows of the tail's messages that have all terms."""
    indices_by_term = [{hit >> ROW_SHIFT for hit in tail.terms.get(term, ())} for term in terms]
    return {layout.tail_rows[index_in_tail] for index_in_tail in set.intersection(*indices_by_term)}


def _find_rows_in_index(
    index: Index, layout: IndexLayout, hashes: Sequence[int], postings: Postings, within: range
) -> NDArray[np.int64]:
    """Returns those of a range of rows that have all terms and are the index's own documents, in order."""
    import numpy as np

    first = within.start
    has_all = (np.asarray(layout.flags)[first : within.stop] & PRESENT) > 0
    has_all[[row - first for row in layout.replaced if row in within]] = False
    for occurrences in index.occurrences(hashes, postings):
        rows = (occurrences & LOW_HALF) >> ROW_SHIFT
        has_term = np.zeros(len(has_all), bool)
        has_term[rows[(rows >= first) & (rows < within.stop)] - first] = True
        has_all &= has_term
    return has_all.nonzero()[0] + first


def around_words(text: str, terms: Collection[str], chars: int) -> str:
    """Returns the part of a text around the first word that has one of these terms; "…" stands for what is left out."""
    if len(text) <= chars:
        return text
    terms = {*terms}
    words = islice(_WRITTEN_WORD.finditer(text), _MAX_TEXT_WORDS)
    hit = next((word.start() for word in words if not terms.isdisjoint(words_of(word[0]))), 0)
    start = max(0, min(hit - chars // 3, len(text) - chars))
    if start:
        start = text.find(" ", start, hit) + 1 or start
    end = start + chars
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
