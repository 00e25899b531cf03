"""Segments of a large index: a query that reads its terms in them finds what one finds in the chunks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from scripts.fill import new_agent, write_conversation
from storage.errors import StoreCorrupt
from storage.forget_commands import ForgetTarget
from storage.records import Agent, Message
from storage.search import occurrences, segment
from storage.search.blob import CorruptIndex, encode
from storage.search.document import Document
from storage.search.index import Index
from storage.search.rank import hash_rare_terms, rank
from storage.search.segment import (
    SegmentBucket,
    StampedDocuments,
    compute_segment,
    make_segment,
    open_documents,
    pick_buckets,
    read_postings,
)
from storage.search.tail import Tail
from storage.sql.store import Store
from tests.stored import forget, ranked, rows

SECRET = b"s" * 32
NOUNS = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 128 messages."""
    monkeypatch.setattr(segment, "SEGMENT_CHUNKS", 2)


def documents(count: int) -> list[Document]:
    dice = random.Random(5)
    return [
        Document(
            n,
            "user" if n % 2 else "assistant",
            f"{' '.join(dice.choices(NOUNS, k=4))} number {n}.",
            0.0,
            None,
            n - 1 if n % 5 else None,
        )
        for n in range(1, count)
    ]


def index_of(blobs: dict[int, bytes], numbers: range) -> tuple[Index, dict[int, segment.Segment]]:
    """Returns an index of segments, and of blobs for the other chunks."""
    made = {
        n: make_segment(n, [(c, data) for c, data in blobs.items() if compute_segment(c) == n])
        for n in numbers
    }
    index = Index()
    others = [(chunk, data) for chunk, data in blobs.items() if compute_segment(chunk) not in made]
    index.put(others, {n: StampedDocuments(1, open_documents(n, each.documents)) for n, each in made.items()})
    return index, made


def postings(made: dict[int, segment.Segment], query: str) -> segment.Postings:
    """Returns what a query reads of segments."""
    hashes = hash_rare_terms(query, SECRET)
    sizes = {b: sum(len(each.buckets[b]) for each in made.values()) for b in segment.compute_buckets(hashes)}
    found = [SegmentBucket(b, n, 0, each.buckets[b]) for b in pick_buckets(sizes) for n, each in made.items()]
    return read_postings(found, sizes, hashes)


@pytest.mark.parametrize("numbers", [range(3), range(1, 3), range(1)])
@pytest.mark.parametrize("query", ["dog fox", "number 77", "fox 3 and 300", "heron"])
def test_a_query_finds_in_segments_what_it_finds_in_chunks(numbers: range, query: str) -> None:
    all = documents(450)
    blobs = encode(all[:420], SECRET)
    index, made = index_of(blobs, numbers)
    whole = ranked(blobs.values(), query, SECRET, tail=all[420:])
    assert rank(index, query, SECRET, tail=Tail(all[420:]), postings=postings(made, query)) == whole
    assert bool(whole) == (query != "heron")


def test_an_empty_chunk_takes_its_rows_in_a_segment() -> None:
    blobs = encode([each for each in documents(400) if not 64 <= each.seq < 128], SECRET)
    index, made = index_of({**blobs, 1: b""}, range(2))
    assert rank(index, "number 130", SECRET, postings=postings(made, "number 130"))[0] == 130


def test_a_word_that_is_too_common_to_be_read_weighs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "_READ_BYTES", 1)
    index, made = index_of(encode(documents(400), SECRET), range(2))
    query = "number 77"
    asked = postings(made, query)
    assert [len(each) for each in asked.read.values()] == [1]
    assert [*asked.unread.values()] >= [255]
    assert rank(index, query, SECRET, postings=asked, only_strong=True)[0] == 77


def test_the_occurrences_of_rare_words_decide_if_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    all = [*documents(400), Document(400, "user", "A heron and a dog.", 0.0)]
    blobs = encode(all, SECRET).values()
    monkeypatch.setattr(occurrences, "_MAX_OCCURRENCES", 20)
    assert ranked(blobs, "heron dog", SECRET) == [400]
    # Of a word that all have, the newest.
    assert sorted(ranked(blobs, "number", SECRET, limit=90)) == [*range(380, 400)]


def test_damage_is_named() -> None:
    _, made = index_of(encode(documents(200), SECRET), range(1))
    for damaged in (b"", made[0].documents[:-1], b"x" + made[0].documents[1:], made[0].buckets[0]):
        with pytest.raises(CorruptIndex):
            open_documents(0, damaged)
    with pytest.raises(CorruptIndex):
        open_documents(1, made[0].documents)
    (hash,) = hash_rare_terms("dog", SECRET)
    (bucket,) = segment.compute_buckets([hash])
    for damaged in (b"", made[0].buckets[bucket][:-1], made[0].documents):
        with pytest.raises(CorruptIndex):
            read_postings([SegmentBucket(bucket, 0, 0, damaged)], {}, [hash])
    with pytest.raises(CorruptIndex, match="segment 3"):
        make_segment(3, encode(documents(200), SECRET).items())


# -- over a store


