"""The excerpt of a message for a note: the sentences that have the words of the query, and those next to them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from gateway.core.words import folded_words

# The most words of a query that an excerpt is chosen by.
_MAX_KEYS = 64
# A short word counts that stands in one sentence of so many: "the" and "was" stand in more. No measurement.
_FEW = 10
# A longer sentence is taken in parts. No measurement: most sentences are shorter.
_PIECE_CHARS = 120
# How much a sentence's words count for those next to it. With 0, 0.25 and 0.5 as much is found.
_NEIGHBOUR_SHARE = 0.25
# A match begins with the sign, for which `re` looks quickly; to look back from each character takes 30 times as long.
_SENTENCE_END = re.compile(r"[.!?…。！？](?:(?<=[.!?…])\s+|(?<=[。！？]))")
# The first character of the scripts of Chinese, Japanese and Korean, and of those after them.
UNSPACED_FROM = "\u2e80"
_RUNS = re.compile(rf"[^\s{UNSPACED_FROM}-\U0010ffff]+|[{UNSPACED_FROM}-\U0010ffff]+")
_QUESTION_MARKS = frozenset("?？؟")
# Where a text was cut. In ASCII, since one other character makes a note take twice the memory and more.
CUT = "..."


@lru_cache(maxsize=1)  # of one query they are asked for by each candidate
def query_keys(query: str) -> Sequence[str]:
    """Returns the query's words without their endings, enough to see where in a text they stand.

    Where a script has no spaces, or words carry particles (Korean), pairs of characters stand for words, as in the
    search index.
    """
    keys: dict[str, None] = {}
    for run in _RUNS.findall(" ".join(folded_words(query))):
        if run[0] >= UNSPACED_FROM:
            keys |= dict.fromkeys(map("".join, pairwise(run)) if len(run) > 1 else run)
        elif len(run) > 3 or not run.isascii():
            keys[run[:-2] if len(run) > 6 else run[:4]] = None
    return [*keys][:_MAX_KEYS]


@lru_cache(maxsize=1)
def short_words(query: str) -> Sequence[str]:
    """Returns the words of a query that are no keys of it for their length: "Rex", "cat" and "87", but also "the"."""
    words = dict.fromkeys(folded_words(query))
    return [w for w in words if w.isascii() and (len(w) == 3 or (len(w) < 3 and w.isdigit()))][:_MAX_KEYS]


def make_excerpt(
    text: str,
    keys: Sequence[str],
    limit: int,
    *,
    short: Sequence[str] = (),
    has_neighbours: bool = True,
) -> tuple[str, str]:
    """Returns the sentences of a text that have most of the query's words, and those next to them.

    Of a text without any such word it returns the sentences that are no questions, or else the beginning.

    text: on one line.
    keys: as `query_keys` returns them.
    short: as `short_words` returns them. They count where few sentences have them.
    has_neighbours: sentences without a word of the query are shown where they stand next to one that has some.

    Returns at most `limit` characters of the text with signs where sentences are left out, which come on top, and the
    sign that goes after them.
    """
    low = text.lower()
    pieces = _split(text) if len(low) == len(text) else [(0, len(text))]
    scores = _score_pieces([low[start:end] for start, end in pieces], keys, short)
    if not any(scores):
        # A message without a word of the query was found for its neighbours. What it states is more use than what it
        # asks.
        states = [float(text[end - 1] not in _QUESTION_MARKS) for _, end in pieces]
        scores, has_neighbours = scores if all(states) else states, False
    if not any(scores):
        return _beginning(text, limit)
    if has_neighbours:
        # What stands next to a sentence may be what it is about.
        around = [*scores[:1], *scores, *scores[-1:]]
        scores = [
            score + _NEIGHBOUR_SHARE * (around[index] + around[index + 2])
            for index, score in enumerate(scores)
        ]
    taken = _take_best(pieces, scores, limit)
    return _join(text, pieces, taken) if taken else _beginning(text, limit)


def best_sentence(text: str, keys: Sequence[str]) -> str:
    """Returns the sentence of a text that has most of the query's words; "": none has any.

    text, keys: as for `make_excerpt`.
    """
    low = text.lower()
    pieces = _split(text) if len(low) == len(text) else [(0, len(text))]
    counts = [sum(key in low[start:end] for key in keys) for start, end in pieces]
    most = max(counts, default=0)
    return text[slice(*pieces[counts.index(most)])] if most else ""


def _beginning(text: str, limit: int) -> tuple[str, str]:
    end = text.rfind(" ", max(limit - 30, 0), limit)
    return text[: end if end > 0 else limit].strip(), f" {CUT}"


def _split(text: str) -> list[tuple[int, int]]:
    """Returns where the sentences of a text begin and end; parts of those that are too long."""
    found, start = list[tuple[int, int]](), 0
    for end, following in [
        *((m.start() + 1, m.end()) for m in _SENTENCE_END.finditer(text)),
        (len(text), len(text)),
    ]:
        while end - start > _PIECE_CHARS:
            space = text.rfind(" ", start + _PIECE_CHARS // 2, start + _PIECE_CHARS)
            space = space if space > 0 else start + _PIECE_CHARS
            found.append((start, space))
            start = space + 1 if text[space] == " " else space
        if start < end:
            found.append((start, end))
        start = following
    return found


def _score_pieces(pieces: Sequence[str], keys: Sequence[str], short: Sequence[str]) -> list[float]:
    """Returns for each piece how much of a query's keys it has; a key in few pieces counts more.

    short: as for `make_excerpt`.
    """
    scores = [0.0] * len(pieces)
    for number, key in enumerate((*keys, *short)):
        having = [index for index, piece in enumerate(pieces) if key in piece]
        if number >= len(keys) and len(having) > max(1, len(pieces) // _FEW):
            continue
        for index in having:
            scores[index] += 1 / math.sqrt(len(having))
    return scores


def _take_best(pieces: Sequence[tuple[int, int]], scores: Sequence[float], limit: int) -> list[int]:
    """Returns the indexes of the best pieces that have room together, in the order of the text."""
    taken, room = list[int](), limit
    for index in sorted(range(len(pieces)), key=lambda each: (-scores[each], each)):
        start, end = pieces[index]
        if not scores[index] or end - start > room:
            break
        taken.append(index)
        room -= end - start
    return sorted(taken)


def _join(text: str, pieces: Sequence[tuple[int, int]], taken: Sequence[int]) -> tuple[str, str]:
    """Returns the taken pieces of a text as one, as `make_excerpt` does."""
    parts = [f"{CUT} "] if taken[0] else []
    for index, following in zip(taken, (*taken[1:], None), strict=True):
        start, end = pieces[index]
        if following == index + 1:
            end = pieces[following][0]
        parts.append(text[start:end])
        if following is not None and following > index + 1:
            parts.append(f" {CUT} ")
    return "".join(parts), "" if taken[-1] == len(pieces) - 1 else f" {CUT}"
