"""Responses in the background: accepted, polled, streamed, resumed, cancelled and deleted with OpenAI's SDK."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from msgspec.structs import replace

from gateway.core.conversation.wire_message import read_text
from gateway.dialects.responses.background import ShownResponses
from gateway.run.chat import Chat
from gateway.run.pending import PendingWrites
from gateway.run.responses import background_responses, response_maker
from gateway.run.turn import TurnRun
from storage.commands import CommittedTurn, TurnWrite
from storage.errors import StaleWrite, StoreUnavailable
from storage.job_records import Job, JobState
from storage.run_commands import ResponseEnd
from storage.run_records import Run, RunState
from storage.sql.statements import make_statement
from storage.sql.turns import Turns
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.page.memories import memory_of
from tests.gateway.responses.response_client import (
    WEATHER,
    begin,
    polled,
    respond,
    serve_memory,
    shown,
    texts_of,
)
from tests.gateway.sdk import World, agent
from tests.patience import PATIENCE_S, becomes
from tests.server import QUIET

Json = dict[str, Any]
FAILED_EVENTS = ["response.created", "response.in_progress", "error", "response.failed"]
TRIGGER: Json = {"type": "compaction_trigger"}


def told_events(stream: str) -> list[Json]:
    lines = stream.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def failing_once(monkeypatch: pytest.MonkeyPatch, of: Any, method: str) -> None:
    """Has a method of the store fail when it is called first."""
    call, errors = getattr(of, method), [StoreUnavailable("the disk is full")]

    async def fails_once(*arguments: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return await call(*arguments, **named)

    monkeypatch.setattr(of, method, fails_once)


def resumed(world: World, id: str, after: int) -> list[Any]:
    return list(world.sdk.responses.retrieve(id, stream=True, starting_after=after))


def test_nothing_is_left_of_a_turn_that_got_no_reply(world: World, upstream: StrictUpstream) -> None:
    """Without a search for cycles, which may be long in coming."""
    upstream.queue(say("Ok.", cut_before_headers=True))
    gc.collect()
    gc.disable()
    try:
        begun = begin(world, input="Hi", user="alice")
        assert polled(world, begun.id).status == "failed"
        becomes(lambda: not [each for each in gc.get_objects() if isinstance(each, TurnRun)])
    finally:
        gc.enable()


@pytest.mark.both(user=["alice"])
@pytest.mark.parametrize("user", [None, "alice"])
def test_a_response_is_made_while_nobody_waits(
    world: World, upstream: StrictUpstream, user: str | None
) -> None:
    gate = Gate()
    upstream.queue(say("A nice name.", hold_before_headers=gate))
    named: Json = {} if user is None else {"user": user}
    made = begin(
        world, input="My cat is called Miso.", instructions="Be brief.", metadata={"a": "b"}, **named
    )
    assert (made.status, made.background, made.output, made.error) == ("queued", True, [], None)
    becomes(lambda: world.sdk.responses.retrieve(made.id).status == "in_progress")
    gate.open()
    response = polled(world, made.id)
    assert (response.status, response.output_text, response.background) == ("completed", "A nice name.", True)
    assert (response.id, response.created_at, response.instructions, response.metadata) == (
        made.id,
        made.created_at,
        "Be brief.",
        {"a": "b"},
    )
    assert response.usage.total_tokens > 0
    second = respond(world, input="What is it called?", previous_response_id=made.id, **named)
    assert [read_text(m) for m in upstream.last.messages] == [
        "My cat is called Miso.",
        "A nice name.",
        "What is it called?",
    ]
    items = world.sdk.responses.input_items.list(second.id, order="asc")
    assert texts_of([item.model_dump() for item in items])[0] == "My cat is called Miso."


async def run_beside(pending: PendingWrites, gate: Gate) -> None:
    pending.add(gate.wait(timeout_s=None), "An answer to an agent")


def test_a_response_whose_turn_is_written_late_is_completed(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work, such as an agent's answer to another one, blocks none."""
    gate, other, commit = Gate(), Gate(), Turns.commit

    async def commit_late(turns: Turns, write: TurnWrite) -> CommittedTurn:
        await gate.wait()
        return await commit(turns, write)

    monkeypatch.setattr(Turns, "commit", lambda *given: asyncio.ensure_future(commit_late(*given)))
    with serve_memory(upstream, tmp_path, agent(), limits=replace(QUIET, commit_wait_s=0.001)) as world:
        response = begin(world, input="My cat is called Miso.", user="alice")
        turns = world.gateway.app.services.chat.turn_services
        world.gateway.call(run_beside(turns.pending, other))
        becomes(lambda: turns.metrics.not_durable.values[()])
        gate.open()
        assert (polled(world, response.id).status, polled(world, response.id).output_text) == (
            "completed",
            "Ok.",
        )
        other.open()


