"""The entry of `mnemogate`, which is `python -m gateway`: an interrupt ends it without a traceback."""

import os
import sys

from gateway.loading import EXIT_INTERRUPTED, loading


def main() -> int:
    """Runs one command and returns its exit code."""
    with loading():
        from gateway import cli

    try:
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
