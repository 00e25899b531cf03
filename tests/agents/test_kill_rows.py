"""A gateway kills itself before or after each checkpoint of a run (`kill_process`), with each kind of remote call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.core.prompt.result_order import UNANSWERED_RESULT
from tests.agents.agent_deployment import AgentDeployment, AgentGateway
from tests.agents.plain_mcp import PLAIN
from tests.agents.test_kills import INTERRUPTED
from tests.doubles.upstream import Call, Gate, Reply, UpstreamRequest, call_tools, say
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap
from tests.patience import PATIENCE_S, becomes

CHECKPOINTS = ("accepted", "begun", "replied", "sent", "answered", "done", "ended")
KILL_POINTS = [f"{side} {checkpoint}" for checkpoint in CHECKPOINTS for side in ("before", "after")]
MESSAGE: Any = {"role": "user", "content": "go ring a", "otid": "o1"}
APPROVAL: Any = {"type": "approval", "approve": True, "otid": "yes"}
# Kill points at which the store does not show whether the call was made.
INTERRUPTING = ("after sent", "before answered")


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[AgentDeployment]:
    with AgentDeployment(tmp_path) as running:
        yield running


def send(gateway: AgentGateway, agent: str, *, background: bool) -> str | None:
    """Sends `MESSAGE`. Returns the run's id, "live" for a live send, and None if the gateway killed itself."""
    messages = gateway.letta.agents.messages
    with suppress(Exception):
        if background:
            return messages.create_async(agent, messages=[MESSAGE]).id
        messages.create(agent, messages=[MESSAGE])
        return "live"
    return None


def wait_until_killed(gateway: AgentGateway) -> None:
    gateway.process.child.wait(PATIENCE_S)
    assert gateway.process.child.returncode == -9


def approve_until_killed(deployment: AgentDeployment) -> str:
    """Approves a call during which the gateway kills itself. Returns the agent's id."""
    with deployment.serve("after sent") as gateway:
        agent = deployment.create_agent(gateway)
        gateway.letta.agents.tools.update_approval("ring", agent_id=agent, body_requires_approval=True)
        assert send(gateway, agent, background=False) == "live"
        with suppress(Exception):
            gateway.letta.agents.messages.create(agent, messages=[APPROVAL])
        wait_until_killed(gateway)
    return agent


def messages_with(result: str) -> list[str]:
    """Returns the messages of the agent after `MESSAGE`, with this result of its call."""
    return ["user: go ring a", "assistant: I ring.", "tool_call", result, "assistant: All rang."]


@pytest.mark.parametrize("kill", KILL_POINTS)
def test_a_run_in_the_background_is_performed_once(deployment: AgentDeployment, kill: str) -> None:
    with deployment.serve(kill) as gateway:
        agent = deployment.create_agent(gateway)
        run = send(gateway, agent, background=True)
        wait_until_killed(gateway)
    result = INTERRUPTED if kill in INTERRUPTING else "tool_return: a rang"
    with deployment.serve() as gateway:
        if kill == "before accepted":
            assert (run, gateway.list_messages(agent), [*gateway.letta.runs.list(agent_id=agent)]) == (
                None,
                [],
                [],
            )
        else:
            (found,) = gateway.letta.runs.list(agent_id=agent)
            assert gateway.wait_for_run(found.id).status == "completed"
            assert run in (None, found.id)
            assert gateway.list_messages(agent) == messages_with(result)
            steps = gateway.letta.runs.steps.list(found.id, order="asc")
            assert [step.stop_reason for step in steps] == [None, "end_turn"]
        # A client that got no reply sends it again.
        again = gateway.letta.agents.messages.create_async(agent, messages=[MESSAGE])
        assert gateway.wait_for_run(again.id).status == "completed"
        assert gateway.list_messages(agent) == messages_with(result)
    assert deployment.webhook.bells == ([] if kill == "after sent" else ["a"])


@pytest.mark.parametrize(
    "kill", [*(f"after {checkpoint}" for checkpoint in CHECKPOINTS[1:]), "before answered", "before ended"]
)
def test_a_resent_live_send_is_performed_once(deployment: AgentDeployment, kill: str) -> None:
    with deployment.serve(kill) as gateway:
        agent = deployment.create_agent(gateway)
        send(gateway, agent, background=False)
        wait_until_killed(gateway)
    result = INTERRUPTED if kill in INTERRUPTING else "tool_return: a rang"
    with deployment.serve() as gateway:
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[MESSAGE])
        assert gateway.list_messages(agent) == messages_with(result)
        states = Counter(run.status for run in gateway.letta.runs.list(agent_id=agent))
        assert states["running"] == states["created"] == 0
    assert max(deployment.webhook.calls.values(), default=0) <= 1


