"""The processor on which a thread runs.

Two threads of Python hand the interpreter's lock to each other several times in each write. On one processor that is a
switch of threads; between two, the other one has to be woken each time, which takes longer than its work.
"""

from __future__ import annotations

import ctypes
import os
import sys

# The interpreter has no name for it. A call takes 0.1 us.
_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


class Placement:
    """The place of one thread, as the calling one wishes it. Where the system cannot do it, nothing happens.

    thread: the system's number of it (`Thread.native_id`).
    """

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._at = -1  # the only processor it may run on; -1: whichever its process may
        self._is_possible = _processor is not None

    def come_near(self) -> None:
        """Has the thread run on the processor on which the caller runs now. The caller stays free to move."""
        if _processor is not None:
            self._place(_processor())

    def go_free(self) -> None:
        """Has the thread run wherever the caller may."""
        self._place(-1)

    def _place(self, at: int) -> None:
        if at == self._at or not self._is_possible:
            return
        try:
            os.sched_setaffinity(self._thread, os.sched_getaffinity(0) if at < 0 else (at,))
        except OSError:  # a sandbox forbids it
            self._is_possible = False
        self._at = at
