"""Clients of Anthropic's API through the gateway, natively and before an upstream of another dialect.

Anthropic's own SDK (whole, streamed, its tool runner), LangChain's ChatAnthropic and LiteLLM, as their documentation
has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pydantic
import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.messages.sdk import text_of
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S

Json = dict[str, Any]
MODEL = "claude-opus-4-6"
CAT, ASKED = "My cat is called Miso.", "What is my cat called?"
USER = {"x-mnemogate-user": "alice"}
RAIN = Call("weather", {"city": "Oslo"})


class City(pydantic.BaseModel):
    """A city."""

    name: str
    people: int


@pytest.fixture(params=["native", "translated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "native":
        with StrictAnthropic() as claude:
            there = (UpstreamSettings("up", "anthropic", claude.base_url),)
            with remember(claude, tmp_path, upstreams=there) as made:
                yield made
        return
    with StrictUpstream() as other, remember(other, tmp_path) as made:
        yield made


def is_recalled(world: World) -> bool:
    return b"Miso" in world.upstream.last.body and ASKED.encode() in world.upstream.last.body


def test_anthropics_sdk_whole_and_streamed_is_remembered(world: World) -> None:
    async def talk() -> None:
        async with anthropic.AsyncAnthropic(
            base_url=world.gateway.url, api_key="sk-ant", max_retries=0, timeout=PATIENCE_S
        ) as client:
            await client.messages.create(
                model=MODEL,
                max_tokens=100,
                messages=[{"role": "user", "content": CAT}],
                metadata={"user_id": "alice"},
            )
            await asyncio.to_thread(world.pass_time, 1000)
            async with client.messages.stream(
                model=MODEL,
                max_tokens=100,
                messages=[{"role": "user", "content": ASKED}],
                metadata={"user_id": "alice"},
            ) as stream:
                pieces = [piece async for piece in stream.text_stream]
                final = await stream.get_final_message()
            assert "".join(pieces) == "Miso." == text_of(final)
            assert final.usage.output_tokens > 0

    world.upstream.queue(say("Nice."), say("Miso."))
    asyncio.run(talk())
    assert is_recalled(world)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_anthropics_tool_runner(world: World, stream: bool) -> None:
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: its name
        """
        return f"Rain in {city}."

    world.upstream.queue(call_tools(RAIN, text="Let me see."), say("It rains."))
    client = anthropic.Anthropic(
        base_url=world.gateway.url, api_key="sk-ant", max_retries=0, timeout=PATIENCE_S
    )
    options: Json = {"stream": True} if stream else {}
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        tools=[weather],
        messages=[{"role": "user", "content": "How is it in Oslo?"}],
        metadata={"user_id": "alice"},
        **options,
    )
    assert text_of(runner.until_done()) == "It rains."
    assert b"Rain in Oslo." in world.upstream.last.body
    client.close()


def test_an_error_is_raised_as_anthropics(world: World) -> None:
    client = anthropic.Anthropic(
        base_url=world.gateway.url, api_key="sk-ant", max_retries=0, timeout=PATIENCE_S
    )
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(model=MODEL, max_tokens=-1, messages=[{"role": "user", "content": CAT}])
    assert raised.value.type == "invalid_request_error"
    client.close()


def langchain(world: World, **options: Any) -> Any:
    module = pytest.importorskip("langchain_anthropic")
    return module.ChatAnthropic(
        model=MODEL,
        base_url=world.gateway.url,
        api_key="sk-ant",
        max_retries=0,
        timeout=PATIENCE_S,
        default_headers=USER,
        **options,
    )


def test_langchain_whole_streamed_and_with_tools(world: World) -> None:
    model = langchain(world)
    world.upstream.queue(say("Nice."), say("Miso it is."), call_tools(RAIN), say("It rains."))
    assert model.invoke(CAT).content == "Nice."
    world.pass_time(1000)
    assert "".join(str(piece.text) for piece in model.stream(ASKED)) == "Miso it is."
    assert is_recalled(world)

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    tools = model.bind_tools([weather])
    talk: list[Any] = [("user", "How is it in Oslo?")]
    called = tools.invoke(talk)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Oslo"})]
    result = {"role": "tool", "tool_call_id": called.tool_calls[0]["id"], "content": "Rain in Oslo."}
    assert tools.invoke([*talk, called, result]).content == "It rains."


def test_langchain_structured_output_by_a_forced_tool(world: World) -> None:
    world.upstream.queue(call_tools(Call("City", {"name": "Oslo", "people": 717710})))
    model = langchain(world).with_structured_output(City)
    assert model.invoke("Oslo?") == City(name="Oslo", people=717710)


# LiteLLM's own types warn as they are imported.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_litellm_whole_and_streamed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would fetch its list of prices from the internet when it is imported, and again until that succeeds.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    asked: Json = {
        "model": f"anthropic/{MODEL}",
        "api_base": world.gateway.url,
        "api_key": "sk-ant",
        "max_tokens": 100,
        "extra_headers": USER,
        "timeout": PATIENCE_S,
    }
    world.upstream.queue(say("Nice."), say("Miso it is."))
    reply = litellm.completion(messages=[{"role": "user", "content": CAT}], **asked)
    assert reply.choices[0].message.content == "Nice."
    world.pass_time(1000)
    stream = litellm.completion(messages=[{"role": "user", "content": ASKED}], stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Miso it is."
    assert is_recalled(world)
