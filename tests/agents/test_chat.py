"""Chat completions to agents of the agents API: by name and by id, in a tree of their own or in `default`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from msgspec.structs import replace

from gateway.agents.registry.agent_views import AgentView
from gateway.agents.registry.registry import AgentEdit, NewAgent, Registry
from gateway.agents.runs.run_memory import RunMemory
from gateway.core.definition import AgentDefinition
from storage.errors import StoreUnavailable
from storage.listing import BlockDraft
from storage.records import Block
from tests.agents.agent_world import AgentWorld, serve_agent
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, insert, raw, say
from tests.gateway.sdk import World
from tests.server import RawReply

STORED = {"x-mnemogate-conversation": "default"}
APPENDED = {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LOOKS = Call("look", id="call_look")
PICTURE = {"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}
HUMAN = Block(0, "human", "What is known of the user.", "", 1000)


@pytest.fixture
def life(upstream: StrictUpstream, tmp_path: Path) -> Iterator[AgentWorld]:
    with serve_agent(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def world(life: AgentWorld) -> World:
    return life.world


def make(world: World, name: str = "ann", **fields: Any) -> AgentView:
    registry = world.gateway.app.services.agents.registry
    assert isinstance(registry, Registry)
    definition = AgentDefinition("letta_v1_agent", **{"system": "You help.", "model": "m", **fields})
    return world.gateway.call(
        registry.create("default", NewAgent(definition, name=name, own_blocks=[BlockDraft(HUMAN, {})]))
    )


def sent(world: World) -> list[Any]:
    return [m["content"] for m in world.upstream.last.messages if m["role"] != "system"]


@pytest.mark.parametrize("form", ["agent/{name}", "agent/agent-{uid}", "agent-{uid}"])
def test_an_agent_is_asked_by_its_name_or_id(world: World, form: str) -> None:
    made = make(world)
    chat = world.chat(model=form.format(name="ann", uid=made.agent.uid))
    assert chat.say("Hi") == "Ok."
    assert chat.say("Are you there?") == "Ok."
    assert world.upstream.last.json["model"] == "m"
    assert "You help." in world.upstream.last.messages[0]["content"]
    assert sent(world) == ["Hi", "Ok.", "Are you there?"]
    tools = {tool["function"]["name"] for tool in world.upstream.last.json["tools"]}
    assert "memory_insert" in tools


@pytest.mark.parametrize("form", ["agent/{name}", "agent/agent-{uid}", "agent-{uid}"])
def test_an_agent_is_a_model_by_its_name_or_id(world: World, form: str) -> None:
    uid = make(world).agent.uid
    model = form.format(name="ann", uid=uid)
    shown = world.sdk.models.retrieve(model)
    assert (shown.id, shown.owned_by) == (model, "mnemogate")
    make(world)  # another agent of this name
    if "ann" in model:
        with pytest.raises(openai.NotFoundError):
            world.sdk.models.retrieve(model)
    else:
        assert world.sdk.models.retrieve(model) == shown
        assert f"agent/agent-{uid}" in [each.id for each in world.sdk.models.list()]


def test_an_agent_that_is_not_there_is_an_unknown_model(world: World) -> None:
    for model in ("agent/nobody", f"agent-{'0' * 32}"):
        with pytest.raises(openai.NotFoundError):
            world.chat(model=model).say("Hi")


def test_whoever_speaks_it_is_one_memory(world: World) -> None:
    make(world)
    world.chat(model="agent/ann", user="bob").say("My tortoise is called Sheldon.")
    world.clock.sleep(1000)
    world.chat(model="agent/ann", user="carol").say("What is the tortoise called?")
    assert "Sheldon" in world.upstream.last.messages[-1]["content"]
    assert world.query("SELECT count(*) FROM agents WHERE subject LIKE 'user:%'") == [0]


def test_a_key_of_a_user_reaches_no_memory_that_others_share(world: World) -> None:
    """Whoever asks an agent, it is one memory, so the person of such a key would read what others have said to it."""
    agent_id = f"agent-{make(world).agent.uid}"
    keys = world.store.keys
    _, project_key = world.gateway.call(keys.create("default", "k"))
    _, bobs_key = world.gateway.call(keys.create("default", "bob's", user="bob"))
    ours, bobs = ({"authorization": f"Bearer {key}"} for key in (project_key, bobs_key))

    def ask(path: str, headers: dict[str, str], **body: Any) -> RawReply:
        return world.gateway.ask("POST", f"/v1/{path}", orjson.dumps(body), headers)

    hi = [{"role": "user", "content": "Hi"}]
    assert ask("chat/completions", ours, model="agent/ann", messages=hi, user="bob").status == 200
    stored = ask("responses", ours, model=agent_id, input="Hi").json["id"]
    request_count = len(world.upstream.requests)
    for model, headers in (
        ("agent/ann", {}), (agent_id, {}), (agent_id, STORED), ("m", {"x-mnemogate-agent": "ann"}),
    ):  # fmt: skip
        for path, fields in (
            ("chat/completions", {"messages": hi}),
            ("responses", {"input": "Hi"}),
            ("responses", {"input": "Hi", "background": True}),
            ("responses", {"input": "Hi", "previous_response_id": stored}),
            ("messages", {"messages": hi, "max_tokens": 9}),
            ("messages/count_tokens", {"messages": hi}),
        ):
            reply = ask(path, {**bobs, **headers}, model=model, **fields)
            assert (reply.status, reply.json["error"].get("code", "user_not_allowed")) == (403, "user_not_allowed"), (
                path, model, reply.body,
            )  # fmt: skip
    for path in ("", "/input_items"):
        assert world.gateway.ask("GET", f"/v1/responses/{stored}{path}", headers=ours).status == 200
        assert world.gateway.ask("GET", f"/v1/responses/{stored}{path}", headers=bobs).status == 404
    for path, headers, listed in (("models", ours, True), ("models", bobs, False)):
        found = world.gateway.ask("GET", f"/v1/{path}", headers=headers).json["data"]
        assert ("agent/ann" in [each["id"] for each in found]) is listed
    assert world.gateway.ask("GET", "/v1/models/agent/ann", headers=bobs).status == 404
    assert len(world.upstream.requests) == request_count


def test_its_tools_run_in_one_stream(world: World) -> None:
    make(world)
    world.upstream.queue(call_tools(insert("Name: Bob"), text="Let me note that."), say("Noted."))
    chat = world.chat(model="agent/ann")
    assert chat.say("I am Bob.", stream=True) == "Let me note that. Noted."
    assert chat.say("Bye.") == "Ok."
    assert world.query("SELECT value FROM block_history ORDER BY id DESC LIMIT 1") == ["Name: Bob"]


def test_default_goes_on_from_the_agents_api(world: World, life: AgentWorld) -> None:
    made = make(world)
    found = world.gateway.call(world.gateway.app.services.agents.registry.resolver.resolve("default", "ann"))  # type: ignore[union-attr]
    assert found is not None
    rest = AgentWorld(world, found.spec, found.scope)
    rest.send("First over REST.")
    chat = world.chat(headers=STORED, model=f"agent/agent-{made.agent.uid}")
    world.upstream.queue(say("Second."))
    chat.say("Second over chat.")
    assert sent(world) == ["First over REST.", "Ok.", "Second over chat."]
    # Its whole list once more, or the new message alone: what stands is not said twice.
    chat.say("Third.")
    assert sent(world)[2:] == ["Second over chat.", "Second.", "Third."]
    world.chat(headers=STORED, model="agent/ann").say("Fourth.")
    assert sent(world)[-1] == "Fourth."
    assert len(sent(world)) == 7
    rest.send("Fifth over REST.")
    assert len(sent(world)) == 9
    assert [line.split(":")[0] for line in rest.list_messages()] == ["user", "assistant"] * 5


def test_the_reply_says_how_much_of_a_list_is_new(world: World) -> None:
    make(world)
    body = {
        "model": "agent/ann",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One."},
            {"role": "assistant", "content": "Ok."},
            {"role": "user", "content": "Two."},
        ],
    }
    reply = world.gateway.post(body, STORED)
    assert reply.headers["x-mnemogate-appended"] == "1 of 3"
    assert sent(world) == ["Two."]
    assert "Be brief." in world.upstream.last.messages[0]["content"]
    body["messages"] = body["messages"][:3]  # type: ignore[index]
    assert world.gateway.post(body, STORED).error["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_rounds_on_default_are_one_reply_to_the_client_and_stored_as_steps(
    world: World, stream: bool
) -> None:
    make(world)
    world.upstream.queue(call_tools(insert("Name: Bob"), text="One moment."), say("Noted."), say("Bye."))
    chat = world.chat(headers=STORED, model="agent/ann")
    assert chat.say("I am Bob.", stream=stream) == "One moment. Noted."
    assert world.query("SELECT count(*) FROM exchanges") == [2]
    assert world.query("SELECT state, stop, steps FROM runs") == [("completed", "end_turn", 2)]
    assert chat.say("Bye.", stream=stream) == "Bye."
    assert [m["role"] for m in world.upstream.last.messages][1:] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_the_clients_own_tool_pauses_and_its_result_goes_on(world: World) -> None:
    make(world)
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    chat = world.chat(headers=STORED, model="agent/ann", tools=[weather])

    world.upstream.queue(call_tools(Call("get_weather", {}, "w1")), say("Sunny."))
    chat.say("Weather?")
    chat.answer(chat.messages[-1]["tool_calls"][0], "sunny")
    assert chat.go_on() == "Sunny."
    assert [m["role"] for m in world.upstream.last.messages][1:] == ["user", "assistant", "tool"]
    assert world.upstream.last.messages[-1]["content"] == "sunny"


@pytest.mark.parametrize("headers", [{}, STORED])
def test_a_result_of_the_clients_own_tool_is_cut_to_the_window_of_a_stored_conversation(
    world: World, headers: dict[str, str]
) -> None:
    """A list that the client sends again stays its own."""
    make(world, context_window=8000)
    chat = world.chat(model="agent/ann", headers=headers, tools=[LOOK])
    world.upstream.queue(call_tools(LOOKS), say("Read."))
    chat.say("Look.")
    seen = "x" * 20_000
    chat.answer(chat.messages[-1]["tool_calls"][0], seen)
    assert chat.go_on() == "Read."
    cut = f"{seen[:6400]}\n[13600 more characters were cut off.]"
    assert sent(world)[-1] == (cut if headers else seen)


def test_a_result_that_comes_after_the_next_answer_has_its_call_once_more(world: World) -> None:
    """The user has spoken while the client's tool ran."""
    make(world)
    chat = world.chat(model="agent/ann", headers=STORED, tools=[LOOK])
    world.upstream.queue(call_tools(LOOKS, text="Let me look."), say("Still looking."))
    chat.say("What do you see?")
    chat.say("And now?")
    chat.messages.append({"role": "tool", "tool_call_id": "call_look", "content": "A ship."})
    chat.complete()
    expected = [
        "What do you see?",
        "Let me look.",
        "No result was given.",
        "And now?",
        "Still looking.",
        "A ship.",
    ]
    assert sent(world) == expected
    assert world.upstream.last.messages[-2]["tool_calls"][0]["id"] == "call_look"
    chat.messages = [{"role": "user", "content": "Thanks."}]
    chat.complete()
    assert sent(world) == [*expected, "Ok.", "Thanks."]