@pytest.mark.parametrize("kill", ["after replied", "after sent", "after answered"])
def test_a_killed_live_send_may_be_resent_to_the_background(deployment: AgentDeployment, kill: str) -> None:
    with deployment.serve(kill) as gateway:
        agent = deployment.create_agent(gateway)
        send(gateway, agent, background=False)
        wait_until_killed(gateway)
    result = INTERRUPTED if kill in INTERRUPTING else "tool_return: a rang"
    with deployment.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.wait_for_run(run.id).status == "failed"
        again = gateway.letta.agents.messages.create_async(agent, messages=[MESSAGE])
        assert gateway.wait_for_run(again.id).status == "completed"
        assert gateway.list_messages(agent) == messages_with(result)
    assert max(deployment.webhook.calls.values(), default=0) <= 1


def test_a_resent_approval_does_not_make_its_call_again(deployment: AgentDeployment) -> None:
    agent = approve_until_killed(deployment)
    with deployment.serve() as gateway:
        answer, _ = gateway.letta.runs.list(agent_id=agent, order="desc")
        assert gateway.wait_for_run(answer.id).status == "failed"
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[APPROVAL])
        assert gateway.list_messages(agent)[-2:] == [INTERRUPTED, "assistant: All rang."]
        assert [run.status for run in gateway.letta.runs.list(agent_id=agent, order="desc")] == [
            "completed", "failed", "completed",
        ]  # fmt: skip
    assert deployment.webhook.bells == []


@pytest.mark.parametrize("tool", ["send_message_to_agent_and_wait_for_reply", "send_message_to_agent_async"])
def test_a_message_of_another_agent_follows_the_interrupted_call(
    deployment: AgentDeployment, tool: str
) -> None:
    agent = approve_until_killed(deployment)
    call = Call(tool, {"message": "Hello.", "other_agent_id": agent})
    deployment.intercept = lambda request: (
        call_tools(call) if request.messages[-1]["content"] == "tell" else None
    )
    with deployment.serve() as gateway:
        other = gateway.letta.agents.create(model="openai/m", name="other", tools=[tool]).id
        gateway.letta.agents.messages.create(other, input="tell")
        messages = becomes(lambda: found if len(found := gateway.list_messages(agent)) == 6 else None)
        assert messages[3] == INTERRUPTED
        assert "Hello." in messages[4]
        assert messages[5].startswith("assistant: ")


@pytest.mark.parametrize("kill", ["after replied", "after sent", "after answered"])
def test_a_message_after_a_killed_live_run_follows_the_known_results(
    deployment: AgentDeployment, kill: str
) -> None:
    """The calls of the killed run are not made any more. The model gets their results as far as they are stored."""
    with deployment.serve(kill) as gateway:
        agent = deployment.create_agent(gateway)
        send(gateway, agent, background=False)
        wait_until_killed(gateway)
    results = {"after sent": [INTERRUPTED], "after answered": ["tool_return: a rang"]}.get(kill, [])
    with deployment.serve() as gateway:
        gateway.letta.agents.messages.create(agent, input="later")
        assert gateway.list_messages(agent) == [
            *messages_with("")[:3],
            *results,
            "user: later",
            "assistant: Heard later.",
        ]
        (result,) = [m["content"] for m in deployment.upstream.last.messages if m["role"] == "tool"]
        assert result == (results[0].partition(": ")[2] if results else UNANSWERED_RESULT)
    assert len(deployment.webhook.bells) == (kill == "after answered")


# -- the kinds of remote calls


class RemoteTool(ABC):
    """A tool whose calls leave the gateway, and which the first agent calls once."""

    name, result = "ring", "a rang"

    def __init__(self, deployment: AgentDeployment, *, is_slow: bool = False) -> None:
        """Sets the upstream's replies. is_slow: whether the call takes so long that a test can kill the gateway."""
        self.deployment = deployment
        self.is_slow = is_slow
        deployment.intercept = self._intercept

    def _intercept(self, request: UpstreamRequest) -> Reply | None:
        last = request.messages[-1]
        if last["role"] == "user" and str(last["content"]).endswith("go"):
            return call_tools(Call(self.name, self.arguments, "c1"))
        return None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"bell": "long" if self.is_slow else "a"}

    @abstractmethod
    def create_agent(self, gateway: AgentGateway) -> str:
        """Creates the agent with the tool. Returns its id."""

    @abstractmethod
    def count_calls(self, gateway: AgentGateway) -> int | None:
        """Returns how often the tool was called, or None if its calls leave no trace."""

    def is_running(self, gateway: AgentGateway) -> bool:
        """Returns whether the slow call has begun."""
        return bool(list_descendants(gateway.process.child.pid))

    def _create(self, gateway: AgentGateway, *tools: str) -> str:
        return gateway.letta.agents.create(model="openai/m", name="first", tools=[*tools]).id


