"""The account of one reply: the `x-mnemogate-*` headers it carries, and the time we added to it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adapters.types import Header

__all__ = ["Receipt"]


class Receipt:
    """What a reply says about its own making: `x-mnemogate-*` headers, and the time we added."""

    __slots__ = ("_came", "_sent", "added_ms", "begun", "headers")

    def __init__(self, begun: float, headers: Sequence[Header]) -> None:
        """begun: when the request arrived, by time.perf_counter()."""
        self.begun = begun
        self.headers = list(headers)
        self.added_ms = 0.0
        self._sent = self._came = 0.0

    def upstream_called(self) -> None:
        self._sent = time.perf_counter()

    def upstream_answered(self) -> None:
        self._came = time.perf_counter()

    def say(self, name: str, value: str | None) -> None:
        """Add a header, in place of what was said under its name before; None: say nothing."""
        self.headers = [each for each in self.headers if each[0] != name]
        if value is not None:
            self.headers.append((name, value))

    def lines(self) -> list[Header]:
        """The headers, `x-mnemogate-added-ms` with them: our time before the call and after its first bytes."""
        now = time.perf_counter()
        self.added_ms = ((self._sent or now) - self.begun + (now - self._came if self._came else 0.0)) * 1000
        return [*self.headers, ("x-mnemogate-added-ms", f"{self.added_ms:.2f}")]
