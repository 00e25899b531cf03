"""Shows the progress of long work on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# Work that ends sooner shows nothing, and does not wait for rich to be loaded.
_SHOWN_AFTER_S = 0.5


class Progress:
    """A bar, or a spinner if the total is not known. Nothing is shown if stderr is no terminal.

    The bar appears with the first report after `_SHOWN_AFTER_S`.
    """

    def __init__(self, description: str, unit: Literal["numbers", "bytes"] = "numbers") -> None:
        self.is_shown = sys.stderr.isatty()
        self._description = description
        self._unit = unit
        self._begun = time.monotonic()
        self._bar: Bar | None = None

    def show(self, done: int | None = None, total: int | None = None) -> None:
        """Reports how much is done, and how much there is in all. None: not known."""
        if not self.is_shown or time.monotonic() < self._begun + _SHOWN_AFTER_S:
            return
        if self._bar is None:
            from gateway.run.admin.command_line.terminal import make_bar

            self._bar = make_bar(
                self._description, total, is_counted=done is not None, is_bytes=self._unit == "bytes"
            )
            self._bar.add_task("", total=total)
            self._bar.start()
        [task] = self._bar.task_ids
        self._bar.update(task, completed=done or 0, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
