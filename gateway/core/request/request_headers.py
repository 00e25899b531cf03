"""The headers of a client: their values as text, and the headers that go on to an upstream.

An allow-list decides which headers pass, since sign-on proxies and load balancers before a gateway add headers (names,
addresses, tokens) that no list can name, and that do not concern a provider. Credentials are handled elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.errors import BadRequest
from gateway.validation import find_nearest_name

# Headers as ASGI has them: names are in lower case.
RawHeaders = Sequence[tuple[bytes, bytes]]

# An upstream may answer a value that it knows with its earlier reply.
_IDEMPOTENCY_KEYS = (b"idempotency-key", b"x-idempotency-key")
_PASSED_NAMES = frozenset(
    (
        *_IDEMPOTENCY_KEYS,
        *b"accept user-agent".split(),
        *b"traceparent tracestate x-request-id x-client-request-id".split(),
        # The application, for OpenRouter.
        *b"http-referer x-title".split(),
        # The ids by which some upstreams keep prompt caches.
        *b"x-session-id x-session-affinity x-grok-conv-id".split(),
        # The wanted part of a file.
        *b"range if-range".split(),
    )
)
# The beginnings of further headers that an upstream may see.
_PASSED_PREFIXES = (b"anthropic-", b"openai-", b"x-stainless-", b"x-openrouter-")
# The beginning of the gateway's own headers.
_GATEWAY_PREFIX = "x-mnemogate-"
# A name with such a beginning is meant for the gateway, also with underscores in place of dashes.
_RESERVED_PREFIXES = (_GATEWAY_PREFIX.encode(), b"mnemogate-")
# The gateway's headers in a request. Others with a reserved prefix are refused: if an application misspells
# `x-mnemogate-memory: off`, a person would be remembered against their will.
_GATEWAY_HEADERS = [
    _GATEWAY_PREFIX + name
    for name in [
        "user",
        "user-name",
        "conversation",
        "agent",
        "memory",
        "history",
        "key",
        "upstream",
        "admin",
    ]
]
# The values of `Connection` that nearly every client sends; they name no header.
_USUAL_CONNECTION_VALUES = (b"keep-alive", b"close")
# The most characters of a name or value that an error quotes, and of a name that is cached. Not measured: the names of
# headers are shorter.
_QUOTED_CHARS = 64
# The most names that are cached, since callers choose them. Real clients send some dozens.
_MAX_CACHED_NAMES = 1024
# The names of headers as text, by their bytes; "": the header does not pass. Clients send the same few names with
# every request.
_cached_names: dict[bytes, str] = {}


def read_header(value: bytes, name: str) -> str:
    """Returns the value of a header. Raises: BadRequest: the value is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"The header `{name}` is not valid UTF-8.", param=name) from error


def read_known_word(header: bytes, raw: bytes, known_words: Collection[str], expected: str) -> str:
    """Returns the value of a header with one word. Raises: BadRequest: the word is not known."""
    name = header.decode()
    text = read_header(raw, name).strip().lower()
    if text not in known_words:
        raise BadRequest(
            f"Invalid value for the header `{name}`: {text[:_QUOTED_CHARS]!r}; expected {expected}.",
            param=name,
        )
    return text


def refuse_repeated(headers: RawHeaders, single_names: Collection[bytes]) -> None:
    """Refuses two values of one header: a proxy might read one value, and the gateway the other. Raises: BadRequest."""
    values_by_name: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in single_names and values_by_name.setdefault(name, value) != value:
            raise make_repeated_header_error(name)


def make_repeated_header_error(name: bytes) -> BadRequest:
    """Returns the error of a header that was sent with two values."""
    text = name.decode("ascii", "replace")
    return BadRequest(f"The header `{text}` was sent twice, with different values.", param=text)


def list_headers_for_upstream(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    """Returns the client's headers that go upstream. Raises: BadRequest: a header of the gateway's is misspelt."""
    passed_headers: list[tuple[str, str]] = []
    # The names in `Connection`, which go no further (RFC 9110 7.6.1).
    hop_names: set[str] = set()
    for raw_name, value in headers:
        name = _cached_names.get(raw_name)
        if name is None:
            name = _read_passing_name(raw_name)
        if name:
            passed_headers.append((name, value.decode("latin-1")))
        elif raw_name == b"connection" and value not in _USUAL_CONNECTION_VALUES:
            hop_names.update(part.strip() for part in value.decode("latin-1").lower().split(","))
    if hop_names:
        return tuple((name, value) for name, value in passed_headers if name not in hop_names)
    return tuple(passed_headers)


def number_idempotency_keys(headers: tuple[tuple[str, str], ...], number: int) -> tuple[tuple[str, str], ...]:
    """Returns the headers of a later request of a turn, with idempotency keys of its own.

    number: the number of the request in its turn, from 2.
    """
    return tuple(
        (name, f"{value}-{number}" if name.encode() in _IDEMPOTENCY_KEYS else value)
        for name, value in headers
    )


def refuse_misspelt(headers: RawHeaders) -> None:
    """Refuses a misspelt header of the gateway's, for a request that is not sent upstream. Raises: BadRequest."""
    for raw_name, _ in headers:
        _check_spelling(raw_name)


def _read_passing_name(raw_name: bytes) -> str:
    """Returns the name of a header as text; "": the header does not go upstream. Raises: BadRequest: it is misspelt."""
    _check_spelling(raw_name)
    passes = raw_name in _PASSED_NAMES or raw_name.startswith(_PASSED_PREFIXES)
    name = raw_name.decode("latin-1") if passes else ""
    if len(raw_name) <= _QUOTED_CHARS and len(_cached_names) < _MAX_CACHED_NAMES:
        _cached_names[raw_name] = name
    return name


def _check_spelling(raw_name: bytes) -> None:
    """Raises: BadRequest: a name begins like the gateway's headers, and none of them has this name."""
    if not raw_name.replace(b"_", b"-").startswith(_RESERVED_PREFIXES):
        return
    name = raw_name.decode("latin-1")
    if name not in _GATEWAY_HEADERS:
        suggestion = find_nearest_name(name, _GATEWAY_HEADERS) or "one of " + ", ".join(_GATEWAY_HEADERS)
        shortened_name = name[:_QUOTED_CHARS]
        raise BadRequest(
            f"There is no header `{shortened_name}`; did you mean {suggestion}?", param=shortened_name
        )
