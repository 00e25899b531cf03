"""The fields that voice vendors and OpenAI's `metadata` put around a request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.doubles.upstream import (
    Rules,
    fail,
)
from tests.gateway.upstream.failover_world import OpenFailover, both, forms, only_openai

# --- vendors' envelopes

VAPI = {
    "call": {"id": "call_1", "type": "webCall"},
    "customer": {"number": "+15550100"},
    "phoneNumber": {"id": "pn"},
    "metadata": {"nested": {"a": 1}},
}

ELEVENLABS = {"user_id": "alice", "elevenlabs_extra_body": {"room": 3}}


@forms
@pytest.mark.parametrize(
    ("envelope", "named", "mode"),
    [
        (VAPI, "call,customer,phoneNumber,metadata", "on"),
        (VAPI, "call,customer,phoneNumber,metadata", "off"),
        (ELEVENLABS, "user_id,elevenlabs_extra_body", "on"),
        ({"user_id": 7}, "user_id", "on"),  # an id is a number where a database counts
        ({"metadata": {"topic": "cats"}}, "metadata", "on"),
    ],
)
def test_an_envelope_is_read_and_stays_here(
    open_failover: OpenFailover, envelope: dict[str, Any], named: str, mode: str, stream: bool
) -> None:
    """The strict upstream refuses each of these fields."""
    with open_failover() as world:
        world.first.queue(fail(503))
        memory = {"x-mnemogate-memory": mode}
        text, headers = world.chat(stream, False, headers=memory, extra_body=envelope, temperature=0)
        assert (text, headers["x-mnemogate-consumed"]) == ("Ok.", named)
        assert not set(world.second.last.json) & set(envelope)
        assert world.second.last.json["temperature"] == 0
        if "metadata" not in named.partition(",")[0] and mode == "on":
            assert headers["x-mnemogate-memory"] == "on"  # it said whose memory it is


@only_openai  # an Anthropic's request is written again
def test_only_the_envelope_is_taken_off(open_failover: OpenFailover) -> None:
    body = b'{ "call" : {"id":"c"}, "model":"big" ,"messages":[{"role":"user","content":"\\u0041"}],"n":1.0 }'
    with open_failover() as world:
        world.first.rules = Rules(unknown_parameters=False)
        world.world.gateway.post(body.replace(b'"big"', b'"m"'), {"x-mnemogate-memory": "off"})
        assert world.first.last.json == orjson.loads(body.replace(b'"call" : {"id":"c"}, ', b""))


@both
@only_openai  # Anthropic has no `store`, which is refused by name: tests/adapters/test_anthropic.py
def test_metadata_with_store_goes_on(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover() as world:
        _, headers = world.chat(False, memory, metadata={"a": "b"}, store=True)
        assert world.first.last.json["metadata"] == {"a": "b"}
        assert "x-mnemogate-consumed" not in headers
