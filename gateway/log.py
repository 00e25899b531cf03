"""Structured logs: one JSON object a line, on stderr, and never what anybody said.

Access lines are gathered and written in one go a few times a second; a write for each request would cost more than
the rest of its bookkeeping.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

# Chosen: soon enough for somebody who watches.
FLUSH_S = 0.1


def write_stderr(data: bytes) -> None:
    """Writes whole lines. A stderr that nobody reads any more is no reason to stop serving."""
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        pass


class AccessLog:
    """Gathers lines and gives them to `write`, in order. `flush` writes those that wait."""

    def __init__(self, write: Callable[[bytes], object] = write_stderr, *, enabled: bool = True) -> None:
        self._write = write
        self._enabled = enabled
        self._lines: list[bytes] = []

    def line(self, record: dict[str, Any]) -> None:
        if not self._enabled:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._lines.append(orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._write(b"".join(lines))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": round(time.time(), 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure_logging(level: int = logging.WARNING) -> None:
    """Sends the standard library's logging to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
