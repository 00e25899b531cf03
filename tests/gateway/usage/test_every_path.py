"""Every path on which tokens are known, each with a model of its own: the sums are the upstream's, to the token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from letta_client import Letta

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, raw, say
from tests.gateway.responses.test_socket import Talk, open_socket
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S, becomes

NOTE = {"label": "human", "new_string": "Has a cat."}


class Used(NamedTuple):
    """What the upstream has counted for some calls."""

    calls: int
    input: int
    output: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0


class Paths:
    """A gateway before three upstreams: OpenAI's, one without responses, and Claude's."""

    def __init__(self, world: World, claude: StrictAnthropic) -> None:
        self.world, self.claude, self.sdk = world, claude, world.sdk

    def queue(self, *replies: Reply) -> None:
        self.world.upstream.queue(*replies)


def chat_usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def chats(paths: Paths, model: str) -> Used:
    """Memory on and off, whole and streamed, with and without the usage asked for."""
    for n, memory in enumerate(("on", "off")):
        for stream in (False, True):
            paths.queue(say("Hello.", usage=chat_usage(40 + n, 3, 16, 1)))
            paths.world.chat(user="alice", headers={"x-mnemogate-memory": memory}).say(
                "Hi", model=model, stream=stream
            )
    return Used(4, 2 * 40 + 2 * 41, 12, 64, reasoning=4)


def tool_rounds(paths: Paths, model: str) -> Used:
    """Hidden rounds of a profile."""
    paths.queue(
        call_tools(Call("memory_insert", NOTE), usage=chat_usage(50, 5)),
        say("Noted.", usage=chat_usage(60, 2, 48)),
    )
    paths.world.chat(user="alice", headers={"x-mnemogate-agent": "helper"}).say("I have a cat.", model=model)
    return Used(2, 110, 7, 48)


def responses_passed_on(paths: Paths, model: str) -> Used:
    """Responses that the upstream makes, whole and streamed, with memory and without."""
    found = []
    for user in ("alice", openai.omit):
        found.append(paths.sdk.responses.create(model=model, input="Hi", user=user).usage)
        stream = paths.sdk.responses.create(model=model, input="Hi", stream=True, user=user)
        found.append([*stream][-1].response.usage)  # type: ignore[union-attr]
    counted = [each for each in found if each is not None]
    assert len(counted) == 4
    cached = sum(each.input_tokens_details.cached_tokens for each in counted)
    reasoning = sum(each.output_tokens_details.reasoning_tokens for each in counted)
    tokens = sum(each.input_tokens for each in counted), sum(each.output_tokens for each in counted)
    return Used(4, *tokens, cached, reasoning=reasoning)


def responses_by_chat(paths: Paths, model: str) -> Used:
    """Responses by way of chat completions, and over a socket."""
    paths.queue(*(say("Hello.", usage=chat_usage(30, 4, 8, 2)) for _ in range(3)))
    paths.sdk.responses.create(model=model, input="Hi", user="alice")
    assert [*paths.sdk.responses.create(model=model, input="Hi", user="alice", stream=True)]
    with open_socket(paths.world.gateway) as socket:
        assert Talk(socket).ask(model=model, input="Hi")["status"] == "completed"
    return Used(3, 90, 12, 24, reasoning=6)


def messages_native(paths: Paths, model: str) -> Used:
    """The Messages API before Claude: what was read from the cache and written to it is input, too."""
    usage = {
        "input_tokens": 20,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 1000,
        "output_tokens": 7,
    }
    paths.claude.queue(*(message(text="Hello.", usage=usage) for _ in range(4)))
    ask_messages(paths, model)
    return Used(4, 4 * 1320, 28, 4000, 1200)


def messages_translated(paths: Paths, model: str) -> Used:
    """The Messages API before another model."""
    paths.queue(*(say("Hello.", usage=chat_usage(25, 6, 5)) for _ in range(4)))
    ask_messages(paths, model)
    return Used(4, 100, 24, 20)


def ask_messages(paths: Paths, model: str) -> None:
    with anthropic.Anthropic(
        base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S
    ) as claude:
        asked: Any = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
        for user in ("alice", ""):
            headers = {"x-mnemogate-user": user} if user else {}
            assert claude.messages.create(**asked, extra_headers=headers).content
            with claude.messages.stream(**asked, extra_headers=headers) as stream:
                assert stream.get_final_text() == "Hello."


def runs_of_agents(paths: Paths, model: str) -> Used:
    """Steps of an agent's run, with a client that waits and without one."""
    with Letta(base_url=paths.world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as letta:
        blocks: Any = [{"label": "human", "value": ""}]
        made = letta.agents.create(model=f"openai/{model}", memory_blocks=blocks, tools=["memory_insert"])
        for background in (False, True):
            paths.queue(
                call_tools(Call("memory_insert", NOTE, "c1"), usage=chat_usage(70, 8)),
                say("Noted.", usage=chat_usage(80, 3, 64)),
            )
            if background:
                run = letta.agents.messages.create_async(made.id, input="Hi")
                becomes(lambda id=run.id: letta.runs.retrieve(id).status == "completed")
            else:
                letta.agents.messages.create(made.id, input="Hi")
    return Used(4, 300, 22, 128)


def other_endpoints(paths: Paths, model: str) -> Used:
    """Embeddings, completions, rerank, images and transcriptions, in the words in which each reports it."""

    def reply(usage: Any, padding: int = 0) -> Reply:
        body = {
            "object": "list",
            "data": [{"b64_json": "A" * padding}],
            "results": [],
            "text": "Hi.",
            "usage": usage,
        }
        return raw(json.dumps(body).encode(), content_type="application/json")

    sdk = paths.sdk
    paths.queue(reply(chat_usage(11, 0)))
    sdk.embeddings.create(model=model, input="a")
    paths.queue(reply(chat_usage(12, 5)))
    sdk.completions.create(model=model, prompt="Hi")
    paths.queue(reply({"prompt_tokens": 13, "total_tokens": 13}))
    asked = json.dumps({"model": model, "query": "a", "documents": ["b"]}).encode()
    kind = {"content-type": "application/json"}
    assert paths.world.gateway.ask("POST", "/v1/rerank", asked, kind).status == 200
    paths.queue(reply({"input_tokens": 14, "output_tokens": 4160, "total_tokens": 4174}, padding=200_000))
    sdk.images.generate(model=model, prompt="A cat")
    paths.queue(reply({"type": "tokens", "input_tokens": 15, "output_tokens": 3, "total_tokens": 18}))
    sdk.audio.transcriptions.create(model=model, file=("a.wav", b"RIFF", "audio/wav"))
    return Used(5, 11 + 12 + 13 + 14 + 15, 5 + 4160 + 3)


# The names are those of the models, and say by which upstream they are answered.
ROWS: dict[str, tuple[str, Callable[[Paths, str], Used]]] = {
    "chats": ("up", chats),
    "tool-rounds": ("up", tool_rounds),
    "responses-passed-on": ("up", responses_passed_on),
    "responses-by-chat": ("plain", responses_by_chat),
    "messages-native": ("claude", messages_native),
    "messages-translated": ("up", messages_translated),
    "runs": ("up", runs_of_agents),
    "other-endpoints": ("up", other_endpoints),
}


@pytest.fixture
def paths(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Paths]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    plain: Any = {"responses": False, "stream_usage": True}
    with StrictAnthropic(models=("messages-native",)) as claude:
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, takes=takes),
            UpstreamSettings("plain", base_url=upstream.base_url, takes=plain),
            UpstreamSettings("claude", "anthropic", claude.base_url, api_key="sk"),
        )
        models = tuple(ModelSettings(name, name, by) for name, (by, _) in ROWS.items())
        given: dict[str, Any] = {"upstreams": upstreams, "models": models, "admin_token": "the-owner"}
        with remember(upstream, tmp_path, agent(model="tool-rounds"), **given) as world:
            yield Paths(world, claude)


@pytest.mark.agents
def test_the_sums_are_the_upstreams_own(paths: Paths) -> None:
    counted = {name: ask(paths, name) for name, (_, ask) in ROWS.items()}
    paths.world.settle()
    reply = paths.world.gateway.ask(
        "GET", "/v1/manage/usage?by=model", headers={"x-mnemogate-admin": "the-owner"}
    )
    found = {
        row["model"]: Used(
            *(row[name] for name in ("calls", "input_tokens", "output_tokens", "cached_tokens")),
            row["cache_write_tokens"],
            row["reasoning_tokens"],
        )
        for row in reply.json["data"]
        if row["model"]
    }
    assert found == counted
    assert all(
        row["estimated_input_tokens"] == row["estimated_output_tokens"] == 0 for row in reply.json["data"]
    )
