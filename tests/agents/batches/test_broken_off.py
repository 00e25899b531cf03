"""Batches that are broken off: by an error in the middle of a request, by a provider that has lost what it had."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
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
from gateway.agents.batches.item_ending import ItemEnding
from gateway.agents.batches.items import ItemTurns
from gateway.agents.batches.outcomes import ItemOutcomes
from gateway.agents.batches.part_draft import PartDraft
from gateway.run.admin.job_operations import cancel_job
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
from tests.agents.batches.test_batches import (
    ENDED,
    MODELS,
    PATH,
    POLL,
    USAGE,
    Json,
    append,
    asked,
    buying,
    results,
    scene,
    with_webhooks,
)
from tests.doubles.batches import BatchServer, Outcome
from tests.doubles.upstream import Call, Gate, Reply, UpstreamRequest, call_tools, raw, say
from tests.patience import PATIENCE_S


class Breaking:
    """A method of the store that breaks at its `at`-th call. None: at each; 0: at none, and they are counted."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, at: int | None = None, owner: type = Batches
    ) -> None:
        real, self.calls = getattr(owner, name), 0

        async def broken(store: Any, *about: Any, **named: Any) -> Any:
            self.calls += 1
            if at in (self.calls, None):
                raise StoreUnavailable("the disk is full")
            return await real(store, *about, **named)

        monkeypatch.setattr(owner, name, broken)


def noting(custom_id: str, body: Json) -> Outcome:
    return Outcome(text="Done.") if results(body) else Outcome(calls=(append("Noted."),))


@pytest.mark.both
def test_what_a_cancel_has_left_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(3))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        with monkeypatch.context() as meanwhile:
            # The batch's job may see that it is cancelled before the request has cancelled the items.
            Breaking(meanwhile, "end", owner=BatchItems)
            assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 503
        found = s.until(batch, lambda found: not found["counts"]["waiting"] + found["counts"]["running"])
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)


