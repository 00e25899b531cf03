"""Ranks the messages of one agent: BM25 over its packed search index (storage/search/blob.py), and their vectors.

Without IO: bytes and values in, numbers out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from msgspec.structs import replace

from storage.fusion import interleave
from storage.records import VectorSimilarities
from storage.search import common_words
from storage.search.blob import hash_terms
from storage.search.chunk_rows import list_seqs
from storage.search.common_words import COMMON_SHARE, list_general_shares, measure_rarest_share
from storage.search.document import ASKS, SLIGHT, USER
from storage.search.index import Index
from storage.search.layout import IndexLayout
from storage.search.occurrences import Occurrences, collect_occurrences, find_names
from storage.search.scores import Scores
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail
from storage.search.term_weights import QueryTerms
from storage.search.tokens import list_terms_of_word, split_words
from storage.search_trace import HitScores, SearchTrace

# The most distinct words of a query that are looked up, and the characters of the query in which words are found:
# callers may send a book, and its words would be split for each memory that is searched.
_QUERY_WORDS = 256
_QUERY_CHARS = 10_000

# Not after a number, as in a list. It begins with the signs, for which `re` looks quickly.
_SENTENCE_END = re.compile(r"[.!?؟।。！？\n](?:(?<=[。！？\n])|(?<!\d.)\s)")
# Thai has a space between sentences, not between words.
_THAI_SPACE = re.compile(r" (?<=[\u0e00-\u0e7f] )(?=[\u0e00-\u0e7f])")

# Terms that are looked up in segments, where each takes some reading: twice as many as most questions have words.
_SEGMENT_TERMS = 32

# The most messages that are returned, and read at once.
MAX_HITS = 96
# The tokens of a message for each of its terms (the index has no function words), and its most terms that are shown.
_TOKENS_OF_TERM = 2.4
_STATED_TERMS = 32
_TOKENS_BY_TERMS = [terms * _TOKENS_OF_TERM for terms in range(_STATED_TERMS)]
_MAX_TOKENS = _STATED_TERMS * _TOKENS_OF_TERM

# The first hits that give names and numbers for a second search, and the first hits that stay before the hits of the
# second search. Measured without and with a second search: 88.2 and 88.7% of LongMemEval's evidence (1,000 tokens,
# index and note alone); of questions of two steps in short talk 65 and 85%.
_NAMING_HITS = 3
_LEADING_HITS = 10
# The largest index that is searched twice, since a second search takes nearly as long as the first: 4,000 long
# messages.
_MAX_BYTES_OF_SECOND_SEARCH = 4 << 20

# The rows among which the messages of a selection and the neighbours of a message are searched, in 0.3 ms. Other
# numbers were not measured.
_SEARCHED_ROWS = 1_024


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
    similarities: VectorSimilarities | None = None,
    trace: SearchTrace | None = None,
    postings: Postings = NO_POSTINGS,
) -> list[int]:
    """Returns the numbers of the messages that answer the query, best first.

    Two rankings are added, of all turns and of the user's alone, each relative to its best. The second one counts the
    more, the longer the assistant's turns are: these would win most places by their mere number of words, yet some
    things only the assistant wrote.

    tail: the messages that are not indexed yet; if the index has a message as well, the tail's text counts.
    skip: the numbers of messages to leave out; messages in the index count for the statistics nevertheless.
    room: the tokens that the messages may fill; if they are short, more than `limit` are returned. A search with room
        also searches a second time, for names and numbers that the first hits add: "What did my sister win?" shares its
        words with the message that names her, and not with the one that answers.
    only_strong: True for a search that no caller asked for. Small talk finds nothing, and without hits that hold a good
        part of the query nothing is returned. Search tools leave it off.
    similarities: the similarities of vectors, for two more rankings, which count the less, the more of the query the
        words hold. Messages without a vector have the rankings by words alone. (Without the ranking of the user's turns
        3 points were lost at 1,000 tokens.)
    trace: the trace that is filled; None: no trace is made.
    postings: the terms (`hash_rare_terms`) in the segments of the index.
    """
    query_terms = _choose_terms(query)
    if not query_terms.terms or (only_strong and _are_common(query_terms)):
        return []
    layout = index.make_layout(tail or Tail(), skip)
    if index.blob_bytes:
        query_terms = replace(query_terms, hashes=[*hash_terms(query_terms.terms, secret).values()])
    occurrences = collect_occurrences(index, layout, query_terms, postings)
    if not layout.end or (not occurrences.count and similarities is None):
        return []
    scores = Scores(layout, similarities)
    scores.sums.add(occurrences)
    list_best = partial(scores.list_best, layout.chunk_rows.make_range(skip), only_strong=only_strong)
    rows = list_best(max(limit, MAX_HITS) if room else limit)
    if room and (names := _find_names_in_hits(index, layout, rows, scores, query_terms, secret)) is not None:
        scores.sums.add(names)
        rows = _merge_hits(rows, list_best(MAX_HITS))
    if len(rows) > limit:
        rows = _fill_room(rows, layout, limit, room)
    seqs = list_seqs(rows, layout.chunk_rows.chunks)
    if trace is not None:
        trace.hit_seqs = seqs
        trace.has_meaning = similarities is not None
        trace.scores = scores.defer_scores(rows)
        trace.weak_hits = partial(_make_weak_hits, scores, layout.chunk_rows.chunks)
    return seqs


def _find_names_in_hits(
    index: Index, layout: IndexLayout, rows: Sequence[int], scores: Scores, query: QueryTerms, secret: bytes
) -> Occurrences | None:
    """Returns the occurrences of the names and numbers in the first hits; None: a second search is not worth its time.

    rows: the hits of the first search, best first. Names are taken from hits that have words of the query themselves: a
        hit that only stands next to such a message may be about something else.
    """
    # A second search adds nothing if the first one has found all messages.
    is_all = len(rows) == layout.lengths.count <= _LEADING_HITS
    if is_all or index.blob_bytes > _MAX_BYTES_OF_SECOND_SEARCH:
        return None
    return find_names(index, layout, scores.sums.select_with_own_words(rows[:_NAMING_HITS]), query, secret)


def hash_rare_terms(query: str, secret: bytes, *, only_strong: bool = False) -> list[int]:
    """Returns the hashes of the terms of a query that are looked up in segments: the terms that people use least.

    only_strong: True for a search that no caller asked for, which finds nothing by common words alone.
    """
    query_terms = _choose_terms(query)
    if only_strong and _are_common(query_terms):
        return []
    rarest = sorted(zip(query_terms.shares, query_terms.terms, strict=True))[:_SEGMENT_TERMS]
    return [*hash_terms([term for _, term in rarest], secret).values()]


def _choose_terms(query: str) -> QueryTerms:
    """Returns the terms of a query that are looked up, without their hashes."""
    words: list[str] = []
    sentences: dict[str, int] = {}
    for number, sentence in enumerate(_SENTENCE_END.split(_THAI_SPACE.sub("\n", query[:_QUERY_CHARS]))):
        sentence_words = split_words(sentence)
        words += sentence_words
        for term in chain.from_iterable(map(list_terms_of_word, sentence_words)):
            sentences.setdefault(term, number)
    sentences = dict(islice(sentences.items(), _QUERY_WORDS))
    return QueryTerms([*sentences], list_general_shares(words, [*sentences]), [*sentences.values()])


def _are_common(query: QueryTerms) -> bool:
    """Returns whether more than half of people's messages have even the rarest of the terms, as in small talk."""
    return measure_rarest_share(query.terms, query.shares) > COMMON_SHARE


