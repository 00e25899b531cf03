"""Gateway calls and client calls, and turns that have them."""

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
    Played,
    chunk,
)

OURS = frozenset({"memory_insert", "memory_replace", "search"})
ARGS = '{"label":"human","new_string":"likes tea"}'
ROLE = chunk({"role": "assistant", "content": ""})


def with_tools(**fields: Any) -> TurnTerms:
    return TurnTerms(gateway_tools=OURS, **{"holds_end": True, "wants_usage": True, **fields})


def body(*events: Event) -> SendBody:
    return SendBody(b"".join(event.raw for event in events))


def ours_call(id: str = "call_a", arguments: str = ARGS, name: str = "memory_insert") -> tuple[str, str, str]:
    return (id, name, arguments)


THEIRS = ("call_t", "get_weather", '{"city":"Paris"}')


def client_message(played: Played, stream: bool) -> dict[str, Any]:
    """What the client has at the end, in one form for both ways."""
    if stream:
        return played.client.message()
    message = played.body["choices"][0]["message"]
    made = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return {"text": message["content"] or "", "calls": made}


def asked(call: CallModel) -> bytes:
    asked = [call.messages, call.budget_tokens, call.offer.is_final]
    return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
