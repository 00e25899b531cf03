"""What a run remembers: blocks between its calls, edits with their results, notes, the window, the statements."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pytest

from gateway.agents.core.call_decision import CallDecision
from gateway.core.conversation.private import read_private
from gateway.core.definition import AgentDefinition
from gateway.settings import ModelSettings
from storage.database import Connection
from storage.records import Scope
from storage.run_records import RunState
from storage.sql.statements import make_statement
from tests.agents.agent_world import AgentWorld, SendOutcome, serve_agent
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, insert, raw, say
from tests.gateway.sdk import agent, remember
from tests.patience import PATIENCE_S

own = partial(make_statement, "a test's")


@pytest.fixture
def life(upstream: StrictUpstream, tmp_path: Path) -> Iterator[AgentWorld]:
    with serve_agent(upstream, tmp_path) as made:
        yield made


def system(life: AgentWorld) -> str:
    found: str = life.upstream.last.messages[0]["content"]
    return found


def test_the_section_stays_and_the_result_shows_the_edit(life: AgentWorld) -> None:
    life.upstream.queue(call_tools(insert("Name: Ann")), say("Noted."))
    life.send("I am Ann.")
    first, second = (request.messages for request in life.upstream.chats)
    assert first[0] == second[0]
    assert "Name: Ann" not in second[0]["content"]
    assert "+ 'Name: Ann'" in second[-1]["content"]
    life.send("Bye.")
    assert system(life) == first[0]["content"]
    assert "Changed in the memory blocks" not in life.upstream.last.messages[-1]["content"]


def test_the_edit_of_another_writer_is_in_the_next_call_of_the_run(life: AgentWorld) -> None:
    life.send("Hi")
    gate = Gate()
    life.upstream.queue(
        call_tools(Call("conversation_search", {"query": "tea"}), hold_before_headers=gate), say("Done.")
    )
    arrived = life.upstream.request_gate(len(life.upstream.requests) + 1)
    run = life.begin_send("Search.")
    arrived.wait_sync()
    life.write_block("Ann is on holiday.")
    gate.open()
    run.result(PATIENCE_S)
    result = life.upstream.last.messages[-1]
    assert result["role"] == "tool"
    assert "Nothing was found." in result["content"]
    assert "Ann is on holiday." in result["content"]
    # Shown once: what comes next begins with the same bytes.
    life.send("Bye.")
    assert life.upstream.last.body.count(b"Ann is on holiday.") == 1


def test_the_edit_of_another_writer_comes_with_the_next_message(life: AgentWorld) -> None:
    life.send("Hi")
    life.write_block("Ann is on holiday.")
    life.send("And now?")
    last = life.upstream.last.messages[-1]["content"]
    assert "Ann is on holiday." in last
    assert last.endswith("And now?")
    life.send("Bye.")
    assert life.upstream.last.messages[-1]["content"] == "Bye."
    assert life.upstream.last.messages[-3]["content"] == last


def test_both_agents_see_a_shared_block(life: AgentWorld) -> None:
    other = life.make_other(blocks=())
    life.send("Hi")
    other.send("Hi")
    block = life.get_block()

    async def attach() -> None:
        agent = await life.world.store.agents.find(other.scope)
        assert agent is not None
        values = (agent.id, "block", block.id, 1)
        await life.world.store.database.write(
            lambda c: c.run(
                own("INSERT INTO attached (agent, kind, target, place) VALUES (?, ?, ?, ?)"), values
            )
        )

    life.world.gateway.call(attach())
    life.write_block("Shared news.")
    for each in (life, other):
        each.send("Anything new?")
        assert "Shared news." in life.upstream.last.messages[-1]["content"]
    # One writes, the other is shown it.
    life.upstream.queue(call_tools(insert("More.")), say("Done."))
    other.send("Add more.")
    assert life.get_block().value == "Shared news.\nMore."
    life.send("And now?")
    assert "More." in life.upstream.last.messages[-1]["content"]


def results_of(sent: SendOutcome) -> list[dict[str, Any]]:
    """Returns the results of tools, as the steps of a send have them stored."""
    messages = chain.from_iterable(orjson.loads(e.input or b"[]") for e in sent.result.steps)
    return [m for m in messages if m["role"] == "tool"]


def first_writes(life: AgentWorld, value: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Has somebody else write the block just before the first edit of a run. Returns these writes."""
    store, block = life.world.store, life.get_block()
    opening = store.stored_paths.open
    done: list[object] = []

    def first_somebody_else(write):  # type: ignore[no-untyped-def]
        if write.edits.writes and not done:
            done.append(store.blocks.write(block.id, block.version, value, at=1.0, origin="test"))
        return opening(write)

    monkeypatch.setattr(store.stored_paths, "open", first_somebody_else)
    return done


