"""Turns in the store: what each costs in statements, what two at once do, and that nobody sees another's rows."""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.change import plan_change
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage
from storage.commands import (
    MAX_RULE_CALLS,
    Additions,
    CandidateExchanges,
    CommittedTurn,
    MissingContents,
    PlainTurn,
    Probes,
    StoredContent,
    TurnChange,
    TurnWrite,
)
from storage.errors import StaleWrite, StatementFailed
from storage.forget_commands import ForgetTarget
from storage.postgres.connection import PROFILE_BLOCKS
from storage.records import Exchange, Scope, SentSection
from storage.sql import exchanges
from storage.sql.exchange_rows import pack_inputs, unpack_inputs
from storage.sql.store import Store
from tests.core.conversations import assistant, call, check_columns, result, user
from tests.storage.conftest import OpenStore, SqliteFile
from tests.storage.names import without_transactions
from tests.stored import ALICE, Clock, PlannedTurn, Speaker, rows

both = pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])

BOB = Scope("default", "default", "user:bob")
# To compare a plan before and after; the hash that a MessageHasher keeps ready cannot be pickled.
copyreg.pickle(MessageHasher, lambda hasher: (MessageHasher, (hasher.secret,)))
SECTION = SentSection(0, "what alice's prompt said", {"blocks": {}, "tools": {}, "epoch": 0})


def noted(text: str, id: str = "m1") -> list[WireMessage]:
    """A reply with a hidden round."""
    return [assistant("", call(id, "memory_insert", "{}")), result(id, "inserted"), assistant(text)]


@pytest.fixture
def statements() -> list[str]:
    return []


@pytest.fixture
async def alice(open_store: OpenStore, statements: list[str]) -> Speaker:
    return Speaker(await open_store(note=statements.append), ALICE, Clock(step_s=1.0))


@pytest.mark.parametrize(
    "inputs", [((),) * 7, ((b"u" * 12,),), ((b"a" * 12, b"c" * 12), (), (b"t" * 12,)), ()]
)
def test_the_messages_of_a_row_are_read_as_they_were_written(inputs: tuple[tuple[bytes, ...], ...]) -> None:
    """Seven without atoms (replies without words) take as many bytes as one that has an atom."""
    assert unpack_inputs(pack_inputs(inputs)) == inputs


def again(speaker: Speaker) -> list[str]:
    """A snapshot that is cached since the turn before: who shares a database asks whether it is still so."""
    return ["cacheable_numbers"] if speaker.store.database.is_shared else []


def kinds(statements: list[str]) -> list[str]:
    """The names of all, transaction control aside, and forgets them."""
    names = without_transactions(statements)
    statements.clear()
    # SQLite locks no row, so both statements are one.
    return [NUMBERS if name == "agent_numbers" else name for name in names]


# -- budgets: every statement of a turn

LOOK, NUMBERS = "memory_snapshot", "lock_numbers"
POOL = {"c1": ["conversation_of", "pool_conversation"], None: ["pool_found"]}
WEIGHED = {
    key: [*candidates, NUMBERS, *candidates] for key, candidates in POOL.items()
}  # when planned, and when written
ADD, INSERT, CHANGE, MOVED = "exchange_add_planned", "exchange_add", "exchange_update", "conversation_moved"
KEEP_EDIT = "edit_insert"


async def opened(alice: Speaker, key: str | None) -> list[WireMessage]:
    """A conversation of two turns."""
    await alice.say([user("one")], assistant("First."), key)
    history = [user("one"), assistant("First."), user("two")]
    await alice.say(history, assistant("Second."), key)
    return [*history, assistant("Second.")]


@both
async def test_a_plain_turn_is_one_insert(alice: Speaker, statements: list[str], key: str | None) -> None:
    history = await opened(alice, key)
    statements.clear()
    await alice.say([*history, user("three")], assistant("Third."), key)
    assert kinds(statements) == [*again(alice), ADD]


