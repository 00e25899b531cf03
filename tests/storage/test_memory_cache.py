"""A process remembers the memories asked last; its answers are those of one that reads all of them again."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.memory.rules import RULES
from storage.errors import StoreCorrupt, StoreTimeout
from storage.forget_commands import ForgetTarget
from storage.listing import PassageDraft, PassageFilter
from storage.records import Message
from storage.search import tokens
from storage.search.blob import encode, forget
from storage.search.document import CountedDocument, Document, Indexable, count_terms
from storage.search.index import Index
from storage.search.rank import rank
from storage.search.tail import Tail
from storage.search.tokens import clear_terms
from storage.sql.fact_writes import add_saved_facts
from storage.sql.memory_cache import CachedMemory, MemoryCache
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S, SHORT_S
from tests.storage.test_facts import fact
from tests.stored import ALICE, Clock, Speaker, ranked, rows, save_passage

SECRET = b"s" * 32
COUNTING = ("storage.search.blob", "storage.search.tail", "storage.sql.search_index")
NOUNS = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture
async def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, Clock())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Indexable]:
    """Every message whose words were counted."""
    found: list[Indexable] = []

    def count(document: Indexable) -> CountedDocument:
        found.append(document)
        return count_terms(document)

    for module in COUNTING:
        monkeypatch.setattr(f"{module}.count_terms", count)
    return found


async def search(store: Store, alice: Speaker, query: str, **options: Any) -> list[Message]:
    """Returns what is found. Of a message that is indexed nobody asks what came before its exchange."""
    options.setdefault("deadline_ms", 10_000.0)  # a busy machine is no reason to find nothing
    return [replace(m, previous=None) for m in await store.recall.search(alice.agent, query, **options)]


def some_text(dice: random.Random) -> str:
    return " ".join(dice.choices(NOUNS, k=3))


async def hits(store: Store, alice: Speaker, query: str, **options: Any) -> list[int]:
    return sorted(m.seq for m in await search(store, alice, query, only_strong=True, **options))


class Life:
    """A memory in which anything happens to what was said."""

    def __init__(self, store: Store, alice: Speaker, seed: int) -> None:
        self.store, self.alice = store, alice
        self.dice = random.Random(seed)
        self.talks: dict[str, list[dict[str, Any]]] = {}
        self.count = 0

    def text(self) -> str:
        self.count += 1
        return f"{' '.join(self.dice.choices(NOUNS, k=4))} number {self.count}."

    async def say(self) -> None:
        key = self.dice.choice(("a", "b", "c", "d"))
        messages = self.talks.setdefault(key, [])
        messages.append(user(self.text()))
        reply = assistant(self.text())
        await self.alice.say(messages, reply, key)
        messages.append(reply)

    async def edit(self) -> None:
        """Goes back in a conversation, and says something else there."""
        key = self.dice.choice([*self.talks]) if self.talks else "a"
        messages = self.talks.get(key, [])
        del messages[2 * self.dice.randrange(len(messages) // 2 + 1) :]
        self.talks[key] = messages
        await self.say()

    async def open(self) -> None:
        """Says something without a name of the conversation."""
        await self.alice.say([user(self.text())], assistant(self.text()))

    async def save(self) -> None:
        await save_passage(self.store, self.alice.agent.id, self.text(), at=self.count)

    async def learn(self) -> None:
        known = await self.store.facts.list_page(self.alice.agent.id)
        replaces = [self.dice.choice(known).id] if known and self.dice.random() < 0.5 else []
        made = [fact(self.text(), replaces=replaces)]
        agent = self.alice.agent.id
        await self.store.database.bulk_write(lambda c: add_saved_facts(c, agent, made, self.count))

    async def forget(self) -> None:
        (row,) = await rows(self.store, "SELECT next_seq FROM agents WHERE id = ?", (self.alice.agent.id,))
        passages = await self.store.passages.list_texts(self.alice.agent.id)
        target = ForgetTarget(message_seqs=[self.dice.randrange(1, max(2, row[0]))])
        if passages and self.dice.random() < 0.5:
            target = ForgetTarget(passage_seqs=[self.dice.choice(passages).seq])
        begun = await self.store.forgetting.begin(self.alice.agent.id, target)
        await search(self.store, self.alice, "ant")
        await self.store.forgetting.run(begun)

    async def index(self) -> None:
        await self.store.search_index.advance(self.alice.agent.id)


# The cache does not know the database, so one life shows that PostgreSQL answers as SQLite does.
LIVES = [("sqlite", 0), ("sqlite", 1), ("sqlite", 2), ("postgres", 0)]


@pytest.mark.parametrize(("database", "seed"), LIVES, indirect=["database"])
async def test_the_cache_returns_the_same_as_reading_the_memory_anew(
    store: Store, alice: Speaker, seed: int
) -> None:
    life = Life(store, alice, seed)
    await life.say()
    steps: list[Callable[[], Awaitable[None]]] = [
        life.say, life.say, life.say, life.edit, life.open, life.save, life.learn, life.forget, life.index,
    ]  # fmt: skip
    cache, hits = store.recall._memories, 0
    for _ in range(60):
        await life.dice.choice(steps)()
        start = life.dice.randrange(2 * life.count)
        options: dict[str, Any] = {
            "room": life.dice.choice((0, 500)),
            "only_strong": life.dice.random() < 0.5,
        }
        if life.dice.random() < 0.3:
            options["skip"] = range(start, start + life.dice.randrange(20))
        query = " ".join(life.dice.sample(NOUNS, 2))
        snapshot = await store.turns.find_snapshot(alice.agent, None, None)
        assert snapshot is not None
        warm = await search(store, alice, query, numbers=snapshot.numbers, **options)
        again = await search(store, alice, query, **options)
        assert cache._small._bytes == sum(memory.size_bytes for memory, _ in cache._small._memories.values())
        cache.clear()
        cold = await search(store, alice, query, **options)
        assert warm == cold
        assert again == cold
        hits += len(cold)
        # Go on with a memory that has seen some of it.
        await search(store, alice, "ant", skip=options.get("skip", range(0)))
    assert hits > 100


@pytest.mark.parametrize(("database", "seed"), LIVES, indirect=["database"])
async def test_a_search_of_a_memory_without_an_index_finds_everything_in_the_cache(
    store: Store, alice: Speaker, seed: int
) -> None:
    life, at_hand = Life(store, alice, seed), 0
    await life.say()
    steps = [life.say, life.say, life.edit, life.open, life.save, life.learn, life.forget]
    for _ in range(40):
        await life.dice.choice(steps)()
        snapshot = await store.turns.find_snapshot(alice.agent, None, None)
        assert snapshot is not None
        start = life.dice.randrange(2 * life.count)
        skip = range(start, start + life.dice.randrange(20))
        known = store.recall.find_cached_messages(alice.agent, snapshot.numbers, skip)
        found = await search(store, alice, " ".join(NOUNS), numbers=snapshot.numbers, skip=skip, limit=96)
        if known is not None:
            at_hand += 1
            assert {m.seq for m in found} <= {m.seq for m in known}
            assert not {m.seq for m in known} & {*skip}
    assert at_hand > 3
    await life.index()
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    await search(store, alice, "ant", numbers=snapshot.numbers)
    assert store.recall.find_cached_messages(alice.agent, snapshot.numbers, range(0)) is None


async def test_a_memory_that_is_remembered_is_not_read_again(open_store: Any) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    alice = Speaker(store, ALICE, Clock())
    for n in range(5):
        await alice.say([user(f"My dog number {n}.")], assistant("Nice."), f"c{n}")
    await store.search_index.advance(alice.agent.id)
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    first = await hits(store, alice, "Which dog?", numbers=snapshot.numbers)
    statements.clear()
    assert await hits(store, alice, "Which dog?", numbers=snapshot.numbers) == first
    assert statements == []
    await alice.say([user("My dog number 6.")], assistant("Nice."), "c6")
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    statements.clear()
    numbers = snapshot.numbers
    assert await hits(store, alice, "Which dog?", numbers=numbers, skip=range(11, 13)) == first
    assert statements == []  # what the request shows is not wanted
    # A turn that this process has committed is known.
    assert await hits(store, alice, "Which dog?", numbers=numbers) == [*first, 11]
    assert statements == []
    await save_passage(store, alice.agent.id, "The dog is called Rex.", at=7)
    await alice.say([user("My dog number 7.")], assistant("Nice."), "c7")
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    statements.clear()
    # It does not follow what is known: another process may have written in between.
    assert await hits(store, alice, "Which dog?", numbers=snapshot.numbers) == [*first, 11, 13, 14]
    assert len(statements) == 2
    await store.search_index.advance(alice.agent.id)
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    statements.clear()
    # The words of a message that was known stay when the index has come to it.
    assert await hits(store, alice, "Which dog?", numbers=snapshot.numbers) == [*first, 11, 13, 14]
    assert len(statements) == 1


async def test_an_opening_of_this_process_is_not_read_and_later_turns_are_read_once(
    open_store: Any,
) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    alice, messages = Speaker(store, ALICE, Clock()), list[dict[str, Any]]()

    async def reads() -> int:
        """Returns with how many statements a question from elsewhere finds all that was said."""
        snapshot = await store.turns.find_snapshot(alice.agent, None, None)
        assert snapshot is not None
        statements.clear()
        assert await hits(store, alice, "Which dog?", numbers=snapshot.numbers) == [
            *range(1, snapshot.next_seq, 2)
        ]
        return len(statements)

    for n in range(3):
        messages = [user(f"My dog number {n}.")]
        await alice.say(messages, assistant("Nice."), f"c{n}")
    assert await reads() == 0
    for n in range(3):
        messages += [assistant("Nice."), user(f"Another dog, {n}.")]
        await alice.say(messages, assistant("Nice."), "c2")
    assert await reads() == 1
    assert await reads() == 0


async def test_words_are_counted_before_the_transaction_that_indexes_them(
    open_store: Any, counted: list[Indexable]
) -> None:
    """Else each turn that comes meanwhile would wait for all of them."""
    before: list[int] = []

    def note(statement: str) -> None:
        if statement == "stale":  # the first that the transaction reads
            before.append(len(counted))

    store = await open_store(note=note)
    alice = Speaker(store, ALICE, Clock())
    for n in range(5):
        await alice.say(
            [user(f"Words that nobody has said before: {n}, {n * 7}.")], assistant("Nice."), f"w{n}"
        )
    await store.search_index.advance(alice.agent.id)
    assert before == [len(counted)]
    assert len(counted) >= 5


async def test_words_that_a_query_has_counted_are_indexed_as_they_are(
    store: Store, alice: Speaker, counted: list[Indexable]
) -> None:
    for n in range(3):
        await alice.say([user(f"My dog number {n} is called Rex.")], assistant("Nice."), f"c{n}")
    assert len(await hits(store, alice, "Which dog is called Rex?")) == 3
    await alice.say([user("My cat is called Tom.")], assistant("Fine."), "d")
    counted.clear()
    await store.search_index.advance(alice.agent.id)
    assert len(counted) == 2
    assert 7 in await hits(store, alice, "What is the cat called?")


async def test_no_words_are_counted_within_the_transaction_of_the_index(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a file is long, and turns would wait for sixty-four of them."""
    within: list[Indexable] = []

    def count(document: Indexable) -> CountedDocument:
        within.append(document)
        return count_terms(document)

    await alice.say([user("My cat is called Tom.")], assistant("Fine."))
    await store.passages.add(alice.agent.id, [PassageDraft(f"The ant number {n}.", 1.0) for n in range(3)])
    await store.facts.remember(alice.agent, "I like tea.", "tea", "person", 1.0)
    monkeypatch.setattr("storage.search.blob.count_terms", count)
    while await store.search_index.advance(alice.agent.id):
        pass
    assert within == []
    assert "The ant number 2." in [m.text for m in await search(store, alice, "ant number 2")]


