"""The difference of two texts, word by word, as a person reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

from msgspec import Struct

_Op = Literal["same", "ins", "del"]
_Split = Callable[[str], list[str]]

# Thai, Lao, Burmese, Khmer, Chinese and Japanese are written without spaces, so each character counts as a word.
_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff"
)
# A word with the spaces after it, so that whole words change; each line's end is one of its own.
_WORD = re.compile(rf"\n|[^\S\n]+|(?:[{_UNSPACED_SCRIPTS}]|[^\s{_UNSPACED_SCRIPTS}]+)[^\S\n]*")
_SENTENCE = re.compile(r"[^\n.!?;。！？；]*(?:[\n.!?;。！？；]+[^\S\n]*|$)")
# The most pairs of pieces that a comparison takes, since its time grows with their number.
_PAIRS = 1_000_000
# The most steps of comparing two lists, which take some 50 ms. If pieces repeat so much that more steps would be
# needed, no match begins with the most frequent pieces.
_STEPS = 1_000_000
# The steps for each pair of equal pieces: after each match all pairs may be looked through once more.
_STEPS_PER_PAIR = 10


class DiffPart(Struct, frozen=True):
    """A part of a text that was changed: it stays, was put in, or was taken out."""

    op: _Op
    text: str


def diff_words(old: str, new: str) -> tuple[DiffPart, ...]:
    """Returns the parts of both texts in their order; without those of `ins` they are the old text."""
    return _join_parts(_Comparison().compare(old, new, (_WORD.findall, _SENTENCE.findall, _lines)))


class _Comparison:
    """Compares two texts by words, or by longer pieces first where there are too many words."""

    def __init__(self) -> None:
        self._pairs_left = _PAIRS

    def compare(self, old: str, new: str, splits: Sequence[_Split]) -> Iterator[tuple[_Op, str]]:
        """Yields the parts of two texts. splits: into pieces, the shortest first."""
        for number, split in enumerate(splits if old and new else ()):
            before, after = split(old), split(new)
            start = _common(before, after)
            end = _common(before[start:][::-1], after[start:][::-1])
            last, last_after = len(before) - end, len(after) - end
            pairs = (last - start) * (last_after - start)
            if pairs > self._pairs_left:
                continue
            self._pairs_left -= pairs
            yield "same", "".join(before[:start])
            for is_same, left, right in _match_runs(before[start:last], after[start:last_after]):
                if is_same:
                    yield "same", left
                else:
                    yield from self.compare(left, right, splits[:number])
            yield "same", "".join(before[last:])
            return
        yield "del", old
        yield "ins", new


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _common(before: Sequence[str], after: Sequence[str]) -> int:
    """Returns how many words two lists have in common at their beginnings."""
    count = 0
    for one, other in zip(before, after, strict=False):
        if one != other:
            break
        count += 1
    return count


def _match_runs(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[bool, str, str]]:
    """Yields in order what two lists have in common and what is between: whether it is the same, and both texts."""
    matcher = SequenceMatcher(_too_frequent(before, after).__contains__, before, after, autojunk=False)
    for tag, start, end, start_after, end_after in matcher.get_opcodes():
        yield tag == "equal", "".join(before[start:end]), "".join(after[start_after:end_after])


def _too_frequent(before: Sequence[str], after: Sequence[str]) -> frozenset[str]:
    """Returns the pieces with so many equal pairs that a comparison would take too many steps."""
    before_counts, after_counts = Counter(before), Counter(after)
    pairs = sorted(
        (count * after_counts[piece], piece)
        for piece, count in before_counts.items()
        if piece in after_counts
    )
    steps = min(_STEPS, _STEPS_PER_PAIR * len(before) * len(after))
    pairs_left = steps // max(1, min(len(before), len(after)))
    for number, (count, _) in enumerate(pairs):
        pairs_left -= count
        if pairs_left < 0:
            return frozenset(piece for _, piece in pairs[number:])
    return frozenset()


def _join_parts(parts: Iterable[tuple[_Op, str]]) -> tuple[DiffPart, ...]:
    """Returns the parts without empty ones; successive parts of a kind are one."""
    found: list[tuple[_Op, str]] = []
    for op, text in parts:
        if not text:
            continue
        if found and found[-1][0] == op:
            found[-1] = op, found[-1][1] + text
        else:
            found.append((op, text))
    return tuple(DiffPart(op, text) for op, text in found)
