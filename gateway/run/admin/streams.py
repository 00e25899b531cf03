"""The standard streams, as commands use them, and the files that take their place."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO

from gateway.errors import BadRequest, GatewayError

# As much as a gateway that serves takes at once; a line may be a whole request.
_LONGEST_LINE = 128 << 20


def open_closed_streams() -> None:
    """Opens the standard streams that were closed (`>&-`). Else the next file or socket would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # it gets the lowest number: that one


def recode(stream: IO[str], encoding: str | None = None, errors: str = "strict") -> None:
    """Gives a standard stream another encoding, or another way with what its encoding does not have."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=encoding, errors=errors)


def can_ask() -> bool:
    """Returns whether a person can read a question and answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def is_agreed(question: str) -> bool:
    """Asks a question on the terminal. Anything but "y" or "yes" is a no, the end of the input as well."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def opened(path: str | None, mode: str, standard: IO[str]) -> Iterator[IO[str]]:
    """Opens the file, or takes the standard stream without one, in UTF-8. Raises: GatewayError: it cannot be used."""

    def private(path: str, flags: int) -> int:
        # A new file is for this account alone, as the database is.
        return os.open(path, flags, 0o600)

    # Editors of Windows begin a file with a mark.
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    if not path:
        recode(standard, encoding)
    try:
        with open(path, mode, encoding=encoding, opener=private) if path else nullcontext(standard) as file:
            yield file
    except BrokenPipeError:
        raise
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise GatewayError(f"{path or standard.name}: {why}") from error


def pages_of(file: IO[str]) -> Iterator[list[str]]:
    """Splits lines into requests: 200 lines or 1 MiB each, but a whole line at least. Raises: BadRequest."""
    page: list[str] = []
    size = 0
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise BadRequest(f"This is no export: a line has more than {_LONGEST_LINE:,} characters.")
        page.append(line.rstrip("\n"))
        size += len(line)
        if len(page) >= 200 or size >= 1 << 20:
            yield page
            page, size = [], 0
    if page:
        yield page