@both
async def test_a_plain_turn_leaves_the_row_before_it_alone(alice: Speaker, key: str | None) -> None:
    """But for a first exchange, by whose mark openings are looked up."""
    history = await opened(alice, key)
    await alice.say([*history, user("three")], assistant("Third."), key)
    first, second, third = await alice.rows()
    assert (first.continued, second.continued, third.ends_with_user) == (True, False, True)


@both
async def test_tool_results_cost_the_same(alice: Speaker, statements: list[str], key: str | None) -> None:
    """They carry nothing; the results after them are weighed, since they go on with a turn that did not end."""
    history = await opened(alice, key)
    asked = [*history, user("weather?")]
    await alice.say(asked, assistant(None, call("1")), key)
    statements.clear()
    await alice.say([*asked, assistant(None, call("1")), result("1", "sunny")], assistant("Sunny."), key)
    assert kinds(statements) == [*again(alice), ADD]


@both
async def test_a_message_after_many_rounds_of_tools_marks_them_in_one_statement(
    alice: Speaker, statements: list[str], key: str | None
) -> None:
    history = [*await opened(alice, key), user("weather?")]
    for number in "123456":
        called = assistant(None, call(number, arguments=f'{{"day":{number}}}'))
        await alice.say(history, called, key)
        history += [called, result(number, "sunny")]
    await alice.say(history, assistant("Sunny."), key)
    statements.clear()
    await alice.say([*history, assistant("Sunny."), user("and?")], assistant("That is all."), key)
    # But for the last of them, below which the message is.
    assert kinds(statements) == [*again(alice), *WEIGHED[key], INSERT, "exchanges_continued", MOVED]
    continued = [e.continued for e in await alice.rows()]
    assert continued == [True, False, *[True] * 6, False, False]


@both
async def test_a_first_turn_costs_so_many_statements(
    alice: Speaker, statements: list[str], key: str | None
) -> None:
    await alice.say([user("somebody known")], assistant("Yes."), "another")
    statements.clear()
    await alice.say([user("one")], assistant("First."), key)
    expected = {
        "c1": [
            LOOK,
            "conversation_of",
            NUMBERS,
            "conversation_of",
        ],  # there is no such conversation: no candidates
        None: [LOOK, *POOL[None], NUMBERS, *POOL[None]],
    }[key]
    assert kinds(statements) == [*expected, "conversation_insert", INSERT]


@both
async def test_a_first_turn_of_a_new_user(alice: Speaker, statements: list[str], key: str | None) -> None:
    turn = await alice.begin([user("one")], key)
    statements.clear()
    await alice.end(turn, [assistant("First.")])
    assert kinds(statements) == [
        "agent_insert",
        "insert_own",
        "block_history_insert",
        "block_point",
        *POOL[key][:1],
        "conversation_insert",
        INSERT,
    ]


@both
async def test_a_fork_costs_so_many_statements(
    alice: Speaker, statements: list[str], key: str | None
) -> None:
    history = await opened(alice, key)
    statements.clear()
    await alice.say(history[:3], assistant("Another second."), key)
    # the new one; the one that falls
    assert kinds(statements) == [LOOK, *WEIGHED[key], INSERT, CHANGE, MOVED]


@both
async def test_a_repeat_writes_no_new_row(alice: Speaker, statements: list[str], key: str | None) -> None:
    history = await opened(alice, key)
    statements.clear()
    await alice.say(history[:3], assistant("Second."), key)
    found = kinds(statements)
    assert found == [LOOK, *WEIGHED[key], CHANGE, "edits_drop", MOVED]
    assert len(await alice.rows()) == 2


