"""The calls of a turn that an agent's rules count: the calls since the user's newest message that have run."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.agents.core.tool_rules import CalledTool
from gateway.core.conversation.private import PrivateFields, find_own_length, is_nudge, read_private
from gateway.core.conversation.wire_message import (
    PRIVATE,
    WireMessage,
    flag_results,
    list_raw_calls,
    read_call_id,
    read_named_call,
    read_result_id,
    read_text,
)
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt


def list_path_calls(context: MemoryContext) -> list[CalledTool]:
    """Returns the calls of the turn that goes on in a stored conversation. A pause does not end a turn."""
    new_messages = context.plan.messages
    if any(_flag_turn_beginnings(new_messages)):
        return []
    stored_messages: list[WireMessage] = []
    for exchange in context.path:
        content = context.tree.contents.get(exchange)
        stored_messages += content.messages or ()
        stored_messages += _without_nudges(content.full_reply or [content.shown_reply or {}])
    return _list_turn_calls([*stored_messages, *new_messages])


def list_prompt_calls(prompt: Prompt) -> list[CalledTool]:
    """Returns the calls of the turn that goes on in a client conversation.

    The client's list has the client's calls and their results. The gateway's calls are in the hidden rounds, which are
    inserted into the list.
    """
    messages, composition = prompt.request.messages, prompt.composition
    if messages[-1].get("role") == "user" and read_text(messages[-1]):
        return []
    prompt_messages: list[WireMessage] = [
        {**inserted.message, PRIVATE: inserted.private} for inserted in composition.inserted
    ]
    for index, message in enumerate(messages):
        rounds = composition.stored_rounds.get(index)
        if rounds is None:
            prompt_messages += composition.replacements.get(index, [message])
        else:
            prompt_messages += _without_nudges(rounds)
    return _list_turn_calls(prompt_messages)


def _without_nudges(reply: Sequence[WireMessage]) -> list[WireMessage]:
    """Returns the messages of a reply with its hidden rounds, without the gateway's own messages of the role `user`."""
    return [message for message in reply if message.get("role") != "user"]


def _list_turn_calls(messages: Sequence[WireMessage]) -> list[CalledTool]:
    """Returns the calls since the user's newest message. A message of another agent begins a turn, too."""
    calls: list[CalledTool] = []
    names: dict[str, str] = {}
    for message, begins_turn in zip(messages, _flag_turn_beginnings(messages), strict=True):
        role, private = message.get("role"), read_private(message)
        if begins_turn:
            calls.clear()
        elif role == "assistant":
            names.update((read_call_id(call), read_named_call(call).name) for call in list_raw_calls(message))
        elif role == "tool" and (call_id := read_result_id(message)) in names:
            status = _find_status(private)
            if status is not None:
                text = read_text(message)[: find_own_length(message)]
                calls.append(CalledTool(names[call_id], status, text))
    return calls


def _find_status(result: PrivateFields) -> str | None:
    """Returns the status of a call by the private fields of its result; None if the call was not run."""
    if result.get("unapproved") or result.get("approval") == "denied":
        return "denied"
    return None if result.get("unrun") else result.get("status") or "success"


def _flag_turn_beginnings(messages: Sequence[WireMessage]) -> list[bool]:
    """Returns for each message whether it begins a turn: a user's message does, media of a result and nudges do not."""
    return [
        message.get("role") == "user" and not is_result and not is_nudge(message)
        for message, is_result in zip(messages, flag_results(messages), strict=True)
    ]
