"""Recognises a request that a client sends again because it has lost the answer."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from starlette.types import Scope

from gateway.core.request.identity import RETRY_COUNT_HEADER, IdentityRules, was_sent_before
from gateway.web.raw_headers import find_header
from gateway.web.request_info import get_request_info

_GATEWAY_HEADER_PREFIX: Final = b"x-mnemogate-"
# A client sends this header if it may send the request again.
_IDEMPOTENCY_KEY: Final = b"idempotency-key"


def has_idempotency_key(scope: Scope) -> bool:
    """Returns whether a request has an idempotency key, so that it can be sent again."""
    return find_header(scope["headers"], _IDEMPOTENCY_KEY) is not None


def is_retry(scope: Scope) -> bool:
    """Returns whether an SDK sends a request again because it has lost the answer to it."""
    return was_sent_before(find_header(scope["headers"], RETRY_COUNT_HEADER) or b"")


def digest_request(scope: Scope, rules: Callable[[str], IdentityRules], body: bytes) -> bytes:
    """Returns a hash of the caller and the request: the same hash means that the request was sent again.

    rules: a function that returns the rules of a project, which name the headers that identify a user.
    """
    caller = get_request_info(scope).caller
    identity_headers = rules(caller.project).single_headers
    headers = sorted(
        name + value
        for name, value in scope["headers"]
        if name in identity_headers or name.startswith(_GATEWAY_HEADER_PREFIX) or name == _IDEMPOTENCY_KEY
    )
    parts = (
        caller.project.encode(),
        b"%d" % caller.key_id,
        (caller.credential or "").encode(),
        *headers,
        body,
    )
    return blake2b(b"\0".join(parts), digest_size=16).digest()
