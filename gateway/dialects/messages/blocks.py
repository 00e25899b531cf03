"""The content blocks of a message as they grow out of a chat completion's deltas, with their events.

One block is open at a time. Calls that a chat completion streams side by side are shown one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from adapters.types import Json
from gateway.core.conversation.wire_message import read_text
from gateway.core.json_object import parse_object
from gateway.core.lenient import as_text
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.tool_call import ToolCall
from gateway.dialects.event_stream import EventSender


class GrowingBlocks:
    """The blocks of one message."""

    def __init__(self, emit: EventSender, claim_index: Callable[[], int]) -> None:
        """Makes a message without blocks.

        emit: a function that sends an event, given its type and its fields.
        claim_index: a function that returns the index in the message of the block that begins now.
        """
        self._emit = emit
        self._claim_index = claim_index
        # The index of the open block.
        self._index = 0
        # The type of the open block of text or thoughts; "": no such block is open.
        self._block_type = ""
        # The pieces of all blocks of text and thoughts.
        self._texts: list[str] = []
        # Puts the pieces of the client's calls together.
        self._draft = MessageDraft()
        # Calls without a block so far.
        self._waiting_calls: list[ToolCall] = []
        # The call of the open block.
        self._open_call: ToolCall | None = None
        # The number of pieces of the open call's arguments that were shown.
        self._shown_count = 0

    @property
    def is_open(self) -> bool:
        """True if a block of text or thoughts goes on."""
        return bool(self._block_type)

    @property
    def has_calls(self) -> bool:
        """True if the reply has a call."""
        return bool(self._draft.calls)

    def read_generated_text(self) -> str:
        """Returns all that the model wrote of the message, for a count of its tokens."""
        return "".join(self._texts) + self._draft.read_generated_text()

    def add_text(self, text: str) -> None:
        """Adds a piece of the text, and sends it."""
        self._texts.append(text)
        self._open("text", {"type": "text", "text": ""})
        self._emit_delta({"type": "text_delta", "text": text})

    def add_thought(self, text: str) -> None:
        """Adds a piece of the thoughts, and sends it."""
        self._texts.append(text)
        self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        self._emit_delta({"type": "thinking_delta", "thinking": text})

    def add_call(self, piece: Json) -> None:
        """Adds a piece of a call.

        A call is shown from its first arguments on, since its name is complete then, or from the reply's end on. While
        another call is open, the call waits.
        """
        count = len(self._draft.calls)
        call = self._draft.add_call_piece(piece)
        self._waiting_calls += self._draft.calls[count:]
        if self._open_call is None and call in self._waiting_calls and any(call.argument_pieces):
            self._begin_call(call)
        if call is self._open_call:
            self._show_arguments(call)

    def end(self) -> None:
        """Ends the open block, and shows the calls that waited."""
        self._close()
        while self._waiting_calls:
            self._begin_call(self._waiting_calls[0])
            self._close()

    def _begin_call(self, call: ToolCall) -> None:
        """Opens the block of a call that waited, with the arguments that have come so far."""
        self._close()
        self._waiting_calls.remove(call)
        self._open_call = call
        self._shown_count = 0
        self._index = self._claim_index()
        block = {
            "type": "tool_use",
            "id": call.id,
            "name": call.name,
            "input": {},
        }
        self._emit("content_block_start", index=self._index, content_block=block)
        self._show_arguments(call)

    def _show_arguments(self, call: ToolCall) -> None:
        """Shows the arguments of the open call that were not shown yet."""
        for piece in filter(None, call.argument_pieces[self._shown_count :]):
            self._emit_delta({"type": "input_json_delta", "partial_json": piece})
        self._shown_count = len(call.argument_pieces)

    def _open(self, block_type: str, block: Json) -> None:
        """Begins a block of text or thoughts, unless a block of this type is open. block: the block without content."""
        if self._block_type == block_type:
            return
        self.end()
        self._block_type = block_type
        self._index = self._claim_index()
        self._emit("content_block_start", index=self._index, content_block=block)

    def _emit_delta(self, delta: Json) -> None:
        self._emit("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> None:
        """Ends the open block, if there is one."""
        if self._block_type or self._open_call is not None:
            self._emit("content_block_stop", index=self._index)
        self._block_type = ""
        self._open_call = None


def render_blocks(message: Json) -> list[Json]:
    """Returns the blocks of a whole reply."""
    blocks: list[Json] = []
    if thoughts := read_thoughts(message):
        blocks.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    if text := read_text(message) + as_text(message.get("refusal")):
        blocks.append({"type": "text", "text": text})
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": as_text(call.get("id")),
                "name": as_text(function.get("name")),
                "input": _render_input(function.get("arguments")),
            }
        )
    return blocks


def _render_input(arguments: Any) -> Any:
    """Returns the arguments as they are written, since they may be nested deeply and have numbers of any length."""
    if not isinstance(arguments, str) or not arguments.strip():
        return {}
    # Arguments that are cut off or no JSON become a text in an object.
    return {"arguments": arguments} if parse_object(arguments) is None else orjson.Fragment(arguments)
