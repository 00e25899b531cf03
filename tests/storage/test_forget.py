"""What is forgotten is gone from the file and its log, byte for byte, and what remains is what it was."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage
from gateway.run.background.retention import Retention
from storage.commands import LearnedFact
from storage.definition_records import DefinitionKind
from storage.errors import StaleWrite, WriteConflict
from storage.file_records import FileState, StoredFile
from storage.forget_commands import BlockVersionKey, ForgetTarget
from storage.listing import AgentChange, AgentDraft, BlockChange, BlockDraft, DefinitionDraft, PassageDraft
from storage.operator_records import ForgetCounts
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Block, Exchange, ExchangeState, Fact, MemoryEdit, Scope, SentSection
from storage.run_commands import RunAccept
from storage.run_records import Run, RunState, RunStep
from storage.sql import (
    additions,
    erase,
    forget_preview,
    forget_targets,
    preview_content,
    preview_notes,
    preview_versions,
)
from storage.sql import forget as forgetting
from storage.sql.agents_api.definitions import put_definition
from storage.sql.erasing_work import StoredTarget
from storage.sql.forget_preview import PreviewedCounts
from storage.sql.rebuild import BlockPreview
from storage.sql.statements import make_statement
from storage.sql.store import Store
from storage.sqlite.migration import migrate
from tests.core.conversations import assistant, call, result, user
from tests.storage.api import api_scope, make_agent
from tests.storage.conftest import Holds, OpenStore
from tests.storage.test_runs import put_step
from tests.stored import (
    ALICE,
    Clock,
    Speaker,
    forget,
    keeps_emptied_rows,
    put_edit,
    put_run,
    rows,
    save_passage,
    write_learned,
)

BOB = Scope("default", "default", "user:bob")
DAY = 86_400.0


@pytest.fixture
async def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, Clock())


def words(mark: str, size: int = 30) -> str:
    """Text that is nowhere else: one rare word for each mark, and some around it."""
    return " ".join([f"zq{mark}x", *["common"] * size, f"zq{mark}x"])


def left(holds: Holds, *marks: str) -> list[str]:
    """Those whose words can still be found in the database."""
    # One search for all: a search for each of hundreds takes seconds.
    found = set(re.findall(f"zq({'|'.join(map(re.escape, marks))})x".encode(), holds.content()))
    return [mark for mark in marks if mark.encode() in found]


async def talk(
    alice: Speaker, marks: Sequence[str], key: str | None = None, size: int = 30
) -> list[WireMessage]:
    """A turn for each mark: `zqMARKux` is what the user said, `zqMARKax` the reply."""
    history: list[WireMessage] = []
    for mark in marks:
        history.append(user(words(f"{mark}u", size)))
        await alice.say(history, assistant(words(f"{mark}a", size)), key)
        history.append(assistant(words(f"{mark}a", size)))
    return history


async def note(alice: Speaker, marks: Sequence[str], key: str) -> list[WireMessage]:
    """A turn for each mark, which adds a line to the block; the next turn confirms it."""
    history: list[WireMessage] = []
    for mark in marks:
        history += [user(f"I like {mark}")]
        reply = assistant(f"Noted {mark}.")
        await alice.end(await alice.begin(history, key), [reply], [f"likes zq{mark}x"])
        history.append(reply)
    return history


async def index(store: Store, agent: Agent) -> None:
    while await store.search_index.advance(agent.id):
        pass


async def found(store: Store, agent: Agent, mark: str) -> list[str]:
    hits = await store.recall.search(agent, f"zq{mark}x", only_strong=True)
    return [hit.text for hit in hits if f"zq{mark}x" in hit.text]


async def row_of(alice: Speaker, mark: str) -> Exchange:
    return next(
        e for e in await alice.rows() if f"zq{mark}x".encode() in (e.input or b"") + (e.shown_reply or b"")
    )


@pytest.mark.parametrize("is_interrupted", [False, True])
async def test_texts_that_go_are_read_before_the_writer_is_acquired(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    """Of a large part it is long, and turns would wait for it."""
    await talk(alice, ["one", "two"])
    read: list[str] = []
    for where in (forgetting, additions):
        find_erased_part = where.find_erased_part

        async def load(
            *given: Any, where: Any = where, find_erased_part: Any = find_erased_part, **named: Any
        ) -> Any:
            read.append(where.__name__)
            return await find_erased_part(*given, **named)

        monkeypatch.setattr(where, "find_erased_part", load)
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(before=1e12))
    while not await store.forgetting.run(id, until=lambda: is_interrupted):
        pass
    assert read == [forgetting.__name__]


async def test_rows_that_grow_with_each_turn_are_deleted_in_parts(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction turns wait for all rows of a large memory."""
    await talk(alice, ["one"])
    agent = alice.agent.id
    added = {
        "marks": "(agent, kind, hash, exchange) VALUES (?1, 'tomb', ?3, ?2)",
        "terms": "(agent, chunk, data) VALUES (?1, ?2, ?3)",
        "segments": "(agent, bucket, number, stamp, data) VALUES (?1, 1, ?2, 1, ?3)",
    }
    for number in range(100, 105):
        for table, row in added.items():
            insert = make_statement("a test's", f"INSERT INTO {table} {row}")
            await store.database.write(lambda c, s=insert, n=number: c.run(s, (agent, n, b"0")))
    counts = [
        make_statement("a test's", f"SELECT count(*) FROM {table} WHERE agent = {agent}") for table in added
    ]
    left: list[list[int]] = []
    run_step = forgetting._run_step

    async def run_and_count(connection: Any, **given: Any) -> Any:
        done = await run_step(connection, **given)
        left.append([await connection.fetch_value(count) for count in counts])
        return done

    monkeypatch.setattr(forgetting, "_run_step", run_and_count)
    monkeypatch.setattr(erase, "_DELETED_PAGE_ROWS", 2)
    await store.forgetting.wipe(agent)
    assert left[-1] == [0, 0, 0]
    for before, after in pairwise(left):
        assert all(was - now <= 2 for was, now in zip(before, after, strict=True))


