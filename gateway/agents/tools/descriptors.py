"""Keeps child processes from inheriting files of this process, except their standard ones."""

from __future__ import annotations

import os
from contextlib import suppress

_FIRST_OTHER_NUMBER = 3  # after stdin, stdout and stderr, which a child has of its own


def close_in_children() -> None:
    """Has all descriptors but the standard ones closed in programs that this process starts from now on.

    Python opens none that a program inherits, but the parent of this process may have left some open, and uvloop starts
    programs without closing anything (its `close_fds` has no effect). Call it right before a program is started, too:
    libraries open files at any time.
    """
    for name in os.listdir("/dev/fd"):
        # One of them was the list's, and is closed by now.
        with suppress(OSError):
            if int(name) >= _FIRST_OTHER_NUMBER:
                os.set_inheritable(int(name), False)
