"""The weights of a query's terms. A term weighs more the fewer messages have it, in this memory and in general.

Pure: counts in, weights out. A term has two weights: one in the ranking, one in the bounds that a hit must reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, log

from msgspec import Struct

from storage.search.common_words import MAX_NAMING_SHARE
from storage.search.layout import Lengths
from storage.search.tokens import is_pair, is_unspaced, parts_of_words

# A word is as common as this memory and people in general have it, who count like as many messages as the memory has
# and like this many at least: a few messages cannot show which words are common. Measured on LongMemEval against counts
# of the memory alone: evidence in the note with histories of 22 messages from 90.6 to 91.3%, of 550 from 87.6 to 87.9%,
# in one of 10,866 from 71.4 to 71.9%; questions about something else that get a note, with 22 messages, 35 to 30%.
_MIN_IN_GENERAL = 500
# The terms of a message in which people in general have a word as often as the table says, of 150 words. The shorter
# a memory's messages are, the fewer of them have a common word by chance. That counts in the ranking alone: by the
# bounds three times as many errands would get a note. Anything from 50 to 150 behaves alike.
_MESSAGE_TERMS = 75
# The longer a message is, the more words of any question it has by chance. So by the bounds a word in one of more than
# so many terms weighs less, by the logarithm of how much longer it is, and the less the rarer it is among people. In
# scripts without spaces a word has some three terms, and function words have them too. Measured by halves, without this
# and with 100, 75 and 50: a note for questions that belong to another memory 26.0 / 26.8, 22.0 / 21.2, 20.4 / 19.2 and
# 18.8 / 16.4%, evidence of small memories 92.3 / 91.2, 92.3 / 91.4 twice and 91.9 / 91.4%. With lengths relative to the
# memory's own mean German compounds lose up to a half.
_USUAL_LENGTH, _USUAL_LENGTH_UNSPACED = 100.0, 600.0
# The share of people's messages that has a word of which the table knows nothing. Chosen, not measured.
_LEAST_SHARE = 1e-5
_MIN_QUERY_WEIGHT = 1e-9
# A text may be wordy: "I am so sorry, I just cannot think of it, could you help me out?" What it asks for, to which the
# bounds of the ranking are relative, is at most so many words that the memory does not have. And a sentence is added by
# the root of the sum of squares where the memory has no word of it that names something. Measured on German compounds
# among courtesies: 63 and 62% of the evidence of both halves, 34 and 4% without, 46 and 33% where the memory had to
# have none but the most common words of it; questions about something else with a note, of 479 English ones 30.8
# instead of 30.0 and 30.6%.
_MAX_UNKNOWN_WORDS = 8
# The weight of a term that is a part of a word (`parts_of_words`). Measured on the facts of both halves, with 1 and
# 0.5: of the Chinese 79 and 79% found, of the Japanese 90 and 88%; questions about something else with a note, 6 and
# 0%, 5 and 0%. Anything from 0.3 to 0.6 behaves alike.
_OF_PART = 0.5
# How much a pair of characters that the memory does not have adds to what is asked for, of the square of its weight.
# Half of the pairs of a text without spaces belong to two words, and are heard nowhere. Measured with 1 and 0.5 on the
# developing halves of facts, and of facts among courtesies: of the Korean 81, 88% and 61, 90% are found, of the
# Japanese 78, 88% and 58, 71%, of the Chinese 80, 81% and 67, 75%; of those about something else among courtesies 0 and
# 1% have a note. With a quarter a third of the Korean ones have.
_UNHEARD_PAIR = 0.5


class QueryTerms(Struct, frozen=True):
    """The terms of a query that are looked for. The other fields are parallel to the terms."""

    terms: Sequence[str]
    # The share of people's messages that has the term, from 0 to 1.
    shares: Sequence[float]
    # The number of the query's first sentence that has the term.
    sentences: Sequence[int]
    # The hash under which the index has the term; empty where the index has no documents.
    hashes: Sequence[int] = ()


class TermWeights(Struct, frozen=True):
    """The weights of a query's terms. The sequences are parallel to the terms."""

    # In the ranking.
    in_ranking: Sequence[float]
    # In the bounds, in a message of the usual length or a shorter one.
    in_bounds: Sequence[float]
    # Up to so many terms a message has the usual length.
    usual_lengths: Sequence[float]
    # What a message that is e times as long takes from the weight in the bounds.
    length_costs: Sequence[float]
    # What the query asks for, to which the bounds are relative: roughly the sum of the squares of the weights
    # in the bounds.
    asked: float