async def test_a_search_for_what_is_too_old_reads_some_memories_at_a_time(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all memories at once it takes longer than PostgreSQL is waited for."""
    monkeypatch.setattr(forget_targets, "_MEMORIES_PER_READ", 2)
    read: list[str] = []
    store = await open_store(note=read.append)
    agents = [
        await store.agents.find_or_create(Scope("default", "default", f"user:{n}"), (), (), 1.0)
        for n in range(5)
    ]
    old = [agents[n].id for n in (1, 3, 4)]
    for agent in old:
        await save_passage(store, agent, "A fact", at=5.0)
    for limit in (1, 2, 100):
        assert await store.forget_targets.list_older("default", 10.0, limit=limit) == old[:limit]
    assert await store.forget_targets.list_older("default", 10.0, after=old[0]) == old[1:]
    read.clear()
    assert await store.forget_targets.list_older("default", 1.0) == []
    assert [name for name in read if name == "agents_before"] == ["agents_before"] * 3


# -- one exchange, one message


@pytest.mark.parametrize("is_message", [False, True])
async def test_the_name_of_a_speaker_goes_with_the_message(
    store: Store, alice: Speaker, holds: Holds, is_message: bool
) -> None:
    first, second = user("zqboatx and a crew", name="zqjonx"), user("zqcabinx and a stove", name="zqaryax")
    await alice.say([first], assistant("Yes."), "c1")
    await alice.say([first, assistant("Yes."), second], assistant("Yes."), "c1")
    await index(store, alice.agent)
    assert left(holds, "boat", "jon", "arya") == ["boat", "jon", "arya"]
    gone = await row_of(alice, "boat")
    (seq,) = [m.seq for m in await store.recall.search(alice.agent, "zqboatx") if "zqboatx" in m.text]
    await forget(
        store,
        alice.agent,
        ForgetTarget(message_seqs=[seq]) if is_message else ForgetTarget(exchange_rows=[gone.id]),
    )
    assert left(holds, "boat", "jon", "arya") == ["arya"]


async def test_an_exchange_is_gone_from_file_log_and_index_and_its_neighbours_stay(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one", "two", "three"], "c1")
    await index(store, alice.agent)
    gone = await row_of(alice, "twou")
    assert await found(store, alice.agent, "twou")
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
    assert left(holds, "oneu", "twou", "twoa", "threea") == ["oneu", "threea"]
    assert not await found(store, alice.agent, "twou")
    assert await found(store, alice.agent, "threeu")
    (tombstone,) = [e for e in await alice.rows() if e.state is ExchangeState.FORGOTTEN]
    assert (tombstone.id, tombstone.path_hash, tombstone.inputs, tombstone.reply) == (
        gone.id,
        gone.path_hash,
        gone.inputs,
        gone.reply,
    )
    assert (
        tombstone.input,
        tombstone.shown_reply,
        tombstone.full_reply,
        tombstone.notes,
        tombstone.active,
    ) == (
        None,
        None,
        None,
        {},
        False,
    )


async def test_after_all_was_forgotten_what_is_said_next_can_be_forgotten_too(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one"], "c1")
    await index(store, alice.agent)
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "oneu")).id]))
    await talk(alice, ["two"], "c2")  # its place in the index is what the first one left empty
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "twou")).id]))
    assert left(holds, "oneu", "twou", "twoa") == []


@pytest.mark.parametrize("is_all", [False, True], ids=["one", "all"])
async def test_the_text_the_tags_and_the_metadata_of_a_passage_go_with_it(
    store: Store, alice: Speaker, holds: Holds, is_all: bool
) -> None:
    await talk(alice, ["one"], "c1")
    drafts = [PassageDraft(f"zq{n}text", 1.0, [f"zq{n}tag"], {"url": f"zq{n}meta"}) for n in ("gone", "kept")]
    gone, kept = await store.passages.add(alice.agent.id, drafts)
    assert (gone.metadata, kept.metadata) == ({"url": "zqgonemeta"}, {"url": "zqkeptmeta"})
    assert (await store.passages.load(alice.agent.id, [gone.seq]))[gone.seq] == gone
    await forget(
        store, alice.agent, ForgetTarget(is_all=True) if is_all else ForgetTarget(passage_seqs=[gone.seq])
    )
    await store.forgetting.sweep()
    found = [
        n for n in ("gone", "kept") for part in ("text", "tag", "meta") if holds(f"zq{n}{part}".encode())
    ]
    assert found == ([] if is_all else ["kept"] * 3)


async def test_a_message_goes_alone_and_with_the_last_one_the_exchange(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one", "two"], "c1")
    e = await row_of(alice, "oneu")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[e.seq]))
    assert left(holds, "oneu", "onea") == ["onea"]
    assert await found(store, alice.agent, "onea")
    assert not await found(store, alice.agent, "oneu")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[e.seq + 1]))
    assert left(holds, "oneu", "onea") == []
    assert next(x for x in await alice.rows() if x.id == e.id).state is ExchangeState.FORGOTTEN


async def test_a_message_with_hundreds_of_calls_is_forgotten_and_not_stored_when_it_comes_again(
    store: Store, alice: Speaker
) -> None:
    said = assistant("I read all.", *[call(f"c{n}", "read", f'{{"n":{n}}}') for n in range(300)])
    results = [result(f"c{n}", "Done.") for n in range(300)]
    await alice.say([user("Read all.")], said)
    (row,) = await alice.rows()
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[row.id]))
    await alice.say([user("Read all."), said, *results, user("And now?")], assistant("Nothing."), "other")
    (*_, again) = await alice.rows()
    assert again.redactions >= {0, 1}
    # So is one off the record, and one that the client has last in its list.
    turn = await alice.begin([user("Once more.")], "third", MemoryUse.OFF)
    await alice.end(turn, [said])
    await alice.say([user("Once again."), said], assistant("No."), "fourth")


async def test_a_reply_goes_alone(store: Store, alice: Speaker, holds: Holds) -> None:
    await talk(alice, ["one"], "c1")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "oneu")).seq + 1]))
    assert left(holds, "oneu", "onea") == ["oneu"]


async def test_a_line_stays_that_another_of_its_messages_says(store: Store, alice: Speaker) -> None:
    """Learning names all messages that a value may have come from: an allergy went with a word of small talk."""
    history = await talk(alice, ["one"], "c1")
    await alice.say([*history, user("I like zqredx.")], assistant("Noted zqbluex."), "c1")
    first, second = await row_of(alice, "oneu"), await row_of(alice, "red")
    (block,) = await store.blocks.load(alice.agent.id)
    value = "Likes zqredx.\nLikes zqbluex.\nLikes zqoneux."
    learned = LearnedChanges(writes=[(block, value, (first.id, second.id))], facts=[])
    await write_learned(store, alice.agent, learned)
    target = ForgetTarget(exchange_rows=[first.id])
    found = await store.forget_previews.count(alice.agent.id, target, 2)
    assert (found.counts.versions, found.rebuilt_count) == (0, 1)
    assert [each.after for each in found.changes] == ["Likes zqredx."]
    for row, left_of_it in ((first, "Likes zqredx."), (second, "")):
        await forget(store, alice.agent, ForgetTarget(exchange_rows=[row.id]))
        (block,) = await store.blocks.load(alice.agent.id)
        assert block.value == left_of_it


async def test_a_line_stays_that_the_question_says_and_goes_with_the_question(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await alice.say([user("I like zqredx and zqbluex.")], assistant("Noted zqredx, zqpinkx."), "c1")
    row = await row_of(alice, "red")
    (block,) = await store.blocks.load(alice.agent.id)
    value = ""
    for n, line in enumerate(("Likes zqredx.\nHas zqpinkx.", "Has zqpinkx and zqbluex.")):
        value = f"{value}\n{line}".strip()
        learned = LearnedChanges(writes=[(block, value, (row.id,))], facts=[])
        await write_learned(store, alice.agent, learned, n)
        (block,) = await store.blocks.load(alice.agent.id)
    target = ForgetTarget(message_seqs=[row.reply_seq])
    found = await store.forget_previews.count(alice.agent.id, target, 1)
    assert (found.counts.versions, found.rebuilt_count) == (1, 1)
    assert [each.after for each in found.changes] == ["Likes zqredx."]
    await forget(store, alice.agent, target)
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == "Likes zqredx."
    assert left(holds, "red", "blue", "pink") == ["red", "blue"]
    # The line has its source still.
    await forget(store, alice.agent, ForgetTarget(message_seqs=[row.seq]))
    (block,) = await store.blocks.load(alice.agent.id)
    assert (block.value, left(holds, "red", "blue")) == ("", [])


@pytest.mark.parametrize("is_whole", [False, True], ids=["message", "exchange"])
@pytest.mark.parametrize("how", ["newer", "left again", "quoting", "the same"])
async def test_a_newer_first_message_stays_unless_its_client_went_back_or_it_has_the_words(
    store: Store, alice: Speaker, holds: Holds, how: str, *, is_whole: bool
) -> None:
    """A voice agent takes over a named call without its history; nothing shows that turn before it is continued."""
    history = await talk(alice, ["one", "two"], "c1")
    first = await row_of(alice, "oneu")
    texts = {"quoting": f"A title for this:\n{words('oneu')}\nzqthreex", "the same": words("oneu")}
    other = [user(texts.get(how, words("threeu"))), assistant(words("threea"))]
    await alice.say(other[:1], other[1], "c1")
    assert not (await row_of(alice, "threea")).active
    if how == "left again":
        await alice.say([*history, user(words("fouru"))], assistant("Yes."), "c1")
    target = ForgetTarget(exchange_rows=[first.id]) if is_whole else ForgetTarget(message_seqs=[first.seq])
    await forget(store, alice.agent, target)
    stays = ["threeu", "threea"] if how == "newer" else []
    assert left(holds, "oneu", "threeu", "three", "threea", "twou") == [*stays, "twou"]
    if stays:
        await alice.say([*other, user(words("fouru"))], assistant("Yes."), "c1")
        assert (await row_of(alice, "threea")).active
        assert await found(store, alice.agent, "fouru")


async def test_the_reply_of_a_newer_first_message_stays_when_another_reply_goes(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one", "two"], "c1")
    await talk(alice, ["three"], "c1")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "onea")).reply_seq]))
    assert left(holds, "oneu", "onea", "threeu", "threea") == ["oneu", "threeu", "threea"]


@pytest.mark.parametrize("what", ["question", "exchange", "reply"])
async def test_with_a_message_goes_the_whole_turn_that_was_asked_before(
    store: Store, alice: Speaker, holds: Holds, what: str
) -> None:
    """The first answer called a tool of the client's, and then the question was asked again."""
    history = [*await talk(alice, ["hello"], "c1"), user(words("question"))]
    called = assistant("", call("c1", "look", '{"for":"zqcallx"}'))
    await alice.say(history, called, "c1")
    looked = [*history, called, result("c1", words("found"))]
    more = assistant("", call("c2", "look", '{"for":"zqmorex"}'))
    await alice.say(looked, more, "c1")
    await alice.say([*looked, more, result("c2", words("last"))], assistant(words("old")), "c1")
    await alice.say(history, assistant(words("new")), "c1")
    await alice.say([*history, assistant(words("new")), user(words("later"))], assistant("Good."), "c1")
    new = await row_of(alice, "new")
    target = {
        "question": ForgetTarget(message_seqs=[new.seq]),
        "exchange": ForgetTarget(exchange_rows=[new.id]),
        "reply": ForgetTarget(message_seqs=[new.reply_seq]),
    }[what]
    await forget(store, alice.agent, target)
    stays = {"question": ["new"], "exchange": [], "reply": ["question"]}[what]
    marks = ["question", "call", "found", "more", "last", "old", "new"]
    assert left(holds, *marks) == stays
    assert left(holds, "hellou", "later") == ["hellou", "later"]


async def test_with_a_reply_goes_a_newer_one_to_the_same_question_for_a_program(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = [*await talk(alice, ["hello"], "c1"), user(words("question"))]
    await alice.say(history, assistant(words("new")), "c1")
    await alice.say(history, assistant('{"flag": "zqjsonx"}'), "c1")
    assert not (await row_of(alice, "json")).active
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "new")).reply_seq]))
    assert left(holds, "question", "new", "json") == ["question"]


async def test_with_a_reply_after_results_goes_what_the_same_question_was_answered_before(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = [*await talk(alice, ["hello"], "c1"), user(words("question"))]
    await alice.say(history, assistant(words("old")), "c1")
    called = assistant("", call("c1", "look"))
    await alice.say(history, called, "c1")
    looked = [*history, called, result("c1", words("found"))]
    await alice.say(looked, assistant(words("new")), "c1")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "new")).reply_seq]))
    assert left(holds, "question", "old", "found", "new") == ["question"]


