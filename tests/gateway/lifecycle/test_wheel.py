"""The wheel: built, installed into an empty environment, and serving from there, without this checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gateway.process import ROOT
from tests.patience import PATIENCE_S

# The seconds for one program. pip fetches the build backend from the package index, which may be slow.
COMMAND_S = 250
pytestmark = pytest.mark.timeout(3 * COMMAND_S)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment into which pip has built and installed the wheel. Skips where the build backend cannot be had."""
    folder = tmp_path / "venv"
    # A pip of its own would take it longer to install than all else.
    has_pip = find_spec("pip") is not None
    creation = run(sys.executable, "-m", "venv", *(["--without-pip"] if has_pip else []), folder)
    assert creation.returncode == 0, creation.stderr
    pip = (
        (sys.executable, "-m", "pip", "--python", folder) if has_pip else (folder / "bin/python", "-m", "pip")
    )
    options = ("--disable-pip-version-check", "--retries", "0")
    # Of the modules that pip would compile, the program that is served compiles those that it imports.
    installation = run(*pip, *options, "install", "--no-deps", "--no-cache-dir", "--no-compile", ROOT)
    output = installation.stdout + installation.stderr
    if installation.returncode and "hatchling" in output and not os.environ.get("CI"):
        pytest.skip("hatchling could not be fetched")
    assert installation.returncode == 0, output
    return folder


def test_the_installed_wheel_serves(environment: Path, tmp_path: Path) -> None:
    (info,) = environment.glob("lib/python*/site-packages/mnemogate-*.dist-info")
    assert not (info.parent / "tests").exists()
    requirements = re.findall(r"^Requires-Dist: ([\w.-]+)", (info / "METADATA").read_text("utf-8"), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    dependencies = {re.split(r"[<>=;]", each)[0].lower() for each in project["dependencies"]}
    assert dependencies <= {name.lower() for name in requirements}
    # The dependencies are those of the tests. On this path no .pth file is read, so the checkout stays unknown.
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environ["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
    with subprocess.Popen(
        [environment / "bin/mnemogate", "serve", "--port", "0"],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            match = re.match(r"Mnemogate listens on (\S+)", child.stdout.readline())
            assert match is not None
            with urllib.request.urlopen(f"{match[1]}/health/ready", timeout=PATIENCE_S) as reply:
                assert reply.status == 200
        finally:
            child.terminate()
    print_file = [environment / "bin/python", "-c", "import gateway.app; print(gateway.app.__file__)"]
    process = subprocess.run(
        print_file, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert Path(process.stdout.strip()).is_relative_to(environment)
