"""The target of a forgetting as it is written down, and the parameters of each transaction that erases a part of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from msgspec import Struct

from storage.database import Connection
from storage.forget_commands import ForgetTarget
from storage.sql.additions import ErasedPartReading
from storage.store_rules import Rules

# The rows of one transaction. A row was measured at 20 to 60 us, and a bulk write should stay below 5 ms.
PAGE_ROWS = 32

# Erases a page in a transaction of its own, and returns the position of the next page; None: the phase is over. It gets
# the position of its page, which is 0 for the first page. Each phase decides what its positions count.
ErasingPhase = Callable[[Connection, "ErasingWork", int], Awaitable[int | None]]


class ForgottenProfile(NamedTuple):
    """The project and the profile of a memory."""

    project: str
    profile: str


class StoredTarget(ForgetTarget, frozen=True):
    """The target of a forgetting as it is written down in `forgetting`."""

    # The profile of a memory that is forgotten as a whole, since its row is gone; None: a part is forgotten.
    all: ForgottenProfile | None = None


class ErasingWork(Struct, frozen=True):
    """The parameters of one transaction."""

    # The row of the forgetting.
    id: int
    # The row of the memory's agent.
    agent_row: int
    # The part of the memory that is erased.
    target: StoredTarget
    # The rules that decide whether a text quotes erased content.
    rules: Rules
    # The present time, in seconds since the epoch.
    now: float
    # The marks of the erased content that this attempt at the forgetting has read.
    reading: ErasedPartReading
