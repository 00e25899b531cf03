"""The names of the events of a response's stream that the gateway acts on."""

from __future__ import annotations

from typing import Final

CREATED_EVENT: Final = "response.created"
ERROR_EVENT: Final = "error"
# The last events of a response, and the ends after which a response can be continued.
END_EVENTS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", ERROR_EVENT))
CONTINUABLE_END_EVENTS: Final = frozenset(("response.completed", "response.incomplete"))
