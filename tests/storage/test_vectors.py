"""Vectors: the bytes of a chunk, the comparison, and how they come to lie in a file and leave it."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from storage.database import Connection
from storage.errors import StaleWrite, StoreTimeout
from storage.forget_commands import ForgetTarget
from storage.reader_commands import UnembeddedMessages
from storage.records import Agent, Message, Scope, Vector, VectorSimilarities
from storage.search import vector_blobs
from storage.search.blob import CorruptIndex, encode
from storage.search.document import Document
from storage.sql import recall, vector_cache
from storage.sql.store import Store
from storage.sql.vector_chunks import add_vectors, forget_indexed
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S
from tests.storage.conftest import Holds
from tests.stored import ALICE, Clock, Speaker, forget, rows, save_passage
from tests.stored import ranked as ranked_among

DIMENSION = 16
MODEL = "test/m"


def unit(seed: object, dimension: int = DIMENSION) -> bytes:
    """A vector of length 1 that is like no other."""
    rng = random.Random(str(seed))
    values = [rng.gauss(0.0, 1.0) for _ in range(dimension)]
    length = sum(v * v for v in values) ** 0.5
    return array("f", [v / length for v in values]).tobytes()


def of_text(m: Message) -> bytes:
    return unit(m.text)


# -- the bytes


def test_a_chunk_gives_back_what_was_put_in() -> None:
    blob = vector_blobs.merge(None, {70: unit(70), 65: unit(65)})
    blob = vector_blobs.merge(blob, {127: unit(127), 65: unit("again")})
    chunk = vector_blobs.read_vectors(blob)
    assert chunk.seqs.tolist() == [65, 70, 127]
    assert [row.tobytes() for row in chunk.numbers] == [unit("again"), unit(70), unit(127)]


def test_a_forgotten_message_leaves_no_byte_in_the_chunk() -> None:
    blob = vector_blobs.merge(None, {seq: unit(seq) for seq in range(64, 70)})
    left = vector_blobs.forget(blob, [65, 66, 300])
    assert vector_blobs.read_vectors(left).seqs.tolist() == [64, 67, 68, 69]
    assert unit(65) not in left
    assert vector_blobs.forget(left, range(64, 128)) == b""


def test_vectors_of_another_length_take_the_place_of_a_chunk() -> None:
    blob = vector_blobs.merge(vector_blobs.merge(None, {1: unit(1)}), {2: unit(2, 8)})
    assert vector_blobs.read_vectors(blob).seqs.tolist() == [2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: blob[:-1],
        lambda blob: blob + b"\0",
        lambda blob: b"xx" + blob[2:],
        lambda blob: blob[:16] + b"\xff" + blob[17:],  # a slot that no chunk has
    ],
)
def test_damaged_bytes_are_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CorruptIndex):
        vector_blobs.read_vectors(damage(vector_blobs.merge(None, {1: unit(1), 2: unit(2)})))


def test_the_nearest_message_stands_out_most() -> None:
    chunks = [
        vector_blobs.read_vectors(
            vector_blobs.merge(None, {seq: unit(seq) for seq in range(first, first + 40)})
        )
        for first in (0, 64)
    ]
    near = vector_blobs.compare(vector_blobs.join(chunks), Vector(MODEL, unit(71), 0.1, 0.5))
    assert near is not None
    assert near.seqs[near.similarity.argmax()] == 71
    assert near.beyond.max() == pytest.approx((1.0 - 0.1) / 0.5, rel=0.1)
    weaker = vector_blobs.compare(vector_blobs.join(chunks), Vector(MODEL, unit(71), -0.9, 0.2))
    assert weaker is not None
    assert weaker.beyond.mean() == pytest.approx(
        0.0, abs=1e-6
    )  # what these messages have in common is no news


def test_a_memory_that_differs_more_than_the_other_texts_is_measured_by_itself() -> None:
    """Texts in a language that the embedder hardly knows are near to a question or far from it by chance."""
    chunk = vector_blobs.read_vectors(vector_blobs.merge(None, {seq: unit(seq) for seq in range(40)}))
    near = vector_blobs.compare(vector_blobs.join([chunk]), Vector(MODEL, unit(7), 0.0, 0.001))
    assert near is not None
    assert near.seqs[near.beyond.argmax()] == 7
    # The one that stands out does not make the others differ.
    others = near.beyond[near.seqs != 7]
    assert near.beyond.max() > 3
    assert others.std() == pytest.approx(1.0, rel=0.3)


def test_chunks_of_another_length_are_not_compared() -> None:
    chunk = vector_blobs.read_vectors(vector_blobs.merge(None, {1: unit(1, 8)}))
    assert vector_blobs.compare(vector_blobs.join([chunk]), Vector(MODEL, unit(1))) is None
    assert (
        vector_blobs.compare(vector_blobs.join([chunk.slice_rows(0, 0)]), Vector(MODEL, unit(1, 8))) is None
    )


def test_messages_that_are_all_alike_do_not_stand_out() -> None:
    chunk = vector_blobs.read_vectors(vector_blobs.merge(None, {seq: unit(1) for seq in range(5)}))
    near = vector_blobs.compare(vector_blobs.join([chunk]), Vector(MODEL, unit(1)))
    assert near is not None
    assert near.beyond.tolist() == [0.0] * 5
    blobs = list(encode([Document(seq, "user", "Small talk.", 0.0) for seq in range(5)], SECRET).values())
    assert ranked_among(blobs, "reptiles", SECRET, similarities=near) == []


def test_a_text_near_to_all_texts_ranks_below_a_text_near_to_the_query() -> None:
    """A text that lies in the middle of all others is near to any of them, and so to any query."""
    common = np.frombuffer(unit(99), "<f4")
    own = {seq: np.frombuffer(unit(seq), "<f4") for seq in range(1, 41)}
    texts = {seq: common + data for seq, data in own.items()} | {50: common}
    found = {seq: (data / np.linalg.norm(data)).astype("<f4").tobytes() for seq, data in texts.items()}
    asked = common + own[7] * 0.3
    query = Vector(MODEL, (asked / np.linalg.norm(asked)).astype("<f4").tobytes(), 0.1, 0.2)
    near = vector_blobs.compare(
        vector_blobs.join([vector_blobs.read_vectors(vector_blobs.merge(None, found))]), query
    )
    assert near is not None
    assert near.seqs[near.beyond.argmax()] == 50
    assert near.seqs[near.similarity.argmax()] == 7


# -- the ranking

SECRET = b"s" * 16
TEXTS = [
    "My tortoise eats dandelions.",
    "We painted the kitchen yellow.",
    "The train to Porto was late.",
    *(f"Some other sentence, number {i}." for i in range(50)),
]


def ranked(
    query: str, near: Mapping[int, float] | None, texts: Sequence[str] = TEXTS, **options: Any
) -> list[int]:
    documents = [Document(i + 1, "user", text, 0.0) for i, text in enumerate(texts)]
    blobs = list(encode(documents, SECRET).values())
    found = None
    if near is not None:
        seqs = [*near, *(i for i in range(1, len(TEXTS) + 1) if i not in near)]
        # The others differ as they do: by one standard deviation.
        values = [*near.values(), *([-1.0, 1.0] * len(seqs))][: len(seqs)]
        found = VectorSimilarities(np.array(seqs, np.int64), np.array(values), np.array(values))
    return ranked_among(blobs, query, SECRET, similarities=found, **options)


def test_without_vectors_nothing_changes() -> None:
    assert ranked("Which colour has the kitchen?", None, only_strong=True) == [2]


def test_vectors_find_what_shares_no_word_after_or_before_what_does() -> None:
    assert ranked("Which colour has the kitchen?", {1: 4.0, 2: 2.0}, only_strong=True) == [2, 1]
    assert ranked("Which colour has the kitchen?", {1: 1.0}, only_strong=True) == [2]  # not near enough


def test_a_near_vector_does_not_come_before_words_that_hold_the_whole_question() -> None:
    near = {1: 9.0, 2: 0.5}
    assert ranked("the kitchen painted yellow", near, only_strong=True)[0] == 2
    assert 1 in ranked("which paint for the hallway ceiling", near, only_strong=True)


def test_an_earlier_question_with_the_same_words_does_not_hide_a_near_vector() -> None:
    texts = ["My tortoise eats dandelions.", "Which nourishment suits reptiles?", *TEXTS[2:]]
    near = {2: 6.0, 1: 5.0}
    assert 1 in ranked("Which nourishment is best for reptiles?", near, texts=texts, only_strong=True)


def test_a_near_question_is_ranked_after_what_is_less_near() -> None:
    texts = ["My tortoise eats dandelions.", "What would a reptile eat?", *TEXTS[2:]]
    near = {2: 6.0, 1: 3.0}
    assert ranked("food for turtles", near, texts=texts)[0] == 1
    assert 2 in ranked("food for turtles", near, texts=texts)  # who looks for it finds it
    assert ranked("food for turtles", near)[:2] == [2, 1]


def test_without_a_common_word_only_what_stands_far_out_is_found() -> None:
    assert ranked("What do reptiles like?", {1: 4.0}, only_strong=True) == []
    assert ranked("What do reptiles like?", {1: 6.5, 3: 2.5}, only_strong=True) == [1]
    assert ranked("What do reptiles like?", {1: 4.0})[0] == 1  # a search was asked for
    assert 1 not in ranked("What do reptiles like?", {1: -1.0})


def test_small_talk_finds_nothing_however_near() -> None:
    assert ranked("Hello there, thank you!", {1: 9.0}, only_strong=True) == []


def test_what_is_in_sight_is_not_wanted_and_what_the_index_does_not_know_is_no_hit() -> None:
    assert ranked("What do reptiles like?", {1: 7.0, 3: 6.5}, only_strong=True, skip=range(1, 2)) == [3]
    assert ranked("Which colour has the kitchen?", {2: 1.0, 900: 9.0}, only_strong=True) == [2]


# -- in a file


@pytest.fixture
async def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, Clock())


async def talk(alice: Speaker, *marks: str, key: str = "c1") -> None:
    history: list[Any] = []
    for mark in marks:
        history.append(user(f"What of {mark}?"))
        await alice.say(history, assistant(f"This of {mark}."), key)
        history.append(assistant(f"This of {mark}."))
    while await alice.store.search_index.advance(alice.agent.id):
        pass


async def read(store: Store, agent: Agent, model: str = MODEL) -> UnembeddedMessages:
    found = await store.vectors.find_unembedded(agent.id, model)
    assert found is not None
    if found.is_new:
        await store.database.write(store.vectors.make_begin_effect(agent.id, model))
        return await read(store, agent, model)
    return found


async def embed(
    store: Store, agent: Agent, model: str = MODEL, vector: Callable[[Message], bytes] = of_text
) -> list[str]:
    """All that lacks a vector. Returns the texts of what did."""
    texts: list[str] = []
    while await store.vectors.lacks(agent.id, model):
        found = await read(store, agent, model)
        added = {m.seq: vector(m) for m in found.messages}
        await store.database.write(store.vectors.make_add_effect(found, added))
        texts += [m.text for m in found.messages]
    return texts


async def search(store: Store, agent: Agent, text: str, model: str = MODEL, **options: Any) -> list[str]:
    hits = await store.recall.search(
        agent,
        "unheard",
        vector=Vector(model, unit(text)),
        limit=2,
        **options,
    )
    return [hit.text for hit in hits]


async def stored(store: Store, agent: Agent) -> list[tuple[str, list[int]]]:
    """(model, numbers) of each chunk."""
    found = await rows(store, "SELECT model, data FROM vectors WHERE agent = ? ORDER BY chunk", (agent.id,))
    return [(model, vector_blobs.read_vectors(data).seqs.tolist()) for model, data in found]


def parts(seed: object) -> list[bytes]:
    """A vector in quarters."""
    vector = unit(seed)
    return [vector[i : i + 16] for i in (0, 16, 32, 48)]


def left(holds: Holds, *seeds: object) -> list[object]:
    """Those whose vectors can still be found in the database, be it a part of them."""
    content = holds.content()
    return [seed for seed in seeds if any(part in content for part in parts(seed))]


async def test_messages_passages_and_facts_are_embedded_and_found(store: Store, alice: Speaker) -> None:
    await talk(alice, "tea", "rain")
    agent = alice.agent
    await save_passage(store, agent.id, "A saved note.", at=5.0)
    while await store.search_index.advance(agent.id):
        pass
    assert await store.vectors.find_agents_to_embed(MODEL, 10) == [agent.id]
    texts = ["What of tea?", "This of tea.", "What of rain?", "This of rain.", "A saved note."]
    assert await embed(store, agent) == texts
    assert not await store.vectors.lacks(agent.id, MODEL)
    assert await store.vectors.find_agents_to_embed(MODEL, 10) == []
    for text in texts:
        assert text in await search(store, agent, text)
    assert await search(store, agent, "This of rain.", "another/model") == []
    await talk(alice, "snow", key="c2")
    assert await embed(store, agent) == ["What of snow?", "This of snow."]
    assert "What of snow?" in await search(store, agent, "What of snow?")


async def test_every_memory_that_spans_conversations_is_to_be_embedded(store: Store) -> None:
    spanning = ["user:ann", "agent:a", "archive:b", "folder:c"]
    made: dict[str, int] = {}
    for subject in (*spanning, "conversation:d", "importing:user:e", "replaced:7"):
        speaker = Speaker(store, Scope("default", "@", subject), Clock())
        await speaker.say([user("Hello.")], assistant("Hello."))
        made[subject] = speaker.agent.id
    found = await store.vectors.find_agents_to_embed(MODEL, 10)
    assert sorted(found) == [made[subject] for subject in spanning]


async def test_a_search_waits_for_no_vectors_and_the_next_one_has_them(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk(alice, "tea", "milk " * 40, "rain")
    agent = alice.agent
    await embed(store, agent)
    monkeypatch.setattr(recall, "_MANY_UNREAD_BYTES", 0)
    read, may_read = store.database.long_read, asyncio.Event()

    async def read_late(operation: Any, **options: Any) -> Any:
        await may_read.wait()
        return await read(operation, **options)

    monkeypatch.setattr(store.database, "long_read", read_late)
    vector, deadline_ms = Vector(MODEL, unit("This of tea.")), 1000 * PATIENCE_S
    with monkeypatch.context() as hurrying:
        hurrying.setattr(recall, "_VECTORS_PART", 0.0)
        hits = await store.recall.search(
            agent, "rain", vector=vector, deadline_ms=deadline_ms, only_strong=True
        )
    texts = {hit.text for hit in hits}
    assert texts >= {"What of rain?", "This of rain."}
    assert "This of tea." not in texts
    may_read.set()
    assert "This of tea." in await search(store, agent, "This of tea.", deadline_ms=deadline_ms)


@pytest.mark.parametrize("max_plain_bytes", [0, 1 << 20])
async def test_a_search_goes_on_by_words_where_vectors_are_not_read_in_time(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch, max_plain_bytes: int
) -> None:
    await talk(alice, "tea", "milk " * 40, "rain")
    await embed(store, alice.agent)
    monkeypatch.setattr(recall, "_MANY_UNREAD_BYTES", max_plain_bytes)

    async def find_similarities(*_: Any, **__: Any) -> None:
        raise StoreTimeout("it takes too long")

    monkeypatch.setattr(recall, "find_similarities", find_similarities)
    hits = await store.recall.search(
        alice.agent, "rain", vector=Vector(MODEL, unit("This of tea.")), only_strong=True
    )
    texts = {hit.text for hit in hits}
    assert texts >= {"What of rain?", "This of rain."}
    assert "This of tea." not in texts


async def test_vectors_that_are_read_while_something_is_forgotten_are_not_cached(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk(alice, "tea", "rain")
    agent, cache = alice.agent, store.recall._memories.vectors
    await embed(store, agent)
    read = vector_cache.read_chunk

    async def read_and_clear(*given: Any) -> Any:
        found = await read(*given)
        cache.clear()
        return found

    with monkeypatch.context() as forgetting:
        forgetting.setattr(vector_cache, "read_chunk", read_and_clear)
        assert "This of tea." in await search(store, agent, "This of tea.")
    assert cache.get(agent.id, MODEL) is None
    assert "This of tea." in await search(store, agent, "This of tea.")
    assert cache.get(agent.id, MODEL) is not None


def test_the_newest_vectors_stay_in_the_cache_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "CACHE_BYTES", 1)
    chunk = vector_blobs.read_vectors(vector_blobs.merge(None, {1: unit(1)}))
    cached = vector_cache.CachedVectors(1, {}, vector_blobs.join([chunk]))
    cache = vector_cache.VectorCache()
    cache.put(1, MODEL, cached, 0)
    assert cache.get(1, MODEL) is cached
    cache.put(2, MODEL, cached, 0)
    assert (cache.get(1, MODEL), cache.get(2, MODEL)) == (None, cached)


async def test_another_model_starts_over_and_replaces_the_first(store: Store, alice: Speaker) -> None:
    await talk(alice, *(f"n{i}" for i in range(70)))
    agent = alice.agent
    await embed(store, agent)
    assert {model for model, _ in await stored(store, agent)} == {MODEL}
    assert await store.vectors.lacks(agent.id, "b")
    found = await read(store, agent, "b")
    await store.database.write(
        store.vectors.make_add_effect(found, {m.seq: unit(m.text, 8) for m in found.messages})
    )
    assert [model for model, _ in await stored(store, agent)] == ["b", "b", MODEL]
    assert await search(store, agent, "What of n3?") == []  # its vectors are no longer compared
    await embed(store, agent, "b", lambda m: unit(m.text, 8))
    assert [model for model, _ in await stored(store, agent)] == ["b"] * 3
    assert sum(len(seqs) for _, seqs in await stored(store, agent)) == 140


async def test_vectors_of_another_length_under_the_same_name_start_over(store: Store, alice: Speaker) -> None:
    await talk(alice, "tea")
    agent = alice.agent
    await embed(store, agent, vector=lambda m: unit(m.text, 8))
    await talk(alice, "rain", key="c2")
    assert await embed(store, agent) == ["What of rain?", "This of rain.", *(
        "What of tea?", "This of tea.", "What of rain?", "This of rain."
    )]  # fmt: skip
    assert "What of tea?" in await search(store, agent, "What of tea?")


async def test_a_memory_that_has_changed_since_it_was_read_is_read_again(
    store: Store, alice: Speaker
) -> None:
    await talk(alice, "tea")
    agent = alice.agent
    found = await read(store, agent)
    await store.database.write(store.vectors.make_begin_effect(agent.id, MODEL))
    await store.database.write(store.vectors.make_add_effect(found, {1: unit("late")}))
    assert await stored(store, agent) == []
    assert await store.vectors.lacks(agent.id, MODEL)


async def test_a_reply_that_came_back_cut_is_embedded_again(store: Store, alice: Speaker) -> None:
    whole = assistant("It was on Tuesday, and then we went home by train and slept.")
    await alice.say([user("When?")], whole, "c1")
    await talk(alice, "tea", key="c2")
    agent = alice.agent
    await embed(store, agent)
    cut = assistant("It was on Tuesday, and then")
    await alice.say([user("When?"), cut, user("Stop.")], assistant("Fine."), "c1")
    while await store.search_index.advance(agent.id):
        pass
    assert await embed(store, agent) == ["When?", "It was on Tuesday, and then", "Stop.", "Fine."]


async def test_a_damaged_chunk_is_skipped_and_made_again(store: Store, alice: Speaker) -> None:
    await talk(alice, "tea")
    agent = alice.agent
    await embed(store, agent)
    await rows(store, "UPDATE vectors SET data = ?, stamp = 99", (b"\0",))
    await rows(store, "UPDATE embedded SET stamp = 99")
    assert await search(store, agent, "What of tea?") == []
    await talk(alice, "rain", key="c2")
    texts = await embed(store, agent)
    assert texts[:2] == ["What of rain?", "This of rain."]
    assert set(texts[2:]) == {"What of tea?", "This of tea."}
    assert "What of tea?" in await search(store, agent, "What of tea?")


async def test_a_damaged_chunk_is_made_again_with_the_reply_that_it_begins_with(
    store: Store, alice: Speaker
) -> None:
    """The exchange of this reply begins in the chunk before."""
    await talk(alice, *map(str, range(40)))
    agent = alice.agent
    await embed(store, agent)
    found = await alice.rows()
    assert [e.reply_seq for e in found if e.seq < 64 <= e.reply_seq] == [64]
    await rows(store, "UPDATE vectors SET data = ? WHERE chunk = 1", (b"\0",))
    await talk(alice, "rain", key="c2")
    assert "This of 31." in await embed(store, agent)


# -- forgetting


async def test_forgetting_takes_the_vectors_along(store: Store, alice: Speaker, holds: Holds) -> None:
    await talk(alice, "one", "two", "three")
    await talk(alice, "four", key="c2")
    agent = alice.agent
    note = await save_passage(store, agent.id, "A note on one.", at=5.0, sources=[(await alice.rows())[0].id])
    while await store.search_index.advance(agent.id):
        pass
    await embed(store, agent)
    texts = [f"{what} of {n}{end}" for n in ("one", "two", "three", "four")
             for what, end in (("What", "?"), ("This", "."))] + [note.text]  # fmt: skip
    await store.database.sweep(1000)
    assert left(holds, *texts) == texts
    assert "What of one?" in await search(store, agent, "What of one?")
    await forget(store, agent, ForgetTarget(exchange_rows=[(await alice.rows())[0].id]))
    assert left(holds, *texts) == texts[2:-1]
    assert "What of one?" not in await search(store, agent, "What of one?")
    await forget(store, agent, ForgetTarget(message_seqs=[(await alice.rows())[1].seq]))
    assert left(holds, *texts) == texts[3:-1]
    await forget(
        store,
        agent,
        ForgetTarget(conversation_row=await store.forget_targets.find_conversation(agent.id, "c1")),
    )
    assert left(holds, *texts) == texts[6:-1]
    assert not await store.vectors.lacks(agent.id, MODEL)
    await forget(store, agent, ForgetTarget(is_all=True))
    assert left(holds, *texts) == []
    counts = "SELECT (SELECT count(*) FROM vectors), (SELECT count(*) FROM embedded)"
    assert await rows(store, counts) == [(0, 0)]


async def test_forgetting_takes_the_vectors_along_while_another_embedder_takes_over(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    """The table was there first; a multilingual model, whose vectors are longer, has begun, and none of the table's is
    left.
    """
    await talk(alice, *(f"number {number}" for number in range(40)))  # more messages than a chunk has
    agent, model = alice.agent, "e5/multilingual"

    def longer(m: Message) -> bytes:
        return unit(f"e5 {m.text}", 2 * DIMENSION)

    await embed(store, agent)
    found = await read(store, agent, model)
    added = {m.seq: longer(m) for m in found.messages[:20]}
    await store.database.write(store.vectors.make_add_effect(found, added))
    assert {name for name, _ in await stored(store, agent)} == {model}
    gone = (await alice.rows())[0].id, (await alice.rows())[-1].id
    early, late = "What of number 0?", "What of number 39?"

    def holds_longer(text: str) -> bool:
        vector = unit(f"e5 {text}", 2 * DIMENSION)
        return any(holds(vector[at : at + 16]) for at in range(0, len(vector), 16))

    await store.database.sweep(1000)
    assert holds_longer(early)
    assert left(holds, early, late) == []
    await forget(store, agent, ForgetTarget(exchange_rows=gone))
    assert not holds_longer(early)
    assert not {early, late} & set(await embed(store, agent, model, longer))
    assert holds_longer("What of number 1?")
    await forget(store, agent, ForgetTarget(is_all=True))
    assert not holds_longer("What of number 1?")
    assert await rows(store, "SELECT count(*) FROM vectors") == [(0,)]


@pytest.mark.parametrize("seed", range(2))
async def test_rows_that_come_grow_and_go_leave_no_copies(store: Store, holds: Holds, seed: int) -> None:
    """Rows of several memories share pages and move as others come and go. (Without padding each of these fails.)"""
    rng = random.Random(seed)
    kept: dict[tuple[int, int], dict[int, object]] = {}
    gone: set[object] = set()

    async def change(connection: Connection) -> None:
        for step in range(600):
            agent, chunk = place = rng.randrange(1, 31), rng.randrange(3)
            chance = rng.random()
            if chance < 0.7:
                seqs = [chunk * 64 + rng.randrange(64) for _ in range(rng.randrange(1, 16))]
                held = kept.setdefault(place, {})
                gone.update(held[seq] for seq in seqs if seq in held)
                held.update({seq: (agent, seq, step) for seq in seqs})
                added = {seq: unit(held[seq]) for seq in seqs}
                await connection.lock(agent)
                await add_vectors(connection, agent, MODEL, step, added)
            elif place in kept:
                held = kept[place]
                seqs = [seq for seq in held if chance > 0.9 or rng.random() < 0.3]
                gone.update(held.pop(seq) for seq in seqs)
                await forget_indexed(connection, agent, seqs)

    await store.database.write(change)
    assert await store.database.sweep(1000)
    there = [seed for held in kept.values() for seed in held.values()]
    content = holds.content()
    # To look for thousands one by one takes seconds.
    pieces = {content[i : i + 16] for i in range(len(content))}
    assert [seed for seed in gone if not pieces.isdisjoint(parts(seed))] == []
    assert left(holds, *there[:20]) == there[:20]


async def test_vectors_that_were_being_made_during_a_forgetting_are_not_stored(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, "one", "two")
    agent = alice.agent
    await read(store, agent)  # it has begun
    await store.jobs.enqueue("embed", agent.id, "embed")
    job = await store.jobs.leases.claim(["embed"], lease_s=60.0, tries=8)
    assert job is not None
    found = await read(store, agent)
    added = {m.seq: of_text(m) for m in found.messages}
    await forget(store, agent, ForgetTarget(exchange_rows=[(await alice.rows())[0].id]))
    with pytest.raises(StaleWrite):
        await store.jobs.finish(job, store.vectors.make_add_effect(found, added))
    await store.database.sweep(1000)
    assert left(holds, "What of one?", "This of one.") == []
    assert await embed(store, agent) == ["What of two?", "This of two."]


async def test_a_forgotten_message_is_not_embedded_later(store: Store, alice: Speaker, holds: Holds) -> None:
    await talk(alice, "one", "two")
    agent = alice.agent
    await forget(store, agent, ForgetTarget(message_seqs=[(await alice.rows())[0].seq]))
    assert await embed(store, agent) == ["This of one.", "What of two?", "This of two."]


async def test_the_numbers_remembered_between_queries_are_those_on_disk(store: Store, alice: Speaker) -> None:
    agents: Sequence[str] = ("one", "two")
    await talk(alice, *agents)
    agent = alice.agent
    await embed(store, agent)
    assert "What of one?" in await search(store, agent, "What of one?")
    id = await store.forgetting.begin(agent.id, ForgetTarget(exchange_rows=[(await alice.rows())[0].id]))
    assert await store.forgetting.run(id)  # nothing is swept yet
    near: list[str] = []
    for text in ("What of one?", "What of two?"):
        near += await search(store, agent, text)
    assert "What of one?" not in near
    assert "What of two?" in near
