"""Finding the words of a query in an agent's index (storage/search/index.py): which messages have which.

Pure: values in, occurrences out. storage/search/rank.py weighs the messages by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, repeat
from math import hypot, log
from typing import TYPE_CHECKING

from msgspec import Struct

from storage.search.blob import hash_terms
from storage.search.common_words import NAMES_NOTHING
from storage.search.document import HEAD, ROW_SHIFT
from storage.search.index import LOW_HALF, Index, no_occurrences, without_rows
from storage.search.layout import IndexLayout, Lengths
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tokens import is_date_word, is_pair, is_unspaced, parts_of_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Terms of a query that are scored, the rarest. A question has about 7.
_QUERY_TERMS = 64
# Names of the first hits that a second look asks for.
_NAMES = 8
# Occurrences that are scored, which takes 5 ms. The terms of a question have a tenth of that in 10,000 messages.
_MAX_OCCURRENCES = 1 << 16

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
# The share of people's messages that has a word of which the table knows nothing. No measurement.
_LEAST_SHARE = 1e-5
# The most terms of a message's frame: four of its date, and two of its speaker's name. A text that is a little longer
# than its head has its last words outside of the head as well, so a name is what so many messages have there. No
# measurement.
_FRAME_TERMS, _MIN_NAMED = 6, 3
_MIN_ASKED = 1e-9
# A text may be wordy: "I am so sorry, I just cannot think of it, could you help me out?" What it asks for, to which the
# bounds of the ranking are relative, is at most so many words that the memory does not have. And a sentence is added by
# the root of the sum of squares where the memory has no word of it that names something. Measured on German compounds
# among courtesies: 63 and 62% of the evidence of both halves, 34 and 4% without, 46 and 33% where the memory had to
# have none but the most common words of it; questions about something else with a note, of 479 English ones 30.8
# instead of 30.0 and 30.6%.
_MAX_ASKED = 8
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


class WantedTerms(Struct, frozen=True):
    """The terms of a query that are looked for."""

    terms: Sequence[str]
    # The share of people's messages that has a term, by term.
    in_general: Sequence[float]
    # The number of the query's first sentence that has a term, by term.
    sentences: Sequence[int]
    # The hash under which the index has a term, by term; empty where the index has no documents.
    hashes: Sequence[int] = ()


class Found(Struct, frozen=True):
    """Every occurrence of some terms, one for each document and term, packed as in the index: row, frequency, marks."""

    # The weight of each term in the ranking: the fewer messages have it, the more it weighs.
    weights: Sequence[float]
    # What each term weighs in the bounds, in a message of no more terms than `usual_lengths` has for it.
    held: Sequence[float]
    usual_lengths: Sequence[float]
    # What a message that is e times as long takes from that.
    length_costs: Sequence[float]
    # The sum of the squares of what each weighs as it is asked, less for sentences of which the memory has no word that
    # names something.
    asked: float
    # Occurrences in the index, those of a term side by side.
    in_index: NDArray[np.int64]
    # The number of occurrences in the index, by term.
    sizes: Sequence[int]
    # The occurrences in the tail, by term; they have places in the tail for rows.
    in_tail: Sequence[Sequence[int]]
    # The number of occurrences of all terms, in index and tail.
    count: int


def find(index: Index, layout: IndexLayout, wanted: WantedTerms, postings: Postings = NO_POSTINGS) -> Found:
    """Returns where the terms are.

    layout: of the index and its tail.
    postings: as for `Index.occurrences`.
    """
    terms, hashes = wanted.terms, wanted.hashes
    parts = index.occurrences(hashes, postings) if hashes else []
    if layout.replaced:
        parts = without_rows(parts, layout.replaced, len(layout.flags))
    sizes = list(map(len, parts)) if parts else [0] * len(terms)
    in_tail: list[Sequence[int]] = [*map(layout.tail.terms.get, terms, repeat(()))]
    if layout.left_out:
        rows = layout.tail_rows
        in_tail = [[hit for hit in hits if rows[hit >> ROW_SHIFT] >= 0] for hits in in_tail]
    counts = [size + len(hits) for size, hits in zip(sizes, in_tail, strict=True)]
    if len(counts) > _QUERY_TERMS:
        # A pasted page is ranked by its rarest words that occur at all; the others would cost and decide nothing.
        rarest = sorted((count, number) for number, count in enumerate(counts) if count)
        for _, number in rarest[_QUERY_TERMS:]:
            sizes[number], in_tail[number], counts[number] = 0, (), 0
            if parts:
                parts[number] = parts[number][:0]
    if postings.unread:
        unread = (postings.unread.get(each, 0) for each in hashes)
        counts = [min(count + most, layout.lengths.count) for count, most in zip(counts, unread, strict=True)]
    if sum(sizes) > _MAX_OCCURRENCES:
        parts = _of_rarest(layout, parts)
        sizes = [*map(len, parts)]
    in_index = no_occurrences()
    if any(sizes):
        import numpy as np

        in_index = np.concatenate(parts).view(np.int64) & LOW_HALF
    named = _count_named(layout, in_index, sizes, in_tail)
    framed = [count if is_date_word(t) else n for t, count, n in zip(terms, counts, named, strict=True)]
    weights, held, asked = _weigh(wanted, counts, framed, layout.lengths)
    usual = [_USUAL_LENGTH_UNSPACED if is_unspaced(term) else _USUAL_LENGTH for term in terms]
    costs = [
        weight / max(-log(max(share, _LEAST_SHARE)), 1.0)
        for weight, share in zip(held, wanted.in_general, strict=True)
    ]
    return Found(weights, held, usual, costs, asked, in_index, sizes, in_tail, sum(counts))


def _count_named(
    layout: IndexLayout, in_index: NDArray[np.int64], sizes: Sequence[int], in_tail: Sequence[Sequence[int]]
) -> list[int]:
    """Returns for each term how many messages have it as a name of their speaker; 0: too few.

    Such messages are counted alone whose text is no longer than a head.
    """
    length, head, rows = layout.length, layout.head, layout.tail_rows
    named = [
        sum(
            not hit & HEAD and length[at := rows[hit >> ROW_SHIFT]] - head[at] <= _FRAME_TERMS for hit in hits
        )
        for hits in in_tail
    ]
    if len(in_index):
        import numpy as np

        row = in_index >> ROW_SHIFT
        in_frame = (in_index & HEAD) == 0
        in_frame &= np.asarray(length)[row].astype(np.int64) - np.asarray(head)[row] <= _FRAME_TERMS
        term = np.arange(len(sizes)).repeat(sizes)
        named = (named + np.bincount(term, in_frame, len(sizes))).astype(int).tolist()
    return [count if count >= _MIN_NAMED else 0 for count in named]


def _weigh(
    wanted: WantedTerms, counts: Sequence[int], framed: Sequence[int], lengths: Lengths
) -> tuple[list[float], list[float], float]:
    """Returns the weights of each term in the ranking and in the bounds, and what the query asks for, as in `Found`.

    counts: of each term, the messages that have it.
    framed: those that have it as a word of their date or a name of their speaker.
    lengths: of the memory's messages.
    """
    messages = lengths.count
    # A word that the memory does not have counts like one that it has once; else, with few messages, it would outweigh
    # all that was found.
    others = max(messages, _MIN_IN_GENERAL)
    sample = messages + others + 1
    once, weights, held = log(sample / 1.5), list[float](), list[float]()
    shortness = min(lengths.length / max(messages, 1) / _MESSAGE_TERMS, 1.0)
    parts_of_others = parts_of_words(wanted.terms)
    asked_by, known = dict[int, float](), set[int]()
    # On a memory's first day "What did I tell you on 17 May?" asks for all of it.
    asks_for_all = all(
        in_frame == messages or share > NAMES_NOTHING
        for in_frame, share in zip(framed, wanted.in_general, strict=True)
    )
    for term, having, in_frame, share, sentence in zip(
        wanted.terms, counts, framed, wanted.in_general, wanted.sentences, strict=True
    ):
        scale = _OF_PART if term in parts_of_others else 1.0
        in_short = share * shortness
        if in_frame and not asks_for_all:
            # Messages have the words of their dates and names of their speakers whatever people talk about.
            own = in_frame / messages
            share, in_short = max(share, own), max(in_short, own)
        weight = scale * log(sample / (having + others * share + 0.5))
        weights.append(scale * log(sample / (having + others * in_short + 0.5)))
        held.append(weight)
        part = _UNHEARD_PAIR if not having and scale == 1.0 and is_pair(term) else 1.0
        asked_by[sentence] = asked_by.get(sentence, 0.0) + part * min(weight, scale * once) ** 2
        if having and share <= NAMES_NOTHING:
            known.add(sentence)
    # Any other sentence is mostly no part of the question ("Please jog my memory."), and does not add to what this asks
    # for in full.
    unknown = (asked for sentence, asked in asked_by.items() if sentence not in known)
    asked = hypot(sum(map(asked_by.__getitem__, known)), *unknown)
    asked = max(min(asked, _MAX_ASKED * once * once), _MIN_ASKED)
    return weights, held, asked


def _of_rarest(layout: IndexLayout, parts: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.uint64]]:
    """Returns the occurrences of the rarest terms, and of the others those in messages that have one of these or stand
    next to one.

    The rarest terms are those that have no more than `_MAX_OCCURRENCES` together. A term with more of its own is
    looked for in the newest messages.
    """
    import numpy as np

    left, found = _MAX_OCCURRENCES, [part[-_MAX_OCCURRENCES:] for part in parts]
    is_near = np.zeros(len(layout.flags) + 1, bool)  # after the rows comes one for missing neighbours
    for number in sorted(
        (number for number, part in enumerate(found) if len(part)), key=lambda n: len(found[n])
    ):
        rows = ((found[number] & LOW_HALF) >> ROW_SHIFT).astype(np.int64)
        left -= len(rows)
        if left < 0:
            found[number] = found[number][is_near[rows]]
        else:
            is_near[rows] = True
            is_near[np.asarray(layout.earlier)[rows]] = is_near[np.asarray(layout.later)[rows]] = True
    return found


def find_names(
    index: Index, layout: IndexLayout, best: Sequence[int], wanted: WantedTerms, secret: bytes
) -> Found | None:
    """Returns where the names of the best rows are; None where they are all among the wanted terms.

    A name that comes from the index is not looked for in the tail, since all words there would have to be hashed.
    """
    has_words, rows, tail = index.blob_bytes > 0, layout.tail_rows, layout.tail
    # By hash, where the index has any to compare them with; else by themselves.
    named: dict[int | str, str] = {}
    indexed = [row for row in best if row not in rows] if has_words else []
    in_index = dict(zip(indexed, index.names_in(indexed), strict=True)) if indexed else {}
    for row in best:
        if row in in_index:
            for key in in_index[row]:
                named.setdefault(key, "")
        else:
            names = tail.names[rows.index(row)]
            named.update(zip(hash_terms(names, secret).values() if has_words else names, names, strict=True))
    for known in wanted.hashes if has_words else wanted.terms:
        named.pop(known, None)
    if not named:
        return None
    more = dict(islice(named.items(), _NAMES))
    looked_up = [key for key in more if isinstance(key, int)] if has_words else []
    zeros = [0] * len(more)
    return find(index, layout, WantedTerms([*more.values()], zeros, zeros, looked_up))
