"""Calls of gateway tools and of client tools, for turns that have both."""

from __future__ import annotations

from typing import Any

import orjson

from adapters.types import Event
from gateway.core.turn.commands import (
    CallModel,
    SendBody,
)
from gateway.core.turn.terms import TurnTerms
from tests.core.turn.playbook import (
    PlayedTurn,
    chunk,
)

GATEWAY_TOOLS = frozenset({"memory_insert", "memory_replace", "search"})
ARGS = '{"label":"human","new_string":"likes tea"}'
ROLE = chunk({"role": "assistant", "content": ""})


def with_tools(**fields: Any) -> TurnTerms:
    return TurnTerms(gateway_tools=GATEWAY_TOOLS, **{"holds_end": True, "wants_usage": True, **fields})


def body(*events: Event) -> SendBody:
    return SendBody(b"".join(event.raw for event in events))


def gateway_call(
    id: str = "call_a", arguments: str = ARGS, name: str = "memory_insert"
) -> tuple[str, str, str]:
    return (id, name, arguments)


# A call as `completion` takes it: (id, name, arguments).
CLIENT_CALL = ("call_t", "get_weather", '{"city":"Paris"}')


def client_message(played: PlayedTurn, stream: bool) -> dict[str, Any]:
    """Returns the message that the client has got, as `ClientStream.message`."""
    if stream:
        return played.client.message()
    message = played.body["choices"][0]["message"]
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return {"text": message["content"] or "", "calls": calls}


def dump_call(call: CallModel) -> bytes:
    """Returns the parts of a model call that must be the same for streamed and whole replies."""
    return orjson.dumps([call.messages, call.budget_tokens, call.offer.is_final], option=orjson.OPT_SORT_KEYS)
