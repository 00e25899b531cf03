"""What the page keeps: muted and corrected facts, pauses, sizes, recalls, the audit, links."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway.run.admin.transfer.transfer_operations import TransferOperations
from storage.commands import LearnedFact, RecallRow
from storage.errors import NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.reader_commands import LearnedChanges
from storage.recall_record import (
    KINDS,
    PROMPT_PARTS,
    REASONS,
    RecalledEntry,
    RecallRecord,
    overwrite_forgotten,
    pack,
    pack_request_id,
    read_hits,
    read_note_seqs,
    unpack,
    unpack_request_id,
)
from storage.records import Agent
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.rows import each_row
from tests.storage.conftest import Holds, OpenStore
from tests.stored import ALICE, HUMAN, Speaker, sized_memory

NOW = 1_000_000.0


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store(now=lambda: NOW)


@pytest.fixture
def alice(store: Store) -> Speaker:
    return Speaker(store, now=lambda: NOW)


def fact(text: str, sources: Sequence[int] = (1,)) -> LearnedFact:
    return LearnedFact(text, "", text.casefold(), NOW - 10, sources[0], sources)


async def learn(store: Store, agent: Agent, cursor: int, *facts: LearnedFact) -> None:
    learned = LearnedChanges(facts=list(facts))
    await store.database.write(
        store.facts.make_learn_effect(agent, cursor, cursor + 1, NOW, lambda blocks: learned)
    )


async def found(store: Store, agent: Agent, query: str) -> list[tuple[str, str]]:
    return [(m.kind, m.text) for m in await store.recall.search(agent, query)]


# -- facts


async def test_the_conversation_that_its_client_named_is_found_by_a_name_of_two(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("Hello.")], assistant("Hello."), key="a")
    first = await store.messages.get_conversation(alice.agent.id, "a")
    await alice.say([user("Hello there.")], assistant("Hello."), key=first.uid)
    found = await store.messages.get_conversation(alice.agent.id, first.uid)
    assert (found.key, found.id != first.id) == (first.uid, True)


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_muted_fact_stays_in_lists_and_no_search_finds_it(
    store: Store, alice: Speaker, is_indexed: bool
) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    agent = alice.agent
    await learn(store, agent, 0, fact("Miso is a grey cat."), fact("Ponyo is a goldfish."))
    if is_indexed:
        while await store.search_index.advance(agent.id):
            pass
    hit = ("fact", "Miso is a grey cat.")
    assert hit in await found(store, agent, "grey cat Miso")
    fish, cat = await store.facts.list_page(agent.id)
    muted = await store.facts.mute(agent.id, cat.seq, NOW, is_muted=True)
    assert (muted.muted, muted.text) == (True, cat.text)
    assert await store.facts.mute(agent.id, cat.seq, NOW, is_muted=True) == muted
    assert hit not in await found(store, agent, "grey cat Miso")
    assert [f.muted for f in await store.facts.list_page(agent.id)] == [False, True]
    assert not (await store.facts.mute(agent.id, cat.seq, NOW, is_muted=False)).muted
    assert hit in await found(store, agent, "grey cat Miso")
    with pytest.raises(NotFound):
        await store.facts.mute(agent.id, 999, NOW, is_muted=True)
    with pytest.raises(NotFound):
        await store.facts.mute(agent.id + 1, fish.seq, NOW, is_muted=True)


async def test_a_correction_takes_the_place_of_a_fact_and_has_its_sources(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("My train leaves on the fifth.")], assistant("Noted."))
    (row,) = await alice.rows()
    await learn(store, alice.agent, 0, fact("The train leaves on 5 May.", [row.id]))
    (old,) = await store.facts.list_page(alice.agent.id)
    assert (old.origin, old.muted) == ("learned", False)
    text = "The train leaves on 4 May."
    new = await store.facts.correct(alice.agent, old.seq, text, text.casefold(), "operator", NOW)
    assert (new.text, new.origin, new.sources, new.valid_from) == (text, "operator", (row.id,), NOW)
    ended = await store.facts.find(alice.agent.id, old.seq)
    assert ended is not None
    assert (ended.ended_at, ended.successor) == (NOW, new.seq)
    assert await store.facts.list_replaced(alice.agent.id, new.id) == [ended]
    assert [f.text for f in await store.facts.list_page(alice.agent.id)] == [text]
    assert ("fact", text) in await found(store, alice.agent, "When does the train leave?")
    with pytest.raises(WriteConflict):
        await store.facts.correct(alice.agent, old.seq, "Another.", "another", "operator", NOW)
    with pytest.raises(NotFound):
        await store.facts.correct(alice.agent, 999, "Another.", "another", "operator", NOW)


async def test_the_correction_of_a_muted_fact_is_muted_and_an_equal_fact_stays_as_it_is(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    agent = alice.agent
    await learn(store, agent, 0, fact("Miso is a grey cat."), fact("Ponyo is a goldfish."))
    fish, cat = await store.facts.list_page(agent.id)
    await store.facts.mute(agent.id, cat.seq, NOW, is_muted=True)
    corrected = await store.facts.correct(agent, cat.seq, "Miso is black.", "black", "person", NOW)
    assert corrected.muted
    assert ("fact", "Miso is black.") not in await found(store, agent, "black Miso")
    undone = await store.facts.correct(agent, corrected.seq, cat.text, cat.text.casefold(), "person", NOW)
    assert undone.muted
    same = await store.facts.correct(agent, undone.seq, fish.text, fish.text.casefold(), "person", NOW)
    assert (same.seq, same.muted) == (fish.seq, False)


async def test_a_forgotten_fact_is_not_learned_again_from_the_same_words(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await alice.say([user("Call my cat Zqmisox.")], assistant("Noted."))
    await alice.say([user("Something else.")], assistant("Well."))
    first, second = await alice.rows()
    agent, text = alice.agent, "The cat zqfactx is grey."
    await learn(store, agent, 0, fact(text, [first.id]), fact("The train leaves.", [first.id]))
    forgotten = next(f for f in await store.facts.list_page(agent.id) if f.text == text)
    await store.facts.mute(agent.id, forgotten.seq, NOW, is_muted=True)
    await store.forgetting.forget(agent.id, ForgetTarget(fact_seqs=[forgotten.seq]))
    assert not holds(b"zqfactx")
    assert holds(b"Zqmisox")  # what it came from stays
    assert [f.text for f in await store.facts.list_page(agent.id, includes_ended=True)] == [
        "The train leaves."
    ]
    agent = await store.agents.find_by_id(agent.id) or agent
    await learn(store, agent, 1, fact(text, [first.id]))
    assert not holds(b"zqfactx")
    await learn(store, agent, 2, fact(text, [first.id, second.id]))  # it was said again
    assert holds(b"zqfactx")


async def test_a_fact_that_is_forgotten_leaves_the_blocks_with_its_sentence(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await alice.say([user("Hello.")], assistant("Hi."), defaults=[replace(HUMAN, value="Name: Alice.")])
    (block,) = await store.blocks.load(alice.agent.id)
    value = "Name: Alice.\nThe cat zqfactx is grey.\nShe lives in Oslo."
    await store.blocks.write(block.id, block.version, value, at=NOW, origin="operator")
    await learn(store, alice.agent, 0, fact("The cat zqfactx is grey."))
    (cat,) = await store.facts.list_page(alice.agent.id)
    await store.forgetting.forget(alice.agent.id, ForgetTarget(fact_seqs=[cat.seq]))
    assert not holds(b"zqfactx")
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == "Name: Alice.\nShe lives in Oslo."


async def test_an_edit_with_the_sentence_of_a_forgotten_fact_is_not_made_when_its_turn_is_confirmed(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("My cat is grey.")], assistant("Noted."))
    await learn(store, alice.agent, 0, fact("The cat is grey."))
    history = [user("What do you know?")]
    turn = await alice.begin(history, "c2")
    await alice.end(turn, [assistant("Your cat.")], ["The cat is grey.", "Lives in Oslo."])
    (cat,) = await store.facts.list_page(alice.agent.id)
    await store.forgetting.forget(alice.agent.id, ForgetTarget(fact_seqs=[cat.seq]))
    store.agents.clear()
    await alice.say([*history, assistant("Your cat."), user("Thanks.")], assistant("Bye."), "c2")
    assert [block.value for block in await store.blocks.load(alice.agent.id)] == ["Lives in Oslo."]


# -- recalls


def record(*entries: RecalledEntry) -> RecallRecord:
    return RecallRecord(
        "recalled", 11, 214, part_tokens=(900, 1_480, 430, 1_210, 14_100, 214, 78), context_window=128_000,
        added_ms=2.13, first_ms=412.0, ms=900.0, usage=(18_390, 212, 17_024), entries=entries,
    )  # fmt: skip


ENTRIES = (
    RecalledEntry("fact", 38, 1, 1.0, 0.8, None, 14),
    RecalledEntry("message", 118_700, 2, 0.4, 1.0, None, 31),
    RecalledEntry("passage", 902, 3, 0.2, 0.2, None, 300, "weak"),
)


def test_a_record_is_what_was_packed() -> None:
    packed = record(*ENTRIES)
    assert unpack(pack(packed)) == packed
    assert read_hits(pack(packed)) == [("fact", 38), ("message", 118_700), ("passage", 902)]
    assert len(pack(packed)) < 90
    whole = replace(
        packed, is_selection=True, entries=(RecalledEntry("fact", 1, 1),), usage=None, first_ms=None
    )
    assert unpack(pack(whole)) == whole
    by_meaning = record(*(replace(e, meaning=1.0) for e in ENTRIES))
    assert unpack(pack(by_meaning)) == by_meaning
    without_hits = record()
    assert unpack(pack(without_hits)) == without_hits
    assert unpack(pack(packed), reads_entries=False) == record()
    too_many = unpack(pack(replace(packed, usage=(1 << 40, 212, 0))))
    assert too_many.usage == ((1 << 32) - 1, 212, 0)
    assert (len(KINDS), len(REASONS), len(PROMPT_PARTS)) == (4, 7, 7)  # as many as there is room for: 4, 8


@each_row("cut", range(len(pack(record(*ENTRIES)))))
def test_a_record_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="recall"):
        unpack(pack(record(*ENTRIES))[:cut])


def test_the_hits_in_the_note_are_those_without_a_reason_that_are_there() -> None:
    for entries in (ENTRIES, [replace(each, meaning=1.0) for each in ENTRIES]):
        packed = pack(record(*entries))
        assert read_note_seqs(packed) == [38, 118_700]
        assert read_note_seqs(overwrite_forgotten(packed, lambda kind, seq: kind == "fact")) == [38]
    assert read_note_seqs(pack(record())) == []
    with pytest.raises(ValueError, match="recall"):
        read_note_seqs(pack(record(*ENTRIES))[:-1])


def test_erased_values_are_overwritten_by_as_many_bytes() -> None:
    packed = pack(record(*ENTRIES))
    left = overwrite_forgotten(packed, lambda kind, seq: kind == "fact")
    assert len(left) == len(packed)
    fact_entry, message, passage = unpack(left).entries
    assert fact_entry == ENTRIES[0]
    assert (message.seq, message.rank, message.tokens, message.is_forgotten) == (0, 2, 0, True)
    assert (passage.seq, passage.reason, passage.is_forgotten) == (0, "weak", True)
    assert overwrite_forgotten(left, lambda kind, seq: kind == "fact") == left


@pytest.mark.parametrize("id", ["req_0123456789abcdef01234567", "customer-7", "é", "x" * 64])
def test_the_id_of_a_request_comes_back(id: str) -> None:
    assert unpack_request_id(pack_request_id(id)) == id


def test_a_long_id_of_a_request_is_a_hash() -> None:
    stored = pack_request_id("x" * 65)
    assert unpack_request_id(stored) is None
    assert len(stored) == 17
    assert stored == pack_request_id("x" * 65) != pack_request_id("y" * 65)


async def noted(alice: Speaker, text: str, request: str, *entries: RecalledEntry) -> int:
    """Says something with a note of its recall. Returns the row of its exchange."""
    row = RecallRow(pack_request_id(request), pack(record(*entries)))
    await alice.say([user(text)], assistant(f"To {text}"), recall_row=row)
    return (await alice.rows())[-1].id


async def test_a_recall_is_written_with_its_turn_and_found_by_its_request(
    store: Store, alice: Speaker
) -> None:
    first = await noted(alice, "One.", "req_0123456789abcdef01234567", *ENTRIES)
    second = await noted(alice, "Two.", "customer-7")
    await alice.say([user("Three.")], assistant("No recall."))
    (one,) = await store.recalls.find("req_0123456789abcdef01234567", 0.0)
    assert (one.exchange_row, one.request) == (first, "req_0123456789abcdef01234567")
    assert unpack(one.data) == record(*ENTRIES)
    assert (one.scope, one.seq, one.at) == (ALICE, 1, NOW)
    listed = await store.recalls.list_page(alice.agent.id, 0.0, before=1 << 40)
    assert [each.exchange_row for each in listed] == [second, first]
    assert await store.recalls.load_requests(alice.agent.id, [first, second, 99], 0.0) == {
        first: "req_0123456789abcdef01234567", second: "customer-7",
    }  # fmt: skip
    assert await store.recalls.find("customer-7", 0.0, "another") == []
    assert await store.recalls.find("customer-7", NOW + 1) == []
    assert await store.recalls.delete_older(NOW + 1) == 2
    assert await store.recalls.list_page(alice.agent.id, 0.0, before=1 << 40) == []


async def test_a_recall_of_a_turn_in_a_conversation_is_written_with_it(store: Store, alice: Speaker) -> None:
    await alice.say([user("One.")], assistant("First."))
    history = [user("One."), assistant("First."), user("Two.")]
    row = RecallRow(pack_request_id("a"), pack(record()))
    await alice.say(history, assistant("Second."), recall_row=row)
    assert len(await store.recalls.find("a", 0.0)) == 1
    history += [assistant("Second."), user("Three.")]
    await alice.say(history, assistant("Third."), recall_row=row)
    first, second = await store.recalls.find("a", 0.0)
    assert first.exchange_row > second.exchange_row


async def test_forgetting_a_turn_takes_its_recall_and_what_others_note_of_it(
    store: Store, alice: Speaker
) -> None:
    first = await noted(alice, "One.", "a")
    seq = (await alice.rows())[0].seq
    await learn(store, alice.agent, 0, fact("A fact.", [first]))
    (known,) = await store.facts.list_page(alice.agent.id)
    hits = (
        RecalledEntry("message", seq, 1, 1.0, 1.0, None, 3),
        RecalledEntry("message", seq + 1, 2, 0.2, 0.2, None, 3),
        RecalledEntry("fact", known.seq, 3, 0.2, 0.2, None, 3),
    )
    second = await noted(alice, "Two.", "b", *hits)
    third = (await alice.rows())[-1]
    await noted(alice, "Three.", "c", RecalledEntry("message", third.seq, 1, 1.0, 1.0, None, 3))
    await store.forgetting.forget(alice.agent.id, ForgetTarget(message_seqs=[seq]))
    assert len(await store.recalls.find("a", 0.0)) == 1  # its reply stays
    (after,) = await store.recalls.find("b", 0.0)
    assert [e.is_forgotten for e in unpack(after.data).entries] == [True, False, True]
    await store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[first]))
    assert await store.recalls.find("a", 0.0) == []
    (after,) = await store.recalls.find("b", 0.0)
    assert [e.is_forgotten for e in unpack(after.data).entries] == [True, True, True]
    (last,) = await store.recalls.find("c", 0.0)
    assert [e.is_forgotten for e in unpack(last.data).entries] == [False]
    await store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[second]))
    assert await store.recalls.find("b", 0.0) == []
    await store.forgetting.wipe(alice.agent.id)
    assert await store.recalls.find("c", 0.0) == []


async def test_a_forgotten_fact_is_not_taken_for_the_message_before_it(store: Store, alice: Speaker) -> None:
    first = await noted(alice, "One.", "a")
    await learn(store, alice.agent, 0, fact("A fact.", [first]))
    (known,) = await store.facts.list_page(alice.agent.id)
    hits = [RecalledEntry(kind, known.seq, 1, 0.2, 0.2, None, 3) for kind in ("any", "fact", "message")]
    await noted(alice, "Two.", "b", *hits)
    await store.forgetting.forget(alice.agent.id, ForgetTarget(fact_seqs=[known.seq]))
    (after,) = await store.recalls.find("b", 0.0)
    assert [e.is_forgotten for e in unpack(after.data).entries] == [True, True, True]


# -- pauses, sizes, audit, links


async def test_a_pause_is_stored_until_it_ends(store: Store, alice: Speaker) -> None:
    await alice.say([user("One.")], assistant("First."))
    agent = await store.agents.find(ALICE)
    assert agent is not None
    assert agent.paused_at is None
    assert await store.forgetting.pause(agent.id, NOW)
    assert not await store.forgetting.pause(agent.id, NOW + 1)
    paused = await store.agents.find(ALICE)
    assert paused is not None
    assert (paused.paused_at, paused.epoch) == (NOW, agent.epoch + 1)
    assert await store.forgetting.pause(agent.id, None)
    resumed = await store.agents.find(ALICE)
    assert resumed is not None
    assert resumed.paused_at is None


async def test_the_writer_counts_what_is_retained(store: Store, alice: Speaker) -> None:
    async def sizes() -> tuple[int, int]:
        retained = await store.overview.measure(alice.agent.id)
        counted = await sized_memory(store, alice.agent)
        assert (counted.conversations, counted.messages, counted.bytes) == (
            retained.conversations, retained.messages, retained.bytes,
        )  # fmt: skip
        return counted.conversations, counted.messages

    await alice.say([user("One.")], assistant("First."), "a")
    await alice.say([user("One."), assistant("First."), user("Two.")], assistant("Second."), "a")
    assert await sizes() == (1, 4)
    await alice.say([user("Elsewhere.")], assistant("Third."), "b")
    assert await sizes() == (2, 6)
    first, _, third = await alice.rows()
    await store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[third.id]))
    assert await sizes() == (1, 4)
    await store.forgetting.forget(alice.agent.id, ForgetTarget(message_seqs=[first.seq]))
    assert await sizes() == (1, 3)


async def test_the_audit_lists_what_was_done_and_forgets_it_by_age(store: Store, alice: Speaker) -> None:
    await alice.say([user("One.")], assistant("First."))
    uid = alice.agent.uid
    await store.audit.add(NOW - 10, "code", "login")
    await store.audit.add(NOW, "ops", "edit", uid, "block human, version 8")
    listed = await store.audit.list_page(before=1 << 40)
    assert [(e.actor, e.action, e.memory, e.what) for e in listed] == [
        ("ops", "edit", uid, "block human, version 8"), ("code", "login", None, ""),
    ]  # fmt: skip
    assert len(await store.audit.list_page(before=listed[0].id)) == 1
    assert len(await store.audit.list_page(before=1 << 40, memory=uid)) == 1
    assert len(await store.audit.list_page(before=1 << 40, project="default")) == 1
    assert await store.audit.list_page(before=1 << 40, project="another") == []
    assert await store.audit.delete_older(NOW) == 1
    assert [e.action for e in await store.audit.list_page(before=1 << 40)] == ["edit"]


async def test_a_link_opens_one_memory_until_it_ends_or_its_key_does(store: Store, alice: Speaker) -> None:
    await alice.say([user("One.")], assistant("First."))
    agent = alice.agent.id
    keyless = await store.links.create(agent, 0, NOW + 60, ["see"], NOW)
    link = await store.links.find(keyless, NOW)
    assert link is not None
    assert (link.memory_uid, link.rights, link.scope) == (alice.agent.uid, ("see",), ALICE)
    assert link.paused_at is None
    for at in range(len(keyless)):
        other = "A" if keyless[at] != "A" else "B"
        assert await store.links.find(keyless[:at] + other + keyless[at + 1 :], NOW) is None
    assert await store.links.find(keyless, NOW + 60) is None
    await store.links.create(agent, 0, NOW + 7260, ["see"], NOW + 7200)  # the clock is ahead, and put right
    assert await store.links.find(keyless, NOW) is not None
    key, _ = await store.keys.create("default", "app")
    assert await store.links.find(keyless, NOW) is None  # who has keys now lets in nobody without one
    token = await store.links.create(agent, key.id, NOW + 60, ["see", "forget"], NOW)
    assert await store.links.find(token, NOW) is not None
    await store.keys.revoke("app")
    assert await store.links.find(token, NOW) is None
    again, _ = await store.keys.create("default", "app2")
    last = await store.links.create(agent, again.id, NOW + 60, ["see"], NOW)
    await store.forgetting.wipe(agent)
    assert await store.links.find(last, NOW) is None


async def test_an_export_has_mutes_and_origins_and_no_recalls(open_store: OpenStore) -> None:
    source = await open_store(now=lambda: NOW)
    alice = Speaker(source, now=lambda: NOW)
    await noted(alice, "My cat is called Miso.", "a")
    agent = alice.agent
    await learn(source, agent, 0, fact("Miso is a cat."), fact("The train leaves."))
    train, cat = await source.facts.list_page(agent.id)
    await source.facts.mute(agent.id, cat.seq, NOW, is_muted=True)
    await source.facts.correct(agent, train.seq, "It leaves at six.", "six", "operator", NOW)
    lines = []
    page, at = await TransferOperations(source).read_page(agent, None)
    while True:
        lines += page
        if at is None:
            break
        page, at = await TransferOperations(source).read_page(agent, at)
    assert not [line for line in lines if "recall" in str(line.keys())]
    exported = {line["fact"]["text"]: line["fact"] for line in lines if "fact" in line}
    assert (exported["Miso is a cat."]["muted"], exported["It leaves at six."]["origin"]) == (
        True,
        "operator",
    )
