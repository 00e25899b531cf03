"""Frameworks, used as their documentation describes. A class imports its framework when a client is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import openai
import pydantic

from tests.clients.base import (
    CITY_FORMAT,
    SYSTEM_PROMPT,
    TIMEOUT_S,
    City,
    Client,
    ErrorReport,
    ToolReply,
    Usage,
    describe_weather,
    read_sdk_error,
)
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

        return Agent(self._model, instructions=SYSTEM_PROMPT, **options)

    async def chat(self, *texts: str) -> list[str]:
        agent = self._agent()
        history = None
        replies = []
        for text in texts:
            result = await agent.run(text, message_history=history)
            history = result.all_messages()
            replies.append(result.output)
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        async with self._agent().run_stream(text) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        if stream:
            async with self._agent().run_stream(text) as result:
                await result.get_output()
        else:
            result = await self._agent().run(text)
        return Usage(result.usage.input_tokens, result.usage.output_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        agent = self._agent()
        cities: list[str] = []

        @agent.tool_plain  # type: ignore[untyped-decorator]
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        if stream:
            async with agent.run_stream(text) as result:
                output = await result.get_output()
        else:
            output = (await agent.run(text)).output
        return ToolReply(output, sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        city: City = (await self._agent(output_type=City).run(text)).output
        return city

    def read_error(self, error: Exception) -> ErrorReport:
        from pydantic_ai.exceptions import ModelHTTPError

        assert isinstance(error, ModelHTTPError)
        return replace(read_sdk_error(error), status=error.status_code)

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
            http_async_client=openai.DefaultAsyncHttpxClient(),  # the default one is shared, and stays open
        )

    async def chat(self, *texts: str) -> list[str]:
        from langchain_core.messages import HumanMessage, SystemMessage

        messages: list[Any] = [SystemMessage(SYSTEM_PROMPT)]
        replies = []
        for text in texts:
            messages.append(HumanMessage(text))
            reply = await self._model.ainvoke(messages)
            messages.append(reply)
            replies.append(str(reply.content))
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        async for chunk in self._model.astream(text):
            if chunk.content:
                yield str(chunk.content)

    async def _invoke(self, model: Any, messages: Any, *, stream: bool) -> Any:
        if not stream:
            return await model.ainvoke(messages)
        whole = None
        async for chunk in model.astream(messages):
            whole = chunk if whole is None else whole + chunk
        return whole

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        usage = (await self._invoke(self._model, text, stream=stream)).usage_metadata
        return Usage(usage["input_tokens"], usage["output_tokens"])

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        from langchain_core.messages import HumanMessage
        from langchain_core.tools import tool

        cities: list[str] = []

        @tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        model = self._model.bind_tools([get_weather])
        messages: list[Any] = [HumanMessage(text)]
        reply = await self._invoke(model, messages, stream=stream)
        while reply.tool_calls:
            messages.append(reply)
            messages += [await get_weather.ainvoke(call) for call in reply.tool_calls]
            reply = await self._invoke(model, messages, stream=stream)
        return ToolReply(str(reply.content), sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        city = await self._model.with_structured_output(City).ainvoke(text)
        assert isinstance(city, City)
        return city

    def read_error(self, error: Exception) -> ErrorReport:
        assert isinstance(error, openai.APIError)
        return read_sdk_error(error)

    async def aclose(self) -> None:
        await self._model.root_async_client.close()


class OpenAIAgents(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        import agents

        agents.set_tracing_disabled(True)  # it would send traces to OpenAI
        self._client = async_client(url, headers)
        self._model = agents.OpenAIChatCompletionsModel(model, self._client)

    def _agent(self, **options: Any) -> Any:
        from agents import Agent, ModelSettings

        settings = ModelSettings(include_usage=True)
        return Agent(
            name="kind", instructions=SYSTEM_PROMPT, model=self._model, model_settings=settings, **options
        )

    async def chat(self, *texts: str) -> list[str]:
        from agents import Runner

        items: list[Any] = []
        replies = []
        for text in texts:
            result = await Runner.run(self._agent(), [*items, {"role": "user", "content": text}])
            items = result.to_input_list()
            replies.append(str(result.final_output))
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        from agents import Runner

        result = Runner.run_streamed(self._agent(), text)
        try:
            async for event in result.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    yield event.data.delta
        finally:
            result.cancel()

    async def _run(self, agent: Any, text: str, *, stream: bool) -> Any:
        from agents import Runner

        if not stream:
            return await Runner.run(agent, text)
        result = Runner.run_streamed(agent, text)
        async for _ in result.stream_events():
            pass
        return result

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        usage = (await self._run(self._agent(), text, stream=stream)).context_wrapper.usage
        return Usage(usage.input_tokens, usage.output_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        from agents import function_tool

        cities: list[str] = []

        @function_tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        result = await self._run(self._agent(tools=[get_weather]), text, stream=stream)
        return ToolReply(str(result.final_output), sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        result = await self._run(self._agent(output_type=City), text, stream=False)
        city: City = result.final_output_as(City)
        return city

    def read_error(self, error: Exception) -> ErrorReport:
        assert isinstance(error, openai.APIError)
        return read_sdk_error(error)

    async def aclose(self) -> None:
        await self._client.close()


class Agno(Client):
    """Agno. Its agents put an error into their result, so `chat` and `stream_text` use its models, which raise it."""

    has_retry_after = False

    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from agno.models.openai.like import OpenAILike

        self._client = async_client(url, headers)
        self._model = OpenAILike(id=model, async_client=self._client, api_key="sk-app", base_url=url)

    def _agent(self, **options: Any) -> Any:
        from agno.agent import Agent

        return Agent(model=self._model, instructions=SYSTEM_PROMPT, telemetry=False, **options)

    async def chat(self, *texts: str) -> list[str]:
        from agno.models.message import Message

        messages = [Message(role="system", content=SYSTEM_PROMPT)]
        replies = []
        for text in texts:
            messages.append(Message(role="user", content=text))
            # `aresponse` adds the reply to the messages.
            replies.append((await self._model.aresponse(messages)).content)
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        from agno.models.message import Message

        async for event in self._model.aresponse_stream([Message(role="user", content=text)]):
            if event.content:
                yield event.content

    async def _run(self, agent: Any, text: str, *, stream: bool) -> Any:
        if not stream:
            return await agent.arun(text)
        async for event in agent.arun(text, stream=True, yield_run_output=True):
            last_event = event
        return last_event

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        metrics = (await self._run(self._agent(), text, stream=stream)).metrics
        return Usage(metrics.input_tokens, metrics.output_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        cities: list[str] = []

        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        output = await self._run(self._agent(tools=[get_weather]), text, stream=stream)
        return ToolReply(output.content, sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        city = (await self._agent(output_schema=City).arun(text)).content
        assert isinstance(city, City)
        return city

    def read_error(self, error: Exception) -> ErrorReport:
        from agno.exceptions import ModelProviderError

        assert isinstance(error, ModelProviderError)
        return ErrorReport(error.status_code, error.message, None)

    async def aclose(self) -> None:
        await self._client.close()


async def _ignore_chunk(_: Any) -> None:
    """Has Haystack stream: it does so if it has a callback."""


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

    async def chat(self, *texts: str) -> list[str]:
        from haystack.dataclasses import ChatMessage

        messages = [ChatMessage.from_system(SYSTEM_PROMPT)]
        replies = []
        for text in texts:
            messages.append(ChatMessage.from_user(text))
            messages += (await self._generator.run_async(messages))["replies"]
            replies.append(messages[-1].text or "")
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        async def put_text(chunk: Any) -> None:
            if chunk.content:
                await queue.put(chunk.content)

        async def run() -> None:
            try:
                await self._generator.run_async(text, streaming_callback=put_text)
            finally:
                await queue.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        options: dict[str, Any] = {}
        if stream:
            options["streaming_callback"] = _ignore_chunk
            options["generation_kwargs"] = {"stream_options": {"include_usage": True}}
        result = await self._generator.run_async(text, **options)
        usage = result["replies"][0].meta["usage"]
        return Usage(usage["prompt_tokens"], usage["completion_tokens"])

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        from haystack.components.agents import Agent
        from haystack.dataclasses import ChatMessage
        from haystack.tools import create_tool_from_function

        cities: list[str] = []

        def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        agent = Agent(chat_generator=self._generator, tools=[create_tool_from_function(get_weather)])
        result = await agent.run_async(
            [ChatMessage.from_user(text)], streaming_callback=_ignore_chunk if stream else None
        )
        return ToolReply(result["last_message"].text, sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        result = await self._generator.run_async(text, generation_kwargs={"response_format": City})
        return City.model_validate_json(result["replies"][0].text)

    def read_error(self, error: Exception) -> ErrorReport:
        return read_sdk_error(error)

    async def aclose(self) -> None:
        await self._generator.close_async()


class Smolagents(Client):
    def __init__(self, url: str, model: str, headers: Headers) -> None:
        from smolagents import OpenAIServerModel

        options = {"default_headers": dict(headers), "max_retries": 0, "timeout": TIMEOUT_S}
        self._model = OpenAIServerModel(model, url, "sk-app", client_kwargs=options, retry=False)

    async def chat(self, *texts: str) -> list[str]:
        messages: list[Any] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for text in texts:
            messages.append({"role": "user", "content": text})
            reply = await asyncio.to_thread(self._model.generate, messages)
            messages.append({"role": "assistant", "content": reply.content})
        return [m["content"] for m in messages if m["role"] == "assistant"]

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        with contextlib.closing(self._model.generate_stream([{"role": "user", "content": text}])) as stream:
            while (delta := await asyncio.to_thread(next, stream, None)) is not None:
                if delta.content:
                    yield delta.content

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        messages: list[Any] = [{"role": "user", "content": text}]
        if stream:
            deltas = await asyncio.to_thread(lambda: list(self._model.generate_stream(messages)))
            (usage,) = [delta.token_usage for delta in deltas if delta.token_usage]
        else:
            usage = (await asyncio.to_thread(self._model.generate, messages)).token_usage
        return Usage(usage.input_tokens, usage.output_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        from smolagents import LogLevel, ToolCallingAgent, tool

        cities: list[str] = []

        @tool
        def get_weather(city: str) -> str:
            """The weather in a city.

            Args:
                city: Its name.
            """
            cities.append(city)
            return describe_weather(city)

        agent = ToolCallingAgent(
            [get_weather], self._model, verbosity_level=LogLevel.OFF, stream_outputs=stream
        )
        reply = str(await asyncio.to_thread(agent.run, text))
        return ToolReply(reply, sorted(cities))

    async def chat_for_city(self, text: str) -> City:
        messages = [{"role": "user", "content": text}]
        reply = await asyncio.to_thread(self._model.generate, messages, response_format=CITY_FORMAT)
        return City.model_validate_json(reply.content)

    def read_error(self, error: Exception) -> ErrorReport:
        return read_sdk_error(error)

    async def aclose(self) -> None:
        self._model.client.close()


class LiveKit(Client):
    """LiveKit's language model without a session, which always streams. `tests/clients/phone.py` has its sessions."""

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

    def _chat(self, context: Any, **options: Any) -> Any:
        from livekit.agents import APIConnectOptions

        return self._model.chat(
            chat_ctx=context, conn_options=APIConnectOptions(max_retry=0, timeout=TIMEOUT_S), **options
        )

    def _make_context(self, role: Any, text: str) -> Any:
        """Returns the context of a chat, with one message."""
        from livekit.agents.llm import ChatContext

        context = ChatContext()
        context.add_message(role=role, content=text)
        return context

    async def chat(self, *texts: str) -> list[str]:
        context = self._make_context("system", SYSTEM_PROMPT)
        replies: list[str] = []
        for text in texts:
            context.add_message(role="user", content=text)
            replies.append((await self._chat(context).collect()).text)
            context.add_message(role="assistant", content=replies[-1])
        return replies

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        async with self._chat(self._make_context("user", text)) as stream:
            async for chunk in stream:
                if chunk.delta and chunk.delta.content:
                    yield chunk.delta.content

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        usage = (await self._chat(self._make_context("user", text)).collect()).usage
        return Usage(usage.prompt_tokens, usage.completion_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        from livekit.agents import llm

        cities: list[str] = []

        @llm.function_tool
        async def get_weather(city: str) -> str:
            """The weather in a city."""
            cities.append(city)
            return describe_weather(city)

        context = self._make_context("user", text)
        while True:
            reply = await self._chat(context, tools=[get_weather]).collect()
            if not reply.tool_calls:
                return ToolReply(reply.text, sorted(cities))
            for call in reply.tool_calls:
                result = await llm.execute_function_call(call, llm.ToolContext([get_weather]))
                context.insert([result.fnc_call, result.fnc_call_out])

    async def chat_for_city(self, text: str) -> City:
        reply = await self._chat(self._make_context("user", text), response_format=City).collect()
        return City.model_validate_json(reply.text)

    def read_error(self, error: Exception) -> ErrorReport:
        from livekit.agents import APIError, APIStatusError

        assert isinstance(error, APIError)
        if isinstance(error, APIStatusError):
            return ErrorReport(error.status_code, str(error.body), None)
        # An error within a stream: LiveKit reports each as a lost connection, so its cause is read.
        return read_sdk_error(error)

    async def aclose(self) -> None:
        await self._model.aclose()