def test_a_gateway_call_next_to_a_client_call_has_its_result(world: World) -> None:
    make(world)
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    chat = world.chat(headers=STORED, model="agent/ann", tools=[weather])

    world.upstream.queue(call_tools(insert("Name: Bob"), Call("get_weather", {}, "w1")), say("Sunny."))
    chat.say("Weather?")
    chat.answer(chat.messages[-1]["tool_calls"][-1], "sunny")
    assert chat.go_on() == "Sunny."
    results = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
    assert len(results) == 2
    assert "Name: Bob" in results[0]
    assert results[1] == "sunny"


def test_a_request_off_the_record_is_no_part_of_default(world: World) -> None:
    make(world)
    world.chat(headers=STORED, model="agent/ann").say("One.")
    off = world.chat(headers={**STORED, "x-mnemogate-memory": "off"}, model="agent/ann")
    assert off.say("Off the record.") == "Ok."
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    world.chat(headers=STORED, model="agent/ann").say("Two.")
    assert sent(world) == ["One.", "Ok.", "Two."]


def test_a_default_of_a_users_memory_stays_a_tree_until_it_is_sent_to(world: World) -> None:
    chat = world.chat(headers=STORED, user="alice")
    chat.say("One.")
    chat.say("Two.")
    assert world.query("SELECT tip FROM conversations") == [0]