def test_a_response_whose_turn_is_not_written_in_the_end_is_made_again(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the database ends while it is waited for longer than a client would wait."""
    gate, commit, errors = Gate(), Turns.commit, [StoreUnavailable("the server has ended")]

    async def fail_late_once(turns: Turns, write: TurnWrite) -> CommittedTurn:
        if errors:
            await gate.wait()
            raise errors.pop()
        return await commit(turns, write)

    monkeypatch.setattr(Turns, "commit", lambda *given: asyncio.ensure_future(fail_late_once(*given)))
    upstream.queue(say("One."), say("Two."))
    with serve_memory(upstream, tmp_path, agent(), limits=replace(QUIET, commit_wait_s=0.001)) as world:
        response = begin(world, input="Count.", user="alice")
        becomes(lambda: world.gateway.app.services.chat.turn_services.metrics.not_durable.values[()])
        gate.open()
        world.retry_job()
        done = polled(world, response.id)
        assert (done.status, done.output_text) == ("completed", "Two.")
        assert world.query("SELECT count(*) FROM exchanges WHERE reply IS NOT NULL") == [1]


def test_a_stream_is_left_and_resumed(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    seen: list[Any] = []
    with begin(world, input="Count.", user="alice", stream=True) as events:
        for event in events:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    gate.open()
    id = seen[0].response.id
    response = polled(world, id)
    assert (response.status, response.output_text) == ("completed", "One two three four.")
    rest = resumed(world, id, seen[-1].sequence_number)
    whole = [*seen, *rest]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert whole[0].type == "response.created"
    assert whole[-1].type == "response.completed"
    assert shown(whole[-1].response) == shown(response)
    again = list(world.sdk.responses.retrieve(id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in whole]
    assert resumed(world, id, whole[-2].sequence_number)[0].type == "response.completed"
    assert resumed(world, id, whole[-1].sequence_number) == []  # the client has all of it


def test_a_reader_follows_one_that_is_made(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    response = begin(world, input="Count.", user="alice")
    kinds = []
    with world.sdk.responses.retrieve(response.id, stream=True) as events:
        for event in events:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                gate.open()
    assert kinds[-1] == "response.completed"


@pytest.mark.both
def test_a_reader_in_another_process_misses_nothing_when_it_ends(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, told = world.store.responses.finish, []
    background = world.gateway.app.services.background_responses

    async def finish_and_read(run: Run, *ended: Any) -> Run:
        done = await finish(run, *ended)
        shown = orjson.loads(
            (await world.store.run_texts.load_texts(run.agent_row, run.id, "response"))[0].data
        )
        elsewhere = dataclasses.replace(background)  # its maker makes none
        told.extend([event async for event in elsewhere.follow_events(run, -1, shown)])
        return done

    monkeypatch.setattr(world.store.responses, "finish", finish_and_read)
    upstream.queue(say("One two three four."))
    seen = [event.to_dict() for event in read_events(world)]
    assert told_events(b"".join(told).decode()) == seen


def test_a_reader_follows_the_attempt_after_one_that_failed(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, errors = world.store.responses.finish, [StoreUnavailable("the disk is full")]

    async def finish_later(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return await finish(*arguments)

    monkeypatch.setattr(world.store.responses, "finish", finish_later)
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    seen = []

    def read() -> None:
        for event in begin(world, input="Count.", user="alice", stream=True):
            seen.append(event)
            if event.type == "response.output_text.delta":
                gate.open()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        world.retry_job()
        reading.result(PATIENCE_S)
    assert (seen[-1].type, seen[-1].response.output_text) == ("response.completed", "One two three four.")
    numbers = [event.sequence_number for event in seen]
    assert numbers == sorted(set(numbers))


@pytest.mark.both(most_tries=[3])
@pytest.mark.parametrize("most_tries", [1, 3], ids=["the last attempt", "the first of three"])
def test_a_turn_that_an_earlier_attempt_has_written_is_the_response(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, most_tries: int
) -> None:
    """The upstream is not asked again, and the conversation has question and answer once."""
    monkeypatch.setattr(response_maker, "MAX_TRIES", most_tries)
    failing_once(monkeypatch, world.store.responses, "finish")
    upstream.queue(say("One two."), say("Three four."))
    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "Hello."}])
    response = begin(world, input="Count.", conversation=conversation.id, user="alice")
    world.retry_job()
    done = polled(world, response.id)
    assert (done.id, done.status, done.output_text) == (response.id, "completed", "One two.")
    items = world.sdk.conversations.items.list(conversation.id, order="asc")
    assert texts_of([item.model_dump() for item in items]) == ["Hello.", "Count.", "One two."]
    assert len(upstream.chats) == 1


@pytest.mark.both(is_refused=[False])
@pytest.mark.parametrize("is_refused", [True, False])
def test_a_reader_learns_how_a_faster_attempt_has_ended_it(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    finish = world.store.responses.finish

    async def finish_second(run: Run, end: ResponseEnd, job: Job) -> Run:
        other = {**orjson.loads(end.shown), "status": "completed", "error": None, "metadata": {"by": "other"}}
        made = replace(end, state=RunState.COMPLETED, shown=orjson.dumps(other), turn=None, events=b"")
        await finish(run, made, job)
        return await finish(run, end, job)

    monkeypatch.setattr(world.store.responses, "finish", finish_second)
    upstream.queue(fail(429, "Slow down.") if is_refused else say("One two."))
    events = read_events(world)
    assert (events[-1].type, events[-1].response.metadata) == ("response.completed", {"by": "other"})


@pytest.mark.parametrize("is_conversation", [False, True])
def test_memory_that_cannot_be_read_for_a_moment_does_not_end_it(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, is_conversation: bool
) -> None:
    failing_once(monkeypatch, world.gateway.app.services.chat.keeper, "begin")
    named: Json = {"conversation": world.sdk.conversations.create().id} if is_conversation else {}
    response = begin(world, input="Count.", user="alice", **named)
    world.retry_job()
    assert (polled(world, response.id).output_text, len(upstream.chats)) == ("Ok.", 1)


def test_an_attempt_that_has_lost_its_job_reads_memory_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_turn, lost = world.store.responses.note_turn, list[int]()

    async def lose_first(agent_row: int, run_row: int, name: bytes, job: Job) -> bool:
        if job.attempt == 1:
            lost.append(run_row)
            raise StaleWrite("another attempt makes it")
        return await note_turn(agent_row, run_row, name, job)

    monkeypatch.setattr(world.store.responses, "note_turn", lose_first)
    response = begin(world, input="Count.", user="alice")
    world.retry_job()
    assert polled(world, response.id).output_text == "Ok."
    assert len(lost) == 1


@pytest.mark.both
def test_a_restart_of_the_gateway_is_no_failed_attempt(upstream: StrictUpstream, tmp_path: Path) -> None:
    """As where many gateways are restarted one after the other, and each takes over what the one before had."""
    gate, id = Gate(), ""
    upstream.script = lambda request: say("A nice name.", hold_before_headers=gate)
    for restarts in range(response_maker.MAX_TRIES + 2):
        with serve_memory(upstream, tmp_path, agent()) as world:
            id = id or begin(world, input="My cat is called Miso.").id
            becomes(lambda: len(upstream.chats) > restarts)  # noqa: B023
    with serve_memory(upstream, tmp_path, agent()) as world:
        gate.open()
        assert polled(world, id).output_text == "A nice name."


def test_a_request_that_cannot_be_read_any_more_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[None] = []

    def restore(*_: Any) -> Any:
        attempts.append(None)
        raise ValueError("it has another form")

    monkeypatch.setattr(ShownResponses, "restore", restore)
    response = begin(world, input="Count.", user="alice")
    for count in range(1, response_maker.MAX_TRIES + 1):
        becomes(lambda: len(attempts) == count)  # noqa: B023
        world.retry_job()
    assert polled(world, response.id).status == "failed"
    told = told_events(
        httpx.get(f"{world.sdk.base_url}responses/{response.id}?stream=true", timeout=PATIENCE_S).text
    )
    assert [event["type"] for event in told] == FAILED_EVENTS
    numbers = [event["sequence_number"] for event in told]
    assert numbers == [*range(numbers[0], numbers[0] + 4)]
    rest = f"{world.sdk.base_url}responses/{response.id}?stream=true&starting_after={numbers[1]}"
    assert told_events(httpx.get(rest, timeout=PATIENCE_S).text) == told[2:]


def test_a_store_that_fails_while_events_are_read_is_no_fault_of_the_gateway(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    response = polled(world, begin(world, input="Count.", user="alice").id)
    becomes(lambda: not world.gateway.app.services.background_responses.maker.logs)
    monkeypatch.setattr(world.store.runs, "find_run", fails)
    reply = world.gateway.ask("GET", f"/v1/responses/{response.id}?stream=true")
    assert (reply.status, reply.error["code"]) == (503, "memory_unavailable")


def test_calls_and_their_results_go_on(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(call_tools(Call("weather", {"city": "Rome"})), say("Sunny."))
    first = polled(world, begin(world, input="The weather?", user="alice", tools=[WEATHER]).id)
    call = first.output[0]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    second = begin(world, input=[result], previous_response_id=first.id, user="alice", tools=[WEATHER])
    assert polled(world, second.id).output_text == "Sunny."


@pytest.mark.both(is_begun=[True])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_response_is_cancelled(world: World, upstream: StrictUpstream, is_begun: bool) -> None:
    gate = Gate()
    held: Json = {"hold_after": {3: gate}} if is_begun else {"hold_before_headers": gate}
    upstream.queue(say("One two three four.", **held))
    response = begin(world, input="Count.", user="alice")
    becomes(lambda: upstream.chats)
    if is_begun:
        with world.sdk.responses.retrieve(response.id, stream=True) as events:
            assert any(
                event.type == "response.output_text.delta" and "two" in event.delta for event in events
            )
    cancelled = world.sdk.responses.cancel(response.id)
    assert (cancelled.id, cancelled.status) == (response.id, "cancelled")
    assert cancelled.output_text == ("One two" if is_begun else "")
    assert world.sdk.responses.cancel(response.id) == cancelled
    gate.open()
    world.settle()
    assert polled(world, response.id) == cancelled
    assert resumed(world, response.id, -1)[-1].response == cancelled
    done = polled(world, begin(world, input="Hi", user="alice").id)
    assert world.sdk.responses.cancel(done.id).status == "completed"


def test_a_cancelled_response_can_be_continued_by_its_id(world: World, upstream: StrictUpstream) -> None:
    """As one in the foreground that its client has left: with what came until then."""
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    response = begin(world, input="Count.", user="alice")
    with world.sdk.responses.retrieve(response.id, stream=True) as events:
        assert any(event.type == "response.output_text.delta" and "two" in event.delta for event in events)
    world.sdk.responses.cancel(response.id)
    gate.open()
    with pytest.raises(openai.BadRequestError):
        respond(world, input="Go on.", user="bob", previous_response_id=response.id)
    assert respond(world, input="Go on.", user="alice", previous_response_id=response.id).output_text == "Ok."
    assert [m["content"] for m in upstream.last.messages] == ["Count.", "One two", "Go on."]


def response_ids(world: World) -> list[str]:
    """Returns the ids of all responses in the background, oldest first, while others are being answered."""
    own = make_statement("a test's", "SELECT uid FROM runs ORDER BY id")
    rows = world.gateway.call(world.store.database.read(lambda connection: connection.fetch_rows(own, ())))
    return [f"resp_{uid}" for (uid,) in rows]


def read_events(world: World, **options: Any) -> list[Any]:
    return list(begin(world, input="Count.", user="alice", stream=True, **options))


@pytest.mark.parametrize("way", ["cancelled", "deleted", "failed"])
def test_the_stream_of_one_that_ends_before_it_is_begun_has_an_end(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(background_responses, "RESPONSES_AT_ONCE", 1)
    gate = Gate()
    with serve_memory(upstream, tmp_path, agent()) as world, ThreadPoolExecutor(1) as pool:
        earlier = respond(world, input="My cat is called Miso.", user="alice")
        upstream.queue(say("Held.", hold_before_headers=gate))
        begin(world, input="Wait.", user="bob")
        becomes(lambda: len(upstream.chats) == 2)
        reading = pool.submit(read_events, world)
        becomes(lambda: len(response_ids(world)) == 2)
        id = response_ids(world)[1]
        match way:
            case "cancelled":
                world.sdk.responses.cancel(id)
            case "deleted":
                world.sdk.responses.delete(id)
            case _:
                world.sdk.responses.delete(earlier.id)
        gate.open()
        if way == "failed":
            with pytest.raises(openai.APIError, match="was forgotten before"):
                reading.result(PATIENCE_S)
            return
        events = reading.result(PATIENCE_S)
    assert [(event.type, event.response.id, event.response.status) for event in events] == [
        ("response.created", id, "in_progress"),
        ("response.in_progress", id, "in_progress"),
        ("response.incomplete", id, "cancelled"),
    ]


def test_the_stream_of_one_that_is_cancelled_between_two_attempts_has_an_end(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, world.store.responses, "finish")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_events, world)
        becomes(lambda: world.gateway.call(world.store.jobs.count_by_state()).get(JobState.RETRYING))
        (id,) = response_ids(world)
        assert world.sdk.responses.cancel(id).status == "cancelled"
        events = reading.result(PATIENCE_S)
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    again = resumed(world, id, events[-2].sequence_number)
    assert [event.to_dict() for event in again] == [events[-1].to_dict()]


def test_its_input_is_listed_before_it_lies_in_a_turn(world: World, upstream: StrictUpstream) -> None:
    first = world.sdk.responses.create(
        model="m", user="alice", input="My cat is Miso.", instructions="Be brief."
    )
    upstream.queue(say("Held.", hold_before_headers=Gate()))
    named: Any = {"previous_response_id": first.id, "instructions": "Be brief."}
    made = world.sdk.responses.create(model="m", user="alice", input="Wait.", background=True, **named)
    for _ in range(2):
        items = [each.to_dict() for each in world.sdk.responses.input_items.list(made.id, order="asc")]
        assert [each["content"][0]["text"] for each in items] == ["My cat is Miso.", "Ok.", "Wait."]  # type: ignore[index]
        assert str(items[2]["id"]).startswith(f"msg_{made.id[5:]}_i0")
        world.sdk.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="Supported values are"):
        world.sdk.responses.retrieve(made.id, include=["of_tomorrow"])  # type: ignore[list-item]


def test_the_ids_of_its_input_stay_when_it_is_completed(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(say("Held.", hold_before_headers=gate))
    brief: Any = {"role": "developer", "content": "Be brief."}
    response = begin(world, input=[brief, {"role": "user", "content": "Wait."}], user="alice")

    def listed() -> list[Json]:
        return [each.to_dict() for each in world.sdk.responses.input_items.list(response.id, order="asc")]

    waiting = listed()
    gate.open()
    assert polled(world, response.id).status == "completed"
    assert listed() == waiting


def test_the_ids_of_its_input_are_the_same_in_every_list(world: World, upstream: StrictUpstream) -> None:
    conversation = world.sdk.conversations.create()
    first = begin(world, input="My cat is Miso.", user="alice", conversation=conversation.id)
    polled(world, first.id)
    own = [each.to_dict() for each in world.sdk.responses.input_items.list(first.id, order="asc")]
    all_items = [each.to_dict() for each in world.sdk.conversations.items.list(conversation.id, order="asc")]
    assert all_items[: len(own)] == own
    next_one = polled(world, begin(world, input="Go on.", user="alice", conversation=conversation.id).id)
    later = [each.to_dict() for each in world.sdk.responses.input_items.list(next_one.id, order="asc")]
    assert later[: len(own)] == own
    id: Any = own[0]["id"]
    assert world.sdk.conversations.items.retrieve(id, conversation_id=conversation.id).to_dict() == own[0]
    world.sdk.conversations.items.delete(id, conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.conversations.items.retrieve(id, conversation_id=conversation.id)


@pytest.mark.parametrize("code", ["rate_limit_exceeded", None, 429])
def test_an_error_ends_it(world: World, upstream: StrictUpstream, code: Any) -> None:
    """Claude and others say by the status alone that they are asked too often, and OpenRouter by a number as well."""
    upstream.queue(fail(429, "Slow down.", code=code))
    response = begin(world, input="Hi", user="alice")
    failed = polled(world, response.id)
    assert (failed.status, failed.output) == ("failed", [])
    assert (failed.error.code, failed.error.message) == ("rate_limit_exceeded", "Slow down.")
    with pytest.raises(openai.APIError, match="Slow down"):
        list(world.sdk.responses.retrieve(response.id, stream=True))
    assert world.sdk.responses.delete(response.id) is None
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(response.id)


def test_an_error_without_an_error_object_keeps_its_message(world: World, upstream: StrictUpstream) -> None:
    body = orjson.dumps({"object": "error", "message": "Slow down.", "type": "RateLimit", "code": 429})
    upstream.queue(raw(body, content_type="application/json", status=429))
    failed = polled(world, begin(world, input="Hi", user="alice").id)
    assert (failed.error.code, failed.error.message) == ("rate_limit_exceeded", "Slow down.")


def test_a_response_that_ends_before_it_has_begun_is_streamed_from_its_beginning(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(fail(429, "Slow down."))
    body: Json = {"model": "m", "input": "Hi", "user": "alice", "background": True, "stream": True}
    told = told_events(httpx.post(f"{world.sdk.base_url}responses", json=body, timeout=PATIENCE_S).text)
    assert [(event["sequence_number"], event["type"]) for event in told] == [*enumerate(FAILED_EVENTS)]
    first, last = told[0]["response"], told[-1]["response"]
    assert (first["id"], first["status"], first["error"]) == (last["id"], "in_progress", None)
    gate = Gate()
    upstream.queue(say("Late.", hold_before_headers=gate))
    response = begin(world, input="Hi", user="alice")
    becomes(lambda: world.sdk.responses.retrieve(response.id).status == "in_progress")
    world.sdk.responses.cancel(response.id)
    gate.open()
    events = resumed(world, response.id, -1)
    assert [event.type for event in events] == [*FAILED_EVENTS[:2], "response.incomplete"]


@pytest.mark.parametrize(
    ("path", "more", "memory"),
    [
        ("/v1/responses", {"background": True}, "on"),
        ("/v1/responses", {"background": True, "stream": True}, "on"),
        ("/v1/responses/compact", {}, "off"),
        ("/v1/responses", {"input": [{"role": "user", "content": "Hi", "phase": "x"}, TRIGGER]}, "off"),
    ],
)
def test_fields_that_are_left_out_are_named_in_each_kind_of_answer(
    world: World, upstream: StrictUpstream, path: str, more: Json, memory: str
) -> None:
    body = {
        "model": "m",
        "input": [{"role": "user", "content": "Hi", "phase": "x"}],
        "user": "alice",
        **more,
    }
    reply = world.gateway.ask("POST", path, orjson.dumps(body))
    assert (reply.status, reply.headers["x-mnemogate-consumed"]) == (200, "input.phase")
    assert reply.headers["x-mnemogate-memory"] == memory


def test_a_background_response_of_a_paused_memory_is_refused(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_memory(upstream, tmp_path, agent("default")) as world:
        respond(world, input="Hi", user="alice")
        calls, since = len(upstream.requests), world.clock()
        world.gateway.call(world.store.forgetting.pause(memory_of(world).id, since))
        with pytest.raises(openai.BadRequestError, match="memory is off"):
            begin(world, input="My cat is called Zqmisox.", user="alice")
        assert len(upstream.requests) == calls
        assert world.query("SELECT count(*) FROM runs") == [0]


def test_a_response_of_a_conversation(world: World, upstream: StrictUpstream) -> None:
    conversation = world.sdk.conversations.create(
        items=[{"role": "user", "content": "My cat is called Miso."}]
    )
    first = begin(world, input="She is grey.", conversation=conversation.id, user="alice")
    second = begin(world, input="What is she called?", conversation=conversation.id, user="alice")
    assert polled(world, first.id).conversation.id == conversation.id
    polled(world, second.id)
    said = [read_text(message) for message in upstream.last.messages]
    assert said[0] == "My cat is called Miso."
    assert said.count("She is grey.") == 1


def test_the_responses_of_a_conversation_follow_one_another(world: World, upstream: StrictUpstream) -> None:
    """In the order in which they were accepted. Another request waits for the one that is made."""
    begun: Any = [{"role": "user", "content": "My cat is Miso."}]
    conversation = world.sdk.conversations.create(items=begun).id
    gate = Gate()
    upstream.queue(say("Grey.", hold_before_headers=gate))
    first = begin(world, input="She is grey.", conversation=conversation, user="alice")
    becomes(lambda: upstream.chats)
    second = begin(world, input="And old.", conversation=conversation, user="alice")
    for options in ({}, {"background": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            respond(world, input="Why?", previous_response_id=first.id, user="alice", **options)
        assert caught.value.code == "previous_response_not_found"
        assert "has not ended yet" in caught.value.message
    gate.open()
    assert polled(world, second.id).status == "completed"
    gate = Gate()
    upstream.queue(say("Black.", hold_before_headers=gate))
    begin(world, input="She was black.", conversation=conversation, user="alice")
    becomes(lambda: len(upstream.chats) == 3)
    with ThreadPoolExecutor() as pool:
        last = pool.submit(respond, world, input="Sure?", conversation=conversation, user="alice")
        gate.open()
        assert last.result(PATIENCE_S).status == "completed"
    asked = [[read_text(message) for message in request.messages] for request in upstream.chats]
    whole = [
        "My cat is Miso.",
        "She is grey.",
        "Grey.",
        "And old.",
        "Ok.",
        "She was black.",
        "Black.",
        "Sure?",
    ]
    assert asked == [whole[:2], whole[:4], whole[:6], whole]


@pytest.mark.both
def test_a_retried_response_comes_before_those_that_were_accepted_after_it(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is asked once, and stands once in its conversation."""
    failing_once(monkeypatch, Chat, "_run_turn")  # after its message, which is stored
    upstream.queue(say("A nice name."), say("Miso."), say("Yes."))
    conversation = world.sdk.conversations.create().id
    first = begin(world, input="My cat is called Miso.", conversation=conversation, user="alice")
    becomes(lambda: world.gateway.call(world.store.jobs.count_by_state()).get(JobState.RETRYING))
    words = ("What is she called?", "Sure?")
    later = [begin(world, input=each, conversation=conversation, user="alice") for each in words]
    world.retry_job()
    assert [polled(world, each.id).output_text for each in (first, *later)] == [
        "A nice name.",
        "Miso.",
        "Yes.",
    ]
    whole = ["My cat is called Miso.", "A nice name.", "What is she called?", "Miso.", "Sure?"]
    assert [[read_text(m) for m in request.messages] for request in upstream.chats] == [
        whole[:1],
        whole[:3],
        whole,
    ]


@pytest.mark.both
def test_the_callers_who_may_read_a_background_response(world: World) -> None:
    response = begin(world, input="Hi", user="alice")
    polled(world, response.id)
    bob: Json = {"extra_headers": {"x-mnemogate-user": "bob"}}
    for ask in (world.sdk.responses.retrieve, world.sdk.responses.cancel, world.sdk.responses.delete):
        with pytest.raises(openai.NotFoundError):
            ask(response.id, **bob)


@pytest.mark.parametrize(
    "options", [{"store": False}, {"extra_headers": {"x-mnemogate-memory": "off"}, "user": "alice"}]
)
def test_a_response_that_is_not_stored_is_not_made_in_the_background(world: World, options: Json) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        begin(world, input="Hi", **options)
    assert caught.value.param == "background"


def test_an_answer_for_a_program_is_made_in_the_background(world: World, upstream: StrictUpstream) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "sort", "schema": {"type": "object"}}}
    upstream.queue(say('{"a":1}'))
    response = begin(world, input="Sort it, as JSON.", text=form, user="alice")
    assert polled(world, response.id).output_text == '{"a":1}'


