"""Values of lists, and of what the agents API changes: pages, filters, drafts, changes, rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

from msgspec import Struct, field

from storage.records import (
    DEFAULT,
    Agent,
    Block,
    Conversation,
    Definition,
    Exchange,
    Passage,
    Run,
    RunState,
    RunStep,
    Scope,
)

MOST_TAGS = 64  # that one list of agents looks for; of more it takes the first ones alone
_LAST = 2**62  # above every number
LAST_NUMBER = _LAST
# The end of a page: a time, and a row.
PageEnd = tuple[float, int]
FIRST_PAGE: PageEnd = (inf, LAST_NUMBER)


class Page(Struct, frozen=True):
    """A page of a list in the order in which its rows were made."""

    # after, before: numbers of rows between which it lies, exclusive, in the order asked for; their rows may
    # be gone.
    after: int | None = None
    before: int | None = None
    limit: int = 50
    newest_first: bool = True

    @property
    def bounds(self) -> tuple[int, int]:
        """The numbers between which it lies, exclusive, the lower one first."""
        first, last = (self.before, self.after) if self.newest_first else (self.after, self.before)
        return (-1 if first is None else first, _LAST if last is None else last)

    @property
    def way(self) -> str:
        """The end of the name of the statement that lists in this order."""
        return "down" if self.newest_first else "up"


class RunFilter(Struct, frozen=True):
    """The runs that are asked for. None: any."""

    agent: int | None = None
    conversation: int | None = None
    states: Sequence[RunState] = tuple(RunState)
    background: bool | None = None
    stop: str | None = None


class RunEntry(Struct, frozen=True):
    """A run as lists show it. key: the client's own id of the conversation."""

    run: Run
    agent_uid: str
    conversation_uid: str
    key: str | None

    @property
    def conversation(self) -> str:
        """The name that all sends to the conversation use: `default`, or its public one."""
        return DEFAULT if self.key == DEFAULT else self.conversation_uid


class StepEntry(Struct, frozen=True):
    """A step as lists show it."""

    step: RunStep
    # The number of its exchange.
    seq: int
    # The upstream and model that made it.
    model: str
    run_uid: str
    agent_uid: str


class AgentChange(Struct, frozen=True, kw_only=True):
    """A change of an agent. None leaves a part as it is; each list replaces the one that the agent has."""

    name: str | None = None
    # The body of its definition.
    body: dict[str, Any] | None = None
    # The public names of the blocks that are attached.
    blocks: Sequence[str] | None = None
    # Rows of definitions; numbers below 0 are built-in tools.
    tools: Sequence[int] | None = None
    tags: Sequence[str] | None = None
    # Rows of the folders' memories.
    folders: Sequence[int] | None = None
    # The tools that the agent has as long as it has a folder.
    folder_tools: Sequence[int] = ()
    # Rows of definitions.
    identities: Sequence[int] | None = None


class AgentDraft(AgentChange, frozen=True, kw_only=True):
    """An agent to be made. It begins without the parts that are None."""

    # Its memory, which is not stored yet.
    agent: Agent
    name: str
    body: dict[str, Any]
    # New blocks, each with the body of its definition.
    own: Sequence[tuple[Block, dict[str, Any]]] = ()


class AgentEntry(Struct, frozen=True):
    """An agent as lists show it. definition: None for a memory of a profile, which the settings configure."""

    agent: Agent
    definition: Definition | None

    @property
    def name(self) -> str:
        if self.definition is not None:
            return self.definition.name
        return f"{self.agent.scope.profile} {self.agent.scope.subject.removeprefix('user:')}"


class ReaderEntry(Struct, frozen=True):
    """A sleeptime agent that reads a memory."""

    # Its row.
    reader: int
    # Its public name.
    uid: str
    # Up to where it has read.
    seq: int
    # Those after that, which it is to read.
    turns: int


class AgentFilter(Struct, frozen=True):
    """The agents that are asked for. None: any."""

    name: str | None = None
    # A part of the name.
    text: str | None = None
    # Of which it has one, or all.
    tags: Sequence[str] = ()
    all_tags: bool = False
    # Why its last run ended.
    stop: str | None = None
    # A public name.
    identity: str | None = None
    # Of which one is such an identity's.
    identity_keys: Sequence[str] = ()
    # Created, updated or completed.
    order: str = "created"
    # With those that are hidden.
    hidden: bool = False


class BlockEntry(Struct, frozen=True):
    """A block as the agents API knows it."""

    block: Block
    # The agent with which it ends; None: no agent, or a profile.
    owner: int | None
    # The profile of the users that share it; "" for none.
    profile: str
    # Its details: metadata, tags, hidden.
    details: dict[str, Any]


class BlockFilter(Struct, frozen=True):
    """The blocks that are asked for. None: any."""

    label: str | None = None
    # label_text, description, value: a part of each.
    label_text: str | None = None
    description: str | None = None
    value: str | None = None
    # least, most: how many agents have it.
    least: int = 0
    most: int = 2**31
    tags: Sequence[str] = ()
    all_tags: bool = False
    name: str | None = None
    hidden: bool = False


class BlockChange(Struct, frozen=True):
    """A change of a block. None: as it is."""

    value: str | None = None
    label: str | None = None
    description: str | None = None
    limit: int | None = None
    read_only: bool | None = None
    details: dict[str, Any] | None = None


