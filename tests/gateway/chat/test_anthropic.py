"""An OpenAI-SDK application in front of Claude, through the real gateway, with memory: notes, sections, hidden rounds.

The strict upstream refuses what Anthropic refuses, so that whatever arrives there is well formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import orjson
import pydantic
import pytest

from gateway.settings import ModelSettings, ProfileSettings, UpstreamSettings
from tests.doubles.anthropic_rules import OLD_VERSION, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, message, refuse, think
from tests.doubles.upstream import Call, Gate, StrictUpstream, UpstreamRequest, call_tools, fail, insert, say
from tests.gateway.sdk import Chat, World, agent, join_stream, remember, to_list_message
from tests.server import serve, settings_for

Json = dict[str, Any]

MODEL = "claude-opus-4-6"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def claude(upstream: StrictAnthropic, **more: Any) -> tuple[UpstreamSettings, ...]:
    return (UpstreamSettings("up", "anthropic", upstream.base_url, **more),)


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


@pytest.fixture
def world(upstream: StrictAnthropic, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(model=MODEL), upstreams=claude(upstream)) as made:
        yield made


def helper(world: World, **options: Any) -> Chat:
    return world.chat(model="agent/helper", user="alice", **options)


def system(request: UpstreamRequest) -> str:
    return "\n".join(block["text"] for block in request.json["system"])


def turns(request: UpstreamRequest) -> list[tuple[str, list[str]]]:
    """Role and kinds of blocks, turn by turn."""
    return [(turn["role"], [block["type"] for block in turn["content"]]) for turn in request.json["messages"]]


def without_marks(request: UpstreamRequest) -> Json:
    body: Json = orjson.loads(request.body.replace(b',"cache_control":{"type":"ephemeral"}', b""))
    return body


# -- memory


@both_ways
def test_a_message_of_one_conversation_is_recalled_in_another(world: World, stream: bool) -> None:
    first = world.chat(user="alice", model=MODEL, stream=stream)
    assert first.say("My cat is called Miso, she is grey.") == "Ok."
    second = world.chat(user="alice", model=MODEL, stream=stream)
    second.say("What is my cat called?")
    note, question = second_turn_texts(world)
    assert "Miso" in note
    assert "What is my cat called?" in question
    stranger = world.chat(user="bob", model=MODEL, stream=stream)
    stranger.say("What is my cat called?")
    assert b"Miso" not in world.upstream.last.body


def second_turn_texts(world: World) -> tuple[str, str]:
    blocks = world.upstream.last.json["messages"][0]["content"]
    return blocks[0]["text"], blocks[-1]["text"]


@both_ways
def test_a_hidden_round_is_run_within_one_reply(world: World, stream: bool) -> None:
    world.upstream.queue(
        call_tools(insert("Likes tea."), text="Noted. "), say("I shall remember.", usage=None)
    )
    chat = helper(world, stream=stream)
    assert chat.say("I like tea.") == "Noted. I shall remember."
    first, second = world.upstream.chats
    assert {tool["name"] for tool in first.json["tools"]} >= {"memory_insert", "conversation_search"}
    assert 'label="human"' in system(first)
    assert turns(second) == [
        ("user", ["text"]),
        ("assistant", ["text", "tool_use"]),
        ("user", ["tool_result"]),
    ]
    chat.say("What do I like?")
    assert world.block("alice").value == "Likes tea."
    third = world.upstream.last
    assert turns(third)[:3] == turns(second), "the hidden round is put back"
    before, after = without_marks(second), without_marks(third)
    assert after["messages"][: len(before["messages"])] == before["messages"]
    assert (after["system"], after["tools"]) == (before["system"], before["tools"])
    assert world.query("SELECT count(*) FROM exchanges") == [2]


@both_ways
def test_a_mixed_round_keeps_the_order_claude_demands(world: World, stream: bool) -> None:
    world.upstream.queue(
        call_tools(insert("Lives in Rome."), Call("weather", {"city": "Rome"})), say("It is sunny.")
    )
    chat = helper(world, stream=stream, tools=[WEATHER])
    chat.say("I live in Rome. How is the weather?")
    (call,) = chat.messages[-1]["tool_calls"]
    assert call["function"]["name"] == "weather"
    chat.answer(call, "sun")
    assert chat.go_on() == "It is sunny."
    assert turns(world.upstream.last)[1:] == [
        ("assistant", ["tool_use", "tool_use"]),
        ("user", ["tool_result", "tool_result"]),
    ]


@both_ways
def test_thoughts_of_hidden_rounds_go_back_signed(world: World, stream: bool) -> None:
    """The strict upstream refuses a round whose thought is missing or was touched."""
    redacted = {"type": "redacted_thinking", "data": "opaque"}
    thought = {"type": "thinking", "thinking": "I should note it.", "signature": sign("I should note it.")}
    world.upstream.queue(
        Message(text=None, blocks=[thought, redacted], calls=[insert("Likes tea.")]),
        think("Now answer.", text="Done."),
    )
    chat = helper(world, stream=stream, extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}})
    assert chat.say("I like tea.") == "Done."
    assert turns(world.upstream.last)[1] == ("assistant", ["thinking", "redacted_thinking", "tool_use"])
    assert world.upstream.last.json["messages"][1]["content"][:2] == [thought, redacted]


@both_ways
def test_a_hidden_round_has_room_to_think(world: World, stream: bool) -> None:
    """The API refuses a limit below the budget of its thoughts, and the rounds before have spent most of the limit."""
    usage = {"input_tokens": 10, "output_tokens": 2500}
    thought = {"type": "thinking", "thinking": "Note it.", "signature": sign("Note it.")}
    world.upstream.queue(
        Message(text=None, blocks=[thought], calls=[insert("Likes tea.")], usage=usage), say("Noted.")
    )
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    chat = helper(world, stream=stream, max_tokens=3000, extra_body=thinking)
    assert chat.say("I like tea.") == "Noted."
    assert [request.json["max_tokens"] for request in world.upstream.chats] == [3000, 2049]


@both_ways
def test_a_signed_thought_that_the_client_dropped_goes_back_with_its_call(world: World, stream: bool) -> None:
    """Most clients keep text and calls of a reply and nothing else; Claude wants its thought before the call."""
    thought = {"type": "thinking", "thinking": "Ask the tool.", "signature": sign("Ask the tool.")}
    world.upstream.queue(
        Message(text=None, blocks=[thought], calls=[Call("weather", {"city": "Rome"})]),
        Message(text="It is sunny."),
    )
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    chat = helper(world, stream=stream, tools=[WEATHER], extra_body=thinking)
    chat.say("How is the weather in Rome?")
    (call,) = chat.messages[-1]["tool_calls"]
    assert "thinking_blocks" not in chat.messages[-1]
    chat.answer(call, "sun")
    assert chat.go_on() == "It is sunny."
    assert world.upstream.last.json["messages"][1]["content"][0] == thought


def test_the_prefix_grows_and_is_marked(world: World) -> None:
    chat = helper(world, stream=True)
    for n in range(4):
        chat.say(f"Question {n}")
    bodies = [without_marks(request) for request in world.upstream.chats]
    for earlier, later in zip(bodies, bodies[1:], strict=False):  # noqa: RUF007
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert (later["tools"], later["system"]) == (earlier["tools"], earlier["system"])
    assert world.upstream.last.body.count(b'"cache_control"') == 4


# -- fidelity


@both_ways
def test_calls_pass_both_ways(world: World, stream: bool) -> None:
    world.upstream.queue(
        call_tools(Call("weather", {"city": "Rome"}), Call("weather", {"city": "Oslo"}), text="Let me see."),
        say("Sun and snow."),
    )
    chat = world.chat(user="alice", model=MODEL, tools=[WEATHER], stream=stream)
    chat.say("Rome and Oslo?")
    calls = chat.messages[-1]["tool_calls"]
    assert [orjson.loads(call["function"]["arguments"])["city"] for call in calls] == ["Rome", "Oslo"]
    for call, weather in zip(calls, ("sun", "snow"), strict=True):
        chat.answer(call, weather)
    assert chat.go_on() == "Sun and snow."


@both_ways
def test_errors_are_the_sdks_own(world: World, stream: bool) -> None:
    ask: Json = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    for user in ("alice", openai.omit):  # with memory and without
        world.upstream.queue(
            refuse(429, "rate_limit_error", "Slow down.", retry_after="7"),
            refuse(529, "overloaded_error", "Busy."),
        )
        with pytest.raises(openai.RateLimitError, match=r"Slow down\.") as limited:
            world.sdk.chat.completions.create(**ask, user=user)
        assert limited.value.response.headers["retry-after"] == "7"
        assert limited.value.type == "rate_limit_error"
        with pytest.raises(openai.InternalServerError, match="Busy"):
            world.sdk.chat.completions.create(**ask, user=user)
        with pytest.raises(openai.BadRequestError) as refused:
            world.sdk.chat.completions.create(**ask, user=user, seed=1)
        assert refused.value.param == "seed"


def test_the_default_sampling_and_a_higher_temperature_are_left_out(world: World) -> None:
    with world.client() as sdk:
        for temperature, sent, adapted in (
            (2, None, "temperature"),
            (1.01, None, "temperature"),
            (1, None, None),
            (0.5, 0.5, None),
        ):
            for user in ("alice", openai.omit):
                chat = sdk.chat.completions.with_raw_response.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Hi"}],
                    temperature=temperature,
                    top_p=1,
                    user=user,
                )
                response = sdk.responses.with_raw_response.create(
                    model=MODEL, input="Hi", temperature=temperature, user=user
                )
                for request in world.upstream.chats[-2:]:
                    assert (request.json.get("temperature"), "top_p" in request.json) == (sent, False)
                for reply in (chat, response):
                    assert reply.headers.get("x-mnemogate-adapted") == adapted


def test_an_error_in_the_middle_reaches_the_application(world: World) -> None:
    for user in ("alice", openai.omit):
        world.upstream.queue(
            say("One two three", error_after=(5, {"type": "overloaded_error", "message": "Busy."}))
        )
        chunks = world.sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True, user=user
        )
        with pytest.raises(openai.APIError, match="Busy"):
            list(chunks)


def test_usage_reports_the_cache(world: World) -> None:
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 70,
        "output_tokens": 5,
    }
    world.upstream.queue(*[say("Hi.", usage=usage)] * 2)
    ask: Json = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "user": "alice"}
    whole = world.sdk.chat.completions.create(**ask)
    *_, last = world.sdk.chat.completions.create(
        **{**ask, "user": "bob"}, stream=True, stream_options={"include_usage": True}
    )
    for usage in (whole.usage, last.usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 5, 105)
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 70
    assert last.choices == []


class Cat(pydantic.BaseModel):
    name: str
    toys: list[str]


@pytest.mark.parametrize("user", ["alice", openai.omit], ids=["memory", "none"])
def test_a_schema_goes_up_closed_and_the_sdk_parses_what_comes_back(world: World, user: Any) -> None:
    """That Claude follows the schema is Claude's doing; the gateway asks for it in Claude's form."""
    miso = '{"name": "Miso", "toys": ["ball"]}'
    world.upstream.queue(say(miso), say(miso, tokens=list(miso)))
    ask: Json = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Which cat?"}],
        "response_format": Cat,
        "user": user,
    }
    whole = world.sdk.chat.completions.parse(**ask)
    with world.sdk.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    for completion in (whole, final):
        assert completion.choices[0].message.parsed == Cat(name="Miso", toys=["ball"])
    for request in world.upstream.chats:
        format = request.json["output_config"]["format"]
        assert (format["type"], format["schema"]["required"]) == ("json_schema", ["name", "toys"])
        assert format["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("user", ["alice", None], ids=["memory", "none"])
def test_a_client_that_leaves_ends_the_upstreams_request(world: World, user: str | None) -> None:
    never = Gate()
    world.upstream.queue(say("One two three", hold_after={5: never}))
    body: Json = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with world.gateway.connect() as client:
        data = orjson.dumps({**body, "user": user} if user else body)
        client.request("POST", "/v1/chat/completions", data)
        assert client.read_head().status == 200
        client.read_until(b"One")
    world.upstream.last.gone.wait_sync()


def test_the_callers_own_key_pays_where_the_gateway_has_none() -> None:
    with StrictAnthropic(key="sk-ant-mine") as upstream:
        settings = settings_for(upstream, upstreams=claude(upstream))
        with (
            serve(settings) as gateway,
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-ant-mine", max_retries=0) as sdk,
        ):
            reply = sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
            assert reply.choices[0].message.content == "Ok."
            assert reply._request_id
        with (
            serve(settings) as gateway,
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-ant-other", max_retries=0) as sdk,
            pytest.raises(openai.AuthenticationError),
        ):
            sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])


# -- headers and stand-ins


@pytest.mark.parametrize("user", ["alice", openai.omit], ids=["memory", "none"])
@both_ways
def test_the_callers_version_and_betas_reach_claude(world: World, stream: bool, user: Any) -> None:
    own = {"anthropic-version": OLD_VERSION, "anthropic-beta": "context-1m-2025-08-07,files-api-2025-04-14"}
    for headers in ({}, own):
        chat = world.chat(headers=headers, user=user, model=MODEL, stream=stream)
        assert chat.say("Hi") == "Ok."
    plain, seen = world.upstream.chats
    assert plain.headers["anthropic-version"] != OLD_VERSION, "else this would not show whose version it is"
    assert "anthropic-beta" not in plain.headers
    assert {name: seen.headers[name] for name in own} == own


@contextmanager
def chain(
    tmp_path: Path, first: StrictUpstream, second: StrictUpstream, *profiles: ProfileSettings
) -> Iterator[World]:
    """A gateway where `m` is asked of the first, and of the second if that fails, each in its dialect."""
    upstreams = tuple(
        UpstreamSettings(
            name, "anthropic" if isinstance(each, StrictAnthropic) else "openai", each.base_url, name
        )
        for name, each in (("k1", first), ("k2", second))
    )
    models = (
        ModelSettings("m", "big", "k1", fallbacks=("other",)),
        ModelSettings("other", "small", "k2"),
    )
    with remember(first, tmp_path, *profiles, upstreams=upstreams, models=models) as world:
        yield world


def whole_or_chunks(world: World, stream: bool, **ask: Any) -> tuple[Json, list[Json]]:
    """The reply as an application keeps it, and all that came, as the SDK read it."""
    answer = world.sdk.chat.completions.create(**{"model": "m", "stream": stream, **ask})
    if not stream:
        return to_list_message(answer.choices[0].message), [answer.model_dump(exclude_unset=True)]
    chunks = list(answer)
    return join_stream(chunks), [chunk.model_dump(exclude_unset=True) for chunk in chunks]


@both_ways
def test_claude_stands_in_for_an_openai(tmp_path: Path, stream: bool) -> None:
    """With memory, a hidden call next to the client's, and the talk going back to the first in the end."""
    with (
        StrictUpstream(key="k1") as first,
        StrictAnthropic(key="k2") as second,
        chain(tmp_path, first, second, agent()) as world,
    ):
        helper(world, stream=stream).say("My cat is called Miso, she is grey.")
        assert second.requests == []
        first.queue(fail(503), fail(503))
        second.queue(
            call_tools(insert("Lives in Rome."), Call("weather", {"city": "Rome"}), text="Let me see."),
            say("It is sunny."),
        )
        chat = helper(world, stream=stream, tools=[WEATHER])
        chat.say("I live in Rome with my cat Miso. How is the weather?")
        (call,) = chat.messages[-1]["tool_calls"]
        assert call["function"]["name"] == "weather"
        assert orjson.loads(call["function"]["arguments"]) == {"city": "Rome"}
        chat.answer(call, "sun")
        ask = {"model": "agent/helper", "user": "alice", "tools": [WEATHER], "messages": chat.messages}
        reply, came = whole_or_chunks(world, stream, **ask)
        assert reply == {"role": "assistant", "content": "It is sunny."}
        assert {each["object"] for each in came} == {f"chat.completion{'.chunk' if stream else ''}"}
        assert [c["finish_reason"] for each in came for c in each["choices"] if c["finish_reason"]] == [
            "stop"
        ]
        asked, answered = second.chats
        assert [request.json["model"] for request in second.chats] == ["small", "small"]
        assert {tool["name"] for tool in asked.json["tools"]} >= {"weather", "memory_insert"}
        assert b"she is grey" in asked.body, "what the first was told is recalled to its stand-in"
        assert turns(answered)[1:] == [
            ("assistant", ["text", "tool_use", "tool_use"]),
            ("user", ["tool_result", "tool_result"]),
        ]
        chat.messages.append(reply)
        assert chat.say("And tomorrow?") == "Ok."
        assert world.block("alice").value == "Lives in Rome."
        names = [c["function"]["name"] for m in first.last.messages for c in m.get("tool_calls") or ()]
        assert names == ["memory_insert", "weather"]
        assert [request.refusal for request in (*first.requests, *second.requests)] == [None] * 6


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")},
    ],
    ids=["redacted", "readable"],
)
@both_ways
def test_an_openai_stands_in_for_claude(tmp_path: Path, stream: bool, thought: Json) -> None:
    """What only Claude can read (its thoughts, its marks) stays away from who stands in for it."""
    with (
        StrictAnthropic(key="k1") as first,
        StrictUpstream(key="k2") as second,
        chain(tmp_path, first, second, agent()) as world,
    ):
        first.queue(
            message(thought, calls=[insert("Likes tea.")]),
            message(thought, calls=[Call("weather", {"city": "Rome"})]),
            refuse(529, "overloaded_error", "Busy."),
        )
        second.queue(say("It is sunny."))
        chat = helper(world, stream=stream, tools=[WEATHER])
        chat.say("I like tea. How is the weather in Rome?")
        assert first.last.json["messages"][1]["content"][0] == thought
        (call,) = chat.messages[-1]["tool_calls"]
        chat.answer(call, "sun")
        assert chat.go_on() == "It is sunny."
        (seen,) = second.requests
        assert (seen.json["model"], seen.headers["authorization"]) == ("small", "Bearer k2")
        for word in (b"thinking", b"opaque", b"cache_control", b"input_schema", b"tool_use", b"max_tokens"):
            assert word not in seen.body
        roles = [message["role"] for message in seen.messages if message["role"] != "system"]
        assert roles == ["user", "assistant", "tool", "assistant", "tool"]
        assert chat.say("And what do I like?") == "Ok."
        assert [each.refusal for each in first.chats] == [None] * 4
        assert [name for name in seen.headers if name.startswith(("anthropic", "x-api-key"))] == []
