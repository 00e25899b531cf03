"""The gateway kills itself on either side of each transaction of a run, and with each kind of call that leaves it.

The table of what is on disk when: accepted, begun, replied, sent, answered, done, ended (kill_process).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.core.prompt.result_order import UNANSWERED_RESULT
from tests.agents.kills import Killed, Serving, wait_for
from tests.agents.plain_mcp import PLAIN
from tests.agents.test_kills import INTERRUPTED
from tests.doubles.upstream import Call, Gate, Reply, Seen, call_tools, say
from tests.gateway.tools.test_sandbox import PYTHON, needs_bwrap
from tests.patience import PATIENCE_S

ROWS = ("accepted", "begun", "replied", "sent", "answered", "done", "ended")
SIDES = [f"{side} {row}" for row in ROWS for side in ("before", "after")]
MESSAGE: Any = {"role": "user", "content": "go ring a", "otid": "o1"}
APPROVAL: Any = {"type": "approval", "approve": True, "otid": "yes"}
# Between these the call may have been made, and nobody knows.
UNKNOWN = ("after sent", "before answered")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Killed]:
    with Killed(tmp_path) as made:
        yield made


def send(gateway: Serving, agent: str, *, background: bool) -> str | None:
    """Sends the message. Returns the run's id; None: the gateway died of it."""
    messages = gateway.letta.agents.messages
    with suppress(Exception):
        if background:
            return messages.create_async(agent, messages=[MESSAGE]).id
        messages.create(agent, messages=[MESSAGE])
        return "live"
    return None


def died(gateway: Serving) -> None:
    gateway.process.child.wait(PATIENCE_S)
    assert gateway.process.child.returncode == -9


def answer_until_killed(world: Killed) -> str:
    """Has the gateway die during the call that an answer allows. Returns the agent's id."""
    with world.serve("after sent") as gateway:
        agent = world.agent(gateway)
        gateway.letta.agents.tools.update_approval("ring", agent_id=agent, body_requires_approval=True)
        assert send(gateway, agent, background=False) == "live"
        with suppress(Exception):
            gateway.letta.agents.messages.create(agent, messages=[APPROVAL])
        died(gateway)
    return agent


def said(result: str) -> list[str]:
    return ["user: go ring a", "assistant: I ring.", "tool_call", result, "assistant: All rang."]


@pytest.mark.parametrize("kill", SIDES)
def test_a_run_in_the_background(world: Killed, kill: str) -> None:
    with world.serve(kill) as gateway:
        agent = world.agent(gateway)
        run = send(gateway, agent, background=True)
        died(gateway)
    result = INTERRUPTED if kill in UNKNOWN else "tool_return: a rang"
    with world.serve() as gateway:
        if kill == "before accepted":
            assert (run, gateway.words(agent), [*gateway.letta.runs.list(agent_id=agent)]) == (None, [], [])
        else:
            (found,) = gateway.letta.runs.list(agent_id=agent)
            assert gateway.ended(found.id).status == "completed"
            assert run in (None, found.id)
            assert gateway.words(agent) == said(result)
            steps = gateway.letta.runs.steps.list(found.id, order="asc")
            assert [step.stop_reason for step in steps] == [None, "end_turn"]
        # Whoever never heard that it was accepted sends it again.
        again = gateway.letta.agents.messages.create_async(agent, messages=[MESSAGE])
        assert gateway.ended(again.id).status == "completed"
        assert gateway.words(agent) == said(result)
    assert world.webhook.bells == ([] if kill == "after sent" else ["a"])


@pytest.mark.parametrize("kill", [*(f"after {row}" for row in ROWS[1:]), "before answered", "before ended"])
def test_a_live_run_that_is_killed_is_answered_and_done_once(world: Killed, kill: str) -> None:
    with world.serve(kill) as gateway:
        agent = world.agent(gateway)
        send(gateway, agent, background=False)
        died(gateway)
    result = INTERRUPTED if kill in UNKNOWN else "tool_return: a rang"
    with world.serve() as gateway:
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[MESSAGE])
        assert gateway.words(agent) == said(result)
        states = Counter(run.status for run in gateway.letta.runs.list(agent_id=agent))
        assert states["running"] == states["created"] == 0
    assert max(world.webhook.calls.values(), default=0) <= 1


