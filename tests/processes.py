"""`--processes N`: runs the tests in N copies of the process that has collected them, each a file at a time.

Processes that import and collect for themselves, as those of pytest-xdist, take nine seconds of a processor and half a
GB each for that. What a copy reports is shown and counted here, as pytest does it. A copy that breaks off fails the
test it was at; another one goes on with what it had left.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from io import UnsupportedOperation
from itertools import groupby
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from tempfile import TemporaryFile
from typing import Any

import pytest

from tests.gateway.forked import make_anew

_context = multiprocessing.get_context("fork")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=0, metavar="N", help="run the tests in N processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if not option.processes or option.collectonly or session.testsfailed:
        return None  # pytest's own loop, which says what could not be collected
    _Run(session).perform(option.processes)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    return True


@dataclass
class _Copy:
    """A copy, as the process that has collected the tests knows it."""

    process: ForkProcess
    # Indexes of tests in `session.items`: the one it is at, and those it was given and has not begun.
    left: deque[int] = field(default_factory=deque)


class _Run:
    """The tests of one run, handed out to copies."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._hook = session.config.hook
        files = groupby(range(len(session.items)), key=lambda index: session.items[index].path)
        self._files = deque(deque(indexes) for _, indexes in files)
        self._copies: dict[Connection, _Copy] = {}
        self._started = 0

    def perform(self, processes: int) -> None:
        # The copies' folders are in this one's, which goes when all have passed.
        self._session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        try:
            for _ in range(min(processes, len(self._files))):
                self._start()
            while self._copies:
                for pipe in wait(list(self._copies)):
                    assert isinstance(pipe, Connection)
                    self._receive(pipe)
        finally:
            for pipe, copy in self._copies.items():
                pipe.close()
                copy.process.join()

    def _start(self) -> None:
        here, there = _context.Pipe()
        others = [*self._copies, here]
        process = _context.Process(target=_run_copy, args=(self._session, there, others, self._started))
        process.start()
        there.close()
        self._copies[here] = _Copy(process)
        self._started += 1

    def _receive(self, pipe: Connection) -> None:
        copy = self._copies[pipe]
        try:
            hook, values = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._end(pipe)
            return
        if hook is None:  # it asks for a file
            if self._session.shouldfail:
                self._files.clear()
            given = self._files.popleft() if self._files else deque()
            copy.left += given
            pipe.send([*given])
            return
        if hook == "pytest_runtest_logreport":
            data = values["report"]
            config = self._session.config
            values["report"] = self._hook.pytest_report_from_serializable(config=config, data=data)
        elif hook == "pytest_runtest_logfinish":
            copy.left.popleft()
        getattr(self._hook, hook)(**values)

    def _end(self, pipe: Connection) -> None:
        copy = self._copies.pop(pipe)
        pipe.close()
        copy.process.join()
        if not copy.left:
            return
        item = self._session.items[copy.left.popleft()]
        why = f"The process that ran this test ended with {copy.process.exitcode}."
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")
        self._hook.pytest_runtest_logreport(report=report)
        if copy.left:
            self._files.appendleft(copy.left)
        if self._files:
            self._start()


def _run_copy(session: pytest.Session, pipe: Connection, others: list[Connection], number: int) -> None:
    """Runs in a copy what it is given. others: ends of pipes that are not its own."""
    for each in others:
        each.close()
    make_anew()
    plugins = session.config.pluginmanager
    folders: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
    folders._basetemp = folders.mktemp(f"process-{number}", numbered=False)
    captured = plugins.getplugin("capturemanager")._global_capturing
    for each in filter(None, (captured.out, captured.err)):
        # Else all copies would have one file for what they print. Modules may have it as their `sys.stderr`.
        with suppress(UnsupportedOperation), TemporaryFile() as own:
            os.dup2(own.fileno(), each.tmpfile.fileno(), inheritable=False)
    terminal = plugins.unregister(name="terminalreporter")
    plugins.register(_Reporter(session.config, pipe, terminal._tw), "terminalreporter")
    given: deque[int] = deque()

    def next_item() -> pytest.Item | None:
        if not given:
            pipe.send((None, {}))
            given.extend(pipe.recv())
        return session.items[given.popleft()] if given else None

    try:
        item = next_item()
        while item is not None:
            following = next_item()
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
    finally:
        # Where it is broken off: what its tests have in common is ended.
        plugins.getplugin("runner").pytest_sessionfinish(session)


class _Reporter:
    """What a copy has in place of pytest's terminal: sends what that would show.

    writer: where pytest-timeout shows what a test that hangs is at.
    """

    def __init__(self, config: pytest.Config, pipe: Connection, writer: Any) -> None:
        self._config = config
        self._pipe = pipe
        self._tw = writer

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._pipe.send(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._pipe.send(("pytest_runtest_logreport", {"report": data}))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._pipe.send(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))
