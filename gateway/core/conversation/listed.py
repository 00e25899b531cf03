"""The messages of stored exchanges, one by one: as they are listed, and with another text.

Each has a number in the order of its memory. A message of a hidden round comes before the reply that it is a part of,
and has its number; its text is in the reply, so it is listed with calls or results alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import WireMessage, has_calls, text_of, without_space
from gateway.core.conversation.fillers import with_fillers_of, without_fillers
from gateway.core.conversation.private import LEGACY_OWN_LENGTH, with_private, without_private_fields
from storage.records import REPLY, Exchange, State

# The tool by which a step sends its text, and the argument that holds the text.
_SEND_TOOL, _TEXT_ARGUMENT = "send_message", "message"
# More than the index of any hidden message.
_AFTER_HIDDEN = 2**31


class CannotRewrite(ValueError):
    """A message cannot have another text; the message is the reason."""


class ListedMessage(Struct, frozen=True):
    """A stored message."""

    exchange: Exchange
    # Its number.
    seq: int
    # Its index, from 1 on, among the hidden messages of the reply at `seq`; None: it is not hidden.
    hidden: int | None
    message: WireMessage
    # Seconds since the epoch.
    at: float
    # It is of the exchange's reply.
    is_reply: bool
    # The results of its calls for which nothing was run.
    results: Sequence[WireMessage] = ()

    @property
    def is_result(self) -> bool:
        """The message is the result of a call that a reply above its exchange has made."""
        return not self.is_reply and self.message.get("role") == "tool"

    @property
    def sort_key(self) -> tuple[int, int]:
        """Sorts the messages of a memory: hidden ones before their reply."""
        return (self.seq, _AFTER_HIDDEN if self.hidden is None else self.hidden)


def list_messages(exchange: Exchange) -> list[ListedMessage]:
    """Returns the messages of an exchange that are there, in order. exchange: with its content."""
    if exchange.state in (State.FORGOTTEN, State.OFF):
        return []
    found = [
        ListedMessage(exchange, exchange.seq + index, None, message, exchange.begun, is_reply=False)
        for index, message in enumerate(_input(exchange))
        if index not in exchange.redactions
    ]
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return found
    seq, at = exchange.reply_seq, exchange.ended or exchange.begun
    full = _full_reply(exchange)
    if full.get("step"):
        # A step's reply is one message; text that it sent by a tool is in its call.
        reply, *results = full["messages"]
        return [*found, ListedMessage(exchange, seq, None, reply, at, is_reply=True, results=results)]
    found += [
        ListedMessage(exchange, seq, n, message, at, is_reply=True)
        for n, message in enumerate(_hidden_messages(full.get("messages", [])), 1)
    ]
    shown_reply = orjson.loads(exchange.shown_reply)
    return [*found, ListedMessage(exchange, seq, None, shown_reply, at, is_reply=True)]


def called_tools(exchange: Exchange) -> dict[str, str]:
    """Returns the calls of an exchange's reply: id -> tool."""
    messages = _full_reply(exchange).get("messages") or (
        [] if exchange.shown_reply is None else [orjson.loads(exchange.shown_reply)]
    )
    return {
        str(call.get("id")): str((call.get("function") or {}).get("name"))
        for message in messages
        for call in message.get("tool_calls") or ()
        if isinstance(call, dict)
    }


def leaves_calls(exchange: Exchange) -> bool:
    """Returns whether an exchange ends with calls that have no results in it. exchange: with its content.

    Calls of hidden rounds have their results. A call of a step may be shown as text.
    """
    full = _full_reply(exchange)
    if not full.get("step"):
        return has_calls(exchange.reply)
    reply, *results = full["messages"]
    answered = {m.get("tool_call_id") for m in results}
    return any(call.get("id") not in answered for call in reply.get("tool_calls") or ())


