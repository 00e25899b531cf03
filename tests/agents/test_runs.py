"""Runs over a gateway that serves: order, errors, cancelling, and what is on disk after each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import orjson
import pytest
from msgspec.structs import replace

from gateway.agents.runs.run_memory import RunMemory
from gateway.core.definition import AgentDefinition
from gateway.core.prompt.composition import REFUSED_RESULT
from gateway.core.turn.commands import RunTool
from gateway.errors import GatewayError, UnknownId
from gateway.limits import Limits
from gateway.run.sink import ClientGone
from gateway.run.tools.memory import MemoryTools
from gateway.run.tools.toolbox import ToolAnswer
from storage.database import Connection
from storage.errors import StoreUnavailable
from storage.run_records import RunState
from tests.agents.agent_world import AgentWorld, ListeningSink, serve_agent
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    fail,
    insert,
    raw,
    say,
)
from tests.patience import PATIENCE_S


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[AgentWorld]:
    with serve_agent(upstream, tmp_path) as made:
        yield made


def test_a_message_is_answered_and_goes_on_from_what_was_said(world: AgentWorld) -> None:
    world.upstream.queue(say("Hello."), say("Still here."))
    first = world.send("Hi")
    assert first.texts == ["Hello."]
    assert (first.run.state, first.run.stop, first.run.steps) == (RunState.COMPLETED, "end_turn", 1)
    world.send("Are you there?")
    contents = [m["content"] for m in world.upstream.last.messages[1:]]
    assert contents == ["Hi", "Hello.", "Are you there?"]


def test_the_numbers_that_a_run_has_taken_are_reported_to_background_services(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def take(agent_row: int, messages: int, sleeptime: object, seq: int) -> None:
        taken.extend(range(seq, seq + messages))

    monkeypatch.setattr(world.agent_runs.keeper.events, "report_stored_turn", take)
    world.upstream.queue(call_tools(insert("A."), insert("B.")), say("Noted."), say("Yes."))
    world.send("Note this.")
    world.send("Have you?")
    assert taken == list(range(1, 8))  # a question, calls, two results, a reply; a question, a reply


@pytest.mark.both
def test_four_sends_at_once_are_four_turns_in_order(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(say("One.", hold_before_headers=gate), say("Two."), say("Three."), say("Four."))
    sends = [world.begin_send(f"Message {n}") for n in range(4)]
    gate.open()
    assert [send.result(PATIENCE_S).texts for send in sends] == [
        ["One."],
        ["Two."],
        ["Three."],
        ["Four."],
    ]
    assert world.list_messages() == [
        "user: Message 0", "assistant: One.", "user: Message 1", "assistant: Two.",
        "user: Message 2", "assistant: Three.", "user: Message 3", "assistant: Four.",
    ]  # fmt: skip
    assert [m["content"] for m in world.upstream.last.messages[1:]] == [
        "Message 0", "One.", "Message 1", "Two.", "Message 2", "Three.", "Message 3",
    ]  # fmt: skip


@pytest.mark.both
def test_each_step_is_stored_before_the_next(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(
        call_tools(insert("Name: Ann"), text="Let me note that."), say("Noted.", hold_before_headers=gate)
    )
    arrived = world.upstream.request_gate(2)
    run = world.begin_send("I am Ann.")
    arrived.wait_sync()
    assert world.list_messages()[:2] == ["user: I am Ann.", "assistant: Let me note that."]
    assert world.list_messages()[2].startswith("tool: ")
    assert world.get_block().value == "Name: Ann"
    gate.open()
    done = run.result(PATIENCE_S)
    assert done.run.steps == 2
    assert done.texts == ["Let me note that.", "Noted."]
    assert [line for line in done.lines if line.startswith("step")] == ["step 3 4"]


def test_the_messages_of_a_run_go_upstream_unchanged_afterwards(world: AgentWorld) -> None:
    world.upstream.queue(call_tools(insert("Name: Ann")), say("Noted."), say("Bye."))
    world.send("I am Ann.")
    world.send("Bye.")
    first, second, third = (request.messages for request in world.upstream.chats)
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert len(third) == len(second) + 2


def test_an_error_before_the_first_reply_is_a_status_and_the_words_stay(world: AgentWorld) -> None:
    world.upstream.queue(fail(500))
    failed = world.send("Are you there?")
    assert failed.sink.status == 500
    assert (failed.run.state, failed.run.stop) == (RunState.FAILED, "llm_api_error")
    assert world.list_messages() == ["user: Are you there?"]
    assert world.send("Hello?").texts == ["Ok."]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["Are you there?", "Hello?"]


def test_an_error_after_a_finished_step_ends_the_run_and_the_step_stays(world: AgentWorld) -> None:
    world.upstream.queue(call_tools(insert("Name: Ann"), text="One moment."), fail(500))
    failed = world.send("I am Ann.")
    assert failed.sink.status == 200
    assert (failed.run.state, failed.run.stop, failed.run.steps) == (RunState.FAILED, "llm_api_error", 2)
    assert [word.split(":")[0] for word in world.list_messages()] == ["user", "assistant", "tool"]
    assert world.get_block().value == "Name: Ann"
    world.send("And now?")
    assert [m["role"] for m in world.upstream.last.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
    ]


@pytest.mark.sqlite
def test_a_client_that_leaves_while_its_message_is_written_cancels_its_run(world: AgentWorld) -> None:
    world.send("Hi")
    disk = Gate()
    sink = ListeningSink()
    world.hold_writer(disk)
    waiting = world.world.store.health.waiting
    run = world.begin_send("Tell me.", sink)
    while world.world.store.health.waiting == waiting:  # until the message is handed to the writer
        world.world.gateway.call(asyncio.sleep(0))
    world.close_client(sink)
    disk.open()
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    assert world.world.query("SELECT state FROM runs ORDER BY id") == ["completed", "cancelled"]
    assert world.list_messages()[-1] == "user: Tell me."


def test_a_client_that_leaves_cancels_its_run(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(say("A long reply.", tokens=["A long", " reply."], hold_after={2: gate}))
    sink = ListeningSink()
    run = world.begin_send("Tell me.", sink)
    sink.text_gate.wait_sync()
    world.close_client(sink)
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    world.upstream.last.gone.wait_sync()
    assert world.list_messages() == ["user: Tell me.", "assistant: A long"]
    assert world.load_path()[0].active
    assert world.world.query("SELECT state, stop FROM runs") == [("cancelled", "cancelled")]
    world.send("Go on.")
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["Tell me.", "A long", "Go on."]
    gate.open()


def test_a_step_that_is_not_stored_after_its_client_left_is_logged(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, gate = Gate(), Gate()

    async def save_step(*_: object) -> NoReturn:
        entered.open()
        await gate.wait()
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(RunMemory, "save_step", save_step)
    world.upstream.queue(call_tools(insert("Name: Ann")))
    sink = ListeningSink()
    run = world.begin_send("I am Ann.", sink)
    entered.wait_sync()
    world.close_client(sink)
    world.world.gateway.call(asyncio.sleep(0))
    gate.open()
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    world.world.settle()
    gc.collect()
    assert [r.getMessage() for r in caplog.records] == [
        "A step of a run could not be stored: the disk is full"
    ]


def test_a_run_is_cancelled_by_somebody_else(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(say("Never.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(1)
    run = world.begin_send("Tell me.")
    arrived.wait_sync()

    world.cancel_newest_run()
    done = run.result(PATIENCE_S)
    assert (done.run.state, done.run.stop) == (RunState.CANCELLED, "cancelled")
    assert world.list_messages() == ["user: Tell me."]
    gate.open()


@pytest.mark.sqlite
def test_the_next_send_waits_for_the_end_of_a_run_whose_client_left_after_a_step(world: AgentWorld) -> None:
    reply, disk = Gate(), Gate()
    later = say("A long reply.", tokens=["A long", " reply."], hold_after={2: reply})
    world.upstream.queue(call_tools(insert("Name: Ann")), later)
    sink = ListeningSink()
    run = world.begin_send("I am Ann.", sink)
    sink.text_gate.wait_sync()
    world.hold_writer(disk)
    world.close_client(sink)
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    queues = world.agent_runs.keeper.queues
    assert len(queues) == 1
    disk.open()
    world.world.settle()
    assert not len(queues)
    reply.open()


@pytest.fixture
def with_a_lost_end(world: AgentWorld, monkeypatch: pytest.MonkeyPatch) -> AgentWorld:
    """A run answers a send with the otid "one", and cannot write its end."""

    async def write_end(*_: object) -> NoReturn:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RunMemory, "_write_end", write_end)
        world.send("Tell me.", otid="one")
    assert world.world.query("SELECT state FROM runs") == ["running"]
    return world


def test_a_send_that_comes_again_ends_a_run_whose_end_was_lost(with_a_lost_end: AgentWorld) -> None:
    world = with_a_lost_end
    world.upstream.queue(say("Once more."))
    assert world.send("Tell me.", otid="one").texts == ["Once more."]
    assert world.world.query("SELECT state FROM runs ORDER BY id") == ["failed", "completed"]
    assert world.list_messages() == ["user: Tell me.", "assistant: Once more."]


@pytest.mark.both
def test_a_run_whose_end_was_lost_is_ended_and_one_under_way_is_not(with_a_lost_end: AgentWorld) -> None:
    world = with_a_lost_end
    other, gate = world.make_other(), Gate()
    world.upstream.queue(say("Ok.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(2)
    under_way = other.begin_send("Hi")
    arrived.wait_sync()
    world.world.gateway.call(world.agent_runs.abandoned.end_all())
    assert world.world.query("SELECT state FROM runs ORDER BY id") == ["failed", "running"]
    gate.open()
    assert under_way.result(PATIENCE_S).run.state is RunState.COMPLETED


def test_too_many_sends_are_refused(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(say("Slow.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(1)
    sends = [world.begin_send("First")]
    arrived.wait_sync()
    sends += [world.begin_send(f"Message {n}") for n in range(31)]
    with pytest.raises(GatewayError) as refused:
        world.send("One too many")
    assert refused.value.status == 429
    gate.open()
    assert all(send.result(PATIENCE_S).run.state is RunState.COMPLETED for send in sends)


def test_the_same_send_again_is_answered_once(world: AgentWorld) -> None:
    world.upstream.queue(say("Once."))
    first = world.send("Hi", otid="o1")
    again = world.send("Hi", otid="o1")
    assert again.result.is_repeat
    assert again.run.uid == first.run.uid
    assert again.texts == ["Once."]
    assert len(world.upstream.chats) == 1
    assert world.send("Hi", otid="o2").texts == ["Ok."]


def test_the_same_words_long_after_their_answer_are_new_though_a_library_retries(world: AgentWorld) -> None:
    """Its first try may have met a limit or a restart, which stores nothing."""
    world.send("Tick.")
    assert world.send("Tick.", is_retry=True).result.is_repeat
    world.world.clock.sleep(3600)
    assert not world.send("Tick.", is_retry=True).result.is_repeat
    assert sent(world) == ["Tick.", "Ok.", "Tick."]


@pytest.mark.both
def test_the_same_send_while_it_is_answered_waits_for_its_end(world: AgentWorld) -> None:
    gate = Gate()
    world.upstream.queue(say("Once.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(1)
    first = world.begin_send("Hi", otid="o1")
    arrived.wait_sync()
    again = world.begin_send("Hi", otid="o1")
    gate.open()
    assert first.result(PATIENCE_S).texts == ["Once."]
    assert again.result(PATIENCE_S).result.is_repeat
    assert again.result(PATIENCE_S).texts == ["Once."]
    assert len(world.upstream.chats) == 1


def test_a_send_that_failed_goes_on_without_its_message_a_second_time(world: AgentWorld) -> None:
    world.upstream.queue(fail(400), say("Now."))
    assert world.send("Hi", is_retry=False).sink.status == 400
    again = world.send("Hi", is_retry=True)
    assert again.texts == ["Now."]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["Hi"]
    assert world.list_messages() == ["user: Hi", "assistant: Now."]
    # Another message that comes with the header is no repeat.
    assert world.send("Other", is_retry=True).texts == ["Ok."]


def test_a_failed_send_can_be_resent_after_another_that_was_answered(world: AgentWorld) -> None:
    """Else the model would be asked to go on with its own reply."""
    world.upstream.queue(fail(500), say("Not yet."), say("Now."))
    assert world.send("Is it done?", otid="o1").sink.status == 500
    world.send("And the other thing?")
    assert world.send("Is it done?", otid="o1").texts == ["Now."]
    assert sent(world) == ["Is it done?", "And the other thing?", "Not yet.", "Is it done?"]
    assert world.send("Is it done?", otid="o1").result.is_repeat


def test_a_send_that_fails_again_is_said_once(world: AgentWorld) -> None:
    """A client's library tries more than once, and names no id."""
    world.upstream.queue(fail(500), fail(500), fail(500), say("Now."))
    for retry in (False, True, True):
        assert world.send("Hi", is_retry=retry).sink.status == 500
    assert world.send("Hi", is_retry=True).texts == ["Now."]
    assert sent(world) == ["Hi"]
    assert world.send("Hi", is_retry=True).result.is_repeat
    assert world.list_messages() == ["user: Hi", "assistant: Now."]