async def test_facts_that_one_search_leaves_unread_are_read_by_the_next(store: Store, alice: Speaker) -> None:
    await alice.say([user("Hello.")], assistant("Hello."))
    for n in range(150):
        text = f"The ant number {n}." if n < 149 else "The cow eats clover."
        await store.facts.remember(alice.agent, text, text, "person", 1.0)
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    for _ in range(2):
        await search(store, alice, "cow clover")
    assert "The cow eats clover." in [m.text for m in await search(store, alice, "cow clover")]
    assert [m.text for m in await search(store, alice, "Rex dog")].count("My dog is called Rex.") == 1


async def test_nothing_that_is_forgotten_stays_in_memory(store: Store, alice: Speaker) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    await alice.say([user("My cat is called Tom.")], assistant("Nice."))
    assert await hits(store, alice, "dog cat") == [1, 3]
    begun = await store.forgetting.begin(alice.agent.id, ForgetTarget(message_seqs=[1]))
    assert await hits(store, alice, "dog cat") == [1, 3]
    await store.forgetting.run(begun)
    assert store.recall._memories.get(alice.agent.id) is None
    assert await hits(store, alice, "dog cat") == [3]


async def test_listeners_are_called_when_a_memory_is_wiped(store: Store, alice: Speaker) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    calls: list[int] = []
    store.forgetting.add_forget_listener(lambda: calls.append(1))
    await store.forgetting.wipe(alice.agent.id)
    assert calls


