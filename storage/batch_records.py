"""The values of batches: what is stored of them, and what passes between their job and the store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct, field

from storage.commands import BlockMerge, StepOpen
from storage.records import BlockOp, Run, RunState, RunStep

BATCH = "batch"  # the kind of its job
# The stop reason of an item that no provider answered in time.
EXPIRED = "expired"
# The bytes reserved for a value's source, so that its row can be updated later without growing: at most 9 of a number.
SOURCES_ROOM = 40

_ORIGIN = re.compile(r"tool:(?:([0-9a-f]{32})/)?(.*)", re.DOTALL)


class BatchState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Batch(Struct, frozen=True):
    """Sends to many agents, answered at a provider's own time. callback: the URL that is called when it ends."""

    id: int
    uid: str
    project: str
    state: BatchState
    created: float
    ended: float | None = None
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
    # Its run; None: its agent was deleted.
    run: Run | None
    # Its public uid.
    agent: str
    project: str
    # The part of the batch with which its request is at a provider; 0: it is ready for the next one; -1: it has ended.
    part: int
    # How many of its requests have ended.
    sent: int
    # Errors and expired requests since the last that succeeded.
    errors: int
    expiries: int
    # The exchange that it goes on from (0: none), and the epoch of its memory then; None until it begins.
    last_exchange: int | None
    epoch: int | None
    # Its name.
    conversation: str | None = None

    def why(self, error_message: str | None) -> str | None:
        """Returns why it failed, None where it did not. error_message: the stored part of the message."""
        return error_message or (None if self.run is not None else "The agent was deleted.")

    @property
    def state(self) -> str:
        """As `BatchCounts` names it."""
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
    """Returns the item's run, or "", and the call that have written in a block; None: no tool has."""
    found = _ORIGIN.fullmatch(origin)
    return None if found is None else (found[1] or "", found[2])


class ItemDraft(Struct, frozen=True):
    """An item as it is accepted. run: its id 0. request: JSON. uid: of the agent's own conversation, if it begins."""

    run: Run
    request: bytes
    uid: str


class AssignedItem(Struct, frozen=True):
    """An item that goes into a part. asked: JSON, how it was asked."""

    agent: int
    run: int
    last_exchange: int
    epoch: int
    asked: bytes


class RoundWrite(Struct, frozen=True):
    """A round of an item that goes on: a reply after its tools have run.

    sent: which of its requests it is.
    """

    item: BatchItem
    # Of the round.
    number: int
    # JSON, without its edits, which are added as written: [block, version, operation] each.
    data: Mapping[str, object]
    # edits, versions: as in `StepOpen`.
    edits: BlockMerge
    versions: Mapping[int, int]
    # Of the call of the model, with those that the model wrote.
    tokens: int
    now: float
    output: int = 0


class ItemEnd(Struct, frozen=True):
    """The end of an item."""

    item: BatchItem
    # state, stop: of its run.
    state: RunState
    stop: str
    now: float
    # Why it failed, or "".
    error_message: str = ""
    tokens: int = 0
    # Of these, those that the model wrote.
    output: int = 0
    # Its exchange, whole; None: it is not stored.
    turn: StepOpen | None = None
    # The call of the model, with the tokens of all of its calls; its exchange does not count.
    step: RunStep | None = None
    rounds: int = 0
    # Of earlier rounds, as they were written.
    edits: Sequence[tuple[int, int, BlockOp]] = ()
    # What enters with the turn; its exchange has no row yet.
    merged: BlockMerge = field(default_factory=BlockMerge)
    # Of the blocks on which its writes were made, by block.
    versions: Mapping[int, int] = field(default_factory=dict)


class ItemBack(Struct, frozen=True):
    """An item that is sent again, since its request had no result. part: with which; 0: with the next one."""

    item: BatchItem
    errors: int
    expiries: int
    part: int = 0


ItemWrite = RoundWrite | ItemEnd | ItemBack
