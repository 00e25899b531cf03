"""Turns the messages of an agent file into the exchanges of a stored conversation, as lines of an export.

An exchange is a reply and the messages since the previous reply. If a run ended after its tools, no reply follows their
results, which then belong to the exchange of the reply that made the calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gateway.agents.core.agent_file import PortableMessage
from gateway.core.conversation.private import read_private
from gateway.core.conversation.provider_fields import has_provider_fields
from gateway.core.conversation.wire_message import read_text, without_space
from gateway.run.admin.transfer.export_lines import UNCHANGED_EXCHANGE

# The upstream of imported replies. No upstream has this name, so fields that only the original provider can read go to
# none.
_IMPORT_UPSTREAM = "import"


class ConversationLines(NamedTuple):
    """The lines of one or more conversations."""

    # The lines of an export, as JSON objects: each conversation before its exchanges.
    lines: list[dict[str, Any]]
    # The number after the number of the last message.
    next_seq: int


class FileExchange(NamedTuple):
    """The messages of one exchange."""

    # The messages before the reply.
    inputs: Sequence[PortableMessage]
    # The reply, and the last results of its calls; empty: the exchange has no reply.
    reply: Sequence[PortableMessage]


def make_conversation_lines(
    messages: Sequence[PortableMessage],
    uid: str,
    key: str | None,
    *,
    began_at: float | None = None,
    first_seq: int = 1,
) -> ConversationLines:
    """Returns the lines of a conversation.

    uid: the uid of the conversation.
    key: the caller's name for the conversation; None: it has none.
    began_at: the time when the conversation began, in seconds since the epoch; None: it began with its first message,
        and without messages it has no lines.
    first_seq: the number of its first message.
    """
    lines: list[dict[str, Any]] = []
    seq = first_seq
    parent = prior = None
    for exchange in group_exchanges(messages):
        line = _make_exchange_line(exchange, uid, seq, parent, prior)
        lines.append({"exchange": line})
        prior = seq if line["full"] is not None else prior
        seq, parent = seq + len(exchange.inputs) + 1, seq
    if began_at is None and not lines:
        return ConversationLines([], seq)
    began_at = messages[0].at if began_at is None else began_at
    times = {"begun": began_at, "last_at": messages[-1].at if lines else began_at, "settled_at": 0.0}
    conversation = {"uid": uid, "key": key, **times, "is_stored": True}
    return ConversationLines([{"conversation": conversation}, *lines], seq)


def group_exchanges(messages: Sequence[PortableMessage]) -> Iterator[FileExchange]:
    """Yields messages by exchange."""
    inputs: list[PortableMessage] = []
    reply: list[PortableMessage] = []
    unanswered = _find_unanswered(messages)
    for index, message in enumerate(messages):
        role = message.message["role"]
        if reply and role == "tool" and unanswered[index]:
            reply.append(message)
            continue
        if reply:
            yield FileExchange(inputs, reply)
            inputs, reply = [], []
        if role == "assistant":
            reply = [message]
        else:
            inputs.append(message)
    if inputs or reply:
        yield FileExchange(inputs, reply)


def _find_unanswered(messages: Sequence[PortableMessage]) -> Sequence[bool]:
    """Returns for each message whether it is unanswered: a tool result is if no reply follows it and later results."""
    flags: list[bool] = []
    is_unanswered = True
    for message in reversed(messages):
        if (role := message.message["role"]) != "tool":
            is_unanswered = role != "assistant"
        flags.append(is_unanswered)
    return flags[::-1]


def _make_exchange_line(
    exchange: FileExchange, uid: str, seq: int, parent: int | None, prior: int | None
) -> dict[str, Any]:
    """Returns the line of an exchange.

    uid: the uid of the conversation.
    seq: the number of the exchange's first message.
    parent: the number of the exchange before it; None: it is the first.
    prior: the number of the last exchange before it that has `full`; None: none has.
    """
    inputs, reply = exchange
    began_at = (inputs or reply)[0].at
    ended_at = max(began_at, (reply or inputs)[-1].at)
    position = {"conversation": uid, "parent": parent, "prior": prior, "seq": seq, "run": seq}
    times = {"begun": began_at, "touched": began_at, "ended": ended_at}
    sent_messages = [message.message for message in inputs]
    return {**UNCHANGED_EXCHANGE, **position, **times, "input": sent_messages, **_make_reply_fields(reply)}


def _make_reply_fields(reply: Sequence[PortableMessage]) -> dict[str, Any]:
    """Returns the fields of an exchange's line about its reply. reply: the field of the `FileExchange`."""
    if not reply:
        return {
            "shown_reply": None,
            "full": None,
            "has_reply": False,
            "model": "",
            "size": 0,
            "opaque": False,
        }
    shown_reply, full, model = reply[0].message, None, reply[0].model
    spoken = read_private(shown_reply).get("spoken")
    if isinstance(spoken, str):
        shown_reply = {"role": "assistant", "content": spoken}
    if spoken or len(reply) > 1:
        full = {"messages": [message.message for message in reply], "gateway_calls": [], "step": True}
    return {
        "shown_reply": shown_reply,
        "full": full,
        "has_reply": True,
        "model": f"{_IMPORT_UPSTREAM}/{model}" if model else "",
        "size": len(without_space(read_text(shown_reply))),
        "opaque": any(has_provider_fields(message.message) for message in reply),
    }