def weigh_terms(
    query: QueryTerms, counts: Sequence[int], frame_counts: Sequence[int], lengths: Lengths
) -> TermWeights:
    """Returns how much the terms of a query weigh in a memory.

    counts: by term, the messages that have it.
    frame_counts: by term, the messages that have it as a word of their date or a name of their speaker.
    lengths: of the memory's messages.
    """
    # The memory's messages are counted together with as many of people in general.
    messages = lengths.count
    in_general = max(messages, _MIN_IN_GENERAL)
    sample = messages + in_general + 1
    parts = parts_of_words(query.terms)
    scales = [_OF_PART if term in parts else 1.0 for term in query.terms]

    def weigh(shares: Sequence[float]) -> list[float]:
        return [
            scale * log(sample / (count + in_general * share + 0.5))
            for scale, count, share in zip(scales, counts, shares, strict=True)
        ]

    frame_shares = _frame_shares(query, frame_counts, messages)
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
            weight / max(-log(max(share, _LEAST_SHARE)), 1.0)
            for weight, share in zip(in_bounds, query.shares, strict=True)
        ],
        asked=_asked_for(query, counts, shares, scales, in_bounds, weight_of_single=log(sample / 1.5)),
    )


def _frame_shares(query: QueryTerms, frame_counts: Sequence[int], messages: int) -> list[float]:
    """Returns by term the share of the memory's messages that have the term in their frame: their date and speaker.

    On a memory's first day "What did I tell you on 17 May?" asks for all of it. Then frames do not count.
    """
    asks_for_all = all(
        in_frame == messages or share > MAX_NAMING_SHARE
        for in_frame, share in zip(frame_counts, query.shares, strict=True)
    )
    return [0.0 if asks_for_all else in_frame / messages for in_frame in frame_counts]


def _asked_for(
    query: QueryTerms,
    counts: Sequence[int],
    shares: Sequence[float],
    scales: Sequence[float],
    in_bounds: Sequence[float],
    weight_of_single: float,
) -> float:
    """Returns what a query asks for, as in `TermWeights`.

    A sentence of which the memory has no word that names something is mostly no part of the question ("Please jog my
    memory."), and adds less.

    weight_of_single: the weight of a word that one message of the memory has, and no message of people in general. A
        word that the memory lacks weighs no more; else, with few messages, it would outweigh all that was found.
    """
    by_sentence = dict[int, float]()
    naming_sentences = set[int]()
    for term, count, share, scale, weight, sentence in zip(
        query.terms, counts, shares, scales, in_bounds, query.sentences, strict=True
    ):
        factor = _UNHEARD_PAIR if not count and scale == 1.0 and is_pair(term) else 1.0
        squared = factor * min(weight, scale * weight_of_single) ** 2
        by_sentence[sentence] = by_sentence.get(sentence, 0.0) + squared
        if count and share <= MAX_NAMING_SHARE:
            naming_sentences.add(sentence)
    other_sums = (squares for sentence, squares in by_sentence.items() if sentence not in naming_sentences)
    asked = hypot(sum(by_sentence[sentence] for sentence in naming_sentences), *other_sums)
    return max(min(asked, _MAX_UNKNOWN_WORDS * weight_of_single**2), _MIN_QUERY_WEIGHT)
