"""The headers of a client: as text where they are read here, and those that may go on to an upstream.

An allow-list decides what passes: sign-on proxies and load balancers before a gateway add headers
(names, addresses, tokens) that no list can name, and that do not concern a provider. Credentials travel apart from
these.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.checked import nearest_name
from gateway.errors import BadRequest

RawHeaders = Sequence[tuple[bytes, bytes]]  # as ASGI has them: names in lower case

# The third line names the application to OpenRouter; the fourth which conversation it is, since some upstreams
# keep its prompt cache by it; the last how much of a file is wanted.
_PASS = frozenset(
    b"accept user-agent idempotency-key x-idempotency-key traceparent tracestate x-request-id x-client-request-id "
    b"http-referer x-title "
    b"x-session-id x-session-affinity x-grok-conv-id "
    b"range if-range".split()
)
_PASS_PREFIXES = (b"anthropic-", b"openai-", b"x-stainless-", b"x-openrouter-")
# The gateway's headers in a request. Another one is refused, since a client that misspells `x-mnemogate-memory: off` is
# remembered against their will.
_PREFIX = "x-mnemogate-"
_HEADERS = [
    _PREFIX + name
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
# The values of nearly every client, which name no header.
_NOMINATES_NONE = (b"keep-alive", b"close")


def header_text(raw: bytes, name: str) -> str:
    """Returns the value of a header. Raises: BadRequest: it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"The header `{name}` is not valid UTF-8.", param=name) from error


def refuse_repeated(headers: RawHeaders, single: Collection[bytes]) -> None:
    """Refuses two values of one header, of which a proxy might take one and we the other. Raises: BadRequest."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in single and seen.setdefault(name, value) != value:
            text = name.decode("ascii", "replace")
            raise BadRequest(f"The header `{text}` was sent twice, with different values.", param=text)


def forwardable(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    """Returns the client's headers that go upstream. Raises: BadRequest: one of the gateway's is misspelt."""
    passed = []
    nominated: set[str] = set()  # by `Connection`, to go no further than here (RFC 9110 7.6.1)
    for raw, value in headers:
        name = _seen.get(raw)
        if name is None:
            name = _passing_name(raw)
        if name:
            passed.append((name, value.decode("latin-1")))
        elif raw == b"connection" and value not in _NOMINATES_NONE:
            nominated.update(part.strip() for part in value.decode("latin-1").lower().split(","))
    if nominated:
        return tuple((name, value) for name, value in passed if name not in nominated)
    return tuple(passed)


# Clients send the same few names with every request: name -> itself as text; "": it does not pass.
_seen: dict[bytes, str] = {}


def _passing_name(raw: bytes) -> str:
    if raw.startswith(_PREFIX.encode()) and (name := raw.decode("latin-1")) not in _HEADERS:
        close = nearest_name(name, _HEADERS) or "one of " + ", ".join(_HEADERS)
        raise BadRequest(f"There is no header `{name[:64]}`; did you mean {close}?", param=name[:64])
    name = raw.decode("latin-1") if raw in _PASS or raw.startswith(_PASS_PREFIXES) else ""
    if len(raw) <= 64 and len(_seen) < 1024:  # callers choose the names
        _seen[raw] = name
    return name