def rewrite_message(exchange: Exchange, seq: int, text: str) -> Exchange:
    """Returns the exchange with another text of one message; its atoms and its path stay.

    So whoever resends the old text is still recognised, and what is shown, recalled and sent is new.
    Raises: CannotRewrite.
    """
    index = seq - exchange.seq
    is_input = index < len(exchange.inputs)
    if exchange.state is State.OPEN:
        raise CannotRewrite("it is being answered")
    is_gone = exchange.state in (State.FORGOTTEN, State.OFF)
    if is_gone or (index if is_input else REPLY) in exchange.redactions:
        raise CannotRewrite("it is forgotten")
    if is_input:
        messages = _input(exchange)
        before = without_private_fields(messages[index], "own_length", LEGACY_OWN_LENGTH)
        messages[index] = {**before, "content": text}
        notes = {i: "" if i == index else note for i, note in exchange.notes.items()}
        return replace(exchange, input=orjson.dumps(messages), notes=notes)
    if exchange.shown_reply is None:
        raise CannotRewrite("there is no reply")
    shown_reply, full = orjson.loads(exchange.shown_reply), _full_reply(exchange)
    if not text_of(shown_reply) and shown_reply.get("tool_calls"):
        raise CannotRewrite("it is a tool call, and those cannot be changed")
    if full:
        full = {**full, "messages": _with_reply_text(full, text)}
    return replace(
        exchange,
        shown_reply=orjson.dumps({**without_private_fields(shown_reply, "fillers"), "content": text}),
        full=orjson.dumps(full) if full else None,
        hidden=bool(full),
    )


def cut_reply(exchange: Exchange, heard: str) -> Exchange:
    """Returns the exchange with what was heard of its reply; its path stays. heard: "": nothing.

    A reply without calls of which nothing was heard is gone then. One with calls stays: they were made.
    """
    shown_reply, full = orjson.loads(exchange.shown_reply or b"{}"), _full_reply(exchange)
    messages = list(full.get("messages") or ())
    index = 0 if full.get("step") else -1  # of the last message of the model's: a step's results follow it
    last = messages[index] if messages else shown_reply
    cut = {**without_private_fields(shown_reply, "fillers"), "content": heard or None}
    shown = with_fillers_of(cut, shown_reply)
    if last.get("tool_calls") and not (messages and _send_calls(last)):
        if messages:
            messages[index] = (
                {**last, "content": heard or None}
                if text_of(last)
                else with_private(without_private_fields(last, "filler"), filler=heard or None)
            )
    elif heard and (text := text_of(without_fillers(shown))):
        messages = _with_reply_text(full, text) if messages else messages
    else:
        return replace(
            exchange,
            reply=None,
            reply_key=None,
            size=0,
            shown_reply=None,
            full=None,
            hidden=False,
            opaque=False,
        )
    return replace(
        exchange,
        size=len(without_space(heard)),
        shown_reply=orjson.dumps(shown),
        full=orjson.dumps({**full, "messages": messages}) if full else None,
    )


def _with_reply_text(full: dict[str, Any], text: str) -> list[WireMessage]:
    """Returns a reply's messages with another text. It is in the last of the model's, in none of a hidden round."""
    messages = full["messages"]
    if full.get("step"):
        reply, *results = messages
        return [_with_text(reply, text), *results]
    hidden = _hidden_messages(messages)
    return hidden if len(hidden) == len(messages) else [*hidden, _with_text(messages[-1], text)]


def _with_text(message: WireMessage, text: str) -> WireMessage:
    """Returns a message with another text, in the call by which it sent its text if it did. Raises: CannotRewrite."""
    sent = _send_calls(message)
    if len(sent) > 1:
        raise CannotRewrite("it was sent in several tool calls")
    if not sent:
        return {**without_private_fields(message, "filler"), "content": text}
    function = sent[0]["function"]
    arguments = {**orjson.loads(function["arguments"] or "{}"), _TEXT_ARGUMENT: text}
    call = {**sent[0], "function": {**function, "arguments": orjson.dumps(arguments).decode()}}
    return {**message, "tool_calls": [call if c is sent[0] else c for c in message["tool_calls"]]}


def _send_calls(message: WireMessage) -> list[dict[str, Any]]:
    """Returns the calls by which a message sent its text."""
    calls = message.get("tool_calls") or ()
    return [call for call in calls if (call.get("function") or {}).get("name") == _SEND_TOOL]


def _hidden_messages(messages: Sequence[WireMessage]) -> list[WireMessage]:
    """Returns the messages of hidden rounds among those of a reply, without the text that is a part of the reply."""
    # After the rounds of a reply that was cut nothing may follow.
    is_cut = bool(messages) and messages[-1].get("role") == "tool"
    return [
        {**without_private_fields(message, "filler", "spoken"), "content": None}
        if message.get("role") == "assistant"
        else dict(message)
        for message in (messages if is_cut else messages[:-1])
    ]


def _input(exchange: Exchange) -> list[WireMessage]:
    found: list[WireMessage] = orjson.loads(exchange.input) if exchange.input else []
    return found


def _full_reply(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(exchange.full) if exchange.full else {}
    return found
