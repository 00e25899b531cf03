"""Gateways that begin as copies of a process that has imported all of them: a tenth of the work of a new process.

The copies have in common what Python chooses when it starts (the seed of its hashes), and what modules make when they
are imported, but for `make_anew`. The limits, the clock and the signals of a process of its own are for
`process.serving(is_new=True)`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Self

from gateway.run.memory import conversation_uid
from gateway.web import middleware
from storage.postgres import connection

ROOT = Path(__file__).parents[2]
PATIENT = "tests.gateway.patient"
_context = multiprocessing.get_context("forkserver")
# The first changes others' limits, which is to be done before these are imported. A gateway imports the SDKs only for
# batches.
_context.set_forkserver_preload(
    [PATIENT, "gateway.serve", "openai", "anthropic", "tests.gateway.preloaded", __name__]
)
# Only one thread at a time may ask what became of a process.
_lock = threading.Lock()


class Forked:
    """What of `subprocess.Popen` the tests use, of a copy that runs a module as `python -m` does."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        where: Path,
        environ: Mapping[str, str],
        log: Path,
        descriptors: Mapping[int, int] | None = None,
    ) -> None:
        """Starts the copy.

        descriptors: the copy's -> this process's. Without them it reads nothing, and writes to `stdout` and the log.
        """
        reader, writer = _context.Pipe(duplex=False)
        streams = {
            1: writer,
            **{there: Connection(os.dup(here)) for there, here in (descriptors or {}).items()},
        }
        self._process = _context.Process(
            target=_run, args=(module, [*arguments], where, dict(environ), streams, log), daemon=True
        )
        with _lock:
            _start(self._process)
        for stream in (writer, *streams.values()):
            stream.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        with _lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _start(process: BaseProcess) -> None:
    """Starts a copy.

    The fork server finds this module wherever the tests are run, and does not import the program that runs.
    """
    before, main = os.environ.get("PYTHONPATH"), sys.modules["__main__"]
    os.environ["PYTHONPATH"] = str(ROOT)
    # Each copy would import it by its name first.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(
    module: str,
    arguments: list[str],
    where: Path,
    environ: dict[str, str],
    streams: dict[int, Connection],
    log: Path,
) -> None:
    """Runs a module in the copy, as a new process with these streams and this environment would."""
    with log.open("a") as errors:
        os.dup2(errors.fileno(), 2)
    for descriptor, stream in streams.items():
        os.dup2(stream.fileno(), descriptor)
        stream.close()
    # As a new process has them.
    if 0 in streams:
        sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(where)
    sys.argv = [module, *arguments]
    make_anew()
    gc.freeze()  # what it shares with other copies
    if module == PATIENT:
        raise SystemExit(import_module(PATIENT).run())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def make_anew() -> None:
    """Makes anew what no two gateways may share. `lifecycle/test_copies` finds the modules that have such things."""
    for module in (conversation_uid, middleware):
        module._ids.seed()
    connection._PROCESS = secrets.token_hex(4)
