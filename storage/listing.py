"""The records of the store's lists: pages, filters, entries; and the drafts and changes that the agents API writes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from storage.definition_records import Definition, DefinitionKind
from storage.job_records import Job
from storage.records import (
    DEFAULT_CONVERSATION,
    Agent,
    Block,
    Conversation,
    Exchange,
    Passage,
    Scope,
)
from storage.run_records import Run, RunState, RunStep, WaitKind

# The most tags by which a list of agents is filtered; of more the first ones count.
MAX_TAGS = 64
CursorT = TypeVar("CursorT")
# Above the number of every row.
LAST_NUMBER = 1 << 62
# The end of a page in an order by time: a time, and a row.
PageEnd = tuple[float, int]
# The end before the first page: the newest come first.
FIRST_PAGE: PageEnd = (inf, LAST_NUMBER)


class Page(Struct, Generic[CursorT], frozen=True):
    """A page of a list. Its cursors are numbers of rows, public ids, or numbers of messages."""

    # The cursor after which the page lies, in the order of the page, exclusive; None: the page is the first. The entry
    # of a number may be gone; that of a public id must be there.
    after: CursorT | None = None
    # The cursor before which the page lies, in the order of the page, exclusive; None: the page may reach to the end.
    before: CursorT | None = None
    # The most entries on the page.
    limit: int = 50
    # True if the newest entry comes first; False: the oldest.
    newest_first: bool = True

    @property
    def ends(self) -> tuple[CursorT | None, CursorT | None]:
        """The cursors between which the page lies, the older one first."""
        return (self.before, self.after) if self.newest_first else (self.after, self.before)

    @property
    def bounds(self: Page[int]) -> tuple[int, int]:
        """The numbers between which the page lies, exclusive, the lower one first."""
        low, high = self.ends
        return (-1 if low is None else low, LAST_NUMBER if high is None else high)

    @property
    def direction(self) -> str:
        """The end of the names of statements that list in this order."""
        return "down" if self.newest_first else "up"


class RunFilter(Struct, frozen=True):
    """The runs that a list shows. A field that is None leaves out none."""

    # The row of the agent.
    agent_row: int | None = None
    # The row of the conversation.
    conversation_row: int | None = None
    # The states of the runs.
    states: Sequence[RunState] = tuple(RunState)
    # True: runs that go on when their client leaves; False: the others; None: both.
    background: bool | None = None
    # The stop reason of the runs.
    stop: str | None = None


class RunEntry(Struct, frozen=True):
    """A run as lists show it."""

    # The run.
    run: Run
    # The public id of the run's agent.
    agent_uid: str
    # The public id of the run's conversation.
    conversation_uid: str
    # The client's own id of the conversation; None: the client has given no id.
    key: str | None

    @property
    def conversation_name(self) -> str:
        """The name of the run's conversation, as `Conversation.name`."""
        return DEFAULT_CONVERSATION if self.key == DEFAULT_CONVERSATION else self.conversation_uid


class StepEntry(Struct, frozen=True):
    """A step as lists show it."""

    # The step.
    step: RunStep
    # The number of the first message of the step's exchange.
    seq: int
    # The upstream and the model that made the step.
    model: str
    # The public id of the step's run.
    run_uid: str
    # The public id of the step's agent.
    agent_uid: str


class JobEntry(Struct, frozen=True):
    """A job in a list."""

    # The job.
    job: Job
    # The scope of its memory; None: the job belongs to no memory.
    scope: Scope | None
    # The public id of its memory; None: the job belongs to no memory.
    memory_uid: str | None


class AgentChange(Struct, frozen=True, kw_only=True):
    """A change of an agent. None leaves a part as it is; a list replaces the agent's present list."""

    # The name of the agent.
    name: str | None = None
    # The body of the definition.
    body: dict[str, Any] | None = None
    # The public ids of the blocks that are attached.
    blocks: Sequence[str] | None = None
    # The rows of the tools' definitions; numbers below 0 are built-in tools.
    tools: Sequence[int] | None = None
    # The tags of the agent.
    tags: Sequence[str] | None = None
    # The rows of the folders' memories.
    folders: Sequence[int] | None = None
    # The rows of the tools that the agent has as long as it has a folder.
    folder_tools: Sequence[int] = ()
    # The rows of the identities' definitions.
    identities: Sequence[int] | None = None


