"""The turn's part of its name (`TurnName.turn`), in hexadecimal.

It has two parts, which both follow from the turn's exchange. The time at which the request came names the exchange in
whatever form its words come back. A hash of its words and of their position names it as well, because the same answer
to the same words is stored once, under the time of the first.
"""

from __future__ import annotations

import struct
from itertools import chain

from gateway.core.conversation.canonical import MessageHasher
from storage.records import Exchange

# The time of a turn in its name: a float of 64 bits.
_TIME = struct.Struct(">d")
# The hexadecimal characters of the time, with which a turn's part begins.
TIME_CHARS = 2 * _TIME.size
# The bytes of the hash: enough to distinguish the few turns of a conversation that began at the same moment.
_CONTENT_HASH_BYTES = 4


def make_turn_hex(exchange: Exchange, parent: Exchange | None) -> str:
    """Returns the turn's part of its name."""
    return make_begun_hex(exchange.begun) + make_content_hex(exchange, parent)


def make_begun_hex(begun_at: float) -> str:
    """Returns the time at which a turn's request came. begun_at: in seconds since the epoch."""
    return _TIME.pack(begun_at).hex()


def make_content_hex(exchange: Exchange, parent: Exchange | None) -> str:
    """Returns the hash of a turn's words and of their position. parent: the exchange before; None: no exchange."""
    start = b"" if parent is None else b"%d" % parent.seq
    # A turn may have no message of its own: a developer message alone asked for its reply.
    atoms = [*chain.from_iterable(exchange.inputs)] or [b""]
    return MessageHasher.hash_path(atoms, start)[:_CONTENT_HASH_BYTES].hex()


def parse_turn_begin(turn: str) -> float:
    """Returns the time at which a turn began, in seconds since the epoch. turn: the value of `TurnName.turn`."""
    began_at: float = _TIME.unpack(bytes.fromhex(turn[:TIME_CHARS]))[0]
    return began_at
