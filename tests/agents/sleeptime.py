"""A gateway with sleeptime agents, and a model that replies to them and to their primary agents.

with serve_sleeptime(upstream, tmp_path) as world:
    agent = world.create_primary()
    world.send(agent, "I have a cat.")
    world.pass_idle_time()
    assert world.get_block(agent) == "Name: Ann\nI have a cat."
"""

from __future__ import annotations

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
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.sdk import are_idle
from tests.storage.run_writer import RunWriter

# Seconds: longer than the pause after which a sleeptime agent reads.
IDLE_S = 200.0
# A user's message in a transcript.
_USER_LINE = re.compile(r"^\[[^\]]*, user[^\]]*\] (.*)$", re.MULTILINE)


def is_sleeptime_request(request: UpstreamRequest) -> bool:
    """Returns whether a sleeptime agent makes this request, and not its primary agent."""
    return "You keep the memory of another agent" in str(request.messages[0]["content"])


def list_user_texts(transcript: str) -> list[str]:
    """Returns the users' messages in a transcript that a sleeptime agent reads."""
    return _USER_LINE.findall(transcript)


def note_users_texts(request: UpstreamRequest, label: str, **options: Any) -> Reply:
    """Returns a reply that inserts the users' messages of a transcript into a block. options: as for `call_tools`."""
    text = "\n".join(list_user_texts(str(request.messages[-1]["content"])))
    return call_tools(Call("memory_insert", {"label": label, "new_string": text}), **options)


def hold_first_reply(request: UpstreamRequest, gate: Gate, label: str = "human") -> Reply | None:
    """Returns a reply to a transcript, which begins when the gate opens. None for later requests, or if it is open.

    label: the block into which the reply inserts the messages.
    """
    if gate.is_open or request.messages[-1]["role"] != "user":
        return None
    return note_users_texts(request, label, hold_before_headers=gate)


@dataclass
class SleeptimeModel:
    """A script of the upstream: a primary agent replies "I see.", a sleeptime agent notes each user's message."""

    # How many of the next requests of sleeptime agents fail.
    failures_left: int = 0
    # The block in which a sleeptime agent notes messages.
    label: str = "human"
    # The requests of sleeptime agents.
    requests: list[UpstreamRequest] = field(default_factory=list)
    # Returns the reply to a request of a sleeptime agent instead of the usual one. None: the usual one.
    intercept: Callable[[UpstreamRequest], Reply | None] = lambda request: None

    def __call__(self, request: UpstreamRequest) -> Reply:
        if not is_sleeptime_request(request):
            return say("I see.")
        self.requests.append(request)
        if self.failures_left:
            self.failures_left -= 1
            return fail(500)
        if (reply := self.intercept(request)) is not None:
            return reply
        if request.messages[-1]["role"] == "tool":
            return call_tools(Call("memory_finish_edits"))
        return note_users_texts(request, self.label)

    @property
    def transcripts(self) -> list[str]:
        """The transcript of each run of sleeptime agents. A run that asks again is counted once."""
        first_messages = [r.messages[-1] for r in self.requests if r.messages[-1]["role"] == "user"]
        return list(dict.fromkeys(str(message["content"]) for message in first_messages))


