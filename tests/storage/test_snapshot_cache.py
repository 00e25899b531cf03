"""Snapshots that are cached between turns are as they would be read again, whatever happened meanwhile."""

from __future__ import annotations

import gc
import itertools
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.change import plan_confirmation
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.message_rewrite import CannotRewrite, rewrite_message
from gateway.core.conversation.wire_message import WireMessage
from storage.commands import MemorySnapshot
from storage.errors import NotFound, StaleWrite
from storage.forget_commands import ForgetTarget
from storage.listing import BlockChange, BlockDraft
from storage.records import Agent, Block, Scope, SentSection
from storage.sql import exchanges
from storage.sql.snapshot_cache import SnapshotCache
from storage.sql.store import Store
from tests.core.conversations import IDLE_S, assistant, call, result, user
from tests.storage.conftest import OpenStore
from tests.stored import ALICE, Speaker, save_passage

BOB = Scope("default", "default", "user:bob")
KEYS = (None, None, "c1", "c2")


class Life:
    """Two users who talk in some conversations each, and whoever else changes their memories."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.now = 1000.0
        self.speakers = [
            Speaker(store, scope, lambda: self.now, recall=lambda question: f"Note on {question[:9]}\n")
            for scope in (ALICE, BOB)
        ]
        # Lists as their clients hold them.
        self.talks: list[tuple[Speaker, str | None, list[WireMessage]]] = []

    def agents(self) -> list[Agent]:
        return [each.agent for each in self.speakers if each.agent.id]

    async def check(self) -> None:
        """Compares each snapshot that a client may ask for with what is read."""
        for speaker, key, messages in [*self.talks, *((s, None, []) for s in self.speakers)]:
            agent = speaker.agent
            if not agent.id:
                continue
            path = (
                MessageHasher.hash_path(
                    HashedList(MessageHasher(agent.secret), messages).list_atoms(len(messages))
                )
                if messages
                else None
            )
            read = await self.store.database.read(
                lambda c, agent=agent, key=key, path=path: exchanges.find_snapshot(c, agent, key, path)  # type: ignore[misc]
            )
            assert await self.store.turns.find_snapshot(agent, key, path) == read

    async def turn(self) -> None:
        """Goes on with a conversation, from its end or from somewhere before it, or begins one."""
        chance = self.chance
        if not self.talks or chance.random() < 0.25:
            self.talks.append((chance.choice(self.speakers), chance.choice(KEYS), []))
        speaker, key, messages = chance.choice(self.talks[-6:])
        if messages and chance.random() < 0.15:
            del messages[-2 * chance.randrange(1, len(messages) // 2 + 1) :]
        said = user(chance.choice(["Hi", "And then?", f"Number {chance.random()}"]))
        reply = assistant(chance.choice(["Hello.", f"It is {chance.random()}."]))
        full = [reply]
        edited: list[str] = []
        if chance.random() < 0.15:
            hidden = assistant(None, call("m1", "memory_insert", "{}"))
            full = [hidden, result("m1", "ok"), reply]
            edited = [f"Something {chance.random()}"]
        if not messages and chance.random() < 0.15:
            # Made elsewhere; some open with the list of another conversation.
            messages += chance.choice([talk[2] for talk in self.talks]) or [user("Q"), assistant("A")]
        mode = MemoryUse.OFF if chance.random() < 0.05 else MemoryUse.ON
        turn = await speaker.begin([*messages, said], key, mode)
        self.now += 1
        section = (
            SentSection(0, f"Section {self.now}", {"blocks": {}})
            if chance.random() < 0.2
            else turn.snapshot.section
        )
        await speaker.end(turn, full, edited, section=section)
        messages += [said, reply]

    async def side_by_side(self) -> None:
        """Turns of one user under way at once. They are cached after their commits, when others have looked already."""
        talks = [talk for talk in self.talks[-6:] if talk[0] is self.speakers[0]]
        begun = [(talk, await talk[0].begin([*talk[2], user("Both")], talk[1])) for talk in talks[-3:]]
        unkept = []
        for n, (talk, turn) in enumerate(begun):
            self.now += 1
            reply = assistant(f"One of some: {n}.")
            unkept.append((talk[0], await talk[0].commit(turn, [reply])))
            if self.chance.random() < 0.3:
                await self.check()
            while unkept and self.chance.random() < 0.4:
                unkept[0][0].cache(*unkept.pop(0)[1])
            talk[2][:] = [*talk[2], user("Both"), reply]
        for speaker, done in unkept:
            await self.check()
            speaker.cache(*done)

    async def edit_block(self) -> None:
        """An operator writes into a block, or takes that back."""
        for agent in self.agents()[:1]:
            for block in (await self.store.blocks.load(agent.id))[:1]:
                if block.version > 1 and self.chance.random() < 0.4:
                    with suppress(NotFound):
                        await self.store.blocks.undo(block.id, at=self.now)
                else:
                    await self.store.blocks.write(
                        block.id, block.version, f"v{self.now}", at=self.now, origin="api"
                    )

    async def share_block(self) -> None:
        """Somebody attaches a block to a memory, changes it and detaches it."""
        agents = self.agents()
        if not agents:
            return
        agent = self.chance.choice(agents)
        made = await self.store.named_blocks.create(
            "default", BlockDraft(Block(0, f"b{self.now}", "", "first", 100)), at=self.now, origin="api"
        )
        uid = made.block.uid
        await self.store.named_blocks.attach(agent, uid)
        await self.check()
        await self.store.named_blocks.change(
            "default", uid, BlockChange(value="later"), at=self.now, origin="api"
        )
        await self.check()
        if self.chance.random() < 0.5:
            await self.store.named_blocks.detach(agent, uid)
        else:
            await self.store.named_blocks.delete("default", uid)

    async def profile_block(self) -> None:
        """The settings declare a block that a whole profile shares, or another text of an own one."""
        own = [Block(0, "human", f"Described at {self.now}", "", 1000)]
        shared = (
            [Block(0, "rules", "For all", f"Rule {self.now}", 1000)] if self.chance.random() < 0.2 else []
        )
        await self.store.default_blocks.follow("default", own, shared, at=self.now)

    async def rewrite(self) -> None:
        """A person gives a message another text."""
        rows = [(s.agent, x) for s in self.speakers for x in await s.rows() if x.shown_reply]
        if rows:
            agent, e = self.chance.choice(rows)
            with suppress(CannotRewrite, StaleWrite):
                await self.store.messages.rewrite(
                    agent, e.seq, lambda x: rewrite_message(x, x.seq, f"Anew {self.now}")
                )

    async def wait(self) -> None:
        """Nobody speaks for so long that what stands is confirmed."""
        self.now += 10_000
        for agent, conversation, named, last_at in await self.store.turns.list_due(
            self.now - IDLE_S, self.now, 10
        ):
            decide = partial(plan_confirmation, now=self.now, idle_s=IDLE_S, is_named=named)
            await self.store.turns.confirm_edits(agent, conversation, last_at, self.now, decide)

    async def index(self) -> None:
        for agent in self.agents():
            await self.store.search_index.advance(agent.id)

    async def add_passage(self) -> None:
        for agent in self.agents()[:1]:
            await save_passage(self.store, agent.id, "A passage.", at=self.now)

    async def forget(self) -> None:
        agents = self.agents()
        if not agents:
            return
        agent = self.chance.choice(agents)
        seqs = [x.seq for s in self.speakers if s.agent.id == agent.id for x in await s.rows()]
        target = ForgetTarget(message_seqs=[self.chance.choice(seqs)])
        if self.chance.random() < 0.2:
            target = ForgetTarget(is_all=True)
        id = await self.store.forgetting.begin(agent.id, target)
        await self.check()
        assert await self.store.forgetting.run(id)
        for speaker in self.speakers:
            speaker._agent = await self.store.agents.find(speaker.scope)

    async def step(self) -> None:
        others: list[Callable[[], Awaitable[None]]] = [
            self.edit_block, self.share_block, self.profile_block, self.index, self.add_passage, self.forget,
            self.side_by_side, self.rewrite, self.wait,
        ]  # fmt: skip
        weights = [3, 1, 1, 3, 2, 1, 4, 3, 2]
        if self.chance.random() < 0.7:
            await self.turn()
        else:
            await self.chance.choices(others, weights)[0]()


# Of the first twelve lives those that go through all lines of the program that any of them does. The cache does not
# know the database, so two of them show that PostgreSQL answers as SQLite does.
LIVES = [
    *(("sqlite", seed) for seed in (0, 1, 5, 7, 8, 9, 10, 11)),
    *(("postgres", seed) for seed in (8, 11)),
]


@pytest.mark.parametrize(("database", "seed"), LIVES, indirect=["database"])
async def test_random_lives_leave_nothing_old(open_store: OpenStore, seed: int) -> None:
    life = Life(await open_store(), random.Random(seed))
    for _ in range(60):
        await life.step()
        await life.check()


async def is_kept(speaker: Speaker, talk: list[WireMessage]) -> bool:
    """Whether a snapshot is found without being read: one that is read takes the place of all that are not of now."""
    path = HashedList(MessageHasher(speaker.agent.secret), talk).hash_path(len(talk))
    has = speaker.store.turns._cache.has_entry(speaker.agent.id, None, path)
    await speaker.store.turns.find_snapshot(speaker.agent, None, path)
    return has


async def test_a_look_between_a_commit_and_its_keeping_loses_no_later_end(open_store: OpenStore) -> None:
    store = await open_store()
    speaker = Speaker(store)
    talks = [[user(f"Topic {n}"), assistant("Yes.")] for n in range(2)]
    for talk in talks:
        await speaker.say(talk[:1], talk[1])
    turn = await speaker.begin([*talks[0], user("More?")])
    done = await speaker.commit(turn, [assistant("More.")])
    await store.turns.find_snapshot(
        speaker.agent, None, HashedList(MessageHasher(speaker.agent.secret), talks[1]).hash_path(2)
    )
    speaker.cache(*done)
    assert await is_kept(speaker, talks[1])


async def test_an_end_that_is_not_known_takes_no_other_ends_with_it(open_store: OpenStore) -> None:
    speaker = Speaker(await open_store())
    talks = [[user(f"Topic {n}"), assistant("Yes.")] for n in range(2)]
    for talk in talks:
        await speaker.say(talk[:1], talk[1])
    turn = await speaker.begin([*talks[0], user("More?")])
    speaker.store.turns._cache.drop(speaker.agent.id)
    await is_kept(speaker, talks[1])  # and so it is read
    await speaker.end(turn, [assistant("More.")])
    assert await is_kept(speaker, talks[1])


async def test_so_many_bytes_are_cached_and_those_used_last(open_store: OpenStore) -> None:
    store = await open_store()
    kept = SnapshotCache(limit_bytes=20_000)
    looks = []
    for n in range(30):
        speaker = Speaker(store, ALICE._replace(subject=f"user:{n}"))
        await speaker.say([user("Hi")], assistant(f"Hello {n}."), "c")
        listing = HashedList(MessageHasher(speaker.agent.secret), [user("Hi"), assistant(f"Hello {n}.")])
        looks.append((speaker.agent.id, listing.hash_path(2)))
        snapshot = await store.turns.find_snapshot(speaker.agent, "c", listing.hash_path(2))
        assert snapshot is not None
        kept.put(speaker.agent.id, "c", listing.hash_path(2), snapshot)
        assert kept.size_bytes <= 20_000
    has = [kept.has_entry(agent, "c", path) for agent, path in looks]
    assert has[-1]
    assert not has[0]
    for agent, _ in looks:
        kept.drop(agent)
    assert kept.size_bytes == 0


async def test_the_newest_openings_are_cached_and_counted_once(open_store: OpenStore) -> None:
    store = await open_store()
    kept, speaker = store.turns._cache, Speaker(store, ALICE)

    async def snapshot() -> MemorySnapshot:
        found = await store.turns.find_snapshot(speaker.agent, None, None)
        assert found is not None
        return found

    await speaker.say([user("In a conversation of its own.")], assistant("Yes."), "c")
    kept.put_openings(speaker.agent.id, await snapshot(), [])
    for n in range(70):
        await speaker.say([user(f"Topic {n}")], assistant("Yes."))
    now = await snapshot()
    openings = kept.find_openings(speaker.agent.id, now)
    assert openings is not None
    assert len(openings) == 64
    counted = kept.size_bytes
    kept.put_openings(speaker.agent.id, now, openings)
    assert kept.size_bytes == counted
    kept.put_openings(speaker.agent.id, now, [])
    assert kept.size_bytes == counted - 64 * 600
    kept.drop(speaker.agent.id)
    assert kept.size_bytes == 0


async def test_a_memory_that_its_own_turn_pushes_out_is_not_counted(open_store: OpenStore) -> None:
    store = await open_store()
    speaker = Speaker(store, ALICE)
    await speaker.say([user("In a conversation of its own.")], assistant("Yes."), "c")
    agent = speaker.agent.id
    snapshot = await store.turns.find_snapshot(speaker.agent, None, None)
    assert snapshot is not None
    kept = store.turns._cache
    kept.put_openings(agent, snapshot, [])
    kept._limit_bytes = kept.size_bytes  # nothing more has a place
    await speaker.say([user("Another topic")], assistant("Yes."))
    assert not kept.has_entry(agent, None, None)
    assert kept.size_bytes == 0


@pytest.mark.sqlite
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("note", ["", "A line of a note. " * 70, "A line of a note 🙂. " * 70])
async def test_the_counted_bytes_of_the_cache_are_about_its_memory(open_store: OpenStore, note: str) -> None:
    store = await open_store()
    kept, tick = store.turns._cache, itertools.count(1000)

    async def talk(subject: str) -> None:
        speaker = Speaker(
            store,
            Scope("default", "default", subject),
            lambda: next(tick) / 2,
            lambda text: note and f"{note}{text}",
        )
        for key in ("a", "b"):
            messages: list[WireMessage] = []
            for n in range(3):
                messages += [user(f"Question {n} of {subject}"), assistant(f"Answer {n} for {subject}")]
                turn = await speaker.begin(messages[:-1], key)
                await speaker.end(turn, messages[-1:])

    await talk("first")
    before = kept.size_bytes
    tracemalloc.start()
    try:
        for n in range(16):
            await talk(f"user:{n}")
        store.turns._memories.clear()  # they share some of it
        gc.collect()
        counted, held = kept.size_bytes - before, tracemalloc.get_traced_memory()[0]
        kept.clear()
        gc.collect()
        real = held - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert counted * 0.6 < real < counted * 1.1
