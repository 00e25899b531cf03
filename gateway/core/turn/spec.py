"""The terms of a turn, known when its request is made."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from gateway.core.agent import FixedFiller
from gateway.core.prompt.note import estimate_tokens
from gateway.core.turn.asides import Asides


class TurnSpec(Struct, frozen=True):
    """The terms that the machine keeps to. It learns from the upstream alone whether the reply is a stream.

    wants_usage: the client asked for the usage chunk of its stream (a whole reply has its usage anyway).
    usage_added: the gateway asked for that chunk; unless the client did, it is kept from the client.
    ours: names of the tools that the gateway runs; empty: no call is looked at. `AllBut` takes all but the client's.
    budget_tokens: completion tokens the client allows for the whole reply; None: not limited.
    hold_end: the end of the reply waits for `Saved`.
    choices: the request's `n`.
    filler: a sentence that is said when a tool of ours takes long; None: none is.
    count: estimates the tokens of a text, where the upstream reports no usage.
    keeps_steps: each round is kept before the next one begins; else they are hidden rounds of one reply.
    shows_steps: the client reads each round as messages of its own, and always in events, also a reply that came whole;
    else all rounds are one reply to it.
    has_status: the status was sent before the turn, so every error is told behind it.
    alone: names of tools of ours that are never run beside one another.
    asides: arguments of our tools that are shown while they are written, or are not the tool's; None: there are none.
    """

    wants_usage: bool = False
    usage_added: bool = False
    gateway_tools: Collection[str] = ()
    budget_tokens: int | None = None
    hold_end: bool = False
    choices: int = 1
    filler: FixedFiller | None = None
    count: Callable[[str], int] = estimate_tokens
    keeps_steps: bool = False
    shows_steps: bool = False
    has_status: bool = False
    alone: Collection[str] = ()
    asides: Asides | None = None
