"""The records of what an operator, and a person, is shown of a memory.

An operation of this room returns them. The command line prints them, a template of the page renders them, and the
`.json` twin of its URL has their fields by these names. Times are seconds since the epoch; None is not known.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import UNSET, Struct, UnsetType

MemoryKind = Literal["user", "conversation", "agent"]
SourceKind = Literal["message", "fact", "passage"]
BlockOrigin = Literal[
    "default", "tool", "learning", "undo", "forget", "api", "operator", "person", "sleeptime", "mcp"
]
BLOCK_ORIGINS: tuple[BlockOrigin, ...] = get_args(BlockOrigin)
FactOrigin = Literal["learned", "model", "operator", "person", "mcp", "import"]


class MemoryRecord(Struct, frozen=True):
    """A memory, as lists and the head of its page show it."""

    uid: str
    kind: MemoryKind
    # The user, the client's conversation id, or the agent's id.
    name: str
    project: str
    profile: str
    created: float
    last_turn: float | None
    # How many it has. `facts`: those that are true.
    conversations: int
    messages: int
    bytes: int
    blocks: int
    facts: int
    # Nothing is remembered or recalled for now.
    paused: bool
    # The name that an agent was given; not set: of others.
    agent_name: str | UnsetType = UNSET


class SourceRecord(Struct, frozen=True):
    """A place where something was said."""

    kind: SourceKind
    seq: int
    # None where it is forgotten.
    text: str | None
    at: float | None
    forgotten: bool = False
    # Its page, relative to /ui/; None: it has none.
    href: str | None = None
    # Its speaker, by name, or "assistant"; not set: the person that the memory is of, and of other kinds.
    speaker: str | UnsetType = UNSET


class FactRecord(Struct, frozen=True):
    """A learned fact."""

    seq: int
    text: str
    about: str
    # Since when it is true, and when it was learned.
    since: float
    learned_at: float
    # Until when it was true, and the number of the fact that is true instead.
    until: float | None
    successor: int | None
    # It stays in lists, and no note, search tool or summary has it.
    muted: bool
    origin: FactOrigin
    sources: tuple[SourceRecord, ...] = ()
    # It always holds, so each prompt has it whatever is asked; not set: of all others.
    always: bool | UnsetType = UNSET


class BlockRecord(Struct, frozen=True):
    """A memory block as it is now."""

    label: str
    description: str
    value: str
    version: int
    # Characters: of the value, and the most that it may have.
    chars: int
    limit: int
    read_only: bool
    shared: bool
    changed_at: float | None
    origin: str
    # Edits of turns that are not confirmed yet.
    waiting: int


class VersionRecord(Struct, frozen=True):
    """A value that a block had."""

    version: int
    at: float
    origin: BlockOrigin
    # The version that it brought back.
    restores: int | None
    chars: int
    value: str
    sources: tuple[SourceRecord, ...] = ()


class ShownCall(Struct, frozen=True):
    """A call of a tool: the client's own, which has no result here, or one of the gateway's, which it has not seen."""

    tool: str
    arguments: str
    result: str


class MessageRecord(Struct, frozen=True):
    """A message of a conversation."""

    seq: int
    exchange: int
    role: str
    speaker: str | None
    at: float
    text: str | None
    state: Literal["standing", "superseded", "cancelled", "off", "forgotten"]
    # The number of its images.
    images: int = 0
    # Its calls of tools, which the JSON calls rounds.
    rounds: tuple[ShownCall, ...] = ()
    # The recalled text that was placed before the message.
    note: str | None = None
    # Of a reply: the id of the request that it answers.
    request: str | None = None
