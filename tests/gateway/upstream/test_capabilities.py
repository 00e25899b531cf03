"""What is known of an upstream, acted on: before one that takes the field, one that refuses it, and one nobody knows.

A row stands in for its provider here, at the address of a strict upstream that refuses what the row says is not taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from msgspec.structs import replace

from adapters import factory
from adapters.capabilities import Capabilities
from adapters.providers import PROVIDERS
from gateway.provider_factory import make_batches
from gateway.settings import ModelSettings, Settings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.sdk import World, agent, remember

Json = dict[str, Any]

FAMILIES = [row.name for row in PROVIDERS.values() if row.dialect == "openai"]
KNOWN = [name for name in FAMILIES if PROVIDERS[name].capabilities.developer_role is False]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ANTHROPICS_WEATHER = {"name": "weather", "input_schema": {"type": "object"}}
MESSAGES = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "I like tea."},
    {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
    {"role": "user", "content": "What do I like?"},
]
both = pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])
forms = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def rules_of(known: Capabilities) -> Rules:
    return Rules(
        developer_role=known.developer_role is not False,
        metadata=known.metadata,
        any_call_id=known.any_call_id,
        signs_calls=known.requires_call_signatures,
        wants_thoughts=not known.replies_without_thoughts,
        stream_options=bool(known.stream_usage),
        limits=("max_tokens", "max_completion_tokens") if known.max_completion_tokens else ("max_tokens",),
    )


@contextmanager
def family(
    name: str, tmp_path: Path, models: Sequence[ModelSettings] = (), **of_upstream: Any
) -> Iterator[World]:
    """A gateway in front of a provider of that row. name: "unknown": an address of which nothing is known."""
    row = PROVIDERS.get(name)
    rules = rules_of(row.capabilities) if row is not None else Rules()
    with StrictUpstream(rules=rules) as upstream, pytest.MonkeyPatch.context() as patch:
        address: str | None = upstream.base_url
        if row is not None and row.base_url is not None:
            patch.setitem(factory.PROVIDERS, name, replace(row, base_url=address))
            address = None if name != "openai" else address
        kind: Any = "openai" if row is None else name
        settings = UpstreamSettings("up", kind, address, **of_upstream)
        with remember(upstream, tmp_path, agent(), upstreams=(settings,), models=tuple(models)) as world:
            yield world


def ask(world: World, memory: bool, stream: bool, **more: Any) -> tuple[str, dict[str, str]]:
    """The text, and the reply's headers."""
    fields: Json = {"model": "agent/helper" if memory else "m", "stream": stream, **more}
    if memory:
        fields["user"] = "alice"
    answer = world.sdk.chat.completions.with_raw_response.create(**{"messages": MESSAGES, **fields})
    headers = {name.lower(): value for name, value in answer.headers.items()}
    parsed: Any = answer.parse()
    if not stream:
        return parsed.choices[0].message.content or "", headers
    return "".join(c.choices[0].delta.content or "" for c in parsed if c.choices), headers


def roles(world: World) -> list[str]:
    return [message["role"] for message in world.upstream.last.messages]


# -- every family


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_what_it_takes(name: str, tmp_path: Path) -> None:
    """A hidden round within a limit, a developer's words and metadata, before an upstream as strict as its row."""
    known = PROVIDERS[name].capabilities
    fields: Json = {"max_tokens": 100, "metadata": {"topic": "tea"}, "tools": [WEATHER]}
    with family(name, tmp_path) as world:
        for memory, stream in itertools.product((True, False), repeat=2):
            world.upstream.requests.clear()
            world.upstream.queue(*([call_tools(INSERT)] if memory else []), say("You like tea."))
            text, headers = ask(world, memory, stream, **fields)
            assert text == "You like tea."
            seen = world.upstream.requests
            assert [each.refusal for each in seen] == [None] * (1 + memory)
            assert ("metadata" in seen[-1].json) is known.metadata
            assert headers.get("x-mnemogate-consumed") == (None if known.metadata else "metadata")
            assert ("developer" in roles(world)) is (known.developer_role is not False)
            assert seen[-1].tool_names[0] == "weather"
            adds = stream and known.stream_usage
            assert {"stream_options" in each.json for each in seen} == {adds}


