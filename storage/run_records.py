"""Runs of agents, and their steps, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from msgspec import Struct, field


class RunState(StrEnum):
    """The state of a run. A run in one of the last three states has ended, and does not change any more."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunTextKind(StrEnum):
    """The kind of a text of a run. Statements that choose texts, for instance to erase them, name these kinds."""

    # The request of the send: until its messages are in exchanges the whole request, then its options alone.
    REQUEST = "request"
    # The form in which the messages of the run are listed, as the send chose it.
    LISTING = "listing"
    # The state of a request of a batch's item to the model; the last one counts.
    REQUEST_STATE = "asked"
    # A reply of the model and the results of its calls, until the turn of a batch's item is an exchange.
    ROUND = "round"
    # A reply of the model with calls that leave the gateway (`CallJournal`).
    REPLY = "reply"
    # A call that leaves the gateway, stored before the call is made.
    CALL = "call"
    # The result of a call that leaves the gateway.
    RESULT = "result"
    # Events of the run, as a client reads them.
    EVENT = "event"
    # A response, as it is shown, without a stored turn.
    RESPONSE = "response"
    # The name of a turn that a response has begun.
    TURN = "turn"
    # The result of an attempt to call the client back.
    CALLBACK = "callback"
    # The error that ended the run: its message (seq 0) and its HTTP status (seq 1).
    ERROR = "words"


class TokenCounts(NamedTuple):
    """The tokens of model calls."""

    # The tokens of the prompts.
    prompt: int = 0
    # The tokens of the completions.
    completion: int = 0
    # The tokens of the prompt that were read from the provider's cache.
    cached: int = 0
    # The tokens of the prompt that were written to the provider's cache.
    written: int = 0
    # The tokens of the completion that are thoughts.
    reasoning: int = 0

    @property
    def total(self) -> int:
        """The tokens of the prompts and the completions."""
        return self.prompt + self.completion

    def plus(self, *others: Sequence[int]) -> TokenCounts:
        """Returns the sum of these counts and others. others: counts, each with the fields in this order."""
        return TokenCounts(*map(sum, zip(self, *others, strict=True)))


class Run(Struct, frozen=True):
    """One send to a stored conversation, from its message to its stop reason."""

    # The row of the run; 0: the run is not stored yet.
    id: int
    # The public id of the run.
    uid: str
    # The row of the run's agent.
    agent_row: int
    # The row of the run's conversation.
    conversation_row: int
    # The state of the run.
    state: RunState
    # The time at which the run was made, in seconds since the epoch.
    created: float
    # The row of the run that waits for the end of this run; None: no run waits.
    parent: int | None = None
    # The number of runs that wait for this run: its parent, the parent's parent and so on.
    depth: int = 0
    # The row of the batch that the run is an item of; None: the run is no item of a batch.
    batch: int | None = None
    # True if the run goes on when its client leaves, and after a restart.
    background: bool = False
    # Why the run ended; None: the run has not ended.
    stop: str | None = None
    # The number of steps so far.
    steps: int = 0
    # The tokens of all steps so far.
    counts: TokenCounts = TokenCounts()
    # The time at which the run's first exchange began, in seconds since the epoch; for a run without an exchange, the
    # time at which the exchange began that has the calls which the run answers. None: the run has not begun.
    begun: float | None = None
    # The time at which the run ended, in seconds since the epoch; None: the run has not ended.
    ended: float | None = None
    # The keyed hash of the send's own id; None: the send has no id. Of the runs of a send that came twice, only the
    # newest has the hash.
    otid: bytes | None = None

    @staticmethod
    def make_draft(
        uid: str,
        created: float,
        *,
        agent_row: int = 0,
        conversation_row: int = 0,
        parent: int | None = None,
        depth: int = 0,
        background: bool = False,
        otid: bytes | None = None,
    ) -> Run:
        """Returns a run that is not stored and has not begun.

        agent_row, conversation_row: the rows of its agent and its conversation; 0: they are known when it is stored.
        """
        return Run(
            id=0,
            uid=uid,
            agent_row=agent_row,
            conversation_row=conversation_row,
            state=RunState.CREATED,
            created=created,
            parent=parent,
            depth=depth,
            background=background,
            otid=otid,
        )

    @property
    def is_stored(self) -> bool:
        """True if the id is the row of the run."""
        return self.id != 0

    @property
    def is_over(self) -> bool:
        """True if the run has ended."""
        return self.state not in (RunState.CREATED, RunState.RUNNING)


# The event that a call waits for before its run goes on: a person's approval, the client's result, or the approval of
# another call of the same reply ("held").
WaitKind = Literal["approval", "client", "held"]


class RunStep(Struct, frozen=True):
    """A model call of a run, and the exchange that it made."""

    # The row of the exchange that the step made.
    exchange_row: int
    # The row of the agent.
    agent_row: int
    # The row of the step's run.
    run_row: int
    # The number of the step in its run, from 1 on.
    number: int
    # The time at which the step began, in seconds since the epoch.
    begun: float
    # The time at which the step ended, in seconds since the epoch; None: the step has not ended.
    ended: float | None = None
    # The tokens of the call.
    counts: TokenCounts = TokenCounts()
    # Why the run ended with the step; None: the run went on.
    stop: str | None = None
    # The rating of the step: "positive" or "negative"; None: the step was not rated.
    feedback: str | None = None
    # The class of the step's error, never its message; None: the step had no error.
    error: str | None = None
    # The calls that wait, by their ids.
    waiting: dict[str, WaitKind] = field(default_factory=dict)
