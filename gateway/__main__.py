"""The entry of `mnemogate`, which is `python -m gateway`: an interrupt ends it without a traceback."""

import os
import signal

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


if __name__ == "__main__":
    raise SystemExit(main())
