"""Gateways that are forked from a process that has imported all of their modules: a tenth of the work of a new process.

The forked processes share what Python chooses when it starts (the seed of its hashes), and the objects that modules
make when they are imported, except those of `reseed_ids`. A test of the limits, the clock or the signals of a process
uses `process.serving(is_new=True)`.
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
# `patient` comes first: it changes the limits of other modules before they are imported. A gateway imports the SDKs
# only for batches, so they are named here.
_context.set_forkserver_preload(
    [PATIENT, "gateway.serve", "openai", "anthropic", "tests.gateway.preloaded", __name__]
)
# multiprocessing allows only one thread at a time to start a process or to poll one.
_lock = threading.Lock()


class ForkedProcess:
    """A forked process that runs a module as `python -m` does. It has the methods of `Popen` that tests use."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        log: Path,
        descriptors: Mapping[int, int] | None = None,
    ) -> None:
        """Starts the process.

        module: the name of the module to run.
        arguments: the arguments of its command line.
        cwd: the working directory.
        environ: the whole environment.
        log: the file to which its standard error is appended.
        descriptors: descriptor of the new process -> descriptor of this process that it gets. By default its standard
            output goes to `stdout`, and its standard input is empty.
        """
        reader, writer = _context.Pipe(duplex=False)
        streams = {1: writer}
        for child_descriptor, descriptor in (descriptors or {}).items():
            streams[child_descriptor] = Connection(os.dup(descriptor))
        self._process = _context.Process(
            target=_run, args=(module, [*arguments], cwd, dict(environ), streams, log), daemon=True
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
        returncode = self.poll()
        if returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _start(process: BaseProcess) -> None:
    """Starts a process through the fork server, which the first call starts."""
    python_path = os.environ.get("PYTHONPATH")
    main = sys.modules["__main__"]
    # The fork server inherits it: it can import this module from any working directory.
    os.environ["PYTHONPATH"] = str(ROOT)
    # multiprocessing has each forked process import the main module, which is pytest or a script here.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
        if python_path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = python_path


def _run(
    module: str,
    arguments: list[str],
    cwd: Path,
    environ: dict[str, str],
    streams: dict[int, Connection],
    log: Path,
) -> None:
    """Runs a module in the forked process, as a new process with this environment would.

    streams: descriptor of this process -> what it is replaced by.
    """
    with log.open("a") as errors:
        os.dup2(errors.fileno(), 2)
    for descriptor, stream in streams.items():
        os.dup2(stream.fileno(), descriptor)
        stream.close()
    # The objects of the fork server belong to its own descriptors.
    if 0 in streams:
        sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    reseed_ids()
    gc.freeze()  # a collection would copy the pages that the forked processes share
    if module == PATIENT:
        raise SystemExit(import_module(PATIENT).run())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def reseed_ids() -> None:
    """Reseeds the generators of ids that modules make at their import: no two gateways may make the same ids.

    `lifecycle/test_copies` finds all modules with such generators.
    """
    for module in (conversation_uid, middleware):
        module._id_generator.seed()
    connection._PROCESS = secrets.token_hex(4)
