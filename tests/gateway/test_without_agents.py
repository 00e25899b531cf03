"""The gateway without its second storey: chat, memory, upstreams, responses and voice need no agents."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from storage.sql.store import Store
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.process import ROOT
from tests.server import serve, settings_for
from tests.stored import open_store

# Of each folder a short file or two, over SQLite; `MNEMOGATE_TEST_AGENTS=none scripts/check gateway` runs them all.
TESTS = (
    "tests/gateway/chat/test_cancel.py",
    "tests/gateway/memory/test_two_paths.py",
    "tests/gateway/responses/test_ways.py",
    "tests/gateway/upstream/test_envelopes.py",
    "tests/gateway/voice/test_audio.py",
)


def test_a_gateway_without_agents_has_memory_and_no_agents_api(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "memory.db")

    with serve(settings_for(upstream), open_here, has_agents=False) as gateway:
        upstream.queue(say("Nice."), say("Miso."))
        for text in ("My cat is called Miso.", "What is my cat called?"):
            message = {"role": "user", "content": text}
            assert gateway.post({"model": "m", "user": "alice", "messages": [message]}).status == 200
        assert "My cat is called Miso." in upstream.chats[-1].messages[-1]["content"]
        assert gateway.ask("GET", "/v1/agents/").status == 404
        assert gateway.ask("GET", "/v1/models").status == 200


def test_the_tests_of_the_first_storey_pass_without_agents() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not postgresql", *TESTS],
        cwd=ROOT,
        env={**os.environ, "MNEMOGATE_TEST_AGENTS": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