@both
async def test_a_hidden_round_and_what_carries_it(
    alice: Speaker, statements: list[str], key: str | None
) -> None:
    history = await opened(alice, key)
    asked = [*history, user("I like tea")]
    statements.clear()
    await alice.end(await alice.begin(asked, key), noted("Noted."), ["tea"])
    assert kinds(statements) == [*again(alice), ADD, KEEP_EDIT]
    asked += [assistant("Noted."), user("and?")]
    await alice.say(asked, assistant("That is all."), key)
    assert kinds(statements) == [
        LOOK,
        *POOL[key],
        NUMBERS,
        *POOL[key],
        INSERT,
        CHANGE,  # the turn it carries
        MOVED,
        "edits_of_exchange",  # the edits
        *(
            [PROFILE_BLOCKS] if alice.store.database.is_shared else []
        ),  # another user's turn may merge its own
        "block_load",  # the block they change
        "block_get",
        "block_history_insert",
        "block_advance",
        "edit_settle",  # merged
    ]
    asked += [assistant("That is all."), user("bye")]
    await alice.say(asked, assistant("Bye."), key)
    assert kinds(statements) == [LOOK, ADD]


async def test_a_turn_costs_the_same_however_long_the_conversation(
    alice: Speaker, statements: list[str]
) -> None:
    history: list[WireMessage] = []
    for k in range(12):
        history.append(user(f"step {k}"))
        statements.clear()
        await alice.say(history, assistant(f"done {k}"), "c1")
        assert k < 2 or kinds(statements) == [*again(alice), ADD]
        history.append(assistant(f"done {k}"))


# -- two at once


@both
async def test_the_second_of_two_plain_turns_at_once_is_planned_again(
    alice: Speaker, key: str | None
) -> None:
    history = await opened(alice, key)
    turns = [await alice.begin([*history, user(f"drawer {word}")], key) for word in ("one", "two")]
    assert all(turn.is_plain for turn in turns)
    decided: list[TurnChange] = []
    ends = [await alice.end(turn, [assistant("Socks.")], note_change=decided.append) for turn in turns]
    assert [end.is_plain for end in ends] == [True, False]
    assert len(decided) == 1
    assert [e.active for e in await alice.rows()] == [True] * 4
    assert [e.parent for e in await alice.rows()] == [None, 1, 2, 2]
    assert {e.conversation_row for e in await alice.rows()} == {ends[0].conversation_row}


async def test_the_longer_form_of_a_growing_message_that_was_planned_twice_is_active(alice: Speaker) -> None:
    history = await opened(alice, "c1")
    turns = [await alice.begin([*history, user(text)], "c1") for text in ("I would", "I would like tea")]
    for turn in reversed(turns):
        await alice.end(turn, [assistant("Yes.")])
    assert [e.active for e in await alice.rows()] == [True, True, True, False]


async def test_two_first_turns_of_a_new_user_meet_in_one_memory(alice: Speaker) -> None:
    turns = [await alice.begin([user(f"fact {k}")], "c1") for k in range(2)]
    ends = [await alice.end(turn, [assistant(f"r{k}")]) for k, turn in enumerate(turns)]
    assert ends[0].agent.id == ends[1].agent.id
    assert ends[0].conversation_row == ends[1].conversation_row
    assert [e.active for e in await alice.rows()] == [True, True]


async def test_edits_of_a_repeated_turn_are_stored_once(alice: Speaker) -> None:
    history = [user("I like tea")]
    for k in range(2):
        await alice.end(await alice.begin(history, "c1"), noted("Noted.", f"m{k}"), ["tea"])
    await alice.say([*history, assistant("Noted."), user("on")], assistant("Yes."), "c1")
    (block,) = await alice.store.blocks.load(alice.agent.id)
    assert block.value == "tea"
    await alice.end(
        await alice.begin(history, "c1"), noted("Noted.", "m9"), ["tea"]
    )  # merged, and asked once more
    snapshot = await alice.store.turns.find_snapshot(alice.agent, "c1", None)
    assert snapshot is not None
    assert snapshot.edits == []
    assert snapshot.blocks[0].value == "tea"


