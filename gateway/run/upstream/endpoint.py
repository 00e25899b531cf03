"""Endpoints, among which failover chooses, and the callables that make a request for an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from msgspec import Struct

from adapters.base import Provider
from adapters.types import ModelRequest
from gateway.core.turn.refusal import RefusedContent
from gateway.core.upstream.policy import EndpointHealth, Failure, Policy, Target


class Endpoint(Struct):
    """A provider with one key."""

    # The name of the upstream, with the key's number from the second key on (`openai#2`).
    name: str
    # The name of the upstream in the settings.
    upstream: str
    # Sends requests with this key.
    provider: Provider
    # The bounds of retries, failures and timeouts.
    policy: Policy
    # True: the gateway has the key; False: callers bring their own, so a limit that one has reached holds for no other.
    has_key: bool = True
    # The recent failures and limits, and the number of requests under way.
    health: EndpointHealth = msgspec.field(default_factory=EndpointHealth)
    # The kind of the upstream, in the settings.
    kind: str = ""
    # True: the usage of each stream is asked for, even if the client does not ask for it.
    asks_usage: bool = False
    # True or False: the endpoint gets the headers of a trace or not; None: only if the client has sent some.
    propagates: bool | None = None

    def record_failure(self, model: str, failure: Failure, now: float) -> None:
        """Records that an attempt failed. now: seconds of the monotonic clock.

        A limit of the gateway's or of the caller's own is no failure of the endpoint.
        """
        is_limit = failure.kind == "429"
        # Without a key of the gateway's the limit is the caller's own, and does not concern the endpoint.
        if is_limit and failure.retry_after_s and self.has_key:
            self.health.record_rate_limit(now, model, failure.retry_after_s)
        elif (not is_limit or self.has_key) and not failure.is_own:
            self.health.record_failure(self.policy, now, model, failure.retry_after_s)


class RepairedRequest(Struct, frozen=True):
    """A request that is sent again in another form, since the endpoint has refused it."""

    # The request without the refused content, or with a shorter prompt.
    request: ModelRequest
    # The target of the request. After a cut of the prompt it has the window to which the prompt was cut.
    target: Target


# Returns the request for a target at an endpoint.
RequestMaker = Callable[[Target, Endpoint], Awaitable[ModelRequest]]


class RequestRepairer(Protocol):
    """Makes the requests of a turn again without the content that an upstream refuses."""

    async def repair_request(
        self, refused: RefusedContent, target: Target, endpoint: Endpoint
    ) -> ModelRequest | None:
        """Returns the request without the gateway's own content that the upstream refuses.

        Returns None if the gateway has put no such content into the request.
        """

    def note_answer(self) -> None:
        """Notes that an upstream has answered the last request. Parts that the request lacked stay left out."""
