"""Processes that begin with everything imported: each is forked off one that has imported it and does nothing else.

To import a gateway takes 0.7 s of processor time, and the tests start hundreds of processes that kill themselves, or
are killed. What is forked is a process as any other one: its environment, directory, output and modules are its own.

Nothing of it runs in the process of the tests, which has threads: `python -m tests.gateway.forked FD` is that process.
It forks a second one for each that it is asked for, which forks again, waits, and tells how the process ended.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import secrets
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from runpy import run_module
from typing import IO

_MAX_BYTES = 100_000  # of one message; an environment has some thousands


class Forked:
    """One such process, as `subprocess.Popen` would show it. stdout: what it prints."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        where: Path,
        environ: Mapping[str, str],
        errors: IO[str],
    ) -> None:
        """errors: takes its standard error."""
        self.returncode: int | None = None
        reading, writing = os.pipe()
        self._ended, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"module": module, "arguments": [*arguments], "where": str(where), "environ": {**environ}}
        with told:
            data = json.dumps(asked).encode()
            assert len(data) < _MAX_BYTES
            socket.send_fds(_parent(), [data], [writing, errors.fileno(), told.fileno()])
        os.close(writing)
        self.stdout = os.fdopen(reading)
        self.pid = int(self._told())

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()
        self._ended.close()

    def _told(self) -> str:
        return self._ended.recv(64).decode()

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit code; that of a signal is negative. Raises: TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ended, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._told())
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _parent() -> socket.socket:
    """The way to the process that forks, which has no threads. It ends when this one closes its end of the way."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.forked", str(its.fileno())],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[its.fileno()],
        start_new_session=True,  # what interrupts the tests lets them end their processes
    )
    its.close()
    atexit.register(lambda: (ours.close(), parent.wait()))
    return ours


def _serve(way: socket.socket) -> int:
    """Forks what it is asked for. In what is forked, returns its exit code."""
    # In the order of `python -m tests.gateway.patient`, which shortens the leases before they are looked at.
    from tests.gateway import patient

    for module in ("gateway.serve", "gateway.cli", "numpy"):
        import_module(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that wait for another one are not waited for
    while True:
        data, handed, _, _ = socket.recv_fds(way, _MAX_BYTES, 3)
        if not data:
            return 0
        if os.fork() == 0:
            break
        for each in handed:
            os.close(each)
    way.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, (out, errors, told) = json.loads(data), handed
    child = os.fork()
    if child:
        os.close(out)
        os.close(errors)
        os.write(told, b"%d" % child)
        _, status = os.waitpid(child, 0)
        os.write(told, b"%d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    for place, descriptor in ((1, out), (2, errors)):
        os.dup2(descriptor, place)
    for each in handed:
        os.close(each)
    # Those that are there were made for other files, which may have a place to go back to.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(asked["where"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    sys.argv = [asked["module"], *asked["arguments"]]
    _be_another()
    if asked["module"] == patient.__name__:
        return patient.run()
    run_module(asked["module"], run_name="__main__")
    return 0


def _be_another() -> None:
    """Takes chance of its own where a module has taken some when it was imported."""
    from storage.postgres import connection

    connection._PROCESS = secrets.token_hex(4)
    for module in [*sys.modules.values()]:
        for value in [*vars(module).values()]:
            if isinstance(value, random.Random):
                value.seed()


if __name__ == "__main__":
    raise SystemExit(_serve(socket.socket(fileno=int(sys.argv[1]))))
