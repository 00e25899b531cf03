"""Batches through the agents API: a gateway that serves, and the providers' batch servers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.settings import BatchSettings, ProfileSettings, ToolSettings, UpstreamSettings
from gateway.tokens import choose_tokenizer
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.anthropic_rules import sign
from tests.doubles.batches import AnthropicBatchServer, BatchServer, OpenAIBatchServer, Outcome
from tests.doubles.tool_server import OK, ToolServer, served
from tests.doubles.upstream import Gate, Reply, StrictUpstream, UpstreamRequest, say
from tests.patience import PATIENCE_S

Json = dict[str, Any]
PATH = "/v1/messages/batches"
POLL = BatchSettings(poll_s=0.05)
ENDED = ("completed", "failed", "cancelled")


@dataclass
class Scene:
    """One gateway with three upstreams: `open` and `claude` have batch servers, `up` is asked live."""

    world: LettaWorld
    openai: OpenAIBatchServer
    anthropic: AnthropicBatchServer

    def agents(self, count: int, model: str = "open/m", **options: Any) -> list[str]:
        return [
            self.world.agent(
                **{"tools": ["core_memory_append"], **options, "model": model, "name": f"a{n}-{len(model)}"}
            ).id
            for n in range(count)
        ]

    def shoppers(self, count: int, shop: ToolServer, model: str = "open/m") -> list[str]:
        """Returns agents that buy at a webhook."""
        parameters = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
        schema = {"name": "buy", "description": "Buy.", "parameters": parameters}
        made = {"source_type": "webhook", "source_code": f"{shop.url}/buy", "json_schema": schema}
        status, tool = self.world.ask("POST", "/v1/tools/", made)
        assert status == 200, tool
        return self.agents(count, model, tools=["buy"])

    def post(self, agents: list[str], *texts: str, **options: Any) -> Json:
        """Sends each agent its text, or all the same one."""
        said = texts if len(texts) == len(agents) else (texts or ("Hi",)) * len(agents)
        requests = [{"agent_id": id, **_said(text)} for id, text in zip(agents, said, strict=True)]
        body = {"requests": [{**each, **options} for each in requests]}
        status, batch = self.world.ask("POST", PATH, body)
        assert status == 200, batch
        return batch

    def get(self, batch: Json) -> Json:
        status, found = self.world.ask("GET", f"{PATH}/{batch['id']}")
        assert status == 200, found
        counts = found["counts"]
        assert counts["total"] == sum(count for name, count in counts.items() if name != "total")
        return found

    def ended(self, batch: Json) -> Json:
        return self.until(batch, lambda found: found["status"] in ENDED)

    def until(self, batch: Json, is_so: Callable[[Json], bool]) -> Json:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so(found := self.get(batch)):
            assert time.monotonic() < deadline, found
            self.wait()
        return found

    def tokens(self) -> int:
        """Returns the tokens that all batches have used today."""
        world = self.world.world
        day = int(world.clock() // 86_400)
        return world.gateway.call(world.store.usage.count_batch_tokens("default", day))

    def until_rest(self) -> None:
        """Waits until no batch has anything left to be done."""
        deadline = time.monotonic() + PATIENCE_S
        while self.world.world.query("SELECT kind FROM jobs WHERE kind = 'batch'"):
            assert time.monotonic() < deadline
            self.wait()

    def comes_to_rest(self) -> bool:
        """Waits until each batch waits for a time, which does not pass meanwhile. Returns True."""
        deadline = time.monotonic() + PATIENCE_S
        jobs = "SELECT state, due FROM jobs WHERE kind = 'batch'"
        while any(
            state != "retrying" or due <= self.world.world.clock()
            for state, due in self.world.world.query(jobs)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return True

    def wait(self) -> None:
        """Lets the time pass after which a provider is asked again, and has the workers look at the clock."""
        self.world.world.clock.sleep(1.0)
        gateway = self.world.world.gateway
        gateway.loop.call_soon_threadsafe(gateway.app.services.store.jobs.wake_here)
        time.sleep(0.02)

    def items(self, batch: Json) -> list[Json]:
        _, found = self.world.ask("GET", f"{PATH}/{batch['id']}/items?limit=1000")
        return found

    def said(self, agent: str) -> list[str]:
        """What an agent has been sent and has replied, oldest first, texts and calls."""
        found = spoken(self.world.letta.agents.messages.list(agent, order="asc"))
        return [f"{m.message_type}: {shown_text(m)}" for m in found]

    def block(self, agent: str, label: str = "human") -> str:
        return self.world.letta.agents.blocks.retrieve(label, agent_id=agent).value


def _said(text: str) -> Json:
    return {"messages": [{"role": "user", "content": text}]}


def shown_text(message: Any) -> str:
    if message.message_type == "tool_call_message":
        return str(message.tool_call.name)
    return str(getattr(message, "content", None) or getattr(message, "tool_return", ""))


@contextmanager
def scene(
    folder: Path,
    answer: Callable[[str, Json], Outcome] | None = None,
    *profiles: ProfileSettings,
    held: bool = False,
    **options: Any,
) -> Iterator[Scene]:
    answer = answer or (lambda custom_id, body: Outcome(text="Hello."))
    with ExitStack() as stack:
        upstream = stack.enter_context(StrictUpstream())
        openai = stack.enter_context(OpenAIBatchServer(answer, held=held))
        claude = stack.enter_context(AnthropicBatchServer(answer, held=held))
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True}),
            UpstreamSettings("open", base_url=openai.base_url, api_key="sk-own", batches="openai"),
            UpstreamSettings("claude", kind="anthropic", base_url=claude.base_url, api_key="sk-ant-own"),
        )
        made = stack.enter_context(
            letta(upstream, folder, *profiles, **{"upstreams": upstreams, "batch": POLL, **options})
        )
        yield Scene(made, openai, claude)


@contextmanager
def with_webhooks(
    folder: Path, answer: Callable[[str, Json], Outcome] | None = None
) -> Iterator[tuple[Scene, ToolServer]]:
    """Yields a scene, and a server that its tools and its callbacks may call."""
    with served(OK) as server:
        tools = ToolSettings(hosts=(server.url,), private_hosts=(server.url,))
        with scene(folder, answer, tools=tools) as s:
            yield s, server


MODELS = ["open/m", "claude/claude-opus-4-6", "up/m"]
# What each of the three reports for a reply.
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS)
def test_each_agent_answers(model: str, tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.world.upstream.script = lambda request: say("Hello.", usage=USAGE)
        agents = s.agents(3, model)
        batch = s.post(agents, "Who are you?")
        assert batch["id"].startswith("job-")
        found = s.ended(batch)
        assert found["status"] == "completed"
        assert found["counts"]["completed"] == 3
        for agent in agents:
            assert s.said(agent)[0] == "user_message: Who are you?"
            assert len(s.said(agent)) == 2
        _, messages = s.world.ask("GET", f"{PATH}/{batch['id']}/messages")
        assert len(messages["messages"]) == 6
        # Each of them is counted once, to the token, and in the columns of batches alone.
        world = s.world.world
        world.gateway.call(world.gateway.app.services.accounting.meter.write())
        sums = "sum(batch_input_tokens), sum(batch_output_tokens), sum(input_tokens + output_tokens)"
        (counted,) = world.query(f"SELECT {sums} FROM usage")
        assert counted == (3 * 10, 3 * 5, 0)


# -- what a model is asked


def asked(body: Json) -> str:
    """The user's newest text."""
    for message in reversed(body["messages"]):
        content = message["content"]
        if message["role"] != "user":
            continue
        parts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
        if parts:
            return str(parts[-1])
    raise AssertionError(body)


