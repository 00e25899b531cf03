"""Restores the hidden rounds of a stored reply before the part of the reply that the client sends back."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from gateway.core.conversation.exchange_content import Content
from gateway.core.conversation.fillers import with_fillers_of, without_fillers
from gateway.core.conversation.portable_message import make_portable_message
from gateway.core.conversation.private import read_private
from gateway.core.conversation.provider_fields import PROVIDER_FIELDS, refill, refill_calls
from gateway.core.conversation.wire_message import (
    WireMessage,
    find_rest_after,
    join_texts,
    read_call_id,
    read_result_id,
    read_text,
    without_space,
)

# The beginning of the result of a call with an unknown name.
NO_TOOL = "Error: there is no tool"


def restore_rounds(
    content: Content,
    reply: WireMessage,
    following: Sequence[WireMessage] | None,
    offered_tools: Container[str],
    *,
    is_same_model: bool = True,
) -> list[WireMessage] | None:
    """Returns the hidden rounds of a reply, and after them the rest of the reply; None: the reply has to stay as it is.

    The rest is the client's text without the text that was streamed before the end of the rounds. White space is not
    compared, since clients strip it. Fillers are not compared either: no model is shown them, and the client may have
    cut or dropped them. A mixed round has calls of client tools as well. It is restored only if their results follow.

    content: the stored content of the reply's exchange.
    reply: the reply as the client has it.
    following: the client's messages after the reply; None: the history is stored here.
    offered_tools: the names of the tools that the request offers.
    is_same_model: True if the model made the reply, so fields that only its provider reads may be sent.
    """
    all_messages = content.full_reply or []
    end = 1 + max((i for i, each in enumerate(all_messages) if each["role"] == "tool"), default=-1)
    rounds = all_messages[:end]
    if not is_same_model:
        reply = make_portable_message(reply)
        rounds = [*map(make_portable_message, rounds)]
    if not rounds or not is_offered(content, offered_tools):
        return None
    text_after = _find_text_after_rounds(content, reply, rounds)
    if text_after is None:
        return None
    resent_calls: list[dict[str, Any]] = reply.get("tool_calls") or []
    calls = [call for each in rounds for call in each.get("tool_calls") or []]
    client_calls = [call for call in calls if read_call_id(call) not in content.gateway_call_ids]
    if client_calls:
        return None if text_after else _restore_mixed(rounds, resent_calls, client_calls, following)
    rest = _make_rest(reply, all_messages[end:], text_after)
    if is_same_model and (refilled_rest := _refill_reply(rest, all_messages[-1])) is not None:
        return [*rounds, refilled_rest]
    return [*rounds, rest] if text_after or resent_calls else [*rounds]


def _make_rest(reply: WireMessage, stored_messages: Sequence[WireMessage], text: str) -> WireMessage:
    """Returns the part of a reply after its hidden rounds, without the provider's fields.

    The client got these fields of all rounds in one message, so they come from the store again.

    stored_messages: the stored messages after the rounds.
    text: the text of the part, as the client has it.
    """
    if text:
        # The text begins with the white space that the model wrote, so that it is sent as the provider has cached it.
        stored_text = join_texts(map(read_text, stored_messages))
        text = stored_text[: len(stored_text) - len(stored_text.lstrip())] + text
    return {**_without_provider_fields(reply), "content": text}


def without_rounds(content: Content, reply: WireMessage) -> WireMessage:
    """Returns a reply as it goes upstream without its hidden rounds.

    The provider's fields have offsets in the text of their own round. They are left out if an earlier round has text.

    content: the stored content of the reply's exchange.
    reply: the reply, as the client has it or as it is stored.
    """
    replies = [each for each in content.full_reply or () if each["role"] == "assistant"]
    is_misplaced = not reply.keys().isdisjoint(PROVIDER_FIELDS) and any(map(read_text, replies[:-1]))
    return _without_provider_fields(reply) if is_misplaced else reply


def is_offered(content: Content, offered_tools: Container[str]) -> bool:
    """Returns whether all tools of a reply's hidden rounds are offered."""
    full_reply = content.full_reply or []
    # The calls by a name that no tool had then, so that no tool has to have it now.
    unknown_calls = {
        read_result_id(message)
        for message in full_reply
        if message["role"] == "tool" and read_text(message).startswith(NO_TOOL)
    }
    gateway_call_ids = content.gateway_call_ids - unknown_calls
    calls = (call for message in full_reply for call in message.get("tool_calls") or [])
    return all(
        call["function"]["name"] in offered_tools for call in calls if read_call_id(call) in gateway_call_ids
    )


def _refill_reply(reply: WireMessage, stored_message: WireMessage) -> WireMessage | None:
    """Returns a reply with the provider's fields that the client has dropped; None: the client has dropped no field.

    reply: the part after the hidden rounds, as the client has it.
    stored_message: the last stored message of the reply.
    """
    if without_space(read_text(reply)) != without_space(read_text(without_fillers(stored_message))):
        # The provider's blocks would bring back the text that the client has cut, or that came after the cut.
        stored_message = _without_provider_fields(stored_message)
    return refill(reply, stored_message)


def _find_text_after_rounds(
    content: Content, reply: WireMessage, rounds: Sequence[WireMessage]
) -> str | None:
    """Returns the text of a reply after its hidden rounds; None: the reply begins with another text."""
    streamed = join_texts(
        text for each in rounds if each["role"] == "assistant" for text in _read_visible_texts(each)
    )
    text = read_text(without_fillers(with_fillers_of(reply, content.shown_reply or {})))
    text_after = find_rest_after(text, streamed)
    return None if text_after is None else text_after.lstrip()


def _read_visible_texts(message: WireMessage) -> tuple[str, str]:
    """Returns the texts of a message that a reader got, without fillers: its own, then that of its speaking calls."""
    return read_text(message), str(read_private(message).get("spoken", ""))


def _restore_mixed(
    rounds: Sequence[WireMessage],
    resent_calls: list[dict[str, Any]],
    client_calls: list[dict[str, Any]],
    following: Sequence[WireMessage] | None,
) -> list[WireMessage] | None:
    """Returns the rounds with the calls of client tools as the client has them.

    Returns None if the client lacks a call, or the result of a call.

    resent_calls: the calls of the reply as the client has it.
    client_calls: the calls of client tools in the rounds, as they are stored.
    following: as in `restore_rounds`.
    """
    resent_ids = {read_call_id(call) for call in resent_calls}
    answered_ids = {read_result_id(each) for each in following or () if each.get("role") == "tool"}
    if len(resent_calls) != len(client_calls) or not (following is None or resent_ids <= answered_ids):
        return None
    restored_rounds: list[WireMessage] = []
    for each in rounds:
        calls = each.get("tool_calls") or []
        if any(call in client_calls for call in calls):
            # In the order of the reply: Claude's thoughts stand between the calls.
            refilled_calls = iter(refill_calls(resent_calls, calls))
            each = {
                **each,
                "tool_calls": [
                    next(refilled_calls, call) if call in client_calls else call for call in calls
                ],
            }
        restored_rounds.append(each)
    return restored_rounds


def _without_provider_fields(message: WireMessage) -> WireMessage:
    return {key: value for key, value in message.items() if key not in PROVIDER_FIELDS}
