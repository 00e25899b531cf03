"""Which way a request for a response goes: to an upstream that stores it, or by way of chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.sdk import World, agent, remember

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@contextmanager
def world_of(upstream: StrictUpstream, place: Path, kind: Any = "openai", **takes: Any) -> Iterator[World]:
    ours = UpstreamSettings("up", kind, upstream.base_url, takes=takes)
    with remember(upstream, place, agent(), upstreams=(ours,)) as world:
        yield world


def ask(world: World, text: str, **options: Any) -> Any:
    return world.sdk.responses.create(**{"model": "m", "user": "alice", "input": text, **options})


@pytest.mark.parametrize("kind", ["openai", "ollama", "vllm", "groq", "xai", "llama.cpp"])
def test_a_response_goes_on_with_its_history_where_nothing_is_known_to_be_stored(
    upstream: StrictUpstream, tmp_path: Path, kind: str
) -> None:
    """At an address of one's own nobody knows whether responses are stored: an id might be ignored, with a 200."""
    upstream.queue(say("A nice name."))
    with world_of(upstream, tmp_path, kind) as world:
        first = ask(world, "My cat is called Miso.")
        ask(world, "What is it called?", previous_response_id=first.id)
        assert {request.path for request in upstream.requests} == {CHAT}
        contents = [message["content"] for message in upstream.last.messages]
    assert contents == ["My cat is called Miso.", "A nice name.", "What is it called?"]


@pytest.mark.parametrize(
    ("takes", "path"),
    [("stored", RESPONSES), (True, RESPONSES), ("stateless", CHAT), (False, CHAT)],
)
def test_the_settings_say_what_an_upstream_has(
    upstream: StrictUpstream, tmp_path: Path, takes: Any, path: str
) -> None:
    with world_of(upstream, tmp_path, responses=takes) as world:
        assert ask(world, "Hi").output_text == "Ok."
        assert upstream.last.path == path


def test_an_id_that_is_not_known_here_is_an_error_that_says_so(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path, "ollama") as world:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(world, "And?", previous_response_id="resp_68af0b9d8c708193b2f1")
        assert caught.value.code == "previous_response_not_found"
        assert upstream.requests == []


@contextmanager
def two_of(first: StrictUpstream, second: StrictUpstream, place: Path) -> Iterator[World]:
    """The first stores nothing, the second all, and `m` is a model of the second; `local` is the first's."""
    upstreams = (
        UpstreamSettings("local", "ollama", first.base_url, models=("local",)),
        UpstreamSettings("openai", "openai", second.base_url, takes={"responses": "stored"}),
    )
    with remember(second, place, agent(), upstreams=upstreams) as world:
        yield world


@pytest.fixture
def local() -> Iterator[StrictUpstream]:
    with StrictUpstream() as strict:
        yield strict


def test_an_id_says_where_its_response_is(
    upstream: StrictUpstream, local: StrictUpstream, tmp_path: Path
) -> None:
    with two_of(local, upstream, tmp_path) as world:
        here, there = ask(world, "My cat is Miso.", model="local"), ask(world, "My dog is Rex.")
        assert (local.last.path, upstream.last.path) == (CHAT, RESPONSES)
        # What the upstream has is asked of it, though it is not the first one and no model is named.
        assert world.sdk.responses.retrieve(there.id).output_text == there.output_text
        assert world.sdk.responses.delete(there.id) is None
        assert [request.method for request in upstream.requests[-2:]] == ["GET", "DELETE"]
        # What was answered here the upstream is never asked for.
        count = len(upstream.requests), len(local.requests)
        assert world.sdk.responses.retrieve(here.id).output_text == here.output_text
        assert len(list(world.sdk.responses.input_items.list(here.id))) == 1
        world.sdk.responses.delete(here.id)
        with pytest.raises(openai.NotFoundError):
            world.sdk.responses.retrieve(here.id)
        assert (len(upstream.requests), len(local.requests)) == count


def test_what_was_answered_here_goes_on_here_though_the_model_s_upstream_stores_responses(
    upstream: StrictUpstream, local: StrictUpstream, tmp_path: Path
) -> None:
    with two_of(local, upstream, tmp_path) as world:
        first = ask(world, "My cat is called Miso.", model="local")
        second = ask(world, "What is it called?", previous_response_id=first.id)
        assert second.output_text == "Ok."
        assert upstream.last.path == CHAT
        assert upstream.last.messages[0]["content"] == "My cat is called Miso."


def test_conversations_are_asked_for_where_they_are(
    upstream: StrictUpstream, local: StrictUpstream, tmp_path: Path
) -> None:
    with two_of(local, upstream, tmp_path) as world:
        conversation = world.sdk.conversations.create()
        assert world.sdk.conversations.retrieve(conversation.id).id == conversation.id
        with pytest.raises(openai.NotFoundError):
            world.sdk.conversations.retrieve("conv_" + "0" * 32)
        assert (len(local.requests), len(upstream.requests)) == (0, 2)


def test_an_upstreams_conversation_is_not_restarted_by_a_model_that_cannot_read_it(
    upstream: StrictUpstream, local: StrictUpstream, tmp_path: Path
) -> None:
    openais = "conv_" + "68af5c" * 8
    with two_of(local, upstream, tmp_path) as world:
        with pytest.raises(openai.NotFoundError, match="not found") as caught:
            ask(world, "What is my cat called?", model="local", conversation=openais)
        assert caught.value.param == "conversation"
        assert (local.requests, upstream.requests) == ([], [])
        assert ask(world, "Hi", model="local", conversation="conv_mine").conversation.id == "conv_mine"


def test_without_an_upstream_that_stores_them_conversations_are_here(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path, "vllm") as world:
        conversation = world.sdk.conversations.create()
        assert world.sdk.conversations.retrieve(conversation.id).id == conversation.id
        assert upstream.requests == []


def test_the_log_names_the_way_of_each_upstream_at_the_start(
    upstream: StrictUpstream, local: StrictUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mnemogate")
    with two_of(local, upstream, tmp_path):
        pass
    ways: Sequence[str] = [m for m in caplog.messages if "requests for responses" in m]
    assert ways == [
        "Upstream local: requests for responses are answered by way of chat completions",
        "Upstream openai: requests for responses are passed on, and stored there",
    ]
