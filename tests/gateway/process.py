"""Runs `mnemogate serve` in a separate process, for tests that kill or stop the gateway."""

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
from tests.gateway.forked import ROOT, ForkedProcess
from tests.patience import PATIENCE_S
from tests.server import Listener

# Modules that run in a forked process, with the limits of `patient`.
FORKED = (
    "tests.gateway.patient",
    "tests.agents.kill_process",
    "tests.gateway.background.batch_process",
    "tests.gateway.background.job_process",
)


def command(
    *arguments: str, where: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command of `mnemogate` in a forked process, and waits for its end.

    where: the working directory of the command.
    environ: environment variables in addition to those of the tests.
    """
    environment = {**os.environ, **make_database_variable(where, arguments), **(environ or {})}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with ForkedProcess("gateway", remove_file_option(arguments), where, environment, log) as child:
            output = child.stdout.read()
            code = child.wait(PATIENCE_S)
        return subprocess.CompletedProcess(arguments, code, output, log.read_text())


def make_database_variable(where: Path, arguments: Sequence[str]) -> dict[str, str]:
    """Returns the environment variable for a command's PostgreSQL database. Empty: the command uses its SQLite file."""
    if stored.server is None:
        return {}
    return {"MNEMOGATE_DATABASE_URL": stored.server.url_of(_file_of(where, arguments))}


def _file_of(where: Path, arguments: Sequence[str]) -> Path:
    """Returns the database file of a command whose settings name no file."""
    return where / (arguments[arguments.index("--db") + 1] if "--db" in arguments else "mnemogate.db")


def remove_file_option(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command, without the SQLite file if the test uses PostgreSQL."""
    if stored.server is None or "--db" not in arguments:
        return [*arguments]
    at = arguments.index("--db")
    return [*arguments[:at], *arguments[at + 2 :]]


@dataclass
class Process(Listener):
    """A gateway in a separate process."""

    child: subprocess.Popen[str] | ForkedProcess
    port: int
    # The file of the process's standard error.
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
    """Serves on a free port until the block ends. Kills the process then.

    A forked process gets a database file of the current schema, unless the settings or the environment name a database.

    where: the working directory of the process.
    settings: the text of mnemogate.toml.
    module: the module to run.
    environ: environment variables in addition to those of the tests.
    is_new: whether a new interpreter runs the module, and never a forked process.
    root: the checkout to run, which may hold another version.
    """
    (where / "mnemogate.toml").write_text(settings)
    log = where / "serve.log"
    variables = {**make_database_variable(where, arguments), **(environ or {})}
    is_named = "[database]" in settings or any(name.startswith("MNEMOGATE_DATABASE_") for name in variables)
    if module in FORKED and not (is_new or is_named):
        stored.lay_new_file(_file_of(where, arguments))
    with start_process(
        module,
        ["serve", "--port", "0", *remove_file_option(arguments)],
        where,
        variables,
        log,
        is_new=is_new,
        root=root,
    ) as child:
        try:
            assert child.stdout is not None
            output = ""
            while "print(" not in output:  # the last line that the gateway prints when it listens
                line = child.stdout.readline()
                assert line, f"the gateway did not start: {log.read_text()}"
                output += line
            address = re.search(r"listens on http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)", output)
            assert address is not None, output
            yield Process(child, int(address[1]), log)
        finally:
            child.kill()


def start_process(
    module: str,
    arguments: Sequence[str],
    where: Path,
    environ: Mapping[str, str],
    log: Path,
    *,
    is_new: bool = False,
    root: Path = ROOT,
) -> subprocess.Popen[str] | ForkedProcess:
    """Starts a module of a checkout in a process. Its standard error is appended to the file `log`."""
    environment = {**os.environ, "PYTHONPATH": str(root), **environ}
    if module in FORKED and not is_new and root == ROOT:
        return ForkedProcess(module, arguments, where, environment, log)
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=where,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
