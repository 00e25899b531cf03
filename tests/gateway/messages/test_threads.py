"""Message threads natively: the client sends its new messages alone, and memory has them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.anthropic_rules import THREADS_BETA
from tests.doubles.anthropic_upstream import StrictAnthropic, think
from tests.doubles.upstream import Call, UpstreamRequest, call_tools, say
from tests.gateway.admin.test_forget import perform
from tests.gateway.messages.sdk import Talk, client, text_of
from tests.gateway.responses.test_forgotten_history import Forgetting
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

Json = dict[str, Any]
MODEL, BOUND = "claude-opus-4-6", "claude-opus-5-5"
both_models = pytest.mark.parametrize("model", [MODEL, BOUND], ids=["free", "bound"])
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


@pytest.fixture
def world(upstream: StrictAnthropic, tmp_path: Path) -> Iterator[World]:
    there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
    profiles = agent(model=MODEL), agent("plain", model=MODEL, memory_tools=False)
    with remember(upstream, tmp_path, *profiles, upstreams=there) as made:
        yield made


def thread(world: World, user: str = "alice", model: str = MODEL, **options: Any) -> Any:
    return client(world).beta.messages.thread(
        model=model, max_tokens=100, metadata={"user_id": user}, **options
    )


def send(open_thread: Any, words: str, *, stream: bool = False) -> str:
    message = {"role": "user", "content": words}
    if not stream:
        return text_of(open_thread.send(message))
    with open_thread.stream(message) as events:
        return text_of(events.get_final_message())


def sent(request: UpstreamRequest) -> Json:
    """Returns the body of a request as it came, without what its thread has."""
    body: Json = orjson.loads(request.body)
    return body


def post(world: World, body: Json, user: str = "alice") -> RawReply:
    headers = {
        "anthropic-version": "2026-10-21",
        "anthropic-beta": THREADS_BETA,
        "x-mnemogate-user": user,
    }
    whole = {"model": MODEL, "max_tokens": 100, **body}
    return world.gateway.ask("POST", "/v1/messages", orjson.dumps(whole), headers)


@both_ways
@both_models
def test_a_thread_is_one_conversation_of_whole_turns(
    world: World, upstream: StrictAnthropic, model: str, stream: bool
) -> None:
    upstream.queue(think("Hm.", text="Fine."))
    talk = thread(world, model=model, system="You are kind.")
    assert send(talk, "How are you?", stream=stream) == "Fine."
    Talk(world, model=model).say("My cat is called Miso.")
    world.pass_time(1000)
    upstream.queue(think("So.", text="Miso."), say("Yes."))
    assert send(talk, "What is my cat called?", stream=stream) == "Miso."
    assert send(talk, "It has red paws.", stream=stream) == "Yes."
    first, _, second, third = upstream.chats[-4:]
    assert [sent(each)["thread"]["type"] for each in (first, second, third)] == [
        "create",
        "continue",
        "continue",
    ]
    assert [set(sent(each)) & {"system", "tools"} for each in (second, third)] == [set(), set()]
    (message,) = sent(second)["messages"]
    note, words = message["content"]
    assert "Miso" in note["text"]
    assert words["text"] == "What is my cat called?"
    # The upstream has the note of the turn before; the newest message has none of it.
    assert sent(third)["messages"] == [{"role": "user", "content": "It has red paws."}]
    assert world.query("SELECT count(*) FROM conversations") == [2]
    assert world.query("SELECT count(*) FROM exchanges") == [4]
    world.pass_time(1000)
    Talk(world, model=model).say("Which colour are the paws of my cat?")
    assert "It has red paws." in upstream.last.body.decode()


def test_the_tool_runner_has_its_thread(world: World, upstream: StrictAnthropic) -> None:
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return f"Rain in {city}."

    upstream.queue(call_tools(Call("weather", {"city": "Bern"})), say("It rains."))
    runner = client(world).beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        tools=[weather],
        messages=[{"role": "user", "content": "How is it in Bern?"}],
        metadata={"user_id": "alice"},
    )
    assert text_of(runner.until_done()) == "It rains."
    continued = sent(upstream.last)
    assert continued["thread"]["type"] == "continue"
    assert [block["type"] for block in continued["messages"][0]["content"]] == ["tool_result"]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_reply_of_another_user_is_not_found(world: World, upstream: StrictAnthropic) -> None:
    begun = post(world, {"thread": {"type": "create"}, "messages": [{"role": "user", "content": "Hi"}]})
    body = {
        "thread": {"type": "continue", "previous_message_id": begun.json["id"]},
        "messages": [{"role": "user", "content": "What did I say?"}],
    }
    for user, there in (
        ("bob", body),
        ("alice", {**body, "thread": {**body["thread"], "previous_message_id": "msg_0"}}),
    ):
        refused = post(world, there, user)
        assert (refused.status, refused.json["error"]["type"]) == (404, "not_found_error")
        assert refused.json["error"]["details"] == {"error_code": "thread_not_found"}
    assert len(upstream.chats) == 1
    assert post(world, body).status == 200
    assert world.query("SELECT count(*) FROM exchanges") == [2]


def test_a_thread_starts_over_after_a_forgetting(world: World, upstream: StrictAnthropic) -> None:
    talk = thread(world)
    send(talk, "My cat is called Miso.")
    perform(world, "memory-forget", user="alice")
    send(talk, "And it is red.")
    again = sent(upstream.last)
    assert again["thread"] == {"type": "create"}
    assert len(again["messages"]) == 3


def test_blocks_that_change_are_shown_in_a_thread(world: World, upstream: StrictAnthropic) -> None:
    talk = thread(world, model="agent/plain")
    send(talk, "Hello")
    world.write_block("alice", "Likes tea.", profile="plain")
    send(talk, "Hello again")
    assert "Likes tea." in upstream.last.body.decode()
    send(talk, "Do I like tea?")
    assert sent(upstream.last)["thread"]["type"] == "continue"


def test_with_gateway_tools_sdks_go_on_without(world: World, upstream: StrictAnthropic) -> None:
    talk = thread(world, model="agent/helper", unsupported_request_behavior="continue_unthreaded")
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(call_tools(insert), say("Noted."))
    assert send(talk, "I like tea.") == "Noted."
    assert "thread" not in sent(upstream.last)
    assert send(talk, "Good.") == "Ok."
    assert world.block("alice").value == "Likes tea."


def test_where_a_fallback_may_answer_sdks_go_on_without(upstream: StrictAnthropic, tmp_path: Path) -> None:
    there = (
        UpstreamSettings("up", "anthropic", upstream.base_url),
        UpstreamSettings("other", "anthropic", upstream.base_url),
    )
    models = (ModelSettings("m", MODEL, "up", fallbacks=(f"other/{MODEL}",)),)
    with remember(upstream, tmp_path, upstreams=there, models=models) as world:
        reply = post(
            world,
            {"model": "m", "thread": {"type": "create"}, "messages": [{"role": "user", "content": "Hi"}]},
        )
        assert reply.json["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_a_request_that_is_not_remembered_has_no_thread(world: World, upstream: StrictAnthropic) -> None:
    headers = {"anthropic-version": "2026-10-21", "x-mnemogate-user": "alice", "x-mnemogate-memory": "read"}
    body = {
        "model": MODEL,
        "max_tokens": 10,
        "thread": {"type": "create"},
        "messages": [{"role": "user", "content": "Hi"}],
    }
    reply = world.gateway.ask("POST", "/v1/messages", orjson.dumps(body), headers)
    assert reply.json["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert upstream.requests == []


def test_a_thread_without_a_user_passes_as_it_came(world: World, upstream: StrictAnthropic) -> None:
    talk = client(world).beta.messages.thread(model=MODEL, max_tokens=100)
    send(talk, "Hello")
    send(talk, "Hello again")
    assert sent(upstream.last)["messages"] == [{"role": "user", "content": "Hello again"}]
    assert world.query("SELECT count(*) FROM conversations") == [0]


def test_a_thread_is_not_continued_if_its_memory_is_forgotten_before_the_turn_is_planned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = post(world, {"thread": {"type": "create"}, "messages": [{"role": "user", "content": "Zqmiso."}]})
    forgetting = Forgetting(world, monkeypatch)
    body = {
        "thread": {"type": "continue", "previous_message_id": begun.json["id"]},
        "messages": [{"role": "user", "content": "And now?"}],
    }
    assert post(world, body).json["error"]["details"] == {"error_code": "thread_not_found"}
    assert forgetting.is_whole()
