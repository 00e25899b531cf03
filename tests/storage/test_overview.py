"""The operator's lists: whose memories there are, and what is left in them."""

from __future__ import annotations

from math import inf

from gateway.core.conversation.match_query import MemoryUse
from storage.forget_commands import ForgetTarget
from storage.operator_records import RetainedContent
from storage.records import Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.stored import ALICE, Speaker, forget, save_passage, sized_memory


async def test_memories_are_listed_with_their_sizes_a_page_at_a_time(store: Store) -> None:
    alice = Speaker(store, now=lambda: 50.0)
    await alice.say([user("One.")], assistant("Two."), "c1")
    await alice.say([user("Three.")], assistant("Four."), "c2")
    await save_passage(store, alice.agent.id, "a note", at=1.0)
    room = Speaker(store, ALICE._replace(project="blue", subject="conversation:room"))
    await room.say([user("Five.")], assistant("Six."), "room")
    for subject in ("importing:user:bob", "folder:1"):  # a memory of nobody who speaks
        draft = store.agents.get_draft(ALICE._replace(subject=subject))
        await store.database.write(lambda connection, draft=draft: find_or_create_agent(connection, draft))

    (first,) = await store.overview.list_memories(None, limit=1)
    assert (first.id, first.uid, first.scope) == (alice.agent.id, alice.agent.uid, ALICE)
    assert first.retained == RetainedContent(50.0, 4, first.retained.bytes, 2, 0, 2)
    assert (first.blocks, first.facts, first.passages) == (1, 0, 1)
    (second,) = await store.overview.list_memories(None, after=first.id)
    assert (second.scope, second.retained.messages) == (room.scope, 2)
    assert 0 < second.retained.bytes < first.retained.bytes
    assert await store.overview.list_memories("blue") == [second]
    assert await store.overview.list_memories("red") == []


async def test_conversations_are_listed_newest_first_over_all_profiles(store: Store) -> None:
    friend = ALICE._replace(profile="friend")
    for at, scope, key in ((1.0, ALICE, "c1"), (2.0, friend, "c2"), (2.0, ALICE, "c3"), (3.0, ALICE, "c4")):
        speaker = Speaker(store, scope, now=lambda at=at: at)
        await speaker.say([user(f"{key} one")], assistant("two"), key)
    await Speaker(store, Scope("default", "default", "user:bob")).say([user("x")], assistant("y"), "c5")

    first, edge = await store.overview.list_conversations("default", None, ALICE.subject, limit=2)
    assert [(c.key, c.scope.profile, c.retained.last_at) for c in first] == [
        ("c4", "default", 3.0),
        ("c3", "default", 2.0),
    ]
    assert edge is not None
    rest, end = await store.overview.list_conversations("default", None, ALICE.subject, before=edge, limit=3)
    assert [(c.key, c.scope.profile, c.retained.messages) for c in rest] == [
        ("c2", "friend", 2),
        ("c1", "default", 2),
    ]
    assert end is None
    only, _ = await store.overview.list_conversations("default", "friend", ALICE.subject)
    assert [c.key for c in only] == ["c2"]


async def test_messages_that_are_forgotten_or_off_the_record_are_not_listed(store: Store) -> None:
    alice = Speaker(store)
    await alice.say([user("One.")], assistant("Two."), "c1")
    await alice.say([user("Three.")], assistant("Four."), "c2")
    off = await alice.begin([user("Five.")], "c3", MemoryUse.OFF)
    await alice.end(off, [assistant("Six.")])
    c1 = await store.forget_targets.find_conversation(alice.agent.id, "c1")
    await forget(store, alice.agent, ForgetTarget(conversation_row=c1))
    listed, _ = await store.overview.list_conversations("default", None, ALICE.subject)
    assert [(c.key, c.retained.messages) for c in listed] == [("c2", 2)]
    (memory,) = await store.overview.list_memories("default")
    assert (memory.retained.conversations, memory.retained.messages) == (1, 2)
    assert await store.overview.count_messages(alice.agent.id) == 2
    c2 = await store.forget_targets.find_conversation(alice.agent.id, "c2")
    await forget(store, alice.agent, ForgetTarget(conversation_row=c2))
    (memory,) = await store.overview.list_memories("default")
    assert memory.retained == RetainedContent()
    assert await store.overview.count_messages(alice.agent.id) == 0
    assert await store.overview.list_conversations("default", None, ALICE.subject, before=(inf, 0)) == (
        [],
        None,
    )


async def test_a_message_that_was_forgotten_alone_is_not_counted(store: Store) -> None:
    alice = Speaker(store)
    messages = [user("One."), assistant("Two."), user("Three.")]
    await alice.say(messages[:1], assistant("Two."), "c1")
    await alice.say(messages, assistant("Four."), "c1")
    agent = alice.agent.id
    talk = await store.forget_targets.find_conversation(agent, "c1")
    conversation = ForgetTarget(conversation_row=talk)

    async def counted() -> set[int]:
        listed, _ = await store.overview.list_conversations("default", None, ALICE.subject)
        kept = await store.memory_pages.find_conversation(agent, "c1")
        whole, *_ = await store.forget_previews.count(agent, ForgetTarget(is_all=True), 0)
        recorded = await sized_memory(store, alice.agent)
        assert recorded.conversations == len(listed)
        return {
            (await store.overview.list_memories("default"))[0].retained.messages,
            sum(each.retained.messages for each in listed),
            await store.overview.count_messages(agent),
            recorded.messages,
            0 if kept is None else kept.messages,
            whole.messages,
            (await store.forget_targets.measure(agent, conversation)).messages,
        }

    assert await counted() == {4}
    first, second = await alice.rows()
    await forget(store, alice.agent, ForgetTarget(message_seqs=[first.seq]))
    assert await counted() == {3}
    await forget(store, alice.agent, ForgetTarget(message_seqs=[second.reply_seq]))
    assert await counted() == {2}
    await forget(
        store, alice.agent, ForgetTarget(message_seqs=[first.reply_seq])
    )  # the exchange is empty now
    assert await counted() == {1}
    await forget(store, alice.agent, conversation)
    assert await counted() == {0}


async def test_a_forgotten_message_does_not_count_when_it_is_resent(store: Store) -> None:
    alice = Speaker(store)
    await alice.say([user("One.")], assistant("Two."), "c1")
    (first,) = await alice.rows()
    await forget(store, alice.agent, ForgetTarget(message_seqs=[first.seq]))
    await alice.say([user("One."), user("Three.")], assistant("Four."), "c2")
    (_, again) = await alice.rows()
    assert again.redactions == {0}
    listed, _ = await store.overview.list_conversations("default", None, ALICE.subject)
    assert sorted((each.key, each.retained.messages) for each in listed) == [("c1", 1), ("c2", 2)]
    assert (await sized_memory(store, alice.agent)).messages == 3
    c2 = await store.forget_targets.find_conversation(alice.agent.id, "c2")
    await forget(store, alice.agent, ForgetTarget(conversation_row=c2))
    assert (await sized_memory(store, alice.agent)).messages == 1
