"""The texts of an item of a batch, which are stored until its turn is an exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec import Struct

from gateway.agents.batches.item_failure import FORGOTTEN, ItemFailed
from gateway.core.conversation.private import CallStatus
from gateway.core.conversation.wire_message import WireMessage
from storage.batch_records import WrittenEdit
from storage.records import MemoryEdit
from storage.run_records import Run, RunTextKind, TokenCounts
from storage.sql.store import Store


class ItemRequest(Struct, frozen=True):
    """The messages of an item, and the options of the answer."""

    # The messages as they are stored.
    messages: tuple[WireMessage, ...]
    # The most calls of the model.
    max_steps: int
    # The model in place of the agent's; None: the agent's model.
    model: str | None = None
    # The system prompt in place of the agent's; None: the agent's prompt.
    system: str | None = None


class RequestState(Struct, frozen=True):
    """The state of an item's last request that its reply and the next request need."""

    # The text of each memory block that the request shows.
    shown: dict[str, str]
    # The notes before messages of the request, by the indexes of the messages after the path.
    notes: dict[int, str]
    # The number of messages after the path.
    messages: int
    # The time when the item's first request was composed, in seconds since the epoch.
    began: float


class StoredEdit(NamedTuple):
    """A memory edit in a stored round. It is stored as an array, so the order of its fields stays."""

    # The id of the call that made the edit.
    call_id: str
    # The kind of the edit, as in `MemoryEdit`.
    op: str
    # The label of the block; "": the edit changes no block.
    label: str
    # The call's own JSON.
    arguments: str
    # The time of the edit, in seconds since the epoch.
    at: float

    @staticmethod
    def of(edit: MemoryEdit) -> StoredEdit:
        """Returns an edit as it is stored."""
        return StoredEdit(edit.call_id, edit.op, edit.label, bytes(edit.arguments).decode(), edit.at)

    def load(self) -> MemoryEdit:
        """Returns the edit, which has no row and no exchange yet."""
        return MemoryEdit(0, 0, self.call_id, self.op, self.label, self.arguments.encode(), at=self.at)


class StoredResult(Struct, frozen=True):
    """The stored result of a call."""

    # The id of the call.
    call_id: str
    # The content, the status, stdout and stderr of the `ToolAnswer`.
    answer: tuple[str, CallStatus, str, str]
    # The `shown` of the `ToolAnswer`.
    shown: dict[str, Any] = {}


class StoredRound(Struct, frozen=True):
    """A stored round of an item: a reply of the model, and the work of its tools."""

    # The reply as JSON.
    reply: Any
    # The results of the reply's calls.
    results: list[StoredResult]
    # The passages and facts that are stored when the turn ends.
    inserts: list[StoredEdit]
    # The tokens of the reply.
    counts: TokenCounts
    # The edits of blocks that were written, each as an array for `load_written_edit`.
    edits: list[list[Any]] = []


class ItemTexts(Struct, frozen=True):
    """The texts of an item, which are stored until its turn is an exchange."""

    # The request of the item, as it was accepted.
    request: ItemRequest
    # The rounds so far, oldest first.
    rounds: Sequence[StoredRound]
    # The state of the last request; None: no request was composed.
    state: RequestState | None

    @staticmethod
    async def load(store: Store, run: Run) -> ItemTexts:
        """Reads the texts of an item. Raises: ItemFailed, StoreError."""

        async def read(kind: RunTextKind) -> list[bytes]:
            return list((await store.batch_items.load_texts(run.agent_row, run.id, kind)).values())

        requests, rounds = await read(RunTextKind.REQUEST), await read(RunTextKind.ROUND)
        states = await read(RunTextKind.REQUEST_STATE)
        if not requests or not requests[0]:
            raise ItemFailed(FORGOTTEN)
        return ItemTexts(
            msgspec.json.decode(requests[0], type=ItemRequest),
            # Read by orjson, as the reply was when it came.
            [msgspec.convert(orjson.loads(data), StoredRound) for data in rounds],
            msgspec.json.decode(states[-1], type=RequestState) if states else None,
        )


def load_written_edit(values: Sequence[Any]) -> WrittenEdit:
    """Returns a written edit from the array in which a stored round has it."""
    block_row, version, *edit = values
    return WrittenEdit(block_row, version, StoredEdit(*edit).load())
