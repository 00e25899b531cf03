"""Runs in the background over the client of the agents API: accepted, streamed, read again, cancelled, called back."""

from __future__ import annotations

import asyncio
import base64
import gc
import sqlite3
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import APIStatusError, BadRequestError, NotFoundError, RateLimitError
from letta_client.types.agents import Run

from gateway.agents.runs.background import run_follower, run_service
from gateway.agents.runs.background.run_follower import RunFollower
from gateway.agents.runs.background.run_logs import RunLogs
from gateway.agents.runs.background.run_recovery import RunRecovery
from gateway.agents.runs.send_queue import MAX_SENDS
from gateway.core.ids import make_id, new_uid, parse_uid
from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.run.event_log import load_events
from gateway.settings import ToolSettings, UpstreamSettings
from storage.errors import NotFound, StoreUnavailable
from storage.listing import Page, RunFilter
from storage.records import DEFAULT_CONVERSATION
from storage.run_commands import RunAccept
from storage.run_records import Run as StoredRun
from storage.run_records import RunState
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.tool_server import replying, served
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, raw, say
from tests.patience import PATIENCE_S, becomes
from tests.rows import each_row

LOOK = {"name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def ended(world: LettaWorld, run_id: str) -> Run:
    def look() -> Run | None:
        run = world.letta.runs.retrieve(run_id)
        return None if run.status in ("created", "running") else run

    return becomes(look)


def said(world: LettaWorld, agent_id: str) -> list[str]:
    page = spoken(world.letta.agents.messages.list(agent_id, order="asc"))
    return [f"{m.message_type.split('_')[0]}: {getattr(m, 'content', '')}" for m in page]


def let_events_go(world: LettaWorld) -> None:
    """Lets the time pass for which events of runs are stored."""

    world.world.clock.sleep(3 * 3600 + 1)
    world.world.gateway.call(world.world.gateway.app.services.background.run_cleaning.perform_due())


def stream(world: LettaWorld, run_id: str, after: int = 0) -> list[dict[str, Any]]:
    body = orjson.dumps({"starting_after": after, "include_pings": False})
    reply = world.world.gateway.ask(
        "POST", f"/v1/runs/{run_id}/stream", body, {"content-type": "application/json"}
    )
    assert reply.status == 200, reply.body
    lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(line) for line in lines if line != b"[DONE]"]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["content"] for e in events if e["message_type"] == "assistant_message")