def test_the_rules_of_an_agent_hold_in_chat(world: World) -> None:
    make(world, rules=({"type": "run_first", "tool_name": "memory_insert"},))
    world.upstream.queue(call_tools(insert("x")), say("Done."))
    assert world.chat(model="agent/ann").say("Go.") == "Done."
    asked = [request.json.get("tool_choice") for request in world.upstream.chats]
    assert asked[0] == {"type": "function", "function": {"name": "memory_insert"}}
    assert asked[1] in (None, "auto")


@pytest.mark.parametrize("headers", [{}, STORED, APPENDED])
@pytest.mark.parametrize("stream", [False, True])
def test_the_rules_go_on_after_a_result_of_a_client_tool(
    world: World, headers: dict[str, str], stream: bool
) -> None:
    """What the turn has called before counts, whether the client has seen it or not."""
    first = {"type": "run_first", "tool_name": "memory_insert"}
    once = {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 1}
    make(world, rules=(first, once))
    chat = world.chat(model="agent/ann", headers=headers, tools=[LOOK])

    def forces() -> bool:
        return isinstance(world.upstream.last.json.get("tool_choice"), dict)

    world.upstream.queue(call_tools(insert("a")), call_tools(LOOKS))
    chat.say("Look.", stream=stream)
    chat.answer(chat.messages[-1]["tool_calls"][0], "A ship.")
    again = Call("look", id="call_again")
    world.upstream.queue(call_tools(insert("b"), again), say("Two ships."))
    chat.go_on(stream=stream)
    assert not forces()
    chat.answer(chat.messages[-1]["tool_calls"][0], "Another ship.")
    assert chat.go_on(stream=stream) == "Two ships."
    assert not forces()
    ran, forbidden = (
        m["content"]
        for m in world.upstream.last.messages
        if m["role"] == "tool" and "ship" not in m["content"]
    )
    assert "a" in ran
    assert forbidden.startswith("Not run: memory_insert may run once for one message of the user")
    # With the user's next message they begin again.
    chat.say("Thanks.", stream=stream)
    assert forces()


