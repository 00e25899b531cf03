"""Fixtures for every test. The environment of the machine that runs the tests does not reach them."""

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
from tests.gateway import deadlines, made_once
from tests.postgres import own_sessions, postgres
from tests.server import HAS_AGENTS

__all__ = ["own_sessions", "postgres"]

# Some frameworks count their users.
COUNTING = {"HAYSTACK_TELEMETRY_ENABLED": "False", "AGNO_TELEMETRY": "false", "DO_NOT_TRACK": "1"}
os.environ.update(COUNTING)
# A test may start a dozen processes, and each would compile all of our modules. pytest itself would rewrite the asserts
# of all tests at each run, which takes as long as to collect them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell lets what it runs in the background ignore these, as `nohup` does, and a gateway of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# No test measures time, and an example takes long where the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
PROVIDER_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")
# They count more than the size of the terminal on which a command runs.
TERMINAL_VARIABLES = ("COLUMNS", "LINES")


# Where gateways of the tests keep their memory. With MNEMOGATE_TEST_DATABASE=postgresql all do it there, but for tests
# of what is SQLite's own; without it those do it in both that are marked `both`, and the others in SQLite.
KINDS = ("sqlite", "postgresql")
EVERYWHERE = os.environ.pop("MNEMOGATE_TEST_DATABASE", "sqlite")
if EVERYWHERE not in KINDS:
    raise pytest.UsageError(f"MNEMOGATE_TEST_DATABASE: expected sqlite or postgresql, saw {EVERYWHERE!r}")


# Folders whose tests start a gateway -> the stage that runs them; all others are of the stage core.
STAGES = {"agents": "gateway", "gateway": "gateway", "clients": "clients"}
# Folders in those whose tests start none.
PURE = ("agents/core", "agents/wire")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its stage, which is its folder: `pytest -m core`, `-m gateway`, `-m clients`."""
    for item in items:
        item.add_marker(_stage(item.path))
        if not HAS_AGENTS and item.get_closest_marker("agents"):
            item.add_marker(pytest.mark.skip("needs agents made over REST"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        _spread(items)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a file to one process, and the page's files all to the same one.

    Their browser is started once then, which takes as long as fifty tests, and looked after by a loop in the main
    thread, beside which others' tests fail.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            folder = path.rpartition("/")[0]
            return folder if folder == "tests/gateway/page" else path

        def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
            super().add_node_collection(node, collection)
            if node in self.registered_collections:
                self.registered_collections[node] = _Names(collection)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


class _Names(list[str]):
    """The names of all tests. The scheduler looks each up by `index`, which goes through them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._places = {name: place for place, name in enumerate(names)}

    def index(self, name: str, *_: Any) -> int:
        return self._places[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test in a process of pytest-xdist without reports of its start, and of fixtures that passed.

    The process that counts the tests needs none of them, and to send and read all takes as long as to run an empty
    test.
    """
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _spread(items: list[pytest.Item]) -> None:
    """Spreads the files of each folder over a run of several processes; those without a gateway come last.

    Tests of some folders wait much (for leases, for PostgreSQL) and would all wait at once. Files without a gateway
    are short, so that all processes end at about the same time. The page's, of which one process has all, come first.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    folders: dict[Path, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append(path)
    places = {path: n / len(paths) for paths in folders.values() for n, path in enumerate(paths)}
    places |= dict.fromkeys((path for path in files if path.parent.name == "page"), 0.0)
    order = sorted(files, key=lambda path: (_stage(path) == "core", places[path]))
    items[:] = [item for path in order for item in files[path]]


def pytest_collection() -> None:
    """Stops the garbage collector: it would go through all tests again and again while they are collected."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Sets the garbage collector as a gateway's process does: what thousands of tests are made of stays."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@cache
def _stage(path: Path) -> str:
    folders = path.relative_to(Path(__file__).parent).parts
    return "core" if "/".join(folders[:2]) in PURE else STAGES.get(folders[0], "core")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both") and EVERYWHERE == "sqlite":
        metafunc.parametrize("database_kind", KINDS, indirect=True)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Takes away what a command has set up in this process: it would write to the stderr of a test that is over."""
    root, gateway = logging.getLogger(), logging.getLogger("mnemogate")
    levels = root.level, gateway.level
    yield
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, RepeatHandler)]
    root.setLevel(levels[0])
    gateway.setLevel(levels[1])


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database in which `tests.stored.open_store` keeps what a test gives a file for."""
    kind: str = getattr(request, "param", EVERYWHERE)
    if kind == "postgresql" and _stage(request.path) != "core":
        if request.node.get_closest_marker("sqlite"):
            pytest.skip("SQLite's own: PostgreSQL's are in tests/storage/postgres and tests/gateway/two")
        monkeypatch.setattr(stored, "server", stored.Server(request.getfixturevalue("postgres")))
    return kind


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MNEMOGATE_", "OTEL_")) or name in (*PROVIDER_VARIABLES, *TERMINAL_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _certificates_are_not_read() -> Iterator[None]:
    """Gives every client an empty TLS context.

    No test speaks TLS, and each of a thousand clients would read all certificates of the machine.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", lambda *_, **__: context)
        yield


@pytest.fixture(autouse=True, scope="session")
def _searches_are_waited_for() -> Iterator[None]:
    """Lets no test find what a busy machine finds in time."""
    with pytest.MonkeyPatch.context() as patch:
        deadlines.lift(patch.setattr)
        yield


class _Hurried:
    """asyncio whose `sleep` takes a fiftieth of the time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


@pytest.fixture(autouse=True, scope="session")
def _servers_end_at_once() -> Iterator[None]:
    """Lets uvicorn look every 2 ms, and not every 100, whether it shall end. A thousand tests end a gateway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Hurried())
        yield


@pytest.fixture(autouse=True, scope="session")
def _what_all_gateways_have_is_made_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        made_once.share(patch.setattr)
        yield


@pytest.fixture
def upstream() -> Iterator[StrictUpstream]:
    with StrictUpstream() as strict:
        yield strict


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store on a database of its own, for tests of parts."""
    opened = await stored.open_store(tmp_path / "memory.db")
    yield opened
    await opened.close()