def sent(world: AgentWorld) -> list[str]:
    """What stood in the last prompt after the system message."""
    return [m["content"] for m in world.upstream.last.messages[1:]]


@pytest.mark.parametrize("status", [400, 403, 413])
def test_a_message_that_is_refused_for_good_does_not_block_the_conversation(
    world: AgentWorld, status: int
) -> None:
    """A filter refuses the words themselves, and would refuse every message that comes with them."""
    world.send("First")
    filtered = fail(status, "It was filtered.", code="content_filter")
    # What may be about the agent's blocks is asked once more without them.
    world.upstream.queue(fail(500), *[filtered] * (1 if status == 413 else 2), say("Fine."))
    assert world.send("Second").sink.status == 500
    refused = world.send("Bad words")
    assert (refused.sink.status, refused.run.state) == (status, RunState.FAILED)
    # The upstream has taken neither, so each may be the reason.
    assert world.send("Third").texts == ["Fine."]
    assert sent(world) == ["First", "Ok.", "Third"]
    world.send("Fourth")
    assert sent(world) == ["First", "Ok.", "Third", "Fine.", "Fourth"]
    assert world.list_messages()[2:4] == ["user: Second", "user: Third"]


def test_a_filters_verdict_in_place_of_a_reply_does_not_block_the_conversation(world: AgentWorld) -> None:
    """Gemini and Claude refuse words by a reply without a word, and would refuse all that comes with them."""
    verdict = replace(say(""), finish_reason="content_filter: PROHIBITED_CONTENT")
    # The upstream is asked once more without the blocks.
    world.upstream.queue(say("Hello."), verdict, verdict, say("Fine."))
    world.send("First")
    refused = world.send("Bad words")
    assert (refused.run.state, refused.run.stop) == (RunState.FAILED, "invalid_llm_response")
    assert world.send("Third").texts == ["Fine."]
    assert sent(world) == ["First", "Hello.", "Third"]
    assert world.list_messages()[2:] == ["user: Third", "assistant: Fine."]


