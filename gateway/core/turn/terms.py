"""The terms of a turn, known when its request is made."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from gateway.core.definition import FixedFiller
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.turn.asides import Asides


class TurnTerms(Struct, frozen=True):
    """The terms of one turn. Whether the reply is a stream is not among them: the upstream decides that."""

    # True: the client asked for the usage chunk of its stream (a whole reply has its usage anyway).
    wants_usage: bool = False
    # True: the gateway asked for that chunk. If the client did not, the chunk is withheld from the client.
    adds_usage: bool = False
    # Names of the tools that the gateway runs; `AllBut` holds all but the client's. Empty: calls are not read.
    gateway_tools: Collection[str] = ()
    # Completion tokens that the client allows for the whole reply; None: the client sets no limit.
    budget_tokens: int | None = None
    # True: the end of the reply waits for `Saved`.
    holds_end: bool = False
    # The number of choices that the client asked for, the request's `n`.
    choice_count: int = 1
    # The sentence that is sent when a gateway tool takes long; None: no sentence is sent.
    filler: FixedFiller | None = None
    # Estimates the tokens of a text, where the upstream reports no usage.
    estimate: Callable[[str], int] = estimate_tokens
    # True: each round is saved before the next one begins; otherwise the rounds are hidden rounds of one reply.
    saves_steps: bool = False
    # True: the client gets each round as messages of its own, always as events; else it gets all rounds as one reply.
    shows_steps: bool = False
    # True: the status was sent before the turn, so no error can be sent as a status.
    has_status: bool = False
    # True: the gateway sends the messages again with each later request: the client sends new ones only, and gets no id
    # by which it could ask for the reply.
    is_appended: bool = False
    # Names of gateway tools that never run at the same time.
    serial_tools: Collection[str] = ()
    # True: each complete reply is noted (`NoteReply`), since another attempt may have to go on from it.
    notes_replies: bool = False
    # The arguments of gateway tools that the gateway takes for itself or shows to the user while the model writes them;
    # None: no tool has such arguments.
    asides: Asides | None = None
