"""Stored exchanges with other words: another text of one message, or the part of a reply that was heard."""

from __future__ import annotations

import orjson
from msgspec.structs import replace

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.fillers import with_fillers_of, without_fillers
from gateway.core.conversation.full_reply import FullReply
from gateway.core.conversation.private import LEGACY_OWN_LENGTH, with_private, without_private_fields
from gateway.core.conversation.stored_messages import has_open_calls, list_input_messages
from gateway.core.conversation.wire_message import WireMessage, read_text, without_space
from storage.records import REPLY, Exchange, ExchangeState


class CannotRewrite(ValueError):
    """A message cannot have another text; the message is the reason."""


def rewrite_message(exchange: Exchange, seq: int, text: str) -> Exchange:
    """Returns the exchange with another text of one message. Its atoms and its path stay.

    So a client that resends the old text is still recognised, while the new text is shown, recalled and sent.

    Raises: CannotRewrite.
    """
    index = seq - exchange.seq
    is_input = index < len(exchange.inputs)
    if exchange.state is ExchangeState.OPEN:
        raise CannotRewrite("it is being answered")
    if is_tombstone(exchange) or (index if is_input else REPLY) in exchange.redactions:
        raise CannotRewrite("it is forgotten")
    return _rewrite_input(exchange, index, text) if is_input else _rewrite_reply(exchange, text)


def _rewrite_input(exchange: Exchange, index: int, text: str) -> Exchange:
    """Returns the exchange with another text of an input message, and without the note of that message."""
    messages = list_input_messages(exchange)
    message = without_private_fields(messages[index], "own_length", LEGACY_OWN_LENGTH)
    messages[index] = {**message, "content": text}
    notes = {i: "" if i == index else note for i, note in exchange.notes.items()}
    return replace(exchange, input=orjson.dumps(messages), notes=notes)


def _rewrite_reply(exchange: Exchange, text: str) -> Exchange:
    """Returns the exchange with another text of its reply. Raises: CannotRewrite."""
    if exchange.shown_reply is None:
        raise CannotRewrite("there is no reply")
    shown_reply = orjson.loads(exchange.shown_reply)
    full_reply = FullReply.parse(exchange)
    if not read_text(shown_reply) and shown_reply.get("tool_calls"):
        raise CannotRewrite("it is a tool call, and those cannot be changed")
    if full_reply is not None:
        if len(full_reply.text_calls) > 1:
            raise CannotRewrite("it was sent in several tool calls")
        full_reply = full_reply.with_text(text)
    return replace(
        exchange,
        shown_reply=orjson.dumps({**without_private_fields(shown_reply, "fillers"), "content": text}),
        full_reply=None if full_reply is None else orjson.dumps(full_reply.fields),
        has_full_reply=full_reply is not None,
    )


def cut_reply(exchange: Exchange, heard_text: str) -> Exchange:
    """Returns the exchange with the heard part of its reply; its path stays.

    If nothing was heard, the exchange loses its reply. But a reply with calls stays: the calls were made, and the next
    exchange may have their results.

    heard_text: the text of that part; "": nothing was heard.
    """
    shown_reply = orjson.loads(exchange.shown_reply or b"{}")
    full_reply = FullReply.parse(exchange)
    heard_reply = {**without_private_fields(shown_reply, "fillers"), "content": heard_text or None}
    heard_reply = with_fillers_of(heard_reply, shown_reply)
    text = read_text(without_fillers(heard_reply))
    if _has_calls_to_retain(full_reply, shown_reply):
        full_reply = full_reply and full_reply.with_reply(_cut_calling_message(full_reply.reply, heard_text))
    elif text or has_open_calls(exchange):
        full_reply = full_reply and full_reply.with_text(text)
    else:
        return _without_reply(exchange)
    return replace(
        exchange,
        size=len(without_space(heard_text)),
        shown_reply=orjson.dumps(heard_reply),
        full_reply=None if full_reply is None else orjson.dumps(full_reply.fields),
    )


def _has_calls_to_retain(full_reply: FullReply | None, shown_reply: WireMessage) -> bool:
    """Returns whether a reply has calls other than those by which a step sent its text."""
    if full_reply is None:
        return bool(shown_reply.get("tool_calls"))
    return bool(full_reply.reply.get("tool_calls")) and not full_reply.text_calls


def _cut_calling_message(message: WireMessage, heard_text: str) -> WireMessage:
    """Returns a message with calls, and with the heard part of its text or, if it has no text, of its filler."""
    if read_text(message):
        return {**message, "content": heard_text or None}
    return with_private(without_private_fields(message, "filler"), filler=heard_text or None)


def _without_reply(exchange: Exchange) -> Exchange:
    """Returns a copy of an exchange without its reply."""
    return replace(
        exchange,
        reply=None,
        reply_key=None,
        size=0,
        shown_reply=None,
        full_reply=None,
        has_full_reply=False,
        opaque=False,
    )
