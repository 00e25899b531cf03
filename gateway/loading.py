"""An interrupt that ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# The exit code of an interrupted process, as shells report it.
EXIT_INTERRUPTED = 130


@contextmanager
def loading() -> Iterator[None]:
    """Has an interrupt end the process at once while modules are loaded: an import may lose an exception."""
    with exit_on_interrupt():
        yield


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Has an interrupt end the process at once. Use it where nothing is open that has to be closed."""
    # A shell starts the background jobs of a script with SIGINT ignored, and they leave it so.
    can_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not can_interrupt or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
