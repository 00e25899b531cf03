"""A memory is carried away as JSON lines and in again, and nothing is lost or made up on the way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.cli import main
from gateway.core.conversation import settle
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage
from gateway.errors import BadRequest
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from storage.commands import LearnedFact
from storage.errors import WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import AgentDraft, AgentEntry, PassageDraft
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Exchange, ExchangeState, Scope
from storage.search.blob import open_blob
from storage.sql.store import Store
from storage.sql.transfer_import import ImportWriter
from tests.core.conversations import assistant, call, picture, result, user
from tests.storage.api import api_scope
from tests.stored import ALICE, Clock, Speaker, open_store, put_edit, rows, save_passage, sized_memory

CAROL = Scope("other", "default", "user:carol")
Lines = list[str]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(tmp_path / "a.db", now=lambda: 1000.0)
    yield opened
    await opened.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(tmp_path / "b.db", now=lambda: 1000.0)
    yield opened
    await opened.close()


def of(scope: Scope) -> dict[str, Any]:
    return {"project": scope.project, "profile": scope.profile, "user": scope.subject.removeprefix("user:")}


async def export_pages(store: Store, scope: Scope) -> AsyncIterator[dict[str, Any]]:
    operation = TransferOperations(store).export
    place = None
    while True:
        answer = orjson.loads(orjson.dumps(await operation({**of(scope), "from": place})))
        yield answer
        place = answer["next"]
        if place is None:
            return


async def export(store: Store, scope: Scope = ALICE) -> Lines:
    return [line async for page in export_pages(store, scope) for line in page["lines"]]


async def messages_counted(store: Store, scope: Scope) -> set[int]:
    """By its export, by its rows, and by the counters of the writer."""
    agent = await store.agents.find(scope)
    assert agent is not None
    return {
        sum([page["messages"] async for page in export_pages(store, scope)]),
        (await store.overview.measure(agent.id)).messages,
        (await sized_memory(store, agent)).messages,
    }


async def fill(store: Store, lines: Lines, scope: Scope = CAROL, page: int = 7) -> None:
    operation = TransferOperations(store).restore
    at = None
    for start in range(0, len(lines), page):
        at = (await operation({**of(scope), "lines": lines[start : start + page], "at": at}))["at"]
    await operation({**of(scope), "lines": [], "at": at, "end": True})


async def live(alice: Speaker, chance: random.Random, turns: int = 60) -> None:
    """Conversations as they come: forks, cuts, tools, pictures, edits, what is off, in any script."""
    lists: dict[str | None, list[WireMessage]] = {}
    for number in range(turns):
        key = chance.choice(("c1", "c2", "ключ", None))
        history = lists.get(key, []) if chance.random() < 0.9 else []
        text = (
            chance.choice(("Good morning", "Привет 🐈", "今日は", "a\u0000b\n \u2028", '1.50 \\ "quoted"'))
            + f" {number}"
        )
        new = picture(text, f"data:{number}") if chance.random() < 0.1 else user(text)
        if history and chance.random() < 0.15:
            history = history[: 2 * chance.randrange(len(history) // 2 + 1)]  # a fork
        if history and history[-1].get("tool_calls"):
            new = result(history[-1]["tool_calls"][0]["id"], f"result {number}")
        mode = MemoryUse.OFF if chance.random() < 0.1 else MemoryUse.ON
        alice.recall = lambda question: f"[2025-01-02 Thu, user] {question}" if len(question) % 3 == 0 else ""
        turn = await alice.begin([*history, new], key, mode)
        kind = chance.random()
        reply = assistant(f"Reply {number} ☂") if kind < 0.85 else assistant(None, call(f"x{number}"))
        if kind < 0.1:
            await alice.end(turn, [assistant("Half")] if kind < 0.05 else [], rule=settle.cancel)
            continue
        if kind < 0.15:
            await alice.end(turn, [], rule=settle.write_draft)
            continue
        hidden = [assistant("", call("m1", "memory_insert")), result("m1", "inserted")]
        full = [*hidden, reply] if 0.2 < kind < 0.3 else [reply]
        await alice.end(turn, full, [f"knows {number}"] if 0.3 < kind < 0.45 else [])
        lists[key] = [*history, new, reply if kind < 0.7 or kind > 0.85 else assistant(f"Reply {number}")]


async def learn(store: Store, alice: Speaker) -> None:
    """All that was said is learned from; there was nothing in it."""
    last = (await store.export_reader.find_end(alice.agent))["seq"]
    ((cursor,),) = await rows(store, "SELECT coalesce(max(seq), 0) FROM readers")
    await store.database.write(
        store.facts.make_learn_effect(alice.agent, cursor, last, 5.0, lambda _: LearnedChanges())
    )


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5])
async def test_export_import_export_is_the_same(store: Store, other: Store, seed: int) -> None:
    chance = random.Random(seed)
    alice = Speaker(store, ALICE, Clock())
    await live(alice, chance)
    agent = alice.agent
    rows = await alice.rows()
    await save_passage(store, agent.id, "A passage ☂", at=5.5, sources=[rows[0].id, rows[1].id])
    await store.passages.add(agent.id, [PassageDraft("One with tags", 6.5, ["a", "b"])])
    (block,) = await store.blocks.load(agent.id)
    await store.blocks.write(block.id, block.version, "by hand", at=7.0, origin="api", sources=[rows[1].id])
    await store.blocks.undo(block.id, at=8.0)
    facts = store.facts
    for number, text in enumerate(("Drinks tea.", "Has a cat.", "Lives in Oslo."), 1):
        await facts.remember(agent, text, text, "operator", float(number), standing=number == 3)
    tea, cat, _ = [fact.seq for fact in await facts.list_page(agent.id)][::-1]
    await facts.correct(agent, tea, "Drinks coffee ☂.", "Drinks coffee", "person", 9.0)
    await facts.mute(agent.id, cat, 9.5, is_muted=True)
    targets = [
        ForgetTarget(exchange_rows=[rows[5].id]),
        ForgetTarget(message_seqs=[rows[8].seq, rows[11].seq + len(rows[11].inputs)]),
    ]
    for target in targets:
        assert await store.forgetting.run(await store.forgetting.begin(agent.id, target))
    lines = await export(store)
    kinds = {next(iter(json.loads(line))) for line in lines}
    content_kinds = {"conversation", "exchange", "block", "version", "passage", "fact", "ended", "edit"}
    assert kinds == {"memory", *content_kinds, "end"}
    states = {v["state"] for line in lines for k, v in json.loads(line).items() if k == "exchange"}
    assert states >= {"finished", "cancelled", "off", "forgotten"}
    await fill(other, lines)
    assert await export(other, CAROL) == lines
    (counted,) = await messages_counted(store, ALICE)
    assert await messages_counted(other, CAROL) == {counted}
    await fill(store, lines)  # next to the one it came from
    again = await export(store, CAROL)
    assert without_uids(again) == without_uids(lines)


async def test_a_long_path_is_not_read_again_for_each_page(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = Speaker(store, ALICE, Clock())
    messages: list[WireMessage] = []
    for number in range(40):
        messages.append(user(f"Question {number}"))
        turn = await alice.begin(messages, "c1")
        messages.append(assistant(f"Answer {number}"))
        await alice.end(turn, messages[-1:])
    lines, load_path_end, found = await export(store), ImportWriter.load_path_end, []

    async def read(self: ImportWriter, agent: Agent, seq: int) -> list[Exchange]:
        found.append(await load_path_end(self, agent, seq))
        return found[-1]

    monkeypatch.setattr(ImportWriter, "load_path_end", read)
    await fill(other, lines)
    assert await export(other, CAROL) == lines
    assert len(found) > 4
    assert {len(path) for path in found} == {1}


async def test_an_import_is_indexed_as_what_forgetting_left(store: Store, other: Store) -> None:
    alice, said = Speaker(store, ALICE, Clock()), list[WireMessage]()
    for n in range(3):
        said += [user(f"question {n}"), assistant(f"answer {n}")]
        await alice.say(said[:-1], said[-1])

    async def table(of: Store) -> list[bytes]:
        while await of.search_index.advance(1):
            pass
        found = await rows(of, "SELECT data FROM terms")
        return [bytes(open_blob(data).table) for (data,) in found]

    await table(store)
    target = ForgetTarget(message_seqs=[3])
    assert await store.forgetting.run(await store.forgetting.begin(alice.agent.id, target))
    await fill(other, await export(store))
    assert await table(other) == await table(store)


async def test_an_export_from_before_passages_had_tags_is_read(store: Store, other: Store) -> None:
    alice = Speaker(store, ALICE, Clock())
    await alice.say([user("one")], assistant("First."))
    await save_passage(store, alice.agent.id, "A passage", at=5.5)
    lines = [line.replace(',"tags":[]', "") for line in await export(store)]
    assert "tags" not in "".join(lines)
    await fill(other, lines)
    carol = await other.agents.find(CAROL)
    assert carol is not None
    assert [(p.text, p.tags) for p in await other.passages.list_texts(carol.id)] == [("A passage", ())]


def without_uids(lines: Lines) -> list[Any]:
    """Conversations numbered in their order, without the public ids of memory and blocks."""
    numbers: dict[str, int] = {}
    found = []
    for line in lines:
        ((part, values),) = json.loads(line).items()
        name = "uid" if part == "conversation" else "conversation"
        if name in values:
            values[name] = numbers.setdefault(values[name], len(numbers))
        if part in ("memory", "block"):
            del values["uid"]
        found.append((part, values))
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_said_while_a_memory_is_carried_away_is_not_in_it(
    store: Store, other: Store, seed: int
) -> None:
    chance = random.Random(seed)
    alice = Speaker(store, ALICE, Clock())
    await live(alice, chance, turns=20)
    await learn(store, alice)
    before = await export(store)
    operation = TransferOperations(store).export
    lines: Lines = []
    place = None
    while True:
        answer = await operation({**of(ALICE), "from": place})
        lines += answer["lines"]
        place = answer["next"]
        if place is None:
            break
        await live(alice, chance, turns=2)  # in conversations of before, and in new ones
        await learn(store, alice)
    seqs = [orjson.loads(line)["exchange"]["seq"] for line in lines if line.startswith('{"exchange"')]
    assert seqs == [
        orjson.loads(line)["exchange"]["seq"] for line in before if line.startswith('{"exchange"')
    ]
    await fill(other, lines)
    carol = Speaker(other, CAROL, Clock())
    await live(carol, chance, turns=5)  # goes on: no number is given out twice


async def test_an_export_holds_no_secret_and_no_hash(store: Store) -> None:
    alice = Speaker(store, ALICE, Clock())
    await live(alice, random.Random(1), 20)
    text = "\n".join(await export(store))
    agent = alice.agent
    for data in [agent.secret, *(e.path_hash for e in await alice.rows() if e.path_hash)]:
        assert data.hex() not in text


@pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])
async def test_a_conversation_goes_on_where_it_was(store: Store, other: Store, key: str | None) -> None:
    alice = Speaker(store, ALICE, Clock())
    history: list[WireMessage] = []
    for number in range(3):
        history += [user(f"Question {number}")]
        await alice.say(history, assistant(f"Answer {number}"), key)
        history.append(assistant(f"Answer {number}"))
    await fill(other, await export(store))
    carol = Speaker(other, CAROL, alice.now)
    turn = await carol.begin([*history, user("And now?")], key)
    assert turn.is_plain
    await carol.end(turn, [assistant("Yes.")])
    rows = await carol.rows()
    assert [e.depth for e in rows] == [0, 1, 2, 3]
    assert [(e.seq, e.offset, e.length) for e in rows[:3]] == [
        (e.seq, e.offset, e.length) for e in await alice.rows()
    ]
    assert rows[3].parent == rows[2].id
    agent = carol.agent
    while await other.search_index.advance(agent.id):
        pass
    hits = await other.recall.search(agent, "question 1")
    assert "Question 1" in [hit.text for hit in hits]


async def test_what_was_forgotten_keeps_its_place_and_matches_nothing(store: Store, other: Store) -> None:
    alice = Speaker(store, ALICE, Clock())
    history = [user("Secret"), assistant("Well."), user("More")]
    await alice.say(history[:1], assistant("Well."), "c1")
    await alice.say(history, assistant("Fine."), "c1")
    (first, _) = await alice.rows()
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(exchange_rows=[first.id]))
    await store.forgetting.run(id)
    await fill(other, await export(store))
    carol = Speaker(other, CAROL, alice.now)
    tombstone, second = await carol.rows()
    assert (tombstone.state, second.parent) == (ExchangeState.FORGOTTEN, tombstone.id)
    assert not set(tombstone.inputs) & {carol_atoms(carol, user("Secret"))}


def carol_atoms(carol: Speaker, message: WireMessage) -> tuple[bytes, ...]:
    return MessageHasher(carol.agent.secret).make_atoms(message)


async def test_edits_of_a_superseded_answer_are_not_exported(store: Store) -> None:
    """Only those of the last answer count. The others have names of this database's rows."""
    alice = Speaker(store, ALICE, Clock())
    write, _ = await alice.commit(await alice.begin([user("Hello")], "c1"), [assistant("Hi.")], ["likes tea"])
    await store.turns.commit(write)
    edits = [line["edit"] for line in map(json.loads, await export(store)) if "edit" in line]
    assert [(edit["state"], edit["call"]) for edit in edits] == [("pending", write.edits[0].call_id)]