def test_a_batch_whose_job_could_not_be_cancelled_ends_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(3))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        [job] = s.world.world.query("SELECT id FROM jobs WHERE kind = 'batch'")
        gateway, store = s.world.world.gateway, s.world.world.store
        with monkeypatch.context() as meanwhile:
            Breaking(meanwhile, "end", owner=BatchItems)
            with pytest.raises(StoreUnavailable):
                gateway.call(cancel_job(store, job, s.world.world.clock()))
        s.until_rest()
        found = s.get(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("cycle", [1, 2])
def test_a_batch_whose_creation_was_not_answered_is_cancelled_too(
    cycle: int, model: str, tmp_path: Path
) -> None:
    with scene(tmp_path, noting, held=True) as s:
        server = s.openai if model == "open/m" else s.anthropic
        server.drops_create_reply = cycle == 1
        batch = s.post(s.agents(2, model))
        s.until(batch, lambda _: len(server.batches) == 1)
        if cycle == 2:
            server.drops_create_reply = True
            server.finish()
            s.until(batch, lambda _: len(server.batches) == 2)
        assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 200
        # Anthropic does not say which batch it is before that has ended.
        is_listed = ("GET", "/v1/messages/batches")
        s.until(batch, lambda _: model == "open/m" or server.requests.count(is_listed) > 10)
        server.finish()
        s.until_rest()
        assert s.get(batch)["counts"]["cancelled"] == 2
        assert len(server.batches) == cycle
        assert s.openai.listed_files == []
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
    with scene(tmp_path, noting) as s:
        batch = s.post(s.agents(2))
        s.until_rest()
        found = s.get(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 2)
        assert len(s.openai.batches) == 1
        assert s.openai.listed_files == []


def test_a_batch_that_is_not_accepted_whole_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_requests, "_PAGE", 1)
    with scene(tmp_path) as s:
        agents = s.agents(3)
        Breaking(monkeypatch, "add", 2, BatchItems)
        body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in agents]}
        assert s.world.ask("POST", PATH, body)[0] == 503
        [batch] = s.world.ask("GET", PATH)[1]
        assert (batch["status"], batch["counts"]["failed"]) == ("failed", 1)
        assert s.ended(s.post(agents))["counts"]["completed"] == 3


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("often", [2, 8])
def test_results_that_are_gone_are_read_again_and_then_fail(
    often: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        server = s.openai if model == "open/m" else s.anthropic
        stream, asked = server.stream_results, list[int]()

        def gone(lines: list[Any]) -> Response:
            asked.append(len(lines))
            return server.make_error(404, "No such File object.") if len(asked) <= often else stream(lines)

        monkeypatch.setattr(server, "stream_results", gone)
        batch = s.post(s.agents(2, model))
        found = s.ended(batch)["counts"]
        assert (found["completed"], found["failed"]) == ((2, 0) if often == 2 else (0, 2))
        assert len(server.batches) == 1


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("garbage", [b"<html>\n", b'{"custom', b"null\n[]\n", b'{"custom_id": null}\n'])
def test_results_that_cannot_be_read_are_not_read_for_ever(
    garbage: bytes, model: str, tmp_path: Path
) -> None:
    with scene(tmp_path) as s:
        server = s.openai if model == "open/m" else s.anthropic
        server.results_prefix = garbage
        agents = s.agents(3, model)
        batch = s.post(agents)
        found = s.ended(batch)["counts"]
        is_glued = not garbage.endswith(b"\n")  # to the first result
        assert (found["completed"], found["failed"]) == (3 - is_glued, is_glued)
        assert {item["error"] for item in s.items(batch)} - {None} == (
            {"1 lines of the provider's results cannot be read"} if is_glued else set()
        )
        assert len(server.batches) == 1
        assert server.deleted


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_batch_is_looked_for_as_long_as_its_provider_is_busy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        server = s.openai if model == "open/m" else s.anthropic
        unauthorised, looks = server.find_key_error, list[str]()

        def busy(request: Request) -> Response | None:
            if request.method == "GET" and request.url.path.endswith("batches") and len(looks) < 10:
                looks.append(request.url.path)
                return server.make_error(429, "Too many requests.")
            return unauthorised(request)

        monkeypatch.setattr(server, "find_key_error", busy)
        server.drops_create_reply = True
        assert s.ended(s.post(s.agents(2, model)))["counts"]["completed"] == 2
        assert (len(looks), len(server.batches)) == (10, 1)


@pytest.mark.parametrize("times", [0, 1])  # of each in the results
def test_a_batch_that_somebody_cancels_at_openai(times: int, tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(2))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.openai.cancel(s.openai.batches[0], Outcome("cancelled", times=times))
        found = s.ended(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("completed", 2)
        assert all("cancelled" in item["error"] for item in s.items(batch))


@pytest.mark.parametrize("times", [0, 1])
def test_a_batch_that_expires_at_openai_is_sent_again(times: int, tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(2))
        for made in range(1, 4):
            s.until(batch, lambda _, made=made: len(s.openai.batches) == made)
            s.openai.cancel(s.openai.batches[-1], Outcome("expired", times=times))
        assert s.ended(batch)["counts"]["expired"] == 2
        assert len(s.openai.batches) == 3


@pytest.mark.both
def test_a_batch_whose_process_died_as_it_was_accepted_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where gateways share a database it might be another's, as long as it is young.
    monkeypatch.setattr(batch_service, "YOUNG_S", 60.0)
    with scene(tmp_path) as s:
        s.world.world.clock.sleep(-3600.0)
        Breaking(monkeypatch, "start", 1)
        Breaking(monkeypatch, "fail", 1)
        body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in s.agents(2)]}
        assert s.world.ask("POST", PATH, body)[0] == 503
        [batch] = s.world.ask("GET", PATH)[1]
        assert batch["status"] == "created"
    s.world.world.clock.sleep(3600.0)  # the next process starts an hour later
    with scene(tmp_path) as s:
        assert s.ended(batch)["counts"]["failed"] == 2


def test_one_whose_process_died_is_looked_for_until_the_database_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_service, "YOUNG_S", 60.0)
    monkeypatch.setattr(tasks, "AFTER_FAULT_S", 0.01)
    with scene(tmp_path) as s:
        s.world.world.clock.sleep(-3600.0)
        with monkeypatch.context() as meanwhile:
            Breaking(meanwhile, "start", 1)
            Breaking(meanwhile, "fail", 1)
            body = {"requests": [{"agent_id": agent, "input": "Hi"} for agent in s.agents(2)]}
            assert s.world.ask("POST", PATH, body)[0] == 503
        [batch] = s.world.ask("GET", PATH)[1]
    s.world.world.clock.sleep(3600.0)
    Breaking(monkeypatch, "fail_half_accepted", 1)
    with scene(tmp_path) as s:
        assert s.ended(batch)["counts"]["failed"] == 2