class BlockDraft(Struct, frozen=True):
    """A block to be made."""

    # The block. Its id is ignored, and an empty uid is replaced by a new one.
    block: Block
    # Its details by name: metadata, tags, name, hidden.
    details: dict[str, Any] = field(default_factory=dict)


class AgentDraft(AgentChange, frozen=True, kw_only=True):
    """An agent to be made. It begins without the parts that are None."""

    # The memory of the agent, which is not stored yet.
    agent: Agent
    # The name of the agent.
    name: str
    # The body of the definition.
    body: dict[str, Any]
    # The blocks that are made with the agent.
    own_blocks: Sequence[BlockDraft] = ()


def make_unstored_definition(
    kind: DefinitionKind, memory: Agent, name: str, body: dict[str, Any]
) -> Definition:
    """Returns a definition without a row, which shows a memory as an object of the agents API."""
    return Definition(
        id=0,
        uid=memory.uid,
        project=memory.scope.project,
        kind=kind,
        memory_row=memory.id,
        name=name,
        version=1,
        created=memory.created,
        updated=memory.created,
        body=body,
    )


class AgentEntry(Struct, frozen=True):
    """An agent as lists show it."""

    # The memory of the agent.
    agent: Agent
    # The definition; None: the memory is of a profile, which the settings configure.
    definition: Definition | None

    @property
    def name(self) -> str:
        """The agent's name; of a memory without a definition its profile and its subject."""
        if self.definition is not None:
            return self.definition.name
        return f"{self.agent.scope.profile} {self.agent.scope.subject.removeprefix('user:')}"


class ReaderEntry(Struct, frozen=True):
    """A sleeptime agent that reads a memory."""

    # The row of the agent's own memory.
    agent_row: int
    # The agent's public id.
    uid: str
    # The number of the last exchange that it has read.
    read_seq: int
    # The number of turns that the agent has not read.
    unread_turns: int


class OpenReading(Struct, frozen=True):
    """A run in which a sleeptime agent reads a memory, and which has not ended."""

    # The run.
    run: Run
    # The public id of the run's conversation.
    conversation_name: str


# The time by which agents are sorted: when they were created or updated, or when their last run was completed.
AgentSorting = Literal["created", "updated", "completed"]


class AgentFilter(Struct, frozen=True):
    """The agents that a list shows. A field that is None leaves out none."""

    # The name of the agent.
    name: str | None = None
    # A part of the name.
    text: str | None = None
    # The tags of which the agent has one; empty: the agent has any tags.
    tags: Sequence[str] = ()
    # True if the agent has all of the tags.
    needs_all_tags: bool = False
    # The stop reason of the agent's last run.
    stop: str | None = None
    # The public id of an identity of the agent.
    identity: str | None = None
    # The keys of identities of which the agent has one; empty: the agent has any identities.
    identity_keys: Sequence[str] = ()
    # The time by which the agents are sorted.
    order: AgentSorting = "created"
    # True if hidden agents are listed as well.
    includes_hidden: bool = False


class BlockEntry(Struct, frozen=True):
    """A block as the agents API knows it."""

    # The block.
    block: Block
    # The row of the agent that owns the block, with which the block is deleted; None: no agent owns the block.
    owner: int | None
    # The profile of the users that share the block; "": no profile shares it.
    profile: str
    # The block's details by name: metadata, tags, name, hidden.
    details: dict[str, Any]


class BlockFilter(Struct, frozen=True):
    """The blocks that a list shows. A field that is None leaves out none."""

    # The label of the block.
    label: str | None = None
    # A part of the label.
    label_text: str | None = None
    # A part of the description.
    description_text: str | None = None
    # A part of the value.
    value_text: str | None = None
    # The fewest agents that see the block.
    min_agents: int = 0
    # The most agents that see the block.
    max_agents: int = 2**31
    # The tags of which the block has one; empty: the block has any tags.
    tags: Sequence[str] = ()
    # True if the block has all of the tags.
    needs_all_tags: bool = False
    # The name of the block.
    name: str | None = None
    # True if hidden blocks are listed as well.
    includes_hidden: bool = False

    def matches(self, entry: BlockEntry) -> bool:
        """Returns whether the list shows a block, by its details: name, tags, hidden."""
        details = entry.details
        if details.get("hidden") and not self.includes_hidden:
            return False
        if self.name is not None and self.name != details.get("name"):
            return False
        return matches_tags(details.get("tags") or (), self.tags, needs_all=self.needs_all_tags)


