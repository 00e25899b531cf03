"""The ranking reads the beginning of a query, and ranks alike before and after a message is indexed."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from storage.search import score_sums
from storage.search.blob import encode, merge
from storage.search.document import Document
from storage.search.index import Index
from storage.search.rank import rank
from storage.search.tail import Tail
from storage.search_trace import SearchTrace

SECRET = b"s" * 32
WORDS = [
    "dog",
    "garden",
    "Anna",
    "rose",
    "winter",
    "piano",
    "Bergen",
    "1987",
    "bread",
    "bicycle",
    "harbour",
    "nurse",
]
SMALL_TALK = ["Thanks.", "Yes.", "And now?", "ok", "Sure, go on."]


def conversation(dice: random.Random, size: int) -> list[Document]:
    """Statements, questions, small talk and texts that were said before; some answer no message that is known."""
    documents: list[Document] = []
    for n in range(size):
        text = " ".join(["I said", *dice.choices(WORDS, k=dice.choice((1, 3, 8, 60)))])
        kind = dice.random()
        if kind < 0.15:
            text = dice.choice(SMALL_TALK)
        elif kind < 0.4:
            text += "?"
        elif kind < 0.5 and documents:
            text = dice.choice(documents).text
        seq = documents[-1].seq + dice.choice((1, 1, 1, 2, 70)) if documents else 1
        previous = dice.choice(documents[-3:]).seq if documents and dice.random() < 0.8 else None
        documents.append(Document(seq, "assistant" if n % 2 else "user", text, 1.7e9, None, previous))
    return documents


def test_only_the_beginning_of_a_query_as_long_as_a_book_is_read() -> None:
    """Its words were all taken apart for each memory of a project: two megabytes held everybody for half a minute."""
    tail = Tail([Document(1, "user", "My zebra has stripes.", 1.7e9, None, None)])
    assert rank(Index(()), "the " * 2_000 + "zebra", SECRET, tail=tail) == [1]
    assert rank(Index(()), "the " * 3_000 + "zebra", SECRET, tail=tail) == []


def test_a_query_of_many_words_takes_little_memory_among_short_messages() -> None:
    """A cell for each term in each message around a hit took 10.8 MB."""
    names = [f"{begin}{end}xo" for begin in ("Bara", "Celi", "Domu") for end in "abcdefghijkl"]
    said = [
        Document(seq, "user", names[seq // 8 % 36] if seq % 8 == 0 else "aha", 0.0, None, seq - 1)
        for seq in range(1, 20_001)
    ]
    index = Index(encode(said, SECRET).items())
    rank(index, names[0], SECRET)  # what the first query makes for all
    tracemalloc.start()
    try:
        hits = rank(index, ", ".join(names), SECRET)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(hits) == 50
    assert peak_bytes < 8_000_000


def test_words_are_added_up_alike_all_at_once_and_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(encode(conversation(random.Random(1), 200), SECRET).items())

    def ranked() -> tuple[list[int], object]:
        trace = SearchTrace()
        hits = rank(index, " ".join(WORDS), SECRET, trace=trace)
        assert trace.scores is not None
        return hits, trace.scores()

    at_once = ranked()
    monkeypatch.setattr(score_sums, "_MAX_CELLS_PER_OCCURRENCE", 0)
    assert ranked() == at_once


def test_weak_hits_are_those_of_the_memory_as_it_was_ranked() -> None:
    """They are taken when the note is made, and other requests may have had messages indexed meanwhile."""
    said = [
        Document(seq, "user", f"My zebra {n} has stripes.", 1.7e9) for n, seq in enumerate((70, 200, 201))
    ]
    trace, index = SearchTrace(), Index(encode(said, SECRET).items())
    hits = rank(index, "zebra", SECRET, limit=1, trace=trace)
    index.put(
        encode(
            [Document(140, "user", "A word.", 1.7e9), Document(1, "user", "And one.", 1.7e9)], SECRET
        ).items()
    )
    assert trace.weak_hits is not None
    assert sorted([*hits, *(seq for seq, _ in trace.weak_hits(9))]) == [70, 200, 201]


@pytest.mark.parametrize("seed", range(12))
def test_a_memory_that_is_asked_while_it_is_indexed(seed: int) -> None:
    """What is indexed leaves the tail: the layout of both stays, and is that of a memory opened again."""
    dice = random.Random(seed)
    documents = conversation(dice, 60)
    index, blobs, indexed, said = Index(), dict[int, bytes](), 0, 0
    while indexed < len(documents):
        said = min(len(documents), said + dice.randrange(1, 6))
        if dice.random() < 0.5:
            # Some step over what a conversation left out of the tail before.
            end = dice.randrange(indexed, said + 1)
            new = encode(documents[indexed:end], SECRET)
            if dice.random() < 0.2 and indexed:
                again = dice.choice(documents[:indexed])
                changed = Document(again.seq, "user", dice.choice(WORDS), again.at, None, again.previous)
                documents[documents.index(again)] = changed
                for chunk, data in encode([changed], SECRET).items():
                    new[chunk] = merge(new.get(chunk), data)
            new = {chunk: merge(blobs.get(chunk), data) for chunk, data in new.items()}
            blobs |= new
            index.put(new.items())
            indexed = end
        tail = Tail(documents[indexed : said - dice.choice((0, 0, 0, 2))])
        query, room = " ".join(dice.choices(WORDS, k=2)), dice.choice((0, 300))
        fresh = rank(Index(blobs.items()), query, SECRET, tail=tail, limit=20, room=room)
        assert rank(index, query, SECRET, tail=tail, limit=20, room=room) == fresh
