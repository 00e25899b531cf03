"""The weights of a query's terms. A term weighs more the fewer messages have it, in this memory and in general.

Without IO: counts in, weights out. A term has two weights: one in the ranking, one in the bounds that a hit must reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, log

from msgspec import Struct

from storage.search.common_words import MAX_NAMING_SHARE
from storage.search.lengths import Lengths
from storage.search.tokens import find_word_parts, is_pair, is_unspaced

# How common a word is, is counted in the memory's messages together with as many messages of people in general, at
# least this many: a few messages cannot show which words are common. On LongMemEval, with the memory's messages alone
# and so:
#     evidence with histories of 22 messages 90.6 and 91.3%, of 550 messages 87.6 and 87.9%, of 10,866 71.4 and 71.9%;
#     a note for questions about something else, with 22 messages, 35 and 30%.
_MIN_IN_GENERAL = 500
# The table of common words is for messages of 150 words, which have so many terms. The shorter a memory's messages are,
# the fewer of them have a common word by chance. That counts in the ranking alone: if it counted in the bounds, three
# times as many errands would get a note. Anything from 50 to 150 behaves alike.
_MESSAGE_TERMS = 75
# The longer a message is, the more words of any question it has by chance. So in the bounds a word weighs less in a
# message of more than so many terms: by the logarithm of how much longer it is, and by less the rarer the word is among
# people. In scripts without spaces a word has some three terms, and function words have terms too.
# Both halves without this, and with 100, 75 and 50:
#     a note for questions about another memory 26.0 / 26.8, and 22.0 / 21.2, 20.4 / 19.2, 18.8 / 16.4%;
#     evidence of small memories 92.3 / 91.2, and 92.3 / 91.4, 92.3 / 91.4, 91.9 / 91.4%.
# With lengths relative to the memory's own mean, German compounds lose up to a half.
_USUAL_LENGTH = 100.0
_USUAL_LENGTH_UNSPACED = 600.0
# The share of people's messages that has a word of which the table knows nothing. Not measured: its logarithm counts,
# so a tenth of it changes little.
_MIN_SHARE = 1e-5
# The least weight of a query, since scores are divided by it.
_MIN_QUERY_WEIGHT = 1e-9
# A text may be wordy: "I am so sorry, I just cannot think of it, could you help me out?" So the weight of a query, to
# which the bounds are relative, is at most that of so many words that the memory lacks. A sentence without a word that
# names something and is in the memory is added by the root of the sum of squares. German compounds among courtesies,
# both halves: 63 and 62% of the evidence; without these rules 34 and 4%; if the second rule held only for sentences of
# which the memory has none but the most common words, 46 and 33%. Of 479 English questions about something else 30.8%
# get a note, instead of 30.0 and 30.6%.
_MAX_UNKNOWN_WORDS = 8
# The weight of a term that is a part of a word (`find_word_parts`). Facts of both halves, with 1 and 0.5: Chinese facts
# found 79 and 79%, Japanese 90 and 88%; a note for questions about something else 6 and 0%, 5 and 0%. Anything from 0.3
# to 0.6 behaves alike.
_PART_WEIGHT = 0.5
# The part of its squared weight that a pair of characters which the memory lacks adds to the query's. Half of the
# pairs in a text without spaces belong to two words, so that no other text has them. Developing halves with 1 and 0.5:
#     facts found: Korean 81, 88%, Japanese 78, 88%, Chinese 80, 81%;
#     facts found among courtesies: Korean 61, 90%, Japanese 58, 71%, Chinese 67, 75%;
#     a note for questions about something else among courtesies 0, 1%. With 0.25 a third of the Korean ones get a note.
_MISSING_PAIR_SHARE = 0.5


class QueryTerms(Struct, frozen=True):
    """The terms of a query that are looked for, and fields that are parallel to `terms`."""

    # The terms.
    terms: Sequence[str]
    # The share of people's messages that has the term, from 0 to 1.
    shares: Sequence[float]
    # The number of the query's first sentence that has the term.
    sentences: Sequence[int]
    # The hash under which the index has the term; empty where the index has no documents.
    hashes: Sequence[int] = ()


class TermWeights(Struct, frozen=True):
    """The weights of a query's terms. The sequences are parallel to the terms."""

    # The weights in the ranking.
    in_ranking: Sequence[float]
    # The weights in the bounds, for a message of the usual length or a shorter one.
    in_bounds: Sequence[float]
    # The most terms of a message of the usual length.
    usual_lengths: Sequence[float]
    # The part of the weight in the bounds that is lost by a message of e times the usual length.
    length_costs: Sequence[float]
    # The weight of the query, to which the bounds are relative: roughly the sum of the squares of the weights in the
    # bounds.
    query_weight: float


