"""Parameters and results of the transactions of jobs that read a memory: learning and embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from storage.commands import LearnedFact
from storage.records import Agent, Block, Message


class UnreadMessages(Struct, frozen=True):
    """The next settled messages that a reader has not read."""

    # The agent of the memory, with its present numbers.
    agent: Agent
    # The last number that the reader has read.
    cursor: int
    # The last number of `messages`.
    upto: int
    # The messages, oldest first.
    messages: Sequence[Message]
    # The names of the tools that were called in an exchange, by exchange.
    tools_used: Mapping[int, Sequence[str]] = msgspec.field(default_factory=dict)
    # True if more messages are settled.
    is_more: bool = False
    # True if later messages will be settled after the idle time.
    is_waiting: bool = False


class LearnedValue(NamedTuple):
    """A new value of a block that was learned."""

    # The block as it was read; a block with the id 0 is created.
    block: Block
    # The new text.
    value: str
    # The rows of the exchanges that the value came from.
    sources: Sequence[int]


class LearnedChanges(Struct, frozen=True):
    """The result of learning from the messages that a reader read."""

    # The new values of blocks.
    writes: Sequence[LearnedValue] = ()
    # The new facts.
    facts: Sequence[LearnedFact] = ()
    # The number of edits that were left out: they could not be read or made, or were too many.
    dropped: int = 0


class UnembeddedMessages(Struct, frozen=True):
    """The next messages of a memory to be embedded."""

    # The agent of the memory, with its present numbers.
    agent: Agent
    # The name of the embedder (`Vector.model`).
    model: str
    # The last number up to which all messages are embedded.
    cursor: int
    # The last number of `messages`.
    upto: int
    # A number that changes with any of these fields.
    stamp: int
    # The messages without a vector, oldest first.
    messages: Sequence[Message] = ()
    # True if the model has embedded no message of the memory, so that the row of its progress has to be inserted.
    is_new: bool = False
