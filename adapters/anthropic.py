"""The adapter for Claude: chat completions are translated to `/v1/messages` and back, whole or streamed.

The translation is pure and lies in `adapters/claude`; this module has addresses, credentials, headers and the life of
a reply. Requests to `/messages` and below pass unchanged, both ways, for callers that speak Anthropic's own dialect.

Keys go as `x-api-key`, OAuth tokens as bearer tokens. A caller's own credential is used only where the upstream has
none, as with every provider.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Final

import orjson
from yarl import URL

from adapters.base import BufferedReply, ModelReply, WholeReply, read_whole
from adapters.claude.error_form import Untranslatable, error_body, translate_body
from adapters.claude.events import NamedEventDecoder
from adapters.claude.reply import completion, next_index
from adapters.claude.request import BINDING_BETA, SAMPLING, to_wire
from adapters.claude.stream import StreamTranslator
from adapters.errors import ProviderBroke
from adapters.openai import OpenAICompatible
from adapters.types import API_KEY, COUNT_TOKENS, Event, Header, Json, ModelRequest

DEFAULT_VERSION: Final = "2026-10-21"  # the version that Anthropic's own SDKs have sent since that day
SAMPLING_VERSION: Final = "2023-06-01"  # the last version that takes temperature, top_p and top_k
_MODELS: Final = "/models?limit=1000"
MARKED: Final = b'"cache_control"'  # a request with it has marks of its client's
OAUTH: Final = "sk-ant-oat"  # with which OAuth tokens begin
_KEY: Final = "sk-ant-"
_TOO_DEEP: Final = "A schema or a message of the request is nested too deep."
_BEARER: Final = "bearer "
NATIVE: Final = "/messages"  # the path of Anthropic's own dialect, and of what lies below it
_COUNT: Final = f"{NATIVE}/count_tokens"
# What counting takes of a request (platform.claude.com/docs/en/api/messages-count-tokens).
_COUNTED: Final = frozenset(
    ("messages", "model", "output_config", "system", "thinking", "tool_choice", "tools")
)
_BETA: Final = "anthropic-beta"
_OPENAI_ONLY: Final = ("openai-organization", "openai-project", "openai-beta")


class Anthropic(OpenAICompatible):
    """One upstream. Its address and key take Anthropic's form, and bodies are translated."""

    default_path = "/v1"

    def __init__(self, *args: Any, headers: tuple[Header, ...] = (), **options: Any) -> None:
        # Headers of the settings are fixed, and a request may need one beta more.
        self._betas = tuple(each for each in headers if each[0].lower() == _BETA)
        super().__init__(*args, headers=tuple(each for each in headers if each not in self._betas), **options)

    @cached_property
    def _limits(self) -> dict[str, int]:
        """The limits of completions, from the upstream's list of models: model -> max_tokens."""
        return {}

    async def send(self, request: ModelRequest) -> ModelReply:
        """Sends a request, translated if it is in OpenAI's dialect. Raises: ProviderUnreachable, ProviderTimeout."""
        if self._betas:
            # A caller of this dialect knows which betas its fields need.
            is_native = request.path.startswith(NATIVE)
            own = (each for each in request.headers if is_native or each[0].lower() != _BETA)
            request = request._replace(headers=(*own, *self._betas))
        if request.path == "/chat/completions":
            return await self._chat(request)
        if request.path == COUNT_TOKENS:
            return await self._count(request)
        if request.path == "/models" and request.method == "GET":
            reply = await self._call(request, _MODELS, b"", DEFAULT_VERSION)
            return _TranslatedReply(reply, self._models, f"{self.name} answered no list of models")
        if request.path.startswith("/models/") and request.method == "GET":
            reply = await self._call(request, request.path, b"", DEFAULT_VERSION)
            return _TranslatedReply(reply, _model, "the upstream answered no model")
        if self.has_endpoint(request.path):
            reply = await self._call(request, request.path, request.body, DEFAULT_VERSION)
            return reply if request.first_block is None else _alongside(reply, request.first_block)
        why = f"{self.name} (Anthropic) has no {URL(self.base_url).path}{request.path}."
        return _refuse(404, error_body(why, "not_found_error"))

    def has_endpoint(self, path: str) -> bool:
        """Returns True for paths that are translated here, and for Anthropic's own messages."""
        path = path.partition("?")[0]
        return path in ("/chat/completions", "/models") or path.startswith(("/models/", NATIVE))

    def _key_header(self, key: str) -> Header:
        return ("authorization", f"Bearer {key}") if key.startswith(OAUTH) else ("x-api-key", key)

    async def _chat(self, request: ModelRequest) -> ModelReply:
        try:
            body, wire, translated = self._translated(request)
        except _Refused as refused:
            return refused.reply
        # The newest version refuses temperature, top_p and top_k; the version before it takes them.
        version = SAMPLING_VERSION if any(key in wire for key in SAMPLING) else DEFAULT_VERSION
        reply = await self._call(_with_binding(request, wire), NATIVE, translated, version)
        created, first_index = int(time.time()), next_index(body.get("messages"))
        if reply.status == 200 and reply.is_stream:
            options = body.get("stream_options")
            wants_usage = isinstance(options, dict) and options.get("include_usage") is True
            return _StreamedReply(
                reply, StreamTranslator(created, wants_usage=wants_usage, first_index=first_index)
            )
        translate = partial(_completion, created=created, first_index=first_index)
        return _TranslatedReply(reply, translate, "the upstream's answer is no message")

    async def _count(self, request: ModelRequest) -> ModelReply:
        """Has the tokens of a chat completion counted."""
        try:
            _, wire, translated = self._translated(request, _COUNTED)
        except _Refused as refused:
            return refused.reply
        reply = await self._call(_with_binding(request, wire), _COUNT, translated, DEFAULT_VERSION)
        return _TranslatedReply(reply, _counted, "the upstream's answer is no count")

    def _translated(
        self, request: ModelRequest, fields: Collection[str] | None = None
    ) -> tuple[Json, Json, bytes]:
        """Returns a request's body, and the message request that is made of it, as a value and as JSON.

        fields: those that the latter may have; None: all. Raises: _Refused.
        """
        try:
            body = orjson.loads(request.body)
            wire = to_wire(body, limits=self._limits, marks=MARKED not in request.body)
            if fields is not None:
                wire = {key: value for key, value in wire.items() if key in fields}
            return body, wire, orjson.dumps(wire)
        except orjson.JSONDecodeError as error:
            why = "We could not parse the JSON body of your request."
            raise _Refused(error_body(why, "invalid_request_error")) from error
        except Untranslatable as error:
            raise _Refused(error.body()) from error
        except (RecursionError, orjson.JSONEncodeError) as error:  # it reads 1,024 levels, and writes 254
            raise _Refused(error_body(_TOO_DEEP, "invalid_request_error")) from error

    async def _call(self, request: ModelRequest, path: str, body: bytes, version: str) -> ModelReply:
        headers = [each for each in request.headers if each[0].lower() not in _OPENAI_ONLY]
        if not any(name.lower() == "anthropic-version" for name, _ in headers):
            headers.append(("anthropic-version", version))
        credential = None
        if self._key is None and request.credential is not None:
            # OpenAI's clients send every key as a bearer token. Anthropic takes keys in a header of its own, and only
            # OAuth tokens as bearer tokens.
            token = _api_key(request)
            if token:
                headers = [each for each in headers if each[0].lower() != "x-api-key"]
                headers.append(("x-api-key", token))
            else:
                credential = request.credential
        return await super().send(
            request._replace(body=body, headers=tuple(headers), credential=credential, path=path)
        )

    def _models(self, body: Json) -> Json:
        entries = [entry for entry in body["data"] if isinstance(entry, dict)]
        # The limits fill in for requests without `max_tokens`, which the Messages API demands.
        for entry in entries:
            if isinstance(entry.get("max_tokens"), int) and isinstance(entry.get("id"), str):
                self._limits[entry["id"]] = entry["max_tokens"]
        return {"object": "list", "data": [_model(entry) for entry in entries]}


