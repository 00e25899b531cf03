"""An upstream's error names a message by its index, which counts the client's messages when the client gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream, fail
from tests.gateway.sdk import agent, remember

HELLO = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize("path", ["messages[{}].content", "messages.[{}].content", "messages.{}.content"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_error_about_a_message_has_the_index_that_its_client_knows(
    upstream: StrictUpstream, tmp_path: Path, path: str, stream: bool
) -> None:
    """The profile's prompt is a new first message, or the end of the client's own."""
    with remember(upstream, tmp_path, agent()) as world:
        for messages, sent, shown in (
            ([HELLO], 1, 0),
            ([HELLO], 0, 0),  # about the gateway's message, which the client does not have
            ([SYSTEM, HELLO], 1, 1),
        ):
            upstream.queue(fail(422, f"Invalid '{path.format(sent)}' in 7 messages."))
            reply = world.post(messages, model="agent/helper", user="alice", stream=stream)
            assert (reply.status, len(upstream.last.messages)) == (422, 2)
            assert reply.error["message"] == f"Invalid '{path.format(shown)}' in 7 messages."


def test_an_error_without_an_added_message_stays_as_it_came(upstream: StrictUpstream, tmp_path: Path) -> None:
    refusal = fail(400, "Invalid 'messages[ 1 ]' and 'messages[12]', \u00e9.", code="odd")
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(refusal)
        assert [world.post([HELLO], user="alice").body] == refusal.body
