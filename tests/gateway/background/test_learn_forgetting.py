"""Forgetting while and after something is learned."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from adapters.base import ModelReply
from adapters.scripted import ScriptedProvider
from adapters.scripted_message import ScriptedMessage
from adapters.types import ModelRequest
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.background.background_model import ModelAnswer
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.background.learner import IDLE_S, Learner, fact, note, serve_learner
from tests.gateway.sdk import are_idle
from tests.server import QUIET

# -- forgetting


@pytest.mark.parametrize("what", ["message", "user"])
def test_a_fact_is_forgotten_with_its_message(learner: Learner, what: str) -> None:
    world = learner.world
    world.chat(user="alice").say("We got a kitten and named her Zqmisox.")
    world.chat(user="alice").say("I live in Bergen.")
    learner.queue_calls(fact("The cat is called Zqmisox."), note("Cat: Zqmisox"), fact("Lives in Bergen."))
    learner.pass_idle_time()
    assert "learned: The cat is called Zqmisox." in learner.ask_in_new_chat("What is my cat called?")
    learner.pass_idle_time()
    (seq,) = world.query("SELECT min(seq) FROM exchanges")
    target = {"message": seq} if what == "message" else {}

    async def forget() -> None:
        operation = ForgetOperations(world.store, world.clock).forget
        assert (await operation({"project": "default", "user": "alice", **target}))["done"]

    world.gateway.call(forget())
    assert learner.list_texts() == (["Lives in Bergen."] if what == "message" else [])
    assert b"Zqmisox" not in world.data()
    assert "Zqmisox" not in learner.ask_in_new_chat("What is my cat called? Tell me.")
    learner.pass_idle_time()
    assert "Zqmisox" not in learner.prompts[-1]


def test_a_fact_from_a_block_is_forgotten_with_the_message_of_its_line(learner: Learner) -> None:
    """The later message has none of its words: they came from the block that the model was shown."""
    world = learner.world
    world.chat(user="alice").say("We got a kitten and named her Zqmisox.")
    learner.queue_calls(note("Cat: Zqmisox"))
    learner.pass_idle_time()
    world.chat(user="alice").say("She is healthy again.")
    learner.queue_calls(fact("Zqmisox was ill, and is healthy again."))
    learner.pass_idle_time()
    assert learner.list_texts() == ["Zqmisox was ill, and is healthy again."]
    (seq,) = world.query("SELECT min(seq) FROM exchanges")

    async def forget() -> None:
        operation = ForgetOperations(world.store, world.clock).forget
        assert (await operation({"project": "default", "user": "alice", "message": seq}))["done"]

    world.gateway.call(forget())
    assert learner.list_texts() == []
    assert b"Zqmisox" not in world.data()


def test_a_fact_from_a_line_that_has_left_its_block_is_forgotten_with_the_lines_message(
    learner: Learner,
) -> None:
    """The block was corrected while the model, which had been shown the line, answered."""
    world = learner.world

    class Slow(ScriptedProvider):
        async def send(self, request: ModelRequest) -> ModelReply:
            await asyncio.to_thread(partial(world.write_block, "alice", "Likes tea.", profile="default"))
            return await super().send(request)

    world.chat(user="alice").say("We got a kitten and named her Zqmisox.")
    learner.queue_calls(note("Cat: Zqmisox"))
    learner.pass_idle_time()
    world.chat(user="alice").say("She is healthy again.")
    background = world.gateway.app.services.background.model
    assert background is not None
    answer = ScriptedMessage(None, (fact("Zqmisox was ill, and is healthy again."),))
    learner.model = background.provider = Slow(replies=iter([answer]))
    learner.pass_idle_time()
    assert learner.list_texts() == ["Zqmisox was ill, and is healthy again."]
    (seq,) = world.query("SELECT min(seq) FROM exchanges")

    async def forget() -> None:
        operation = ForgetOperations(world.store, world.clock).forget
        assert (await operation({"project": "default", "user": "alice", "message": seq}))["done"]

    world.gateway.call(forget())
    assert learner.list_texts() == []
    assert b"Zqmisox" not in world.data()


def test_a_message_that_is_forgotten_meanwhile_is_not_learned(learner: Learner) -> None:
    world = learner.world

    class Forgetful(ScriptedProvider):
        async def send(self, request: ModelRequest) -> ModelReply:
            reply = await super().send(request)
            if len(self.requests) == 1:
                operation = ForgetOperations(world.store, world.clock).forget
                forgetting = operation({"project": "default", "user": "alice", "message": seq})
                assert (await asyncio.shield(asyncio.ensure_future(forgetting)))["done"]  # it ends this job
            return reply

    world.chat(user="alice").say("We got a kitten and named her Zqmisox.")
    world.chat(user="alice").say("I live in Bergen.")
    (seq,) = world.query("SELECT min(seq) FROM exchanges")
    background = world.gateway.app.services.background.model
    assert background is not None
    again = (ScriptedMessage(None, (fact(f"Known: {what}"),)) for what in ("Zqmisox", "Bergen"))
    learner.model = background.provider = Forgetful(replies=again)
    learner.pass_idle_time()
    learner.pass_idle_time()
    learner.wait_for_jobs(lambda counts: not any(counts.values()))
    assert "Zqmisox" not in learner.prompts[-1]
    assert learner.list_texts() == ["Known: Bergen"]


def test_a_fact_that_was_replaced_meanwhile_is_not_learned(learner: Learner) -> None:
    """Such a fact would not have its source, by which it is forgotten."""
    world = learner.world
    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c"})

    def edit() -> None:
        del chat.messages[2:]
        chat.say("We got a dog.")

    class Slow(ScriptedProvider):
        async def send(self, request: ModelRequest) -> ModelReply:
            if not self.requests:
                await asyncio.to_thread(edit)
            return await super().send(request)

    chat.say("Guess what.")
    chat.say("We got a kitten.")
    background = world.gateway.app.services.background.model
    assert background is not None

    def answer(body: dict[str, Any]) -> ScriptedMessage:
        asked = body["messages"][1]["content"].partition("# New messages")[2]
        return ScriptedMessage(
            None, tuple(fact(f"Has a {pet}.") for pet in ("kitten", "dog") if pet in asked)
        )

    learner.model = background.provider = Slow(script=answer)
    learner.pass_idle_time()
    learner.pass_idle_time()
    (found,) = learner.list_facts()
    (dog,) = world.query("SELECT max(id) FROM exchanges")
    assert (found.text, found.sources) == ("Has a dog.", (dog,))


def test_a_forgotten_message_is_not_shown_to_a_model_that_was_busy(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What waited for its turn to ask had been read before it was forgotten."""
    with serve_learner(upstream, tmp_path, limits=replace(QUIET, background_calls=1)) as learner:
        world, held, waiting = learner.world, Gate(), [Gate(), Gate()]
        background = world.gateway.app.services.background.model
        assert background is not None
        ask = background.ask

        async def announced(*asked: Any, **options: Any) -> ModelAnswer:
            next(gate for gate in waiting if not gate.is_open).open()
            return await ask(*asked, **options)

        class Busy(ScriptedProvider):
            async def send(self, request: ModelRequest) -> ModelReply:
                if not self.requests:
                    self.requests.append(request)
                    await held.wait()
                return await super().send(request)

        learner.model = background.provider = Busy(script=lambda body: ScriptedMessage("Nothing."))
        with patch.object(background, "ask", announced):
            for gate, user, text in zip(
                waiting, ("alice", "bob"), ("I like tea.", "I am Zqmisox."), strict=True
            ):
                world.chat(user=user).say(text)
                world.pass_time(IDLE_S)
                world.gateway.call(learner.learning.schedule.perform_due())
                gate.wait_sync()
            operation = ForgetOperations(world.store, world.clock).forget

            async def forget() -> None:
                assert (await operation({"project": "default", "user": "bob", "message": 1}))["done"]

            world.gateway.call(forget())
            held.open()
            learner.wait_for_jobs(are_idle)
        assert not any("Zqmisox" in text for text in learner.prompts)