class _TranslatedReply(WholeReply):
    """A body that is translated when it is whole: an answer, an error, a list.

    translate: for the body of a 200.
    complaint: begins the error about one that is something else.
    """

    def __init__(self, reply: ModelReply, translate: Callable[[Json], Json], complaint: str) -> None:
        self.status = reply.status
        self.headers = _with_request_id(reply.headers)
        self._reply = reply
        self._translate = translate
        self._complaint = complaint

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        if not body or self.status != 200:
            return translate_body(body)
        try:
            return orjson.dumps(self._translate(orjson.loads(body)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderBroke(f"{self._complaint}: {body[:200]!r}") from error

    async def aclose(self) -> None:
        await self._reply.aclose()


class _StreamedReply:
    """A stream with events that are translated as they come."""

    is_stream = True
    size: int | None = None

    def __init__(self, reply: ModelReply, translator: StreamTranslator) -> None:
        self.status = reply.status
        self.headers = _with_request_id(reply.headers)
        self._reply = reply
        self._translator = translator
        self._made = self._translate()
        self._ahead: list[Event] = []  # events that `peek` has read

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the chunks; after the last one it reads the upstream's body to its end, to keep the connection."""
        if self._translator.is_over and not self._ahead:
            async for _ in self._reply.chunks():
                pass
            return
        async for events in self.events():
            yield b"".join([event.raw for event in events])

    async def events(self) -> AsyncIterator[list[Event]]:
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            yield ahead
        async for made in self._made:
            yield made

    async def peek(self) -> Event | None:
        self._ahead = await anext(self._made, [])
        return self._ahead[0] if self._ahead else None

    async def _translate(self) -> AsyncIterator[list[Event]]:
        decoder = NamedEventDecoder()
        feed = self._translator.feed
        async for data in self._reply.chunks():
            if made := [chunk for event in decoder.feed(data) for chunk in feed(event)]:
                yield made
        if made := [chunk for event in decoder.finish() for chunk in feed(event)]:
            yield made
        self._translator.finish()

    async def read(self, limit_bytes: int) -> bytes:
        return await read_whole(self, limit_bytes)

    async def aclose(self) -> None:
        await self._reply.aclose()


def _alongside(reply: ModelReply, first_block: int) -> ModelReply:
    """Returns a reply in its own bytes that can be read as a chat completion."""
    if reply.status != 200:
        return reply
    created = int(time.time())
    if not reply.is_stream:
        return _ReadAlong(reply, created, first_block)
    return _StreamedAlong(reply, StreamTranslator(created, wants_usage=True, first_index=first_block))


class _StreamedAlong(_StreamedReply):
    """A stream in Anthropic's own events, each with a chunk as its data."""

    async def _translate(self) -> AsyncIterator[list[Event]]:
        decoder, read = NamedEventDecoder(), self._translator.alongside
        async for data in self._reply.chunks():
            if made := [each for event in decoder.feed(data) for each in read(event)]:
                yield made
        if made := [each for event in decoder.finish() for each in read(event)]:
            yield made
        self._translator.finish()


class _ReadAlong(WholeReply):
    """A whole message as a chat completion, with itself as `native_message`."""

    def __init__(self, reply: ModelReply, created: int, first_block: int) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._created = created
        self._first_block = first_block

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        try:
            read = _completion(orjson.loads(body), self._created, self._first_block)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderBroke(f"the upstream's answer is no message: {body[:200]!r}") from error
        return orjson.dumps({**read, "native_message": orjson.Fragment(body)})

    async def aclose(self) -> None:
        await self._reply.aclose()


class _Refused(Exception):
    """A request that cannot be sent. reply: the error."""

    def __init__(self, body: Json) -> None:
        super().__init__()
        self.reply = _refuse(400, body)


def _with_binding(request: ModelRequest, wire: Json) -> ModelRequest:
    """Returns a request with the beta that its thinking needs."""
    thinking = wire.get("thinking")
    if isinstance(thinking, dict) and "block_binding" in thinking:
        return request._replace(headers=with_beta(request.headers, BINDING_BETA))
    return request


def _counted(body: Json) -> Json:
    return {"input_tokens": int(body["input_tokens"])}


def _refuse(status: int, body: Json) -> BufferedReply:
    """Returns an error of our own, for a request that cannot be sent."""
    return BufferedReply(status, (("content-type", "application/json"),), orjson.dumps(body))


def _api_key(request: ModelRequest) -> str:
    """Returns the caller's credential if it goes in Anthropic's own header, else "".

    A caller that speaks Anthropic's dialect has chosen the header itself.
    """
    credential = request.credential or ""
    if credential.startswith(API_KEY):
        return credential.removeprefix(API_KEY)
    is_bearer = credential[: len(_BEARER)].lower() == _BEARER
    token = credential[len(_BEARER) :].strip() if is_bearer else ""
    is_key = token.startswith(_KEY) and not token.startswith(OAUTH)
    return token if is_key and not request.path.startswith(NATIVE) else ""


def with_beta(headers: tuple[Header, ...], beta: str) -> tuple[Header, ...]:
    """Adds a beta to those that are asked for."""
    given = [value for name, value in headers if name.lower() == _BETA]
    rest = (each for each in headers if each[0].lower() != _BETA)
    return *rest, (_BETA, ",".join(given if beta in ",".join(given) else (*given, beta)))


def _with_request_id(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """Adds the request's id under the name that OpenAI's clients know."""
    found = dict(headers)
    if "request-id" in found and "x-request-id" not in found:
        return (*headers, ("x-request-id", found["request-id"]))
    return headers


def _completion(message: Json, created: int, first_index: int) -> Json:
    if message["type"] != "message":
        raise KeyError("type")
    return completion(message, created, first_index)


def _model(entry: Json) -> Json:
    try:
        created = int(datetime.fromisoformat(entry["created_at"]).timestamp())
    except (KeyError, TypeError, ValueError):
        created = 0
    return {"object": "model", "created": created, "owned_by": "anthropic", **entry}