@pytest.mark.parametrize("kill", ["after replied", "after sent", "after answered"])
def test_a_live_run_that_is_killed_goes_on_in_the_background(world: Killed, kill: str) -> None:
    with world.serve(kill) as gateway:
        agent = world.agent(gateway)
        send(gateway, agent, background=False)
        died(gateway)
    result = INTERRUPTED if kill in UNKNOWN else "tool_return: a rang"
    with world.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.ended(run.id).status == "failed"
        again = gateway.letta.agents.messages.create_async(agent, messages=[MESSAGE])
        assert gateway.ended(again.id).status == "completed"
        assert gateway.words(agent) == said(result)
    assert max(world.webhook.calls.values(), default=0) <= 1


def test_an_answer_that_is_killed_while_its_call_is_made_counts_once(world: Killed) -> None:
    agent = answer_until_killed(world)
    with world.serve() as gateway:
        answer, _ = gateway.letta.runs.list(agent_id=agent, order="desc")
        assert gateway.ended(answer.id).status == "failed"
        for _ in range(2):
            gateway.letta.agents.messages.create(agent, messages=[APPROVAL])
        assert gateway.words(agent)[-2:] == [INTERRUPTED, "assistant: All rang."]
        assert [run.status for run in gateway.letta.runs.list(agent_id=agent, order="desc")] == [
            "completed", "failed", "completed",
        ]  # fmt: skip
    assert world.webhook.bells == []


@pytest.mark.parametrize("tool", ["send_message_to_agent_and_wait_for_reply", "send_message_to_agent_async"])
def test_another_agents_message_after_an_answer_that_was_killed(world: Killed, tool: str) -> None:
    agent = answer_until_killed(world)
    tells = Call(tool, {"message": "Hello.", "other_agent_id": agent})
    world.held = lambda seen: call_tools(tells) if seen.messages[-1]["content"] == "tell" else None
    with world.serve() as gateway:
        other = gateway.letta.agents.create(model="openai/m", name="other", tools=[tool]).id
        gateway.letta.agents.messages.create(other, input="tell")
        heard = wait_for(lambda: found[3:] if len(found := gateway.words(agent)) == 6 else None)
        assert heard[0] == INTERRUPTED
        assert "Hello." in heard[1]
        assert heard[2].startswith("assistant: ")


@pytest.mark.parametrize("kill", ["after replied", "after sent", "after answered"])
def test_another_message_after_a_live_run(world: Killed, kill: str) -> None:
    """The calls of the dead run are not made any more; what is known of them is reported."""
    with world.serve(kill) as gateway:
        agent = world.agent(gateway)
        send(gateway, agent, background=False)
        died(gateway)
    told = {"after sent": [INTERRUPTED], "after answered": ["tool_return: a rang"]}.get(kill, [])
    with world.serve() as gateway:
        gateway.letta.agents.messages.create(agent, input="later")
        assert gateway.words(agent) == [*said("")[:3], *told, "user: later", "assistant: Heard later."]
        (result,) = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
        assert result == (told[0].partition(": ")[2] if told else UNANSWERED_RESULT)
    assert len(world.webhook.bells) == (kill == "after answered")


# -- the kinds of calls that leave the gateway


class Kind(ABC):
    """A kind of tool, whose one call is made by the first agent once its gate opens. long: the call takes long."""

    name, result = "ring", "a rang"

    def __init__(self, world: Killed, *, long: bool = False) -> None:
        self.world, self.long = world, long
        world.held = self._says

    def _says(self, seen: Seen) -> Reply | None:
        last = seen.messages[-1]
        if last["role"] == "user" and str(last["content"]).endswith("go"):
            return call_tools(Call(self.name, self.arguments, "c1"))
        return None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"bell": "long" if self.long else "a"}

    @abstractmethod
    def agent(self, gateway: Serving) -> str:
        """Makes the agent that has the tool."""

    @abstractmethod
    def times(self, gateway: Serving) -> int | None:
        """Returns how often the call was made; None: it leaves no trace."""

    def is_made(self, gateway: Serving) -> bool:
        """Returns whether the call that takes long is being made."""
        return bool(children_of(gateway.process.child.pid))

    def _make(self, gateway: Serving, *tools: str) -> str:
        return gateway.letta.agents.create(model="openai/m", name="first", tools=[*tools]).id


