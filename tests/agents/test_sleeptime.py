"""Sleeptime agents at work: when they read, what they read, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.agents.core.rule_guide import BAD_REPLIES
from tests.agents.letta import spoken
from tests.agents.sleep import SleepWorld, hold, is_sleeper, said, sleeping
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, fail, raw, say


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleepWorld]:
    with sleeping(upstream, tmp_path) as made:
        yield made


@pytest.mark.both
def test_it_reads_after_so_many_turns_and_the_reply_names_the_run(world: SleepWorld) -> None:
    agent = world.primary()
    begun = []
    for n in range(1, 11):
        begun.append(world.send(agent, f"Message {n}."))
        world.slept()
    assert [bool(each) for each in begun] == [False, False, False, False, True] * 2
    runs = world.runs(agent)
    assert [run.id for run in runs] == [begun[4][0], begun[9][0]]
    assert [(run.status, run.stop_reason, run.background) for run in runs] == [
        ("completed", "tool_rule", True)
    ] * 2
    assert [said(each) for each in world.model.transcripts] == [
        [f"Message {n}." for n in range(1, 6)],
        [f"Message {n}." for n in range(6, 11)],
    ]
    assert world.block(agent).splitlines() == ["Name: Ann", *(f"Message {n}." for n in range(1, 11))]


def test_what_it_uses_is_background_to_the_token(world: SleepWorld) -> None:
    agent, model = world.primary(), world.model

    def reply(seen: Seen) -> Reply:
        tokens = (90, 6) if is_sleeper(seen) else (40, 3)
        usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        return replace(model(seen), usage={**usage, "total_tokens": sum(tokens)})

    world.letta.upstream.script = reply
    for text in ("Hello.", "I am Ann."):
        world.send(agent, text)
    world.rest()
    gateway = world.letta.world.gateway
    gateway.call(gateway.app.services.accounting.meter.write())
    names = "calls", "input_tokens", "output_tokens", "background_input_tokens", "background_output_tokens"
    (found,) = world.query(f"SELECT {', '.join(f'sum({name})' for name in names)} FROM usage")
    reads = len(model.seen)
    assert reads > 1
    assert found == (2, 80, 6, 90 * reads, 6 * reads)


def test_it_reads_when_the_conversation_rests(world: SleepWorld) -> None:
    agent = world.primary()
    assert (world.send(agent, "Hello."), world.send(agent, "I am Ann.")) == ([], [])
    world.slept()
    assert world.runs(agent) == []
    world.rest()
    (run,) = world.runs(agent)
    assert run.status == "completed"
    assert said(world.model.transcripts[0]) == ["Hello.", "I am Ann."]
    world.rest()
    assert len(world.runs(agent)) == 1  # nothing is unread


def test_what_was_said_before_it_was_turned_on_is_read_at_rest(world: SleepWorld) -> None:
    agent = world.letta.agent(name="ann")
    world.send(agent, "I live in Oslo.")
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    world.rest()
    assert world.block(agent) == "Name: Ann\nI live in Oslo."


def test_null_is_after_each_turn(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, None)
    for n in range(3):
        assert len(world.send(agent, f"Message {n}.")) == 1
        world.slept()
    assert [said(each) for each in world.model.transcripts] == [
        ["Message 0."],
        ["Message 1."],
        ["Message 2."],
    ]


def test_a_streamed_reply_names_the_run_too(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, None)
    events = list(world.letta.letta.agents.messages.create(agent.id, input="Hello.", streaming=True))
    usage = next(each for each in events if each.message_type == "usage_statistics")
    world.slept()
    assert usage.run_ids == [run.id for run in world.runs(agent)]


def test_what_came_while_it_read_is_the_next_ones_span(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 2)
    gate = Gate()
    world.model.before = lambda seen: hold(seen, gate)
    begun = [world.send(agent, f"Message {n}.") for n in range(2)]
    world.upstream_has(3)
    begun += [world.send(agent, f"Message {n}.") for n in range(2, 4)]
    assert [len(each) for each in begun] == [0, 1, 0, 0]  # one reads already
    gate.open()
    world.slept()
    assert [said(each) for each in world.model.transcripts] == [
        ["Message 0.", "Message 1."],
        ["Message 2.", "Message 3."],
    ]


def test_a_failing_model_leaves_the_cursor_and_the_run_goes_on(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.model.fails = 1
    (id,) = world.send(agent, "Hello.")
    world.until_waiting()
    assert world.letta.letta.runs.retrieve(id).status == "running"
    assert world.cursor(agent) == 0
    world.retry()
    (run,) = world.runs(agent)
    assert (run.id, run.status) == (id, "completed")
    assert world.cursor(agent) == 1
    assert world.block(agent) == "Name: Ann\nHello."


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (fail(503), "503"),
        (raw(b"", content_type="text/event-stream"), "broke"),
        (raw(b'{"choices":[]}', content_type="application/json"), "unusable reply"),
    ],
    ids=["status", "cut", "empty"],
)
def test_a_failed_job_names_the_kind_of_error(world: SleepWorld, reply: Reply, kind: str) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.model.before = lambda seen: reply
    world.send(agent, "Hello.")
    world.until_waiting()
    error = f"the upstream of a sleeptime agent failed: {kind}"
    assert world.query("SELECT error FROM jobs WHERE kind = 'sleep'") == [error]


def test_what_a_reply_without_a_message_was_to_read_is_read_again(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    replies = [raw(b'{"choices":[]}', content_type="application/json")]
    world.model.before = lambda seen: replies.pop() if replies else None
    world.send(agent, "Hello.")
    world.until_waiting()
    assert world.cursor(agent) == 0
    world.retry()
    assert [run.status for run in world.runs(agent)] == ["completed"]
    assert (world.block(agent), world.cursor(agent)) == ("Name: Ann\nHello.", 1)


def test_what_was_edited_before_calls_of_no_tool_is_not_read_again(world: SleepWorld) -> None:
    """A small model often says goodbye by a tool that it does not have, and goes on with that."""

    def say_goodbye(seen: Seen) -> Reply | None:
        return (
            call_tools(Call("send_message", {"message": "Done."}))
            if seen.messages[-1]["role"] == "tool"
            else None
        )

    agent = world.primary()
    world.frequency(agent, 1)
    world.model.before = say_goodbye
    for text in ("Hello.", "I am Ann."):
        world.send(agent, text)
        world.slept()
    assert [(run.status, run.stop_reason) for run in world.runs(agent)] == [("completed", "max_steps")] * 2
    assert [said(each) for each in world.model.transcripts] == [["Hello."], ["I am Ann."]]
    assert world.block(agent) == "Name: Ann\nHello.\nI am Ann."
    assert len(world.model.seen) == 2 * (1 + BAD_REPLIES)


@pytest.mark.parametrize("is_held", [True, False], ids=["while it reads", "while it waits"])
def test_turned_off_nothing_is_left_to_be_done(world: SleepWorld, is_held: bool) -> None:
    agent, gate = world.primary(), Gate()
    world.frequency(agent, 1)
    world.model.before = lambda seen: hold(seen, gate) if is_held else fail(500)
    world.send(agent, "Hello.")
    world.upstream_has(2)
    if not is_held:
        world.until_waiting()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    assert world.query("SELECT count(*) FROM jobs WHERE kind = 'sleep'") == [0]
    gate.open()
    world.letta.world.settle()
    assert world.block(agent) == "Name: Ann"
    asked = len(world.model.seen)
    world.send(agent, "I am Ann.")
    world.rest()
    assert len(world.model.seen) == asked


def test_a_failure_in_its_middle_asks_again_from_there(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    failing = [True]

    def fail_once(seen: Seen) -> Reply | None:
        return fail(500) if seen.messages[-1]["role"] == "tool" and failing.pop() else None

    world.model.before = lambda seen: fail_once(seen) if failing else None
    world.send(agent, "Hello.")
    world.until_waiting()
    assert (world.block(agent), world.cursor(agent)) == (
        "Name: Ann\nHello.",
        0,
    )  # the edit entered with its step
    world.retry()
    assert (world.block(agent), world.cursor(agent)) == ("Name: Ann\nHello.", 1)
    assert len([seen for seen in world.model.seen if seen.messages[-1]["role"] == "user"]) == 1


def test_the_eighth_failure_ends_it_and_the_next_reads_the_same(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.model.fails = 8
    world.send(agent, "Hello.")
    world.until_waiting()
    for _ in range(7):
        world.retry()
    (run,) = world.runs(agent)
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert "words are not kept" in run.metadata["error"]
    assert (world.cursor(agent), world.block(agent)) == (0, "Name: Ann")
    world.send(agent, "Still here.")
    world.slept()
    assert world.block(agent) == "Name: Ann\nHello.\nStill here."


@pytest.mark.both
def test_a_person_who_writes_meanwhile_loses_nothing(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    gate = Gate()
    world.model.before = lambda seen: hold(seen, gate)
    world.send(agent, "Hello.")
    world.upstream_has(2)
    world.letta.letta.agents.blocks.update("human", agent_id=agent.id, value="Name: Ann\nBy hand.")
    gate.open()
    world.slept()
    assert world.block(agent) == "Name: Ann\nBy hand.\nHello."


def test_a_rethink_of_what_changed_meanwhile_is_refused_and_made_again(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    gate = Gate()

    def rethink(seen: Seen) -> Reply | None:
        last = seen.messages[-1]
        if last["role"] == "user":
            call = Call("memory_rethink", {"label": "human", "new_memory": "Ann says hello."})
            return call_tools(call, hold_before_headers=gate)
        if "was changed by another writer" in str(last["content"]):
            assert "By hand." in str(last["content"])
            return call_tools(
                Call("memory_rethink", {"label": "human", "new_memory": "Ann says hello. By hand."})
            )
        return None

    world.model.before = rethink
    world.send(agent, "Hello.")
    world.upstream_has(2)
    world.letta.letta.agents.blocks.update("human", agent_id=agent.id, value="By hand.")
    gate.open()
    world.slept()
    assert world.block(agent) == "Ann says hello. By hand."


@pytest.mark.both
def test_two_primaries_share_a_block(world: SleepWorld) -> None:
    agents = world.sharers()
    for agent in agents:
        world.send(agent, f"From {agent.name}.")
    world.slept()
    for agent in agents:
        assert sorted(world.block(agent, "team").splitlines()) == ["From one.", "From two.", "Team:"]
        (run,) = world.runs(agent)
        assert run.status == "completed"


@pytest.mark.both
def test_the_words_that_it_read_are_emptied_and_the_counts_stay(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.send(agent, "My cat is called Miso.")
    world.slept()
    sleeper, client = world.sleeper(agent), world.letta.letta
    (run,) = world.runs(agent)
    assert spoken(client.agents.messages.list(sleeper.id)) == []
    assert list(client.runs.messages.list(run.id)) == []
    steps = list(client.runs.steps.list(run.id))
    assert (len(steps), all(step.completion_tokens for step in steps)) == (2, True)
    assert world.query("SELECT count(*) FROM run_texts WHERE agent <> 0") == [0]
    left = world.query("SELECT count(*) FROM run_texts")
    assert (left == [0]) is world.letta.world.store.database.is_shared, (
        "SQLite keeps rows that it has emptied"
    )
    assert [
        row for row in world.query("SELECT input FROM exchanges") if row and b"not the assistant" in row
    ] == []
    assert world.block(agent) == "Name: Ann\nMy cat is called Miso."


def test_a_long_span_is_read_to_its_end(world: SleepWorld) -> None:
    """In batches, each a run of its own: 2,000 turns are clipped nowhere."""
    agent = world.letta.agent(name="ann")
    world.write_turns(agent, 2000)
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    read: list[str] = []

    def read_only(seen: Seen) -> Reply | None:
        read.extend(said(str(seen.messages[-1]["content"])))
        return say("Nothing.")

    world.model.before = read_only
    world.send(agent, "The last one.")
    world.slept()
    world.rest()
    assert read == [*(f"Message {n}." for n in range(2000)), "The last one."]
    assert world.cursor(agent) == 4001


def test_a_tool_of_the_clients_works_as_with_any_agent(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    tool = {
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {"type": "object", "properties": {}},
    }
    client = world.letta.letta
    world.letta.upstream.queue(call_tools(Call("get_weather", {}, "w1")))
    asked = [{"role": "user", "content": "Will it rain?"}]
    reply = client.agents.messages.create(agent.id, messages=asked, client_tools=[tool])
    assert reply.stop_reason.stop_reason == "requires_approval"
    assert reply.usage.run_ids
    world.slept()
    returned = {"type": "tool", "tool_call_id": "w1", "tool_return": "Rain.", "status": "success"}
    answer = {"type": "approval", "approvals": [returned]}
    reply = client.agents.messages.create(agent.id, messages=[answer], client_tools=[tool])
    assert reply.stop_reason.stop_reason == "end_turn"
    world.rest()
    assert "assistant used get_weather" in world.model.transcripts[0]
    assert [said(each) for each in world.model.transcripts] == [["Will it rain?"], []]


def test_what_is_provisional_is_not_read_yet(world: SleepWorld) -> None:
    """A chat completion's newest turn may be asked again, so it is read when the next one follows, or at rest."""
    agent = world.primary()
    world.frequency(agent, 1)
    chat = world.letta.world.chat(model=agent.id)
    chat.say("Hello.")
    world.slept()
    assert world.model.transcripts == []
    chat.say("I am Ann.")
    world.step()
    assert [said(each) for each in world.model.transcripts] == [["Hello."]]
    world.rest()
    assert [said(each) for each in world.model.transcripts][1:] == [["I am Ann."]]