def test_a_first_message_that_is_refused_leaves_the_conversation_unbegun(world: AgentWorld) -> None:
    # The first one is asked once more without the blocks, which the next one has no more.
    world.upstream.queue(*[fail(400, "It was filtered.")] * 3, say("Hello."))
    assert world.send("Bad words").sink.status == 400
    assert world.send("Bad words", otid="o1").sink.status == 400
    assert world.list_messages() == []
    # Under its id it is said again.
    assert world.send("Bad words", otid="o1").texts == ["Hello."]
    assert sent(world) == ["Bad words"]
    assert world.list_messages() == ["user: Bad words", "assistant: Hello."]


def test_a_message_kept_out_of_prompts_by_the_refusal_of_another_can_be_resent(world: AgentWorld) -> None:
    world.send("First")
    world.upstream.queue(fail(500), *[fail(400, "It was filtered.")] * 2, say("Yes."))
    assert world.send("Second", otid="o1").sink.status == 500
    assert world.send("Bad words").sink.status == 400
    assert world.send("Second", otid="o1").texts == ["Yes."]
    assert sent(world) == ["First", "Ok.", "Second"]
    assert world.list_messages() == ["user: First", "assistant: Ok.", "user: Second", "assistant: Yes."]


def test_a_result_that_is_refused_for_good_does_not_block_the_conversation(world: AgentWorld) -> None:
    # Without the result and without the memory section as well.
    refused = [fail(400, "It was filtered.")] * 3
    world.upstream.queue(call_tools(insert("Bad words", "c1")), *refused, say("Fine."))
    assert world.send("Note it.").run.stop == "llm_api_error"
    assert world.send("And now?").texts == ["Fine."]
    assert sent(world)[2:] == [REFUSED_RESULT, "And now?"]
    assert "tool: " in world.list_messages()[2], "what the tool did stands"
    world.upstream.queue(fail(500), fail(400, "It was filtered."))
    for _ in range(3):
        world.send("Hello?")
    assert sent(world)[2] == REFUSED_RESULT