async def test_a_memory_with_an_open_turn_is_searched(store: Store, alice: Speaker) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    await alice.end(await alice.begin([user("Hello.")], "c1"), [], rule=settle.write_draft)
    store.recall._memories.clear()
    assert await hits(store, alice, "dog") == [1]


def hold_long_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Has each memory read in the thread, and the first reader wait. Returns when it has read, and when it goes on."""
    monkeypatch.setattr("storage.sql.memory_loader._LONG_MEMORY", 0)
    read, has_read, goes_on = store.database.long_read, asyncio.Event(), asyncio.Event()

    async def slow(*values: Any, **options: Any) -> Any:
        found = await read(*values, **options)
        if not has_read.is_set():
            has_read.set()
            await goes_on.wait()
        return found

    monkeypatch.setattr(store.database, "long_read", slow)
    return has_read, goes_on


async def test_a_search_that_joins_a_reading_finds_what_came_since(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    store.recall._memories.clear()
    has_read, goes_on = hold_long_reads(store, monkeypatch)
    first = asyncio.create_task(hits(store, alice, "dog cat", deadline_ms=50_000))
    await has_read.wait()
    await alice.say([user("My cat is called Tom.")], assistant("Nice."))
    joined = asyncio.create_task(hits(store, alice, "dog cat", deadline_ms=50_000))
    await asyncio.sleep(0.05)  # it has read its numbers
    goes_on.set()
    assert (await first, await joined) == ([1], [1, 3])


async def test_a_memory_that_is_read_too_slowly_for_one_search_is_there_for_the_next(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read was dropped where no search waited for it any more, so that each search began anew."""
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    store.recall._memories.clear()
    has_read, goes_on = hold_long_reads(store, monkeypatch)
    searching = asyncio.create_task(hits(store, alice, "dog", deadline_ms=SHORT_S * 1e3))
    async with asyncio.timeout(PATIENCE_S):
        await has_read.wait()
    with pytest.raises(StoreTimeout):
        await searching
    (reading,) = store.recall._loader._long_reads.values()
    goes_on.set()
    await reading
    monkeypatch.setattr(store.database, "long_read", None)  # nothing is read anew
    assert await hits(store, alice, "dog", deadline_ms=50_000) == [1]


