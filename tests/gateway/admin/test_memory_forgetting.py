"""Forgetting by hand as the page does it: a preview that counts, a number that confirms, nothing left afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from gateway.errors import Conflict, UnknownId
from gateway.operations import make_operations
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.forgetting.forgetting_preview import TargetKind
from gateway.run.admin.forgetting.memory_forgetting import MemoryForgetting
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.memory_edits import MemoryEdits
from gateway.run.background.retention import make_retention
from gateway.settings import BlockSettings
from storage.commands import LearnedFact
from storage.errors import StoreBusy
from storage.reader_commands import LearnedChanges
from tests.doubles.upstream import StrictUpstream
from tests.gateway.admin.test_memory_views import memory, rows, speak, views
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes

pytestmark = pytest.mark.both

OPERATOR = Editor("ops")
SECRET = "Zqmisox"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def forgetting(world: World, **options: Any) -> MemoryForgetting:
    return MemoryForgetting(world.store, views(world), world.clock, **options)


def learn(world: World, text: str, row: int, block: str = "") -> int:
    """Stores a fact of an exchange, and with it a value of the block `human`. Returns the fact's number."""
    of = memory(world)

    async def write() -> int:
        fact = LearnedFact(text, "", text.casefold(), world.clock(), row, [row])
        (human,) = await world.store.blocks.load(of.id)
        writes = [(human, block, [row])] if block else []
        effect = world.store.facts.make_learn_effect(
            of, 0, 1, world.clock(), lambda blocks: LearnedChanges(writes=writes, facts=[fact])
        )
        await world.store.database.write(effect)
        return (await world.store.facts.list_page(of.id))[0].seq

    return world.gateway.call(write())


def test_a_preview_counts_what_goes_and_says_what_stays(world: World) -> None:
    speak(world, f"My cat is called {SECRET}.", "She is grey.", talk="conv-19")
    speak(world, f"What did I say of the cat {SECRET}?", talk="conv-20")
    seq = learn(
        world, f"Alice has a cat called {SECRET}.", rows(world)[0], f"Cats\nAlice has a cat called {SECRET}."
    )
    of, call, forget = memory(world), world.gateway.call, forgetting(world)
    talk = call(forget.previews.show(None, of.uid, "conversation", "conv-19"))
    counts = talk.will_go
    assert (counts.messages, counts.facts, counts.passages, counts.versions) == (4, 1, 0, 1)
    assert (counts.summaries, counts.notes, talk.confirm) == (0, 1, "4")
    assert talk.command.startswith("mnemogate memory forget --profile=helper --user=alice --in=conv-19")
    message = call(forget.previews.show(None, of.uid, "message", 1))
    assert (message.will_go.messages, message.will_go.facts, message.confirm) == (1, 1, None)
    for preview in (talk, message):
        assert [(each.seq, each.text) for each in preview.facts or ()] == [
            (seq, f"Alice has a cat called {SECRET}.")
        ]
    texts = [each.text for each in message.stays]
    assert any("message 2" in text for text in texts)
    assert any("in other words" in text for text in texts)
    assert all(each.href for each in message.stays)
    fact = call(forget.previews.show(None, of.uid, "fact", seq))
    assert (fact.will_go.messages, fact.will_go.facts, fact.will_go.versions) == (0, 1, 1)
    assert "Message 1" in fact.stays[0].text
    assert fact.stays[0].quote == f"My cat is called {SECRET}."
    whole = call(forget.previews.show(None, of.uid, "all"))
    assert (whole.will_go.messages, whole.will_go.facts, whole.confirm) == (6, 1, "6")
    assert (fact.facts, whole.facts) == (UNSET, UNSET)
    missing: list[tuple[TargetKind, int | str]] = [
        ("message", 999),
        ("fact", 999),
        ("passage", 1),
        ("conversation", "conv-9"),
    ]
    for kind, value in missing:
        with pytest.raises(UnknownId):
            call(forget.previews.show(None, of.uid, kind, value))
    with pytest.raises(UnknownId, match="There is no such memory"):
        call(forget.previews.show("other", of.uid, "all"))


