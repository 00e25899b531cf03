"""What a model reads last about a memory block is what holds, in conversations of the agents API."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError

from tests.agents.letta import LettaWorld, letta
from tests.agents.sleeptime import serve_sleeptime
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.shown_blocks import read_last_statements

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOTHING_ELSE = {"learn_every": 0, "recall_tokens": 0}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, memory=NOTHING_ELSE) as made:
        yield made


def rebuild(world: LettaWorld, agent: str, how: str) -> None:
    assert world.ask("PATCH", f"/v1/agents/{agent}", {"mnemogate": {"rebuild": how}})[0] == 200


def recompile(world: LettaWorld, agent: str) -> None:
    world.letta.agents.recompile(agent)


RENDERED: dict[str, Callable[[LettaWorld, str], object]] = {
    "recompile": recompile,
    "system": lambda world, agent: world.letta.agents.update(agent, system="You are another one."),
    "rebuild": lambda world, agent: rebuild(world, agent, "always"),
    "pause": lambda world, agent: world.world.clock.sleep(400.0),
    "compaction": lambda world, agent: world.letta.agents.messages.compact(agent),
    "nothing": lambda world, agent: None,
}


@pytest.mark.parametrize("how", RENDERED)
def test_an_older_note_has_not_the_last_word(world: LettaWorld, how: str) -> None:
    agent, client = world.agent(), world.letta
    send = client.agents.messages.create
    for text in ("Hi", "And?"):
        send(agent.id, input=text)
    client.agents.blocks.update("human", agent_id=agent.id, value="Name: Bea\n  of Rome")
    send(agent.id, input="Who am I?")
    assert "Bea\n  of Rome" in world.upstream.last.messages[-1]["content"]
    client.agents.blocks.update("human", agent_id=agent.id, value="Name: Cleo")
    RENDERED[how](world, agent.id)
    for text in ("And now?", "Still?"):
        send(agent.id, input=text)
        assert read_last_statements(world.upstream.last) == {"human": "Name: Cleo"}
    assert "has changed" not in world.upstream.last.messages[-1]["content"], "it is stated once"


@pytest.mark.parametrize("how", RENDERED)
@pytest.mark.parametrize("is_deleted", [False, True], ids=["detached", "deleted"])
def test_a_block_that_is_gone_is_stated_as_removed(world: LettaWorld, how: str, *, is_deleted: bool) -> None:
    agent, client = world.agent(), world.letta
    plans = str(client.blocks.create(label="plans", value="To Rome.").id)
    send = client.agents.messages.create
    for text in ("Hi", "And?"):
        send(agent.id, input=text)
    client.agents.blocks.attach(plans, agent_id=agent.id)
    send(agent.id, input="What is planned?")
    assert read_last_statements(world.upstream.last)["plans"] == "To Rome."
    if is_deleted:
        client.blocks.delete(plans)
    else:
        client.agents.blocks.detach(plans, agent_id=agent.id)
    RENDERED[how](world, agent.id)
    send(agent.id, input="And now?")
    # Where compaction has left the note out, nothing is stated of the block.
    assert read_last_statements(world.upstream.last).get("plans") is None
    client.blocks.create(label="plans", value="To Oslo.")
    send(agent.id, input="Still?")
    assert read_last_statements(world.upstream.last) | {"plans": None} == {
        "human": "Name: Ann",
        "plans": None,
    }


def test_a_model_may_quote_two_lines_of_a_changed_block(world: LettaWorld) -> None:
    agent, client = world.agent(), world.letta
    client.agents.messages.create(agent.id, input="Hi")
    value = "Likes:\n\t- tea\n\t- rain  \n\nName: Ann"
    client.agents.blocks.update("human", agent_id=agent.id, value=value)
    quoted = {"label": "human", "old_string": "- tea\n\t- rain  \n", "new_string": "- snow\n"}
    world.upstream.queue(call_tools(Call("memory_replace", quoted)), say("Done."))
    client.agents.messages.create(agent.id, input="I do not like tea.")
    assert f">\n{value}\n</memory_block>" in world.upstream.last.messages[-3]["content"]
    assert client.agents.blocks.retrieve("human", agent_id=agent.id).value == "Likes:\n\t- snow\n\nName: Ann"
    assert read_last_statements(world.upstream.last) == {"human": "Likes:\n\t- snow\n\nName: Ann"}


def test_the_value_that_a_sleeptime_agent_writes_is_the_last_statement(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_sleeptime(upstream, tmp_path, memory=NOTHING_ELSE) as world:
        agent = world.create_primary()
        world.set_frequency(agent, 1)
        for text in ("I sail.", "I sew.", "I sing.", "Bye."):
            for pause in (0.0, 400.0):
                value = world.get_block(agent)
                world.send(agent, text)
                asked = next(s for s in reversed(upstream.requests) if s not in world.model.requests)
                assert read_last_statements(asked) == {"human": value}
                world.wait_until_idle()
                world.letta.world.clock.sleep(pause)
        assert "I sing." in world.get_block(agent)


class RandomLife:
    """An agent whose blocks are edited from all sides, and what its model should have read of them."""

    def __init__(self, world: LettaWorld, seed: int) -> None:
        self.world, self.dice, self.number, self.compared = world, random.Random(seed), 0, 0
        self.agent = world.agent(context_window_limit=4_000, max_tokens=200).id
        self.truth: dict[str, str] = {"human": "Name: Ann"}
        self.ids: dict[str, str] = {}
        # Of the turn under way: the rounds that are left, and whether others write between them.
        self.rounds, self.is_disturbed = 0, False
        self.other = world.make_client()
        world.upstream.script = self.answer

    def text(self) -> str:
        self.number += 1
        lines = [f"Line {self.number}.", f"  - and <b>{self.number}</b> more", "", f"\tend {self.number}."]
        return "\n".join(self.dice.sample(lines, self.dice.randint(1, 3)))

    def answer(self, request: UpstreamRequest) -> Reply:
        if "<memory_blocks>" not in str(request.messages[0]["content"]):
            return say(f"Notes {self.number}: they talked of this and that.")
        self.compare(request)
        if not self.rounds:
            return say("I see. " * self.dice.randint(1, 60))
        self.rounds -= 1
        if self.is_disturbed:
            self.write(self.other)
        label = self.dice.choice([*self.truth])
        new = self.text().strip() or f"Line {self.number}."  # the same once more would change nothing
        self.truth[label] = f"{self.truth[label]}\n{new}" if self.truth[label] else new
        return call_tools(Call("memory_insert", {"label": label, "new_string": new}))

    def compare(self, request: UpstreamRequest) -> None:
        read = read_last_statements(request)
        self.compared += 1
        for label in read.keys() | self.truth.keys():
            assert (read.get(label) or "") == self.truth.get(label, ""), (label, self.number)

    def write(self, client: Any) -> None:
        label = self.dice.choice([*self.truth])
        self.truth[label] = self.dice.choice((self.text(), self.text(), ""))
        client.agents.blocks.update(label, agent_id=self.agent, value=self.truth[label])

    def attach(self) -> None:
        label, client = self.dice.choice(("plans", "work")), self.world.letta
        if label not in self.truth:
            self.truth[label] = self.text()
            self.ids[label] = str(client.blocks.create(label=label, value=self.truth[label]).id)
            client.agents.blocks.attach(self.ids[label], agent_id=self.agent)

    def remove(self) -> None:
        if self.ids:
            label = self.dice.choice([*self.ids])
            del self.truth[label]
            if self.dice.random() < 0.5:
                self.world.letta.agents.blocks.detach(self.ids.pop(label), agent_id=self.agent)
            else:
                self.world.letta.blocks.delete(self.ids.pop(label))

    def step(self) -> None:
        client, dice = self.world.letta.agents, self.dice
        match dice.choice("wwwwaarrpscb"):
            case "w":
                self.write(self.world.letta)
            case "a":
                self.attach()
            case "r":
                self.remove()
            case "p":
                self.world.world.clock.sleep(400.0)
            case "s":
                client.update(self.agent, system=f"You are number {self.number}.")
            case "c" if dice.random() < 0.5:
                client.recompile(self.agent)
            case "c":
                with suppress(BadRequestError):  # there is nothing to summarise yet
                    client.messages.compact(self.agent)
            case "b":
                rebuild(self.world, self.agent, dice.choice(("always", "free")))
        if dice.random() < 0.6:
            self.rounds = dice.choice((0, 0, 1, 3))
            self.is_disturbed = dice.random() < 0.5
            client.messages.create(
                self.agent, input=f"Message {self.number}. " + "word " * dice.randint(1, 60)
            )


# The life has every kind of step, compactions included.
@pytest.mark.parametrize("seed", [0])
def test_after_any_edits_the_last_statement_about_each_block_holds(world: LettaWorld, seed: int) -> None:
    life = RandomLife(world, seed)
    world.letta.agents.messages.create(life.agent, input="Hi")
    for _ in range(60):
        life.step()
    assert life.compared > 30
    stored = {b.label: b.value for b in world.letta.agents.blocks.list(life.agent)}
    assert stored == life.truth
