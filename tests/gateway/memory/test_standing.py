"""What always holds for a user stands in the memory section of their conversations: found by a rule without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.memory.standing import learn_standing
from gateway.core.memory.standing_block import MAX_TOKENS
from gateway.core.memory.transcript import clean_messages
from gateway.core.prompt.note_text import estimate_tokens
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.memory.trial import TrialRunner
from gateway.settings import BlockSettings
from storage.records import Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.background.learner import Learner, fact, serve_learner
from tests.gateway.page.memories import memory_of
from tests.gateway.sdk import agent, remember

MEAT = "I never eat meat."
ASKED = "Find a restaurant in Rome."
BLOCK = '<memory_block label="always"'


@pytest.fixture
def rule(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Learner]:
    with serve_learner(upstream, tmp_path, background_model=None) as learner:
        yield learner


def say(learner: Learner, text: str, user: str = "alice") -> None:
    learner.world.chat(user=user).say(text)
    learner.pass_idle_time()


def section(learner: Learner, text: str = ASKED, user: str = "alice") -> str:
    """The lines of the standing facts in a new conversation."""
    learner.world.chat(user=user).say(text)
    return shown(learner)


def shown(learner: Learner) -> str:
    first = learner.world.upstream.last.messages[0]
    _, _, rest = str(first["content"]).partition(BLOCK) if first["role"] == "system" else ("", "", "")
    return rest.partition(">\n")[2].partition("\n</memory_block>")[0]


def forget(learner: Learner, **arguments: Any) -> None:
    learner.world.settle()
    operations = ForgetOperations(learner.world.store, learner.world.clock)
    done = learner.world.gateway.call(operations.forget({"project": "default", "user": "alice", **arguments}))
    assert done["left"] == []


def test_a_wish_said_once_is_in_sight_where_a_request_does_not_name_it(rule: Learner) -> None:
    say(rule, f"What a day! {MEAT} The weather is fine.")
    assert rule.list_texts() == ["User said: I never eat meat."]
    assert section(rule) == "[2025-10]\n- I never eat meat"
    # It is no note, and no other user's.
    assert "<memory " not in rule.world.upstream.last.messages[-1]["content"]
    assert section(rule, user="bob") == ""


def test_a_name_is_in_sight_however_long_ago_it_was_said(rule: Learner) -> None:
    say(rule, "Hello! My name is Mara.")
    assert section(rule, "What's my name?") == "[2025-10]\n- My name is Mara"


def test_a_wish_is_known_that_came_with_a_question(rule: Learner) -> None:
    say(rule, "I'm allergic to peanuts, what can I eat at a Thai place?")
    assert section(rule) == "[2025-10]\n- I'm allergic to peanuts"


def test_a_block_of_the_same_label_hides_none_of_them(upstream: StrictUpstream, tmp_path: Path) -> None:
    profile = agent(blocks=(BlockSettings("always", "What always holds."),))
    with remember(upstream, tmp_path, profile) as world:
        rule = Learner(world)
        world.chat(user="alice", model="agent/helper").say(MEAT)
        rule.pass_idle_time()
        world.chat(user="alice", model="agent/helper").say("Do I eat meat?")
        assert "I never eat meat" in upstream.last.messages[-1]["content"]
        found = world.gateway.call(world.store.agents.find(Scope("default", "helper", "user:alice")))
        assert found is not None
        trial = TrialRunner(world.store, 1000, world.clock)
        result = world.gateway.call(trial.try_sentence(found, "Do I eat meat?", 9))
        assert "I never eat meat" in result.note


def test_messages_are_read_once_and_outside_of_the_loop(
    rule: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_loop = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            in_loop.append((function.__name__, asyncio._get_running_loop() is not None))
            return function(*arguments, **options)

        return call

    for function in (clean_messages, learn_standing):
        monkeypatch.setattr(f"gateway.run.background.learner.{function.__name__}", noting(function))
    say(rule, MEAT)
    assert rule.list_texts() == ["User said: I never eat meat."]
    assert in_loop == [("clean_messages", False), ("learn_standing", False)]


def test_nothing_is_journaled_where_no_model_is_asked(rule: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("storage.sql.jobs.Jobs.journal")
    say(rule, MEAT)
    assert rule.list_texts() == ["User said: I never eat meat."]


def test_nothing_is_stored_of_a_question_about_the_past_or_of_a_reply(rule: Learner) -> None:
    say(rule, "Do I never eat meat? I've never been to Rome. He always sings.")
    assert rule.list_texts() == []
    assert section(rule) == ""


@pytest.mark.both
def test_a_later_standing_fact_replaces_the_earlier_one(rule: Learner) -> None:
    say(rule, MEAT)
    say(rule, "I always eat meat now.")
    assert rule.list_texts() == ["User said: I always eat meat now."]
    assert section(rule) == "[2025-10]\n- I always eat meat now"
    old = rule.list_facts(includes_ended=True)[-1]
    assert old.ended_at is not None
    assert old.standing


def test_a_conversation_keeps_its_prefix_while_more_is_learned(rule: Learner) -> None:
    say(rule, MEAT)
    chat = rule.world.chat(user="alice")
    chat.say(ASKED)
    before = rule.world.upstream.last.messages
    rule.world.clock.now -= 10_000  # the other conversation is read while the provider's cache is warm
    say(rule, "Please call me Bo.")
    rule.world.clock.now -= 10_000
    chat.say("Thanks.")
    after = rule.world.upstream.last.messages
    assert after[: len(before)] == before
    assert section(rule).endswith("- Please call me Bo")


@pytest.mark.both
def test_an_ended_standing_fact_is_corrected_in_a_running_conversation(rule: Learner) -> None:
    say(rule, MEAT)
    chat = rule.world.chat(user="alice")
    chat.say(ASKED)
    before = rule.world.upstream.last.messages
    rule.world.clock.now -= 10_000
    say(rule, "I always eat meat now.")
    rule.world.clock.now -= 10_000
    chat.say("Thanks.")
    after = rule.world.upstream.last.messages
    assert after[: len(before)] == before
    assert "- I always eat meat now" in after[-1]["content"]


def test_all_of_them_take_a_bounded_part(rule: Learner) -> None:
    verbs, nouns, days = ("eat", "buy", "cook"), ("figs", "eels", "plums"), ("Monday", "Sunday")
    wishes = [f"I never {verb} {noun} on {day}." for verb in verbs for noun in nouns for day in days]
    for number, wish in enumerate(wishes):
        say(rule, wish if number % 2 else f"{wish} Fine.")
    lines = section(rule)
    assert MAX_TOKENS - 20 < estimate_tokens(lines) <= MAX_TOKENS
    assert lines.splitlines()[-1] == f"- {wishes[-1].rstrip('.')}"
    assert wishes[0].rstrip(".") not in lines


@pytest.mark.both
@pytest.mark.parametrize("is_message", [False, True])
def test_a_forgotten_standing_fact_leaves_the_section_and_the_disk_at_once(
    rule: Learner, is_message: bool
) -> None:
    say(rule, "I never eat zqmeat.")
    say(rule, "Please call me Bo.")
    chat = rule.world.chat(user="alice")
    chat.say(ASKED)
    assert "zqmeat" in shown(rule)
    (number,) = [f.seq for f in rule.list_facts() if "zqmeat" in f.text]
    forget(rule, **({"exchange": 1} if is_message else {"fact": number}))
    chat.say("And in Milan?")
    assert shown(rule) == "[2025-10]\n- Please call me Bo"
    assert "zqmeat" not in rule.world.upstream.last.body.decode()
    rule.world.store.jobs.wake()
    rule.pass_idle_time()
    assert [f.text for f in rule.list_facts(includes_ended=True)] == ["User said: Please call me Bo."]
    if is_message:
        rows = rule.world.query("SELECT text FROM sections")
        assert not any("zqmeat" in text for text in rows)


@pytest.mark.both
def test_a_muted_one_is_not_shown(rule: Learner) -> None:
    say(rule, MEAT)
    (found,) = rule.list_facts()
    store = rule.world.store

    async def mute(is_muted: bool) -> None:
        await store.facts.mute(rule_agent, found.seq, rule.world.clock(), is_muted=is_muted)

    rule_agent = rule.world.query("SELECT agent FROM facts")[0]
    rule.world.gateway.call(mute(True))
    assert section(rule) == ""
    rule.world.gateway.call(mute(False))
    assert MEAT.rstrip(".") in section(rule)


def test_memory_show_names_it(rule: Learner) -> None:
    say(rule, MEAT)
    world = rule.world
    show = ShowOperation(world.store, TrialRunner(world.store, 1000, world.clock)).show
    text = world.gateway.call(show({"project": "default", "user": "alice"}))["text"]
    assert ", always]  User said: I never eat meat." in text


def test_a_trial_recalls_them_no_more_than_a_reply_does(rule: Learner) -> None:
    say(rule, MEAT)
    say(rule, "Meat was served at the wedding.")
    world = rule.world
    agent = memory_of(world)
    trial = TrialRunner(world.store, 1000, world.clock)
    asked = "When was meat served?"
    result = world.gateway.call(trial.try_sentence(agent, asked, 9))
    assert "at the wedding" in result.note
    assert MEAT not in result.note
    assert MEAT.rstrip(".") in section(rule, asked)
    assert MEAT not in str(world.upstream.last.messages[1:])


def test_a_background_model_says_which_facts_always_hold(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path) as learner:
        learner.queue_calls(fact("Eats no meat.", always=True), fact("Has a cat called Miso."))
        say(learner, "No meat for me. My cat is Miso.")
        assert section(learner) == "[2025-10]\n- Eats no meat"


@pytest.mark.both
def test_a_model_that_is_named_later_reads_all_again(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path, background_model=None) as rule:
        say(rule, MEAT)
        agent = rule.world.query("SELECT agent FROM facts")[0]
        call, store = rule.world.gateway.call, rule.world.store
        assert agent in call(store.readers.load_unlearned(10))
        assert agent not in call(store.readers.load_unlearned(10, (), -1))


def test_a_selection_of_the_whole_memory_shows_what_the_section_does_not(rule: Learner) -> None:
    say(rule, "My parrot Coco lives in the old aviary behind our house.")
    foods = (
        "figs",
        "eels",
        "plums",
        "kale",
        "rice",
        "nuts",
        "beans",
        "peas",
        "corn",
        "leeks",
        "mint",
        "dill",
    )
    for food in (*foods, "tofu", "lime", "pork", "veal", "hare"):
        say(rule, f"I never eat {food}.")
    assert section(rule, "Who am I?").count("- I never eat") > 10
    note = rule.world.upstream.last.messages[-1]["content"]
    assert "Coco" in note
    assert "I never eat hare" not in note