async def export_during(store: Store, agent: Agent, change: Callable[[], Awaitable[object]]) -> Lines:
    """Returns the export of a memory that is changed after its first page is read."""
    operations = TransferOperations(store)
    lines, at = await operations.read_page(agent)
    await change()
    while at is not None:
        page, at = await operations.read_page(agent, at)
        lines = [*lines, *page]
    return [json.dumps(line) for line in lines]


async def test_an_edit_that_is_confirmed_while_a_memory_is_carried_away_is_made_in_the_copy(
    store: Store, other: Store
) -> None:
    alice = Speaker(store, ALICE, Clock())
    said = [user("I like tea."), assistant("Noted.")]
    await alice.end(await alice.begin(said[:1], "c1"), said[1:], ["likes tea"])
    confirm = partial(alice.say, [*said, user("bye")], assistant("Bye."), "c1")
    await fill(other, await export_during(store, alice.agent, confirm))
    carol = Speaker(other, CAROL, Clock())
    await carol.say([*said, user("bye")], assistant("Bye."), "c1")
    for each, speaker in ((store, alice), (other, carol)):
        assert [block.value for block in await each.blocks.load(speaker.agent.id)] == ["likes tea"]


async def test_an_edit_is_not_made_again_for_a_fact_that_is_learned_while_a_memory_is_carried_away(
    store: Store,
) -> None:
    alice = Speaker(store, ALICE, Clock())
    said = [user("I like tea."), assistant("Noted.")]
    await alice.end(await alice.begin(said[:1], "c1"), said[1:], ["likes tea"])
    await alice.say([*said, user("bye")], assistant("Bye."), "c1")
    first, _ = await alice.rows()
    learned = LearnedChanges(facts=[LearnedFact("Likes tea.", "", "k", 1.0, first.id, [first.id])])
    learn = store.facts.make_learn_effect(alice.agent, 0, 1, 1.0, lambda _: learned)
    exported = await export_during(store, alice.agent, lambda: store.database.write(learn))
    edits = [line["edit"] for line in map(json.loads, exported) if "edit" in line]
    assert [edit["state"] for edit in edits] == ["merged"]


