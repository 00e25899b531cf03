"""Rules, styles, pauses and the gateway's own tools over a gateway that serves."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.agents.core.call_decision import CallDecision
from gateway.agents.registry.registry import NewAgent
from gateway.agents.runs.message_listing import AgentMessages
from gateway.core.agent import AgentTool
from gateway.core.conversation.private import make_framed_system_message
from gateway.core.definition import AgentDefinition, ToolDefinition
from gateway.core.ids import ObjectRef
from gateway.core.prompt.result_order import UNANSWERED_RESULT
from gateway.errors import BadRequest
from storage.errors import StoreUnavailable
from storage.listing import BlockDraft
from storage.run_commands import StepOpen, StepOpened
from storage.run_records import RunState
from storage.sql.stored_paths import StoredPaths
from tests.agents.agent_world import HUMAN, AgentWorld, serve_agent
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, insert, say

Json = dict[str, Any]
OWN = (
    "memory_insert",
    "core_memory_append",
    "archival_memory_insert",
    "archival_memory_search",
    "memory_finish_edits",
)
PAY = ToolDefinition(
    {"name": "pay", "parameters": {"type": "object", "properties": {}}},
    source_type="json",
    needs_approval=True,
)
SEARCH: Json = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
}


@contextmanager
def agent(
    upstream: StrictUpstream, folder: Path, *rules: Json, style: str = "reply", tools: tuple[str, ...] = OWN
) -> Iterator[AgentWorld]:
    made = tuple(AgentTool(name) for name in tools)
    kind = "letta_v1_agent" if style == "reply" else "memgpt_agent"
    defined = AgentDefinition(kind, "You help.", rules=rules)
    options: Json = {
        "uid": "abc",
        "style": style,
        "tools": (*made, AgentTool("pay", PAY)),
        "definition": defined,
    }
    with serve_agent(upstream, folder, **options) as world:
        yield world


def rule(type: str, tool_name: str, **fields: Any) -> Json:
    return {"type": type, "tool_name": tool_name, **fields}


def tool_messages(world: AgentWorld) -> list[tuple[str, str]]:
    """The results that went upstream with the newest call."""
    return [(m["tool_call_id"], m["content"]) for m in world.upstream.last.messages if m["role"] == "tool"]


def test_an_agent_that_speaks_by_a_tool(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, style="message", tools=("send_message", "memory_insert")) as world:
        words = {"thinking": "A new one.", "request_heartbeat": False, "message": "Hello Ann."}
        edit = {
            "thinking": "Note it.",
            "request_heartbeat": True,
            "label": "human",
            "new_string": "Name: Ann",
        }
        upstream.queue(
            call_tools(Call("memory_insert", edit, "a")),
            call_tools(Call("send_message", words, "b")),
            say("Ok."),
        )
        run = world.send("I am Ann.")
        assert run.texts == ["Hello Ann."]
        assert (run.run.stop, run.run.steps) == ("end_turn", 2)
        assert "".join(line[6:-1] for line in run.lines if line.startswith("text")) == "Hello Ann."
        assert world.get_block().value == "Name: Ann"
        body = upstream.chats[0].json
        assert body["tool_choice"] == "required"
        speaking = body["tools"][0]["function"]
        assert [*speaking["parameters"]["properties"]] == ["thinking", "request_heartbeat", "message"]
        # What the model said and how is what it reads again.
        world.send("Bye.")
        again = upstream.last.messages
        assert again[: len(upstream.chats[1].messages)] == upstream.chats[1].messages
        assert [m["role"] for m in again[1:]] == ["user", "assistant", "tool", "assistant", "tool", "user"]
        assert orjson.loads(again[4]["tool_calls"][0]["function"]["arguments"]) == words


def test_rules_force_forbid_and_end(upstream: StrictUpstream, tmp_path: Path) -> None:
    rules = (rule("run_first", "memory_insert"), rule("exit_loop", "memory_finish_edits"))
    with agent(upstream, tmp_path, *rules) as world:
        upstream.queue(
            call_tools(Call("core_memory_append", {"label": "human", "content": "x"}, "a")),
            call_tools(insert("Name: Ann", "b")),
            call_tools(Call("memory_finish_edits", {}, "c")),
        )
        run = world.send("I am Ann.")
        assert (run.run.state, run.run.stop, run.run.steps) == (RunState.COMPLETED, "tool_rule", 3)
        first, second, third = (chat.json for chat in upstream.chats)
        forced = {"type": "function", "function": {"name": "memory_insert"}}
        assert [body.get("tool_choice") for body in (first, second, third)] == [forced, forced, None]
        assert first["tools"] == second["tools"] == third["tools"]
        assert first["parallel_tool_calls"] is False
        assert (
            "Call memory_insert before any other tool." in first["messages"][0]["content"]
            or world.spec.system
        )
        assert world.get_block().value == "Name: Ann"
        assert tool_messages(world)[0] == (
            "a", "Not run: one of these has to be called first: memory_insert. You may call: memory_insert."
        )  # fmt: skip


def test_a_required_call_is_asked_for_before_the_end(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, rule("required_before_exit", "memory_insert")) as world:
        upstream.queue(say("Done."), call_tools(insert("x", "a")), say("Really done."))
        run = world.send("Hi")
        assert run.texts == ["Done.", "Really done."]
        assert run.run.stop == "end_turn"
        nudge = upstream.chats[1].messages[-1]
        assert nudge["role"] == "user"
        assert "you have to call: memory_insert" in nudge["content"]


def test_a_required_call_is_asked_for_even_if_that_could_not_be_stored_at_first(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(upstream, tmp_path, rule("required_before_exit", "memory_insert")) as world:
        upstream.queue(say("Done."), call_tools(insert("x", "a")), say("Really done."))
        opened: list[StepOpen] = []

        def open_first(self: StoredPaths, write: StepOpen) -> Future[StepOpened]:
            opened.append(write)
            if len(opened) == 2:
                raise StoreUnavailable("the disk is slow")
            return open_step(self, write)

        open_step = StoredPaths.open
        with monkeypatch.context() as patch:
            patch.setattr(StoredPaths, "open", open_first)
            assert world.send("Hi", otid="o1").run.state is RunState.FAILED
        assert world.send("Hi", otid="o1").texts == ["Really done."]
        assert "you have to call: memory_insert" in upstream.chats[1].messages[-1]["content"]


def test_the_texts_of_rules_for_a_model_are_not_remembered(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, rule("required_before_exit", "memory_insert")) as world:
        upstream.queue(say("Roses."), call_tools(insert("x", "a")), say("Really done."))
        world.send("My turn?")
        world.world.settle()
        store = world.world.store

        async def search() -> list[str]:
            agent = await store.agents.find(world.scope)
            assert agent is not None
            return [m.text for m in await store.recall.search(agent, "Before you end your turn, call roses")]

        assert sorted(world.world.gateway.call(search())) == ["My turn?", "Roses."]


@pytest.mark.parametrize("approve", [True, False])
def test_a_call_waits_for_a_person(upstream: StrictUpstream, tmp_path: Path, approve: bool) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(call_tools(insert("paid", "a"), Call("pay", {}, "b")), say("So be it."))
        paused = world.send("Pay.")
        assert (paused.run.state, paused.run.stop) == (RunState.COMPLETED, "requires_approval")
        assert world.get_block().value == ""
        run = world.send(messages=(), decisions=(CallDecision("b", approve=approve, reason="Too much."),))
        assert run.texts == ["So be it."]
        results = tool_messages(world)
        assert [id for id, _ in results] == ["a", "b"]
        assert "changed" in results[0][1]
        assert ("pay cannot run here" in results[1][1]) is approve
        assert ("Too much." in results[1][1]) is not approve
        assert world.get_block().value == "paid"
        with pytest.raises(BadRequest, match="awaiting approval"):
            world.send(messages=(), decisions=(CallDecision("b"),))


def test_a_message_in_between_goes_on_without_the_answer(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(call_tools(Call("pay", {}, "b")), say("Never mind."))
        world.send("Pay.")
        assert world.send("Wait, no.").texts == ["Never mind."]
        assert [id for id, _ in tool_messages(world)] == ["b"]
        with pytest.raises(BadRequest, match="awaiting approval"):
            world.send(messages=(), decisions=(CallDecision("b"),))


def test_a_message_between_two_decisions_shows_the_one_that_was_made(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Nothing runs that waited for the other decision, and what was denied stays denied."""
    with agent(upstream, tmp_path) as world:
        calls = [Call("pay", {}, id) for id in ("a", "b", "c")]
        upstream.queue(call_tools(*calls), say("Never mind."))
        world.send("Pay.")
        decisions = (CallDecision("a", approve=False, reason="Too much."), CallDecision("b"))
        assert world.send(messages=(), decisions=decisions).run.stop == "requires_approval"
        assert world.send("Wait, no.").texts == ["Never mind."]
        denied = "Error: request to call tool denied. Reason: Too much."
        assert dict(tool_messages(world)) == {"a": denied, "b": UNANSWERED_RESULT, "c": UNANSWERED_RESULT}
        with pytest.raises(BadRequest, match="awaiting approval"):
            world.send(messages=(), decisions=(CallDecision("c"),))


