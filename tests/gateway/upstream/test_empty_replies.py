"""A stored reply with nothing in it goes up with a text that stands for it: Mistral and Kimi refuse an empty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.core.conversation.portable_message import NO_REPLY
from gateway.settings import UpstreamSettings
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Reply, StrictUpstream
from tests.gateway.sdk import agent, remember

HI: dict[str, Any] = {"role": "user", "content": "Hi"}
AGAIN: dict[str, Any] = {"role": "user", "content": "Are you there?"}
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}


def test_an_empty_reply_is_sent_with_a_text_in_its_place(tmp_path: Path) -> None:
    """In append mode, and before a response that continues another."""
    rules = Rules(empty_replies=False, unknown_parameters=False)
    with StrictUpstream(rules=rules) as upstream:
        upstreams = (UpstreamSettings("up", base_url=upstream.base_url),)
        with remember(upstream, tmp_path, agent(), upstreams=upstreams) as world:
            upstream.queue(Reply(text=""))
            assert world.post([HI], APPEND, user="alice").status == 200
            assert world.post([AGAIN], APPEND, user="alice").status == 200
            appended = upstream.last.messages

            upstream.queue(Reply(text=""))
            first = world.sdk.responses.create(model="m", input="Hi", user="carol")
            world.sdk.responses.create(
                model="m", input="Are you there?", user="carol", previous_response_id=first.id
            )
            continued = upstream.last.messages
    for messages in (appended, continued):
        assert [message["content"] for message in messages] == ["Hi", NO_REPLY, "Are you there?"]