def test_a_run_goes_on_without_a_result_that_is_refused(world: AgentWorld) -> None:
    def search_twice(request: UpstreamRequest) -> Reply | None:
        results = [message["content"] for message in request.messages if message["role"] == "tool"]
        if "Bad words" in str(results):
            return fail(400, "It was filtered.")
        query = ("Bad", "Second", None, None)[len(results)]
        return None if query is None else call_tools(Call("conversation_search", {"query": query}))

    world.send("Bad words")
    for n in range(4):  # apart from the second words: a search finds what stands beside its hits as well
        world.send(f"Something else {n}")
    world.send("Second words")
    world.upstream.script = search_twice
    before = len(world.upstream.requests)
    assert world.send("Look.").texts == ["Ok."]
    assert len(world.upstream.requests) == before + 4
    # The next send has the same, and is not refused.
    world.send("And now?")
    assert len(world.upstream.requests) == before + 5
    results = [message["content"] for message in world.upstream.last.messages if message["role"] == "tool"]
    assert results[0] == REFUSED_RESULT
    assert "Second words" in results[1]


def test_results_of_earlier_runs_that_another_filter_refuses_are_left_out(world: AgentWorld) -> None:
    """As where the agent's model was changed. Results of this run are sent."""

    def results(request: UpstreamRequest) -> list[str]:
        return [message["content"] for message in request.messages if message["role"] == "tool"]

    def refuse_old_results(request: UpstreamRequest) -> Reply | None:
        if "Bad words" in str(results(request)):
            return fail(400, "It was filtered.")
        search = call_tools(Call("conversation_search", {"query": "Second"}))
        return search if len(results(request)) == 1 else None

    world.send("Bad words")
    for n in range(4):  # apart from the second words: a search finds what stands beside its hits as well
        world.send(f"Something else {n}")
    world.send("Second words")
    world.upstream.queue(call_tools(Call("conversation_search", {"query": "Bad"})), say("Found."))
    world.send("Look.")
    world.upstream.script = refuse_old_results
    assert world.send("And now?").texts == ["Ok."]
    found = results(world.upstream.last)
    assert found[0] == REFUSED_RESULT
    assert "Second words" in found[1]
    before = len(world.upstream.requests)
    world.send("Once more.")
    assert len(world.upstream.requests) == before + 1
    assert results(world.upstream.last) == found


