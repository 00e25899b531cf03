"""One exchange by itself: its content, its atoms, and what of it is off the record. `tree.py` has it among others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

from gateway.core.conversation.canonical import is_assistant, is_user
from gateway.core.conversation.wire_message import WireMessage
from storage.records import REPLY, Atom, Exchange, State

# The states of exchanges without stored content.
TOMBSTONE_STATES = (State.OFF, State.FORGOTTEN)


class Content(NamedTuple):
    """The words of an exchange."""

    # The client's input; None: it is not stored.
    messages: list[WireMessage] | None = None
    # The reply as the client has it; None: there is no reply, or it is not stored.
    shown_reply: WireMessage | None = None
    # The reply as the upstream saw it, hidden rounds included; None: it had no hidden rounds.
    full_reply: list[WireMessage] | None = None
    # Ids of the calls in `full_reply` that the gateway ran itself.
    gateway_call_ids: frozenset[str] = frozenset()
    # The exchange is a step of a run: `full_reply` goes upstream as it is, and `shown_reply` only went to the reader.
    is_step: bool = False


def dump_full_reply(
    messages: Sequence[WireMessage], gateway_call_ids: Iterable[str] = (), *, is_step: bool = False
) -> bytes:
    """Returns all messages of a reply as `Exchange.full_reply` stores them. The parameters are fields of `Content`."""
    full_reply = {"messages": [*messages], "gateway_calls": sorted(gateway_call_ids)}
    return orjson.dumps({**full_reply, "step": True} if is_step else full_reply)


def parse_content(input: bytes | None, shown_reply: bytes | None, full_reply: bytes | None) -> Content:
    """Returns the words in the fields of an exchange as they are stored; None: nothing is stored."""
    content = Content(parse_json(input), parse_json(shown_reply))
    if (fields := parse_json(full_reply)) is None:
        return content
    return content._replace(
        full_reply=fields.get("messages"),
        # "ours": the name of the field in older records
        gateway_call_ids=frozenset(fields.get("gateway_calls") or fields.get("ours", ())),
        is_step=bool(fields.get("step")),
    )


def parse_json(data: bytes | None) -> Any:
    """Returns the value of stored JSON; None: nothing is stored."""
    return None if data is None else orjson.loads(data)


def count_atoms_to_end(exchange: Exchange) -> int:
    """Returns how many atoms the path has up to and including the reply of an exchange."""
    return exchange.offset + sum(map(len, exchange.inputs)) + len(exchange.reply or ())


def list_input_atoms(exchange: Exchange) -> list[Atom]:
    """Returns the atoms of an exchange's input, of all its messages in a row."""
    return [atom for atoms in exchange.inputs for atom in atoms]


def count_prefill(exchange: Exchange) -> int:
    """Returns how many messages at the end of an input are an assistant's, after a question."""
    inputs = exchange.inputs
    count = next((n for n, atoms in enumerate(reversed(inputs)) if not is_assistant(atoms)), len(inputs))
    return count if count < len(inputs) and is_user(inputs[-1 - count]) else 0


def is_tombstone(exchange: Exchange) -> bool:
    """Returns whether an exchange is off the record or forgotten as a whole, so that its content is not stored."""
    return exchange.state in TOMBSTONE_STATES


def ends_off_record(exchange: Exchange) -> bool:
    """Returns whether its last message or its reply is off the record. A turn that repeats it then is so too."""
    return (
        is_tombstone(exchange)
        or REPLY in exchange.redactions
        or len(exchange.inputs) - 1 in exchange.redactions
    )


class OffRecordPart(IntEnum):
    """The part of an exchange that is forgotten or off the record."""

    NONE = 0
    LAST_WORDS = 1  # its last message or its reply
    ALL = 2


def read_off_record_part(exchange: Exchange) -> OffRecordPart:
    """Returns the part of an exchange that is forgotten or off the record."""
    if is_tombstone(exchange):
        return OffRecordPart.ALL
    return OffRecordPart.LAST_WORDS if ends_off_record(exchange) else OffRecordPart.NONE


def read_moved_at(exchange: Exchange) -> float:
    """Returns when an exchange last moved its conversation: when it ended or was cut, else when it began."""
    end = exchange.stopped if exchange.ended is None else exchange.ended
    return end if end is not None else exchange.begun


def is_same_input(a: Exchange, b: Exchange) -> bool:
    """Returns whether two exchanges have the same messages and media, whichever messages the media are in."""
    return a.inputs == b.inputs and [d for d in a.media if d] == [d for d in b.media if d]
