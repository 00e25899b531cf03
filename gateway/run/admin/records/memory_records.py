"""The records in which a memory is shown to an operator, or to its person.

The operations of this room return them. The command line prints them, a template of the page renders them, and the
`.json` twin of the page has their fields by these names. Times are seconds since the epoch; None: the time is unknown.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from msgspec import UNSET, Struct, UnsetType

from storage.records import MUTED, Message

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
    # The time of the last turn; None: no turn yet.
    last_turn: float | None
    # How much the memory has. `facts` counts the facts that are true now.
    conversations: int
    messages: int
    bytes: int
    blocks: int
    facts: int
    # True: nothing is remembered or recalled for now.
    paused: bool
    # The name that an agent was given; not set for other kinds of memories.
    agent_name: str | UnsetType = UNSET


class SourceRecord(Struct, frozen=True):
    """A message, fact or passage in which something was stated."""

    kind: SourceKind
    # The number of the text in its memory.
    seq: int
    # The text itself; None: the text is forgotten.
    text: str | None
    # The time at which it was stated.
    at: float | None
    # True: the text was forgotten.
    forgotten: bool = False
    # The page that shows it, relative to /ui/; None: no page does.
    href: str | None = None
    # The speaker of a message: a name, or "assistant"; not set for the memory's person, or if it is no message.
    speaker: str | UnsetType = UNSET


class FactRecord(Struct, frozen=True):
    """A learned fact."""

    # The number of the fact in its memory.
    seq: int
    text: str
    # The subject of the fact.
    about: str
    # The time since which it is true.
    since: float
    # The time at which it was learned.
    learned_at: float
    # The time until which the fact was true; None: the fact is true.
    until: float | None
    # The number of the fact that is true instead, if there is one.
    successor: int | None
    # True: only lists show the fact; notes, search tools and summaries do not.
    muted: bool
    # The way in which the fact was made.
    origin: FactOrigin
    # The texts from which the fact was learned.
    sources: tuple[SourceRecord, ...] = ()
    # True: the fact always holds, so each prompt has it, whatever is asked; not set for other facts.
    always: bool | UnsetType = UNSET
    # True: an undo ended the fact, which was a correction; not set for other facts.
    taken_back: bool | UnsetType = UNSET


class BlockRecord(Struct, frozen=True):
    """A memory block as it is now."""

    label: str
    # The text that explains the block to the model.
    description: str
    value: str
    # The number of the value.
    version: int
    # The characters of the value, and the most that it may have.
    chars: int
    limit: int
    # True: models cannot change the block.
    read_only: bool
    # True: several memories have the block.
    shared: bool
    # The time of the last change.
    changed_at: float | None
    # The way of the last change.
    origin: str
    # The number of edits by turns that are not confirmed yet.
    waiting: int


class VersionRecord(Struct, frozen=True):
    """A value that a block had."""

    version: int
    # The time at which the block got this value.
    at: float
    # The way in which it got the value.
    origin: BlockOrigin
    # The version that it brought back.
    restores: int | None
    # The characters of the value.
    chars: int
    value: str
    # The messages and facts from which the value was made.
    sources: tuple[SourceRecord, ...] = ()


class ShownCall(Struct, frozen=True):
    """A call of a tool: of the client's, with no result here, or of the gateway's, which the client has not seen."""

    tool: str
    arguments: str
    result: str


class MessageRecord(Struct, frozen=True):
    """A message of a conversation."""

    # The number of the message in its memory.
    seq: int
    # The number of its exchange.
    exchange: int
    role: str
    # The name of its speaker; None: the message names no speaker.
    speaker: str | None
    at: float
    # The text, perhaps cut; None: the message has none, or it is gone.
    text: str | None
    # The state of its turn.
    state: Literal["standing", "superseded", "cancelled", "off", "forgotten"]
    # The number of its images.
    images: int = 0
    # The calls of tools in a reply, which the JSON calls rounds.
    rounds: tuple[ShownCall, ...] = ()
    # The recalled text that was placed before the message.
    note: str | None = None
    # For a reply: the id of the request that it answers.
    request: str | None = None
    # For a whole exchange without text: the number of its last message; not set: it has a question and its reply.
    last_seq: int | UnsetType = UNSET


def get_source_kind(message: Message) -> SourceKind:
    """Returns the kind under which a text is shown. A muted fact is shown as a fact."""
    return "fact" if message.kind == MUTED else cast(SourceKind, message.kind)


def read_speaker(message: Message) -> str | UnsetType:
    """Returns the speaker of a message, as in `SourceRecord`."""
    if get_source_kind(message) != "message":
        return UNSET
    return message.speaker or (UNSET if message.role == "user" else message.role)