async def test_no_search_waits_for_a_read_from_before_a_forgetting(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    await alice.say([user("My cat is called Tom.")], assistant("Nice."))
    store.recall._memories.clear()
    has_read, goes_on = hold_long_reads(store, monkeypatch)
    before = asyncio.create_task(hits(store, alice, "dog cat", deadline_ms=50_000))
    await has_read.wait()
    begun = await store.forgetting.begin(alice.agent.id, ForgetTarget(message_seqs=[1]))
    await store.forgetting.run(begun)
    assert await hits(store, alice, "dog cat", deadline_ms=50_000) == [3]
    goes_on.set()
    await before


async def test_numbers_that_another_process_has_moved_are_believed(store: Store, alice: Speaker) -> None:
    """Nobody here said that something has changed; the snapshot of the next turn does."""
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    assert await hits(store, alice, "dog") == [1]
    await rows(store, "UPDATE exchanges SET active = 0 WHERE agent = ?", (alice.agent.id,))
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    assert await hits(store, alice, "dog", numbers=snapshot.numbers) == []


async def test_a_message_read_before_another_process_changed_it_is_not_cached(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.say([user("My dog is called Rex.")], assistant("Nice."))
    while await store.search_index.advance(alice.agent.id):
        pass
    store.recall._memories.clear()
    read, has_read, goes_on = store.database.read, asyncio.Event(), asyncio.Event()

    async def slow(*values: Any, **options: Any) -> Any:
        found = await read(*values, **options)
        if isinstance(found, dict) and not has_read.is_set():  # the messages that are to be shown
            has_read.set()
            await goes_on.wait()
        return found

    monkeypatch.setattr(store.database, "read", slow)
    before = asyncio.create_task(hits(store, alice, "dog"))
    await has_read.wait()
    await rows(store, "UPDATE exchanges SET active = 0 WHERE agent = ?", (alice.agent.id,))
    snapshot = await store.turns.find_snapshot(alice.agent, None, None)
    assert snapshot is not None
    assert await hits(store, alice, "dog", numbers=snapshot.numbers) == []
    goes_on.set()
    assert await before == [1]
    assert await hits(store, alice, "dog", numbers=snapshot.numbers) == []


async def test_the_memories_used_last_are_cached_as_far_as_they_fit() -> None:
    def memory(agent_row: int) -> CachedMemory:
        texts = [f"{noun} {agent_row}" for noun in NOUNS]
        documents = [Document(n, "user", text, 0.0) for n, text in enumerate(texts, 1)]
        return CachedMemory(agent_row, Index(encode(documents, SECRET).items()))

    cache = MemoryCache(RULES, limit_bytes=3 * memory(2).size_bytes)
    for n in (1, 2, 3, 1, 4):
        cache.put(cache.get(n) or memory(n))
    assert [n for n in (1, 2, 3, 4) if cache.get(n)] == [1, 3, 4]
    large = MemoryCache(RULES, limit_bytes=10)
    large.put(memory(1))
    assert large.get(1)  # one that is too large for all is cached until another one comes
    large.put(memory(2))
    assert (large.get(1), bool(large.get(2))) == (None, True)


@pytest.mark.parametrize("seed", range(5))
def test_an_index_whose_chunks_change_is_the_index_of_the_chunks(seed: int) -> None:
    """Chunks come in any order, are written again, and are emptied; many lie apart and are sorted in."""
    dice = random.Random(seed)
    blobs: dict[int, bytes] = {}
    index = Index()
    for _ in range(60):
        changed: dict[int, bytes] = {}
        for _ in range(dice.randrange(1, 5)):
            chunk = dice.randrange(60)
            numbers = range(chunk * 64, chunk * 64 + 64)
            if blobs.get(chunk) and dice.random() < 0.3:
                changed[chunk] = forget(blobs[chunk], dice.sample(numbers, dice.choice((40, 64))))
            else:
                seqs = sorted(dice.sample(numbers, 20))
                documents = [
                    Document(seq, dice.choice(("user", "assistant")), some_text(dice), 0.0, None, before)
                    for seq, before in zip(seqs, [None, *seqs], strict=False)
                ]
                changed |= encode(documents, SECRET)
        blobs |= changed
        index.put(changed.items())
        tail = [Document(dice.randrange(4000), "user", some_text(dice), 0.0)]
        query = " ".join(dice.sample(NOUNS, 2))
        options = {"limit": 20, "room": dice.choice((0, 500))}
        hits = rank(index, query, SECRET, tail=Tail(tail), **options)
        assert hits
        assert hits == ranked([data for data in blobs.values() if data], query, SECRET, tail=tail, **options)


@pytest.mark.parametrize("seed", range(5))
def test_a_tail_that_grows_is_the_tail_laid_at_once(seed: int) -> None:
    """Messages come before those that they follow, have several after them, and take the place of indexed ones.

    Some queries leave some out; others begin with another tail.
    """
    dice = random.Random(seed)
    known = [Document(n, "user", some_text(dice), 0.0, None, n - 1 or None) for n in range(1, 30)]
    blobs = encode(known, SECRET) if seed else {}
    index = Index(blobs.items())
    said, tail = list[Document](), Tail()
    for _ in range(60):
        seqs = dice.sample(range(30 if dice.random() < 0.8 else 1, 100), dice.randrange(4))
        for seq in seqs:
            if seq not in {each.seq for each in said}:
                role, before = dice.choice(("user", "assistant")), dice.randrange(seq)
                said.append(Document(seq, role, some_text(dice), 0.0, None, before))
                tail.add(said[-1])
        if dice.random() < 0.1:
            del said[dice.randrange(len(said) + 1) :]
            tail = Tail(said)
        query, start = " ".join(dice.sample(NOUNS, 2)), dice.randrange(100)
        skip = range(start, start + dice.choice((0, 0, 5, 40)))
        hits = rank(index, query, SECRET, tail=tail, skip=skip, limit=20)
        wanted = [each for each in said if each.seq not in skip]
        assert hits == ranked(blobs.values(), query, SECRET, tail=wanted, skip=skip, limit=20)


def test_a_tail_gives_back_what_was_counted() -> None:
    texts = ("My dog Rex ate. It barked at Anna Rex Rex.", "My dog.", "", "Hello Anna, this is Bert.")
    documents = [Document(n, "user", text, 0.0, "Ann", n - 1) for n, text in enumerate(texts, 7)]
    assert Tail(documents).list_counted_documents() == list(map(count_terms, documents))


async def test_terms_that_a_query_has_counted_are_not_counted_again_for_the_index(
    store: Store, alice: Speaker, counted: list[Indexable]
) -> None:
    for n in range(4):
        await alice.say([user(f"The ant number {n}.")], assistant("A small one."), f"c{n}")
    await search(store, alice, "ant")
    counted.clear()
    while await store.search_index.advance(alice.agent.id):
        pass
    assert counted == []
    assert await hits(store, alice, "ant number 3")


async def test_an_index_with_the_words_of_an_earlier_version_is_made_again_as_it_grows(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(tokens, "_PLAIN_LETTERS", {})
        clear_terms()
        for number in range(80):
            await alice.say([user(f"{number}: Władysław, Oslo")], assistant("Noted."))
        while await store.search_index.advance(alice.agent.id):
            pass
    clear_terms()
    chunks = "SELECT chunk, data FROM terms ORDER BY chunk"
    found = await rows(store, chunks)
    assert len(found) == 3
    for chunk, data in found:
        old = bytes([*data[:3], tokens.VERSION - 1, *data[4:]])
        await rows(store, "UPDATE terms SET data = ? WHERE chunk = ?", (old, chunk))
    # Until then what is written in the same way is found.
    assert len(await search(store, alice, "Oslo")) == 40
    assert await search(store, alice, "Władysław") == []
    await alice.say([user("And further?")], assistant("Noted."))
    while await store.search_index.advance(alice.agent.id):
        pass
    assert {data[3] for _, data in await rows(store, chunks)} == {tokens.VERSION}
    assert len(await search(store, alice, "Władysław")) == 40


async def test_a_damaged_chunk_is_made_again_with_the_reply_that_it_begins_with(
    store: Store, alice: Speaker
) -> None:
    """The question of this reply is the last message of the chunk before."""
    for number in range(40):
        await alice.say([user(f"Question {number}?")], assistant("Gooseberry." if number == 31 else "Yes."))
    while await store.search_index.advance(alice.agent.id):
        pass
    reply = [m for m in await search(store, alice, "gooseberry") if m.role == "assistant"]
    assert [m.seq for m in reply] == [64]
    await rows(store, "UPDATE terms SET data = ?, stamp = 99 WHERE chunk = 1", (b"x",))
    await rows(store, "UPDATE agents SET stamp = stamp + 1")
    with pytest.raises(StoreCorrupt):
        await search(store, alice, "gooseberry")
    assert reply[0].seq in await hits(store, alice, "gooseberry")
    while await store.search_index.advance(alice.agent.id):
        pass
    assert reply[0].seq in await hits(store, alice, "gooseberry")


@pytest.mark.parametrize("how", ["search", "select", "around", "passages"])
async def test_whatever_reads_a_damaged_index_names_it_and_has_it_made_again(
    store: Store, alice: Speaker, how: str
) -> None:
    await alice.say([user("I like gooseberries.")], assistant("Noted."))
    await save_passage(store, alice.agent.id, "Gooseberries are sour.", at=1.0)
    while await store.search_index.advance(alice.agent.id):
        pass
    await rows(store, "UPDATE terms SET data = ?, stamp = 99", (b"x",))
    await rows(store, "UPDATE agents SET stamp = stamp + 1")
    recall, agent, query = store.recall, alice.agent, "What do you know about gooseberries?"

    async def read() -> object:
        match how:
            case "search":
                return await recall.search(agent, query)
            case "select":
                return await recall.select_messages(agent, "What do you know about me?", is_opening=True)
            case "around":
                return await recall.find_around(agent, 2, looks_back=True)
        return await recall.search_passages(agent, query, PassageFilter(), limit=5)

    with pytest.raises(StoreCorrupt):
        await read()
    assert await read()


async def test_the_cache_of_a_damaged_memory_is_dropped_in_the_loops_thread(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(MemoryCache, "drop", lambda self, agent: threads.append(threading.get_ident()))
    await store.search_index.empty_damaged_chunks(alice.agent.id)
    assert threads == [threading.get_ident()]
