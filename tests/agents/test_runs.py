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
from storage.errors import Unavailable
from storage.run_records import Run, RunState
from tests.agents.life import Life, ListeningSink, agents
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, fail, raw, say
from tests.patience import PATIENCE_S


@pytest.fixture
def life(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Life]:
    with agents(upstream, tmp_path) as made:
        yield made


def insert(text: str, id: str | None = None) -> Call:
    return Call("memory_insert", {"label": "human", "new_string": text}, id)


def test_a_message_is_answered_and_goes_on_from_what_was_said(life: Life) -> None:
    life.upstream.queue(say("Hello."), say("Still here."))
    first = life.send("Hi")
    assert first.said == ["Hello."]
    assert (first.run.state, first.run.stop, first.run.steps) == (RunState.COMPLETED, "end_turn", 1)
    life.send("Are you there?")
    sent = [m["content"] for m in life.upstream.last.messages[1:]]
    assert sent == ["Hi", "Hello.", "Are you there?"]


def test_the_numbers_that_a_run_has_taken_are_reported_to_background_services(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def take(agent_row: int, messages: int, sleeptime: object, seq: int) -> None:
        taken.extend(range(seq, seq + messages))

    monkeypatch.setattr(life.agents.keeper.events, "report_stored_turn", take)
    life.upstream.queue(call_tools(insert("A."), insert("B.")), say("Noted."), say("Yes."))
    life.send("Note this.")
    life.send("Have you?")
    assert taken == list(range(1, 8))  # a question, calls, two results, a reply; a question, a reply


@pytest.mark.both
def test_four_sends_at_once_are_four_turns_in_order(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(say("One.", hold_before_headers=gate), say("Two."), say("Three."), say("Four."))
    sends = [life.begin(f"Message {n}") for n in range(4)]
    gate.open()
    assert [send.result(PATIENCE_S).said for send in sends] == [
        ["One."],
        ["Two."],
        ["Three."],
        ["Four."],
    ]
    assert life.words() == [
        "user: Message 0", "assistant: One.", "user: Message 1", "assistant: Two.",
        "user: Message 2", "assistant: Three.", "user: Message 3", "assistant: Four.",
    ]  # fmt: skip
    assert [m["content"] for m in life.upstream.last.messages[1:]] == [
        "Message 0", "One.", "Message 1", "Two.", "Message 2", "Three.", "Message 3",
    ]  # fmt: skip


@pytest.mark.both
def test_each_step_is_stored_before_the_next(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(
        call_tools(insert("Name: Ann"), text="Let me note that."), say("Noted.", hold_before_headers=gate)
    )
    arrived = life.upstream.arrived(2)
    run = life.begin("I am Ann.")
    arrived.wait_sync()
    assert life.words()[:2] == ["user: I am Ann.", "assistant: Let me note that."]
    assert life.words()[2].startswith("tool: ")
    assert life.block().value == "Name: Ann"
    gate.open()
    done = run.result(PATIENCE_S)
    assert done.run.steps == 2
    assert done.said == ["Let me note that.", "Noted."]
    assert [line for line in done.lines if line.startswith("step")] == ["step 3 4"]


def test_what_goes_upstream_in_a_run_is_what_goes_there_afterwards(life: Life) -> None:
    life.upstream.queue(call_tools(insert("Name: Ann")), say("Noted."), say("Bye."))
    life.send("I am Ann.")
    life.send("Bye.")
    first, second, third = (seen.messages for seen in life.upstream.chats)
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert len(third) == len(second) + 2


def test_an_error_before_the_first_reply_is_a_status_and_the_words_stay(life: Life) -> None:
    life.upstream.queue(fail(500))
    failed = life.send("Are you there?")
    assert failed.sink.status == 500
    assert (failed.run.state, failed.run.stop) == (RunState.FAILED, "llm_api_error")
    assert life.words() == ["user: Are you there?"]
    assert life.send("Hello?").said == ["Ok."]
    assert [m["content"] for m in life.upstream.last.messages[1:]] == ["Are you there?", "Hello?"]


def test_an_error_after_a_finished_step_ends_the_run_and_the_step_stays(life: Life) -> None:
    life.upstream.queue(call_tools(insert("Name: Ann"), text="One moment."), fail(500))
    failed = life.send("I am Ann.")
    assert failed.sink.status == 200
    assert (failed.run.state, failed.run.stop, failed.run.steps) == (RunState.FAILED, "llm_api_error", 2)
    assert [word.split(":")[0] for word in life.words()] == ["user", "assistant", "tool"]
    assert life.block().value == "Name: Ann"
    life.send("And now?")
    assert [m["role"] for m in life.upstream.last.messages] == ["system", "user", "assistant", "tool", "user"]


@pytest.mark.sqlite
def test_a_client_that_leaves_while_its_message_is_written_cancels_its_run(life: Life) -> None:
    life.send("Hi")
    disk, entered = Gate(), Gate()
    sink = ListeningSink()

    async def hold_the_disk() -> None:
        def wait(_: object) -> None:
            entered.open()
            disk.wait_sync()

        life.world.store.database.writer.submit(wait)

    life.world.gateway.call(hold_the_disk())
    entered.wait_sync()
    waiting = life.world.store.health.waiting
    run = life.begin("Tell me.", sink)
    while life.world.store.health.waiting == waiting:  # until the message is handed to the writer
        life.world.gateway.call(asyncio.sleep(0))
    life.leave(sink)
    disk.open()
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    assert life.world.query("SELECT state FROM runs ORDER BY id") == ["completed", "cancelled"]
    assert life.words()[-1] == "user: Tell me."


def test_a_client_that_leaves_cancels_its_run(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(say("A long reply.", tokens=["A long", " reply."], hold_after={2: gate}))
    sink = ListeningSink()
    run = life.begin("Tell me.", sink)
    sink.wrote.wait_sync()
    life.leave(sink)
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    life.upstream.last.gone.wait_sync()
    assert life.words() == ["user: Tell me.", "assistant: A long"]
    assert life.path()[0].active
    assert life.world.query("SELECT state, stop FROM runs") == [("cancelled", "cancelled")]
    life.send("Go on.")
    assert [m["content"] for m in life.upstream.last.messages[1:]] == ["Tell me.", "A long", "Go on."]
    gate.open()


def test_a_step_that_is_not_stored_after_its_client_left_is_logged(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, gate = Gate(), Gate()

    async def save_step(*_: object) -> NoReturn:
        entered.open()
        await gate.wait()
        raise Unavailable("the disk is full")

    monkeypatch.setattr(RunMemory, "save_step", save_step)
    life.upstream.queue(call_tools(insert("Name: Ann")))
    sink = ListeningSink()
    run = life.begin("I am Ann.", sink)
    entered.wait_sync()
    life.leave(sink)
    life.world.gateway.call(asyncio.sleep(0))
    gate.open()
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    life.world.settle()
    gc.collect()
    assert [r.getMessage() for r in caplog.records] == [
        "A step of a run could not be stored: the disk is full"
    ]


def test_a_run_is_cancelled_by_somebody_else(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(say("Never.", hold_before_headers=gate))
    arrived = life.upstream.arrived(1)
    run = life.begin("Tell me.")
    arrived.wait_sync()

    async def cancel() -> object:
        found = await life.world.store.runs.find_newest_run(1, 1)
        assert found is not None
        return await life.agents.live.cancel(found)

    life.world.gateway.call(cancel())
    done = run.result(PATIENCE_S)
    assert (done.run.state, done.run.stop) == (RunState.CANCELLED, "cancelled")
    assert life.words() == ["user: Tell me."]
    gate.open()


@pytest.mark.sqlite
def test_the_next_send_waits_for_the_end_of_a_run_whose_client_left_after_a_step(life: Life) -> None:
    reply, disk = Gate(), Gate()
    later = say("A long reply.", tokens=["A long", " reply."], hold_after={2: reply})
    life.upstream.queue(call_tools(insert("Name: Ann")), later)
    sink = ListeningSink()
    run = life.begin("I am Ann.", sink)
    sink.wrote.wait_sync()

    async def hold_the_disk() -> None:
        life.world.store.database.writer.submit(lambda _: disk.wait_sync())

    life.world.gateway.call(hold_the_disk())
    life.leave(sink)
    with pytest.raises(ClientGone):
        run.result(PATIENCE_S)
    queues = life.agents.keeper.queues
    assert len(queues) == 1
    disk.open()
    life.world.settle()
    assert not len(queues)
    reply.open()


@pytest.fixture
def with_a_lost_end(life: Life, monkeypatch: pytest.MonkeyPatch) -> Life:
    """A run answers a send with the otid "one", and cannot write its end."""

    async def write_end(*_: object) -> NoReturn:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RunMemory, "_write_end", write_end)
        life.send("Tell me.", otid="one")
    assert life.world.query("SELECT state FROM runs") == ["running"]
    return life


def test_a_send_that_comes_again_ends_a_run_whose_end_was_lost(with_a_lost_end: Life) -> None:
    life = with_a_lost_end
    life.upstream.queue(say("Once more."))
    assert life.send("Tell me.", otid="one").said == ["Once more."]
    assert life.world.query("SELECT state FROM runs ORDER BY id") == ["failed", "completed"]
    assert life.words() == ["user: Tell me.", "assistant: Once more."]


@pytest.mark.both
def test_a_run_whose_end_was_lost_is_ended_and_one_under_way_is_not(with_a_lost_end: Life) -> None:
    life = with_a_lost_end
    other, gate = life.other(), Gate()
    life.upstream.queue(say("Ok.", hold_before_headers=gate))
    arrived = life.upstream.arrived(2)
    under_way = other.begin("Hi")
    arrived.wait_sync()
    life.world.gateway.call(life.agents.abandoned.end_all())
    assert life.world.query("SELECT state FROM runs ORDER BY id") == ["failed", "running"]
    gate.open()
    assert under_way.result(PATIENCE_S).run.state is RunState.COMPLETED


def test_too_many_sends_are_refused(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(say("Slow.", hold_before_headers=gate))
    arrived = life.upstream.arrived(1)
    sends = [life.begin("First")]
    arrived.wait_sync()
    sends += [life.begin(f"Message {n}") for n in range(31)]
    with pytest.raises(GatewayError) as refused:
        life.send("One too many")
    assert refused.value.status == 429
    gate.open()
    assert all(send.result(PATIENCE_S).run.state is RunState.COMPLETED for send in sends)


def test_the_same_send_again_is_answered_once(life: Life) -> None:
    life.upstream.queue(say("Once."))
    first = life.send("Hi", otid="o1")
    again = life.send("Hi", otid="o1")
    assert again.result.is_repeat
    assert again.run.uid == first.run.uid
    assert again.said == ["Once."]
    assert len(life.upstream.chats) == 1
    assert life.send("Hi", otid="o2").said == ["Ok."]


def test_the_same_words_long_after_their_answer_are_new_though_a_library_retries(life: Life) -> None:
    """Its first try may have met a limit or a restart, which stores nothing."""
    life.send("Tick.")
    assert life.send("Tick.", is_retry=True).result.is_repeat
    life.world.clock.sleep(3600)
    assert not life.send("Tick.", is_retry=True).result.is_repeat
    assert sent(life) == ["Tick.", "Ok.", "Tick."]


@pytest.mark.both
def test_the_same_send_while_it_is_answered_waits_for_its_end(life: Life) -> None:
    gate = Gate()
    life.upstream.queue(say("Once.", hold_before_headers=gate))
    arrived = life.upstream.arrived(1)
    first = life.begin("Hi", otid="o1")
    arrived.wait_sync()
    again = life.begin("Hi", otid="o1")
    gate.open()
    assert first.result(PATIENCE_S).said == ["Once."]
    assert again.result(PATIENCE_S).result.is_repeat
    assert again.result(PATIENCE_S).said == ["Once."]
    assert len(life.upstream.chats) == 1


def test_a_send_that_failed_goes_on_without_its_message_a_second_time(life: Life) -> None:
    life.upstream.queue(fail(400), say("Now."))
    assert life.send("Hi", is_retry=False).sink.status == 400
    again = life.send("Hi", is_retry=True)
    assert again.said == ["Now."]
    assert [m["content"] for m in life.upstream.last.messages[1:]] == ["Hi"]
    assert life.words() == ["user: Hi", "assistant: Now."]
    # Another message that comes with the header is no repeat.
    assert life.send("Other", is_retry=True).said == ["Ok."]


def test_a_failed_send_can_be_resent_after_another_that_was_answered(life: Life) -> None:
    """Else the model would be asked to go on with its own reply."""
    life.upstream.queue(fail(500), say("Not yet."), say("Now."))
    assert life.send("Is it done?", otid="o1").sink.status == 500
    life.send("And the other thing?")
    assert life.send("Is it done?", otid="o1").said == ["Now."]
    assert sent(life) == ["Is it done?", "And the other thing?", "Not yet.", "Is it done?"]
    assert life.send("Is it done?", otid="o1").result.is_repeat


def test_a_send_that_fails_again_is_said_once(life: Life) -> None:
    """A client's library tries more than once, and names no id."""
    life.upstream.queue(fail(500), fail(500), fail(500), say("Now."))
    for retry in (False, True, True):
        assert life.send("Hi", is_retry=retry).sink.status == 500
    assert life.send("Hi", is_retry=True).said == ["Now."]
    assert sent(life) == ["Hi"]
    assert life.send("Hi", is_retry=True).result.is_repeat
    assert life.words() == ["user: Hi", "assistant: Now."]


def sent(life: Life) -> list[str]:
    """What stood in the last prompt after the system message."""
    return [m["content"] for m in life.upstream.last.messages[1:]]


@pytest.mark.parametrize("status", [400, 403, 413])
def test_a_message_that_is_refused_for_good_does_not_block_the_conversation(life: Life, status: int) -> None:
    """A filter refuses the words themselves, and would refuse every message that comes with them."""
    life.send("First")
    filtered = fail(status, "It was filtered.", code="content_filter")
    # What may be about the agent's blocks is asked once more without them.
    life.upstream.queue(fail(500), *[filtered] * (1 if status == 413 else 2), say("Fine."))
    assert life.send("Second").sink.status == 500
    refused = life.send("Bad words")
    assert (refused.sink.status, refused.run.state) == (status, RunState.FAILED)
    # The upstream has taken neither, so each may be the reason.
    assert life.send("Third").said == ["Fine."]
    assert sent(life) == ["First", "Ok.", "Third"]
    life.send("Fourth")
    assert sent(life) == ["First", "Ok.", "Third", "Fine.", "Fourth"]
    assert life.words()[2:4] == ["user: Second", "user: Third"]


def test_a_filters_verdict_in_place_of_a_reply_does_not_block_the_conversation(life: Life) -> None:
    """Gemini and Claude refuse words by a reply without a word, and would refuse all that comes with them."""
    verdict = replace(say(""), finish_reason="content_filter: PROHIBITED_CONTENT")
    # The upstream is asked once more without the blocks.
    life.upstream.queue(say("Hello."), verdict, verdict, say("Fine."))
    life.send("First")
    refused = life.send("Bad words")
    assert (refused.run.state, refused.run.stop) == (RunState.FAILED, "invalid_llm_response")
    assert life.send("Third").said == ["Fine."]
    assert sent(life) == ["First", "Hello.", "Third"]
    assert life.words()[2:] == ["user: Third", "assistant: Fine."]


def test_a_first_message_that_is_refused_leaves_the_conversation_unbegun(life: Life) -> None:
    # The first one is asked once more without the blocks, which the next one has no more.
    life.upstream.queue(*[fail(400, "It was filtered.")] * 3, say("Hello."))
    assert life.send("Bad words").sink.status == 400
    assert life.send("Bad words", otid="o1").sink.status == 400
    assert life.words() == []
    # Under its id it is said again.
    assert life.send("Bad words", otid="o1").said == ["Hello."]
    assert sent(life) == ["Bad words"]
    assert life.words() == ["user: Bad words", "assistant: Hello."]


def test_a_message_kept_out_of_prompts_by_the_refusal_of_another_can_be_resent(life: Life) -> None:
    life.send("First")
    life.upstream.queue(fail(500), *[fail(400, "It was filtered.")] * 2, say("Yes."))
    assert life.send("Second", otid="o1").sink.status == 500
    assert life.send("Bad words").sink.status == 400
    assert life.send("Second", otid="o1").said == ["Yes."]
    assert sent(life) == ["First", "Ok.", "Second"]
    assert life.words() == ["user: First", "assistant: Ok.", "user: Second", "assistant: Yes."]


def test_a_result_that_is_refused_for_good_does_not_block_the_conversation(life: Life) -> None:
    # Without the result and without the memory section as well.
    refused = [fail(400, "It was filtered.")] * 3
    life.upstream.queue(call_tools(insert("Bad words", "c1")), *refused, say("Fine."))
    assert life.send("Note it.").run.stop == "llm_api_error"
    assert life.send("And now?").said == ["Fine."]
    assert sent(life)[2:] == [REFUSED_RESULT, "And now?"]
    assert "tool: " in life.words()[2], "what the tool did stands"
    life.upstream.queue(fail(500), fail(400, "It was filtered."))
    for _ in range(3):
        life.send("Hello?")
    assert sent(life)[2] == REFUSED_RESULT


def test_a_run_goes_on_without_a_result_that_is_refused(life: Life) -> None:
    def search_twice(seen: Seen) -> Reply | None:
        results = [message["content"] for message in seen.messages if message["role"] == "tool"]
        if "Bad words" in str(results):
            return fail(400, "It was filtered.")
        query = ("Bad", "Second", None, None)[len(results)]
        return None if query is None else call_tools(Call("conversation_search", {"query": query}))

    life.send("Bad words")
    for n in range(4):  # apart from the second words: a search finds what stands beside its hits as well
        life.send(f"Something else {n}")
    life.send("Second words")
    life.upstream.script = search_twice
    before = len(life.upstream.seen)
    assert life.send("Look.").said == ["Ok."]
    assert len(life.upstream.seen) == before + 4
    # The next send has the same, and is not refused.
    life.send("And now?")
    assert len(life.upstream.seen) == before + 5
    results = [message["content"] for message in life.upstream.last.messages if message["role"] == "tool"]
    assert results[0] == REFUSED_RESULT
    assert "Second words" in results[1]


def test_results_of_earlier_runs_that_another_filter_refuses_are_left_out(life: Life) -> None:
    """As where the agent's model was changed. Results of this run are sent."""

    def results(seen: Seen) -> list[str]:
        return [message["content"] for message in seen.messages if message["role"] == "tool"]

    def refuse_old_results(seen: Seen) -> Reply | None:
        if "Bad words" in str(results(seen)):
            return fail(400, "It was filtered.")
        search = call_tools(Call("conversation_search", {"query": "Second"}))
        return search if len(results(seen)) == 1 else None

    life.send("Bad words")
    for n in range(4):  # apart from the second words: a search finds what stands beside its hits as well
        life.send(f"Something else {n}")
    life.send("Second words")
    life.upstream.queue(call_tools(Call("conversation_search", {"query": "Bad"})), say("Found."))
    life.send("Look.")
    life.upstream.script = refuse_old_results
    assert life.send("And now?").said == ["Ok."]
    found = results(life.upstream.last)
    assert found[0] == REFUSED_RESULT
    assert "Second words" in found[1]
    before = len(life.upstream.seen)
    life.send("Once more.")
    assert len(life.upstream.seen) == before + 1
    assert results(life.upstream.last) == found


def test_the_note_of_a_refused_message_comes_with_the_next_one(life: Life) -> None:
    life.send("First")
    life.write_block("Name: Ann")
    life.upstream.queue(fail(500), *[fail(400, "It was filtered.")] * 4)
    for words in ("Second", "Bad words", "Worse words"):
        life.send(words)
    life.send("Third")
    assert sent(life)[:2] == ["First", "Ok."]
    assert "Name: Ann" in sent(life)[2]
    life.send("Fourth")
    assert sent(life)[-1] == "Fourth"


def test_what_made_room_for_a_refused_message_comes_back(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agents(upstream, tmp_path, context_window=4000) as life:
        life.send("My roses are red. " * 50)
        upstream.queue(fail(413, "Too large."))
        life.send("word " * 3000)
        life.send("Third")
        assert [words[:8] for words in sent(life)] == ["My roses", "Ok.", "Third"]


def test_another_send_under_the_same_id_is_a_new_one(life: Life) -> None:
    life.send("Hi", otid="o1")
    other = life.send("Something else.", otid="o1")
    assert not other.result.is_repeat
    assert life.send("Something else.", otid="o1").result.is_repeat
    assert len(life.upstream.chats) == 2


@pytest.mark.both
def test_a_send_whose_process_is_gone_goes_on_without_its_message_a_second_time(life: Life) -> None:
    life.send("Hi", otid="o1")

    async def undo() -> None:
        async def write(connection: Connection) -> None:
            await connection.run("DELETE FROM run_steps", ())
            await connection.run("UPDATE runs SET state = 'failed', stop = 'error'", ())
            await connection.run(
                "UPDATE exchanges SET state = 'open', ended = NULL, reply = NULL, shown_reply = NULL", ()
            )

        await life.world.store.database.write(write)

    life.world.gateway.call(undo())
    life.upstream.queue(say("Now."))
    assert life.send("Hi", otid="o1").said == ["Now."]
    assert [m["content"] for m in life.upstream.last.messages[1:]] == ["Hi"]
    assert life.words() == ["user: Hi", "assistant: Now."]
    assert [x.state.value for x in life.path()] == ["finished", "finished"]


def test_the_steps_of_a_run_have_a_limit(life: Life) -> None:
    life.upstream.script = lambda seen: call_tools(insert("x"))
    done = life.send("Loop.", max_steps=3)
    assert (done.run.stop, done.run.steps) == ("max_steps", 3)
    assert [word.split(":")[0] for word in life.words()] == ["user", *["assistant", "tool"] * 3]
    life.upstream.script = None
    assert life.send("Stop it.").said == ["Ok."]


def test_tokens_are_counted_for_each_step(life: Life) -> None:
    life.upstream.queue(call_tools(insert("x")), say("Done."))
    done = life.send("Note x.")
    assert done.run.counts.prompt > 0
    rows = life.world.query("SELECT sum(prompt), sum(completion) FROM run_steps")
    assert rows == [(done.run.counts.prompt, done.run.counts.completion)]
    assert life.world.query("SELECT prompt, completion, steps FROM runs") == [(*rows[0], 2)]


def test_a_system_text_that_fills_the_window_ends_the_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agents(upstream, tmp_path, system="word " * 3000, context_window=2000) as life:
        done = life.send("Hi")
        assert (done.run.state, done.run.stop) == (
            RunState.FAILED,
            "context_window_overflow_in_system_prompt",
        )
        assert upstream.chats == []
        assert life.words() == ["user: Hi"]


def test_a_client_that_leaves_while_a_tool_runs_keeps_the_step(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = Gate()

    async def hang(self: MemoryTools, call: RunTool) -> ToolAnswer:
        began.open()
        await asyncio.Event().wait()
        raise AssertionError

    life.upstream.queue(call_tools(insert("x", "m1"), text="One moment."))
    sink = ListeningSink()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryTools, "run", hang)
        run = life.begin("Note x.", sink)
        began.wait_sync()
        life.leave(sink)
        with pytest.raises(ClientGone):
            run.result(PATIENCE_S)
    interrupted = "tool: Error: the call was interrupted; it may or may not have been done."
    assert life.words() == ["user: Note x.", "assistant: One moment.", interrupted]
    assert life.world.query("SELECT state, stop, steps FROM runs") == [("cancelled", "cancelled", 1)]
    life.send("Go on.")
    messages = life.upstream.last.messages
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[3]["tool_call_id"] == "m1"
    assert life.block().value == ""


def test_a_cancelled_run_keeps_what_its_tools_did(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
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
    life.upstream.queue(call_tools(insert("x", "m1"), search))
    run = life.begin("Note x.")
    began.wait_sync()

    async def cancel() -> object:
        found = await life.world.store.runs.find_newest_run(1, 1)
        assert found is not None
        return await life.agents.live.cancel(found)

    life.world.gateway.call(cancel())
    assert run.result(PATIENCE_S).run.state is RunState.CANCELLED
    life.send("Go on.")
    results = {m["tool_call_id"]: m["content"] for m in life.upstream.last.messages if m["role"] == "tool"}
    assert set(results) == {"m1", "s1"}
    assert (life.block().value == "x") is ("+ 'x'" in results["m1"])


def test_a_send_to_a_conversation_that_is_not_there(life: Life) -> None:
    life.send("Hi")
    name = f"conv-{'0' * 32}"
    with pytest.raises(UnknownId, match=name):
        life.send("Are you there?", conversation_name=name)


@pytest.mark.parametrize("by", ["otid", "is_retry"])
def test_the_first_send_is_recognised_after_the_initial_messages(
    upstream: StrictUpstream, tmp_path: Path, by: str
) -> None:
    first = ({"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ann."})
    with agents(
        upstream, tmp_path, definition=AgentDefinition("react_agent", "", initial_messages=first)
    ) as life:
        again = {"otid": "one"} if by == "otid" else {"is_retry": True}
        life.send("Hi", otid="one")
        assert life.send("Hi", **again).result.is_repeat
        assert life.words() == ["user: Who are you?", "assistant: Ann.", "user: Hi", "assistant: Ok."]


@pytest.mark.both
def test_of_four_first_sends_one_begins_the_conversation(upstream: StrictUpstream, tmp_path: Path) -> None:
    first = ({"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ann."})
    with agents(
        upstream, tmp_path, definition=AgentDefinition("react_agent", "", initial_messages=first)
    ) as life:
        for send in [life.begin(f"Message {n}") for n in range(4)]:
            send.result(PATIENCE_S)
        assert life.words().count("user: Who are you?") == 1
        assert life.words()[:3] == ["user: Who are you?", "assistant: Ann.", "user: Message 0"]


async def _hold(life: Life, disk: Gate, entered: Gate) -> None:
    """Holds the writer until the disk is let go."""

    def wait(_: object) -> None:
        entered.open()
        disk.wait_sync()

    life.world.store.database.writer.submit(wait)


def test_a_run_is_cancelled_while_its_client_reads_nothing(life: Life) -> None:
    """Stopped in the write right before its end is saved, it is saved all the same."""
    blocked, release = Gate(), Gate()

    class SlowSink(ListeningSink):
        async def write(self, data: bytes) -> None:
            blocked.open()
            await release.wait()
            await ListeningSink.write(self, data)

    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    told = {"index": 0, "delta": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}
    life.upstream.queue(raw(b"data: " + orjson.dumps({**chunk, "choices": [told]}) + b"\n\ndata: [DONE]\n\n"))
    run = life.begin("Tell me.", SlowSink())
    blocked.wait_sync()

    async def cancel() -> Run:
        found = await life.world.store.runs.find_newest_run(1, 1)
        assert found is not None
        return await life.agents.live.cancel(found)

    life.world.gateway.call(cancel())
    release.open()
    run.result(PATIENCE_S)
    life.world.settle()
    assert [x.state.value for x in life.path()] == ["finished"]
    assert life.words() == ["user: Tell me.", "assistant: All at once."]
    assert life.send("And now?").said == ["Ok."]


@pytest.mark.sqlite
def test_a_message_that_the_disk_takes_too_late_leaves_no_run(life: Life) -> None:
    life.send("Hi")
    disk, entered = Gate(), Gate()
    life.world.gateway.call(_hold(life, disk, entered))
    entered.wait_sync()
    life.world.gateway.app.services.chat.keeper.open_wait_s = 0.01
    with pytest.raises(GatewayError) as late:
        life.send("Are you there?")
    assert late.value.status == 503
    life.world.gateway.app.services.chat.keeper.open_wait_s = 5.0
    disk.open()
    life.world.settle()
    assert life.world.query("SELECT state FROM runs ORDER BY id") == ["completed", "failed"]
    assert [x.state.value for x in life.path()] == ["finished", "finished"]
    assert life.send("Hello?").said == ["Ok."]


@pytest.mark.both
def test_a_send_waits_for_a_disk_that_is_slow_for_a_moment(upstream: StrictUpstream, tmp_path: Path) -> None:
    assert Limits().step_wait_s >= 5 > Limits().commit_wait_s
    with agents(upstream, tmp_path) as life:
        assert life.agents._with_client.turns.limits.commit_wait_s >= Limits().step_wait_s
