"""The price of a model's tokens."""

from __future__ import annotations

from msgspec import Struct

from storage.records import TokenCounts

# The cost of one token, in billionths, at the price 1: prices are of a million tokens.
_BILLIONTHS = 1000
# Above what any call costs in any currency, and so low that the sums of thousands of calls fit into 64 bits of a
# database.
_MAX_COST = 1 << 50


class Price(Struct, frozen=True):
    """The price of a million tokens, in whatever currency."""

    input: float
    output: float
    # Of the input that the upstream read from its cache.
    cached: float

    def of(self, counts: TokenCounts) -> int:
        """Returns the cost of tokens, in billionths of the currency."""
        cached = min(counts.cached, counts.prompt)
        fresh = counts.prompt - cached
        total = fresh * self.input + cached * self.cached + counts.completion * self.output
        return min(round(total * _BILLIONTHS), _MAX_COST)
