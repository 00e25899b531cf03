"""The commands of docs/operations.md copy a database that is served, and put the copy back."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.process import ROOT, command, serving
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.sqlite

SECTION = (ROOT / "docs/operations.md").read_text("utf-8").partition("## Backup and upgrade")[2]
BLOCKS = [block.splitlines() for block in re.findall(r"^```sh\n(.+?)^```", SECTION, re.M | re.S)]


@pytest.mark.parametrize("block", BLOCKS[:2], ids=["here", "container"])
def test_a_copy_is_for_its_owner_alone_and_brings_back_what_was_stored(
    upstream: StrictUpstream, tmp_path: Path, block: list[str]
) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed")
    # What runs in the container.
    lines = [re.sub(r"^docker compose .*?(?=python -c|-c)", "", line) for line in block]
    copy, restore = (f"sh {line}" if line.startswith("-c") else line for line in lines)

    def run(line: str) -> None:
        line = f"umask 022; {line}"
        ran = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert (ran.returncode, ran.stderr) == (0, "")

    with serving(tmp_path, "--upstream", upstream.base_url) as gateway:
        messages = [{"role": "user", "content": "My cat is called Miso."}]
        gateway.client().chat.completions.create(model="m", user="alice", messages=messages)  # type: ignore[arg-type]
        run(copy)
    assert (tmp_path / "copy.db").stat().st_mode & 0o77 == 0
    assert "Forgotten" in command("memory", "forget", "--user", "alice", "--yes", where=tmp_path).stderr
    run(restore)
    assert "Miso" in command("memory", "show", "--user", "alice", where=tmp_path).stdout
