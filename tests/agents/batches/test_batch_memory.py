"""Batches through the agents API: what is recalled, stored, forgotten, and shown to others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.batch.openai import OpenAIBatches
from gateway.agents.batches import batch_jobs, item_ending
from gateway.agents.batches import outcomes as batch_outcomes
from gateway.agents.batches.items import ItemReplayer
from gateway.agents.batches.outcomes import ItemOutcomes
from gateway.agents.batches.part_draft import PartDraft
from gateway.agents.batches.parts import PartJournal
from gateway.agents.batches.submission import PartSubmitter
from gateway.agents.registry import registry
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.operations import make_operations
from gateway.run.tools.toolbox import ToolAnswer
from gateway.settings import ToolSettings
from storage.batch_records import BatchState
from storage.database import Connection, Effect
from storage.run_records import RunState
from storage.sql.agents_api.batch_items import BatchItems
from storage.sql.agents_api.batches import Batches
from storage.sql.agents_api.runs import end_run
from storage.sql.job_rows import raise_epoch
from storage.sql.jobs import Jobs
from storage.sql.statements import make_statement
from tests.agents.batches.batch_world import (
    PATH,
    BatchWorld,
    Json,
    answer_by_buying,
    make_append_call,
    read_results,
    read_text,
    serve_batches,
    serve_batches_and_tools,
)
from tests.agents.letta import spoken
from tests.agents.test_client_tools import NOTE
from tests.doubles.batches import Outcome
from tests.doubles.tool_server import ToolServer
from tests.gateway.process import command
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap
from tests.inflated import find_files_with
from tests.patience import becomes


def answer_by_noting(custom_id: str, body: Json) -> Outcome:
    return (
        Outcome(text="Written down.")
        if read_results(body)
        else Outcome(calls=(make_append_call("Likes quokkas."),))
    )


@pytest.mark.sqlite
def test_a_turn_of_a_batch_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    with serve_batches(tmp_path, answer_by_noting) as world:
        [agent] = world.create_agents(1)
        world.wait_for_end(world.create_batch([agent], "I adore quokkas."))
        assert find_files_with(tmp_path, "quokkas")
        world.world.settle()
        for message in spoken(world.letta.agents.messages.list(agent, order="asc").items):
            world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        assert "quokkas" not in world.read_block(agent)
        becomes(lambda: not find_files_with(tmp_path, "quokkas"))


LONG_TEXT = " ".join(f"Line {n} of a long text about hens." for n in range(200))


@pytest.mark.parametrize("is_last_call", [False, True])
def test_an_item_keeps_facts_and_long_texts_as_a_live_send_does(is_last_call: bool, tmp_path: Path) -> None:
    calls = (
        ("remember_fact", {"fact": "Ann keeps seven hens."}),
        ("archival_memory_insert", {"content": LONG_TEXT}),
    )

    def answer(custom_id: str, body: Json) -> Outcome:
        # With `is_last_call` the item ends with the calls, since no more steps are allowed.
        return Outcome(text="I know it now.") if read_results(body) else Outcome(calls=calls)

    with serve_batches(tmp_path, answer) as world:
        [agent] = world.create_agents(1, tools=["remember_fact", "archival_memory_insert"])
        world.wait_for_end(
            world.create_batch([agent], "I keep hens.", **({"max_steps": 1} if is_last_call else {}))
        )
        query = world.world.query
        assert query("SELECT text FROM facts") == ["Ann keeps seven hens."]
        parts = query("SELECT text FROM passages ORDER BY seq")
        assert len(parts) > 1
        assert " ".join(parts).split() == LONG_TEXT.split()


@needs_bwrap
def test_forgetting_the_turn_of_an_item_takes_back_what_its_python_tool_wrote(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        said = [m for m in body["messages"] if m["role"] == "user"][-1]["content"]
        is_done = body["messages"][-1]["role"] == "tool"
        return Outcome(text="Ok.") if is_done else Outcome(calls=(("note", {"text": said}),))

    with serve_batches(tmp_path, answer, tools=ToolSettings(python=PYTHON)) as world:
        world.letta.tools.create(source_code=NOTE)
        [agent] = world.create_agents(1, tools=["note"])
        said = ("I keep hens.", "I adore quokkas.", "I row.")
        for each in said:
            assert world.wait_for_end(world.create_batch([agent], each))["counts"]["completed"] == 1
        assert world.read_block(agent).endswith("I keep hens.\nI adore quokkas.\nI row.")
        world.world.settle()
        messages = spoken(world.letta.agents.messages.list(agent, order="asc").items)
        [message] = [m for m in messages if read_text(m) == "I row."]
        world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        world.world.settle()
        assert world.read_block(agent).endswith("I keep hens.\nI adore quokkas.")
        [message] = [m for m in messages if read_text(m) == "I keep hens."]
        world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        world.world.settle()
        assert "hens" not in world.read_block(agent)


@needs_bwrap
def test_changes_of_a_python_tool_after_a_forgetting_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DefinedTools.run

    def answer(custom_id: str, body: Json) -> Outcome:
        return (
            Outcome(text="Ok.")
            if read_results(body)
            else Outcome(calls=(("note", {"text": "Adores quokkas."}),))
        )

    with serve_batches(tmp_path, answer, tools=ToolSettings(python=PYTHON)) as world:
        world.letta.tools.create(source_code=NOTE)
        [agent] = world.create_agents(1, tools=["note"])
        world.letta.agents.messages.create(agent, input="I adore quokkas.", override_model="up/m")
        [message, *_] = spoken(world.letta.agents.messages.list(agent, order="asc").items)

        async def run(*about: Any) -> ToolAnswer:
            found = await real(*about)
            await asyncio.to_thread(world.ask, "DELETE", f"/v1/agents/{agent}/messages/{message.id}")
            return found

        monkeypatch.setattr(DefinedTools, "run", run)
        batch = world.create_batch([agent], "And what do I adore?")
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert "forgotten" in world.list_items(batch)[0]["error"]
        assert "quokkas" not in world.read_block(agent)


@pytest.mark.parametrize("when", ["it comes", "it is written"])
@pytest.mark.parametrize(
    "outcome",
    [Outcome(text="You adore quokkas."), Outcome("errored", message="Not allowed: quokkas.")],
    ids=["a reply", "an error"],
)
def test_results_for_a_forgotten_memory_are_not_stored(
    tmp_path: Path, outcome: Outcome, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path, lambda custom_id, body: outcome, held=True) as world:
        [agent] = world.create_agents(1)
        world.letta.agents.messages.create(agent, input="I adore quokkas.", override_model="up/m")
        messages = spoken(world.letta.agents.messages.list(agent).items)

        def forget() -> None:
            while messages:
                world.ask("DELETE", f"/v1/agents/{agent}/messages/{messages.pop().id}")

        def forgetting(method: Any) -> Any:
            async def call(*about: Any) -> Any:
                await asyncio.to_thread(forget)
                return await method(*about)

            return call

        batch = world.create_batch([agent], "And what do I adore?")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        if when == "it comes":
            forget()
        else:
            monkeypatch.setattr(
                batch_outcomes, "make_end_with_turn", forgetting(item_ending.make_end_with_turn)
            )
            monkeypatch.setattr(ItemOutcomes, "write", forgetting(ItemOutcomes.write))
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert "forgotten" in world.list_items(batch)[0]["error"]
        assert "quokkas" not in world.list_items(batch)[0]["error"]
        assert world.list_messages(agent) == []
        becomes(lambda: not find_files_with(tmp_path, "quokkas"))


@pytest.mark.both(what=["its conversation"])
@pytest.mark.parametrize("what", ["its conversation", "another message"])
def test_a_forgetting_takes_back_the_edits_of_an_item_that_runs(tmp_path: Path, what: str) -> None:
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        [agent] = world.create_agents(1)
        world.letta.agents.messages.create(agent, input="Hi", override_model="up/m")
        conversation = world.letta.conversations.create(agent_id=agent)
        batch = world.create_batch([agent], "I adore quokkas.", conversation_id=conversation.id)
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        world.letta.agents.blocks.update(
            "human", agent_id=agent, value=world.read_block(agent) + "\nShe rows."
        )
        assert "quokkas" in world.read_block(agent)
        if what == "its conversation":
            world.letta.conversations.delete(conversation.id)
        else:
            message = spoken(world.letta.agents.messages.list(agent, conversation_id="default").items)[0]
            assert world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")[0] == 200
        assert "quokkas" not in world.read_block(agent)
        assert world.read_block(agent).endswith("She rows.")
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["completed"] == 0
        assert "quokkas" not in world.read_block(agent)


def test_an_item_whose_conversation_is_gone_fails(tmp_path: Path) -> None:
    """Undoing an import deletes the conversations that become empty, and ends no run of them."""
    with serve_batches(tmp_path, held=True) as world:
        [agent] = world.create_agents(1)
        conversation = world.letta.conversations.create(agent_id=agent)
        batch = world.create_batch([agent], "I adore quokkas.", conversation_id=conversation.id)
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        delete = make_statement("a test's", "DELETE FROM conversations WHERE uid = ?")
        uid = conversation.id.removeprefix("conv-").replace("-", "")

        async def undo() -> int:
            return await world.world.store.database.write(lambda c: c.run(delete, (uid,)))

        assert world.world.gateway.call(undo()) == 1
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert "conversation" in world.list_items(batch)[0]["error"]
        assert world.list_messages(agent) == []


@pytest.mark.both(has_ended=[False], count=[2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("has_ended", [False, True])
def test_an_item_that_is_forgotten_while_its_part_is_composed_is_not_sent(
    has_ended: bool, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign, forgotten = BatchItems.make_assign_effect, list[int]()

    def assigned(stored: BatchItems, part: int, items: Any, at: float) -> Effect:
        async def write(connection: Connection) -> None:
            await assign(stored, part, items, at)(connection)
            if forgotten:
                return
            forgotten.append(items[0].agent_row)
            if has_ended:
                await end_run(
                    connection, items[0].agent_row, items[0].run_row, RunState.CANCELLED, "cancelled", at
                )
            else:
                await raise_epoch(connection, items[0].agent_row)

        return write

    loops, leave_out = list[object](), PartDraft.leave_out

    def left_out(draft: PartDraft, runs: Any) -> None:
        loops.append(asyncio._get_running_loop())
        leave_out(draft, runs)

    monkeypatch.setattr(BatchItems, "make_assign_effect", assigned)
    monkeypatch.setattr(PartDraft, "leave_out", left_out)
    with serve_batches(tmp_path) as world:
        counts = world.wait_for_end(world.create_batch(world.create_agents(count), "quokkas"))["counts"]
        assert counts["cancelled" if has_ended else "failed"] == 1
        assert loops == [None]  # the event loop does not wait for it: a part has up to 256 MB
        assert counts["completed"] == count - 1
        assert [len(each.requests) for each in world.openai.batches] == [1] * (count - 1)


def test_items_that_are_forgotten_while_their_part_is_rewritten_are_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first item is forgotten after the part is composed, the second while the first is being left out."""
    submit, leave_out, forgotten = PartSubmitter.submit, PartDraft.leave_out, list[int]()
    with serve_batches(tmp_path) as world:
        database = world.world.store.database

        async def submitted(submitter: PartSubmitter, part: Any, draft: PartDraft, provider: Any) -> bool:
            await forget(draft)
            return await submit(submitter, part, draft, provider)

        async def forget(draft: PartDraft) -> None:
            agent = draft.items[len(forgotten)].agent_row
            forgotten.append(agent)
            await database.write(lambda connection: raise_epoch(connection, agent))

        def left_out(draft: PartDraft, runs: Any) -> None:
            if len(forgotten) < 2:
                world.world.gateway.call(forget(draft))
            leave_out(draft, runs)

        monkeypatch.setattr(PartSubmitter, "submit", submitted)
        monkeypatch.setattr(PartDraft, "leave_out", left_out)
        counts = world.wait_for_end(world.create_batch(world.create_agents(3), "quokkas"))["counts"]
        assert (counts["failed"], counts["completed"]) == (2, 1)
        assert [len(each.requests) for each in world.openai.batches] == [1]