async def test_a_copy_knows_which_value_a_pending_edit_overwrites(store: Store, other: Store) -> None:
    alice = Speaker(store, ALICE, Clock())
    write, done = await alice.commit(
        await alice.begin([user("Hello")], "c1"), [assistant("Hi.")], ["likes tea"]
    )
    edit = replace(write.edits[0], exchange_row=done.exchange_row, call_id="x", seen=-7)
    await put_edit(store, done.agent.id, edit)
    await fill(other, await export(store))
    assert await rows(other, "SELECT seen FROM block_ops ORDER BY id") == [(None,), (-7,)]


# -- what is refused


async def test_a_memory_is_not_written_over(store: Store, other: Store) -> None:
    alice, carol = Speaker(store, ALICE, Clock()), Speaker(other, CAROL, Clock())
    await alice.say([user("Hello")], assistant("Hi."), "c1")
    lines = await export(store)
    await carol.say([user("I was here first")], assistant("Hi."), "c1")
    with pytest.raises(BadRequest, match="has a memory here already"):
        await fill(other, lines)
    assert len(await carol.rows()) == 1


async def test_one_that_began_meanwhile_is_not_written_over_either(store: Store, other: Store) -> None:
    alice, carol = Speaker(store, ALICE, Clock()), Speaker(other, CAROL, Clock())
    await alice.say([user("Hello")], assistant("Hi."), "c1")
    operation = TransferOperations(other).restore
    at = (await operation({**of(CAROL), "lines": await export(store), "at": None}))["at"]
    await carol.say([user("I was here first")], assistant("Hi."), "c1")
    with pytest.raises(BadRequest, match="has a memory here already"):
        await operation({**of(CAROL), "lines": [], "at": at, "end": True})
    assert len(await carol.rows()) == 1


