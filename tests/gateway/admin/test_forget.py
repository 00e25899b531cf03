"""Forgetting as an operator and as a client see it, through a gateway that serves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.dates import render_iso
from gateway.core.prompt.excerpt import list_query_keys
from gateway.core.prompt.note_query import find_name_pattern
from gateway.core.prompt.shown_blocks import render_label
from gateway.core.tags import quote_name
from gateway.errors import BadRequest
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.command_line.outcome_text import describe_going_facts
from gateway.run.admin.command_line.printed import show_block
from gateway.run.admin.forgetting import forget_operations
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.background.retention import Retention
from gateway.run.memory.trial import TrialRunner
from gateway.settings import BlockSettings, ProjectSettings
from storage.forget_commands import ForgetTarget
from tests.doubles.upstream import Call, Gate, Rules, StrictUpstream, call_tools, fail, say
from tests.gateway.admin.test_memory_views import memory
from tests.gateway.page.memories import learn
from tests.gateway.sdk import CHAT, Clock, World, agent, remember
from tests.inflated import with_inflated
from tests.rows import each_row

pytestmark = pytest.mark.sqlite  # it looks into the file; test_forget_all holds for both

FACT = "My cat is called Zqmisox and she hates thunderstorms."
QUESTION = "What is the name of my cat?"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    keeps = {"default": ProjectSettings(retention_days=30)}
    with remember(upstream, tmp_path, agent(), projects=keeps) as made:
        yield made


def run(world: World, work: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await work

    return world.gateway.call(wait())


def perform(world: World, name: str, **arguments: Any) -> Any:
    """An operation, as the command line asks for it."""
    world.settle()
    forgetting = ForgetOperations(world.store, world.clock)
    operations = {
        "memory-forget": forgetting.forget,
        "memory-forget-preview": forgetting.preview,
        "audit": AuditOperations(world.store, world.clock, 90.0).show_all,
        "memory-undo": forgetting.undo,
        "memory-show": ShowOperation(world.store, TrialRunner(world.store, 1000, world.clock)).show,
    }
    return run(world, operations[name]({"project": "default", **arguments}))


def forget(world: World, **arguments: Any) -> int:
    answer = perform(world, "memory-forget", **arguments)
    assert answer["done"]
    assert answer["left"] == []
    count: int = answer["memories"]
    return count


def on_disk(world: World, word: str = "Zqmisox") -> bool:
    world.settle()
    path = Path(world.store.database.path)
    return any(word.encode() in with_inflated(p.read_bytes()) for p in path.parent.glob(path.name + "*"))


def sent(world: World) -> str:
    return world.upstream.last.body.decode()


@pytest.mark.parametrize("part", [{"message": 2}, {"exchange": 1}], ids=["reply", "exchange"])
def test_what_was_heard_of_a_forgotten_reply_is_not_stored(world: World, part: dict[str, int]) -> None:
    """A voice agent reports it with the next message, and cannot know of the forgetting."""
    headers = {"x-mnemogate-conversation": "call-1", "x-mnemogate-history": "append"}
    world.upstream.queue(say("Zqmisox hates thunderstorms."))
    world.post([{"role": "user", "content": "My cat?"}], headers, user="alice")
    forget(world, user="alice", **part)
    heard = {"role": "assistant", "content": "Zqmisox hates"}
    assert world.post([heard, {"role": "user", "content": "Stop."}], headers, user="alice").status == 200
    assert not on_disk(world)
    world.post([{"role": "user", "content": "Go on."}], headers, user="alice")
    assert "Stop." in sent(world)
    assert "Zqmisox" not in sent(world)


def test_what_clients_sent_is_dropped_from_memory_when_something_is_forgotten(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("My locker is number 4711.")
    chat.say("Where is my towel?")
    keeper = world.gateway.app.services.chat.keeper
    assert keeper is not None
    assert len(keeper.resent_lists) == 1
    forget(world, user="alice", message=1)
    assert (len(keeper.resent_lists), keeper.resent_lists.size_bytes) == (0, 0)


def test_a_part_under_an_unknown_name_forgets_nothing(world: World) -> None:
    """Without that name all of the memory would go."""
    world.chat(user="alice").say("My locker is number 4711.")
    with pytest.raises(BadRequest, match="There is no field 'messages'"):
        forget(world, user="alice", messages=[1])
    assert on_disk(world, "4711")


def test_tables_of_pure_functions_hold_no_words_when_something_is_forgotten(world: World) -> None:
    rules = world.gateway.app.services.chat.resolver.rules  # they hold the last system prompt
    world.chat(user="alice").say(f"{FACT} {'The weather was fine that day. ' * 40}")
    world.chat(user="alice").say(QUESTION)  # the note has an excerpt
    assert (list_query_keys.cache_info().currsize, rules.cache_info().currsize) == (1, 1)
    forget(world, user="alice")
    tables = (list_query_keys, find_name_pattern, quote_name, render_label, rules)
    assert [table.cache_info().currsize for table in tables] == [0] * 5


def test_a_client_that_resends_it_is_answered_from_its_own_list_and_nothing_is_stored(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say(FACT)
    assert on_disk(world)
    assert forget(world, user="alice", exchange=1) == 1
    assert not on_disk(world)
    chat.say("And what do you think of dogs?")
    assert FACT in sent(world)  # the words are the client's
    assert not on_disk(world)
    world.chat(user="alice").say(QUESTION)
    assert "Zqmisox" not in sent(world)
    assert chat.say("Are you sure?") == "Ok."
    assert not on_disk(world)


def shown(world: World) -> dict[str, int]:
    """What `memory show` lists, with the numbers by which it can be named."""
    lines = [line.split("]", 1) for line in perform(world, "memory-show", user="alice")["text"].splitlines()]
    counts = [(line[1].partition(": ")[2], line[0].split()[0]) for line in lines if len(line) == 2]
    return {text: int(number) for text, number in counts}


def regenerated(world: World) -> str:
    chat = world.chat(user="alice")
    chat.say("Hello.")
    world.upstream.queue(say("What a Zqmisox!"), say("I see."))
    chat.say(FACT)
    chat.messages.pop()
    chat.go_on()
    chat.say("Good.")
    return FACT


def edited(world: World) -> str:
    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
    chat.say(FACT)
    chat.messages.clear()
    chat.say(f"Yes. {FACT}")
    chat.say("Good.")
    return f"Yes. {FACT}"


def spoken(world: World) -> str:
    """A voice agent's requests for a transcript that grows, each cancelled by the next."""
    chat = world.chat(user="alice", stream=True)
    chat.say("Hello.")
    for end in (20, 30):
        world.upstream.queue(say("It is about to rain.", hold_after={3: Gate()}))
        asked = {"role": "user", "content": FACT[:end]}
        with world.gateway.connect() as client:
            body = {"model": "m", "stream": True, "user": "alice", "messages": [*chat.messages, asked]}
            client.request("POST", CHAT, json.dumps(body).encode())
            client.read_until(b"It")
        world.upstream.last.gone.wait_sync()
        world.settle()
    chat.say(FACT)
    chat.say("Good.")
    return FACT


