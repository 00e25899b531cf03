"""The tokens of a turn's rounds, and the usage that the client gets for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from adapters.token_counts import count_completion_tokens, read_token_count
from adapters.types import Json
from gateway.core.turn.draft import MessageDraft

BILLED_FIELD: Final = "mnemogate_billed"  # field of `usage`, in addition to the real API's
# The field of `usage` with the parts of the completion tokens.
_DETAILS: Final = "completion_tokens_details"


class Ledger(Struct, frozen=True):
    """The tokens of the rounds that are complete."""

    # The usage that the client would get now; None: no round reported usage.
    usage: Json | None = None
    # The prompt tokens of all rounds.
    prompt_tokens: int = 0
    # The completion tokens of all rounds, estimated for a round that has reported no usage.
    completion_tokens: int = 0
    # The number of complete rounds.
    round_count: int = 0

    def with_round(self, draft: MessageDraft, estimate: Callable[[str], int]) -> Ledger:
        """Returns a copy of the ledger with one more round. estimate: estimates the tokens of a text."""
        usage = draft.usage
        completion = (
            estimate(draft.read_generated_text()) if usage is None else count_completion_tokens(usage)
        )
        return Ledger(
            self.make_turn_usage(usage),
            self.prompt_tokens + read_token_count(usage, "prompt_tokens"),
            self.completion_tokens + completion,
            self.round_count + 1,
        )

    def make_turn_usage(self, last_usage: Json | None) -> Json | None:
        """Returns the usage that the client gets if one more round is the last; None: no round reported usage.

        The client's conversation holds one reply, so it gets the last round's prompt and the completions of all rounds.
        `BILLED_FIELD` has what all rounds cost. Unknown fields are those of the last round.

        last_usage: the usage that this last round reported; None: it reported no usage.
        """
        if last_usage is None:
            return self.usage
        if not self.round_count:
            return last_usage
        # Added up from the ledger's counts, because `usage` lacks the rounds that reported no usage.
        prompt = read_token_count(last_usage, "prompt_tokens")
        completion = self.completion_tokens + count_completion_tokens(last_usage)
        return {
            **last_usage,
            **_add_details((self.usage or {}).get(_DETAILS), last_usage.get(_DETAILS)),
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            BILLED_FIELD: {
                "prompt_tokens": self.prompt_tokens + prompt,
                "completion_tokens": completion,
                "rounds": self.round_count + 1,
            },
        }


EMPTY_LEDGER: Final = Ledger()


def _add_details(earlier_details: Any, last_details: Any) -> Json:
    """Returns the field with the details of the completions added up; no field if one of the two is unreadable.

    Details that are no numbers are those of the last round.
    """
    if not isinstance(earlier_details, dict) or not (isinstance(last_details, dict) or last_details is None):
        return {}
    last_details = last_details or {}
    sums = {
        key: read_token_count(earlier_details, key) + read_token_count(last_details, key)
        for key in earlier_details.keys() & last_details.keys()
        if isinstance(earlier_details[key], int) and isinstance(last_details[key], int | None)
    }
    return {_DETAILS: {**earlier_details, **last_details, **sums}}
