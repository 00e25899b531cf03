"""The seam to a store, grouped by what is stored. One Store serves one process; SQLite's is the first.

Reads are awaited, though a local file answers at once. `commit`, `settle` and `index` are plain functions that return a
future: the write begins whether or not anybody waits for it. Every method raises errors of storage.errors and nothing
else. Below the groups stand `Database` and `Connection`, over which storage/sql writes them once for all databases.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from storage.commands import (
    Ancestor,
    BlockMerge,
    Change,
    Committed,
    Extent,
    ForgetRules,
    ForgetTarget,
    Learned,
    Look,
    Pool,
    Probes,
    StoredContent,
    TransferRecord,
    TurnWrite,
    Unembedded,
    Unlearned,
)
from storage.records import (
    Agent,
    Block,
    BlockOp,
    Exchange,
    Fact,
    Job,
    JobState,
    Key,
    Message,
    Passage,
    Revision,
    Scope,
    Snapshot,
    Step,
    Summary,
    Vector,
)

__all__ = [
    "Agents",
    "Blocks",
    "Connection",
    "Database",
    "Effect",
    "Facts",
    "Forgetting",
    "Jobs",
    "Keys",
    "MessagesOf",
    "Operation",
    "Passages",
    "Recall",
    "Row",
    "Spending",
    "Store",
    "StoreHealth",
    "Summaries",
    "Turns",
    "Vectors",
]

T = TypeVar("T")

# A row as every driver gives it: values in the order of the statement's columns.
Row = Sequence[Any]


class Connection(Protocol):
    """What a function of the store is given: an open connection, inside a transaction where it writes.

    statement: with its parameters in the order of `values`. Results are whole: nothing is left open across an await.
    """

    async def rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]: ...

    async def row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        """The first one; None where there is none."""

    async def value(self, statement: str, values: Sequence[object] = ()) -> Any:
        """The first column of the first row; None where there is none."""

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Returns how many rows it touched."""


# A read or a write: it awaits nothing but its connection, so that a database that never waits needs no event loop.
Operation = Callable[[Connection], Coroutine[Any, Any, T]]

# A part of a transaction. The store's groups make effects; their callers only hand them on.
Effect = Operation[object]


