"""The seam between a turn and the replies of its model."""

from __future__ import annotations

from typing import Protocol

from adapters.base import ModelReply
from gateway.errors import GatewayError
from gateway.run.upstream.endpoint import Endpoint, RequestMaker, RequestRepairer
from gateway.run.upstream_call import UpstreamCall


class ModelSource(Protocol):
    """The source of the replies of one turn: `Attempts`, or `ReplayedReplies` of an earlier attempt at the turn."""

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that is expected to answer, or has answered."""

    @property
    def call(self) -> UpstreamCall:
        """The call of the receipt that is under way, or the last call."""

    async def send(self, make: RequestMaker, repairer: RequestRepairer | None = None) -> ModelReply:
        """Returns the reply to the request that `make` returns. Raises: ProviderError.

        repairer: makes the request again if its content is refused; None: a refused request is not made again.
        """

    def note_prompt_tokens(self, estimated: int, actual: int, max_tokens: int) -> None:
        """Notes the number of a prompt's tokens that the upstream counted.

        estimated: the gateway's own count.
        actual: the upstream's count.
        max_tokens: the most tokens for which the window has room, by the gateway's count.
        """

    def note_broken(self, error: GatewayError) -> None:
        """Notes that a reply which had begun broke off. An error before a reply is noted already."""
