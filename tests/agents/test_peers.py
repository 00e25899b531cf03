"""Agents that speak to one another, over the client of the agents API and a scripted upstream."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import orjson
import pytest
from letta_client.types import AgentState
from msgspec.structs import replace

from gateway.core.turn.round_reader import MAX_CALLS
from gateway.settings import UpstreamSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.agents.test_background import ended
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.sdk import agent as profile
from tests.patience import PATIENCE_S, SHORT_S, becomes
from tests.server import QUIET

ASK, ASK_TAGGED = "send_message_to_agent_and_wait_for_reply", "send_message_to_agents_matching_tags"
TELL = "send_message_to_agent_async"
SPEAKING = [ASK, TELL, ASK_TAGGED]


@dataclass
class Stage:
    """Agents, each with the replies that its model gives, in their order; then it says "Ok."."""

    world: LettaWorld
    parts: dict[str, deque[Reply]] = field(default_factory=lambda: defaultdict(deque))
    heard: dict[str, list[UpstreamRequest]] = field(default_factory=lambda: defaultdict(list))
    agents: dict[str, AgentState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world.upstream.script = self._play

    def _play(self, request: UpstreamRequest) -> Reply | None:
        name = str(request.messages[0]["content"]).split()[0]
        self.heard[name].append(request)
        return self.parts[name].popleft() if self.parts[name] else None

    def agent(self, name: str, *replies: Reply, **options: Any) -> str:
        """Makes an agent. Returns its id."""
        options = {"model": "openai/m", "tools": SPEAKING, "include_base_tools": False, **options}
        made = self.world.letta.agents.create(name=name, system=f"{name} speaks.", **options)
        self.agents[name] = made
        self.plays(name, *replies)
        return made.id

    def plays(self, name: str, *replies: Reply) -> None:
        self.parts[name].extend(replies)

    def send(self, name: str, text: str = "Begin.") -> Any:
        return self.world.letta.agents.messages.create(self.agents[name].id, input=text)

    def told(self, name: str, turn: int = -1) -> list[str]:
        """The results of tools that a model was sent with one of its calls."""
        return [m["content"] for m in self.heard[name][turn].messages if m["role"] == "tool"]

    def runs(self) -> list[Any]:
        """(agent, state, depth, agent of the parent) of all runs, oldest first."""
        names = {made.id.removeprefix("agent-"): name for name, made in self.agents.items()}
        rows = self.world.world.query(
            "SELECT a.uid, r.state, r.depth, b.uid FROM runs r JOIN agents a ON a.id = r.agent"
            " LEFT JOIN runs p ON p.id = r.parent LEFT JOIN agents b ON b.id = p.agent ORDER BY r.id"
        )
        return [(names[uid], state, depth, names.get(above)) for uid, state, depth, above in rows]


def ask(other: str, text: str = "How are you?", id: str | None = None) -> Call:
    return Call(ASK, {"message": text, "other_agent_id": other}, id)


def ask_tagged(every: Sequence[str] = (), some: Sequence[str] = (), text: str = "Report.") -> Call:
    return Call(ASK_TAGGED, {"message": text, "match_all": [*every], "match_some": [*some]})


@contextmanager
def staged(upstream: StrictUpstream, folder: Path, *profiles: Any, **options: Any) -> Iterator[Stage]:
    with letta(upstream, folder, *profiles, **options) as world:
        yield Stage(world)


@pytest.fixture
def stage(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Stage]:
    with staged(upstream, tmp_path) as made:
        yield made


def aside(*sends: Any) -> list[Future[Any]]:
    """Begins these at the same time."""
    pool = ThreadPoolExecutor(len(sends))
    found = [pool.submit(each) for each in sends]
    pool.shutdown(wait=False)
    return found


def test_an_agent_asks_another(stage: Stage) -> None:
    b = stage.agent("bob", say("I am well."))
    a = stage.agent("ann", call_tools(ask(b)), say("Bob is well."))
    assert stage.send("ann").messages[-1].content == "Bob is well."
    assert stage.told("ann") == ["I am well."]
    (heard,) = spoken(stage.world.letta.agents.messages.list(b, order="asc").items)[:1]
    assert heard.message_type == "system_message"
    assert heard.content == (
        f"Message from the agent ann ({a}). It waits for your answer: what you say in this turn.\n\nHow are you?"
    )
    assert heard.sender_id == a
    # Whoever pays for the one pays for the other.
    assert stage.heard["bob"][0].headers["authorization"] == "Bearer sk-app"
    assert stage.runs() == [("ann", "completed", 0, None), ("bob", "completed", 1, "ann")]


@pytest.mark.parametrize("tool", [ASK, TELL])
@pytest.mark.parametrize("is_chat", [False, True])
def test_the_callers_key_goes_to_the_upstream_that_the_caller_asked_alone(
    upstream: StrictUpstream, tmp_path: Path, tool: str, is_chat: bool
) -> None:
    with StrictUpstream() as other:
        upstreams = tuple(
            UpstreamSettings(name, base_url=each.base_url, takes={"stream_usage": True})
            for name, each in (("up", upstream), ("other", other))
        )
        with staged(upstream, tmp_path, upstreams=upstreams) as stage:
            other.script = upstream.script
            c = stage.agent("cid", model="up/m")
            b = stage.agent("bob", call_tools(replace(ask(c), name=tool)), model="other/m")
            stage.agent("ann", call_tools(replace(ask(b), name=tool)), model="up/m")
            if is_chat:
                stage.world.world.chat(model="agent/ann").say("Begin.")
            else:
                stage.send("ann")
            becomes(lambda: stage.heard["cid"] and len(other.chats) == 2)
            assert not any("authorization" in request.headers for request in other.requests)
            for name in ("ann", "cid"):
                assert stage.heard[name][-1].headers["authorization"] == "Bearer sk-app"


def test_each_of_the_most_calls_in_one_reply_has_a_result_of_its_own(stage: Stage) -> None:
    stage.agent("ann", call_tools(*(ask(f"nobody {n}", id=f"c{n}") for n in range(MAX_CALLS))), say("Done."))
    stage.send("ann")
    assert stage.told("ann") == [f"Error: there is no agent 'nobody {n}'" for n in range(MAX_CALLS)]


def test_an_agent_is_named_by_its_name_as_well(stage: Stage) -> None:
    stage.agent("bob", say("Yes."), say("Yes, again."))
    stage.agent("ann", call_tools(ask("bob")), say("."), call_tools(ask("nobody")), say("."))
    stage.send("ann")
    assert stage.told("ann") == ["Yes."]
    stage.agent("bob")
    stage.plays("ann", call_tools(ask("bob")))
    stage.send("ann")
    assert stage.told("ann")[1] == "Error: there is no agent 'nobody'"
    stage.send("ann")
    assert "Two agents are named 'bob'" in stage.told("ann")[2]


def test_a_message_that_an_agent_sends_by_a_tool_is_its_answer(stage: Stage) -> None:
    words = Call("send_message", {"thinking": "", "request_heartbeat": False, "message": "By tool."})
    b = stage.agent("bob", call_tools(words), agent_type="memgpt_agent", tools=["send_message"])
    stage.agent("ann", call_tools(ask(b)))
    stage.send("ann")
    assert stage.told("ann") == ["By tool."]


def test_an_answer_of_several_steps_is_all_that_was_said(stage: Stage) -> None:
    c = stage.agent("cid", say("Seven."))
    b = stage.agent("bob", call_tools(ask(c, "How many?"), text="I ask."), say("Cid says seven."))
    stage.agent("ann", call_tools(ask(b)))
    stage.send("ann")
    assert stage.told("ann") == ["I ask.\n\nCid says seven."]
    assert [(name, depth, above) for name, _, depth, above in stage.runs()] == [
        ("ann", 0, None),
        ("bob", 1, "ann"),
        ("cid", 2, "bob"),
    ]


def test_all_agents_with_certain_tags_are_asked(stage: Stage) -> None:
    stage.agent("ann", call_tools(ask_tagged(["team"], ["x", "y"])), tags=["team", "x"])
    b = stage.agent("bob", say("B."), tags=["team", "x"])
    c = stage.agent("cid", fail(500), tags=["team", "y", "z"])
    d = stage.agent("dan", say("D."), tags=["y", "team"])
    for name, tags in (("eve", ["team"]), ("fay", ["x", "y"]), ("gus", [])):
        stage.agent(name, tags=tags)
    stage.agent("hal", tags=["team", "x"], hidden=True)
    stage.send("ann")
    (told,) = stage.told("ann")
    assert orjson.loads(told) == [
        {"agent_id": b, "agent_name": "bob", "response": "B."},
        {
            "agent_id": c,
            "agent_name": "cid",
            "error": "cid did not finish its turn: llm_api_error",
            "type": "failed",
        },
        {"agent_id": d, "agent_name": "dan", "response": "D."},
    ]
    assert not any(stage.heard[name] for name in ("eve", "fay", "gus", "hal"))


@pytest.mark.parametrize(
    ("every", "some", "found"),
    [
        ([], [], ["bob", "cid"]),
        (["x"], [], ["bob"]),
        ([], ["x", "y"], ["bob", "cid"]),
        (["x"], ["y"], []),
        (["nothing"], [], []),
    ],
)
def test_tags_that_ask_for_nothing(stage: Stage, every: list[str], some: list[str], found: list[str]) -> None:
    # The agent that is made with it only reads.
    stage.agent("bob", tags=["x"], enable_sleeptime=True)
    stage.agent("cid", tags=["y"])
    stage.agent("ann", call_tools(ask_tagged(every, some)), tags=["x", "y"])
    stage.send("ann")
    (told,) = stage.told("ann")
    if found:
        assert [each["agent_name"] for each in orjson.loads(told)] == found
    else:
        assert told == "Error: no other agent has these tags. Nothing was sent."


def test_more_tags_than_one_statement_looks_for(stage: Stage) -> None:
    """The first 64 of the tags are no reason to reach an agent, nor is their absence one to pass it over."""
    tags = [f"t{n:02}" for n in range(70)]
    stage.agent("bob", tags=tags)
    stage.agent("cid", tags=tags[:64])
    stage.agent("dan", tags=tags[-1:])
    stage.agent("ann", call_tools(ask_tagged(tags)), say("."), call_tools(ask_tagged([], tags)))
    for n in range(2):
        stage.send("ann", f"Begin {n}.")
    every, some = ([each["agent_name"] for each in orjson.loads(told)] for told in stage.told("ann"))
    assert every == ["bob"]
    assert some == ["bob", "cid", "dan"]


def test_at_most_so_many_agents_are_asked_and_no_answer_is_missing(stage: Stage) -> None:
    for n in range(34):
        stage.agent(f"agent{n}", say("Long. " * 1000), tags=["t"], tools=[])
    stage.agent("ann", call_tools(ask_tagged(["t"])), context_window_limit=8000)
    stage.send("ann")
    (told,) = stage.told("ann")
    answers = orjson.loads(told)
    assert [each["agent_name"] for each in answers] == [f"agent{n}" for n in range(32)]
    assert all(each["response"].startswith("Long.") and "cut off" in each["response"] for each in answers)
    assert len(told) < 16_000


@pytest.mark.parametrize("text", ['"' * 9000, "\n" * 9000, "é" * 9000], ids=["quotes", "lines", "accents"])
def test_answers_are_measured_as_the_model_reads_them(stage: Stage, text: str) -> None:
    for n in range(2):
        stage.agent(f"agent{n}", say(f"{text}."), tags=["t"], tools=[])
    stage.agent("ann", call_tools(ask_tagged(["t"])), context_window_limit=8000)
    stage.send("ann")
    (told,) = stage.told("ann")
    assert 6_000 < len(told) <= 6_400  # a fifth of the window
    assert all("more characters were cut off" in each["response"] for each in orjson.loads(told))


def test_a_long_answer_of_one_agent_is_cut_as_any_result(stage: Stage) -> None:
    b = stage.agent("bob", say("x" * 9000), tools=[])
    stage.agent("ann", call_tools(ask(b)), context_window_limit=8000)
    stage.send("ann")
    assert stage.told("ann") == ["x" * 6_400 + "\n[2600 more characters were cut off.]"]


def test_users_memories_are_not_asked_by_tags(upstream: StrictUpstream, tmp_path: Path) -> None:
    with staged(upstream, tmp_path, profile()) as stage:
        stage.world.world.chat(model="agent/helper", user="zoe").say("Hello.")
        stage.world.world.settle()
        (zoe,) = stage.world.letta.agents.list(tags=["user:zoe"])
        stage.agent("ann", call_tools(ask_tagged()), say("."), call_tools(ask(zoe.id)))
        stage.send("ann")
        assert stage.told("ann") == ["Error: no other agent has these tags. Nothing was sent."]
        stage.send("ann")
        assert stage.told("ann")[-1] == "Ok."


def test_another_project_is_not_reached(upstream: StrictUpstream, tmp_path: Path) -> None:
    with staged(upstream, tmp_path, server={"key": "mg-" + "a" * 32}) as stage:
        gateway = stage.world.world.gateway
        keys = {
            name: gateway.call(gateway.app.services.store.keys.create(name, "test"))[1]
            for name in ("theirs", "ours")
        }
        stage.world.letta = stage.world.make_client(keys["theirs"])
        foreign = stage.agent("bob", tags=["t"])
        stage.world.letta = stage.world.make_client(keys["ours"])
        tagged = ask_tagged(["t"])
        stage.agent("ann", call_tools(ask(foreign, id="1"), ask("bob", id="2"), replace(tagged, id="3")))
        stage.send("ann")
        assert stage.told("ann") == [
            f"Error: there is no agent '{foreign}'",
            "Error: there is no agent 'bob'",
            "Error: no other agent has these tags. Nothing was sent.",
        ]
        assert not stage.heard["bob"]


# -- cycles


DEADLOCK = "waits for the end of this turn, so neither would ever go on. Nothing was sent"


def test_an_agent_that_asks_itself(stage: Stage) -> None:
    a = stage.agent("ann")
    stage.plays("ann", call_tools(ask(a)), say("Silly."))
    assert stage.send("ann").messages[-1].content == "Silly."
    assert stage.told("ann") == [f"Error: ann {DEADLOCK}"]


def test_two_agents_that_wait_for_each_other_get_an_error(stage: Stage) -> None:
    b = stage.agent("bob", call_tools(ask("ann", "And you?")), say("I cannot ask."))
    stage.agent("ann", call_tools(ask(b)), say("Done."))
    assert stage.send("ann").messages[-1].content == "Done."
    assert stage.told("bob") == [f"Error: ann {DEADLOCK}"]
    assert stage.told("ann") == ["I cannot ask."]


def test_a_cycle_by_tags_and_side_by_side(stage: Stage) -> None:
    stage.agent("bob", call_tools(ask("ann")), say("B."), tags=["t"])
    stage.agent("cid", call_tools(ask("ann")), say("C."), tags=["t"])
    stage.agent("ann", call_tools(ask_tagged(["t"])), say("Done."))
    assert stage.send("ann").messages[-1].content == "Done."
    assert stage.told("bob") == stage.told("cid") == [f"Error: ann {DEADLOCK}"]
    assert [each["response"] for each in orjson.loads(stage.told("ann")[0])] == ["B.", "C."]


def test_a_cycle_of_parallel_calls(stage: Stage) -> None:
    """A asks B and C, which ask one another: who is second is refused, and everybody comes to an end."""
    gate = Gate()
    stage.agent("bob", call_tools(ask("cid"), hold_before_headers=gate), say("B."))
    stage.agent("cid", call_tools(ask("bob"), hold_before_headers=gate), say("C."))
    stage.agent("ann", call_tools(ask("bob", id="1"), ask("cid", id="2")), say("Done."))
    (run,) = aside(lambda: stage.send("ann"))
    stage.world.upstream.request_gate(3).wait_sync()
    gate.open()
    assert run.result(PATIENCE_S).messages[-1].content == "Done."
    results = [stage.told(name, 1)[0] for name in ("bob", "cid")]
    assert sorted(DEADLOCK in each for each in results) == [False, True]


def test_two_runs_that_begin_a_cycle_at_the_same_moment(stage: Stage) -> None:
    gate = Gate()
    stage.agent("bob", call_tools(ask("ann"), hold_before_headers=gate), say("B."))
    stage.agent("ann", call_tools(ask("bob"), hold_before_headers=gate), say("A."))
    runs = aside(lambda: stage.send("ann"), lambda: stage.send("bob"))
    stage.world.upstream.request_gate(2).wait_sync()
    gate.open()
    assert [run.result(PATIENCE_S).messages[-1].content for run in runs] == ["A.", "B."]
    results = [stage.told(name, 1)[0] for name in ("ann", "bob")]
    assert sorted(DEADLOCK in each for each in results) == [False, True]


def test_a_cycle_over_chat_completions(stage: Stage) -> None:
    a = stage.agent("ann")
    b = stage.agent("bob", call_tools(ask(a)), say("I cannot ask."))
    stage.plays("ann", call_tools(ask(b), ask(a)), say("Done."))
    assert stage.world.world.chat(model="agent/ann").say("Begin.") == "Done."
    assert stage.told("ann") == ["I cannot ask.", f"Error: ann {DEADLOCK}"]
    assert stage.told("bob") == [f"Error: ann {DEADLOCK}"]
    assert stage.runs() == [("bob", "completed", 1, None)]
    assert stage.heard["bob"][0].headers["authorization"] == "Bearer sk-app"


def test_a_wait_that_closes_no_cycle_queues(stage: Stage) -> None:
    """B is asked while a run of its own goes on: it answers after that."""
    gate = Gate()
    stage.agent("bob", say("First.", hold_before_headers=gate), say("Second."))
    stage.agent("ann", call_tools(ask("bob")), say("Done."))
    runs = aside(lambda: stage.send("bob"))
    stage.world.upstream.request_gate(1).wait_sync()
    runs += aside(lambda: stage.send("ann"))
    stage.world.upstream.request_gate(2).wait_sync()
    gate.open()
    assert [run.result(PATIENCE_S).messages[-1].content for run in runs] == ["First.", "Done."]
    assert stage.told("ann") == ["Second."]


def test_messages_go_four_agents_deep(stage: Stage) -> None:
    names = ["ann", "bob", "cid", "dan", "eve", "fay"]
    for name, other in zip(names, [*names[1:], None], strict=True):
        stage.agent(name, *([call_tools(ask(other))] if other else []), say(f"{name} is done."))
    stage.send("ann")
    assert [(name, depth) for name, _, depth, _ in stage.runs()] == [(n, d) for d, n in enumerate(names[:5])]
    assert stage.told("eve") == [
        "Error: messages between agents go 4 agents deep at most, and this turn is the last. Nothing was sent"
    ]


# -- what goes wrong


def test_an_answer_that_comes_too_late(upstream: StrictUpstream, tmp_path: Path) -> None:
    with staged(upstream, tmp_path, limits=replace(QUIET, answer_wait_s=SHORT_S)) as stage:
        gate = Gate()
        b = stage.agent("bob", call_tools(ask("ann"), hold_before_headers=gate), say("Here."))
        stage.agent("ann", call_tools(ask(b)), say("Never mind."))
        assert stage.send("ann").messages[-1].content == "Never mind."
        assert "did not answer within 0 s. It has the message, and goes on" in stage.told("ann")[0]
        stage.plays("ann", say("What is it?"))
        gate.open()
        # Nobody waits for it any more, so it may ask whoever asked it.
        stage.world.world.settle()
        assert stage.told("bob") == ["What is it?"]
        assert [state for _, state, _, _ in stage.runs()] == ["completed"] * 3


def test_a_cancel_ends_the_waiting_and_the_answering_run(stage: Stage) -> None:
    gate = Gate()
    b = stage.agent("bob", say("Never.", hold_before_headers=gate))
    a = stage.agent("ann", call_tools(ask(b)))
    (run,) = aside(lambda: stage.send("ann"))
    stage.world.upstream.request_gate(2).wait_sync()
    stage.world.letta.agents.messages.cancel(a)
    assert run.result(PATIENCE_S).stop_reason.stop_reason == "cancelled"
    stage.heard["bob"][0].gone.wait_sync()
    assert [(name, state) for name, state, _, _ in stage.runs()] == [
        ("ann", "cancelled"),
        ("bob", "cancelled"),
    ]
    # The next turn of both goes on after what stands.
    assert stage.send("bob").messages[-1].content == "Ok."
    assert stage.send("ann").messages[-1].content == "Ok."


def test_a_run_that_waits_in_a_queue_for_its_answer_can_be_cancelled(stage: Stage) -> None:
    gate = Gate()
    stage.agent("bob", say("Mine.", hold_before_headers=gate))
    a = stage.agent("ann", call_tools(ask("bob")))
    own, asked = *aside(lambda: stage.send("bob")), None
    stage.world.upstream.request_gate(1).wait_sync()
    (asked,) = aside(lambda: stage.send("ann"))
    stage.world.upstream.request_gate(2).wait_sync()
    stage.world.letta.agents.messages.cancel(a)
    assert asked.result(PATIENCE_S).stop_reason.stop_reason == "cancelled"
    gate.open()
    assert own.result(PATIENCE_S).messages[-1].content == "Mine."
    stage.world.world.settle()
    assert len(stage.heard["bob"]) == 1


def test_an_agent_whose_queue_is_full_is_an_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.agents.runs.send_queue.MAX_SENDS", 1)
    gate = Gate()
    stage.agent("bob", say("Busy.", hold_before_headers=gate))
    stage.agent("ann", call_tools(ask("bob")))
    (own,) = aside(lambda: stage.send("bob"))
    stage.world.upstream.request_gate(1).wait_sync()
    stage.send("ann")
    assert stage.told("ann") == ["Error: 1 sends wait for this conversation already."]
    gate.open()
    own.result(PATIENCE_S)


def test_an_agent_that_was_deleted(stage: Stage) -> None:
    b = stage.agent("bob")
    stage.agent("ann", call_tools(ask(b)))
    stage.world.letta.agents.delete(b)
    stage.send("ann")
    assert stage.told("ann") == [f"Error: there is no agent '{b}'"]


def test_an_agent_that_is_deleted_while_it_answers(stage: Stage) -> None:
    gate = Gate()
    b = stage.agent("bob", say("Lost.", hold_before_headers=gate))
    stage.agent("ann", call_tools(ask(b)), say("Done."))
    (run,) = aside(lambda: stage.send("ann"))
    stage.world.upstream.request_gate(2).wait_sync()
    stage.world.letta.agents.delete(b)
    gate.open()
    assert run.result(PATIENCE_S).messages[-1].content == "Done."
    assert stage.told("ann")[0].startswith("Error: bob ")


def approving(stage: Stage, name: str, *replies: Reply) -> str:
    rules: Any = [{"type": "requires_approval", "tool_name": ASK}]
    return stage.agent(name, *replies, tool_rules=rules)


def test_an_agent_whose_calls_wait_is_left_in_peace(stage: Stage) -> None:
    b = approving(stage, "bob", call_tools(ask("cid", id="call_1"), text="May I?"), say("Thanks."))
    stage.agent("cid")
    stage.agent("ann", call_tools(ask(b)))
    stage.send("bob")
    stage.send("ann")
    assert stage.told("ann") == [
        "Error: bob waits for a person's answer to calls that it has made. Nothing was sent; try again later"
    ]
    # What the person has to say still counts.
    decision: Any = {"type": "approval", "tool_call_id": "call_1", "approve": True}
    answer: Any = [{"type": "approval", "approvals": [decision]}]
    assert stage.world.letta.agents.messages.create(b, messages=answer).messages[-1].content == "Thanks."


def test_only_calls_of_its_own_conversation_are_in_the_way(stage: Stage) -> None:
    """Messages of agents go to `default`, whatever goes on in other conversations."""
    letta, pause = stage.world.letta, call_tools(ask("cid", id="call_1"))
    b = approving(stage, "bob", pause, say("Hm."), say("Freed."), pause, say("Thanks."))
    stage.agent("cid")
    beside = letta.conversations.create(agent_id=b)
    stage.send("bob")
    list(letta.conversations.messages.create(beside.id, input="Hi"))
    stage.agent("ann", call_tools(tell(b)), say("Told."), call_tools(tell(b)), say("Told."))
    stage.send("ann")
    (refused,) = stage.told("ann")
    assert "bob waits for a person's answer" in refused
    stage.send("bob")
    list(letta.conversations.messages.create(beside.id, input="Hi again"))
    assert letta.agents.retrieve(b).pending_approval is not None
    stage.send("ann")
    assert "bob waits" not in stage.told("ann")[-1]


def test_an_agent_that_has_to_wait_for_a_person(stage: Stage) -> None:
    b = approving(stage, "bob", call_tools(ask("cid"), text="May I?"))
    stage.agent("cid")
    stage.agent("ann", call_tools(ask(b)), say("He asks you."))
    stage.send("ann")
    assert stage.told("ann") == [
        "Error: bob has no answer yet: a person has to answer calls that it has made. So far it has said: May I?"
    ]
    assert stage.world.letta.agents.retrieve(b).pending_approval is not None


def test_the_tools_are_given_and_taken(stage: Stage) -> None:
    a = stage.agent("ann", tools=[], extra_body={"include_multi_agent_tools": True})
    assert [each.name for each in stage.world.letta.agents.tools.list(a)] == SPEAKING
    status, shown = stage.world.ask("PATCH", f"/v1/agents/{a}", {"include_multi_agent_tools": False})
    assert (status, shown["tools"]) == (200, [])
    status, shown = stage.world.ask("PATCH", f"/v1/agents/{a}", {"include_multi_agent_tools": True})
    assert [each["name"] for each in shown["tools"]] == SPEAKING
    assert {each["tool_type"] for each in shown["tools"]} == {"letta_multi_agent_core"}


# -- messages without an answer


def tell(other: str, text: str = "Note this.", id: str | None = None) -> Call:
    return Call(TELL, {"message": text, "other_agent_id": other}, id)


def settled(stage: Stage, runs: int) -> list[Any]:
    """The runs, when so many have ended."""

    def look() -> list[Any] | None:
        found = stage.runs()
        ended = [state in ("completed", "failed", "cancelled") for _, state, _, _ in found]
        return found if len(ended) == runs and all(ended) else None

    return becomes(look)


def test_a_message_without_an_answer(stage: Stage) -> None:
    gate = Gate()
    b = stage.agent("bob", say("Noted.", hold_before_headers=gate))
    a = stage.agent("ann", call_tools(tell(b)), say("Told him."))
    # The sender goes on before the other one has begun to answer.
    assert stage.send("ann").messages[-1].content == "Told him."
    assert stage.told("ann") == ["Sent to bob."]
    gate.open()
    assert settled(stage, 2) == [("ann", "completed", 0, None), ("bob", "completed", 1, None)]
    (heard,) = spoken(stage.world.letta.agents.messages.list(b, order="asc").items)[:1]
    assert heard.content == f"Message from the agent ann ({a}). It waits for no answer.\n\nNote this."
    (run,) = stage.world.letta.runs.list(agent_id=b)
    assert run.background
    assert stage.heard["bob"][0].headers["authorization"] == "Bearer sk-app"


def test_messages_without_an_answer_go_four_agents_deep(stage: Stage) -> None:
    """Two agents that always answer one another come to an end."""
    stage.agent("ann", *(call_tools(tell("bob")) if n % 2 == 0 else say(".") for n in range(12)))
    stage.agent("bob", *(call_tools(tell("ann")) if n % 2 == 0 else say(".") for n in range(12)))
    stage.send("ann")
    runs = settled(stage, 5)
    assert [(name, depth) for name, _, depth, _ in runs] == [
        ("ann", 0), ("bob", 1), ("ann", 2), ("bob", 3), ("ann", 4),
    ]  # fmt: skip
    assert "go 4 agents deep at most" in stage.told("ann")[-1]


def test_a_receiver_may_wait_for_the_agent_that_sent_to_it(stage: Stage) -> None:
    stage.agent("bob", call_tools(ask("ann", "Why?")), say("I see."))
    stage.agent("ann", call_tools(tell("bob")), say("Told."), say("Because."))
    stage.send("ann")
    settled(stage, 3)
    assert stage.told("bob") == ["Because."]


def test_runs_that_wait_leave_their_slots_to_those_who_answer(stage: Stage) -> None:
    """Each of 16 runs in the background waits for an agent that has accepted another run, which needs a slot first."""
    gate, begun = Gate(), stage.world.upstream.request_gate(16)
    others = [
        stage.agent(f"b{n}", say("Done."), say("I am well."), tools=[], include_base_tools=False)
        for n in range(16)
    ]
    for n, other in enumerate(others):
        stage.agent(f"a{n}", call_tools(ask(other), hold_before_headers=gate), say("It is well."))
    send = stage.world.letta.agents.messages.create_async
    runs = [send(stage.agents[f"a{n}"].id, input="Begin.") for n in range(16)]
    begun.wait_sync()
    runs += [send(other, input="Work.") for other in others]
    gate.open()
    for run in runs:
        assert ended(stage.world, run.id).status == "completed"
    assert {stage.told(f"a{n}")[0] for n in range(16)} == {"I am well."}


def test_a_message_that_cannot_be_delivered_to_all_is_sent_to_no_agent(stage: Stage) -> None:
    b = approving(stage, "bob", call_tools(ask("cid", id="call_1")))
    stage.agent("cid")
    stage.send("bob")
    stage.agent("ann", call_tools(tell("nobody", id="1"), tell(b, id="2")))
    stage.send("ann")
    assert stage.told("ann") == [
        "Error: there is no agent 'nobody'",
        "Error: bob waits for a person's answer to calls that it has made. Nothing was sent; try again later",
    ]


def test_a_pause_that_begins_before_a_message_is_delivered_is_spared(stage: Stage) -> None:
    gate = Gate()
    b = approving(stage, "bob", call_tools(ask("cid", id="call_1"), hold_before_headers=gate), say("Thanks."))
    stage.agent("cid")
    stage.agent("ann", call_tools(tell(b)), say("Told."))
    (own,) = aside(lambda: stage.send("bob"))
    stage.world.upstream.request_gate(1).wait_sync()
    stage.send("ann")
    gate.open()
    own.result(PATIENCE_S)
    assert [(name, state) for name, state, _, _ in settled(stage, 3)] == [
        ("bob", "completed"),
        ("ann", "completed"),
        ("bob", "failed"),
    ]
    decision: Any = {"type": "approval", "tool_call_id": "call_1", "approve": True}
    answer: Any = [{"type": "approval", "approvals": [decision]}]
    assert stage.world.letta.agents.messages.create(b, messages=answer).messages[-1].content == "Thanks."


@pytest.mark.parametrize("seed", range(2))
def test_whichever_agents_ask_each_other_all_runs_end(stage: Stage, seed: int) -> None:
    """Random agents ask one another side by side, by name and by tags, in runs, in chats and without waiting."""
    names = ["ann", "bob", "cid", "dan", "eve"]
    for name in names:
        stage.agent(name, tags=["t", name[0]])
    dice, lock = Random(seed), Lock()

    def play(request: UpstreamRequest) -> Reply | None:
        with lock:
            if len(stage.world.upstream.requests) > 150 or dice.random() < 0.45:
                return None
            calls = []
            for n in range(dice.randint(1, 2)):
                other = dice.choice(names)
                made = dice.choice([ask(other), ask(other), tell(other), ask_tagged(["t"], [other[0]])])
                calls.append(replace(made, id=f"{len(stage.world.upstream.requests)}-{n}"))
            return call_tools(*calls)

    stage.world.upstream.script = play
    runs = aside(
        *(partial(stage.send, name) for name in names),
        *(
            partial(stage.world.world.chat(model=f"agent/{name}", user=f"u{n}").say, "Go.")
            for n, name in enumerate(names)
        ),
    )
    for run in runs:
        run.result(PATIENCE_S)
    becomes(lambda: {state for _, state, _, _ in stage.runs()} == {"completed"})
    assert len(stage.world.world.gateway.app.services.agents.agent_runs.messaging._waits) == 0  # type: ignore[union-attr]
