"""A gateway is killed at several points of a run, and the run continues there after the next start."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.agents.tools.agent_tools import MAX_RESULT_CHARS
from tests.agents.agent_deployment import AgentDeployment, AgentGateway
from tests.agents.letta import spoken
from tests.agents.random_kills import kill_at_random
from tests.doubles.upstream import Call, Gate, Reply, UpstreamRequest, call_tools, say
from tests.patience import PATIENCE_S, becomes


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[AgentDeployment]:
    with AgentDeployment(tmp_path) as running:
        yield running


class KillPoint:
    """A point in a run at which a test kills the gateway. A subclass has the run wait at its point."""

    def __init__(self, deployment: AgentDeployment) -> None:
        self.deployment = deployment
        # Opened when the run has come to this point.
        self.reached = Gate()
        deployment.intercept = self.intercept

    def intercept(self, request: UpstreamRequest) -> Reply | None:
        """Returns the upstream's reply to a request, or None for the usual one."""
        raise NotImplementedError

    def wait(self) -> None:
        self.reached.wait_sync(PATIENCE_S)

    def hold_reply(self) -> Reply:
        """Returns a reply that never begins, for a request at this point."""
        self.reached.open()
        return say("Never sent.", hold_before_headers=self.deployment.gate)


class BeforeReply(KillPoint):
    def intercept(self, request: UpstreamRequest) -> Reply | None:
        return self.hold_reply()


class WithinReply(KillPoint):
    def intercept(self, request: UpstreamRequest) -> Reply | None:
        self.reached.open()
        return say("Heard it.", tokens=["Heard ", "it", "."], hold_after={2: self.deployment.gate})


class AfterResults(KillPoint):
    def intercept(self, request: UpstreamRequest) -> Reply | None:
        return self.hold_reply() if request.messages[-1]["role"] == "tool" else None


class WithinCall(KillPoint):
    """The call of bell b was sent; the result of bell a is stored."""

    def intercept(self, request: UpstreamRequest) -> Reply | None:
        self.deployment.webhook.held_bells.add("b")
        return None

    def wait(self) -> None:
        wait_for_bell_b(self.deployment)


def wait_for_bell_b(deployment: AgentDeployment) -> None:
    """Waits until the call of bell b was sent, and the result of another call is stored."""
    becomes(lambda: "b" in deployment.webhook.bells)
    becomes(lambda: deployment.query("SELECT 1 FROM run_texts WHERE kind = 'result'"))


KILL_POINTS = (BeforeReply, WithinReply, WithinCall, AfterResults)
INTERRUPTED = "tool_return: Error: the call was interrupted; it may or may not have been done."


@pytest.mark.parametrize("forgets", [False, True], ids=["", "forgotten"])
@pytest.mark.parametrize("kill_point", KILL_POINTS, ids=lambda kill_point: kill_point.__name__)
def test_a_run_continues_from_the_point_of_the_kill(
    deployment: AgentDeployment, kill_point: type[KillPoint], forgets: bool
) -> None:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        gateway.letta.agents.messages.create(agent, input="before")
        point = kill_point(deployment)
        run = gateway.letta.agents.messages.create_async(agent, input="go ring a b")
        second = gateway.letta.agents.messages.create_async(agent, input="later")
        point.wait()
        if forgets:
            forget_first_turn(gateway, agent)
        gateway.kill()
    deployment.release()
    with deployment.serve() as gateway:
        # A live send that comes before the runs begin again waits for them.
        live = gateway.letta.agents.messages.create(agent, input="live")
        assert live.messages[0].content == "Heard live."  # type: ignore[union-attr]
        assert gateway.wait_for_run(run.id).status == "completed"
        assert gateway.wait_for_run(second.id).status == "completed"
        before = [] if forgets else ["user: before", "assistant: Heard before."]
        results = ["tool_return: a rang", "tool_return: b rang"]
        if kill_point is WithinCall:
            # A result that no step has yet may quote the forgotten messages, so a forgetting erases it.
            results = [INTERRUPTED if forgets else results[0], INTERRUPTED]
        assert gateway.list_messages(agent) == [
            *before, "user: go ring a b", "assistant: I ring.", "tool_call", *results, "assistant: All rang.",
            "user: later", "assistant: Heard later.", "user: live", "assistant: Heard live.",
        ]  # fmt: skip
        assert [step.stop_reason for step in gateway.letta.runs.steps.list(run.id, order="asc")] == [
            None,
            "end_turn",
        ]
    assert max(deployment.webhook.calls.values()) == 1
    assert sorted(deployment.webhook.bells) == ["a", "b"]