@pytest.fixture
async def ann(store: Store) -> Agent:
    """A memory of 300 messages, of which two segments are made."""
    agent = await new_agent(store, "ann")
    for number in range(3):
        turns = [
            (float(n), f"Is a dog {n}?", f"It is a dog number {n}.")
            for n in range(number * 50, number * 50 + 50)
        ]
        await write_conversation(store, agent, f"c{number}", turns)
    await index(store, agent)
    assert await numbers(store) == [0, 1]
    store.recall._memories.clear()
    return agent


async def index(store: Store, agent: Agent) -> None:
    while await store.search_index.advance(agent.id):
        pass


async def numbers(store: Store) -> list[int]:
    """Returns which segments there are, each whole."""
    found = await rows(store, "SELECT number, count(*) FROM segments GROUP BY number ORDER BY number")
    assert {count for _, count in found} <= {segment.BUCKETS + 1}
    return [number for number, _ in found]


def cached_segments(store: Store, agent: Agent) -> list[int]:
    """Returns the segments that the cache knows of."""
    memory = store.recall._memories.get(agent.id)
    assert memory is not None
    return [*memory.index.segments]


async def search(store: Store, agent: Agent, query: str, **options: Any) -> list[Message]:
    options.setdefault("deadline_ms", 10_000.0)
    return await store.recall.search(agent, query, **options)


async def test_a_large_memory_is_searched_by_segments(store: Store, ann: Agent) -> None:
    by_segments = await search(store, ann, "dog number 17")
    assert by_segments[0].text == "It is a dog number 17."
    assert cached_segments(store, ann) == [0, 1]
    await rows(store, "DELETE FROM segments")
    # Found out by the query itself: nothing else has changed.
    assert await search(store, ann, "dog number 17") == by_segments
    assert cached_segments(store, ann) == []


async def test_later_messages_are_found_together_with_those_in_segments(store: Store, ann: Agent) -> None:
    await search(store, ann, "dog")
    for at, n in enumerate((900, 901)):
        await write_conversation(
            store, ann, f"later{n}", [(float(n), f"Is a dog {n}?", f"A dog number {n}.")]
        )
        await search(store, ann, "dog")
        if at:
            await index(store, ann)
    found = [m.text for m in await search(store, ann, "dog number 900")]
    assert found[0] == "A dog number 900."
    assert (await search(store, ann, "dog number 3"))[0].text == "It is a dog number 3."


async def test_forgetting_drops_the_segment_of_a_message_and_it_is_made_again(
    store: Store, ann: Agent
) -> None:
    assert (await search(store, ann, "dog number 5"))[0].text == "It is a dog number 5."
    (hash,) = hash_rare_terms("5", ann.secret)
    (seq,) = [m.seq for m in await search(store, ann, "dog number 5") if m.text == "It is a dog number 5."]
    await forget(store, ann, ForgetTarget(message_seqs=[seq, seq - 1]))
    assert await numbers(store) == [1]
    assert "It is a dog number 5." not in [m.text for m in await search(store, ann, "dog number 5")]
    await index(store, ann)
    assert await numbers(store) == [0, 1]
    for bucket, number, data in await rows(
        store, "SELECT bucket, number, data FROM segments WHERE bucket >= 0"
    ):
        if [bucket] == segment.compute_buckets([hash]):
            assert read_postings([SegmentBucket(bucket, number, 0, data)], {}, [hash]).read[hash].size == 0
    assert (await search(store, ann, "dog number 6"))[0].text == "It is a dog number 6."


async def test_a_forgotten_memory_has_no_segment(store: Store, ann: Agent) -> None:
    await forget(store, ann, ForgetTarget(is_all=True))
    assert await numbers(store) == []


async def test_a_segment_that_was_made_of_a_memory_that_is_gone_by_then_is_not_written(
    store: Store, ann: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows(store, "DELETE FROM segments")
    read = store.database.long_read

    async def read_and_forget(operation: Any, **options: Any) -> Any:
        monkeypatch.setattr(store.database, "long_read", read)
        found = await read(operation, **options)
        await forget(store, ann, ForgetTarget(is_all=True))
        return found

    monkeypatch.setattr(store.database, "long_read", read_and_forget)
    await index(store, ann)
    assert await numbers(store) == []


async def test_another_process_drops_a_segment(store: Store, ann: Agent) -> None:
    """What a memory has cached of it is read again."""
    before = await search(store, ann, "dog number 40")
    (chunk, _), *_ = await rows(store, "SELECT chunk, data FROM terms ORDER BY chunk")
    await rows(store, "UPDATE terms SET stamp = (SELECT max(stamp) + 1 FROM terms) WHERE chunk = ?", (chunk,))
    await rows(store, "DELETE FROM segments WHERE number = 0")
    await rows(store, "UPDATE agents SET stamp = stamp + 1")
    assert await search(store, ann, "dog number 40") == before
    assert cached_segments(store, ann) == [1]


async def test_a_damaged_segment_is_named_and_made_again(store: Store, ann: Agent) -> None:
    await rows(store, "UPDATE segments SET data = ? WHERE bucket = -1", (b"noise",))
    with pytest.raises(StoreCorrupt):
        await search(store, ann, "dog number 40")
    assert await numbers(store) == []
    assert (await search(store, ann, "dog number 40"))[0].text == "It is a dog number 40."
    await index(store, ann)
    assert await numbers(store) == [0, 1]