def test_the_note_of_a_refused_message_comes_with_the_next_one(world: AgentWorld) -> None:
    world.send("First")
    world.write_block("Name: Ann")
    world.upstream.queue(fail(500), *[fail(400, "It was filtered.")] * 4)
    for words in ("Second", "Bad words", "Worse words"):
        world.send(words)
    world.send("Third")
    assert sent(world)[:2] == ["First", "Ok."]
    assert "Name: Ann" in sent(world)[2]
    world.send("Fourth")
    assert sent(world)[-1] == "Fourth"


def test_messages_that_made_room_for_a_refused_message_come_back(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serve_agent(upstream, tmp_path, context_window=4000) as world:
        world.send("My roses are red. " * 50)
        upstream.queue(fail(413, "Too large."))
        world.send("word " * 3000)
        world.send("Third")
        assert [words[:8] for words in sent(world)] == ["My roses", "Ok.", "Third"]


def test_another_send_under_the_same_id_is_a_new_one(world: AgentWorld) -> None:
    world.send("Hi", otid="o1")
    other = world.send("Something else.", otid="o1")
    assert not other.result.is_repeat
    assert world.send("Something else.", otid="o1").result.is_repeat
    assert len(world.upstream.chats) == 2


@pytest.mark.both
def test_a_send_whose_process_is_gone_goes_on_without_its_message_a_second_time(world: AgentWorld) -> None:
    world.send("Hi", otid="o1")

    async def undo() -> None:
        async def write(connection: Connection) -> None:
            await connection.run("DELETE FROM run_steps", ())
            await connection.run("UPDATE runs SET state = 'failed', stop = 'error'", ())
            await connection.run(
                "UPDATE exchanges SET state = 'open', ended = NULL, reply = NULL, shown_reply = NULL", ()
            )

        await world.world.store.database.write(write)

    world.world.gateway.call(undo())
    world.upstream.queue(say("Now."))
    assert world.send("Hi", otid="o1").texts == ["Now."]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["Hi"]
    assert world.list_messages() == ["user: Hi", "assistant: Now."]
    assert [x.state.value for x in world.load_path()] == ["finished", "finished"]


def test_the_steps_of_a_run_have_a_limit(world: AgentWorld) -> None:
    world.upstream.script = lambda request: call_tools(insert("x"))
    done = world.send("Loop.", max_steps=3)
    assert (done.run.stop, done.run.steps) == ("max_steps", 3)
    assert [word.split(":")[0] for word in world.list_messages()] == ["user", *["assistant", "tool"] * 3]
    world.upstream.script = None
    assert world.send("Stop it.").texts == ["Ok."]


def test_tokens_are_counted_for_each_step(world: AgentWorld) -> None:
    world.upstream.queue(call_tools(insert("x")), say("Done."))
    done = world.send("Note x.")
    assert done.run.counts.prompt > 0
    rows = world.world.query("SELECT sum(prompt), sum(completion) FROM run_steps")
    assert rows == [(done.run.counts.prompt, done.run.counts.completion)]
    assert world.world.query("SELECT prompt, completion, steps FROM runs") == [(*rows[0], 2)]


def test_a_system_text_that_fills_the_window_ends_the_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_agent(upstream, tmp_path, system="word " * 3000, context_window=2000) as world:
        done = world.send("Hi")
        assert (done.run.state, done.run.stop) == (
            RunState.FAILED,
            "context_window_overflow_in_system_prompt",
        )
        assert upstream.chats == []
        assert world.list_messages() == ["user: Hi"]


def test_a_client_that_leaves_while_a_tool_runs_keeps_the_step(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = Gate()

    async def hang(self: MemoryTools, call: RunTool) -> ToolAnswer:
        began.open()
        await asyncio.Event().wait()
        raise AssertionError

    world.upstream.queue(call_tools(insert("x", "m1"), text="One moment."))
    sink = ListeningSink()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryTools, "run", hang)
        run = world.begin_send("Note x.", sink)
        began.wait_sync()
        world.close_client(sink)
        with pytest.raises(ClientGone):
            run.result(PATIENCE_S)
    interrupted = "tool: Error: the call was interrupted; it may or may not have been done."
    assert world.list_messages() == ["user: Note x.", "assistant: One moment.", interrupted]
    assert world.world.query("SELECT state, stop, steps FROM runs") == [("cancelled", "cancelled", 1)]
    world.send("Go on.")
    messages = world.upstream.last.messages
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[3]["tool_call_id"] == "m1"
    assert world.get_block().value == ""


def test_a_cancelled_run_keeps_what_its_tools_did(world: AgentWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two tools has run; its edit and its result stay, the other call is answered so."""
    began = Gate()
    running = MemoryTools.run

    async def hang(self: MemoryTools, call: RunTool) -> ToolAnswer:
        if call.name == "memory_insert":
            return await running(self, call)
        began.open()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(MemoryTools, "run", hang)
    search = Call("conversation_search", {"query": "x"}, "s1")
    world.upstream.queue(call_tools(insert("x", "m1"), search))
    run = world.begin_send("Note x.")
    began.wait_sync()

    world.cancel_newest_run()
    assert run.result(PATIENCE_S).run.state is RunState.CANCELLED
    world.send("Go on.")
    results = {m["tool_call_id"]: m["content"] for m in world.upstream.last.messages if m["role"] == "tool"}
    assert set(results) == {"m1", "s1"}
    assert (world.get_block().value == "x") is ("+ 'x'" in results["m1"])


def test_a_send_to_a_conversation_that_is_not_there(world: AgentWorld) -> None:
    world.send("Hi")
    name = f"conv-{'0' * 32}"
    with pytest.raises(UnknownId, match=name):
        world.send("Are you there?", conversation_name=name)


@pytest.mark.parametrize("by", ["otid", "is_retry"])
def test_the_first_send_is_recognised_after_the_initial_messages(
    upstream: StrictUpstream, tmp_path: Path, by: str
) -> None:
    first = ({"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ann."})
    with serve_agent(
        upstream, tmp_path, definition=AgentDefinition("react_agent", "", initial_messages=first)
    ) as world:
        again = {"otid": "one"} if by == "otid" else {"is_retry": True}
        world.send("Hi", otid="one")
        assert world.send("Hi", **again).result.is_repeat
        assert world.list_messages() == [
            "user: Who are you?",
            "assistant: Ann.",
            "user: Hi",
            "assistant: Ok.",
        ]


@pytest.mark.both
def test_one_of_four_first_sends_begins_the_conversation(upstream: StrictUpstream, tmp_path: Path) -> None:
    first = ({"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ann."})
    with serve_agent(
        upstream, tmp_path, definition=AgentDefinition("react_agent", "", initial_messages=first)
    ) as world:
        for send in [world.begin_send(f"Message {n}") for n in range(4)]:
            send.result(PATIENCE_S)
        assert world.list_messages().count("user: Who are you?") == 1
        assert world.list_messages()[:3] == ["user: Who are you?", "assistant: Ann.", "user: Message 0"]


def test_a_run_is_cancelled_while_its_client_reads_nothing(world: AgentWorld) -> None:
    """Stopped in the write right before its end is saved, it is saved all the same."""
    blocked, release = Gate(), Gate()

    class SlowSink(ListeningSink):
        async def write(self, data: bytes) -> None:
            blocked.open()
            await release.wait()
            await ListeningSink.write(self, data)

    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    told = {"index": 0, "delta": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}
    world.upstream.queue(
        raw(b"data: " + orjson.dumps({**chunk, "choices": [told]}) + b"\n\ndata: [DONE]\n\n")
    )
    run = world.begin_send("Tell me.", SlowSink())
    blocked.wait_sync()

    world.cancel_newest_run()
    release.open()
    run.result(PATIENCE_S)
    world.world.settle()
    assert [x.state.value for x in world.load_path()] == ["finished"]
    assert world.list_messages() == ["user: Tell me.", "assistant: All at once."]
    assert world.send("And now?").texts == ["Ok."]


@pytest.mark.sqlite
def test_a_message_that_the_disk_takes_too_late_leaves_no_run(world: AgentWorld) -> None:
    world.send("Hi")
    disk = Gate()
    world.hold_writer(disk)
    world.world.gateway.app.services.chat.keeper.open_wait_s = 0.01
    with pytest.raises(GatewayError) as late:
        world.send("Are you there?")
    assert late.value.status == 503
    world.world.gateway.app.services.chat.keeper.open_wait_s = 5.0
    disk.open()
    world.world.settle()
    assert world.world.query("SELECT state FROM runs ORDER BY id") == ["completed", "failed"]
    assert [x.state.value for x in world.load_path()] == ["finished", "finished"]
    assert world.send("Hello?").texts == ["Ok."]


@pytest.mark.both
def test_a_send_waits_for_a_disk_that_is_slow_for_a_moment(upstream: StrictUpstream, tmp_path: Path) -> None:
    assert Limits().step_wait_s >= 5 > Limits().commit_wait_s
    with serve_agent(upstream, tmp_path) as world:
        assert world.agent_runs._foreground.turn_services.limits.commit_wait_s >= Limits().step_wait_s
