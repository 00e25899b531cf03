"""The gateway is killed at each moment of a run that writes something, and the run goes on from there."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.agents.tools.agent_tools import MAX_RESULT_CHARS
from tests.agents.kills import Killed, Serving, torture, wait_for
from tests.agents.letta import spoken
from tests.doubles.upstream import Call, Gate, Reply, Seen, call_tools, say
from tests.gateway.process import Process
from tests.patience import PATIENCE_S


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Killed]:
    with Killed(tmp_path) as made:
        yield made


class Moment:
    """Where a run stands when its process is killed. after: what the model was sent by then."""

    def __init__(self, world: Killed) -> None:
        self.world = world
        self.arrived = Gate()

    def hold(self, seen: Seen) -> Reply | None:
        raise NotImplementedError

    def wait(self) -> None:
        self.arrived.wait_sync(PATIENCE_S)

    def held(self) -> Reply:
        self.arrived.open()
        return say("Never said.", hold_before_headers=self.world.hold)


class TurnHasBegun(Moment):
    def hold(self, seen: Seen) -> Reply | None:
        return self.held()


class ReplyHasBegun(Moment):
    def hold(self, seen: Seen) -> Reply | None:
        self.arrived.open()
        return say("Heard it.", tokens=["Heard ", "it", "."], hold_after={2: self.world.hold})


class ResultsAreThere(Moment):
    def hold(self, seen: Seen) -> Reply | None:
        return self.held() if seen.messages[-1]["role"] == "tool" else None


class CallIsSent(Moment):
    def hold(self, seen: Seen) -> Reply | None:
        self.world.webhook.held.add("b")
        return None

    def wait(self) -> None:
        wait_for(lambda: "b" in self.world.webhook.bells or None)
        # The result of the other one is stored.
        wait_for(lambda: self.world.query("SELECT 1 FROM run_texts WHERE kind = 'result'") or None)


MOMENTS = (TurnHasBegun, ReplyHasBegun, CallIsSent, ResultsAreThere)
INTERRUPTED = "tool_return: Error: the call was interrupted; it may or may not have been done."


@pytest.mark.parametrize("forgets", [False, True], ids=["", "forgotten"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_run_goes_on_from_where_it_was_killed(world: Killed, moment: type[Moment], forgets: bool) -> None:
    with world.serve() as gateway:
        agent = world.agent(gateway)
        gateway.letta.agents.messages.create(agent, input="before")
        at = moment(world)
        world.held = at.hold
        run = gateway.letta.agents.messages.create_async(agent, input="go ring a b")
        second = gateway.letta.agents.messages.create_async(agent, input="later")
        at.wait()
        if forgets:
            forget(gateway.process, gateway, agent)
        gateway.kill()
    world.go()
    with world.serve() as gateway:
        # A live send that comes first does not slip in between.
        live = gateway.letta.agents.messages.create(agent, input="live")
        assert live.messages[0].content == "Heard live."  # type: ignore[union-attr]
        assert gateway.ended(run.id).status == "completed"
        assert gateway.ended(second.id).status == "completed"
        before = [] if forgets else ["user: before", "assistant: Heard before."]
        results = ["tool_return: a rang", "tool_return: b rang"]
        if moment is CallIsSent:
            # What is forgotten may be quoted by a result that no step has taken in.
            results = [INTERRUPTED if forgets else results[0], INTERRUPTED]
        assert gateway.words(agent) == [
            *before, "user: go ring a b", "assistant: I ring.", "tool_call", *results, "assistant: All rang.",
            "user: later", "assistant: Heard later.", "user: live", "assistant: Heard live.",
        ]  # fmt: skip
        assert [step.stop_reason for step in gateway.letta.runs.steps.list(run.id, order="asc")] == [
            None,
            "end_turn",
        ]
    assert max(world.webhook.calls.values()) == 1
    assert sorted(world.webhook.bells) == ["a", "b"]


def forget(process: Process, gateway: Serving, agent: str) -> None:
    """Forgets the first turn, while a run is under way."""
    page = spoken(gateway.letta.agents.messages.list(agent, order="asc", limit=3))
    for message in [m for m in page if getattr(m, "content", "") in ("before", "Heard before.")]:
        reply = process.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        assert reply.status == 200, reply.body


def test_a_run_whose_message_is_forgotten_ends(world: Killed) -> None:
    with world.serve() as gateway:
        agent = world.agent(gateway)
        at = TurnHasBegun(world)
        world.held = at.hold
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        at.wait()
        (message,) = spoken(gateway.letta.agents.messages.list(agent))
        assert gateway.process.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}").status == 200
        gateway.kill()
    world.go()
    with world.serve() as gateway:
        assert gateway.ended(run.id).status == "failed"
        gateway.letta.agents.messages.create(agent, input="live")
        assert gateway.words(agent) == ["user: live", "assistant: Heard live."]


def test_a_live_run_of_a_dead_process_is_failed_and_its_send_is_answered_once(world: Killed) -> None:
    with world.serve() as gateway:
        agent = world.agent(gateway)
        at = ResultsAreThere(world)
        world.held = at.hold
        message: Any = {"role": "user", "content": "go ring a b", "otid": "o1"}
        failures: list[BaseException] = []

        def send() -> None:
            try:
                gateway.letta.agents.messages.create(agent, messages=[message])
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        at.wait()
        gateway.kill()
        thread.join()
        assert failures
    world.go()
    with world.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.ended(run.id).status == "failed"
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[message])
        words = gateway.words(agent)
        assert words.count("user: go ring a b") == 1
        assert words[-1] == "assistant: All rang."
    assert max(world.webhook.calls.values()) == 1


def test_a_result_that_was_stored_before_a_kill_is_the_one_that_the_model_reads(world: Killed) -> None:
    long = "<memory_block>" + "x" * MAX_RESULT_CHARS
    world.webhook.held.add("b")
    world.held = lambda seen: call_tools(*(Call("ring", {"bell": bell}) for bell in (long, "b")))
    with world.serve() as gateway, ThreadPoolExecutor(1) as pool:
        agent = world.agent(gateway)
        sent = pool.submit(gateway.letta.agents.messages.create, agent, input="go")
        CallIsSent(world).wait()
        gateway.kill()
        assert sent.exception() is not None
    world.go()
    with world.serve() as gateway:
        gateway.letta.agents.messages.create(agent, input="later")
        told = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
    shown = "‹memory_block>" + "x" * (MAX_RESULT_CHARS - len("<memory_block>"))
    cut = f"{shown}\n[{len('<memory_block> rang')} more characters were cut off.]"
    assert told == [cut, INTERRUPTED.partition(": ")[2]]


def test_the_text_of_a_stream_is_whole_after_a_kill(world: Killed) -> None:
    with world.serve() as gateway:
        agent = world.agent(gateway)
        at = ReplyHasBegun(world)
        world.held = at.hold
        # Nobody reads its events until it is dead.
        body = b'{"input":"hello","streaming":true,"stream_tokens":true,"background":true}'
        with gateway.process.connect() as client:
            client.request(
                "POST", f"/v1/agents/{agent}/messages/stream", body, {"content-type": "application/json"}
            )
            at.wait()
            wait_for(lambda: world.query("SELECT 1 FROM run_texts WHERE kind = 'event' AND seq > 1") or None)
        gateway.kill()
    world.go()
    with world.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.ended(run.id).status == "completed"
        events = gateway.events(run.id)
        texts: dict[str, str] = {}
        for event in events:
            if event["message_type"] == "assistant_message":
                texts[event["id"]] = texts.get(event["id"], "") + event["content"]
        assert list(texts.values()) == ["Heard ", "Heard hello."]
        first, second = texts
        assert second == f"{first}-2"
        numbers = [event["seq_id"] for event in events]
        assert numbers == sorted(numbers)
        assert any(number % 10_000 == 0 for number in numbers)
        for n in numbers:
            assert gateway.events(run.id, n) == [each for each in events if each["seq_id"] > n]


def test_a_reader_who_comes_back_before_the_run_does_hears_it_as_it_speaks(world: Killed) -> None:
    """16 other runs have all the slots when the next process starts, so its run has not begun again."""
    with world.serve() as gateway:
        agents = [world.agent(gateway) for _ in range(17)]
        world.held = lambda seen: say("Never said.", hold_before_headers=world.hold)
        runs = [gateway.letta.agents.messages.create_async(each, input="first") for each in agents[:16]]
        body = b'{"input":"last","streaming":true,"stream_tokens":true,"background":true}'
        wait_for(
            lambda: all(gateway.letta.runs.retrieve(each.id).status == "running" for each in runs) or None
        )
        with gateway.process.connect() as client:
            headers = {"content-type": "application/json"}
            client.request("POST", f"/v1/agents/{agents[16]}/messages/stream", body, headers)
            wait_for(lambda: world.query("SELECT 1 FROM runs WHERE id = 17") or None)
        gateway.kill()
    second, go_on = Gate(), Gate()

    def held(seen: Seen) -> Reply:
        if seen.messages[-1]["content"] == "last":
            return say("Heard last.", tokens=["Heard ", "last", "."], hold_after={2: go_on})
        return say("Ok.", hold_before_headers=second)

    world.held = held
    with world.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agents[16])
        with gateway.process.connect() as client:
            headers = {"content-type": "application/json"}
            client.request("POST", f"/v1/runs/{run.id}/stream", b'{"include_pings":false}', headers)
            client.read_until(b":\n\n")
            assert gateway.letta.runs.retrieve(run.id).status == "created"
            second.open()
            client.read_until(b"Heard ")
            assert gateway.letta.runs.retrieve(run.id).status == "running"
            go_on.open()
        assert gateway.ended(run.id).status == "completed"


def test_killed_at_chance_moments(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    torture(tmp_path, 4, seed)


def test_a_run_goes_on_after_an_orderly_stop(world: Killed) -> None:
    with world.serve() as gateway:
        agent = world.agent(gateway)
        at = ReplyHasBegun(world)
        world.held = at.hold
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        at.wait()
        gateway.process.child.terminate()
        assert gateway.process.child.wait(PATIENCE_S) == 0
    assert world.query("SELECT state, tries FROM jobs WHERE kind = 'run'") == [("retrying", 0)]
    assert world.query("SELECT state FROM runs") == [("running",)]
    world.go()
    with world.serve() as gateway:
        assert gateway.ended(run.id).status == "completed"
        assert gateway.words(agent) == ["user: go", "assistant: Heard go."]


def test_the_tools_of_a_client_are_offered_after_a_kill(world: Killed) -> None:
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    with world.serve() as gateway:
        agent = world.agent(gateway)
        at = TurnHasBegun(world)
        world.held = at.hold
        run = gateway.letta.agents.messages.create_async(agent, input="go", client_tools=[tool])
        at.wait()
        gateway.kill()
    world.held = lambda seen: call_tools(Call("look", {}, "c1"))
    world.hold.open()
    with world.serve() as gateway:
        assert gateway.ended(run.id).stop_reason == "requires_approval"
        (call,) = gateway.letta.agents.retrieve(agent).pending_approval.tool_calls  # type: ignore[union-attr]
        assert call.tool_call_id == "c1"  # type: ignore[union-attr]


def test_a_client_call_next_to_one_that_was_interrupted_waits_for_the_client(world: Killed) -> None:
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    world.webhook.held.add("b")
    world.held = lambda seen: call_tools(Call("ring", {"bell": "b"}, "r1"), Call("look", {}, "c1"))
    with world.serve() as gateway:
        agent = world.agent(gateway)
        messages = gateway.letta.agents.messages
        run = messages.create_async(agent, input="go", client_tools=[tool])
        wait_for(lambda: "b" in world.webhook.bells or None)
        gateway.kill()
    world.go()
    with world.serve() as gateway:
        assert gateway.ended(run.id).stop_reason == "requires_approval"
        (call,) = gateway.letta.agents.retrieve(agent).pending_approval.tool_calls  # type: ignore[union-attr]
        assert call.tool_call_id == "c1"  # type: ignore[union-attr]
        result = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Dark."}
        answer: Any = {"type": "approval", "approvals": [result]}
        gateway.letta.agents.messages.create(agent, messages=[answer], client_tools=[tool])
        told = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
        assert told == [INTERRUPTED.partition(": ")[2], "Dark."]
    assert world.webhook.bells == ["b"]


@pytest.mark.parametrize("background", [False, True])
def test_the_same_live_send_after_kills_goes_on_with_calls_of_both(
    world: Killed, *, background: bool
) -> None:
    """The gateway is killed once more as it goes on."""
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    message: Any = {"role": "user", "content": "go", "otid": "o1"}
    rings = [Call("ring", {"bell": bell}, bell) for bell in ("a", "b")]
    world.held = lambda seen: call_tools(*rings, Call("look", {}, "c1"))
    with world.serve() as gateway:
        agent = world.agent(gateway)
    for bell in ("a", "b"):
        world.webhook.held = {bell}
        with world.serve() as gateway, ThreadPoolExecutor(1) as pool:
            create = gateway.letta.agents.messages.create
            sent = pool.submit(create, agent, messages=[message], client_tools=[tool])
            wait_for(lambda bell=bell: bell in world.webhook.bells or None)  # type: ignore[misc]
            gateway.kill()
            assert sent.exception() is not None
    world.go()
    with world.serve() as gateway:
        messages = gateway.letta.agents.messages
        for _ in range(2):
            reply = messages.create(
                agent, messages=[message], client_tools=[tool], background=background, streaming=False
            )
            assert (reply.stop_reason.stop_reason, len(reply.messages)) == ("requires_approval", 1)
        newest, *failed = gateway.letta.runs.list(agent_id=agent, order="desc")
        assert (newest.stop_reason, [run.status for run in failed]) == ("requires_approval", ["failed"] * 2)
        (call,) = gateway.letta.agents.retrieve(agent).pending_approval.tool_calls  # type: ignore[union-attr]
        assert call.tool_call_id == "c1"  # type: ignore[union-attr]
        result = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Dark."}
        messages.create(agent, messages=[{"type": "approval", "approvals": [result]}], client_tools=[tool])
        told = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
        assert told == [INTERRUPTED.partition(": ")[2]] * 2 + ["Dark."]
        assert gateway.words(agent).count("user: go") == 1
    assert world.webhook.bells == ["a", "b"]