@pytest.mark.parametrize("headers", [{}, STORED, APPENDED])
def test_a_picture_of_a_result_of_the_clients_own_tool_begins_no_turn(
    world: World, headers: dict[str, str]
) -> None:
    """It follows the result in the user's role, since a tool's message has no place for it."""
    make(world, rules=({"type": "run_first", "tool_name": "memory_insert"},))
    chat = world.chat(model="agent/ann", headers=headers, tools=[LOOK])
    world.upstream.queue(call_tools(insert("a")), call_tools(LOOKS), say("A ship."))
    chat.say("Look.")
    chat.answer(chat.messages[-1]["tool_calls"][0], "See the picture.")
    chat.messages.append({"role": "user", "content": [PICTURE]})
    assert chat.go_on() == "A ship."
    assert not isinstance(world.upstream.last.json.get("tool_choice"), dict)


def test_a_call_that_was_forbidden_before_a_result_of_the_clients_own_tool_does_not_count(
    world: World,
) -> None:
    first = {"type": "run_first", "tool_name": "conversation_search"}
    once = {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 1}
    make(world, rules=(first, once))
    chat = world.chat(model="agent/ann", tools=[LOOK])
    world.upstream.queue(call_tools(insert("a"), LOOKS), call_tools(insert("b")), say("Noted."))
    chat.say("Look.")
    chat.answer(chat.messages[-1]["tool_calls"][0], "A ship.")
    assert chat.go_on() == "Noted."
    forbidden, _, ran = (m["content"] for m in world.upstream.last.messages if m["role"] == "tool")
    assert (forbidden.startswith("Not run:"), ran.startswith("Not run:")) == (True, False)


@pytest.mark.parametrize("headers", [{}, STORED, APPENDED])
@pytest.mark.parametrize("replies", [[[insert("a")], [LOOKS]], [[insert("a"), LOOKS]]])
def test_an_approval_that_no_one_can_give_is_asked_for_once_a_turn(
    world: World, headers: dict[str, str], replies: list[list[Call]]
) -> None:
    """The rule demanded the call again after each result of the client's own tools."""
    rules = [
        {"type": kind, "tool_name": "memory_insert"} for kind in ("required_before_exit", "requires_approval")
    ]
    make(world, rules=tuple(rules))
    chat = world.chat(model="agent/ann", headers=headers, tools=[LOOK])
    world.upstream.queue(*(call_tools(*calls) for calls in replies), say("A ship."))
    chat.say("Look.")
    chat.answer(chat.messages[-1]["tool_calls"][0], "A ship.")
    assert chat.go_on() == "A ship."
    assert len(world.upstream.chats) == len(replies) + 1
    # With the user's next message it may be tried again.
    world.upstream.queue(say("Yes."), call_tools(insert("b")), say("No."))
    assert chat.say("Really?").endswith("No.")


def test_a_reply_without_a_word_can_be_sent_back(world: World) -> None:
    """Of a hidden round the stream had a content of null and no calls, which OpenAI refuses in a list."""
    make(world, rules=({"type": "exit_loop", "tool_name": "memory_insert"},))
    messages: list[Any] = [{"role": "user", "content": "Keep it."}]
    world.upstream.queue(call_tools(insert("a")))
    with world.sdk.chat.completions.stream(model="agent/ann", messages=messages) as stream:
        reply = stream.get_final_completion().choices[0].message
    assert (reply.content, reply.tool_calls) == ("", None)
    messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": "Thanks."}]
    again = world.sdk.chat.completions.create(model="agent/ann", messages=messages)
    assert again.choices[0].message.content == "Ok."


