"""Agents whose model is a Claude: what they think, and what their rules may ask of a model that refuses to be forced.

The strict upstream refuses what Anthropic refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import UpstreamSettings
from tests.agents.letta import LettaWorld, letta
from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, StrictUpstream, call_tools
from tests.doubles.upstream import say as plain

Json = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

MODELS = ("claude-opus-4-6", "claude-opus-5-5")
ON_BEDROCK = "us.anthropic.claude-opus-5-5"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LettaWorld]:
    with StrictAnthropic(models=(*MODELS, ON_BEDROCK)) as upstream:
        there = (UpstreamSettings("anthropic", "anthropic", upstream.base_url),)
        with letta(upstream, tmp_path, upstreams=there) as made:
            yield made


def thought(text: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": sign(text)}


def search(id: str) -> Json:
    return {"type": "tool_use", "id": id, "name": "conversation_search", "input": {"query": "tea"}}


def say(text: str) -> Json:
    return {"type": "text", "text": text}


def send(world: LettaWorld, agent: str, text: str, *, streamed: bool) -> list[Any]:
    messages: Any = [{"role": "user", "content": text}]
    if streamed:
        return list(world.letta.agents.messages.stream(agent, messages=messages, stream_tokens=True))
    return list(world.letta.agents.messages.create(agent, messages=messages).messages)


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        ("claude-opus-4-6", {"type": "tool", "name": "conversation_search"}),
        ("claude-opus-5-5", {"type": "auto"}),
        (ON_BEDROCK, {"type": "auto"}),
    ],
)
def test_a_rule_forces_no_call_on_a_model_that_refuses_it(
    world: LettaWorld, model: str, choice: Json
) -> None:
    """That one is asked once more instead."""
    first: Any = [{"type": "run_first", "tool_name": "conversation_search"}]
    agent = world.agent(model=f"anthropic/{model}", tool_rules=first, agent_type="letta_v1_agent").id
    world.upstream.queue(
        *([] if "name" in choice else [message(say("Hello."), text=None)]),
        message(search("t1"), text=None, finish_reason="tool_calls"),
        message(say("Found."), text=None),
    )
    assert send(world, agent, "Hi", streamed=False)[-1].content == "Found."
    asked = [request.json.get("tool_choice") for request in world.upstream.chats]
    assert {key: asked[0][key] for key in ("type", "name") if key in asked[0]} == choice
    assert [request.refusal for request in world.upstream.chats] == [None] * len(asked)


def test_a_rule_forces_no_call_where_replies_have_to_have_thoughts(tmp_path: Path) -> None:
    """DeepSeek's models and Kimi's think unless they are told not to, and refuse to be forced then."""
    with StrictUpstream(rules=Rules(wants_thoughts=True)) as upstream:
        takes: Any = {"replies_without_thoughts": False}
        there = (UpstreamSettings("kimi", base_url=upstream.base_url, takes=takes),)
        with letta(upstream, tmp_path, upstreams=there) as world:
            first: Any = [{"type": "run_first", "tool_name": "conversation_search"}]
            agent = world.agent(model="kimi/k", tool_rules=first, agent_type="letta_v1_agent").id
            upstream.queue(call_tools(Call("conversation_search", {"query": "tea"})), plain("Found."))
            assert send(world, agent, "Hi", streamed=False)[-1].content == "Found."
            assert [request.refusal for request in upstream.chats] == [None, None]


def test_an_agent_of_a_model_that_has_tools_or_thoughts_has_tools(tmp_path: Path) -> None:
    """OpenAI's newer models think by default, and refuse functions then."""
    with StrictUpstream(rules=Rules(thinks=True)) as upstream:
        there = (UpstreamSettings("openai", base_url=upstream.base_url),)
        with letta(upstream, tmp_path, upstreams=there) as world:
            thinks: Any = {"provider_type": "openai", "reasoning": {"reasoning_effort": "high"}}
            for settings in (None, thinks):
                agent = world.agent(
                    model="openai/gpt-5.6-luna", agent_type="letta_v1_agent", model_settings=settings
                ).id
                upstream.queue(call_tools(Call("conversation_search", {"query": "tea"})), plain("Found."))
                assert send(world, agent, "Hi", streamed=False)[-1].content == "Found."


