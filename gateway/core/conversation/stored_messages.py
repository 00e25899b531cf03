"""The messages of stored exchanges, one by one: as they are listed, and with another text.

`seq` numbers the messages of a memory. The messages of hidden rounds come before their reply and share its `seq`; their
text is in the reply, so they are listed with calls or results alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import has_calls
from gateway.core.conversation.fillers import with_fillers_of, without_fillers
from gateway.core.conversation.private import LEGACY_OWN_LENGTH, with_private, without_private_fields
from gateway.core.conversation.wire_message import (
    WireMessage,
    call_id,
    function_of,
    named_call,
    text_of,
    without_space,
)
from storage.records import REPLY, Exchange, State

# A step may send its text by this tool, in this argument.
_SEND_MESSAGE = "send_message"
_TEXT_ARGUMENT = "message"
# More than the index of any hidden message.
_INDEX_AFTER_HIDDEN = 2**31


class _FullReply(Struct, frozen=True):
    """All messages of a reply (`Exchange.full_reply`).

    In a step the model's message comes first, then the results of its calls that were not executed. Otherwise the
    model's message is the last one, after the hidden rounds; a reply that was cut after a round has none.
    """

    # The parsed JSON.
    fields: dict[str, Any]

    @classmethod
    def of(cls, exchange: Exchange) -> _FullReply | None:
        return cls(orjson.loads(exchange.full_reply)) if exchange.full_reply else None

    @property
    def messages(self) -> list[WireMessage]:
        messages: list[WireMessage] = self.fields["messages"]
        return messages

    @property
    def is_step(self) -> bool:
        return bool(self.fields.get("step"))

    @property
    def hidden_messages(self) -> list[WireMessage]:
        """The messages of hidden rounds, without the text that is a part of the reply."""
        if self.is_step:
            return []
        return [
            {**without_private_fields(message, "filler", "spoken"), "content": None}
            if message.get("role") == "assistant"
            else dict(message)
            for message in (self.messages if self._ends_with_round else self.messages[:-1])
        ]

    @property
    def _ends_with_round(self) -> bool:
        return not self.is_step and self.messages[-1].get("role") == "tool"

    @property
    def reply(self) -> WireMessage:
        """The model's message, or the last result if there is none."""
        return self.messages[0 if self.is_step else -1]

    @property
    def text_calls(self) -> list[dict[str, Any]]:
        """The calls by which a step sent its text. If the reply is no step, such a call is of a client's tool."""
        calls = self.reply.get("tool_calls") or () if self.is_step else ()
        return [call for call in calls if _arguments_of_text_call(call) is not None]

    def with_reply(self, message: WireMessage) -> _FullReply:
        """Returns the reply with another message of the model, which alone has text then."""
        return self._with_messages(
            [message, *self.messages[1:]] if self.is_step else [*self.hidden_messages, message]
        )

    def with_text(self, text: str) -> _FullReply:
        """Returns the reply with the text in the model's message alone."""
        if self._ends_with_round:
            return self._with_messages(self.hidden_messages)
        return self.with_reply(_message_with_text(self.reply, self.text_calls, text))

    def _with_messages(self, messages: list[WireMessage]) -> _FullReply:
        return _FullReply({**self.fields, "messages": messages})


class CannotRewrite(ValueError):
    """A message cannot have another text; the message is the reason."""


class ListedMessage(Struct, frozen=True):
    """A stored message."""

    exchange: Exchange
    seq: int
    # The index of a hidden message, from 1 on, among the hidden messages of the reply at `seq`; None: it is not hidden.
    hidden_index: int | None
    message: WireMessage
    # Seconds since the epoch.
    at: float
    # The message is a part of the exchange's reply.
    is_reply: bool
    # In a step's reply: the results of its calls that were not executed.
    results: Sequence[WireMessage] = ()

    @property
    def is_result(self) -> bool:
        """The message is the result of a call of an earlier reply."""
        return not self.is_reply and self.message.get("role") == "tool"

    @property
    def sort_key(self) -> tuple[int, int]:
        return message_sort_key(self.seq, self.hidden_index)


def message_sort_key(seq: int, hidden_index: int | None) -> tuple[int, int]:
    """Returns the key by which messages of a memory are sorted. Hidden messages come before their reply."""
    return seq, _INDEX_AFTER_HIDDEN if hidden_index is None else hidden_index


def list_messages(exchange: Exchange) -> list[ListedMessage]:
    """Returns the messages of an exchange that were not forgotten, in order. exchange: with its content."""
    if exchange.state in (State.FORGOTTEN, State.OFF):
        return []
    listed = [
        ListedMessage(
            exchange=exchange,
            seq=exchange.seq + index,
            hidden_index=None,
            message=message,
            at=exchange.begun,
            is_reply=False,
        )
        for index, message in enumerate(_input_messages(exchange))
        if index not in exchange.redactions
    ]
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return listed
    seq = exchange.reply_seq
    reply_at = exchange.ended or exchange.begun
    full_reply = _FullReply.of(exchange)
    if full_reply is not None and full_reply.is_step:
        reply, *results = full_reply.messages
        return [
            *listed,
            ListedMessage(
                exchange=exchange,
                seq=seq,
                hidden_index=None,
                message=reply,
                at=reply_at,
                is_reply=True,
                results=results,
            ),
        ]
    if full_reply is not None:
        listed += [
            ListedMessage(
                exchange=exchange, seq=seq, hidden_index=n, message=message, at=reply_at, is_reply=True
            )
            for n, message in enumerate(full_reply.hidden_messages, 1)
        ]
    shown_reply = orjson.loads(exchange.shown_reply)
    return [
        *listed,
        ListedMessage(
            exchange=exchange, seq=seq, hidden_index=None, message=shown_reply, at=reply_at, is_reply=True
        ),
    ]


