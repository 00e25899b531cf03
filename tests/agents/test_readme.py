"""The programs of the README, docs/agents.md and docs/batches.md, run against the built-in model."""

from __future__ import annotations

import contextlib
import io
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import MemorySettings, ServerSettings, Settings, ToolSettings
from storage.sql.store import Store
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap
from tests.server import serve
from tests.stored import open_store

ROOT = Path(__file__).parents[2]
NO_TOOLS = ToolSettings()


def programs_of(document: str) -> list[str]:
    """Returns those that need Letta's client."""
    parts = (ROOT / document).read_text("utf-8").split("```python\n")[1:]
    return [part.split("```")[0] for part in parts if "letta_client" in part]


def program_with(words: str) -> str:
    """Returns the one of docs/agents.md that has these words."""
    (found,) = [each for each in programs_of("docs/agents.md") if words in each]
    return found


def pasted(program: str, tmp_path: Path, tools: ToolSettings = NO_TOOLS) -> str:
    """Returns what a program says."""
    settings = Settings(server=ServerSettings(port=0), memory=MemorySettings(), tools=tools)

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
    said = pasted(program_with("requires_approval"), tmp_path)
    assert "The tool answered: Stored in archival memory." in said
    assert "The tool answered: It is open." in said


def test_the_lines_about_a_webhook_work_when_they_are_pasted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = program_with("HTTPServer")
    assert "http://127.0.0.1:9000" in (ROOT / "docs/agents.md").read_text("utf-8").replace(program, "")
    tools = ToolSettings(private_hosts=(f"http://127.0.0.1:{port}",))
    assert (
        pasted(program.replace("9000", str(port)), tmp_path, tools)
        == "The tool answered: It is sunny in Rome.\n"
    )


@needs_bwrap
def test_the_lines_about_python_work_when_they_are_pasted(tmp_path: Path) -> None:
    said = pasted(program_with("def note_price"), tmp_path, ToolSettings(python=PYTHON)).splitlines()
    # The built-in model also says what the section shows of the block.
    assert (said[0], said[-1]) == ("The tool answered: Tea costs 3.50 euros.", "Ann. Tea: 3.50 euros.")


def test_the_lines_about_a_run_in_the_background_work_when_they_are_pasted(tmp_path: Path) -> None:
    greeting, *said = pasted(program_with("create_async"), tmp_path).splitlines()
    assert "Hello." in greeting
    assert said[-2:] == ["completed", "['user_message', 'assistant_message']"]


def test_the_lines_about_an_agent_file_work_when_they_are_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, block, messages = pasted(program_with("export_file"), tmp_path).splitlines()
    assert (name, block) == ("ann", "Her cat is called Miso.")
    assert messages.startswith("['Hello.', ")


def test_each_program_of_the_page_is_run_here() -> None:
    """Each of those that need Letta's client; there is no other in Python."""
    assert len(programs_of("docs/agents.md")) == 5
    assert (ROOT / "docs/agents.md").read_text("utf-8").count("```python\n") == 5