@pytest.mark.parametrize(
    ("name", "takes"), [("mistral", {}), ("vllm", {"any_call_id": False}), ("gemini", {})]
)
def test_a_call_of_another_model_goes_as_it_is_taken(
    name: str, takes: dict[Any, bool], tmp_path: Path
) -> None:
    """As after a failover, or where the application has changed its model."""
    with family(name, tmp_path, takes=takes) as world:
        world.upstream.rules = replace(world.upstream.rules, any_call_id=name == "gemini")
        call = {"id": "call_abc", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        loop = [*MESSAGES, message, {"role": "tool", "tool_call_id": "call_abc", "content": "Rain"}]
        for memory in (True, False):
            ask(world, memory, False, messages=loop, tools=[WEATHER])
            assert world.upstream.last.refusal is None


@pytest.mark.parametrize("takes", [{}, {"replies_without_thoughts": False}], ids=["deepseek", "kimi"])
@forms
def test_a_reply_has_thoughts_where_they_are_wanted(
    tmp_path: Path, stream: bool, takes: dict[Any, bool]
) -> None:
    """An application without tools drops them, and another model has made none; the gateway adds the tools."""
    with family("vllm" if takes else "deepseek", tmp_path, takes=takes) as world:
        world.upstream.rules = replace(world.upstream.rules, wants_thoughts=True)
        world.upstream.queue(
            call_tools(INSERT, delta={"reasoning_content": "A note."}),
            say("Noted.", delta={"reasoning_content": "Done."}),
        )
        asked: list[Json] = [{"role": "user", "content": "I like tea."}]
        ask(world, True, stream, messages=asked)
        asked += [{"role": "assistant", "content": "Noted."}, {"role": "user", "content": "Well?"}]
        ask(world, True, stream, messages=asked)
        sent = [m["reasoning_content"] for m in world.upstream.last.messages if m["role"] == "assistant"]
        assert sent == ["A note.", ""]


@forms
@pytest.mark.parametrize("model", ["gpt-5.6-luna", "gpt-6-sol"])
def test_the_gateways_tools_go_to_a_model_that_has_tools_or_thoughts(
    tmp_path: Path, model: str, stream: bool
) -> None:
    """An application without tools cannot know that some are added; one that wants thoughts has them."""
    models = (ModelSettings("m", model, "up"),)
    with family("openai", tmp_path, models=models) as world:
        world.upstream.rules = replace(world.upstream.rules, thinks=True)
        world.upstream.queue(call_tools(INSERT), say("Noted."))
        assert ask(world, True, stream, messages=[{"role": "user", "content": "I like tea."}])[0] == "Noted."
        assert [request.json["reasoning_effort"] for request in world.upstream.chats] == ["none", "none"]
        messages: list[Json] = [{"role": "user", "content": "And milk."}]
        ask(world, True, stream, messages=messages, reasoning_effort="high")
        assert world.upstream.last.json["reasoning_effort"] == "high"
        assert "tools" not in world.upstream.last.json
        body = {"model": "m", "messages": messages, "tools": [WEATHER]}
        assert world.gateway.post(body).status == 400, "what it asks for itself is judged by the upstream"
        tools = [ANTHROPICS_WEATHER]
        for effort in ({}, {"output_config": {"effort": "low"}}):
            body = {"model": "m", "messages": messages, "tools": tools, "max_tokens": 9, **effort}
            reply = world.gateway.ask("POST", "/v1/messages", orjson.dumps(body))
            named = reply.headers.get("x-mnemogate-consumed")
            assert (reply.status, named) == (200, "reasoning_effort" if effort else None)


def test_to_a_model_that_takes_tools_without_an_effort_none_is_named(tmp_path: Path) -> None:
    with family("openai", tmp_path, models=(ModelSettings("m", "gpt-5.4-mini", "up"),)) as world:
        ask(world, True, False, messages=[{"role": "user", "content": "I like tea."}])
        assert "tools" in world.upstream.last.json
        assert "reasoning_effort" not in world.upstream.last.json
        body = {"model": "m", "messages": MESSAGES[1:2], "tools": [ANTHROPICS_WEATHER], "max_tokens": 9}
        effort = {"output_config": {"effort": "low"}}
        assert world.gateway.ask("POST", "/v1/messages", orjson.dumps({**body, **effort})).status == 200
        assert "reasoning_effort" not in world.upstream.last.json


@pytest.mark.parametrize("model", ["gpt-5.6-luna", "gpt-6-sol"])
def test_a_request_in_anthropics_dialect_has_its_limit_under_the_name_that_a_model_takes(
    tmp_path: Path, model: str
) -> None:
    with family("openai", tmp_path, models=(ModelSettings("m", model, "up"),)) as world:
        world.upstream.rules = replace(world.upstream.rules, limits=("max_completion_tokens",))
        body = {"model": "m", "messages": MESSAGES[1:2], "max_tokens": 9}
        assert world.gateway.ask("POST", "/v1/messages", orjson.dumps(body)).status == 200
        assert world.upstream.last.json["max_completion_tokens"] == 9


@pytest.mark.parametrize("appends", [False, True], ids=["list", "appended"])
@pytest.mark.parametrize("nothing", ["", None])
def test_a_call_without_an_id_is_shown_to_a_stand_in_with_one(
    tmp_path: Path, appends: bool, nothing: str | None
) -> None:
    """Gemini and servers of open models have made such calls; OpenAI and Claude refuse them."""
    call = {"id": nothing, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    whole = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [whole]}
    made = raw(orjson.dumps(body), content_type="application/json")
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c"} if appends else {}
    ask = [{"role": "user", "content": "Is it cold?"}]
    result = [{"role": "tool", "tool_call_id": nothing, "content": "3 degrees"}]
    more: dict[str, Any] = {"user": "alice", "tools": [WEATHER]}
    with StrictUpstream() as local, StrictUpstream() as openai_, StrictAnthropic() as claude:
        upstreams = (
            UpstreamSettings("local", base_url=local.base_url),
            UpstreamSettings("openai", base_url=openai_.base_url),
            UpstreamSettings("claude", "anthropic", claude.base_url),
        )
        models = (
            ModelSettings("m", "m", "local", fallbacks=("o", "c")),
            ModelSettings("o", "o", "openai"),
            ModelSettings("c", "c", "claude"),
        )
        with remember(local, tmp_path, upstreams=upstreams, models=models) as world:
            local.queue(made, fail(503))
            openai_.queue(fail(503))
            assert world.post(ask, headers, **more).status == 200
            going_on = result if appends else [*ask, message, *result]
            reply = world.post(going_on, headers, **more)
            assert reply.headers["x-mnemogate-tries"] == "local:503;openai:503;claude:200"
            assert openai_.last.refusal is None


@pytest.mark.parametrize("appends", [False, True], ids=["list", "appended"])
def test_a_stand_in_gets_no_fields_that_it_does_not_know(tmp_path: Path, appends: bool) -> None:
    """Mistral's, with which OpenAI and Claude refuse a reply: of a hidden round, and of a stored reply."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Ok."},
    ]
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c"} if appends else {}

    def reply(content: Any, **more: Any) -> Any:
        message = {"role": "assistant", "content": content, "prefix": False, **more}
        ended = {"index": 0, "message": message, "finish_reason": "tool_calls" if more else "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [ended]}
        return raw(orjson.dumps(body), content_type="application/json")

    with StrictUpstream() as mistral, StrictUpstream() as openai_, StrictAnthropic() as claude:
        upstreams = (
            UpstreamSettings("mistral", base_url=mistral.base_url),
            UpstreamSettings("openai", base_url=openai_.base_url),
            UpstreamSettings("claude", "anthropic", claude.base_url),
        )
        models = (
            ModelSettings("m", "m", "mistral", fallbacks=("o", "c")),
            ModelSettings("o", "o", "openai"),
            ModelSettings("c", "c", "claude"),
        )
        with remember(mistral, tmp_path, agent(), upstreams=upstreams, models=models) as world:
            mistral.rules = Rules(unknown_parameters=False, thinking_parts=True)
            function = {"name": "memory_insert", "arguments": INSERT.text}
            call = {"id": "abcdefghi", "type": "function", "function": function, "index": 0}
            mistral.queue(reply(parts[:1], tool_calls=[call]), reply(parts), fail(503))
            openai_.queue(fail(503))
            more: dict[str, Any] = {"user": "alice", "model": "agent/helper"}
            messages: list[Json] = [{"role": "user", "content": "I like tea."}]
            assert world.post(messages, headers, **more).status == 200
            going_on: list[Json] = [{"role": "user", "content": "Well?"}]
            if not appends:
                going_on = [*messages, {"role": "assistant", "content": "Ok."}, *going_on]
            answered = world.post(going_on, headers, **more)
            assert answered.headers["x-mnemogate-tries"] == "mistral:503;openai:503;claude:200"
            assert openai_.last.refusal is None
            sent = " ".join(m["role"] for m in openai_.last.messages)
            assert sent == "system user assistant tool assistant user"


def test_a_batch_has_the_calls_that_its_upstream_takes() -> None:
    settings = Settings(upstreams=(UpstreamSettings("up", "gemini", api_key="k", batches="openai"),))
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    line = make_batches(settings)["up"].make_line(
        "1", orjson.dumps({"model": "gemini-3-flash", "messages": messages})
    )
    assert b"skip_thought_signature_validator" in line


# -- developer


@pytest.mark.parametrize("name", KNOWN)
@both
def test_a_developers_words_go_as_a_system_message(name: str, tmp_path: Path, memory: bool) -> None:
    with family(name, tmp_path) as world:
        _, headers = ask(world, memory, False)
        sent = [m for m in world.upstream.last.messages if m["role"] == "system"]
        assert [roles(world)[i] for i in (0, 2)] == ["system", "system"]
        assert "Be brief." in str(sent[0])
        assert sent[1]["content"] == MESSAGES[2]["content"]
        assert headers["x-mnemogate-adapted"] == "developer_role"
        if memory:
            assert "You help." in str(sent[0]), "the profile's own system prompt is in the same message"


def test_only_the_role_is_changed(tmp_path: Path) -> None:
    body = (
        b'{"messages" : [ {"content":"\\u0041b", "role" :"developer","name":"x" },{"role":"user","content":"Hi"}],'
        b'"n":1.0 ,"model":"m"}'
    )
    with family("deepseek", tmp_path) as world:
        world.gateway.post(body, {"x-mnemogate-memory": "off"})
        assert world.upstream.last.json == orjson.loads(body.replace(b'"developer"', b'"system"'))


@pytest.mark.parametrize("name", ["unknown", "openai", "groq"])
@both
def test_a_developers_words_stay_as_they_are_where_nothing_speaks_against_it(
    name: str, tmp_path: Path, memory: bool
) -> None:
    with family(name, tmp_path) as world:
        _, headers = ask(world, memory, False)
        assert roles(world)[0] == "developer"
        assert "x-mnemogate-adapted" not in headers


@both
def test_the_operator_may_know_better(tmp_path: Path, memory: bool) -> None:
    (tmp_path / "a").mkdir()
    with family("unknown", tmp_path / "a", takes={"developer_role": False}) as world:
        ask(world, memory, False)
        assert "developer" not in roles(world)
    with family("vllm", tmp_path, takes={"developer_role": True}) as world:
        world.upstream.rules = Rules()
        ask(world, memory, False)
        assert roles(world)[0] == "developer"


def test_a_window_and_a_role_that_is_not_taken(tmp_path: Path) -> None:
    talk: list[Json] = []
    for n in range(8):
        talk.append({"role": "developer", "content": f"Rule {n}. " + "word " * 300})
        talk.append({"role": "user", "content": f"Question {n}. " + "word " * 300})
    with family("deepseek", tmp_path, context_window=2000) as world:
        _, headers = ask(world, True, False, messages=talk)
        assert int(headers["x-mnemogate-evicted-tokens"]) > 0
        assert 0 < len(roles(world)) < 16
        assert "developer" not in roles(world)


# -- metadata without store


@both
@forms
def test_metadata_without_store(tmp_path: Path, stream: bool, memory: bool) -> None:
    """Held back where it is refused, with a warning, and sent where it is taken. The strict upstream judges."""
    fields = {"metadata": {"topic": "tea"}}
    for place, name in enumerate(("openai", "openrouter")):
        folder = tmp_path / str(place)
        folder.mkdir()
        with family(name, folder) as world:
            _, headers = ask(world, memory, stream, **fields)
            is_taken = name == "openrouter"
            assert (world.upstream.last.json.get("metadata") == fields["metadata"]) is is_taken
            assert (headers.get("x-mnemogate-consumed") == "metadata") is not is_taken
            _, headers = ask(world, memory, stream, extra_body={"metadata": {"call": {"id": 1}}})
            assert "metadata" not in world.upstream.last.json, "a voice platform's, which nobody takes"
            assert headers["x-mnemogate-consumed"] == "metadata"


@both
def test_fields_that_a_translation_has_no_place_for_are_named(tmp_path: Path, memory: bool) -> None:
    """Of metadata Claude takes `user_id`; the key of a cache it has no use for."""
    with StrictAnthropic() as upstream:
        claude = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, agent(), upstreams=claude) as world:
            for fields, consumed in (
                ({"metadata": {"user_id": "u-1"}}, None),
                ({"metadata": {"user_id": "u-1", "topic": "tea"}}, "metadata"),
                ({"metadata": {"topic": "tea"}, "prompt_cache_key": "k"}, "metadata,prompt_cache_key"),
            ):
                _, headers = ask(world, memory, False, **fields)
                assert headers.get("x-mnemogate-consumed") == consumed
                user = "u-1" if "user_id" in fields["metadata"] else "alice" if memory else None
                assert upstream.last.json.get("metadata") == (user and {"user_id": user})


# -- the usage of a stream


@pytest.mark.parametrize("takes", [True, False])
def test_a_stream_is_asked_for_its_usage_where_that_is_taken(tmp_path: Path, takes: bool) -> None:
    """Hidden rounds share the client's limit, by what the upstream counted or by our own estimate."""
    with family("unknown", tmp_path, takes={"stream_usage": takes}) as world:
        world.upstream.rules = Rules(stream_options=takes)
        usage = {"prompt_tokens": 5, "completion_tokens": 60, "total_tokens": 65}
        world.upstream.queue(call_tools(INSERT, usage=usage), say("Noted."))
        assert ask(world, True, True, max_tokens=100)[0] == "Noted."
        first, second = world.upstream.requests
        assert first.json.get("stream_options") == ({"include_usage": True} if takes else None)
        assert (second.json["max_tokens"] == 40) is takes
        assert second.json["max_tokens"] < 100


@both
def test_a_clients_own_wish_for_usage_is_the_upstreams_to_refuse(tmp_path: Path, memory: bool) -> None:
    with family("unknown", tmp_path, takes={"stream_usage": False}) as world:
        world.upstream.rules = Rules(stream_options=False)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(world, memory, True, stream_options={"include_usage": True})
        assert caught.value.param == "stream_options"


# -- the limit of a completion


@pytest.mark.parametrize("newer", [True, False])
@both
def test_a_clients_limit_keeps_its_name(tmp_path: Path, newer: bool, memory: bool) -> None:
    """Whatever is known of the upstream: an older name for a newer model is for it to refuse."""
    key, other = "max_completion_tokens", "max_tokens"
    if not newer:
        key, other = other, key
    with family("unknown", tmp_path, takes={"max_completion_tokens": newer}) as world:
        world.upstream.rules = Rules(limits=(key,))
        world.upstream.queue(*([call_tools(INSERT)] if memory else []), say("Noted."))
        assert ask(world, memory, False, **{key: 50})[0] == "Noted."
        assert all(
            0 < request.json[key] <= 50 and other not in request.json for request in world.upstream.requests
        )
        with pytest.raises(openai.BadRequestError) as caught:
            ask(world, memory, False, **{other: 50})
        assert (caught.value.param, caught.value.code) == (other, "unsupported_parameter")


@pytest.mark.parametrize(("newer", "key"), [(True, "max_completion_tokens"), (False, "max_tokens")])
def test_our_own_calls_name_their_limit_as_the_upstream_has_it(tmp_path: Path, newer: bool, key: str) -> None:
    with StrictUpstream(rules=Rules(limits=(key,))) as upstream:
        there = UpstreamSettings("up", base_url=upstream.base_url, takes={"max_completion_tokens": newer})
        memory = {"background_model": "small", "learn_every": 0}
        with remember(upstream, tmp_path, upstreams=(there,), memory=memory) as world:
            background = world.gateway.app.services.background.model
            assert background is not None
            messages = [{"role": "user", "content": "Sum it up."}]
            reply = world.gateway.call(background.ask("default", messages, max_tokens=50))
            assert reply.text == "Ok."
        assert upstream.last.json[key] == 50
