"""The price of a model's tokens."""

from __future__ import annotations

from msgspec import Struct

# The cost of one token, in billionths, at the price 1: prices are of a million tokens.
_BILLIONTHS = 1000
# The highest cost: above the cost of any call in any currency, and so low that the sums of thousands of calls fit into
# 64 bits of a database.
_MAX_COST = 1 << 50


class Price(Struct, frozen=True):
    """The price of a million tokens, in any currency."""

    # The price of input.
    input: float
    # The price of output.
    output: float
    # The price of input that the upstream has read from its cache.
    cached: float

    def compute_cost(self, prompt: int, completion: int, cached: int = 0) -> int:
        """Returns the cost of tokens, in billionths of the currency. cached: the cached tokens of the prompt."""
        cached = min(cached, prompt)
        total = (prompt - cached) * self.input + cached * self.cached + completion * self.output
        return min(round(total * _BILLIONTHS), _MAX_COST)
