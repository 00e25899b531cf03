"""Random sends, forks and forgetting over a small tree of conversations, against a plain model of what each has."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.admin.test_transfer_agents import export, restore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STEPS = 40


@dataclass
class Turn:
    """A question and its answer; None: it is forgotten."""

    question: str | None
    answer: str | None

    @property
    def left(self) -> list[str]:
        return [text for text in (self.question, self.answer) if text]

    @property
    def sent(self) -> list[str]:
        """What a model is sent: neither of the two without the other."""
        return self.left if self.question and self.answer else []


@dataclass
class Model:
    """What each conversation has: turns of others first, which both share."""

    above: dict[str, list[Turn]] = field(default_factory=dict)
    own: dict[str, list[Turn]] = field(default_factory=dict)
    all: list[Turn] = field(default_factory=list)

    def begin(self, id: str, above: list[Turn]) -> None:
        self.above[id], self.own[id] = above, []

    def turns(self, id: str) -> list[Turn]:
        return [*self.above[id], *self.own[id]]

    def texts(self, id: str) -> list[str]:
        return [text for turn in self.turns(id) for text in turn.left]

    def send(self, id: str, question: str, answer: str) -> list[str]:
        """Returns what goes upstream."""
        before = [text for turn in self.turns(id) for text in turn.sent]
        turn = Turn(question, answer)
        self.own[id].append(turn)
        self.all.append(turn)
        return [*before, question]

    def forget(self, text: str) -> None:
        for turn in self.all:
            turn.question = None if turn.question == text else turn.question
            turn.answer = None if turn.answer == text else turn.answer

    def delete(self, id: str) -> None:
        for turn in self.own[id]:
            turn.question = turn.answer = None
        del self.above[id], self.own[id]


def listed(world: LettaWorld, path: str) -> list[dict[str, Any]]:
    """Returns the messages there without the system message at place 0. Letta's client would take twice as long."""
    status, messages = world.ask("GET", f"{path}/messages?order=asc&limit=1000")
    assert status == 200
    return [each for each in messages if not each["id"].endswith("-0")]


def compare(world: LettaWorld, model: Model, agent: str) -> None:
    for id in model.own:
        assert [each["content"] for each in listed(world, f"/v1/conversations/{id}")] == model.texts(id)
    whole = listed(world, f"/v1/agents/{agent}")
    assert [each["content"] for each in whole] == [text for turn in model.all for text in turn.left]


def live(world: LettaWorld, model: Model, agent: str, chance: random.Random, steps: int) -> None:
    conversations = world.letta.conversations
    for _ in range(steps):
        id = chance.choice([*model.own])
        act = chance.choice(["send"] * 5 + ["fork"] * 2 + ["fork at", "forget", "forget", "delete"])
        messages = listed(world, f"/v1/conversations/{id}") if act in ("fork at", "forget") else []
        if act == "send":
            n = len(model.all)
            world.upstream.queue(say(f"Answer {n}"))
            list(conversations.messages.create(id, input=f"Question {n}"))
            contents = [m["content"] for m in world.upstream.last.messages[1:]]
            assert contents == model.send(id, f"Question {n}", f"Answer {n}")
        elif act == "fork" and len(model.own) < 6:
            model.begin(conversations.fork(id).id, model.turns(id))
        elif act == "fork at" and (answered := [t for t in model.turns(id) if t.answer]):
            turn = chance.choice(answered)
            (named,) = [m["id"] for m in messages if m["content"] == turn.answer]
            turns = model.turns(id)
            model.begin(
                conversations.fork(id, message_id=named).id,
                turns[: next(n for n, each in enumerate(turns, 1) if each is turn)],
            )
        elif act == "forget" and messages:
            message = chance.choice(messages)
            assert world.ask("DELETE", f"/v1/agents/{agent}/messages/{message['id']}")[0] == 200
            model.forget(message["content"])
        elif act == "delete" and len(model.own) > 2:
            conversations.delete(id)
            model.delete(id)
        if act != "send":  # what was said is compared after the next of the others, which comes soon
            compare(world, model, agent)
    compare(world, model, agent)


# Each life has every kind of step: sends, both kinds of forks, forgotten questions and answers, deletions.
@pytest.mark.both(seed=[0])
@pytest.mark.parametrize("seed", [0, 2])
def test_each_conversation_of_a_tree_has_its_own_words(
    upstream: StrictUpstream, tmp_path: Path, seed: int
) -> None:
    chance, model = random.Random(seed), Model()
    memory = {"learn_every": 0, "recall_tokens": 0}
    (tmp_path / "other").mkdir()
    with letta(upstream, tmp_path, memory=memory) as world:
        agent = world.agent().id
        model.begin(world.letta.conversations.create(agent_id=agent).id, [])
        live(world, model, agent, chance, STEPS)
        world.world.settle()
        lines = export(world, agent)
        with letta(upstream, tmp_path / "other", memory=memory) as other:
            restore(other, agent, lines)
            compare(other, model, agent)
            live(other, model, agent, chance, STEPS // 4)
