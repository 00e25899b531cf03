"""The whole reply of a stored exchange: the messages of hidden rounds, the model's message, the results of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.conversation.private import without_private_fields
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.json_object import parse_object
from storage.records import Exchange

# A step may send its text by this tool, in this argument.
_SEND_MESSAGE = "send_message"
_TEXT_ARGUMENT = "message"


class FullReply(Struct, frozen=True):
    """All messages of a reply (`Exchange.full_reply`).

    In a step the model's message comes first, then the results of its calls that were not executed. Otherwise the
    model's message is the last one, after the hidden rounds; a reply that was cut after a round lacks it.
    """

    # The parsed JSON.
    fields: dict[str, Any]

    @classmethod
    def parse(cls, exchange: Exchange) -> FullReply | None:
        """Returns the whole reply of an exchange with its content; None: `Exchange.shown_reply` is all of it."""
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
    def reply(self) -> WireMessage:
        """The model's message, or the last result if the reply has no message of the model."""
        return self.messages[0 if self.is_step else -1]

    @property
    def text_calls(self) -> list[dict[str, Any]]:
        """The calls by which a step sent its text. If the reply is no step, such a call is of a client's tool."""
        calls = self.reply.get("tool_calls") or () if self.is_step else ()
        return [call for call in calls if _read_text_arguments(call) is not None]

    def with_reply(self, message: WireMessage) -> FullReply:
        """Returns a copy of the reply with another message of the model, which alone has text then."""
        return self._with_messages(
            [message, *self.messages[1:]] if self.is_step else [*self.hidden_messages, message]
        )

    def with_text(self, text: str) -> FullReply:
        """Returns a copy of the reply with the text in the model's message alone."""
        if self._ends_with_round:
            return self._with_messages(self.hidden_messages)
        return self.with_reply(_replace_message_text(self.reply, self.text_calls, text))

    @property
    def _ends_with_round(self) -> bool:
        return not self.is_step and self.messages[-1].get("role") == "tool"

    def _with_messages(self, messages: list[WireMessage]) -> FullReply:
        return FullReply({**self.fields, "messages": messages})


def _replace_message_text(
    message: WireMessage, text_calls: Sequence[dict[str, Any]], text: str
) -> WireMessage:
    """Returns a message with another text. If it has sent its text by calls, the first of them has the new text."""
    if not text_calls:
        return {**without_private_fields(message, "filler"), "content": text}
    texts = [text] + [""] * (len(text_calls) - 1)
    changed_calls = {
        id(call): _with_argument(call, each) for call, each in zip(text_calls, texts, strict=True)
    }
    return {**message, "tool_calls": [changed_calls.get(id(call), call) for call in message["tool_calls"]]}


def _with_argument(call: dict[str, Any], text: str) -> dict[str, Any]:
    """Returns a copy of a call that sends another text."""
    arguments = {**(_read_text_arguments(call) or {}), _TEXT_ARGUMENT: text}
    return {**call, "function": {**call["function"], "arguments": orjson.dumps(arguments).decode()}}


def _read_text_arguments(call: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call that sends a text; None: a call of another tool, or arguments without JSON."""
    function = call.get("function") or {}
    if function.get("name") != _SEND_MESSAGE:
        return None
    return parse_object(function.get("arguments") or b"{}")
