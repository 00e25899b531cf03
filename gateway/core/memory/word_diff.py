"""The difference of two texts, word by word, as a person reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple

from msgspec import Struct

from gateway.core.subsequence import count_common_beginning

_Op = Literal["same", "ins", "del"]
_Split = Callable[[str], list[str]]

# Thai, Lao, Burmese, Khmer, Chinese and Japanese are written without spaces, so each character counts as a word.
_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff"
)
# A word with the spaces after it, so that whole words change; the end of a line counts as a word.
_WORD = re.compile(rf"\n|[^\S\n]+|(?:[{_UNSPACED_SCRIPTS}]|[^\s{_UNSPACED_SCRIPTS}]+)[^\S\n]*")
# A sentence, or a line, with its end and the spaces after it.
_SENTENCE = re.compile(r"[^\n.!?;。！？；]*(?:[\n.!?;。！？；]+[^\S\n]*|$)")
# The most pairs of pieces that a comparison takes, since its time grows with their number. Not measured: beyond it,
# larger pieces are compared.
_MAX_PAIRS = 1_000_000
# The most steps of a comparison of two lists, which take about 50 ms. If repeated pieces would take more steps, no
# match begins with the most frequent pieces.
_MAX_STEPS = 1_000_000
# The steps that are allowed for each pair of pieces: after each match all pairs may be looked through once more. Not
# measured: with fewer, more of the frequent pieces begin no match.
_STEPS_PER_PAIR = 10


class DiffPart(Struct, frozen=True):
    """A part of a changed text: it stays ("same"), was inserted or was deleted."""

    # "same", "ins" (inserted) or "del" (deleted).
    op: _Op
    # The text of the part.
    text: str


def diff_words(old: str, new: str) -> tuple[DiffPart, ...]:
    """Returns the parts of both texts in order. The parts that are not inserted are the old text."""
    shortest_first = (_WORD.findall, _SENTENCE.findall, partial(str.splitlines, keepends=True))
    return _join_parts(_Comparison().compare(old, new, shortest_first))


class _Comparison:
    """Compares two texts by words, or first by longer pieces if there are too many words."""

    def __init__(self) -> None:
        # The pairs of pieces that may still be compared.
        self._remaining_pairs = _MAX_PAIRS

    def compare(self, old: str, new: str, splits: Sequence[_Split]) -> Iterator[DiffPart]:
        """Yields the parts of two texts.

        splits: functions that split a text into pieces, the shortest pieces first; (): one text replaces the other.
        """
        for split_index, split in enumerate(splits if old and new else ()):
            old_pieces, new_pieces = split(old), split(new)
            # The pieces from `start` up to the two ends are compared; the pieces before and after are the same.
            start = count_common_beginning(old_pieces, new_pieces)
            common_end = count_common_beginning(old_pieces[start:][::-1], new_pieces[start:][::-1])
            old_end, new_end = len(old_pieces) - common_end, len(new_pieces) - common_end
            pairs = (old_end - start) * (new_end - start)
            if pairs > self._remaining_pairs:
                continue  # longer pieces are fewer
            self._remaining_pairs -= pairs
            yield DiffPart("same", "".join(old_pieces[:start]))
            for stretch in _match_stretches(old_pieces[start:old_end], new_pieces[start:new_end]):
                if stretch.is_same:
                    yield DiffPart("same", stretch.old)
                else:
                    # A difference is compared again by shorter pieces; after the shortest, it is replaced as a whole.
                    yield from self.compare(stretch.old, stretch.new, splits[:split_index])
            yield DiffPart("same", "".join(old_pieces[old_end:]))
            return
        yield DiffPart("del", old)
        yield DiffPart("ins", new)


class _Stretch(NamedTuple):
    """Successive pieces of both texts."""

    # True: both texts have the same pieces.
    is_same: bool
    # The pieces of the old text, joined.
    old: str
    # The pieces of the new text, joined.
    new: str


def _match_stretches(old: Sequence[str], new: Sequence[str]) -> Iterator[_Stretch]:
    """Yields the common stretches of two lists and the stretches between them, in order."""
    # For difflib they are junk: no match begins with junk, but a match may be extended over it.
    matcher = SequenceMatcher(_find_too_frequent(old, new).__contains__, old, new, autojunk=False)
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        yield _Stretch(tag == "equal", "".join(old[old_start:old_end]), "".join(new[new_start:new_end]))


def _find_too_frequent(old: Sequence[str], new: Sequence[str]) -> frozenset[str]:
    """Returns the pieces with so many equal pairs that a comparison would take too many steps."""
    old_counts, new_counts = Counter(old), Counter(new)
    # The number of equal pairs of each piece that both lists have, the least first.
    pair_counts = sorted(
        (count * new_counts[piece], piece) for piece, count in old_counts.items() if piece in new_counts
    )
    steps = min(_MAX_STEPS, _STEPS_PER_PAIR * len(old) * len(new))
    pairs_left = steps // max(1, min(len(old), len(new)))
    for number, (pair_count, _) in enumerate(pair_counts):
        pairs_left -= pair_count
        if pairs_left < 0:
            return frozenset(piece for _, piece in pair_counts[number:])
    return frozenset()


def _join_parts(parts: Iterable[DiffPart]) -> tuple[DiffPart, ...]:
    """Returns the parts without empty ones; successive parts with the same `op` are one."""
    non_empty = (part for part in parts if part.text)
    return tuple(
        DiffPart(op, "".join(part.text for part in successive))
        for op, successive in groupby(non_empty, attrgetter("op"))
    )
