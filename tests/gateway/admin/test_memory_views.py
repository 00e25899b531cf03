"""Views of memories as the page reads them: lists, blocks, facts, conversations, a trial of recall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest, UnknownId
from gateway.operations import make_request_operations
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.memory_edits import MemoryEdits
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.requests.recall_trials import RecallTrials
from gateway.run.memory.trial import TrialRunner
from gateway.settings import BlockSettings
from storage.commands import LearnedFact
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, remember

pytestmark = pytest.mark.both

OPERATOR = Editor("ops")
BLOCKS = (
    BlockSettings("human", "What is known of the user.", limit=40),
    BlockSettings("law", read_only=True),
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(blocks=BLOCKS)) as made:
        yield made


def views(world: World) -> MemoryViews:
    return MemoryViews(world.store, world.clock)


def speak(world: World, *texts: str, user: str = "alice", talk: str | None = None) -> list[dict[str, Any]]:
    """Speaks in one conversation. Returns the client's list."""
    headers = {"x-mnemogate-user": user, **({"x-mnemogate-conversation": talk} if talk else {})}
    chat = world.chat(headers=headers, model="agent/helper")
    for text in texts:
        chat.say(text)
    world.settle()
    return chat.messages


def memory(world: World, user: str = "alice") -> Agent:
    async def find() -> Agent:
        found = await world.store.agents.find(Scope("default", "helper", f"user:{user}"))
        assert found is not None
        return found

    return world.gateway.call(find())


def learn(world: World, *facts: tuple[str, int]) -> list[int]:
    """Stores facts, each with the row of the exchange that it came from. Returns their numbers."""
    of = memory(world)
    written = [LearnedFact(text, "", text.casefold(), 1.0, row, [row]) for text, row in facts]

    async def write() -> list[int]:
        effect = world.store.facts.make_learn_effect(
            of, 0, 1, world.clock(), lambda blocks: LearnedChanges(facts=written)
        )
        await world.store.database.write(effect)
        return [fact.seq for fact in reversed(await world.store.facts.list_page(of.id))]

    return world.gateway.call(write())


def rows(world: World) -> list[int]:
    return list(world.query("SELECT id FROM exchanges ORDER BY id"))


def test_people_are_listed_by_their_last_turn_and_found_by_the_beginning_of_their_names(world: World) -> None:
    for user in ("alice", "Bob", "alina"):
        speak(world, "Hello.", user=user)
        world.clock.sleep(60)
    speak(world, "Once more.", user="alice")
    call, read = world.gateway.call, views(world)
    page = call(read.list_page(None, limit=2))
    assert [each.name for each in page.items] == ["alice", "alina"]
    rest = call(read.list_page(None, limit=2, after=page.next))
    assert ([each.name for each in rest.items], rest.next) == (["Bob"], None)
    assert [each.name for each in call(read.list_page(None, q="AL")).items] == ["alice", "alina"]
    assert call(read.list_page("other")).items == ()
    assert call(read.list_page(None, "agent")).items == ()
    (alice, *_) = page.items
    assert (alice.kind, alice.project, alice.profile) == ("user", "default", "helper")
    assert (alice.conversations, alice.messages, alice.blocks, alice.facts) == (2, 4, 2, 0)
    assert alice.last_turn is not None
    assert alice.last_turn > alice.created
    with pytest.raises(BadRequest):
        call(read.list_page(None, after="later"))


def test_a_memory_shows_its_blocks_its_newest_facts_and_conversations(world: World) -> None:
    speak(world, "My cat is called Miso.", "She is grey.", talk="conv-19")
    speak(world, "Hello again.")
    (cat,) = learn(world, ("Alice has a cat called Miso.", rows(world)[0]))
    call, read, uid = world.gateway.call, views(world), memory(world).uid
    page = call(read.show(None, uid))
    assert [(b.label, b.version, b.limit, b.read_only, b.origin) for b in page.blocks] == [
        ("human", 1, 40, False, "default"),
        ("law", 1, 2000, True, "default"),
    ]
    (fact,) = page.facts
    assert (fact.seq, fact.text, fact.origin, fact.muted) == (
        cat,
        "Alice has a cat called Miso.",
        "learned",
        False,
    )
    (source,) = fact.sources
    assert (source.kind, source.text) == ("message", "My cat is called Miso.")
    assert source.href is not None
    assert source.href.startswith(f"m/{uid}/c/")
    assert [(c.client_id, c.messages) for c in page.conversations] == [(None, 2), ("conv-19", 4)]
    assert page.memory.messages == 6
    listed = call(read.conversations.list_page(None, uid, limit=1))
    rest = call(read.conversations.list_page(None, uid, limit=1, after=listed.next))
    assert [c.id for c in (*listed.items, *rest.items)] == [c.id for c in page.conversations]
    assert rest.next is None