def test_an_agent_that_a_chat_asks_for_thoughts_has_no_tools_and_follows_no_rules(tmp_path: Path) -> None:
    with StrictUpstream(rules=Rules(thinks=True)) as upstream:
        there = (UpstreamSettings("openai", base_url=upstream.base_url),)
        with letta(upstream, tmp_path, upstreams=there) as world:
            first: Any = [{"type": "run_first", "tool_name": "conversation_search"}]
            agent = world.agent(
                model="openai/gpt-5.6-luna", tool_rules=first, agent_type="letta_v1_agent", name="ann"
            )
            upstream.queue(plain("Hello."))
            asked = world.world.sdk.chat.completions.create(
                model=f"agent/{agent.name}",
                messages=[{"role": "user", "content": "Hi"}],
                reasoning_effort="high",
            )
            assert asked.choices[0].message.content == "Hello."
            assert not {"tools", "tool_choice"} & upstream.last.json.keys()


def test_an_agent_that_thinks_is_asked_without_its_temperature(world: LettaWorld) -> None:
    """Claude refuses any but 1 then, and Letta's server sent 1."""
    settings: Any = {"provider_type": "anthropic", "temperature": 0.7}
    thinks: Any = {**settings, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    agent = world.agent(model="anthropic/claude-opus-4-6", model_settings=thinks).id
    send(world, agent, "Hi.", streamed=False)
    world.letta.agents.update(agent, model_settings={**settings, "thinking": {"type": "disabled"}})
    send(world, agent, "Hi again.", streamed=False)
    asked = [(request.refusal, request.json.get("temperature")) for request in world.upstream.chats]
    assert asked == [(None, None), (None, 0.7)]


@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-opus-4-8", "claude-sonnet-5", "claude-fable-5"])
def test_an_agent_is_asked_without_the_temperature_that_its_model_refuses(
    world: LettaWorld, model: str
) -> None:
    settings: Any = {"provider_type": "anthropic", "temperature": 0.7}
    agent = world.agent(model=f"anthropic/{model}", model_settings=settings).id
    send(world, agent, "Hi.", streamed=False)
    asked = [(request.refusal, request.json.get("temperature")) for request in world.upstream.chats]
    assert asked == [(None, None)]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_thoughts_are_shown_and_go_back_to_their_places(
    world: LettaWorld, model: str, streamed: bool
) -> None:
    said = [
        [thought("Hm."), say("I look. "), thought("Where?"), search("t1"), thought("And?"), search("t2")],
        [thought("So."), say("You like tea.")],
        [say("Yes.")],
    ]
    world.upstream.queue(
        message(*said[0], text=None, finish_reason="tool_calls"),
        *(message(*blocks, text=None) for blocks in said[1:]),
    )
    agent = world.agent(model=f"anthropic/{model}", agent_type="letta_v1_agent").id
    told = send(world, agent, "What do I like?", streamed=streamed)
    thoughts = "".join(each.reasoning for each in told if each.message_type == "reasoning_message")
    assert "".join(thoughts.split()) == "Hm.Where?And?So."
    world.letta.agents.blocks.update("human", agent_id=agent, value="Name: Ann, who likes tea")
    send(world, agent, "Sure?", streamed=streamed)
    assert [request.refusal for request in world.upstream.chats] == [None] * 3
    last = world.upstream.chats[-1].json["messages"]
    back = [turn["content"] for turn in last if turn["role"] == "assistant"]
    assert [[block["type"] for block in turn] for turn in back] == [
        [block["type"] for block in turn] for turn in said[:-1]
    ]
