"""A run of which nothing may be left out ends where its next prompt does not fit the window, with its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.agents.letta import letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools
from tests.server import chat_upstreams

pytestmark = pytest.mark.agents


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_does_not_fit_ends_its_run(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    with letta(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world:
        agent = world.agent(context_window_limit=8_000)

        def respond(text: str, **options: Any) -> Any:
            body = {"model": f"agent/{agent.id}", "input": text, "truncation": "disabled", **options}
            headers = {"x-mnemogate-conversation": "default"}
            return world.world.gateway.ask("POST", "/v1/responses", orjson.dumps(body), headers)

        assert respond("Hello. " * 1_500).status == 200
        upstream.queue(call_tools(insert, text="Let me see. " * 2_500))
        reply = respond("I like tea.", stream=stream)
        assert reply.status == (200 if stream else 400)
        assert b"context_length_exceeded" in reply.body
        assert b"response.completed" not in reply.body
        runs = world.world.query("SELECT state, stop FROM runs ORDER BY id")
        assert runs == [("completed", "end_turn"), ("failed", "error")]
        # What the tool did is done.
        assert "Likes tea." in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
        (result,) = [
            m for m in world.letta.agents.messages.list(agent.id) if m.message_type == "tool_return_message"
        ]
        assert result.status == "success"