class Mcp(Kind):
    def __init__(self, world: Killed, *, long: bool = False) -> None:
        super().__init__(world, long=long)
        self.bells = world.folder / "bells"
        self.command = (*PLAIN.command, "ring", str(self.bells))
        world.tools = f'mcp_stdio = ["{" ".join(self.command)}"]\n'

    def agent(self, gateway: Serving) -> str:
        program, *args = self.command
        config: Any = {"mcp_server_type": "stdio", "command": program, "args": args}
        gateway.letta.mcp_servers.create(server_name="bells", config=config)
        return self._make(gateway, "ring")

    def times(self, gateway: Serving) -> int | None:
        return len(self.bells.read_text().splitlines()) if self.bells.exists() else 0

    def is_made(self, gateway: Serving) -> bool:
        return self.bells.exists()


class Python(Kind):
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

    def __init__(self, world: Killed, *, long: bool = False) -> None:
        super().__init__(world, long=long)
        world.tools = f'python = "{PYTHON}"\npython_timeout_s = 120\n'

    def agent(self, gateway: Serving) -> str:
        gateway.letta.tools.create(source_code=self.SOURCE)
        return self._make(gateway, "ring")

    def times(self, gateway: Serving) -> int | None:
        return None


class Asks(Kind):
    """Another agent, whose answer is waited for."""

    name, result = "send_message_to_agent_and_wait_for_reply", "Ding."

    def __init__(self, world: Killed, *, long: bool = False) -> None:
        super().__init__(world, long=long)
        self.other = ""
        self.heard = Gate()

    @property
    def arguments(self) -> dict[str, Any]:
        return {"message": "Ring.", "other_agent_id": self.other}

    def _says(self, seen: Seen) -> Reply | None:
        if "Message from the agent" not in str(seen.messages[-1]["content"]):
            return super()._says(seen)
        self.heard.open()
        return say("Ding.", hold_before_headers=self.world.hold if self.long else None)

    def agent(self, gateway: Serving) -> str:
        agent = self._make(gateway, self.name)
        self.other = gateway.letta.agents.create(model="openai/m", name="second").id
        return agent

    def times(self, gateway: Serving) -> int | None:
        for run in gateway.letta.runs.list(agent_id=self.other):
            gateway.ended(run.id)
        return sum("Message from the agent" in each for each in gateway.words(self.other))

    def is_made(self, gateway: Serving) -> bool:
        return self.heard.is_open


class Tells(Asks):
    """Another agent, which answers nobody."""

    name, result = "send_message_to_agent_async", "Sent to second."


def children_of(pid: int) -> list[int]:
    """Returns the processes below one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == pid:
                child = int(status.parent.name)
                found += [child, *children_of(child)]
    return found


def runs(pid: int) -> bool:
    """Says whether a process still runs. One that has ended may stay listed until its new parent has looked."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


# A webhook's calls are those of the tests above.
KINDS = [Mcp, pytest.param(Python, marks=needs_bwrap), Asks, Tells]


@pytest.mark.parametrize("kill", ["after sent", "before answered", "after answered"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_not_made_twice(world: Killed, kind: type[Kind], kill: str) -> None:
    made = kind(world)
    with world.serve(kill) as gateway:
        agent = made.agent(gateway)
        gateway.letta.agents.messages.create_async(agent, input="go")
        died(gateway)
    result = INTERRUPTED if kill in UNKNOWN else f"tool_return: {made.result}"
    with world.serve() as gateway:
        (run,) = gateway.letta.runs.list(agent_id=agent)
        assert gateway.ended(run.id).status == "completed"
        assert gateway.words(agent) == ["user: go", "tool_call", result, "assistant: All rang."]
        assert made.times(gateway) in (None, int(kill != "after sent"))


@pytest.mark.parametrize("kind", [Mcp, pytest.param(Python, marks=needs_bwrap), Asks])
def test_killed_while_a_call_is_made(world: Killed, kind: type[Kind]) -> None:
    made = kind(world, long=True)
    with world.serve() as gateway:
        agent = made.agent(gateway)
        run = gateway.letta.agents.messages.create_async(agent, input="go")
        wait_for(lambda: made.is_made(gateway) or None)
        below = children_of(gateway.process.child.pid)
        gateway.kill()
        # Nothing that it had begun outlives it.
        wait_for(lambda: not any(map(runs, below)) or None)
    world.hold.open()
    with world.serve() as gateway:
        assert gateway.ended(run.id).status == "completed"
        assert gateway.words(agent) == ["user: go", "tool_call", INTERRUPTED, "assistant: All rang."]
        assert made.times(gateway) in (None, 1)