@dataclass
class SleeptimeWorld:
    """A gateway with memory, the client of its agents API, and the model of all agents."""

    letta: LettaWorld
    model: SleeptimeModel

    def create_primary(self, **options: Any) -> AgentState:
        """Creates an agent with a sleeptime agent. options: parameters of `agents.create`."""
        return self.letta.agent(**{"name": "ann", "enable_sleeptime": True, **options})

    def create_sharing_primaries(self) -> list[AgentState]:
        """Creates two primary agents that share a block, `team`, in which their sleeptime agents note each message."""
        client = self.letta.letta
        block_id = str(client.blocks.create(label="team", value="Team:").id)
        self.model.label = "team"
        agents = [
            client.agents.create(name=name, model="openai/m", block_ids=[block_id], enable_sleeptime=True)
            for name in ("one", "two")
        ]
        for agent in agents:
            self.set_frequency(agent, 1)
        return agents

    def set_frequency(self, agent: AgentState, frequency: int | None) -> None:
        """Sets after how many turns the sleeptime agent of a primary agent reads. None: after each turn."""
        config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": frequency}
        path = f"/v1/groups/{agent.id.replace('agent-', 'group-')}"
        assert self.letta.ask("PATCH", path, {"manager_config": config})[0] == 200

    def get_sleeptime_agent(self, agent: AgentState) -> AgentState:
        """Returns the sleeptime agent of a primary agent."""
        group = self.letta.letta.agents.retrieve(agent.id).managed_group
        assert group is not None
        assert group.agent_ids
        return self.letta.letta.agents.retrieve(group.agent_ids[0])

    def send(self, agent: AgentState, text: str) -> list[str]:
        """Sends a message. Returns the ids of the runs of sleeptime agents that it began."""
        reply = self.letta.letta.agents.messages.create(agent.id, input=text)
        return list(reply.usage.run_ids or ())

    def get_block(self, agent: AgentState, label: str = "human") -> str:
        """Returns the value of a block."""
        return str(self.letta.letta.agents.blocks.retrieve(label, agent_id=agent.id).value)

    def list_runs(self, agent: AgentState) -> list[Any]:
        """Returns the runs of the sleeptime agent of a primary agent, oldest first."""
        return list(self.letta.letta.runs.list(agent_id=self.get_sleeptime_agent(agent).id, order="asc"))

    def wait_until_idle(self) -> None:
        """Waits until no job is due, and all turns are written."""
        self.wait_for_jobs(are_idle)
        self.letta.world.settle()

    def wait_for_jobs(self, condition: Callable[[Mapping[JobState, int]], bool]) -> None:
        """Waits until the numbers of jobs by state meet a condition."""
        self.letta.world.wait_for_jobs(condition)

    def wait_for_failed_job(self) -> None:
        """Waits until a job has failed and waits for its next attempt."""
        self.wait_for_jobs(lambda counts: bool(counts[JobState.RETRYING]))

    def wait_for_requests(self, count: int) -> None:
        """Waits until so many requests have reached the upstream."""
        self.letta.upstream.request_gate(count).wait_sync()

    def query(self, statement: str) -> list[Any]:
        return self.letta.world.query(statement)

    def get_cursor(self, agent: AgentState) -> int:
        """Returns the position up to which the sleeptime agent of a primary agent has read (`readers.seq`)."""
        uid = agent.id.removeprefix("agent-")
        sql = f"SELECT r.seq FROM readers r JOIN agents a ON a.id = r.memory WHERE r.reader <> 0 AND a.uid = '{uid}'"
        return int(self.query(sql)[0])

    def write_turns(self, agent: AgentState, count: int) -> None:
        """Writes so many turns of an agent's default conversation to the store."""
        scope = Scope("default", "@", f"agent:{agent.id.removeprefix('agent-')}")
        gateway = self.letta.world.gateway
        writer = RunWriter(self.letta.world.store, scope)

        async def write_turn(number: int, path: ConversationPath, path_hash: bytes) -> bytes:
            await writer.begin(user(f"Message {number}."), own=path)
            return (await writer.finish(assistant("Yes."), path_hash)).path_hash

        path = gateway.call(writer.read())
        path_hash = b""
        # A call for each turn: all turns together may take longer than one call waits.
        for number in range(count):
            path_hash = gateway.call(write_turn(number, path, path_hash))
            # The path as `begin` needs it, without a read of all turns so far.
            last = writer.opened.exchange
            conversation = Conversation(last.conversation_row, "", "default", writer.opened.rev, last.id)
            snapshot = MemorySnapshot(conversation=conversation, section=writer.opened.section)
            path = ConversationPath(snapshot, (last,))

    def hold_jobs(self) -> None:
        """Has the worker start no job of sleeptime agents any more."""
        self.letta.world.gateway.app.services.agents.sleeptime_jobs.worker.handlers = {}

    def retry_jobs(self) -> None:
        """Lets failed jobs make their next attempt, and waits for its end."""
        before = len(self.model.requests)
        self.wait_for_jobs(are_idle)
        self._pass_retry_delay()
        self.wait_for_jobs(lambda _: len(self.model.requests) > before)
        self.wait_until_idle()

    def _pass_retry_delay(self) -> None:
        """Moves the clock by more than failed jobs wait for their next attempt."""
        self.letta.world.clock.sleep(4000.0)
        self.letta.world.gateway.call(self._wake())

    def finish_jobs(self) -> None:
        """Lets failed jobs make their next attempt, and waits until there are no jobs."""
        self._pass_retry_delay()
        self.wait_for_jobs(lambda counts: not any(counts.values()))
        self.letta.world.settle()

    async def _wake(self) -> None:
        self.letta.world.store.jobs.wake()

    def pass_idle_time(self, seconds: float = IDLE_S) -> None:
        """Moves the clock, and waits until the jobs that are due then have ended."""
        world = self.letta.world
        world.settle()
        world.clock.sleep(seconds)

        async def step() -> None:
            await world.gateway.app.services.background.sleeptime.perform_due()
            world.store.jobs.wake()

        world.gateway.call(step())
        self.wait_until_idle()

    def run_due_jobs(self) -> None:
        """Waits until the jobs that are due now have ended."""
        self.pass_idle_time(0.0)


@contextmanager
def serve_sleeptime(
    upstream: StrictUpstream, folder: Path, *profiles: ProfileSettings, **options: Any
) -> Iterator[SleeptimeWorld]:
    """Serves a gateway until the block ends. The parameters are those of `letta`."""
    model = SleeptimeModel()
    upstream.script = model
    with letta(upstream, folder, *profiles, **options) as world:
        yield SleeptimeWorld(world, model)
