"""What was learned is stored once, ends with a date, and goes no further than what is settled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from storage.commands import LearnedFact
from storage.forget_commands import ForgetTarget
from storage.reader_commands import LearnedChanges, UnreadMessages
from storage.records import LEARNER, RULE, Agent, Block, Scope
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.conftest import OpenStore
from tests.stored import ALICE, Speaker, keeps_emptied_rows, rows

IDLE_S = 60.0
NOW = 1_000_000.0


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store(now=lambda: NOW)


@pytest.fixture
def alice(store: Store) -> Speaker:
    return Speaker(store, now=lambda: NOW)


def fact(text: str, *, replaces: Sequence[int] = (), sources: Sequence[int] = (1,)) -> LearnedFact:
    return LearnedFact(text, "", text.casefold(), NOW - 10, sources[0], sources, replaces)


async def learn(store: Store, agent: Agent, cursor: int, upto: int, learned: LearnedChanges) -> None:
    await store.database.write(
        store.facts.make_learn_effect(agent, cursor, upto, NOW, lambda blocks: learned)
    )


async def unlearned(
    store: Store, agent: Agent, after_s: float = 0.0, limit_chars: int = 10_000, reader: int = LEARNER
) -> UnreadMessages:
    found = await store.readers.find_unread(
        agent.id,
        reader,
        now=NOW + after_s,
        idle_s=IDLE_S,
        limit_chars=limit_chars,
        message_chars=4_000,
    )
    assert found is not None
    return found


def texts(found: UnreadMessages) -> list[str]:
    return [m.text for m in found.messages]


async def test_a_fact_ends_the_fact_that_it_replaces_at_the_date_of_its_message(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("I live in Oslo.")], assistant("Nice."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo")]))
    (oslo,) = await store.facts.list_page(alice.agent.id)
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=[fact("Bergen", replaces=[oslo.id, 999])]))
    new, old = await store.facts.list_page(alice.agent.id, includes_ended=True)
    assert [f.text for f in await store.facts.list_page(alice.agent.id)] == ["Bergen"]
    assert (old.ended_at, old.successor) == (NOW - 10, new.seq)
    assert await store.facts.load(alice.agent.id, [999, old.seq, new.seq]) == [old, new]


async def test_a_fact_stays_ended_if_its_successor_is_forgotten(store: Store, alice: Speaker) -> None:
    for text in ("I live in Oslo.", "I live in Bergen."):
        await alice.say([user(text)], assistant("Nice."))
    first, second = await alice.rows()
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo", sources=[first.id])]))
    (oslo,) = await store.facts.list_page(alice.agent.id)
    bergen = fact("Bergen", sources=[second.id], replaces=[oslo.id])
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=[bergen]))
    await store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[second.id]))
    assert await store.facts.list_page(alice.agent.id) == []
    assert [f.text for f in await store.facts.list_page(alice.agent.id, includes_ended=True)] == ["Oslo"]
    assert await keeps_emptied_rows(store) is not store.database.is_shared


async def test_ended_facts_do_not_hide_other_facts_from_a_search(store: Store, alice: Speaker) -> None:
    """It was the best hit there is, was not shown, and what was said fell short of it."""
    words = " ".join(f"word{n}" for n in range(300))
    await alice.say([user("Tell me a story.")], assistant(f"{words} Tromsdal {words}"))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Tromsdal")]))
    await store.search_index.advance(alice.agent.id)
    (bergen,) = await store.facts.list_page(alice.agent.id)
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=[fact("Oslo", replaces=[bergen.id])]))
    await store.search_index.advance(alice.agent.id)
    agent = alice.agent
    hits = await store.recall.search(agent, "Tromsdal", only_strong=True)
    assert [m.seq for m in hits] == [2]


async def test_a_correction_that_was_undone_is_taken_back_and_what_learning_replaced_is_not(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("I live in Oslo.")], assistant("Noted."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo")]))
    (oslo,) = await store.facts.list_page(alice.agent.id)
    slip = await store.facts.correct(alice.agent, oslo.seq, "Bergen", "bergen", "operator", NOW)
    assert not slip.taken_back
    again = await store.facts.correct(alice.agent, slip.seq, "Oslo", "oslo", "person", NOW)
    # She moves to Bergen, and back.
    bergen_learned = replace(fact("Bergen", replaces=[again.id]), exchange_row=None)
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=[bergen_learned]))
    (bergen,) = await store.facts.list_page(alice.agent.id)
    oslo_learned = replace(fact("Oslo", replaces=[bergen.id]), exchange_row=None)
    await learn(store, alice.agent, 2, 3, LearnedChanges(facts=[oslo_learned]))
    facts = await store.facts.list_page(alice.agent.id, includes_ended=True)
    assert [(each.text, each.taken_back) for each in reversed(facts)] == [
        ("Oslo", False), ("Bergen", True), ("Oslo", False), ("Bergen", False), ("Oslo", False),
    ]  # fmt: skip
    assert [each.seq for each in await store.facts.list_ended(alice.agent.id, 9) if each.taken_back] == [
        slip.seq
    ]


async def test_the_same_again_adds_nothing_and_still_ends_what_it_replaces(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo"), fact("Bergen"), fact("oslo")]))
    first, second = (await store.facts.list_page(alice.agent.id))[::-1]
    assert (first.text, second.text) == ("Oslo", "Bergen")
    await learn(
        store, alice.agent, 1, 2, LearnedChanges(facts=[fact("OSLO", replaces=[first.id, second.id])])
    )
    assert await store.facts.list_page(alice.agent.id) == [first]


async def test_a_fact_that_is_repeated_on_another_day_outlives_the_first_message(
    store: Store, alice: Speaker
) -> None:
    for text in ("I live in Oslo.", "I like tea.", "Oslo is my home, with tea."):
        await alice.say([user(text)], assistant("Nice."))
    first, tea, again = await alice.rows()
    facts = [replace(fact("Oslo", sources=[first.id]), standing=True), fact("tea", sources=[tea.id])]
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=facts))
    (liked,) = [each for each in await store.facts.list_page(alice.agent.id) if each.text == "tea"]
    await store.facts.mute(alice.agent.id, liked.seq, NOW, is_muted=True)
    later = [replace(fact(text, sources=[again.id]), valid_from=NOW + 86_400) for text in ("Oslo", "tea")]
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=later))
    oslo, liked = await store.facts.list_page(alice.agent.id)
    assert (oslo.valid_from, oslo.sources, oslo.standing) == (NOW + 86_400, (again.id,), True)
    assert (liked.sources, liked.muted) == ((tea.id,), True)
    await store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[first.id], before=NOW))
    assert [each.text for each in await store.facts.list_page(alice.agent.id, includes_ended=True)] == [
        "Oslo"
    ]


async def test_a_user_cannot_end_the_facts_of_another(store: Store, alice: Speaker) -> None:
    bob = Speaker(store, Scope("default", "default", "user:bob"), now=lambda: NOW)
    await alice.say([user("Hello.")], assistant("Hi."))
    await bob.say([user("Hello.")], assistant("Hi."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo")]))
    (oslo,) = await store.facts.list_page(alice.agent.id)
    await learn(store, bob.agent, 0, 1, LearnedChanges(facts=[fact("Bergen", replaces=[oslo.id])]))
    assert await store.facts.list_page(alice.agent.id) == [oslo]
    assert await store.facts.load(bob.agent.id, [oslo.seq]) != [oslo]


async def test_a_cursor_that_moved_keeps_an_old_attempt_out(store: Store, alice: Speaker) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo")]))
    await learn(store, alice.agent, 0, 5, LearnedChanges(facts=[fact("Bergen")]))
    assert [f.text for f in await store.facts.list_page(alice.agent.id)] == ["Oslo"]
    assert (await unlearned(store, alice.agent)).cursor == 1


async def test_an_exchange_without_a_successor_is_confirmed_after_the_idle_time(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("Hello.")], assistant("Hi."), key="c1")
    unread = await unlearned(store, alice.agent)
    assert (texts(unread), unread.is_waiting) == ([], True)
    unread = await unlearned(store, alice.agent, IDLE_S + 1)
    assert (texts(unread), unread.is_waiting, unread.is_more) == (["Hello.", "Hi."], False, False)


async def test_a_continued_exchange_is_confirmed_at_once(store: Store, alice: Speaker) -> None:
    begun = [user("Hello."), assistant("Hi.")]
    await alice.say(begun[:1], begun[1], key="c1")
    await alice.say([*begun, user("More.")], assistant("Yes."), key="c1")
    unread = await unlearned(store, alice.agent)
    assert (texts(unread), unread.is_waiting) == (["Hello.", "Hi."], True)


async def test_nothing_is_learned_past_what_is_open(store: Store, alice: Speaker) -> None:
    await alice.end(await alice.begin([user("Hello.")], "c1"), [], rule=settle.write_draft)
    await alice.say([user("Elsewhere.")], assistant("Hi."), key="c2")
    assert texts(await unlearned(store, alice.agent, IDLE_S + 1)) == []
    unread = await unlearned(store, alice.agent, 3601)  # whoever was to answer is dead
    assert texts(unread) == ["Elsewhere.", "Hi."]


async def test_a_clock_that_was_put_back_does_not_stop_learning(store: Store, alice: Speaker) -> None:
    await alice.say([user("Hello.")], assistant("Hi."), key="c1")
    assert texts(await unlearned(store, alice.agent, -86_400.0)) == ["Hello.", "Hi."]


async def test_a_batch_ends_when_it_is_large_enough(store: Store, alice: Speaker) -> None:
    for n in range(3):
        await alice.say([user(f"{n}" * 50)], assistant("."), key=f"c{n}")
    unread = await unlearned(store, alice.agent, IDLE_S + 1, limit_chars=60)
    assert (len(unread.messages), unread.is_more) == (2, True)
    unread = await unlearned(store, alice.agent, IDLE_S + 1, limit_chars=1)
    assert len(unread.messages) == 2  # one exchange at least


async def test_a_shared_block_is_read_only_to_learning(store: Store, alice: Speaker) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    sql = (
        "INSERT INTO block_history (block, version, at, origin, sources, value) VALUES (99, 1, 0, '', ?, '')"
    )
    blocks = (
        "INSERT INTO blocks (id, agent, project, profile, label, description, lim, read_only, version, current) "
        "SELECT 99, NULL, 'default', 'default', 'news', '', 100, 0, 1, max(id) FROM block_history"
    )
    await rows(store, sql, (b"[]",))
    await rows(store, blocks)
    assert {b.label: b.read_only for b in await store.facts.load_blocks(alice.agent.id)} == {
        "human": False,
        "news": True,
    }


async def test_a_block_is_made_when_it_is_first_written_to(store: Store, alice: Speaker) -> None:
    await alice.say([user("Hello.")], assistant("Hi."))
    pets = Block(0, "pets", "What lives there.", "", 100)
    await learn(store, alice.agent, 0, 1, LearnedChanges(writes=[(pets, "A cat.", (1,))]))
    (made,) = [b for b in await store.blocks.load(alice.agent.id) if b.label == "pets"]
    assert (made.value, made.version, made.limit) == ("A cat.", 2, 100)
    newest, first = await store.blocks.list_revisions(made.id)
    assert (newest.origin, newest.sources, first.value) == ("learning", (1,), "")


async def test_facts_are_carried_away_and_in(store: Store, alice: Speaker) -> None:
    await alice.say([user("I live in Oslo.")], assistant("Nice."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo"), fact("Tea")]))
    oslo = (await store.facts.list_page(alice.agent.id))[-1]
    await learn(store, alice.agent, 1, 3, LearnedChanges(facts=[fact("Bergen", replaces=[oslo.id])]))
    carol = Scope("other", "default", "user:carol")
    lines = await _export(store, ALICE)
    operation = TransferOperations(store).restore
    await operation({"project": "other", "user": "carol", "lines": lines, "at": None, "end": True})
    ours = [line for line in lines if line.startswith(('{"fact"', '{"ended"', '{"learned"'))]
    assert len(ours) == 6
    assert [line for line in await _export(store, carol) if line in ours] == ours
    copy = await store.agents.find(carol)
    assert copy is not None
    assert [f.text for f in await store.facts.list_page(copy.id)] == ["Bergen", "Tea"]
    assert (await unlearned(store, copy)).cursor == 3
    # A fact that states the same is recognised under the secret of the new memory (`make_fact_key`).
    again = LearnedFact("tea!", "", "tea", NOW, None, ())
    await learn(store, copy, 3, 4, LearnedChanges(facts=[again]))
    assert len(await store.facts.list_page(copy.id)) == 2


async def test_the_rule_goes_on_in_a_copy_from_where_it_had_come(store: Store, alice: Speaker) -> None:
    """It does not learn again what was forgotten."""
    await alice.say([user("I never eat meat.")], assistant("Good."))
    effect = store.facts.make_learn_effect(
        alice.agent, 0, 1, NOW, lambda _: LearnedChanges(facts=[fact("No meat")]), RULE
    )
    await store.database.write(effect)
    lines = await _export(store, ALICE)
    operation = TransferOperations(store).restore
    await operation({"project": "other", "user": "carol", "lines": lines, "at": None, "end": True})
    copy = await store.agents.find(Scope("other", "default", "user:carol"))
    assert copy is not None
    assert texts(await unlearned(store, copy, IDLE_S + 1, reader=RULE)) == []
    assert texts(await unlearned(store, copy, IDLE_S + 1)) == ["I never eat meat.", "Good."]


async def test_facts_that_are_learned_during_an_export_are_learned_again_after_the_import(
    store: Store, alice: Speaker
) -> None:
    """And what it takes the place of is still true there: not neither of the two."""
    await alice.say([user("I live in Oslo.")], assistant("Nice."))
    await alice.say([user("Now I live in Bergen.")], assistant("Good."))
    await learn(store, alice.agent, 0, 1, LearnedChanges(facts=[fact("Oslo"), fact("Tea")]))
    tea, oslo = await store.facts.list_page(alice.agent.id)
    await learn(store, alice.agent, 1, 2, LearnedChanges(facts=[fact("Coffee", replaces=[tea.id])]))

    async def meanwhile() -> None:
        await learn(store, alice.agent, 2, 3, LearnedChanges(facts=[fact("Bergen", replaces=[oslo.id])]))

    lines = await _export(store, ALICE, meanwhile)
    operation = TransferOperations(store).restore
    await operation({"project": "other", "user": "carol", "lines": lines, "at": None, "end": True})
    copy = await store.agents.find(Scope("other", "default", "user:carol"))
    assert copy is not None
    assert [f.text for f in await store.facts.list_page(copy.id)] == ["Coffee", "Oslo"]
    unread = await unlearned(store, copy, after_s=2 * IDLE_S)
    assert texts(unread)[-2:] == ["Now I live in Bergen.", "Good."]


async def _export(
    store: Store, scope: Scope, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> list[str]:
    """meanwhile: what happens after the first page."""
    operation = TransferOperations(store).export
    lines: list[str] = []
    place: Any = None
    while True:
        user = scope.subject.removeprefix("user:")
        answer = await operation({"project": scope.project, "user": user, "from": place})
        if place is None and meanwhile is not None:
            await meanwhile()
        lines += answer["lines"]
        place = answer["next"]
        if place is None:
            return lines


async def test_a_snapshot_marks_the_standing_facts_that_a_person_has_written(
    store: Store, alice: Speaker
) -> None:
    await alice.say([user("I never eat meat.")], assistant("Noted."), "c1")
    agent = alice.agent
    for origin in ("person", "model", "operator"):
        await store.facts.remember(agent, f"By {origin}", origin, origin, NOW, standing=True)
    (row,) = await alice.rows()
    learned = replace(fact("Learned", sources=[row.id]), standing=True)
    await learn(store, agent, 0, 1, LearnedChanges(facts=[learned]))
    snapshot = await store.turns.find_snapshot(agent, "c1", None)
    assert snapshot is not None
    assert snapshot.conversation is not None
    path = await store.stored_paths.load_path(agent, snapshot.conversation.uid, None)
    assert path is not None
    for found in (snapshot, path.snapshot):
        marked = [(each.text, each.is_manual) for each in found.standing]
        assert marked == [
            ("Learned", False), ("By operator", True), ("By model", False), ("By person", True),
        ]  # fmt: skip
