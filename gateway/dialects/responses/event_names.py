"""The names of the events in a response's stream on which the gateway acts."""

from __future__ import annotations

from typing import Final

CREATED_EVENT: Final = "response.created"
ERROR_EVENT: Final = "error"
# The last events of a response, and the ends after which a response can be continued.
END_EVENTS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", ERROR_EVENT))
CONTINUABLE_END_EVENTS: Final = frozenset(("response.completed", "response.incomplete"))
