"""Endpoints, among which failover chooses, and the callables that make a request for an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from msgspec import Struct

from adapters.base import Provider
from adapters.types import ModelRequest
from gateway.core.turn.refusal import RefusedContent
from gateway.core.upstream.policy import EndpointHealth, Policy, Target


class Endpoint(Struct):
    """A provider with one key."""

    # The upstream's name; from the second key on with the key's number (`openai#2`).
    name: str
    # The name of the upstream in the settings.
    upstream: str
    # Sends requests with this key.
    provider: Provider
    # The bounds of retries, failures and timeouts.
    policy: Policy
    # False where callers bring their own key. A limit that one caller has reached then holds for no other.
    has_key: bool = True
    # The failures and limits of late, and the requests under way.
    health: EndpointHealth = msgspec.field(default_factory=EndpointHealth)
    # The kind of the upstream, in the settings.
    kind: str = ""
    # The usage of its streams is asked for, whether their client does or not.
    asks_usage: bool = False
    # The headers of a trace go to it always, or never; None: where the client has sent some.
    propagates: bool | None = None


# Makes the request for a target that is tried.
RequestMaker = Callable[[Target, Endpoint], Awaitable[ModelRequest]]


class RequestMender(Protocol):
    """Makes the requests of a turn again without the content that an upstream refuses."""

    async def mend_request(
        self, refused: RefusedContent, target: Target, endpoint: Endpoint
    ) -> ModelRequest | None:
        """Returns the request without the gateway's own content that the upstream refuses.

        Returns None if the gateway has put no such content into the request.
        """

    def note_answer(self) -> None:
        """Notes that an upstream has answered the last request: what that lacks is left out for good."""
