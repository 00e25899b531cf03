"""The output of a response as far as its events have come, for the end of a response that is cancelled."""

from __future__ import annotations

from typing import Final

import msgspec
import orjson
from msgspec import Raw, Struct

from gateway.dialects.responses.members import NOT_READABLE

# The most bytes of events that are read of one response; later events are not shown. Chosen: far above what models
# write in one reply.
MAX_BYTES: Final = 8 * 1024 * 1024
_ITEM_ADDED: Final = "response.output_item.added"
_ITEM_DONE: Final = "response.output_item.done"
_TEXT_DELTA: Final = "response.output_text.delta"


class _Item(Struct):
    """The fields of an item that are read."""

    id: str = ""
    type: str = ""


class _Event(Struct):
    """The fields of an event that are read."""

    output_index: int
    content_index: int = 0
    delta: str = ""
    item: Raw = Raw(b"null")


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_item: Final = msgspec.json.Decoder(_Item).decode


class PartialOutput:
    """The complete items of an output, and the text so far of each message that is not complete."""

    def __init__(self) -> None:
        # The complete items as JSON, by their indices.
        self._complete: dict[int, bytes] = {}
        # The ids of items that are messages, by the indices of the items.
        self._message_ids: dict[int, str] = {}
        # (index of the item, index of its part) -> the pieces of the text.
        self._texts: dict[tuple[int, int], list[str]] = {}
        self._remaining_bytes = MAX_BYTES

    def read(self, event_type: str, data: bytes) -> None:
        """Reads an event that was sent. An event that cannot be read is ignored."""
        if event_type not in (_ITEM_ADDED, _ITEM_DONE, _TEXT_DELTA):
            return
        # Once below 0, the count stays below 0: if a shorter event still counted, the text would have a gap.
        self._remaining_bytes -= len(data)
        if self._remaining_bytes < 0:
            return
        try:
            event = _decode_event(data)
            index = event.output_index
            if event_type == _TEXT_DELTA:
                self._texts.setdefault((index, event.content_index), []).append(event.delta)
            elif event_type == _ITEM_DONE:
                self._complete[index] = bytes(event.item)
            elif (item := _decode_item(event.item)).type == "message":
                self._message_ids[index] = item.id
        except NOT_READABLE:  # an upstream may send anything
            return

    def render(self) -> bytes:
        """Returns the items as a JSON array."""
        items = dict(self._complete)
        for index, id in self._message_ids.items():
            texts = [text for (item, _), text in sorted(self._texts.items()) if item == index]
            if index not in items and texts:
                items[index] = orjson.dumps(_cut_message(id, ["".join(text) for text in texts]))
        return b"[%b]" % b",".join([items[index] for index in sorted(items)])


def _cut_message(item_id: str, texts: list[str]) -> dict[str, object]:
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "incomplete", "content": parts}
