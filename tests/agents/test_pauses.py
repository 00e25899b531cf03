"""Calls that somebody else answers: the run ends, nothing is locked, and a later run goes on with the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.agents.core.call_decision import CallDecision
from gateway.agents.runs import agent_runs
from gateway.core.prompt.result_order import UNANSWERED_RESULT
from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.errors import BadRequest
from gateway.run.sink import ClientGone
from storage.forget_commands import ForgetTarget
from storage.run_records import Run, RunState
from tests.agents.agent_world import AgentWorld, ListeningSink, SendOutcome, serve_agent
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, insert, say
from tests.patience import PATIENCE_S

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[AgentWorld]:
    with serve_agent(upstream, tmp_path) as made:
        yield made


def ask(world: AgentWorld, *calls: Call, text: str = "Weather?") -> SendOutcome:
    world.upstream.queue(call_tools(*calls))
    return world.send(text, client_tools=(WEATHER,))


def answer(world: AgentWorld, **results: str) -> SendOutcome:
    decisions = tuple(CallDecision(id, result={"content": text}) for id, text in results.items())
    return world.send(messages=(), decisions=decisions, client_tools=(WEATHER,))


def roles(world: AgentWorld) -> list[Any]:
    return [m["role"] for m in world.upstream.last.messages]


def test_a_call_of_the_clients_ends_the_run_and_its_answer_goes_on(world: AgentWorld) -> None:
    paused = ask(world, Call("get_weather", {}, "w1"))
    assert (paused.run.state, paused.run.stop) == (RunState.COMPLETED, "requires_approval")
    world.upstream.queue(say("Sunny."))
    done = answer(world, w1="sunny")
    assert done.texts == ["Sunny."]
    assert done.run.uid != paused.run.uid
    assert roles(world) == ["system", "user", "assistant", "tool"]
    assert world.upstream.last.messages[-1]["content"] == "sunny"
    assert world.list_messages() == [
        "user: Weather?",
        "assistant: get_weather",
        "tool: sunny",
        "assistant: Sunny.",
    ]


def test_gateway_tools_run_at_once_next_to_client_tools(world: AgentWorld) -> None:
    paused = ask(world, insert("Asks for the weather.", "m1"), Call("get_weather", {}, "w1"))
    assert paused.run.stop == "requires_approval"
    assert len(world.upstream.chats) == 1
    world.upstream.queue(say("Sunny."))
    assert answer(world, w1="sunny").texts == ["Sunny."]
    results = [m for m in world.upstream.last.messages if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in results] == ["m1", "w1"]
    assert "Asks for the weather." in results[0]["content"]
    assert world.get_block().value == "Asks for the weather."


def test_a_call_beside_client_tools_is_not_run_again_after_its_result_is_erased(world: AgentWorld) -> None:
    world.send("Hi")
    ask(world, insert("Asks for the weather.", "m1"), Call("get_weather", {}, "w1"))
    first = ForgetTarget(message_seqs=[world.load_path()[0].seq])
    world.world.gateway.call(world.world.store.forgetting.forget(1, first))
    world.upstream.queue(say("Sunny."))
    assert answer(world, w1="sunny").texts == ["Sunny."]
    results = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
    assert results == [INTERRUPTED_RESULT, "sunny"]
    assert world.get_block().value == "Asks for the weather."


def test_a_plain_message_meanwhile_goes_on(world: AgentWorld) -> None:
    ask(world, Call("get_weather", {}, "w1"))
    assert world.send("Never mind.").texts == ["Ok."]
    assert roles(world) == ["system", "user", "assistant", "tool", "user"]
    with pytest.raises(BadRequest, match="No tool call is currently awaiting approval"):
        answer(world, w1="sunny")


def test_a_plain_message_comes_with_the_results_of_calls_next_to_those_that_wait(world: AgentWorld) -> None:
    ask(world, insert("Asks for the weather.", "m1"), *(Call("get_weather", {}, id) for id in ("w1", "w2")))
    assert answer(world, w2="sunny").run.stop == "requires_approval"
    world.send("Never mind.")
    results = {m["tool_call_id"]: m["content"] for m in world.upstream.last.messages if m["role"] == "tool"}
    assert "Asks for the weather." in results["m1"]
    assert (results["w1"], results["w2"]) == (UNANSWERED_RESULT, "sunny")
    assert [m["role"] for m in world.upstream.last.messages][-1] == "user"


def test_an_answer_to_what_does_not_wait_is_refused(world: AgentWorld) -> None:
    with pytest.raises(BadRequest, match="No tool call is currently awaiting approval"):
        answer(world, w1="sunny")
    ask(world, Call("get_weather", {}, "w1"))
    with pytest.raises(BadRequest, match="'w2' does not wait"):
        answer(world, w2="sunny")
    with pytest.raises(BadRequest, match="Invalid tool call IDs: 'w1' does not wait"):
        world.send(messages=(), decisions=(CallDecision("w1"),))
    world.upstream.queue(say("Sunny."))
    assert answer(world, w1="sunny").texts == ["Sunny."]


def test_part_of_the_answers_waits_for_the_rest(world: AgentWorld) -> None:
    ask(world, Call("get_weather", {"city": "Paris"}, "w1"), Call("get_weather", {"city": "Rome"}, "w2"))
    assert answer(world, w2="rainy").run.stop == "requires_approval"
    assert len(world.upstream.chats) == 1
    with pytest.raises(BadRequest, match="'w2' does not wait"):
        answer(world, w2="dry")
    world.upstream.queue(say("Both."))
    assert answer(world, w1="sunny").texts == ["Both."]
    results = [(m["tool_call_id"], m["content"]) for m in world.upstream.last.messages if m["role"] == "tool"]
    assert results == [("w1", "sunny"), ("w2", "rainy")]


def test_a_send_with_part_of_the_answers_returns_the_run_that_waits(world: AgentWorld) -> None:
    """Another run may have been accepted meanwhile, which waits in the queue after the answer."""
    paused = ask(world, Call("get_weather", {}, "w1"), Call("get_weather", {"city": "Rome"}, "w2"))

    async def accept() -> None:
        await world.world.store.runs.create(Run(0, "later", 1, 1, RunState.CREATED, 5.0, background=True))

    world.world.gateway.call(accept())
    run = answer(world, w2="rainy").run
    assert (run.uid, run.stop) == (paused.run.uid, "requires_approval")


def test_part_of_the_answers_costs_nothing_again(world: AgentWorld) -> None:
    asked = ask(world, Call("get_weather", {}, "w1"), Call("get_weather", {"city": "Rome"}, "w2"))
    told = [(asked.run.steps, asked.run.counts)]
    for id in ("w1", "w2"):
        run = answer(world, **{id: "dry"}).run
        told.append((run.steps, run.counts))
    prompts = world.world.query("SELECT prompt FROM runs ORDER BY id")
    assert [(steps, counts.prompt) for steps, counts in told] == [(1, prompts[0]), (0, 0), (1, prompts[1])]


def test_an_answer_is_counted_with_the_run_that_it_begins(world: AgentWorld) -> None:
    ask(world, Call("get_weather", {}, "w1"))
    answer(world, w1="sunny")
    assert world.world.query("SELECT steps, stop FROM runs ORDER BY id") == [
        (1, "requires_approval"),
        (1, "end_turn"),
    ]


@pytest.mark.parametrize("shown", ["", "text"])
def test_an_answer_that_the_clients_library_sends_again_is_taken_once(world: AgentWorld, shown: str) -> None:
    """After a lost connection it has no id of its own, only the header that says so."""
    ask(world, Call("get_weather", {}, "w1"))
    given: Any = {"decisions": (CallDecision("w1", result={"content": "sunny"}),), "client_tools": (WEATHER,)}
    gate, sink = Gate(), ListeningSink()
    hold: Any = {"hold_after": {2: gate}} if shown else {"hold_before_headers": gate}
    world.upstream.queue(say("text goes on", tokens=["text", " goes on"], **hold), say("Sunny."))
    arrived = world.upstream.request_gate(2)
    first = world.begin_send("", sink, messages=(), **given)
    (sink.text_gate if shown else arrived).wait_sync()
    world.close_client(sink)
    with pytest.raises(ClientGone):
        first.result(PATIENCE_S)
    gate.open()
    # What was shown of a reply is the reply; else the model is asked again, with the answer once.
    again = world.send(messages=(), is_retry=True, **given)
    assert again.texts == [shown or "Sunny."]
    repeat = world.send(messages=(), is_retry=True, **given)
    assert (repeat.result.is_repeat, repeat.texts) == (True, again.texts)
    assert world.list_messages()[2:] == ["tool: sunny", f"assistant: {shown or 'Sunny.'}"]


def test_a_run_that_begins_with_an_answer_is_cancelled(world: AgentWorld) -> None:
    ask(world, Call("get_weather", {}, "w1"))
    gate = Gate()
    world.upstream.queue(say("Never.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(2)
    decisions = (CallDecision("w1", result={"content": "sunny"}),)
    run = world.begin_send(messages=(), decisions=decisions, client_tools=(WEATHER,))
    arrived.wait_sync()

    world.cancel_newest_run()
    done = run.result(PATIENCE_S)  # while the upstream says nothing
    assert (done.run.state, done.run.stop) == (RunState.CANCELLED, "cancelled")
    gate.open()


def test_an_answer_whose_run_is_cancelled_as_it_begins_goes_with_the_next_message(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(world, Call("get_weather", {}, "w1"))

    async def cancelled(_: object) -> bool:
        run = await world.world.store.runs.find_newest_run(1, 1)
        assert run is not None
        return not await world.agent_runs.live.cancel(run)

    with monkeypatch.context() as patch:
        patch.setattr(agent_runs, "is_overfull", cancelled)
        assert answer(world, w1="sunny").run.stop == "cancelled"
    assert len(world.upstream.chats) == 1
    world.send("And now?")
    assert roles(world) == ["system", "user", "assistant", "tool", "user"]
    assert world.upstream.last.messages[3]["content"] == "sunny"


def test_an_answer_is_known_whatever_the_run_has_called_before(world: AgentWorld) -> None:
    world.send("Hi")
    ask(world, Call("get_weather", {}, "w1"), Call("get_weather", {"city": "Rome"}, "w2"))

    async def call_much() -> None:
        (step,) = (await world.world.store.runs.load_waiting_steps([1], "default")).values()
        for n in range(1000):
            await world.world.store.run_texts.add_text(
                1, step.run_row, "result", 1000 + n, b'{"content": "done"}'
            )

    world.world.gateway.call(call_much())
    assert answer(world, w2="rainy").run.stop == "requires_approval"
    world.upstream.queue(say("Both."))
    assert answer(world, w1="sunny").texts == ["Both."]


def test_an_answer_sent_again_is_no_answer_to_what_waits_now(world: AgentWorld) -> None:
    """Some models count the calls of each reply again."""
    ask(world, Call("get_weather", {}, "w1"))
    world.upstream.queue(call_tools(Call("get_weather", {}, "w1")), say("Rainy."))
    assert answer(world, w1="sunny").run.stop == "requires_approval"
    decisions = (CallDecision("w1", result={"content": "rainy"}),)
    assert world.send(messages=(), decisions=decisions, is_retry=True).texts == ["Rainy."]
