"""A call of a model before it is made, and the estimate of its use that limits reserve."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from gateway.core.request.chat_request import ChatRequest
from gateway.core.upstream.policy import Target
from gateway.core.usage.estimate import estimate_prompt_tokens
from gateway.core.usage.limit_rules import Amounts, estimate_amounts
from gateway.run.usage.prices import FindPrice

# The tokens of output that are reserved for a request that names no limit. Not measured: with fewer, requests at the
# same time pass a limit together; with more, they are refused below it.
_UNNAMED_TOKENS: Final = 1000
# The most tokens of output that are reserved: many clients name as their limit all that a model can write, such as
# 128,000, and a few such requests would use up a limit. Not measured.
_MAX_RESERVED_TOKENS: Final = 4000


class PlannedCall(Struct, frozen=True):
    """A call of a model before it is made."""

    # The body of the request.
    body: bytes
    # The request's limit for its output; None: the request names no limit.
    max_tokens: int | None
    # The model that would answer.
    target: Target

    @classmethod
    def for_request(cls, request: ChatRequest, target: Target) -> PlannedCall:
        """Returns the call that answers a request."""
        return cls(request.raw, request.max_tokens, target)

    def estimate_use(self, find_price: FindPrice) -> Amounts:
        """Returns the amounts that the call may use."""
        output_tokens = (
            _UNNAMED_TOKENS if self.max_tokens is None else min(self.max_tokens, _MAX_RESERVED_TOKENS)
        )
        prompt_tokens = estimate_prompt_tokens(self.body)
        price = find_price(self.target.upstream, self.target.model)
        cost = 0 if price is None else price.compute_cost(prompt_tokens, output_tokens)
        return estimate_amounts(prompt_tokens + output_tokens, cost)
