"""Memories changed by hand: blocks, facts, pauses. What was seen counts, and the audit has it without words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest, Conflict, NotAllowed, UnknownId
from gateway.operations import make_operations
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.fact_views import FactViews
from gateway.run.admin.memory.memory_edits import FactExists, MemoryEdits
from gateway.settings import BlockSettings
from storage.commands import LearnedFact
from storage.forget_commands import ForgetTarget
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Scope
from storage.sql.blocks import Blocks
from storage.sql.statements import make_statement
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, remember

OPERATOR = Editor("ops")
BLOCKS = (
    BlockSettings("human", "What is known of the user.", limit=40),
    BlockSettings("law", read_only=True),
    BlockSettings("house", shared=True),
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(blocks=BLOCKS)) as made:
        assert said(made, "Hello.")["x-mnemogate-memory"] == "on"
        yield made


def said(world: World, text: str, **headers: str) -> dict[str, str]:
    asked = {"x-mnemogate-user": "alice", **headers}
    reply = world.post([{"role": "user", "content": text}], asked, model="agent/helper")
    assert reply.status == 200
    world.settle()
    return dict(reply.headers)


def memory(world: World) -> Agent:
    async def find() -> Agent:
        found = await world.store.agents.find(Scope("default", "helper", "user:alice"))
        assert found is not None
        return found

    return world.gateway.call(find())


def edits(world: World) -> MemoryEdits:
    return MemoryEdits(world.store, world.clock)


def audit(world: World) -> list[tuple[str, str, str]]:
    async def read() -> list[tuple[str, str, str]]:
        listed = await world.store.audit.list_page(before=1 << 40)
        return [(each.actor, each.action, each.what) for each in listed]

    return world.gateway.call(read())


def learn(world: World, *texts: str, always: bool = False) -> list[int]:
    async def write() -> list[int]:
        of = await world.store.agents.find(Scope("default", "helper", "user:alice"))
        assert of is not None
        facts = [LearnedFact(text, "", text.casefold(), 1.0, None, (), standing=always) for text in texts]
        effect = world.store.facts.make_learn_effect(
            of, 0, 1, world.clock(), lambda blocks: LearnedChanges(facts=facts)
        )
        await world.store.database.write(effect)
        return [fact.seq for fact in reversed(await world.store.facts.list_page(of.id))]

    return world.gateway.call(write())


@pytest.mark.both
def test_a_block_is_edited_undone_and_brought_back(world: World) -> None:
    uid, change = memory(world).uid, edits(world)
    call = world.gateway.call
    for version, value in enumerate(("One.", "Two.", "Three."), 1):
        done = call(change.blocks.edit(OPERATOR, uid, "human", value, version))
        assert (done.version, done.value) == (version + 1, value)
    with pytest.raises(Conflict):
        call(change.blocks.edit(OPERATOR, uid, "human", "Late.", 2))
    assert call(change.blocks.restore(OPERATOR, uid, "human", 4, 2)).value == "One."
    assert call(change.blocks.undo(OPERATOR, uid, "human", 5)).value == "Three."
    assert call(change.blocks.undo(OPERATOR, uid, "human", 6)).value == "Two."
    with pytest.raises(Conflict):
        call(change.blocks.undo(OPERATOR, uid, "human", 6))
    for version in (99, 7_000):
        with pytest.raises(BadRequest):
            call(change.blocks.restore(OPERATOR, uid, "human", 7, version))
    assert world.block("alice").value == "Two."
    assert [action for _, action, _ in audit(world)] == ["undo", "undo", "restore", *["edit"] * 3]
    assert audit(world)[2] == ("ops", "restore", "block human, version 2 as 5")
    said(world, "What do you know?")
    assert b"Two." in world.upstream.last.body


def test_a_value_over_the_limit_is_refused_with_both_numbers(world: World) -> None:
    with pytest.raises(BadRequest, match=r"40 characters at most, not 41"):
        world.gateway.call(edits(world).blocks.edit(OPERATOR, memory(world).uid, "human", "x" * 41, 1))


@pytest.mark.both
def test_an_undo_over_a_lowered_limit_says_so(world: World) -> None:
    """It was refused as changed meanwhile, which another try cannot mend."""
    uid, change, call = memory(world).uid, edits(world), world.gateway.call
    call(change.blocks.edit(OPERATOR, uid, "human", "x" * 40, 1))
    call(change.blocks.edit(OPERATOR, uid, "human", "Short.", 2))
    lower = make_statement("a test's", "UPDATE blocks SET lim = 10 WHERE label = 'human'")

    async def lower_limit() -> None:
        await world.store.database.write(lambda connection: connection.run(lower))

    call(lower_limit())
    with pytest.raises(BadRequest, match="longer than the block’s limit now") as refused:
        call(change.blocks.undo(OPERATOR, uid, "human", 3))
    assert refused.value.param == "version"
    operations = make_operations(world.gateway.app.services.settings, world.store)
    owner = {"project": "default", "profile": "helper", "user": "alice"}
    with pytest.raises(BadRequest, match="longer than the block’s limit now"):
        call(operations.perform("memory-undo", {**owner, "block": "human"}))
    assert world.block("alice").value == "Short."


def test_a_block_that_models_may_not_write_is_the_operators(world: World) -> None:
    done = world.gateway.call(edits(world).blocks.edit(OPERATOR, memory(world).uid, "law", "Be kind.", 1))
    assert done.value == "Be kind."


def test_a_person_changes_what_is_of_them_alone(world: World) -> None:
    person, uid, change = Editor("link", "default", "person"), memory(world).uid, edits(world)
    call = world.gateway.call
    assert call(change.blocks.edit(person, uid, "human", "Name: Alice.", 1)).value == "Name: Alice."
    for label in ("law", "house"):  # read-only; seen by every user of the profile
        with pytest.raises(NotAllowed):
            call(change.blocks.edit(person, uid, label, "Mine.", 1))
        with pytest.raises(NotAllowed):
            call(change.blocks.undo(person, uid, label, 1))
        with pytest.raises(NotAllowed):
            call(change.blocks.restore(person, uid, label, 1, 1))
    assert call(change.blocks.edit(OPERATOR, uid, "house", "Ours.", 1)).value == "Ours."
    assert audit(world) == [
        ("ops", "edit", "block house, version 2"),
        ("link", "edit", "block human, version 2"),
    ]


@pytest.mark.parametrize("editor", [OPERATOR, Editor("theirs", "other")])
def test_what_is_not_there_and_what_is_anothers_are_alike(world: World, editor: Editor) -> None:
    uid = "0" * 32 if editor is OPERATOR else memory(world).uid
    change = edits(world)
    works: list[Any] = [
        change.blocks.edit(editor, uid, "human", "x", 1),
        change.blocks.undo(editor, uid, "human", 1),
        change.blocks.restore(editor, uid, "human", 1, 1),
        change.correct_fact(editor, uid, 1, "x"),
        change.mute_fact(editor, uid, 1, is_muted=True),
        change.pause(editor, uid, is_paused=True),
    ]
    for work in works:
        with pytest.raises(UnknownId, match="There is no such memory"):
            world.gateway.call(work)
    assert audit(world) == []


@pytest.mark.both(method=["write"])
@pytest.mark.parametrize("method", ["write", "undo", "restore"])
def test_a_block_that_is_forgotten_before_it_is_written_is_unknown(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, change, write = memory(world).uid, edits(world), getattr(Blocks, method)
    world.gateway.call(change.blocks.edit(OPERATOR, uid, "human", "One.", 1))

    async def forget_first(blocks: Blocks, *arguments: Any, **named: Any) -> Any:
        await world.store.forgetting.forget(memory_id, ForgetTarget(is_all=True))
        return await write(blocks, *arguments, **named)

    memory_id = memory(world).id
    monkeypatch.setattr(Blocks, method, forget_first)
    works = {
        "write": change.blocks.edit(OPERATOR, uid, "human", "Two.", 2),
        "undo": change.blocks.undo(OPERATOR, uid, "human", 2),
        "restore": change.blocks.restore(OPERATOR, uid, "human", 2, 1),
    }
    with pytest.raises(UnknownId):
        world.gateway.call(works.pop(method))
    for unused in works.values():
        unused.close()
    assert [action for _, action, _ in audit(world)] == ["edit"]


@pytest.mark.both
def test_a_corrected_fact_is_what_is_recalled(world: World) -> None:
    (seq,) = learn(world, "Alice's train leaves on 5 May.")
    uid, change = memory(world).uid, edits(world)
    new = world.gateway.call(change.correct_fact(OPERATOR, uid, seq, " Alice's train leaves on 4 May.\n"))
    assert (new.text, new.origin) == ("Alice's train leaves on 4 May.", "operator")
    said(world, "When does my train leave?")
    assert b"4 May" in world.upstream.last.body
    assert b"5 May" not in world.upstream.last.body
    for text in ("", "x" * 2_001, new.text):
        with pytest.raises(BadRequest):
            world.gateway.call(change.correct_fact(OPERATOR, uid, new.seq, text))
    with pytest.raises(Conflict):
        world.gateway.call(change.correct_fact(OPERATOR, uid, seq, "Another."))
    with pytest.raises(UnknownId):
        world.gateway.call(change.correct_fact(OPERATOR, uid, 999, "Another."))
    assert audit(world) == [("ops", "correct", f"fact {seq} as {new.seq}")]


def test_a_muted_fact_is_said_by_no_note_until_it_is_unmuted(world: World) -> None:
    (seq,) = learn(world, "Alice's train leaves on 5 May.")
    uid, change = memory(world).uid, edits(world)
    world.gateway.call(change.mute_fact(OPERATOR, uid, seq, is_muted=True))
    said(world, "When does my train leave?")
    assert b"5 May" not in world.upstream.last.body
    world.gateway.call(change.mute_fact(OPERATOR, uid, seq, is_muted=False))
    said(world, "When will my train leave?")
    assert b"5 May" in world.upstream.last.body
    assert [what for _, _, what in audit(world)] == [f"fact {seq}, said again", f"fact {seq}, muted"]


@pytest.mark.both
def test_while_a_memory_is_paused_every_request_is_off_the_record(world: World) -> None:
    said(world, "My cat is called Miso.")
    uid, change = memory(world).uid, edits(world)
    world.gateway.call(change.pause(OPERATOR, uid, is_paused=True))
    stored = world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL")
    for mode in ("on", "strict", "read"):
        shown = said(world, "What is my cat called, and what of Zqdogx?", **{"x-mnemogate-memory": mode})
        assert shown["x-mnemogate-memory"] == "off"
        assert b"Miso" not in world.upstream.last.body
    assert said(world, "Whose cat?", **{"x-mnemogate-user": "bob"})["x-mnemogate-memory"] == "on"
    bobs = 1
    assert world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL") == [stored[0] + bobs]
    assert b"Zqdogx" not in world.data()
    world.gateway.call(change.pause(OPERATOR, uid, is_paused=False))
    shown = said(world, "What is my cat called, I ask?")
    assert shown["x-mnemogate-memory"] == "on"
    assert b"Miso" in world.upstream.last.body
    assert [what for _, _, what in audit(world)] == ["resumed", "paused"]


@pytest.mark.both
def test_a_fact_that_was_added_is_recalled_and_rests_on_no_message(world: World) -> None:
    of, change, call = memory(world), edits(world), world.gateway.call
    new = call(change.add_fact(OPERATOR, of.uid, " Alice's train leaves\non 4 May. "))
    assert (new.text, new.origin) == ("Alice's train leaves on 4 May.", "operator")
    assert (new.exchange_row, new.sources) == (None, ())
    said(world, "When does my train leave?")
    assert b"Alice's train leaves on 4 May." in world.upstream.last.body
    for text in ("", " \n", "x" * 2_001):
        with pytest.raises(BadRequest, match="1 to 2000 characters"):
            call(change.add_fact(OPERATOR, of.uid, text))
    with pytest.raises(UnknownId):
        call(change.add_fact(Editor("ops", "shop"), of.uid, "Another."))
    call(world.store.forgetting.forget(of.id, ForgetTarget(message_seqs=[1, 2, 3, 4])))
    assert [fact.seq for fact in call(world.store.facts.list_page(of.id))] == [new.seq]
    assert audit(world) == [("ops", "remember", f"fact {new.seq}")]
    # By age it goes as a correction does.
    call(world.store.forgetting.forget(of.id, ForgetTarget(before=world.clock() + 1)))
    assert call(world.store.facts.list_page(of.id)) == []


@pytest.mark.both
def test_a_fact_is_told_before_each_reply_if_it_is_added_so(world: World) -> None:
    of, change, call = memory(world), edits(world), world.gateway.call
    blind = call(change.add_fact(OPERATOR, of.uid, "I never read colours, only shapes.", always=True))
    nuts = call(change.add_fact(OPERATOR, of.uid, "I am allergic to nuts."))
    assert (blind.standing, nuts.standing) == (True, False)
    said(world, "Send me a table of prices.", **{"x-mnemogate-conversation": "prices"})
    assert b"I never read colours, only shapes" in world.upstream.last.body
    assert b"allergic to nuts" not in world.upstream.last.body
    corrected = call(change.correct_fact(OPERATOR, of.uid, blind.seq, "He reads shapes."))
    assert corrected.standing
    # The same text may be added so later.
    again = call(change.add_fact(OPERATOR, of.uid, "I am allergic to nuts", always=True))
    assert again.standing
    assert {fact.seq for fact in call(world.store.facts.list_page(of.id))} == {corrected.seq, again.seq}
    said(world, "Where shall we eat?", **{"x-mnemogate-conversation": "food"})
    assert b"allergic to nuts" in world.upstream.last.body
    with pytest.raises(Conflict, match=f"fact {again.seq} says so already"):
        call(change.add_fact(OPERATOR, of.uid, "I am allergic to nuts.", always=True))
    call(change.mute_fact(OPERATOR, of.uid, again.seq, is_muted=True))
    with pytest.raises(Conflict, match="is not mentioned"):
        call(change.add_fact(OPERATOR, of.uid, "I am allergic to nuts.", always=True))


@pytest.mark.both
def test_a_fact_that_is_added_so_takes_the_place_of_what_it_contradicts(world: World) -> None:
    of, change, call = memory(world), edits(world), world.gateway.call
    learn(world, "User said: I never eat meat.", "User said: I like tea.", always=True)
    meat, tea = reversed(call(world.store.facts.list_page(of.id)))
    new = call(change.add_fact(OPERATOR, of.uid, "I always eat meat now.", always=True))
    assert [fact.seq for fact in call(world.store.facts.list_page(of.id))] == [new.seq, tea.seq]
    assert [fact.seq for fact in call(world.store.facts.list_replaced(of.id, new.id))] == [meat.seq]
    replaced = ("ops", "correct", f"fact {meat.seq} as {new.seq}")
    assert audit(world) == [replaced, ("ops", "remember", f"fact {new.seq}")]
    # One that is told only when it fits says no more than that.
    call(change.add_fact(OPERATOR, of.uid, "I never eat meat on Fridays."))
    assert new.seq in [fact.seq for fact in call(world.store.facts.list_page(of.id))]


def test_a_fact_that_is_ticked_takes_the_place_of_what_it_contradicts(world: World) -> None:
    """Also if that was learned later."""
    of, change, call = memory(world), edits(world), world.gateway.call
    meat, no_meat, tea = learn(world, "I always eat meat.", "I never eat meat.", "I like tea.", always=True)
    for is_always, current in ((False, [tea, no_meat, meat]), (True, [tea, meat]), (True, [tea, meat])):
        fact = call(change.set_always(OPERATOR, of.uid, meat, is_always=is_always))
        assert fact.standing is is_always
        assert [each.seq for each in call(world.store.facts.list_page(of.id))] == current
    (ended,) = call(world.store.facts.list_replaced(of.id, fact.id))
    assert (ended.seq, ended.successor) == (no_meat, meat)
    # What the first tick ended is named once.
    assert [(action, what) for _, action, what in audit(world)] == [
        ("always", f"fact {meat}, told before each reply"),
        ("correct", f"fact {no_meat} as {meat}"),
        ("always", f"fact {meat}, told before each reply"),
        ("always", f"fact {meat}, told when it fits"),
    ]


def test_a_fact_that_is_added_so_has_room_before_what_is_learned_later(world: World) -> None:
    of, call = memory(world), world.gateway.call
    blind = call(edits(world).add_fact(OPERATOR, of.uid, "I never read colours.", always=True))
    learn(world, *(f"User said: I never eat number {n} of them." for n in range(20)), always=True)
    said(world, "Send me a table of prices.", **{"x-mnemogate-conversation": "prices"})
    assert b"I never read colours" in world.upstream.last.body
    assert b"I never eat number 19 of them" in world.upstream.last.body
    shown = call(FactViews(world.store).list_standing(of.uid))
    assert blind.seq in {fact.seq for fact in shown}


@pytest.mark.parametrize("text", ["x" * 161, "\u4e00" * 160])
def test_a_fact_that_has_no_room_before_each_reply_is_not_added_so(world: World, text: str) -> None:
    of, change, call = memory(world), edits(world), world.gateway.call
    with pytest.raises(BadRequest, match="too long to be told before each reply"):
        call(change.add_fact(OPERATOR, of.uid, text, always=True))
    assert not call(change.add_fact(OPERATOR, of.uid, text)).standing


def test_a_fact_that_is_added_in_a_pause_is_recalled_once_memory_is_resumed(world: World) -> None:
    uid, change, call = memory(world).uid, edits(world), world.gateway.call
    call(change.pause(OPERATOR, uid, is_paused=True))
    call(change.add_fact(OPERATOR, uid, "Alice's cat is called Miso."))
    assert said(world, "What is my cat called?")["x-mnemogate-memory"] == "off"
    assert b"Miso" not in world.upstream.last.body
    call(change.pause(OPERATOR, uid, is_paused=False))
    said(world, "What is my cat called, please?")
    assert b"Miso" in world.upstream.last.body


@pytest.mark.both
def test_of_two_operators_who_add_the_same_fact_one_is_refused(world: World) -> None:
    uid, change = memory(world).uid, edits(world)

    async def add_both() -> list[Any]:
        texts = ("The train leaves on 4 May.", "the train leaves on 4 May")
        return await asyncio.gather(
            *(change.add_fact(OPERATOR, uid, text) for text in texts), return_exceptions=True
        )

    new, error = sorted(world.gateway.call(add_both()), key=lambda each: isinstance(each, Exception))
    assert (type(error), str(error)) == (
        FactExists,
        f"Nothing was added: fact {new.seq} says so already.",
    )
    world.gateway.call(change.mute_fact(OPERATOR, uid, new.seq, is_muted=True))
    with pytest.raises(Conflict, match="says so already, and is not mentioned"):
        world.gateway.call(change.add_fact(OPERATOR, uid, "The train leaves on 4 May."))
    assert len(world.gateway.call(world.store.facts.list_page(memory(world).id))) == 1


@pytest.mark.both
def test_a_fact_that_was_added_is_exported_and_imported(world: World) -> None:
    operations = make_operations(world.gateway.app.services.settings, world.store)
    named = {"project": "default", "profile": "helper"}

    def perform(name: str, user: str, **arguments: Any) -> Any:
        return world.gateway.call(operations.perform(name, {**named, "user": user, **arguments}))

    new = perform("memory-add", "alice", text="The train leaves on 4 May.", always=True)
    assert (new["origin"], new["sources"]) == ("operator", ())
    with pytest.raises(BadRequest, match="text"):
        perform("memory-add", "alice")
    with pytest.raises(BadRequest, match="Nothing is remembered"):
        perform("memory-add", "bob", text="The train leaves on 4 May.")
    answer = perform("memory-export", "alice")
    lines = answer["lines"]
    while answer["next"] is not None:
        answer = perform("memory-export", "alice", **{"from": answer["next"]})
        lines += answer["lines"]
    perform("memory-import", "carol", lines=lines, end=True)
    carol = world.gateway.call(world.store.agents.find(Scope("default", "helper", "user:carol")))
    assert carol is not None
    (fact,) = world.gateway.call(world.store.facts.list_page(carol.id))
    assert (fact.text, fact.origin, fact.sources) == ("The train leaves on 4 May.", "operator", ())
    assert fact.standing


def test_the_command_line_corrects_mutes_and_forgets_one_fact(world: World) -> None:
    cat, train = learn(world, "The cat is grey.", "The train leaves on 5 May.")
    named = {"project": "default", "profile": "helper", "user": "alice"}
    operations = make_operations(world.gateway.app.services.settings, world.store)

    def perform(name: str, **arguments: Any) -> Any:
        return world.gateway.call(operations.perform(name, {**named, **arguments}))

    new = perform("memory-correct", fact=train, text="The train leaves on 4 May.")
    assert perform("memory-mute", fact=new["seq"])["muted"]
    assert not perform("memory-mute", fact=new["seq"], off=True)["muted"]
    answer = perform("memory-forget", fact=cat)
    assert (answer["done"], answer["memories"]) == (True, 1)
    assert b"The cat is grey." not in world.data()
    with pytest.raises(BadRequest, match=f"no fact {cat}"):
        perform("memory-forget", fact=cat)
    with pytest.raises(BadRequest, match="not several"):
        perform("memory-forget", fact=cat, message=1)
