"""Runs the tests in several processes: `pytest --processes 4`.

They are copies of the process that collected the tests. With pytest-xdist each process would collect them all again,
which takes 20 s of its processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

_context = multiprocessing.get_context("fork")
# A report, or None at the end of a test; then the test's id and location.
Message = tuple[dict[str, Any] | None, str, tuple[str, int | None, str]]
_NUMBER = struct.Struct("I")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=0, help="run the tests in this many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Runs the collected tests, all tests of a group in one process, and reports them here.

    A test that has no report in the end, since its process died, fails.
    """
    count = session.config.option.processes
    if not count or session.testsfailed or session.config.option.collectonly:
        return None
    groups = [list(items) for _, items in groupby(session.items, key=_group)]
    # Each process reads the number of its next group. The kernel gives no number to two of them.
    numbers, numbers_writer = os.pipe()
    os.set_blocking(numbers_writer, False)
    all_numbers = b"".join(map(_NUMBER.pack, range(len(groups))))
    assert os.write(numbers_writer, all_numbers) == len(all_numbers), "too many files for one pipe"
    os.close(numbers_writer)
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    processes, readers = [], []
    for number in range(count):
        reader, writer = _context.Pipe(duplex=False)
        process = _context.Process(target=_work, args=(session, groups, numbers, writer, number))
        process.start()
        writer.close()
        processes.append(process)
        readers.append(reader)
    os.close(numbers)
    try:
        finished = set(_report(session, readers))
        for item in session.items:
            if item.nodeid not in finished:
                _report_lost(item)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
    return True


def _group(item: pytest.Item) -> Path:
    """The page's browser takes as long to start as fifty tests, so one process runs all files of the page.

    It is served by an event loop in the main thread, next to which tests of other folders fail.
    """
    return item.path.parent if item.path.parent.name == "page" else item.path


def _report(session: pytest.Session, readers: list[Connection]) -> Iterator[str]:
    """Reports what the processes send until all have ended. Yields the ids of the tests that are over."""
    hook = session.config.hook
    while readers:
        for reader in wait(readers):
            assert isinstance(reader, Connection)
            try:
                message: Message | None = reader.recv()
            except EOFError:
                message = None
            if message is None:
                readers.remove(reader)
                continue
            data, nodeid, location = message
            if data is None:
                hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
                yield nodeid
            else:
                report = hook.pytest_report_from_serializable(config=session.config, data=data)
                hook.pytest_runtest_logreport(report=report)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)


def _report_lost(item: pytest.Item) -> None:
    text = "no result: the process died that ran this test or was to run it next"
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
    item.ihook.pytest_runtest_logreport(report=report)


# -- in a copy


def _work(
    session: pytest.Session,
    groups: Sequence[Sequence[pytest.Item]],
    numbers: int,
    writer: Connection,
    own_number: int,
) -> None:
    config = session.config
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(_Sender(config, writer))
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # into the file of the process that collected
    capture.start_global_capturing()
    folders: Any = config._tmp_path_factory  # type: ignore[attr-defined]
    folders._basetemp = folders.getbasetemp() / f"process{own_number}"
    folders._basetemp.mkdir(mode=0o700)
    waiting = _next_items(groups, numbers)
    item = next(waiting, None)
    while item is not None:
        following = next(waiting, None)
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
    writer.send(None)


def _next_items(groups: Sequence[Sequence[pytest.Item]], numbers: int) -> Iterator[pytest.Item]:
    while data := os.read(numbers, _NUMBER.size):
        yield from groups[_NUMBER.unpack(data)[0]]


class _Sender:
    """The plugin of a copy that sends reports to the process that collected."""

    def __init__(self, config: pytest.Config, writer: Connection) -> None:
        self._config = config
        self._writer = writer

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Runs a test. Fixtures that passed need no report: to send and read it takes as long as an empty test."""
        for report in runtestprotocol(item, log=False, nextitem=nextitem):
            if report.when == "call" or not report.passed:
                item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._writer.send((data, report.nodeid, report.location))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._writer.send((None, nodeid, location))