@pytest.mark.sqlite
def test_the_reply_takes_no_statement_more(world: SleepWorld) -> None:
    """What is unread is counted by the read that a message takes anyway; only what makes a run due writes it down."""
    plain, agent = world.letta.agent(), world.primary()
    world.frequency(agent, 3)
    for each in (plain, agent):
        world.send(each, "Hi")
    costs = [world.letta.world.statements_of(lambda a=each: world.send(a, "Hi")) for each in (plain, agent)]
    assert costs[0] == costs[1]
    assert len(costs[0]) == 6
    world.hold_jobs()
    due = world.letta.world.statements_of(lambda: world.send(agent, "Hi"))
    assert due[:6] == costs[0]
    writes = [each for each in due[6:] if each != "read"]
    assert writes == ["insert conversations", "insert runs", "insert run_texts", "insert jobs"]


def test_of_an_agent_that_speaks_by_voice_it_reads_at_rest_alone(world: SleepWorld) -> None:
    agent = world.primary(agent_type="voice_convo_agent")
    world.frequency(agent, 1)
    assert [world.send(agent, f"Message {n}.") for n in range(3)] == [[], [], []]
    world.slept()
    assert world.model.transcripts == []
    world.rest()
    assert [said(each) for each in world.model.transcripts] == [[f"Message {n}." for n in range(3)]]


