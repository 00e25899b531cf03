"""`mnemogate serve` as a process of its own, for tests that kill or stop it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import openai

from tests import stored
from tests.gateway.forked import ROOT, Forked
from tests.patience import PATIENCE_S
from tests.server import Listener

# What may be run in a copy of a process with the limits of `patient`.
COPIED = (
    "tests.gateway.patient",
    "tests.agents.kill_process",
    "tests.gateway.background.batch_process",
    "tests.gateway.background.job_process",
)


def command(
    *arguments: str, where: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one command of the command line, in a copy (`forked`)."""
    whole = {**os.environ, **place_of(where, arguments), **(environ or {})}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with Forked("gateway", without_file(arguments), where, whole, log) as child:
            said = child.stdout.read()
            code = child.wait(PATIENCE_S)
        return subprocess.CompletedProcess(arguments, code, said, log.read_text())


def place_of(where: Path, arguments: Sequence[str]) -> dict[str, str]:
    """The variable that names the database which stands in for the file of a command, where the test has a server."""
    if stored.server is None:
        return {}
    return {"MNEMOGATE_DATABASE_URL": stored.server.url_of(_file_of(where, arguments))}


def _file_of(where: Path, arguments: Sequence[str]) -> Path:
    """The database file of a command, unless its settings name one."""
    return where / (arguments[arguments.index("--db") + 1] if "--db" in arguments else "mnemogate.db")


def without_file(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, without the file for which a database stands in."""
    if stored.server is None or "--db" not in arguments:
        return [*arguments]
    at = arguments.index("--db")
    return [*arguments[:at], *arguments[at + 2 :]]


@dataclass
class Process(Listener):
    """A gateway in a process of its own, whose standard error goes to `log`."""

    child: subprocess.Popen[str] | Forked
    port: int
    log: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="sk-app", max_retries=0, timeout=PATIENCE_S
        )

    def kill(self) -> None:
        """Sends SIGKILL, and returns when the process is gone."""
        self.child.kill()
        self.child.wait(PATIENCE_S)


@contextmanager
def serving(
    where: Path,
    *arguments: str,
    settings: str = "",
    module: str = "tests.gateway.patient",
    environ: Mapping[str, str] | None = None,
    is_new: bool = False,
    root: Path = ROOT,
) -> Iterator[Process]:
    """Serves from that directory, on any port. settings: text of mnemogate.toml. module: what is run.

    root: the checkout that serves; another one may be of another version.
    is_new: never as a copy (`forked`), for tests of what a process has of its own. A copy finds a file of the present
    schema, unless the settings or the environment name a database.
    """
    (where / "mnemogate.toml").write_text(settings)
    log = where / "serve.log"
    whole = {**place_of(where, arguments), **(environ or {})}
    is_named = "[database]" in settings or any(name.startswith("MNEMOGATE_DATABASE_") for name in whole)
    if module in COPIED and not (is_new or is_named):
        stored.lay_new_file(_file_of(where, arguments))
    with started(
        module,
        ["serve", "--port", "0", *without_file(arguments)],
        where,
        whole,
        log,
        is_new=is_new,
        root=root,
    ) as child:
        try:
            assert child.stdout is not None
            said = ""
            while "print(" not in said:  # the last line of what it says when it listens
                line = child.stdout.readline()
                assert line, f"the gateway did not start: {log.read_text()}"
                said += line
            found = re.search(r"listens on http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)", said)
            assert found is not None, said
            yield Process(child, int(found[1]), log)
        finally:
            child.kill()


def started(
    module: str,
    arguments: Sequence[str],
    where: Path,
    environ: Mapping[str, str],
    log: Path,
    *,
    is_new: bool = False,
    root: Path = ROOT,
) -> subprocess.Popen[str] | Forked:
    """Runs a module of a checkout in a process, whose standard error goes to `log`."""
    whole = {**os.environ, "PYTHONPATH": str(root), **environ}
    if module in COPIED and not is_new and root == ROOT:
        return Forked(module, arguments, where, whole, log)
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=where,
            env=whole,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
