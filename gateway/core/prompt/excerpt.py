"""The excerpt of a message for a note: the sentences with words of the query, and the sentences next to them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from gateway.core.words import QUESTION_MARKS, list_folded_words

# The most words of a query by which an excerpt is chosen. Not measured: it bounds the time for a long query; a question
# has fewer.
_MAX_KEYS = 64
# A short word counts if it stands in at most one of so many pieces: "the" and "was" stand in more. Not measured: with
# fewer pieces such words count, with more a name that is often repeated does not.
_PIECES_PER_SHORT_WORD = 10
# A longer word is cut where a text ends with it. Not measured: an excerpt is at most so much shorter than its room.
_MAX_WORD_CHARS = 30
# A longer sentence is taken in parts. Chosen, not measured: most sentences are shorter.
_PIECE_CHARS = 120
# The share of a sentence's score that the sentences next to it get. Measured: 0, 0.25 and 0.5 find as much.
_NEIGHBOUR_SHARE = 0.25
# A match begins with the sign, which `re` finds quickly. To look back from each character takes 30 times as long.
_SENTENCE_END = re.compile(r"[.!?…。！？](?:(?<=[.!?…])\s+|(?<=[。！？]))")
# The first character of the scripts of Chinese, Japanese and Korean, and of those after them.
UNSPACED_FROM = "\u2e80"
# Runs of characters with and without spaces between words.
_RUNS = re.compile(rf"[^\s{UNSPACED_FROM}-\U0010ffff]+|[{UNSPACED_FROM}-\U0010ffff]+")
# The mark where a text was cut. In ASCII, since one other character makes a note take twice the memory and more.
CUT = "..."


class Excerpt(NamedTuple):
    """A part of a message."""

    # The sentences.
    text: str
    # The mark after the text: a space and `CUT` if the message goes on, else "".
    end_mark: str


class _Span(NamedTuple):
    """A piece of a text, a sentence or a part of one, by its offsets (end excluded)."""

    # The offset of the first character.
    start: int
    # The offset after the last character.
    end: int


@lru_cache(maxsize=1)  # each candidate of a recall asks for the keys of the same query
def list_query_keys(query: str) -> Sequence[str]:
    """Returns the query's words without their endings, enough to see where in a text they stand.

    In a script without spaces, and in one with particles at its words (Korean), pairs of characters stand for words, as
    in the search index.
    """
    keys: dict[str, None] = {}
    for run in _RUNS.findall(" ".join(list_folded_words(query))):
        if run[0] >= UNSPACED_FROM:
            keys |= dict.fromkeys(map("".join, pairwise(run)) if len(run) > 1 else run)
        elif len(run) > 3 or not run.isascii():
            keys[run[:-2] if len(run) > 6 else run[:4]] = None
    return [*keys][:_MAX_KEYS]


@lru_cache(maxsize=1)
def list_short_words(query: str) -> Sequence[str]:
    """Returns the words of a query that are too short to be keys: "Rex", "cat" and "87", but also "the"."""
    words = dict.fromkeys(list_folded_words(query))
    return [w for w in words if w.isascii() and (len(w) == 3 or (len(w) < 3 and w.isdigit()))][:_MAX_KEYS]


def make_excerpt(
    text: str,
    keys: Sequence[str],
    max_chars: int,
    *,
    short_keys: Sequence[str] = (),
    shows_neighbours: bool = True,
) -> Excerpt:
    """Returns the sentences of a text that have most of the query's words, and the sentences next to these.

    From a text without such a word, the sentences that are no questions are returned, or else its beginning.

    text: a text on one line.
    keys: the keys of the query, from `list_query_keys`.
    max_chars: the most characters of the text. The signs where sentences are left out come on top.
    short_keys: the short words of the query, from `list_short_words`. A short word counts if few sentences have it.
    shows_neighbours: True if sentences without a word of the query are shown, too, if they stand next to one that has
        such a word.
    """
    lower_text = text.lower()
    pieces = _find_pieces(text, lower_text)
    scores = _score_pieces([lower_text[start:end] for start, end in pieces], keys, short_keys)
    if not any(scores):
        # A message without a word of the query was found because of other messages. Its statements are more useful than
        # its questions.
        shows_neighbours = False
        statement_scores = [float(text[end - 1] not in QUESTION_MARKS) for _, end in pieces]
        if not all(statement_scores):
            scores = statement_scores
    if not any(scores):
        return _cut_beginning(text, max_chars)
    if shows_neighbours:
        # A sentence may be about the sentence next to it.
        padded_scores = [*scores[:1], *scores, *scores[-1:]]
        scores = [
            score + _NEIGHBOUR_SHARE * (padded_scores[index] + padded_scores[index + 2])
            for index, score in enumerate(scores)
        ]
    chosen_indices = _choose_best(pieces, scores, max_chars)
    return _join(text, pieces, chosen_indices) if chosen_indices else _cut_beginning(text, max_chars)


def choose_best_sentence(text: str, keys: Sequence[str]) -> str:
    """Returns the sentence of a text that has most of the query's words; "": no sentence has a word of the query.

    text: a text on one line.
    keys: the keys of the query, from `list_query_keys`.
    """
    lower_text = text.lower()
    pieces = _find_pieces(text, lower_text)
    counts = [sum(key in lower_text[start:end] for key in keys) for start, end in pieces]
    max_count = max(counts, default=0)
    return text[slice(*pieces[counts.index(max_count)])] if max_count else ""


def _cut_beginning(text: str, max_chars: int) -> Excerpt:
    """Returns the first `max_chars` characters of a text, or a few less to end with a whole word."""
    end = text.rfind(" ", max(max_chars - _MAX_WORD_CHARS, 0), max_chars)
    return Excerpt(text[: end if end > 0 else max_chars].strip(), f" {CUT}")


def _find_pieces(text: str, lower_text: str) -> list[_Span]:
    """Returns the sentences of a text; the whole text as one, if offsets in its lower-case form differ."""
    return _split_sentences(text) if len(lower_text) == len(text) else [_Span(0, len(text))]


def _split_sentences(text: str) -> list[_Span]:
    """Returns the sentences of a text. A sentence that is too long is several pieces."""
    pieces: list[_Span] = []
    start = 0
    for end, next_start in [
        *((match.start() + 1, match.end()) for match in _SENTENCE_END.finditer(text)),
        (len(text), len(text)),
    ]:
        while end - start > _PIECE_CHARS:
            space = text.rfind(" ", start + _PIECE_CHARS // 2, start + _PIECE_CHARS)
            space = space if space > 0 else start + _PIECE_CHARS
            pieces.append(_Span(start, space))
            start = space + 1 if text[space] == " " else space
        if start < end:
            pieces.append(_Span(start, end))
        start = next_start
    return pieces


def _score_pieces(pieces: Sequence[str], keys: Sequence[str], short_keys: Sequence[str]) -> list[float]:
    """Returns a score of each piece by its keys. A key that few pieces have counts more.

    keys: the keys of the query, from `list_query_keys`.
    short_keys: the short words of the query, from `list_short_words`.
    """
    scores = [0.0] * len(pieces)
    for number, key in enumerate((*keys, *short_keys)):
        indices = [index for index, piece in enumerate(pieces) if key in piece]
        if number >= len(keys) and len(indices) > max(1, len(pieces) // _PIECES_PER_SHORT_WORD):
            continue
        for index in indices:
            scores[index] += 1 / math.sqrt(len(indices))
    return scores


def _choose_best(pieces: Sequence[_Span], scores: Sequence[float], max_chars: int) -> list[int]:
    """Returns the indices of the best pieces that have room together, in the order of the text."""
    chosen_indices: list[int] = []
    room = max_chars
    for index in sorted(range(len(pieces)), key=lambda each: (-scores[each], each)):
        start, end = pieces[index]
        if not scores[index] or end - start > room:
            break
        chosen_indices.append(index)
        room -= end - start
    return sorted(chosen_indices)


def _join(text: str, pieces: Sequence[_Span], indices: Sequence[int]) -> Excerpt:
    """Returns some pieces of a text as one text. indices: the indices of the pieces."""
    parts = [f"{CUT} "] if indices[0] else []
    for index, next_index in zip(indices, (*indices[1:], None), strict=True):
        start, end = pieces[index]
        if next_index == index + 1:
            end = pieces[next_index][0]
        parts.append(text[start:end])
        if next_index is not None and next_index > index + 1:
            parts.append(f" {CUT} ")
    is_to_end = indices[-1] == len(pieces) - 1
    return Excerpt("".join(parts), "" if is_to_end else f" {CUT}")