async def test_a_memory_of_facts_alone_is_not_written_over_either(store: Store, other: Store) -> None:
    """As one is that a person has begun from an editor, over MCP."""
    await Speaker(store, ALICE, Clock()).say([user("Hello")], assistant("Hi."), "c1")
    carol = await other.agents.find_or_create(CAROL, (), (), 1.0)
    await other.facts.remember(carol, "I live in Oslo.", "i live in oslo", "person", 1.0)
    with pytest.raises(BadRequest, match="has a memory here already"):
        await fill(other, await export(store))
    assert [fact.text for fact in await other.facts.list_page(carol.id)] == ["I live in Oslo."]


async def test_an_empty_memory_that_is_paused_stays_paused(store: Store, other: Store) -> None:
    """Its person has forgotten all, and has not resumed it."""
    await Speaker(store, ALICE, Clock()).say([user("Hello")], assistant("Hi."), "c1")
    carol = await other.agents.find_or_create(CAROL, (), (), 1.0)
    await other.forgetting.pause(carol.id, 2.0)
    await fill(other, await export(store))
    found = await other.agents.find(CAROL)
    assert found is not None
    assert (found.uid != carol.uid, found.paused_at) == (True, 2.0)


async def test_an_empty_memory_that_is_replaced_takes_its_sleeptime_agents_along(
    store: Store, other: Store
) -> None:
    await Speaker(store, ALICE, Clock()).say([user("Hello")], assistant("Hi."), "c1")
    carol = await other.agents.find_or_create(CAROL, (), (), 1.0)
    sleeper = AgentDraft(agent=other.agents.get_draft(api_scope("sleeper")), name="sleeper", body={})
    await other.sleeptime_agents.add(AgentEntry(carol, None), sleeper, None, at=1.0)
    await fill(other, await export(store))
    assert await other.agents.find(sleeper.agent.scope) is None
    assert await other.forgetting.list_unfinished() == []


