"""The messages of stored exchanges, one by one, as they are listed.

`seq` numbers the messages of a memory. The messages of hidden rounds come before their reply and share its `seq`; their
text is in the reply, so they are listed with calls or results alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
from msgspec import Struct

from gateway.core.conversation.canonical import has_calls
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.full_reply import FullReply
from gateway.core.conversation.wire_message import (
    WireMessage,
    find_callee,
    read_call_id,
    read_named_call,
    read_result_id,
)
from storage.records import REPLY, Exchange

# A number above the index of any hidden message.
_INDEX_AFTER_HIDDEN = 2**31


class ListedMessage(Struct, frozen=True):
    """A stored message."""

    # The exchange with the message.
    exchange: Exchange
    # The number of the message in its memory.
    seq: int
    # The index of a hidden message, from 1 on, among the hidden messages of the reply at `seq`; None: not hidden.
    hidden_index: int | None
    # The message as it is stored.
    message: WireMessage
    # The time of the message, in seconds since the epoch.
    at: float
    # True: the message is a part of the exchange's reply.
    is_reply: bool
    # The results of calls that were not executed, in a step's reply.
    results: Sequence[WireMessage] = ()

    @property
    def is_result(self) -> bool:
        """True if the message is the result of a call of an earlier reply."""
        return not self.is_reply and self.message.get("role") == "tool"

    @property
    def sort_key(self) -> tuple[int, int]:
        return make_message_sort_key(self.seq, self.hidden_index)


def make_message_sort_key(seq: int, hidden_index: int | None) -> tuple[int, int]:
    """Returns the key by which messages of a memory are sorted. Hidden messages come before their reply."""
    return seq, _INDEX_AFTER_HIDDEN if hidden_index is None else hidden_index


def list_messages(exchange: Exchange) -> list[ListedMessage]:
    """Returns the messages of an exchange that were not forgotten, in order. exchange: an exchange with its content."""
    if is_tombstone(exchange):
        return []
    listed_messages = [
        ListedMessage(
            exchange=exchange,
            seq=exchange.seq + index,
            hidden_index=None,
            message=message,
            at=exchange.begun,
            is_reply=False,
        )
        for index, message in enumerate(list_input_messages(exchange))
        if index not in exchange.redactions
    ]
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return listed_messages
    make_listed = partial(
        ListedMessage,
        exchange=exchange,
        seq=exchange.reply_seq,
        at=exchange.ended or exchange.begun,
        is_reply=True,
    )
    full_reply = FullReply.parse(exchange)
    if full_reply is not None and full_reply.is_step:
        reply, *results = full_reply.messages
        return [*listed_messages, make_listed(hidden_index=None, message=reply, results=results)]
    hidden_messages = [] if full_reply is None else full_reply.hidden_messages
    listed_messages += [
        make_listed(hidden_index=n, message=message) for n, message in enumerate(hidden_messages, 1)
    ]
    return [*listed_messages, make_listed(hidden_index=None, message=orjson.loads(exchange.shown_reply))]


def map_calls_to_tool_names(exchange: Exchange) -> dict[str, str]:
    """Returns the calls of an exchange's reply: id -> the tool's name."""
    full_reply = FullReply.parse(exchange)
    if full_reply is not None:
        messages = full_reply.messages
    else:
        messages = [] if exchange.shown_reply is None else [orjson.loads(exchange.shown_reply)]
    return {
        read_call_id(call): read_named_call(call).name
        for message in messages
        for call in message.get("tool_calls") or ()
        if find_callee(call) is not None
    }


def has_open_calls(exchange: Exchange) -> bool:
    """Returns whether an exchange ends with calls that have no results in it. exchange: with its content loaded."""
    full_reply = FullReply.parse(exchange)
    if full_reply is None or not full_reply.is_step:
        return has_calls(exchange.reply)  # calls of hidden rounds have their results
    # A step's call may be shown as text, so `exchange.reply` may lack it.
    reply, *results = full_reply.messages
    answered_ids = {*map(read_result_id, results)}
    return any(read_call_id(call) not in answered_ids for call in reply.get("tool_calls") or ())


def list_input_messages(exchange: Exchange) -> list[WireMessage]:
    """Returns the messages of an exchange's input. exchange: an exchange with its content."""
    messages: list[WireMessage] = orjson.loads(exchange.input) if exchange.input else []
    return messages