@pytest.mark.both
def test_a_deleted_response_is_forgotten(world: World, upstream: StrictUpstream) -> None:
    response = polled(world, begin(world, input="My cat is called Miso, she is grey.", user="alice").id)
    world.sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(response.id)
    respond(world, input="What is my grey cat called?", user="alice")
    assert "Miso" not in str(upstream.last.messages)
    assert world.query("SELECT count(*) FROM runs") == [0]


@pytest.mark.parametrize("after", ["--5", "x", "-", "99999999999999", "\u00b2"])
def test_where_a_stream_is_resumed_is_a_number(world: World, after: str) -> None:
    response = polled(world, begin(world, input="Hi", user="alice").id)
    with pytest.raises(openai.BadRequestError) as caught:
        list(world.sdk.responses.retrieve(response.id, stream=True, extra_query={"starting_after": after}))
    assert caught.value.param == "starting_after"


@pytest.mark.both(is_begun=[True])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_response_that_is_deleted_while_it_is_made_leaves_nothing(
    world: World, upstream: StrictUpstream, is_begun: bool
) -> None:
    gate = Gate()
    held: Json = {"hold_after": {3: gate}} if is_begun else {"hold_before_headers": gate}
    upstream.queue(say("Purple tulips grow.", **held))
    response = begin(world, input="Tell me of purple tulips.", user="alice")
    becomes(lambda: upstream.chats)
    world.sdk.responses.delete(response.id)
    gate.open()
    becomes(lambda: world.query("SELECT count(*) FROM run_texts WHERE agent <> 0") == [0])
    assert world.query("SELECT count(*) FROM runs") == [0]
    becomes(lambda: "tulips" not in str(world.query("SELECT input, shown_reply FROM exchanges")))


