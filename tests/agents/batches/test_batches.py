"""Batches through the agents API: a gateway that serves, and the providers' batch servers."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import orjson
import pytest

from gateway.settings import BatchSettings
from gateway.tokens import choose_tokenizer
from tests.agents.batches.batch_world import (
    MODELS,
    PATH,
    USAGE,
    Json,
    make_append_call,
    make_message,
    read_question,
    read_results,
    serve_batches,
)
from tests.agents.letta import spoken
from tests.doubles.anthropic_rules import sign
from tests.doubles.batches import Outcome
from tests.doubles.upstream import Gate, Reply, UpstreamRequest, raw, say
from tests.patience import becomes


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS)
def test_each_agent_answers(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.upstream.script = lambda request: say("Hello.", usage=USAGE)
        agents = world.create_agents(3, model)
        batch = world.create_batch(agents, "Who are you?")
        assert batch["id"].startswith("job-")
        found = world.wait_for_end(batch)
        assert found["status"] == "completed"
        assert found["counts"]["completed"] == 3
        for agent in agents:
            assert world.list_messages(agent)[0] == "user_message: Who are you?"
            assert len(world.list_messages(agent)) == 2
        _, messages = world.ask("GET", f"{PATH}/{batch['id']}/messages")
        assert len(messages["messages"]) == 6
        # The tokens of each reply are counted once, in the columns of batches alone.
        world = world.world
        world.gateway.call(world.gateway.app.services.accounting.meter.write())
        sums = "sum(batch_input_tokens), sum(batch_output_tokens), sum(input_tokens + output_tokens)"
        (counted,) = world.query(f"SELECT {sums} FROM usage")
        assert counted == (3 * 10, 3 * 5, 0)


# -- tools and rules


@pytest.mark.parametrize("model", MODELS[:2])
def test_tools_run_between_two_cycles(model: str, tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        if read_results(body):
            return Outcome(text="It is noted.")
        return Outcome(calls=(make_append_call("Likes fish."),))

    with serve_batches(tmp_path, answer) as world:
        [agent] = world.create_agents(1, model)
        batch = world.create_batch([agent], "I like fish.")
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        assert world.read_block(agent).endswith("Likes fish.")
        kinds = [each.partition(":")[0] for each in world.list_messages(agent)]
        assert kinds == ["user_message", "tool_call_message", "tool_return_message", "assistant_message"]
        [item] = world.list_items(batch)
        assert item["stop_reason"] == "end_turn"
        assert (item["usage"]["step_count"], item["usage"]["total_tokens"]) == (2, 30)
        run = world.letta.runs.retrieve(item["run_id"])
        assert (run.status, run.background) == ("completed", True)
        # The next live turn goes on from it, calls and results included.
        server = world.find_server(model)
        assert len(server.batches) == 2
        # The edit belongs to the turn: forgetting the turn takes it back.
        message = spoken(world.letta.agents.messages.list(agent, order="asc").items)[0]
        status, _ = world.ask("DELETE", f"/v1/agents/{agent}/messages/{message.id}")
        assert status == 200
        assert "fish" not in world.read_block(agent)


def test_thoughts_go_back_to_their_places_and_memory_may_change(tmp_path: Path) -> None:
    """A newer Claude thinks between texts and calls. It refuses a thought at another place or after another prompt."""
    name, given = make_append_call("Likes fish.")
    first, second = (
        {"type": "thinking", "thinking": text, "signature": sign(text)} for text in ("Who?", "So.")
    )
    call = {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}
    thinks = (first, {"type": "text", "text": "I note it. "}, second, call)

    def answer(custom_id: str, body: Json) -> Outcome:
        return Outcome(text="It is noted.") if read_results(body) else Outcome(blocks=thinks)

    with serve_batches(tmp_path, answer) as world:
        [agent] = world.create_agents(1, "claude/claude-opus-5-5")
        for text in ("I like fish.", "And now?"):
            assert world.wait_for_end(world.create_batch([agent], text))["counts"]["completed"] == 1
        *_, last = world.anthropic.batches
        [params] = last.requests.values()
        [said, *_] = [turn["content"] for turn in params["messages"] if turn["role"] == "assistant"]
        assert [block["type"] for block in said] == ["thinking", "text", "thinking", "tool_use"]
        assert params["thinking"]["block_binding"] == {"prefix_mismatch_behavior": "drop_block"}
        assert "fish" in str(params["system"]), "the prompt has changed since the thought"


def test_results_of_rounds_push_out_older_messages(tmp_path: Path) -> None:
    """The window always has room for the reply."""
    window, count = 6_000, choose_tokenizer("gpt-4o").count
    bodies: list[Json] = []

    def answer(custom_id: str, body: Json) -> Outcome:
        bodies.append(body)
        if (made := len(read_results(body))) < 4:
            return Outcome(calls=(("archival_memory_search", {"query": f"rose {made}", "top_k": 3}),))
        return Outcome(text="They are red.")

    with serve_batches(tmp_path, answer) as world:
        [agent] = world.create_agents(
            1, "open/gpt-4o", tools=["archival_memory_search"], context_window_limit=window
        )
        for n in range(4):
            world.letta.agents.passages.create(agent, text=f"Rose {n} is red. " + "It has a thorn. " * 150)
        for n in range(10):
            world.letta.agents.messages.create(
                agent, input=f"Message {n}: {'words ' * 400}", override_model="up/m"
            )
        assert (
            world.wait_for_end(world.create_batch([agent], "How are the roses?", max_steps=10))["counts"][
                "completed"
            ]
            == 1
        )
    assert len(bodies) == 5
    for body in bodies:
        assert "How are the roses?" in orjson.dumps(body["messages"]).decode()
        assert count(orjson.dumps([body["messages"], body["tools"]]).decode()) < window
    assert len(read_results(bodies[-1])) == 4


def test_rules_hold_across_cycles(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        if len(read_results(body)) == 2:
            return Outcome(text="Enough.")
        return Outcome(calls=(make_append_call("Once."),))

    rule = {"type": "max_count_per_step", "tool_name": "core_memory_append", "max_count_limit": 1}
    with serve_batches(tmp_path, answer) as world:
        [agent] = world.create_agents(1, tool_rules=[rule])
        assert world.wait_for_end(world.create_batch([agent]))["counts"]["completed"] == 1
        assert world.read_block(agent).count("Once.") == 1
        assert len(world.openai.batches) == 3


def test_steps_are_bounded(tmp_path: Path) -> None:
    with serve_batches(tmp_path, lambda _, body: Outcome(calls=(make_append_call("More."),))) as world:
        [agent] = world.create_agents(1)
        batch = world.create_batch([agent], max_steps=2)
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        assert world.list_items(batch)[0]["stop_reason"] == "max_steps"
        assert world.read_block(agent).count("More.") == 2


def test_a_call_that_needs_approval_fails_its_item(tmp_path: Path) -> None:
    rule = {"type": "requires_approval", "tool_name": "core_memory_append"}
    with serve_batches(tmp_path, lambda _, body: Outcome(calls=(make_append_call("No."),))) as world:
        [agent] = world.create_agents(1, tool_rules=[rule])
        batch = world.create_batch([agent])
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        [item] = world.list_items(batch)
        assert item["stop_reason"] == "requires_approval"
        assert "approval" in item["error"]
        assert "No." not in world.read_block(agent)
        # Nothing waits: a send goes on.
        assert world.letta.agents.messages.create(agent, input="Hi", override_model="up/m").messages


def test_a_tool_that_the_agent_does_not_have_fails_an_item(tmp_path: Path) -> None:
    with serve_batches(tmp_path, lambda custom_id, body: Outcome(calls=(("buy", {}),))) as world:
        [agent] = world.create_agents(1, tools=[], include_base_tools=False)
        batch = world.create_batch([agent])
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert world.list_items(batch)[0]["error"] == "The reply calls a tool that the agent does not have."


@pytest.mark.both
def test_two_agents_rethink_one_block(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        made, name = read_results(body), read_question(body)
        if not made:
            return Outcome(calls=(("memory_rethink", {"label": "plan", "new_memory": f"By {name}."}),))
        if "changed" in made[-1] and len(made) == 1:
            # The answer shows the value as it is now, which the second call repeats.
            other = "one" if name == "two" else "two"
            assert f"By {other}." in made[-1]
            text = f"By {other}. By {name}."
            return Outcome(calls=(("memory_rethink", {"label": "plan", "new_memory": text}),))
        return Outcome(text="Done.")

    with serve_batches(tmp_path, answer) as world:
        block = world.letta.blocks.create(label="plan", value="Empty.")
        agents = world.create_agents(2, block_ids=[block.id], tools=["memory_rethink"])
        batch = world.create_batch(agents, "one", "two")
        assert world.wait_for_end(batch)["counts"]["completed"] == 2
        value = world.read_block(agents[0], "plan")
        assert "By one." in value
        assert "By two." in value
        _, history = world.ask("GET", f"/v1/blocks/{block.id}/history")
        assert len(history) == 3


# -- failures


def test_each_outcome_at_the_provider_becomes_the_status_of_an_item(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def answer(custom_id: str, body: Json) -> Outcome:
        name = read_question(body)
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
    with serve_batches(tmp_path, answer) as world:
        world.openai.is_shuffled = True
        agents = world.create_agents(len(names))
        batch = world.create_batch(agents, *names)
        found = world.wait_for_end(batch)
        assert found["status"] == "completed"
        assert found["counts"] == {
            "total": 9, "waiting": 0, "running": 0, "completed": 4, "failed": 3, "expired": 1, "cancelled": 1,
        }  # fmt: skip
        items = dict(zip(names, world.list_items(batch), strict=True))
        assert {name: items[name]["status"] for name in names} == {
            "wrong": "failed", "busy": "completed", "broken": "failed", "late": "completed", "never": "expired",
            "lost": "failed", "stopped": "cancelled", "twice": "completed", "good": "completed",
        }  # fmt: skip
        assert items["wrong"]["error"] == "It is too rude."
        assert items["broken"]["error"] == "Out of order."
        assert "nothing of this item" in items["lost"]["error"]
        assert (seen["wrong"], seen["broken"], seen["never"], seen["twice"]) == (1, 2, 3, 1)
        # An item that failed has left no message.
        assert world.list_messages(agents[0]) == []
        assert len(world.list_messages(agents[7])) == 2
        # Files that are no longer needed are deleted at the provider.
        assert len(world.openai.deleted) >= 2


def test_an_error_under_a_status_of_success_is_an_error(tmp_path: Path) -> None:
    """OpenRouter answers so when its upstream fails after the status has left."""
    error = orjson.dumps({"error": {"message": "Busy.", "code": 502}})
    with serve_batches(tmp_path) as world:
        world.upstream.queue(raw(error, content_type="application/json"), say("At last."))
        (agent,) = world.create_agents(1, "up/m")
        world.wait_for_end(world.create_batch([agent], "Are you there?"))
        assert world.list_messages(agent)[-1] == "assistant_message: At last."


def test_a_result_file_that_is_cut_is_read_again(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.results_cut_at = 600
        batch = world.create_batch(world.create_agents(5))
        assert world.wait_for_end(batch)["counts"]["completed"] == 5
        assert len(world.openai.batches) == 1


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_batch_whose_creation_was_not_answered_is_found(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        server = world.find_server(model)
        server.drops_create_reply = True
        agents = world.create_agents(2, model)
        assert world.wait_for_end(world.create_batch(agents))["counts"]["completed"] == 2
        assert len(server.batches) == 1
        assert len(world.list_messages(agents[0])) == 2


def test_a_part_that_is_refused_is_tried_again_and_others_go_on(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        world.openai.create_refusals = [(429, "Too much is enqueued.")] * 3
        batch = world.create_batch(
            [*world.create_agents(2), *world.create_agents(2, "claude/claude-opus-4-6")]
        )
        world.wait_for(batch, lambda found: found["counts"]["completed"] >= 2)
        assert world.wait_for_end(batch)["counts"]["completed"] == 4


@pytest.mark.parametrize("is_late", [False, True])
def test_the_eighth_refusal_fails_the_items(is_late: bool, tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        if is_late:
            world.openai.failure_message = "The file is malformed."
        else:
            world.openai.create_refusals = [(400, "The file is malformed.")] * 20
        batch = world.create_batch(world.create_agents(2))
        assert world.wait_for_end(batch)["counts"]["failed"] == 2
        assert world.list_items(batch)[0]["error"] == "The file is malformed."
        assert len(world.openai.batches) == (8 if is_late else 0)
        assert len(world.openai.create_refusals) in (0, 12)


def test_an_item_fails_if_its_memory_is_forgotten_while_it_runs(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        agents = world.create_agents(2)
        world.letta.agents.messages.create(agents[0], input="My pin is 1234.", override_model="up/m")
        batch = world.create_batch(agents)
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        message = spoken(world.letta.agents.messages.list(agents[0], order="asc").items)[0]
        world.ask("DELETE", f"/v1/agents/{agents[0]}/messages/{message.id}")
        world.openai.finish()
        found = world.wait_for_end(batch)
        assert (found["counts"]["failed"], found["counts"]["completed"]) == (1, 1)
        assert "forgotten" in world.list_items(batch)[0]["error"]


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_the_item_of_a_deleted_agent_fails_and_its_tokens_count(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        server = world.find_server(model)
        agents = world.create_agents(2, model)
        batch = world.create_batch(agents)
        world.wait_for(batch, lambda _: len(server.batches) == 1)
        world.letta.agents.delete(agents[0])
        world.world.settle()
        server.finish()
        found = world.wait_for_end(batch)
        assert (found["counts"]["total"], found["counts"]["failed"], found["counts"]["completed"]) == (
            2,
            1,
            1,
        )
        assert world.list_items(batch)[0]["status"] == "failed"
        assert world.count_tokens() == 2 * USAGE["total_tokens"]


# -- live turns meanwhile


def test_live_turns_go_on_while_a_batch_runs(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        [agent] = world.create_agents(1, "up/m")
        batch = world.create_batch([agent], "In a batch", override_model="open/m")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        assert world.retrieve(batch)["counts"]["running"] == 1
        world.letta.agents.messages.create(agent, input="Live")
        world.openai.finish()
        world.wait_for_end(batch)
        assert world.list_messages(agent) == [
            "user_message: Live", "assistant_message: Ok.", "user_message: In a batch", "assistant_message: Hello.",
        ]  # fmt: skip
        world.letta.agents.messages.create(agent, input="Live again")
        contents = [m["content"] for m in world.upstream.last.json["messages"][1:]]
        assert contents == ["Live", "Ok.", "In a batch", "Hello.", "Live again"]


def test_later_rounds_have_the_initial_messages_that_a_live_turn_has_written(tmp_path: Path) -> None:
    initial = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A gardener."}]
    prompts = []

    def answer(custom_id: str, body: Json) -> Outcome:
        prompts.append(body["messages"])
        return (
            Outcome(text="Hello.")
            if read_results(body)
            else Outcome(calls=(make_append_call("Likes ferns."),))
        )

    with serve_batches(tmp_path, answer, held=True) as world:
        [agent] = world.create_agents(1, "up/m", initial_message_sequence=initial)
        batch = world.create_batch([agent], "In a batch", override_model="open/m")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        world.letta.agents.messages.create(agent, input="Live")
        world.openai.finish()
        world.wait_for(batch, lambda _: len(world.openai.batches) == 2)
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["completed"] == 1
        first, second = prompts
        assert [m["content"] for m in first[1:]] == ["Who are you?", "A gardener.", "In a batch"]
        assert second[1 : len(first)] == first[1:]
        assert [each.partition(": ")[2] for each in world.list_messages(agent)][:4] == [
            "Who are you?", "A gardener.", "Live", "Ok.",
        ]  # fmt: skip


@pytest.mark.both
def test_an_item_ends_after_a_live_turn_that_is_running(tmp_path: Path) -> None:
    gate, began = Gate(), Gate()

    def script(request: UpstreamRequest) -> Reply:
        began.open()
        return say("Slow.", hold_before_headers=gate)

    with serve_batches(tmp_path, held=True) as world:
        world.upstream.script = script
        [agent, other] = world.create_agents(2, "up/m")
        batch = world.create_batch([agent, other], "In a batch", override_model="open/m")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        live = world.make_client()
        thread = threading.Thread(target=lambda: live.agents.messages.create(agent, input="Live"))
        thread.start()
        began.wait_sync()
        world.openai.finish()
        # The other agent's conversation is free.
        world.wait_for(batch, lambda found: found["counts"]["completed"] == 1)
        gate.open()
        thread.join()
        world.wait_for_end(batch)
        assert [each.partition(": ")[2] for each in world.list_messages(agent)] == [
            "Live",
            "Slow.",
            "In a batch",
            "Hello.",
        ]


@pytest.mark.both
def test_two_batches_may_have_the_same_agents(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        agents = world.create_agents(2)
        first, second = world.create_batch(agents, "First"), world.create_batch(agents, "Second")
        world.wait_for(second, lambda _: len(world.openai.batches) == 2)
        world.openai.finish()
        assert (
            world.wait_for_end(first)["counts"]["completed"]
            == world.wait_for_end(second)["counts"]["completed"]
            == 2
        )
        assert len(world.list_messages(agents[0])) == 4
        _, listed = world.ask("GET", PATH)
        assert [each["id"] for each in listed] == [second["id"], first["id"]]
        _, rest = world.ask("GET", f"{PATH}?after={second['id']}")
        assert [each["id"] for each in rest] == [first["id"]]


def test_an_item_may_name_a_conversation(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1)
        conversation = world.letta.conversations.create(agent_id=agent)
        world.wait_for_end(world.create_batch([agent], "There", conversation_id=conversation.id))
        assert spoken(world.letta.agents.messages.list(agent, conversation_id="default")) == []
        assert len(spoken(world.letta.conversations.messages.list(conversation.id))) == 2


# -- refusals, limits, cancels


def test_the_error_names_the_wrong_request_of_a_batch(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1)
        unknown = f"agent-{'0' * 32}"
        tool = {"name": "t", "parameters": {"type": "object", "properties": {}}}
        approval = {"messages": [{"type": "approval", "approve": True, "approval_request_id": "x"}]}
        wrong: list[tuple[list[Json], int, str]] = [
            ([], 400, "between 1 and 10000"),
            ([{"agent_id": agent, **make_message("Hi")}] * 2, 400, "at most one request for an agent"),
            ([{"agent_id": unknown, **make_message("Hi")}], 404, unknown),
            ([{"agent_id": agent, **make_message("Hi"), "client_tools": [tool]}], 400, "client"),
            (
                [{"agent_id": agent, **make_message("Hi"), "client_skills": [{"name": "s"}]}],
                400,
                "client's own tools",
            ),
            ([{"agent_id": agent, **approval}], 400, "new messages"),
            (
                [{"agent_id": unknown, **make_message("Hi")}, {"agent_id": agent}],
                422,
                "'requests', 1, 'messages'",
            ),
            ([{"agent_id": agent, "input": []}], 422, "'requests', 0, 'input'"),
            ([make_message("Hi")], 422, "'requests', 0, 'agent_id'"),
            ([{"custom_id": "x", "params": {"model": "m"}}], 400, "Anthropic"),
            (
                [{"agent_id": agent, **make_message("Hi"), "conversation_id": f"conv-{'0' * 32}"}],
                404,
                "conversation",
            ),
        ]
        for requests, status, words in wrong:
            found, body = world.ask("POST", PATH, {"requests": requests})
            assert found == status, (requests, body)
            assert words in str(body["detail"]), body
        assert world.ask("GET", f"{PATH}/job-{'0' * 32}")[0] == 404
        assert world.ask("GET", PATH)[1] == []


def test_a_header_names_the_fields_that_have_no_effect_in_a_batch(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1)
        kept = {
            "enable_thinking": "true",
            "include_return_message_types": ["assistant_message"],
            "use_assistant_message": False,
            "assistant_message_tool_name": "say",
            "assistant_message_tool_kwarg": "text",
        }
        reply = world.world.gateway.ask(
            "POST", PATH, orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi", **kept}]})
        )
        assert reply.status == 200
        named = dict(reply.headers)["x-mnemogate-kept"].split(",")
        assert sorted(named) == [f"requests.{name}" for name in sorted(kept)]


def test_the_gateway_does_not_serve_anthropics_own_batches(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1)
        reply = world.world.gateway.ask(
            "POST", PATH, orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]}),
            {"content-type": "application/json", "anthropic-version": "2023-06-01"},
        )  # fmt: skip
        assert reply.status == 404
        listed = world.world.gateway.ask("GET", PATH, b"", {"anthropic-version": "2023-06-01"})
        assert listed.status == 404


def test_a_callers_own_key_cannot_be_stored(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1, "up/m")
        body = orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]})
        headers = {"content-type": "application/json", "authorization": "Bearer sk-mine"}
        reply = world.world.gateway.ask("POST", PATH, body, headers)
        assert reply.status == 400
        assert b"has no key of its own" in reply.body


def test_the_upstream_of_a_conversations_model_needs_a_key(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1, "open/m")
        conversation = world.letta.conversations.create(agent_id=agent, model="up/m").id
        request = {"agent_id": agent, "input": "Hi", "conversation_id": conversation}
        headers = {"content-type": "application/json", "authorization": "Bearer sk-mine"}
        reply = world.world.gateway.ask("POST", PATH, orjson.dumps({"requests": [request]}), headers)
        assert reply.status == 400
        assert b"The upstream 'up' has no key of its own" in reply.body


def test_a_key_that_is_limited_to_some_models_creates_no_batch(tmp_path: Path) -> None:
    with serve_batches(tmp_path) as world:
        [agent] = world.create_agents(1, "open/m")
        body = orjson.dumps({"requests": [{"agent_id": agent, "input": "Hi"}]})
        gateway, keys = world.world.gateway, world.world.store.keys
        _, secret = gateway.call(keys.create("default", "k", models=("small",)))
        headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}
        reply = gateway.ask("POST", PATH, body, headers)
        assert (reply.status, world.openai.batches) == (403, [])
        assert b"a batch asks for those of its agents" in reply.body


@pytest.mark.parametrize(("sdk", "model"), [("openai", "open/m"), ("anthropic", "claude/claude-opus-4-6")])
def test_a_batch_without_its_package_is_refused_with_the_line_to_run(
    sdk: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(tmp_path) as world:
        asking, other = world.create_agents(1, model), world.create_agents(1, "up/m")
        monkeypatch.setitem(sys.modules, sdk, None)
        requests = [{"agent_id": agent, "input": "Hi"} for agent in (*other, *asking)]
        status, error = world.ask("POST", PATH, {"requests": requests})
        assert status == 400
        assert "pip install -e '.[batches]'" in str(error)
        assert (
            world.wait_for_end(world.create_batch(other, "Hi"))["status"] == "completed"
        )  # sent one by one, without a package


@pytest.mark.both
def test_the_next_cycle_waits_for_the_next_days_tokens(tmp_path: Path) -> None:
    def answer(custom_id: str, body: Json) -> Outcome:
        return Outcome(text="Done.") if read_results(body) else Outcome(calls=(make_append_call("x"),))

    with serve_batches(tmp_path, answer, batch=BatchSettings(poll_s=0.05, daily_tokens=10)) as world:
        agents = world.create_agents(2)
        batch = world.create_batch([agents[0]])
        world.wait_for(batch, lambda _: world.read_block(agents[0]).endswith("x"))
        later = world.create_batch([agents[1]])
        for _ in range(20):  # polls in which it could have been submitted
            world.pass_poll_interval()
        assert world.retrieve(later)["counts"]["waiting"] == 1
        assert world.retrieve(batch)["counts"]["running"] == 1
        assert len(world.openai.batches) == 1


@pytest.mark.both(model=["open/m"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_cancelling_ends_all_items_and_the_providers_batch(model: str, tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        server = world.find_server(model)
        agents = world.create_agents(3, model)
        batch = world.create_batch(agents)
        world.wait_for(batch, lambda _: len(server.batches) == 1)
        found = world.cancel_batch(batch)
        assert (found["status"], found["counts"]["cancelled"]) == ("cancelled", 3)
        becomes(lambda: server.batches[0].status == "cancelled", pause=world.pass_poll_interval)
        assert world.list_messages(agents[0]) == []
        assert world.retrieve(batch)["counts"]["cancelled"] == 3


def test_metrics_count_batches_items_and_tokens(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        batch = world.create_batch(world.create_agents(2))
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        reply = world.world.gateway.ask("GET", "/metrics", b"", {})
        assert b'mnemogate_batch_items{state="running"} 2.0' in reply.body
        assert b'mnemogate_batches{state="running"} 1.0' in reply.body
        world.openai.finish()
        world.wait_for_end(batch)
        reply = world.world.gateway.ask("GET", "/metrics", b"", {})
        assert b"mnemogate_batch_tokens_total 30.0" in reply.body