def test_a_version_is_named_by_what_follows_the_last_slash(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent(blocks=(BlockSettings("work/2026"),))) as world:
        speak(world, "Hello.")
        of, call, forget = memory(world), world.gateway.call, forgetting(world)
        edits = MemoryEdits(world.store, world.clock)
        for version, value in enumerate((f"Plan\n{SECRET}", "Plan"), 1):
            call(edits.blocks.edit(OPERATOR, of.uid, "work/2026", value, version))
        preview = call(forget.previews.show(None, of.uid, "version", "work/2026/2"))
        assert (preview.target.id, preview.target.text) == ("work/2026/2", SECRET)
        call(forget.forget(OPERATOR, of.uid, "version", "work/2026/2"))
        audited = call(AuditOperations(world.store, world.clock, 90.0).list_forgettings(of.uid))
        assert [each.what for each in audited] == ["block work/2026, version 2"]
        assert SECRET.encode() not in world.data()


def test_another_number_than_now_forgets_nothing(world: World) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    of, call, forget = memory(world), world.gateway.call, forgetting(world)
    for confirm in ("4", "", None):
        with pytest.raises(Conflict, match="Nothing was forgotten"):
            call(forget.forget(OPERATOR, of.uid, "conversation", "conv-19", confirm=confirm))
    assert SECRET.encode() in world.data()
    with pytest.raises(UnknownId):
        call(forget.forget(Editor("ops", "other"), of.uid, "all", confirm="2"))


def test_what_was_begun_goes_on_though_it_could_not_be_noted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    of, call, forget = memory(world), world.gateway.call, forgetting(world)

    async def fails(*entry: Any) -> None:
        raise StoreBusy("no")

    monkeypatch.setattr(world.store.audit, "add", fails)
    with pytest.raises(StoreBusy):
        call(forget.forget(OPERATOR, of.uid, "conversation", "conv-19", confirm="2"))
    becomes(lambda: SECRET.encode() not in world.data())


@pytest.mark.parametrize("kind", ["conversation", "all"])
def test_what_was_forgotten_is_nowhere_afterwards(world: World, kind: Any) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    speak(world, f"What is my cat {SECRET} called?", talk="conv-20") if kind == "all" else None
    learn(world, f"Alice has a cat called {SECRET}.", rows(world)[0], f"Cat: {SECRET}.")
    speak(world, "What is my cat called?", talk="conv-21")
    world.pass_time(60)
    of, call, forget = memory(world), world.gateway.call, forgetting(world)
    value = "conv-19" if kind == "conversation" else None
    preview = call(forget.previews.show(None, of.uid, kind, value))
    done = call(forget.forget(OPERATOR, of.uid, kind, value, confirm=preview.confirm))
    assert (done.done, done.swept, done.messages) == (True, True, int(preview.confirm or 0))
    assert SECRET.encode() not in world.data()
    entries = [e for e in call(world.store.audit.list_page(before=1 << 40)) if e.action == "forget"]
    assert [entry.what.split()[0] for entry in entries] == (
        ["conversation", "with"] if kind == "conversation" else ["all"]
    )
    assert {(entry.actor, entry.memory) for entry in entries} == {("ops", of.uid)}
    assert not any(SECRET in entry.what for entry in entries)


def test_a_forgetting_that_takes_long_goes_on_by_itself(world: World) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    of, call, forget = memory(world), world.gateway.call, forgetting(world, call_s=0.0)
    done = call(forget.forget(OPERATOR, of.uid, "all", confirm="2"))
    assert not done.done

    async def end() -> None:
        await forget._tasks.drain()
        await forget.aclose()

    call(end())
    assert SECRET.encode() not in world.data()


def test_a_forgetting_that_the_store_breaks_off_goes_on_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    of, call = memory(world), world.gateway.call

    async def fail(id: int) -> None:
        raise StoreBusy("busy")

    with monkeypatch.context() as busy:
        busy.setattr(world.store.forgetting, "run", fail)
        done = call(forgetting(world).forget(OPERATOR, of.uid, "all", confirm="2"))
    assert (done.done, done.swept) == (False, False)
    call(make_retention(world.gateway.app.services.settings, world.store, world.clock).forget_old())
    assert SECRET.encode() not in world.data()


def test_the_command_line_forgets_as_the_preview_names_it(world: World) -> None:
    speak(world, f"My cat is called {SECRET}.", talk="conv-19")
    of, call = memory(world), world.gateway.call
    preview = call(forgetting(world).previews.show(None, of.uid, "message", 1))
    assert preview.command == "mnemogate memory forget --profile=helper --user=alice --message=1"
    operations = make_operations(world.gateway.app.services.settings, world.store)
    named = {"project": "default", "profile": "helper", "user": "alice", "message": 1}
    assert call(operations.perform("memory-forget", named))["messages"] == preview.will_go.messages
    assert SECRET.encode() not in world.data()