def test_the_rules_go_on_after_a_result_that_names_the_response_before_it(world: World) -> None:
    make(world, rules=({"type": "run_first", "tool_name": "memory_insert"},))
    look: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    world.upstream.queue(call_tools(insert("a")), call_tools(LOOKS), say("A ship."))
    respond = partial(world.sdk.responses.create, model="agent/ann", user="zoe", tools=[look])
    response = respond(input="Look.")
    result: Any = {"type": "function_call_output", "call_id": "call_look", "output": "A ship."}
    assert respond(input=[result], previous_response_id=response.id).output_text == "A ship."
    assert not isinstance(world.upstream.last.json.get("tool_choice"), dict)


def test_rules_that_leave_no_tool_leave_the_clients_own(world: World) -> None:
    registry = world.gateway.app.services.agents.registry
    assert isinstance(registry, Registry)
    once = {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 1}
    defined = AgentDefinition("react_agent", "You help.", model="m", rules=(once,))
    new = NewAgent(defined, name="one", own_blocks=[BlockDraft(HUMAN, {})], tool_names=["memory_insert"])
    world.gateway.call(registry.create("default", new))
    for tools, choice in (([], "none"), ([LOOK], None)):
        world.upstream.queue(call_tools(insert("x")), say("Done."))
        options = {"tools": tools} if tools else {}
        assert world.chat(model="agent/one", **options).say("Go.") == "Done."
        assert world.upstream.last.json.get("tool_choice") == choice


def test_an_agents_definition_takes_effect_with_the_next_request(world: World) -> None:

    made = make(world, system="Before. {CORE_MEMORY} Behind.")
    chat = world.chat(headers=STORED, model="agent/ann")
    chat.say("One.")
    before = world.upstream.last.messages[0]["content"]
    assert before.startswith("Before. <memory_blocks>")
    assert before.endswith("</memory_blocks> Behind.")
    registry = world.gateway.app.services.agents.registry
    assert registry is not None
    edit = AgentEdit(edit_definition=lambda d: replace(d, system="Again."))
    world.gateway.call(registry.change("default", made.agent.uid, edit))
    chat.say("Two.")
    assert world.upstream.last.messages[0]["content"].startswith("Again.\n\n<memory_blocks>")


def test_agents_are_listed_among_the_models(world: World) -> None:
    first, second, twin = make(world, "ann"), make(world, "bob"), make(world, "bob")
    ids = [model.id for model in world.sdk.models.list()]
    assert "agent/ann" in ids
    assert {f"agent/agent-{each.agent.uid}" for each in (second, twin)} <= {*ids}
    assert "agent/bob" not in ids
    assert f"agent/agent-{first.agent.uid}" not in ids
    assert world.sdk.models.retrieve("agent/ann").owned_by == "mnemogate"
    with pytest.raises(openai.NotFoundError):
        world.sdk.models.retrieve("agent/nobody")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{}, STORED])
def test_words_that_a_tool_says_are_the_reply(world: World, headers: dict[str, str], stream: bool) -> None:
    registry = world.gateway.app.services.agents.registry
    assert isinstance(registry, Registry)
    definition = AgentDefinition("memgpt_agent", "You help.", model="m")
    world.gateway.call(
        registry.create("default", NewAgent(definition, name="old", own_blocks=[BlockDraft(HUMAN, {})]))
    )
    words = {"thinking": "A person.", "request_heartbeat": False, "message": "Hello Bob."}
    look = {"thinking": "Who?", "request_heartbeat": True, "query": "Bob"}
    world.upstream.queue(
        call_tools(Call("conversation_search", look, "a")), call_tools(Call("send_message", words, "b"))
    )
    chat = world.chat(model="agent/old", headers=headers)
    assert chat.say("I am Bob.", stream=stream) == "Hello Bob."
    first = world.upstream.last.messages
    world.upstream.queue(call_tools(Call("send_message", {**words, "message": "Bye."}, "c")))
    assert chat.say("Bye.", stream=stream) == "Bye."
    # The model reads its own call again, not the words alone, and what it was sent before stays as it was.
    again = world.upstream.last.messages
    assert again[: len(first)] == first
    assert [m["role"] for m in again[1:]] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert again[4]["tool_calls"][0]["function"]["name"] == "send_message"
    assert "mnemogate" not in str(again)
    assert world.upstream.last.json["tool_choice"] == "required"


