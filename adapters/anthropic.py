"""The adapter for Claude: chat completions are translated to `/v1/messages` and back, whole or streamed.

The translation is pure and lies in `adapters/claude`; this module knows addresses, credentials and headers, sends
requests and reads replies. Requests to `/messages` and below pass unchanged, both ways, for callers that speak
Anthropic's own dialect.

Keys are sent as `x-api-key`, OAuth tokens as bearer tokens. A caller's own credential is used only where the upstream
has none, as with every provider.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import orjson
from yarl import URL

from adapters.base import ModelReply
from adapters.claude.error_form import Untranslatable, error_body, translate_error_body
from adapters.claude.events import NamedEventDecoder
from adapters.claude.reply import native_reply, next_block_index, translate_message
from adapters.claude.request import SAMPLING_FIELDS, translate_request
from adapters.claude.stream import StreamTranslator
from adapters.claude.thinking import BINDING_BETA
from adapters.errors import ProviderBroke
from adapters.json_escapes import read_json_exactly
from adapters.openai import OpenAICompatible
from adapters.tool_calls import with_call_ids
from adapters.types import (
    COUNT_TOKENS,
    EVENT_STREAM_TYPE,
    JSON_TYPE,
    NATIVE_REPLY,
    X_API_KEY_PREFIX,
    Event,
    Header,
    Json,
    ModelRequest,
    with_content_type,
)
from adapters.whole_reply import BufferedReply, WholeReply
from adapters.wrapped_stream import WrappedStream

DEFAULT_VERSION: Final = "2026-10-21"  # the version that Anthropic's own SDKs have sent since that day
SAMPLING_VERSION: Final = "2023-06-01"  # the last version that takes temperature, top_p and top_k
_MODELS_PATH: Final = "/models?limit=1000"
CACHE_MARK: Final = b'"cache_control"'  # a request with it chooses itself what is cached
OAUTH_PREFIX: Final = "sk-ant-oat"
_KEY_PREFIX: Final = "sk-ant-"
_TOO_DEEP_MESSAGE: Final = "A schema or a message of the request is nested too deep."
_BEARER_PREFIX: Final = "bearer "
NATIVE_PATH: Final = "/messages"  # of Anthropic's own dialect, which has more paths below it
_COUNT_PATH: Final = f"{NATIVE_PATH}/count_tokens"
# The fields of a request that counting takes (platform.claude.com/docs/en/api/messages-count-tokens).
_COUNTED_FIELDS: Final = frozenset(
    ("messages", "model", "output_config", "system", "thinking", "tool_choice", "tools")
)
_BETA_HEADER: Final = "anthropic-beta"
_OPENAI_HEADERS: Final = ("openai-organization", "openai-project", "openai-beta")


class Anthropic(OpenAICompatible):
    """One upstream of Anthropic's. Requests and replies are translated."""

    default_path = "/v1"

    def __init__(self, *args: Any, headers: tuple[Header, ...] = (), **options: Any) -> None:
        # Other headers of the settings are sent as they are. Betas are joined with those that a request needs.
        self._betas = tuple(header for header in headers if header[0].lower() == _BETA_HEADER)
        # The limits of completions, from the upstream's list of models: model -> max_tokens.
        self._max_tokens_by_model: dict[str, int] = {}
        super().__init__(
            *args, headers=tuple(header for header in headers if header not in self._betas), **options
        )

    async def send(self, request: ModelRequest) -> ModelReply:
        """Sends a request, translated if it is in OpenAI's dialect. Raises: ProviderUnreachable, ProviderTimeout."""
        if self._betas:
            # Only a caller of Anthropic's dialect names betas itself.
            is_native = request.path.startswith(NATIVE_PATH)
            caller_headers = (
                header for header in request.headers if is_native or header[0].lower() != _BETA_HEADER
            )
            request = request._replace(headers=(*caller_headers, *self._betas))
        if request.path == "/chat/completions":
            return await self._send_chat(request)
        if request.path == COUNT_TOKENS:
            return await self._send_count(request)
        if request.path == "/models" and request.method == "GET":
            reply = await self._call(request, _MODELS_PATH, body=b"", version=DEFAULT_VERSION)
            return _TranslatedReply(reply, self._translate_models, f"{self.name} answered no list of models")
        if request.path.startswith("/models/") and request.method == "GET":
            reply = await self._call(request, request.path, body=b"", version=DEFAULT_VERSION)
            return _TranslatedReply(reply, _translate_model, "the upstream answered no model")
        if self.has_endpoint(request.path):
            reply = await self._call(request, request.path, request.body, DEFAULT_VERSION)
            if request.native_first_block_index is not None:
                reply = _annotated_reply(reply, request.native_first_block_index)
            return reply
        message = f"{self.name} (Anthropic) has no {URL(self.base_url).path}{request.path}."
        return _error_reply(404, error_body(message, "not_found_error"))

    def has_endpoint(self, path: str) -> bool:
        """Returns whether a path is translated here, or is one of Anthropic's own dialect."""
        path = path.partition("?")[0]
        return path in ("/chat/completions", "/models") or path.startswith(("/models/", NATIVE_PATH))

    def _key_header(self, key: str) -> Header:
        return ("authorization", f"Bearer {key}") if key.startswith(OAUTH_PREFIX) else ("x-api-key", key)

    async def _send_chat(self, request: ModelRequest) -> ModelReply:
        try:
            translated = self._translate_request(request)
        except _TranslationFailed as error:
            return error.reply
        # The newest version refuses temperature, top_p and top_k; the version before it takes them.
        version = (
            SAMPLING_VERSION if any(key in translated.json for key in SAMPLING_FIELDS) else DEFAULT_VERSION
        )
        reply = await self._call(
            _with_binding_beta(request, translated.json), NATIVE_PATH, translated.body, version
        )
        created = int(time.time())
        first_index = next_block_index(translated.chat.get("messages"))
        if reply.status == 200 and reply.is_stream:
            options = translated.chat.get("stream_options")
            wants_usage = isinstance(options, dict) and options.get("include_usage") is True
            translator = StreamTranslator(created, wants_usage=wants_usage, first_index=first_index)
            stream = _StreamedReply(reply, translator, translator.feed)
            stream.headers = with_content_type(stream.headers, EVENT_STREAM_TYPE)
            return stream
        translate = partial(_message_to_completion, created=created, first_index=first_index)
        return _TranslatedReply(reply, translate, "the upstream's answer is no message")

    async def _send_count(self, request: ModelRequest) -> ModelReply:
        """Asks Anthropic for the number of tokens of a chat completion."""
        try:
            translated = self._translate_request(request, _COUNTED_FIELDS)
        except _TranslationFailed as error:
            return error.reply
        reply = await self._call(
            _with_binding_beta(request, translated.json), _COUNT_PATH, translated.body, DEFAULT_VERSION
        )
        return _TranslatedReply(reply, _translate_count, "the upstream's answer is no count")

    def _translate_request(
        self, request: ModelRequest, fields: Collection[str] | None = None
    ) -> _TranslatedRequest:
        """Returns a request of OpenAI's dialect as one for the Messages API.

        fields: the fields that the message request may have; None: all.

        Raises: _TranslationFailed.
        """
        try:
            chat = orjson.loads(with_call_ids(request.body))
            claude_request = translate_request(
                chat,
                max_tokens_by_model=self._max_tokens_by_model,
                places_marks=CACHE_MARK not in request.body,
            )
            if fields is not None:
                claude_request = {key: value for key, value in claude_request.items() if key in fields}
            return _TranslatedRequest(chat, claude_request, orjson.dumps(claude_request))
        except orjson.JSONDecodeError as error:
            message = "We could not parse the JSON body of your request."
            raise _TranslationFailed(error_body(message, "invalid_request_error")) from error
        except Untranslatable as error:
            raise _TranslationFailed(error.body()) from error
        except (RecursionError, orjson.JSONEncodeError) as error:  # orjson reads 1,024 levels, and writes 254
            raise _TranslationFailed(error_body(_TOO_DEEP_MESSAGE, "invalid_request_error")) from error

    async def _call(self, request: ModelRequest, path: str, body: bytes, version: str) -> ModelReply:
        """Sends a request with Anthropic's headers. version: of the API, unless the caller names one."""
        headers = [(name, value) for name, value in request.headers if name.lower() not in _OPENAI_HEADERS]
        if not any(name.lower() == "anthropic-version" for name, _ in headers):
            headers.append(("anthropic-version", version))
        credential = None
        if self._takes_credential and request.credential is not None:
            # OpenAI's clients send every key as a bearer token. Anthropic takes keys in a header of its own, and only
            # OAuth tokens as bearer tokens.
            token = _caller_api_key(request)
            if token:
                headers = [(name, value) for name, value in headers if name.lower() != "x-api-key"]
                headers.append(("x-api-key", token))
            else:
                credential = request.credential
        return await super().send(
            request._replace(body=body, headers=tuple(headers), credential=credential, path=path)
        )

    def _translate_models(self, body: Json) -> Json:
        """Returns a list of models in OpenAI's form. Notes how much each may write."""
        entries = [entry for entry in body["data"] if isinstance(entry, dict)]
        # A request without `max_tokens`, which the Messages API demands, gets the model's limit.
        for entry in entries:
            if isinstance(entry.get("max_tokens"), int) and isinstance(entry.get("id"), str):
                self._max_tokens_by_model[entry["id"]] = entry["max_tokens"]
        return {"object": "list", "data": [_translate_model(entry) for entry in entries]}


