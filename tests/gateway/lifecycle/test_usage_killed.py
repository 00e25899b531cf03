"""A process that is killed loses what it has counted since its last write, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.process import Process, serving

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

# The command's own way to the process, and its token, are of a file.
pytestmark = pytest.mark.sqlite


def used(process: Process, where: Path) -> dict[str, Any]:
    """What the process that answers knows, which it writes for this answer."""
    token = json.loads((where / "mnemogate.db.admin").read_text())["token"]
    reply = process.ask("GET", "/v1/manage/usage", headers={"x-mnemogate-admin": token})
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json["data"][0]
    return found


def test_usage_that_was_written_survives_a_kill(upstream: StrictUpstream, tmp_path: Path) -> None:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    fields: Any = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}
    arguments = ("--upstream", upstream.base_url)
    settings = "[usage]\nwrite_s = 3600\n"
    with serving(tmp_path, *arguments, settings=settings) as first:
        with first.client() as client:
            for _ in range(3):
                client.chat.completions.create(**fields)
            assert used(first, tmp_path)["requests"] == 3
            client.chat.completions.create(**fields)
        first.kill()
    with serving(tmp_path, *arguments, settings=settings) as second:
        found = used(second, tmp_path)
        assert (found["requests"], found["input_tokens"], found["output_tokens"]) == (3, 30, 15)
