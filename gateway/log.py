"""Structured logs: one JSON object a line, on stderr, without content and without keys.

Access lines are gathered and written in one go a few times a second; a write for each request would cost more than the
rest of its bookkeeping. Every other line that repeats is written once, and then counted: where a disk is full, each
turn logs the same fault, and the log must not fill the rest of the disk.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TextIO

import orjson

from gateway.masks import mask_keys

# Soon enough for an operator who watches; no measurement.
FLUSH_S = 0.1
# Seconds for which repetitions of a line are counted before their number is logged. No measurement.
COUNTED_S = 60.0


def write_stderr(data: bytes) -> None:
    """Writes whole lines. A stderr without a reader is no reason to stop serving."""
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        pass


class AccessLog:
    """Gathers lines and gives them to `write` a few times a second, in order.

    It masks nothing: the caller has masked the keys in each field into which a client may have put one.
    """

    def __init__(self, write: Callable[[bytes], object] = write_stderr, *, enabled: bool = True) -> None:
        self._write = write
        self.is_enabled = enabled
        self._lines: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Adds a line, which is written within `FLUSH_S`. It is not to be called unless `is_enabled`."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._lines.append(record)

    def flush(self) -> None:
        """Writes the lines that wait."""
        lines, self._lines = self._lines, []
        if lines:
            option = orjson.OPT_APPEND_NEWLINE
            self._write(b"".join([orjson.dumps(line, default=str, option=option) for line in lines]))


class RepeatHandler(logging.StreamHandler[TextIO]):
    """Writes a line when it first comes and counts its repetitions; once a minute the line is written with the count.

    The same text of the same logger is the same line. The event loop's clock ends the minute, so repetitions are
    counted in its thread alone; other threads write each line.
    """

    def __init__(self, stream: TextIO, counted_s: float = COUNTED_S) -> None:
        super().__init__(stream)
        self._counted_s = counted_s
        self._counts: dict[tuple[str, ...], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
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
    """Formats a record as one JSON object, with each key in it masked."""

    def format(self, record: logging.LogRecord) -> str:
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
    handler = RepeatHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # At this level the gateway logs little, such as the progress of batches; libraries log much.
    logging.getLogger("mnemogate").setLevel(logging.INFO)
