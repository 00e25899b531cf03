"""The examples of docs/clients.md, run as they stand, but for the address."""

from __future__ import annotations

import ast
import gc
import re
import sys
from collections.abc import Iterator

import pytest

from gateway.settings import UpstreamSettings
from tests.doubles import pipecat
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.process import ROOT
from tests.gateway.sdk import World, remember

PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
EXAMPLES = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
)
# It chats with no model.
OVER_MCP = EXAMPLES.pop("A memory for editors and desktop clients (MCP)")
ADDRESS = "http://127.0.0.1:8080"  # which clients of Anthropic's take without /v1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with StrictUpstream() as upstream:
        settings = UpstreamSettings("up", "openai", upstream.base_url, takes={"responses": False})
        folder, server = tmp_path_factory.mktemp("page"), {"mcp": True}
        with remember(upstream, folder, upstreams=(settings,), server=server) as made:
            gc.collect()
            yield made


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) + 1 == PAGE.count("```python") == 13


def test_the_program_over_mcp(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(OVER_MCP.replace(ADDRESS, world.gateway.url), "mcp", "exec"), {"__name__": "__main__"})
    (found,) = ast.literal_eval(capsys.readouterr().out)["results"]
    assert (found["kind"], found["text"]) == ("fact", "My cat is called Miso.")


def test_pipecats_service_is_made_as_the_driver_makes_it() -> None:
    """`scripts/applications` runs that driver with Pipecat itself."""
    driver = (ROOT / "scripts/applications.d/pipecat.py").read_text("utf-8")
    made = [
        [each.arg for each in node.keywords]
        for program in (EXAMPLES["Pipecat"], driver)
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OpenAILLMService"
    ]
    assert len(made) == 2
    assert made[0] == made[1]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # an example leaves its client to the end of its program
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(
    world: World, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the reply, and what was said is in memory."""
    for module, made in pipecat.modules().items():
        monkeypatch.setitem(sys.modules, module, made)
    example = EXAMPLES[name]
    user = re.sub(r"\W", "", name)
    assert ADDRESS in example
    assert '"alice"' in example
    world.upstream.queue(say(f"Noted by {user}."))
    count = len(world.upstream.chats)
    program = example.replace(ADDRESS, world.gateway.url).replace('"alice"', f'"{user}"')
    gc.freeze()  # so that the collection below looks through what the example has made, and not through all frameworks
    exec(compile(program, name, "exec"), {"__name__": "__main__"})
    gc.collect()
    assert capsys.readouterr().out.strip() == f"Noted by {user}."
    assert len(world.upstream.chats) == count + 1
    found = world.query(
        "SELECT e.input FROM exchanges e JOIN agents a ON a.id = e.agent WHERE a.subject = ?", f"user:{user}"
    )
    assert "My cat is called Miso." in str(found)
