"""The standard streams, as commands use them, and the files that take their place."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import IO

from gateway.errors import BadRequest, GatewayError

# The longest line of an import.
MAX_LINE_BYTES = 128 << 20
# The lines after which a page of lines ends. Not measured: smaller pages cost more requests, larger ones more memory.
_PAGE_LINES = 200
# The bytes after which a page of lines ends.
_PAGE_BYTES = 1 << 20
# The most bytes of a page in the arguments of an operation. They are JSON, where a quote or a backslash of a line takes
# two bytes.
MAX_PAGE_JSON_BYTES = 2 * (_PAGE_BYTES + MAX_LINE_BYTES)


def open_closed_streams() -> None:
    """Opens the standard streams that were closed (`>&-`), so that no file or socket gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # gets the lowest number, which is free


def recode(stream: IO[str], encoding: str | None = None, errors: str = "strict") -> None:
    """Gives a standard stream another encoding, or another way to handle characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=encoding, errors=errors)


@contextmanager
def open_input(path: str | None) -> Iterator[IO[str]]:
    """Opens a file for reading in UTF-8. path: None or "": the standard input.

    Raises: GatewayError: the file cannot be read.
    """
    # Editors of Windows begin a file with a byte order mark.
    if not path:
        recode(sys.stdin, "utf-8-sig")
    with (
        _map_errors(path or "standard input"),
        open(path, encoding="utf-8-sig") if path else nullcontext(sys.stdin) as file,
    ):
        yield file


@contextmanager
def open_output(path: str | None, *, may_replace: bool) -> Iterator[IO[str]]:
    """Opens a new file for this account alone, as the database is, or takes the standard output, in UTF-8.

    The file gets its name when all of it is on disk. Until then, and if that fails, a file of the same name stays.

    may_replace: True if the new file may replace a file or a link of the same name.

    Raises: GatewayError: the file cannot be opened or written.
    """
    if not path:
        recode(sys.stdout, "utf-8")
        with _map_errors("standard output"):
            yield sys.stdout
        return
    with _map_errors(path):
        _check_free(path, may_replace=may_replace)
        unfinished_path = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(unfinished_path, flags, 0o600), "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # Again, since the writing may have taken long.
            _check_free(path, may_replace=may_replace)
            os.replace(unfinished_path, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(unfinished_path)


def _check_free(path: str, *, may_replace: bool) -> None:
    """Checks that a file may be written there. Raises: GatewayError: something is there that may not be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise GatewayError(f"{path} is there, and is not a file. Name another one.")
    if not may_replace:
        raise GatewayError(f"{path} is there already. Name another file, or add --force to replace it.")


@contextmanager
def _map_errors(name: str) -> Iterator[None]:
    """Raises a GatewayError that names the file in place of the errors of its block."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise GatewayError(f"{name}: {reason}") from error


def read_line_pages(file: IO[str]) -> Iterator[list[str]]:
    """Yields the lines of a file in pages, one for each request to a gateway. Raises: BadRequest: a line is too long.

    A page ends with the line that reaches `_PAGE_LINES` or `_PAGE_BYTES`.
    """
    page: list[str] = []
    page_bytes = 0
    line_number = 0
    # As many characters have as many bytes or more.
    while line := file.readline(MAX_LINE_BYTES + 1):
        line_number += 1
        line_bytes = len(line.encode())
        if line_bytes > MAX_LINE_BYTES:
            raise BadRequest(f"This is no export: line {line_number} has more than {MAX_LINE_BYTES:,} bytes.")
        page.append(line.rstrip("\n"))
        page_bytes += line_bytes
        if len(page) >= _PAGE_LINES or page_bytes >= _PAGE_BYTES:
            yield page
            page = []
            page_bytes = 0
    if page:
        yield page
