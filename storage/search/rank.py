"""Ranking the packed search index (storage/search/blob.py): BM25 over one agent's messages alone, and their vectors.

Pure: bytes and values in, numbers out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice

from msgspec.structs import replace

from storage.fusion import interleave
from storage.records import Near
from storage.search import common_words
from storage.search.blob import CHUNK, hash_terms
from storage.search.common_words import COMMON_SHARE, least_common, shares_in_general
from storage.search.document import ASKS, SLIGHT, USER
from storage.search.index import Index
from storage.search.layout import IndexLayout
from storage.search.occurrences import Occurrences, find_names, find_occurrences
from storage.search.scores import Scores
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail
from storage.search.term_weights import QueryTerms
from storage.search.tokens import split_words, terms_of_word
from storage.search_trace import HitScores, SearchTrace

# The most distinct words of a query that are looked up, and the characters of the query in which words are found:
# callers may send a book, whose words would be split for each memory that is searched.
_QUERY_WORDS, _QUERY_CHARS = 256, 10_000

# Not after a number, as in a list. It begins with the signs, for which `re` looks quickly.
_SENTENCE_END = re.compile(r"[.!?؟।。！？\n](?:(?<=[。！？\n])|(?<!\d.)\s)")
# Thai has a space between sentences, not between words.
_THAI_SPACE = re.compile(r" (?<=[\u0e00-\u0e7f] )(?=[\u0e00-\u0e7f])")

# Terms that are looked up in segments, where each takes some reading: twice as many as most questions have words.
_SEGMENT_TERMS = 32

# The most messages that are returned, and read at once.
MAX_HITS = 96
# Tokens for each term of a message (the index has no function words); and the most terms of it that are shown.
_TOKENS_OF_TERM = 2.4
_STATED_TERMS = 32
_TOKENS_BY_TERMS = [terms * _TOKENS_OF_TERM for terms in range(_STATED_TERMS)]
_MAX_TOKENS = _STATED_TERMS * _TOKENS_OF_TERM

# A second look: so many of the first hits give names and numbers, and so many hits of the first look stay in front.
# Measured: 88.2 and 88.7% of LongMemEval's evidence (1,000 tokens, index and note alone); of questions of two steps in
# short talk 65 and 85%.
_SECOND_LOOK = 3
_SURE = 10
# An index larger than this is looked at once, since a second look takes nearly as long: 4,000 long messages.
_LOOKED_AGAIN_BYTES = 4 << 20

# The newest rows among which the most telling messages are looked for, in 0.3 ms. Chosen.
_TELLING_ROWS = 1_024


def preload() -> None:
    """Imports numpy (0.1 s) and reads the table of common words now instead of in the first query.

    Meant for a thread while the server starts.
    """
    import numpy  # noqa: F401

    common_words.preload()


def rank(
    index: Index,
    query: str,
    secret: bytes,
    *,
    tail: Tail | None = None,
    skip: range = range(0),
    limit: int = 50,
    room: int = 0,
    only_strong: bool = False,
    near: Near | None = None,
    trace: SearchTrace | None = None,
    postings: Postings = NO_POSTINGS,
) -> list[int]:
    """Returns the numbers of the messages that answer the query, best first.

    Two rankings, of all turns and of the user's alone, each relative to its best, are added, the second the
    more the longer the assistant's turns are: these would win most places by their mere number of words, yet
    some things only the assistant wrote.

    tail: messages that are not indexed yet; where the index has one of them too, the tail's text counts.
    skip: messages that are not wanted; those in the index count for the statistics.
    room: tokens that the messages are wanted for; where they are short, more than `limit` are returned. Such
        a search looks a second time, also for names and numbers that the first hits add: "What did my sister
        win?" shares its words with the message that names her, and not with the one that answers.
    only_strong: for a search that was not asked for. Small talk finds nothing, and without hits that hold a
        good part of the query nothing is returned. A search tool leaves it off.
    near: two more rankings, by vectors, which count the less, the more of the query the words hold; messages
        without a vector have the others alone. (Without the ranking of the user's turns 3 points were lost at
        1,000 tokens.)
    trace: is filled.
    postings: what the segments of the index have of the terms (`hashes_of`).
    """
    query_terms = _terms_of(query)
    if not query_terms.terms or (only_strong and _are_common(query_terms)):
        return []
    layout = index.layout_with(tail or Tail(), skip)
    if index.blob_bytes:
        query_terms = replace(query_terms, hashes=[*hash_terms(query_terms.terms, secret).values()])
    occurrences = find_occurrences(index, layout, query_terms, postings)
    if not layout.end or (not occurrences.count and near is None):
        return []
    scores = Scores(layout, near)
    scores.add(occurrences)
    best = partial(scores.best, layout.rows_of(skip), only_strong=only_strong)
    rows = best(max(limit, MAX_HITS) if room else limit)
    if room and (names := _second_look(index, layout, rows, scores, query_terms, secret)) is not None:
        scores.add(names)
        rows = _mix(rows, best(MAX_HITS))
    if len(rows) > limit:
        rows = _fill(rows, layout, limit, room)
    seqs = _numbers(rows, layout.chunks)
    if trace is not None:
        trace.hit_seqs, trace.has_meaning = seqs, near is not None
        trace.scores = scores.scores_of(rows)
        trace.weak_hits = partial(_weak_hits, scores, layout.chunks)
    return seqs


def _second_look(
    index: Index, layout: IndexLayout, rows: Sequence[int], scores: Scores, query: QueryTerms, secret: bytes
) -> Occurrences | None:
    """Returns where the names and numbers in the first hits are, or None if a second look is not worth its time.

    rows: the hits of the first look, best first. Names are taken from hits that have words of the query themselves: a
        hit that only stands next to such a message may be about something else.
    """
    # A second look has nothing to add where the first one has found all that there is.
    is_all = len(rows) == layout.lengths.count <= _SURE
    if is_all or index.blob_bytes > _LOOKED_AGAIN_BYTES:
        return None
    return find_names(index, layout, scores.with_own_words(rows[:_SECOND_LOOK]), query, secret)


def hashes_of(query: str, secret: bytes, *, only_strong: bool = False) -> list[int]:
    """Returns the hashes of the terms of a query that are looked up in segments: the terms that people use least.

    only_strong: as for `rank`, which finds nothing by common words alone.
    """
    query_terms = _terms_of(query)
    if only_strong and _are_common(query_terms):
        return []
    rarest = sorted(zip(query_terms.shares, query_terms.terms, strict=True))[:_SEGMENT_TERMS]
    return [*hash_terms([term for _, term in rarest], secret).values()]


def _terms_of(query: str) -> QueryTerms:
    """Returns the terms of a query that are looked up, without their hashes."""
    words, sentences = list[str](), dict[str, int]()
    for number, sentence in enumerate(_SENTENCE_END.split(_THAI_SPACE.sub("\n", query[:_QUERY_CHARS]))):
        of_sentence = split_words(sentence)
        words += of_sentence
        for term in chain.from_iterable(map(terms_of_word, of_sentence)):
            sentences.setdefault(term, number)
    sentences = dict(islice(sentences.items(), _QUERY_WORDS))
    return QueryTerms([*sentences], shares_in_general(words, [*sentences]), [*sentences.values()])


def _are_common(query: QueryTerms) -> bool:
    """Returns whether more than half of people's messages have even the rarest of the terms, as in small talk."""
    return least_common(query.terms, query.shares) > COMMON_SHARE


