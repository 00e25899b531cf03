"""Counts the tokens of a reply that was made in several rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gateway.core.turn.stream import Draft, Json
from storage.value import frozen

__all__ = ["Ledger", "add_usage"]

BILLED = "mnemogate_billed"  # field of `usage`, beside what the real API sends


# The details that belong to the completion; the prompt's are those of the last round.
COMPLETION = "completion_tokens"
COMPLETION_DETAILS = "completion_tokens_details"


def add_usage(earlier: Json, last: Json) -> Json:
    """The usage of a reply made in several rounds: the last round's prompt, the completions of all.

    Fields not known here are those of the last round.
    """
    total = {**last}
    total[COMPLETION] = _int(earlier.get(COMPLETION)) + _int(last.get(COMPLETION))
    before, after = earlier.get(COMPLETION_DETAILS), last.get(COMPLETION_DETAILS)
    if isinstance(before, dict) and (isinstance(after, dict) or after is None):
        details = {**before, **(after or {})}
        for key, value in details.items():
            old = before.get(key)
            if after and key in after and isinstance(value, int) and isinstance(old, int):
                details[key] = value + old
        total[COMPLETION_DETAILS] = details
    total["total_tokens"] = _int(last.get("prompt_tokens")) + total[COMPLETION]
    return total


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


@frozen
class Ledger:
    """The tokens of the rounds that are complete. usage: as the client would be told it now."""

    count: Callable[[str], int]
    usage: Json | None = None
    prompt: int = 0
    completion: int = 0
    rounds: int = 0

    def plus(self, draft: Draft) -> Ledger:
        told = draft.usage
        return replace(
            self,
            usage=self.usage if told is None else self.merged(told),
            prompt=self.prompt + _tokens(told, "prompt_tokens"),
            completion=self.completion
            + (self.count(draft.generated()) if told is None else _tokens(told, "completion_tokens")),
            rounds=self.rounds + 1,
        )

    def merged(self, usage: Json) -> Json:
        """The usage of one more round, as the client is told it."""
        if not self.rounds:
            return usage
        prompt = _tokens(usage, "prompt_tokens")
        completion = self.completion + _tokens(usage, "completion_tokens")
        return {
            **add_usage(self.usage or {}, usage),
            "completion_tokens": completion,  # where one round did not tell, as it was counted
            "total_tokens": prompt + completion,
            BILLED: {
                "prompt_tokens": self.prompt + prompt,
                "completion_tokens": completion,
                "rounds": self.rounds + 1,
            },
        }


def _tokens(usage: Json | None, key: str) -> int:
    told = usage.get(key) if usage else None
    return told if isinstance(told, int) else 0
