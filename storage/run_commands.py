"""Parameters and results of the transactions of runs, in which a send to a stored conversation reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from storage.commands import BlockMerge, MemorySnapshot, RecallRow
from storage.job_records import Job
from storage.records import Agent, Block, Exchange, SentSection, Summary
from storage.run_records import Run, RunState, RunStep, WaitKind


class ConversationPath(Struct, frozen=True):
    """The path of a stored conversation; empty if the conversation has not begun."""

    # The snapshot of the memory, with the conversation if it has begun.
    snapshot: MemorySnapshot
    # The exchanges with their content, oldest first, from the beginning of the window to the head.
    path: Sequence[Exchange] = ()
    # The summaries of the path, newest first.
    summaries: Sequence[Summary] = ()


class StepOpen(Struct, frozen=True):
    """The beginning of a step, in one transaction."""

    # The agent of the conversation.
    agent: Agent
    # The client's id of the conversation.
    key: str
    # The public id of the conversation, if it is new.
    uid: str
    # The conversation's row; None: the conversation begins with this step.
    conversation_row: int | None
    # The conversation's rev when it was read.
    rev: int
    # The present time, in seconds since the epoch.
    now: float
    # The exchange with the new messages; its id is below 0.
    exchange: Exchange
    # The run that begins with this step; None: a run that has begun continues.
    run: Run | None = None
    # The earlier run of the same send, which has ended and hands its otid to this run.
    replaces: int | None = None
    # The memory section of the path; a section with the id 0 is stored with the step.
    section: SentSection | None = None
    # The agent's own blocks, to be made with the agent's first use.
    defaults: Sequence[Block] = ()
    # The blocks that the agent's profile shares, to be made with the agent's first use.
    shared: Sequence[Block] = ()
    # The memory edits of the previous step; the `exchange_row` of each operation is the previous step's.
    edits: BlockMerge = msgspec.field(default_factory=lambda: BlockMerge())
    # The versions of the blocks on which those edits were made, by block.
    versions: Mapping[int, int] = msgspec.field(default_factory=dict)
    # True if the conversation was a client's conversation, and becomes a stored one.
    adopts_conversation: bool = False
    # If `adopts_conversation`: the rows of the exchanges of the continued path. Their edits are confirmed.
    continued: Sequence[int] = ()
    # The exchange that a process left open when it died, in its final form.
    abandoned: Exchange | None = None
    # A refused exchange that the step replaces, in its new state.
    replaced: Exchange | None = None
    # The stored request of an accepted run, without the messages, which are in the exchange now; None: no request is
    # stored.
    request: bytes | None = None
    # The end of the run, if the run ends with this step and the exchange has no reply.
    end: RunEnd | None = None
    # The part of a memory that the run reads, from which its edits come.
    reading: ReadSpan | None = None
    # The attempt of a job that performs the run, and alone may write it; None: no job performs the run.
    job: Job | None = None


class StepOpened(Struct, frozen=True):
    """A step that has begun, with the numbers under which it is stored."""

    # The agent as it is stored now.
    agent: Agent
    # The exchange of the step, with its row and its number.
    exchange: Exchange
    # The conversation's present rev.
    rev: int
    # The memory section of the path; None: the path has none.
    section: SentSection | None
    # The run that began with the step; None: no run began.
    run: Run | None


class StepEnd(Struct, frozen=True):
    """The end of a step, in one transaction."""

    # The agent of the conversation.
    agent: Agent
    # The exchange of the step, complete.
    exchange: Exchange
    # The call of the model, with its tokens and its outcome.
    step: RunStep
    # The results of the step's calls, as in `RunEnd`.
    results: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    # The part of a memory that was read, if the run ends well.
    reading: ReadSpan | None = None
    # The runs that the step's end makes due; an agent that reads already is left out.
    accepts: Sequence[RunAccept] = ()
    # The message of the error that ended the run; "": no error ended the run.
    error_message: str = ""
    # The HTTP status of that error; 0: no error ended the run.
    error_status: int = 0
    # Makes the record of the step's recall, without side effects; None: no record is made.
    recall: Callable[[], RecallRow] | None = None
    # The attempt of a job that performs the run, and alone may write it; None: no job performs the run.
    job: Job | None = None


class RunAccept(Struct, frozen=True):
    """A run that goes on without its client, to be accepted in one transaction with its request and its job."""

    # The run as it will be stored, with the id 0. Its agent exists. Conversation 0 stands for the conversation with the
    # key `key`, which begins with the public id `uid` if it does not exist.
    run: Run
    # The request of the run, as JSON.
    request: bytes
    # The key of the run's conversation, if the run has conversation 0.
    key: str = "default"
    # The public id of that conversation, if it begins with the run.
    uid: str = ""
    # The kind of the job that performs the run, with the run's uid as key and {"run": its row} as payload; "" for no
    # job: the accepting process performs the run.
    kind: str = "run"
    # The run that this run replaces, as in `StepOpen`.
    replaces: int | None = None
    # The memory that the run reads. The job then belongs to that memory, which has one job of the kind for all its
    # runs.
    read_memory_row: int | None = None
    # The form in which the run's messages are listed, as JSON, stored as long as the run; None: the usual form.
    listing: bytes | None = None


class EnqueuedResponse(NamedTuple):
    """The run of a response that was accepted."""

    # The run, as it is stored.
    run: Run
    # True if the run was created now; False if the same response was accepted before.
    is_new: bool


class ResponseEnd(Struct, frozen=True):
    """The end of a response in the background."""

    # The state in which the run ends.
    state: RunState
    # The time of the end, in seconds since the epoch.
    at: float
    # The response as it is shown, as JSON.
    shown: bytes
    # The name of the turn in which the response is stored; None: no turn is stored.
    turn: bytes | None
    # The last events of the response, as they are streamed.
    events: bytes
    # The number of the last event.
    last_number: int
    # The epoch of the memory when these events were made.
    epoch: int


class ReadSpan(Struct, frozen=True):
    """The part of a memory that a sleeptime agent's run reads."""

    # The row of the memory that is read.
    memory_row: int
    # The row of the agent's own memory.
    reader_row: int
    # The number before the first message of the part.
    cursor: int
    # The number of the last message of the part.
    upto: int
    # The exchanges of the part, which are noted as the sources of the values that the run writes into blocks.
    exchanges: Sequence[int] = ()


class RunEnd(Struct, frozen=True):
    """The end of a run after its last step was written."""

    # The row of the run's agent.
    agent_row: int
    # The row of the run.
    run_row: int
    # The state in which the run ends.
    state: RunState
    # Why the run ended.
    stop: str
    # The time of the end, in seconds since the epoch.
    at: float
    # The exchange of the step with which the run ended; None: the step stays as it is.
    exchange_row: int | None = None
    # The epoch of the memory when the run's last step was written.
    epoch: int = 0
    # The calls that wait, as in `RunStep`.
    waiting: Mapping[str, WaitKind] = msgspec.field(default_factory=dict)
    # The results of that step's calls that are in no later step: messages as JSON, by their numbers among the texts of
    # the run.
    results: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    # The memory edits after these results, as in `StepOpen`.
    edits: BlockMerge = msgspec.field(default_factory=lambda: BlockMerge())
    # The versions of the blocks on which those edits were made, by block.
    versions: Mapping[int, int] = msgspec.field(default_factory=dict)
    # The part of a memory that was read, as in `StepEnd`.
    reading: ReadSpan | None = None
    # The message of the error that ended the run; it quotes no content.
    error_message: str = ""
    # The attempt of a job that performs the run, and alone may write it; None: no job performs the run.
    job: Job | None = None