def forget_first_turn(gateway: AgentGateway, agent: str) -> None:
    page = spoken(gateway.letta.agents.messages.list(agent, order="asc", limit=3))
    for message in [m for m in page if getattr(m, "content", "") in ("before", "Heard before.")]:
        reply = gateway.process.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        assert reply.status == 200, reply.body


def test_a_run_whose_message_is_forgotten_ends(deployment: AgentDeployment) -> None:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        point = BeforeReply(deployment)
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        point.wait()
        (message,) = spoken(gateway.letta.agents.messages.list(agent))
        assert gateway.process.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}").status == 200
        gateway.kill()
    deployment.release()
    with deployment.serve() as gateway:
        assert gateway.wait_for_run(run.id).status == "failed"
        gateway.letta.agents.messages.create(agent, input="live")
        assert gateway.list_messages(agent) == ["user: live", "assistant: Heard live."]


def test_a_live_run_of_a_killed_process_fails_and_its_resent_send_is_answered_once(
    deployment: AgentDeployment,
) -> None:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        point = AfterResults(deployment)
        message: Any = {"role": "user", "content": "go ring a b", "otid": "o1"}
        failures: list[BaseException] = []

        def send() -> None:
            try:
                gateway.letta.agents.messages.create(agent, messages=[message])
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        point.wait()
        gateway.kill()
        thread.join()
        assert failures
    deployment.release()
    with deployment.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.wait_for_run(run.id).status == "failed"
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[message])
        messages = gateway.list_messages(agent)
        assert messages.count("user: go ring a b") == 1
        assert messages[-1] == "assistant: All rang."
    assert max(deployment.webhook.calls.values()) == 1


def test_the_model_gets_the_result_that_was_stored_before_a_kill(deployment: AgentDeployment) -> None:
    long = "<memory_block>" + "x" * MAX_RESULT_CHARS
    deployment.webhook.held_bells.add("b")
    deployment.intercept = lambda _: call_tools(*(Call("ring", {"bell": bell}) for bell in (long, "b")))
    with deployment.serve() as gateway, ThreadPoolExecutor(1) as pool:
        agent = deployment.create_agent(gateway)
        future = pool.submit(gateway.letta.agents.messages.create, agent, input="go")
        wait_for_bell_b(deployment)
        gateway.kill()
        assert future.exception() is not None
    deployment.release()
    with deployment.serve() as gateway:
        gateway.letta.agents.messages.create(agent, input="later")
        results = [m["content"] for m in deployment.upstream.last.messages if m["role"] == "tool"]
    shown = "‹memory_block>" + "x" * (MAX_RESULT_CHARS - len("<memory_block>"))
    cut = f"{shown}\n[{len('<memory_block> rang')} more characters were cut off.]"
    assert results == [cut, INTERRUPTED.partition(": ")[2]]


def test_the_text_of_a_stream_is_whole_after_a_kill(deployment: AgentDeployment) -> None:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        point = WithinReply(deployment)
        # No client reads the events before the kill.
        body = b'{"input":"hello","streaming":true,"stream_tokens":true,"background":true}'
        with gateway.process.connect() as client:
            client.request(
                "POST", f"/v1/agents/{agent}/messages/stream", body, {"content-type": "application/json"}
            )
            point.wait()
            becomes(lambda: deployment.query("SELECT 1 FROM run_texts WHERE kind = 'event' AND seq > 1"))
        gateway.kill()
    deployment.release()
    with deployment.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.wait_for_run(run.id).status == "completed"
        events = gateway.read_run_events(run.id)
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
            assert gateway.read_run_events(run.id, n) == [each for each in events if each["seq_id"] > n]


def test_a_client_that_attaches_before_its_run_begins_again_gets_events_as_they_come(
    deployment: AgentDeployment,
) -> None:
    """16 other runs take all slots of the next process, so the run of the client has to wait."""
    with deployment.serve() as gateway:
        agents = [deployment.create_agent(gateway) for _ in range(17)]
        deployment.intercept = lambda _: say("Never sent.", hold_before_headers=deployment.gate)
        runs = [gateway.letta.agents.messages.create_async(each, input="first") for each in agents[:16]]
        body = b'{"input":"last","streaming":true,"stream_tokens":true,"background":true}'
        becomes(lambda: all(gateway.letta.runs.retrieve(each.id).status == "running" for each in runs))
        with gateway.process.connect() as client:
            headers = {"content-type": "application/json"}
            client.request("POST", f"/v1/agents/{agents[16]}/messages/stream", body, headers)
            becomes(lambda: deployment.query("SELECT 1 FROM runs WHERE id = 17"))
        gateway.kill()
    slots_gate, reply_gate = Gate(), Gate()

    def hold_replies(request: UpstreamRequest) -> Reply:
        if request.messages[-1]["content"] == "last":
            return say("Heard last.", tokens=["Heard ", "last", "."], hold_after={2: reply_gate})
        return say("Ok.", hold_before_headers=slots_gate)

    deployment.intercept = hold_replies
    with deployment.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agents[16])
        with gateway.process.connect() as client:
            headers = {"content-type": "application/json"}
            client.request("POST", f"/v1/runs/{run.id}/stream", b'{"include_pings":false}', headers)
            client.read_until(b":\n\n")
            assert gateway.letta.runs.retrieve(run.id).status == "created"
            slots_gate.open()
            client.read_until(b"Heard ")
            assert gateway.letta.runs.retrieve(run.id).status == "running"
            reply_gate.open()
        assert gateway.wait_for_run(run.id).status == "completed"