@pytest.mark.both
def test_edits_whose_calls_have_ids_of_kilobytes_are_written(life: AgentWorld) -> None:
    """A proxy may put the signature of a thought into an id, which its model demands back."""
    ids = [token_hex(3000) for _ in range(2)]
    life.upstream.queue(call_tools(*(insert(f"{n}.", id) for n, id in enumerate(ids))), say("Done."))
    reply = life.send("Note it.")
    assert reply.run.state is RunState.COMPLETED
    assert life.get_block().value == "0.\n1."
    assert [m.get("tool_call_id") for m in life.upstream.last.messages[-2:]] == ids


@pytest.mark.sqlite
@pytest.mark.parametrize("id", ["c", "c" * 300])
def test_an_edit_that_lost_is_made_again_on_what_is_there(
    life: AgentWorld, monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    life.send("Hi")
    done = first_writes(life, "Bob was here.", monkeypatch)
    life.upstream.queue(call_tools(insert("Ann too.", id)), say("Done."))
    reply = life.send("Note it.")
    assert len(done) == 1
    assert reply.run.state is RunState.COMPLETED
    assert life.get_block().value == "Bob was here.\nAnn too."
    told = life.upstream.last.messages[-1]["content"]
    assert "Ann too." in told
    assert "Bob was here." in told


@pytest.mark.sqlite
def test_an_edit_that_another_run_has_made_already_is_no_error(
    life: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.send("Hi")
    first_writes(life, "Ann.", monkeypatch)
    rethink = Call("memory_rethink", {"label": "human", "new_memory": "Ann."})
    life.upstream.queue(call_tools(rethink), say("Done."))
    reply = life.send("Note it.")
    (result,) = results_of(reply)
    assert "has this text already" in result["content"]
    assert read_private(result).get("status") is None


@pytest.mark.sqlite
def test_an_edit_that_is_made_again_still_says_who_allowed_it(
    life: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"type": "requires_approval", "tool_name": "memory_insert"}
    other = life.make_other(definition=AgentDefinition("react_agent", rules=(rule,)))
    life.upstream.queue(call_tools(insert("Ann too.", "m1")), say("Done."))
    assert other.send("Note it.").run.stop == "requires_approval"
    first_writes(other, "Bob was here.", monkeypatch)
    sent = other.send(messages=(), decisions=(CallDecision("m1"),))
    assert other.get_block().value == "Bob was here.\nAnn too."
    (result,) = results_of(sent)
    assert read_private(result).get("approval") == "approved"


@pytest.mark.sqlite
def test_an_edit_that_is_made_again_writes_over_nothing_that_the_model_has_not_seen(
    life: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.send("Hi")
    first_writes(life, "Theirs.", monkeypatch)
    rethink = Call("memory_rethink", {"label": "human", "new_memory": "Mine."})
    life.upstream.queue(call_tools(rethink), call_tools(rethink), say("Done."))
    life.send("Put it in order.")
    results = [m["content"] for m in life.upstream.last.messages if m["role"] == "tool"]
    assert results[0].startswith("Error: the block 'human' was changed by another writer")
    assert "Theirs." in results[0]
    assert not results[1].startswith("Error")
    assert life.get_block().value == "Mine."


def test_a_value_that_the_model_has_not_seen_is_not_overwritten(life: AgentWorld) -> None:
    life.send("Hi")
    gate = Gate()
    rethink = Call("memory_rethink", {"label": "human", "new_memory": "Mine."})
    life.upstream.queue(call_tools(rethink, hold_before_headers=gate), call_tools(rethink), say("Done."))
    arrived = life.upstream.request_gate(len(life.upstream.requests) + 1)
    run = life.begin_send("Put it in order.")
    arrived.wait_sync()
    life.write_block("Theirs.")
    gate.open()
    run.result(PATIENCE_S)
    results = [m["content"] for m in life.upstream.last.messages if m["role"] == "tool"]
    assert results[0].startswith("Error: the block 'human' was changed by another writer")
    assert "Theirs." in results[0]
    assert not results[1].startswith("Error")
    assert life.get_block().value == "Mine."


def test_an_archival_memory_is_stored_with_its_result(life: AgentWorld) -> None:
    life.upstream.queue(call_tools(Call("archival_memory_insert", {"content": "Likes tea."})), say("Kept."))
    life.send("I like tea.")
    assert life.world.query("SELECT text FROM passages") == ["Likes tea."]


def test_a_reply_that_was_forgotten_meanwhile_is_not_stored(life: AgentWorld) -> None:
    life.send("My code is 1234.")
    gate = Gate()
    life.upstream.queue(say("It is 1234.", hold_before_headers=gate))
    arrived = life.upstream.request_gate(len(life.upstream.requests) + 1)
    run = life.begin_send("What is my code?")
    arrived.wait_sync()

    async def forget() -> None:
        agent = await life.world.store.agents.find(life.scope)
        assert agent is not None
        await life.world.store.database.write(
            lambda c: c.run(own("UPDATE agents SET epoch = epoch + 1 WHERE id = ?"), (agent.id,))
        )

    life.world.gateway.call(forget())
    gate.open()
    done = run.result(PATIENCE_S)
    assert (done.run.state, done.run.stop) == (RunState.FAILED, "error")
    assert "assistant: It is 1234." not in life.list_messages()
    assert life.send("Hello?").texts == ["Ok."]
    assert [x.state.value for x in life.load_path()] == ["finished"] * 3


def begin_anew(life: AgentWorld) -> None:
    async def begin() -> None:
        await life.world.store.database.write(lambda c: c.run("UPDATE conversations SET key = 'old'", ()))

    life.world.settle()
    life.world.gateway.call(begin())


def test_messages_of_other_conversations_are_recalled(life: AgentWorld) -> None:
    """A chat completion to the same memory has a conversation of its own; recall spans both."""
    life.send("My tortoise is called Sheldon.")
    life.send("Reset.")
    begin_anew(life)
    life.send("What is my tortoise called?")
    assert "Sheldon" in life.upstream.last.messages[-1]["content"]
    assert len(life.upstream.last.messages) == 2


@pytest.mark.parametrize(
    "failed", [fail(500), raw(b"<html>Login</html>", content_type="text/html")], ids=["error", "page"]
)
def test_a_fallback_model_gets_the_note_that_was_made_for_the_first(
    upstream: StrictUpstream, tmp_path: Path, failed: Reply
) -> None:
    models = (ModelSettings("m", "big", "up", fallbacks=("other",)), ModelSettings("other", "small", "up"))
    with serve_agent(upstream, tmp_path, models=models) as life:
        life.send("My tortoise is called Sheldon.")
        life.send("Reset.")
        begin_anew(life)
        upstream.queue(failed, say("Sheldon."))
        life.send("What is my tortoise called?")
        big, small = upstream.chats[-2:]
        assert (big.json["model"], small.json["model"]) == ("big", "small")
        assert "Sheldon" in small.messages[-1]["content"]
        assert small.messages == big.messages


PLAIN = [
    "read", "read",
    "begin", "insert exchanges", "insert runs", "commit",
    "begin", "update exchanges", "insert run_steps", "commit",
]  # fmt: skip


@pytest.mark.parametrize("before", [1, 30])
@pytest.mark.sqlite
def test_a_plain_message_costs_six_statements(life: AgentWorld, before: int) -> None:
    for n in range(before):
        life.send(f"Message {n}")
    assert life.world.all_statements_of(lambda: life.send("And now?")) == PLAIN


@pytest.mark.sqlite
def test_a_step_with_an_edit_costs(life: AgentWorld) -> None:
    life.send("Hi")
    life.upstream.queue(call_tools(insert("x")), say("Done."))
    statements = life.world.statements_of(lambda: life.send("Note x."))
    assert statements == [
        "read", "read", "insert exchanges", "insert runs",
        "update exchanges", "insert run_steps", "read",
        "insert exchanges", "read", "insert block_history", "update blocks", "insert block_ops",
        "update exchanges", "insert run_steps",
    ]  # fmt: skip


def test_a_run_with_many_edits_stores_no_section_again(life: AgentWorld) -> None:
    life.send("Hi")
    life.upstream.queue(*(call_tools(insert(f"Line {n}")) for n in range(5)), say("Done."))
    life.send("Note all.")
    assert life.world.query("SELECT count(*) FROM sections") == [1]
    life.send("Bye.")
    assert life.upstream.last.messages[-1]["content"] == "Bye."


@pytest.mark.sqlite
def test_a_long_conversation_is_cut_to_its_window_and_costs_the_same(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_agent(upstream, tmp_path, context_window=2000, summarises=False) as life:
        for n in range(60):
            life.send(f"Message {n} " + "word " * 40)
        assert len(life.upstream.last.body) < 12_000
        assert "Message 59 word" in life.upstream.last.messages[-1]["content"]
        statements = life.world.statements_of(lambda: life.send("And now?"))
        assert [kind for kind in statements if kind != "read"] == [kind for kind in PLAIN if " " in kind]
        # What is read begins where the window does.
        own = life.world.gateway.call(_path(life))
        assert len(own.path) < 20


@pytest.mark.sqlite
def test_messages_in_the_window_are_neither_read_nor_recalled(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_agent(upstream, tmp_path, context_window=2000, summarises=False) as life:
        for n in range(40):
            life.send(f"Tortoise{n} eats " + "word " * 40)
        life.send("What eats tortoise3?")
        assert "Tortoise3 eats" in life.upstream.last.messages[-1]["content"]
        # What was found is remembered, and what was said since stands in the window.
        assert life.world.all_statements_of(lambda: life.send("What eats tortoise3 now?")) == PLAIN
        # Each message is either in the window or found, wherever the window begins.
        for n in range(30, 40):
            life.send(f"What eats tortoise{n}?")
            told = "".join(str(m["content"]) for m in life.upstream.last.messages)
            assert told.count(f"Tortoise{n} eats") >= 1
            recalled = life.upstream.last.messages[-1]["content"].count(f"Tortoise{n} eats")
            assert told.count(f"Tortoise{n} eats") == 1 or not recalled


async def _path(life: AgentWorld):  # type: ignore[no-untyped-def]
    agent = await life.world.store.agents.find(life.scope)
    assert agent is not None
    return await life.world.store.stored_paths.load_path(agent, "default", 2000)


def test_a_long_run_is_cut_between_its_rounds_and_keeps_its_question(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_agent(upstream, tmp_path, context_window=4000, summarises=False) as life:
        search = Call("conversation_search", {"query": "x " * 300})
        count = iter(range(1000))
        life.upstream.script = lambda request: call_tools(search) if next(count) < 20 else say("Done.")
        reply = life.send("The question.")
        assert (reply.run.stop, reply.run.steps) == ("end_turn", 21)
        messages = life.upstream.last.messages
        assert messages[1]["content"] == "The question."
        assert len(messages) < 30
        assert messages[2]["role"] == "assistant"


def test_a_message_that_is_changed_meanwhile_is_sent_as_it_is_then(life: AgentWorld) -> None:
    life.send("My cat is called Miso.")
    gate = Gate()
    life.upstream.queue(call_tools(insert("x"), hold_before_headers=gate), say("Done."))
    arrived = life.upstream.request_gate(len(life.upstream.requests) + 1)
    run = life.begin_send("Note it.")
    arrived.wait_sync()

    async def change() -> None:
        def words(text: str) -> bytes:
            return f'[{{"role":"user","content":"{text}"}}]'.encode()

        async def write(connection: Connection) -> None:
            await connection.run(
                own("UPDATE exchanges SET input = ? WHERE seq = 1"), (words("My cat is called Mochi."),)
            )
            await connection.run("UPDATE conversations SET rev = rev + 1", ())

        await life.world.store.database.write(write)

    life.world.gateway.call(change())
    gate.open()
    assert run.result(PATIENCE_S).run.stop == "end_turn"
    assert life.upstream.last.messages[1]["content"] == "My cat is called Mochi."
    assert life.get_block().value == "x"
    assert [word.split(":")[0] for word in life.list_messages()] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_a_summary_stands_for_what_has_left(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_agent(upstream, tmp_path, context_window=2300) as life:
        for n in range(20):
            life.send(f"Message {n} " + "word " * 60)
        gone = life.upstream.last.body
        assert b"Message 3 word" not in gone
        depth = 10

        async def summarise() -> None:
            sql = (
                "INSERT INTO summaries (agent, conversation, exchange, depth, at, tokens, model, text) "
                "SELECT agent, conversation, id, depth, 1.0, 10, 'm', 'They counted to ten.' "
                "FROM exchanges WHERE depth = ?"
            )
            await life.world.store.database.write(lambda c: c.run(own(sql), (depth,)))

        life.world.settle()
        life.world.gateway.call(summarise())
        life.send("And now?")
        assert "They counted to ten." in system(life)
        assert b"Message 19 word" in life.upstream.last.body
        life.send("And then?")
        assert "They counted to ten." in system(life)


def test_a_users_client_conversation_becomes_stored_when_it_is_sent_to(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        headers = {"x-mnemogate-conversation": "default"}
        chat = world.chat(model="agent/helper", user="alice", headers=headers)
        chat.say("One.")
        upstream.queue(call_tools(insert("Counts.")), say("Noted."))
        chat.say("Two.")
        spec = next(each for each in world.gateway.app.services.chat.directory.specs if each.name == "helper")
        life = AgentWorld(world, spec, Scope("default", "helper", "user:alice"))
        life.send("Three.")
        contents = [m["content"] for m in upstream.last.messages if m["role"] == "user"]
        assert contents == ["One.", "Two.", "Three."]
        assert life.get_block().value == "Counts."
        # From now on the client's list repeats what stands.
        chat.say("Four.")
        contents = [m["content"] for m in upstream.last.messages if m["role"] == "user"]
        assert contents == ["One.", "Two.", "Three.", "Four."]
        assert len(life.load_path()) == 4
