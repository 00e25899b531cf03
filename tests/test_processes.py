"""Tests run in several processes by `tests.processes`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PASSES = "def test_passes(tmp_path, pid):\n    print(pid)\n"
FAILS = "def test_passes():\n    pass\n\ndef test_fails():\n    print('seen')\n    raise OSError\n"
DIES = "import os\n\ndef test_dies():\n    os._exit(0)\n\ndef test_is_next():\n    pass\n"
FIXTURE = """import os
from pathlib import Path
import pytest

@pytest.fixture(scope="session")
def pid():
    yield os.getpid()
    with Path("ended").open("a") as file:
        file.write("a session\\n")
"""


def test_results_come_from_all_processes_and_a_lost_test_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(FIXTURE)
    for name, text in {"a": DIES, "b": FAILS, "c": PASSES, "d": PASSES}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    environ = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = ["-m", "pytest", "-q", "-p", "tests.processes", "--processes", "2", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert ended.returncode == 1
    failed = set(re.findall(r"^FAILED (\S+)", ended.stdout, re.MULTILINE))
    assert failed == {"test_a.py::test_dies", "test_a.py::test_is_next", "test_b.py::test_fails"}
    assert "3 failed, 3 passed" in ended.stdout
    assert ended.stdout.count("seen") == 2  # in the code that is shown, and once as what the test printed
    assert (tmp_path / "ended").read_text() == "a session\n"
