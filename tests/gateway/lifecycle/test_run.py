"""`scripts/run`, as somebody starts it in the first minute, in a copy of the checkout that needs no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.process import ROOT
from tests.patience import PATIENCE_S

FACT = "My cat is called Miso."
PATIENT = """
[memory]
recall_deadline_ms = 50000  # no deadline of a busy machine's shall decide what a test finds
"""
PARTS = ("scripts/run", "scripts/venv.sh", "pyproject.toml", "uv.lock")


@dataclass
class Started:
    """said: what it printed when it listened. environment: of whoever tries the example."""

    said: str
    environment: dict[str, str]

    @property
    def example(self) -> str:
        return self.said[self.said.index("from openai") :]

    def paste(self, program: str) -> str:
        """What the program prints."""
        pasted = subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert pasted.returncode == 0, pasted.stderr
        return pasted.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone whose .venv was made: that of the tests, with the stamp that says so."""
    where = tmp_path / "clone"
    for part in PARTS:
        (where / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, where / part)
    (where / ".venv").mkdir()
    (where / ".venv/bin").symlink_to(Path(sys.executable).parent)
    sums = subprocess.run(
        "cat pyproject.toml uv.lock | cksum",
        shell=True,
        cwd=where,
        capture_output=True,
        text=True,
        check=True,
    )
    (where / ".venv/.made-from").write_text(f"{sums.stdout.strip()} dev\n")
    return where


@contextmanager
def run(checkout: Path, *arguments: str) -> Iterator[Started]:
    """Serves from there, called from elsewhere. Whatever would install something fails at once instead."""
    tools = checkout / "no-installing"
    tools.mkdir(exist_ok=True)
    (tools / "uv").write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    (tools / "uv").chmod(0o755)
    keep = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**keep, "PATH": f"{tools}:{os.environ['PATH']}"}
    log = checkout / "run.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [checkout / "scripts/run", *arguments],
            cwd=checkout.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            said = ""
            while said.count("print(") < 2:  # the last line of the example is the second
                line = child.stdout.readline()
                assert line, f"it did not start: {log.read_text()}"
                said += line
            yield Started(said, environment)
        finally:
            child.kill()  # `exec`: this is the gateway itself


def asks(program: str, text: str) -> str:
    """The example with something else to say."""
    assert FACT in program
    return program.replace(FACT, text)


def test_the_first_minute_is_one_memory(checkout: Path, upstream: StrictUpstream) -> None:
    """What the banner prints, README says and the command line shows; and the real model that comes later knows it."""
    (checkout / "mnemogate.toml").write_text(PATIENT)
    with run(checkout, "--port", "0") as started:
        address = re.search(r"^Mnemogate listens on (http://127\.0\.0\.1:\d+)$", started.said, re.M)
        assert address is not None, started.said
        assert f"Database: {checkout}/mnemogate.db\n" in started.said
        assert f"Page: {address[1]}/ui (`mnemogate ui` opens it)\n" in started.said
        assert f'base_url="{address[1]}/v1"' in started.example
        readme = (ROOT / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
        written = [line for line in readme.splitlines() if line]
        printed = re.sub(r":\d+/v1", ":8080/v1", started.example)
        assert printed.splitlines() == written
        advice = re.search(r'^Say "(.+)" to model="([^"]+)"', started.said, re.M)
        assert advice is not None, started.said
        with_tools = asks(started.example, advice[1]).replace("gpt-4o-mini", advice[2])
        printed = started.paste(f"{started.example}\nprint('---')\n{with_tools}")
        of_example, of_tools = printed.split("---")
        first_reply, answered = of_example.strip().split("This is what I remember")
        assert "cat is called Miso" in first_reply
        assert "cat is called Miso" in answered
        assert "Memory block 'human' changed" in of_tools
    assert (checkout / "mnemogate.db").exists()
    assert (checkout / "run.log").read_text().count("Setting up") == 0
    output = subprocess.run(
        [checkout / ".venv/bin/mnemogate", "memory", "show", "--user", "alice"],
        cwd=checkout,
        env=started.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    assert f"user: {FACT}" in output
    assert "edits of turns that are not confirmed: 1" in output
    with run(checkout, "--port", "0", "--upstream", upstream.base_url) as started:
        started.paste(asks(started.example, "What is my cat called?"))
    assert FACT in upstream.chats[-1].messages[-1]["content"]


def test_without_its_stamp_it_makes_the_environment_first(checkout: Path) -> None:
    (checkout / ".venv/.made-from").unlink()
    with pytest.raises(AssertionError, match="Setting up"), run(checkout, "--port", "0"):
        pass


SCRIPTS = ("scripts/bench", "scripts/torture", "scripts/check", "scripts/applications")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_environment_that_could_not_be_made_is_made_again(checkout: Path, script: str) -> None:
    """As without a network: a stamp would say that it has what is missing."""
    shutil.copy(ROOT / script, checkout / script)
    stamp, tools = checkout / ".venv/.made-from", checkout / "tools"
    stamp.write_text("of another lock file dev\n")
    tools.mkdir()
    (tools / "uv").write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    (tools / "uv").chmod(0o755)
    ended = subprocess.run(
        [checkout / script],
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode != 0
    assert stamp.read_text() == "of another lock file dev\n"


def make_without_uv(
    checkout: Path, script: str, pythons: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a script of a clone without its environment. pythons: names of programs -> what they do when asked."""
    shutil.copy(ROOT / script, checkout / script)
    (checkout / ".venv/.made-from").unlink()
    (checkout / ".venv/bin").unlink()
    (checkout / "tools").mkdir()
    for name in ("sh", "bash", "env", "dirname", "cat", "cksum", "mkdir", "rm", "mktemp"):
        (checkout / "tools" / name).symlink_to(str(shutil.which(name)))
    for name, does in pythons.items():
        (checkout / "tools" / name).write_text(f"#!/bin/sh\n{does}\n")
        (checkout / "tools" / name).chmod(0o755)
    return subprocess.run(
        [checkout / script],
        env={"PATH": str(checkout / "tools")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


ASKED = '[ "$1" != -m ] || echo "asked for $1 $2"'


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_makes_the_environment_in_the_same_way(checkout: Path, script: str) -> None:
    """Without uv too: pip, which this clone has not, would come next."""
    ended = make_without_uv(checkout, script, {"python3": f'{ASKED}\n[ "$1" = -c ]'})
    assert ended.returncode != 0
    assert "Setting up .venv with python3 ..." in ended.stderr
    assert "asked for -m venv" in ended.stdout + ended.stderr


def test_an_optimized_one_of_several_pythons_makes_the_environment(checkout: Path) -> None:
    """pyenv's comes first on the path, and takes longer for the same."""
    slow = 'case "$2" in *CONFIG_ARGS*) exit 1 ;; esac\n[ "$1" = -c ]'
    pythons = {"python3": slow, "python3.13": f'{ASKED}\n[ "$1" = -c ]', "python3.12": '[ "$1" = -c ]'}
    ended = make_without_uv(checkout, "scripts/bench", pythons)
    assert "Setting up .venv with python3.13 ..." in ended.stderr
    assert "asked for -m venv" in ended.stdout + ended.stderr