def test_who_came_from_elsewhere_with_its_primary_reads_for_it_again(world: SleepWorld) -> None:
    """A memory that is imported has its definition, and up to where it was read; who reads it is found by that."""
    agent = world.primary()
    world.send(agent, "Hello.")
    world.rest()
    sleeper, others = world.sleeper(agent), len(list(world.letta.letta.agents.list()))

    async def carry() -> None:
        store = world.letta.world.store
        await store.database.write(lambda c: c.run("UPDATE readers SET reader = 0"))

    world.letta.world.gateway.call(carry())
    world.send(agent, "I am Ann.")
    world.rest()
    assert [said(each) for each in world.model.transcripts] == [["Hello."], ["I am Ann."]]
    assert world.sleeper(agent).id == sleeper.id
    assert len(list(world.letta.letta.agents.list())) == others


def test_a_message_that_fits_no_window_keeps_nothing_from_being_read(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    longest = 60_000
    world.model.before = lambda seen: (
        fail(400) if len(str(seen.messages[-1]["content"])) > longest else say("Nothing.")
    )
    world.send(agent, "word " * 20_000)
    world.slept()
    assert world.cursor(agent) == 1
    assert [run.status for run in world.runs(agent)] == ["failed", "completed"]


def refuse_plums(seen: Seen) -> Reply | None:
    return (
        fail(400, "Filtered.", code="content_filter") if "plum" in str(seen.messages[-1]["content"]) else None
    )


@pytest.mark.parametrize("is_verdict", [False, True], ids=["status", "verdict"])
def test_what_its_model_refuses_to_read_is_passed_over(world: SleepWorld, is_verdict: bool) -> None:
    """Nothing smaller is tried a second time, and what was said after it is read."""
    agent = world.primary()
    world.frequency(agent, 1)
    verdict = replace(say(""), finish_reason="content_filter")
    world.model.before = lambda seen: verdict if is_verdict and refuse_plums(seen) else refuse_plums(seen)
    for text in ("Hello.", "I like plums.", "My cat is called Miso."):
        world.send(agent, text)
        world.slept()
    assert world.block(agent) == "Name: Ann\nHello.\nMy cat is called Miso."
    runs = world.runs(agent)
    assert [run.status for run in runs] == ["completed", *4 * ["failed"], "completed"]
    refusals = sum(refuse_plums(seen) is not None for seen in world.model.seen)
    if is_verdict:
        assert refusals == 4
        return
    # What the upstream says may quote what was read.
    assert all("words are not kept" in run.metadata["error"] for run in runs[1:5])
    # Each run asks once more without its own blocks.
    assert refusals == 8


def test_a_model_that_refuses_everything_reads_nothing_and_passes_nothing_over(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.model.before = lambda seen: fail(400, "No tools here.")
    for text in ("Hello.", "My cat is called Miso."):
        world.send(agent, text)
        world.slept()
    assert (world.cursor(agent), {run.status for run in world.runs(agent)}) == (0, {"failed"})
    world.model.before = lambda seen: None
    world.send(agent, "Still here.")
    world.slept()
    assert world.block(agent) == "Name: Ann\nHello.\nMy cat is called Miso.\nStill here."


def test_a_model_that_refuses_a_greeting_as_well_passes_nothing_over(world: SleepWorld) -> None:
    """It has answered before, and refuses for the sake of the account now."""
    agent = world.primary()
    world.frequency(agent, 1)
    world.send(agent, "Hello.")
    world.slept()
    upstream = world.letta.upstream
    upstream.script = lambda seen: (
        fail(400, "Not today.") if is_sleeper(seen) or len(seen.messages) == 1 else say("I see.")
    )
    world.send(agent, "I like plums.")
    world.slept()
    upstream.script = world.model
    world.send(agent, "Still here.")
    world.slept()
    assert world.block(agent) == "Name: Ann\nHello.\nI like plums.\nStill here."


def test_a_model_that_has_not_answered_before_passes_nothing_over(world: SleepWorld) -> None:
    """Another model than the one that has read so far may refuse for the sake of its settings."""
    agent = world.primary()
    world.frequency(agent, 1)
    world.send(agent, "Hello.")
    world.slept()
    world.letta.letta.agents.update(world.sleeper(agent).id, model="openai/other")
    world.model.before = refuse_plums
    world.send(agent, "I like plums.")
    world.slept()
    world.letta.letta.agents.update(world.sleeper(agent).id, model="openai/gpt-4o-mini")
    world.model.before = lambda seen: None
    world.send(agent, "Still here.")
    world.slept()
    assert world.block(agent) == "Name: Ann\nHello.\nI like plums.\nStill here."


@pytest.mark.both
def test_a_run_that_is_cancelled_while_it_waits_is_emptied_and_read_again(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.model.fails = 1
    (id,) = world.send(agent, "My cat is called Miso.")
    world.until_waiting()
    world.letta.letta.agents.messages.cancel(world.sleeper(agent).id, run_ids=[id])
    world.retry()
    assert [run.status for run in world.runs(agent)] == ["cancelled", "completed"]
    assert [
        row for row in world.query("SELECT input FROM exchanges") if row and b"not the assistant" in row
    ] == []
    assert world.block(agent) == "Name: Ann\nMy cat is called Miso."


def test_what_has_no_words_is_passed_over(world: SleepWorld) -> None:
    """A whole batch of calls without a word must not stop the reading there."""
    agent = world.primary()
    calls = [call_tools(Call("conversation_search", {"query": f"tea {n}"})) for n in range(70)]
    world.letta.upstream.queue(*calls, say("There is no tea."))
    world.letta.letta.agents.messages.create(agent.id, input="Search.", max_steps=100)
    world.rest()
    assert ["There is no tea." in each for each in world.model.transcripts] == [False, True]
    assert world.cursor(agent) > 140