@pytest.mark.both
def test_a_deleted_response_leaves_others_that_continue_the_same_one(world: World) -> None:
    first = respond(world, input="My cat is called Miso.", user="alice")
    one, other = (
        polled(world, begin(world, input=text, previous_response_id=first.id, user="alice").id)
        for text in ("Write a poem about her.", "Write a letter to her.")
    )
    world.sdk.responses.delete(other.id)
    assert world.sdk.responses.retrieve(one.id).output_text == one.output_text
    respond(world, input="Make it shorter.", previous_response_id=one.id, user="alice")
    assert "a letter" not in kept_words(world)


def kept_words(world: World) -> str:
    return str(world.query("SELECT input, shown_reply FROM exchanges"))


@pytest.mark.both(is_conversation=[True])
@pytest.mark.parametrize("is_conversation", [False, True])
def test_a_response_that_is_deleted_between_two_attempts_leaves_nothing(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, is_conversation: bool
) -> None:
    failing_once(monkeypatch, world.store.responses, "finish")
    named: Json = {"conversation": world.sdk.conversations.create().id} if is_conversation else {}
    response = begin(world, input="Tell me of purple tulips.", user="alice", **named)
    becomes(lambda: world.gateway.call(world.store.jobs.count_by_state()).get(JobState.RETRYING))
    assert "tulips" in kept_words(world)
    world.sdk.responses.delete(response.id)
    assert "tulips" not in kept_words(world)
    assert world.query("SELECT count(*) FROM run_texts WHERE agent <> 0") == [0]