@pytest.mark.both
def test_finished_rounds_of_a_cancelled_batch_stay(tmp_path: Path) -> None:
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        agents = world.create_agents(2)
        batch = world.create_batch(agents, "I adore quokkas.")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        assert world.cancel_batch(batch)["status"] == "cancelled"
        world.wait_for(batch, lambda found: found["counts"]["cancelled"] == 2)
        assert world.list_items(batch)[0]["stop_reason"] == "cancelled"
        said = world.list_messages(agents[0])
        assert said[:2] == ["user_message: I adore quokkas.", "tool_call_message: core_memory_append"]
        # Forgetting the turn takes back its edit.
        message = spoken(world.letta.agents.messages.list(agents[0], order="asc").items)[0]
        assert world.ask("DELETE", f"/v1/agents/{agents[0]}/messages/{message.id}")[0] == 200
        assert "quokkas" not in world.read_block(agents[0])
        assert "quokkas" in world.read_block(agents[1])


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_batch_ends_with_its_job(
    is_cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator cancels the job of a running batch, or of a cancelled batch whose items have not all ended."""

    async def retry_nothing(*_: object) -> None: ...

    monkeypatch.setattr(Jobs, "retry", retry_nothing)  # the job, if tried again, would end those items
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        batch = world.create_batch(world.create_agents(2), "I adore quokkas.")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        # An attempt of the job that has not ended yet would see the end of the batch, and end the items itself.
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2 and world.wait_until_idle())
        if is_cancelled:
            world.cancel_batch(batch)
            assert world.retrieve(batch)["counts"]["cancelled"] == 0
        gateway, store = world.world.gateway, world.world.store
        perform = make_operations(gateway.app.services.settings, store).perform
        (job,) = [job for job in gateway.call(perform("jobs-list", {})) if job["kind"] == "batch"]
        gateway.call(perform("jobs-cancel", {"job": job["id"]}))
        found = world.retrieve(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 2)


def test_a_batch_is_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIBatches, "max_requests", 2)
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(5)
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 5
        assert [len(each.requests) for each in world.openai.batches] == [2, 2, 1]


def test_more_than_a_page_of_agents_over_three_cycles(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        made = len(read_results(body))
        return Outcome(text="Done.") if made == 2 else Outcome(calls=(make_append_call(f"Note {made}."),))

    with serve_batches(tmp_path, answer) as world:
        agents = world.create_agents(60)
        batch = world.create_batch(agents)
        assert world.wait_for_end(batch)["counts"]["completed"] == 60
        assert [len(each.requests) for each in world.openai.batches] == [60, 60, 60]
        assert world.read_block(agents[-1]).endswith("Note 0.\nNote 1.")
        usage = [each["usage"]["total_tokens"] for each in world.list_items(batch)]
        assert usage == [45] * 60


@pytest.mark.sqlite
def test_the_command_line_shows_and_cancels(tmp_path: Path) -> None:
    with serve_batches(tmp_path, lambda *_: Outcome("errored", message="It is too rude.")) as world:
        batch = world.create_batch(agents := world.create_agents(2))
        world.wait_for_end(batch)
        assert world.ask("DELETE", f"/v1/agents/{agents[0]}")[0] == 200
    run = partial(command, where=tmp_path)
    listed = run("batches", "--db", "memory.db")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.split("\t")[:2] == [batch["id"], "completed"]
    assert "total 2 failed 2" in listed.stdout
    shown = run("batches", "show", batch["id"], "--db", "memory.db")
    assert [each["error"] for each in orjson.loads(shown.stdout)["items"]] == [
        "The agent was deleted.",
        "It is too rude.",
    ]
    # A batch that has ended cannot be cancelled.
    assert (
        run("batches", "cancel", "--yes", batch["id"], "--db", "memory.db").stdout.split("\t")[1]
        == "completed"
    )
    wrong = run("batches", "show", "job-1", "--db", "memory.db")
    assert wrong.returncode == 1
    assert "mnemogate batches" in wrong.stderr


def test_pages_of_items_and_messages(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(5)
        batch = world.create_batch(agents)
        world.wait_for_end(batch)
        first = world.ask("GET", f"{PATH}/{batch['id']}/items?limit=3")[1]
        rest = world.ask("GET", f"{PATH}/{batch['id']}/items?after={first[-1]['run_id']}")[1]
        assert [each["agent_id"] for each in (*first, *rest)] == agents
        found: list[Json] = []
        after = ""
        while page := world.ask("GET", f"{PATH}/{batch['id']}/messages?limit=3{after}")[1]["messages"]:
            found += page
            after = f"&after={page[-1]['id']}"
        assert [each["agent_id"] for each in found[::2]] == agents
        one = world.ask("GET", f"{PATH}/{batch['id']}/messages?agent_id={agents[3]}")[1]["messages"]
        assert [each["content"] for each in one] == ["Hi", "Hello."]


def test_a_page_does_not_start_over_when_its_agent_has_ended(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(2)
        batch = world.create_batch(agents)
        world.wait_for_end(batch)
        last = world.ask("GET", f"{PATH}/{batch['id']}/messages?limit=1")[1]["messages"][-1]
        world.ask("DELETE", f"/v1/agents/{agents[0]}")
        status, found = world.ask("GET", f"{PATH}/{batch['id']}/messages?after={last['id']}")
        assert status == 404, found
        assert last["id"] in found["detail"]


def test_a_key_that_is_refused_for_every_call_fails_the_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        refusal = world.openai.make_error(401, "Incorrect API key.")
        monkeypatch.setattr(world.openai, "find_key_error", lambda request: refusal)
        assert world.wait_for_end(world.create_batch(world.create_agents(1)))["counts"]["failed"] == 1


def test_the_log_has_the_progress_of_a_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mnemogate"), serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        world.wait_for_end(batch)
    said = [record.getMessage() for record in caplog.records if batch["id"] in record.getMessage()]
    assert any("0 of 2 items have ended" in line and "2 are running" in line for line in said)
    assert any("2 of 2 items have ended (2 completed" in line for line in said)


def test_an_internal_error_fails_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose = ItemReplayer.compose

    async def broken(self: ItemReplayer, item: Any) -> Any:
        if item.agent_uid == bad:
            raise RuntimeError("a secret")
        return await compose(self, item)

    monkeypatch.setattr(ItemReplayer, "compose", broken)
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(2)
        bad = agents[0].removeprefix("agent-").replace("-", "")
        batch = world.create_batch(agents)
        found = world.wait_for_end(batch)["counts"]
        assert (found["failed"], found["completed"]) == (1, 1)
        assert "secret" not in world.list_items(batch)[0]["error"]


def test_repeated_internal_errors_end_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: PartJournal, *about: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(PartJournal, "add", broken)
    monkeypatch.setattr(batch_jobs, "MAX_FAULTS", 2)
    with serve_batches(tmp_path) as world:
        batch = world.create_batch(world.create_agents(2))
        assert world.wait_for_end(batch)["counts"]["failed"] == 2


def test_an_agent_whose_model_is_nowhere_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Such an agent cannot be created, but one that was imported, or is older than the settings, may name such a model.
    monkeypatch.setattr(registry, "check_model", lambda settings, model: None)
    with serve_batches(tmp_path) as world:
        agents = [*world.create_agents(1), world.agent(model="nowhere/x", name="lost").id]
        batch = world.create_batch(agents)
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        assert "nowhere/x" in world.list_items(batch)[1]["error"]


@contextmanager
def serve_with_callback(tmp_path: Path) -> Iterator[tuple[BatchWorld, ToolServer, Json, Json]]:
    """Yields a gateway, the server that it called back, and the body and the reply of the batch, which has ended."""
    with serve_batches_and_tools(tmp_path) as (world, receiver):
        [agent] = world.create_agents(1)
        body = {"requests": [{"agent_id": agent, "input": "Hi"}], "callback_url": f"{receiver.url}/done"}
        status, batch = world.ask("POST", PATH, body)
        assert status == 200, batch
        world.wait_for_no_job()
        # From here on only the end of the batch wakes the workers.
        becomes(lambda: receiver.bodies)
        yield world, receiver, body, batch


def test_a_callback_reports_the_end_of_a_batch(tmp_path: Path) -> None:
    with serve_with_callback(tmp_path) as (world, receiver, body, batch):
        report = orjson.loads(receiver.bodies[0])
        assert (report["job_id"], report["status"]) == (batch["id"], "completed")
        assert (report["counts"]["total"], report["counts"]["completed"]) == (1, 1)
        assert "webhook-id" in receiver.heads[0].lower()
        elsewhere = {**body, "callback_url": "https://example.org/done"}
        assert world.ask("POST", PATH, elsewhere)[0] == 400


def test_a_callback_reports_a_batch_that_is_cancelled_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Batches.make_finish_effect

    def cancel_first(batches: Batches, id: int, state: BatchState, at: float) -> Effect:
        async def write(connection: Connection) -> None:
            await finish(batches, id, BatchState.CANCELLED, at)(connection)
            await finish(batches, id, state, at)(connection)

        return write

    monkeypatch.setattr(Batches, "make_finish_effect", cancel_first)
    with serve_with_callback(tmp_path) as (world, receiver, _, batch):
        assert (world.retrieve(batch)["status"], orjson.loads(receiver.bodies[0])["status"]) == (
            "cancelled",
        ) * 2


def test_webhooks_are_called_once(tmp_path: Path) -> None:
    with serve_batches_and_tools(tmp_path, answer_by_buying) as (world, shop):
        agents = world.create_buyers(2, shop)
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 2
        assert len(shop.bodies) == 2
        assert world.list_messages(agents[0])[-1] == "assistant_message: It said ok."


def test_an_item_asks_another_agent(tmp_path: Path) -> None:
    tool = "send_message_to_agent_and_wait_for_reply"

    def answer(custom_id: str, body: Json) -> Outcome:
        if read_results(body):
            return Outcome(text=f"It said: {read_results(body)[0]}")
        return Outcome(calls=((tool, {"other_agent_id": other, "message": "Are you there?"}),))

    with serve_batches(tmp_path, answer) as world:
        other = world.agent(model="up/m", name="other").id
        [agent] = world.create_agents(1, tools=[tool])
        assert world.wait_for_end(world.create_batch([agent]))["counts"]["completed"] == 1
        assert "Ok." in world.list_messages(agent)[-1]
        assert any("Are you there?" in each for each in world.list_messages(other))
