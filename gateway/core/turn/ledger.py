"""Counts the tokens of a reply that was made in several rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from adapters.types import Json, token_count
from gateway.core.turn.draft import Draft
from gateway.core.usage.reported import reported_counts
from storage.records import TokenCounts

BILLED = "mnemogate_billed"  # field of `usage`, in addition to the real API's
DETAILS = "completion_tokens_details"


class Ledger(Struct, frozen=True):
    """The tokens of the rounds that are complete."""

    # The usage that the client would get now; None: no round reported any.
    usage: Json | None = None
    # The prompt tokens of all rounds.
    prompt: int = 0
    # The completion tokens of all rounds, estimated where a round reported none.
    completion: int = 0
    rounds: int = 0

    def plus(self, draft: Draft, count: Callable[[str], int]) -> Ledger:
        """Returns the ledger with one more round. count: estimates the tokens of a text."""
        usage = draft.usage
        completion = count(draft.generated()) if usage is None else token_count(usage, "completion_tokens")
        return Ledger(
            self.reported(usage),
            self.prompt + token_count(usage, "prompt_tokens"),
            self.completion + completion,
            self.rounds + 1,
        )

    def reported(self, usage: Json | None) -> Json | None:
        """Returns the usage for the client if this is the last round's usage; None: the round reported none."""
        return self.usage if usage is None else self.merged(usage)

    def merged(self, usage: Json) -> Json:
        """Returns the usage for the client if this is the last round's usage.

        The client's conversation holds one reply, so it gets the last round's prompt and the completions of all.
        What the hidden rounds cost besides stands in a field of its own. Unknown fields are those of the last round.
        """
        if not self.rounds:
            return usage
        # Added up from what the ledger knows, because a round that reported nothing is in it as an estimate.
        prompt = token_count(usage, "prompt_tokens")
        completion = self.completion + token_count(usage, "completion_tokens")
        return {
            **usage,
            **_added_details((self.usage or {}).get(DETAILS), usage.get(DETAILS)),
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            BILLED: {
                "prompt_tokens": self.prompt + prompt,
                "completion_tokens": completion,
                "rounds": self.rounds + 1,
            },
        }


NOTHING: Final = Ledger()


def _added_details(earlier: Any, last: Any) -> Json:
    """Returns the details of the completions, added up; those of the prompt stay the last round's."""
    if not isinstance(earlier, dict) or not (isinstance(last, dict) or last is None):
        return {}
    last = last or {}
    added = {**earlier, **last}
    for key, value in last.items():
        before = earlier.get(key)
        if isinstance(value, int) and isinstance(before, int):
            added[key] = token_count(last, key) + token_count(earlier, key)
    return {DETAILS: added}


def counts_or_zeros(usage: Json | None) -> TokenCounts:
    """Returns the tokens of one call of the model, as the upstream counted them; zeros where it did not."""
    return reported_counts(usage) or TokenCounts()
