"""Two gateways and a worker over one database perform each piece of background work once, also when one is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.agents.batches.batch_world import PATH
from tests.agents.sleeptime import is_sleeptime_request
from tests.agents.test_sleep_killed import CALLS, NOTES
from tests.doubles.batches import OpenAIBatchServer
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.background.served_batch import ITEMS, ROUNDS, answer, answer_item, ask, make
from tests.gateway.background.served_batch import SETTINGS as BATCHES
from tests.gateway.process import Process, serving
from tests.gateway.two.deployment import MODULE, Database, Worker
from tests.patience import becomes
from tests.postgres import query

AGENTS = 6
SETTINGS = """\
[memory]
background_model = "small"
learn_every = 2
recall_tokens = 0

[[upstreams]]
name = "up"
base_url = "{base_url}"
api_key = "none"
models = ["m", "small"]
"""
# The processes that a test kills.
KILLED = ("gateway", "worker")


@dataclass
class WorkDeployment:
    """Two gateways and a worker over one PostgreSQL."""

    # Of the database.
    url: str
    gateways: list[Process]
    worker: Worker

    def kill(self, process: str) -> None:
        """Kills one of the processes of `KILLED`."""
        if process == "worker":
            self.worker.kill()
        else:
            self.gateways[0].kill()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return query(self.url, sql)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        becomes(
            condition, explain=lambda: (self.query("SELECT * FROM jobs"), self.query("SELECT * FROM runs"))
        )

    def finish_jobs(self) -> None:
        """Waits until there are no jobs, and checks that none has failed."""
        self.wait_until(lambda: not self.query("SELECT 1 FROM jobs WHERE state <> 'dead'"))
        assert self.query("SELECT kind, error FROM jobs") == []


@contextmanager
def deploy(
    folder: Path, url: str, settings: str, *arguments: str, starts_worker: bool = True
) -> Iterator[WorkDeployment]:
    """Runs the processes until the block ends.

    settings: the text of mnemogate.toml.
    arguments: further arguments of `mnemogate serve`.
    starts_worker: whether the worker runs from the start.
    """
    database = Database(folder / "none", url)
    with ExitStack() as stack:
        gateways = []
        for number in range(2):
            cwd = folder / f"gateway{number}"
            cwd.mkdir()
            served = serving(cwd, *arguments, settings=settings, module=MODULE, environ=database.environ)
            gateways.append(stack.enter_context(served))
        worker = Worker(folder / "worker", database, settings)
        if starts_worker:
            worker.start()
        stack.callback(worker.kill)
        yield WorkDeployment(url, gateways, worker)


class HeldSleeptimeModel:
    """A model of agents and of their sleeptime agents. It holds its first reply to each sleeptime agent."""

    def __init__(self, upstream: StrictUpstream) -> None:
        # Opened by the test: the held replies begin.
        self.gate = Gate()
        # The number of requests of sleeptime agents.
        self.request_count = 0
        upstream.script = self._script

    def _script(self, request: UpstreamRequest) -> Reply:
        if not is_sleeptime_request(request):
            return say("I see.")
        self.request_count += 1
        result_count = sum(m["role"] == "tool" for m in request.messages)
        if result_count < len(NOTES):
            call = Call("memory_insert", {"label": "human", "new_string": NOTES[result_count]})
            return call_tools(call, hold_before_headers=None if result_count else self.gate)
        return call_tools(Call("memory_finish_edits"))

    @staticmethod
    def begin_runs(gateways: list[Process]) -> list[str]:
        """Creates agents and sends to each. Returns the ids of the runs of their sleeptime agents."""
        runs = []
        for n in range(AGENTS):
            gateway = gateways[n % 2]
            blocks = [{"label": "human", "value": "Ann"}]
            body = {"name": f"a{n}", "model": "m", "enable_sleeptime": True, "memory_blocks": blocks}
            agent = ask(gateway, "POST", "/v1/agents/", body)
            config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": 1}
            ask(gateway, "PATCH", f"/v1/groups/{agent['managed_group']['id']}", {"manager_config": config})
            reply = ask(gateway, "POST", f"/v1/agents/{agent['id']}/messages", {"input": "Hello."})
            runs += reply["usage"]["run_ids"]
        return runs

    @staticmethod
    def check_blocks(world: WorkDeployment, runs: list[str]) -> None:
        """Checks that each run has ended, and that each block has each note once."""
        world.finish_jobs()
        values = (
            "SELECT h.value FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.label = 'human'"
        )
        assert world.query(values) == [("\n".join(("Ann", *NOTES)),)] * AGENTS
        history = (
            "SELECT count(*) FROM block_history h JOIN blocks b ON b.id = h.block WHERE b.label = 'human'"
        )
        assert world.query(history) == [((1 + len(NOTES)) * AGENTS,)]
        rows = world.query("SELECT r.uid, r.state, r.steps FROM runs r JOIN readers x ON x.reader = r.agent")
        assert sorted(rows) == sorted((run.removeprefix("run-"), "completed", CALLS) for run in runs)


@pytest.mark.parametrize("killed", KILLED)
def test_sleeptime_agents_run_once(upstream: StrictUpstream, tmp_path: Path, url: str, killed: str) -> None:
    model = HeldSleeptimeModel(upstream)
    with deploy(tmp_path, url, SETTINGS.format(base_url=upstream.base_url)) as world:
        runs = model.begin_runs(world.gateways)
        world.wait_until(lambda: model.request_count == AGENTS)
        world.kill(killed)
        model.gate.open()
        model.check_blocks(world, runs)
        # The killed process may have performed one call of each run, which is made again.
        assert model.request_count <= CALLS * AGENTS + AGENTS


def has_completed(gateway: Process, batch: str) -> bool:
    return bool(ask(gateway, "GET", f"{PATH}/{batch}")["status"] == "completed")


@pytest.mark.parametrize("killed", KILLED[1:])
def test_batches_are_submitted_once(tmp_path: Path, url: str, killed: str) -> None:
    with OpenAIBatchServer(answer) as server:
        settings = BATCHES.format(kind="openai", base_url=server.base_url, key="sk-own", batches="openai")
        with deploy(tmp_path, url, settings) as world:
            batches = [make(gateway, "far/m") for gateway in world.gateways]
            world.wait_until(lambda: len(server.batches) >= 2)
            world.kill(killed)
            survivor = world.gateways[1]
            for agents, batch in batches:
                world.wait_until(partial(has_completed, survivor, batch["id"]))
                for n, agent in enumerate(agents):
                    block = ask(survivor, "GET", f"/v1/agents/{agent}/core-memory/blocks/human")["value"]
                    assert block.split("\n") == ["Notes:", f"Task {n} 0.", f"Task {n} 1."]
            submissions = Counter(custom_id for each in server.batches for custom_id in each.requests)
            assert (len(submissions), set(submissions.values())) == (2 * ITEMS * ROUNDS, {1})


def test_an_emulated_batch_calls_the_model_once_an_item(
    upstream: StrictUpstream, tmp_path: Path, url: str
) -> None:
    upstream.script = answer_item
    settings = BATCHES.format(kind="openai", base_url=upstream.base_url, key="none", batches="none")
    with deploy(tmp_path, url, settings) as world:
        for _, batch in [make(gateway, "far/m") for gateway in world.gateways]:
            world.wait_until(partial(has_completed, world.gateways[0], batch["id"]))
    assert len(upstream.chats) == 2 * ITEMS * ROUNDS


@pytest.mark.parametrize("killed", KILLED[:1])
def test_messages_to_both_gateways_are_learned_once(
    upstream: StrictUpstream, tmp_path: Path, url: str, killed: str
) -> None:
    gate = Gate()
    # The new messages of each request for facts.
    learned_texts: list[str] = []
    users, turns = 3, 7

    def make_facts(request: UpstreamRequest) -> Reply:
        if request.json["model"] != "small":
            return say("It is noted.")
        text = str(request.messages[1]["content"]).partition("# New messages")[2]
        learned_texts.append(text)
        facts = [
            Call("remember_fact", {"text": f"Item {n} of {user} is packed.", "messages": [1]})
            for user in range(users)
            for n in range(turns)
            if f"I pack item {n} for {user}." in text
        ]
        return call_tools(*facts, text=None, hold_before_headers=gate) if facts else say("Nothing.")

    upstream.script = make_facts
    with deploy(tmp_path, url, SETTINGS.format(base_url=upstream.base_url)) as world:
        histories: list[list[dict[str, Any]]] = [[] for _ in range(users)]

        def take_turns(first: int, last: int, gateways: list[Process]) -> None:
            for n in range(first, last):
                for user, messages in enumerate(histories):
                    messages.append({"role": "user", "content": f"I pack item {n} for {user}."})
                    body = {"model": "m", "user": f"p{user}", "messages": messages}
                    reply = ask(gateways[(n + user) % len(gateways)], "POST", "/v1/chat/completions", body)
                    messages.append(reply["choices"][0]["message"])

        take_turns(0, 4, world.gateways)
        world.wait_until(lambda: bool(learned_texts))
        world.kill(killed)
        gate.open()
        take_turns(4, turns, world.gateways[1:] if killed == "gateway" else world.gateways)

        def list_facts() -> list[str]:
            return [text for (text,) in world.query("SELECT text FROM facts ORDER BY text")]

        # The newest turns are not confirmed yet.
        expected = sorted(f"Item {n} of {user} is packed." for user in range(users) for n in range(4))
        world.wait_until(lambda: set(expected) <= set(list_facts()))
        facts = list_facts()
        assert len(facts) == len(set(facts))


def test_work_waits_for_a_worker_and_needs_no_gateway_then(
    upstream: StrictUpstream, tmp_path: Path, url: str
) -> None:
    model = HeldSleeptimeModel(upstream)
    model.gate.open()
    with deploy(
        tmp_path, url, SETTINGS.format(base_url=upstream.base_url), "--no-work", starts_worker=False
    ) as world:
        runs = model.begin_runs(world.gateways)
        time.sleep(1.0)  # a process that performs jobs would begin as soon as they are enqueued
        assert model.request_count == 0
        assert len(world.query("SELECT 1 FROM jobs")) == AGENTS
        for gateway in world.gateways:
            gateway.kill()
        world.worker.start()
        model.check_blocks(world, runs)
        assert model.request_count == CALLS * AGENTS