def test_a_part_is_not_over_before_its_last_item_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose conversation is busy ends later, if its process lives as long."""
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

    with scene(tmp_path, noting, held=True) as s:
        s.world.upstream.script = script
        [agent] = s.agents(1, "up/m")
        batch = s.post([agent], "Note it.", override_model="open/m")
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.openai.create_refusals = [(400, "Not now.")]
        s.openai.finish()
        s.until(batch, lambda _: not s.openai.create_refusals and s.comes_to_rest())
        rule = {"tool_rules": [{"type": "exit_loop", "tool_name": "core_memory_append"}]}
        assert s.world.ask("PATCH", f"/v1/agents/{agent}", rule)[0] == 200
        live = s.world.make_client()
        thread = threading.Thread(target=lambda: live.agents.messages.create(agent, input="Live"))
        thread.start()
        began.wait_sync()
        s.wait()
        waits.wait_sync()
        gate.open()
        thread.join()
        assert s.ended(batch)["counts"]["failed"] == 1
        assert failed


@pytest.mark.parametrize("model", MODELS[:2])
def test_what_a_provider_has_done_of_a_batch_that_is_cancelled_counts(model: str, tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        server = s.openai if model == "open/m" else s.anthropic
        batch = s.post(s.agents(2, model))
        s.until(batch, lambda _: len(server.batches) == 1 and s.comes_to_rest())
        server.finish()
        assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 200
        s.until_rest()
        assert s.get(batch)["counts"]["cancelled"] == 2
        assert s.tokens() == 30
        assert s.said(s.items(batch)[0]["agent_id"]) == []


@pytest.mark.parametrize("model", MODELS[:2])
def test_what_a_provider_has_done_after_a_round_counts_as_well(model: str, tmp_path: Path) -> None:
    with scene(tmp_path, noting, held=True) as s:
        server = s.openai if model == "open/m" else s.anthropic
        batch = s.post(s.agents(2, model))
        for parts, tokens in ((1, 0), (2, 30)):
            s.until(batch, lambda _, parts=parts: len(server.batches) == parts and s.comes_to_rest())
            assert s.tokens() == tokens
            server.finish()
        assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 200
        s.until_rest()
        assert s.get(batch)["counts"]["cancelled"] == 2
        assert s.tokens() == 60


def test_what_a_provider_has_of_a_batch_that_is_given_up_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(batch_jobs, "MAX_FAULTS", 2)
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(2))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        monkeypatch.setattr(batch_jobs._Attempt, "_read_results", broken)
        s.until_rest()
        assert s.get(batch)["counts"]["failed"] == 2
        assert s.openai.batches[0].status == "cancelled"
        assert s.openai.listed_files == []


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
    with scene(tmp_path) as s:
        assert s.ended(s.post(s.agents(3, "up/m")))["counts"]["completed"] == 3
        assert failed


def test_a_reply_whose_calls_were_begun_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's own calls of the model have no results that could be read again, and another reply might differ."""
    real, failed, bought = ItemOutcomes.write, list[int](), ["a fern", "a rose"]

    async def write(outcomes: ItemOutcomes, writes: Any) -> None:
        if writes and not failed:
            failed.append(len(writes))
            raise StoreUnavailable("the database is away")
        await real(outcomes, writes)

    def script(request: UpstreamRequest) -> Reply:
        if results({"messages": request.messages}):
            return say("Done.")
        return call_tools(Call("buy", {"what": bought.pop(0)}, id="call_0"))

    monkeypatch.setattr(ItemOutcomes, "write", write)
    with with_webhooks(tmp_path) as (s, shop):
        agents = s.shoppers(1, shop, "up/m")
        s.world.upstream.script = script
        assert s.ended(s.post(agents))["counts"]["completed"] == 1
        assert [results({"messages": each.messages}) for each in s.world.upstream.chats] == [[], ["ok"]]
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
    with scene(tmp_path, noting) as s:
        batch = s.post(s.agents(1))
        assert s.ended(batch)["counts"]["failed"] == 1
        [item] = s.items(batch)
        assert "change too fast" in item["error"]
        assert s.said(item["agent_id"])[1] == "tool_call_message: core_memory_append"
        assert s.tokens() == 30


