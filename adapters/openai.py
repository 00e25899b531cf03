"""An upstream that speaks OpenAI's dialect: no translation, only addresses, credentials and headers.

A provider with a key of its own never sends the caller's credential; a provider without a key sends nothing else. The
caller of this module chooses which headers are passed on; headers of one connection are dropped here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from multidict import CIMultiDict
from yarl import URL

from adapters.base import ModelReply
from adapters.body_pieces import Upload
from adapters.call_index import IndexedReply
from adapters.capabilities import Capabilities
from adapters.headers import choose_request_headers, decode_as_utf8
from adapters.tool_calls import with_call_ids, with_gemini_signatures, with_mistral_ids, with_thoughts
from adapters.transport import HttpTransport
from adapters.types import CHAT_PATH, X_API_KEY_PREFIX, Header, ModelRequest

# Headers of a caller that are not passed on: a request gets its own.
_RESERVED_HEADERS: Final = frozenset(("accept-encoding", "authorization", "content-type", "expect", "host"))
# Headers of the settings that are a key.
_CREDENTIAL_HEADERS: Final = frozenset(("authorization", "x-api-key", "api-key"))
# The beginnings of the paths of stored responses.
_RESPONSES_PATHS: Final = ("/responses", "/conversations")
# Headers that choose an account among those of a key.
_ACCOUNT_HEADERS: Final = frozenset(("openai-organization", "openai-project"))


class OpenAICompatible:
    """One upstream. Implements `Provider`, which documents the methods."""

    # The path that is added to an address without a path.
    default_path = ""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        key: str | None = None,
        headers: tuple[Header, ...] = (),
        capabilities: Capabilities | None = None,
        transport: HttpTransport | None = None,
    ) -> None:
        """Opens no connection.

        name: the upstream's name in the settings.
        base_url: the address with the version, without a slash at its end: `https://api.openai.com/v1`.
        key: the key that is sent as a bearer token. None: the caller's own `Authorization` value is passed on, and so
            are the organization and the project that the caller names.
        headers: the headers that are sent with every request, in place of the caller's headers of the same names. A key
            among them counts as `key` does.
        transport: the transport, which is closed with the provider; None: the provider makes its own.

        Raises: ValueError: `base_url` is no address of an upstream.
        """
        has_path = _check_address(name, base_url).path not in ("", "/")
        self.name = name
        self.base_url = base_url.rstrip("/") + ("" if has_path else self.default_path)
        self.capabilities = capabilities or Capabilities()
        # A function that returns a chat completion request with the calls and the replies that this upstream takes.
        self.adapt_calls = _choose_call_adapter(self.capabilities)
        self._transport = transport or HttpTransport()
        if key is not None:
            headers = (self._make_key_header(key), *headers)
        self._fixed_headers = CIMultiDict([("Accept-Encoding", "identity")])
        for extra_name, value in headers:
            self._fixed_headers[extra_name] = value
        self._fixed_json_headers = CIMultiDict(self._fixed_headers)
        self._fixed_json_headers.setdefault("Content-Type", "application/json")
        fixed_names = frozenset(extra_name.lower() for extra_name, _ in headers)
        # Callers bring the key. If the operator has the key, the caller's organization is dropped: it is not the
        # operator's.
        self._takes_credential = fixed_names.isdisjoint(_CREDENTIAL_HEADERS)
        account_names = frozenset() if self._takes_credential else _ACCOUNT_HEADERS
        self._reserved_names = _RESERVED_HEADERS | fixed_names | account_names

    def __repr__(self) -> str:
        # Without the key.
        return f"{type(self).__name__}({self.name!r}, {self.base_url!r})"

    def send(self, request: ModelRequest) -> Coroutine[Any, Any, ModelReply]:
        """Sends a request with this upstream's own headers. Raises: ProviderUnreachable, ProviderTimeout."""
        body: bytes | Upload | None = request.body or None
        if request.upload is not None:
            body = Upload(request.upload, request.upload_bytes)
        elif request.path == CHAT_PATH:
            body = self.adapt_calls(request.body)
        # A body without a content type is JSON. Some servers (Fastify) refuse a content type without a body.
        headers = (self._fixed_headers if body is None else self._fixed_json_headers).copy()
        if self._takes_credential and request.credential is not None:
            credential = request.credential
            if credential.startswith(X_API_KEY_PREFIX):
                credential = f"Bearer {credential.removeprefix(X_API_KEY_PREFIX)}"
            headers["Authorization"] = decode_as_utf8(credential)
        if request.headers:
            # The settings' headers replace the caller's of the same name, but for the type of the body.
            for name, value in choose_request_headers(request.headers):
                if name not in self._reserved_names:
                    headers.add(name, decode_as_utf8(value))
                elif name == "content-type":
                    headers[name] = decode_as_utf8(value)
        url = self.base_url + request.path
        if request.query:
            url += f"?{request.query}"
        sending = self._transport.send(
            request.method,
            url,
            headers,
            body,
            wants_stream=request.wants_stream,
            sends_once=request.sends_once,
        )
        return _add_index(sending) if self.capabilities.omits_call_index else sending

    def has_endpoint(self, path: str) -> bool:
        """Returns False for responses that the upstream does not store. It judges all other paths itself."""
        return self.capabilities.responses == "stored" or not path.startswith(_RESPONSES_PATHS)

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _make_key_header(self, key: str) -> Header:
        return "Authorization", f"Bearer {key}"


def _check_address(name: str, base_url: str) -> URL:
    """Returns the address of the upstream `name` as a URL. Raises: ValueError: no upstream can have the address."""
    url = URL(base_url)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{name}: an upstream's address begins with http:// or https://, not {base_url!r}")
    if url.user is not None or url.query_string:
        raise ValueError(f"{name}: an upstream's address has neither a user nor a query")
    return url


def _choose_call_adapter(capabilities: Capabilities) -> Callable[[bytes], bytes]:
    """Returns the function that gives a request's calls and replies the form that an upstream takes."""
    if not capabilities.any_call_id:
        return with_mistral_ids
    if capabilities.requires_call_signatures:
        return with_gemini_signatures
    return with_call_ids if capabilities.replies_without_thoughts else with_thoughts


async def _add_index(sending: Awaitable[ModelReply]) -> ModelReply:
    """Returns a reply in which the pieces of calls have an index. sending: the call that returns the reply."""
    reply = await sending
    return IndexedReply(reply) if reply.is_stream else reply
