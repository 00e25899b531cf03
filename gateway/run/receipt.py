"""The account of one reply: the `x-mnemogate-*` headers it carries, and the time we added to it."""

from __future__ import annotations

import time
from collections.abc import Callable

from adapters.types import Header, Json
from storage.records import Scope


class Receipt:
    """The account that a reply gives of its making. added_ms: our part of the time up to its head.

    headers: the headers by name; one that is None is not sent. turn: by which a client may name it; None: by nothing.
    count_tokens: returns the usage of a reply with a text, counted here; None: its prompt is not known.
    """

    __slots__ = (
        "_came",
        "_sent",
        "added_ms",
        "begun",
        "count_tokens",
        "first_ms",
        "headers",
        "is_noted",
        "mode",
        "recalled",
        "request_id",
        "scope",
        "turn",
    )

    def __init__(self, begun: float, request_id: str = "") -> None:
        """Begins the account.

        begun: when the request arrived, by time.perf_counter().
        request_id: "": it is not noted.
        """
        self.begun = begun
        self.request_id = request_id
        # The memory that it belongs to, once that is known, and the mode of that.
        self.scope: Scope | None = None
        self.mode = "on"
        # How many hits went into the note, and whether it is noted with the turn why.
        self.recalled = 0
        self.is_noted = False
        # When the reply's head left, since it began.
        self.first_ms: float | None = None
        self.added_ms = 0.0
        self.headers: dict[str, str | None] = {}
        self.turn: str | None = None
        self.count_tokens: Callable[[str], Json] | None = None
        self._sent = self._came = 0.0

    def upstream_called(self) -> None:
        now = time.perf_counter()
        self._sent = self._sent or now
        self._came = 0.0  # what is between two calls is a round's: the upstream's time, and its tools'

    def upstream_answered(self) -> None:
        self._came = time.perf_counter()

    def close(self) -> list[Header]:
        """Returns the headers as the reply's head leaves, `x-mnemogate-added-ms` with them.

        The gateway's share is the time before the upstream was first called, and the time since its last reply began.
        """
        now = time.perf_counter()
        self.added_ms = self.added_so_far(now)
        self.first_ms = (now - self.begun) * 1000
        headers = [(name, value) for name, value in self.headers.items() if value is not None]
        headers.append(("x-mnemogate-added-ms", f"{self.added_ms:.2f}"))
        return headers

    def added_so_far(self, now: float | None = None) -> float:
        """Returns the gateway's share of the time until now, in milliseconds."""
        now = time.perf_counter() if now is None else now
        return ((self._sent or now) - self.begun + (now - self._came if self._came else 0.0)) * 1000
