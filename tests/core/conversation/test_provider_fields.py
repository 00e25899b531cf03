"""What only its provider can read: found, and put back where the client dropped it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.conversation.portable_message import make_portable_message
from gateway.core.conversation.provider_fields import has_provider_fields, refill, refill_calls

Json = dict[str, Any]
SIGNED = {"google": {"thought_signature": "EjQK"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAID: Json = {"role": "assistant", "content": "Hi", "reasoning": "Hm", "reasoning_content": "Hm"}
DETAILS = [{"type": "reasoning.encrypted", "data": "x", "index": 0}]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, False),
        ({"thinking_blocks": []}, False),
        ({"thinking_blocks": [{"type": "thinking"}]}, True),
        ({"reasoning_details": DETAILS}, True),
        ({"tool_calls": [CALL]}, False),
        ({"tool_calls": [CALL, {**CALL, "id": "b", "extra_content": SIGNED}]}, True),
        ({"tool_calls": None}, False),
    ],
)
def test_fields_with_opaque_values(extra: Json, expected: bool) -> None:
    assert has_provider_fields({**SAID, **extra}) is expected


def test_fields_that_the_client_dropped_are_put_back() -> None:
    said = {**SAID, "reasoning_details": DETAILS, "tool_calls": [{**CALL, "extra_content": SIGNED}]}
    client = {"role": "assistant", "content": "Hi", "tool_calls": [CALL]}
    assert refill(client, said) == {
        **client,
        "reasoning_details": DETAILS,
        "tool_calls": [{**CALL, "extra_content": SIGNED}],
    }
    assert client["tool_calls"] == [CALL], "the client's own message stays what it is"
    assert refill(said, said) is None
    own = {**client, "reasoning_details": [], "tool_calls": [{**CALL, "extra_content": {"mine": 1}}]}
    assert refill(own, said) is None, "what the client says counts"


def test_a_signature_in_litellms_wrapper_is_its_calls_own() -> None:
    signed = {**CALL, "provider_specific_fields": {"thought_signature": "EjQK"}}
    client, said = ({"role": "assistant", "content": "Hi", "tool_calls": [call]} for call in (CALL, signed))
    assert has_provider_fields(said)
    assert refill(client, said) == said
    assert make_portable_message(said) == client


def test_a_call_gets_back_what_is_its_own() -> None:
    said = [{**CALL, "extra_content": SIGNED}, {**CALL, "id": "b"}]
    given: list[Any] = [{**CALL, "id": "b"}, CALL, {**CALL, "id": ["a"]}, {"function": {}}, "no call"]
    assert refill_calls(given, said) == [given[0], {**CALL, "extra_content": SIGNED}, *given[2:]]
    assert refill_calls(given, []) == given


@pytest.mark.parametrize("id_fields", [{}, {"id": None}, {"id": ""}, {"id": "call_0"}])
def test_calls_that_share_an_id_or_have_none_get_back_their_own(id_fields: Json) -> None:
    """Gemini signs the first of parallel calls, and some servers give their calls no ids."""
    calls: list[Any] = [{**id_fields, "function": {"name": name, "arguments": "{}"}} for name in "fgh"]
    signed = [{**calls[0], "extra_content": SIGNED}, calls[1], {**calls[2], "extra_content": {"google": {}}}]
    assert refill_calls([*calls, calls[0], "no call"], signed) == [*signed, calls[0], "no call"]
