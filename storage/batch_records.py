"""The values of batches: what is stored of them, and what passes between their job and the store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct, field

from storage.commands import BlockMerge, StepOpen
from storage.records import BlockOp, Run, RunState, RunStep

# The kind of a batch's job.
BATCH_JOB = "batch"
# As `BatchItem.part`: the item is ready for the next part, and it has ended.
READY_PART, ENDED_PART = 0, -1
# The stop reason of an item that no provider answered in time.
EXPIRED = "expired"
# The bytes reserved for the sources of a value that an item writes into a block: its exchange has no row yet, and to
# note that later must not make the value's row grow.

SOURCES_ROOM = 40

_ORIGIN = re.compile(r"tool:(?:([0-9a-f]{32})/)?(.*)", re.DOTALL)


class BatchState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Batch(Struct, frozen=True):
    """Sends to many agents, answered at a provider's own time."""

    id: int
    uid: str
    project: str
    state: BatchState
    created: float
    ended: float | None = None
    # The URL that is called when it ends.
    callback: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state not in (BatchState.CREATED, BatchState.RUNNING)


class BatchCounts(Struct, frozen=True):
    """How many items of a batch are in each state. An item of a deleted agent has failed."""

    waiting: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.running + self.ended

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.expired + self.cancelled


class BatchItem(Struct, frozen=True):
    """An item of a batch."""

    id: int
    # The item's run; None: its agent was deleted.
    run: Run | None
    # The public name of the item's agent.
    agent: str
    project: str
    # The part of the batch with which its request is at a provider; READY_PART, ENDED_PART.
    part: int
    # The number of its request that is under way, or of the next one. An end without a reply does not raise it, since a
    # reply may still come, whose tokens count.
    request_number: int
    # How many requests had an error, and how many expired, since the last one that succeeded.
    errors: int
    expiries: int
    # The exchange that it continues (0: none), and the epoch of its memory then; None until it begins.
    last_exchange: int | None
    epoch: int | None
    # The name of its conversation; "": that is gone.
    conversation: str = ""

    def failure_reason(self, error_message: str | None) -> str | None:
        """Returns why it failed; None where it did not. error_message: the stored message of the error."""
        return error_message or (None if self.run is not None else "The agent was deleted.")

    @property
    def state(self) -> str:
        """The item's state, by its name in `BatchCounts`."""
        if self.run is None:
            return "failed"
        return item_state(self.run.state, self.run.stop)


def item_state(state: str | None, stop: str | None) -> str:
    """Returns the state of an item by that of its run. state: None: the run is gone."""
    if state is None or state == RunState.CREATED:
        return "failed" if state is None else "waiting"
    return EXPIRED if state == RunState.FAILED and stop == EXPIRED else str(state)


def origin_of_call(run: str, call_id: str = "") -> str:
    """Returns the origin of what an item's call writes in a block, before there is an exchange. run: its uid."""
    return f"tool:{run}/{call_id}"


def call_of_origin(origin: str) -> tuple[str, str] | None:
    """Returns the item's run, or "", and the call that have written in a block; None if no tool has."""
    match = _ORIGIN.fullmatch(origin)
    return None if match is None else (match[1] or "", match[2])


class ItemDraft(Struct, frozen=True):
    """An item as it is accepted."""

    # The item's run, with the id 0.
    run: Run
    # The request of the item, as JSON.
    request: bytes
    # The public name of the agent's own conversation, if that begins with the item.
    uid: str


class AssignedItem(Struct, frozen=True):
    """An item that is assigned to a part."""

    agent: int
    run: int
    last_exchange: int
    epoch: int
    # How the model is asked, as JSON.
    asked: bytes


class ItemRound(Struct, frozen=True):
    """A round of an item that goes on: a reply, once its tools have run."""

    item: BatchItem
    # The number of the round.
    number: int
    # The round as JSON, without its edits, which are added as they were written: [block, version, operation] each.
    data: Mapping[str, object]
    # The memory edits of the round.
    edits: BlockMerge
    # The versions of the blocks on which these edits were made, by block.
    versions: Mapping[int, int]
    # The tokens of the call of the model: input and output.
    tokens: int
    now: float
    # The output tokens among `tokens`.
    output: int = 0

    @property
    def epoch(self) -> int | None:
        return self.item.epoch


class ItemEnd(Struct, frozen=True):
    """The end of an item."""

    item: BatchItem
    # State and stop reason of its run.
    state: RunState
    stop: str
    now: float
    # Why it failed, or "".
    error_message: str = ""
    # The epoch of the memory that its turn or message may quote; None: they quote nothing.
    epoch: int | None = None
    # The input and output tokens of the item's last request.
    tokens: int = 0
    # The output tokens among `tokens`.
    output: int = 0
    # The item's exchange, complete; None: it is not stored.
    turn: StepOpen | None = None
    # The last call of the model, with the tokens of all calls. Its `exchange` is ignored.
    step: RunStep | None = None
    rounds: int = 0
    # The edits of earlier rounds: (block, version, operation), as they were written.
    edits: Sequence[tuple[int, int, BlockOp]] = ()
    # The edits that are written with the turn; their exchange has no row yet.
    merged: BlockMerge = field(default_factory=BlockMerge)
    # The version of a block on which the first of the `merged` edits was made, by block.
    versions: Mapping[int, int] = field(default_factory=dict)


class ItemRetry(Struct, frozen=True):
    """An item that is sent again, since its request had no result."""

    item: BatchItem
    errors: int
    expiries: int
    # The part with which it is sent again.
    part: int = READY_PART


ItemWrite = ItemRound | ItemEnd | ItemRetry