def _make_weak_hits(scores: Scores, chunks: Sequence[int], limit: int) -> list[tuple[int, HitScores]]:
    """Returns the hits that `SearchTrace.weak_hits` returns.

    chunks: the chunks that the layout had when it was ranked, since the layout changes in place.
    """
    rows, columns = scores.list_rows_left_out(limit)
    return list(zip(list_seqs(rows, chunks), zip(*columns, strict=True), strict=True))


def select_messages(
    index: Index, *, tail: Tail | None = None, skip: range = range(0), limit: int = 50
) -> list[int]:
    """Returns the numbers of the messages that show most of a memory as a whole, best first.

    The user's message with most terms in its head comes first, of each conversation, the newest first; then the next
    message of each, and so on. A fact is a conversation of its own. Questions come last, except for one of the newest
    conversation if that has no statement. Small talk is left out.

    tail: the messages that are not indexed yet.
    skip: the numbers of messages to leave out.

    Measured within 250 tokens: of what LongMemEval's users state about themselves 39% of the lines, of the facts in
    short talk 14%; the newest messages are 8 and 5%, any messages 15 and 7%. Weighing the head's terms by how rare they
    are finds as much (38 and 17%), counting its names less (35 and 9%).
    """
    layout = index.make_layout(tail or Tail(), skip)
    skipped_rows = layout.chunk_rows.make_range(skip)
    newest_rows = range(max(layout.end - _SEARCHED_ROWS, 0), layout.end)
    statements, questions = _group_by_conversation(layout, newest_rows, skipped_rows, {})
    newest = max(chain(statements, questions), default=-1)
    leads = questions.get(newest, ())[:1] if newest not in statements else ()
    ranked = dict.fromkeys(chain(leads, _interleave_groups(statements), _interleave_groups(questions)))
    return list_seqs([*ranked][:limit], layout.chunk_rows.chunks)