# -- a client that sends it again


@pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])
async def test_a_list_that_brings_it_back_goes_on_and_does_not_keep_it(
    store: Store, alice: Speaker, holds: Holds, key: str | None
) -> None:
    history = await talk(alice, ["one", "two"], key)
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "oneu")).id]))
    before = len(await alice.rows())
    await alice.say([*history, user(words("threeu"))], assistant("Yes."), key)
    rows = await alice.rows()
    assert len(rows) == before + 1
    assert rows[-1].parent == rows[-2].id
    assert rows[-1].active
    await store.database.sweep(1000)
    assert left(holds, "oneu", "onea", "twou", "threeu") == ["twou", "threeu"]


@pytest.mark.parametrize("place", [0, 1], ids=["the question", "the reply"])
@pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])
async def test_asked_again_at_its_place_it_is_answered_and_not_stored(
    store: Store, alice: Speaker, holds: Holds, key: str | None, place: int
) -> None:
    history = await talk(alice, ["one", "two"], key)
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "twou")).seq + place]))
    await alice.say(history[:3], assistant(words("twoa")), key)
    await store.database.sweep(1000)
    assert left(holds, "twou", "twoa") == [["twoa"], ["twou"]][place]


async def test_another_conversation_that_begins_with_it_does_not_keep_it_either(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await talk(alice, [f"n{i}n" for i in range(40)], "c1", size=2)
    agent = alice.agent
    conversation = await store.forget_targets.find_conversation(agent.id, "c1")
    await forget(store, agent, ForgetTarget(conversation_row=conversation))
    marks = [f"n{i}n{who}" for i in range(40) for who in "ua"]
    assert left(holds, *marks) == []
    for key in ("c2", None):
        await alice.say([*history, user("something new")], assistant("Fine."), key)
    await store.database.sweep(1000)
    assert left(holds, *marks) == []


async def test_a_reply_that_comes_back_cut_does_not_bring_the_forgotten_one_back(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await alice.say([user("Tell me.")], assistant("It was zqsecretx and then some more words."), "c1")
    await forget(store, alice.agent, ForgetTarget(message_seqs=[(await row_of(alice, "secret")).seq + 1]))
    heard = [user("Tell me."), assistant("It was zqsecretx and"), user("Stop.")]
    await alice.say(heard, assistant("Fine."), "c1")
    await store.database.sweep(1000)
    assert left(holds, "secret") == []


# -- a turn under way


async def test_a_turn_that_was_under_way_does_not_commit(store: Store, alice: Speaker) -> None:
    history = await talk(alice, ["one"], "c1")
    turn = await alice.begin([*history, user("and then?")], "c1")
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "oneu")).id]))
    with pytest.raises(StaleWrite):
        await alice.end(turn, [assistant("zqonex")])


