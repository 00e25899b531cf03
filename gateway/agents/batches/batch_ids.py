"""The ids of a batch: its public id, and the ids of its items' requests at a provider."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gateway.core import ids
from storage.batch_records import Batch

_CUSTOM_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9]{1,18})-([0-9]{1,9})")


def make_public_id(batch: Batch) -> str:
    """Returns the public id of a batch."""
    return ids.make_id("job", batch.uid)


class RequestId(NamedTuple):
    """The id of an item's request at its provider, where it is called a custom id."""

    # The uid of the batch.
    batch_uid: str
    # The item's row. It stays when the item's agent is deleted with the item's run.
    item_row: int
    # The value of `BatchItem.request_number`.
    number: int

    @classmethod
    def parse(cls, custom_id: str) -> RequestId | None:
        """Parses a custom id. Returns None if the gateway has not made it."""
        parts = _CUSTOM_ID.fullmatch(custom_id)
        return None if parts is None else cls(parts[1], int(parts[2]), int(parts[3]))

    def __str__(self) -> str:
        return f"{self.batch_uid}-{self.item_row}-{self.number}"
