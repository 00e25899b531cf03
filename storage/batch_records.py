"""The values of batches: stored records, and the parameters and results of the transactions of a batch's job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field

from storage.commands import BlockMerge
from storage.records import MemoryEdit
from storage.run_commands import StepOpen
from storage.run_records import Run, RunState, TokenCounts

# The kind of a batch's job.
BATCH_JOB = "batch"
# The value of `BatchItem.part` for an item that is ready for the next part.
READY_PART = 0
# The value of `BatchItem.part` for an item that has ended.
ENDED_PART = -1
# The stop reason of an item that no provider answered in time.
EXPIRED = "expired"
# The bytes that are reserved for the sources of a value that an item writes into a block. The item's exchange has no
# row yet, and the row of the value must not grow when the exchange becomes a source.
SOURCES_ROOM = 40

_ORIGIN = re.compile(r"tool:(?:([0-9a-f]{32})/)?(.*)", re.DOTALL)


class BatchState(StrEnum):
    """The state of a batch. A batch in one of the last three states has ended."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Batch(Struct, frozen=True):
    """Messages to many agents, which a provider answers when it has time."""

    # The row of the batch.
    id: int
    # The public id of the batch.
    uid: str
    # The project of the batch.
    project: str
    # The state of the batch.
    state: BatchState
    # The time at which the batch was created, in seconds since the epoch.
    created: float
    # The time at which the batch ended, in seconds since the epoch; None: the batch has not ended.
    ended: float | None = None
    # The URL that is called when the batch ends; None: no URL is called.
    callback: str | None = None

    @property
    def is_over(self) -> bool:
        """True if the batch has ended."""
        return self.state not in (BatchState.CREATED, BatchState.RUNNING)


class BatchCounts(Struct, frozen=True):
    """The numbers of items, each by the name of their state. An item of a deleted agent has failed."""

    waiting: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """The number of all items."""
        return self.waiting + self.running + self.ended

    @property
    def ended(self) -> int:
        """The number of items that have ended."""
        return self.completed + self.failed + self.expired + self.cancelled


class OpenBatches(NamedTuple):
    """The numbers of batches in each state, and of the items of batches that have not ended."""

    # The number of batches by their state.
    states: Mapping[BatchState, int]
    # The numbers of items of the batches that have not ended.
    items: BatchCounts


class BatchItem(Struct, frozen=True):
    """An item of a batch."""

    # The row of the item.
    id: int
    # The item's run; None: the agent was deleted.
    run: Run | None
    # The public id of the item's agent.
    agent_uid: str
    # The project of the item's batch.
    project: str
    # The number of the item's part: the items of a batch whose requests are submitted to an upstream together.
    # READY_PART or ENDED_PART: the item is in no part.
    part: int
    # The number of the item's request under way, or otherwise of the next request. A request that ends without a reply
    # does not raise the number: its reply may still come, and the reply's tokens count.
    request_number: int
    # The number of requests that had an error since the last request that succeeded.
    errors: int
    # The number of requests that expired since the last request that succeeded.
    expiries: int
    # The row of the exchange that the item continues (0: no exchange); None: the item has not begun.
    last_exchange: int | None
    # The memory's epoch when the item began.
    epoch: int | None
    # The name of the item's conversation, or "" if it is gone.
    conversation_name: str = ""

    def explain_failure(self, error_message: str | None) -> str | None:
        """Returns why the item failed; None: the item has not failed.

        error_message: the message of the item's error; None: no message is stored.
        """
        return error_message or (None if self.run is not None else "The agent was deleted.")

    @property
    def state(self) -> str:
        """The item's state, by its name in `BatchCounts`."""
        if self.run is None:
            return "failed"
        return compute_item_state(self.run.state, self.run.stop)


def compute_item_state(state: str | None, stop: str | None) -> str:
    """Returns the state of an item by its run's state and stop reason. state: None if the run is gone."""
    if state is None or state == RunState.CREATED:
        return "failed" if state is None else "waiting"
    return EXPIRED if state == RunState.FAILED and stop == EXPIRED else str(state)


