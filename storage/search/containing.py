"""Finding every message that has all words of a query, the newest first; where it finds none, there is none.

Pure: values in, numbers out. The index may say too much, since it has the words of dates and of speakers as well, and
two words may share a hash: what it names is checked against the text (`has_terms`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from storage.search.blob import CHUNK, PRESENT, ROW_SHIFT, Document, count_terms, hash_terms
from storage.search.index import NO_HASH, Index, without_rows
from storage.search.layout import IndexLayout
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail
from storage.search.tokens import words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The words of a query that count, the first ones, and the characters in which they are looked for.
_TERMS, _CHARS = 64, 10_000
_WRITTEN = re.compile(r"\S+")
_AROUND = re.compile(r"^\W+|\W+$")


def terms_of_query(query: str) -> list[str]:
    """Returns the terms that a text must have, each once. Function words are none."""
    return [*islice(dict.fromkeys(words_of(query[:_CHARS])), _TERMS)]


def has_terms(text: str, terms: Collection[str]) -> bool:
    """Returns whether a text has all of these terms, as the index counts them."""
    return count_terms(Document(0, "user", text, math.nan)).terms.keys() >= {*terms}


def written_words(text: str, without: str = "") -> list[str]:
    """Returns the words of a text that count, as they are written in it, each once.

    without: a text whose words are left out, in all their forms.
    """
    seen = {*words_of(without)}
    found = list[str]()
    for match in islice(_WRITTEN.finditer(text[:_CHARS]), 10 * _TERMS):
        terms = words_of(match[0])
        if not seen.issuperset(terms):
            found.append(_AROUND.sub("", match[0]))
            seen.update(terms)
    return found[:_TERMS]


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

    terms: one at least.
    tail: messages that are not indexed yet; where the index has one of them too, the tail's text counts.
    before: all numbers are below this one.
    postings: as for `rank.rank`; a term that was not read of them is not looked for.
    """
    layout = index.layout_with(tail, range(0))
    end = min(layout.rows_of(range(before)).stop, layout.end)
    in_tail = [{hit >> ROW_SHIFT for hit in tail.terms.get(term, ())} for term in terms]
    rows = {layout.tail_rows[place] for place in set.intersection(*in_tail)}
    if index.blob_bytes:
        hashes = [*hash_terms(terms, secret).values()]
        if index.segments:
            hashes = [each for each in hashes if each in postings.read]
        rows.update(_rows_in_index(index, layout, hashes, postings, end)[-limit:].tolist())
    newest = sorted((row for row in rows if row < end), reverse=True)[:limit]
    return [layout.chunks[row // CHUNK] * CHUNK + row % CHUNK for row in newest]


def _rows_in_index(
    index: Index, layout: IndexLayout, hashes: Sequence[int], postings: Postings, end: int
) -> NDArray[np.int64]:
    """Returns the rows before `end` of the index's own documents that have all terms, in order."""
    import numpy as np

    has_all = (np.asarray(layout.flags) & PRESENT) > 0
    for part in without_rows(index.occurrences(hashes, postings), layout.replaced, len(layout.flags)):
        has_term = np.zeros(len(has_all), bool)
        has_term[(part & NO_HASH) >> ROW_SHIFT] = True
        has_all &= has_term
    return has_all[:end].nonzero()[0]


def around_words(text: str, terms: Collection[str], chars: int) -> str:
    """Returns the part of a text around the first word that has one of these terms; "…" stands for what is left out."""
    if len(text) <= chars:
        return text
    wanted = {*terms}
    first = next((at for at, word in _written(text) if not wanted.isdisjoint(words_of(word))), 0)
    start = max(0, min(first - chars // 3, len(text) - chars))
    if start:
        start = text.find(" ", start, first) + 1 or start
    shown = text[start : start + chars]
    return ("…" if start else "") + shown + ("…" if start + chars < len(text) else "")


def _written(text: str) -> Iterator[tuple[int, str]]:
    """Yields where the words of a text begin, with the words as they are written."""
    for match in islice(_WRITTEN.finditer(text), 5_000):
        yield match.start(), match[0]
