"""The plugin of all tests: stages, databases, what is shared for speed, and fixtures.

The environment variables and signal handlers of the machine do not reach the tests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvicorn.server
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings

from gateway.log import RepeatHandler
from storage.sql.store import Store
from tests import stored
from tests.doubles.upstream import StrictUpstream
from tests.gateway import deadlines, startup_caches
from tests.postgres import own_sessions, postgres
from tests.server import HAS_AGENTS

__all__ = ["own_sessions", "postgres"]

# Frameworks that the tests use send no telemetry.
TELEMETRY_OFF = {"HAYSTACK_TELEMETRY_ENABLED": "False", "AGNO_TELEMETRY": "false", "DO_NOT_TRACK": "1"}
os.environ.update(TELEMETRY_OFF)
# Without compiled files each process that a test starts compiles all modules, and each run of pytest rewrites the
# asserts of all tests, which takes as long as their collection.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A background job of a shell, and a command under `nohup`, ignore these signals. A test's gateway would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# No test measures time, and an example may take long on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
PROVIDER_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")
# They take precedence over the size of the terminal on which a command runs.
TERMINAL_VARIABLES = ("COLUMNS", "LINES")
# The loggers that a command sets up, with their levels before.
LOGGER_LEVELS = [(logger, logger.level) for logger in (logging.getLogger(), logging.getLogger("mnemogate"))]
# The databases in which tests' gateways store their memory. The default is SQLite, and both for a test with the mark
# `both`. With MNEMOGATE_TEST_DATABASE=postgresql all use PostgreSQL, and tests with the mark `sqlite` are skipped.
DATABASES = ("sqlite", "postgresql")
DEFAULT_DATABASE = os.environ.pop("MNEMOGATE_TEST_DATABASE", "sqlite")
if DEFAULT_DATABASE not in DATABASES:
    raise pytest.UsageError(
        f"MNEMOGATE_TEST_DATABASE: expected sqlite or postgresql, saw {DEFAULT_DATABASE!r}"
    )

# Folders of tests that start a gateway -> the stage that runs them; all other folders are of the stage core.
STAGES = {"agents": "gateway", "gateway": "gateway", "clients": "clients"}
# Folders within these that start no gateway, so they are of the stage core.
CORE_FOLDERS = ("agents/core", "agents/wire")
# Folders of which pytest-xdist runs all files in the same process.
IN_ONE_PROCESS = ("tests/gateway/page", "tests/clients", "tests")
# Other folders with tests that need no gateway and no database: each of their files takes a second or two.
SHORT_FOLDERS = ("core", "dialects")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the stage of its folder: `pytest -m core`, `-m gateway`, `-m clients`.

    Leaves out the cases that a mark `both` runs over SQLite alone.
    """
    _leave_out_cases(items)
    for item in items:
        item.add_marker(_stage(item.path))
        if not HAS_AGENTS and item.get_closest_marker("agents"):
            item.add_marker(pytest.mark.skip("needs agents of the agents API"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        _spread(items)


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist, which may be absent
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Runs each file in one process, and all files of a folder of `IN_ONE_PROCESS` in the same process.

    The page's browser takes as long to start as fifty tests, so it is started once. It is served by an event loop in
    the main thread, next to which tests of other folders fail. The clients' frameworks are imported once, too, since to
    import them takes a third of their tests' time. The tests of the tree itself parse each module once.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            folder = path.rpartition("/")[0]
            return folder if folder in IN_ONE_PROCESS else path

        def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
            super().add_node_collection(node, collection)
            if node in self.registered_collections:
                self.registered_collections[node] = _Names(collection)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


class _Names(list[str]):
    """The names of all tests. The scheduler calls `index` for each, which in a list takes time for each name before."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._indices = {name: index for index, name in enumerate(names)}

    def index(self, name: str, *_: Any) -> int:
        return self._indices[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test in a worker of pytest-xdist, without reports of its start and of fixtures that passed.

    The controller needs none of these reports, and to send and read them takes as long as to run an empty test.
    """
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _spread(items: list[pytest.Item]) -> None:
    """Orders the tests for several processes: the files of each folder are spread evenly over the run.

    Tests of some folders wait long (for leases, for PostgreSQL), and would otherwise all wait at once. The page's files
    come first, since a single process runs them all. Files without a gateway and a database come last: they are short,
    so all processes end at about the same time.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    folders: dict[Path, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append(path)
    positions = {path: n / len(paths) for paths in folders.values() for n, path in enumerate(paths)}
    positions |= dict.fromkeys((path for path in files if path.parent.name == "page"), 0.0)
    order = sorted(files, key=lambda path: (_is_short(path), positions[path]))
    items[:] = [item for path in order for item in files[path]]


def pytest_collection() -> None:
    """Disables the garbage collector, which would visit all tests again and again while they are collected."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Sets the garbage collector as a gateway's process does, and exempts the objects of the collected tests.

    To look through them first would take each process a second, and free little.
    """
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@cache
def _stage(path: Path) -> str:
    folders = path.relative_to(Path(__file__).parent).parts
    return "core" if "/".join(folders[:2]) in CORE_FOLDERS else STAGES.get(folders[0], "core")


def _is_short(path: Path) -> bool:
    folders = path.relative_to(Path(__file__).parent).parts
    return folders[0] in SHORT_FOLDERS or "/".join(folders[:2]) in CORE_FOLDERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both") and DEFAULT_DATABASE == "sqlite":
        metafunc.parametrize("database_kind", DATABASES, indirect=True)


def _leave_out_cases(items: list[pytest.Item]) -> None:
    """Leaves out the cases of PostgreSQL that a mark `both` does not name.

    `both(user=["alice"])` names the cases with this value of the parameter `user`, `both` without arguments all.

    Raises: pytest.UsageError: a mark names none of the cases that there are.
    """
    left_out = [item for item in items if _uses_postgresql(item) and not _is_named(item)]
    names = {item.nodeid.partition("[")[0] for item in left_out}
    items[:] = [item for item in items if not _uses_postgresql(item) or _is_named(item)]
    names -= {item.nodeid.partition("[")[0] for item in items if _uses_postgresql(item)}
    if names:
        raise pytest.UsageError(f"`both` names no case of PostgreSQL that there is: {sorted(names)}")


def _uses_postgresql(item: pytest.Item) -> bool:
    """Returns whether a case is the one of PostgreSQL among those that a mark makes."""
    return hasattr(item, "callspec") and item.callspec.params.get("database_kind") == "postgresql"


def _is_named(item: Any) -> bool:
    """Returns whether the mark `both` names a case, if there is that mark."""
    mark = item.get_closest_marker("both")
    return mark is None or all(
        item.callspec.params.get(name) in values for name, values in mark.kwargs.items()
    )


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest) -> str:
    """Returns the database that `tests.stored.open_store` opens, and lets it open PostgreSQL if it is that."""
    kind: str = getattr(request, "param", DEFAULT_DATABASE)
    if kind == "postgresql" and _stage(request.path) != "core":
        if request.node.get_closest_marker("sqlite"):
            pytest.skip(
                "for SQLite alone; those for PostgreSQL are in tests/storage/postgres and tests/gateway/two"
            )
        patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        patch.setattr(stored, "server", stored.Server(request.getfixturevalue("postgres")))
    return kind


# What holds for all tests is set by hooks: each fixture that all tests use adds a twentieth to an empty test.


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Sets what holds for all tests of this process.

    - Environment variables that change what a gateway does are removed.
    - Every client gets an empty TLS context: a thousand clients would each read all certificates of the machine.
    - The deadlines of tools are lifted, so that no result depends on how busy the machine is.
    - uvicorn checks every 2 ms, instead of every 100 ms, whether it must stop: a thousand tests stop a gateway.
    - What each gateway computes alike from the program's files is cached (`startup_caches`).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("MNEMOGATE_", "OTEL_")) or name in (*PROVIDER_VARIABLES, *TERMINAL_VARIABLES):
                patch.delenv(name)
        patch.setattr(ssl, "create_default_context", lambda *_, **__: context)
        deadlines.lift(patch.setattr)
        patch.setattr(uvicorn.server, "asyncio", _FastSleepAsyncio())
        startup_caches.install(patch.setattr)
        return (yield)


class _FastSleepAsyncio:
    """The module `asyncio` with a `sleep` that takes a fiftieth of the time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Restores logging after a test that ran a command: the command's handler writes to the stderr of that test."""
    for logger, level in LOGGER_LEVELS:
        for handler in logger.handlers[:]:
            if isinstance(handler, RepeatHandler):
                logger.removeHandler(handler)
        if logger.level != level:
            logger.setLevel(level)


@pytest.fixture
def upstream() -> Iterator[StrictUpstream]:
    """A model that answers what the test queues."""
    with StrictUpstream() as strict:
        yield strict


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store on a database of its own, for tests without a gateway."""
    opened = await stored.open_store(tmp_path / "memory.db")
    yield opened
    await opened.close()
