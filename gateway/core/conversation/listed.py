"""Messages of stored exchanges, one by one: as lists name them, and with another text.

Each stands at a number of its memory's order. A message of a hidden round stands in front of the reply that it is a
part of, and bears its number; its words are in the reply, so it is listed with calls or results alone.
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

_SPEAKS, _ARGUMENT = "send_message", "message"


class CannotRewrite(ValueError):
    """A message cannot have another text; the message is the reason."""


class ListedMessage(Struct, frozen=True):
    """A stored message."""

    exchange: Exchange
    # Its number.
    seq: int
    # Its place, from 1 on, among the hidden ones of the reply at `seq`.
    hidden: int | None
    message: WireMessage
    # Its time.
    at: float
    # It is of the exchange's reply.
    is_reply: bool
    # Of calls of it for which nothing was run.
    results: Sequence[WireMessage] = ()

    @property
    def is_result(self) -> bool:
        """The message is the result of a call that a reply above its exchange has made."""
        return not self.is_reply and self.message.get("role") == "tool"

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among all: hidden ones in front of their reply."""
        return (self.seq, self.hidden if self.hidden is not None else _LAST)


_LAST = 2**31


def listed(exchange: Exchange) -> list[ListedMessage]:
    """Returns the messages of an exchange that are there, in order. exchange: with its content."""
    if exchange.state in (State.FORGOTTEN, State.OFF):
        return []
    found = [
        ListedMessage(exchange, exchange.seq + place, None, message, exchange.begun, is_reply=False)
        for place, message in enumerate(_input(exchange))
        if place not in exchange.redactions
    ]
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return found
    seq, at = exchange.reply_seq, exchange.ended or exchange.begun
    shown_reply = orjson.loads(exchange.shown_reply)
    full = _full(exchange)
    if full.get("step"):
        # A step's reply is one message; text that it spoke by a tool is in its call.
        reply, *results = full["messages"]
        return [*found, ListedMessage(exchange, seq, None, reply, at, is_reply=True, results=results)]
    hidden = [_silent(message) for message in _rounds(full.get("messages", []))]
    found += [
        ListedMessage(exchange, seq, n, message, at, is_reply=True) for n, message in enumerate(hidden, 1)
    ]
    return [*found, ListedMessage(exchange, seq, None, shown_reply, at, is_reply=True)]


