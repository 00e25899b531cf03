"""Batches that are interrupted: by an error in the middle of a step, or by a provider that has lost a batch."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from adapters.batch import local
from adapters.batch.local import LocalBatches
from gateway.agents.batches import batch_jobs, batch_requests, batch_service, item_ending, parts
from gateway.agents.batches import outcomes as batch_outcomes
from gateway.agents.batches import results as batch_results
from gateway.agents.batches.item_ending import EndedTurn
from gateway.agents.batches.items import ItemReplayer
from gateway.agents.batches.outcomes import ItemOutcomes
from gateway.agents.batches.part_draft import PartDraft
from gateway.run.admin.work.job_operations import cancel_job
from gateway.run.background import tasks
from gateway.run.memory.keeper import MemoryKeeper
from gateway.settings import BatchSettings
from storage.batch_records import BatchItem, ItemEnd
from storage.errors import StatementFailed, StoreUnavailable, WriteConflict
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import RunState
from storage.sql.agents_api.batch_items import BatchItems
from storage.sql.agents_api.batches import Batches
from storage.sql.jobs import Jobs
from tests.agents.batches.batch_world import (
    END_STATUSES,
    MODELS,
    PATH,
    POLL,
    USAGE,
    Json,
    answer_by_buying,
    make_append_call,
    read_question,
    read_results,
    serve_batches,
    serve_batches_and_tools,
)
from tests.doubles.batches import BatchServer, Outcome
from tests.doubles.upstream import Call, Gate, Reply, UpstreamRequest, call_tools, raw, say
from tests.patience import becomes, comes


class FailingMethod:
    """Counts the calls of a method of the store, and has one of them or all fail."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        failing_call: int | None = None,
        owner: type = Batches,
    ) -> None:
        """Replaces the method.

        name: the name of the method.
        failing_call: the number of the call that fails, from 1; 0: no call fails; None: each call fails.
        owner: the class that has the method.
        """
        real, self.calls = getattr(owner, name), 0

        async def broken(store: Any, *about: Any, **named: Any) -> Any:
            self.calls += 1
            if failing_call in (self.calls, None):
                raise StoreUnavailable("the disk is full")
            return await real(store, *about, **named)

        monkeypatch.setattr(owner, name, broken)


def answer_by_noting(custom_id: str, body: Json) -> Outcome:
    return Outcome(text="Done.") if read_results(body) else Outcome(calls=(make_append_call("Noted."),))


@pytest.mark.both
def test_items_that_a_failed_cancel_has_left_are_cancelled_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(3))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        with monkeypatch.context() as meanwhile:
            # The batch's job may see that it is cancelled before the request has cancelled the items.
            FailingMethod(meanwhile, "end", owner=BatchItems)
            assert world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 503
        found = world.wait_for(
            batch, lambda found: not found["counts"]["waiting"] + found["counts"]["running"]
        )
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)


