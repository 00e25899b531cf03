"""The adapter for Claude: chat completions are translated to `/v1/messages` and back, whole or streamed.

The translation is pure and lies in `adapters/claude`; this module knows addresses, credentials and headers, sends
requests and reads replies. Requests to `/messages` and below pass unchanged, both ways, for callers that speak
Anthropic's own dialect.

Keys are sent as `x-api-key`, OAuth tokens as bearer tokens. A caller's own credential is used only where the upstream
has none, as with every provider.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import orjson
from yarl import URL

from adapters.base import ModelReply
from adapters.claude.error_form import Untranslatable, make_error_body
from adapters.claude.model_traits import SAMPLING_FIELDS
from adapters.claude.reply import choose_next_block_index
from adapters.claude.request import translate_request
from adapters.claude.stream import StreamTranslator
from adapters.claude.thinking import BINDING_BETA
from adapters.claude.translated_reply import (
    StreamedReply,
    TranslatedReply,
    annotate_reply,
    translate_to_completion,
)
from adapters.openai import OpenAICompatible
from adapters.reply_headers import replace_content_type
from adapters.tool_calls import with_call_ids
from adapters.types import (
    CHAT_PATH,
    COUNT_TOKENS_PATH,
    EVENT_STREAM_TYPE,
    JSON_TYPE,
    X_API_KEY_PREFIX,
    Header,
    Json,
    ModelRequest,
)
from adapters.whole_reply import BufferedReply

# The version of the API that Anthropic's own SDKs have sent since that day.
DEFAULT_VERSION: Final = "2026-10-21"
# The last version that takes temperature, top_p and top_k.
SAMPLING_VERSION: Final = "2023-06-01"
_MODELS_PATH: Final = "/models?limit=1000"
# A request with this key has placed its cache marks itself.
CACHE_MARK: Final = b'"cache_control"'
# The beginning of an OAuth token, and of a key or a token.
OAUTH_PREFIX: Final = "sk-ant-oat"
_KEY_PREFIX: Final = "sk-ant-"
_TOO_DEEP_MESSAGE: Final = "A schema or a message of the request is nested too deep."
_BEARER_PREFIX: Final = "bearer "
# The path of Anthropic's own dialect, which has more paths below it.
_NATIVE_PATH: Final = "/messages"
_COUNT_PATH: Final = f"{_NATIVE_PATH}/count_tokens"
# The paths of what messages name by an id. OpenAI's API has other objects under the same paths, so only a caller of
# Anthropic's dialect is sent here (`Capabilities.speaks_messages`).
_STORED_PATHS: Final = ("/files", "/skills")
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
        # The limits of completions (max_tokens) by model, from the upstream's list of models.
        self._max_tokens_by_model: dict[str, int] = {}
        super().__init__(
            *args, headers=tuple(header for header in headers if header not in self._betas), **options
        )

    async def send(self, request: ModelRequest) -> ModelReply:
        """Sends a request, translated if it is in OpenAI's dialect. Raises: ProviderUnreachable, ProviderTimeout."""
        if self._betas:
            # Only a caller of Anthropic's dialect names betas itself.
            is_native = _is_native(request)
            caller_headers = (
                header for header in request.headers if is_native or header[0].lower() != _BETA_HEADER
            )
            request = request._replace(headers=(*caller_headers, *self._betas))
        if request.path == CHAT_PATH:
            return await self._send_chat(request)
        if request.path == COUNT_TOKENS_PATH:
            return await self._send_count(request)
        if request.path == "/models" and request.method == "GET":
            reply = await self._call(request, _MODELS_PATH, body=b"", version=DEFAULT_VERSION)
            return TranslatedReply(reply, self._translate_models, f"{self.name} answered no list of models")
        if request.path.startswith("/models/") and request.method == "GET":
            reply = await self._call(request, request.path, body=b"", version=DEFAULT_VERSION)
            return TranslatedReply(reply, _translate_model, "the upstream answered no model")
        if self.has_endpoint(request.path) or _is_native(request):
            reply = await self._call(request, request.path, request.body, DEFAULT_VERSION)
            if request.native_first_block_index is not None:
                reply = annotate_reply(reply, request.native_first_block_index)
            return reply
        message = f"{self.name} (Anthropic) has no {URL(self.base_url).path}{request.path}."
        return _make_error_reply(404, make_error_body(message, "not_found_error"))

    def has_endpoint(self, path: str) -> bool:
        """Returns whether a path is translated here, or is one of Anthropic's own dialect."""
        path = path.partition("?")[0]
        return path in (CHAT_PATH, "/models") or path.startswith(("/models/", _NATIVE_PATH))

    def _make_key_header(self, key: str) -> Header:
        return ("authorization", f"Bearer {key}") if key.startswith(OAUTH_PREFIX) else ("x-api-key", key)

    async def _send_chat(self, request: ModelRequest) -> ModelReply:
        """Sends a chat completion as a message request, and returns the reply translated back."""
        try:
            translated = self._translate_request(request)
        except _TranslationFailed as error:
            return error.reply
        # The newest version refuses temperature, top_p and top_k; the version before it takes them.
        version = (
            SAMPLING_VERSION if any(key in translated.json for key in SAMPLING_FIELDS) else DEFAULT_VERSION
        )
        reply = await self._call(
            _with_binding_beta(request, translated.json), _NATIVE_PATH, translated.body, version
        )
        created = int(time.time())
        first_index = choose_next_block_index(translated.chat.get("messages"))
        if reply.status == 200 and reply.is_stream:
            options = translated.chat.get("stream_options")
            wants_usage = isinstance(options, dict) and options.get("include_usage") is True
            translator = StreamTranslator(created, wants_usage=wants_usage, first_index=first_index)
            stream = StreamedReply(reply, translator, translator.feed)
            stream.headers = replace_content_type(stream.headers, EVENT_STREAM_TYPE)
            return stream
        translate = partial(translate_to_completion, created=created, first_index=first_index)
        return TranslatedReply(reply, translate, "the upstream's answer is no message")

    async def _send_count(self, request: ModelRequest) -> ModelReply:
        """Asks Anthropic for the number of tokens of a chat completion."""
        try:
            translated = self._translate_request(request, _COUNTED_FIELDS)
        except _TranslationFailed as error:
            return error.reply
        reply = await self._call(
            _with_binding_beta(request, translated.json), _COUNT_PATH, translated.body, DEFAULT_VERSION
        )
        return TranslatedReply(reply, _translate_count, "the upstream's answer is no count")

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
            raise _TranslationFailed(make_error_body(message, "invalid_request_error")) from error
        except Untranslatable as error:
            raise _TranslationFailed(error.make_body()) from error
        except (RecursionError, orjson.JSONEncodeError) as error:  # orjson reads 1,024 levels, and writes 254
            raise _TranslationFailed(make_error_body(_TOO_DEEP_MESSAGE, "invalid_request_error")) from error

    async def _call(self, request: ModelRequest, path: str, body: bytes, version: str) -> ModelReply:
        """Sends a request with Anthropic's headers. version: the version of the API, unless the caller names one."""
        headers = [(name, value) for name, value in request.headers if name.lower() not in _OPENAI_HEADERS]
        if not any(name.lower() == "anthropic-version" for name, _ in headers):
            headers.append(("anthropic-version", version))
        credential = None
        if self._takes_credential and request.credential is not None:
            # OpenAI's clients send every key as a bearer token. Anthropic takes keys in a header of its own, and only
            # OAuth tokens as bearer tokens.
            token = _choose_caller_api_key(request)
            if token:
                headers = [(name, value) for name, value in headers if name.lower() != "x-api-key"]
                headers.append(("x-api-key", token))
            else:
                credential = request.credential
        return await super().send(
            request._replace(body=body, headers=tuple(headers), credential=credential, path=path)
        )

    def _translate_models(self, body: Json) -> Json:
        """Returns a list of models in OpenAI's form. Notes the limit of each model's completions."""
        entries = [entry for entry in body["data"] if isinstance(entry, dict)]
        # A request without `max_tokens`, which the Messages API demands, gets the model's limit.
        for entry in entries:
            if isinstance(entry.get("max_tokens"), int) and isinstance(entry.get("id"), str):
                self._max_tokens_by_model[entry["id"]] = entry["max_tokens"]
        return {"object": "list", "data": [_translate_model(entry) for entry in entries]}


