"""A gateway with sleeptime agents, a model that plays both parts, and what a test asks of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letta_client.types import AgentState

from gateway.settings import ProfileSettings
from storage.commands import MemorySnapshot
from storage.job_records import JobState
from storage.records import Conversation, Scope
from storage.run_commands import ConversationPath
from tests.agents.letta import LettaWorld, letta
from tests.core.conversations import assistant, user
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import are_idle
from tests.patience import PATIENCE_S
from tests.storage.test_stored_paths import Writer

IDLE_S = 200.0
_ENTRY = re.compile(r"^\[[^\]]*, user[^\]]*\] (.*)$", re.MULTILINE)


def is_sleeper(seen: Seen) -> bool:
    return "You keep the memory of another agent" in str(seen.messages[0]["content"])


def said(transcript: str) -> list[str]:
    """What users said in a transcript."""
    return _ENTRY.findall(transcript)


def hold(seen: Seen, gate: Gate, label: str = "human") -> Reply | None:
    """The first reply to a transcript, held back until the gate is open. label: of the block that it notes it in."""
    if gate.is_open or seen.messages[-1]["role"] != "user":
        return None
    text = "\n".join(said(str(seen.messages[-1]["content"])))
    return call_tools(Call("memory_insert", {"label": label, "new_string": text}), hold_before_headers=gate)


@dataclass
class Model:
    """A model: the primary says "I see.", its sleeptime agent notes each message of a user, one call for all.

    fails: how many of the sleeper's calls fail. label: of the block that it notes them in. before: is called ahead of
    each of the sleeper's replies.
    """

    fails: int = 0
    label: str = "human"
    seen: list[Seen] = field(default_factory=list)
    before: Callable[[Seen], Reply | None] = lambda seen: None

    def __call__(self, seen: Seen) -> Reply:
        if not is_sleeper(seen):
            return say("I see.")
        self.seen.append(seen)
        if self.fails:
            self.fails -= 1
            return fail(500)
        if (reply := self.before(seen)) is not None:
            return reply
        last = seen.messages[-1]
        if last["role"] == "tool":
            return call_tools(Call("memory_finish_edits"))
        text = "\n".join(said(str(last["content"])))
        return call_tools(Call("memory_insert", {"label": self.label, "new_string": text}))

    @property
    def transcripts(self) -> list[str]:
        """What the sleeper was given to read, run by run."""
        firsts = [seen.messages[-1] for seen in self.seen if seen.messages[-1]["role"] == "user"]
        return list(dict.fromkeys(str(m["content"]) for m in firsts))


@dataclass
class SleepWorld:
    letta: LettaWorld
    model: Model

    def primary(self, **options: Any) -> AgentState:
        return self.letta.agent(**{"name": "ann", "enable_sleeptime": True, **options})

    def sharers(self) -> list[AgentState]:
        """Two primaries that share a block, `team`, in which their sleeptime agents note each message."""
        client = self.letta.letta
        shared = [str(client.blocks.create(label="team", value="Team:").id)]
        self.model.label = "team"
        made = [
            client.agents.create(name=name, model="openai/m", block_ids=shared, enable_sleeptime=True)
            for name in ("one", "two")
        ]
        for agent in made:
            self.frequency(agent, 1)
        return made

    def frequency(self, agent: AgentState, frequency: int | None) -> None:
        config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": frequency}
        path = f"/v1/groups/{agent.id.replace('agent-', 'group-')}"
        assert self.letta.ask("PATCH", path, {"manager_config": config})[0] == 200

    def sleeper(self, agent: AgentState) -> AgentState:
        group = self.letta.letta.agents.retrieve(agent.id).managed_group
        assert group is not None
        assert group.agent_ids
        return self.letta.letta.agents.retrieve(group.agent_ids[0])

    def send(self, agent: AgentState, text: str) -> list[str]:
        """Sends a message. Returns the runs that it began."""
        reply = self.letta.letta.agents.messages.create(agent.id, input=text)
        return list(reply.usage.run_ids or ())

    def block(self, agent: AgentState, label: str = "human") -> str:
        return str(self.letta.letta.agents.blocks.retrieve(label, agent_id=agent.id).value)

    def runs(self, agent: AgentState) -> list[Any]:
        """The runs of its sleeptime agent, oldest first."""
        return list(self.letta.letta.runs.list(agent_id=self.sleeper(agent).id, order="asc"))

    def slept(self) -> None:
        """Waits until nothing is left to be done now."""
        self.until(are_idle)
        self.letta.world.settle()

    def until(self, holds: Callable[[Mapping[JobState, int]], bool]) -> None:
        self.letta.world.wait_for_jobs(holds)

    def until_waiting(self) -> None:
        """Waits until a job has failed and waits for its next attempt."""
        self.until(lambda counts: bool(counts[JobState.RETRYING]))

    def upstream_has(self, count: int) -> None:
        """Waits until so many calls have arrived upstream."""
        self.letta.upstream.arrived(count).wait_sync()

    def query(self, statement: str) -> list[Any]:
        return self.letta.world.query(statement)

    def cursor(self, agent: AgentState) -> int:
        uid = agent.id.removeprefix("agent-")
        sql = f"SELECT r.seq FROM readers r JOIN agents a ON a.id = r.memory WHERE r.reader <> 0 AND a.uid = '{uid}'"
        return int(self.query(sql)[0])

    def write_turns(self, agent: AgentState, count: int) -> None:
        """Writes turns of its own conversation, as a gateway does it."""
        scope = Scope("default", "@", f"agent:{agent.id.removeprefix('agent-')}")
        store = self.letta.world.store

        async def write() -> None:
            writer = Writer(store, scope)
            own, path = await writer.read(), b""
            for n in range(count):
                if n:
                    last = writer.opened.exchange
                    found = Conversation(last.conversation_row, "", "default", writer.opened.rev, last.id)
                    own = ConversationPath(
                        MemorySnapshot(conversation=found, section=writer.opened.section), (last,)
                    )
                await writer.begin(user(f"Message {n}."), own=own)
                path = (await writer.finish(assistant("Yes."), path)).path_hash

        asyncio.run_coroutine_threadsafe(write(), self.letta.world.gateway.loop).result(PATIENCE_S)

    def hold_jobs(self) -> None:
        """Has no job of sleeptime agents begin any more."""
        self.letta.world.gateway.app.services.agents.sleeptime_jobs.worker.handlers = {}

    def retry(self) -> None:
        """Has jobs that wait for another attempt make it now."""
        before = len(self.model.seen)
        self.until(are_idle)
        self.later()
        self.until(lambda counts: len(self.model.seen) > before)
        self.slept()

    def later(self) -> None:
        """Lets the time go by that jobs wait for their next attempt."""
        self.letta.world.clock.sleep(4000.0)
        self.letta.world.gateway.call(self._wake())

    def finished(self) -> None:
        """Lets the time go by that jobs wait for their next attempt, and waits until none is left."""
        self.later()
        self.until(lambda counts: not any(counts.values()))
        self.letta.world.settle()

    async def _wake(self) -> None:
        self.letta.world.store.jobs.wake()

    def rest(self, seconds: float = IDLE_S) -> None:
        """Lets time go by, and whatever is due then come to its end."""
        world = self.letta.world
        world.settle()
        world.clock.sleep(seconds)

        async def step() -> None:
            await world.gateway.app.services.background.sleeptime.step()
            world.store.jobs.wake()

        world.gateway.call(step())
        self.slept()

    def step(self) -> None:
        """Has done what is due now."""
        self.rest(0.0)


@contextmanager
def sleeping(
    upstream: StrictUpstream, folder: Path, *profiles: ProfileSettings, **options: Any
) -> Iterator[SleepWorld]:
    model = Model()
    upstream.script = model
    with letta(upstream, folder, *profiles, **options) as world:
        yield SleepWorld(world, model)