@pytest.mark.both
def test_a_conversation_that_is_deleted_as_its_item_ends_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = item_ending.compose_end

    async def compose_end(keeper: MemoryKeeper, ending: ItemEnding) -> ItemEnd:
        if ending.turn.item.conversation_name != DEFAULT_CONVERSATION:
            await asyncio.to_thread(s.world.letta.conversations.delete, conversation)
        return await real(keeper, ending)

    monkeypatch.setattr(batch_outcomes, "compose_end", compose_end)
    with scene(tmp_path) as s:
        agents = s.agents(2, "up/m")
        conversation = s.world.letta.conversations.create(agent_id=agents[0]).id
        requests = [{"agent_id": agent, "messages": [{"role": "user", "content": "Hi"}]} for agent in agents]
        requests[0]["conversation_id"] = conversation
        status, batch = s.world.ask("POST", PATH, {"requests": requests})
        assert status == 200, batch
        assert s.ended(batch)["counts"]["completed"] == 1
        # What the gateway asks itself has no results to be read again: it would be asked again.
        assert len(s.world.upstream.chats) == 2


def completion(json: bytes, **message: Any) -> Reply:
    """Returns a whole reply with this JSON, which no library writes, in place of each "JSON" in its message."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    body = orjson.dumps({"choices": [choice], "usage": USAGE}).replace(b'"JSON"', json)
    return raw(body, content_type="application/json")


def test_half_a_character_is_replaced_as_it_is_live(tmp_path: Path) -> None:
    """Programs that cut texts write it as an escape, and parsers of JSON refuse it."""
    name, arguments = append("Keeps hens.")
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    calls = [{"id": "call_0", "type": "function", "function": function}]

    def script(request: UpstreamRequest) -> Reply:
        is_done = results({"messages": request.messages})
        return completion(rb'"It is \ud83d"', content="JSON", tool_calls=[] if is_done else calls)

    with scene(tmp_path) as s:
        s.world.upstream.script = script
        batch = s.post(s.agents(1, "up/m"))
        assert s.ended(batch)["counts"]["completed"] == 1
        [item] = s.items(batch)
        assert s.said(item["agent_id"])[-1] == "assistant_message: It is \ufffd It is \ufffd"
        assert item["usage"]["total_tokens"] == 30
        assert s.tokens() == 30


def test_a_reply_that_is_nested_too_deeply_ends_its_item_alone(tmp_path: Path) -> None:
    def script(request: UpstreamRequest) -> Reply:
        is_deep = asked({"messages": request.messages}) == "Deep"
        return completion(b"[" * 300 + b"]" * 300 if is_deep else b"[]", content="Hello.", more="JSON")

    with scene(tmp_path) as s:
        s.world.upstream.script = script
        batch = s.post(s.agents(2, "up/m"), "Deep", "Hi")
        counts = s.ended(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 1)
        assert (
            s.items(batch)[0]["error"] == "The reply cannot be read, or a filter of the upstream cut it off."
        )


def test_no_item_goes_on_during_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows only of the calls that were begun before, and of the answers to those that were done."""
    real, taken, gate = ItemTurns.take_reply, list[str](), Gate()

    async def take(turns: ItemTurns, item: BatchItem, body: bytes) -> Any:
        taken.append(item.agent_uid)
        if len(taken) == 2:
            while not shop.bodies:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # The call of the first goes on when this has come to its end.
            asyncio.get_running_loop().call_later(0.2, gate.open)
            raise StoreUnavailable("the database is away")
        return await real(turns, item, body)

    monkeypatch.setattr(ItemTurns, "take_reply", take)
    with with_webhooks(tmp_path, buying) as (s, shop):
        shop.gate = gate
        agents = s.shoppers(2, shop)
        assert s.ended(s.post(agents))["counts"]["completed"] == 2
        assert [s.said(agent)[-1] for agent in agents] == ["assistant_message: It said ok."] * 2
    assert len(shop.bodies) == 2


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_provider_that_is_busy_is_left_alone(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        server, clock = (s.openai if model == "open/m" else s.anthropic), s.world.world.clock
        refused, asked = server.make_error, list[float]()

        def busy(status: int, words: str) -> Response:
            asked.append(clock.now)
            reply = refused(status, words)
            reply.headers["retry-after"] = "3600"
            return reply

        monkeypatch.setattr(server, "make_error", busy)
        server.create_refusals = [(429, "Too much is enqueued.")]
        batch = s.post(s.agents(2, model))
        s.until(batch, lambda _: len(asked) == 1)
        clock.sleep(3500.0)
        s.ended(s.post(s.agents(1, "up/m")))
        assert s.get(batch)["counts"]["running"] == 2
        clock.sleep(3600.0)
        s.ended(s.post(s.agents(1, "up/m")))
        assert s.ended(batch)["counts"]["completed"] == 2


def test_what_is_refused_is_not_left_with_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        make, s.openai.failure_message = s.openai.add_batch, "The file is malformed."

        def make_second(*about: Any, **more: Any) -> Any:
            s.openai.failure_message = None if s.openai.batches else s.openai.failure_message
            return make(*about, **more)

        monkeypatch.setattr(s.openai, "add_batch", make_second)
        s.openai.create_refusals = [(429, "Too much is enqueued.")] * 2
        assert s.ended(s.post(s.agents(2)))["counts"]["completed"] == 2
        # Two that were refused, one that failed as a whole, and the one that was answered.
        assert len(s.openai.files) == 4
        assert set(s.openai.files) <= set(s.openai.deleted)


def test_a_file_whose_batch_could_not_be_made_is_not_left_there(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.openai.create_refusals = [(503, "Busy.")] * 3
        assert s.ended(s.post(s.agents(2)))["counts"]["completed"] == 2
        assert len(s.openai.files) == 4
        s.until_rest()
        assert s.openai.listed_files == []


def test_a_batch_that_vanishes_leaves_no_file_behind(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(2))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.openai.batches.clear()
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.openai.finish()
        assert s.ended(batch)["counts"]["completed"] == 2
        s.until_rest()
        assert len(s.openai.files) == 2
        assert s.openai.listed_files == []


@pytest.mark.parametrize("model", MODELS[:2])
def test_what_could_not_be_deleted_is_deleted_later(model: str, tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        server = s.openai if model == "open/m" else s.anthropic
        server.delete_refusals = [(503, "Busy.")] * 3
        batch = s.post(s.agents(2, model))
        # The batch does not wait for that.
        assert s.ended(batch)["counts"]["completed"] == 2
        s.until_rest()
        kept = (
            {server.batches[0].id}
            if model != "open/m"
            else {*s.openai.files, f"file-out-{s.openai.batches[0].id}"}
        )
        assert kept <= set(server.deleted)


@pytest.mark.parametrize("model", MODELS[:2])
def test_results_that_break_off_after_the_last_one_are_deleted(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        server = s.openai if model == "open/m" else s.anthropic
        stream = server.stream_results

        def cut_last(lines: list[Any]) -> Response:
            if lines:
                server.results_cut_at = sum(len(orjson.dumps(line)) + 1 for line in lines)
                monkeypatch.setattr(server, "stream_results", stream)
            return stream(lines)

        monkeypatch.setattr(server, "stream_results", cut_last)
        assert s.ended(s.post(s.agents(2, model)))["counts"]["completed"] == 2
        s.until_rest()
        assert server.results_cut_at is None
        assert server.deleted


def test_what_is_never_deleted_is_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mnemogate")
    with scene(tmp_path) as s:
        s.openai.delete_refusals = [(503, "Busy.")] * 100
        assert s.ended(s.post(s.agents(2)))["counts"]["completed"] == 2
        s.until_rest()
        assert len(s.openai.delete_refusals) == 92
    assert f"could not delete what it has of {s.openai.batches[0].id}" in caplog.text
    # The attempts that only delete do not log the end again.
    assert caplog.text.count("2 of 2 items have ended") == 1


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_key_that_is_put_right_in_time_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path, held=True) as s:
        server, clock = (s.openai if model == "open/m" else s.anthropic), s.world.world.clock
        batch = s.post(s.agents(2, model))
        s.until(batch, lambda _: len(server.batches) == 1)
        server.finish()
        with monkeypatch.context() as meanwhile:
            polls = revoke(server, meanwhile)
            for _ in range(20):
                clock.sleep(10_000.0)
                many = len(polls)
                s.until(batch, lambda _, many=many: len(polls) > many)
        assert s.ended(batch)["counts"]["completed"] == 2


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_key_that_stays_revoked_fails_the_items(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_UNHEARD_S", 20.0)
    with scene(tmp_path, held=True) as s:
        server = s.openai if model == "open/m" else s.anthropic
        batch = s.post([*s.agents(2, model), *s.agents(1, "up/m")])
        s.until(batch, lambda _: len(server.batches) == 1)
        polls = revoke(server, monkeypatch)
        counts = s.ended(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (2, 1)
        assert s.items(batch)[0]["error"].endswith("errors, the last one: The key was revoked.")
        assert len(polls) > 20


def test_tries_of_one_thing_are_not_counted_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        s.openai.create_refusals = [(429, "Too much is enqueued.")] * 7
        stream, asked = s.openai.stream_results, list[int]()

        def gone(lines: list[Any]) -> Response:
            asked.append(len(lines))
            return s.openai.make_error(404, "No such File object.") if len(asked) < 8 else stream(lines)

        monkeypatch.setattr(s.openai, "stream_results", gone)
        assert s.ended(s.post(s.agents(2)))["counts"]["completed"] == 2


def revoke(server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has a server refuse all. Returns what it is asked."""
    asked: list[str] = []

    def unauthorised(request: Request) -> Response:
        asked.append(request.url.path)
        return server.make_error(401, "The key was revoked.")

    monkeypatch.setattr(server, "find_key_error", unauthorised)
    return asked


def test_a_queue_that_has_little_room_is_given_less(tmp_path: Path) -> None:
    """An account may have so many tokens waiting, of all its batches together."""
    with scene(tmp_path) as s:
        s.openai.max_running_requests = 3
        agents = s.agents(10)
        batch = s.post(agents)
        assert s.ended(batch)["counts"]["completed"] == 10
        sizes = [(len(each.requests), each.status) for each in s.openai.batches]
        assert sizes[:3] == [(10, "failed"), (5, "failed"), (2, "completed")]
        assert sum(size for size, status in sizes if status == "completed") == 10
        assert all(len(s.said(agent)) == 2 for agent in agents)
        assert set(s.openai.files) <= set(s.openai.deleted)


def test_a_queue_that_refuses_what_it_has_no_room_for_is_waited_for(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        words = "Enqueued token limit reached for m in organization org. Limit: 90,000 enqueued tokens."
        s.openai.create_refusals = [(400, words), (429, words)] * 10
        batch = s.post(s.agents(3))
        # Longer than a part is tried that is refused for another reason.
        assert s.ended(batch)["counts"]["completed"] == 3
        assert (s.openai.create_refusals, s.openai.listed_files) == ([], [])


def test_an_item_that_no_queue_takes_fails_alone(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        agents = s.agents(4)
        s.openai.max_bytes = 20_000
        # It is met first, before any answer has shown that there is room.
        batch = s.post(agents, "word " * 10_000, "Hi", "Hi", "Hi")
        counts = s.ended(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 3)
        assert s.items(batch)[0]["error"].startswith("The request alone is larger than its provider's queue")
        assert "Limit: 5,000 enqueued tokens." in s.items(batch)[0]["error"]


def test_a_queue_that_others_have_filled_is_waited_for(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        clock = s.world.world.clock
        s.openai.max_running_requests = 4
        first = s.post(s.agents(4, "open/m"))
        s.until(first, lambda _: len(s.openai.batches) == 1)
        second = s.post(s.agents(4, "open/m", tags=["second"]))
        # While nothing ends there is room for nobody, in smaller parts either.
        s.until(second, lambda _: len(s.openai.batches) == 6)
        assert [len(each.requests) for each in s.openai.batches] == [4, 4, 2, 1, 1, 1]
        clock.sleep(3600.0)
        s.openai.held = False
        s.openai.finish()
        assert s.ended(second)["counts"]["completed"] == 4
        assert s.ended(first)["counts"]["completed"] == 4


def test_a_queue_without_room_for_a_day_fails_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_NO_ROOM_S", 10.0)
    with scene(tmp_path) as s:
        s.openai.max_running_requests = 0
        batch = s.post([*s.agents(3), *s.agents(2, "claude/claude-opus-4-6")])
        counts = s.ended(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (3, 2)
        assert {item["error"] for item in s.items(batch)} == {
            None,
            "Enqueued token limit reached. Please try again once some batches have been completed.",
        }
        assert [len(each.requests) for each in s.openai.batches[:3]] == [3, 1, 1]


def test_a_day_without_requests_does_not_count(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.openai.max_running_requests = 0
        batch = s.post(s.agents(3))
        s.until(batch, lambda _: len(s.openai.batches) == 3)
    with scene(tmp_path) as s:
        s.world.world.clock.sleep(90_000.0)
        s.openai.max_running_requests = 0
        s.until(batch, lambda _: len(s.openai.batches) == 2)
        s.openai.max_running_requests = 2
        assert s.ended(batch)["counts"]["completed"] == 3


@pytest.mark.parametrize("cause", ["busy", "full"])
def test_a_clock_that_is_put_back_by_days_delays_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    with scene(tmp_path) as s:
        refused = s.openai.make_error

        def busy(status: int, words: str) -> Response:
            reply = refused(status, words)
            reply.headers["retry-after"] = "3600"
            return reply

        if cause == "busy":
            monkeypatch.setattr(s.openai, "make_error", busy)
            s.openai.create_refusals = [(429, "Too much is enqueued.")]
        else:
            s.openai.max_running_requests = 0
        batch = s.post(s.agents(2))
        s.until(
            batch, lambda _: not s.openai.create_refusals if cause == "busy" else len(s.openai.batches) == 2
        )
        s.comes_to_rest()
        s.world.world.clock.sleep(-30 * 86_400.0)
        s.openai.max_running_requests = None
        assert s.ended(batch)["counts"]["completed"] == 2


def test_a_model_that_has_room_does_not_wait_for_one_that_has_none(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        s.openai.max_running_requests = 3
        crowded, free = s.agents(4, "open/m"), s.agents(3, "open/free")
        batch = s.post([*crowded, *free])
        # 4 of the one, 3 of the other, and 2 of the 4, after which the other 2 have no room.
        s.until(batch, lambda _: len(s.openai.batches) == 3)
        assert [(each.model, len(each.requests)) for each in s.openai.batches] == [
            ("m", 4),
            ("free", 3),
            ("m", 2),
        ]
        s.openai.end(s.openai.batches[1])
        s.until(batch, lambda found: found["counts"]["completed"] == 3)
        assert [len(s.said(agent)) for agent in free] == [2, 2, 2]
        s.openai.held = False
        s.openai.finish()
        assert s.ended(batch)["counts"]["completed"] == 7


def test_a_part_that_takes_a_day_leaves_the_others_their_time(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        s.openai.max_running_requests = 4
        batch = s.post(s.agents(8))
        # One of the two halves has all the room there is.
        s.until(batch, lambda _: len(s.openai.batches) == 2)
        for _ in range(20):
            s.world.world.clock.sleep(5_000.0)
            polls = s.openai.polls
            s.until(batch, lambda _, polls=polls: s.openai.polls > polls + 1)
        assert len(s.openai.batches) == 2
        s.openai.held = False
        s.openai.finish()
        assert s.ended(batch)["counts"]["completed"] == 8


def test_an_agent_whose_model_is_changed_while_its_part_waits_goes_with_the_new_one(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.openai.max_running_requests = 0
        agents = s.agents(2)
        batch = s.post(agents)
        s.until(batch, lambda _: len(s.openai.batches) == 2)
        status, found = s.world.ask("PATCH", f"/v1/agents/{agents[0]}", {"model": "claude/claude-opus-4-6"})
        assert status == 200, found
        s.openai.max_running_requests = None
        assert s.ended(batch)["counts"]["completed"] == 2
        assert (len(s.anthropic.batches), s.openai.refusal_messages) == (1, [])


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
        made = len(results(body))
        return Outcome(text="Done.") if made >= 2 else Outcome(calls=(append(f"{asked(body)} {made}."),))

    with scene(tmp_path, answer, held=True) as s:
        agents = s.agents(2, tools=["core_memory_append", "core_memory_replace"])
        batch = s.post(agents, "Note it.")
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.openai.finish()
        s.until(batch, lambda _: len(s.openai.batches) == 2)
        status, found = s.world.ask("PATCH", f"/v1/agents/{agents[0]}", change)
        assert status == 200, found
        s.openai.held = False
        s.openai.finish()
        counts = s.ended(batch)["counts"]
        assert (counts["failed"], counts["completed"]) == (1, 1)
        assert s.said(agents[1])[-1] == "assistant_message: Done."
        assert error in s.items(batch)[0]["error"]
        # Rounds that were done stay.
        assert "Note it. 0." in s.block(agents[0])
        assert s.said(agents[0])[1] == "tool_call_message: core_memory_append"


def test_calls_of_the_gateways_own_stop_with_a_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MAX_RESULTS", 2)
    gate = Gate()
    with scene(tmp_path) as s:
        s.world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        batch = s.post(s.agents(10, "up/m"))
        s.world.upstream.request_gate(local.REQUESTS_AT_ONCE).wait_sync()
        assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 200
        gate.open()
        s.until_rest()
        assert s.get(batch)["counts"]["cancelled"] == 10


@pytest.mark.both(is_lost=[True])
@pytest.mark.parametrize("is_lost", [False, True])
def test_calls_of_the_gateways_own_end_with_the_attempt_that_made_them(
    is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway that claims the job makes them itself."""
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
    with scene(tmp_path) as s:
        s.world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        batch = s.post(s.agents(6, "up/m"))
        s.world.upstream.request_gate(local.REQUESTS_AT_ONCE).wait_sync()
        if is_lost:
            gateway, store = s.world.world.gateway, s.world.world.store
            [job] = s.world.world.query("SELECT id FROM jobs WHERE kind = 'batch'")
            gateway.call(store.jobs.cancel(job))
        else:
            Breaking(monkeypatch, "is_over", 1)
        s.until(batch, lambda _: bool(when_failed))
        assert when_failed[0] == []
        gate.open()
        assert is_lost or s.ended(batch)["counts"]["completed"] == 6


@pytest.mark.parametrize("is_refused", [False, True])
def test_calls_of_the_gateways_own_do_not_have_a_provider_asked_more_often(
    is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalBatches, "poll_interval_s", 0.01)
    looks, gate = Breaking(monkeypatch, "get", 0), Gate()
    with scene(tmp_path, held=True, batch=BatchSettings(poll_s=3600.0)) as s:
        s.world.upstream.script = lambda request: say("Hello.", hold_before_headers=gate)
        s.openai.create_refusals = [(429, "Not now.")] * (10 if is_refused else 0)
        batch = s.post([*s.agents(1, "up/m"), *s.agents(1, "open/m")])
        before = looks.calls
        deadline = time.monotonic() + PATIENCE_S
        while looks.calls < before + 10:  # each by an attempt of the job
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert s.openai.polls == 0
        assert len(s.openai.create_refusals) == (9 if is_refused else 0)
        gate.open()
        assert s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")[0] == 200


def test_parts_are_read_once_while_the_gateway_makes_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are polled each second, and a part is made of what became ready since."""
    reads = Breaking(monkeypatch, "load_journal", 0)
    with scene(tmp_path) as s:
        s.world.upstream.script = lambda request: (
            say("Done.") if results(request.json) else call_tools(Call(*append("Noted.")))
        )
        assert s.ended(s.post(s.agents(3, "up/m")))["counts"]["completed"] == 3
    assert reads.calls == 1


@pytest.mark.parametrize(
    "error", [StoreUnavailable("the disk is full"), OSError(28, "No space left on device")]
)
def test_what_may_pass_ends_no_batch(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database or a disk may fail often, before it works again."""
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
    with scene(tmp_path) as s:
        assert s.ended(s.post(s.agents(1)))["counts"]["completed"] == 1
    assert len(waits) == 10
    assert max(waits) <= POLL.poll_s


@pytest.mark.parametrize("often", [2, 3])
@pytest.mark.parametrize("error", [RuntimeError(), StatementFailed("near 'SELEC': syntax error")])
def test_faults_in_a_row_end_a_batch(
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
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(1))
        s.until(batch, lambda found: len(reads) > 8 or found["status"] in ENDED)
        s.openai.finish()
        assert s.ended(batch)["counts"]["failed" if often == 3 else "completed"] == 1


def test_no_result_is_taken_once_a_batch_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have tools that run for minutes."""
    take, taken = ItemTurns.take_reply, list[str]()

    async def cancelling(turns: ItemTurns, item: BatchItem, body: bytes) -> Any:
        taken.append(item.agent_uid)
        if len(taken) == 4:  # the first of the second round
            store = s.world.world.store
            found = await store.batches.get(None, batch["id"].removeprefix("job-"))
            await store.batches.cancel(found, found.created)
        return await take(turns, item, body)

    monkeypatch.setattr(batch_results, "PAGE_ITEMS", 1)
    monkeypatch.setattr(ItemTurns, "take_reply", cancelling)
    with scene(tmp_path, noting, held=True) as s:
        batch = s.post(s.agents(3))
        for made in (1, 2):
            s.until(batch, lambda _, made=made: len(s.openai.batches) == made)
            s.openai.finish()
        s.until_rest()
        assert len(taken) == 4
        assert s.get(batch)["counts"]["cancelled"] >= 2