def _weak_hits(scores: Scores, chunks: Sequence[int], limit: int) -> list[tuple[int, HitScores]]:
    """Returns what `SearchTrace.weak_hits` does.

    chunks: of the layout as they were when it was ranked, since the layout changes in place.
    """
    rows, columns = scores.left_out(limit)
    return list(zip(_numbers(rows, chunks), zip(*columns, strict=True), strict=True))


def find_most_telling(
    index: Index, *, tail: Tail | None = None, skip: range = range(0), limit: int = 50
) -> list[int]:
    """Returns the numbers of the messages that show most of a memory as a whole, best first.

    Of each conversation, the newest first, the user's message with most terms in its head; then the next of each, and
    so on. A fact is a conversation of its own. Questions come last, but for one that the newest conversation has
    nothing better than; small talk does not come at all. tail, skip: as for `rank`.

    Measured within 250 tokens: of what LongMemEval's users state about themselves 39% of the lines, of the facts in
    short talk 14%; the newest messages are 8 and 5%, any messages 15 and 7%. Weighing the head's terms by how rare they
    are finds as much (38 and 17%), counting its names less (35 and 9%).
    """
    layout = index.layout_with(tail or Tail(), skip)
    unwanted = layout.rows_of(skip)
    stated, asked = _groups(layout, range(max(layout.end - _TELLING_ROWS, 0), layout.end), unwanted, {})
    newest = max(chain(stated, asked), default=-1)
    leads = asked.get(newest, ())[:1] if newest not in stated else ()
    ranked = dict.fromkeys(chain(leads, _newest_in_turn(stated), _newest_in_turn(asked)))
    return _numbers([*ranked][:limit], layout.chunks)


