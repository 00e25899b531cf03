"""The entry of `mnemogate`, which is `python -m gateway`: an interrupt ends it without a traceback."""

import os
import signal
import sys

EXIT_INTERRUPTED = 130  # as shells report it


def main() -> int:
    """Runs one command and returns its exit code."""
    # Of what a script runs in the background it is ignored from the start, and stays so.
    can_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if can_interrupt:
        # While modules are loaded nothing is open that had to be closed, and an import may lose an exception.
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    from gateway import cli

    try:
        if can_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        _drop_unwritten_lines()


def _drop_unwritten_lines() -> None:
    """Drops the lines that stderr, on a full disk, has no room for.

    They lie in its buffer, and Python's own last flush would fail for them and end the process with 120.
    """
    try:
        if sys.stderr is not None:  # as it is where the descriptor was closed from the start
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
