"""Frameworks, used as their documentation says: each gets a base URL and headers. Each is imported when it is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import openai
import pydantic

from tests.clients.base import KIND, TIMEOUT_S, City, Client, Failure, from_sdk, rain
from tests.clients.sdks import async_client

Headers = Mapping[str, str]


class PydanticAI(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        self._client = async_client(url, headers)
        self._model = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=self._client))

    def _agent(self, **options: Any) -> Any:
        from pydantic_ai import Agent

        return Agent(self._model, instructions=KIND, **options)

    async def chat(self, *said: str) -> list[str]:
        agent, history, replies = self._agent(), None, []
        for text in said:
            result = await agent.run(text, message_history=history)
            history = result.all_messages()
            replies.append(result.output)
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        async with self._agent().run_stream(said) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        if stream:
            async with self._agent().run_stream(said) as result:
                await result.get_output()
        else:
            result = await self._agent().run(said)
        return result.usage.input_tokens, result.usage.output_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        agent, cities = self._agent(), []

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        if stream:
            async with agent.run_stream(said) as result:
                return await result.get_output(), sorted(cities)
        return (await agent.run(said)).output, sorted(cities)

    async def structured(self, said: str) -> City:
        result = await self._agent(output_type=City).run(said)
        found: City = result.output
        return found

    def failure(self, error: Exception) -> Failure:
        from pydantic_ai.exceptions import ModelHTTPError

        assert isinstance(error, ModelHTTPError)
        return replace(from_sdk(error), status=error.status_code)

    async def aclose(self) -> None:
        await self._client.close()


class LangChain(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from langchain_openai import ChatOpenAI

        self._model = ChatOpenAI(
            model=model,
            base_url=url,
            api_key=pydantic.SecretStr("sk-app"),
            default_headers=dict(headers),
            max_retries=0,
            timeout=TIMEOUT_S,
            stream_usage=True,
            http_async_client=openai.DefaultAsyncHttpxClient(),  # its own would be shared, and stay open
        )

    async def chat(self, *said: str) -> list[str]:
        from langchain_core.messages import HumanMessage, SystemMessage

        messages: list[Any] = [SystemMessage(KIND)]
        replies = []
        for text in said:
            messages.append(HumanMessage(text))
            reply = await self._model.ainvoke(messages)
            messages.append(reply)
            replies.append(str(reply.content))
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        async for chunk in self._model.astream(said):
            if chunk.content:
                yield str(chunk.content)

    async def _ask(self, model: Any, messages: Any, stream: bool) -> Any:
        if not stream:
            return await model.ainvoke(messages)
        whole = None
        async for chunk in model.astream(messages):
            whole = chunk if whole is None else whole + chunk
        return whole

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        found = (await self._ask(self._model, said, stream)).usage_metadata
        return found["input_tokens"], found["output_tokens"]

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        from langchain_core.messages import HumanMessage
        from langchain_core.tools import tool

        cities = []

        @tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        bound = self._model.bind_tools([get_weather])
        messages: list[Any] = [HumanMessage(said)]
        reply = await self._ask(bound, messages, stream)
        while reply.tool_calls:
            messages.append(reply)
            messages += [await get_weather.ainvoke(call) for call in reply.tool_calls]
            reply = await self._ask(bound, messages, stream)
        return str(reply.content), sorted(cities)

    async def structured(self, said: str) -> City:
        found = await self._model.with_structured_output(City).ainvoke(said)
        assert isinstance(found, City)
        return found

    def failure(self, error: Exception) -> Failure:
        assert isinstance(error, openai.APIError)
        return from_sdk(error)

    async def aclose(self) -> None:
        await self._model.root_async_client.close()


class OpenAIAgents(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        import agents

        agents.set_tracing_disabled(True)  # else it reports to its maker
        self._client = async_client(url, headers)
        self._model = agents.OpenAIChatCompletionsModel(model, self._client)

    def _agent(self, **options: Any) -> Any:
        from agents import Agent, ModelSettings

        settings = ModelSettings(include_usage=True)
        return Agent(name="kind", instructions=KIND, model=self._model, model_settings=settings, **options)

    async def chat(self, *said: str) -> list[str]:
        from agents import Runner

        items: list[Any] = []
        replies = []
        for text in said:
            result = await Runner.run(self._agent(), [*items, {"role": "user", "content": text}])
            items = result.to_input_list()
            replies.append(str(result.final_output))
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        from agents import Runner

        result = Runner.run_streamed(self._agent(), said)
        try:
            async for event in result.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    yield event.data.delta
        finally:
            result.cancel()

    async def _run(self, agent: Any, said: str, stream: bool) -> Any:
        from agents import Runner

        if not stream:
            return await Runner.run(agent, said)
        result = Runner.run_streamed(agent, said)
        async for _ in result.stream_events():
            pass
        return result

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        found = (await self._run(self._agent(), said, stream)).context_wrapper.usage
        return found.input_tokens, found.output_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        from agents import function_tool

        cities = []

        @function_tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        result = await self._run(self._agent(tools=[get_weather]), said, stream)
        return str(result.final_output), sorted(cities)

    async def structured(self, said: str) -> City:
        result = await self._run(self._agent(output_type=City), said, False)
        found: City = result.final_output_as(City)
        return found

    def failure(self, error: Exception) -> Failure:
        assert isinstance(error, openai.APIError)
        return from_sdk(error)

    async def aclose(self) -> None:
        await self._client.close()


class Agno(Client):
    """Agno; its agents put an error into their result, its models raise it."""

    has_retry_after = False

    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from agno.models.openai.like import OpenAILike

        self._client = async_client(url, headers)
        self._model = OpenAILike(id=model, async_client=self._client, api_key="sk-app", base_url=url)

    def _agent(self, **options: Any) -> Any:
        from agno.agent import Agent

        return Agent(model=self._model, instructions=KIND, telemetry=False, **options)

    async def chat(self, *said: str) -> list[str]:
        from agno.models.message import Message

        messages, replies = [Message(role="system", content=KIND)], []
        for text in said:
            messages.append(Message(role="user", content=text))
            replies.append((await self._model.aresponse(messages)).content)  # which adds it to the messages
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        from agno.models.message import Message

        async for event in self._model.aresponse_stream([Message(role="user", content=said)]):
            if event.content:
                yield event.content

    async def _run(self, agent: Any, said: str, stream: bool) -> Any:
        if not stream:
            return await agent.arun(said)
        async for event in agent.arun(said, stream=True, yield_run_output=True):
            found = event
        return found

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        found = (await self._run(self._agent(), said, stream)).metrics
        return found.input_tokens, found.output_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        cities = []

        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        return (await self._run(self._agent(tools=[get_weather]), said, stream)).content, sorted(cities)

    async def structured(self, said: str) -> City:
        found = (await self._agent(output_schema=City).arun(said)).content
        assert isinstance(found, City)
        return found

    def failure(self, error: Exception) -> Failure:
        from agno.exceptions import ModelProviderError

        assert isinstance(error, ModelProviderError)
        return Failure(error.status_code, error.message, None)

    async def aclose(self) -> None:
        await self._client.close()


class Haystack(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from haystack.components.generators.chat import OpenAIChatGenerator
        from haystack.utils import Secret

        self._generator = OpenAIChatGenerator(
            api_key=Secret.from_token("sk-app"),
            model=model,
            api_base_url=url,
            timeout=TIMEOUT_S,
            max_retries=0,
            http_client_kwargs={"headers": dict(headers)},
        )

    async def chat(self, *said: str) -> list[str]:
        from haystack.dataclasses import ChatMessage

        messages, replies = [ChatMessage.from_system(KIND)], []
        for text in said:
            messages.append(ChatMessage.from_user(text))
            messages += (await self._generator.run_async(messages))["replies"]
            replies.append(messages[-1].text or "")
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        async def take(chunk: Any) -> None:
            if chunk.content:
                await queue.put(chunk.content)

        async def run() -> None:
            try:
                await self._generator.run_async(said, streaming_callback=take)
            finally:
                await queue.put(None)

        running = asyncio.ensure_future(run())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            await running
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await running

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        async def take(_: Any) -> None: ...

        options = {"generation_kwargs": {"stream_options": {"include_usage": True}}} if stream else {}
        reply = await self._generator.run_async(said, streaming_callback=take if stream else None, **options)
        found = reply["replies"][0].meta["usage"]
        return found["prompt_tokens"], found["completion_tokens"]

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        from haystack.components.agents import Agent
        from haystack.dataclasses import ChatMessage
        from haystack.tools import create_tool_from_function

        cities = []

        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        async def take(_: Any) -> None: ...

        agent = Agent(chat_generator=self._generator, tools=[create_tool_from_function(get_weather)])
        result = await agent.run_async(
            [ChatMessage.from_user(said)], streaming_callback=take if stream else None
        )
        return result["last_message"].text, sorted(cities)

    async def structured(self, said: str) -> City:
        result = await self._generator.run_async(said, generation_kwargs={"response_format": City})
        return City.model_validate_json(result["replies"][0].text)

    def failure(self, error: Exception) -> Failure:
        return from_sdk(error)

    async def aclose(self) -> None:
        await self._generator.close_async()


class Smolagents(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from smolagents import OpenAIServerModel

        options = {"default_headers": dict(headers), "max_retries": 0, "timeout": TIMEOUT_S}
        self._model = OpenAIServerModel(model, url, "sk-app", client_kwargs=options, retry=False)

    async def chat(self, *said: str) -> list[str]:
        messages: list[Any] = [{"role": "system", "content": KIND}]
        for text in said:
            messages.append({"role": "user", "content": text})
            reply = await asyncio.to_thread(self._model.generate, messages)
            messages.append({"role": "assistant", "content": reply.content})
        return [m["content"] for m in messages if m["role"] == "assistant"]

    async def pieces(self, said: str) -> AsyncIterator[str]:
        with contextlib.closing(self._model.generate_stream([{"role": "user", "content": said}])) as stream:
            while (delta := await asyncio.to_thread(next, stream, None)) is not None:
                if delta.content:
                    yield delta.content

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        asked: list[Any] = [{"role": "user", "content": said}]
        if stream:
            deltas = await asyncio.to_thread(lambda: list(self._model.generate_stream(asked)))
            (found,) = [delta.token_usage for delta in deltas if delta.token_usage]
        else:
            found = (await asyncio.to_thread(self._model.generate, asked)).token_usage
        return found.input_tokens, found.output_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        from smolagents import LogLevel, ToolCallingAgent, tool

        cities = []

        @tool
        def get_weather(city: str) -> str:
            """The weather in a city.

            Args:
                city: Its name.
            """
            cities.append(city)
            return rain(city)

        agent = ToolCallingAgent(
            [get_weather], self._model, verbosity_level=LogLevel.OFF, stream_outputs=stream
        )
        return str(await asyncio.to_thread(agent.run, said)), sorted(cities)

    async def structured(self, said: str) -> City:
        shape = {"name": "city", "schema": {**City.model_json_schema(), "additionalProperties": False}}
        reply = await asyncio.to_thread(
            self._model.generate,
            [{"role": "user", "content": said}],
            response_format={"type": "json_schema", "json_schema": {**shape, "strict": True}},
        )
        return City.model_validate_json(reply.content)

    def failure(self, error: Exception) -> Failure:
        return from_sdk(error)

    async def aclose(self) -> None:
        self._model.client.close()


class LiveKit(Client):
    """LiveKit's language model alone, which always streams; tests/clients/phone.py has its sessions."""

    has_retry_after = False

    def __init__(self, url: str, model: str, headers: Headers) -> None:
        import httpx
        from livekit.plugins.openai import LLM

        self._model = LLM(
            model=model,
            base_url=url,
            api_key="sk-app",
            extra_headers=dict(headers),
            timeout=httpx.Timeout(TIMEOUT_S),
        )

    def _ask(self, context: Any, **more: Any) -> Any:
        from livekit.agents import APIConnectOptions

        return self._model.chat(
            chat_ctx=context, conn_options=APIConnectOptions(max_retry=0, timeout=TIMEOUT_S), **more
        )

    def _context(self, *said: str) -> Any:
        from livekit.agents.llm import ChatContext

        context = ChatContext()
        for text in said:
            context.add_message(role="user", content=text)
        return context

    async def chat(self, *said: str) -> list[str]:
        context, replies = self._context(), []
        context.add_message(role="system", content=KIND)
        for text in said:
            context.add_message(role="user", content=text)
            replies.append((await self._ask(context).collect()).text)
            context.add_message(role="assistant", content=replies[-1])
        return replies

    async def pieces(self, said: str) -> AsyncIterator[str]:
        async with self._ask(self._context(said)) as stream:
            async for chunk in stream:
                if chunk.delta and chunk.delta.content:
                    yield chunk.delta.content

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        found = (await self._ask(self._context(said)).collect()).usage
        return found.prompt_tokens, found.completion_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        from livekit.agents import llm

        cities = []

        @llm.function_tool
        async def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return rain(city)

        context = self._context(said)
        while True:
            reply = await self._ask(context, tools=[get_weather]).collect()
            if not reply.tool_calls:
                return reply.text, sorted(cities)
            for call in reply.tool_calls:
                result = await llm.execute_function_call(call, llm.ToolContext([get_weather]))
                context.insert([result.fnc_call, result.fnc_call_out])

    async def structured(self, said: str) -> City:
        reply = await self._ask(self._context(said), response_format=City).collect()
        return City.model_validate_json(reply.text)

    def failure(self, error: Exception) -> Failure:
        from livekit.agents import APIError, APIStatusError

        assert isinstance(error, APIError)
        if isinstance(error, APIStatusError):
            return Failure(error.status_code, str(error.body), None)
        return from_sdk(
            error
        )  # in the middle of a stream: it takes all that breaks one for a lost connection

    async def aclose(self) -> None:
        await self._model.aclose()
