"""OpenAI's SDK as it is used: async, sync, and through its helpers that parse replies and accumulate streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import openai

from tests.clients.base import TIMEOUT_S, WEATHER, City, Failure, Json, Talks, from_sdk, rain


def async_client(url: str, headers: Mapping[str, str]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url, api_key="sk-app", default_headers=dict(headers), max_retries=0, timeout=TIMEOUT_S
    )


class _Sdk(Talks):
    def failure(self, error: Exception) -> Failure:
        assert isinstance(error, openai.APIError)
        return from_sdk(error)


class Async(_Sdk):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        self.model = model
        self.client = async_client(url, headers)

    async def ask(self, messages: Sequence[Json], **more: Any) -> Json:
        reply = await self.client.chat.completions.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            **more,
        )
        assert reply.usage is not None
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return {"message": message, "usage": reply.usage.model_dump()}

    async def deltas(self, messages: Sequence[Json], **more: Any) -> AsyncIterator[Json]:
        async with await self.client.chat.completions.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            stream=True,
            **more,
        ) as stream:
            async for chunk in stream:
                yield chunk.model_dump()

    async def aclose(self) -> None:
        await self.client.close()


class Sync(_Sdk):
    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        self.model = model
        self.client = openai.OpenAI(
            base_url=url, api_key="sk-app", default_headers=dict(headers), max_retries=0, timeout=TIMEOUT_S
        )

    async def ask(self, messages: Sequence[Json], **more: Any) -> Json:
        def create() -> Any:
            return self.client.chat.completions.create(model=self.model, messages=list(messages), **more)  # type: ignore[arg-type]

        reply = await asyncio.to_thread(create)
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return {"message": message, "usage": reply.usage.model_dump()}

    async def deltas(self, messages: Sequence[Json], **more: Any) -> AsyncIterator[Json]:
        def create() -> Any:
            return self.client.chat.completions.create(
                model=self.model,
                messages=list(messages),  # type: ignore[arg-type]
                stream=True,
                **more,
            )

        with await asyncio.to_thread(create) as stream:
            while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
                yield chunk.model_dump()

    async def aclose(self) -> None:
        self.client.close()


class Helpers(Async):
    """The helpers `stream()`, `parse()` and `with_raw_response`."""

    async def ask(self, messages: Sequence[Json], **more: Any) -> Json:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            **more,
        )
        reply = raw.parse()
        assert reply.usage is not None
        message = reply.choices[0].message.model_dump(exclude_none=True)
        return {"message": message, "usage": reply.usage.model_dump()}

    async def pieces(self, said: str) -> AsyncIterator[str]:
        async with self._stream([{"role": "user", "content": said}]) as stream:
            async for event in stream:
                if event.type == "content.delta" and event.delta:
                    yield event.delta

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        if not stream:
            return await super().usage(said, stream=False)
        asked: list[Json] = [{"role": "user", "content": said}]
        async with self._stream(asked, stream_options={"include_usage": True}) as events:
            usage = (await events.get_final_completion()).usage
        assert usage is not None
        return usage.prompt_tokens, usage.completion_tokens

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        if not stream:
            return await super().tool(said, stream=False)
        messages: list[Any] = [{"role": "user", "content": said}]
        cities: list[str] = []
        while True:
            async with self._stream(messages, tools=[WEATHER]) as events:
                message = (await events.get_final_completion()).choices[0].message
            if not message.tool_calls:
                return message.content or "", sorted(cities)
            parsed = {"tool_calls": {"__all__": {"function": {"parsed_arguments"}}}, "parsed": True}
            messages.append(
                message.model_dump(exclude=parsed, exclude_none=True)
            )  # the API does not know them
            for call in message.tool_calls:
                cities.append(json.loads(call.function.arguments)["city"])
                messages.append({"role": "tool", "tool_call_id": call.id, "content": rain(cities[-1])})

    async def structured(self, said: str) -> City:
        reply = await self.client.chat.completions.parse(
            model=self.model, messages=[{"role": "user", "content": said}], response_format=City
        )
        found = reply.choices[0].message.parsed
        assert found is not None
        return found

    def _stream(
        self, messages: Sequence[Any], **more: Any
    ) -> contextlib.AbstractAsyncContextManager[openai.lib.streaming.chat.AsyncChatCompletionStream[Any]]:
        return self.client.chat.completions.stream(model=self.model, messages=list(messages), **more)