def test_a_batch_whose_job_could_not_be_cancelled_ends_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(3))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        [job] = world.world.query("SELECT id FROM jobs WHERE kind = 'batch'")
        gateway, store = world.world.gateway, world.world.store
        with monkeypatch.context() as meanwhile:
            FailingMethod(meanwhile, "end", owner=BatchItems)
            with pytest.raises(StoreUnavailable):
                gateway.call(cancel_job(store, job, world.world.clock()))
        world.wait_for_no_job()
        found = world.retrieve(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("cycle", [1, 2])
def test_a_batch_whose_creation_was_not_answered_is_cancelled_too(
    cycle: int, model: str, tmp_path: Path
) -> None:
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        server = world.find_server(model)
        server.drops_create_reply = cycle == 1
        batch = world.create_batch(world.create_agents(2, model))
        world.wait_for(batch, lambda _: len(server.batches) == 1)
        if cycle == 2:
            server.drops_create_reply = True
            server.finish()
            world.wait_for(batch, lambda _: len(server.batches) == 2)
        world.cancel_batch(batch)
        # Anthropic does not say which batch it is before that has ended.
        is_listed = ("GET", "/v1/messages/batches")
        world.wait_for(batch, lambda _: model == "open/m" or server.requests.count(is_listed) > 10)
        server.finish()
        world.wait_for_no_job()
        assert world.retrieve(batch)["counts"]["cancelled"] == 2
        assert len(server.batches) == cycle
        assert world.openai.listed_files == []
        assert model == "open/m" or {each.id for each in server.batches} == set(server.deleted)


def test_nothing_is_submitted_of_a_batch_that_was_cancelled_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, begun = Batches.mark_running, list[int]()

    async def cancelled(store: Batches, id: int) -> None:
        await running(store, id)
        begun.append(id)
        if len(begun) == 2:
            found = await store.get(None, batch["id"].removeprefix("job-"))
            await store.cancel(found, found.created)

    monkeypatch.setattr(Batches, "mark_running", cancelled)
    with serve_batches(tmp_path, answer_by_noting) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for_no_job()
        found = world.retrieve(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 2)
        assert len(world.openai.batches) == 1
        assert world.openai.listed_files == []


def test_a_batch_that_is_accepted_only_in_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_requests, "_PAGE", 1)
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(3)
        FailingMethod(monkeypatch, "add", 2, BatchItems)
        body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in agents]}
        assert world.ask("POST", PATH, body)[0] == 503
        [batch] = world.ask("GET", PATH)[1]
        assert (batch["status"], batch["counts"]["failed"]) == ("failed", 1)
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 3


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("often", [2, 8])
def test_results_that_are_gone_are_read_again_and_then_fail(
    often: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        stream, asked = server.stream_results, list[int]()

        def gone(lines: list[Any]) -> Response:
            asked.append(len(lines))
            return server.make_error(404, "No such File object.") if len(asked) <= often else stream(lines)

        monkeypatch.setattr(server, "stream_results", gone)
        batch = world.create_batch(world.create_agents(2, model))
        found = world.wait_for_end(batch)["counts"]
        assert (found["completed"], found["failed"]) == ((2, 0) if often == 2 else (0, 2))
        assert len(server.batches) == 1


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("garbage", [b"<html>\n", b'{"custom', b"null\n[]\n", b'{"custom_id": null}\n'])
def test_unreadable_results_are_not_read_again_and_again(garbage: bytes, model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        server.results_prefix = garbage
        agents = world.create_agents(3, model)
        batch = world.create_batch(agents)
        found = world.wait_for_end(batch)["counts"]
        is_glued = not garbage.endswith(b"\n")  # to the first result
        assert (found["completed"], found["failed"]) == (3 - is_glued, is_glued)
        assert {item["error"] for item in world.list_items(batch)} - {None} == (
            {"1 lines of the provider's results cannot be read"} if is_glued else set()
        )
        assert len(server.batches) == 1
        assert server.deleted


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_batch_is_searched_for_as_long_as_its_provider_is_busy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        unauthorised, looks = server.find_key_error, list[str]()

        def busy(request: Request) -> Response | None:
            if request.method == "GET" and request.url.path.endswith("batches") and len(looks) < 10:
                looks.append(request.url.path)
                return server.make_error(429, "Too many requests.")
            return unauthorised(request)

        monkeypatch.setattr(server, "find_key_error", busy)
        server.drops_create_reply = True
        assert (
            world.wait_for_end(world.create_batch(world.create_agents(2, model)))["counts"]["completed"] == 2
        )
        assert (len(looks), len(server.batches)) == (10, 1)


@pytest.mark.parametrize("times", [0, 1])  # of each in the results
def test_items_of_a_batch_that_is_cancelled_at_openai_are_cancelled(times: int, tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.cancel(world.openai.batches[0], Outcome("cancelled", times=times))
        found = world.wait_for_end(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("completed", 2)
        assert all("cancelled" in item["error"] for item in world.list_items(batch))


@pytest.mark.parametrize("times", [0, 1])
def test_a_batch_that_expires_at_openai_is_sent_again(times: int, tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        for made in range(1, 4):
            world.wait_for(batch, lambda _, made=made: len(world.openai.batches) == made)
            world.openai.cancel(world.openai.batches[-1], Outcome("expired", times=times))
        assert world.wait_for_end(batch)["counts"]["expired"] == 2
        assert len(world.openai.batches) == 3


@pytest.mark.both
def test_a_batch_whose_process_died_as_it_was_accepted_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where gateways share a database it might be another's, as long as it is young.
    monkeypatch.setattr(batch_service, "YOUNG_S", 60.0)
    with serve_batches(tmp_path) as world:
        world.world.clock.sleep(-3600.0)
        FailingMethod(monkeypatch, "start", 1)
        FailingMethod(monkeypatch, "fail", 1)
        body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in world.create_agents(2)]}
        assert world.ask("POST", PATH, body)[0] == 503
        [batch] = world.ask("GET", PATH)[1]
        assert batch["status"] == "created"
    world.world.clock.sleep(3600.0)  # the next process starts an hour later
    with serve_batches(tmp_path) as world:
        assert world.wait_for_end(batch)["counts"]["failed"] == 2


def test_a_half_accepted_batch_is_searched_for_until_the_database_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_service, "YOUNG_S", 60.0)
    monkeypatch.setattr(tasks, "AFTER_FAULT_S", 0.01)
    with serve_batches(tmp_path) as world:
        world.world.clock.sleep(-3600.0)
        with monkeypatch.context() as meanwhile:
            FailingMethod(meanwhile, "start", 1)
            FailingMethod(meanwhile, "fail", 1)
            body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in world.create_agents(2)]}
            assert world.ask("POST", PATH, body)[0] == 503
        [batch] = world.ask("GET", PATH)[1]
    world.world.clock.sleep(3600.0)
    FailingMethod(monkeypatch, "fail_half_accepted", 1)
    with serve_batches(tmp_path) as world:
        assert world.wait_for_end(batch)["counts"]["failed"] == 2


