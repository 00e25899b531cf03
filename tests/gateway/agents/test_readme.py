"""The programs of the README, docs/agents.md and docs/batches.md, run against the built-in model."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

from gateway.settings import MemorySettings, ServerSettings, Settings
from storage.sql.store import Store
from tests.server import serve
from tests.stored import open_store

ROOT = Path(__file__).parents[3]


def programs_of(document: str) -> list[str]:
    """Returns those that need Letta's client."""
    parts = (ROOT / document).read_text("utf-8").split("```python\n")[1:]
    return [part.split("```")[0] for part in parts if "letta_client" in part]


def pasted(program: str, tmp_path: Path) -> str:
    """Returns what a program says."""
    settings = Settings(server=ServerSettings(port=0), memory=MemorySettings())

    async def open_here() -> Store:
        return await open_store(tmp_path / "memory.db")

    said = io.StringIO()
    with serve(settings, open_here) as gateway, contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Nobody is shown what the client advises against.
        warnings.filterwarnings("error", "deprecated", DeprecationWarning)
        names: dict[str, Any] = {}
        exec(compile(program.replace(":8080", f":{gateway.port}"), "a document", "exec"), names)
        names["client"].close()  # as the end of a program does
    return said.getvalue()


def test_the_lines_about_batches_work_when_they_are_pasted(tmp_path: Path) -> None:
    said = pasted(programs_of("docs/batches.md")[0], tmp_path)
    assert "'total': 3" in said
    assert "'completed': 3" in said
    assert "assistant_message" in said
    assert "Error" not in said


def test_the_lines_work_when_they_are_pasted(tmp_path: Path) -> None:
    kinds, *lines = pasted(programs_of("README.md")[0], tmp_path).splitlines()
    assert kinds == "['tool_call_message', 'tool_return_message', 'assistant_message'] steps: 2"
    assert lines[:2] == ["Name: Ann", "My roses are red."]
    assert "Her cat is called Miso." in "\n".join(lines[2:])


def test_the_readmes_programs_are_short() -> None:
    assert (
        max(
            len([line for line in each.splitlines() if line])
            for each in [*programs_of("README.md"), *programs_of("docs/batches.md")]
        )
        <= 11
    )


def test_the_lines_about_pauses_work_when_they_are_pasted(tmp_path: Path) -> None:
    (program,) = programs_of("docs/agents.md")
    said = pasted(program, tmp_path)
    assert "The tool answered: Stored in archival memory." in said
    assert "The tool answered: It is open." in said
