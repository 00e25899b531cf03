"""The terms of a turn, known when its request is made."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from gateway.core.agent import FixedFiller
from gateway.core.prompt.note import estimate_tokens
from gateway.core.turn.asides import Asides


class TurnSpec(Struct, frozen=True):
    """The terms that the machine keeps to. It learns from the upstream alone whether the reply is a stream."""

    # The client asked for the usage chunk of its stream (a whole reply has its usage anyway).
    wants_usage: bool = False
    # The gateway asked for that chunk; unless the client did, it is withheld from the client.
    usage_added: bool = False
    # Names of the tools that the gateway runs; empty: no call is looked at. `AllBut` takes all but the
    # client's.
    gateway_tools: Collection[str] = ()
    # Completion tokens the client allows for the whole reply; None: not limited.
    budget_tokens: int | None = None
    # The end of the reply waits for `Saved`.
    hold_end: bool = False
    # The request's `n`.
    choices: int = 1
    # The sentence that is sent when a gateway tool takes long; None: none.
    filler: FixedFiller | None = None
    # Estimates the tokens of a text, where the upstream reports no usage.
    count: Callable[[str], int] = estimate_tokens
    # Each round is stored before the next one begins; else they are hidden rounds of one reply.
    saves_steps: bool = False
    # The client reads each round as messages of its own, and always in events, also a reply that came whole;
    # else all rounds are one reply to it.
    shows_steps: bool = False
    # The status was sent before the turn, so every error comes after it.
    has_status: bool = False
    # Names of gateway tools that never run at the same time.
    alone: Collection[str] = ()
    # Arguments of our tools that are shown while they are written, or are not the tool's; None: there are
    # none.
    asides: Asides | None = None