async def test_edits_that_wait_are_read_in_the_order_in_which_they_were_made(alice: Speaker) -> None:
    turn = await alice.begin([user("I like tea, and I sail")], "c1")
    await alice.end(turn, noted("Noted."), ["tea", "sails"])
    ids = [id for (id,) in await rows(alice.store, "SELECT id FROM block_ops ORDER BY id")]
    # PostgreSQL writes a changed row again, after the others.
    for state in ("dropped", "pending"):
        await rows(alice.store, f"UPDATE block_ops SET state = '{state}' WHERE id = {ids[0]}")
    snapshot = await alice.store.turns.find_snapshot(alice.agent, "c1", None)
    assert snapshot is not None
    assert snapshot.conversation is not None
    path = await alice.store.stored_paths.load_path(alice.agent, snapshot.conversation.uid, None)
    assert path is not None
    assert [edit.id for edit in snapshot.edits] == [edit.id for edit in path.snapshot.edits] == ids


async def test_edits_of_a_turn_off_the_record_are_not_stored(alice: Speaker) -> None:
    messages = [user("a secret")]
    await alice.end(await alice.begin(messages, "c1", MemoryUse.OFF), [assistant("Sorry.")])
    await alice.end(
        await alice.begin(messages, "c1"), noted("Sorry."), ["secret"]
    )  # asked again, memory on: stays off
    snapshot = await alice.store.turns.find_snapshot(alice.agent, "c1", None)
    assert snapshot is not None
    assert snapshot.edits == []
    assert all(e.input is None for e in await alice.rows())


# -- forgotten meanwhile


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "weighed"])
async def test_a_turn_that_was_planned_before_a_forgetting_is_not_written(
    alice: Speaker, is_plain: bool
) -> None:
    history = await opened(alice, "c1")
    turn = await alice.begin([*history, user("three")] if is_plain else history[:3], "c1")
    assert turn.is_plain is is_plain
    await rows(alice.store, "UPDATE agents SET epoch = epoch + 1")
    before = await alice.rows()
    dump = await _everything(alice.store)
    with pytest.raises(StaleWrite):
        await alice.end(turn, noted("Third."), ["tea"], section=SECTION)
    assert await alice.rows() == before
    assert await _everything(alice.store) == dump


# Those that a turn writes.
_TABLES = ("agents", "conversations", "exchanges", "marks", "sections", "blocks", "block_history", "block_ops",
           "passages", "terms", "jobs")  # fmt: skip


