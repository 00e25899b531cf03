"""The rows of an index that changes are those of one that is made of the same chunks at once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from storage.search.blob import CHUNK, encode, forget, merge
from storage.search.document import Document
from storage.search.index import Index
from storage.search.layout import IndexLayout
from storage.search.tail import Tail
from tests.rows import each_row

SECRET = b"s" * 32


class Changes:
    """Messages that come and go, as blobs."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.blobs: dict[int, bytes] = {}
        self.next = 1

    def documents(self, seqs: Sequence[int]) -> list[Document]:
        return [
            Document(
                seq,
                self.dice.choice(("user", "assistant")),
                " ".join(self.dice.choices(["ant", "bee", "cow?"], k=3)),
                0.0,
                None,
                seq - self.dice.choice((1, 1, 2, 70)) if self.dice.random() < 0.8 else None,
            )
            for seq in seqs
        ]

    def change(self) -> dict[int, bytes]:
        """Returns some chunks as they are now."""
        if not self.blobs or self.dice.random() < 0.5:
            seqs = range(self.next, self.next + self.dice.randrange(1, 150))
            self.next = seqs.stop + self.dice.choice((0, 0, 0, 130))
            new = encode(self.documents(seqs), SECRET)
            changed = {chunk: merge(self.blobs.get(chunk), data) for chunk, data in new.items()}
        else:
            chunk = self.dice.choice([*self.blobs])
            gone = self.dice.sample(range(chunk * CHUNK, (chunk + 1) * CHUNK), 20)
            changed = {chunk: forget(self.blobs[chunk], gone)}
        self.blobs.update(changed)
        return changed


def by_seq(layout: IndexLayout) -> dict[int, tuple[int, ...]]:
    """Returns all that is known of each message, with the numbers of its neighbours."""
    numbers = [chunk * CHUNK + slot for chunk in layout.chunk_rows.chunks for slot in range(CHUNK)]
    return {
        numbers[row]: (
            layout.length[row],
            layout.head_length[row],
            flags,
            *(
                numbers[at] if at >= 0 else -1
                for at in (layout.neighbours.earlier[row], layout.neighbours.later[row])
            ),
        )
        for row, flags in enumerate(layout.flags)
        if flags
    }


@each_row("seed", range(40))
def test_an_index_that_changes_is_as_one_made_at_once(seed: int) -> None:
    changes, index = Changes(seed), Index()
    for _ in range(8):
        index.put(changes.change().items())
        tail = Tail(changes.documents(range(changes.next, changes.next + changes.dice.randrange(20))))
        index.make_layout(tail, range(changes.next, changes.next + changes.dice.randrange(5)))
        found, whole = (
            index.make_layout(tail, range(0)),
            Index(changes.blobs.items()).make_layout(tail, range(0)),
        )
        assert by_seq(found) == by_seq(whole)
        sums, expected = found.lengths, whole.lengths
        assert (sums.count, sums.length, sums.user_count) == (
            expected.count, expected.length, expected.user_count,
        )  # fmt: skip
        assert sums.user_weight == pytest.approx(expected.user_weight)
