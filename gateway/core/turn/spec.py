"""What the machine has to know about a request before its turn begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from storage.value import frozen

__all__ = ["TurnSpec", "estimate_tokens"]


def estimate_tokens(text: str) -> int:
    """Four characters a token: good enough where the upstream does not say."""
    return (len(text) + 3) // 4


@frozen
class TurnSpec:
    """What the machine has to know about a request. Whether the reply is a stream it sees from what the upstream sends.

    wants_usage: the client asked for the usage chunk of its stream (a whole reply has its usage anyway).
    usage_added: we asked for that chunk; unless the client did, it is kept from it.
    ours: offered tool name -> canonical memory tool; empty: no call is looked at.
    max_rounds: hidden rounds at most; then the model is told, and called a last time.
    budget_tokens: completion tokens the client allows for the whole reply; None: not limited.
    hold_end: the end of the reply waits for `Saved`.
    choices: the request's `n`.
    """

    wants_usage: bool = False
    usage_added: bool = False
    ours: Mapping[str, str] = field(default_factory=dict)
    max_rounds: int = 10
    budget_tokens: int | None = None
    hold_end: bool = False
    choices: int = 1
    count: Callable[[str], int] = estimate_tokens
