"""The AI SDK's provider for Anthropic (Node) through the gateway, natively and before an upstream of another dialect.

`scripts/check` installs it; without Node this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.test_messages import ASKED, CAT, MODEL, RAIN, world
from tests.doubles.upstream import call_tools, say
from tests.gateway.sdk import World
from tests.patience import PATIENCE_S

__all__ = ["world"]
PACKAGES = Path(__file__).parents[2] / ".venv/node"
DRIVER = Path(__file__).with_name("ai_sdk.mjs")
is_there = shutil.which("node") is not None and (PACKAGES / "node_modules/@ai-sdk/anthropic").exists()


@pytest.mark.skipif(
    not is_there, reason="the AI SDK is not installed: scripts/check does that where there is npm"
)
def test_the_ai_sdk_whole_streamed_with_a_tool_and_a_schema(world: World) -> None:
    oslo = {"name": "Oslo", "people": 717710}
    world.upstream.queue(
        say("Nice."), say("Miso it is."), call_tools(RAIN), say("It rains."), say(json.dumps(oslo))
    )
    given = {"URL": f"{world.gateway.url}/v1", "MODEL": MODEL, "CAT": CAT, "ASKED": ASKED}
    # Modules are looked for in the folder of a program that comes by standard input.
    done = subprocess.run(
        ["node", "--input-type=module"],
        input=DRIVER.read_text("utf-8"),
        cwd=PACKAGES,
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Nice.", "Miso it is.", "It rains.", oslo]
    asked = next(request for request in world.upstream.requests if ASKED.encode() in request.body)
    assert b"Miso" in asked.body
    assert any(b"Rain in Oslo." in request.body for request in world.upstream.requests)