def test_a_tool_of_the_clients_is_answered_by_the_client(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(call_tools(insert("x", "a"), Call("search", {}, "b")), say("Found."))
        paused = world.send("Look.", client_tools=(SEARCH,))
        assert paused.run.stop == "requires_approval"
        # The gateway call next to it ran at once.
        assert world.get_block().value == "x"
        result = {"role": "tool", "tool_call_id": "b", "content": "42"}
        run = world.send(messages=(), decisions=(CallDecision("b", result=result),), client_tools=(SEARCH,))
        assert run.texts == ["Found."]
        assert [id for id, _ in tool_messages(world)] == ["a", "b"]
        assert tool_messages(world)[1][1] == "42"


def test_a_pause_does_not_reset_the_rules(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, rule("max_count_per_step", "memory_insert", max_count_limit=1)) as world:
        upstream.queue(
            call_tools(insert("x", "a")),
            call_tools(Call("pay", {}, "b")),
            call_tools(insert("y", "c")),
            say("So."),
        )
        world.send("Pay.")
        run = world.send(messages=(), decisions=(CallDecision("b"),))
        assert run.texts == ["So."]
        assert tool_messages(world)[-1][1].startswith("Not run: memory_insert may run once")
        assert world.get_block().value == "x"


def test_a_system_message_restarts_the_count(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, rule("max_count_per_step", "memory_insert", max_count_limit=2)) as world:
        upstream.queue(call_tools(insert("x", "a")), say("One."))
        world.send("Note x.")
        upstream.queue(
            call_tools(insert("y", "b")),
            call_tools(Call("pay", {}, "c")),
            call_tools(insert("z", "d")),
            say("So."),
        )
        world.send(messages=(make_framed_system_message("Pay."),))
        assert world.send(messages=(), decisions=(CallDecision("c"),)).texts == ["So."]
        assert world.get_block().value == "x\ny\nz"


def test_three_replies_that_cannot_be_read_end_the_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(*(call_tools(Call("memory_insert", "{", str(n))) for n in range(3)))
        run = world.send("Hi")
        assert (run.run.state, run.run.stop, run.run.steps) == (RunState.FAILED, "invalid_tool_call", 3)


def test_unreadable_arguments_are_sent_to_no_upstream(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Nobody could decide on it, and in the prompt strict servers would refuse it ever after."""
    with agent(upstream, tmp_path) as world:
        upstream.queue(
            call_tools(Call("pay", "{", "a"), Call("search", "{,", "b")),
            call_tools(Call("pay", "", "c"), Call("search", " ", "d")),
            say("Well."),
        )
        paused = world.send("Pay.", client_tools=(SEARCH,))
        assert (paused.run.stop, paused.run.steps) == ("requires_approval", 2)
        for (_, told), sent in zip(tool_messages(world), ("{", "{,"), strict=True):
            assert f"not a JSON object: {sent!r}" in told
        result = {"role": "tool", "tool_call_id": "d", "content": "42"}
        answers = CallDecision("c", approve=False), CallDecision("d", result=result)
        assert world.send(messages=(), decisions=answers, client_tools=(SEARCH,)).texts == ["Well."]
        calls = [call for m in upstream.last.messages for call in m.get("tool_calls") or ()]
        assert [call["function"]["arguments"] for call in calls] == ["{}"] * 4


def test_a_number_that_no_tool_of_the_gateway_has_a_use_for(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path) as world:
        arguments = '{"label":"human","new_string":"x","insert_line":%s}'
        numbers = (2**80, "1e30")
        upstream.queue(
            *(call_tools(Call("memory_insert", arguments % each, f"c{each}")) for each in numbers), say("So.")
        )
        assert world.send("Note it.").texts == ["So."]
        assert [result for _, result in tool_messages(world)] == [
            "Error: `insert_line` of memory_insert is too large. Nothing was done."
        ] * len(numbers)


@pytest.mark.parametrize("name", ["multi_tool_use.parallel", "memory insert", "x" * 100, ""])
def test_a_name_that_no_provider_takes_is_not_sent_again(
    upstream: StrictUpstream, tmp_path: Path, name: str
) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(call_tools(Call(name, {"label": "human", "new_string": "x"}, "a")), say("Well."))
        assert world.send("Hi").texts == ["Well."]
        assert f"there is no tool {name!r}" in tool_messages(world)[0][1]
        assert world.send("Hi").texts == ["Ok."]
        assert world.get_block().value == ""


def test_a_stored_passage_is_found_in_the_same_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path) as world:
        kept = {"content": "Ann likes green tea."}
        upstream.queue(
            call_tools(
                Call("archival_memory_insert", kept, "a"),
                Call("archival_memory_search", {"query": "tea"}, "b"),
            ),
            call_tools(Call("archival_memory_search", {"query": "tea"}, "c")),
            call_tools(Call("archival_memory_search", {"query": 3}, "d")),
        )
        world.send("Hi")
        results = dict(tool_messages(world))
        assert "green tea" in results["b"]
        assert "green tea" in results["c"]
        assert results["d"].startswith("Error: `query` must be a string")


def test_a_passage_that_was_stored_in_the_same_run_is_found_by_its_date(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with agent(upstream, tmp_path) as world:
        search = {"query": "tea", "start_datetime": "2199-01-01"}
        upstream.queue(
            call_tools(
                Call("archival_memory_insert", {"content": "Ann likes green tea."}, "a"),
                Call("archival_memory_search", search, "b"),
            )
        )
        world.send("Hi")
        assert dict(tool_messages(world))["b"] == "Nothing was found."


def test_passages_are_filed_under_their_tags(upstream: StrictUpstream, tmp_path: Path) -> None:
    def keep(text: str, id: str, *tags: str) -> Call:
        return Call("archival_memory_insert", {"content": text, "tags": [*tags]}, id)

    def search(id: str, **fields: Any) -> Call:
        return Call("archival_memory_search", {"query": "tea", **fields}, id)

    with agent(upstream, tmp_path) as world:
        upstream.queue(
            call_tools(
                keep("Green tea.", "a", "x"), keep("Black tea.", "b", "x", "y"), search("c", tags=["y"])
            ),
            call_tools(
                search("d", tags=["x"]),
                search("e", tags=["x", "y"], tag_match_mode="all"),
                search("f", tags=["z"]),
                search("g"),
            ),
        )
        world.send("Hi")
        results = dict(tool_messages(world))
        found = {id: ("Green" in results[id], "Black" in results[id]) for id in "cdefg"}
        assert found == {
            "c": (False, True), "d": (True, True), "e": (False, True), "f": (False, False), "g": (True, True)
        }  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("length", "max_tokens_exceeded"),
        ("model_length", "max_tokens_exceeded"),
        ("network_error", "llm_api_error"),
    ],
)
def test_a_reply_that_was_cut_fails_the_run_and_its_words_stay(
    upstream: StrictUpstream, tmp_path: Path, finish: str, stop: str
) -> None:
    with agent(upstream, tmp_path) as world:
        upstream.queue(say("So far", finish_reason=finish))
        run = world.send("Tell me.")
        assert (run.run.state, run.run.stop) == (RunState.FAILED, stop)
        assert world.list_messages() == ["user: Tell me.", "assistant: So far"]
        assert world.world.query("SELECT state, stop FROM runs") == [("failed", stop)]


@pytest.mark.parametrize(
    ("words", "stop"), [(20, "llm_api_error"), (4_000, "context_window_overflow_in_system_prompt")]
)
def test_a_system_prompt_that_is_too_long_is_named(
    upstream: StrictUpstream, tmp_path: Path, words: int, stop: str
) -> None:
    with serve_agent(
        upstream, tmp_path, system="Help! " * words, context_window=1_000, offers_tools=False
    ) as world:
        upstream.queue(fail(500))
        run = world.send("Hi")
        assert (run.run.state, run.run.stop) == (RunState.FAILED, stop)


PATCH = Call(
    "memory_apply_patch",
    {"label": "human", "patch": "+Ann\n*** Update Block: house\n+Blue\n*** Update Block: human\n+Tall"},
    "p",
)


@pytest.mark.parametrize("is_overtaken", [False, True])
@pytest.mark.sqlite
def test_all_edits_of_one_call_are_in_the_history(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_overtaken: bool
) -> None:
    options: Json = {"uid": "abc", "tools": (AgentTool("memory_apply_patch"),)}
    blocks = (HUMAN, replace(HUMAN, label="house"))
    with serve_agent(upstream, tmp_path, blocks=blocks, **options) as world:
        store, block = world.world.store, world.get_block()
        opening, done = store.stored_paths.open, []

        def overtaken(write: Any) -> Any:
            if is_overtaken and write.edits.writes and not done:
                done.append(store.blocks.write(block.id, block.version, "Bob", at=1.0, origin="test"))
            return opening(write)

        monkeypatch.setattr(store.stored_paths, "open", overtaken)
        upstream.queue(call_tools(PATCH), say("Done."))
        world.send("Note it.")
        assert len(done) == is_overtaken
        (result,) = tool_messages(world)
        assert [word in result[1] for word in ("Ann", "Blue", "Tall")] == [True] * 3
        assert world.get_block().value == ("Bob\nAnn\nTall" if is_overtaken else "Ann\nTall")
        assert world.get_block("house").value == "Blue"
        edits = world.world.query("SELECT call_id, label, state FROM block_ops ORDER BY id")
        assert edits == [("p", "human", "merged"), ("p #2", "house", "merged"), ("p #3", "human", "merged")]


def test_all_edits_of_one_call_of_a_chat_are_made(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_agent(upstream, tmp_path) as world:
        registry = world.world.gateway.app.services.agents.registry
        assert registry is not None
        made = NewAgent(
            AgentDefinition("react_agent", "You help.", model="m"),
            name="ann",
            own_blocks=[BlockDraft(HUMAN, {}), BlockDraft(replace(HUMAN, label="house"), {})],
            tool_names=["memory_apply_patch"],
        )
        view = world.world.gateway.call(registry.create("default", made))
        upstream.queue(call_tools(PATCH), say("Done."))
        chat = world.world.chat(model="agent/ann")
        chat.say("Note it.")
        chat.say("Thanks.")
        world.world.settle()
        blocks = world.world.gateway.call(world.world.store.blocks.load(view.agent.id))
        assert {each.label: each.value for each in blocks} == {"human": "Ann\nTall", "house": "Blue"}


def test_a_nudge_is_no_new_turn_for_the_window(upstream: StrictUpstream, tmp_path: Path) -> None:
    tools = ("memory_insert", "memory_finish_edits")
    with agent(upstream, tmp_path, rule("required_before_exit", "memory_insert"), tools=tools) as world:
        world.spec = replace(world.spec, context_window=3000)
        ignored = say("word " * 700)  # a third one in a row would end the run
        other = call_tools(Call("memory_finish_edits"))
        upstream.queue(ignored, ignored, other, ignored, ignored, other, ignored)
        upstream.queue(call_tools(insert("x")), say("Done."))
        assert world.send("Remember the rose.").run.stop == "end_turn"
        *_, last = upstream.chats
        assert len([m for m in last.messages if "word" in str(m["content"])]) < 5
        assert last.messages[1]["content"].endswith("Remember the rose.")


def test_a_nudge_of_a_chat_is_no_new_turn_for_the_window(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_agent(upstream, tmp_path) as world:
        registry = world.world.gateway.app.services.agents.registry
        assert registry is not None
        rules = (rule("required_before_exit", "memory_insert"),)
        made = NewAgent(
            AgentDefinition("letta_v1_agent", "You help.", model="m", rules=rules, context_window=3000),
            name="ann",
            own_blocks=[BlockDraft(HUMAN, {})],
        )
        world.world.gateway.call(registry.create("default", made))
        upstream.queue(say("word " * 700), say("word " * 700), call_tools(insert("x")), say("Done."))
        chat = world.world.chat(model="agent/ann")
        chat.say("Remember the rose.")
        upstream.queue(say("word " * 700), call_tools(insert("y")), say("Done."))
        chat.say("And?")
        said = [str(m["content"])[:7] for m in upstream.last.messages]
        assert said[1:3] != ["<system", "word wo"], said


FACT = Call("remember_fact", {"fact": "Ann's tortoise is called Sheldon."}, "f")


def test_a_remembered_fact_is_stored_as_a_fact(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(
        upstream, tmp_path, tools=("remember_fact", "recall_memory", "archival_memory_search")
    ) as world:
        upstream.queue(
            call_tools(FACT),
            call_tools(Call("recall_memory", {"query": "tortoise"}, "r")),
            say("Kept."),
        )
        world.send("Her tortoise is called Sheldon.")
        assert tool_messages(world)[0] == ("f", "The fact is kept.")
        assert "Ann's tortoise is called Sheldon." in tool_messages(world)[1][1]
        assert world.world.query("SELECT text FROM facts WHERE agent > 0") == [
            "Ann's tortoise is called Sheldon."
        ]
        assert world.world.query("SELECT text FROM passages") == []
        upstream.queue(
            call_tools(FACT), call_tools(Call("archival_memory_search", {"query": "tortoise"}, "s"))
        )
        world.send("Once more.")
        # The same fact is there once, and is no passage.
        assert len(world.world.query("SELECT id FROM facts WHERE agent > 0")) == 1
        assert tool_messages(world)[-1] == ("s", "Nothing was found.")
        upstream.queue(
            call_tools(
                Call("remember_fact", {"fact": "x " * 300}, "l"),
                Call("remember_fact", {"fact": " ... "}, "e"),
            )
        )
        world.send("And these.")
        assert [words.partition(".")[0] for _, words in tool_messages(world)[-2:]] == [
            "Error: a fact has at most 400 characters",
            "Error: there is no fact to keep",
        ]


def test_a_fact_is_forgotten_with_what_it_came_from(upstream: StrictUpstream, tmp_path: Path) -> None:
    with agent(upstream, tmp_path, tools=("remember_fact",)) as world:
        upstream.queue(call_tools(FACT), say("Kept."))
        world.send("Her tortoise is called Sheldon.")
        store, first = world.world.store, world.load_path()[0].seq

        async def forget() -> None:
            agent = await store.agents.find(world.scope)
            assert agent is not None
            await AgentMessages(store, world.world.clock).delete(agent, ObjectRef(agent.uid, first))

        world.world.gateway.call(forget())
        assert world.world.query("SELECT text FROM facts WHERE agent > 0") == []


def test_a_fact_of_a_chat_is_stored_once_it_is_confirmed(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_agent(upstream, tmp_path) as world:
        registry = world.world.gateway.app.services.agents.registry
        assert registry is not None
        made = NewAgent(
            AgentDefinition("react_agent", "You help.", model="m"), name="ann", tool_names=["remember_fact"]
        )
        world.world.gateway.call(registry.create("default", made))
        upstream.queue(call_tools(FACT), say("Kept."))
        chat = world.world.chat(model="agent/ann")
        chat.say("Her tortoise is called Sheldon.")
        chat.say("Thanks.")
        assert world.world.query("SELECT text FROM facts WHERE agent > 0") == [
            "Ann's tortoise is called Sheldon."
        ]
        world.world.clock.sleep(1000)
        world.world.chat(model="agent/ann").say("What is the tortoise of Ann called?")
        assert "Sheldon" in upstream.last.messages[-1]["content"]
