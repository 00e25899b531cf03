"""The processors on which a thread may run.

Two threads of Python hand the interpreter's lock to each other several times in each write. On one processor that is a
switch of threads; between two processors, the other thread has to be woken each time, which takes longer than its work.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Returns the processor that the calling thread runs on, for which the interpreter has no name. A call takes 0.1 us.
_current_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


class ThreadAffinity:
    """The affinity of one thread, set by another thread.

    Nothing happens on a system that has no affinities, or forbids setting one.

    native_id: the system's number of the thread (`Thread.native_id`).
    """

    def __init__(self, native_id: int) -> None:
        self._native_id = native_id
        # The only processor on which the thread may run; None: all on which its process may run.
        self._pinned_to: int | None = None
        self._is_possible = _current_processor is not None

    def pin_to_caller(self) -> None:
        """Makes the thread run on the processor on which the caller runs now. The caller itself is not pinned."""
        if _current_processor is not None:
            self._set_processor(_current_processor())

    def unpin(self) -> None:
        """Allows the thread all processors that the caller may use."""
        self._set_processor(None)

    def _set_processor(self, processor: int | None) -> None:
        if processor == self._pinned_to or not self._is_possible:
            return
        try:
            os.sched_setaffinity(
                self._native_id, os.sched_getaffinity(0) if processor is None else (processor,)
            )
        except OSError:  # a sandbox forbids it
            self._is_possible = False
        self._pinned_to = processor