class _TranslatedRequest(NamedTuple):
    """A chat completion request, and the message request made of it."""

    # The chat completion request.
    chat: Json
    # The message request.
    json: Json
    # The message request as it is sent.
    body: bytes


class _TranslationFailed(Exception):
    """A request cannot be translated. reply: the error in the form of an upstream's reply."""

    def __init__(self, body: Json) -> None:
        super().__init__()
        self.reply = _make_error_reply(400, body)


def _with_binding_beta(request: ModelRequest, claude_request: Json) -> ModelRequest:
    """Returns a copy of a request with the beta header that its `thinking` needs."""
    thinking = claude_request.get("thinking")
    if isinstance(thinking, dict) and "block_binding" in thinking:
        return request._replace(headers=with_beta(request.headers, BINDING_BETA))
    return request


def _translate_count(body: Json) -> Json:
    """Returns the answer of a count, as `COUNT_TOKENS_PATH` has it."""
    return {"input_tokens": int(body["input_tokens"])}


def _make_error_reply(status: int, body: Json) -> BufferedReply:
    """Returns a reply with an error, in place of an upstream's."""
    return BufferedReply(status, (("content-type", JSON_TYPE),), orjson.dumps(body))


def _choose_caller_api_key(request: ModelRequest) -> str:
    """Returns the caller's credential if it has to be sent as `x-api-key`, else "".

    A bearer token of a caller that speaks Anthropic's dialect stays a bearer token: the caller has chosen the header.
    """
    credential = request.credential or ""
    if credential.startswith(X_API_KEY_PREFIX):
        return credential.removeprefix(X_API_KEY_PREFIX)
    is_bearer = credential[: len(_BEARER_PREFIX)].lower() == _BEARER_PREFIX
    token = credential[len(_BEARER_PREFIX) :].strip() if is_bearer else ""
    is_key = token.startswith(_KEY_PREFIX) and not token.startswith(OAUTH_PREFIX)
    return token if is_key and not _is_native(request) else ""


def _is_native(request: ModelRequest) -> bool:
    """Returns whether a request is in Anthropic's own dialect."""
    return request.path.startswith((_NATIVE_PATH, *_STORED_PATHS))


def with_beta(headers: tuple[Header, ...], beta: str) -> tuple[Header, ...]:
    """Returns a copy of headers with one more beta."""
    betas = [value for name, value in headers if name.lower() == _BETA_HEADER]
    if beta not in ",".join(betas):
        betas.append(beta)
    other_headers = (header for header in headers if header[0].lower() != _BETA_HEADER)
    return *other_headers, (_BETA_HEADER, ",".join(betas))


def _translate_model(entry: Json) -> Json:
    """Returns a model in OpenAI's form, with Anthropic's own fields."""
    try:
        created = int(datetime.fromisoformat(entry["created_at"]).timestamp())
    except (KeyError, TypeError, ValueError):
        created = 0
    return {"object": "model", "created": created, "owned_by": "anthropic", **entry}
