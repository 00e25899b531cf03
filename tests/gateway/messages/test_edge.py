"""The edge of Anthropic's dialect: keys, the form of errors, models, and what is not served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import orjson
import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.messages.sdk import Talk, client, text_of
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S
from tests.server import RawReply

Json = dict[str, Any]
VERSION = {"anthropic-version": "2023-06-01"}
HELLO: Json = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


def ask(
    world: World, method: str, path: str, body: Json | None = None, headers: Json | None = None
) -> RawReply:
    return world.gateway.ask(method, path, None if body is None else orjson.dumps(body), headers)


def make_key(world: World) -> str:
    return world.gateway.call(world.store.keys.create("blue", "test"))[1]


@pytest.mark.parametrize("name", ["x-api-key", "authorization", "x-mnemogate-key"])
def test_a_gateway_key_opens_in_each_header_and_never_leaves(
    world: World, upstream: StrictUpstream, name: str
) -> None:
    key = make_key(world)
    value = f"Bearer {key}" if name == "authorization" else key
    for path, body in (("/v1/messages", HELLO), ("/v1/chat/completions", HELLO)):
        assert ask(world, "POST", path, body, {name: value}).status == 200
        assert key not in repr(upstream.last.headers)
    assert world.gateway.last_line()["project"] == "blue"


def test_a_gateway_key_opens_every_route_in_anthropics_header(world: World) -> None:
    """It gets the status that the same key gets as a bearer token."""
    key = make_key(world)
    paths = ask(world, "GET", "/openapi.json", None, {"x-api-key": key}).json["paths"]
    chats = ("/v1/messages", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/mcp")
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    for method, path in [*routes, *(("POST", path) for path in chats)]:
        filled = re.sub(r"\{[^}]*\}", "nothing", path)
        body = {} if method in ("POST", "PUT", "PATCH") else None
        found = [
            ask(world, method, filled, body, headers).status
            for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"})
        ]
        assert found[0] == found[1] != 401, (method, path)


def test_a_providers_key_in_one_header_does_not_hide_the_gateways_in_the_other(world: World) -> None:
    key = make_key(world)
    headers = {"x-api-key": "sk-ant-own", "authorization": f"Bearer {key}"}
    assert ask(world, "POST", "/v1/messages", HELLO, headers).status == 200


def test_an_upstream_with_a_key_of_its_own_gets_none_of_the_callers(tmp_path: Path) -> None:
    with StrictUpstream(key="sk-own") as upstream:
        there = (UpstreamSettings("up", "openai", upstream.base_url, api_key="sk-own"),)
        with remember(upstream, tmp_path, upstreams=there) as world:
            headers = {"x-api-key": "sk-ant-callers", "authorization": "Bearer sk-callers"}
            assert ask(world, "POST", "/v1/messages", HELLO, headers).status == 200
            assert "callers" not in repr(upstream.last.headers)


def test_an_upstream_without_a_key_gets_the_callers(world: World, upstream: StrictUpstream) -> None:
    assert ask(world, "POST", "/v1/messages", HELLO, {"x-api-key": "sk-ant-callers"}).status == 200
    assert upstream.last.headers["authorization"] == "Bearer sk-ant-callers"
    both = {"x-api-key": "sk-first", "authorization": "Bearer sk-second"}
    ask(world, "POST", "/v1/messages", HELLO, both)
    assert upstream.last.headers["authorization"] == "Bearer sk-first"
    ask(world, "POST", "/v1/chat/completions", HELLO, both)
    assert upstream.last.headers["authorization"] == "Bearer sk-second"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages", 401, "authentication_error"),
        ("POST", "/v1/messages/count_tokens", 401, "authentication_error"),
        ("GET", "/v1/models", 401, "authentication_error"),
        ("GET", "/v1/files", 401, "authentication_error"),
    ],
)
def test_a_missing_key_is_an_error_in_anthropics_form(
    world: World, method: str, path: str, status: int, kind: str
) -> None:
    make_key(world)
    reply = ask(world, method, path, HELLO if method == "POST" else None, VERSION)
    assert (reply.status, reply.json["type"], reply.json["error"]["type"]) == (status, "error", kind)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages/nothing", 404, "not_found_error"),
        ("GET", "/v1/models/nothing", 404, "not_found_error"),
        ("PUT", "/v1/files", 405, "invalid_request_error"),
    ],
)
def test_errors_before_any_route_have_anthropics_form(
    world: World, method: str, path: str, status: int, kind: str
) -> None:
    reply = ask(world, method, path, HELLO if method == "POST" else None, VERSION)
    assert (reply.status, reply.json["type"], reply.json["error"]["type"]) == (status, "error", kind)
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-mnemogate-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/messages/count_tokens", 405, "invalid_request_error"),
        ("PUT", "/v1/messages/count_tokens", 405, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens/more", 404, "not_found_error"),
        ("POST", "/v1/messages/nothing/at-all", 404, "not_found_error"),
    ],
)
def test_paths_outside_the_agents_api_have_anthropics_error_form_without_its_header(
    world: World, method: str, path: str, status: int, kind: str
) -> None:
    reply = ask(world, method, path, HELLO if method != "GET" else None)
    assert (reply.status, reply.json["type"], reply.json["error"]["type"]) == (status, "error", kind)
    make_key(world)
    reply = ask(world, method, path, HELLO if method != "GET" else None)
    assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("path", ["/v1/messages/message-1", "/v1/messages/batches/batch-1"])
def test_paths_of_the_agents_api_below_messages_have_its_own_error_form(world: World, path: str) -> None:
    assert [*ask(world, "GET", path).json] == ["detail"]


def test_a_body_that_is_too_large_is_refused_in_anthropics_form(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, server={"max_body_bytes": 1000}) as world:
        reply = ask(world, "POST", "/v1/messages", {**HELLO, "system": "x" * 2000})
        assert (reply.status, reply.json["error"]["type"]) == (413, "request_too_large")


def test_paths_of_the_agents_api_below_messages_stay(world: World) -> None:
    assert ask(world, "GET", "/v1/messages/").status == 200
    assert ask(world, "POST", "/v1/messages/search", {"query": "x"}).status == 200


@pytest.mark.parametrize("path", ["/", "/api/hello"])
def test_the_probe_of_claude_code_needs_no_key(world: World, path: str) -> None:
    make_key(world)
    reply = httpx.head(f"{world.gateway.url}{path}", timeout=PATIENCE_S)
    assert (reply.status_code, reply.content) == (200, b"")


def test_models_have_the_form_of_the_api_that_asks(world: World, upstream: StrictUpstream) -> None:
    world.gateway.call(
        world.gateway.app.services.models.refresh("up", world.gateway.app.services.providers["up"])
    )
    sdk = client(world)
    page = sdk.models.list(limit=1)
    everything = [model.id for model in page]
    assert everything == [each.id for each in world.sdk.models.list()]
    assert len(everything) > 1
    assert page.has_more
    one = sdk.models.retrieve(everything[0])
    assert (one.id, one.type, one.display_name) == (everything[0], "model", everything[0])
    assert anthropic.types.ModelInfo.model_validate(one.to_dict()).lifecycle == "active"
    before = sdk.models.list(before_id=everything[-1])
    assert [model.id for model in before.data] == everything[:-1]
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        sdk.models.list(after_id="nothing")


@pytest.mark.parametrize("is_claude_first", [False, True])
def test_files_go_to_an_upstream_of_the_clients_own_api(tmp_path: Path, is_claude_first: bool) -> None:
    """Both APIs have them under the same paths, and the other provider must not get them."""
    with StrictAnthropic(key="sk-ant-own") as claude, StrictUpstream() as other:
        upstreams = (
            UpstreamSettings("claude", "anthropic", claude.base_url, api_key="sk-ant-own"),
            UpstreamSettings("other", base_url=other.base_url),
        )
        with remember(claude, tmp_path, upstreams=upstreams if is_claude_first else upstreams[::-1]) as world:
            files = client(world).files
            assert files.upload(file=("cats.txt", bytes(5))).id == "file_1"
            assert bytes(5) in claude.last.body
            assert [file.id for file in files.list()] == ["file_1"]
            assert files.download("file_1").read() == bytes(5)
            files.delete("file_1")
            assert (len(claude.requests), other.requests) == (4, [])
            world.sdk.files.create(file=("cats.txt", b"cats"), purpose="assistants")
            assert (len(claude.requests), len(other.requests)) == (4, 1)
            # A caller who names an upstream knows what is there, such as a proxy that has Anthropic's files.
            headers = {"anthropic-version": "2023-06-01", "x-mnemogate-upstream": "other"}
            assert world.gateway.ask("GET", "/v1/files", headers=headers).status == 200
            assert (len(claude.requests), len(other.requests)) == (4, 2)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/skills"])
def test_files_of_a_client_without_such_an_upstream_go_nowhere(
    world: World, upstream: StrictUpstream, path: str
) -> None:
    reply = world.gateway.ask("GET", path, headers={"anthropic-version": "2023-06-01"})
    assert (reply.status, reply.json["error"]["type"], upstream.requests) == (404, "not_found_error", [])


@pytest.mark.parametrize("path", ["/v1/filesystem", "/v1/models-of-others", "/v1/skillset/one"])
def test_a_path_that_only_begins_like_a_shared_one_is_unknown_in_openais_form(
    world: World, path: str
) -> None:
    reply = world.gateway.ask("GET", path, headers=VERSION)
    assert (reply.status, reply.json["error"].get("code")) == (404, "unknown_url")


def test_a_thread_is_refused_so_that_sdks_go_on_without(world: World) -> None:
    body = {**HELLO, "thread": {"type": "continue", "previous_message_id": "msg_1"}}
    reply = ask(world, "POST", "/v1/messages", body, VERSION)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_the_tool_runner_goes_on_without_threads(world: World, upstream: StrictUpstream) -> None:
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return f"Rain in {city}."

    upstream.queue(
        call_tools(Call("weather", {"city": "Bern"})),
        say("It rains."),
    )
    runner = client(world).beta.messages.tool_runner(
        model="m",
        max_tokens=100,
        tools=[weather],
        messages=[{"role": "user", "content": "How is it in Bern?"}],
        metadata={"user_id": "alice"},
    )
    assert text_of(runner.until_done()) == "It rains."
    assert upstream.last.messages[-1]["content"] == "Rain in Bern."


def test_an_upstreams_error_keeps_status_and_wait_and_has_the_type_of_its_status(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(fail(429, "rate_limit_exceeded", retry_after="7"))
    with pytest.raises(anthropic.RateLimitError) as raised:
        Talk(world).say("Hello")
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.type == "rate_limit_error"
    own = raised.value.response.headers["x-mnemogate-request-id"]
    assert raised.value.request_id == raised.value.response.json()["request_id"] == own
    # The same of a server before the upstream.
    upstream.queue(
        raw(b"<html>Slow down.</html>", content_type="text/html", status=429, headers={"retry-after": "7"})
    )
    with pytest.raises(anthropic.RateLimitError) as raised:
        Talk(world).say("Hello")
    assert (raised.value.response.headers["retry-after"], raised.value.type) == ("7", "rate_limit_error")


def test_a_missing_field_is_named(world: World) -> None:
    reply = ask(world, "POST", "/v1/messages", {"model": "m", "messages": HELLO["messages"]})
    assert (reply.status, reply.json["error"]["message"]) == (400, "max_tokens: Field required")