def weigh_terms(
    query: QueryTerms, counts: Sequence[int], frame_counts: Sequence[int], lengths: Lengths
) -> TermWeights:
    """Returns the weights of a query's terms in a memory.

    counts: for each term the number of messages that have it.
    frame_counts: for each term the number of messages that have it in their date or the name of their speaker.
    lengths: the lengths of the memory's messages.
    """
    # The memory's messages are counted together with as many of people in general.
    messages = lengths.count
    in_general = max(messages, _MIN_IN_GENERAL)
    sample = messages + in_general + 1
    parts = find_word_parts(query.terms)
    scales = [_PART_WEIGHT if term in parts else 1.0 for term in query.terms]

    def weigh(shares: Sequence[float]) -> list[float]:
        return [
            scale * log(sample / (count + in_general * share + 0.5))
            for scale, count, share in zip(scales, counts, shares, strict=True)
        ]

    frame_shares = _measure_frame_shares(query, frame_counts, messages)
    shares = [*map(max, query.shares, frame_shares)]
    shortness = min(lengths.length / max(messages, 1) / _MESSAGE_TERMS, 1.0)
    in_bounds = weigh(shares)
    return TermWeights(
        in_ranking=weigh([*map(max, (share * shortness for share in query.shares), frame_shares)]),
        in_bounds=in_bounds,
        usual_lengths=[
            _USUAL_LENGTH_UNSPACED if is_unspaced(term) else _USUAL_LENGTH for term in query.terms
        ],
        length_costs=[
            weight / max(-log(max(share, _MIN_SHARE)), 1.0)
            for weight, share in zip(in_bounds, query.shares, strict=True)
        ],
        query_weight=_measure_query(
            query, counts, shares, scales, in_bounds, weight_of_single=log(sample / 1.5)
        ),
    )


def _measure_frame_shares(query: QueryTerms, frame_counts: Sequence[int], messages: int) -> list[float]:
    """Returns the share of the memory's messages that have a term in their frame (date and speaker), by term.

    On a memory's first day "What did I tell you on 17 May?" asks for all of it. Then frames do not count.
    """
    asks_for_all = all(
        in_frame == messages or share > MAX_NAMING_SHARE
        for in_frame, share in zip(frame_counts, query.shares, strict=True)
    )
    return [0.0 if asks_for_all else in_frame / messages for in_frame in frame_counts]


def _measure_query(
    query: QueryTerms,
    counts: Sequence[int],
    shares: Sequence[float],
    scales: Sequence[float],
    in_bounds: Sequence[float],
    weight_of_single: float,
) -> float:
    """Returns the weight of a query, as `TermWeights.query_weight`.

    A sentence of which the memory has no word that names something is mostly no part of the question ("Please jog my
    memory."), and adds less.

    weight_of_single: the weight of a word that one message of the memory has, and no message of people in general. A
        word that the memory lacks weighs no more: with few messages it would outweigh all hits.
    """
    by_sentence: dict[int, float] = {}
    naming_sentences: set[int] = set()
    for term, count, share, scale, term_weight, sentence in zip(
        query.terms, counts, shares, scales, in_bounds, query.sentences, strict=True
    ):
        factor = _MISSING_PAIR_SHARE if not count and scale == 1.0 and is_pair(term) else 1.0
        squared = factor * min(term_weight, scale * weight_of_single) ** 2
        by_sentence[sentence] = by_sentence.get(sentence, 0.0) + squared
        if count and share <= MAX_NAMING_SHARE:
            naming_sentences.add(sentence)
    other_sums = (squares for sentence, squares in by_sentence.items() if sentence not in naming_sentences)
    weight = hypot(sum(by_sentence[sentence] for sentence in naming_sentences), *other_sums)
    return max(min(weight, _MAX_UNKNOWN_WORDS * weight_of_single**2), _MIN_QUERY_WEIGHT)
