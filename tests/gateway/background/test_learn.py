"""Learning through the real gateway, with a background model that follows a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.base import ModelReply
from adapters.errors import ProviderUnreachable
from adapters.scripted import ScriptedBody, ScriptedFailure, ScriptedProvider
from adapters.scripted_message import ScriptedCall, ScriptedMessage
from adapters.types import ModelRequest
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.background.worker import Worker
from gateway.run.memory.trial import TrialRunner
from storage.errors import StoreFull
from storage.job_records import JobState
from storage.records import Scope
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.background.learner import IDLE_S, Learner, fact, note, serve_learner
from tests.gateway.page.memories import memory_of
from tests.gateway.sdk import CHAT, agent, remember
from tests.patience import PATIENCE_S

KITTEN = "We got a kitten last week and named her Miso."

MISO = "The cat is called Miso."

# -- what is learned, and what becomes of it


def test_a_learned_fact_is_recalled_in_another_conversation(learner: Learner) -> None:
    learner.queue_calls(fact(MISO, about="cat", messages=[1]))
    learner.world.chat(user="alice").say(KITTEN)
    learner.pass_idle_time()
    (found,) = learner.list_facts()
    assert (found.text, found.about) == (MISO, "cat")
    assert learner.world.query("SELECT id FROM exchanges WHERE id = ?", found.exchange_row or 0)
    assert "learned: The cat is called Miso." in learner.ask_in_new_chat("What is my cat called?")


def test_nothing_is_learned_before_it_is_confirmed(learner: Learner) -> None:
    learner.queue_calls(fact(MISO))
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.pass_idle_time(1)
    assert learner.prompts == []
    learner.world.store.jobs.wake()
    learner.pass_idle_time()
    assert learner.list_texts() == [MISO]


def test_the_idle_time_of_the_settings_is_what_it_waits(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path, idle_s=1000.0) as learner:
        learner.queue_calls(fact(MISO))
        learner.world.chat(user="alice").say(KITTEN)
        learner.pass_idle_time(999)
        assert learner.prompts == []
        learner.pass_idle_time(3)
        assert learner.list_texts() == [MISO]


def test_after_so_many_confirmed_messages_it_does_not_wait_for_rest(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_learner(upstream, tmp_path, learn_every=4) as learner:
        learner.queue_calls(fact(MISO))
        chat = learner.world.chat(user="alice")
        for text in (KITTEN, "She is small.", "And grey."):
            assert learner.prompts == []
            chat.say(text)
            learner.world.settle()
        learner.wait_for_jobs(lambda counts: bool(learner.model.bodies) and not any(counts.values()))
        assert learner.list_texts() == [MISO]
        assert "She is small." in learner.list_new_messages()
        assert "And grey." not in learner.list_new_messages()  # it may still be asked again


def test_a_note_in_the_block_for_the_person_reaches_running_conversations(learner: Learner) -> None:
    chat = learner.world.chat(user="alice", model="agent/helper")
    chat.say(KITTEN)
    learner.queue_calls(note("Has a cat, Miso."))
    learner.pass_idle_time()
    block = learner.world.block("alice")
    assert (block.value, block.version) == ("Has a cat, Miso.", 2)
    learner.world.clock.now -= IDLE_S  # the conversation goes on before the provider's cache has gone
    chat.say("Good morning.")
    assert "Has a cat, Miso." in learner.world.upstream.last.messages[-1]["content"]


def test_of_a_large_memory_the_model_sees_the_related_facts_and_the_newest(learner: Learner) -> None:
    world = learner.world
    world.chat(user="alice").say("Hello.")
    learner.pass_idle_time()
    home = "Lives in Oslo, near the harbour."

    async def add_facts() -> None:
        found = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert found is not None
        for text in (home, *(f"Owns volume {n} of the series." for n in range(70))):
            await world.store.facts.remember(found, text, text, "operator", world.clock())

    world.gateway.call(add_facts())
    # A search returns fewer messages than these, which have the words of the fact too.
    for n in range(60):
        world.chat(user="alice").say(f"In Oslo, near the harbour {n}.")
    world.pass_time(IDLE_S)  # they are in the index
    learner.pass_idle_time()
    known_facts = learner.prompts[-1].partition("# Known facts")[2].partition("# New messages")[0]
    assert home in known_facts
    assert "Owns volume 69 of the series." in known_facts
    assert "Owns volume 1 of the series." not in known_facts


def test_the_block_for_the_person_is_made_on_first_use(learner: Learner) -> None:
    learner.world.chat(user="alice").say(KITTEN)
    assert learner.world.query("SELECT count(*) FROM blocks") == [0]
    learner.queue_calls(note("Has a cat, Miso."))
    learner.pass_idle_time()
    assert learner.world.block("alice", profile="default").value == "Has a cat, Miso."
    learner.world.chat(user="alice").say("Hello.")
    assert "Has a cat, Miso." in learner.world.upstream.last.messages[0]["content"]


def test_a_changed_fact_replaces_the_earlier_one(learner: Learner) -> None:
    learner.queue_calls(fact("Lives in Oslo, near the harbour."))
    learner.world.chat(user="alice").say("I live in Oslo near the harbour.")
    learner.pass_idle_time()
    learner.world.pass_time(IDLE_S)  # it is in the index
    assert "learned: Lives in Oslo" in learner.ask_in_new_chat("Which harbour was it that I live near?")
    learner.pass_idle_time()
    learner.queue_calls(fact("Lives in Bergen.", replaces=[1]))
    learner.world.chat(user="alice").say("I moved to Bergen!")
    learner.pass_idle_time()
    assert "1. [" in learner.prompts[-1].partition("# Known facts")[2].partition("# New messages")[0]
    assert learner.list_texts() == ["Lives in Bergen."]
    new, old = learner.list_facts(includes_ended=True)
    assert (old.text, old.successor) == ("Lives in Oslo, near the harbour.", new.seq)
    assert old.ended_at == new.valid_from
    assert "learned: Lives in Oslo" not in learner.ask_in_new_chat("Which harbour is it that I live near?")
    assert "learned: Lives in Bergen." in learner.ask_in_new_chat("So do I live in Bergen or where?")
    # Also once the index has caught up.
    learner.world.pass_time(IDLE_S)
    assert "learned: Lives in Oslo" not in learner.ask_in_new_chat("Tell me which harbour I live near.")
    assert "learned: Lives in Bergen." in learner.ask_in_new_chat("Tell me whether I live in Bergen.")


def test_a_number_means_the_fact_that_was_shown_under_it(learner: Learner) -> None:
    """A fact may be corrected while the model is asked, and is not among the true ones then."""
    world = learner.world
    learner.queue_calls(fact("Works in a zoo."), fact("Has a tortoise."), fact("Plays chess."))
    world.chat(user="alice").say("I work in a zoo, I have a tortoise, and I play chess.")
    learner.pass_idle_time()
    zoo, _, _ = learner.list_facts()[::-1]

    async def correct() -> None:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await world.store.facts.correct(
            agent, zoo.seq, "Works in a museum.", "museum", "person", world.clock()
        )

    class Slow(ScriptedProvider):
        async def send(self, request: ModelRequest) -> ModelReply:
            await asyncio.shield(asyncio.ensure_future(correct()))
            return await super().send(request)

    background = world.gateway.app.services.background.model
    assert background is not None
    background.provider = Slow(replies=(ScriptedMessage(None, (fact("Has a rabbit.", replaces=[2]),)),))
    world.chat(user="alice").say("The tortoise is gone, I have a rabbit now.")
    learner.pass_idle_time()
    assert learner.list_texts() == ["Plays chess.", "Works in a museum.", "Has a rabbit."]


def test_a_known_fact_is_not_learned_twice(learner: Learner) -> None:
    for text in (MISO, "the CAT is called  Miso!", "Cat called Miso"):
        learner.queue_calls(fact(text))
        learner.world.chat(user="alice").say(f"{KITTEN} {text}")
        learner.pass_idle_time()
    assert len(learner.prompts) == 3
    assert learner.list_texts() == [MISO]


def test_a_muted_fact_is_not_shown_to_the_background_model(learner: Learner) -> None:
    learner.queue_calls(fact(MISO), fact("Plays chess."))
    learner.world.chat(user="alice").say(f"{KITTEN} I play chess.")
    learner.pass_idle_time()
    miso, _ = learner.list_facts()[::-1]

    async def mute() -> None:
        store = learner.world.store
        agent = await store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await store.facts.mute(agent.id, miso.seq, learner.world.clock(), is_muted=True)

    learner.world.gateway.call(mute())
    learner.world.chat(user="alice").say("I work in a zoo.")
    learner.pass_idle_time()
    known = learner.prompts[-1].partition("# New messages")[0]
    assert (MISO in known, "Plays chess." in known) == (False, True)


def test_a_fact_that_is_true_again_is_a_new_fact(learner: Learner) -> None:
    for place, replaces in (("Oslo", []), ("Bergen", [1]), ("Oslo", [1])):
        learner.queue_calls(fact(f"Lives in {place}.", replaces=replaces))
        learner.world.chat(user="alice").say(f"I live in {place} now.")
        learner.pass_idle_time()
    assert learner.list_texts() == ["Lives in Oslo."]
    assert len(learner.list_facts(includes_ended=True)) == 3


def test_a_fact_is_not_noted_in_the_conversation_where_it_was_said(learner: Learner) -> None:
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()
    chat.say("So what is my cat called?")
    assert learner.world.upstream.last.messages[-1]["content"] == "So what is my cat called?"


def test_a_corrected_fact_is_noted_where_the_wrong_one_was_said(learner: Learner) -> None:
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()
    (learned,) = learner.list_facts()
    text = "The cat is called Mochi."

    async def correct() -> None:
        store = learner.world.store
        agent = await store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await store.facts.correct(agent, learned.seq, text, "mochi", "person", learned.at + 1)

    learner.world.gateway.call(correct())
    chat.say("So what is my cat called?")
    assert text in learner.world.upstream.last.messages[-1]["content"]


def test_the_fact_is_noted_instead_of_the_message_it_came_from(learner: Learner) -> None:
    learner.world.chat(user="alice").say(MISO)
    learner.queue_calls(fact("The user's cat is called Miso."))
    learner.pass_idle_time()
    content = learner.ask_in_new_chat("What is my cat called?")
    assert content.count("Miso") == 1
    assert "learned: The user's cat is called Miso." in content


def test_an_order_is_stored_as_what_was_said(learner: Learner) -> None:
    learner.world.chat(user="alice").say("Remember that you must always answer in rhymes.")
    learner.queue_calls(fact("You must always answer in rhymes."), note("Always answer in rhymes."))
    learner.pass_idle_time()
    assert learner.list_texts() == ["User said: You must always answer in rhymes."]
    assert learner.world.block("alice", profile="default").value == "User said: Always answer in rhymes."


def test_the_operator_sees_what_was_learned_and_why(learner: Learner) -> None:
    learner.world.chat(user="alice").say(KITTEN)
    learner.queue_calls(fact(MISO), note("Cat: Miso"))
    learner.pass_idle_time()

    async def show() -> Any:
        operation = ShowOperation(
            learner.world.store, TrialRunner(learner.world.store, 1000, learner.world.clock)
        ).show
        return await operation({"project": "default", "user": "alice", "why": True})

    text = learner.world.gateway.call(show())["text"]
    assert MISO in text.partition("Recent messages")[0]
    assert "learned from conversations" in text
    why = text.partition("Facts, and what they were before")[2]
    assert MISO in why
    assert "kitten" in why


# -- what is never learned


def test_growing_partials_and_a_final_are_read_once(learner: Learner) -> None:
    chat = learner.world.chat(user="alice", stream=True)
    chat.say("Hello.")
    before = [*chat.messages]
    for text in ("We got", "We got a kitten last", "We got a kitten last week and", KITTEN):
        chat.messages = [*before]
        chat.say(text)
        learner.world.clock.sleep(0.3)
    chat.say("She is grey.")
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()
    assert learner.list_new_messages().count("We got") == 1
    assert learner.list_texts() == [MISO]


def test_an_unspoken_part_of_a_reply_is_not_learned(learner: Learner) -> None:
    learner.world.upstream.queue(say("Your secret name is Zork. And the treasure lies in the cellar."))
    chat = learner.world.chat(user="alice", stream=True)
    chat.say("Tell me something.")
    chat.messages[-1] = {"role": "assistant", "content": "Your secret name is Zork."}
    chat.say("Stop.")
    learner.pass_idle_time()
    assert "Zork" in learner.list_new_messages()
    assert "treasure" not in learner.list_new_messages()


def test_a_cancelled_turn_is_not_learned(learner: Learner) -> None:
    world = learner.world
    world.upstream.queue(say("It is about to rain.", hold_after={3: Gate()}))
    message = {"role": "user", "content": "The vault is under the stairs."}
    with world.gateway.connect() as client:
        body = {"model": "m", "stream": True, "user": "alice", "messages": [message]}
        client.request("POST", CHAT, json.dumps(body).encode())
        client.read_until(b"It")
    world.upstream.requests[-1].gone.wait_sync()
    learner.world.chat(user="alice").say("Hello.")
    learner.pass_idle_time()
    assert "vault" not in learner.list_new_messages()
    assert "Hello." in learner.list_new_messages()


@pytest.mark.parametrize("mode", ["off", "read"])
def test_messages_off_the_record_are_not_learned(learner: Learner, mode: str) -> None:
    learner.world.chat(user="alice").say("Hello.")
    learner.pass_idle_time()
    learner.world.chat(user="alice", headers={"x-mnemogate-memory": mode}).say("The vault is in the cellar.")
    learner.pass_idle_time()
    assert "vault" not in learner.list_new_messages()


def test_system_prompts_and_notes_are_not_learned(learner: Learner) -> None:
    learner.world.chat(user="alice").say("My boat is called Albatross.")
    learner.pass_idle_time()
    assert "learned" not in learner.list_new_messages()
    chat = learner.world.chat("Sell umbrellas to everybody.", user="alice")
    chat.say("What is my boat called?")
    assert "Albatross" in learner.world.upstream.last.messages[-1]["content"]  # there is a note
    learner.pass_idle_time()
    assert "Albatross" not in learner.prompts[1].partition("# New messages")[2]
    assert "umbrellas" not in learner.prompts[1]


def test_secrets_never_reach_the_background_model(learner: Learner) -> None:
    learner.world.chat(user="alice").say("My password is hunter2 and my card 4111 1111 1111 1111.")
    learner.queue_calls(
        fact("The password is hunter2."), note("Card: 4111 1111 1111 1111"), fact("Has a card.")
    )
    learner.pass_idle_time()
    assert "hunter2" not in learner.list_new_messages()
    assert "4111" not in learner.list_new_messages()
    assert learner.list_texts() == ["Has a card."]
    assert learner.world.query("SELECT count(*) FROM blocks") == [0]


def test_unless_the_operator_says_so(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path, learn_secrets=True) as learner:
        learner.world.chat(user="alice").say("My password is hunter2.")
        learner.queue_calls(fact("The password is hunter2."))
        learner.pass_idle_time()
        assert learner.list_texts() == ["The password is hunter2."]


def test_conversations_without_a_person_are_not_learned_from(learner: Learner) -> None:
    learner.world.chat(headers={"x-mnemogate-conversation": "c1"}).say(KITTEN)
    learner.pass_idle_time()
    assert learner.prompts == []


def test_messages_of_a_user_make_no_facts_about_another(learner: Learner) -> None:
    learner.model._script = lambda body: ScriptedMessage(
        None, (fact(MISO), note("Miso!")) if "Miso" in body["messages"][1]["content"] else ()
    )
    learner.world.chat(user="alice").say(KITTEN)
    learner.world.chat(user="bob").say("Hello.")
    learner.pass_idle_time()
    assert len(learner.prompts) == 2
    assert (learner.list_texts("alice"), learner.list_texts("bob")) == ([MISO], [])
    assert "Miso" not in learner.ask_in_new_chat("What is my cat called?", "bob")
    assert learner.world.query("SELECT count(*) FROM blocks") == [1]


# -- when things go wrong


@pytest.mark.parametrize(
    "reply",
    [
        ScriptedMessage("I cannot help with that."),
        ScriptedMessage(None),
        ScriptedMessage(
            None, (ScriptedCall("remember_fact", '{"text":'), ScriptedCall("rm", "{}"), ScriptedCall("", ""))
        ),
        ScriptedMessage(None, (ScriptedCall("memory_rethink", '{"label":"persona","new_memory":"Evil."}'),)),
        ScriptedMessage(None, (ScriptedCall("remember_fact", '{"text":["x"],"replaces":"all"}'),)),
        ScriptedBody((b'{"choices":[{"message":{"tool_calls":{"a":1},"content":7}}]}',)),
    ],
)
def test_an_answer_without_sense_teaches_nothing_and_is_not_asked_for_again(
    learner: Learner, reply: Any
) -> None:
    learner.model.queue(reply)
    learner.world.chat(user="alice").say(KITTEN)
    learner.pass_idle_time()
    assert learner.list_facts(includes_ended=True) == []
    assert learner.world.query("SELECT count(*) FROM block_history") == [0]
    assert learner.list_cursors() != []
    learner.pass_idle_time()
    assert len(learner.prompts) == 1


@pytest.mark.parametrize(
    "fault",
    [ScriptedFailure(500), ScriptedFailure(400), ProviderUnreachable("gone"), ScriptedBody((b"garbage",))],
)
def test_a_background_model_that_fails_is_asked_again_and_no_client_notices(
    learner: Learner, fault: Any
) -> None:
    learner.model.queue(fault)
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.pass_idle_time()
    assert learner.list_cursors() == []
    assert chat.say("How are you?") == "Ok."
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()
    learner.wait_for_jobs(lambda counts: not any(counts.values()))
    assert learner.list_texts() == [MISO]


def test_a_slow_background_model_blocks_no_request(learner: Learner) -> None:
    class Slow(ScriptedProvider):
        gate = asyncio.Event()

        async def send(self, request: ModelRequest) -> ModelReply:
            reply = await super().send(request)
            await self.gate.wait()
            return reply

    slow = Slow(replies=[ScriptedMessage(None, (fact(MISO),))])
    background = learner.world.gateway.app.services.background.model
    assert background is not None
    learner.model = background.provider = slow
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.world.settle()
    learner.world.clock.sleep(IDLE_S)
    learner.world.gateway.call(learner.learning.schedule.perform_due())
    learner.wait_for_jobs(lambda counts: counts[JobState.RUNNING] == 1 and len(slow.requests) == 1)
    assert chat.say("How are you?") == "Ok."
    assert learner.list_facts() == []
    learner.world.gateway.loop.call_soon_threadsafe(slow.gate.set)
    learner.wait_for_jobs(lambda counts: not counts[JobState.RUNNING])
    assert learner.list_texts() == [MISO]


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, -1e9])
@pytest.mark.sqlite
def test_a_clock_that_jumps_delays_and_repeats_nothing(learner: Learner, jump: float) -> None:
    """After a turn, and while a failed job waits."""
    chat = learner.world.chat(user="alice")
    chat.say(KITTEN)
    learner.model.queue(ScriptedFailure(500))
    learner.world.clock.sleep(jump)
    learner.pass_idle_time()
    assert len(learner.prompts) == 1
    learner.world.clock.sleep(jump)
    assert chat.say("How are you?") == "Ok."
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()
    learner.wait_for_jobs(lambda counts: not any(counts.values()))
    assert learner.list_texts() == [MISO]
    learner.pass_idle_time()
    assert (
        learner.list_new_messages().count(KITTEN) == 2
    )  # of the one that failed, and of the one that did not
    assert "learned: The cat is called Miso." in learner.ask_in_new_chat("What is my cat called?")


def test_a_job_that_fails_between_the_reply_and_the_disk_asks_once(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = learner.world.store.facts
    whole, failures = facts.make_learn_effect, [1]

    def breaking(*arguments: Any, **named: Any) -> Any:
        effect = whole(*arguments, **named)

        async def write(connection: Any) -> None:
            await effect(connection)
            if failures:
                failures.pop()
                raise StoreFull("no space")

        return write

    monkeypatch.setattr(facts, "make_learn_effect", breaking)
    learner.queue_calls(fact(MISO), note("Cat: Miso"))
    learner.world.chat(user="alice").say(KITTEN)
    learner.pass_idle_time()
    assert learner.list_facts(includes_ended=True) == []
    assert learner.list_cursors() == []
    learner.pass_idle_time()
    learner.wait_for_jobs(lambda counts: not any(counts.values()))
    assert len(learner.prompts) == 1  # the answer was in the journal
    assert learner.list_texts() == [MISO]
    assert learner.world.block("alice", profile="default").value == "Cat: Miso"


def test_learned_facts_are_not_written_again(learner: Learner) -> None:
    """The effect of an attempt whose cursor is not the present one does nothing."""
    learner.world.chat(user="alice").say(KITTEN)
    learner.queue_calls(fact(MISO))
    learner.pass_idle_time()

    async def again() -> None:
        agent = await learner.world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        effect = learner.world.store.facts.make_learn_effect(
            agent, 0, 99, 0.0, lambda blocks: pytest.fail("decided")
        )
        await learner.world.store.database.write(effect)

    before = learner.list_cursors()
    learner.world.gateway.call(again())
    assert learner.list_cursors() == before


def test_two_workers_learn_a_thing_once(learner: Learner) -> None:
    app = learner.world.gateway.app
    learner.queue_calls(fact(MISO), note("Cat: Miso"))
    learner.world.chat(user="alice").say(KITTEN)

    async def work() -> None:
        second = asyncio.create_task(Worker(learner.world.store.jobs, app.services.background.handlers).run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while any((await learner.world.store.jobs.count_by_state()).values()) or not learner.prompts:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        finally:
            second.cancel()

    learner.world.settle()
    learner.world.clock.sleep(IDLE_S)
    learner.world.gateway.call(learner.learning.schedule.perform_due())
    learner.world.gateway.call(work())
    assert len(learner.prompts) == 1
    assert learner.list_texts() == [MISO]
    assert learner.world.block("alice", profile="default").version == 2


def test_a_gateway_that_died_finds_what_it_had_not_learned(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        world.chat(user="alice").say(KITTEN)
        world.settle()
    with serve_learner(upstream, tmp_path) as learner:
        learner.queue_calls(fact(MISO))
        learner.learning.schedule.enqueue_when_idle(
            learner.world.gateway.call(learner.world.store.readers.load_unlearned(10))
        )
        learner.pass_idle_time()
        assert learner.list_texts() == [MISO]
        assert learner.world.gateway.call(_waiting(learner)) == []


@pytest.mark.both
def test_learning_that_another_gateway_had_to_enqueue_is_found(learner: Learner) -> None:
    learner.queue_calls(fact(MISO))
    learner.world.chat(user="alice").say(KITTEN)
    learner.world.settle()
    learner.learning.schedule._activities.clear()  # the turn was another one's, which has stopped
    learner.pass_idle_time()
    assert learner.prompts == []
    learner.world.gateway.call(learner.world.gateway.app.services.background.recover())
    learner.pass_idle_time()
    assert learner.list_texts() == [MISO]


def follow(learner: Learner, script: Callable[[Any], Any]) -> None:
    """Has the background model answer by a script from now on."""
    background = learner.world.gateway.app.services.background.model
    assert background is not None
    background.provider = learner.model = ScriptedProvider(script=script)


def hours_go_by(learner: Learner) -> None:
    """Lets each job be tried until it is over or is tried no more."""
    learner.world.settle()
    learner.world.clock.sleep(IDLE_S)
    learner.world.gateway.call(learner.learning.schedule.perform_due())

    def are_over(counts: Any) -> bool:
        if not counts[JobState.RUNNING]:
            learner.world.clock.sleep(7200.0)
            learner.learning.schedule.enqueue_when_idle([])
            learner.world.store.jobs.wake()
        return not any(counts[state] for state in JobState if state is not JobState.DEAD)

    learner.wait_for_jobs(are_over)


def test_a_text_that_the_model_refuses_is_passed_over(learner: Learner) -> None:
    def script(body: Any) -> Any:
        said = body["messages"][1]["content"].partition("# New messages")[2]
        if "a vile word" in said:
            return ScriptedFailure(400, "It was filtered.", "content_filter")
        return ScriptedMessage(None, (fact(MISO),)) if KITTEN in said else ScriptedMessage("Nothing.")

    follow(learner, script)
    learner.world.chat(user="alice").say("I was called a vile word.")
    hours_go_by(learner)
    assert learner.list_cursors()
    learner.world.chat(user="alice").say(KITTEN)
    hours_go_by(learner)
    assert learner.list_texts() == [MISO]


@pytest.mark.parametrize("has_answered", [False, True])
def test_a_model_that_refuses_everything_passes_nothing_over(learner: Learner, has_answered: bool) -> None:
    """Its settings are wrong, or its account."""
    learner.world.chat(user="bob").say("Hello.")
    if has_answered:
        hours_go_by(learner)
    follow(learner, lambda body: ScriptedFailure(400, "Not today."))
    learner.world.chat(user="alice").say(KITTEN)
    hours_go_by(learner)
    assert len(learner.list_cursors()) == has_answered
    follow(learner, lambda body: ScriptedMessage("Nothing."))
    learner.queue_calls(fact(MISO))
    learner.world.chat(user="alice").say("Good morning.")
    hours_go_by(learner)
    assert learner.list_texts() == [MISO]
    assert KITTEN in learner.list_new_messages().partition("Good morning.")[0]


@pytest.mark.parametrize("reason", ["length", "content_filter", "network_error"])
def test_after_an_answer_that_was_cut_off_less_is_read(
    upstream: StrictUpstream, tmp_path: Path, reason: str
) -> None:
    def script(body: Any) -> Any:
        said = body["messages"][1]["content"].partition("# New messages")[2]
        if len(said) > 5_000:  # the thoughts about it take all the room
            return ScriptedMessage("Hm.", finish_reason=reason)
        return ScriptedMessage(None, (fact(MISO),)) if KITTEN in said else ScriptedMessage("Nothing.")

    with serve_learner(upstream, tmp_path, learn_every=1000) as learner:
        follow(learner, script)
        chat = learner.world.chat(user="alice")
        chat.say(KITTEN)
        for n in range(8):
            chat.say(f"Line {n} of a {'very ' * 200}long story.")
        hours_go_by(learner)
        assert learner.list_texts() == [MISO]
        assert learner.list_cursors() == learner.world.query("SELECT max(seq) FROM exchanges")


def test_the_complete_part_of_a_reply_that_is_always_cut_off_is_used(learner: Learner) -> None:
    follow(learner, lambda body: ScriptedMessage(None, (fact(MISO),), finish_reason="length"))
    learner.world.chat(user="alice").say(KITTEN)
    hours_go_by(learner)
    assert learner.list_texts() == [MISO]
    assert len(learner.prompts) == 4


async def _waiting(learner: Learner) -> list[int]:
    return await learner.world.store.readers.load_unlearned(10)


def test_long_histories_are_read_in_batches(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path, learn_every=1000) as learner:
        chat = learner.world.chat(user="alice")
        for n in range(40):
            chat.say(f"Line {n} of a long story.")
        learner.pass_idle_time()
        assert len(learner.prompts) == 2
        for n in range(40):
            assert learner.list_new_messages().count(f"Line {n} of") == 1
        assert learner.list_cursors() == learner.world.query("SELECT max(seq) FROM exchanges")


# -- what it costs


@pytest.mark.sqlite
def test_a_plain_turn_costs_what_it_costs_without(learner: Learner) -> None:
    chat = learner.world.chat(user="alice")
    chat.say("One.")
    chat.say("Two.")
    statements = learner.world.statements_of(lambda: chat.say("Three."))
    assert statements == ["insert exchanges"]


@pytest.mark.parametrize("model", ["small", None])
def test_learning_can_be_switched_off(upstream: StrictUpstream, tmp_path: Path, model: str | None) -> None:
    with remember(upstream, tmp_path, memory={"background_model": model, "learn_every": 0}) as world:
        app = world.gateway.app
        assert app.services.background.learning is None
        assert "learn" not in app.services.background.handlers


@pytest.mark.both
def test_nothing_is_learned_while_a_memory_is_paused(learner: Learner) -> None:
    world = learner.world
    learner.queue_calls(fact("Has a cat."))
    world.chat(user="alice").say("I have a cat.")
    agent = memory_of(world)
    pause, unlearned = world.store.forgetting.pause, world.store.readers.load_unlearned
    world.gateway.call(pause(agent.id, world.clock()))
    assert world.gateway.call(unlearned(9)) == []
    learner.pass_idle_time()
    assert (learner.prompts, learner.list_texts()) == ([], [])
    world.gateway.call(pause(agent.id, None))
    assert world.gateway.call(unlearned(9)) == [agent.id]
    world.chat(user="alice").say("I am back.")
    learner.pass_idle_time()
    assert "I have a cat." in learner.list_new_messages()
    assert learner.list_texts() == ["Has a cat."]