def test_another_projects_memory_is_no_such_memory(world: World) -> None:
    speak(world, "Hello.", talk="conv-19")
    uid, read, call = memory(world).uid, views(world), world.gateway.call
    works: list[Any] = [
        read.show("other", uid),
        read.show(None, "0" * 32),
        read.facts.list_page("other", uid),
        read.conversations.list_page("other", uid),
        read.list_passages("other", uid),
        read.blocks.show("other", uid, "human"),
        read.facts.show("other", uid, 1),
        read.conversations.show("other", uid, "conv-19"),
        read.messages.read_text("other", uid, "conv-19", 1),
        trials(world).try_recall("other", uid, "Hello"),
    ]
    for work in works:
        with pytest.raises(UnknownId, match="There is no such memory"):
            call(work)


def test_facts_are_paged_with_those_that_are_no_longer_true_and_as_of_a_time(world: World) -> None:
    speak(world, "Hello.")
    first, *_ = learn(world, ("One.", 1), ("Two.", 1), ("Three.", 1))
    of, read, call = memory(world), views(world), world.gateway.call
    before = world.clock()
    new = call(MemoryEdits(world.store, world.clock).correct_fact(OPERATOR, of.uid, first, "One and a half."))
    page = call(read.facts.list_page(None, of.uid, limit=2))
    rest = call(read.facts.list_page(None, of.uid, limit=2, after=page.next))
    assert [f.text for f in (*page.items, *rest.items)] == ["One and a half.", "Three.", "Two."]
    assert [f.text for f in call(read.facts.list_page(None, of.uid, includes_ended=True)).items][-1] == "One."
    assert {f.text for f in call(read.facts.list_page(None, of.uid, as_of=before)).items} == {
        "One.",
        "Two.",
        "Three.",
    }
    shown = call(read.facts.show(None, of.uid, new.seq))
    assert (shown.fact.text, [f.text for f in shown.before], shown.after) == (
        "One and a half.",
        ["One."],
        None,
    )
    old = call(read.facts.show(None, of.uid, first))
    assert old.after is not None
    assert old.after.seq == new.seq == old.fact.successor
    with pytest.raises(UnknownId):
        call(read.facts.show(None, of.uid, 999))


def test_a_blocks_versions_show_what_changed_word_by_word(world: World) -> None:
    speak(world, "Hello.")
    of, read, call = memory(world), views(world), world.gateway.call
    edits = MemoryEdits(world.store, world.clock)
    for version, value in enumerate(("Name: Alice.", "Name: Alice. Cat: Miso.", "Name: Bob. Cat: Miso."), 1):
        call(edits.blocks.edit(OPERATOR, of.uid, "human", value, version))
    page = call(read.blocks.show(None, of.uid, "human", limit=3))
    assert [(v.version, v.origin, v.value) for v in page.versions] == [
        (4, "operator", "Name: Bob. Cat: Miso."),
        (3, "operator", "Name: Alice. Cat: Miso."),
        (2, "operator", "Name: Alice."),
    ]
    assert page.diff is not None
    assert (page.diff.from_, page.diff.to) == (3, 4)
    parts = [(p.op, p.text) for p in page.diff.parts]
    assert parts == [("same", "Name: "), ("del", "Alice. "), ("ins", "Bob. "), ("same", "Cat: Miso.")]
    assert [v.version for v in call(read.blocks.show(None, of.uid, "human", after=page.next)).versions] == [1]
    older = call(read.blocks.show(None, of.uid, "human", from_=4, to=2)).diff
    assert older is not None
    assert "".join(p.text for p in older.parts if p.op != "ins") == "Name: Bob. Cat: Miso."
    assert "".join(p.text for p in older.parts if p.op != "del") == "Name: Alice."
    with pytest.raises(BadRequest):
        call(read.blocks.show(None, of.uid, "human", from_=9))
    with pytest.raises(UnknownId):
        call(read.blocks.show(None, of.uid, "nothing"))


