"""The headers of a client that may go on to an upstream.

The list says what may pass, not what may not: gateways stand behind sign-on proxies and load balancers whose headers
(names, addresses, tokens) nobody can list, and they are no provider's business. Credentials travel apart from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

RawHeaders = Sequence[tuple[bytes, bytes]]  # as ASGI has them: names in lower case

# The third line says to OpenRouter which application asks; the last which conversation it is, since some upstreams keep
# its prompt cache by it.
_PASS = frozenset(
    b"accept user-agent idempotency-key x-idempotency-key traceparent tracestate x-request-id x-client-request-id "
    b"anthropic-beta anthropic-version "
    b"http-referer x-title "
    b"x-session-id x-session-affinity x-grok-conv-id".split()
)
_PASS_PREFIXES = (b"openai-", b"x-stainless-", b"x-openrouter-")


def forwardable(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    """Returns the client's headers that go upstream."""
    passed = []
    nominated: set[str] = set()  # by `Connection`, to go no further than here (RFC 9110 7.6.1)
    for raw, value in headers:
        # A long name is not looked up, because the cache would keep it.
        name = _passing_name(raw) if len(raw) <= 64 else None
        if name is not None:
            passed.append((name, value.decode("latin-1")))
        elif raw == b"connection":
            nominated.update(part.strip() for part in value.decode("latin-1").lower().split(","))
    if nominated:
        return tuple((name, value) for name, value in passed if name not in nominated)
    return tuple(passed)


@lru_cache(maxsize=1024)  # clients send the same few names with every request
def _passing_name(name: bytes) -> str | None:
    return name.decode("latin-1") if name in _PASS or name.startswith(_PASS_PREFIXES) else None
