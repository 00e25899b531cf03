"""Sleeptime agents: when they read, which turns they read, and which edits are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.agents.core.rule_guide import BAD_REPLIES
from tests.agents.letta import spoken
from tests.agents.sleeptime import (
    SleeptimeWorld,
    hold_first_reply,
    is_sleeptime_request,
    list_user_texts,
    serve_sleeptime,
)
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    fail,
    raw,
    say,
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleeptimeWorld]:
    with serve_sleeptime(upstream, tmp_path) as made:
        yield made


@pytest.mark.both
def test_a_sleeptime_agent_reads_after_each_five_turns_and_the_reply_names_its_run(
    world: SleeptimeWorld,
) -> None:
    agent = world.create_primary()
    begun = []
    for n in range(1, 11):
        begun.append(world.send(agent, f"Message {n}."))
        world.wait_until_idle()
    assert [bool(each) for each in begun] == [False, False, False, False, True] * 2
    runs = world.list_runs(agent)
    assert [run.id for run in runs] == [begun[4][0], begun[9][0]]
    assert [(run.status, run.stop_reason, run.background) for run in runs] == [
        ("completed", "tool_rule", True)
    ] * 2
    assert [list_user_texts(each) for each in world.model.transcripts] == [
        [f"Message {n}." for n in range(1, 6)],
        [f"Message {n}." for n in range(6, 11)],
    ]
    assert world.get_block(agent).splitlines() == ["Name: Ann", *(f"Message {n}." for n in range(1, 11))]


def test_its_tokens_count_as_background_use(world: SleeptimeWorld) -> None:
    agent, model = world.create_primary(), world.model

    def reply(request: UpstreamRequest) -> Reply:
        tokens = (90, 6) if is_sleeptime_request(request) else (40, 3)
        usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        return replace(model(request), usage={**usage, "total_tokens": sum(tokens)})

    world.letta.upstream.script = reply
    for text in ("Hello.", "I am Ann."):
        world.send(agent, text)
    world.pass_idle_time()
    gateway = world.letta.world.gateway
    gateway.call(gateway.app.services.accounting.meter.write())
    names = "calls", "input_tokens", "output_tokens", "background_input_tokens", "background_output_tokens"
    (found,) = world.query(f"SELECT {', '.join(f'sum({name})' for name in names)} FROM usage")
    reads = len(model.requests)
    assert reads > 1
    assert found == (2, 80, 6, 90 * reads, 6 * reads)


def test_a_sleeptime_agent_reads_an_idle_conversation(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    assert (world.send(agent, "Hello."), world.send(agent, "I am Ann.")) == ([], [])
    world.wait_until_idle()
    assert world.list_runs(agent) == []
    world.pass_idle_time()
    (run,) = world.list_runs(agent)
    assert run.status == "completed"
    assert list_user_texts(world.model.transcripts[0]) == ["Hello.", "I am Ann."]
    world.pass_idle_time()
    assert len(world.list_runs(agent)) == 1  # nothing is unread


def test_turns_before_it_was_enabled_are_read_when_the_conversation_is_idle(world: SleeptimeWorld) -> None:
    agent = world.letta.agent(name="ann")
    world.send(agent, "I live in Oslo.")
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    world.pass_idle_time()
    assert world.get_block(agent) == "Name: Ann\nI live in Oslo."


def test_a_frequency_of_null_means_after_each_turn(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, None)
    for n in range(3):
        assert len(world.send(agent, f"Message {n}.")) == 1
        world.wait_until_idle()
    assert [list_user_texts(each) for each in world.model.transcripts] == [
        ["Message 0."],
        ["Message 1."],
        ["Message 2."],
    ]


def test_a_streamed_reply_names_the_run_as_well(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, None)
    events = list(world.letta.letta.agents.messages.create(agent.id, input="Hello.", streaming=True))
    usage = next(each for each in events if each.message_type == "usage_statistics")
    world.wait_until_idle()
    assert usage.run_ids == [run.id for run in world.list_runs(agent)]


def test_turns_that_come_while_it_reads_are_read_by_the_next_run(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 2)
    gate = Gate()
    world.model.intercept = lambda request: hold_first_reply(request, gate)
    begun = [world.send(agent, f"Message {n}.") for n in range(2)]
    world.wait_for_requests(3)
    begun += [world.send(agent, f"Message {n}.") for n in range(2, 4)]
    assert [len(each) for each in begun] == [0, 1, 0, 0]  # a run reads already
    gate.open()
    world.wait_until_idle()
    assert [list_user_texts(each) for each in world.model.transcripts] == [
        ["Message 0.", "Message 1."],
        ["Message 2.", "Message 3."],
    ]


def test_a_failing_model_leaves_the_cursor_and_the_run_continues(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.failures_left = 1
    (id,) = world.send(agent, "Hello.")
    world.wait_for_failed_job()
    assert world.letta.letta.runs.retrieve(id).status == "running"
    assert world.get_cursor(agent) == 0
    world.retry_jobs()
    (run,) = world.list_runs(agent)
    assert (run.id, run.status) == (id, "completed")
    assert world.get_cursor(agent) == 1
    assert world.get_block(agent) == "Name: Ann\nHello."


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (fail(503), "503"),
        (raw(b"", content_type="text/event-stream"), "broke"),
        (raw(b'{"choices":[]}', content_type="application/json"), "unusable reply"),
    ],
    ids=["status", "cut", "empty"],
)
def test_a_failed_job_names_the_kind_of_error(world: SleeptimeWorld, reply: Reply, kind: str) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.intercept = lambda request: reply
    world.send(agent, "Hello.")
    world.wait_for_failed_job()
    error = f"the upstream of a sleeptime agent failed: {kind}"
    assert world.query("SELECT error FROM jobs WHERE kind = 'sleep'") == [error]


def test_a_run_whose_reply_has_no_message_reads_its_turns_again(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    replies = [raw(b'{"choices":[]}', content_type="application/json")]
    world.model.intercept = lambda request: replies.pop() if replies else None
    world.send(agent, "Hello.")
    world.wait_for_failed_job()
    assert world.get_cursor(agent) == 0
    world.retry_jobs()
    assert [run.status for run in world.list_runs(agent)] == ["completed"]
    assert (world.get_block(agent), world.get_cursor(agent)) == ("Name: Ann\nHello.", 1)


def test_a_run_that_ends_by_unknown_calls_does_not_read_its_turns_again(world: SleeptimeWorld) -> None:
    """A small model often ends with a call of a tool that it does not have, and repeats this call."""

    def say_goodbye(request: UpstreamRequest) -> Reply | None:
        return (
            call_tools(Call("send_message", {"message": "Done."}))
            if request.messages[-1]["role"] == "tool"
            else None
        )

    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.intercept = say_goodbye
    for text in ("Hello.", "I am Ann."):
        world.send(agent, text)
        world.wait_until_idle()
    assert [(run.status, run.stop_reason) for run in world.list_runs(agent)] == [
        ("completed", "max_steps")
    ] * 2
    assert [list_user_texts(each) for each in world.model.transcripts] == [["Hello."], ["I am Ann."]]
    assert world.get_block(agent) == "Name: Ann\nHello.\nI am Ann."
    assert len(world.model.requests) == 2 * (1 + BAD_REPLIES)


@pytest.mark.parametrize("is_held", [True, False], ids=["while it reads", "while it waits"])
def test_disabling_it_leaves_no_job(world: SleeptimeWorld, is_held: bool) -> None:
    agent, gate = world.create_primary(), Gate()
    world.set_frequency(agent, 1)
    world.model.intercept = lambda request: hold_first_reply(request, gate) if is_held else fail(500)
    world.send(agent, "Hello.")
    world.wait_for_requests(2)
    if not is_held:
        world.wait_for_failed_job()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    assert world.query("SELECT count(*) FROM jobs WHERE kind = 'sleep'") == [0]
    gate.open()
    world.letta.world.settle()
    assert world.get_block(agent) == "Name: Ann"
    requests = len(world.model.requests)
    world.send(agent, "I am Ann.")
    world.pass_idle_time()
    assert len(world.model.requests) == requests


def test_a_run_that_failed_after_an_edit_continues_after_the_edit(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    failing = [True]

    def fail_once(request: UpstreamRequest) -> Reply | None:
        return fail(500) if request.messages[-1]["role"] == "tool" and failing.pop() else None

    world.model.intercept = lambda request: fail_once(request) if failing else None
    world.send(agent, "Hello.")
    world.wait_for_failed_job()
    assert (world.get_block(agent), world.get_cursor(agent)) == (
        "Name: Ann\nHello.",
        0,
    )  # the edit entered with its step
    world.retry_jobs()
    assert (world.get_block(agent), world.get_cursor(agent)) == ("Name: Ann\nHello.", 1)
    assert len([seen for seen in world.model.requests if seen.messages[-1]["role"] == "user"]) == 1


def test_the_eighth_failure_ends_a_run_and_the_next_run_reads_its_turns(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.failures_left = 8
    world.send(agent, "Hello.")
    world.wait_for_failed_job()
    for _ in range(7):
        world.retry_jobs()
    (run,) = world.list_runs(agent)
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert "words are not kept" in run.metadata["error"]
    assert (world.get_cursor(agent), world.get_block(agent)) == (0, "Name: Ann")
    world.send(agent, "Still here.")
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nHello.\nStill here."


@pytest.mark.both
def test_an_edit_by_hand_during_a_run_is_not_lost(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    gate = Gate()
    world.model.intercept = lambda request: hold_first_reply(request, gate)
    world.send(agent, "Hello.")
    world.wait_for_requests(2)
    world.letta.letta.agents.blocks.update("human", agent_id=agent.id, value="Name: Ann\nBy hand.")
    gate.open()
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nBy hand.\nHello."


def test_a_rethink_of_a_block_that_changed_meanwhile_is_refused_and_repeated(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    gate = Gate()

    def rethink(request: UpstreamRequest) -> Reply | None:
        last = request.messages[-1]
        if last["role"] == "user":
            call = Call("memory_rethink", {"label": "human", "new_memory": "Ann says hello."})
            return call_tools(call, hold_before_headers=gate)
        if "was changed by another writer" in str(last["content"]):
            assert "By hand." in str(last["content"])
            return call_tools(
                Call("memory_rethink", {"label": "human", "new_memory": "Ann says hello. By hand."})
            )
        return None

    world.model.intercept = rethink
    world.send(agent, "Hello.")
    world.wait_for_requests(2)
    world.letta.letta.agents.blocks.update("human", agent_id=agent.id, value="By hand.")
    gate.open()
    world.wait_until_idle()
    assert world.get_block(agent) == "Ann says hello. By hand."


@pytest.mark.both
def test_two_primaries_share_a_block(world: SleeptimeWorld) -> None:
    agents = world.create_sharing_primaries()
    for agent in agents:
        world.send(agent, f"From {agent.name}.")
    world.wait_until_idle()
    for agent in agents:
        assert sorted(world.get_block(agent, "team").splitlines()) == ["From one.", "From two.", "Team:"]
        (run,) = world.list_runs(agent)
        assert run.status == "completed"


@pytest.mark.both
def test_a_run_keeps_its_counts_and_not_the_texts_that_it_read(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.send(agent, "My cat is called Miso.")
    world.wait_until_idle()
    sleeper, client = world.get_sleeptime_agent(agent), world.letta.letta
    (run,) = world.list_runs(agent)
    assert spoken(client.agents.messages.list(sleeper.id)) == []
    assert list(client.runs.messages.list(run.id)) == []
    steps = list(client.runs.steps.list(run.id))
    assert (len(steps), all(step.completion_tokens for step in steps)) == (2, True)
    assert world.query("SELECT count(*) FROM run_texts WHERE agent <> 0") == [0]
    left = world.query("SELECT count(*) FROM run_texts")
    assert (left == [0]) is world.letta.world.store.database.is_shared, (
        "SQLite keeps the rows and erases their texts"
    )
    assert [
        row for row in world.query("SELECT input FROM exchanges") if row and b"not the assistant" in row
    ] == []
    assert world.get_block(agent) == "Name: Ann\nMy cat is called Miso."


def test_many_turns_are_read_in_several_runs(world: SleeptimeWorld) -> None:
    """Each run reads a batch: none of 2,000 turns is clipped."""
    agent = world.letta.agent(name="ann")
    world.write_turns(agent, 2000)
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    read: list[str] = []

    def read_only(request: UpstreamRequest) -> Reply | None:
        read.extend(list_user_texts(str(request.messages[-1]["content"])))
        return say("Nothing.")

    world.model.intercept = read_only
    world.send(agent, "The last one.")
    world.wait_until_idle()
    world.pass_idle_time()
    assert read == [*(f"Message {n}." for n in range(2000)), "The last one."]
    assert world.get_cursor(agent) == 4001


def test_a_tool_of_the_clients_works_as_with_any_agent(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    tool = {
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {"type": "object", "properties": {}},
    }
    client = world.letta.letta
    world.letta.upstream.queue(call_tools(Call("get_weather", {}, "w1")))
    messages = [{"role": "user", "content": "Will it rain?"}]
    reply = client.agents.messages.create(agent.id, messages=messages, client_tools=[tool])
    assert reply.stop_reason.stop_reason == "requires_approval"
    assert reply.usage.run_ids
    world.wait_until_idle()
    returned = {"type": "tool", "tool_call_id": "w1", "tool_return": "Rain.", "status": "success"}
    answer = {"type": "approval", "approvals": [returned]}
    reply = client.agents.messages.create(agent.id, messages=[answer], client_tools=[tool])
    assert reply.stop_reason.stop_reason == "end_turn"
    world.pass_idle_time()
    assert "assistant used get_weather" in world.model.transcripts[0]
    assert [list_user_texts(each) for each in world.model.transcripts] == [["Will it rain?"], []]


def test_a_provisional_turn_is_not_read_yet(world: SleeptimeWorld) -> None:
    """A client may send the newest turn again, so it is read after the next turn, or in an idle conversation."""
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    chat = world.letta.world.chat(model=agent.id)
    chat.say("Hello.")
    world.wait_until_idle()
    assert world.model.transcripts == []
    chat.say("I am Ann.")
    world.run_due_jobs()
    assert [list_user_texts(each) for each in world.model.transcripts] == [["Hello."]]
    world.pass_idle_time()
    assert [list_user_texts(each) for each in world.model.transcripts][1:] == [["I am Ann."]]


@pytest.mark.sqlite
def test_a_reply_takes_no_further_statement(world: SleeptimeWorld) -> None:
    """The read that each message takes counts the unread turns; only a message that makes a run due writes more."""
    plain, agent = world.letta.agent(), world.create_primary()
    world.set_frequency(agent, 3)
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


def test_for_a_voice_agent_it_reads_only_when_the_conversation_is_idle(world: SleeptimeWorld) -> None:
    agent = world.create_primary(agent_type="voice_convo_agent")
    world.set_frequency(agent, 1)
    assert [world.send(agent, f"Message {n}.") for n in range(3)] == [[], [], []]
    world.wait_until_idle()
    assert world.model.transcripts == []
    world.pass_idle_time()
    assert [list_user_texts(each) for each in world.model.transcripts] == [
        [f"Message {n}." for n in range(3)]
    ]


def test_an_imported_sleeptime_agent_reads_for_its_imported_primary(world: SleeptimeWorld) -> None:
    """An import brings the definition of the reader and its position. The definition finds the row of the reader."""
    agent = world.create_primary()
    world.send(agent, "Hello.")
    world.pass_idle_time()
    sleeper, others = world.get_sleeptime_agent(agent), len(list(world.letta.letta.agents.list()))

    async def clear_readers() -> None:
        store = world.letta.world.store
        await store.database.write(lambda c: c.run("UPDATE readers SET reader = 0"))

    world.letta.world.gateway.call(clear_readers())
    world.send(agent, "I am Ann.")
    world.pass_idle_time()
    assert [list_user_texts(each) for each in world.model.transcripts] == [["Hello."], ["I am Ann."]]
    assert world.get_sleeptime_agent(agent).id == sleeper.id
    assert len(list(world.letta.letta.agents.list())) == others


def test_a_message_that_fits_no_window_does_not_stop_the_reading(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    longest = 60_000
    world.model.intercept = lambda request: (
        fail(400) if len(str(request.messages[-1]["content"])) > longest else say("Nothing.")
    )
    world.send(agent, "word " * 20_000)
    world.wait_until_idle()
    assert world.get_cursor(agent) == 1
    assert [run.status for run in world.list_runs(agent)] == ["failed", "completed"]


def refuse_plums(request: UpstreamRequest) -> Reply | None:
    return (
        fail(400, "Filtered.", code="content_filter")
        if "plum" in str(request.messages[-1]["content"])
        else None
    )


@pytest.mark.parametrize("is_verdict", [False, True], ids=["status", "verdict"])
def test_turns_that_its_model_refuses_are_skipped(world: SleeptimeWorld, is_verdict: bool) -> None:
    """No smaller batch is tried a second time, and the turns after the refused one are read."""
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    verdict = replace(say(""), finish_reason="content_filter")
    world.model.intercept = lambda request: (
        verdict if is_verdict and refuse_plums(request) else refuse_plums(request)
    )
    for text in ("Hello.", "I like plums.", "My cat is called Miso."):
        world.send(agent, text)
        world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nHello.\nMy cat is called Miso."
    runs = world.list_runs(agent)
    assert [run.status for run in runs] == ["completed", *4 * ["failed"], "completed"]
    # Each run asks once more without its own blocks.
    assert sum(refuse_plums(request) is not None for request in world.model.requests) == 8
    if not is_verdict:
        # The upstream's message may quote the turns that were read.
        assert all("words are not kept" in run.metadata["error"] for run in runs[1:5])


def test_a_model_that_refuses_everything_skips_no_turn(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.intercept = lambda request: fail(400, "No tools here.")
    for text in ("Hello.", "My cat is called Miso."):
        world.send(agent, text)
        world.wait_until_idle()
    assert (world.get_cursor(agent), {run.status for run in world.list_runs(agent)}) == (0, {"failed"})
    world.model.intercept = lambda request: None
    world.send(agent, "Still here.")
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nHello.\nMy cat is called Miso.\nStill here."


def test_a_model_that_also_refuses_a_greeting_skips_no_turn(world: SleeptimeWorld) -> None:
    """It has answered before, so now it refuses because of the account."""
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.send(agent, "Hello.")
    world.wait_until_idle()
    upstream = world.letta.upstream
    upstream.script = lambda request: (
        fail(400, "Not today.")
        if is_sleeptime_request(request) or len(request.messages) == 1
        else say("I see.")
    )
    world.send(agent, "I like plums.")
    world.wait_until_idle()
    upstream.script = world.model
    world.send(agent, "Still here.")
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nHello.\nI like plums.\nStill here."


def test_a_model_that_has_not_answered_before_skips_no_turn(world: SleeptimeWorld) -> None:
    """A new model may refuse because of its settings."""
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.send(agent, "Hello.")
    world.wait_until_idle()
    world.letta.letta.agents.update(world.get_sleeptime_agent(agent).id, model="openai/other")
    world.model.intercept = refuse_plums
    world.send(agent, "I like plums.")
    world.wait_until_idle()
    world.letta.letta.agents.update(world.get_sleeptime_agent(agent).id, model="openai/gpt-4o-mini")
    world.model.intercept = lambda request: None
    world.send(agent, "Still here.")
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nHello.\nI like plums.\nStill here."


@pytest.mark.both
def test_a_run_that_is_cancelled_while_it_waits_loses_its_texts_and_its_turns_are_read_again(
    world: SleeptimeWorld,
) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.model.failures_left = 1
    (id,) = world.send(agent, "My cat is called Miso.")
    world.wait_for_failed_job()
    world.letta.letta.agents.messages.cancel(world.get_sleeptime_agent(agent).id, run_ids=[id])
    world.retry_jobs()
    assert [run.status for run in world.list_runs(agent)] == ["cancelled", "completed"]
    assert [
        row for row in world.query("SELECT input FROM exchanges") if row and b"not the assistant" in row
    ] == []
    assert world.get_block(agent) == "Name: Ann\nMy cat is called Miso."


def test_turns_without_text_are_skipped(world: SleeptimeWorld) -> None:
    """A whole batch of calls without text does not stop the reading."""
    agent = world.create_primary()
    calls = [call_tools(Call("conversation_search", {"query": f"tea {n}"})) for n in range(70)]
    world.letta.upstream.queue(*calls, say("There is no tea."))
    world.letta.letta.agents.messages.create(agent.id, input="Search.", max_steps=100)
    world.pass_idle_time()
    assert ["There is no tea." in each for each in world.model.transcripts] == [False, True]
    assert world.get_cursor(agent) > 140