def test_a_conversation_is_read_from_its_end_and_branches_are_distinguished(world: World) -> None:
    chat = speak(world, *(f"Message {n}." for n in range(1, 6)), talk="conv-19")
    headers = {"x-mnemogate-user": "alice", "x-mnemogate-conversation": "conv-19"}
    world.clock.sleep(1)
    # The third message is asked in other words, and goes on from there.
    fork = world.chat(headers=headers, model="agent/helper")
    fork.messages = chat[:4]
    fork.say("Another third message.")
    world.settle()
    of, read, call = memory(world), views(world), world.gateway.call
    page = call(read.conversations.show(None, of.uid, "conv-19"))
    assert [m.text for m in page.items if m.role == "user"] == [
        "Message 1.",
        "Message 2.",
        "Another third message.",
    ]
    assert [m.role for m in page.items] == ["user", "assistant"] * 3
    assert {m.state for m in page.items} == {"standing"}
    assert [b.current for b in page.branches] == [True, False]
    assert (page.branch, page.next) == (page.branches[0].id, None)
    reply = page.items[-1]
    logged = world.gateway.app.services.requests.list_ended()[0]
    assert (reply.exchange, reply.request) == (page.branch, logged.id)
    other = call(read.conversations.show(None, of.uid, "conv-19", branch=page.branches[1].id))
    assert [m.text for m in other.items if m.role == "user"] == [f"Message {n}." for n in range(1, 6)]
    newest = call(read.conversations.show(None, of.uid, "conv-19", branch=page.branches[1].id, limit=3))
    earlier = call(
        read.conversations.show(
            None, of.uid, "conv-19", branch=page.branches[1].id, limit=3, before=newest.next
        )
    )
    assert [m.seq for m in (*earlier.items, *newest.items)] == [m.seq for m in other.items[-6:]]
    short = call(read.conversations.show(None, of.uid, "conv-19", max_chars=20))
    assert 0 < len(short.items) < len(page.items)
    assert short.next is not None
    assert call(read.messages.read_text(None, of.uid, "conv-19", page.items[0].seq)) == "Message 1."
    for name in ("conv-20", "0" * 32):
        with pytest.raises(UnknownId):
            call(read.conversations.show(None, of.uid, name))


def test_long_texts_are_cut_images_are_a_line_and_off_the_record_is_a_gap(world: World) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_600_000}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, image]},
    ]
    headers = {"x-mnemogate-user": "alice", "x-mnemogate-conversation": "conv-19"}
    assert world.post(messages, headers, model="agent/helper").status == 200
    messages += [{"role": "assistant", "content": "Ok."}, {"role": "user", "content": "x" * 5_000}]
    assert world.post(messages, headers, model="agent/helper").status == 200
    messages += [{"role": "assistant", "content": "Ok."}, {"role": "user", "content": "Between us."}]
    off = {**headers, "x-mnemogate-memory": "off"}
    assert world.post(messages, off, model="agent/helper").status == 200
    world.settle()
    of, read, call = memory(world), views(world), world.gateway.call
    page = call(read.conversations.show(None, of.uid, "conv-19"))
    first, long = (m for m in page.items if m.role == "user")
    assert (first.text, first.images) == ("Look:\nimage, 1.2 MB", 1)
    assert long.text is not None
    assert len(long.text) == 4_001
    assert call(read.messages.read_text(None, of.uid, "conv-19", long.seq)) == "x" * 5_000
    assert b"Between us." not in world.data()
    gaps = [
        m
        for b in page.branches
        for m in call(read.conversations.show(None, of.uid, "conv-19", branch=b.id)).items
    ]
    assert {(m.state, m.text) for m in gaps if m.text is None} <= {("off", None)}


def trials(world: World) -> RecallTrials:
    return RecallTrials(world.store, TrialRunner(world.store, 1_000, world.clock))


def test_a_trial_of_recall_shows_what_a_turn_would_recall(world: World) -> None:
    speak(world, "My train to Lyon leaves on 4 May.")
    speak(world, "My car is blue and needs new tyres.")
    of = memory(world)
    query = "When does my train to Lyon leave?"
    found = world.gateway.call(trials(world).try_recall(None, of.uid, query))
    assert next((h.kind, h.text, h.rank, h.score) for h in found.chosen) == (
        "message",
        "My train to Lyon leaves on 4 May.",
        1,
        1.0,
    )
    assert found.note is not None
    assert "4 May" in found.note
    assert found.found[0].seq == found.chosen[0].seq
    href = found.chosen[0].href
    assert href is not None
    assert href.startswith(f"m/{of.uid}/c/")
    assert world.query("SELECT count(*) FROM recalls WHERE exchange > 2") == [0]
    before = world.query("SELECT next_seq FROM agents")
    chat = world.chat(headers={"x-mnemogate-user": "alice"}, model="agent/helper")
    chat.say(query)
    explained = world.gateway.call(explain(world))
    assert [h.seq for h in explained.chosen] == [h.seq for h in found.chosen]
    assert [(h.seq, h.reason) for h in explained.left_out] == [(h.seq, h.reason) for h in found.left_out[:5]]
    assert world.query("SELECT next_seq FROM agents") != before
    nothing = world.gateway.call(trials(world).try_recall(None, of.uid, "Zxqv?"))
    assert nothing.found == () or nothing.note is not None
    with pytest.raises(BadRequest):
        world.gateway.call(trials(world).try_recall(None, of.uid, query, after="-1"))


def explain(world: World) -> Any:
    settings, log = world.gateway.app.services.settings, world.gateway.app.services.requests
    return make_request_operations(settings, world.store, log).explain(log.list_ended()[0].id)
