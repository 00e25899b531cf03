"""The output of a response as far as its events have come, for the end of one that is cancelled."""

from __future__ import annotations

from typing import Final

import msgspec
import orjson
from msgspec import Raw, Struct

from gateway.dialects.responses.members import NOT_READABLE

# The most bytes of events that are read of one response; what follows is not shown. Chosen: far above what models write
# in one reply.
MAX_BYTES: Final = 8 * 1024 * 1024
ADDED, DONE, TEXT = "response.output_item.added", "response.output_item.done", "response.output_text.delta"


class _Item(Struct):
    id: str = ""
    type: str = ""


class _Event(Struct):
    output_index: int
    content_index: int = 0
    delta: str = ""
    item: Raw = Raw(b"null")


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_item: Final = msgspec.json.Decoder(_Item).decode


class PartialOutput:
    """The items that are complete, and of a message that is not the text that has come."""

    def __init__(self) -> None:
        # By their index: the complete items as they are written, and the ids of messages.
        self._complete: dict[int, bytes] = {}
        self._message_ids: dict[int, str] = {}
        # By the index of the item and of its part.
        self._texts: dict[tuple[int, int], list[str]] = {}
        self._left_bytes = MAX_BYTES

    def take(self, kind: str, data: bytes) -> None:
        """Takes an event that was sent. kind: its type. One that cannot be read is passed over."""
        if kind not in (ADDED, DONE, TEXT):
            return
        # Below 0 it stays there: a shorter event after one that was left out would leave a gap in the text.
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            return
        try:
            event = _decode_event(data)
            index = event.output_index
            if kind == TEXT:
                self._texts.setdefault((index, event.content_index), []).append(event.delta)
            elif kind == DONE:
                self._complete[index] = bytes(event.item)
            elif (item := _decode_item(event.item)).type == "message":
                self._message_ids[index] = item.id
        except NOT_READABLE:  # nothing keeps an upstream from sending it
            return

    def render(self) -> bytes:
        """Returns the items as a JSON array."""
        items = dict(self._complete)
        for index, id in self._message_ids.items():
            texts = [text for (item, _), text in sorted(self._texts.items()) if item == index]
            if index not in items and texts:
                items[index] = orjson.dumps(_cut_message(id, ["".join(text) for text in texts]))
        return b"[%b]" % b",".join([items[index] for index in sorted(items)])


def _cut_message(id: str, texts: list[str]) -> dict[str, object]:
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"id": id, "type": "message", "role": "assistant", "status": "incomplete", "content": parts}
