"""The words of an exchange, in the form in which they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from gateway.core.conversation.wire_message import WireMessage


class Content(NamedTuple):
    """The words of an exchange."""

    # The client's input; None: the input is not stored.
    messages: list[WireMessage] | None = None
    # The reply as the client has it; None: no reply is stored.
    shown_reply: WireMessage | None = None
    # The reply as the upstream saw it, hidden rounds included; None: the reply has no hidden rounds.
    full_reply: list[WireMessage] | None = None
    # Ids of the calls in `full_reply` that the gateway ran itself.
    gateway_call_ids: frozenset[str] = frozenset()
    # True: the exchange is a step of a run: `full_reply` goes upstream as it is, and `shown_reply` only went to the
    # reader.
    is_step: bool = False


def dump_full_reply(
    messages: Sequence[WireMessage], gateway_call_ids: Iterable[str] = (), *, is_step: bool = False
) -> bytes:
    """Returns all messages of a reply as `Exchange.full_reply` stores them. The parameters are fields of `Content`."""
    full_reply = {"messages": [*messages], "gateway_calls": sorted(gateway_call_ids)}
    return orjson.dumps({**full_reply, "step": True} if is_step else full_reply)


def parse_content(input_json: bytes | None, shown_reply: bytes | None, full_reply: bytes | None) -> Content:
    """Returns the words in the fields of an exchange as they are stored; None: nothing is stored."""
    content = Content(parse_json(input_json), parse_json(shown_reply))
    if (fields := parse_json(full_reply)) is None:
        return content
    return content._replace(
        full_reply=fields.get("messages"),
        # "ours": the name of the field in older records
        gateway_call_ids=frozenset(fields.get("gateway_calls") or fields.get("ours", ())),
        is_step=bool(fields.get("step")),
    )


def parse_json(data: bytes | None) -> Any:
    """Returns the value of stored JSON; None: nothing is stored."""
    return None if data is None else orjson.loads(data)
