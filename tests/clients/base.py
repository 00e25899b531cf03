"""The interface of all clients, so that each passes the same checks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import openai
import pydantic

from tests.patience import PATIENCE_S

Json = dict[str, Any]
TIMEOUT_S = PATIENCE_S
SYSTEM_PROMPT = "You are kind."


class City(pydantic.BaseModel):
    """The type of a structured reply."""

    name: str
    people: int


@dataclass(frozen=True)
class ErrorReport:
    """An error as the client reports it."""

    # None: an error within a stream.
    status: int | None
    message: str
    # The header Retry-After. None: the reply has none, or the client does not report it.
    retry_after: str | None


class Usage(NamedTuple):
    """The numbers of tokens that a client reports for a chat."""

    prompt_tokens: int
    completion_tokens: int


class ToolReply(NamedTuple):
    """The reply to a chat with the weather tool."""

    text: str
    # The cities for which the tool was called, sorted.
    cities: list[str]


class Client(Protocol):
    """A client of one model."""

    # Whether its errors report Retry-After.
    has_retry_after: bool = True

    def __init__(self, url: str, model: str, headers: Mapping[str, str]) -> None:
        """Makes a client. url: the base URL of the API. headers: headers of each request."""

    async def chat(self, *texts: str) -> list[str]:
        """Sends messages one after the other in a conversation with a system prompt. Returns the whole replies."""

    def stream_text(self, text: str) -> AsyncIterator[str]:
        """Sends a message, and yields the text of the reply in the pieces in which it comes."""

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        """Sends a message. Returns the usage that the client reports at the end of the reply."""

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        """Sends a message with the tool `get_weather`, and runs the tool's calls."""

    async def chat_for_city(self, text: str) -> City:
        """Sends a message whose reply must be a `City`, and returns the parsed reply."""

    def read_error(self, error: Exception) -> ErrorReport:
        """Returns what an error of this client reports."""

    async def aclose(self) -> None: ...


def describe_weather(city: str) -> str:
    """Returns the result of a call of the weather tool."""
    return f"Rain in {city}."


def read_sdk_error(error: BaseException) -> ErrorReport:
    """Returns what an error of OpenAI's SDK reports. error: the SDK's error, or one that the SDK's error caused."""
    todo, visited = [error], []
    while not isinstance(error := todo.pop(0), openai.APIError):
        visited.append(error)  # some chains of causes have a cycle
        todo += [e for e in (error.__cause__, error.__context__) if e is not None and e not in visited]
    response = getattr(error, "response", None)
    retry_after = None if response is None else response.headers.get("retry-after")
    return ErrorReport(getattr(error, "status_code", None), error.message, retry_after)


class Completion(NamedTuple):
    """A whole reply: the objects of the API."""

    message: Json
    usage: Json


class RequestClient(Client):
    """A client without a loop of its own for conversations and tools: a subclass sends single requests."""

    async def complete(self, messages: Sequence[Json], **fields: Any) -> Completion:
        """Sends a request for a whole reply. fields: further fields of the body."""
        raise NotImplementedError

    def stream_chunks(self, messages: Sequence[Json], **fields: Any) -> AsyncIterator[Json]:
        """Sends a request for a stream, and yields its parsed chunks. fields: further fields of the body."""
        raise NotImplementedError

    async def chat(self, *texts: str) -> list[str]:
        messages: list[Json] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for text in texts:
            messages.append({"role": "user", "content": text})
            messages.append((await self.complete(messages)).message)
        return [m["content"] for m in messages if m["role"] == "assistant"]

    async def stream_text(self, text: str) -> AsyncIterator[str]:
        messages = [{"role": "user", "content": text}]
        async with aclosing(self.stream_chunks(messages)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    if piece := choice["delta"].get("content"):
                        yield piece

    async def count_tokens(self, text: str, *, stream: bool) -> Usage:
        messages = [{"role": "user", "content": text}]
        if stream:
            chunks = self.stream_chunks(messages, stream_options={"include_usage": True})
            (usage,) = [chunk["usage"] async for chunk in chunks if chunk.get("usage")]
        else:
            usage = (await self.complete(messages)).usage
        return Usage(usage["prompt_tokens"], usage["completion_tokens"])

    async def chat_with_tool(self, text: str, *, stream: bool) -> ToolReply:
        messages: list[Json] = [{"role": "user", "content": text}]
        cities: list[str] = []
        while True:
            if stream:
                message = merge_chunks(
                    [chunk async for chunk in self.stream_chunks(messages, tools=[WEATHER])]
                )
            else:
                message = (await self.complete(messages, tools=[WEATHER])).message
            messages.append(message)
            if not message.get("tool_calls"):
                return ToolReply(message["content"], sorted(cities))
            for call in message["tool_calls"]:
                cities.append(json.loads(call["function"]["arguments"])["city"])
                result = describe_weather(cities[-1])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    async def chat_for_city(self, text: str) -> City:
        messages = [{"role": "user", "content": text}]
        reply = await self.complete(messages, response_format=CITY_FORMAT)
        return City.model_validate_json(reply.message["content"])


WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# The field `response_format` for a `City`.
CITY_FORMAT: Json = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {**City.model_json_schema(), "additionalProperties": False},
        "strict": True,
    },
}


def merge_chunks(chunks: Sequence[Json]) -> Json:
    """Returns the message of a stream: its calls are merged by index, as the API's documentation describes."""
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