def called_tools(exchange: Exchange) -> dict[str, str]:
    """Returns the calls of an exchange's reply: id -> tool."""
    messages = _full(exchange).get("messages") or (
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
    full = _full(exchange)
    if not full.get("step"):
        return has_calls(exchange.reply)
    reply, *results = full["messages"]
    answered = {m.get("tool_call_id") for m in results}
    return any(call.get("id") not in answered for call in reply.get("tool_calls") or ())


def rewritten(exchange: Exchange, seq: int, text: str) -> Exchange:
    """Returns the exchange with another text of one message; its atoms and its path stay.

    So whoever resends the old words is still recognised, and what is shown, recalled and sent is new.
    Raises: CannotRewrite.
    """
    place = seq - exchange.seq
    if exchange.state is State.OPEN:
        raise CannotRewrite("it is being answered")
    if (
        exchange.state in (State.FORGOTTEN, State.OFF)
        or place in exchange.redactions
        or (place == len(exchange.inputs) and REPLY in exchange.redactions)
    ):
        raise CannotRewrite("it is forgotten")
    if place < len(exchange.inputs):
        messages = _input(exchange)
        messages[place] = {
            **without_private_fields(messages[place], "own_length", LEGACY_OWN_LENGTH),
            "content": text,
        }
        return replace(
            exchange,
            input=orjson.dumps(messages),
            notes={**exchange.notes, **({place: ""} if place in exchange.notes else {})},
        )
    if exchange.shown_reply is None:
        raise CannotRewrite("there is no reply")
    shown_reply, full = orjson.loads(exchange.shown_reply), _full(exchange)
    if not text_of(shown_reply) and shown_reply.get("tool_calls"):
        raise CannotRewrite("it is a tool call, and those cannot be changed")
    if full:
        full = {**full, "messages": _rewritten_messages(full, text)}
    return replace(
        exchange,
        shown_reply=orjson.dumps({**without_private_fields(shown_reply, "fillers"), "content": text}),
        full=orjson.dumps(full) if full else None,
        hidden=bool(full),
    )


def cut_short(exchange: Exchange, text: str) -> Exchange:
    """Returns the exchange with what was heard of its reply; its path stays. text: "": nothing.

    A reply that made no calls is gone then; calls were made, whatever was heard with them.
    """
    shown_reply, full = orjson.loads(exchange.shown_reply or b"{}"), _full(exchange)
    messages = list(full.get("messages") or ())
    place = _reply_place(full)
    shown = with_fillers_of(
        {**without_private_fields(shown_reply, "fillers"), "content": text or None}, shown_reply
    )
    if (messages[place] if messages else shown_reply).get("tool_calls") and not _speaks(messages[place:]):
        if messages:
            last = messages[place]
            messages[place] = (
                {**last, "content": text or None}
                if text_of(last)
                else with_private(without_private_fields(last, "filler"), filler=text or None)
            )
    else:
        own = text_of(without_fillers(shown)) if text else ""
        if not own:
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
        messages = _rewritten_messages(full, own) if messages else messages
    return replace(
        exchange,
        size=len(without_space(text)),
        shown_reply=orjson.dumps(shown),
        full=orjson.dumps({**full, "messages": messages}) if full else None,
    )


def _reply_place(full: dict[str, Any]) -> int:
    """Returns where among a reply's messages its last one stands: a step's is the first, in front of results."""
    return 0 if full.get("step") else -1


def _speaks(messages: Sequence[WireMessage]) -> bool:
    calls = messages[0].get("tool_calls") or () if messages else ()
    return any((call.get("function") or {}).get("name") == _SPEAKS for call in calls)


def _rewritten_messages(full: dict[str, Any], text: str) -> list[WireMessage]:
    """Returns a reply's messages as they go upstream, with another text: it stands in the last, in no round before."""
    messages = full["messages"]
    if full.get("step"):
        reply, *results = messages
        return [_with_text(reply, text), *results]
    before = _rounds(messages)
    made = [_silent(message) for message in before]
    return made if len(before) == len(messages) else [*made, _with_text(messages[-1], text)]


def _with_text(last: WireMessage, text: str) -> WireMessage:
    spoken = [
        call for call in last.get("tool_calls") or () if call.get("function", {}).get("name") == _SPEAKS
    ]
    if len(spoken) > 1:
        raise CannotRewrite("it was sent in several tool calls")
    if spoken:
        arguments = orjson.loads(spoken[0]["function"]["arguments"] or "{}")
        function = {
            **spoken[0]["function"],
            "arguments": orjson.dumps({**arguments, _ARGUMENT: text}).decode(),
        }
        calls = [{**c, "function": function} if c is spoken[0] else c for c in last["tool_calls"]]
        return {**last, "tool_calls": calls}
    return {**without_private_fields(last, "filler"), "content": text}


def _rounds(messages: Sequence[WireMessage]) -> Sequence[WireMessage]:
    """Returns the hidden rounds among a reply's messages. After those of a reply that was cut nothing may follow."""
    return messages if messages and messages[-1].get("role") == "tool" else messages[:-1]


def _silent(message: WireMessage) -> WireMessage:
    """Returns a message of a hidden round without the text that is a part of the reply."""
    if message.get("role") != "assistant":
        return dict(message)
    return {**without_private_fields(message, "filler", "spoken"), "content": None}


def _input(exchange: Exchange) -> list[WireMessage]:
    found: list[WireMessage] = orjson.loads(exchange.input) if exchange.input else []
    return found


def _full(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(exchange.full) if exchange.full else {}
    return found
