"""OpenAI's SDK: async, sync, and with its helpers that parse replies and accumulate streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import openai

from tests.clients.base import (
    TIMEOUT_S,
    WEATHER,
    City,
    Completion,
    ErrorReport,
    Json,
    RequestClient,
    ToolReply,
    Usage,
    describe_weather,
    read_sdk_error,
)


def async_client(url: str, headers: Mapping[str, str]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url, api_key="sk-app", default_headers=dict(headers), max_retries=0, timeout=TIMEOUT_S
    )


class _Sdk(RequestClient):
    def read_error(self, error: Exception) -> ErrorReport:
        assert isinstance(error, openai.APIError)
        return read_sdk_error(error)


class AsyncSdk(_Sdk):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        self.model = model
        self.client = async_client(url, headers)

    async def complete(self, messages: Sequence[Json], **fields: Any) -> Completion:
        reply = await self.client.chat.completions.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            **fields,
        )
        assert reply.usage is not None
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return Completion(message, reply.usage.model_dump())

    async def stream_chunks(self, messages: Sequence[Json], **fields: Any) -> AsyncIterator[Json]:
        async with await self.client.chat.completions.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            stream=True,
            **fields,
        ) as stream:
            async for chunk in stream:
                yield chunk.model_dump()

    async def aclose(self) -> None:
        await self.client.close()


class SyncSdk(_Sdk):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        self.model = model
        self.client = openai.OpenAI(
            base_url=url, api_key="sk-app", default_headers=dict(headers), max_retries=0, timeout=TIMEOUT_S
        )

    async def complete(self, messages: Sequence[Json], **fields: Any) -> Completion:
        def create() -> Any:
            return self.client.chat.completions.create(model=self.model, messages=list(messages), **fields)  # type: ignore[arg-type]

        reply = await asyncio.to_thread(create)
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return Completion(message, reply.usage.model_dump())

    async def stream_chunks(self, messages: Sequence[Json], **fields: Any) -> AsyncIterator[Json]:
        def create() -> Any:
            return self.client.chat.completions.create(
                model=self.model,
                messages=list(messages),  # type: ignore[arg-type]
                stream=True,
                **fields,
            )

        with await asyncio.to_thread(create) as stream:
            while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
                yield chunk.model_dump()

    async def aclose(self) -> None:
        self.client.close()


class SdkHelpers(AsyncSdk):
    """The helpers `stream()`, `parse()` and `with_raw_response`."""

    async def complete(self, messages: Sequence[Json], **fields: Any) -> Completion:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            **fields,
        )
        reply = raw.parse()
        assert reply.usage is not None
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return Completion(message, reply.usage.model_dump())

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        async with self._stream([{"role": "user", "content": text}]) as stream:
            async for event in stream:
                if event.type == "content.delta" and event.delta:
                    yield event.delta

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        if not stream:
            return await super().count_tokens(text, stream=False)
        messages: list[Json] = [{"role": "user", "content": text}]
        async with self._stream(messages, stream_options={"include_usage": True}) as events:
            usage = (await events.get_final_completion()).usage
        assert usage is not None
        return Usage(usage.prompt_tokens, usage.completion_tokens)

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        if not stream:
            return await super().chat_with_tool(text, stream=False)
        messages: list[Any] = [{"role": "user", "content": text}]
        cities: list[str] = []
        while True:
            async with self._stream(messages, tools=[WEATHER]) as events:
                message = (await events.get_final_completion()).choices[0].message
            if not message.tool_calls:
                return ToolReply(message.content or "", sorted(cities))
            # Fields that the helpers add, and which the API refuses.
            added = {"tool_calls": {"__all__": {"function": {"parsed_arguments"}}}, "parsed": True}
            messages.append(message.model_dump(exclude=added, exclude_none=True))
            for call in message.tool_calls:
                cities.append(json.loads(call.function.arguments)["city"])
                result = describe_weather(cities[-1])
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    async def chat_for_city(self, text: str) -> City:
        reply = await self.client.chat.completions.parse(
            model=self.model, messages=[{"role": "user", "content": text}], response_format=City
        )
        city = reply.choices[0].message.parsed
        assert city is not None
        return city

    def _stream(
        self, messages: Sequence[Any], **fields: Any
    ) -> contextlib.AbstractAsyncContextManager[openai.lib.streaming.chat.AsyncChatCompletionStream[Any]]:
        return self.client.chat.completions.stream(model=self.model, messages=list(messages), **fields)