def test_a_gateway_that_is_killed_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    kill_at_random(tmp_path, 4, seed)


def test_a_run_continues_after_an_orderly_stop(deployment: AgentDeployment) -> None:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        point = WithinReply(deployment)
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        point.wait()
        gateway.process.child.terminate()
        assert gateway.process.child.wait(PATIENCE_S) == 0
    assert deployment.query("SELECT state, tries FROM jobs WHERE kind = 'run'") == [("retrying", 0)]
    assert deployment.query("SELECT state FROM runs") == [("running",)]
    deployment.release()
    with deployment.serve() as gateway:
        assert gateway.wait_for_run(run.id).status == "completed"
        assert gateway.list_messages(agent) == ["user: go", "assistant: Heard go."]


def test_a_run_has_the_tools_of_its_client_after_a_kill(deployment: AgentDeployment) -> None:
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        point = BeforeReply(deployment)
        run = gateway.letta.agents.messages.create_async(agent, input="go", client_tools=[tool])
        point.wait()
        gateway.kill()
    deployment.intercept = lambda _: call_tools(Call("look", {}, "c1"))
    deployment.gate.open()
    with deployment.serve() as gateway:
        assert gateway.wait_for_run(run.id).stop_reason == "requires_approval"
        (call,) = gateway.letta.agents.retrieve(agent).pending_approval.tool_calls  # type: ignore[union-attr]
        assert call.tool_call_id == "c1"  # type: ignore[union-attr]


def test_a_client_call_next_to_one_that_was_interrupted_waits_for_the_client(
    deployment: AgentDeployment,
) -> None:
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    deployment.webhook.held_bells.add("b")
    deployment.intercept = lambda _: call_tools(Call("ring", {"bell": "b"}, "r1"), Call("look", {}, "c1"))
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        messages = gateway.letta.agents.messages
        run = messages.create_async(agent, input="go", client_tools=[tool])
        becomes(lambda: "b" in deployment.webhook.bells)
        gateway.kill()
    deployment.release()
    with deployment.serve() as gateway:
        assert gateway.wait_for_run(run.id).stop_reason == "requires_approval"
        (call,) = gateway.letta.agents.retrieve(agent).pending_approval.tool_calls  # type: ignore[union-attr]
        assert call.tool_call_id == "c1"  # type: ignore[union-attr]
        result = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Dark."}
        answer: Any = {"type": "approval", "approvals": [result]}
        gateway.letta.agents.messages.create(agent, messages=[answer], client_tools=[tool])
        results = [m["content"] for m in deployment.upstream.last.messages if m["role"] == "tool"]
        assert results == [INTERRUPTED.partition(": ")[2], "Dark."]
    assert deployment.webhook.bells == ["b"]


@pytest.mark.parametrize("background", [False, True])
def test_a_resent_live_send_has_the_calls_of_both_attempts(
    deployment: AgentDeployment, *, background: bool
) -> None:
    """The gateway is killed during the first attempt, and again during the second one."""
    tool: Any = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    message: Any = {"role": "user", "content": "go", "otid": "o1"}
    rings = [Call("ring", {"bell": bell}, bell) for bell in ("a", "b")]
    deployment.intercept = lambda _: call_tools(*rings, Call("look", {}, "c1"))
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
    for bell in ("a", "b"):
        deployment.webhook.held_bells = {bell}
        with deployment.serve() as gateway, ThreadPoolExecutor(1) as pool:
            create = gateway.letta.agents.messages.create
            future = pool.submit(create, agent, messages=[message], client_tools=[tool])
            becomes(lambda bell=bell: bell in deployment.webhook.bells)  # type: ignore[misc]
            gateway.kill()
            assert future.exception() is not None
    deployment.release()
    with deployment.serve() as gateway:
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
        results = [m["content"] for m in deployment.upstream.last.messages if m["role"] == "tool"]
        assert results == [INTERRUPTED.partition(": ")[2]] * 2 + ["Dark."]
        assert gateway.list_messages(agent).count("user: go") == 1
    assert deployment.webhook.bells == ["a", "b"]
