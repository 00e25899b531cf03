"""Background work of two gateways and a worker over one database: each unit is done once, whoever of them is killed."""

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

from tests.agents.batches.test_batches import PATH
from tests.agents.sleeptime import is_sleeptime_request
from tests.agents.test_sleep_killed import CALLS, NOTES
from tests.doubles.batches import OpenAIBatchServer
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.background.test_batches_killed import ITEMS, ROUNDS, answer, ask, make
from tests.gateway.background.test_batches_killed import SETTINGS as BATCHES
from tests.gateway.process import Process, serving
from tests.gateway.two.deployment import MODULE, Database, Worker
from tests.patience import PATIENCE_S
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
KILLED = ("gateway", "worker")


@dataclass
class Scene:
    """gateways: two. worker: in addition."""

    url: str
    gateways: list[Process]
    worker: Worker

    def kill(self, who: str) -> None:
        if who == "worker":
            self.worker.kill()
        else:
            self.gateways[0].kill()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return query(self.url, sql)

    def until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < end, (self.rows("SELECT * FROM jobs"), self.rows("SELECT * FROM runs"))
            time.sleep(0.02)

    def rest(self) -> None:
        """Until there is no job any more."""
        self.until(lambda: not self.rows("SELECT 1 FROM jobs WHERE state <> 'dead'"))
        assert self.rows("SELECT kind, error FROM jobs") == []


@contextmanager
def scene(folder: Path, url: str, settings: str, *arguments: str, works: bool = True) -> Iterator[Scene]:
    database = Database(folder / "none", url)
    with ExitStack() as stack:
        gateways = []
        for number in range(2):
            where = folder / f"gateway{number}"
            where.mkdir()
            served = serving(where, *arguments, settings=settings, module=MODULE, environ=database.environ)
            gateways.append(stack.enter_context(served))
        worker = Worker(folder / "worker", database, settings)
        if works:
            worker.start()
        stack.callback(worker.kill)
        yield Scene(url, gateways, worker)


class Sleepers:
    """A model that plays agents and their sleeptime agents; the first calls of the latter are held."""

    def __init__(self, upstream: StrictUpstream) -> None:
        self.gate, self.asked = Gate(), 0
        upstream.script = self._script

    def _script(self, request: UpstreamRequest) -> Reply:
        if not is_sleeptime_request(request):
            return say("I see.")
        self.asked += 1
        done = sum(m["role"] == "tool" for m in request.messages)
        if done < len(NOTES):
            call = Call("memory_insert", {"label": "human", "new_string": NOTES[done]})
            return call_tools(call, hold_before_headers=None if done else self.gate)
        return call_tools(Call("memory_finish_edits"))

    @staticmethod
    def begin(gateways: list[Process]) -> list[str]:
        """Makes agents and says something to each. Returns the runs of their sleeptime agents."""
        runs = []
        for n in range(AGENTS):
            gateway, blocks = gateways[n % 2], [{"label": "human", "value": "Ann"}]
            body = {"name": f"a{n}", "model": "m", "enable_sleeptime": True, "memory_blocks": blocks}
            agent = ask(gateway, "POST", "/v1/agents/", body)
            config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": 1}
            ask(gateway, "PATCH", f"/v1/groups/{agent['managed_group']['id']}", {"manager_config": config})
            reply = ask(gateway, "POST", f"/v1/agents/{agent['id']}/messages", {"input": "Hello."})
            runs += reply["usage"]["run_ids"]
        return runs

    @staticmethod
    def check(world: Scene, runs: list[str]) -> None:
        world.rest()
        values = (
            "SELECT h.value FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.label = 'human'"
        )
        assert world.rows(values) == [("\n".join(("Ann", *NOTES)),)] * AGENTS
        history = (
            "SELECT count(*) FROM block_history h JOIN blocks b ON b.id = h.block WHERE b.label = 'human'"
        )
        assert world.rows(history) == [((1 + len(NOTES)) * AGENTS,)]
        done = world.rows("SELECT r.uid, r.state, r.steps FROM runs r JOIN readers x ON x.reader = r.agent")
        assert sorted(done) == sorted((run.removeprefix("run-"), "completed", CALLS) for run in runs)


@pytest.mark.parametrize("killed", KILLED)
def test_sleeptime_agents_run_once(upstream: StrictUpstream, tmp_path: Path, url: str, killed: str) -> None:
    model = Sleepers(upstream)
    with scene(tmp_path, url, SETTINGS.format(base_url=upstream.base_url)) as world:
        runs = model.begin(world.gateways)
        world.until(lambda: model.asked == AGENTS)
        world.kill(killed)
        model.gate.open()
        model.check(world, runs)
        # Whoever was killed had all of them under way at most, of each one call.
        assert model.asked <= CALLS * AGENTS + AGENTS