async def test_an_export_that_was_cut_off_is_refused_and_nothing_is_shown(store: Store, other: Store) -> None:
    alice = Speaker(store, ALICE, Clock())
    await live(alice, random.Random(1), turns=10)
    lines = await export(store)
    for cut in (1, len(lines) // 2, len(lines) - 1):
        with pytest.raises(BadRequest, match="cut off"):
            await fill(other, lines[:cut])
        assert await other.agents.find(CAROL) is None
    await fill(other, [*lines, ""])
    assert await other.agents.find(CAROL) is not None


async def test_an_import_that_broke_off_shows_nothing_and_the_next_one_starts_over(
    store: Store, other: Store
) -> None:
    alice = Speaker(store, ALICE, Clock())
    await live(alice, random.Random(4), 30)
    lines = await export(store)
    operation = TransferOperations(other).restore
    await operation({**of(CAROL), "lines": lines[:20], "at": None})
    assert await other.agents.find(CAROL) is None
    await fill(other, lines)
    assert await export(other, CAROL) == lines


async def test_an_import_that_broke_off_is_forgotten_with_its_user(store: Store, other: Store) -> None:
    """Nobody else would find it. Its conversations' names are free again, as for an import for the right user."""
    alice = Speaker(store, ALICE, Clock())
    await live(alice, random.Random(4), 30)
    lines = await export(store)
    typo = CAROL._replace(subject="user:carlo")
    await TransferOperations(other).restore({**of(typo), "lines": lines[:20], "at": None})
    answer = await ForgetOperations(other, lambda: 2000.0).forget({"project": "other", "user": "carlo"})
    assert (answer["memories"], answer["done"]) == (1, True)
    assert await rows(other, "SELECT count(*) FROM exchanges WHERE input IS NOT NULL") == [(0,)]
    await fill(other, lines)
    assert await export(other, CAROL) == lines


async def test_an_import_ends_where_another_for_the_same_user_begins(other: Store) -> None:
    """Between two lines of one answer: its next one is refused by name anyway."""
    draft = Agent(0, "u1", CAROL, b"k" * 16, 0)
    first = await other.import_writer.begin(draft)
    second = await other.import_writer.begin(replace(draft, uid="u2"))
    for step in (
        other.import_writer.load_path_end(first, 1),
        other.import_writer.write(first, []),
        other.import_writer.finish(first, 5),
    ):
        with pytest.raises(WriteConflict, match="another import for user:carol"):
            await step
    await other.import_writer.finish(second, 1)
    found = await other.agents.find(CAROL)
    assert found is not None
    assert found.uid == "u2"


async def test_of_two_imports_that_begin_at_once_for_the_same_user_one_is_refused(other: Store) -> None:
    drafts = [Agent(0, uid, CAROL, b"k" * 16, 0) for uid in ("u1", "u2")]
    begun = await asyncio.gather(*map(other.import_writer.begin, drafts), return_exceptions=True)
    assert {type(each) for each in begun} == {Agent, WriteConflict}


@pytest.mark.parametrize(
    "lines",
    [
        ["{}"],
        ["not json"],
        ['{"memory":{"format":99,"next_seq":1,"created":0}}'],
        ['{"exchange":{}}'],
        ['{"memory":{"format":1,"next_seq":1,"created":0}}', '{"exchange":{}}'],
        ['{"memory":{"format":1,"next_seq":1,"created":0}}', '{"agents":{}}'],
        ['{"memory":{"format":1,"next_seq":1,"created":0}}', "[]"],
        ['{"memory":{"format":1,"next_seq":1,"created":0}}', '{"end":{}}', '{"tag":{"tag":"x"}}'],
    ],
)
async def test_what_is_no_export_is_refused(other: Store, lines: Sequence[str]) -> None:
    with pytest.raises(BadRequest):
        await fill(other, list(lines))
    assert await other.agents.find(CAROL) is None


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"user": "a\nb"}, "`user` contains a control character"),
        ({"user": "x" * 257}, "`user` is too long"),
        ({"conversation": "a\x07"}, "`conversation` contains a control character"),
    ],
)
async def test_no_memory_is_made_that_requests_cannot_name(
    other: Store, named: dict[str, str], says: str
) -> None:
    operation = TransferOperations(other).restore
    with pytest.raises(BadRequest, match=says):
        await operation({"project": "default", **named, "lines": [], "at": None})