class PassageDraft(Struct, frozen=True):
    """A passage to be saved. at: its time, in seconds since the epoch."""

    text: str
    at: float
    tags: Sequence[str] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


class PassageFilter(Struct, frozen=True):
    """The passages that are asked for. None: any."""

    # A substring of them.
    text: str | None = None
    # since, until: when they were saved.
    since: float | None = None
    until: float | None = None
    # Of which one has one, or all.
    tags: Sequence[str] = ()
    all_tags: bool = False

    def takes(self, passage: Passage) -> bool:
        """Returns whether a passage is among them, by its tags and its time."""
        missing = set(self.tags) - set(passage.tags)
        has_tags = not missing or (not self.all_tags and len(missing) < len(set(self.tags)))
        after = self.since is None or passage.at >= self.since
        return has_tags and after and (self.until is None or passage.at < self.until)


class NamedAgent(Struct, frozen=True):
    """An agent that was made over REST, by its names."""

    name: str
    uid: str
    created: float


class ListedExchange(Struct, frozen=True):
    """An exchange with its content, active or not, and what lists show of where it belongs."""

    exchange: Exchange
    # The public name of its conversation.
    conversation: str
    # The client's own id of its conversation.
    key: str | None
    # The public name of the run that it is a step of.
    run: str | None
    # {call id: who must answer it first}, where a stored conversation ends with it.
    waiting: dict[str, str]


class ConversationEntry(Struct, frozen=True):
    """A conversation as lists show it."""

    conversation: Conversation
    agent: Agent
    # begun, last_at: when it began, and when its last turn was.
    begun: float
    last_at: float
    # Its definition over REST; None: it has none.
    definition: Definition | None


class ConversationFilter(Struct, frozen=True):
    """The conversations that are asked for."""

    # A row; None: any agent.
    agent: int | None = None
    # A part of the summary.
    text: str | None = None
    # Whether they are; None: either.
    archived: bool | None = False
    # With those that are hidden.
    hidden: bool = False
    # By when they were begun ("created"), when their last turn was ("spoken"), or when the last run ended
    # ("completed").
    order: Literal["created", "spoken", "completed"] = "created"


class Retained(Struct, frozen=True):
    """How much of a memory's content is retained. A turn is one request with its reply; superseded ones are counted."""

    last_at: float | None = None  # when the last turn ended; None: nothing is retained
    messages: int = 0  # one that was forgotten without its question or reply is counted
    bytes: int = 0  # of the messages' JSON
    turns: int = 0
    cancelled: int = 0  # turns that the client left before the end of the reply
    conversations: int = 0  # in which anything is retained; 0 where one conversation was asked for


class ListedMemory(Struct, frozen=True):
    """A memory in the operator's list."""

    id: int
    uid: str
    scope: Scope
    created: float
    blocks: int
    facts: int  # those that are true
    passages: int
    retained: Retained


class ListedConversation(Struct, frozen=True):
    """A conversation in the operator's list."""

    id: int
    uid: str
    key: str | None  # the client's own id
    scope: Scope
    retained: Retained


class SizedMemory(Struct, frozen=True):
    """A memory with its sizes."""

    id: int
    uid: str
    scope: Scope
    created: float
    last_turn: float | None
    conversations: int
    messages: int
    bytes: int
    blocks: int
    # Those that are true.
    facts: int
    # Since when; None: it is not.
    paused: float | None
    # Of an agent that was made over REST.
    agent_name: str | None

    @property
    def end(self) -> PageEnd:
        """The end of a page whose last memory this is."""
        return (self.last_turn or 0.0, self.id)


class SizedConversation(Struct, frozen=True):
    """A conversation with its sizes. key: the client's own id."""

    id: int
    uid: str
    key: str | None
    begun: float
    last_turn: float
    messages: int
    bytes: int

    @property
    def end(self) -> PageEnd:
        """The end of a page whose last conversation this is."""
        return (self.last_turn, self.id)


class Branch(Struct, frozen=True):
    """An exchange with which a conversation ends, or ended once."""

    exchange: int
    seq: int
    # Of its path.
    messages: int
    last_turn: float
    is_active: bool


class ExchangePlace(Struct, frozen=True):
    """The place of an exchange. conversation: its public name. seq: the number of its first message."""

    conversation: str
    seq: int


class SourceExchange(Struct, frozen=True):
    """An exchange that something came from, with its content. conversation: its public name."""

    exchange: Exchange
    conversation: str
    # Another conversation opened with the same head.
    prefix_is_shared: bool


class ShownBlock(Struct, frozen=True):
    """A block with its last change."""

    block: Block
    changed_at: float
    # As in `Revision`.
    origin: str
    # Other memories see it too.
    is_shared: bool


class ForgetCounts(Struct, frozen=True):
    """How much a forgetting takes. None: too many to be counted while a person waits."""

    messages: int
    facts: int
    passages: int
    # Of blocks: those that came from it, and those that were built on them.
    versions: int
    summaries: int
    # Notes in what goes, and later ones that may quote it.
    notes: int | None


class StoredImport(Struct, frozen=True):
    """An import as it is stored."""

    id: int
    uid: str
    # The memory's row.
    agent: int
    format: str
    status: str
    learns: bool
    created: float
    # When it last wrote.
    touched: float
    # JSON, which the store does not read.
    data: dict[str, Any]
    scope: Scope