def test_a_part_is_not_over_before_its_last_item_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item whose conversation is busy ends after the others, unless the process stops before."""
    gate, began, waits = Gate(), Gate(), Gate()
    write, write_alone, failed = ItemOutcomes.write, ItemOutcomes._write_alone, list[int]()

    def script(request: UpstreamRequest) -> Reply:
        began.open()
        return say("Slow.", hold_before_headers=gate)

    async def broken(outcomes: ItemOutcomes, writes: Any) -> None:
        if not failed and any(isinstance(each, ItemEnd) for each in writes):
            failed.append(len(writes))
            raise StoreUnavailable("the database is away")
        await write(outcomes, writes)

    async def alone(outcomes: ItemOutcomes, work: Any) -> None:
        waits.open()
        await write_alone(outcomes, work)

    monkeypatch.setattr(ItemOutcomes, "write", broken)
    monkeypatch.setattr(ItemOutcomes, "_write_alone", alone)

    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        world.upstream.script = script
        [agent] = world.create_agents(1, "up/m")
        batch = world.create_batch([agent], "Note it.", override_model="open/m")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.create_refusals = [(400, "Not now.")]
        world.openai.finish()
        world.wait_for(batch, lambda _: not world.openai.create_refusals and world.wait_until_idle())
        rule = {"tool_rules": [{"type": "exit_loop", "tool_name": "core_memory_append"}]}
        assert world.ask("PATCH", f"/v1/agents/{agent}", rule)[0] == 200
        live = world.make_client()
        thread = threading.Thread(target=lambda: live.agents.messages.create(agent, input="Live"))
        thread.start()
        began.wait_sync()
        world.pass_poll_interval()
        waits.wait_sync()
        gate.open()
        thread.join()
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert failed


@pytest.mark.parametrize("model", MODELS[:2])
def test_replies_of_a_provider_to_a_batch_that_is_cancelled_count(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        server = world.find_server(model)
        batch = world.create_batch(world.create_agents(2, model))
        world.wait_for(batch, lambda _: len(server.batches) == 1 and world.wait_until_idle())
        server.finish()
        world.cancel_batch(batch)
        world.wait_for_no_job()
        assert world.retrieve(batch)["counts"]["cancelled"] == 2
        assert world.count_tokens() == 30
        assert world.list_messages(world.list_items(batch)[0]["agent_id"]) == []


@pytest.mark.parametrize("model", MODELS[:2])
def test_replies_to_the_second_round_of_a_cancelled_batch_count(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        server = world.find_server(model)
        batch = world.create_batch(world.create_agents(2, model))
        for parts, tokens in ((1, 0), (2, 30)):
            world.wait_for(
                batch, lambda _, parts=parts: len(server.batches) == parts and world.wait_until_idle()
            )
            assert world.count_tokens() == tokens
            server.finish()
        world.cancel_batch(batch)
        world.wait_for_no_job()
        assert world.retrieve(batch)["counts"]["cancelled"] == 2
        assert world.count_tokens() == 60


def test_a_batch_that_fails_is_cancelled_at_its_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(batch_jobs, "MAX_FAULTS", 2)
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        monkeypatch.setattr(batch_jobs._Attempt, "_read_results", broken)
        world.wait_for_no_job()
        assert world.retrieve(batch)["counts"]["failed"] == 2
        assert world.openai.batches[0].status == "cancelled"
        assert world.openai.listed_files == []


def test_calls_whose_results_could_not_be_written_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = ItemOutcomes.write, list[int]()

    async def write(outcomes: ItemOutcomes, writes: Any) -> None:
        if not failed:
            failed.append(len(writes))
            raise StoreUnavailable("the database is away")
        await real(outcomes, writes)

    monkeypatch.setattr(ItemOutcomes, "write", write)
    with serve_batches(tmp_path) as world:
        assert (
            world.wait_for_end(world.create_batch(world.create_agents(3, "up/m")))["counts"]["completed"] == 3
        )
        assert failed


def test_a_reply_whose_calls_were_begun_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the gateway has asked the model itself, the reply cannot be read again, and another reply might differ."""
    real, failed, bought = ItemOutcomes.write, list[int](), ["a fern", "a rose"]

    async def write(outcomes: ItemOutcomes, writes: Any) -> None:
        if writes and not failed:
            failed.append(len(writes))
            raise StoreUnavailable("the database is away")
        await real(outcomes, writes)

    def script(request: UpstreamRequest) -> Reply:
        if read_results({"messages": request.messages}):
            return say("Done.")
        return call_tools(Call("buy", {"what": bought.pop(0)}, id="call_0"))

    monkeypatch.setattr(ItemOutcomes, "write", write)
    with serve_batches_and_tools(tmp_path) as (world, shop):
        agents = world.create_buyers(1, shop, "up/m")
        world.upstream.script = script
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 1
        assert [read_results({"messages": each.messages}) for each in world.upstream.chats] == [[], ["ok"]]
    assert [orjson.loads(body)["arguments"]["what"] for body in shop.bodies] == ["a fern"]


