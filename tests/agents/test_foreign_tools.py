"""Tools that are not the gateway's own, called within a run."""

from __future__ import annotations

import json
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pytest

from gateway.agents.registry.registry import NewAgent
from gateway.core import ids
from gateway.core.agent import AgentTool
from gateway.core.definition import AgentDefinition, ToolDefinition
from gateway.run.sink import ClientGone
from gateway.settings import ToolSettings
from storage.listing import BlockDraft
from tests.agents.agent_world import HUMAN, AgentWorld, ListeningSink, serve_agent
from tests.doubles.bell_webhook import BellWebhook
from tests.doubles.tool_server import replying, served
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import CHAT
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap
from tests.patience import PATIENCE_S, becomes

UID = "0123456789abcdef0123456789abcdef"
SCHEMA = {
    "name": "lookup",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}


def options(tool: ToolDefinition) -> dict[str, Any]:
    defined = AgentDefinition("letta_v1_agent", "You help.")
    return {"uid": UID, "tools": (AgentTool("lookup", tool),), "definition": defined}


def make_ann(life: AgentWorld, url: str, schema: dict[str, Any] = SCHEMA) -> None:
    """Makes an agent that has the tool `lookup`, which is called at this URL."""
    registry = life.world.gateway.app.services.agents.registry
    assert registry is not None
    tool = ToolDefinition(schema, "webhook", url)
    life.world.gateway.call(registry.tools.create("default", "lookup", tool))
    defined = AgentDefinition("react_agent", "You help.", model="m")
    life.world.gateway.call(registry.create("default", NewAgent(defined, name="ann", tool_names=["lookup"])))


def results(life: AgentWorld) -> list[tuple[str, str]]:
    """The results that went upstream with the newest call."""
    return [(m["tool_call_id"], m["content"]) for m in life.upstream.last.messages if m["role"] == "tool"]


def test_a_webhook_within_a_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    with served(replying("200 OK", b"0123456789")) as server:
        tool = ToolDefinition(SCHEMA, "webhook", f"{server.url}/hook", result_chars=4)
        with serve_agent(
            upstream, tmp_path, ToolSettings(private_hosts=(server.url,)), **options(tool)
        ) as life:
            upstream.queue(
                call_tools(Call("lookup", {"q": "a"}, "w/1")),
                call_tools(Call("lookup", {"q": "b"}, "w/1"), Call("lookup", {}, "w2")),
                say("Done."),
            )
            run = life.send("Look it up.")
            assert run.texts == ["Done."]
            assert results(life) == [
                ("w/1", "0123\n[6 more characters were cut off.]"),
                ("call_mnemogate_2_0", "0123\n[6 more characters were cut off.]"),
                ("w2", "Error: `q` is missing in the call of lookup. Nothing was done."),
            ]
    first, second = map(orjson.loads, server.bodies)
    assert first == {
        "tool": "lookup",
        "arguments": {"q": "a"},
        "agent_id": f"agent-{UID}",
        "run_id": f"run-{run.run.uid}",
        "call_id": "w/1",
    }
    assert second["arguments"] == {"q": "b"}
    keys = [line for head in server.heads for line in head.splitlines() if line.startswith("Idempotency-Key")]
    names = zip(run.result.steps, ("w%2F1", "call_mnemogate_2_0"), strict=False)
    assert keys == [
        f"Idempotency-Key: {ids.make_id_with_seq('step', UID, e.seq)}/{call}" for e, call in names
    ]