@pytest.mark.parametrize(
    ("line", "seen"), [('{"a":1}', "None"), ('{"memory":{"format":4,"next_seq":1,"created":0}}', "4")]
)
async def test_the_error_of_another_format_names_those_that_are_read(
    other: Store, line: str, seen: str
) -> None:
    """A newer program's file, or no export at all."""
    with pytest.raises(BadRequest, match=rf"no exported memory: .* the format 1 or 2 or 3, saw {seen}\.$"):
        await fill(other, [line])


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("memory", "next_seq", 1 << 70),
        ("conversation", "begun", [1]),
        ("conversation", "uid", {"a": 1}),
        ("exchange", "begun", "yesterday"),
        ("block", "limit", 1 << 63),
        ("version", "version", 0),  # a value after it would have a number that is taken
        ("version", "restores", 1),  # itself: an undo would go round for ever
        ("version", "sources", 7),
        ("edit", "label", ["human"]),
        # What no gateway writes, and what would be an error in each list, or in a header, or of the search index.
        ("memory", "uid", "a\r\nset-cookie: b"),
        ("memory", "next_seq", 1 << 53),
        ("memory", "next_seq", 1),  # numbers would be given out twice
        ("conversation", "begun", 1e308),
        ("exchange", "input", [7]),
        ("exchange", "notes", {"x": "y"}),
        ("exchange", "parent", 99),
        ("passage", "tags", [[]]),
        ("passage", "exchange", 99),
        ("fact", "origin", "hearsay"),
    ],
)
async def test_a_line_that_was_altered_is_refused_and_named(
    store: Store, other: Store, part: str, field: str, value: object
) -> None:
    alice = Speaker(store, ALICE, Clock())
    await alice.end(await alice.begin([user("Hello")], "c1"), [assistant("Hi.")], ["knows"])
    await save_passage(store, alice.agent.id, "A boat.", at=5.5)
    await store.facts.remember(alice.agent, "Alice has a boat.", "boat", "operator", 5.5)
    lines = [orjson.loads(line) for line in await export(store)]
    next(line for line in lines if part in line)[part][field] = value
    with pytest.raises(BadRequest, match=r"^This (is no exported memory|cannot be imported): line \d+: "):
        await fill(other, [json.dumps(line) for line in lines])
    assert await other.agents.find(CAROL) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Dear Diary,", "line 203 is no JSON ("),
        ('{"exchange": {}}', "line 203: exchange: Object missing required field `conversation`"),
        ("[]", "line 203: expected an object with one key"),
        ('{"diary": {}}', "line 203: unknown line 'diary'"),
    ],
)
async def test_the_line_that_cannot_be_imported_is_named(store: Store, line: str, says: str) -> None:
    operations = TransferOperations(store)
    given = {"project": "default", "user": "carol"}
    head = '{"memory": {"format": 2, "next_seq": 1, "created": 1.0}}'
    begun = await operations.restore({**given, "lines": [head]})
    with pytest.raises(BadRequest) as caught:
        await operations.restore({**given, **begun, "lines": ["", " ", line], "line": 201})
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"fact": {"standing": []}}, "fact: Expected `bool`, got `array` - at `$.standing`."),
        (
            {"exchange": {"input": [{"role": []}]}},
            "exchange: Expected `str | null`, got `array` - at `$.input[0].role`.",
        ),
        (
            {"exchange": {"input": [{"role": "tool", "mnemogate": {"own_length": "x"}}]}},
            "exchange: Expected `int`, got `str` - at `$.input[0].mnemogate.own_length`.",
        ),
        (
            {"exchange": {"shown_reply": {"role": "assistant", "tool_calls": True}}},
            "exchange: Expected `array | null`, got `bool` - at `$.shown_reply.tool_calls`.",
        ),
        (
            {"exchange": {"shown_reply": {"role": "assistant", "mnemogate": {"asides": "x"}}}},
            "exchange: Expected `object`, got `str` - at `$.shown_reply.mnemogate.asides`.",
        ),
        (
            {"exchange": {"shown_reply": {"role": "assistant", "mnemogate": {"asides": {"x": 1}}}}},
            "exchange: Expected `array`, got `int` - at `$.shown_reply.mnemogate.asides[...]`.",
        ),
        (
            {"exchange": {"redactions": {"1": "t"}}},
            "exchange: `redactions` names the message 1, but the exchange has 1.",
        ),
        ({"block": {"details": {"tags": 7}}}, "block: Expected `array`, got `int` - at `$.details.tags`."),
        ({"exchange": {"state": "begun"}}, "exchange: Invalid enum value 'begun' - at `$.state`."),
        ({"edit": {"state": "begun"}}, "edit: Invalid enum value 'begun' - at `$.state`."),
        ({"file": {"state": "begun"}}, "file: Invalid enum value 'begun' - at `$.state`."),
        ({"run": {"state": "begun"}}, "run: Invalid enum value 'begun' - at `$.state`."),
        (
            {"attached": {"kind": "tool", "built_in": None}},
            "attached: Expected `int`, got `null` - at `$.built_in`.",
        ),
        ({"attached": {"kind": "tool", "uid": "t"}}, "attached: Object missing required field `name`."),
        ({"attached": {"kind": "block", "uid": "b"}}, "attached: Object missing required field `label`."),
        ({"attached": {"kind": "boat", "uid": "b"}}, "nothing of the kind 'boat' is attached."),
        (["header"], "its first line must name the format 1 or 2 or 3, saw None."),
    ],
)
async def test_the_field_at_fault_is_named(store: Store, other: Store, line: Any, why: str) -> None:
    alice = Speaker(store, ALICE, Clock())
    await alice.end(await alice.begin([user("Hello")], "c1"), [assistant("Hi.")])
    await store.facts.remember(alice.agent, "Alice has a boat.", "boat", "operator", 5.5)
    lines = [orjson.loads(stored) for stored in await export(store)]
    if isinstance(line, list):
        lines[0] = line
    else:
        ((part, fields),) = line.items()
        at = next((index for index, stored in enumerate(lines) if part in stored), len(lines) - 1)
        lines[at : at + 1] = [{part: {**lines[at].get(part, {}), **fields}}]
    with pytest.raises(BadRequest) as refused:
        await fill(other, [json.dumps(altered) for altered in lines])
    assert refused.value.message.endswith(f": {why}")