def has_completed(gateway: Process, batch: str) -> bool:
    return bool(ask(gateway, "GET", f"{PATH}/{batch}")["status"] == "completed")


@pytest.mark.parametrize("killed", KILLED[1:])
def test_batches_are_submitted_once(tmp_path: Path, url: str, killed: str) -> None:
    with OpenAIBatchServer(answer) as server:
        settings = BATCHES.format(kind="openai", base_url=server.base_url, key="sk-own", batches="openai")
        with scene(tmp_path, url, settings) as world:
            made = [make(gateway, "far/m") for gateway in world.gateways]
            world.until(lambda: len(server.batches) >= 2)
            world.kill(killed)
            left = world.gateways[1]
            for agents, batch in made:
                world.until(partial(has_completed, left, batch["id"]))
                for n, agent in enumerate(agents):
                    block = ask(left, "GET", f"/v1/agents/{agent}/core-memory/blocks/human")["value"]
                    assert block.split("\n") == ["Notes:", f"Task {n} 0.", f"Task {n} 1."]
            sent = Counter(custom_id for each in server.batches for custom_id in each.requests)
            assert (len(sent), set(sent.values())) == (2 * ITEMS * ROUNDS, {1})


def test_calls_that_a_gateway_makes_itself_are_made_once(
    upstream: StrictUpstream, tmp_path: Path, url: str
) -> None:
    def script(request: UpstreamRequest) -> Reply:
        fate = answer("", request.json)
        calls = [Call(name, given) for name, given in fate.calls]
        return call_tools(*calls) if calls else say(fate.text)

    upstream.script = script
    settings = BATCHES.format(kind="openai", base_url=upstream.base_url, key="none", batches="none")
    with scene(tmp_path, url, settings) as world:
        for _, batch in [make(gateway, "far/m") for gateway in world.gateways]:
            world.until(partial(has_completed, world.gateways[0], batch["id"]))
    assert len(upstream.chats) == 2 * ITEMS * ROUNDS


@pytest.mark.parametrize("killed", KILLED[:1])
def test_what_is_said_at_both_is_learned_once(
    upstream: StrictUpstream, tmp_path: Path, url: str, killed: str
) -> None:
    gate, asked = Gate(), list[str]()
    people, turns = 3, 7

    def script(request: UpstreamRequest) -> Reply:
        if request.json["model"] != "small":
            return say("It is noted.")
        text = str(request.messages[1]["content"]).partition("# New messages")[2]
        asked.append(text)
        facts = [
            Call("remember_fact", {"text": f"Item {n} of {person} is packed.", "messages": [1]})
            for person in range(people)
            for n in range(turns)
            if f"I pack item {n} for {person}." in text
        ]
        return call_tools(*facts, text=None, hold_before_headers=gate) if facts else say("Nothing.")

    upstream.script = script
    with scene(tmp_path, url, SETTINGS.format(base_url=upstream.base_url)) as world:
        said: list[list[dict[str, Any]]] = [[] for _ in range(people)]

        def talk(first: int, last: int, gateways: list[Process]) -> None:
            for n in range(first, last):
                for person, messages in enumerate(said):
                    messages.append({"role": "user", "content": f"I pack item {n} for {person}."})
                    body = {"model": "m", "user": f"p{person}", "messages": messages}
                    reply = ask(gateways[(n + person) % len(gateways)], "POST", "/v1/chat/completions", body)
                    messages.append(reply["choices"][0]["message"])

        talk(0, 4, world.gateways)
        world.until(lambda: bool(asked))
        world.kill(killed)
        gate.open()
        talk(4, turns, world.gateways[1:] if killed == "gateway" else world.gateways)

        def learned() -> list[str]:
            return [text for (text,) in world.rows("SELECT text FROM facts ORDER BY text")]

        # The newest turns are not confirmed yet, and wait.
        wanted = sorted(f"Item {n} of {person} is packed." for person in range(people) for n in range(4))
        world.until(lambda: set(wanted) <= set(learned()))
        found = learned()
        assert len(found) == len(set(found))


def test_work_waits_for_a_worker_which_needs_no_gateway(
    upstream: StrictUpstream, tmp_path: Path, url: str
) -> None:
    model = Sleepers(upstream)
    model.gate.open()
    with scene(tmp_path, url, SETTINGS.format(base_url=upstream.base_url), "--no-work", works=False) as world:
        runs = model.begin(world.gateways)
        time.sleep(1.0)  # who performs jobs is woken when they are enqueued
        assert model.asked == 0
        assert len(world.rows("SELECT 1 FROM jobs")) == AGENTS
        for gateway in world.gateways:
            gateway.kill()
        world.worker.start()
        model.check(world, runs)
        assert model.asked == CALLS * AGENTS