class Database(Protocol):
    """Five doors to the data. What goes through one is an `Operation`, and what it raises comes out again.

    Raises, each of them: Unavailable, and Busy where too many bytes wait to be written.
    """

    async def read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """For what is short and indexed. Raises: TooSlow past the deadline."""

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """For what may take long: big indexes, exports. Raises: TooSlow past the deadline."""

    def write(self, operation: Operation[T], *, bytes: int = 0) -> Future[T]:
        """One transaction. It begins at once and ends on disk, whether the future is awaited or cancelled.

        bytes: about what the operation holds.
        """

    def write_one(self, statement: str, values: Sequence[object], *, bytes: int = 0) -> Future[list[Row]]:
        """The same for a statement that is a transaction by itself."""

    def bulk(self, operation: Operation[T], *, bytes: int = 0) -> Future[T]:
        """A transaction that gives way to turns: index, import, forget. It should stay below 5 ms."""

    async def sweep(self, wait_ms: int) -> bool:
        """Takes what was overwritten out of the database's own old copies; False while somebody still reads them."""

    def when_recovered(self, function: Callable[[], None]) -> None:
        """Has it called each time the database works again: what is remembered of it may be wrong by then."""

    @property
    def health(self) -> StoreHealth: ...

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every write given to it is on disk; False when that took too long."""

    async def close(self, timeout_s: float = 5.0) -> None:
        """Drains and closes. What is still waiting after the time fails with Closed. Idempotent."""


# (exchange with content, is its imported head shared, seq of the message before it, seqs asked for) -> its messages
MessagesOf = Callable[[Exchange, bool, int | None, Container[int] | None], Sequence[Message]]


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """How the store is.

    status: ok, or the `status` word of the error that stops it (full, readonly, locked, corrupt, broken), slow, closed.
    error: the last failure in words, kept after recovery; failures: how many there were.
    waiting, waiting_bytes: writes not yet on disk.
    """

    status: str
    error: str | None = None
    failures: int = 0
    waiting: int = 0
    waiting_bytes: int = 0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Keys(Protocol):
    async def create(self, project: str, name: str) -> tuple[Key, str]:
        """A new key and its plain text, which is never to be had again."""

    async def revoke(self, name_or_id: str) -> Key:
        """A number counts before a name. Raises: NotFound; Conflict: several keys have that name."""

    async def list(self) -> tuple[Key, ...]: ...

    async def find(self, presented: str) -> Key | None:
        """The key that was presented, unless it is revoked or was never ours."""

    async def has_any(self) -> bool:
        """Whether a key was ever created, revoked ones included."""


class Agents(Protocol):
    async def find(self, scope: Scope) -> Agent | None:
        """Cached: id, uid, secret and epoch are to be relied on; next_seq and indexed_seq are as old as the entry."""

    def draft(self, scope: Scope) -> Agent:
        """An agent not yet stored (id 0); the same one for all requests of the scope until it is."""

    def remember(self, agent: Agent) -> None: ...

    def forget(self, scope: Scope) -> None:
        """Drops it from the cache, so that it is read anew."""


class Blocks(Protocol):
    async def load(self, agent: int) -> tuple[Block, ...]: ...

    async def follow(self, profile: str, own: Sequence[Block], shared: Sequence[Block], *, at: float) -> None:
        """Brings what is stored up to a profile's blocks as the settings have them now; ids and versions do not count.

        Values of people's own blocks stay, and so does a shared one that somebody has written in.
        """

    async def write(
        self, block: int, version: int, value: str, *, at: float, origin: str, sources: Sequence[int] = ()
    ) -> Block:
        """Raises: Conflict when it is no longer at that version, NotFound."""

    async def revisions(self, block: int) -> tuple[Revision, ...]:
        """All values that it had, newest first."""

    async def undo(self, block: int, *, at: float) -> Block:
        """Raises: NotFound when there is nothing left to undo."""


class Passages(Protocol):
    async def list(self, agent: int, *, after: int = 0, limit: int = 100) -> tuple[Passage, ...]: ...


class Turns(Protocol):
    """What a turn needs to know before it is answered, and writing it when it has ended."""

    async def look(self, agent: Agent, key: str | None, path: bytes | None) -> Look | None:
        """One round trip. None where the agent is not stored any more."""

    async def pool(self, agent: Agent, probes: Probes) -> Pool: ...

    async def contents(self, agent: Agent, exchanges: Sequence[int]) -> Mapping[int, StoredContent]:
        """What the rules found `Missing`: of each that is asked for, empty where it is gone."""

    async def exchange(self, agent: Agent, exchange: int) -> Exchange | None:
        """With its content."""

    async def snapshot(self, agent: Agent, snapshot: int) -> Snapshot | None: ...

    async def conversation_uid(self, agent: Agent, conversation: int) -> str | None: ...

    async def shared_blocks(self, agent: Agent) -> list[Block]: ...

    def commit(self, write: TurnWrite) -> Future[Committed]:
        """Done when it is on disk. Raises: Stale when something was forgotten meanwhile, Unavailable."""

    def remember(self, committed: Committed) -> None:
        """After a first turn: its agent is a stored one now."""

    async def due(self, before: float, after: float, limit: int) -> list[tuple[int, int, bool, float]]:
        """(conversation, agent, is it named, when it last moved) of what has edits waiting and last moved before the
        one, or after the other: then the clock has been put back since."""

    async def next_due(self) -> float | None:
        """When the conversation moved that has waited longest for that."""

    def settle(
        self,
        conversation: int,
        agent: int,
        last_at: float,
        now: float,
        decide: Callable[[Pool], Change],
        merge: Callable[[Sequence[Block], Sequence[BlockOp]], BlockMerge],
    ) -> Future[None]:
        """What idle time confirms, for a conversation that did not move since `last_at`."""


class Recall(Protocol):
    async def search(
        self,
        agent: Agent,
        query: str,
        messages_of: MessagesOf,
        *,
        size: int,
        indexed: int,
        skip: range = range(0),
        limit: int = 40,
        only_strong: bool = False,
        deadline_ms: float = 150.0,
        vector: Vector | None = None,
    ) -> list[Message]:
        """Messages and passages of this agent that answer the query, best first.

        size: how many numbers the agent has given out. indexed: up to which the index knows.

        skip: numbers that are in sight already. vector: the query's, to be compared with those of its model.

        Raises: TooSlow, Unavailable.
        """

    async def recent(self, agent: Agent, limit: int, messages_of: MessagesOf) -> list[Message]:
        """What stands, of the last exchanges, oldest first."""

    def index(self, agent: int, messages_of: MessagesOf) -> Future[bool]:
        """Brings the search index a step further; True while there is more."""

    async def behind(self, at_least: int, limit: int) -> list[int]:
        """Agents whose index lacks that many messages."""


class Jobs(Protocol):
    """Durable work. Times are the store's: it knows what is due and whose lease has run out.

    Every commit of a job (journal, commit, finish) is fenced by its attempt and its agent's epoch, and raises Stale
    when another attempt runs by now or something was forgotten.
    """

    def watch(self, woken: Callable[[], None]) -> Callable[[], None]:
        """`woken` is called when there may be something to do. Returns what ends that."""

    def wake(self) -> None:
        """For those who have enqueued in a transaction of their own."""

    async def due_in(self, kinds: Sequence[str]) -> float | None:
        """Seconds until one of these kinds can be claimed, or a lease runs out; None: nothing waits."""

    async def enqueue(
        self,
        kind: str,
        agent: int,
        key: str,
        payload: bytes = b"{}",
        *,
        due: float | None = None,
        epoch: int | None = None,
        merge: Callable[[bytes, bytes], bytes] | None = None,
        postpone: bool = False,
    ) -> int:
        """One that waits under the same key takes the new payload (or what `merge` makes of old and new), and the
        earlier time (`postpone`: the new one). agent: 0 is nobody's. due: None is now; epoch: None is the present one.

        Raises: Stale when the agent is gone, or something was forgotten since that epoch.
        """

    async def claim(self, kinds: Sequence[str], *, lease_s: float, tries: int) -> Job | None:
        """The next that is due and whose lane is free; one whose lease ran out is taken over. tries: one that did not
        end in so many is dead."""

    async def heartbeat(self, job: Job, lease_s: float) -> bool:
        """Prolongs the lease. False: what it does would not be committed any more."""

    async def step(self, job: Job, name: str) -> bytes | None:
        """What the step gave, if it was performed already."""

    async def journal(self, job: Job, name: str, result: bytes, effect: Effect | None = None) -> bytes:
        """Step and effect in one transaction; what was journaled before stays, and is returned."""

    async def commit(self, job: Job, effect: Effect) -> None:
        """An effect without a step: if the process is killed before the job ends, it comes again."""

    async def finish(self, job: Job, effect: Effect | None = None) -> None:
        """The last effect and the end of the job, its steps with it, in one transaction."""

    async def fail(self, job: Job, error: str, retry_in_s: float | None) -> str:
        """Tried again after that time, its lane waiting; None: dead. error: never what was said.

        Returns what became of it: retrying, dead, dropped (its memory has changed), lost (another attempt's by now).
        """

    async def release(self, job: Job, delay_s: float = 0.0) -> str:
        """Gives it back as if it had not been tried. Returns as `fail`."""

    def let_go(self, job: Job) -> None:
        """Without a word to the database: whoever claims next may take it over."""

    async def list(self, state: JobState | None = None, limit: int = 100) -> tuple[Job, ...]:
        """Newest first."""

    async def get(self, id: int) -> Job | None: ...

    async def steps(self, id: int) -> tuple[Step, ...]: ...

    async def counts(self) -> dict[JobState, int]: ...

    async def retry(self, id: int) -> Job:
        """A dead letter from its first attempt, one that waits at once. Raises: NotFound, Stale."""

    async def cancel(self, id: int) -> Job:
        """Gone, with its steps; one that runs commits nothing more. Raises: NotFound."""

    async def forget(self, agent: int) -> None:
        """All jobs of a memory, with their steps."""


class Facts(Protocol):
    """What was learned, and how far learning has come."""

    async def unlearned(
        self,
        agent: int,
        messages_of: MessagesOf,
        *,
        now: float,
        idle_s: float,
        limit_chars: int,
        upto: int | None = None,
    ) -> Unlearned | None:
        """The next that is confirmed; None where the agent is gone. upto: what was read up to there before, again."""

    async def list(self, agent: int, *, is_all: bool = False, limit: int = 100) -> Sequence[Fact]:
        """Newest first; is_all: with those that are no longer true."""

    async def get(self, agent: int, seqs: Sequence[int]) -> Sequence[Fact]:
        """By their numbers, in this order, as far as they are still true."""

    async def blocks(self, agent: int) -> Sequence[Block]:
        """Its blocks; those that it shares are read-only here, since what one user says is not for the others."""

    def learning(
        self, agent: Agent, cursor: int, upto: int, now: float, decide: Callable[[Sequence[Block]], Learned]
    ) -> Effect:
        """What was learned up to `upto`, and the cursor there; nothing where the cursor is not at `cursor` any more.

        decide: given the blocks as they are when it is written.
        """

    async def waiting(self, limit: int) -> Sequence[int]:
        """People's memories with something that was not learned from yet."""


class Vectors(Protocol):
    """How far a memory has been embedded. What is forgotten, or whose words change, has no vector any more."""

    async def unembedded(self, agent: int, model: str, messages_of: MessagesOf) -> Unembedded | None:
        """The next messages without a vector of this model; None where the agent is gone."""

    def beginning(self, agent: int, model: str) -> Effect:
        """From the first message on, with this model."""

    def adding(self, found: Unembedded, added: Mapping[int, bytes]) -> Effect:
        """added: float32 of one length, by number. Nothing where something has changed since `found` was read; all
        begins anew where the vectors of this model have another length than before."""

    async def has(self, agent: int, model: str) -> bool:
        """Whether anything of it was embedded."""

    async def lacks(self, agent: int, model: str) -> bool:
        """Whether something that is indexed was not embedded."""

    async def behind(self, model: str, limit: int) -> Sequence[int]:
        """People's memories of which not all is embedded."""


class Spending(Protocol):
    """Tokens that background calls used. day: days since the epoch, UTC."""

    async def spent(self, project: str, day: int) -> int: ...

    async def spend(self, project: str, day: int, tokens: int) -> None: ...


class Forgetting(Protocol):
    """Each `begin` is written down at once; what it began is gone when `run` says so, also after a crash in between."""

    async def find(
        self, project: str, profile: str | None, subject: str | None, *, after: int = 0, limit: int = 100
    ) -> list[int]:
        """A page of the memories in a scope; None: whatever profile, whatever subject."""

    async def aged(self, project: str, before: float, *, after: int = 0, limit: int = 100) -> list[int]:
        """A page of the memories of a project that hold something older than that."""

    async def conversation(self, agent: int, name: str) -> int | None:
        """By its public name or by the client's own."""

    async def exchange(self, agent: int, seq: int) -> int | None:
        """The one that holds this message."""

    async def extent(self, agent: int, target: ForgetTarget) -> Extent:
        """How much that is, now."""

    async def unfinished(self) -> list[int]:
        """What was begun and not ended, by this process or one before it."""

    async def begin(self, agent: int, target: ForgetTarget) -> int:
        """Nothing that was under way commits any more; jobs end, and begin again when all is gone. Returns what `run`
        takes."""

    async def run(self, id: int, rules: ForgetRules, until: Callable[[], bool] = lambda: False) -> bool:
        """To its end, unless `until` says that it is enough for now. True when all is gone."""

    async def forget_project(self, project: str) -> None:
        """What its users shared. The memories themselves are forgotten one by one, before."""

    async def sweep(self, wait_ms: int = 1000) -> bool:
        """What was forgotten leaves the log too; False: somebody still reads, and it will a little later."""


class Transfer(Protocol):
    """A memory carried away, and in. Parts: conversation, exchange, block, version, passage, fact,
    ended, learned, edit."""

    async def edge(self, agent: Agent) -> dict[str, int]:
        """Where it ends now, for `page`: `seq` is the last number that was given out, `learned` how far learning
        has come. Raises: NotFound."""

    async def page(
        self, agent: Agent, part: str, after: int, limit: int, edge: Mapping[str, int]
    ) -> list[tuple[int, TransferRecord]]:
        """(what comes after it, record) of one part, up to the edge."""

    async def begin(self, draft: Agent) -> Agent:
        """A memory to be filled, out of reach. draft: for the scope where it shall be in the end.

        Raises: Conflict, where one is already.
        """

    async def under_way(self, scope: Scope) -> Agent | None:
        """The one that `begin` made."""

    async def chain(self, agent: Agent, seq: int) -> list[Ancestor]:
        """The path to an exchange of it, oldest first. Raises: NotFound."""

    async def write(self, agent: Agent, records: Sequence[tuple[str, TransferRecord]]) -> None:
        """(part, record) in the order in which they were read. Raises: Conflict, NotFound."""

    async def end(self, agent: Agent, next_seq: int) -> None:
        """It takes its place. Raises: Conflict, where something was said there meanwhile."""


class Summaries(Protocol):
    """What was said on a path up to an exchange, told in short."""

    async def of(self, agent: int, conversation: int, limit: int = 16) -> list[Summary]:
        """Those of a conversation, whatever branch, the ones that cover most first."""

    async def at(self, agent: int, exchange: int) -> Summary | None:
        """The one that covers the path up to this exchange."""

    async def tip(self, agent: int, name: str | None) -> tuple[int, int] | None:
        """(last standing exchange, conversation), by its public name or the client's; None: the newest."""

    async def project(self, agent: int) -> str | None:
        """Whose a memory is."""

    async def path(self, agent: int, exchange: int, limit: int = 2000) -> list[Exchange]:
        """The path to an exchange, oldest first, with content, from the last one that has a summary or its root."""

    def adding(
        self, agent: int, exchange: Exchange, text: str, *, tokens: int, at: float, model: str
    ) -> Effect:
        """For the job that made it to commit. One that is there already stays."""


class Store(Protocol):
    @property
    def keys(self) -> Keys: ...

    @property
    def agents(self) -> Agents: ...

    @property
    def blocks(self) -> Blocks: ...

    @property
    def passages(self) -> Passages: ...

    @property
    def turns(self) -> Turns: ...

    @property
    def recall(self) -> Recall: ...

    @property
    def forgetting(self) -> Forgetting: ...

    @property
    def carry(self) -> Transfer: ...

    @property
    def summaries(self) -> Summaries: ...

    @property
    def facts(self) -> Facts: ...

    @property
    def vectors(self) -> Vectors: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def spending(self) -> Spending: ...

    @property
    def health(self) -> StoreHealth: ...

    async def drain(self, timeout_s: float) -> bool:
        """Waits until everything given to the store is on disk; False when that took too long."""

    async def close(self) -> None: ...
