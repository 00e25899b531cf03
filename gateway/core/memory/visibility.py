"""Visibility: the messages of an exchange that other conversations may see.

They never see messages off the record, results of tools, fillers, thoughts within a reply, or messages of an agent's
rules to its model. A prefix that was made elsewhere (few-shot examples, a template) is seen once the conversation was
continued, unless another conversation opened with the same prefix.
"""

from __future__ import annotations

from collections.abc import Container
from sys import intern
from typing import NamedTuple

import orjson

from gateway.core.conversation.canonical import is_result
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.fillers import without_fillers_and_thoughts
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.stored_messages import map_calls_to_tool_names
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.prompt import note_text
from storage.records import REPLY, Exchange, Message


class VisibleMessage(NamedTuple):
    """A message of an exchange that other conversations may see."""

    # The index of the message in the exchange's input; REPLY: the message is the reply.
    message_index: int
    # The message, without fillers and thoughts.
    message: WireMessage


def list_visible_messages(
    exchange: Exchange, *, prefix_is_shared: bool, takes_reply: bool = True
) -> list[VisibleMessage]:
    """Returns the messages that other conversations may see, in their order.

    exchange: the exchange with its content.
    prefix_is_shared: True if another conversation opened with the same prefix.
    takes_reply: True if the reply is among the messages; otherwise it is not even parsed.
    """
    if is_tombstone(exchange) or exchange.input is None:
        return []
    # A prefix is the user's own if the user has continued it and no other conversation began with the same prefix.
    hidden_count = 0 if exchange.continued and not prefix_is_shared else exchange.prefix_length
    # The JSON is parsed once: an imported prefix may have thousands of messages.
    inputs: list[WireMessage] = orjson.loads(exchange.input) if hidden_count < len(exchange.inputs) else []
    visible = []
    for i, atoms in enumerate(exchange.inputs):
        if i < hidden_count or i in exchange.redactions or is_result(atoms):
            continue
        if not (is_nudge(inputs[i]) or _is_observation(inputs[i], exchange) or _is_instructions(inputs, i)):
            visible.append(VisibleMessage(i, without_fillers_and_thoughts(inputs[i])))
    if takes_reply and exchange.shown_reply is not None and REPLY not in exchange.redactions:
        reply = without_fillers_and_thoughts(orjson.loads(exchange.shown_reply))
        visible.append(VisibleMessage(REPLY, reply))
    return visible


def _is_instructions(inputs: list[WireMessage], i: int) -> bool:
    """Returns whether a message is a project's AGENTS.md, which Open WebUI puts before a user's first message.

    A user who sends such a file mostly sends nothing after it, or asks about it in the same message.
    """
    is_before = i + 1 < len(inputs) and inputs[i + 1].get("role") == "user"
    return is_before and read_text(inputs[i]).startswith("# AGENTS.md\n\n")


def _is_observation(message: WireMessage, exchange: Exchange) -> bool:
    """Returns whether a message is the result of a tool that a model called in words (LlamaIndex's ReAct agents).

    A user may begin a message in the same way, but then the model does not reply as it does to such a result.
    """
    if exchange.shown_reply is None or not read_text(message).startswith("Observation: "):
        return False
    return read_text(orjson.loads(exchange.shown_reply)).lstrip().startswith("Thought: ")


def list_recallable_messages(
    exchange: Exchange,
    prefix_is_shared: bool,
    previous: int | None,
    seqs: Container[int] | None = None,
) -> list[Message]:
    """Returns the messages of an exchange that recall may find, with the user's own words alone (`read_own_words`).

    exchange: the exchange with its content.
    prefix_is_shared: True if another conversation opened with the same prefix.
    previous: the number of the message before the exchange; None: no message is before it.
    seqs: the numbers of the messages to return; None: all messages. A reply that is not among them is not parsed.
    """
    messages: list[Message] = []
    takes_reply = seqs is None or exchange.reply_seq in seqs
    for visible in list_visible_messages(
        exchange, prefix_is_shared=prefix_is_shared, takes_reply=takes_reply
    ):
        text = note_text.read_own_words(read_text(visible.message))
        if text.strip():
            messages.append(_make_recallable(exchange, visible, text, previous))
            previous = messages[-1].seq
    # All messages are built, since each names the message before it.
    if seqs is None:
        return messages
    return [message for message in messages if message.seq in seqs]


def _make_recallable(exchange: Exchange, visible: VisibleMessage, text: str, previous: int | None) -> Message:
    """Returns a message as recall finds it.

    text: the user's own words in the message.
    previous: the number of the recallable message before it; None: no message is before it.
    """
    is_reply = visible.message_index == REPLY
    index = len(exchange.inputs) if is_reply else visible.message_index
    seq = exchange.seq + index
    if index and index - 1 in exchange.redactions:
        previous = seq - 1  # the index was written before that message was forgotten, and names it still
    name = visible.message.get("name")
    return Message(
        seq=seq,
        exchange_row=exchange.id,
        # Interned: thousands of messages have few roles.
        role="assistant" if is_reply else intern(str(visible.message.get("role"))),
        text=text,
        at=(exchange.ended if is_reply else None) or exchange.begun,
        conversation_row=exchange.conversation_row,
        speaker=name if isinstance(name, str) else None,
        atoms=(exchange.reply or ()) if is_reply else exchange.inputs[index],
        previous=previous,
    )


def list_user_messages(exchange: Exchange, prefix_is_shared: bool) -> list[Message]:
    """Returns the user's messages among those that recall may find; the reply is not even parsed.

    exchange: the exchange with its content.
    prefix_is_shared: True if another conversation opened with the same prefix.
    """
    inputs = range(exchange.seq, exchange.reply_seq)
    recallable = list_recallable_messages(exchange, prefix_is_shared, None, inputs)
    return [message for message in recallable if message.role == "user"]


def list_tools_used(exchange: Exchange) -> list[str]:
    """Returns the tools that were called in an exchange, in order. exchange: the exchange with its content."""
    return [] if is_tombstone(exchange) else list(map_calls_to_tool_names(exchange).values())
