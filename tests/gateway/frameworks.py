"""What people build with, reduced to what they do: a chat, a stream, a tool round trip, a structured answer.

Each framework is imported when it is used: together they take seconds. What they are given is a base URL and headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import openai
import pydantic

__all__ = ["FRAMEWORKS", "City", "Framework"]


class City(pydantic.BaseModel):
    """What a structured answer is about."""

    name: str
    people: int


class Framework(Protocol):
    """All for one model. error: raised with `status_code` when the model's answer was an error."""

    error: type[Exception]

    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None: ...

    async def chat(self, *said: str) -> list[str]:
        """One conversation, said one after the other; the replies."""

    async def stream(self, said: str) -> list[str]:
        """The reply in the pieces in which it came."""

    async def tool(self, said: str) -> tuple[str, list[str]]:
        """With a tool that tells a city's weather: the reply, and for which cities it was called."""

    async def structured(self, said: str) -> City: ...

    async def aclose(self) -> None: ...


def _client(url: str, headers: Mapping[str, str]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url, api_key="sk-app", default_headers=dict(headers), max_retries=0, timeout=10.0
    )


class PydanticAI:
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        from pydantic_ai.exceptions import ModelHTTPError
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        self.error: type[Exception] = ModelHTTPError
        self._client = _client(url, headers)
        self._model = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=self._client))

    def _agent(self, **options: Any) -> Any:
        from pydantic_ai import Agent

        return Agent(self._model, instructions="You are kind.", **options)

    async def chat(self, *said: str) -> list[str]:
        agent, history, replies = self._agent(), None, []
        for text in said:
            result = await agent.run(text, message_history=history)
            history = result.all_messages()
            replies.append(result.output)
        return replies

    async def stream(self, said: str) -> list[str]:
        async with self._agent().run_stream(said) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    async def tool(self, said: str) -> tuple[str, list[str]]:
        agent, cities = self._agent(), []

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return f"Rain in {city}."

        result = await agent.run(said)
        return result.output, sorted(cities)

    async def structured(self, said: str) -> City:
        result = await self._agent(output_type=City).run(said)
        found: City = result.output
        return found

    async def aclose(self) -> None:
        await self._client.close()


class LangChain:
    error: type[Exception] = openai.APIStatusError

    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        from langchain_openai import ChatOpenAI

        self._model = ChatOpenAI(
            model=model,
            base_url=url,
            api_key=pydantic.SecretStr("sk-app"),
            default_headers=dict(headers),
            max_retries=0,
            timeout=10.0,
            http_async_client=openai.DefaultAsyncHttpxClient(),  # its own would be shared, and stay open
        )

    async def chat(self, *said: str) -> list[str]:
        from langchain_core.messages import HumanMessage, SystemMessage

        messages: list[Any] = [SystemMessage("You are kind.")]
        replies = []
        for text in said:
            messages.append(HumanMessage(text))
            reply = await self._model.ainvoke(messages)
            messages.append(reply)
            replies.append(str(reply.content))
        return replies

    async def stream(self, said: str) -> list[str]:
        return [str(chunk.content) async for chunk in self._model.astream(said) if chunk.content]

    async def tool(self, said: str) -> tuple[str, list[str]]:
        from langchain_core.messages import HumanMessage
        from langchain_core.tools import tool

        cities = []

        @tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return f"Rain in {city}."

        bound = self._model.bind_tools([get_weather])
        messages: list[Any] = [HumanMessage(said)]
        reply = await bound.ainvoke(messages)
        while reply.tool_calls:
            messages.append(reply)
            messages += [await get_weather.ainvoke(call) for call in reply.tool_calls]
            reply = await bound.ainvoke(messages)
        return str(reply.content), sorted(cities)

    async def structured(self, said: str) -> City:
        found = await self._model.with_structured_output(City).ainvoke(said)
        assert isinstance(found, City)
        return found

    async def aclose(self) -> None:
        await self._model.root_async_client.close()


class OpenAIAgents:
    error: type[Exception] = openai.APIStatusError

    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        import agents

        agents.set_tracing_disabled(True)  # else it reports to its maker
        self._client = _client(url, headers)
        self._model = agents.OpenAIChatCompletionsModel(model, self._client)

    def _agent(self, **options: Any) -> Any:
        from agents import Agent

        return Agent(name="kind", instructions="You are kind.", model=self._model, **options)

    async def chat(self, *said: str) -> list[str]:
        from agents import Runner

        items: list[Any] = []
        replies = []
        for text in said:
            result = await Runner.run(self._agent(), [*items, {"role": "user", "content": text}])
            items = result.to_input_list()
            replies.append(str(result.final_output))
        return replies

    async def stream(self, said: str) -> list[str]:
        from agents import Runner

        result = Runner.run_streamed(self._agent(), said)
        return [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]

    async def tool(self, said: str) -> tuple[str, list[str]]:
        from agents import Runner, function_tool

        cities = []

        @function_tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return f"Rain in {city}."

        result = await Runner.run(self._agent(tools=[get_weather]), said)
        return str(result.final_output), sorted(cities)

    async def structured(self, said: str) -> City:
        from agents import Runner

        result = await Runner.run(self._agent(output_type=City), said)
        return result.final_output_as(City)

    async def aclose(self) -> None:
        await self._client.close()


FRAMEWORKS: dict[str, type[Framework]] = {
    "pydantic-ai": PydanticAI,
    "langchain": LangChain,
    "openai-agents": OpenAIAgents,
}