def find_around(
    index: Index,
    seq: int,
    *,
    looks_back: bool = False,
    tail: Tail | None = None,
    skip: range = range(0),
    limit: int = 10,
) -> list[int]:
    """Returns the numbers of the user's statements after a message, or before it: the nearest conversation first.

    The message with most terms in its head comes first, of each conversation, then the next of each. In the message's
    own conversation the nearest comes first.

    tail: the messages that are not indexed yet.
    skip: the numbers of messages to leave out.
    """
    layout = index.make_layout(tail or Tail(), skip)
    seq_rows = layout.chunk_rows.make_range(range(seq, seq + 1))
    if not seq_rows or seq_rows.start >= layout.end:
        return []
    row = seq_rows.start
    # Looking back, the message itself is the newest row of its own conversation.
    earlier_row = layout.neighbours.earlier[row]
    newest_of = {earlier_row: row} if looks_back and earlier_row >= 0 else {}
    rows = (
        range(max(row - _SEARCHED_ROWS, 0), row)
        if looks_back
        else range(row + 1, min(row + 1 + _SEARCHED_ROWS, layout.end))
    )
    skipped_rows = layout.chunk_rows.make_range(skip)
    statements = _group_by_conversation(layout, rows, skipped_rows, newest_of).statements
    own_conversation = row if looks_back else newest_of.get(row)
    if own_conversation in statements:
        statements[own_conversation].sort(reverse=looks_back)
    nearest = sorted(statements.values(), key=(lambda group: -max(group)) if looks_back else min)
    return list_seqs(interleave(nearest)[:limit], layout.chunk_rows.chunks)


class _UserRows(NamedTuple):
    """Rows with messages of the user, by the newest row of their conversation.

    In each group the message with most terms in its head comes first.
    """

    # The rows with statements.
    statements: dict[int, list[int]]
    # The rows with questions alone.
    questions: dict[int, list[int]]


def _group_by_conversation(
    layout: IndexLayout, rows: range, skipped_rows: range, newest_of: dict[int, int]
) -> _UserRows:
    """Returns the user's messages among some rows. Small talk is left out.

    newest_of: row -> the newest row of its conversation, for rows that are still to be met; is changed.
    """
    head, flags, earlier = layout.head_length, layout.flags, layout.neighbours.earlier
    statements: dict[int, list[int]] = {}
    questions: dict[int, list[int]] = {}
    for row in reversed(rows):
        newest = newest_of.pop(row, row)
        if (earlier_row := earlier[row]) >= 0:
            newest_of.setdefault(earlier_row, newest)
        flag = flags[row]
        if flag & USER and not flag & SLIGHT and row not in skipped_rows:
            (questions if flag & ASKS else statements).setdefault(newest, []).append(row)
    for group in chain(statements.values(), questions.values()):
        group.sort(key=lambda row: (-head[row], row))
    return _UserRows(statements, questions)


def _interleave_groups(groups: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns the first row of each group, of the newest group first, then the second of each, and so on."""
    return interleave([groups[newest] for newest in sorted(groups, reverse=True)])


def _merge_hits(first: list[int], second: list[int]) -> list[int]:
    """Returns the rows of both searches: the leading hits of the first, then one hit of each search in turn."""
    if len(first) <= _LEADING_HITS:  # a shortcut for two of three turns
        return list(dict.fromkeys(first + second))[:MAX_HITS]
    mixed = interleave((first[_LEADING_HITS:], second))
    return list(dict.fromkeys(first[:_LEADING_HITS] + mixed))[:MAX_HITS]


def _fill_room(ranked: list[int], layout: IndexLayout, limit: int, room: int) -> list[int]:
    """Returns the first `limit` rows, and as many of the next rows as are needed to fill `room` tokens."""
    filled_tokens = 0.0
    lengths = layout.length
    for count, row in enumerate(ranked):
        if count >= limit and filled_tokens >= room:
            return ranked[:count]
        length = lengths[row]
        filled_tokens += _TOKENS_BY_TERMS[length] if length < _STATED_TERMS else _MAX_TOKENS
    return ranked