@pytest.mark.parametrize("what", ["message", "exchange"])
@pytest.mark.parametrize("how", [regenerated, edited, spoken])
def test_what_a_message_took_the_place_of_goes_with_it(
    world: World, how: Callable[[World], str], what: str
) -> None:
    text = how(world)
    rows = world.query("SELECT count(*) FROM exchanges WHERE instr(input, 'Zqmi')")
    assert rows[0] > 1
    forget(world, user="alice", **{what: shown(world)[text]})
    assert not on_disk(world, "Zqmi")
    assert "Good." in shown(world)


@pytest.mark.parametrize("again", [[], [{"role": "user", "content": "And my dog?"}]])
def test_a_message_goes_also_from_what_replaced_its_exchange_since_it_was_listed(
    world: World, again: list[dict[str, str]]
) -> None:
    """The question is asked again, alone or with another one, between the list and the forgetting."""
    chat = world.chat(user="alice")
    chat.say("Hello.")
    chat.say(FACT)
    number = shown(world)[FACT]
    chat.messages[-1:] = again
    world.upstream.queue(say("I see."))
    chat.go_on()
    assert shown(world)[FACT] != number
    forget(world, user="alice", message=number)
    assert not on_disk(world)
    assert {"Hello.", "I see.", *(each["content"] for each in again)} <= shown(world).keys()