def test_an_item_that_always_meets_another_writer_keeps_its_rounds_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ItemOutcomes.write

    async def write(outcomes: ItemOutcomes, writes: Any) -> None:
        if any(isinstance(each, ItemEnd) and each.state is RunState.COMPLETED for each in writes):
            raise WriteConflict("another writer was faster")
        await real(outcomes, writes)

    monkeypatch.setattr(ItemOutcomes, "write", write)
    with serve_batches(tmp_path, answer_by_noting) as world:
        batch = world.create_batch(world.create_agents(1))
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        [item] = world.list_items(batch)
        assert "change too fast" in item["error"]
        assert world.list_messages(item["agent_id"])[1] == "tool_call_message: core_memory_append"
        assert world.count_tokens() == 30


@pytest.mark.both
def test_a_conversation_that_is_deleted_as_its_item_ends_repeats_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = item_ending.make_end_with_turn

    async def make_end_with_turn(keeper: MemoryKeeper, ended_turn: EndedTurn) -> ItemEnd:
        if ended_turn.turn.item.conversation_name != DEFAULT_CONVERSATION:
            await asyncio.to_thread(world.letta.conversations.delete, conversation)
        return await real(keeper, ended_turn)

    monkeypatch.setattr(batch_outcomes, "make_end_with_turn", make_end_with_turn)
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(2, "up/m")
        conversation = world.letta.conversations.create(agent_id=agents[0]).id
        requests = [{"agent_id": agent, "messages": [{"role": "user", "content": "Hi"}]} for agent in agents]
        requests[0]["conversation_id"] = conversation
        status, batch = world.ask("POST", PATH, {"requests": requests})
        assert status == 200, batch
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        # The gateway has asked the model itself, and a reply that it lost would be asked for again.
        assert len(world.upstream.chats) == 2


def completion(json: bytes, **message: Any) -> Reply:
    """Returns a reply in which this JSON, which no library writes, replaces each text "JSON" of the message."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    body = orjson.dumps({"choices": [choice], "usage": USAGE}).replace(b'"JSON"', json)
    return raw(body, content_type="application/json")


def test_a_lone_surrogate_is_replaced_as_in_a_live_reply(tmp_path: Path) -> None:
    """Programs that cut texts write half of a character as an escape, which parsers of JSON refuse."""
    name, arguments = make_append_call("Keeps hens.")
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    calls = [{"id": "call_0", "type": "function", "function": function}]

    def script(request: UpstreamRequest) -> Reply:
        is_done = read_results({"messages": request.messages})
        return completion(rb'"It is \ud83d"', content="JSON", tool_calls=[] if is_done else calls)

    with serve_batches(tmp_path) as world:
        world.upstream.script = script
        batch = world.create_batch(world.create_agents(1, "up/m"))
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        [item] = world.list_items(batch)
        assert world.list_messages(item["agent_id"])[-1] == "assistant_message: It is \ufffd It is \ufffd"
        assert item["usage"]["total_tokens"] == 30
        assert world.count_tokens() == 30


def test_a_reply_that_is_nested_too_deeply_ends_its_item_alone(tmp_path: Path) -> None:
    def script(request: UpstreamRequest) -> Reply:
        is_deep = read_question({"messages": request.messages}) == "Deep"
        return completion(b"[" * 300 + b"]" * 300 if is_deep else b"[]", content="Hello.", more="JSON")

    with serve_batches(tmp_path) as world:
        world.upstream.script = script
        batch = world.create_batch(world.create_agents(2, "up/m"), "Deep", "Hi")
        counts = world.wait_for_end(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 1)
        assert (
            world.list_items(batch)[0]["error"]
            == "The reply cannot be read, or a filter of the upstream cut it off."
        )


def test_no_item_goes_on_during_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt knows only the calls and answers that were recorded before it began."""
    real, taken, gate = ItemReplayer.feed_reply, list[str](), Gate()

    async def take(replayer: ItemReplayer, item: BatchItem, body: bytes) -> Any:
        taken.append(item.agent_uid)
        if len(taken) == 2:
            await comes(lambda: shop.bodies)
            # The first item's call goes on after this attempt has ended.
            asyncio.get_running_loop().call_later(0.2, gate.open)
            raise StoreUnavailable("the database is away")
        return await real(replayer, item, body)

    monkeypatch.setattr(ItemReplayer, "feed_reply", take)
    with serve_batches_and_tools(tmp_path, answer_by_buying) as (world, shop):
        shop.gate = gate
        agents = world.create_buyers(2, shop)
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 2
        assert [world.list_messages(agent)[-1] for agent in agents] == ["assistant_message: It said ok."] * 2
    assert len(shop.bodies) == 2


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_busy_provider_is_not_asked_before_its_retry_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        server, clock = world.find_server(model), world.world.clock
        refused, asked = server.make_error, list[float]()

        def busy(status: int, words: str) -> Response:
            asked.append(clock.now)
            reply = refused(status, words)
            reply.headers["retry-after"] = "3600"
            return reply

        monkeypatch.setattr(server, "make_error", busy)
        server.create_refusals = [(429, "Too much is enqueued.")]
        batch = world.create_batch(world.create_agents(2, model))
        world.wait_for(batch, lambda _: len(asked) == 1)
        clock.sleep(3500.0)
        world.wait_for_end(world.create_batch(world.create_agents(1, "up/m")))
        assert world.retrieve(batch)["counts"]["running"] == 2
        clock.sleep(3600.0)
        world.wait_for_end(world.create_batch(world.create_agents(1, "up/m")))
        assert world.wait_for_end(batch)["counts"]["completed"] == 2


