"""One exchange by itself: its atoms, and the part of it that is off the record.

`tree.py` has it among others, and `exchange_content.py` has its words.
"""

from __future__ import annotations

from enum import IntEnum

from gateway.core.conversation.canonical import is_assistant, is_user
from storage.records import REPLY, Atom, Exchange, ExchangeState

# The states of exchanges without stored content.
TOMBSTONE_STATES = (ExchangeState.OFF, ExchangeState.FORGOTTEN)


def count_atoms_to_end(exchange: Exchange) -> int:
    """Returns the number of atoms of the path up to the reply of an exchange, with the reply's own atoms."""
    return exchange.offset + sum(map(len, exchange.inputs)) + len(exchange.reply or ())


def list_input_atoms(exchange: Exchange) -> list[Atom]:
    """Returns the atoms of an exchange's input, of all its messages in a row."""
    return [atom for atoms in exchange.inputs for atom in atoms]


def count_prefill(exchange: Exchange) -> int:
    """Returns the number of assistant messages at the end of an input, after a question."""
    inputs = exchange.inputs
    count = next((n for n, atoms in enumerate(reversed(inputs)) if not is_assistant(atoms)), len(inputs))
    return count if count < len(inputs) and is_user(inputs[-1 - count]) else 0


def is_tombstone(exchange: Exchange) -> bool:
    """Returns whether an exchange is off the record or forgotten as a whole, so that its content is not stored."""
    return exchange.state in TOMBSTONE_STATES


def ends_off_record(exchange: Exchange) -> bool:
    """Returns whether an exchange's last message or reply is off the record, and so each turn that repeats it."""
    return lacks_reply(exchange) or len(exchange.inputs) - 1 in exchange.redactions


def lacks_reply(exchange: Exchange) -> bool:
    """Returns whether an exchange's reply is forgotten or off the record."""
    return is_tombstone(exchange) or REPLY in exchange.redactions


class OffRecordPart(IntEnum):
    """The part of an exchange that is forgotten or off the record."""

    NONE = 0
    LAST_WORDS = 1  # the last message or the reply
    ALL = 2


def read_off_record_part(exchange: Exchange) -> OffRecordPart:
    """Returns the part of an exchange that is forgotten or off the record."""
    if is_tombstone(exchange):
        return OffRecordPart.ALL
    return OffRecordPart.LAST_WORDS if ends_off_record(exchange) else OffRecordPart.NONE


def read_moved_at(exchange: Exchange) -> float:
    """Returns the time at which an exchange last moved its conversation: its end or its cut, else its beginning."""
    end = exchange.stopped if exchange.ended is None else exchange.ended
    return end if end is not None else exchange.begun


def is_same_input(a: Exchange, b: Exchange) -> bool:
    """Returns whether two exchanges have the same messages and media, whichever messages the media are in."""
    return a.inputs == b.inputs and [d for d in a.media if d] == [d for d in b.media if d]
