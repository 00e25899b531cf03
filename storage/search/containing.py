"""Finding every message that has all words of a query, the newest first; where it finds none, there is none.

Pure: values in, numbers out. The index may say too much, since it has the words of dates and of speakers as well, and
two words may share a hash. So callers check what it names against the text (`has_terms`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from storage.search.blob import CHUNK, hash_terms
from storage.search.document import PRESENT, ROW_SHIFT, Document, count_terms
from storage.search.index import LOW_HALF, Index, without_rows
from storage.search.layout import IndexLayout
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail
from storage.search.tokens import words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Only so many words of a query are looked for, the first ones, and only in its first characters.
_MAX_TERMS, _MAX_CHARS = 64, 10_000
_WRITTEN_WORD = re.compile(r"\S+")
_PUNCTUATION_AROUND = re.compile(r"^\W+|\W+$")
# The written words of a text among which one with a term is looked for. In a query there may be many function words.
_MAX_TEXT_WORDS, _MAX_QUERY_WORDS = 5_000, 10 * _MAX_TERMS


def terms_of_query(query: str) -> list[str]:
    """Returns the terms that a text must have, each once. Function words are none."""
    return [*islice(dict.fromkeys(words_of(query[:_MAX_CHARS])), _MAX_TERMS)]


def has_terms(text: str, terms: Collection[str]) -> bool:
    """Returns whether a text has all of these terms, as the index counts them."""
    return count_terms(Document(0, "user", text, math.nan)).terms.keys() >= {*terms}


def written_words(text: str, without: str = "") -> list[str]:
    """Returns the words of a text that a search looks for, as they are written in it, each once.

    without: a text whose words are left out, in all their forms.
    """
    seen_terms = {*words_of(without)}
    words = list[str]()
    for match in islice(_WRITTEN_WORD.finditer(text[:_MAX_CHARS]), _MAX_QUERY_WORDS):
        terms = words_of(match[0])
        if not seen_terms.issuperset(terms):
            words.append(_PUNCTUATION_AROUND.sub("", match[0]))
            seen_terms.update(terms)
    return words[:_MAX_TERMS]


def find_containing(
    index: Index,
    terms: Sequence[str],
    secret: bytes,
    *,
    tail: Tail,
    before: int,
    limit: int,
    postings: Postings = NO_POSTINGS,
) -> list[int]:
    """Returns the numbers of the messages that have all terms, as far as the index knows, the newest first.

    terms: at least one.
    tail: messages that are not indexed yet; where the index has one of them too, the tail's text counts.
    before: only messages with lower numbers are looked for.
    postings: what the segments of the index have of the terms. A term that was not read there is passed over, so
        that messages without it may be returned.
    """
    layout = index.layout_with(tail, range(0))
    end = min(layout.rows_of(range(before)).stop, layout.end)
    in_tail = [{hit >> ROW_SHIFT for hit in tail.terms.get(term, ())} for term in terms]
    rows = {layout.tail_rows[index_in_tail] for index_in_tail in set.intersection(*in_tail)}
    if index.blob_bytes:
        hashes = [*hash_terms(terms, secret).values()]
        if index.segments:
            hashes = [hash_ for hash_ in hashes if hash_ in postings.read]
        rows.update(_rows_in_index(index, layout, hashes, postings, end)[-limit:].tolist())
    newest = sorted((row for row in rows if row < end), reverse=True)[:limit]
    return [layout.chunks[row // CHUNK] * CHUNK + row % CHUNK for row in newest]


def _rows_in_index(
    index: Index, layout: IndexLayout, hashes: Sequence[int], postings: Postings, end: int
) -> NDArray[np.int64]:
    """Returns the rows before `end` of the index's own documents that have all terms, in order."""
    import numpy as np

    has_all = (np.asarray(layout.flags) & PRESENT) > 0
    for occurrences in without_rows(index.occurrences(hashes, postings), layout.replaced, len(layout.flags)):
        has_term = np.zeros(len(has_all), bool)
        has_term[(occurrences & LOW_HALF) >> ROW_SHIFT] = True
        has_all &= has_term
    return has_all[:end].nonzero()[0]


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