def speak(id: str, message: str) -> Call:
    return Call("send_message", {"thinking": "So.", "request_heartbeat": True, "message": message}, id)


@pytest.mark.parametrize(
    ("calls", "heard", "left"),
    [
        ([speak("a", "Good day to you."), speak("b", "I am Ann.")], "Good day", ["Good day", ""]),
        ([speak("a", "Good day to you."), speak("b", "I am Ann.")], "Good day to you. I", ["Good day to you. I", ""]),
        # Nothing was heard of it, and the results of its search came back.
        ([speak("a", "One moment."), Call("conversation_search", {"query": "x"}, "b")], "", ["", None]),
    ],
)  # fmt: skip
def test_the_heard_part_of_spoken_calls_is_in_the_first_call(
    world: World, calls: list[Call], heard: str, left: list[str | None]
) -> None:
    registry = world.gateway.app.services.agents.registry
    assert isinstance(registry, Registry)
    definition = AgentDefinition("memgpt_agent", "You help.", model="m")
    world.gateway.call(
        registry.create("default", NewAgent(definition, name="old", own_blocks=[BlockDraft(HUMAN, {})]))
    )
    world.upstream.queue(call_tools(*calls), call_tools(speak("c", "Here it is.")))
    message = {"role": "user", "content": "Hello."}
    world.gateway.post({"model": "agent/old", "messages": [message]}, STORED)
    world.upstream.queue(call_tools(speak("d", "Yes?")))
    spoken = [{"role": "assistant", "content": heard}] if heard else []
    messages = [message, *spoken, {"role": "user", "content": "Wait."}]
    assert world.gateway.post({"model": "agent/old", "messages": messages}, STORED).status == 200
    sent = world.upstream.last.messages[1:]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool", "user"]
    said = [orjson.loads(each["function"]["arguments"]).get("message") for each in sent[1]["tool_calls"]]
    assert said == left


def test_an_agents_sampling_goes_with_each_request_unless_it_says_so_itself(world: World) -> None:
    make(world, sampling={"temperature": 0.2, "max_tokens": 50, "parallel_tool_calls": False})
    chat = world.chat(model="agent/ann")
    chat.say("One.")
    assert world.upstream.last.json["temperature"] == 0.2
    assert world.upstream.last.json["max_tokens"] == 50
    chat.say("Two.", temperature=0.9, max_completion_tokens=70)
    assert world.upstream.last.json["temperature"] == 0.9
    assert world.upstream.last.json["max_completion_tokens"] == 70
    assert "max_tokens" not in world.upstream.last.json
    world.chat(model="agent/ann", headers=STORED).say("Three.")
    assert world.upstream.last.json["temperature"] == 0.2


@pytest.mark.parametrize(
    "fields", [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}]
)
@pytest.mark.parametrize("mode", ["on", "read", "off"])
def test_sampling_fields_about_tools_go_upstream_only_with_tools(
    world: World, mode: str, fields: Any
) -> None:
    """Strict upstreams refuse `parallel_tool_calls` without tools."""
    make(world, sampling={"parallel_tool_calls": False})
    messages = [{"role": "user", "content": "Answer in JSON."}]
    for more in ({}, fields):
        reply = world.post(messages, {"x-mnemogate-memory": mode}, model="agent/ann", **more)
        assert reply.status == 200, reply.body
        body = world.upstream.last.json
        assert ("parallel_tool_calls" in body) is ("tools" in body) is (mode == "on" and not more)


def test_a_message_for_an_answer_in_a_form_is_of_the_agents_own_conversation(world: World) -> None:
    make(world)
    for n in (1, 2):
        world.upstream.queue(say(f'{{"say":{n}}}'))
        messages = [{"role": "user", "content": f"JSON of {n}."}]
        reply = world.post(messages, STORED, model="agent/ann", response_format={"type": "json_object"})
        assert reply.headers["x-mnemogate-memory"] == "on"
    assert sent(world) == ["JSON of 1.", '{"say":1}', "JSON of 2."]


def rest_of(world: World, name: str = "ann") -> AgentWorld:
    registry = world.gateway.app.services.agents.registry
    assert registry is not None
    found = world.gateway.call(registry.resolver.resolve("default", name))
    assert found is not None
    return AgentWorld(world, found.spec, found.scope)