def test_a_response_that_is_deleted_after_its_second_attempt_leaves_nothing_of_the_first(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, Chat, "_run_turn")  # after its message, which is stored
    upstream.queue(say("They wither."))
    conversation = world.sdk.conversations.create().id
    response = begin(world, input="Tell me of purple tulips.", user="alice", conversation=conversation)
    world.retry_job()
    assert polled(world, response.id).output_text == "They wither."
    world.sdk.responses.delete(response.id)
    assert "tulips" not in kept_words(world)


@pytest.mark.both
def test_a_response_that_another_gateway_deletes_before_its_turn_leaves_nothing(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = world.store.responses.note_turn

    async def note_deleted(agent_row: int, run_row: int, name: bytes, job: Job) -> bool:
        await world.store.runs.end_run(agent_row, run_row, RunState.CANCELLED, "cancelled", world.clock())
        await world.store.responses.remove(agent_row, run_row)
        return await note(agent_row, run_row, name, job)

    monkeypatch.setattr(world.store.responses, "note_turn", note_deleted)
    conversation = world.sdk.conversations.create().id
    begin(world, input="Tell me of purple tulips.", user="alice", conversation=conversation)
    world.wait_for_jobs(lambda counts: not any(counts.values()))
    assert (upstream.chats, world.query("SELECT count(*) FROM exchanges")) == ([], [0])


def test_the_deletion_of_one_can_be_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    response = polled(world, begin(world, input="Tell me of purple tulips.", user="alice").id)
    failing_once(monkeypatch, world.store.forgetting, "begin")
    with pytest.raises(openai.InternalServerError):
        world.sdk.responses.delete(response.id)
    world.sdk.responses.delete(response.id)
    assert "tulips" not in kept_words(world)
    assert world.query("SELECT count(*) FROM runs") == [0]


@pytest.mark.both
def test_forgetting_ends_what_is_being_made(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    earlier = respond(world, input="My cat is called Miso.", user="alice")
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    response = begin(world, input="Count.", user="alice")
    becomes(lambda: len(upstream.chats) == 2)
    world.sdk.responses.delete(earlier.id)
    gate.open()

    def is_gone() -> bool:
        with pytest.raises(openai.NotFoundError):
            world.sdk.responses.retrieve(response.id)
        return True

    becomes(lambda: world.query("SELECT state FROM runs") == ["failed"])
    assert is_gone()  # what there was of it is forgotten with the rest of the memory's runs
    assert "Miso" not in str(world.query("SELECT input, shown_reply FROM exchanges"))


def kept_kinds(world: World) -> set[str]:
    return {*world.query("SELECT kind FROM run_texts WHERE agent <> 0")}


@pytest.mark.both
def test_the_words_of_the_last_one_are_dropped_when_it_has_ended_long_ago(world: World) -> None:
    """By a task that looked for some when there were none yet."""
    cleaning = world.gateway.app.services.background.run_cleaning
    pause_s = world.gateway.call(cleaning.perform_due())
    polled(world, begin(world, input="Count.", user="alice").id)
    becomes(lambda: world.query("SELECT state FROM runs") == ["completed"])
    becomes(lambda: {"request", "event"} <= kept_kinds(world))
    for _ in range(2):
        world.clock.sleep(pause_s)
        pause_s = world.gateway.call(cleaning.perform_due())
    assert not {"request", "event"} & kept_kinds(world)


def test_events_that_are_gone_are_made_of_what_is_stored(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("One two."))
    response = polled(world, begin(world, input="Count.", user="alice").id)
    becomes(lambda: world.query("SELECT state FROM runs") == ["completed"])
    world.clock.sleep(4 * 3600)
    world.gateway.call(world.gateway.app.services.background.run_cleaning.perform_due())
    assert "event" not in kept_kinds(world)
    again = list(world.sdk.responses.retrieve(response.id, stream=True))
    assert [event.type for event in again] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.completed",
    ]
    assert shown(again[-1].response) == shown(response)
    (last,) = resumed(world, response.id, 7)
    assert (last.type, last.sequence_number) == ("response.completed", 8)


@pytest.mark.both(user=["alice"])
@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize(
    "headers", [{"idempotency-key": "k1"}, {"x-stainless-retry-count": "1"}], ids=["key", "retry"]
)
def test_a_request_that_is_sent_again_makes_one_response(
    world: World, upstream: StrictUpstream, user: str | None, headers: Json
) -> None:
    named: Json = {} if user is None else {"user": user}
    first = {**headers, "x-stainless-retry-count": "0"}
    response = begin(world, input="Hello", extra_headers=first, **named)
    assert begin(world, input="Hello", extra_headers=headers, **named).id == response.id
    done = polled(world, response.id)
    again = begin(world, input="Hello", extra_headers=headers, **named)
    assert again.to_dict() == done.to_dict()
    events = list(begin(world, input="Hello", stream=True, extra_headers=first, **named))
    with world.sdk.responses.create(
        model="m", background=True, input="Hello", stream=True, extra_headers=headers, **named
    ) as stream:
        repeated = list(stream)
    assert repeated == events
    assert len(upstream.chats) == 2


def test_equal_requests_of_several_are_several_responses(world: World, upstream: StrictUpstream) -> None:
    asked = [{}, {}, {"user": "alice"}, {"user": "bob"}, {"extra_headers": {"x-mnemogate-user": "alice"}}]
    made = [begin(world, input="Hello", **each) for each in asked]
    key = {"idempotency-key": "k1"}
    made += [begin(world, input="Hello", user=user, extra_headers=key) for user in ("alice", "bob")]
    made.append(begin(world, input="Hello there", user="alice", extra_headers=key))
    retried = {"x-stainless-retry-count": "1"}
    made.append(begin(world, input="Hello", user="carol", extra_headers=retried))
    for count in ("00", "none"):  # no retries
        made.append(begin(world, input="Hello", extra_headers={"x-stainless-retry-count": count}))
    for name in ("x-openwebui-user-id", "x-openwebui-chat-id", "x-session-id"):
        for value, again in (("one", {}), ("two", retried)):
            made.append(begin(world, input="Hello", extra_headers={name: value, **again}))
    assert len({polled(world, each.id).id for each in made}) == len(made)


def test_a_request_that_comes_again_is_remembered_longest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_responses, "MAX_ACCEPTED_RESPONSES", 2)
    begin(world, input="Hello")
    begin(world, input="Good morning")
    newest = begin(world, input="Hello")
    begin(world, input="Good night")
    resent = begin(world, input="Hello", extra_headers={"x-stainless-retry-count": "1"})
    assert resent.id == newest.id


@pytest.mark.both
def test_equal_requests_of_two_keys_are_two_responses(world: World) -> None:
    call, keys = world.gateway.call, world.store.keys
    made = {}
    for user, tries in (("alice", "0"), ("bob", "1")):
        _, plain = call(keys.create("default", user, user=user))
        headers = {"authorization": f"Bearer {plain}", "x-stainless-retry-count": tries}
        body = orjson.dumps({"model": "m", "input": "Good morning", "background": True})
        reply = world.gateway.ask("POST", "/v1/responses", body, headers)
        assert reply.status == 200, reply.body
        made[user] = reply.json["id"]
    assert made["alice"] != made["bob"]