def find_around(
    index: Index,
    seq: int,
    *,
    before: bool = False,
    tail: Tail | None = None,
    skip: range = range(0),
    limit: int = 10,
) -> list[int]:
    """Returns the numbers of what the user stated after a message, or before it: the nearest conversation first.

    Of each conversation the message with most terms in its head, then the next of each; of the message's own
    conversation the nearest. tail, skip: as for `rank`.
    """
    layout = index.layout_with(tail or Tail(), skip)
    first = layout.rows_of(range(seq, seq + 1))
    if not first or first.start >= layout.end:
        return []
    row = first.start
    # The message's own conversation is known by the message.
    of_own = {layout.earlier[row]: row} if before and layout.earlier[row] >= 0 else {}
    rows = (
        range(max(row - _TELLING_ROWS, 0), row)
        if before
        else range(row + 1, min(row + 1 + _TELLING_ROWS, layout.end))
    )
    groups, _ = _groups(layout, rows, layout.rows_of(skip), of_own)
    own = row if before else of_own.get(row)
    if own in groups:
        groups[own].sort(reverse=before)
    nearest = sorted(groups.values(), key=(lambda each: -max(each)) if before else min)
    return _numbers(interleave(nearest)[:limit], layout.chunks)


def _groups(
    layout: IndexLayout, rows: range, unwanted: range, newest_of: dict[int, int]
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Returns the user's messages among some rows by conversation, which its newest row stands for: statements, and
    questions. Of each the one with most terms in its head comes first; small talk does not come at all.

    newest_of: by row before these, the newest one of its conversation; is filled.
    """
    head, flags, earlier = layout.head, layout.flags, layout.earlier
    stated, asked = dict[int, list[int]](), dict[int, list[int]]()
    for row in reversed(rows):
        newest = newest_of.pop(row, row)
        if (before := earlier[row]) >= 0:
            newest_of.setdefault(before, newest)
        flag = flags[row]
        if flag & USER and not flag & SLIGHT and row not in unwanted:
            (asked if flag & ASKS else stated).setdefault(newest, []).append(row)
    for group in chain(stated.values(), asked.values()):
        group.sort(key=lambda row: (-head[row], row))
    return stated, asked


def _newest_in_turn(groups: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns the first row of each group, of the newest group first, then the second of each, and so on."""
    return interleave([groups[number] for number in sorted(groups, reverse=True)])


def _numbers(rows: Iterable[int], chunks: Sequence[int]) -> list[int]:
    return [chunks[row // CHUNK] * CHUNK + row % CHUNK for row in rows]


def _mix(first: list[int], second: list[int]) -> list[int]:
    """Returns the rows of both looks: the best of the first, then one of each in turn."""
    if len(first) <= _SURE:  # so it is in two of three turns, which are spared the rest
        return list(dict.fromkeys(first + second))[:MAX_HITS]
    return list(dict.fromkeys(first[:_SURE] + interleave((first[_SURE:], second))))[:MAX_HITS]


def _fill(ranked: list[int], layout: IndexLayout, limit: int, room: int) -> list[int]:
    """Returns the first `limit` rows, and of those after them as many as the room has place for."""
    filled, lengths = 0.0, layout.length
    for place, row in enumerate(ranked):
        if place >= limit and filled >= room:
            return ranked[:place]
        length = lengths[row]
        filled += _TOKENS_BY_TERMS[length] if length < _STATED_TERMS else _MAX_TOKENS
    return ranked