def test_an_integer_of_any_size_reaches_a_tool_as_it_is(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Beyond 64 bits it became a float."""
    number = 2**80 + 1
    numbers = {"type": "array", "items": {"type": "integer"}}
    schema = {"name": "lookup", "parameters": {"type": "object", "properties": {"q": numbers}}}
    with served(replying("200 OK", b"Found.")) as server:
        tool = ToolDefinition(schema, "webhook", f"{server.url}/hook")
        with serve_agent(
            upstream, tmp_path, ToolSettings(private_hosts=(server.url,)), **options(tool)
        ) as life:
            asked = [f'{{"q":[{number}]}}', f'{{"q":"[{number}]"}}', f'{{"q":[{number},"x"]}}']
            upstream.queue(
                *(call_tools(Call("lookup", each, f"w{n}")) for n, each in enumerate(asked)), say("So.")
            )
            life.send("Look it up.")
            wrong = "Error: `q[1]` must be an integer, and is 'x' in the call of lookup. Nothing was done."
            assert results(life)[-1] == ("w2", wrong)
    assert [json.loads(body)["arguments"] for body in server.bodies] == [{"q": [number]}] * 2


def test_no_result_has_a_nul(upstream: StrictUpstream, tmp_path: Path) -> None:
    """It went to the model and into the store, and an application's own database may take no such text."""
    with served(replying("200 OK", b"a\0b")) as server:
        tool = ToolDefinition(SCHEMA, "webhook", f"{server.url}/hook")
        with serve_agent(
            upstream, tmp_path, ToolSettings(private_hosts=(server.url,)), **options(tool)
        ) as life:
            upstream.queue(call_tools(Call("lookup", {"q": "a"}, "w1")), say("Done."))
            life.send("Look it up.")
            assert results(life) == [("w1", "ab")]


def test_the_words_of_a_call_are_dropped_three_hours_after_a_live_run(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with served(replying("200 OK", b"Found.")) as server:
        tool = ToolDefinition(SCHEMA, "webhook", f"{server.url}/hook")
        with serve_agent(
            upstream, tmp_path, ToolSettings(private_hosts=(server.url,)), **options(tool)
        ) as life:
            upstream.queue(call_tools(Call("lookup", {"q": "a"}, "w1")), say("Done."))
            life.send("Look it up.")
            held = "SELECT kind FROM run_texts WHERE agent <> 0 ORDER BY kind"
            assert life.world.query(held) == ["call", "result"]
            cleaning = life.world.gateway.app.services.background.run_cleaning
            assert life.world.gateway.call(cleaning.perform_due()) <= 3 * 3600
            life.world.clock.sleep(3 * 3600 + 1)
            life.world.gateway.call(cleaning.perform_due())
            assert life.world.query(held) == []


def test_an_id_of_kilobytes_is_in_no_header(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Servers refuse a head of so much."""
    id = token_hex(3000)
    with served(replying("200 OK", b"Found.")) as server:
        tool = ToolDefinition(SCHEMA, "webhook", f"{server.url}/hook")
        with serve_agent(
            upstream, tmp_path, ToolSettings(private_hosts=(server.url,)), **options(tool)
        ) as life:
            upstream.queue(call_tools(Call("lookup", {"q": "a"}, id)), say("Done."))
            life.send("Look it up.")
            assert results(life) == [(id, "Found.")]
    (head,), (body,) = server.heads, server.bodies
    assert len(head) < 1000
    assert orjson.loads(body)["call_id"] == id


@needs_bwrap
def test_python_within_a_run(upstream: StrictUpstream, tmp_path: Path) -> None:
    source = (
        "def lookup(q: str, agent_state):\n    print('looking')\n"
        "    return [q, agent_state.id, agent_state.memory.get_block('human').value]"
    )
    settings = ToolSettings(python=PYTHON)
    with serve_agent(
        upstream, tmp_path, settings, **options(ToolDefinition(SCHEMA, "python", source))
    ) as life:
        life.write_block("Ann")
        upstream.queue(call_tools(Call("lookup", {"q": "a"}, "p1")), say("Done."))
        assert life.send("Look it up.").texts == ["Done."]
        assert results(life) == [("p1", f'["a", "agent-{UID}", "Ann"]')]
        # What it printed is stored with the result, and is not the model's.
        (kept,) = [m for e in life.load_path() for m in orjson.loads(e.input or b"[]") if m["role"] == "tool"]
        assert kept["mnemogate"]["stdout"] == "looking\n"


def test_an_error_of_a_tool_is_a_result(upstream: StrictUpstream, tmp_path: Path) -> None:
    tool = ToolDefinition(SCHEMA, "webhook", "https://api.example.org/hook")
    with serve_agent(upstream, tmp_path, **options(tool)) as life:
        upstream.queue(call_tools(Call("lookup", {"q": "a"}, "w1")), say("A pity."))
        assert life.send("Look it up.").texts == ["A pity."]
        assert results(life) == [
            (
                "w1",
                "Error: lookup cannot be called: no host may be spoken to: "
                "the setting tools.hosts names none.",
            )
        ]


def test_a_repeated_chat_completion_calls_no_tool_twice(upstream: StrictUpstream, tmp_path: Path) -> None:
    with (
        served(replying("200 OK", b"Sent.")) as server,
        serve_agent(upstream, tmp_path, ToolSettings(private_hosts=(server.url,))) as life,
    ):
        make_ann(life, f"{server.url}/hook")

        def ask(*messages: Any, **options: Any) -> None:
            """Asks once; the model makes two calls alike, and says it is done."""
            call = Call("lookup", {"q": "a"})
            upstream.queue(call_tools(call), call_tools(call), say("Done."))
            reply = life.world.post(messages, **{"model": "agent/ann", **options})
            assert reply.json["choices"][0]["message"]["content"] == "Done."
            assert [words for _, words in results(life)][-2:] == ["Sent.", "Sent."]

        first: dict[str, Any] = {"role": "user", "content": "Send it."}
        ask(first, user="zoe")
        ask(first, user="zoe")
        assert len(server.bodies) == 2
        # Another speaker, another conversation, and what follows on it are places of their own.
        ask(first, user="eve")
        assert len(server.bodies) == 4
        message = {"role": "assistant", "content": "Done."}
        for _ in range(2):
            ask(first, message, first, user="zoe")
        assert len(server.bodies) == 6
        # The first of two gives the reply before them the form in which it was heard.
        for _ in range(2):
            ask(first, message, first, {**message, "content": "Don"}, first, user="zoe")
        assert len(server.bodies) == 8
        # A voice agent asks before the sentence is over, and its caller may go on before the answer.
        for words in (["Send Bob the"], ["Send Bob the mail."], ["Send Bob the mail.", "Now!"]):
            ask(*({"role": "user", "content": each} for each in words), user="ida")
        assert len(server.bodies) == 10
        # A voice agent may speak first; what its caller says then is another request.
        greet = {"role": "system", "content": "Greet the caller."}
        for more in ([], [], [first]):
            ask(greet, *more, user="kim")
        assert len(server.bodies) == 14
        # Where nobody says whose conversation it is, another one may begin alike.
        for _ in range(2):
            ask({"role": "user", "content": "Send that."})
        assert len(server.bodies) == 18


@needs_bwrap
def test_a_chat_completion_that_comes_again_overwrites_no_newer_block(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    source = (
        "def lookup(q: str, agent_state):\n"
        "    agent_state.memory.update_block_value('human', q)\n"
        "    return 'Noted.'"
    )
    with serve_agent(upstream, tmp_path, ToolSettings(python=PYTHON)) as life:
        world, registry = life.world, life.world.gateway.app.services.agents.registry
        assert registry is not None
        tool = ToolDefinition(SCHEMA, "python", source)
        world.gateway.call(registry.tools.create("default", "lookup", tool))
        defined = AgentDefinition("react_agent", "You help.", model="m")
        new = NewAgent(defined, name="ann", own_blocks=[BlockDraft(HUMAN, {})], tool_names=["lookup"])
        view = world.gateway.call(registry.create("default", new))

        def ask() -> str:
            """Asks once. Returns the tool's result."""
            upstream.queue(call_tools(Call("lookup", {"q": "Ann"})), say("Done."))
            world.post([{"role": "user", "content": "I am Ann."}], model="agent/ann", user="zoe")
            return results(life)[-1][1]

        assert "Error" not in ask() + ask()

        async def write() -> None:
            (block,) = await world.store.blocks.load(view.agent.id)
            await world.store.blocks.write(block.id, block.version, "Bob", at=1.0, origin="test")

        world.gateway.call(write())
        assert "Error: the memory block 'human' was changed by another writer meanwhile" in ask()


@pytest.mark.parametrize("conversation", [None, "default"])
@pytest.mark.parametrize("text", [None, "One moment."])
def test_a_stream_is_not_silent_while_a_tool_takes_long(
    upstream: StrictUpstream, tmp_path: Path, conversation: str | None, text: str | None
) -> None:
    with (
        served(replying("200 OK", b"Sent.")) as server,
        serve_agent(
            upstream,
            tmp_path,
            ToolSettings(private_hosts=(server.url,)),
            server={"keep_alive_comment_s": 0.01},
        ) as life,
    ):
        make_ann(life, f"{server.url}/hook")
        body = {
            "model": "agent/ann",
            "user": "zoe",
            "messages": [{"role": "user", "content": "Send it."}],
            "stream": True,
        }
        for after, said in ((say("Done."), b"Done."), (fail(429), b'"type":"rate_limit_error"')):
            server.gate = Gate()
            upstream.queue(call_tools(Call("lookup", {"q": str(after.status)}), text=text), after)
            headers = {} if conversation is None else {"x-mnemogate-conversation": conversation}
            with life.world.gateway.connect() as client:
                client.request("POST", CHAT, orjson.dumps(body), headers)
                assert client.read_head().status == 200
                client.read_until(b": keep-alive\n\n")
                server.gate.open()
                assert said in client.read_until(said)


def test_a_client_that_left_finds_its_call_made(upstream: StrictUpstream, tmp_path: Path) -> None:
    with (
        served(replying("200 OK", b"Sent.")) as server,
        serve_agent(upstream, tmp_path, ToolSettings(private_hosts=(server.url,))) as life,
    ):
        make_ann(life, f"{server.url}/hook")
        gate = Gate()
        upstream.queue(
            call_tools(Call("lookup", {"q": "a"}), text="One moment."), say("Late.", hold_before_headers=gate)
        )
        arrived = upstream.request_gate(2)
        body: Any = {
            "model": "agent/ann",
            "user": "zoe",
            "messages": [{"role": "user", "content": "Send it."}],
        }
        stream = life.world.sdk.chat.completions.create(**body, stream=True)
        arrived.wait_sync()
        stream.close()
        upstream.requests[-1].gone.wait_sync()
        gate.open()
        upstream.forget_replies()
        upstream.queue(call_tools(Call("lookup", {"q": "a"})), say("Done."))
        again = life.world.sdk.chat.completions.create(**body)
        assert (again.choices[0].message.content, len(server.bodies)) == ("Done.", 1)


def test_a_call_that_was_sent_when_its_client_left_is_known_to_the_next_request(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Else the model would make it again, whatever it was."""
    webhook = BellWebhook()
    webhook.held_bells.add("b")
    with serve_agent(upstream, tmp_path, ToolSettings(private_hosts=(webhook.url,))) as life:
        make_ann(life, f"{webhook.url}/hook", {**SCHEMA, "parameters": {}})  # its calls run one by one
        calls = [Call("lookup", {"bell": bell}, f"call_{bell}") for bell in "ab"]
        upstream.queue(call_tools(*calls, text="One moment."), say("I see."))
        asked: list[Any] = [{"role": "user", "content": "Ring."}]
        body: Any = {"model": "agent/ann", "user": "zoe", "messages": asked}
        stream = life.world.sdk.chat.completions.create(**body, stream=True)
        becomes(lambda: webhook.bells == ["a", "b"])
        stream.close()
        becomes(lambda: life.world.query("SELECT id FROM exchanges WHERE state = 'cancelled'"))
        asked += [{"role": "assistant", "content": "One moment."}, {"role": "user", "content": "And?"}]
        life.world.sdk.chat.completions.create(**body)
        told = "Error: the call was interrupted; it may or may not have been done."
        assert results(life) == [("call_a", "a rang"), ("call_b", told)]
        assert [m["role"] for m in upstream.last.messages[1:]] == [
            "user",
            "assistant",
            "tool",
            "tool",
            "user",
        ]


@pytest.mark.parametrize(
    "parameters", [{"type": "object"}, {"type": "object", "properties": None, "required": None}, {}, None]
)
def test_a_tool_without_arguments_goes_upstream_as_every_provider_takes_it(
    upstream: StrictUpstream, tmp_path: Path, parameters: Any
) -> None:
    """Many MCP servers list {"type": "object"}, which OpenAI refuses: each send to the agent would be a 400."""
    tool = ToolDefinition({**SCHEMA, "parameters": parameters}, "json")
    with serve_agent(upstream, tmp_path, ToolSettings(), **options(tool)) as life:
        life.send("Look it up.")
        sent = {each["function"]["name"]: each["function"] for each in upstream.last.json["tools"]}
        assert sent["lookup"]["parameters"] == {"type": "object", "properties": {}}


def test_a_client_that_leaves_a_send_does_not_have_its_call_denied(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """It is not known whether the webhook has done it; the model is sent that, and not that there was no result."""
    webhook = BellWebhook()
    webhook.held_bells.add("a")
    tool = ToolDefinition({**SCHEMA, "parameters": {}}, "webhook", f"{webhook.url}/hook")
    with serve_agent(upstream, tmp_path, ToolSettings(private_hosts=(webhook.url,)), **options(tool)) as life:
        upstream.queue(call_tools(Call("lookup", {"bell": "a"}, "w1")), say("I see."))
        sink = ListeningSink()
        run = life.begin_send("Look it up.", sink)
        assert webhook.called.wait(PATIENCE_S)
        life.close_client(sink)
        with pytest.raises(ClientGone):
            run.result(PATIENCE_S)
        life.send("And?")
        told = "Error: the call was interrupted; it may or may not have been done."
        assert results(life) == [("w1", told)]
        assert life.list_messages()[1:3] == ["assistant: lookup", f"tool: {told}"]
    assert webhook.bells == ["a"]