def test_with_a_reply_go_those_it_took_the_place_of_and_the_question_stays(world: World) -> None:
    chat = world.chat(user="alice")
    world.upstream.queue(say("It is Zqoldx."), say("It is Zqnewx."))
    chat.say(FACT)
    chat.messages.pop()
    chat.go_on()
    chat.say("Good.")
    forget(world, user="alice", message=shown(world)["It is Zqnewx."])
    assert not on_disk(world, "Zqoldx")
    assert not on_disk(world, "Zqnewx")
    assert FACT in shown(world)


def test_a_client_that_goes_back_to_what_was_replaced_does_not_bring_it_back(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("Hello.")
    world.upstream.queue(say("The first answer."), say("The second answer."))
    chat.say(FACT)
    first = [*chat.messages]
    chat.messages.pop()
    chat.go_on()
    forget(world, user="alice", message=shown(world)[FACT])
    chat.messages = first
    chat.say("Let us go on from here.")
    world.chat(user="alice").say(QUESTION)
    assert "Zqmisox" not in sent(world)
    assert not on_disk(world)


@pytest.mark.parametrize(
    ("how", "number"),
    [
        *(("append", number) for number in range(1, 11)),
        *(("trimmed", number) for number in (1, 5, 6, 7, 9)),
        *(("cut", number) for number in (1, 6, 9)),
    ],
)
def test_what_is_put_before_a_message_is_a_valid_list_without_it(world: World, how: str, number: int) -> None:
    """The third turn called a tool; whichever message goes, the upstream's template takes what is left.

    trimmed: the client's list begins with a question; cut: with an answer.
    """
    world.upstream.rules = Rules(strict_template=True)
    headers = {"x-mnemogate-conversation": "c1"}
    if how == "append":
        headers["x-mnemogate-history"] = "append"
    chat = world.chat(user="alice", headers=headers, tools=[WEATHER])
    for text in ("I like rain.", "And snow.", "What will it be?", "Thank you."):
        chat.messages = [] if how == "append" else chat.messages
        if text.endswith("?"):
            world.upstream.queue(call_tools(Call("weather", {}), text=None))
        chat.say(text)
        if text.endswith("?"):
            call = chat.messages[-1]["tool_calls"][0]
            chat.messages = [] if how == "append" else chat.messages
            chat.answer(call, "Hail.")
            chat.go_on()
    forget(world, user="alice", message=number)
    chat.messages = [] if how == "append" else chat.messages[-2 if how == "trimmed" else -1 :]
    chat.say("And tomorrow?")
    sent = world.upstream.last.messages
    if how == "cut" and number == 9:  # the question of the answer it begins with: nothing can go in front
        assert [m["content"] for m in sent] == ["Ok.", "And tomorrow?"]
        return
    assert sent[0]["role"] == "user"
    assert len(sent) > 3, "the other turns are there"


def test_a_message_that_failed_goes_with_the_turn_into_which_it_came(world: World) -> None:
    """The reply before it was not heard, so what it answered was asked once more, and the message came along."""
    headers = {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}
    world.upstream.queue(say("Hello, how can I help?"), say("I see."), fail(500), say("What a cat!"))
    heard = {"role": "assistant", "content": "Hello, how"}
    for messages in ("Hello.", "I have news.", FACT):
        world.post([{"role": "user", "content": messages}], headers, user="alice")
    world.post([heard, {"role": "user", "content": FACT}], headers, user="alice")
    assert world.query("SELECT state FROM exchanges ORDER BY seq") == [
        "finished",
        "finished",
        "cancelled",
        "finished",
    ]
    [number] = world.query("SELECT max(seq) FROM exchanges")
    forget(world, user="alice", exchange=number)
    assert not on_disk(world)


def test_a_running_conversation_loses_the_note_and_the_section_that_showed_it(world: World) -> None:
    edit = {"label": "human", "new_string": "has a cat, Zqmisox"}
    world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
    first = world.chat(model="agent/helper", user="alice")
    first.say("I have a cat.")
    first.say("Good.")
    other = world.chat(model="agent/helper", user="alice")
    other.say(QUESTION)
    assert "Zqmisox" in sent(world)
    forget(world, user="alice", profile="helper", exchange=1)
    assert not on_disk(world)
    assert world.block("alice").value == ""
    other.say("Go on.")
    assert "Zqmisox" not in sent(world)


@pytest.mark.parametrize(
    "what", [{"user": "alice", "profile": "helper", "message": 1}, {"user": "alice"}, {}]
)
def test_a_block_that_users_share_loses_what_one_of_them_said(
    upstream: StrictUpstream, tmp_path: Path, what: dict[str, Any]
) -> None:
    team = BlockSettings("team", "What all of them know.", shared=True, writable=True)
    with remember(upstream, tmp_path, agent(blocks=(team,))) as world:
        edit = {"label": "team", "new_string": "alice has a cat, Zqmisox"}
        upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
        alice, bob = (world.chat(model="agent/helper", user=user) for user in ("alice", "bob"))
        alice.say("I have a cat.")
        alice.say("Good.")
        bob.say("Hello.")
        assert "Zqmisox" in sent(world)
        forget(world, **what)
        assert not on_disk(world)
        bob.say("Go on.")
        assert "Zqmisox" not in sent(world)


def test_a_user_is_forgotten_in_all_profiles_and_the_others_are_not(world: World) -> None:
    for model in ("m", "agent/helper"):
        world.chat(user="alice", model=model).say(FACT)
    world.chat(user="bob").say("Mine is called Zqbobx.")
    assert forget(world, user="alice") == 2
    assert not on_disk(world)
    assert on_disk(world, "Zqbobx")
    world.chat(user="alice").say(QUESTION)
    assert sent(world).count("Zq") == 0
    assert forget(world) == 2  # bob, and who alice is now
    assert not on_disk(world, "Zqbobx")
    assert world.query("SELECT count(*) FROM agents") == [0]


def test_one_conversation_of_a_user_is_forgotten(world: World) -> None:
    headers = {"x-mnemogate-conversation": "c1"}
    world.chat(user="alice", headers=headers).say(FACT)
    world.chat(user="alice").say("I like Zqteax.")
    assert forget(world, user="alice", **{"in": "c1"}) == 1
    assert not on_disk(world)
    assert on_disk(world, "Zqteax")


def test_the_audit_has_what_the_command_line_forgot_and_undid(world: World) -> None:
    """By whom, of which memory, and as a kind and a number: a client's name for a conversation may be words."""
    edit = {"label": "human", "new_string": "has a cat"}
    world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
    chat = world.chat(user="alice", model="agent/helper", headers={"x-mnemogate-conversation": "Zqmisox"})
    chat.say("I have a cat.")
    chat.say("Good.")
    (uid,) = world.query("SELECT uid FROM agents WHERE profile = 'helper'")
    (talk,) = world.query("SELECT uid FROM conversations")
    where = {"user": "alice", "profile": "helper"}
    perform(world, "memory-undo", **where, block="human")
    forget(world, **where, message=1)
    forget(world, **where, **{"in": "Zqmisox"})
    forget(world, user="alice")
    with pytest.raises(BadRequest):
        forget(world, user="alice")
    entries = run(world, world.store.audit.list_page(before=1 << 40))
    assert [(each.actor, each.action, each.memory, each.what) for each in reversed(entries)] == [
        ("command line", "undo", uid, "block human, version 3"),
        ("command line", "forget", uid, "message 1"),
        ("command line", "forget", uid, f"conversation {talk}"),
        ("command line", "forget", uid, "all"),
    ]


def test_the_command_line_lists_what_of_the_audit_fits(world: World) -> None:
    for user in ("alice", "bob"):
        world.chat(user=user).say("I have a cat.")
    forget(world, user="alice", message=1)
    forget(world, user="bob", message=1)
    (uid,) = world.query("SELECT uid FROM agents WHERE subject = 'user:bob'")
    day = render_iso(world.clock())[:10]
    for more in ({}, {"action": "forget"}, {"since": day, "until": day}):
        (line,) = perform(world, "audit", user="bob", **more)["lines"]
        assert (line["memory"], line["what"]) == (uid, "message 1")
    for more in ({"action": "undo"}, {"until": "2020-01-01"}, {"since": "2100-01-01"}):
        assert perform(world, "audit", **more)["lines"] == ()
    for name in ("action", "since", "until"):
        with pytest.raises(BadRequest) as refused:
            perform(world, "audit", **{name: "never"})
        assert refused.value.param == name


@pytest.mark.parametrize("most", [24, 1])
def test_the_audit_names_the_facts_that_the_command_line_forgot_along(
    world: World, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The page named the newest twenty of them, and the command line none."""
    world.chat(user="alice", model="agent/helper").say("I drink tea.")
    named, *along = learn(world, memory(world), *(f"Drinks tea number {n}." for n in range(25)))
    where = {"user": "alice", "profile": "helper"}
    forget(world, **where, fact=named)
    monkeypatch.setattr(forget_operations, "_AUDITED_FACTS", most)
    forget(world, **where, message=1)
    noted = [each.what for each in run(world, world.store.audit.list_page(before=1 << 40))]
    older = f" and {24 - most} older" if most < 24 else ""
    assert noted == ["message 1", f"with facts {', '.join(map(str, along[-most:]))}{older}", f"fact {named}"]


def test_the_command_line_keeps_a_fact_that_would_go_along(world: World) -> None:
    """The page had a preview of the facts that go, and a tick for each."""
    world.chat(user="alice", model="agent/helper").say("I drink tea.")
    kept, going = learn(world, memory(world), "Drinks tea.", "Has a teapot.")
    arguments: dict[str, Any] = {"user": "alice", "profile": "helper", "message": 1}
    facts = [
        {"seq": going, "text": "Has a teapot.", "is_true": True},
        {"seq": kept, "text": "Drinks tea.", "is_true": True},
    ]
    shown = perform(world, "memory-forget-preview", **arguments)
    assert shown == {"facts": facts, "more_facts": 2}
    assert describe_going_facts({"facts": facts, "more_facts": 3}, [kept]) == (
        "3 facts would go with it. --keep N keeps one that is true:\n"
        f"  {going}  Has a teapot.\n  {kept} (stays)  Drinks tea.\n  and 1 older\n"
    )
    forget(world, **arguments, keep=[kept])
    (fact,) = run(world, world.store.facts.list_page(memory(world).id))
    assert (fact.seq, fact.text, fact.sources, fact.exchange_row) == (kept, "Drinks tea.", (), None)
    noted = [(each.action, each.what) for each in run(world, world.store.audit.list_page(before=1 << 40))]
    assert noted == [("forget", "message 1"), ("forget", f"with fact {going}"), ("keep", f"fact {kept}")]
    whole = {"user": "alice", "profile": "helper"}
    assert perform(world, "memory-forget-preview", **whole) == {"facts": [], "more_facts": 0}


def test_a_fact_can_be_kept_that_is_older_than_those_that_the_audit_names(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget_operations, "_AUDITED_FACTS", 1)
    world.chat(user="alice", model="agent/helper").say("Hello.")
    oldest, _, _ = learn(world, memory(world), "Drinks tea.", "Has a teapot.", "Has a cup.")
    forget(world, user="alice", profile="helper", message=1, keep=[oldest])
    (fact,) = run(world, world.store.facts.list_page(memory(world).id))
    assert fact.seq == oldest


def test_no_copy_is_left_of_a_fact_that_was_told_before_each_reply(world: World) -> None:
    """Its row is written over for that, and no longer than before."""
    world.chat(user="alice", model="agent/helper").say("Hello.")
    (fact,) = learn(world, memory(world), "Zqmisox is afraid of thunder.")
    for is_standing in (True, False, True):
        run(
            world,
            world.store.facts.set_standing(
                memory(world).id, fact, is_standing=is_standing, replaced_rows=(), at=1.0
            ),
        )
    assert on_disk(world)
    forget(world, user="alice", profile="helper", fact=fact)
    assert not on_disk(world)


@each_row(
    "arguments",
    [
        {"message": 1},  # whose?
        {"user": "alice", "message": True},
        {"user": "alice", "left": ["1"]},
        {"user": "alice", "left": [0]},
        {"user": "alice", "message": 1, "exchange": 1},
        {"user": "alice", "message": "1"},
        {"user": "alice", "message": 99},
        {"user": "alice", "in": "nowhere"},
        {"user": "bob", "message": 1},
        {"user": "alice", "project": "other", "message": 1},
        {"user": "alice", "profile": "helper", "message": 1},
        {"user": "", "message": 1},
        {"user": "alice", "conversation": "c"},
        {"user": "alice", "message": 1, "keep": [99]},
        {"user": "alice", "keep": [1]},
    ],
)
def test_what_is_not_there_or_not_said_is_refused_and_nothing_is_forgotten(
    world: World, arguments: dict[str, Any]
) -> None:
    world.chat(user="alice").say(FACT)
    with pytest.raises(BadRequest):
        forget(world, **arguments)
    assert on_disk(world)
    with pytest.raises(BadRequest, match="Nothing is remembered for user:nobody"):
        forget(world, user="nobody")


def test_a_call_that_runs_out_of_time_says_what_is_left_and_the_next_goes_on(world: World) -> None:
    for i in range(3):
        world.chat(user=f"u{i}").say(f"I am Zqn{i}x.")
    operation = ForgetOperations(world.store, world.clock, call_s=-1.0).forget
    world.settle()
    left: list[int] = []
    for _ in range(200):
        answer = run(world, operation({"project": "default", "user": "u1", "exchange": 1, "left": left}))
        left = answer["left"]
        if answer["done"]:
            break
    assert answer["done"]
    assert not on_disk(world, "Zqn1x")
    assert on_disk(world, "Zqn2x")


def test_what_is_older_than_its_project_keeps_is_forgotten(world: World) -> None:
    world.chat(user="alice").say(FACT)
    world.clock.sleep(29 * 86_400)
    world.chat(user="alice").say("I like Zqteax.")
    retention = Retention(world.store, {"default": 30}, world.clock)
    assert world.gateway.call(retention.forget_old()) == 0
    assert on_disk(world)
    world.clock.sleep(2 * 86_400)
    assert world.gateway.call(Retention(world.store, {"other": 1}, world.clock).forget_old()) == 0
    assert world.gateway.call(retention.forget_old()) == 1
    assert not on_disk(world)
    assert on_disk(world, "Zqteax")
    assert world.gateway.call(retention.forget_old()) == 0


def test_a_clock_that_jumps_ahead_takes_nothing_if_it_is_put_right_within_a_day(world: World) -> None:
    world.chat(user="alice").say(FACT)
    steady = Clock()
    retention = Retention(world.store, {"default": 30}, world.clock, steady_now=steady)
    world.gateway.call(retention.perform_due())
    for days in (365, -365):
        world.clock.sleep(days * 86_400)
        world.gateway.call(retention.perform_due())
    assert on_disk(world)
    for _ in range(31):  # these days pass
        world.clock.sleep(86_400)
        steady.sleep(86_400)
        world.gateway.call(retention.perform_due())
    assert not on_disk(world)


def test_what_is_too_old_is_forgotten_once_the_clock_was_waited_for(world: World) -> None:
    """A forgetting that was broken off is ended meanwhile, and is no search for what is too old."""
    for user in ("alice", "bob"):
        world.chat(user=user).say(FACT if user == "alice" else "I like tea.")
    steady = Clock()
    retention = Retention(world.store, {"default": 30}, world.clock, steady_now=steady)
    world.gateway.call(retention.perform_due())
    world.clock.sleep(365 * 86_400)
    _, bob = world.query("SELECT DISTINCT agent FROM exchanges WHERE agent > 0 ORDER BY agent")
    world.gateway.call(world.store.forgetting.begin(bob, ForgetTarget(is_all=True)))
    world.gateway.call(retention.perform_due())
    assert world.gateway.call(world.store.forgetting.list_unfinished()) == []
    assert on_disk(world)
    steady.sleep(86_400)
    world.gateway.call(retention.perform_due())
    assert not on_disk(world)


def test_the_job_of_another_process_takes_nothing_by_a_clock_that_has_jumped(world: World) -> None:
    world.chat(user="alice").say(FACT)
    steady = Clock()
    retention = Retention(world.store, {"default": 30}, world.clock, steady_now=steady)
    world.clock.sleep(365 * 86_400)
    world.gateway.call(retention.perform("20000"))
    assert on_disk(world)
    steady.sleep(86_400)
    world.gateway.call(retention.perform("20001"))
    assert not on_disk(world)


def test_a_forgetting_that_a_fault_has_broken_off_is_ended_within_a_minute(world: World) -> None:
    world.chat(user="alice").say(FACT)
    retention, store = world.gateway.app.services.background.retention, world.store
    world.gateway.call(retention.perform_due())
    memory, *_ = world.query("SELECT agent FROM exchanges WHERE agent > 0")
    world.gateway.call(store.forgetting.begin(memory, ForgetTarget(is_all=True)))
    assert world.gateway.call(retention.perform_due()) <= 60
    assert not on_disk(world)
    assert not world.gateway.call(store.forgetting.list_unfinished())


def test_a_forgetting_that_cannot_end_has_nothing_else_looked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.chat(user="alice").say(FACT)
    retention, forgetting = Retention(world.store, {"default": 30}, world.clock), world.store.forgetting
    targets, searches, tried = world.store.forget_targets, list[str](), list[int]()
    list_older = targets.list_older

    async def counted(project: str, *given: Any, **options: Any) -> Any:
        searches.append(project)
        return await list_older(project, *given, **options)

    async def fails(id: int) -> bool:
        tried.append(id)
        raise RuntimeError("a fault in the gateway")

    monkeypatch.setattr(targets, "list_older", counted)
    world.gateway.call(retention.perform_due())
    memory, *_ = world.query("SELECT agent FROM exchanges WHERE agent > 0")
    begun = world.gateway.call(forgetting.begin(memory, ForgetTarget(is_all=True)))
    monkeypatch.setattr(forgetting, "run", fails)
    for _ in range(2):
        world.gateway.call(retention.perform_due())
    assert (searches, tried) == (["default"], [begun, begun])


def test_the_settings_name_what_is_retained(world: World) -> None:
    assert world.gateway.app.services.background.retention is not None
    assert world.gateway.app.services.background.retention.retention_days == {"default": 30}


def test_what_is_left_of_a_turn_is_not_lost_when_its_reply_is_asked_again(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("Hello.")
    world.upstream.queue(say("What a Zqmisox!"), say("I see."), say("Well."))
    chat.say("My dog is called Rex.")
    forget(world, user="alice", message=shown(world)["What a Zqmisox!"])
    chat.messages.pop()
    chat.go_on()
    assert "My dog is called Rex." in shown(world)
    chat.say("Good.")
    assert "My dog is called Rex." in shown(world)
    assert "I see." not in shown(world)  # the new reply may say what was forgotten


def test_undo_says_that_an_edit_waits(world: World) -> None:
    edit = {"label": "human", "new_string": "has a cat"}
    world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
    chat = world.chat(model="agent/helper", user="alice")
    chat.say("I have a cat.")
    where = {"user": "alice", "profile": "helper", "block": "human"}
    with pytest.raises(BadRequest, match=r"no change left to undo; edits that wait .*: 1$"):
        perform(world, "memory-undo", **where)
    chat.say("Good.")
    assert perform(world, "memory-undo", **where)["value"] == ""
    with pytest.raises(BadRequest, match=r"no change left to undo$"):
        perform(world, "memory-undo", **where)


def test_undo_names_the_blocks_that_there_are(world: World) -> None:
    world.chat(model="agent/helper", user="alice").say("Hello.")
    with pytest.raises(BadRequest, match=r"no block 'humn' in this memory; it has 'human'(, '\w+')*\.$"):
        perform(world, "memory-undo", user="alice", profile="helper", block="humn")


def test_undo_counts_the_newer_edits_of_the_block_that_wait(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = world.chat(model="agent/helper", user="alice")
    for text, label in (("has a cat", "human"), ("has a dog", "human"), ("is kind", "persona")):
        edit = {"label": label, "new_string": text}
        world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
        chat.say(f"Note that Alice {text}.")
        if text == "has a dog":
            undone = perform(world, "memory-undo", user="alice", profile="helper", block="human")
            assert (undone["value"], undone["waiting"]) == ("", 1)
            show_block(undone)
            assert "1 newer edit of it is not in the block" in capsys.readouterr().err
    undone = perform(world, "memory-undo", user="alice", profile="helper", block="human")
    assert undone["waiting"] == 0


def test_an_edit_of_a_turn_that_was_asked_again_does_not_wait(world: World) -> None:
    where = {"user": "alice", "profile": "helper"}
    chat = world.chat(model="agent/helper", user="alice")
    for text in ("has a cat", "has a cat called Miso"):
        edit = {"label": "human", "new_string": text}
        world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
        chat.messages = [{"role": "user", "content": f"Note that Alice {text}"}]
        chat.complete()
    assert "not confirmed: 1\n" in perform(world, "memory-show", **where)["text"]
    with pytest.raises(BadRequest, match=r"no change left to undo; edits that wait .*: 1$"):
        perform(world, "memory-undo", **where, block="human")


def test_why_names_the_origin_of_every_version_and_the_message_it_came_from(world: World) -> None:
    edit = {"label": "human", "new_string": "has a cat"}
    world.upstream.queue(call_tools(Call("memory_insert", edit), text=None), say("Noted."))
    chat = world.chat(model="agent/helper", user="alice")
    chat.say("I have a cat.")
    chat.say("Good.")
    world.write_block("alice", "has a dog")
    where = {"user": "alice", "profile": "helper"}
    text = perform(world, "memory-show", **where, why=True)["text"]
    assert "version 1" in text
    assert "the profile's default" in text
    assert "a call of a tool" in text
    assert "tool:" not in text  # the call's id says nothing to a person
    assert "from message 1 [2025-10-09" in text
    assert "I have a cat." in text.split("Where blocks come from")[1]
    undone = perform(world, "memory-undo", **where, block="human")
    assert undone == {"label": "human", "version": 4, "value": "has a cat", "waiting": 0}
    assert "undo, back to version 2" in perform(world, "memory-show", **where, why=True)["text"]
    assert perform(world, "memory-undo", **where, block="human")["value"] == ""
    for wrong in (
        {**where, "block": "human"},
        {**where, "block": "other"},
        {"user": "bob", "block": "human"},
    ):
        with pytest.raises(BadRequest):
            perform(world, "memory-undo", **wrong)
