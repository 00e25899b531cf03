"""A run in several processes (`tests/processes.py`) finds what one process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = {
    "test_a.py": """
        import os
        def test_passes(tmp_path): print("seen")
        def test_fails(capsys): print("of a"); assert 1 == 2
        def test_has_rows(subtests):
            with subtests.test("row one"): assert 3 == 4
    """,
    "test_b.py": """
        import os
        def test_breaks_off(): os._exit(7)
        def test_comes_after(): pass
    """,
    "test_c.py": """
        import pytest
        @pytest.fixture(scope="session")
        def shared(): yield; raise ValueError("at the end")
        def test_is_skipped(): pytest.skip("why not")
        def test_shares(shared): pass
    """,
}


def run(folder: Path, *arguments: str) -> list[str]:
    """Runs `TESTS` in two processes. Returns the lines of what pytest says."""
    for name, text in TESTS.items():
        (folder / name).write_text(text.replace("\n        ", "\n"))
    command = [sys.executable, "-m", "pytest", "-rfEs", "-p", "tests.processes", "-p", "no:cacheprovider"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        [*command, "--processes=2", *arguments, "."], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def test_what_copies_find_is_shown_and_counted(tmp_path: Path) -> None:
    said = run(tmp_path)
    text = "\n".join(said)
    assert said[-1].strip("= ").startswith("3 failed, 4 passed, 1 skipped, 1 error in")
    assert "FAILED test_a.py::test_fails - assert 1 == 2" in said
    assert "test_has_rows [row one]" in text
    assert "assert 3 == 4" in text
    assert "FAILED test_b.py::test_breaks_off - The process that ran this test ended with 7." in said
    assert "ERROR test_c.py::test_shares - ValueError: at the end" in said
    assert "SKIPPED [1] test_c.py:5: why not" in said
    assert ("of a" in text, "seen" in text) == (True, False)


def test_after_the_first_failure_no_further_file_is_begun(tmp_path: Path) -> None:
    said = run(tmp_path, "-x", "--processes=1")
    assert "FAILED test_a.py::test_fails - assert 1 == 2" in said
    assert any("stopping after" in line for line in said)
    assert not [line for line in said if "test_b" in line or "test_c" in line]
