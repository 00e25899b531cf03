"""The interface that every client is reduced to, so that one set of checks holds for all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import openai
import pydantic

from tests.patience import PATIENCE_S

Json = dict[str, Any]
TIMEOUT_S = PATIENCE_S
KIND = "You are kind."


class City(pydantic.BaseModel):
    """The type of structured answers."""

    name: str
    people: int


@dataclass(frozen=True)
class Failure:
    """An error as the client reports it. retry_after: None where the client does not report it."""

    status: int | None
    message: str
    retry_after: str | None


class Client(Protocol):
    """A client that asks one model. has_retry_after: its errors report Retry-After."""

    has_retry_after: bool = True

    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None: ...

    async def chat(self, *said: str) -> list[str]:
        """Says these one after the other in a conversation with a system message; returns the whole replies."""

    def pieces(self, said: str) -> AsyncIterator[str]:
        """Yields the reply in the pieces in which it comes."""

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        """Returns the tokens of prompt and reply, as the client reports them in the end."""

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        """Asks with a weather tool; returns the reply, and the cities for which the tool was called."""

    async def structured(self, said: str) -> City: ...

    def failure(self, error: Exception) -> Failure: ...

    async def aclose(self) -> None: ...


def rain(city: str) -> str:
    return f"Rain in {city}."


def from_sdk(error: BaseException) -> Failure:
    """Returns the cause of an error that is the SDK's, or was raised because of one."""
    todo, seen = [error], []
    while not isinstance(error := todo.pop(0), openai.APIError):
        seen.append(error)  # some go in circles
        todo += [e for e in (error.__cause__, error.__context__) if e is not None and e not in seen]
    response = getattr(error, "response", None)
    retry_after = None if response is None else response.headers.get("retry-after")
    return Failure(getattr(error, "status_code", None), error.message, retry_after)


class Talks(Client):
    """A client that has nothing but requests and replies: `ask` makes whole ones, `deltas` streamed ones."""

    async def ask(self, messages: Sequence[Json], **more: Any) -> Json:
        """Returns the reply's message and its usage, as {"message": ..., "usage": ...}."""
        raise NotImplementedError

    def deltas(self, messages: Sequence[Json], **more: Any) -> AsyncIterator[Json]:
        """Yields the chunks of a stream, parsed."""
        raise NotImplementedError

    async def chat(self, *said: str) -> list[str]:
        messages: list[Json] = [{"role": "system", "content": KIND}]
        for text in said:
            messages.append({"role": "user", "content": text})
            messages.append((await self.ask(messages))["message"])
        return [m["content"] for m in messages if m["role"] == "assistant"]

    async def pieces(self, said: str) -> AsyncIterator[str]:
        async with aclosing(self.deltas([{"role": "user", "content": said}])) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text

    async def usage(self, said: str, *, stream: bool) -> tuple[int, int]:
        messages = [{"role": "user", "content": said}]
        if stream:
            found = [
                chunk["usage"]
                async for chunk in self.deltas(messages, stream_options={"include_usage": True})
                if chunk.get("usage")
            ]
            assert len(found) == 1
        else:
            found = [(await self.ask(messages))["usage"]]
        return found[0]["prompt_tokens"], found[0]["completion_tokens"]

    async def tool(self, said: str, *, stream: bool) -> tuple[str, list[str]]:
        messages: list[Json] = [{"role": "user", "content": said}]
        cities: list[str] = []
        while True:
            if stream:
                message = put_together([chunk async for chunk in self.deltas(messages, tools=[WEATHER])])
            else:
                message = (await self.ask(messages, tools=[WEATHER]))["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return message["content"], sorted(cities)
            for call in message["tool_calls"]:
                cities.append(json.loads(call["function"]["arguments"])["city"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": rain(cities[-1])})

    async def structured(self, said: str) -> City:
        shape = {"name": "city", "schema": {**City.model_json_schema(), "additionalProperties": False}}
        reply = await self.ask(
            [{"role": "user", "content": said}],
            response_format={"type": "json_schema", "json_schema": {**shape, "strict": True}},
        )
        return City.model_validate_json(reply["message"]["content"])


WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def put_together(chunks: Sequence[Json]) -> Json:
    """Returns a stream's message, put together by index as the API's documentation says."""
    text: list[str] = []
    calls: dict[int, Json] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text.append(choice["delta"].get("content") or "")
            for piece in choice["delta"].get("tool_calls") or ():
                call = calls.setdefault(piece["index"], {"type": "function"})
                if piece.get("id"):
                    call["id"] = piece["id"]
                function = call.setdefault("function", {"name": "", "arguments": ""})
                for part in ("name", "arguments"):
                    function[part] += piece.get("function", {}).get(part) or ""
    message: Json = {"role": "assistant", "content": "".join(text) or None}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message
