"""Structured logs: one JSON object a line, on stderr, without content and without keys.

Access lines are gathered and written in one go a few times a second; a write for each request would cost more than the
rest of its bookkeeping. Every other line that repeats is written once, and then counted: where a disk is full, each
turn logs the same fault, and the log must not fill the rest of the disk.
"""

from __future__ import annotations

import asyncio
import logging
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Final, TextIO

import orjson

from gateway.masks import mask_keys

# Soon enough for an operator who watches. Not measured: a shorter time writes fewer lines at once.
FLUSH_S = 0.1
# Seconds for which repetitions of a line are counted before their number is logged. Not measured: an operator reads the
# number this much later.
_COUNTED_S = 60.0
# The most bytes of lines that stderr does not take. Chosen: some 2,500 lines.
MAX_HELD_BYTES = 1024 * 1024
# A pipe that takes anything takes this much at once, so that the write does not wait.
_PIECE_BYTES = select.PIPE_BUF


class LogOutput:
    """Writes whole lines to stderr, and never waits for a reader of stderr.

    A paused terminal and a collector that hangs take nothing more, and a plain write would stop the event loop. What
    stderr does not take is held and written later. Lines beyond `MAX_HELD_BYTES` are dropped, and a line of the log has
    their number. A stderr that is closed is no reason to stop serving.
    """

    def __init__(self, stream: TextIO | None = None, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        """Makes an output that holds nothing yet.

        stream: the file that gets the lines in place of stderr.
        max_held_bytes: the most bytes that are held while the stream takes none.
        """
        self._stream = stream
        self._max_held_bytes = max_held_bytes
        # Lines are written by the event loop and by other threads.
        self._lock = threading.Lock()
        # The bytes that the stream has not taken.
        self._held = bytearray()
        # The number of lines that were dropped since the stream last took all bytes.
        self._dropped_lines = 0
        # True if the event loop will call `_retry`.
        self._will_retry = False

    def write(self, text: str) -> None:
        """Writes whole lines, as `write_bytes` does. `logging` calls it."""
        self.write_bytes(text.encode())

    def write_bytes(self, lines: bytes) -> None:
        """Writes whole lines as far as the stream takes them now, and holds the rest."""
        with self._lock:
            self._write_held()
            if len(self._held) + len(lines) > self._max_held_bytes and self._held:
                self._dropped_lines += lines.count(b"\n")
            else:
                self._held += lines
                self._write_held()
            if self._held and not self._will_retry:
                # In a thread without a loop nothing is scheduled: the next line retries.
                with suppress(RuntimeError):
                    asyncio.get_running_loop().call_later(FLUSH_S, self._retry)
                    self._will_retry = True

    def _retry(self) -> None:
        self._will_retry = False
        self.write_bytes(b"")

    def _write_held(self) -> None:
        """Writes the held lines, as far as the stream takes them without a wait."""
        stream = self._stream or sys.stderr
        try:
            while self._held and _takes_data(stream):
                piece = bytes(self._held[:_PIECE_BYTES])
                del self._held[:_PIECE_BYTES]
                stream.buffer.write(piece)
                stream.buffer.flush()
                if self._dropped_lines and not self._held:
                    message = (
                        f"{self._dropped_lines} lines of the log are missing here, since stderr was not read."
                    )
                    self._dropped_lines = 0
                    record = {"at": round(time.time(), 3), "level": "warning", "message": message}
                    self._held += orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except (OSError, ValueError):
            self._held.clear()


def _takes_data(stream: TextIO) -> bool:
    """Returns whether a file takes `_PIECE_BYTES` at once."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # the stream has no descriptor
        return True
    return bool(poll.poll(0))


OUTPUT: Final = LogOutput()


class AccessLog:
    """Gathers lines and gives them to `write` a few times a second, in order.

    It masks nothing: the caller has masked the keys in each field into which a client may have put one.
    """

    def __init__(
        self, write: Callable[[bytes], object] = OUTPUT.write_bytes, *, is_enabled: bool = True
    ) -> None:
        """Begins without lines.

        write: a function that writes whole lines.
        is_enabled: False if the caller is to add no lines.
        """
        self._write = write
        self.is_enabled = is_enabled
        # The lines that wait.
        self._lines: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Adds a line, which is written within `FLUSH_S`. It is not to be called unless `is_enabled`."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._lines.append(record)

    def flush(self) -> None:
        """Writes the lines that wait."""
        lines = self._lines
        self._lines = []
        if lines:
            option = orjson.OPT_APPEND_NEWLINE
            self._write(b"".join([orjson.dumps(line, default=str, option=option) for line in lines]))


class RepeatHandler(logging.StreamHandler[TextIO | LogOutput]):
    """Writes a line when it first comes and counts its repetitions; once a minute the line is written with the count.

    The same text of the same logger is the same line. The event loop's clock ends the minute, so repetitions are
    counted in its thread alone; other threads write each line.
    """

    def __init__(self, stream: TextIO | LogOutput, counted_s: float = _COUNTED_S) -> None:
        super().__init__(stream)
        self._counted_s = counted_s
        # The number of repetitions of each line that is counted.
        self._counts: dict[tuple[str, ...], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, or counts it if it repeats a record of the last `counted_s` seconds."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            super().emit(record)
            return
        error = record.exc_info[0] if record.exc_info else None
        line = (record.name, str(record.msg), str(record.args), str(error))
        if line in self._counts:
            self._counts[line] += 1
            return
        super().emit(record)
        # Without its error, which would hold the frames of its traceback while repetitions are counted.
        without_error = {"exc_info": None, "exc_text": None, "stack_info": None}
        self._begin_count(loop, line, logging.makeLogRecord({**record.__dict__, **without_error}))

    def _begin_count(
        self, loop: asyncio.AbstractEventLoop, line: tuple[str, ...], record: logging.LogRecord
    ) -> None:
        self._counts[line] = 0
        loop.call_later(self._counted_s, self._write_count, loop, line, record)

    def _write_count(
        self, loop: asyncio.AbstractEventLoop, line: tuple[str, ...], record: logging.LogRecord
    ) -> None:
        if repetitions := self._counts.pop(line):
            record.again = repetitions
            with self.lock or nullcontext():
                super().emit(record)
            self._begin_count(loop, line, record)


class JsonFormatter(logging.Formatter):
    """Formats records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one JSON object, with each key in it masked."""
        line: dict[str, Any] = {
            "at": round(time.time(), 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _as_utf8(record.getMessage()),
        }
        if repetitions := getattr(record, "again", 0):
            line["again"] = repetitions
        if record.exc_info:
            line["trace"] = _as_utf8(self.formatException(record.exc_info))
        return mask_keys(orjson.dumps(line, default=str)).decode()


def _as_utf8(text: str) -> str:
    """Returns a text in which a name of a file that is no UTF-8 has escapes in place of its bytes (`\\udcff`)."""
    return text.encode(errors="backslashreplace").decode()


def configure_logging() -> None:
    """Sends the standard library's logging to stderr as JSON lines."""
    handler = RepeatHandler(OUTPUT)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # At this level the gateway logs little, such as the progress of batches; libraries log much.
    logging.getLogger("mnemogate").setLevel(logging.INFO)