class McpTool(RemoteTool):
    def __init__(self, deployment: AgentDeployment, *, is_slow: bool = False) -> None:
        super().__init__(deployment, is_slow=is_slow)
        self.bells = deployment.folder / "bells"
        self.command = (*PLAIN.command, "ring", str(self.bells))
        deployment.tool_settings = f'mcp_stdio = ["{" ".join(self.command)}"]\n'

    def create_agent(self, gateway: AgentGateway) -> str:
        program, *args = self.command
        config: Any = {"mcp_server_type": "stdio", "command": program, "args": args}
        gateway.letta.mcp_servers.create(server_name="bells", config=config)
        return self._create(gateway, "ring")

    def count_calls(self, gateway: AgentGateway) -> int | None:
        return len(self.bells.read_text().splitlines()) if self.bells.exists() else 0

    def is_running(self, gateway: AgentGateway) -> bool:
        return self.bells.exists()


class PythonTool(RemoteTool):
    SOURCE = """
def ring(bell: str) -> str:
    \"""Rings a bell.

    Args:
        bell: which one
    \"""
    import time

    time.sleep(60 if bell == "long" else 0)
    return bell + " rang"
"""

    def __init__(self, deployment: AgentDeployment, *, is_slow: bool = False) -> None:
        super().__init__(deployment, is_slow=is_slow)
        deployment.tool_settings = f'python = "{PYTHON}"\npython_timeout_s = 120\n'

    def create_agent(self, gateway: AgentGateway) -> str:
        gateway.letta.tools.create(source_code=self.SOURCE)
        return self._create(gateway, "ring")

    def count_calls(self, gateway: AgentGateway) -> int | None:
        return None


class WaitingMessageTool(RemoteTool):
    """A message to another agent, for whose reply the call waits."""

    name, result = "send_message_to_agent_and_wait_for_reply", "Ding."

    def __init__(self, deployment: AgentDeployment, *, is_slow: bool = False) -> None:
        super().__init__(deployment, is_slow=is_slow)
        self.other = ""
        self.arrived = Gate()

    @property
    def arguments(self) -> dict[str, Any]:
        return {"message": "Ring.", "other_agent_id": self.other}

    def _intercept(self, request: UpstreamRequest) -> Reply | None:
        if "Message from the agent" not in str(request.messages[-1]["content"]):
            return super()._intercept(request)
        self.arrived.open()
        return say("Ding.", hold_before_headers=self.deployment.gate if self.is_slow else None)

    def create_agent(self, gateway: AgentGateway) -> str:
        agent = self._create(gateway, self.name)
        self.other = gateway.letta.agents.create(model="openai/m", name="second").id
        return agent

    def count_calls(self, gateway: AgentGateway) -> int | None:
        for run in gateway.letta.runs.list(agent_id=self.other):
            gateway.wait_for_run(run.id)
        return sum("Message from the agent" in each for each in gateway.list_messages(self.other))

    def is_running(self, gateway: AgentGateway) -> bool:
        return self.arrived.is_open


class AsyncMessageTool(WaitingMessageTool):
    """A message to another agent, for whose reply the call does not wait."""

    name, result = "send_message_to_agent_async", "Sent to second."


def list_descendants(pid: int) -> list[int]:
    """Returns the ids of all descendants of a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == pid:
                child = int(status.parent.name)
                found += [child, *list_descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    """Returns whether a process runs. One that has ended is listed until its parent has waited for it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


# The tests above have the calls of a webhook.
TOOLS = [McpTool, pytest.param(PythonTool, marks=needs_bwrap), WaitingMessageTool, AsyncMessageTool]


@pytest.mark.parametrize("kill", ["after sent", "before answered", "after answered"])
@pytest.mark.parametrize("tool_class", TOOLS)
def test_a_call_is_not_made_twice(
    deployment: AgentDeployment, tool_class: type[RemoteTool], kill: str
) -> None:
    tool = tool_class(deployment)
    with deployment.serve(kill) as gateway:
        agent = tool.create_agent(gateway)
        gateway.letta.agents.messages.create_async(agent, input="go")
        wait_until_killed(gateway)
    result = INTERRUPTED if kill in INTERRUPTING else f"tool_return: {tool.result}"
    with deployment.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.wait_for_run(run.id).status == "completed"
        assert gateway.list_messages(agent) == ["user: go", "tool_call", result, "assistant: All rang."]
        assert tool.count_calls(gateway) in (None, int(kill != "after sent"))


@pytest.mark.parametrize("tool_class", TOOLS[:-1])
def test_a_call_during_which_the_gateway_is_killed_is_interrupted(
    deployment: AgentDeployment, tool_class: type[RemoteTool]
) -> None:
    tool = tool_class(deployment, is_slow=True)
    with deployment.serve() as gateway:
        agent = tool.create_agent(gateway)
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        becomes(lambda: tool.is_running(gateway))
        descendants = list_descendants(gateway.process.child.pid)
        gateway.kill()
        # No process that the gateway started outlives it.
        becomes(lambda: not any(map(is_alive, descendants)))
    deployment.gate.open()
    with deployment.serve() as gateway:
        assert gateway.wait_for_run(run.id).status == "completed"
        assert gateway.list_messages(agent) == ["user: go", "tool_call", INTERRUPTED, "assistant: All rang."]
        assert tool.count_calls(gateway) in (None, 1)