class _TranslatedRequest(NamedTuple):
    """A chat completion request, and the message request made of it."""

    chat: Json
    json: Json
    # `json` as it is sent.
    body: bytes


class _TranslatedReply(WholeReply):
    """A body that is translated when it is whole: an answer, an error, a list.

    translate: called with the body of a 200.
    complaint: the message about a body that cannot be translated. It does not quote the body, since errors are logged.
    """

    def __init__(self, reply: ModelReply, translate: Callable[[Json], Json], complaint: str) -> None:
        self.status = reply.status
        self.headers = _with_request_id(reply.headers)
        if reply.status == 200:
            self.headers = with_content_type(self.headers, JSON_TYPE)
        self._reply = reply
        self._translate_body = translate
        self._complaint = complaint

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        if not body or self.status != 200:
            return translate_error_body(body)
        try:
            return orjson.dumps(self._translate_body(read_json_exactly(body)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderBroke(self._complaint) from error

    async def aclose(self) -> None:
        await self._reply.aclose()


class _StreamedReply(WrappedStream):
    """A stream with events that are translated as they come.

    translate_event: a method of the translator, which returns the events for one of the upstream's.
    """

    def __init__(
        self,
        reply: ModelReply,
        translator: StreamTranslator,
        translate_event: Callable[[Event], list[Event]],
    ) -> None:
        super().__init__(reply)
        self.headers = _with_request_id(reply.headers)
        self._translator = translator
        self._translated_events = self._read_translated(translate_event)
        self._peeked: list[Event] = []  # events that `peek` has read, and `events` has not yielded yet

    @property
    def prompt_usage(self) -> Json | None:
        return self._translator.prompt_usage

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the chunks; after the last one it reads the upstream's body to its end, to keep the connection."""
        if self._translator.is_over and not self._peeked:
            async for _ in self._reply.chunks():
                pass
            return
        async for chunk in super().chunks():
            yield chunk

    async def events(self) -> AsyncIterator[list[Event]]:
        if self._peeked:
            peeked, self._peeked = self._peeked, []
            yield peeked
        async for events in self._translated_events:
            yield events

    async def peek(self) -> Event | None:
        first = await self._reply.peek()  # an error, or the first event with content
        self._peeked = await anext(self._translated_events, [])
        events = [event for event in self._peeked if event.data is not None] or self._peeked
        if not events:
            return None
        is_error = first is not None and first.name == "error"
        return events[-1] if is_error else events[0]

    async def _read_translated(
        self, translate_event: Callable[[Event], list[Event]]
    ) -> AsyncIterator[list[Event]]:
        decoder = NamedEventDecoder()
        async for data in self._reply.chunks():
            if translated := [
                chunk_event for event in decoder.feed(data) for chunk_event in translate_event(event)
            ]:
                yield translated
        if translated := [
            chunk_event for event in decoder.finish() for chunk_event in translate_event(event)
        ]:
            yield translated
        self._translator.finish()


def _annotated_reply(reply: ModelReply, first_block_index: int) -> ModelReply:
    """Returns a reply that passes in its own bytes, and can be read as a chat completion as well."""
    if reply.status != 200:
        return reply
    created = int(time.time())
    if not reply.is_stream:
        return _NativeReply(reply, created, first_block_index)
    translator = StreamTranslator(created, wants_usage=True, first_index=first_block_index, is_native=True)
    return _StreamedReply(reply, translator, translator.annotate)


class _NativeReply(WholeReply):
    """A whole message as a chat completion, with itself as `native_message`."""

    def __init__(self, reply: ModelReply, created: int, first_block_index: int) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._created = created
        self._first_block_index = first_block_index

    async def read(self, limit_bytes: int) -> bytes:
        body = await self._reply.read(limit_bytes)
        try:
            message = read_json_exactly(body)
            completion = _message_to_completion(message, self._created, self._first_block_index)
            completion["choices"][0]["message"][NATIVE_REPLY] = native_reply(message)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderBroke("the upstream's answer is no message") from error
        return orjson.dumps({**completion, "native_message": orjson.Fragment(body)})

    async def aclose(self) -> None:
        await self._reply.aclose()


class _TranslationFailed(Exception):
    """A request cannot be translated. reply: the error, as an upstream's reply."""

    def __init__(self, body: Json) -> None:
        super().__init__()
        self.reply = _error_reply(400, body)


def _with_binding_beta(request: ModelRequest, claude_request: Json) -> ModelRequest:
    """Returns a request with the beta header that its `thinking` needs."""
    thinking = claude_request.get("thinking")
    if isinstance(thinking, dict) and "block_binding" in thinking:
        return request._replace(headers=with_beta(request.headers, BINDING_BETA))
    return request


def _translate_count(body: Json) -> Json:
    return {"input_tokens": int(body["input_tokens"])}


def _error_reply(status: int, body: Json) -> BufferedReply:
    """Returns a reply with an error, in place of an upstream's."""
    return BufferedReply(status, (("content-type", JSON_TYPE),), orjson.dumps(body))


def _caller_api_key(request: ModelRequest) -> str:
    """Returns the caller's credential if it has to be sent as `x-api-key`, else "".

    A bearer token of a caller that speaks Anthropic's dialect stays a bearer token: the caller has chosen the header.
    """
    credential = request.credential or ""
    if credential.startswith(X_API_KEY_PREFIX):
        return credential.removeprefix(X_API_KEY_PREFIX)
    is_bearer = credential[: len(_BEARER_PREFIX)].lower() == _BEARER_PREFIX
    token = credential[len(_BEARER_PREFIX) :].strip() if is_bearer else ""
    is_key = token.startswith(_KEY_PREFIX) and not token.startswith(OAUTH_PREFIX)
    return token if is_key and not request.path.startswith(NATIVE_PATH) else ""


def with_beta(headers: tuple[Header, ...], beta: str) -> tuple[Header, ...]:
    """Returns headers with one more beta."""
    betas = [value for name, value in headers if name.lower() == _BETA_HEADER]
    if beta not in ",".join(betas):
        betas.append(beta)
    other_headers = (header for header in headers if header[0].lower() != _BETA_HEADER)
    return *other_headers, (_BETA_HEADER, ",".join(betas))


def _with_request_id(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """Returns headers with the request's id also under the name that OpenAI's clients know."""
    values = dict(headers)
    if "request-id" in values and "x-request-id" not in values:
        return (*headers, ("x-request-id", values["request-id"]))
    return headers


def _message_to_completion(message: Json, created: int, first_index: int) -> Json:
    """Returns a message as a chat completion. Raises: LookupError: `message` is no message."""
    if message["type"] != "message":
        raise KeyError("type")
    return translate_message(message, created, first_index)


def _translate_model(entry: Json) -> Json:
    """Returns a model in OpenAI's form, with Anthropic's own fields."""
    try:
        created = int(datetime.fromisoformat(entry["created_at"]).timestamp())
    except (KeyError, TypeError, ValueError):
        created = 0
    return {"object": "model", "created": created, "owned_by": "anthropic", **entry}
