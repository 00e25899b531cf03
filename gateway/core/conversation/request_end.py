"""The end of a request, and the content that it leaves in its exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.conversation.exchange_content import dump_full_reply
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import read_private
from gateway.core.conversation.provider_fields import has_provider_fields
from gateway.core.conversation.wire_message import WireMessage
from storage.records import REPLY, EvictedPart


class RequestEnd(Struct, frozen=True):
    """The end of a request."""

    # The id of the exchange to be written (negative: not yet stored).
    id: int
    # All messages of the reply, as the upstream saw them.
    full_reply: Sequence[WireMessage]
    # The reply as the client has it.
    shown_reply: WireMessage
    # The time of the end, in seconds since the epoch.
    now: float
    # The notes of the input's messages, by the indices in the input.
    notes: Mapping[int, str]
    # Ids of the calls that the gateway ran.
    gateway_call_ids: frozenset[str] = frozenset()
    # True: the turn has memory operations (`Exchange.edits`).
    has_edits: bool = False
    # The part of the path that the request left out.
    evicted: EvictedPart | None = None


def make_content_fields(plan: Plan, request_end: RequestEnd, redactions: frozenset[int]) -> dict[str, Any]:
    """Returns the fields of an exchange that hold content. redactions: the parts that are not stored."""
    fields = {"input": redact_input(plan.messages, redactions), "model": plan.query.model}
    if REPLY in redactions:
        return {**fields, "shown_reply": None, "full_reply": None}
    shown_reply = request_end.shown_reply
    full_reply = None
    if len(request_end.full_reply) > 1:
        full_reply = dump_full_reply(request_end.full_reply, request_end.gateway_call_ids)
    elif request_end.full_reply:
        shown_reply = request_end.full_reply[0]
    return {
        **fields,
        "shown_reply": orjson.dumps(shown_reply),
        "full_reply": full_reply,
        "has_full_reply": full_reply is not None,
        # A reply that was made without some results notes this in its content, so that they are left out again.
        "opaque": has_provider_fields(shown_reply) or bool(read_private(shown_reply).get("unread_earlier")),
    }


def redact_input(messages: Sequence[WireMessage], redactions: frozenset[int]) -> bytes:
    """Returns an input as JSON for the store. Of the messages in `redactions` only the role is stored."""
    if not redactions:
        return orjson.dumps(messages)
    return orjson.dumps(
        [{"role": m.get("role"), "content": ""} if i in redactions else m for i, m in enumerate(messages)]
    )
