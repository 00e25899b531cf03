"""The log on stderr: JSON lines, and a line that repeats is counted."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from gateway.log import JsonFormatter, RepeatHandler
from tests.patience import PATIENCE_S

Lines = list[dict[str, Any]]


class Log:
    """A logger with a handler of its own. counted_s: how long a line is counted."""

    def __init__(self, counted_s: float) -> None:
        self._stream = io.StringIO()
        handler = RepeatHandler(self._stream, counted_s)
        handler.setFormatter(JsonFormatter())
        self.logger = logging.Logger("mnemogate")
        self.logger.addHandler(handler)

    def lines(self) -> Lines:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


def said(lines: Lines) -> list[tuple[str, int]]:
    return [(line["message"], line.get("again", 0)) for line in lines]


@pytest.fixture
def log() -> Log:
    """Counts for longer than a test takes."""
    return Log(3600.0)


async def test_a_line_is_written_once(log: Log) -> None:
    for _ in range(3):
        for why in ("full", "locked"):
            log.logger.warning("a turn was not written: %s", why)
    assert said(log.lines()) == [("a turn was not written: full", 0), ("a turn was not written: locked", 0)]


async def test_an_error_is_written_with_its_trace_and_another_error_is_another_line(log: Log) -> None:
    for kind in (ValueError, KeyError, ValueError):
        try:
            raise kind("x")
        except kind:
            log.logger.exception("a tool failed")
    traces = [line["trace"].splitlines()[-1] for line in log.lines()]
    assert traces == ["ValueError: x", "KeyError: 'x'"]


async def test_it_is_said_how_often_it_came_again_until_it_does_not() -> None:
    log = Log(0.001)
    for _ in range(4):
        log.logger.warning("full")
    async with asyncio.timeout(PATIENCE_S):
        while len(log.lines()) < 2:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.001)
        assert said(log.lines()) == [("full", 0), ("full", 3)]
        assert "trace" not in log.lines()[1]
        # After a while without it, it is a new line.
        while said(log.lines())[-1] != ("full", 0):
            await asyncio.sleep(0.05)
            log.logger.warning("full")


def test_without_an_event_loop_every_line_is_written(log: Log) -> None:
    for _ in range(2):
        log.logger.warning("full")
    assert said(log.lines()) == [("full", 0)] * 2


def test_the_gateways_own_progress_is_written_and_that_of_libraries_is_not() -> None:
    code = (
        "import logging; from gateway.log import configure_logging; configure_logging(); "
        "logging.getLogger('httpx').info('a library'); logging.getLogger('mnemogate').info('a batch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["a batch"]