def test_the_files_of_refused_batches_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_batches(tmp_path) as world:
        make, world.openai.failure_message = world.openai.add_batch, "The file is malformed."

        def make_second(*about: Any, **more: Any) -> Any:
            world.openai.failure_message = None if world.openai.batches else world.openai.failure_message
            return make(*about, **more)

        monkeypatch.setattr(world.openai, "add_batch", make_second)
        world.openai.create_refusals = [(429, "Too much is enqueued.")] * 2
        assert world.wait_for_end(world.create_batch(world.create_agents(2)))["counts"]["completed"] == 2
        # Two that were refused, one that failed as a whole, and the one that was answered.
        assert len(world.openai.files) == 4
        assert set(world.openai.files) <= set(world.openai.deleted)


def test_the_file_of_a_batch_that_could_not_be_created_is_deleted(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.create_refusals = [(503, "Busy.")] * 3
        assert world.wait_for_end(world.create_batch(world.create_agents(2)))["counts"]["completed"] == 2
        assert len(world.openai.files) == 4
        world.wait_for_no_job()
        assert world.openai.listed_files == []


def test_the_files_of_a_batch_that_vanishes_are_deleted(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.batches.clear()
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["completed"] == 2
        world.wait_for_no_job()
        assert len(world.openai.files) == 2
        assert world.openai.listed_files == []


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_failed_deletion_is_tried_again(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        server.delete_refusals = [(503, "Busy.")] * 3
        batch = world.create_batch(world.create_agents(2, model))
        # The batch does not wait for that.
        assert world.wait_for_end(batch)["counts"]["completed"] == 2
        world.wait_for_no_job()
        kept = (
            {server.batches[0].id}
            if model != "open/m"
            else {*world.openai.files, f"file-out-{world.openai.batches[0].id}"}
        )
        assert kept <= set(server.deleted)


@pytest.mark.parametrize("model", MODELS[:2])
def test_results_that_break_off_after_the_last_one_are_deleted(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        stream = server.stream_results

        def cut_last(lines: list[Any]) -> Response:
            if lines:
                server.results_cut_at = sum(len(orjson.dumps(line)) + 1 for line in lines)
                monkeypatch.setattr(server, "stream_results", stream)
            return stream(lines)

        monkeypatch.setattr(server, "stream_results", cut_last)
        assert (
            world.wait_for_end(world.create_batch(world.create_agents(2, model)))["counts"]["completed"] == 2
        )
        world.wait_for_no_job()
        assert server.results_cut_at is None
        assert server.deleted


def test_a_deletion_is_given_up_after_eight_tries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mnemogate")
    with serve_batches(tmp_path) as world:
        world.openai.delete_refusals = [(503, "Busy.")] * 100
        assert world.wait_for_end(world.create_batch(world.create_agents(2)))["counts"]["completed"] == 2
        world.wait_for_no_job()
        assert len(world.openai.delete_refusals) == 92
    assert f"could not delete what it has of {world.openai.batches[0].id}" in caplog.text
    # The attempts that only delete do not log the end again.
    assert caplog.text.count("2 of 2 items have ended") == 1


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_batch_goes_on_when_its_revoked_key_works_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path, held=True) as world:
        server, clock = world.find_server(model), world.world.clock
        batch = world.create_batch(world.create_agents(2, model))
        world.wait_for(batch, lambda _: len(server.batches) == 1)
        server.finish()
        with monkeypatch.context() as meanwhile:
            polls = revoke(server, meanwhile)
            for _ in range(20):
                clock.sleep(10_000.0)
                many = len(polls)
                world.wait_for(batch, lambda _, many=many: len(polls) > many)
        assert world.wait_for_end(batch)["counts"]["completed"] == 2


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_key_that_stays_revoked_fails_the_items(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_NO_ANSWER_S", 20.0)
    with serve_batches(tmp_path, held=True) as world:
        server = world.find_server(model)
        batch = world.create_batch([*world.create_agents(2, model), *world.create_agents(1, "up/m")])
        world.wait_for(batch, lambda _: len(server.batches) == 1)
        polls = revoke(server, monkeypatch)
        counts = world.wait_for_end(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (2, 1)
        assert world.list_items(batch)[0]["error"].endswith("errors, the last one: The key was revoked.")
        assert len(polls) > 20


def test_refused_creations_and_missing_results_are_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.create_refusals = [(429, "Too much is enqueued.")] * 7
        stream, asked = world.openai.stream_results, list[int]()

        def gone(lines: list[Any]) -> Response:
            asked.append(len(lines))
            return world.openai.make_error(404, "No such File object.") if len(asked) < 8 else stream(lines)

        monkeypatch.setattr(world.openai, "stream_results", gone)
        assert world.wait_for_end(world.create_batch(world.create_agents(2)))["counts"]["completed"] == 2


def revoke(server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has a server refuse all requests. Returns the list of their paths, which grows."""
    asked: list[str] = []

    def unauthorised(request: Request) -> Response:
        asked.append(request.url.path)
        return server.make_error(401, "The key was revoked.")

    monkeypatch.setattr(server, "find_key_error", unauthorised)
    return asked


def test_a_part_is_halved_until_the_queue_has_room(tmp_path: Path) -> None:
    """OpenAI limits the tokens that all batches of an account have in its queue."""
    with serve_batches(tmp_path) as world:
        world.openai.max_running_requests = 3
        agents = world.create_agents(10)
        batch = world.create_batch(agents)
        assert world.wait_for_end(batch)["counts"]["completed"] == 10
        sizes = [(len(each.requests), each.status) for each in world.openai.batches]
        assert sizes[:3] == [(10, "failed"), (5, "failed"), (2, "completed")]
        assert sum(size for size, status in sizes if status == "completed") == 10
        assert all(len(world.list_messages(agent)) == 2 for agent in agents)
        assert set(world.openai.files) <= set(world.openai.deleted)


def test_a_part_waits_longer_for_a_full_queue_than_after_other_refusals(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        words = "Enqueued token limit reached for m in organization org. Limit: 90,000 enqueued tokens."
        world.openai.create_refusals = [(400, words), (429, words)] * 10
        batch = world.create_batch(world.create_agents(3))
        # These are more refusals than a part survives that is refused for another reason.
        assert world.wait_for_end(batch)["counts"]["completed"] == 3
        assert (world.openai.create_refusals, world.openai.listed_files) == ([], [])


def test_an_item_larger_than_the_queue_fails_alone(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        agents = world.create_agents(4)
        world.openai.max_bytes = 20_000
        # The large item is sent first, before any reply has shown that the queue has room.
        batch = world.create_batch(agents, "word " * 10_000, "Hi", "Hi", "Hi")
        counts = world.wait_for_end(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 3)
        assert world.list_items(batch)[0]["error"].startswith(
            "The request alone is larger than its provider's queue"
        )
        assert "Limit: 5,000 enqueued tokens." in world.list_items(batch)[0]["error"]


def test_a_part_waits_while_other_batches_fill_the_queue(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        clock = world.world.clock
        world.openai.max_running_requests = 4
        first = world.create_batch(world.create_agents(4, "open/m"))
        world.wait_for(first, lambda _: len(world.openai.batches) == 1)
        second = world.create_batch(world.create_agents(4, "open/m", tags=["second"]))
        # Until a batch ends, smaller parts have no room either.
        world.wait_for(second, lambda _: len(world.openai.batches) == 6)
        assert [len(each.requests) for each in world.openai.batches] == [4, 4, 2, 1, 1, 1]
        clock.sleep(3600.0)
        world.openai.held = False
        world.openai.finish()
        assert world.wait_for_end(second)["counts"]["completed"] == 4
        assert world.wait_for_end(first)["counts"]["completed"] == 4


def test_items_fail_after_a_day_without_room_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_NO_ROOM_S", 10.0)
    with serve_batches(tmp_path) as world:
        world.openai.max_running_requests = 0
        batch = world.create_batch(
            [*world.create_agents(3), *world.create_agents(2, "claude/claude-opus-4-6")]
        )
        counts = world.wait_for_end(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (3, 2)
        assert {item["error"] for item in world.list_items(batch)} == {
            None,
            "Enqueued token limit reached. Please try again once some batches have been completed.",
        }
        assert [len(each.requests) for each in world.openai.batches[:3]] == [3, 1, 1]


def test_a_day_in_which_no_gateway_runs_is_no_day_without_room(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.max_running_requests = 0
        batch = world.create_batch(world.create_agents(3))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 3)
    with serve_batches(tmp_path) as world:
        world.world.clock.sleep(90_000.0)
        world.openai.max_running_requests = 0
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        world.openai.max_running_requests = 2
        assert world.wait_for_end(batch)["counts"]["completed"] == 3


@pytest.mark.parametrize("cause", ["busy", "full"])
def test_a_clock_that_is_put_back_by_days_delays_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    with serve_batches(tmp_path) as world:
        refused = world.openai.make_error

        def busy(status: int, words: str) -> Response:
            reply = refused(status, words)
            reply.headers["retry-after"] = "3600"
            return reply

        if cause == "busy":
            monkeypatch.setattr(world.openai, "make_error", busy)
            world.openai.create_refusals = [(429, "Too much is enqueued.")]
        else:
            world.openai.max_running_requests = 0
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(
            batch,
            lambda _: not world.openai.create_refusals if cause == "busy" else len(world.openai.batches) == 2,
        )
        world.wait_until_idle()
        world.world.clock.sleep(-30 * 86_400.0)
        world.openai.max_running_requests = None
        assert world.wait_for_end(batch)["counts"]["completed"] == 2


def test_a_model_that_has_room_does_not_wait_for_one_that_has_none(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        world.openai.max_running_requests = 3
        crowded, free = world.create_agents(4, "open/m"), world.create_agents(3, "open/free")
        batch = world.create_batch([*crowded, *free])
        # The 4 items of `m` have no room together. 2 of them have, and then the other 2 have none.
        world.wait_for(batch, lambda _: len(world.openai.batches) == 3)
        assert [(each.model, len(each.requests)) for each in world.openai.batches] == [
            ("m", 4),
            ("free", 3),
            ("m", 2),
        ]
        world.openai.end(world.openai.batches[1])
        world.wait_for(batch, lambda found: found["counts"]["completed"] == 3)
        assert [len(world.list_messages(agent)) for agent in free] == [2, 2, 2]
        world.openai.held = False
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["completed"] == 7


def test_time_while_a_part_runs_is_no_time_without_room(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        world.openai.max_running_requests = 4
        batch = world.create_batch(world.create_agents(8))
        # One of the two halves takes all the room.
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        for _ in range(20):
            world.world.clock.sleep(5_000.0)
            polls = world.openai.polls
            world.wait_for(batch, lambda _, polls=polls: world.openai.polls > polls + 1)
        assert len(world.openai.batches) == 2
        world.openai.held = False
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["completed"] == 8


def test_an_agent_whose_model_is_changed_while_its_part_waits_uses_the_new_model(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.max_running_requests = 0
        agents = world.create_agents(2)
        batch = world.create_batch(agents)
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        status, found = world.ask("PATCH", f"/v1/agents/{agents[0]}", {"model": "claude/claude-opus-4-6"})
        assert status == 200, found
        world.openai.max_running_requests = None
        assert world.wait_for_end(batch)["counts"]["completed"] == 2
        assert (len(world.anthropic.batches), world.openai.refusal_messages) == (1, [])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tool_rules": [{"type": "exit_loop", "tool_name": "core_memory_append"}]}, "was changed meanwhile"),
        ({"tool_ids": []}, "was changed meanwhile"),
        ({"tool_rules": [{"type": "run_first", "tool_name": "core_memory_replace"}]}, "called no tool"),
    ],
)
def test_an_agent_that_is_changed_between_two_cycles_fails_no_other(
    change: Json, error: str, tmp_path: Path
) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        made = len(read_results(body))
        return (
            Outcome(text="Done.")
            if made >= 2
            else Outcome(calls=(make_append_call(f"{read_question(body)} {made}."),))
        )

    with serve_batches(tmp_path, answer, held=True) as world:
        agents = world.create_agents(2, tools=["core_memory_append", "core_memory_replace"])
        batch = world.create_batch(agents, "Note it.")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.openai.finish()
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        status, found = world.ask("PATCH", f"/v1/agents/{agents[0]}", change)
        assert status == 200, found
        world.openai.held = False
        world.openai.finish()
        counts = world.wait_for_end(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 1)
        assert world.list_messages(agents[1])[-1] == "assistant_message: Done."
        assert error in world.list_items(batch)[0]["error"]
        # The finished round stays.
        assert "Note it. 0." in world.read_block(agents[0])
        assert world.list_messages(agents[0])[1] == "tool_call_message: core_memory_append"


def test_requests_that_the_gateway_sends_itself_stop_with_a_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MAX_RESULTS", 2)
    gate = Gate()
    with serve_batches(tmp_path) as world:
        world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        batch = world.create_batch(world.create_agents(10, "up/m"))
        world.upstream.request_gate(local.REQUESTS_AT_ONCE).wait_sync()
        world.cancel_batch(batch)
        gate.open()
        world.wait_for_no_job()
        assert world.retrieve(batch)["counts"]["cancelled"] == 10


@pytest.mark.both(is_lost=[True])
@pytest.mark.parametrize("is_lost", [False, True])
def test_requests_that_the_gateway_sends_itself_end_with_the_attempt(
    is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway that claims the job sends its own."""
    perform, fail, gate = LocalBatches._perform, Jobs.fail, Gate()
    under_way, when_failed = list[BinaryIO](), list[list[BinaryIO]]()

    async def noted(batches: LocalBatches, lines: BinaryIO, results: Any) -> None:
        under_way.append(lines)
        try:
            await perform(batches, lines, results)
        finally:
            under_way.remove(lines)

    async def failed(jobs: Jobs, *about: Any) -> Any:
        when_failed.append([*under_way])
        return await fail(jobs, *about)

    monkeypatch.setattr(LocalBatches, "_perform", noted)
    monkeypatch.setattr(Jobs, "fail", failed)
    with serve_batches(tmp_path) as world:
        world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        batch = world.create_batch(world.create_agents(6, "up/m"))
        world.upstream.request_gate(local.REQUESTS_AT_ONCE).wait_sync()
        if is_lost:
            gateway, store = world.world.gateway, world.world.store
            [job] = world.world.query("SELECT id FROM jobs WHERE kind = 'batch'")
            gateway.call(store.jobs.cancel(job))
        else:
            FailingMethod(monkeypatch, "is_over", 1)
        world.wait_for(batch, lambda _: bool(when_failed))
        assert when_failed[0] == []
        gate.open()
        assert is_lost or world.wait_for_end(batch)["counts"]["completed"] == 6


@pytest.mark.parametrize("is_refused", [False, True])
def test_polls_of_the_gateways_own_requests_poll_no_provider(
    is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalBatches, "poll_interval_s", 0.01)
    looks, gate = FailingMethod(monkeypatch, "get", 0), Gate()
    with serve_batches(tmp_path, held=True, batch=BatchSettings(poll_s=3600.0)) as world:
        world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        world.openai.create_refusals = [(429, "Not now.")] * (10 if is_refused else 0)
        batch = world.create_batch([*world.create_agents(1, "up/m"), *world.create_agents(1, "open/m")])
        before = looks.calls
        becomes(lambda: looks.calls >= before + 10)  # each by an attempt of the job
        assert world.openai.polls == 0
        assert len(world.openai.create_refusals) == (9 if is_refused else 0)
        gate.open()
        world.cancel_batch(batch)


def test_parts_are_read_once_while_the_gateway_makes_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's own requests are polled each second, and the items that became ready are the next part."""
    reads = FailingMethod(monkeypatch, "load_journal", 0)
    with serve_batches(tmp_path) as world:
        world.upstream.script = lambda request: (
            say("Done.") if read_results(request.json) else call_tools(Call(*make_append_call("Noted.")))
        )
        assert (
            world.wait_for_end(world.create_batch(world.create_agents(3, "up/m")))["counts"]["completed"] == 3
        )
    assert reads.calls == 1


@pytest.mark.parametrize(
    "error", [StoreUnavailable("the disk is full"), OSError(28, "No space left on device")]
)
def test_failures_of_the_database_or_the_disk_end_no_batch(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may fail often before they work again."""
    add, fail, tries, waits = PartDraft.add, Jobs.fail, list[int](), list[float]()

    def broken(draft: PartDraft, *about: Any) -> None:
        tries.append(len(tries))
        if len(tries) <= 10:
            raise error
        add(draft, *about)

    async def failed(jobs: Jobs, job: Any, reason: str, retry_in_s: float) -> Any:
        waits.append(retry_in_s)
        return await fail(jobs, job, reason, retry_in_s)

    monkeypatch.setattr(PartDraft, "add", broken)
    monkeypatch.setattr(Jobs, "fail", failed)
    monkeypatch.setattr(batch_jobs, "MAX_FAULTS", 2)
    with serve_batches(tmp_path) as world:
        assert world.wait_for_end(world.create_batch(world.create_agents(1)))["counts"]["completed"] == 1
    assert len(waits) == 10
    assert max(waits) <= POLL.poll_s


@pytest.mark.parametrize("often", [2, 3])
@pytest.mark.parametrize("error", [RuntimeError(), StatementFailed("near 'SELEC': syntax error")])
def test_internal_errors_in_a_row_end_a_batch(
    error: Exception, often: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = batch_jobs._Attempt._read_results, list[int]()

    async def broken(attempt: Any, *about: Any) -> None:
        reads.append(len(reads))
        if len(reads) % 3 < often:
            raise error
        await read(attempt, *about)

    monkeypatch.setattr(batch_jobs, "MAX_FAULTS", 3)
    monkeypatch.setattr(batch_jobs._Attempt, "_read_results", broken)
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(1))
        world.wait_for(batch, lambda found: len(reads) > 8 or found["status"] in END_STATUSES)
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["failed" if often == 3 else "completed"] == 1


def test_no_result_is_taken_once_a_batch_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result may have calls of tools that run for minutes."""
    take, taken = ItemReplayer.feed_reply, list[str]()

    async def cancelling(replayer: ItemReplayer, item: BatchItem, body: bytes) -> Any:
        taken.append(item.agent_uid)
        if len(taken) == 4:  # the first of the second round
            store = world.world.store
            found = await store.batches.get(None, batch["id"].removeprefix("job-"))
            await store.batches.cancel(found, found.created)
        return await take(replayer, item, body)

    monkeypatch.setattr(batch_results, "PAGE_ITEMS", 1)
    monkeypatch.setattr(ItemReplayer, "feed_reply", cancelling)
    with serve_batches(tmp_path, answer_by_noting, held=True) as world:
        batch = world.create_batch(world.create_agents(3))
        for made in (1, 2):
            world.wait_for(batch, lambda _, made=made: len(world.openai.batches) == made)
            world.openai.finish()
        world.wait_for_no_job()
        assert len(taken) == 4
        assert world.retrieve(batch)["counts"]["cancelled"] >= 2