async def _everything(store: Store) -> list[list[tuple[Any, ...]]]:
    return [await rows(store, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in _TABLES]


# -- whose rows they are


@pytest.fixture
async def bob(alice: Speaker) -> Speaker:
    """Somebody else, after alice said much: a hidden round, an edit, a turn off the record, a memory section."""
    history = [user("my pin is 1234"), assistant("Noted.")]
    await alice.end(await alice.begin(history[:1], "c1"), noted("Noted."), ["1234"], section=SECTION)
    await alice.end(await alice.begin([user("a secret")], "c2", MemoryUse.OFF), [assistant("Sorry.")])
    await alice.say([user("found without an id")], assistant("Yes, it is."))
    other = Speaker(alice.store, BOB, alice.now)
    await other.say([user("Hi")], assistant("Hello!"), "of bob")
    return other


async def test_a_look_sees_nothing_of_another_agent(alice: Speaker, bob: Speaker) -> None:
    for e in await alice.rows():
        snapshot = await bob.store.turns.find_snapshot(bob.agent, "c1", e.path_hash)
        assert snapshot is not None
        assert (snapshot.conversation, snapshot.exchange, snapshot.section) == (None, None, None)
        assert (snapshot.additions, snapshot.edits) == (Additions(), [])
        assert [
            snapshot.matches_prefix,
            snapshot.has_tombstones,
            snapshot.is_continued,
            snapshot.has_rivals,
        ] == [False] * 4
        assert [b.value for b in snapshot.blocks] == [""]


async def test_a_look_with_another_agents_row_and_ones_own_scope_is_none(
    alice: Speaker, bob: Speaker
) -> None:
    mixed = replace(alice.agent, scope=BOB)
    assert await bob.store.turns.find_snapshot(mixed, "c1", (await alice.rows())[0].path_hash) is None


@both
async def test_a_pool_has_the_words_of_one_exchange_however_many_are_asked_at_one_place(
    alice: Speaker, key: str | None
) -> None:
    """Somebody may ask hundreds of long questions after one reply."""
    history = await opened(alice, key)
    for k in range(5):
        await alice.say([*history, user(f"{k} more?")], assistant(f"Not {k}."), key)
    rows = await alice.rows()
    probes = Probes(key, [e.reply_key for e in rows if e.reply_key], since=0.0)
    candidates = await alice.store.turns.load_candidates(alice.agent, probes)
    assert len(candidates.exchanges) == len(rows)
    assert [orjson.loads(e.input)[-1] for e in candidates.exchanges if e.input] == [user("4 more?")]


async def test_a_pool_holds_nothing_of_another_agent(alice: Speaker, bob: Speaker) -> None:
    theirs = await alice.rows()
    probes = [
        Probes("c1"),
        Probes(
            None,
            [e.reply_key for e in theirs if e.reply_key],
            [b"".join(e.inputs[-1]) for e in theirs],
            [e.path_hash for e in theirs] + [b"".join(a) for e in theirs for a in e.inputs],
            since=0.0,
        ),
    ]
    for probe in probes:
        assert (await alice.store.turns.load_candidates(alice.agent, probe)).exchanges
        candidates = await bob.store.turns.load_candidates(bob.agent, probe)
        assert candidates.conversation_row is None
        assert not {e.id for e in candidates.exchanges} & {e.id for e in theirs}
        for e in theirs:
            assert await bob.store.turns.load_contents(bob.agent, [e.id]) == {e.id: StoredContent()}


async def test_a_snapshot_and_a_uid_are_their_agents_alone(alice: Speaker, bob: Speaker) -> None:
    e = (await alice.rows())[0]
    turns = bob.store.turns
    assert e.section is not None
    stored = await bob.store.sections.find(alice.agent.id, e.section)
    assert stored is not None
    assert stored.text == SECTION.text
    assert await bob.store.sections.find(bob.agent.id, e.section) is None
    assert await turns.find_conversation_uid(alice.agent, e.conversation_row)
    assert await turns.find_conversation_uid(bob.agent, e.conversation_row) is None


async def test_a_turn_written_with_ids_of_another_scope_touches_nothing_there(
    alice: Speaker, bob: Speaker
) -> None:
    theirs = await alice.rows()
    history = [user("my pin is 1234"), assistant("Noted."), user("on")]
    rev = await _rev(alice, "c1")
    stolen = replace(theirs[0], id=0, parent=theirs[0].id, depth=1)
    turn = await bob.begin(history, "c1")
    write = _write(bob, turn, PlainTurn(stolen, rev))
    committed: CommittedTurn = await bob.store.turns.commit(write)
    assert not committed.is_plain
    assert await alice.rows() == theirs
    mine = (await bob.rows())[-1]
    assert mine.parent is None
    assert mine.conversation_row != theirs[0].conversation_row
    own = replace((await bob.rows())[0], id=0, parent=theirs[0].id, depth=1)
    await bob.store.turns.commit(_write(bob, turn, PlainTurn(own, await _rev(bob, "of bob"))))
    assert await alice.rows() == theirs  # not even marked as carried


async def test_settling_anothers_conversation_reads_nothing_of_it(alice: Speaker, bob: Speaker) -> None:
    theirs = await alice.rows()
    seen: list[CandidateExchanges] = []

    def decide(candidates: CandidateExchanges) -> TurnChange:
        seen.append(candidates)
        return TurnChange(None)

    await bob.store.turns.confirm_edits(bob.agent.id, theirs[0].conversation_row, 1.0, 1.0, decide)
    assert [e for candidates in seen for e in candidates.exchanges] == []
    assert await alice.rows() == theirs


async def _rev(speaker: Speaker, key: str) -> int:
    snapshot = await speaker.store.turns.find_snapshot(speaker.agent, key, None)
    assert snapshot is not None
    assert snapshot.conversation is not None
    return snapshot.conversation.rev


def _write(speaker: Speaker, turn: PlannedTurn, plain: PlainTurn | None = None) -> TurnWrite:
    ended = RequestEnd(-1, [assistant("Yes.")], assistant("Yes."), speaker.now(), {})
    return TurnWrite(
        agent=speaker.agent,
        key=turn.key,
        uid=f"of {speaker.scope.subject} {ended.now}",
        now=ended.now,
        plain=plain,
        probes=lambda: Probes(turn.key),
        decide=lambda candidates: plan_change(candidates, turn.plan, ended, settle.finish),
    )


# -- what the rules ask for


async def test_contents_that_the_rules_miss_are_loaded_with_one_statement_each_time(
    alice: Speaker, statements: list[str]
) -> None:
    history = await opened(alice, "c1")
    turn = await alice.begin([*history, user("three")], "c1")
    first, second = (row.id for row in await alice.rows())
    contents_read: list[set[int]] = []

    def decide_late(candidates: CandidateExchanges) -> TurnChange:
        contents_read.append(set(candidates.contents))
        for ids in ([first, second], [999]):
            if not candidates.contents.keys() >= set(ids):
                raise MissingContents(ids)
        assert orjson.loads(candidates.contents[second].input or b"") == [user("two")]
        assert candidates.contents[999] == StoredContent()  # it is gone, and not asked for again
        return TurnChange(replace(turn.plan.exchange, id=-1))

    statements.clear()
    await alice.store.turns.commit(replace(_write(alice, turn), decide=decide_late))
    assert contents_read == [set(), {first, second}, {first, second, 999}]
    expected = [NUMBERS, *POOL["c1"], "contents", "content", INSERT]
    assert kinds(statements) == expected


async def test_rules_that_never_have_enough_fail_their_turn_and_no_other(alice: Speaker) -> None:
    history = await opened(alice, "c1")
    turn = await alice.begin([*history, user("three")], "c1")
    before, calls = await alice.rows(), 0

    def decide_never(candidates: CandidateExchanges) -> TurnChange:
        nonlocal calls
        calls += 1
        raise MissingContents([1000 + calls])

    with pytest.raises(StatementFailed):
        await alice.store.turns.commit(replace(_write(alice, turn), decide=decide_never))
    assert calls == MAX_RULE_CALLS
    assert await alice.rows() == before
    await alice.end(turn, [assistant("Third.")])
    assert len(await alice.rows()) == len(before) + 1


async def test_contents_that_are_compared_together_are_loaded_together(
    alice: Speaker, statements: list[str]
) -> None:
    for n in range(70):  # more than one statement takes
        await alice.say([user(f"Question number {n}")], assistant("Yes."))
    statements.clear()
    await alice.begin([user("Question number 7 and more")])
    assert kinds(statements) == [*again(alice), *POOL[None], "contents", "contents"]


@both
@pytest.mark.parametrize("how", [settle.finish, settle.cancel])
async def test_nothing_of_a_request_is_changed_where_it_is_written(
    alice: Speaker,
    database: object,
    key: str | None,
    how: Callable[[Tree, Plan, RequestEnd], Exchange],
) -> None:
    # Its last reply came back cut, with a picture in the question: the writer sees another form, hashes it again, and
    # finds an alternative to compare with.
    picture = {"type": "image_url", "image_url": {"url": "data:1"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Look at this, please."}, picture]}
    shown_reply = assistant("It is a cat on a roof, and it looks as if it wants to come down.")
    await alice.say([user("one")], assistant("First."), key)
    await alice.say([user("one"), assistant("First."), message], shown_reply, key)
    await alice.say([user("one"), assistant("First."), user("two?")], assistant("Second."), key)
    again = [user("one"), assistant("First."), message, assistant("It is a cat on a roof"), user("on")]
    turn = await alice.begin(again, key)
    assert turn.plan.amendments
    assert not turn.is_plain
    threads: list[int] = []
    given: list[object] = []

    def watched(tree: Tree, plan: Plan, ended: RequestEnd) -> Exchange:
        threads.append(threading.get_ident())
        given.extend((plan, ended))
        before = pickle.dumps((plan, ended))
        e = how(tree, plan, ended)
        assert pickle.dumps((plan, ended)) == before
        return e

    before = pickle.dumps(turn.plan)
    await alice.end(turn, [assistant("Third.")], rule=watched)
    assert pickle.dumps(turn.plan) == before
    assert given
    assert isinstance(database, SqliteFile) is (threading.get_ident() not in threads)


# -- all columns


@both
async def test_the_stored_columns_follow_from_the_tree(alice: Speaker, key: str | None) -> None:
    history = await opened(alice, key)
    asked = [*history, user("I like tea")]
    await alice.end(await alice.begin(asked, key), noted("One moment. Noted."), ["tea"])
    cut = [*asked, assistant("One mom..."), user("wait")]  # a reply that was cut: its path is hashed again
    await alice.say(cut, assistant("Yes?"), key)
    rows = await alice.rows()
    check_columns(rows, MessageHasher(alice.agent.secret), {rows[0].conversation_row} if key else ())
    assert [e.state.value for e in rows] == ["finished"] * 4
    assert [e.seq for e in rows] == [1, 3, 5, 7]


# -- among many that are alike


async def test_an_exact_parent_is_found_among_many_with_the_same_words(alice: Speaker) -> None:
    """Look-ups by a reply or a question are bounded; what a list repeats from its first message on is never missed."""
    opening = [user("where were we?"), assistant("In the garden."), user("yes")]
    history = [*opening, assistant("Ok."), user("go on")]
    await alice.say(opening[:1], assistant("In the garden."))
    await alice.say(opening, assistant("Ok."))
    await alice.say(history, assistant("It was spring."))
    for k in range(70):  # more than are looked at
        other = [user(f"topic {k}"), assistant(f"Topic {k}."), user("yes")]
        await alice.say(other[:1], assistant(f"Topic {k}."))
        await alice.say(other, assistant("Ok."))
    again = await alice.begin(history)
    assert again.plan.exchange is not None
    assert again.plan.exchange.parent == 2
    first = await alice.end(again, [assistant("It was summer.")])
    assert first.conversation_row == 1
    asked = [*history, assistant("It was summer.")]
    turns = [await alice.begin([*asked, user(text)]) for text in ("one", "two")]
    ends = [await alice.end(turn, [assistant("Ok.")]) for turn in turns]
    assert [end.conversation_row for end in ends] == [1, 1]


async def test_a_conversation_is_found_next_to_longer_ones_with_the_same_results(
    alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More exchanges match than are loaded, and a message after a tool round is weighed."""
    monkeypatch.setattr(exchanges, "POOL_LIMIT", 20)
    for n in range(3):
        talk = [user(f"task {n}")]
        for step in range(10):
            calling = assistant(None, call(f"{n}-{step}"))
            await alice.say(talk, calling)
            talk += [calling, result(f"{n}-{step}", "done")]
        await alice.say(talk, assistant("All of it is done."))
    talk = [user("a small task"), assistant(None, call("small"))]
    begun = await alice.say(talk[:1], talk[1])
    talk.append(result("small", "done"))
    await alice.say(talk, assistant("Ready."))
    committed = await alice.say([*talk, assistant("Ready."), user("And now?")], assistant("Nothing."))
    assert committed.conversation_row == begun.conversation_row


async def test_a_conflict_finds_its_conversation_among_many_with_the_same_words(alice: Speaker) -> None:
    opening = [user("where were we?"), assistant("In the garden."), user("yes")]
    await alice.say(opening[:1], assistant("In the garden."))
    await alice.say(opening, assistant("Ok."))
    for k in range(70):
        other = [user(f"topic {k}"), assistant(f"Topic {k}."), user("yes")]
        await alice.say(other[:1], assistant(f"Topic {k}."))
        await alice.say(other, assistant("Ok."))
    turns = [await alice.begin([*opening, assistant("Ok."), user(text)]) for text in ("one", "two")]
    assert all(turn.is_plain for turn in turns)
    for turn in turns:
        await alice.end(turn, [assistant("Fine.")])
    assert [e.parent for e in (await alice.rows())[-2:]] == [2, 2]


async def test_a_conversation_whose_public_name_is_taken_gets_another(store: Store) -> None:
    """Names are of the whole database, and nobody's conversation may be lost for one."""
    for subject in ("user:alice", "user:bob"):
        speaker = Speaker(store, Scope("default", "default", subject))
        await speaker.end(await speaker.begin([user("Hello")]), [assistant("Yes.")], uid="the same")
        assert len(await speaker.rows()) == 1
    found = await rows(store, "SELECT agent, uid FROM conversations ORDER BY id")
    assert len({agent for agent, _ in found}) == 2
    assert found[0][1] == "the same" != found[1][1]


async def test_a_response_joins_its_named_conversation_whoever_began_it(alice: Speaker) -> None:
    """An import may have begun it meanwhile, with a public id of its own."""
    waiting = await alice.begin([user("Hello")], "c1")
    await alice.end(await alice.begin([user("Good day")], "c1"), [assistant("Yes.")], uid="imported")
    await alice.store.turns.commit(replace(_write(alice, waiting), has_given_uid=True))
    first, second = await alice.rows()
    assert first.conversation_row == second.conversation_row


async def test_a_turn_that_waits_counts_with_its_images(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store()
    speaker, write = Speaker(store, ALICE), store.database.write
    sizes: list[int] = []

    def noted(*args: Any, **options: Any) -> Any:
        sizes.append(options["size_bytes"])
        return write(*args, **options)

    monkeypatch.setattr(store.database, "write", noted)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 50_000}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Who is this?"}, image]}
    await speaker.say([message], assistant("A dog."))
    await speaker.say([message, assistant("A dog."), message], assistant("Another dog."))
    assert sizes[-1] > 50_000


@both
async def test_a_turn_that_is_written_twice_keeps_its_edits(alice: Speaker, key: str | None) -> None:
    """As where the answer to the first commit was lost. Its calls are numbered, as the rows of edits are."""
    history = await opened(alice, key)
    asked = [*history, user("I like tea")]
    turn = await alice.begin(asked, key)
    write, _ = await alice.commit(turn, noted("Noted."), ["tea", "milk"])
    edits = [replace(edit, call_id=str(number)) for number, edit in enumerate(write.edits)]
    for _ in range(3):
        committed = await alice.store.turns.commit(replace(write, edits=edits))
    alice.cache(write, committed)
    await alice.say([*asked, assistant("Noted."), user("and?")], assistant("That is all."), key)
    (block,) = await alice.store.blocks.load(alice.agent.id)
    assert block.value == "tea\nmilk"
    found = await alice.rows()
    await alice.store.forgetting.forget(alice.agent.id, ForgetTarget(exchange_rows=[e.id for e in found]))
    (block,) = await alice.store.blocks.load(alice.agent.id)
    assert block.value == ""