def results(body: Json) -> list[str]:
    """The results of the tools that were called since."""
    found: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            found.append(message["content"])
        elif isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] == "tool_result":
                    found.append(
                        part["content"] if isinstance(part["content"], str) else part["content"][0]["text"]
                    )
    return found


def buying(custom_id: str, body: Json) -> Outcome:
    if results(body):
        return Outcome(text=f"It said {results(body)[0]}.")
    return Outcome(calls=(("buy", {"what": "a fern"}),))


def append(text: str, label: str = "human") -> tuple[str, Json]:
    return "core_memory_append", {"label": label, "content": text}


# -- tools and rules


@pytest.mark.parametrize("model", MODELS[:2])
def test_tools_run_between_two_cycles(model: str, tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        if results(body):
            return Outcome(text="It is noted.")
        return Outcome(calls=(append("Likes fish."),))

    with scene(tmp_path, answer) as s:
        [agent] = s.agents(1, model)
        batch = s.post([agent], "I like fish.")
        assert s.ended(batch)["counts"]["completed"] == 1
        assert s.block(agent).endswith("Likes fish.")
        kinds = [each.partition(":")[0] for each in s.said(agent)]
        assert kinds == ["user_message", "tool_call_message", "tool_return_message", "assistant_message"]
        [item] = s.items(batch)
        assert item["stop_reason"] == "end_turn"
        assert (item["usage"]["step_count"], item["usage"]["total_tokens"]) == (2, 30)
        run = s.world.letta.runs.retrieve(item["run_id"])
        assert (run.status, run.background) == ("completed", True)
        # The next live turn goes on from it, calls and results included.
        server: BatchServer = s.openai if model == "open/m" else s.anthropic
        assert len(server.batches) == 2
        # An edit is one of the turn: what forgets the turn takes it back.
        message = spoken(s.world.letta.agents.messages.list(agent, order="asc").items)[0]
        status, _ = s.world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        assert status == 200
        assert "fish" not in s.block(agent)


def test_thoughts_go_back_to_their_places_and_memory_may_change(tmp_path: Path) -> None:
    """A newer Claude thinks between words and calls, and refuses its thoughts elsewhere or after another prompt."""
    name, given = append("Likes fish.")
    first, second = (
        {"type": "thinking", "thinking": text, "signature": sign(text)} for text in ("Who?", "So.")
    )
    call = {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}
    thinks = (first, {"type": "text", "text": "I note it. "}, second, call)

    def answer(custom_id: str, body: Json) -> Outcome:
        return Outcome(text="It is noted.") if results(body) else Outcome(blocks=thinks)

    with scene(tmp_path, answer) as s:
        [agent] = s.agents(1, "claude/claude-opus-5-5")
        for text in ("I like fish.", "And now?"):
            assert s.ended(s.post([agent], text))["counts"]["completed"] == 1
        *_, last = s.anthropic.batches
        [params] = last.requests.values()
        [said, *_] = [turn["content"] for turn in params["messages"] if turn["role"] == "assistant"]
        assert [block["type"] for block in said] == ["thinking", "text", "thinking", "tool_use"]
        assert params["thinking"]["block_binding"] == {"prefix_mismatch_behavior": "drop_block"}
        assert "fish" in str(params["system"]), "which it was not when the thought was made"


def test_rounds_take_their_room(tmp_path: Path) -> None:
    """What an item looks up pushes out older messages, and not the room of the reply."""
    window, count = 6_000, choose_tokenizer("gpt-4o").count
    bodies: list[Json] = []

    def answer(custom_id: str, body: Json) -> Outcome:
        bodies.append(body)
        if (made := len(results(body))) < 4:
            return Outcome(calls=(("archival_memory_search", {"query": f"rose {made}", "top_k": 3}),))
        return Outcome(text="They are red.")

    with scene(tmp_path, answer) as s:
        [agent] = s.agents(1, "open/gpt-4o", tools=["archival_memory_search"], context_window_limit=window)
        for n in range(4):
            s.world.letta.agents.passages.create(agent, text=f"Rose {n} is red. " + "It has a thorn. " * 150)
        for n in range(10):
            s.world.letta.agents.messages.create(
                agent, input=f"Message {n}: {'words ' * 400}", override_model="up/m"
            )
        assert s.ended(s.post([agent], "How are the roses?", max_steps=10))["counts"]["completed"] == 1
    assert len(bodies) == 5
    for body in bodies:
        assert "How are the roses?" in orjson.dumps(body["messages"]).decode()
        assert count(orjson.dumps([body["messages"], body["tools"]]).decode()) < window
    assert len(results(bodies[-1])) == 4


def test_rules_hold_across_cycles(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        if len(results(body)) == 2:
            return Outcome(text="Enough.")
        return Outcome(calls=(append("Once."),))

    rule = {"type": "max_count_per_step", "tool_name": "core_memory_append", "max_count_limit": 1}
    with scene(tmp_path, answer) as s:
        [agent] = s.agents(1, tool_rules=[rule])
        assert s.ended(s.post([agent]))["counts"]["completed"] == 1
        assert s.block(agent).count("Once.") == 1
        assert len(s.openai.batches) == 3


def test_steps_are_bounded(tmp_path: Path) -> None:
    with scene(tmp_path, lambda _, body: Outcome(calls=(append("More."),))) as s:
        [agent] = s.agents(1)
        batch = s.post([agent], max_steps=2)
        assert s.ended(batch)["counts"]["completed"] == 1
        assert s.items(batch)[0]["stop_reason"] == "max_steps"
        assert s.block(agent).count("More.") == 2


def test_nobody_can_be_asked_for_approval(tmp_path: Path) -> None:
    rule = {"type": "requires_approval", "tool_name": "core_memory_append"}
    with scene(tmp_path, lambda _, body: Outcome(calls=(append("No."),))) as s:
        [agent] = s.agents(1, tool_rules=[rule])
        batch = s.post([agent])
        assert s.ended(batch)["counts"]["failed"] == 1
        [item] = s.items(batch)
        assert item["stop_reason"] == "requires_approval"
        assert "approval" in item["error"]
        assert "No." not in s.block(agent)
        # Nothing waits: a send goes on.
        assert s.world.letta.agents.messages.create(agent, input="Hi", override_model="up/m").messages


def test_a_tool_that_the_agent_does_not_have_fails_an_item(tmp_path: Path) -> None:
    with scene(tmp_path, lambda custom_id, body: Outcome(calls=(("buy", {}),))) as s:
        [agent] = s.agents(1, tools=[], include_base_tools=False)
        batch = s.post([agent])
        assert s.ended(batch)["counts"]["failed"] == 1
        assert s.items(batch)[0]["error"] == "The reply calls a tool that the agent does not have."


@pytest.mark.both
def test_two_agents_rethink_one_block(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        made, name = results(body), asked(body)
        if not made:
            return Outcome(calls=(("memory_rethink", {"label": "plan", "new_memory": f"By {name}."}),))
        if "changed" in made[-1] and len(made) == 1:
            # It is shown what stands there now, and keeps that.
            other = "one" if name == "two" else "two"
            assert f"By {other}." in made[-1]
            text = f"By {other}. By {name}."
            return Outcome(calls=(("memory_rethink", {"label": "plan", "new_memory": text}),))
        return Outcome(text="Done.")

    with scene(tmp_path, answer) as s:
        block = s.world.letta.blocks.create(label="plan", value="Empty.")
        agents = s.agents(2, block_ids=[block.id], tools=["memory_rethink"])
        batch = s.post(agents, "one", "two")
        assert s.ended(batch)["counts"]["completed"] == 2
        value = s.block(agents[0], "plan")
        assert "By one." in value
        assert "By two." in value
        _, history = s.world.ask("GET", f"/v1/blocks/{block.id}/history")
        assert len(history) == 3


# -- what goes wrong


def test_what_becomes_of_each_item_is_named(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def answer(custom_id: str, body: Json) -> Outcome:
        name = asked(body)
        seen[name] = seen.get(name, 0) + 1
        return {
            "wrong": Outcome("errored", message="It is too rude."),
            "busy": Outcome("errored", status=500, message="Busy.")
            if seen[name] == 1
            else Outcome(text="At last."),
            "broken": Outcome("errored", status=503, message="Out of order."),
            "late": Outcome("expired") if seen[name] < 3 else Outcome(text="In time."),
            "never": Outcome("expired"),
            "lost": Outcome(times=0),
            "stopped": Outcome("cancelled"),
            "twice": Outcome(times=2),
        }.get(name, Outcome(text="Fine."))

    names = ["wrong", "busy", "broken", "late", "never", "lost", "stopped", "twice", "good"]
    with scene(tmp_path, answer) as s:
        s.openai.is_shuffled = True
        agents = s.agents(len(names))
        batch = s.post(agents, *names)
        found = s.ended(batch)
        assert found["status"] == "completed"
        assert found["counts"] == {
            "total": 9, "waiting": 0, "running": 0, "completed": 4, "failed": 3, "expired": 1, "cancelled": 1,
        }  # fmt: skip
        items = dict(zip(names, s.items(batch), strict=True))
        assert {name: items[name]["status"] for name in names} == {
            "wrong": "failed", "busy": "completed", "broken": "failed", "late": "completed", "never": "expired",
            "lost": "failed", "stopped": "cancelled", "twice": "completed", "good": "completed",
        }  # fmt: skip
        assert items["wrong"]["error"] == "It is too rude."
        assert items["broken"]["error"] == "Out of order."
        assert "nothing of this item" in items["lost"]["error"]
        assert (seen["wrong"], seen["broken"], seen["never"], seen["twice"]) == (1, 2, 3, 1)
        # What was never answered has left nothing.
        assert s.said(agents[0]) == []
        assert len(s.said(agents[7])) == 2
        # What is done with is not left with the provider.
        assert len(s.openai.deleted) >= 2


def test_a_result_file_that_is_cut_is_read_again(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.openai.results_cut_at = 600
        batch = s.post(s.agents(5))
        assert s.ended(batch)["counts"]["completed"] == 5
        assert len(s.openai.batches) == 1


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_batch_whose_creation_was_not_answered_is_found(model: str, tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        server: BatchServer = s.openai if model == "open/m" else s.anthropic
        server.drops_create_reply = True
        agents = s.agents(2, model)
        assert s.ended(s.post(agents))["counts"]["completed"] == 2
        assert len(server.batches) == 1
        assert len(s.said(agents[0])) == 2


def test_a_part_that_is_refused_is_tried_again_and_others_go_on(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        s.openai.create_refusals = [(429, "Too much is enqueued.")] * 3
        batch = s.post([*s.agents(2), *s.agents(2, "claude/claude-opus-4-6")])
        s.until(batch, lambda found: found["counts"]["completed"] >= 2)
        assert s.ended(batch)["counts"]["completed"] == 4


@pytest.mark.parametrize("is_late", [False, True])
def test_the_eighth_refusal_fails_the_items(is_late: bool, tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        if is_late:
            s.openai.failure_message = "The file is malformed."
        else:
            s.openai.create_refusals = [(400, "The file is malformed.")] * 20
        batch = s.post(s.agents(2))
        assert s.ended(batch)["counts"]["failed"] == 2
        assert s.items(batch)[0]["error"] == "The file is malformed."
        assert len(s.openai.batches) == (8 if is_late else 0)
        assert len(s.openai.create_refusals) in (0, 12)


def test_what_is_forgotten_meanwhile_is_not_quoted(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        agents = s.agents(2)
        s.world.letta.agents.messages.create(agents[0], input="My pin is 1234.", override_model="up/m")
        batch = s.post(agents)
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        message = spoken(s.world.letta.agents.messages.list(agents[0], order="asc").items)[0]
        s.world.ask("DELETE", f"/v1/agents/{agents[0]}/messages/{message.id}")
        s.openai.finish()
        found = s.ended(batch)
        assert (found["counts"]["failed"], found["counts"]["completed"]) == (1, 1)
        assert "forgotten" in s.items(batch)[0]["error"]


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_an_agent_that_is_deleted_meanwhile_has_failed_and_its_tokens_count(
    model: str, tmp_path: Path
) -> None:
    with scene(tmp_path, held=True) as s:
        server = s.openai if model == "open/m" else s.anthropic
        agents = s.agents(2, model)
        batch = s.post(agents)
        s.until(batch, lambda _: len(server.batches) == 1)
        s.world.letta.agents.delete(agents[0])
        s.world.world.settle()
        server.finish()
        found = s.ended(batch)
        assert (found["counts"]["total"], found["counts"]["failed"], found["counts"]["completed"]) == (
            2,
            1,
            1,
        )
        assert s.items(batch)[0]["status"] == "failed"
        assert s.tokens() == 2 * USAGE["total_tokens"]


# -- along with live turns


def test_live_turns_go_on_meanwhile(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        [agent] = s.agents(1, "up/m")
        batch = s.post([agent], "In a batch", override_model="open/m")
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        assert s.get(batch)["counts"]["running"] == 1
        s.world.letta.agents.messages.create(agent, input="Live")
        s.openai.finish()
        s.ended(batch)
        assert s.said(agent) == [
            "user_message: Live", "assistant_message: Ok.", "user_message: In a batch", "assistant_message: Hello.",
        ]  # fmt: skip
        s.world.letta.agents.messages.create(agent, input="Live again")
        said = [m["content"] for m in s.world.upstream.last.json["messages"][1:]]
        assert said == ["Live", "Ok.", "In a batch", "Hello.", "Live again"]


def test_later_rounds_have_the_initial_messages_that_a_live_turn_has_written(tmp_path: Path) -> None:
    initial = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A gardener."}]
    prompts = []

    def answer(custom_id: str, body: Json) -> Outcome:
        prompts.append(body["messages"])
        return Outcome(text="Hello.") if results(body) else Outcome(calls=(append("Likes ferns."),))

    with scene(tmp_path, answer, held=True) as s:
        [agent] = s.agents(1, "up/m", initial_message_sequence=initial)
        batch = s.post([agent], "In a batch", override_model="open/m")
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        s.world.letta.agents.messages.create(agent, input="Live")
        s.openai.finish()
        s.until(batch, lambda _: len(s.openai.batches) == 2)
        s.openai.finish()
        assert s.ended(batch)["counts"]["completed"] == 1
        first, second = prompts
        assert [m["content"] for m in first[1:]] == ["Who are you?", "A gardener.", "In a batch"]
        assert second[1 : len(first)] == first[1:]
        assert [each.partition(": ")[2] for each in s.said(agent)][:4] == [
            "Who are you?", "A gardener.", "Live", "Ok.",
        ]  # fmt: skip


@pytest.mark.both
def test_an_item_ends_after_the_live_turn_that_is_under_way(tmp_path: Path) -> None:
    gate, began = Gate(), Gate()

    def script(request: UpstreamRequest) -> Reply:
        began.open()
        return say("Slow.", hold_before_headers=gate)

    with scene(tmp_path, held=True) as s:
        s.world.upstream.script = script
        [agent, other] = s.agents(2, "up/m")
        batch = s.post([agent, other], "In a batch", override_model="open/m")
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        live = s.world.make_client()
        thread = threading.Thread(target=lambda: live.agents.messages.create(agent, input="Live"))
        thread.start()
        began.wait_sync()
        s.openai.finish()
        # The other one's conversation is free.
        s.until(batch, lambda found: found["counts"]["completed"] == 1)
        gate.open()
        thread.join()
        s.ended(batch)
        assert [each.partition(": ")[2] for each in s.said(agent)] == [
            "Live",
            "Slow.",
            "In a batch",
            "Hello.",
        ]


@pytest.mark.both
def test_two_batches_at_once(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        agents = s.agents(2)
        first, second = s.post(agents, "First"), s.post(agents, "Second")
        s.until(second, lambda _: len(s.openai.batches) == 2)
        s.openai.finish()
        assert s.ended(first)["counts"]["completed"] == s.ended(second)["counts"]["completed"] == 2
        assert len(s.said(agents[0])) == 4
        _, listed = s.world.ask("GET", PATH)
        assert [each["id"] for each in listed] == [second["id"], first["id"]]
        _, rest = s.world.ask("GET", f"{PATH}?after={second['id']}")
        assert [each["id"] for each in rest] == [first["id"]]


def test_a_conversation_of_its_own(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1)
        conversation = s.world.letta.conversations.create(agent_id=agent)
        s.ended(s.post([agent], "There", conversation_id=conversation.id))
        assert spoken(s.world.letta.agents.messages.list(agent, conversation_id="default")) == []
        assert len(spoken(s.world.letta.conversations.messages.list(conversation.id))) == 2


# -- who may, how much, how long


def test_a_wrong_request_of_a_batch_is_named(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1)
        unknown = f"agent-{'0' * 32}"
        tool = {"name": "t", "parameters": {"type": "object", "properties": {}}}
        approval = {"messages": [{"type": "approval", "approve": True, "approval_request_id": "x"}]}
        wrong: list[tuple[list[Json], int, str]] = [
            ([], 400, "between 1 and 10000"),
            ([{"agent_id": agent, **_said("Hi")}] * 2, 400, "at most one request for an agent"),
            ([{"agent_id": unknown, **_said("Hi")}], 404, unknown),
            ([{"agent_id": agent, **_said("Hi"), "client_tools": [tool]}], 400, "client"),
            (
                [{"agent_id": agent, **_said("Hi"), "client_skills": [{"name": "s"}]}],
                400,
                "client's own tools",
            ),
            ([{"agent_id": agent, **approval}], 400, "new messages"),
            ([{"agent_id": unknown, **_said("Hi")}, {"agent_id": agent}], 422, "'requests', 1, 'messages'"),
            ([{"agent_id": agent, "input": []}], 422, "'requests', 0, 'input'"),
            ([_said("Hi")], 422, "'requests', 0, 'agent_id'"),
            ([{"custom_id": "x", "params": {"model": "m"}}], 400, "Anthropic"),
            (
                [{"agent_id": agent, **_said("Hi"), "conversation_id": f"conv-{'0' * 32}"}],
                404,
                "conversation",
            ),
        ]
        for requests, status, words in wrong:
            found, body = s.world.ask("POST", PATH, {"requests": requests})
            assert found == status, (requests, body)
            assert words in str(body["detail"]), body
        assert s.world.ask("GET", f"{PATH}/job-{'0' * 32}")[0] == 404
        assert s.world.ask("GET", PATH)[1] == []


def test_fields_of_a_send_that_a_batch_has_no_use_for_are_named(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1)
        kept = {
            "enable_thinking": "true",
            "include_return_message_types": ["assistant_message"],
            "use_assistant_message": False,
            "assistant_message_tool_name": "say",
            "assistant_message_tool_kwarg": "text",
        }
        reply = s.world.world.gateway.ask(
            "POST", PATH, orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi", **kept}]})
        )
        assert reply.status == 200
        named = dict(reply.headers)["x-mnemogate-kept"].split(",")
        assert sorted(named) == [f"requests.{name}" for name in sorted(kept)]


def test_the_gateway_does_not_serve_anthropics_own_batches(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1)
        reply = s.world.world.gateway.ask(
            "POST", PATH, orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]}),
            {"content-type": "application/json", "anthropic-version": "2023-06-01"},
        )  # fmt: skip
        assert reply.status == 404
        listed = s.world.world.gateway.ask("GET", PATH, b"", {"anthropic-version": "2023-06-01"})
        assert listed.status == 404


def test_a_callers_own_key_cannot_be_stored(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1, "up/m")
        body = orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]})
        headers = {"content-type": "application/json", "authorization": "Bearer sk-mine"}
        reply = s.world.world.gateway.ask("POST", PATH, body, headers)
        assert reply.status == 400
        assert b"has no key of its own" in reply.body


def test_the_model_of_a_conversation_is_the_one_whose_key_is_looked_for(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1, "open/m")
        conversation = s.world.letta.conversations.create(agent_id=agent, model="up/m").id
        request = {"agent_id": agent, "input": "Hi", "conversation_id": conversation}
        headers = {"content-type": "application/json", "authorization": "Bearer sk-mine"}
        reply = s.world.world.gateway.ask("POST", PATH, orjson.dumps({"requests": [request]}), headers)
        assert reply.status == 400
        assert b"The upstream 'up' has no key of its own" in reply.body


def test_a_key_of_some_models_makes_no_batch(tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        [agent] = s.agents(1, "open/m")
        body = orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]})
        gateway, keys = s.world.world.gateway, s.world.world.store.keys
        _, secret = gateway.call(keys.create("default", "k", models=("small",)))
        headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}
        reply = gateway.ask("POST", PATH, body, headers)
        assert (reply.status, s.openai.batches) == (403, [])
        assert b"a batch asks for those of its agents" in reply.body


@pytest.mark.parametrize(("sdk", "model"), [("openai", "open/m"), ("anthropic", "claude/claude-opus-4-6")])
def test_a_batch_without_its_package_is_refused_with_the_line_to_run(
    sdk: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(tmp_path) as s:
        asking, other = s.agents(1, model), s.agents(1, "up/m")
        monkeypatch.setitem(sys.modules, sdk, None)
        requests = [{"agent_id": agent, "input": "Hi"} for agent in (*other, *asking)]
        status, error = s.world.ask("POST", PATH, {"requests": requests})
        assert status == 400
        assert "pip install -e '.[batches]'" in str(error)
        assert s.ended(s.post(other, "Hi"))["status"] == "completed"  # made one by one, without a package


@pytest.mark.both
def test_the_next_cycle_waits_for_the_next_days_tokens(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        return Outcome(text="Done.") if results(body) else Outcome(calls=(append("x"),))

    with scene(tmp_path, answer, batch=BatchSettings(poll_s=0.05, daily_tokens=10)) as s:
        agents = s.agents(2)
        batch = s.post([agents[0]])
        s.until(batch, lambda _: s.block(agents[0]).endswith("x"))
        later = s.post([agents[1]])
        for _ in range(20):  # it could have been submitted by now
            s.wait()
        assert s.get(later)["counts"]["waiting"] == 1
        assert s.get(batch)["counts"]["running"] == 1
        assert len(s.openai.batches) == 1


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_cancelling_ends_all_items_and_the_providers_batch(model: str, tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        server: BatchServer = s.openai if model == "open/m" else s.anthropic
        agents = s.agents(3, model)
        batch = s.post(agents)
        s.until(batch, lambda _: len(server.batches) == 1)
        status, found = s.world.ask("PATCH", f"{PATH}/{batch['id']}/cancel")
        assert status == 200
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)
        deadline = time.monotonic() + PATIENCE_S
        while server.batches[0].status != "cancelled":
            assert time.monotonic() < deadline
            s.wait()
        assert s.said(agents[0]) == []
        assert s.get(batch)["counts"]["cancelled"] == 3


def test_metrics_and_the_command_line(tmp_path: Path) -> None:
    with scene(tmp_path, held=True) as s:
        batch = s.post(s.agents(2))
        s.until(batch, lambda _: len(s.openai.batches) == 1)
        reply = s.world.world.gateway.ask("GET", "/metrics", b"", {})
        assert b'mnemogate_batch_items{state="running"} 2.0' in reply.body
        assert b'mnemogate_batches{state="running"} 1.0' in reply.body
        s.openai.finish()
        s.ended(batch)
        reply = s.world.world.gateway.ask("GET", "/metrics", b"", {})
        assert b"mnemogate_batch_tokens_total 30.0" in reply.body