async def test_a_fault_of_the_gateway_is_not_the_fault_of_the_file(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Speaker(store, ALICE, Clock()).say([user("Hello")], assistant("Hi."), "c1")
    lines = await export(store)

    def fail(*_: object) -> None:
        raise ValueError("a fault in this program")

    monkeypatch.setattr(MessageHasher, "digest_media", fail)
    with pytest.raises(ValueError, match="a fault in this program"):
        await fill(other, lines)


async def test_another_scope_is_not_exported(store: Store) -> None:
    await Speaker(store, ALICE, Clock()).say([user("Hello")], assistant("Hi."), "c1")
    for scope in (CAROL, Scope("other", "default", "user:alice"), Scope("default", "x", "user:alice")):
        with pytest.raises(BadRequest):
            await export(store, scope)


# -- the command line


@pytest.mark.sqlite
async def test_the_command_line_writes_a_file_and_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store(tmp_path / "mnemogate.db", now=lambda: 1000.0)
    await live(Speaker(store, ALICE, Clock()), random.Random(2), 30)
    lines = await export(store)
    await store.close()

    async def run(*arguments: str) -> int:
        return await asyncio.to_thread(main, ["memory", *arguments])

    assert await run("export", "--user", "alice", "a.jsonl") == 0
    assert await asyncio.to_thread(Path("a.jsonl").read_text, "utf-8") == "".join(
        f"{line}\n" for line in lines
    )
    assert await run("import", "--user", "carol", "--project", "other", "a.jsonl", "--db", "b.db") == 0
    assert await run("export", "--user", "carol", "--project", "other", "--db", "b.db") == 0
    assert capsys.readouterr().out.split("\n") == [*lines, ""]
    assert await run("forget", "--yes", "--user", "alice") == 0
    assert await run("export", "--user", "alice") == 1
    assert await run("forget") == 1