def tool_names_by_call(exchange: Exchange) -> dict[str, str]:
    """Returns the calls of an exchange's reply: id -> the tool's name."""
    full_reply = _FullReply.of(exchange)
    if full_reply is not None:
        messages = full_reply.messages
    else:
        messages = [] if exchange.shown_reply is None else [orjson.loads(exchange.shown_reply)]
    return {
        call_id(call): named_call(call).name
        for message in messages
        for call in message.get("tool_calls") or ()
        if function_of(call) is not None
    }


def has_open_calls(exchange: Exchange) -> bool:
    """Returns whether an exchange ends with calls that have no results in it. exchange: with its content."""
    full_reply = _FullReply.of(exchange)
    if full_reply is None or not full_reply.is_step:
        return has_calls(exchange.reply)  # calls of hidden rounds have their results
    # A step's call may be shown as text, so `exchange.reply` may lack it.
    reply, *results = full_reply.messages
    answered = {m.get("tool_call_id") for m in results}
    return any(call.get("id") not in answered for call in reply.get("tool_calls") or ())


def rewrite_message(exchange: Exchange, seq: int, text: str) -> Exchange:
    """Returns the exchange with another text of one message. Its atoms and its path stay.

    So a client that resends the old text is still recognised, while the new text is shown, recalled and sent.

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
        messages = _input_messages(exchange)
        message = without_private_fields(messages[index], "own_length", LEGACY_OWN_LENGTH)
        messages[index] = {**message, "content": text}
        notes = {i: "" if i == index else note for i, note in exchange.notes.items()}
        return replace(exchange, input=orjson.dumps(messages), notes=notes)
    if exchange.shown_reply is None:
        raise CannotRewrite("there is no reply")
    shown_reply = orjson.loads(exchange.shown_reply)
    full_reply = _FullReply.of(exchange)
    if not text_of(shown_reply) and shown_reply.get("tool_calls"):
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


def cut_reply(exchange: Exchange, heard: str) -> Exchange:
    """Returns the exchange with what was heard of its reply; its path stays. heard: "": nothing was heard.

    If nothing was heard, the exchange loses its reply. But a reply with calls stays: the calls were made, and the next
    exchange may have their results.
    """
    shown_reply = orjson.loads(exchange.shown_reply or b"{}")
    full_reply = _FullReply.of(exchange)
    cut = {**without_private_fields(shown_reply, "fillers"), "content": heard or None}
    cut = with_fillers_of(cut, shown_reply)
    text = text_of(without_fillers(cut))
    if _has_calls_to_retain(full_reply, shown_reply):
        full_reply = full_reply and full_reply.with_reply(_cut_calling_message(full_reply.reply, heard))
    elif text or has_open_calls(exchange):
        full_reply = full_reply and full_reply.with_text(text)
    else:
        return _without_reply(exchange)
    return replace(
        exchange,
        size=len(without_space(heard)),
        shown_reply=orjson.dumps(cut),
        full_reply=None if full_reply is None else orjson.dumps(full_reply.fields),
    )


def _has_calls_to_retain(full_reply: _FullReply | None, shown_reply: WireMessage) -> bool:
    """Returns whether a reply has calls other than those by which a step sent its text."""
    if full_reply is None:
        return bool(shown_reply.get("tool_calls"))
    return bool(full_reply.reply.get("tool_calls")) and not full_reply.text_calls


def _cut_calling_message(message: WireMessage, heard: str) -> WireMessage:
    """Returns a message with calls, and with what was heard of its text or, if it has none, of its filler."""
    if text_of(message):
        return {**message, "content": heard or None}
    return with_private(without_private_fields(message, "filler"), filler=heard or None)


def _without_reply(exchange: Exchange) -> Exchange:
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


def _message_with_text(message: WireMessage, text_calls: Sequence[dict[str, Any]], text: str) -> WireMessage:
    """Returns a message with another text. If it has sent its text by calls, the first of them has the new text."""
    if not text_calls:
        return {**without_private_fields(message, "filler"), "content": text}
    texts = [text] + [""] * (len(text_calls) - 1)
    changed = {id(call): _with_argument(call, each) for call, each in zip(text_calls, texts, strict=True)}
    return {**message, "tool_calls": [changed.get(id(call), call) for call in message["tool_calls"]]}


def _with_argument(call: dict[str, Any], text: str) -> dict[str, Any]:
    """Returns a call that sends another text."""
    arguments = {**(_arguments_of_text_call(call) or {}), _TEXT_ARGUMENT: text}
    return {**call, "function": {**call["function"], "arguments": orjson.dumps(arguments).decode()}}


def _arguments_of_text_call(call: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call that sends a text; None: it calls another tool, or they cannot be read."""
    function = call.get("function") or {}
    if function.get("name") != _SEND_MESSAGE:
        return None
    try:
        arguments = orjson.loads(function.get("arguments") or b"{}")
    except orjson.JSONDecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _input_messages(exchange: Exchange) -> list[WireMessage]:
    messages: list[WireMessage] = orjson.loads(exchange.input) if exchange.input else []
    return messages
