"""Turns the messages of an agent file into the exchanges of a stored conversation, as lines of an export.

An exchange is a reply and the messages since the previous reply. If a run ended after its tools, no reply follows their
results, which then belong to the exchange of the reply that made the calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.agents.core.agent_file import PortableMessage
from gateway.core.conversation.private import read_private
from gateway.core.conversation.provider_fields import has_provider_fields
from gateway.core.conversation.wire_message import read_text, without_space

# The upstream of imported replies. No upstream has this name, so fields that only the original provider can read go to
# none.
_IMPORT_UPSTREAM = "import"


def make_conversation_lines(
    messages: Sequence[PortableMessage],
    uid: str,
    key: str | None,
    *,
    began_at: float | None = None,
    first_seq: int = 1,
) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of a conversation, and the number after the number of its last message.

    uid: the uid of the conversation.
    key: the caller's name for the conversation; None: it has none.
    began_at: the time when the conversation began, in seconds since the epoch; None: it began with its first message,
        and without messages it has no lines.
    first_seq: the number of its first message.
    """
    lines: list[dict[str, Any]] = []
    seq = first_seq
    parent = prior = None
    for inputs, reply in group_exchanges(messages):
        line = _make_exchange_line(uid, seq, parent, prior, inputs, reply)
        lines.append({"exchange": line})
        prior = seq if line["full"] is not None else prior
        seq, parent = seq + len(inputs) + 1, seq
    if began_at is None:
        if not lines:
            return [], seq
        began_at = messages[0].at
    last_at = messages[-1].at if lines else began_at
    conversation = {"uid": uid, "key": key, "begun": began_at, "last_at": last_at}
    return [{"conversation": {**conversation, "settled_at": 0.0, "is_stored": True}}, *lines], seq


def group_exchanges(
    messages: Sequence[PortableMessage],
) -> Iterator[tuple[list[PortableMessage], list[PortableMessage]]]:
    """Yields messages by exchange: the inputs, and the reply with its last results."""
    inputs: list[PortableMessage] = []
    reply: list[PortableMessage] = []
    unanswered = _find_unanswered(messages)
    for index, message in enumerate(messages):
        role = message.message["role"]
        if role == "assistant":
            if reply:
                yield inputs, reply
                inputs = []
            reply = [message]
        elif reply and role == "tool" and unanswered[index]:
            reply.append(message)
        else:
            if reply:
                yield inputs, reply
                inputs, reply = [], []
            inputs.append(message)
    if inputs or reply:
        yield inputs, reply


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
    uid: str,
    seq: int,
    parent: int | None,
    prior: int | None,
    inputs: Sequence[PortableMessage],
    reply: Sequence[PortableMessage],
) -> dict[str, Any]:
    """Returns the line of an exchange.

    uid: the uid of the conversation.
    seq: the number of the exchange's first message.
    parent: the number of the exchange before it; None: it is the first.
    prior: the number of the last exchange before it that has `full`; None: none has.
    inputs: the messages before the reply.
    reply: the reply, and the last results of its calls; empty: the exchange has no reply.
    """
    began_at = (inputs or reply)[0].at
    ended_at = max(began_at, (reply or inputs)[-1].at)
    shown_reply, rounds, model = None, None, ""
    if reply:
        model = f"{_IMPORT_UPSTREAM}/{reply[0].model}" if reply[0].model else ""
        shown_reply = reply[0].message
        spoken = read_private(shown_reply).get("spoken")
        if isinstance(spoken, str):
            shown_reply = {"role": "assistant", "content": spoken}
        if spoken or len(reply) > 1:
            rounds = {"messages": [message.message for message in reply], "gateway_calls": [], "step": True}
    size = 0 if shown_reply is None else len(without_space(read_text(shown_reply)))
    is_opaque = any(has_provider_fields(message.message) for message in reply)
    position = {"conversation": uid, "parent": parent, "prior": prior, "seq": seq, "run": seq, "head": 0}
    times = {"begun": began_at, "touched": began_at, "ended": ended_at, "stopped": None}
    state = {"state": "finished", "superseded": False, "continued": True, "active": True, "edits": False}
    content = {"input": [message.message for message in inputs], "shown_reply": shown_reply, "full": rounds}
    traits = {"has_reply": shown_reply is not None, "model": model, "size": size, "opaque": is_opaque}
    unset = {"merged": "", "notes": {}, "redactions": {}}
    return {**position, **times, **state, **content, **traits, **unset}
