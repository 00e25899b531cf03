"""The instructions of a response as its client has them, without the text that memory has added upstream.

A response repeats the instructions with which it was made, in its body and in each event that contains the response.
All other events and fields pass as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import orjson

from adapters.types import Event
from gateway.core.prompt.shown_blocks import cut_section
from gateway.core.turn.reply_change import ReplyChange
from gateway.dialects.responses.members import NOT_READABLE, decode_upstream_members, encode_members
from gateway.errors import UpstreamReplyBroken

_INSTRUCTIONS_KEY: Final = b'"instructions"'


class ClientInstructions(ReplyChange):
    """Replaces the upstream's instructions by the client's, in one reply. A reply that is no JSON is an error.

    find_client_instructions: a function that returns the client's instructions, given the upstream's, both as JSON.
    """

    def __init__(self, find_client_instructions: Callable[[bytes], bytes]) -> None:
        self._find_client_instructions = find_client_instructions

    def change_body(self, body: bytes) -> bytes:
        return self._restore(body) if _INSTRUCTIONS_KEY in body else body

    def change_unfinished(self, rest: bytes) -> bytes:
        # An unfinished event that may contain the upstream's instructions is left out.
        return b"" if _INSTRUCTIONS_KEY in rest else rest

    def change_event(self, event: Event) -> bytes:
        data = event.data
        if data is None or _INSTRUCTIONS_KEY not in data:
            return event.raw
        fields = _decode(data, "an event")
        response = fields.get("response", b"")
        if not response.startswith(b"{"):
            return event.raw
        fields["response"] = self._restore(response)
        restored = encode_members(fields)
        if data in event.raw:
            return event.raw.replace(data, restored, 1)
        # The JSON of the event has several lines.
        name = f"event: {event.name}\n" if event.name is not None else ""
        return b"%bdata: %b\n\n" % (name.encode(), b"\ndata: ".join(restored.splitlines()))

    def _restore(self, response: bytes) -> bytes:
        fields = _decode(response, "a response")
        if "instructions" not in fields:
            return response
        fields["instructions"] = self._find_client_instructions(fields["instructions"])
        return encode_members(fields)


def _decode(data: bytes, name: str) -> dict[str, bytes]:
    """Returns the members of an object. name: the object's name in the error. Raises: UpstreamReplyBroken."""
    try:
        return decode_upstream_members(data)
    except NOT_READABLE as error:
        raise UpstreamReplyBroken(f"The upstream sent {name} that is no JSON.") from error


def restore_instructions(instructions: str | None) -> ClientInstructions:
    """Returns the change for the reply to a request. instructions: the instructions of the client's request."""
    client_instructions = orjson.dumps(instructions)
    return ClientInstructions(lambda _: client_instructions)


def cut_memory_section(prompts: Sequence[str]) -> ClientInstructions:
    """Returns the change for a stored response of an upstream, where the request is not known.

    prompts: the system prompts of the profiles.
    """
    return ClientInstructions(lambda stored: _remove_memory(stored, prompts))


def _remove_memory(stored: bytes, prompts: Sequence[str]) -> bytes:
    """Returns instructions without the memory section and the profile's prompt before it, both as JSON."""
    if not stored.startswith(b'"'):
        return stored
    text: str = orjson.loads(stored)
    without_memory = cut_section(text)
    for prompt in sorted(filter(None, prompts), key=len, reverse=True):
        if without_memory == prompt or without_memory.endswith(f"\n\n{prompt}"):
            instructions = without_memory.removesuffix(prompt).removesuffix("\n\n")
            break
    else:
        instructions = without_memory
    return stored if instructions == text else orjson.dumps(instructions or None)
