"""A response as it is stored: its fields besides the output, in a private field of its turn's reply.

When the response is retrieved, its output is rebuilt from the reply. The output itself is stored only if its items have
another order than the parts of a reply (such as thoughts, text, thoughts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from adapters.types import Json
from gateway.core.conversation.private import read_private
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.dialects.responses.call_form import NO_FORMS, CallForm
from gateway.dialects.responses.request_fields import ECHO_DEFAULTS

# The name of the private field.
RESPONSE_FIELD: Final = "response"
# The order of a whole reply's items, by `Item.id_prefix`: thoughts, text, then calls.
_POSITIONS_BY_PREFIX: Final = {"rs": 0, "msg": 1}
_CALL_POSITION: Final = 2


class StoredResponse(Struct, frozen=True, omit_defaults=True):
    """The stored fields of a response."""

    # The status of the response, such as "completed".
    status: str
    # The time of the response, in seconds since the epoch.
    created_at: int = field(name="created")
    # The model that the response names.
    model: str
    # The usage that the response shows; None: the usage is not known.
    usage: Json | None = None
    # The time of completion, in seconds since the epoch; None: the response was not completed.
    completed_at: int | None = field(default=None, name="completed")
    # The reason why an incomplete response ended; None: the response is not incomplete.
    incomplete_reason: str | None = field(default=None, name="reason")
    # The error of a failed response; None: the response did not fail.
    error: Json | None = None
    # The service tier that the upstream named; None: it named none.
    service_tier: str | None = field(default=None, name="tier")
    # The fields of the request that the response repeats, without fields that have their default.
    echo: Json = {}
    # The forms of tools' calls, by the name of the tool upstream.
    forms: dict[str, CallForm] = {}
    # The output; None: the output is rebuilt from the reply.
    output: list[Json] | None = None
    # The part that the response's ids share; "": the part is made of the turn's name. A response in the background has
    # its ids before it has a turn.
    id_tag: str = field(default="", name="tag")

    @property
    def full_echo(self) -> Json:
        """All fields of the request that the response repeats."""
        return {**ECHO_DEFAULTS, **self.echo}

    def find_output(self, reply: WireMessage) -> list[Json] | None:
        """Returns the stored output; None: no output is stored, or the reply was cut since, so it is rebuilt."""
        if self.output is None:
            return None
        texts = [part.get("text", "") for item in self.output for part in item.get("content") or ()]
        return self.output if "".join(texts) == read_text(reply) else None


def read_stored_response(reply: WireMessage) -> StoredResponse | None:
    """Returns the stored fields of a reply's response; None: the reply was not sent as a response."""
    fields: Any = read_private(reply).get(RESPONSE_FIELD)
    if not isinstance(fields, dict):
        return None
    try:
        return msgspec.convert(fields, StoredResponse)
    except msgspec.ValidationError:
        return None  # an import may have brought any fields


def read_call_forms(reply: WireMessage) -> Mapping[str, CallForm]:
    """Returns the forms of calls of the tools that a response's request offers, by the names of the tools upstream."""
    stored = read_stored_response(reply)
    return stored.forms if stored is not None else NO_FORMS


def list_changed_fields(echo: Json) -> Json:
    """Returns the fields of a request that differ from the defaults."""
    return {
        key: value for key, value in echo.items() if key not in ECHO_DEFAULTS or ECHO_DEFAULTS[key] != value
    }


def is_in_reply_order(id_prefixes: list[str]) -> bool:
    """Returns whether items have the order in which `rebuild_response` rebuilds them from a whole reply.

    id_prefixes: the `Item.id_prefix` of each item. A web search ("ws") is not in the reply, so it cannot be rebuilt.
    """
    positions = [_POSITIONS_BY_PREFIX.get(id_prefix, _CALL_POSITION) for id_prefix in id_prefixes]
    is_sorted = positions == sorted(positions)
    return (
        is_sorted and id_prefixes.count("rs") < 2 and id_prefixes.count("msg") < 2 and "ws" not in id_prefixes
    )