def make_call_origin(run: str, call_id: str = "") -> str:
    """Returns the origin of a value that a call of an item writes into a block. run: the uid of the item's run."""
    return f"tool:{run}/{call_id}"


class OriginCall(NamedTuple):
    """The call of a tool from which a block's value came."""

    # The public id of the run; "": the origin names no run.
    run: str
    # The id of the call.
    call: str


def parse_call_origin(origin: str) -> OriginCall | None:
    """Returns the call from which a block's value came; None: the value came from no tool."""
    match = _ORIGIN.fullmatch(origin)
    return None if match is None else OriginCall(match[1] or "", match[2])


class ItemDraft(Struct, frozen=True):
    """An item as it is accepted."""

    # The item's run, with the id 0.
    run: Run
    # The request of the item, as JSON.
    request: bytes
    # The public id of the agent's own conversation, if the conversation begins with the item.
    uid: str


class AssignedItem(Struct, frozen=True):
    """An item that is assigned to a part."""

    # The row of the item's agent.
    agent_row: int
    # The row of the item's run.
    run_row: int
    # The row of the exchange that the item continues; 0: no exchange.
    last_exchange: int
    # The memory's epoch when the item began.
    epoch: int
    # The state of the item's request to the model, as JSON.
    request_state: bytes


class ItemRound(Struct, frozen=True):
    """A round of an item that goes on: a reply with calls, and the results of the calls."""

    # The item as it was before the round.
    item: BatchItem
    # The number of the round.
    number: int
    # The round as JSON without its edits. Each edit is added once it is written, as [block, version, operation].
    data: Mapping[str, object]
    # The memory edits of the round.
    edits: BlockMerge
    # The versions of the blocks on which these edits were made, by block.
    versions: Mapping[int, int]
    # The tokens of the call of the model.
    counts: TokenCounts
    # The present time, in seconds since the epoch.
    now: float

    @property
    def epoch(self) -> int | None:
        return self.item.epoch


class WrittenEdit(NamedTuple):
    """A memory edit that an item has written into a block before its turn has ended."""

    # The row of the block.
    block_row: int
    # The version of the block that the edit has made.
    version: int
    # The edit.
    edit: MemoryEdit


class ItemEnd(Struct, frozen=True):
    """The end of an item."""

    # The item as it was before its end.
    item: BatchItem
    # The state in which the item's run ends.
    state: RunState
    # The stop reason of the item's run.
    stop: str
    # The present time, in seconds since the epoch.
    now: float
    # Why the item failed; "": the item has not failed.
    error_message: str = ""
    # The epoch of the memory that the item's turn or error message may quote; None: neither quotes a memory.
    epoch: int | None = None
    # The tokens of the item's last request.
    counts: TokenCounts = TokenCounts()
    # The item's complete exchange; None: no exchange is stored.
    turn: StepOpen | None = None
    # The time when the item's first request was composed, in seconds since the epoch; 0.0: no exchange is stored.
    began_at: float = 0.0
    # The tokens of all calls of the model; zeros if no exchange is stored.
    turn_counts: TokenCounts = TokenCounts()
    # The number of the item's rounds, the last one included.
    rounds: int = 0
    # The edits of the rounds before the last one.
    edits: Sequence[WrittenEdit] = ()
    # The edits that are written with the turn; their exchange has no row yet.
    merged: BlockMerge = field(default_factory=BlockMerge)
    # The version of a block on which the first of the `merged` edits was made, by block.
    versions: Mapping[int, int] = field(default_factory=dict)


class ItemRetry(Struct, frozen=True):
    """An item to send again, since its request had no result."""

    # The item as it was before the retry.
    item: BatchItem
    # The item's new `BatchItem.errors`.
    errors: int
    # The item's new `BatchItem.expiries`.
    expiries: int
    # The part with which the item is sent again.
    part: int = READY_PART


ItemWrite = ItemRound | ItemEnd | ItemRetry
