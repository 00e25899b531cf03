"""What a model reads last about a memory block is what holds, in chats with a profile."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.prompt.shown_blocks import describe_mark
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.settings import BlockSettings
from storage.records import Scope
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, insert, say
from tests.gateway.compacting import compacted, compacting
from tests.gateway.sdk import Chat, World, agent, prefix_bytes, remember
from tests.gateway.shown_blocks import find_mark, read_last_statements

BLOCKS = (BlockSettings("human", "What is known of the user."), BlockSettings("plans", "What is planned."))


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(blocks=BLOCKS), memory={"learn_every": 0}) as made:
        yield made


def write(world: World, label: str, value: str) -> None:
    """Edits a block from outside, also while a turn is under way."""

    async def edit() -> None:
        agent = await world.store.agents.find(Scope("default", "helper", "user:alice"))
        assert agent is not None
        block = next(b for b in await world.store.blocks.load(agent.id) if b.label == label)
        await world.store.blocks.write(block.id, block.version, value, at=world.clock(), origin="test")

    world.gateway.call(edit())


def helper(world: World, **options: Any) -> Chat:
    return world.chat(user="alice", model="agent/helper", **options)


@pytest.mark.parametrize("pause", [0.0, 400.0])
def test_after_a_pause_an_older_note_has_not_the_last_word(world: World, pause: float) -> None:
    chat = helper(world)
    chat.say("Hi")
    world.write_block("alice", "Name: Bea")
    chat.say("Who am I?")
    assert read_last_statements(world.upstream.last) == {"human": "Name: Bea", "plans": ""}
    world.write_block("alice", "Name: Cleo")
    world.clock.sleep(pause)
    for text in ("And now?", "Still?"):
        chat.say(text)
        assert read_last_statements(world.upstream.last) == {"human": "Name: Cleo", "plans": ""}
    assert "has changed" not in world.upstream.last.messages[-1]["content"], "it is stated once"


def test_a_section_that_shows_the_same_as_an_older_note_is_not_repeated(world: World) -> None:
    chat = helper(world)
    chat.say("Hi")
    world.write_block("alice", "Name: Bea")
    chat.say("Who am I?")
    world.clock.sleep(400.0)
    chat.say("And now?")
    assert world.upstream.last.messages[-1]["content"] == "And now?"
    assert read_last_statements(world.upstream.last) == {"human": "Name: Bea", "plans": ""}


def test_a_question_asked_again_has_its_note_and_what_changed_since(world: World) -> None:
    chat = helper(world)
    chat.say("Hi")
    world.write_block("alice", "Name: Bea")
    chat.say("Who am I?")
    first = world.upstream.last.messages[-1]["content"]
    world.write_block("alice", "Name: Cleo")
    chat.messages.pop()
    chat.go_on()
    again = world.upstream.last.messages[-1]["content"]
    assert again.startswith(first.removesuffix("Who am I?"))
    assert read_last_statements(world.upstream.last)["human"] == "Name: Cleo"
    fixed = prefix_bytes(world.upstream.last)
    chat.say("Go on.")
    assert prefix_bytes(world.upstream.last).startswith(fixed)


def test_the_next_round_of_a_turn_has_edits_of_other_writers(world: World) -> None:
    chat = helper(world)
    chat.say("Hi")

    def answer(request: UpstreamRequest) -> Reply:
        if request.messages[-1]["role"] == "tool":
            return say("Noted.")
        write(world, "human", "Name: Bea")
        write(world, "plans", "To Rome.")
        return call_tools(insert("Likes tea."))

    world.upstream.script = answer
    chat.say("Note it.")
    read = {"human": "Name: Bea\nLikes tea.", "plans": "To Rome."}
    assert read_last_statements(world.upstream.last) == read
    world.upstream.script = None
    chat.say("And now?")
    assert read_last_statements(world.upstream.last) == read
    assert world.upstream.last.messages[-1]["content"] == "And now?", "it is stated once"


def test_the_first_note_names_the_mark_where_no_section_does(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """A conversation without notes pays nothing for it, and no prefix breaks for it later."""
    with remember(upstream, tmp_path) as world:
        world.chat(user="alice").say("My cat is called Miso.")
        chat = world.chat(user="alice")
        chat.say("My tulips are red, and they stand on the balcony.")
        assert upstream.last.messages == chat.messages[:-1]
        before = prefix_bytes(upstream.last)
        chat.say("What is my cat called?")
        mark = find_mark(upstream.last)
        assert mark is not None
        assert upstream.last.messages[-1]["content"].startswith(f"<memory {mark}>\n")
        assert prefix_bytes(upstream.last).startswith(before)
        world.chat(user="alice").say("My dog is called Rex.")
        chat.say("And what is my dog called?")
        assert f"<memory {mark}>" in upstream.last.messages[-1]["content"]
        assert upstream.last.body.decode().count(describe_mark(mark)) == 1
        # Another user's memory has another one.
        world.chat(user="bob").say("My cat is called Momo.")
        world.chat(user="bob").say("What is my cat called?")
        assert find_mark(upstream.last) not in (None, mark)


def test_where_the_first_note_is_left_out_the_next_one_names_the_mark(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, memory={"history": "client"}) as world:
        for name in ("cat is called Miso", "dog is called Rex"):
            world.chat(user="alice").say(f"My {name}.")
        chat = world.chat(user="alice")
        chat.say("What is my cat called?")
        chat.say("Thank you for that.")
        chat.messages = chat.messages[-2:]
        chat.say("And what is my dog called?")
        assert "Rex" in upstream.last.messages[-1]["content"]
        assert len(upstream.last.messages) == 3
        assert upstream.last.messages[0]["content"] == "Thank you for that."
        assert find_mark(upstream.last) is not None


def test_imported_notes_bear_the_mark_of_the_memory_that_they_come_into(world: World) -> None:
    chat = helper(world, headers={"x-mnemogate-conversation": "c1"})
    chat.say("Hi")
    write(world, "human", "Name: Bea")
    world.upstream.script = lambda request: (
        say("Noted.") if request.messages[-1]["role"] == "tool" else disturbed(world, insert("Likes tea."))
    )
    chat.say("Note it.")
    world.upstream.script = None
    before = find_mark(world.upstream.last)
    assert world.upstream.last.body.decode().count(f"<memory {before}>") == 3

    async def move() -> None:
        operations = TransferOperations(world.store)
        at, place, who = None, None, {"project": "default", "profile": "helper"}
        while True:
            answer = await operations.export({**who, "user": "alice", "from": place})
            page = orjson.loads(orjson.dumps(answer))
            at = (await operations.restore({**who, "user": "bob", "lines": page["lines"], "at": at}))["at"]
            if (place := page["next"]) is None:
                break
        await operations.restore({**who, "user": "bob", "lines": [], "at": at, "end": True})

    world.settle()
    world.gateway.call(move())
    world.clock.sleep(400.0)  # after which the section is rendered, which an export does not have
    chat.options["user"] = "bob"
    chat.say("Who am I?")
    body = world.upstream.last.body.decode()
    mark = find_mark(world.upstream.last)
    assert mark not in (None, before)
    assert set(re.findall(r"<memory ([a-z2-7]{8})>", body)) == {mark}
    assert read_last_statements(world.upstream.last) == {
        "human": "Name: Bea\nLikes tea.",
        "plans": "To Rome.",
    }


def disturbed(world: World, *calls: Call) -> Reply:
    """Returns calls of a model, while whose reply is made others write a block."""
    write(world, "plans", "To Rome.")
    return call_tools(*calls)


class RandomChat:
    """A chat whose blocks are edited from all sides. A model's edits wait with their turn until the next one ends."""

    def __init__(self, world: World, seed: int, words: int = 0, **options: Any) -> None:
        """words: the most that a message of the user's has. options: of each request."""
        self.world, self.dice, self.number, self.compared = world, random.Random(seed), 0, 0
        self.chat, self.words = helper(world, **options), words
        self.stored = {"human": "", "plans": ""}
        self.before: list[tuple[str, str]] = []  # edits of the turn before: label, inserted text
        self.now: list[tuple[str, str]] = []  # of the turn under way
        self.rounds, self.is_disturbed = 0, False
        world.upstream.script = self.answer

    def text(self) -> str:
        self.number += 1
        lines = [f"Line {self.number}.", f"  - and <i>{self.number}</i> more", "", f"\tend {self.number}."]
        return "\n".join(self.dice.sample(lines, self.dice.randint(1, 3)))

    def answer(self, request: UpstreamRequest) -> Reply:
        if request.json["model"] == "small":
            return say("Notes: they talked of this and that.")
        read, truth = read_last_statements(request), with_edits(self.stored, [*self.before, *self.now])
        self.compared += 1
        assert {label: read.get(label) or "" for label in truth} == truth, self.number
        if not self.rounds:
            return say("I see. " * self.dice.randint(1, 9))
        self.rounds -= 1
        if self.is_disturbed:
            self.write()
        label = self.dice.choice([*self.stored])
        new = self.text().strip() or f"Line {self.number}."  # the same once more would change nothing
        self.now.append((label, new))
        return call_tools(Call("memory_insert", {"label": label, "new_string": new}))

    def write(self) -> None:
        label = self.dice.choice([*self.stored])
        self.stored[label] = self.dice.choice((self.text(), self.text(), ""))
        write(self.world, label, self.stored[label])

    def step(self) -> None:
        dice, chat = self.dice, self.chat
        match dice.choice("wwwpatg"):
            case "w":
                self.write()
            case "p":
                self.world.clock.sleep(400.0)
            case "t" if len(chat.messages) > 4:
                chat.messages = chat.messages[-2 * dice.randint(1, 2) :]
            case "g" if not self.before:
                chat.messages.pop()
                chat.go_on()
                return
        self.rounds, self.is_disturbed = dice.choice((0, 0, 1, 3)), dice.random() < 0.4
        chat.say(f"Message {self.number}." + " word" * dice.randint(0, self.words))
        self.stored = with_edits(self.stored, self.before)
        self.before, self.now = self.now, []
        assert {label: self.world.block("alice", label).value for label in self.stored} == self.stored


def with_edits(blocks: dict[str, str], edits: list[tuple[str, str]]) -> dict[str, str]:
    seen = dict(blocks)
    for label, new in edits:
        seen[label] = f"{seen[label]}\n{new}" if seen[label] else new
    return seen


@pytest.mark.both(seed=[2])
@pytest.mark.parametrize("seed", [0, 2])
def test_after_any_edits_the_last_statement_about_each_block_holds(world: World, seed: int) -> None:
    life = RandomChat(world, seed)
    life.chat.say("Hi")
    for _ in range(50):
        life.step()
    assert life.compared > 50


@pytest.mark.parametrize("seed", [1, 21])
def test_in_a_small_window_the_last_statement_about_each_block_holds(
    upstream: StrictUpstream, tmp_path: Path, seed: int
) -> None:
    """Notes, hidden rounds and what a client left out leave the window, and summaries stand for them."""
    with compacting(upstream, tmp_path, agent(blocks=BLOCKS), context=4096) as world:
        life = RandomChat(world, seed, max_tokens=256, words=200)
        life.chat.say("Hi")
        for _ in range(50):
            life.step()
            compacted(world)
        assert life.compared > 50
        assert any(request.json["model"] == "small" for request in upstream.requests)