async def test_a_turn_during_a_forgetting_restores_no_line_of_a_block(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await note(alice, ["red"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    gone, *_ = await alice.rows()
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(exchange_rows=[gone.id]))
    assert not await store.forgetting.run(id, until=lambda: True)
    store.agents.clear()
    turn = await alice.begin([user("Tidy up, and I eat no nuts.")], "c2")
    assert [block.value for block in turn.snapshot.blocks] == ["likes zqredx"]
    await alice.end(turn, [assistant("Done.")], ["Alice: zqredx", "Allergic to nuts."])
    (waiting,) = [e for e in await alice.rows() if e.edits and not e.merged]
    rewrite = MemoryEdit(
        0, waiting.id, "r", "rethink", "human", b'{"label":"human","new_memory":"All"}', seen=1
    )
    await put_edit(store, alice.agent.id, rewrite)
    await store.forgetting.finish(id)
    store.agents.clear()
    thanks = [user("Tidy up, and I eat no nuts."), assistant("Done."), user("Thanks.")]
    await alice.say(thanks, assistant("Bye."), "c2")
    assert [block.value for block in await store.blocks.load(alice.agent.id)] == ["Allergic to nuts."]
    assert left(holds, "red") == []
    assert await rows(store, "SELECT count(*) FROM block_ops WHERE seen IS NOT NULL") == [(0,)]


@pytest.mark.parametrize("kind", ["fact", "passage"])
async def test_a_turn_that_was_shown_a_forgotten_text_does_not_commit(
    store: Store, alice: Speaker, holds: Holds, kind: str
) -> None:
    """A forgetting may be interrupted then, for hours."""
    await talk(alice, ["one"], "c1")
    (e,) = await alice.rows()
    fact = LearnedFact(words("gone"), "", "gone", 1.0, e.id, [e.id])
    await write_learned(store, alice.agent, LearnedChanges(facts=[fact]))
    (learned,) = await store.facts.list_page(alice.agent.id)
    passage = await save_passage(store, alice.agent.id, words("gone"), at=5.0)
    target = (
        ForgetTarget(fact_seqs=[learned.seq]) if kind == "fact" else ForgetTarget(passage_seqs=[passage.seq])
    )
    id = await store.forgetting.begin(alice.agent.id, target)
    turn = await alice.begin([user("hello")], "c2")
    while await (store.facts.list_page if kind == "fact" else store.passages.list_texts)(alice.agent.id):
        assert not await store.forgetting.run(id, until=lambda: True)
    section = SentSection(0, words("section"), {"blocks": {}, "tools": {}, "epoch": 0})
    with pytest.raises(StaleWrite):
        await alice.end(turn, [assistant("Hi.")], section=section)
    assert await store.forgetting.run(id)
    assert await store.forgetting.sweep()
    assert left(holds, "section") == []


@pytest.mark.parametrize("names_conversation", [False, True])
async def test_a_turn_that_read_an_exchange_before_it_was_erased_does_not_commit(
    store: Store, alice: Speaker, names_conversation: bool
) -> None:
    """It began after the forgetting, and ends before the forgetting does."""
    history = await talk(alice, ["one"], "c1")
    (exchange,) = await alice.rows()
    target = ForgetTarget(exchange_rows=[exchange.id])
    if names_conversation:
        target = ForgetTarget(conversation_row=exchange.conversation_row)
    id = await store.forgetting.begin(alice.agent.id, target)
    turn = await alice.begin([*history, user("and then?")], "c1")
    while (await alice.rows())[0].state is not ExchangeState.FORGOTTEN:
        assert not await store.forgetting.run(id, until=lambda: True)
    with pytest.raises(StaleWrite):
        await alice.commit(turn, [assistant("Hi.")])


async def test_a_turn_of_a_forgotten_memory_does_not_commit(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await talk(alice, ["one"], "c1")
    turn = await alice.begin([*history, user("and then?")], "c1")
    await forget(store, alice.agent, ForgetTarget(is_all=True))
    with pytest.raises(StaleWrite):
        await alice.end(turn, [assistant(words("onea"))])
    assert left(holds, "oneu", "onea") == []


async def test_turns_that_begin_during_the_forgetting_of_their_user_are_all_stored(
    store: Store, alice: Speaker
) -> None:
    await talk(alice, ["one"], "c1")
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(is_all=True))
    begun = [await alice.begin([user("zqbeforex")])]
    assert await store.forgetting.run(id)
    store.agents.uncache(alice.scope)  # as a request does that knew the memory when it went
    begun.append(await alice.begin([user("zqbehindx")]))
    await store.forgetting.sweep()
    begun.append(await alice.begin([user("zqlastx")]))
    for turn in begun:
        await alice.end(turn, [assistant("Yes.")])
    assert len(await alice.rows()) == 3


async def test_a_first_turn_under_way_does_not_begin_a_memory_again_that_is_gone(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    first = await alice.begin([user("zqfirstx")])
    await alice.say([user("zqsecondx")], assistant("Yes."))
    await forget(store, alice.agent, ForgetTarget(is_all=True))
    anew = await alice.begin([user("zqanewx")])
    with pytest.raises(StaleWrite, match="forgotten"):
        await alice.end(first, [assistant("zqfirstx")])
    await alice.end(anew, [assistant("Yes.")])
    assert alice.agent.secret != first.agent.secret
    assert left(holds, "first", "second", "anew") == ["anew"]


# -- what came from it


async def test_block_values_that_came_from_it_go_and_later_edits_stay(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await note(alice, ["red", "green", "blue"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == "likes zqredx\nlikes zqgreenx\nlikes zqbluex"
    gone = next(e for e in await alice.rows() if e.input and b"I like green" in e.input)
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
    (now,) = await store.blocks.load(alice.agent.id)
    assert now.value == "likes zqredx\nlikes zqbluex"
    assert now.version == block.version + 1
    assert left(holds, "red", "green", "blue") == ["red", "blue"]
    undone = await store.blocks.undo(block.id, at=1.0)
    assert undone.value == "likes zqredx"  # the versions in between are gone for an undo, too


async def test_edits_of_other_turns_stay_however_often_something_is_forgotten(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await note(alice, ["red", "green", "blue", "white"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    for mark, lines in (
        ("red", ["green", "blue", "white"]),
        ("blue", ["green", "white"]),
        ("green", ["white"]),
    ):
        gone = next(e for e in await alice.rows() if f"I like {mark}".encode() in (e.input or b""))
        await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
        (block,) = await store.blocks.load(alice.agent.id)
        assert block.value.split("\n") == [f"likes zq{each}x" for each in lines]
        assert left(holds, mark) == []
    newest, *before = [each for each in await store.blocks.list_revisions(block.id) if each.origin != "-"]
    assert [(newest.origin, newest.restores), before[0].origin[:5]] == [
        ("forget", before[0].version),
        "tool:",
    ]
    assert (await store.blocks.undo(block.id, at=1.0)).value == ""


async def test_a_line_by_hand_stays_though_it_names_what_it_corrects(store: Store, alice: Speaker) -> None:
    history = await note(alice, ["red", "green"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    (block,) = await store.blocks.load(alice.agent.id)
    by_hand = "no zqgreenx any more, rather zqbluex"
    value = f"{block.value}\n{by_hand}\nzqgreenx, zqgreenx"
    await store.blocks.write(block.id, block.version, value, at=1.0, origin="operator")
    for mark, lines in (("green", ["likes zqredx", by_hand]), ("red", [by_hand])):
        gone = next(e for e in await alice.rows() if f"I like {mark}".encode() in (e.input or b""))
        await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
        (block,) = await store.blocks.load(alice.agent.id)
        assert block.value.split("\n") == lines


async def test_a_version_loses_the_lines_that_its_block_no_longer_has(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await note(alice, ["red", "green", "blue"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    red = next(e for e in await alice.rows() if b"I like red" in (e.input or b""))
    (block,) = await store.blocks.load(alice.agent.id)
    by_hand = "likes zqredx\nlikes zqbluex, and zqpinkx"
    await store.blocks.write(block.id, block.version, by_hand, at=1.0, origin="operator")
    before = await store.blocks.list_revisions(block.id, includes_forgotten=False)
    # It has red and green, and version 4 blue as well.
    target = ForgetTarget(block_versions=[BlockVersionKey(block.id, 3)])
    found = await store.forget_previews.count(alice.agent.id, target, 0)
    assert (found.counts.versions, found.counts.messages, found.counts.facts) == (2, 0, 0)
    await forget(store, alice.agent, target)
    assert left(holds, "red", "green", "blue", "pink") == ["red", "blue", "pink"]
    newest, *after = await store.blocks.list_revisions(block.id, includes_forgotten=False)
    assert (newest.origin, newest.value) == ("forget", by_hand)
    assert [each.value for each in after] == [
        by_hand, "likes zqredx\nlikes zqbluex", "likes zqredx", "likes zqredx", ""
    ]  # fmt: skip
    # Each version has its author and its time, and each line its sources.
    assert [(each.at, each.origin, each.sources) for each in after] == [
        (each.at, each.origin, each.sources) for each in before
    ]
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[red.id]))
    assert left(holds, "red", "blue", "pink") == ["blue", "pink"]
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == "likes zqbluex, and zqpinkx"


async def test_edits_stay_on_a_longer_value_than_they_were_made_on(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    """As where the turn is forgotten that has shortened the block."""
    await talk(alice, ["first"], "c0")
    (block,) = await store.blocks.load(alice.agent.id)
    (first,) = await alice.rows()
    await store.blocks.write(block.id, 1, words("long"), at=1.0, origin="api")
    await store.blocks.write(block.id, 2, "zqshortx", at=1.0, origin="tool:x", sources=[first.id])
    history = await note(alice, ["red", "green", "blue"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    for mark, lines in (("first", ["red", "green", "blue"]), ("green", ["red", "blue"])):
        gone = next(e for e in await alice.rows() if mark.encode() in (e.input or b""))
        await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
        (block,) = await store.blocks.load(alice.agent.id)
        assert block.value.split("\n") == [words("long"), *(f"likes zq{each}x" for each in lines)]
    assert left(holds, "short", "green", "red", "blue") == ["red", "blue"]


async def test_a_fact_that_is_forgotten_during_a_turn_does_not_come_back(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    history = await note(alice, ["red", "green", "blue"], "c1")
    await alice.say([*history, user("bye")], assistant("Bye."), "c1")
    red, green, *_ = await alice.rows()
    fact = LearnedFact("likes zqgreenx", "", "green", 1.0, green.id, [green.id])
    await write_learned(store, alice.agent, LearnedChanges(facts=[fact]))
    (learned,) = await store.facts.list_page(alice.agent.id)
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(exchange_rows=[red.id]))
    assert not await store.forgetting.run(id, until=lambda: True)
    await forget(store, alice.agent, ForgetTarget(fact_seqs=[learned.seq]))
    assert await store.forgetting.run(id)
    assert await store.forgetting.sweep()
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == "likes zqbluex"
    assert left(holds, "red", "green", "blue") == ["blue"]


@pytest.mark.parametrize(
    ("fact", "gone", "stays"),
    [
        # As an import may bring it.
        ("", "", "Her teacher wants a steak."),
        (" ", "", "Her teacher wants a steak."),
        ("Tea", "Likes tea.", "Her teacher wants a steak."),
        ("Ann", "Sister: Ann", "The cannon is Annette's."),
        ("茶", "私は茶が好き。", "私は水が好き。"),
        ("Tea", "私はteaが好き。", "私はsteakが好き。"),
    ],
)
async def test_a_fact_takes_its_words_out_of_blocks_and_no_longer_ones(
    store: Store, alice: Speaker, fact: str, gone: str, stays: str
) -> None:
    await talk(alice, ["first"], "c0")
    (block,) = await store.blocks.load(alice.agent.id)
    await store.blocks.write(block.id, 1, f"{gone}\n{stays}".lstrip(), at=1.0, origin="api")
    learned = LearnedChanges(facts=[LearnedFact(fact, "", fact, 1.0, None, [])])
    await write_learned(store, alice.agent, learned)
    (stored,) = await store.facts.list_page(alice.agent.id)
    await forget(store, alice.agent, ForgetTarget(fact_seqs=[stored.seq]))
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == stays


async def test_a_kept_fact_rests_on_nothing_and_what_it_replaced_goes(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["gone"], "c0")
    (row,) = await alice.rows()
    fact = LearnedFact(words("gone"), "zqtopicx", "gone", 1.0, row.id, [row.id])
    await write_learned(store, alice.agent, LearnedChanges(facts=[fact]))
    (wrong,) = await store.facts.list_page(alice.agent.id)
    right = await store.facts.correct(alice.agent, wrong.seq, words("right"), "right", "operator", 2.0)
    target = ForgetTarget(message_seqs=[row.seq])
    for other in (wrong.seq, 999):  # one that is no longer true, and one that never was
        with pytest.raises(WriteConflict):
            await store.forgetting.begin(alice.agent.id, target, retained_facts=[right.seq, other])
        assert (await store.facts.list_page(alice.agent.id))[0] == right
    assert await store.forgetting.list_unfinished() == []
    await store.forgetting.finish(
        await store.forgetting.begin(alice.agent.id, target, retained_facts=[right.seq])
    )
    (kept,) = await store.facts.list_page(alice.agent.id, includes_ended=True)
    assert kept == replace(right, exchange_row=None, sources=(), about="")
    assert await store.facts.list_replaced(alice.agent.id, kept.id) == []
    assert left(holds, "gone", "topic") == []
    await forget(store, alice.agent, ForgetTarget(fact_seqs=[kept.seq]))
    assert left(holds, "right") == []


async def test_a_retained_fact_of_a_reset_conversation_stays_if_its_turn_is_named_again(
    store: Store, alice: Speaker
) -> None:
    """The turn is gone already, so a second forgetting of it, which was begun before, finds nothing."""
    await talk(alice, ["gone"], "c0")
    (row,) = await alice.rows()
    fact = LearnedFact("Rides to work.", "", "rides", 1.0, row.id, [row.id])
    await write_learned(store, alice.agent, LearnedChanges(facts=[fact]))
    kept = await store.facts.list_page(alice.agent.id)
    id = await store.forgetting.begin(alice.agent.id, ForgetTarget(exchange_rows=[row.id]))
    reset = ForgetTarget(conversation_row=row.conversation_row, keeps_memory=True)
    await forget(store, alice.agent, reset)
    assert await store.forgetting.run(id)
    assert await store.facts.list_page(alice.agent.id) == kept != []


async def test_a_learned_fact_that_is_kept_is_not_learned_again_from_the_source_that_stays(
    store: Store, alice: Speaker
) -> None:
    """Learning neither doubles nor ends it, and brings it back neither once corrected nor once forgotten."""
    await talk(alice, ["stays", "gone"], "c0")
    stays, gone = [await row_of(alice, mark) for mark in ("staysu", "goneu")]
    fact = LearnedFact("Rides to work.", "", "rides", 1.0, stays.id, [stays.id, gone.id])

    async def learn(cursor: int, fact: LearnedFact) -> list[Fact]:
        learned = LearnedChanges(facts=[fact])
        await write_learned(store, alice.agent, learned, cursor)
        return list(await store.facts.list_page(alice.agent.id))

    (before,) = await learn(0, fact)
    target = ForgetTarget(exchange_rows=[gone.id])
    await store.forgetting.finish(
        await store.forgetting.begin(alice.agent.id, target, retained_facts=[before.seq])
    )
    kept = replace(before, exchange_row=None, sources=())
    again = replace(fact, sources=[stays.id])
    later = replace(again, valid_from=1e9, exchange_row=stays.id)
    assert await learn(1, again) == await learn(2, later) == [kept]
    right = await store.facts.correct(alice.agent, kept.seq, "Walks to work.", "walks", "operator", 2.0)
    assert await learn(3, again) == [right]
    await forget(store, alice.agent, ForgetTarget(fact_seqs=[kept.seq, right.seq]))
    assert await learn(4, again) == []


async def test_pending_edits_and_the_memory_sections_that_showed_them_go(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    section = SentSection(0, words("section"), {"blocks": {"human": "d"}, "tools": {"a": "b"}, "epoch": 0})
    turn = await alice.begin([user("hello")], "c1")
    await alice.end(turn, [assistant("Hi.")], [words("pending")], section=section)
    (e,) = await alice.rows()
    assert left(holds, "section", "pending") == ["section", "pending"]
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[e.id]))
    assert left(holds, "section", "pending") == []


async def test_passages_that_came_from_it_go(store: Store, alice: Speaker, holds: Holds) -> None:
    await talk(alice, ["one", "two"], "c1")
    agent = alice.agent
    one, two = [await row_of(alice, mark) for mark in ("oneu", "twou")]
    await save_passage(store, agent.id, words("kept"), at=5.0, sources=[two.id])
    await save_passage(store, agent.id, words("gone"), at=5.0, sources=[two.id, one.id])
    await index(store, agent)
    await forget(store, agent, ForgetTarget(exchange_rows=[one.id]))
    assert [p.text for p in await store.passages.list_texts(agent.id)] == [words("kept")]
    assert left(holds, "kept", "gone") == ["kept"]
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    assert not await found(store, agent, "gone")
    assert await found(store, agent, "kept")


async def test_notes_and_hidden_rounds_that_quote_it_go_and_others_stay(store: Store, holds: Holds) -> None:
    clock = Clock()
    alice = Speaker(store, ALICE, clock)
    await talk(alice, ["one"], "c1")
    clock.now += 3 * DAY
    alice.recall = lambda question: "[2025-10-09 Thu, user] " + words("quoted")
    hidden = [
        assistant("", call("m1", "memory_insert")),
        result("m1", f"- [2025-10-09, user] {words('hid')}"),
    ]
    await alice.end(await alice.begin([user("what was it?")], "c2"), [*hidden, assistant("It was that.")])
    alice.recall = lambda question: "[2025-10-01 Wed, user] " + words("other")
    await alice.say([user("and what else?")], assistant("Nothing."), "c3")
    assert left(holds, "quoted", "hid", "other") == ["quoted", "hid", "other"]
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "oneu")).id]))
    assert left(holds, "quoted", "hid", "other") == ["other"]
    assert [e.notes for e in (await alice.rows())[1:]] == [
        {0: ""},
        {0: "[2025-10-01 Wed, user] " + words("other")},
    ]


async def test_hits_of_a_turn_that_was_opened_before_a_forgotten_message_go(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    before = await alice.end(await alice.begin([user("And before?")], "c0"), lookup("before"))
    turn = await alice.begin([user("What is it?")], "c1")
    opened = await alice.end(turn, [assistant("")], rule=settle.write_draft)
    await talk(alice, ["one"], "c2")
    await alice.end(turn, lookup("one"), row=opened.exchange_row)
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[(await row_of(alice, "oneu")).id]))
    assert left(holds, "before", "one") == ["before"]
    assert before.exchange_row < opened.exchange_row


def lookup(mark: str) -> list[WireMessage]:
    found = result("m1", f"- [2025-10-09, user] zq{mark}x")
    return [assistant("", call("m1", "conversation_search")), found, assistant("I see.")]


# -- a user, a project, isolation


async def test_a_forgotten_user_leaves_nothing_and_starts_over(store: Store, holds: Holds) -> None:
    clock = Clock()
    alice, bob = Speaker(store, ALICE, clock), Speaker(store, BOB, clock)
    for i in range(30):
        await talk(alice, [f"a{i}"], f"c{i}", size=i * 20)
        await talk(bob, [f"b{i}"], f"c{i}", size=i * 20)
    for who in (alice, bob):
        await index(store, who.agent)
    old, kept = alice.agent, await bob.rows()
    await forget(store, old, ForgetTarget(is_all=True))
    marks = [f"a{i}{who}" for i in range(30) for who in "ua"]
    assert left(holds, *marks) == []
    assert await bob.rows() == kept
    assert await found(store, bob.agent, "b7u")
    assert not holds(old.secret)
    assert not any((await _rows_of(store, old.id)).values())
    await alice.say([user(words("a1u"))], assistant("New."), "c1")
    assert alice.agent.secret != old.secret
    assert len(await alice.rows()) == 1


async def _rows_of(store: Store, agent_row: int) -> dict[str, int]:
    tables = ("conversations", "exchanges", "marks", "sections", "blocks", "block_ops", "passages", "terms")
    return {
        table: (await rows(store, f"SELECT count(*) FROM {table} WHERE agent = ?", (agent_row,)))[0][0]
        for table in tables
    }


async def test_another_agents_ids_do_nothing(store: Store, holds: Holds) -> None:
    clock = Clock()
    alice, bob = Speaker(store, ALICE, clock), Speaker(store, BOB, clock)
    await talk(alice, ["one"], "c1")
    await talk(bob, ["two"], "c1")
    before = await alice.rows()
    mine = await store.forget_targets.find_conversation(alice.agent.id, "c1")
    target = ForgetTarget(exchange_rows=[e.id for e in before], conversation_row=mine, message_seqs=[900])
    await forget(store, bob.agent, target)
    assert await alice.rows() == before
    assert left(holds, "oneu", "twou") == ["oneu", "twou"]


async def test_a_scope_finds_its_memories_and_no_others(store: Store) -> None:
    clock = Clock()
    scopes = [Scope(p, f, f"user:{u}") for p in ("p", "q") for f in ("f", "g") for u in ("a", "b")]
    ids = {}
    for scope in scopes:
        await talk(Speaker(store, scope, clock), ["x"])
        agent = await store.agents.find(scope)
        assert agent is not None
        ids[scope] = agent.id
    find = store.forget_targets.list_memories
    assert await find("p", None, "user:a") == [ids[Scope("p", f, "user:a")] for f in ("f", "g")]
    assert await find("q", "g", "user:b") == [ids[Scope("q", "g", "user:b")]]
    assert len(await find("p", None, None)) == 4
    assert await find("p", None, None, limit=3) == (await find("p", None, None))[:3]
    assert await find("r", None, None) == []


# -- the file


async def test_hundreds_of_messages_amended_hidden_and_long_ones_leave_no_word(
    store: Store, holds: Holds
) -> None:
    """Conversations of two users grow side by side; turns are cut, cancelled and amended, some are long."""
    chance = random.Random(0)
    clock = Clock()
    speakers = [Speaker(store, scope, clock) for scope in (ALICE, BOB)]
    said_marks: dict[tuple[int, str], list[str]] = {}
    lists: dict[tuple[int, str], list[WireMessage]] = {}
    for number in range(160):
        who, key = chance.randrange(2), f"c{chance.randrange(12)}"
        alice, history = speakers[who], lists.setdefault((who, key), [])
        size = chance.choice((2, 10, 60, 200, 900, 2500))
        ask, reply = words(f"{number}u", size), words(f"{number}a", chance.choice((2, 40, 300, 1500)))
        said_marks.setdefault((who, key), []).extend((f"{number}u", f"{number}a"))
        turn = await alice.begin([*history, user(ask)], key)
        kind = chance.random()
        if kind < 0.1:
            await alice.end(turn, [assistant(reply[:200])], rule=settle.cancel)
            continue
        if kind < 0.25:  # written before the model was asked, and again when it has answered
            opened = await alice.end(turn, [], rule=settle.write_draft)
            assert opened.exchange_row
            continue
        hidden = [assistant("", call("m1", "memory_insert")), result("m1", words(f"{number}h", 80))]
        full = [*hidden, assistant(reply)] if kind < 0.4 else [assistant(reply)]
        said_marks[who, key].append(f"{number}h")
        await alice.end(turn, full, [f"knows zq{number}ex"] if kind > 0.9 else [])
        said_marks[who, key].append(f"{number}e")
        heard = reply if kind < 0.7 else reply[: chance.randrange(8, len(reply))]
        lists[who, key] = [*history, user(ask if kind < 0.8 else ask + " grown"), assistant(heard)]
    all_marks = [mark for marks in said_marks.values() for mark in marks]
    remaining = left(holds, *all_marks)
    for (who, key), marks in said_marks.items():
        agent = speakers[who].agent
        assert not set(remaining).isdisjoint(marks)
        conversation = await store.forget_targets.find_conversation(agent.id, key)
        assert conversation
        await forget(store, agent, ForgetTarget(conversation_row=conversation))
        remaining = left(holds, *all_marks)
        assert set(remaining).isdisjoint(marks)


async def test_a_reset_keeps_its_memory_while_something_else_is_forgotten(open_store: OpenStore) -> None:
    store = await open_store()
    alice = Speaker(store, ALICE, Clock())
    await alice.end(await alice.begin([user("I sail.")], "c1"), [assistant("Nice.")], ["Sails."])
    await alice.say([user("I sail."), assistant("Nice."), user("Bye.")], assistant("Bye."), "c1")
    await alice.say([user("It rains.")], assistant("It does."), "c2")
    sailing, *_, rain = await alice.rows()
    learned = LearnedChanges(facts=[LearnedFact("Alice sails.", "", "sails", 1.0, sailing.id, [sailing.id])])
    await write_learned(store, alice.agent, learned)
    await save_passage(store, alice.agent.id, "A boat.", at=5.0, sources=[sailing.id])
    conversation = await store.forget_targets.find_conversation(alice.agent.id, "c1")
    forgetting = store.forgetting
    reset = await forgetting.begin(
        alice.agent.id, ForgetTarget(conversation_row=conversation, keeps_memory=True)
    )
    for _ in range(2):
        await forgetting.run(reset, until=lambda: True)
    assert (await alice.rows())[0].state is ExchangeState.FORGOTTEN
    await forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[rain.id]))
    await forgetting.run(reset)
    assert [fact.text for fact in await store.facts.list_page(alice.agent.id)] == ["Alice sails."]
    assert [block.value for block in await store.blocks.load(alice.agent.id)] == ["Sails."]
    assert [each.text for each in await store.passages.list_texts(alice.agent.id)] == ["A boat."]
    assert await rows(store, "SELECT * FROM marks WHERE kind IN ('erased', 'reset')") == []


@pytest.mark.parametrize("seed", range(3))
async def test_parallel_forgettings_remove_their_own_and_no_more(
    open_store: OpenStore, holds: Holds, seed: int
) -> None:
    """Of one memory, their transactions in any order, with turns and restarts in between.

    Turn N has the words Nu and Na, and adds Ne to the block; from it come the fact Nf and the passage Np. The text of
    another fact, which no forgotten turn has, is what it has added.
    """
    chance, store = random.Random(seed), await open_store()
    alice, large = Speaker(store, ALICE, Clock()), Block(0, "human", "The user", "", 100_000)

    async def converse(key: str, numbers: range) -> None:
        history: list[WireMessage] = []
        for n in numbers:
            history.append(user(words(f"{n}u", chance.choice((2, 60, 900)))))
            reply = assistant(words(f"{n}a", chance.choice((2, 300))))
            turn = await alice.begin(history, key)
            await alice.end(turn, [reply], [f"zq{n}ex " * chance.choice((1, 40))], defaults=[large])
            history.append(reply)
        await alice.say([*history, user("bye")], assistant("Bye."), key)

    for c in range(4):
        await converse(f"c{c}", range(5 * c, 5 * c + 5))
    turns = {n: await row_of(alice, f"{n}u") for n in range(20)}
    quoted, named = chance.sample(range(5, 15), 2), chance.sample(range(15, 19), 2)
    other = turns[19].id
    facts = [LearnedFact(words(f"{n}f"), "", str(n), 1.0, e.id, [e.id]) for n, e in turns.items()]
    facts += [LearnedFact(f"zq{n}ex", "", f"e{n}", 1.0, other, [other]) for n in quoted]
    await write_learned(store, alice.agent, LearnedChanges(facts=facts))
    seqs = {fact.text: fact.seq for fact in await store.facts.list_page(alice.agent.id)}
    for n, e in turns.items():
        await save_passage(store, alice.agent.id, words(f"{n}p"), at=5.0, sources=[e.id])
    conversation = await store.forget_targets.find_conversation(alice.agent.id, "c0")
    targets = [ForgetTarget(conversation_row=conversation)]
    targets += [ForgetTarget(exchange_rows=[turns[named[0]].id])]
    targets += [ForgetTarget(message_seqs=[turns[named[1]].seq, turns[named[1]].seq + 1])]
    targets += [ForgetTarget(fact_seqs=[seqs[f"zq{n}ex"]]) for n in quoted]
    chance.shuffle(targets)
    gone = {f"{n}{what}" for n in (*range(5), *named) for what in "uaefp"} | {f"{n}e" for n in quoted}
    open_ids, last, restarts = list[int](), 20, 2
    while targets or open_ids:
        match chance.randrange(40):
            case 0 | 1 | 2 | 3 if targets:
                open_ids.append(await store.forgetting.begin(alice.agent.id, targets.pop()))
            case 4:
                await converse(f"c{last}", range(last, last + 1))
                last += 1
            case 5 if restarts:
                restarts -= 1
                await store.close()
                alice.store = store = await open_store()
            case _ if open_ids:
                id = chance.choice(open_ids)
                if await store.forgetting.run(id, until=lambda: True):
                    open_ids.remove(id)
    assert await store.forgetting.sweep()
    said = [f"{n}{what}" for n in range(last) for what in ("uaefp" if n < 20 else "uae")]
    assert left(holds, *said) == [mark for mark in said if mark not in gone]
    (block,) = await store.blocks.load(alice.agent.id)
    noted = [line.split()[0][2:-1] for line in block.value.split("\n")]
    assert noted == [mark for mark in said if mark[-1] == "e" and mark not in gone]


async def test_a_process_that_dies_in_between_goes_on_with_it(open_store: OpenStore, holds: Holds) -> None:
    store = await open_store()
    alice = Speaker(store, ALICE, Clock())
    await talk(alice, [f"n{i}n" for i in range(100)], "c1", size=3)
    agent = alice.agent
    conversation = await store.forget_targets.find_conversation(agent.id, "c1")
    id = await store.forgetting.begin(agent.id, ForgetTarget(conversation_row=conversation))
    assert not await store.forgetting.run(id, until=lambda: True)
    states = {e.state for e in await alice.rows()}
    assert states == {ExchangeState.FINISHED, ExchangeState.FORGOTTEN}
    await store.close()
    again = await open_store()
    assert await again.forgetting.list_unfinished() == [id]
    assert await again.forgetting.run(id)
    assert await again.forgetting.run(id)  # once more does nothing
    await again.forgetting.sweep()
    assert await again.forgetting.list_unfinished() == []
    assert left(holds, *(f"n{i}n{who}" for i in range(100) for who in "ua")) == []


async def test_messages_and_exchanges_of_one_target_go_together(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one"], "c1")
    await talk(alice, ["two"], "c2")
    one, two = [await row_of(alice, f"{mark}u") for mark in ("one", "two")]
    both = ForgetTarget(message_seqs=[two.seq, two.reply_seq], exchange_rows=[two.id])
    extent = await store.forget_targets.measure(alice.agent.id, both)
    assert (extent.messages, extent.remaining) == (2, 0)  # each counts once, however often it is named
    await forget(store, alice.agent, ForgetTarget(message_seqs=[one.seq], exchange_rows=[two.id]))
    assert left(holds, "oneu", "onea", "twou", "twoa") == ["onea"]


async def test_turns_that_are_too_old_are_deleted(store: Store, holds: Holds) -> None:
    clock = Clock()
    alice = Speaker(store, ALICE, clock)
    await talk(alice, ["old"], "c1")
    await save_passage(store, alice.agent.id, words("oldp"), at=clock.now)
    clock.now += 40 * DAY
    await talk(alice, ["new"], "c2")
    await save_passage(store, alice.agent.id, words("newp"), at=clock.now)
    before = clock.now - 30 * DAY
    assert await store.forget_targets.list_older("default", before) == [alice.agent.id]
    assert await store.forget_targets.list_older("other", before) == []
    await forget(store, alice.agent, ForgetTarget(before=before))
    assert left(holds, "oldu", "olda", "oldp", "newu", "newa", "newp") == ["newu", "newa", "newp"]
    assert await store.forget_targets.list_older("default", before) == []


async def test_rows_that_are_too_old_are_deleted_in_a_memory_without_turns(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    """Facts, files and responses that no exchange has; each of them has its memory found by itself."""
    await talk(alice, ["new"], "c1")
    agent, clock = alice.agent, Clock()
    before = clock.now - 30 * DAY

    async def forget_old() -> None:
        assert await store.forget_targets.list_older("default", before) == [agent.id]
        await forget(store, agent, ForgetTarget(before=before))
        assert await store.forget_targets.list_older("default", before) == []

    for at in (before - DAY, clock.now):
        await store.facts.remember(agent, words(f"fact{at:.0f}"), f"key {at}", "person", at)
    await forget_old()
    (fact,) = await store.facts.list_page(agent.id)
    assert fact.valid_from == clock.now

    draft = StoredFile(0, "f1", agent.id, "completed", 1, before - DAY, "text/plain", "zqfilex")
    await store.files.add(draft)
    await forget_old()

    run = await put_run(store, Run(0, "r1", agent.id, 0, RunState.RUNNING, before - DAY))
    await store.run_texts.add_text(agent.id, run.id, "response", 0, b"zqresponsex")
    assert await store.responses.note_turn(agent.id, run.id, b"the name of its turn")
    assert await store.forget_targets.list_older("default", before) == []
    await store.runs.end_run(agent.id, run.id, RunState.FAILED, "error", before - 1)
    await forget_old()
    assert left(holds, f"fact{before - DAY:.0f}", "file", "response", "newu") == ["newu"]


async def test_turns_that_are_too_old_wait_a_day_for_a_run_to_end(store: Store, alice: Speaker) -> None:
    clock, bob = Clock(), Speaker(store, BOB, Clock())

    async def run_of(agent: Agent) -> Run:
        draft = Run(0, f"run of {agent.id}", agent.id, 0, RunState.CREATED, clock.now, background=True)
        return await put_run(store, draft)

    for each in (alice, bob):
        await talk(each, ["old"])
    ended, _ = await run_of(alice.agent), await run_of(bob.agent)
    retention = Retention(store, {"default": 30}, lambda: clock.now)
    clock.now += 30.5 * DAY
    assert await retention.forget_old() == 0
    await store.runs.end_run(alice.agent.id, ended.id, RunState.COMPLETED, "end_turn", clock.now)
    assert await retention.forget_old() == 1
    assert [e.state for e in await alice.rows()] == [ExchangeState.FORGOTTEN]
    clock.now += 0.6 * DAY
    assert await retention.forget_old() == 1
    assert [e.state for e in await bob.rows()] == [ExchangeState.FORGOTTEN]


async def test_a_preview_of_a_memory_that_is_gone_by_then_counts_nothing(
    store: Store, alice: Speaker
) -> None:
    await talk(alice, ["one"], "c1")
    await forget(store, alice.agent, ForgetTarget(is_all=True))
    found = await store.forget_previews.count(alice.agent.id, ForgetTarget(fact_seqs=[1]), 0)
    assert found == PreviewedCounts(ForgetCounts(0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("most", [0, preview_content.MAX_EXCHANGES])
async def test_a_preview_counts_the_facts_and_versions_that_go(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Also where the conversation has more exchanges than are looked through for the rows between which they are."""
    for module in (forget_preview, preview_content, preview_notes):
        monkeypatch.setattr(module, "MAX_EXCHANGES", most)
    for key in ("before", "talk", "after"):
        await talk(alice, [f"{key}1", f"{key}2"], key)
    before, first, second, after = [
        (await row_of(alice, mark)).id for mark in ("before1u", "talk1u", "talk2u", "after2u")
    ]
    sources = [
        (before,),
        (after,),
        (before, after),
        (first,),
        (before, second),
        (second, after),
        (before, first, after),
    ]
    facts = [LearnedFact(f"Fact {n}.", "", f"fact {n}", 1.0, each[0], each) for n, each in enumerate(sources)]
    (block,) = await store.blocks.load(alice.agent.id)
    for n, each in enumerate(sources):
        learned = LearnedChanges(writes=[(block, f"Line {n}.", each)], facts=[facts[n]])
        await write_learned(store, alice.agent, learned, n)
        (block,) = await store.blocks.load(alice.agent.id)
    conversation = await store.forget_targets.find_conversation(alice.agent.id, "talk")
    target = ForgetTarget(conversation_row=conversation)
    found = await store.forget_previews.count(alice.agent.id, target, 4)
    assert (found.counts.facts, found.counts.versions, found.rebuilt_count) == (4, 4, 0)
    assert [each.text for each in found.facts] == ["Fact 6.", "Fact 5.", "Fact 4.", "Fact 3."]
    await forget(store, alice.agent, target)
    assert [f.text for f in await store.facts.list_page(alice.agent.id)] == ["Fact 2.", "Fact 1.", "Fact 0."]


async def test_a_preview_counts_a_fact_once_that_goes_with_its_message_and_by_name(
    store: Store, alice: Speaker
) -> None:
    await talk(alice, ["one"], "c1")
    row = await row_of(alice, "oneu")
    texts = ("Likes peanuts.", "Likes tea.")
    facts = [LearnedFact(text, "", text.casefold(), 1.0, row.id, (row.id,)) for text in texts]
    (block,) = await store.blocks.load(alice.agent.id)
    learned = LearnedChanges(writes=[(block, "Likes peanuts.\nLikes tea.\nHas a cat.", ())], facts=facts)
    await write_learned(store, alice.agent, learned)
    seqs = [fact.seq for fact in await store.facts.list_page(alice.agent.id)]
    target = ForgetTarget(message_seqs=[row.seq], fact_seqs=seqs[:1])
    found = await store.forget_previews.count(alice.agent.id, target, 1)
    assert (found.counts.messages, found.counts.facts, found.counts.versions) == (1, 2, 1)
    (change,) = found.changes
    await forget(store, alice.agent, target)
    assert await store.facts.list_page(alice.agent.id) == []
    (block,) = await store.blocks.load(alice.agent.id)
    assert block.value == change.after


async def test_a_preview_counts_the_oldest_of_many_facts_of_a_message_once(
    store: Store, alice: Speaker
) -> None:
    await talk(alice, ["one"], "c1")
    row = await row_of(alice, "oneu")
    facts = [LearnedFact(f"Fact {n}.", "", f"fact {n}", 1.0, row.id, (row.id,)) for n in range(25)]
    learned = LearnedChanges(writes=[], facts=facts)
    await write_learned(store, alice.agent, learned)
    oldest = min(fact.seq for fact in await store.facts.list_page(alice.agent.id))
    target = ForgetTarget(message_seqs=[row.seq], fact_seqs=[oldest])
    found = await store.forget_previews.count(alice.agent.id, target, 1)
    assert (found.counts.facts, len(found.facts)) == (25, 20)


async def test_a_preview_of_several_facts_rebuilds_a_block_once(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """45 facts of one block were 45 rebuilds, and half a second of processor time."""
    rebuilt = []

    async def preview(connection: Any, block: Block, *arguments: Any) -> BlockPreview:
        rebuilt.append(block.label)
        return await preview_block(connection, block, *arguments)

    preview_block = preview_versions.preview_block
    monkeypatch.setattr(preview_versions, "preview_block", preview)
    await talk(alice, ["one"], "c1")
    row = await row_of(alice, "oneu")
    texts = [f"Likes peanuts of brand {n}." for n in range(5)]
    facts = [LearnedFact(text, "", text.casefold(), 1.0, row.id, (row.id,)) for text in texts]
    (block,) = await store.blocks.load(alice.agent.id)
    learned = LearnedChanges(writes=[(block, "\n".join([*texts, "Has a cat."]), ())], facts=facts)
    await write_learned(store, alice.agent, learned)
    seqs = [fact.seq for fact in await store.facts.list_page(alice.agent.id)]
    found = await store.forget_previews.count(alice.agent.id, ForgetTarget(fact_seqs=seqs), 0)
    assert (found.counts.facts, found.counts.versions) == (5, 5)
    assert [each.after for each in found.changes] == ["Has a cat."]
    assert rebuilt == [block.label]


def test_every_table_with_rows_of_a_memory_is_emptied_with_it(tmp_path: Path) -> None:
    """A new table has a statement `wipe_...` and its name in `erase.py`, or stands here with what erases it."""
    elsewhere = {
        "forgetting": "the intention itself, deleted by the last phase",
        "jobs": "`forget_jobs`, with the intention",
        "tags": "`wipe_tags`, with the intention",
        "summaries": "the trigger `summaries_gone`, with the memory's row",
    }
    phases = erase.list_phases(StoredTarget(all=("default", "default")))
    emptied = {
        table
        for phase in (name for name in phases if name.startswith("wipe_"))
        for table in re.findall(r"(?:UPDATE|DELETE FROM) (\w+)", erase.SQL[phase])
    }
    with closing(sqlite3.connect(tmp_path / "memory.db", isolation_level=None)) as file:
        migrate(file, "memory.db")
        found = file.execute(
            "SELECT DISTINCT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c"
            " WHERE m.type = 'table' AND c.name = 'agent'"
        )
        tables = {name for (name,) in found}
    assert len(tables) > 20
    assert tables - emptied == elsewhere.keys()


# -- agents of the agents API


async def test_no_table_and_no_log_has_a_word_of_a_deleted_agent(store: Store, holds: Holds) -> None:
    """Every column of text that an agent fills, in whatever table it lies."""
    own = Block(0, "zqlabelx", "zqdescriptionx", "zqvaluex", 100)
    made = await make_agent(store, "ann", own=[own], tags=["zqtagx"], system="zqsystemx")
    agent = made.agent
    await store.defined_agents.change(made, AgentChange(name="zqnamex", body={"system": "zqlaterx"}), at=2.0)
    block = (await store.named_blocks.load_visible([agent.id]))[agent.id][0].block
    change = BlockChange(value="zqeditx", details={"metadata": "zqdetailx"})
    await store.named_blocks.change("default", block.uid, change, at=2.0, origin="api")
    ann = Speaker(store, api_scope("ann"), Clock())
    await talk(ann, ["said"], "default")
    (e,) = await ann.rows()
    await store.passages.add(agent.id, [PassageDraft("zqpassagex", 3.0, ["zqptagx"])])
    draft = DefinitionDraft(
        "default", DefinitionKind.CONVERSATION, "c1", {"summary": "zqsumx"}, "zqtitlex", agent.id
    )
    await store.database.write(lambda c: put_definition(c, draft, at=3.0))
    run = await put_run(
        store, Run(0, "r1", agent.id, e.conversation_row, RunState.RUNNING, 1.0, otid=b"zqotidx")
    )
    for kind_of_text in ("request", "call", "result", "event"):
        await store.run_texts.add_text(agent.id, run.id, kind_of_text, 0, f"zq{kind_of_text}x".encode())
    step = RunStep(e.id, agent.id, run.id, 1, 1.0, waiting={"zqcallidx": "client"})
    await put_step(store, step)
    file = "INSERT INTO files (uid, memory, state, bytes, created, type, name) VALUES ('f', ?, '', 1, 1, '', 'zqfilex')"
    await rows(store, file, (agent.id,))
    words_ = [
        "label",
        "description",
        "value",
        "tag",
        "system",
        "name",
        "later",
        "edit",
        "detail",
        "saidu",
        "saida",
        "passage",
        "ptag",
        "title",
        "sum",
        "otid",
        "request",
        "call",
        "result",
        "event",
        "callid",
        "file",
    ]
    await store.database.sweep(1000)
    assert left(holds, *words_) == [word for word in words_ if word != "system"]  # an older text goes at once
    await index(store, agent)
    await forget(store, agent, ForgetTarget(is_all=True))
    assert left(holds, *words_) == []
    for table in (
        "agents",
        "definitions",
        "tags",
        "attached",
        "runs",
        "run_steps",
        "conversations",
        "blocks",
        "readers",
    ):
        assert await rows(store, f"SELECT * FROM {table}") == [], table


async def test_no_table_and_no_log_has_a_word_of_a_deleted_folder(store: Store, holds: Holds) -> None:
    """Of its files neither: their names, their text, what was indexed of it; and no agent has it attached."""
    draft = store.agents.get_draft(Scope("default", "@", "folder:f"))
    folder, _ = await store.definitions.create_memory(
        draft, DefinitionKind.FOLDER, "zqnamex", {"instructions": "zqtoldx"}, at=1.0
    )
    ann = (await make_agent(store, "ann")).agent
    await store.attached_folders.attach(ann.id, folder.id, [-16, -17], at=1.0)
    file = StoredFile(0, "uid", folder.id, FileState.PARSING, 9, 2.0, "zqtypex", "zqfilex")
    made = await store.files.add(file, on_taken_name="rename")
    await store.files.add_parts(made, [words(f"part{n}") for n in range(200)])
    await store.files.complete(made)
    words_ = ["name", "told", "type", "file", "part0", "part199"]
    await store.database.sweep(1000)
    assert left(holds, *words_) == words_
    await index(store, folder)
    await forget(store, folder, ForgetTarget(is_all=True))
    assert left(holds, *words_) == []
    assert await rows(store, "SELECT * FROM attached WHERE kind = 'folder'") == []
    assert await rows(store, "SELECT * FROM terms") == []
    assert await rows(store, "SELECT count(*) FROM files WHERE memory <> 0 OR name <> ''") == [(0,)]


async def test_no_definition_of_a_forgotten_project_is_left(store: Store, holds: Holds) -> None:
    tool = DefinitionKind.TOOL
    forgotten = DefinitionDraft("default", tool, "t1", {"source": "zqsourcex"}, "zqtoolx")
    await store.definitions.add(forgotten, at=1.0)
    other = DefinitionDraft("other", tool, "t2", {"source": "zqkeptx"}, "tool")
    kept = await store.definitions.add(other, at=1.0)
    block = BlockDraft(Block(0, "zqlabelx", "", "zqvaluex", 100), {"metadata": "zqdetailx"})
    await store.named_blocks.create("default", block, at=1.0, origin="api")
    await store.forgetting.forget_project("default")
    assert await store.forgetting.sweep()
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    assert left(holds, "source", "value", "detail", "kept") == ["kept"]
    assert await rows(store, "SELECT id FROM definitions") == [(kept.id,)]
    assert await rows(store, "SELECT id FROM blocks") == []


async def test_jobs_of_a_sleeptime_agent_outlive_a_forgetting_in_the_memory_that_it_reads(
    store: Store,
) -> None:
    memory, sleeper = [(await make_agent(store, name)).agent for name in ("ann", "ann-sleeptime")]
    await store.sleeptime_agents.adopt("default", memory.id, sleeper.id, at=1.0)
    reading = Run(0, "r1", sleeper.id, 0, RunState.CREATED, 1.0, background=True)
    wanted = RunAccept(reading, b"{}", key="reading/1", uid="c1", kind="sleep", read_memory_row=memory.id)
    await store.database.write(store.sleeptime_agents.make_accept_effect(wanted))
    queued = await store.jobs.enqueue("compact", sleeper.id, "default")
    running = await store.jobs.enqueue("run", sleeper.id, "r2")
    first = await store.jobs.leases.claim(["run"], lease_s=60.0, tries=3)
    assert first is not None
    await store.forgetting.begin(memory.id, ForgetTarget(message_seqs=[1]))
    assert (await store.runs.get("default", "r1")).run.state is RunState.FAILED
    assert not await store.jobs.leases.is_held(first)
    for kind, id in (("compact", queued), ("run", running)):
        job = await store.jobs.leases.claim([kind], lease_s=60.0, tries=3)
        assert job is not None
        assert job.id == id


async def test_no_run_waits_for_the_calls_of_a_forgotten_reply(store: Store, alice: Speaker) -> None:
    await talk(alice, ["one"], "c1")
    (e,) = await alice.rows()
    await rows(store, "UPDATE conversations SET tip = ?", (e.id,))
    run = await put_run(store, Run(0, "r1", alice.agent.id, e.conversation_row, RunState.RUNNING, 1.0))
    step = RunStep(e.id, alice.agent.id, run.id, 1, 1.0, stop="requires_approval", waiting={"c": "approval"})
    await put_step(store, step)
    await forget(store, alice.agent, ForgetTarget(message_seqs=[e.seq]))
    assert await store.runs.find_waiting_step(alice.agent.id, e.conversation_row) is not None, (
        "the reply stands"
    )
    await forget(store, alice.agent, ForgetTarget(message_seqs=[e.seq + 1]))
    assert await store.runs.find_waiting_step(alice.agent.id, e.conversation_row) is None


async def test_the_result_of_a_tool_is_not_stored_after_its_memory_is_forgotten(
    store: Store, alice: Speaker, holds: Holds
) -> None:
    await talk(alice, ["one"], "c1")
    (e,) = await alice.rows()
    run = await put_run(store, Run(0, "r1", alice.agent.id, e.conversation_row, RunState.RUNNING, 1.0))
    assert await store.run_texts.add_text(alice.agent.id, run.id, "call", 1, b"zqcallx")
    assert not await store.run_texts.add_text(alice.agent.id, run.id, "call", 1, b"zqagainx")
    await forget(store, alice.agent, ForgetTarget(is_all=True))
    assert not await store.run_texts.add_text(alice.agent.id, run.id, "result", 2, b"zqanswerx")
    assert left(holds, "call", "again", "answer") == []


async def test_a_forgetting_that_fails_keeps_none_of_others_back(store: Store, holds: Holds) -> None:
    clock = Clock()
    alice, bob, carol = (Speaker(store, ALICE._replace(subject=f"user:{n}"), clock) for n in "abc")
    for who in (alice, bob, carol):
        await talk(who, [who.scope.subject[-1]], "c1")
    (block,) = await store.blocks.load(alice.agent.id)
    (e,) = await alice.rows()
    await store.blocks.write(block.id, 1, "zqax", at=1.0, origin="tool:x", sources=[e.id])
    await rows(store, "UPDATE blocks SET version = 1 WHERE id = ?", (block.id,))  # as no program leaves it
    for who in (alice, bob):
        await store.forgetting.begin(who.agent.id, ForgetTarget(is_all=True))
    clock.now += 10 * DAY
    await talk(alice, ["new"], "c1")
    retention = Retention(store, {"default": 1.0}, clock)
    assert await retention.forget_old() == 2
    assert left(holds, "au", "bu", "cu", "newu") == ["au", "newu"]
    assert len(await store.forgetting.list_unfinished()) == 1
    assert await retention.forget_old() == 0
    assert len(await store.forgetting.list_unfinished()) == 1


async def test_forgetting_keeps_the_drafts_by_which_requests_of_others_queue(store: Store) -> None:
    draft = store.agents.get_draft(api_scope("new"))
    await store.forgetting.sweep()
    assert store.agents.get_draft(draft.scope) is draft


async def test_two_tasks_may_carry_out_one_forgetting(store: Store) -> None:
    """As where an agent is deleted while what is unfinished is resumed: its sleeptime agent goes first."""
    entry = await make_agent(store, "one")
    draft = AgentDraft(agent=store.agents.get_draft(api_scope("sleeper")), name="sleeper", body={})
    await store.sleeptime_agents.add(entry, draft, None, at=1.0)
    id = await store.forgetting.begin(entry.agent.id, ForgetTarget(is_all=True))
    assert await asyncio.gather(store.forgetting.run(id), store.forgetting.run(id)) == [True, True]
    assert await store.forgetting.list_unfinished() == []


async def test_forgotten_texts_are_read_once_for_all_pages_of_notes(open_store: OpenStore) -> None:
    """Not for each page: there are as many of these as a long conversation has."""
    statements: list[str] = []
    store = await open_store(note=statements.append)
    alice = Speaker(store, ALICE, Clock(), recall=lambda question: "[2025-10-09 Thu, user] tea")
    for n in range(70):
        await alice.say([user(f"message {n}")], assistant("Yes."), f"c{n}")
    found = await alice.rows()
    statements.clear()
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[e.id for e in found[:2]]))
    assert {note for e in await alice.rows() for note in e.notes.values()} == {""}
    assert (statements.count("additions"), statements.count("touched")) == (3, 1)