class BlockChange(Struct, frozen=True):
    """A change of a block. A field that is None leaves its part as it is."""

    # The new value.
    value: str | None = None
    # The new label.
    label: str | None = None
    # The new description.
    description: str | None = None
    # The new limit, in characters.
    limit: int | None = None
    # True if models and agents can no longer change the value.
    read_only: bool | None = None
    # The details of `BlockEntry` that change, by name.
    details: dict[str, Any] = field(default_factory=dict)

    def apply(self, block: Block) -> Block:
        """Returns a copy of a block with the change; the details are stored elsewhere."""
        names = ("value", "label", "description", "limit", "read_only")
        return replace(block, **{name: value for name in names if (value := getattr(self, name)) is not None})


class DefinitionDraft(Struct, frozen=True):
    """A definition to be added."""

    # The project of the definition.
    project: str
    # The kind of the object.
    kind: DefinitionKind
    # The public id of the definition.
    uid: str
    # The JSON of the document.
    body: dict[str, Any]
    # The name of the object.
    name: str = ""
    # The row of the memory that the definition belongs to; 0: none.
    memory_row: int = 0


class PassageDraft(Struct, frozen=True):
    """A passage to be saved."""

    # The text of the passage.
    text: str
    # The time at which the passage was saved, in seconds since the epoch.
    at: float
    # The tags of the passage.
    tags: Sequence[str] = ()
    # A program's metadata, which is not searched.
    metadata: dict[str, Any] = field(default_factory=dict)


class PassageFilter(Struct, frozen=True):
    """The passages that a list shows. A field that is None leaves out none."""

    # A part of the passage.
    text: str | None = None
    # The time from which on the passage was saved, in seconds since the epoch.
    since: float | None = None
    # The time before which the passage was saved, in seconds since the epoch.
    until: float | None = None
    # The tags of which the passage has one; empty: the passage has any tags.
    tags: Sequence[str] = ()
    # True if the passage has all of the tags.
    needs_all_tags: bool = False

    def matches(self, passage: Passage) -> bool:
        """Returns whether the list shows a passage, by its tags and its time."""
        is_in_time = (self.since is None or passage.at >= self.since) and (
            self.until is None or passage.at < self.until
        )
        return is_in_time and matches_tags(passage.tags, self.tags, needs_all=self.needs_all_tags)


def matches_tags(tags: Sequence[str], filter_tags: Sequence[str], *, needs_all: bool) -> bool:
    """Returns whether `tags` has one of a filter's tags, or all of them; True for a filter without tags."""
    required = {*filter_tags}
    missing = required.difference(tags)
    return not missing or (not needs_all and missing != required)


class NamedAgent(Struct, frozen=True):
    """An agent of the agents API, by its names."""

    # The name of the agent.
    name: str
    # The public id of the agent.
    uid: str
    # The time at which the agent was made, in seconds since the epoch.
    created: float


class ListedExchange(Struct, frozen=True):
    """An exchange with its content, active or not, and its place in conversation and run as lists show it."""

    # The exchange with its content.
    exchange: Exchange
    # The public id of its conversation.
    conversation_uid: str
    # The client's own id of the conversation; None: the client has given no id.
    key: str | None
    # The public id of the run that the exchange is a step of; None: the exchange is no step.
    run_uid: str | None
    # The calls that wait, by their ids, where a stored conversation ends with the exchange.
    waiting: dict[str, WaitKind]


class ConversationEntry(Struct, frozen=True):
    """A conversation as lists show it."""

    # The conversation.
    conversation: Conversation
    # The memory with the conversation.
    agent: Agent
    # The time at which the conversation began, in seconds since the epoch.
    begun: float
    # The time of the conversation's last turn, in seconds since the epoch.
    last_at: float
    # The definition of the conversation; None: the conversation has none.
    definition: Definition | None


class ConversationFilter(Struct, frozen=True):
    """The conversations that a list shows."""

    # The row of the conversations' agent; None: any agent.
    agent_row: int | None = None
    # A part of the summary.
    text: str | None = None
    # True: archived conversations; False: the others; None: both.
    is_archived: bool | None = False
    # The time by which they are sorted: when they began ("created"), of the last turn ("spoken"), or when the last
    # run ended ("completed").
    order: Literal["created", "spoken", "completed"] = "created"
