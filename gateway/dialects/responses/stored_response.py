"""A response as it is stored: what it shows beside the words of its turn, in a private field of the turn's reply.

Its output is made of the reply by the code that renders a whole one. Only an output whose items stand in another order
(thoughts, words and thoughts again) is stored itself.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.canonical import WireMessage, text_of
from gateway.core.conversation.private import private_of
from gateway.dialects.responses.parse import ECHOED
from gateway.dialects.responses.tools import CallForm

FIELD: Final = "response"
# The order of a whole reply's items, by the beginnings of their ids; calls come last.
_ORDER: Final = {"rs": 0, "msg": 1}
_CALLS: Final = 2


class StoredResponse(Struct, frozen=True, omit_defaults=True):
    """The stored part of a response."""

    status: str
    # Seconds since the epoch.
    created: int
    model: str
    # None: none is known.
    usage: Json | None = None
    completed: int | None = None
    # Why it is incomplete.
    reason: str | None = None
    # Of one that failed.
    error: Json | None = None
    tier: str | None = None
    # The fields of its request, where they differ from the defaults.
    echo: Json = {}
    # The forms of its tools' calls: name upstream -> (type of the item, name, namespace).
    forms: dict[str, tuple[str, str, str | None]] = {}
    # The output, where it cannot be made of the reply.
    output: list[Json] | None = None

    @property
    def call_forms(self) -> dict[str, CallForm]:
        return {name: CallForm(*form) for name, form in self.forms.items()}

    @property
    def echoed(self) -> Json:
        return {**ECHOED, **self.echo}

    def output_of(self, reply: WireMessage) -> list[Json] | None:
        """Returns the stored output; None: it is to be made of the reply, which may have been cut since."""
        if self.output is None:
            return None
        texts = [part.get("text", "") for item in self.output for part in item.get("content") or ()]
        return self.output if "".join(texts) == text_of(reply) else None


def stored_in(reply: WireMessage) -> StoredResponse | None:
    """Returns what is stored of a reply's response; None: it is not a stored one."""
    found: Any = private_of(reply).get(FIELD)
    if not isinstance(found, dict):
        return None
    try:
        return msgspec.convert(found, StoredResponse)
    except msgspec.ValidationError:
        return None  # imported from elsewhere


def changed(echo: Json) -> Json:
    """Returns the fields of a request that differ from the defaults."""
    return {key: value for key, value in echo.items() if key not in ECHOED or ECHOED[key] != value}


def is_in_order(kinds: list[str]) -> bool:
    """Returns whether items of these kinds stand as those of a whole reply do."""
    places = [_ORDER.get(kind, _CALLS) for kind in kinds]
    return places == sorted(places) and kinds.count("rs") < 2 and kinds.count("msg") < 2 and "ws" not in kinds
