"""Clients that speak the Responses API over a WebSocket, LiveKit by default."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.conversation.wire_message import read_text
from tests.doubles.responses_rules import call_item, message_item
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.sdk import World, remember


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


def told_in_all(world: World) -> list[str]:
    world.settle()
    turns = world.query("SELECT input, shown_reply FROM exchanges ORDER BY id")
    return [read_text(each) for input, said in turns for each in (*orjson.loads(input), orjson.loads(said))]


@pytest.fixture(params=[{}, {"store": False}], ids=["stored", "not stored"])
async def livekit(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from livekit.agents import utils
    from livekit.plugins import openai

    async with utils.http_context.open():
        made = openai.responses.LLM(
            model="m", base_url=f"{world.gateway.url}/v1", api_key="sk-app", user="alice", **request.param
        )
        yield made
        await made.aclose()


async def test_livekit_goes_on_and_lets_go(world: World, upstream: StrictUpstream, livekit: Any) -> None:
    from livekit.agents.llm import ChatContext

    context, replies = ChatContext.empty(), upstream.endpoints.responses.outputs
    context.add_message(role="system", content="Be brief.")

    async def say(text: str, stop_at: str | None = None) -> str:
        context.add_message(role="user", content=text)
        heard = ""
        async with livekit.chat(chat_ctx=context) as stream:
            async for chunk in stream:
                heard += (chunk.delta and chunk.delta.content) or ""
                if heard == stop_at:
                    break
        context.add_message(role="assistant", content=heard)
        return heard

    replies += [
        [message_item("Hello, Ola.")],
        [message_item("It is a nice name.")],
        [message_item("Zanzibar lies in the ocean.")],
    ]
    assert await say("I am Ola.") == "Hello, Ola."
    assert await say("Do you like it?") == "It is a nice name."
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    await say("Where is Zanzibar?", "Zanzibar lies ")
    # It closes the connection of a reply that it let go of with its next request. Until then the reply goes on.
    upstream.endpoints.hold_events.clear()
    gate.open()
    assert await say("Stop.") == "Ok."
    told = ["I am Ola.", "Hello, Ola.", "Do you like it?", "It is a nice name."]
    assert told_in_all(world) == [*told, "Where is Zanzibar?", "Zanzibar lies ", "Stop.", "Ok."]
    assert world.query("SELECT count(*) FROM conversations") == [1]


async def test_the_agents_sdk_calls_a_tool_and_is_remembered(world: World, upstream: StrictUpstream) -> None:
    import agents
    from agents.models.openai_responses import OpenAIResponsesWSModel

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Returns the weather of a city."""
        return f"Rain in {city}."

    agents.set_tracing_disabled(True)
    sdk = world.async_client().with_options(default_headers={"x-mnemogate-user": "alice"})
    model = OpenAIResponsesWSModel(model="m", openai_client=sdk)
    helper = agents.Agent(name="Helper", instructions="Be brief.", model=model, tools=[get_weather])
    upstream.endpoints.responses.outputs += [
        [call_item("get_weather", '{"city":"Rome"}')],
        [message_item("It rains.")],
    ]
    assert (await agents.Runner.run(helper, "How is the weather in Rome?")).final_output == "It rains."
    await agents.Runner.run(helper, "How was the weather in Rome?")
    assert b"How is the weather in Rome?" in upstream.last.body
    await model.close()