def test_a_run_is_accepted_and_goes_on_by_itself(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    world.upstream.queue(say("Done.", hold_before_headers=gate))
    run = world.letta.agents.messages.create_async(agent.id, input="Work.")
    assert (run.status, run.background, run.agent_id) == ("created", True, agent.id)
    gate.open()
    done = ended(world, run.id)
    assert (done.status, done.stop_reason) == ("completed", "end_turn")
    assert said(world, agent.id) == ["user: Work.", "assistant: Done."]
    kinds = ["user_message", "assistant_message"]
    assert [m.message_type for m in world.letta.runs.messages.list(run.id)] == kinds
    assert [m.message_type for m in world.letta.runs.messages.list(run.id, order="desc")] == kinds[::-1]
    (step,) = world.letta.steps.list(agent_id=agent.id)
    assert [m.message_type for m in world.letta.steps.messages.list(step.id)] == kinds
    assert world.world.query("SELECT count(*) FROM jobs") == [0]


@pytest.mark.both
def test_a_send_that_comes_again_while_its_run_goes_on_is_that_run(world: LettaWorld) -> None:
    agent, gate, again = world.agent(), Gate(), {"x-stainless-retry-count": "1"}
    world.upstream.queue(say("Done.", hold_before_headers=gate))
    messages = world.letta.agents.messages
    run = messages.create_async(agent.id, input="Work.")
    becomes(lambda: len(world.upstream.chats) == 1)
    assert world.letta.runs.retrieve(run.id).status == "running"
    assert messages.create_async(agent.id, input="Work.", extra_headers=again).id == run.id
    other = messages.create_async(agent.id, input="Rest.", extra_headers=again)
    gate.open()
    ended(world, other.id)
    assert said(world, agent.id) == ["user: Work.", "assistant: Done.", "user: Rest.", "assistant: Ok."]


def test_each_step_of_a_run_is_retried(upstream: StrictUpstream, tmp_path: Path) -> None:
    retrying = UpstreamSettings("up", base_url=upstream.base_url, retries=1)
    with letta(upstream, tmp_path, upstreams=(retrying,)) as world:
        agent = world.agent(tools=["memory_insert"])
        note = Call("memory_insert", {"label": "human", "new_string": "Works."}, "c1")
        upstream.queue(fail(503), call_tools(note, text="Noting."), fail(503), say("Done."))
        with world.letta.agents.messages.create(
            agent.id, input="Work.", streaming=True, background=True
        ) as events:
            run_id = next(iter(events)).run_id
            list(events)
        assert (ended(world, run_id).status, len(upstream.chats)) == ("completed", 4)


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_messages_of_a_run_are_of_the_kinds_that_its_send_asked_for(
    world: LettaWorld, is_stream: bool
) -> None:
    """Also three hours after its end, and when something was forgotten."""
    agent = world.agent(tools=["memory_insert"])
    note = Call("memory_insert", {"label": "human", "new_string": "Works."}, "c1")
    world.upstream.queue(call_tools(note, text="Noting."), say("Done."))
    fields: Any = {
        "input": "Work.",
        "include_return_message_types": ["assistant_message", "tool_return_message"],
    }
    if is_stream:
        with world.letta.agents.messages.create(
            agent.id, streaming=True, background=True, **fields
        ) as events:
            run_id = next(iter(events)).run_id
            list(events)
    else:
        run_id = world.letta.agents.messages.create_async(agent.id, **fields).id
    ended(world, run_id)
    kinds = ["assistant_message", "tool_return_message", "assistant_message"]
    listed = world.letta.runs.messages.list
    assert [m.message_type for m in listed(run_id)] == kinds
    assert [m.message_type for m in listed(run_id, order="desc", limit=1).items] == ["assistant_message"]
    let_events_go(world)
    shown = [e["message_type"] for e in stream(world, run_id)]
    assert [each for each in shown if each.endswith("_message")] == kinds
    other = world.letta.agents.messages.create(agent.id, input="Another.").messages[-1].id
    assert world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{other}")[0] == 200
    assert [m.message_type for m in listed(run_id)] == kinds
    whole = [m.message_type for m in spoken(world.letta.agents.messages.list(agent.id, order="asc"))]
    assert {"user_message", "tool_call_message"} <= set(whole)


def test_a_callback_has_the_messages_that_its_send_asked_for(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with (
        served(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server,
        letta(upstream, tmp_path, tools=ToolSettings(private_hosts=(server.url,))) as world,
    ):
        note = Call("memory_insert", {"label": "human", "new_string": "Works."}, "c1")
        world.upstream.queue(call_tools(note), say("Done."))
        run = world.letta.agents.messages.create_async(
            world.agent(tools=["memory_insert"]).id,
            input="Work.",
            callback_url=f"{server.url}/done",
            include_return_message_types=["assistant_message"],
        )
        called_back(world, run.id)
    (body,) = map(orjson.loads, server.bodies)
    assert [m["message_type"] for m in body["metadata"]["result"]["messages"]] == ["assistant_message"]


def test_an_upstreams_error_ends_the_run(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(fail(500))
    run = world.letta.agents.messages.create_async(agent.id, input="Work.")
    done = ended(world, run.id)
    assert (done.status, done.stop_reason) == ("failed", "llm_api_error")
    assert said(world, agent.id) == ["user: Work."]


def test_runs_and_sends_of_one_agent_keep_their_order(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    world.upstream.queue(say("0.", hold_before_headers=gate), *(say(f"{n}.") for n in range(1, 6)))
    runs = [world.letta.agents.messages.create_async(agent.id, input=f"Message {n}") for n in range(5)]
    gate.open()
    live = world.letta.agents.messages.create(agent.id, input="Message 5")
    assert live.messages[0].content == "5."  # type: ignore[union-attr]
    assert [ended(world, run.id).status for run in runs] == ["completed"] * 5
    assert said(world, agent.id) == [
        line for n in range(6) for line in (f"user: Message {n}", f"assistant: {n}.")
    ]


def test_a_stream_in_the_background_is_numbered_and_read_again_from_any_event(world: LettaWorld) -> None:
    agent = world.agent()
    tokens = ["One ", "two ", "three ", "four."]
    block = Call("memory_insert", {"label": "human", "new_string": "Counts."}, "c1")
    agent = world.agent(tools=["memory_insert"])
    world.upstream.queue(call_tools(block, text="Let me see."), say("".join(tokens), tokens=tokens))
    with world.letta.agents.messages.create(
        agent.id, input="Count.", streaming=True, background=True, stream_tokens=True
    ) as events:
        first = [orjson.loads(event.model_dump_json()) for event in events]
    assert first[0]["message_type"] == "ping"
    run_id = first[0]["run_id"]
    seen = first
    assert [e["seq_id"] for e in seen] == list(range(1, len(seen) + 1))
    assert text_of(seen) == "Let me see.One two three four."
    assert ended(world, run_id).status == "completed"
    whole = stream(world, run_id)
    assert [e["seq_id"] for e in whole] == [e["seq_id"] for e in seen]
    # Some parsers refuse an object with a name that comes twice.
    reply = world.world.gateway.ask("POST", f"/v1/runs/{run_id}/stream", b"{}")
    assert reply.body.count(b'"seq_id":') == len(seen)
    for number in range(len(whole) + 1):
        assert stream(world, run_id, number) == whole[number:]
    again = world.letta.runs.messages.stream(run_id, starting_after=3)
    assert [e.seq_id for e in again if getattr(e, "seq_id", None)] == list(range(4, len(seen) + 1))


def test_fields_of_a_stream_that_have_no_effect_are_named(world: LettaWorld) -> None:
    run = world.letta.agents.messages.create_async(world.agent().id, input="Work.")
    assert ended(world, run.id).status == "completed"
    body = orjson.dumps({"batch_size": 10, "poll_interval": 0.5})
    reply = world.world.gateway.ask(
        "POST", f"/v1/runs/{run.id}/stream", body, {"content-type": "application/json"}
    )
    assert sorted(dict(reply.headers)["x-mnemogate-kept"].split(",")) == ["batch_size", "poll_interval"]


def test_a_number_that_no_event_has_is_refused(world: LettaWorld) -> None:
    """PostgreSQL has no numbers above 64 bits, and the stream would break off after its status."""
    run = world.letta.agents.messages.create_async(world.agent().id, input="Work.")
    assert ended(world, run.id).status == "completed"
    status, refused = world.ask("POST", f"/v1/runs/{run.id}/stream", {"starting_after": 1 << 63})
    assert (status, refused["detail"][0]["loc"]) == (422, ["body", "starting_after"])


def test_a_reader_follows_a_run_that_goes_on(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    world.upstream.queue(say("A long reply.", tokens=["A long", " reply."], hold_after={2: gate}))
    with world.letta.agents.messages.create(
        agent.id, input="Tell me.", streaming=True, background=True, stream_tokens=True
    ) as events:
        run_id = next(iter(events)).run_id  # type: ignore[union-attr]
    assert isinstance(run_id, str)
    gate.open()
    assert text_of(stream(world, run_id)) == "A long reply."
    assert ended(world, run_id).status == "completed"
    assert said(world, agent.id) == ["user: Tell me.", "assistant: A long reply."]


def test_an_error_is_the_end_of_a_stream_in_the_background(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(fail(500))
    with (
        pytest.raises(APIStatusError),
        world.letta.agents.messages.create(
            agent.id, input="Work.", streaming=True, background=True
        ) as events,
    ):
        list(events)
    (run,) = world.letta.runs.list(agent_id=agent.id)
    assert ended(world, run.id).status == "failed"
    kinds = [e["message_type"] for e in stream(world, run.id)]
    assert kinds == ["ping", "stop_reason", "error_message"]


def test_a_run_without_a_log_replays_whole_messages(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(say("Done."))
    run = world.letta.agents.messages.create_async(agent.id, input="Work.")
    events = stream(world, run.id)
    assert [e["message_type"] for e in events] == ["assistant_message", "stop_reason", "usage_statistics"]
    assert text_of(events) == "Done."
    assert stream(world, run.id, 1) == events[1:]
    live = world.letta.agents.messages.create(agent.id, input="Hi")
    assert text_of(stream(world, live.messages[0].run_id or "")) == "Ok."


def test_a_run_is_cancelled_whether_it_has_begun_or_not(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Never.", hold_before_headers=gate))
    first = world.letta.agents.messages.create_async(agent.id, input="One")
    second = world.letta.agents.messages.create_async(agent.id, input="Two")
    arrived.wait_sync()
    found = world.letta.agents.messages.cancel(agent.id)
    assert found == {first.id: "cancelled", second.id: "cancelled"}
    assert [ended(world, each.id).stop_reason for each in (first, second)] == ["cancelled", "cancelled"]
    gate.open()
    assert world.letta.agents.messages.create(agent.id, input="Three").messages
    assert said(world, agent.id) == ["user: One", "user: Three", "assistant: Ok."]
    late = world.letta.agents.messages.cancel(agent.id, run_ids=[first.id])
    assert late == {first.id: "cancelled"}


def test_a_cancel_that_names_a_run_of_another_agent_cancels_none(world: LettaWorld) -> None:
    agent, other = world.agent(), world.agent()
    foreign = world.letta.agents.messages.create_async(other.id, input="Hi")
    ended(world, foreign.id)
    gate, arrived = Gate(), world.upstream.request_gate(1)
    world.upstream.queue(say("Done.", hold_before_headers=gate))
    run = world.letta.agents.messages.create_async(agent.id, input="Work.")
    arrived.wait_sync()
    with pytest.raises(NotFoundError):
        world.letta.agents.messages.cancel(agent.id, run_ids=[run.id, foreign.id])
    gate.open()
    assert ended(world, run.id).status == "completed"


@pytest.mark.parametrize("is_live", [True, False])
def test_a_run_that_is_cancelled_while_it_waits_ends_at_once(world: LettaWorld, is_live: bool) -> None:
    """After a live send of its conversation, or after a run of another one: those of an agent go one by one."""
    agent, gate = world.agent(), Gate()
    send, conversations = world.letta.agents.messages, world.letta.conversations
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Slow.", hold_before_headers=gate))

    def hold() -> None:
        if is_live:
            send.create(agent.id, input="Hi")
        else:
            other = conversations.create(agent_id=agent.id).id
            list(conversations.messages.create(other, input="Hi", background=True, streaming=True))

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(hold)
        arrived.wait_sync()
        with send.create(agent.id, input="Work.", streaming=True, background=True) as events:
            run_id = next(iter(events)).run_id
            assert send.cancel(agent.id, run_ids=[run_id]) == {run_id: "cancelled"}
            kinds = [e.message_type for e in events if e.message_type != "ping"]
            assert kinds == ["stop_reason", "usage_statistics"]
        if not is_live:
            assert send.create(agent.id, input="And now?").messages[-1].content == "Ok."  # type: ignore[union-attr]
        gate.open()
        slow.result(PATIENCE_S)
    becomes(lambda: world.world.query("SELECT count(*) FROM jobs WHERE kind = 'run'") == [0])
    kinds = [e["message_type"] for e in stream(world, run_id)]
    assert (kinds[0], kinds[-2:]) == ("ping", ["stop_reason", "usage_statistics"])


@contextmanager
def held_as_it_begins(world: LettaWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gate, Gate]]:
    """Holds a run before its first step. Yields what opens when its job has begun, and what lets it go on."""
    runs = world.world.gateway.app.services.agents.background_runs._agent_runs
    began, gate, perform = Gate(), Gate(), runs.perform_accepted

    async def held(*arguments: Any) -> None:
        began.open()
        await gate.wait()
        await perform(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "perform_accepted", held)
        yield began, gate


def test_a_run_that_is_cancelled_as_it_begins_blocks_no_other(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its job has seen that it has not ended, and its first step is not open yet."""
    agent, send = world.agent(), world.letta.agents.messages
    with held_as_it_begins(world, monkeypatch) as (began, gate):
        run = send.create_async(agent.id, input="One")
        began.wait_sync()
    assert send.cancel(agent.id) == {run.id: "cancelled"}
    gate.open()
    send.create(agent.id, input="Two")
    assert said(world, agent.id) == ["user: Two", "assistant: Ok."]
    assert ended(world, run.id).status == "cancelled"
    becomes(lambda: world.world.query("SELECT count(*) FROM jobs WHERE kind = 'run'") == [0])
    assert not [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_a_run_that_is_cancelled_while_its_job_reads_its_row_blocks_no_other(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, send, runs = world.agent(), world.letta.agents.messages, world.world.store.runs
    began, gate, get = Gate(), Gate(), runs.get

    async def get_late(*arguments: Any) -> Any:
        if not began.is_open:
            began.open()
            await gate.wait()
        return await get(*arguments)

    monkeypatch.setattr(runs, "get", get_late)
    with send.create(agent.id, input="One", streaming=True, background=True) as events:
        run_id = next(iter(events)).run_id
        began.wait_sync()
        assert send.cancel(agent.id) == {run_id: "cancelled"}
        gate.open()
    becomes(lambda: world.world.query("SELECT count(*) FROM jobs WHERE kind = 'run'") == [0])
    send.create(agent.id, input="Two")
    assert said(world, agent.id) == ["user: Two", "assistant: Ok."]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_tool_of_the_clients_waits_for_its_result(world: LettaWorld, is_stream: bool) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    options: Any = {"background": True, "client_tools": [LOOK]}

    def send(**said: Any) -> tuple[list[str], str]:
        if not is_stream:
            reply = messages.create(agent.id, **said, **options)
            return [m.message_type for m in reply.messages], reply.stop_reason.stop_reason
        events = list(messages.create(agent.id, streaming=True, include_pings=False, **said, **options))
        *told, stop, _ = events[1:]  # the first names the run
        return [m.message_type for m in told], stop.stop_reason  # type: ignore[union-attr]

    world.upstream.queue(call_tools(Call("look", {}, "c1")), say("Nothing."))
    assert send(input="Work.") == (["approval_request_message"], "requires_approval")
    answer = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Dark."}
    given = [{"type": "approval", "approvals": [answer]}]
    assert send(messages=given) == (["tool_return_message", "assistant_message"], "end_turn")
    assert [chat.json["tools"][-1]["function"]["name"] for chat in world.upstream.chats] == ["look", "look"]


def test_a_run_that_ended_with_part_of_the_answers_shows_no_calls_of_a_later_run(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(call_tools(Call("look", {}, "w1"), Call("look", {}, "w2"), Call("look", {}, "w3")))
    world.upstream.queue(call_tools(Call("look", {}, "z1"), Call("look", {}, "z2")))

    def send(**said: Any) -> Run:
        run = world.letta.agents.messages.create_async(agent.id, client_tools=[LOOK], **said)
        done = ended(world, run.id)
        assert (done.status, done.stop_reason) == ("completed", "requires_approval")
        return done

    def answer(*call_ids: str) -> Run:
        answers = [
            {"type": "tool", "tool_call_id": id, "status": "success", "tool_return": "Dark."}
            for id in call_ids
        ]
        return send(messages=[{"type": "approval", "approvals": answers}])

    def shown_calls(run: Run) -> list[str]:
        asked = [e for e in stream(world, run.id) if e["message_type"] == "approval_request_message"]
        assert {e["run_id"] for e in asked} <= {run.id}
        return [call["tool_call_id"] for e in asked for call in e["tool_calls"]]

    send(input="Work.")
    first, second = answer("w1"), answer("w2")
    let_events_go(world)
    assert [shown_calls(run) for run in (first, second)] == [["w3"], ["w3"]]
    last = answer("w3")
    let_events_go(world)
    assert [shown_calls(run) for run in (first, second, last)] == [[], [], ["z1", "z2"]]


def test_a_url_that_no_setting_names_is_not_called_back(world: LettaWorld) -> None:
    agent = world.agent()
    with pytest.raises(BadRequestError, match=r"tools\.hosts names none"):
        world.letta.agents.messages.create_async(
            agent.id, input="Work.", callback_url="https://example.org/done"
        )


def test_the_same_send_again_is_the_same_run(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    world.upstream.queue(say("Once.", hold_before_headers=gate))
    message: Any = {"role": "user", "content": "Work.", "otid": "o1"}
    first = world.letta.agents.messages.create_async(agent.id, messages=[message])
    again = world.letta.agents.messages.create_async(agent.id, messages=[message])
    assert again.id == first.id
    gate.open()
    assert ended(world, first.id).status == "completed"
    assert world.letta.agents.messages.create_async(agent.id, messages=[message]).id == first.id
    live = world.letta.agents.messages.create(agent.id, messages=[message])
    assert live.messages[0].content == "Once."  # type: ignore[union-attr]
    assert len(world.upstream.chats) == 1


def test_a_send_that_ended_before_it_began_is_said_when_it_comes_again(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands at the end of the conversation without a reply is another run's: the results of its last calls."""
    agent, send = world.agent(tools=["memory_insert"]), world.letta.agents.messages
    world.upstream.queue(call_tools(Call("memory_insert", {"label": "human", "new_string": "Plays."}, "c1")))
    assert send.create(agent.id, input="I play.", max_steps=1).stop_reason.stop_reason == "max_steps"
    message: Any = {"role": "user", "content": "Which instrument?", "otid": "o1"}
    with held_as_it_begins(world, monkeypatch) as (began, gate):
        run = send.create_async(agent.id, messages=[message])
        began.wait_sync()
    assert send.cancel(agent.id, run_ids=[run.id]) == {run.id: "cancelled"}
    gate.open()
    send.create(agent.id, messages=[message])
    assert world.upstream.last.messages[-1]["content"] == "Which instrument?"


def test_a_failed_send_can_be_resent_after_another_that_was_under_way(world: LettaWorld) -> None:
    agent, messages, gate = world.agent(), world.letta.agents.messages, Gate()
    message: Any = {"role": "user", "content": "Is it done?", "otid": "o1"}
    world.upstream.queue(fail(500), say("Not yet.", hold_before_headers=gate), say("Now."))
    assert ended(world, messages.create_async(agent.id, messages=[message]).id).status == "failed"
    arrived = world.upstream.request_gate(2)
    messages.create_async(agent.id, input="And the other thing?")
    arrived.wait_sync()
    again = messages.create_async(agent.id, messages=[message])
    gate.open()
    assert ended(world, again.id).status == "completed"
    contents = [m["content"] for m in world.upstream.last.messages[1:]]
    assert contents == ["Is it done?", "And the other thing?", "Not yet.", "Is it done?"]
    assert messages.create_async(agent.id, messages=[message]).id == again.id


def test_a_message_that_another_ones_refusal_keeps_out_is_said_once(world: LettaWorld) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    message: Any = {"role": "user", "content": "Second", "otid": "o1"}
    world.upstream.queue(say("Ok."), fail(500), *[fail(400, "It was filtered.")] * 2, say("Yes."))
    messages.create(agent.id, input="First")
    for each in (message, {"role": "user", "content": "Bad words"}):
        assert ended(world, messages.create_async(agent.id, messages=[each]).id).status == "failed"
    assert ended(world, messages.create_async(agent.id, messages=[message]).id).status == "completed"
    assert said(world, agent.id) == ["user: First", "assistant: Ok.", "user: Second", "assistant: Yes."]


@pytest.mark.sqlite  # another database is read until the run is over
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_live_send_again_in_the_background_waits_for_the_same_answer(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    agent = world.agent()
    gate, waits = Gate(), Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Once.", hold_before_headers=gate))
    wait_for_end = RunFollower.wait_for_end

    async def note_wait(runs: RunFollower, run: StoredRun) -> StoredRun:
        waits.open()
        return await wait_for_end(runs, run)

    monkeypatch.setattr(RunFollower, "wait_for_end", note_wait)
    message: Any = {"role": "user", "content": "Work.", "otid": "o1"}
    create = world.letta.agents.messages.create
    with ThreadPoolExecutor(2) as pool:
        live = pool.submit(create, agent.id, messages=[message])
        arrived.wait_sync()

        def send_again() -> list[Any]:
            again: Any = create(agent.id, messages=[message], background=True, streaming=is_stream)
            return list(again) if is_stream else again.messages

        again = pool.submit(send_again)
        waits.wait_sync()
        gate.open()
        live.result(PATIENCE_S)
        assert "Once." in [getattr(each, "content", "") for each in again.result(PATIENCE_S)]


def test_a_run_whose_job_is_taken_away_blocks_no_other(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Never.", hold_before_headers=gate))
    run = world.letta.agents.messages.create_async(agent.id, input="One")
    arrived.wait_sync()

    async def take_away() -> None:
        (job,) = await world.world.store.jobs.list_newest()
        await world.world.store.jobs.cancel(job.id)

    world.world.gateway.call(take_away())
    assert ended(world, run.id).status == "cancelled"
    gate.open()
    assert world.letta.agents.messages.create(agent.id, input="Two").messages[-1].content == "Ok."  # type: ignore[union-attr]


@pytest.mark.both
def test_runs_that_wait_are_looked_at_once_however_many_jobs_change(
    world: LettaWorld, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, gate, looks = RunRecovery.close_jobless, Gate(), list[int]()

    async def note_and_sweep(self: RunRecovery) -> None:
        looks.append(len(looks))
        await sweep(self)

    async def change_jobs() -> None:
        for _ in range(50):
            world.world.store.jobs.wake_here()
            await asyncio.sleep(0.001)

    monkeypatch.setattr(RunRecovery, "close_jobless", note_and_sweep)
    monkeypatch.setattr(run_service, "_SEARCH_PAUSE_S", PATIENCE_S)
    upstream.queue(say("Done.", hold_before_headers=gate))
    run = world.letta.agents.messages.create_async(world.agent().id, input="Work.")
    becomes(lambda: looks)
    before = len(looks)
    world.world.gateway.call(change_jobs())
    assert len(looks) <= before + 1
    gate.open()
    assert ended(world, run.id).status == "completed"


def test_a_run_without_a_job_that_no_process_has_open_is_cancelled(world: LettaWorld) -> None:
    """The process that has accepted it is gone, and an operator has dropped its job since."""
    agent = world.agent()

    async def leave_run() -> str:
        store = world.world.store
        memory = (await store.defined_agents.get("default", parse_uid("agent", agent.id) or "")).agent
        draft = StoredRun(0, new_uid(), memory.id, 0, RunState.CREATED, world.world.clock(), background=True)
        return (
            await store.runs.accept_run(RunAccept(draft, b"{}", DEFAULT_CONVERSATION, new_uid(), kind=""))
        ).uid

    run = make_id("run", world.world.gateway.call(leave_run()))
    world.world.gateway.call(world.world.gateway.app.services.agents.run_service._end_abandoned_runs())
    assert ended(world, run).status == "cancelled"


@pytest.mark.parametrize("is_read", [False, True])
def test_a_run_whose_conversation_is_reset_before_its_message_blocks_no_other(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """Its job is tried once more, when the conversation that it belongs to has another name."""
    agent = world.agent()
    runs = world.world.gateway.app.services.agents.background_runs
    began, gate, run_agent = Gate(), Gate(), runs._run_agent

    async def held(*arguments: Any) -> None:
        began.open()
        await gate.wait()
        await run_agent(*arguments)

    send = world.letta.agents.messages
    send.create(agent.id, input="Hello.")  # there is something to be erased
    with monkeypatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.setattr(runs, "_run_agent", held)
        body = {"messages": [{"role": "user", "content": "Work."}], "streaming": True, "background": True}
        ask, path = world.world.gateway.ask, f"/v1/agents/{agent.id}/messages/stream"
        if is_read:
            headers = {"content-type": "application/json"}
            reader = threads.submit(ask, "POST", path, orjson.dumps(body), headers)
        else:
            send.create_async(agent.id, input="Work.")
        began.wait_sync()
        patch.undo()
        assert world.ask("PATCH", f"/v1/agents/{agent.id}/reset-messages", {})[0] == 200
        gate.open()
        send.create(agent.id, input="And now?")
        if is_read:
            assert b"cancelled" in reader.result(PATIENCE_S).body
    assert said(world, agent.id) == ["user: And now?", "assistant: Ok."]


def test_a_run_whose_conversation_is_not_found_any_more_is_not_tried_again(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try would find the same, and the agent's other runs and the sends of the conversation wait meanwhile."""

    async def perform(*_: object) -> None:
        raise NotFound("there is no such conversation")

    monkeypatch.setattr(
        world.world.gateway.app.services.agents.background_runs._agent_runs, "perform_accepted", perform
    )
    run = ended(world, world.letta.agents.messages.create_async(world.agent().id, input="Work.").id)
    assert (run.status, "is gone" in why(run)) == ("failed", True)


def test_a_url_is_called_when_the_run_has_ended(upstream: StrictUpstream, tmp_path: Path) -> None:
    with served(replying("200 OK", b"")) as server:
        secret = "whsec_" + base64.b64encode(b"0" * 32).decode()
        settings = ToolSettings(private_hosts=(server.url,), webhook_secret=secret)
        with letta(upstream, tmp_path, tools=settings) as world:
            agent = world.agent()
            upstream.queue(say("Done."))
            url = f"{server.url}/done"
            run = world.letta.agents.messages.create_async(agent.id, input="Work.", callback_url=url)
            ended(world, run.id)
            told = called_back(world, run.id)
            assert (told.callback_url, told.callback_status_code, told.callback_error) == (url, 200, None)
    (body,) = map(orjson.loads, server.bodies)
    assert (body["run_id"], body["status"], body["stop_reason"]) == (run.id, "completed", "end_turn")
    assert body["metadata"]["result"]["messages"][0]["content"] == "Done."
    assert f"webhook-id: {run.id.removeprefix('run-')}" in server.heads[0]
    assert "webhook-signature: v1," in server.heads[0]


@pytest.mark.parametrize(
    ("status", "head", "state"), [("302 Found", b"Location: /other\r\n", "dead"), ("500 No", b"", "retrying")]
)
def test_a_callback_is_tried_again_and_follows_no_redirect(
    upstream: StrictUpstream, tmp_path: Path, status: str, head: bytes, state: str
) -> None:
    reply = f"HTTP/1.1 {status}\r\n".encode() + head + b"Content-Length: 0\r\n\r\n"
    with (
        served(reply) as server,
        letta(upstream, tmp_path, tools=ToolSettings(private_hosts=(server.url,))) as world,
    ):
        agent, url = world.agent(), f"{server.url}/done"
        run = world.letta.agents.messages.create_async(agent.id, input="Work.", callback_url=url)
        assert str(called_back(world, run.id).callback_status_code) == status[:3]
        becomes(lambda: world.world.query("SELECT state FROM jobs WHERE kind = 'callback'") == [state])
    assert len(server.bodies) == 1


def called_back(world: LettaWorld, run_id: str) -> Run:
    def look() -> Run | None:
        run = world.letta.runs.retrieve(run_id)
        return None if run.callback_sent_at is None else run

    return becomes(look)


def test_the_events_of_a_run_are_dropped_three_hours_after_its_end(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(say("Done."))
    with world.letta.agents.messages.create(
        agent.id, input="Work.", streaming=True, background=True
    ) as events:
        list(events)
    (run,) = world.letta.runs.list(agent_id=agent.id)
    ended(world, run.id)
    assert stream(world, run.id)[0]["message_type"] == "ping"
    let_events_go(world)
    events_now = stream(world, run.id)
    assert [e["message_type"] for e in events_now] == [
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]


@pytest.mark.both
def test_a_run_that_is_tried_again_goes_before_those_that_wait(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their jobs wait for its job, so it would wait for ever after them."""
    runs, began, gate = world.world.gateway.app.services.agents.background_runs._agent_runs, Gate(), Gate()

    async def break_off(*_: object) -> None:
        began.open()
        await gate.wait()
        raise StoreUnavailable("the disk is full")

    agent, send, jobs = world.agent(), world.letta.agents.messages, world.world.store.jobs
    with monkeypatch.context() as patch:
        patch.setattr(runs, "perform_accepted", break_off)
        first = send.create_async(agent.id, input="First.")
        began.wait_sync()
    second = send.create_async(agent.id, input="Second.")
    gate.open()
    becomes(lambda: [job for job in world.world.gateway.call(jobs.list_newest()) if job.state == "retrying"])
    world.world.clock.sleep(10)
    jobs.wake_here()
    assert [ended(world, each.id).status for each in (first, second)] == ["completed"] * 2


@pytest.mark.both
def test_a_reader_goes_on_with_the_attempt_after_one_that_could_not_write_its_end(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, failed = RunLogs.complete, Gate()

    async def fail_once(*args: Any) -> None:
        if not failed.is_open:
            failed.open()
            raise StoreUnavailable("the disk is full")
        await complete(*args)

    monkeypatch.setattr(RunLogs, "complete", fail_once)
    services, call = world.world.gateway.app.services, world.world.gateway.call
    jobs, gate = world.world.store.jobs, Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("One.", hold_before_headers=gate))
    asked: Any = {"streaming": True, "stream_tokens": True, "background": True}
    with world.letta.agents.messages.create(world.agent().id, input="Work.", **asked) as events:
        run_id = next(iter(events)).run_id
    arrived.wait_sync()  # its log is open
    with world.letta.runs.messages.stream(run_id) as events:
        assert next(iter(events)).message_type == "ping"
        gate.open()
        failed.wait_sync()
        becomes(lambda: [job for job in call(jobs.list_newest()) if job.state == "retrying"])
        call(services.agents.background_runs.recovery.close_jobless())
        world.world.clock.sleep(10)
        jobs.wake_here()
        kinds = [event.message_type for event in events]
    assert kinds[-2:] == ["stop_reason", "usage_statistics"]


@pytest.mark.both
def test_events_that_a_dead_process_has_left_without_an_end_are_read_once(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_follower, "_WAIT_FOR_REST_S", 0.0)
    agent = world.agent()
    world.upstream.queue(say("One.", tokens=["One", "."]))
    asked: Any = {"streaming": True, "stream_tokens": True, "background": True}
    with world.letta.agents.messages.create(agent.id, input="Work.", **asked) as events:
        run_id = next(iter(events)).run_id
        list(events)
    ended(world, run_id)

    async def lose_the_end() -> None:
        store = world.world.store
        (entry,) = await store.runs.list_runs("default", RunFilter(), Page())
        run, loaded = entry.run, await store.agents.find_by_id(entry.run.agent_row)
        assert loaded is not None
        logged = [event async for _, event in load_events(store, run, 0)][:3]
        await store.responses.drop_events(run.agent_row, run.id)
        await store.run_texts.add_events(run.agent_row, run.id, 3, b"".join(logged), epoch=loaded.epoch)

    world.world.gateway.call(lose_the_end())
    events = stream(world, run_id)
    assert text_of(events) == "One."
    assert [e["message_type"] for e in events[-2:]] == ["stop_reason", "usage_statistics"]
    assert stream(world, run_id, 3) == events[3:]


@pytest.mark.both
def test_a_log_begins_with_a_ping_whichever_attempt_is_the_first_to_perform(world: LettaWorld) -> None:
    """A forgetting ends the attempt that waits, and counts as one more for each job."""
    agent, send = world.agent(), world.letta.agents.messages
    before = send.create(agent.id, input="Hello.").messages[-1].id
    gate, arrived = Gate(), world.upstream.request_gate(2)
    world.upstream.queue(say("Slow.", hold_before_headers=gate))
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(send.create, agent.id, input="Hi")
        arrived.wait_sync()
        with send.create(agent.id, input="Work.", streaming=True, background=True):
            (run,) = world.letta.runs.list(agent_id=agent.id, background=True)
        assert world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{before}")[0] == 200
        gate.open()
        live.exception(PATIENCE_S)  # its reply may quote what is forgotten
    assert ended(world, run.id).status == "completed"
    kinds = [e["message_type"] for e in stream(world, run.id)]
    assert (kinds[0], kinds.count("ping"), kinds[-1]) == ("ping", 1, "usage_statistics")


@pytest.mark.both
def test_too_many_sends_queued_after_a_run_are_refused(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Done.", hold_before_headers=gate))
    world.letta.agents.messages.create_async(agent.id, input="Work.")
    arrived.wait_sync()
    with ThreadPoolExecutor(MAX_SENDS + 1) as pool:
        sends = [
            pool.submit(world.letta.agents.messages.create, agent.id, input=f"{n}")
            for n in range(MAX_SENDS + 1)
        ]
        refused, others = wait(sends, PATIENCE_S, FIRST_COMPLETED)
        gate.open()
        assert [type(each.exception()) for each in refused] == [RateLimitError]
        assert {each.result(PATIENCE_S).stop_reason.stop_reason for each in others} == {"end_turn"}


def test_many_runs_hold_up_no_live_send(world: LettaWorld) -> None:
    gate = Gate()
    arrived = world.upstream.request_gate(16)
    world.upstream.script = lambda request: (
        say("Late.", hold_before_headers=gate)
        if request.messages[-1]["content"].endswith("Work.")
        else say("Ok.")
    )
    agents = [world.agent().id for _ in range(20)]
    runs = [world.letta.agents.messages.create_async(each, input="Work.") for each in agents]
    arrived.wait_sync()
    other = world.agent().id
    assert world.letta.agents.messages.create(other, input="Hi").messages[-1].content == "Ok."  # type: ignore[union-attr]
    states = [world.letta.runs.retrieve(run.id).status for run in runs]
    assert (states.count("running"), states.count("created")) == (16, 4)
    gate.open()
    assert {ended(world, run.id).status for run in runs} == {"completed"}


@pytest.mark.sqlite
def test_the_job_of_a_run_that_has_ended_takes_nobodys_place(world: LettaWorld) -> None:
    """A process that was killed right after the end of a run leaves its job, which is performed first."""
    agent = world.agent()
    old = world.letta.agents.messages.create_async(agent.id, input="0")
    ended(world, old.id)
    gate = Gate()
    arrived = world.upstream.request_gate(2)
    world.upstream.queue(say("Ok.", hold_before_headers=gate))
    first = world.letta.agents.messages.create_async(agent.id, input="1")
    arrived.wait_sync()

    async def leave_the_job() -> None:
        store = world.world.store
        (entry,) = await store.runs.list_runs("default", RunFilter(states=[RunState.COMPLETED]), Page())
        payload = orjson.dumps({"run": entry.run.id})
        await store.jobs.enqueue("run", entry.run.agent_row, entry.run.uid, payload)

    world.world.gateway.call(leave_the_job())
    second = world.letta.agents.messages.create_async(agent.id, input="2")
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(world.letta.agents.messages.create, agent.id, input="3")
        queue = world.world.gateway.app.services.chat.keeper.queues  # type: ignore[union-attr]
        becomes(lambda: queue._limited_counts)
        gate.open()
        live.result(PATIENCE_S)
    assert [ended(world, each.id).status for each in (first, second)] == ["completed"] * 2
    assert [line for line in said(world, agent.id) if line.startswith("user")] == [
        "user: 0", "user: 1", "user: 2", "user: 3",
    ]  # fmt: skip


def test_an_answer_to_a_pause_goes_on_in_the_background(world: LettaWorld) -> None:
    agent = world.agent(tools=["memory_insert"])
    world.letta.agents.tools.update_approval("memory_insert", agent_id=agent.id, body_requires_approval=True)
    block = Call("memory_insert", {"label": "human", "new_string": "Likes tea."}, "c1")
    world.upstream.queue(call_tools(block), say("Noted."))
    run = world.letta.agents.messages.create_async(agent.id, input="I like tea.")
    paused = ended(world, run.id)
    assert (paused.status, paused.stop_reason) == ("completed", "requires_approval")
    approval: Any = {
        "type": "approval",
        "approvals": [{"type": "approval", "tool_call_id": "c1", "approve": True}],
    }
    answer = world.letta.agents.messages.create_async(agent.id, messages=[approval])
    assert ended(world, answer.id).stop_reason == "end_turn"
    assert said(world, agent.id)[-1] == "assistant: Noted."
    assert "Likes tea." in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value


@pytest.mark.both(is_live=[True])
@pytest.mark.parametrize("is_live", [False, True])
def test_an_answer_that_is_cancelled_while_its_calls_are_made_waits_for_nothing(
    world: LettaWorld, is_live: bool
) -> None:
    name = "send_message_to_agent_and_wait_for_reply"
    agent, other, messages = world.agent(tools=[name]), world.agent(), world.letta.agents.messages
    world.letta.agents.tools.update_approval(name, agent_id=agent.id, body_requires_approval=True)
    gate, arrived = Gate(), world.upstream.request_gate(2)
    asks = Call(name, {"message": "Well?", "other_agent_id": other.id}, "c1")
    world.upstream.queue(call_tools(asks), say("Well.", hold_before_headers=gate))
    messages.create(agent.id, input="Ask.")
    approval: Any = {"type": "approval", "approve": True}

    def results() -> list[Any]:
        return [m for m in messages.list(agent.id) if m.message_type == "tool_return_message"]

    with ThreadPoolExecutor() as threads:
        answered = threads.submit(
            messages.create if is_live else messages.create_async, agent.id, messages=[approval]
        )
        arrived.wait_sync()
        ((run_id, state),) = messages.cancel(agent.id).items()
        assert (state, ended(world, run_id).stop_reason) == ("cancelled", "cancelled")
        answered.result(PATIENCE_S)
    gate.open()
    last = becomes(lambda: returned[0] if (returned := results()) else None)
    assert last.tool_return == INTERRUPTED_RESULT


def test_a_conversation_that_is_deleted_takes_its_runs_along(world: LettaWorld) -> None:
    agent = world.agent()
    conversation = world.letta.conversations.create(agent_id=agent.id).id
    gate = Gate()
    arrived = world.upstream.request_gate(1)
    world.upstream.queue(say("Never.", hold_before_headers=gate))
    with world.letta.conversations.messages.create(
        conversation, input="Work.", background=True, streaming=True
    ) as events:
        next(iter(events))
    arrived.wait_sync()
    world.letta.conversations.delete(conversation)
    becomes(lambda: world.world.query("SELECT count(*) FROM jobs WHERE kind = 'run'") == [0])
    gate.open()
    assert world.letta.agents.messages.create(agent.id, input="Hi").messages


@pytest.mark.sqlite
def test_a_run_broken_off_at_its_end_says_that_its_write_failed(
    upstream: StrictUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with letta(upstream, tmp_path) as world:
        agent = world.agent()
        answer, entered, disk = Gate(), Gate(), Gate()
        arrived = upstream.request_gate(1)
        upstream.queue(say("Hi.", hold_before_headers=answer))
        world.letta.agents.messages.create_async(agent.id, input="Hi")
        arrived.wait_sync()

        def forget(connection: sqlite3.Connection) -> None:
            entered.open()
            disk.wait_sync()
            connection.execute("UPDATE agents SET epoch = epoch + 1")

        async def begin_forgetting() -> None:
            world.world.store.database.writer.submit(forget)

        async def break_off() -> None:
            """The run's job is cancelled while the run's end waits for the forgetting."""
            while world.world.store.health.waiting < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            (job,) = [task for task in asyncio.all_tasks() if task.get_name().startswith("job-")]
            job.cancel()

        world.world.gateway.call(begin_forgetting())
        entered.wait_sync()
        answer.open()
        world.world.gateway.call(break_off())
        disk.open()
    gc.collect()
    (said,) = [record for record in caplog.records if "forgotten" in record.getMessage()]
    assert (said.name, said.levelname) == ("mnemogate", "WARNING")


QUOTED = "I cannot answer 'My violin is from Cremona.'"


def why(run: Run) -> Any:
    return (run.metadata or {}).get("error")


@pytest.mark.parametrize(
    "reply",
    [
        fail(400, QUOTED),  # a status
        raw(b'data: {"error":{"message":"' + QUOTED.encode() + b'"}}\n\n'),  # after a status
    ],
    ids=["status", "stream"],
)
def test_a_run_that_failed_says_why(world: LettaWorld, reply: Reply) -> None:
    agent = world.agent()
    world.upstream.queue(reply, reply)
    run = ended(world, world.letta.agents.messages.create_async(agent.id, input="My violin.").id)
    assert (run.status, run.stop_reason, why(run)) == ("failed", "llm_api_error", QUOTED)
    with pytest.raises(APIStatusError, match="violin"):
        world.letta.agents.messages.create(agent.id, input="And now?")
    assert [why(each) for each in world.letta.runs.list(agent_id=agent.id)] == [QUOTED, QUOTED]
    world.letta.agents.messages.create(agent.id, input="Good.")
    assert why(next(iter(world.letta.runs.list(agent_id=agent.id)))) is None


@each_row(
    ("replies", "stop", "words"),
    [
        (
            [call_tools(Call("memory_insert", "{", f"c{n}")) for n in range(3)],
            "invalid_tool_call",
            "no JSON",
        ),
        ([say("Hm.")] * 3, "no_tool_call", "called no tool"),
        ([say("Hm.", finish_reason="length")], "max_tokens_exceeded", "limit of its tokens"),
        ([say("Hm.", finish_reason="content_filter")], "invalid_llm_response", "filter"),
    ],
)
def test_a_run_that_failed_by_its_replies_says_why(
    world: LettaWorld, replies: list[Reply], stop: str, words: str
) -> None:
    rules: Any = [{"type": "run_first", "tool_name": "memory_insert"}] if stop == "no_tool_call" else []
    agent = world.agent(tool_rules=rules)
    world.upstream.queue(*replies)
    assert world.letta.agents.messages.create(agent.id, input="Go.").stop_reason.stop_reason == stop
    (run,) = world.letta.runs.list(agent_id=agent.id)
    newest, *others = world.letta.steps.list(agent_id=agent.id)
    assert (run.status, run.stop_reason, newest.error_type) == ("failed", stop, stop)
    assert words in why(run)
    assert newest.error_data == {"message": why(run)}
    assert {each.error_data for each in others} <= {None}


@pytest.mark.parametrize("background", [False, True])
def test_an_error_after_a_step_is_reported_by_its_run(world: LettaWorld, background: bool) -> None:
    """What was done is shown, and its run says the rest."""
    agent = world.agent(tools=["memory_insert"])
    block = Call("memory_insert", {"label": "human", "new_string": "Plays."}, "c1")
    world.upstream.queue(call_tools(block), fail(500, "Down."))
    reply = world.letta.agents.messages.create(agent.id, input="I play.", background=background)
    assert reply.stop_reason.stop_reason == "llm_api_error"
    run_id = reply.messages[0].run_id
    assert run_id
    assert why(world.letta.runs.retrieve(run_id)) == "Down."
    failed, done = world.letta.steps.list(agent_id=agent.id).items
    assert (failed.error_data, done.error_data) == ({"message": "Down."}, None)
    assert world.letta.steps.retrieve(failed.id).error_data == {"message": "Down."}
    assert [each.error_data for each in world.letta.runs.steps.list(run_id)] == [failed.error_data, None]


def test_an_upstreams_error_that_quotes_a_conversation_is_forgotten_with_it(world: LettaWorld) -> None:
    agent = world.agent()
    conversation = world.letta.conversations.create(agent_id=agent.id).id
    world.upstream.queue(fail(400, QUOTED), fail(400, QUOTED))
    run = world.letta.agents.messages.create_async(agent.id, input="My violin.")
    assert why(ended(world, run.id)) == QUOTED
    with pytest.raises(APIStatusError):
        world.letta.conversations.messages.create(conversation, input="My violin.", streaming=False)
    world.letta.conversations.delete(conversation)
    world.world.settle()
    assert why(world.letta.runs.retrieve(run.id)) is None
    assert world.world.query("SELECT count(*) FROM run_texts WHERE length(data) > 2") == [0]


def test_why_a_run_failed_is_known_after_its_events_are_gone(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(fail(500, "Down."))
    run = ended(world, world.letta.agents.messages.create_async(agent.id, input="Work.").id)
    let_events_go(world)
    assert why(world.letta.runs.retrieve(run.id)) == "Down."


def test_a_stream_of_a_run_that_failed_ends_with_its_error_with_a_log_and_without(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(fail(500, "Down."), fail(500, "Down."))
    run = ended(world, world.letta.agents.messages.create_async(agent.id, input="Work.").id)
    events = stream(world, run.id)
    assert [e["message_type"] for e in events] == ["stop_reason", "error_message"]
    assert (events[0]["stop_reason"], events[1]["message"]) == ("llm_api_error", "Down.")
    assert events[1]["run_id"] == run.id
    with pytest.raises(APIStatusError), world.letta.runs.messages.stream(run.id) as followed:
        list(followed)
    with (
        pytest.raises(APIStatusError),
        world.letta.agents.messages.create(
            agent.id, input="Work.", streaming=True, background=True
        ) as logged,
    ):
        list(logged)
    run = next(iter(world.letta.runs.list(agent_id=agent.id)))
    said = ["stop_reason", "error_message"]
    assert [e["message_type"] for e in stream(world, ended(world, run.id).id)] == ["ping", *said]
    let_events_go(world)
    assert [e["message_type"] for e in stream(world, run.id)] == said


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_a_whole_reply_of_a_run_that_failed_at_once_is_its_error(world: LettaWorld, status: int) -> None:
    """As of a send whose client waits: `letta-client` sends again what is told to be in the way for a moment alone."""
    agent = world.agent()
    letta = world.letta.with_options(max_retries=0)
    for is_background in (True, False):
        world.upstream.queue(fail(status, QUOTED), fail(status, QUOTED))
        with pytest.raises(APIStatusError, match="Cremona") as error:
            letta.agents.messages.create(agent.id, input="My violin.", background=is_background)
        assert error.value.status_code == status
        world.upstream.forget_replies()


def test_a_whole_reply_of_a_run_that_got_a_page_for_a_completion_is_an_error(world: LettaWorld) -> None:
    """The page came with a status of success, which is not the status of the error."""
    agent = world.agent()
    world.upstream.queue(raw(b"<html>Login</html>", content_type="text/html"))
    body = {"input": "My violin.", "background": True}
    status, reply = world.ask("POST", f"/v1/agents/{agent.id}/messages", body)
    assert (status, "neither a chat completion" in reply["detail"]) == (502, True)


def test_a_run_whose_reply_is_lost_to_forgetting_says_that_alone(world: LettaWorld) -> None:
    agent = world.agent()
    other = world.letta.conversations.create(agent_id=agent.id).id
    with world.letta.conversations.messages.create(other, input="My violin is from Cremona.") as events:
        list(events)
    world.world.settle()
    gate, arrived = Gate(), world.upstream.request_gate(2)
    world.upstream.queue(fail(400, QUOTED, hold_before_headers=gate))
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(world.letta.agents.messages.create, agent.id, input="And my violin?")
        arrived.wait_sync()
        world.letta.conversations.delete(other)
        gate.open()
        with pytest.raises(APIStatusError, match="forgotten"):
            live.result()
    run = next(iter(world.letta.runs.list(agent_id=agent.id)))
    assert (run.status, run.stop_reason) == ("failed", "error")
    assert "forgotten" in why(run)
    assert QUOTED not in why(run)