def test_a_conversation_that_is_named_by_its_id_is_the_same(world: World) -> None:
    make(world)
    rest_of(world).send("One.")
    (uid,) = world.query("SELECT uid FROM conversations")
    world.chat(model="agent/ann", headers={"x-mnemogate-conversation": f"conv-{uid}"}).say("Two.")
    assert sent(world) == ["One.", "Ok.", "Two."]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_message_buffer_that_clears_begins_each_turn_empty(world: World) -> None:
    make(world, clears=True)
    rest = rest_of(world)
    rest.send("One.")
    world.upstream.queue(call_tools(insert("x")), say("Done."))
    rest.send("Two.")
    assert [m["role"] for m in world.upstream.last.messages] == ["system", "user", "assistant", "tool"]
    assert sent(world)[0] == "Two."
    assert len(rest.list_messages()) == 6


def test_a_note_of_no_tokens_is_no_note(world: World) -> None:
    make(world, recall_tokens=0)
    world.chat(model="agent/ann").say("My tortoise is called Sheldon.")
    world.clock.sleep(1000)
    world.chat(model="agent/ann").say("What is the tortoise called?")
    assert "Sheldon" not in world.upstream.last.messages[-1]["content"]


def test_the_messages_with_which_an_agent_begins(world: World) -> None:
    first = ({"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "Hello."})
    make(world, initial_messages=first)
    rest = rest_of(world)
    rest.send("Hi")
    assert sent(world) == ["Welcome.", "Hello.", "Hi"]
    rest.send("And?")
    begun = ["assistant: Welcome.", "user: Hello.", "user: Hi"]
    assert rest.list_messages() == [*begun, "assistant: Ok.", "user: And?", "assistant: Ok."]


def test_runs_of_a_process_that_is_gone_have_failed(world: World) -> None:
    make(world)
    rest = rest_of(world)
    rest.send("One.")
    world.gateway.call(_leave_open(world))
    world.gateway.call(rest.agent_runs.abandoned.end_all())
    assert world.query("SELECT state, stop FROM runs") == [("failed", "error")]


async def _leave_open(world: World) -> None:
    await world.store.database.write(lambda c: c.run("UPDATE runs SET state = 'running', stop = NULL", ()))


def test_a_prompt_that_is_too_long_is_cut_and_sent_once_more(world: World) -> None:
    make(world, context_window=None)
    rest = rest_of(world)
    for n in range(8):
        rest.send(f"Message {n} " + "word " * 300)
    words = (
        "This model's maximum context length is 2000 tokens. However, your messages resulted in 4000 tokens."
    )
    too_long = fail(400, words, code="context_length_exceeded")
    world.upstream.queue(too_long, say("Short again."))
    done = rest.send("And now?")
    assert done.texts == ["Short again."]
    assert len(world.upstream.chats[-1].body) < len(world.upstream.chats[-2].body) / 2
    assert rest.list_messages()[-2:] == ["user: And now?", "assistant: Short again."]


def test_a_tool_that_nobody_has_gets_an_error_and_the_clients_own_does_not(world: World) -> None:
    make(world)
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    chat = world.chat(model="agent/ann", tools=[weather])
    world.upstream.queue(call_tools(Call("get_wether", {}, "a")), call_tools(Call("get_weather", {}, "b")))
    chat.say("Weather?", stream=True)
    assert world.upstream.last.messages[-1]["content"].startswith("Error: there is no tool 'get_wether'.")
    assert [call["id"] for call in chat.messages[-1]["tool_calls"]] == ["b"]


def test_a_call_by_an_unknown_name_stays_in_the_prompt(world: World) -> None:
    make(world)
    chat = world.chat(model="agent/ann")
    world.upstream.queue(call_tools(Call("get_wether", {}, "a")), say("There is none."))
    assert chat.say("Weather?") == "There is none."
    before = world.upstream.last.messages
    chat.say("Never mind.")
    assert world.upstream.last.messages[: len(before)] == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_send_that_comes_again_is_answered_as_before(world: World, stream: bool) -> None:
    """Its answer was lost on its way: the SDK sends it once more, and nothing is asked or done a second time."""
    make(world)
    chat = world.chat(model="agent/ann", headers=STORED, tools=[LOOK])
    chat.say("Hi")
    world.upstream.queue(call_tools(insert("a"), text="Let me see."), call_tools(LOOKS, text="Now."))
    chat.messages.append({"role": "user", "content": "Look."})
    first = chat.complete(stream=stream)
    chat_count = len(world.upstream.chats)
    chat.headers = {**STORED, "x-stainless-retry-count": "1"}
    again = chat.complete(stream=stream)
    assert again == first
    assert again["content"] == "Let me see. Now."
    assert [call["function"]["name"] for call in again["tool_calls"]] == ["look"]
    assert len(world.upstream.chats) == chat_count


def test_a_call_of_the_clients_custom_tool_is_shown_and_answered(world: World) -> None:
    """Its client gets it once more where the answer was lost, and goes on after a failure of the upstream."""
    made = make(world)
    tool = {"type": "custom", "custom": {"name": "sql"}}
    call = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    completion = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    chat = world.chat(model="agent/ann", headers=STORED, tools=[tool])
    world.upstream.queue(
        raw(orjson.dumps(completion), content_type="application/json"), fail(500), say("One.")
    )

    chat.messages.append({"role": "user", "content": "Ask."})
    first = chat.complete()
    chat.headers = {**STORED, "x-stainless-retry-count": "1"}
    assert chat.complete()["tool_calls"] == first["tool_calls"] == [call]
    listed = world.gateway.ask("GET", f"/v1/agents/agent-{made.agent.uid}/messages?order=asc")
    (shown,) = [each for each in orjson.loads(listed.body) if "tool_call" in each]
    assert shown["tool_call"] == {"name": "sql", "arguments": "SELECT 1", "tool_call_id": "c1"}

    chat.headers = STORED
    chat.messages += [first, {"role": "tool", "tool_call_id": "c1", "content": "1"}]
    with pytest.raises(openai.InternalServerError, match="Something went wrong"):
        chat.complete()
    chat.headers = {**STORED, "x-stainless-retry-count": "1"}
    assert chat.go_on() == "One."
    assert world.upstream.last.messages[-2]["tool_calls"] == [call]


def test_a_result_that_comes_again_after_an_error_is_given_once(world: World) -> None:
    """Applications that retry by themselves send no header of a retry."""
    make(world)
    chat = world.chat(model="agent/ann", headers=STORED, tools=[LOOK])
    world.upstream.queue(call_tools(LOOKS), fail(500), say("One."))
    chat.say("Ask.")
    chat.answer(chat.messages[-1]["tool_calls"][0], "1")
    with pytest.raises(openai.InternalServerError, match="Something went wrong"):
        chat.complete()
    assert chat.go_on() == "One."
    assert [m["role"] for m in world.upstream.last.messages][-3:] == ["user", "assistant", "tool"]
    assert chat.say("And now?") == "Ok."


def test_the_same_message_after_its_answer_is_another_send(world: World) -> None:
    """The library sends it again since its first request did not arrive."""
    make(world)
    chat = world.chat(model="agent/ann", headers=STORED)
    world.upstream.queue(say("First."), say("Second."))
    assert chat.say("Go on.") == "First."
    chat.headers = {**STORED, "x-stainless-retry-count": "1"}
    assert chat.say("Go on.") == "Second."
    assert sent(world) == ["Go on.", "First.", "Go on."]


def test_a_send_that_comes_again_may_bring_what_was_cancelled_before_it(world: World) -> None:
    make(world)
    chat = world.chat(model="agent/ann", headers=STORED)
    chat.say("Hi")
    world.upstream.queue(fail(500), say("Yes."))
    chat.messages.append({"role": "user", "content": "Are you"})
    with pytest.raises(openai.InternalServerError):
        chat.complete()
    chat.messages.append({"role": "user", "content": "there?"})
    first = chat.complete()
    chat.headers = {**STORED, "x-stainless-retry-count": "1"}
    assert chat.go_on() == first["content"] == "Yes."
    assert chat.say("Good.") == "Ok."
    assert sent(world) == ["Hi", "Ok.", "Are you", "there?", "Yes.", "Good."]


def test_a_lone_message_that_comes_again_is_stored_once(world: World) -> None:
    """Its client sends its new message alone, so its list does not show which reply it has."""
    make(world)

    def send(text: str, status: int = 200, **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = world.post([{"role": "user", "content": text}], {**STORED, **names}, model="agent/ann")
        assert reply.status == status

    send("Hi")
    world.upstream.queue(fail(500), say("Yes."))
    send("Are you there?", status=500)
    send("Are you there?", x_stainless_retry_count="1")
    send("Good.")
    assert sent(world) == ["Hi", "Ok.", "Are you there?", "Yes.", "Good."]


@pytest.mark.parametrize("stream", [False, True])
def test_a_store_that_fails_between_two_steps_is_said_to_fail(
    world: World, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    make(world)

    async def save_step(*_: object) -> object:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(RunMemory, "save_step", save_step)
    world.upstream.queue(call_tools(insert("Name: Bob"), text="Let me note that."))
    with pytest.raises(openai.APIError) as caught:
        world.chat(model="agent/ann", stream=stream, headers=STORED).say("I am Bob.")
    assert caught.value.code == "memory_unavailable"
