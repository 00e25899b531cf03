"""The seam to a store, grouped by what is stored. One Store serves one process.

Reads are awaited, though a local file answers at once. `commit`, `settle` and `index` are plain functions that return a
future: the write begins whether or not anybody waits for it. Every method raises errors of storage.errors and nothing
else.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from storage.commands import (
    Ancestor,
    Change,
    Committed,
    Extent,
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
from storage.database import Effect, StoreHealth
from storage.records import (
    Agent,
    Block,
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


class Keys(Protocol):
    async def create(self, project: str, name: str) -> tuple[Key, str]:
        """Returns a new key and its plain text, which nobody can ask for again."""

    async def revoke(self, name_or_id: str) -> Key:
        """Revokes a key by its number, else by its name. Raises: NotFound; WriteConflict: several have that name."""

    async def list(self) -> tuple[Key, ...]: ...

    async def find(self, presented: str) -> Key | None:
        """Returns the key that was presented, unless it is revoked or was never ours."""

    async def has_any(self) -> bool:
        """Tells whether a key was ever created, revoked ones included."""


class Agents(Protocol):
    async def find(self, scope: Scope) -> Agent | None:
        """Returns the scope's agent, from a cache: next_seq and indexed_seq may be out of date, the rest is not."""

    def draft(self, scope: Scope) -> Agent:
        """Returns an agent that is not stored yet (id 0): the same one for all requests of the scope until it is."""

    def remember(self, agent: Agent) -> None:
        """Puts it into the cache: after it was stored, or with its new epoch."""

    def forget(self, scope: Scope) -> None:
        """Drops it from the cache, so that it is read anew."""


class Blocks(Protocol):
    async def load(self, agent: int) -> tuple[Block, ...]: ...

    async def follow(self, profile: str, own: Sequence[Block], shared: Sequence[Block], *, at: float) -> None:
        """Brings the stored blocks of a profile up to the settings; ids and versions of the arguments do not count.

        The values of people's own blocks stay, and so does a shared one that somebody has written in.
        """

    async def write(
        self, block: int, version: int, value: str, *, at: float, origin: str, sources: Sequence[int] = ()
    ) -> Block:
        """Sets a block's value. Raises: WriteConflict when it is no longer at that version, NotFound."""

    async def revisions(self, block: int) -> tuple[Revision, ...]:
        """Returns all values that the block had, newest first."""

    async def undo(self, block: int, *, at: float) -> Block:
        """Brings back the value before the last change. Raises: NotFound when there is none."""


class Passages(Protocol):
    async def list(self, agent: int, *, after: int = 0, limit: int = 100) -> tuple[Passage, ...]:
        """Returns a page in order. after: the number last seen."""


class Turns(Protocol):
    """Reads what a turn needs before it is answered, and writes it when it has ended."""

    async def look(self, agent: Agent, key: str | None, path: bytes | None) -> Look | None:
        """Reads a request's surroundings in one round trip. None: the agent is not stored any more.

        key: the client's own conversation id. path: hash of the client's list up to its last assistant message.
        """

    async def pool(self, agent: Agent, probes: Probes) -> Pool:
        """Loads the exchanges that may matter to a request."""

    async def contents(self, agent: Agent, exchanges: Sequence[int]) -> Mapping[int, StoredContent]:
        """Loads what the rules found `Missing`. Each exchange has an entry, an empty one where it is gone."""

    async def exchange(self, agent: Agent, exchange: int) -> Exchange | None:
        """Returns an exchange with its content."""

    async def snapshot(self, agent: Agent, snapshot: int) -> Snapshot | None: ...

    async def conversation_uid(self, agent: Agent, conversation: int) -> str | None: ...

    async def shared_blocks(self, agent: Agent) -> list[Block]:
        """Returns the shared blocks that a new user of the agent's profile will see."""

    def commit(self, write: TurnWrite) -> Future[Committed]:
        """Writes a turn; the future is done when it is on disk.

        Raises: Stale when something was forgotten meanwhile, Unavailable.
        """

    def remember(self, committed: Committed) -> None:
        """Puts the agent of a first turn, which is stored now, into the cache."""

    async def due(self, before: float, after: float, limit: int) -> list[tuple[int, int, bool, float]]:
        """Returns (conversation, agent, is it named, when it last moved) of conversations with pending edits.

        before, after: they last moved before the one, or after the other: then the clock was put back since.
        """

    async def next_due(self) -> float | None:
        """Returns when the conversation moved that has waited longest for its edits to be settled."""

    def settle(
        self,
        conversation: int,
        agent: int,
        last_at: float,
        now: float,
        decide: Callable[[Pool], Change],
    ) -> Future[None]:
        """Writes what idle time confirms, for a conversation that did not move since `last_at`."""


class Recall(Protocol):
    async def search(
        self,
        agent: Agent,
        query: str,
        *,
        size: int,
        indexed: int,
        skip: range = range(0),
        limit: int = 40,
        only_strong: bool = False,
        deadline_ms: float = 150.0,
        vector: Vector | None = None,
    ) -> list[Message]:
        """Returns messages, passages and facts of this agent that answer the query, best first.

        size: how many numbers the agent has given out. indexed: the last one that the index knows.
        skip: numbers that the request shows already. vector: the query's, compared with those of the same model.

        Raises: TooSlow, Unavailable.
        """

    async def recent(self, agent: Agent, limit: int) -> list[Message]:
        """Returns the standing messages of the last exchanges, oldest first."""

    def index(self, agent: int) -> Future[bool]:
        """Brings the search index a step further. The future holds True while there is more."""

    async def behind(self, at_least: int, limit: int) -> list[int]:
        """Returns agents whose index lacks that many messages."""


class Jobs(Protocol):
    """Durable work. Times are the store's: it knows what is due and whose lease has run out.

    Every commit of a job (journal, commit, finish) is fenced by its attempt and its agent's epoch, and raises Stale
    when another attempt runs by now or something was forgotten.
    """

    def watch(self, woken: Callable[[], None]) -> Callable[[], None]:
        """Has `woken` called when there may be something to do. Returns what ends that."""

    def wake(self) -> None:
        """Calls the watchers. For those who have enqueued in a transaction of their own."""

    async def due_in(self, kinds: Sequence[str]) -> float | None:
        """Returns the seconds until a job of these kinds can be claimed or a lease runs out; None: nothing waits."""

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
        """Adds a job and returns its number.

        One that waits under the same key takes the new payload (or what `merge` makes of old and new), and the
        earlier time (`postpone`: the new one). agent: 0 is nobody's. due: None is now; epoch: None is the present one.

        Raises: Stale when the agent is gone, or something was forgotten since that epoch.
        """

    async def claim(self, kinds: Sequence[str], *, lease_s: float, tries: int) -> Job | None:
        """Takes the next job that is due and whose lane is free, or one whose lease ran out.

        tries: a job that did not end in so many is dead.
        """

    async def heartbeat(self, job: Job, lease_s: float) -> bool:
        """Prolongs the lease. False: what the job does would not be committed any more."""

    async def step(self, job: Job, name: str) -> bytes | None:
        """Returns the result of a step that was performed already."""

    async def journal(self, job: Job, name: str, result: bytes, effect: Effect | None = None) -> bytes:
        """Writes step and effect in one transaction. A result that was journaled before stays, and is returned."""

    async def commit(self, job: Job, effect: Effect) -> None:
        """Commits an effect without a step: if the process is killed before the job ends, it comes again."""

    async def finish(self, job: Job, effect: Effect | None = None) -> None:
        """Commits the last effect and deletes the job with its steps, in one transaction."""

    async def fail(self, job: Job, error: str, retry_in_s: float | None) -> str:
        """Has the job tried again after that time, its lane waiting; None: it is dead. error: never what was said.

        Returns what became of it: retrying, dead, dropped (its memory has changed), lost (another attempt's by now).
        """

    async def release(self, job: Job, delay_s: float = 0.0) -> str:
        """Gives the job back as if it had not been tried. Returns as `fail`."""

    def let_go(self, job: Job) -> None:
        """Drops the lease without asking the database: whoever claims next may take the job over."""

    async def list(self, state: JobState | None = None, limit: int = 100) -> tuple[Job, ...]:
        """Returns jobs, newest first."""

    async def get(self, id: int) -> Job | None: ...

    async def steps(self, id: int) -> tuple[Step, ...]: ...

    async def counts(self) -> dict[JobState, int]: ...

    async def retry(self, id: int) -> Job:
        """Has a dead job tried anew, and one that waits tried at once. Raises: NotFound, Stale."""

    async def cancel(self, id: int) -> Job:
        """Deletes a job with its steps; one that runs commits nothing more. Raises: NotFound."""

    async def forget(self, agent: int) -> None:
        """Deletes all jobs of a memory, with their steps."""


class Facts(Protocol):
    """Facts that were learned, and how far learning has come."""

    async def unlearned(
        self,
        agent: int,
        *,
        now: float,
        idle_s: float,
        limit_chars: int,
        upto: int | None = None,
    ) -> Unlearned | None:
        """Reads the next confirmed messages; None: the agent is gone. upto: reads again what was read up to there."""

    async def list(self, agent: int, *, is_all: bool = False, limit: int = 100) -> Sequence[Fact]:
        """Returns facts, newest first. is_all: with those that are no longer true."""

    async def get(self, agent: int, seqs: Sequence[int]) -> Sequence[Fact]:
        """Returns the facts with these numbers, in this order, as far as they are still true."""

    async def blocks(self, agent: int) -> Sequence[Block]:
        """Returns an agent's blocks. Shared ones are read-only here: what one user says is not for the others."""

    def learning(
        self, agent: Agent, cursor: int, upto: int, now: float, decide: Callable[[Sequence[Block]], Learned]
    ) -> Effect:
        """Returns the effect that writes what was learned and moves the cursor from `cursor` to `upto`.

        The effect does nothing where the cursor is elsewhere by then. decide: given the blocks as they are when it is
        written.
        """

    async def waiting(self, limit: int) -> Sequence[int]:
        """Returns people's memories with something that was not learned from yet."""


class Vectors(Protocol):
    """Vectors of a memory, and how far it has been embedded. Forgotten or changed messages lose theirs."""

    async def unembedded(self, agent: int, model: str) -> Unembedded | None:
        """Reads the next messages without a vector of this model; None: the agent is gone."""

    def beginning(self, agent: int, model: str) -> Effect:
        """Returns the effect that begins at the first message, with this model."""

    def adding(self, found: Unembedded, added: Mapping[int, bytes]) -> Effect:
        """Returns the effect that adds vectors. added: float32 of one length, by number of the message.

        The effect does nothing where something has changed since `found` was read, and begins anew where the vectors
        of this model have another length than before.
        """

    async def has(self, agent: int, model: str) -> bool:
        """Tells whether anything of it was embedded."""

    async def lacks(self, agent: int, model: str) -> bool:
        """Tells whether something that is indexed was not embedded."""

    async def behind(self, model: str, limit: int) -> Sequence[int]:
        """Returns people's memories of which not all is embedded."""


class Spending(Protocol):
    """Tokens that background calls used. day: days since the epoch, UTC."""

    async def spent(self, project: str, day: int) -> int: ...

    async def spend(self, project: str, day: int, tokens: int) -> None: ...


class Forgetting(Protocol):
    """Forgetting in steps: `begin` writes the intention down, `run` carries it out, also after a crash in between."""

    async def find(
        self, project: str, profile: str | None, subject: str | None, *, after: int = 0, limit: int = 100
    ) -> list[int]:
        """Returns a page of the memories in a scope. profile, subject: None is any."""

    async def aged(self, project: str, before: float, *, after: int = 0, limit: int = 100) -> list[int]:
        """Returns a page of the memories of a project that hold something older than that."""

    async def conversation(self, agent: int, name: str) -> int | None:
        """Returns the conversation with this public name, or the client's own."""

    async def exchange(self, agent: int, seq: int) -> int | None:
        """Returns the exchange that holds this message."""

    async def extent(self, agent: int, target: ForgetTarget) -> Extent:
        """Returns how much the target is, now."""

    async def unfinished(self) -> list[int]:
        """Returns what was begun and not ended, by this process or one before it."""

    async def begin(self, agent: int, target: ForgetTarget) -> int:
        """Writes the intention down. Returns its number, for `run`.

        From then on no turn that was under way commits. Jobs end, and begin again when all is gone.
        """

    async def run(self, id: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Runs to the end, unless `until` says that it is enough for now. True when all is gone."""

    async def forget_project(self, project: str) -> None:
        """Deletes the blocks that its users shared. The memories themselves are forgotten one by one, before."""

    async def sweep(self, wait_ms: int = 1000) -> bool:
        """Takes what was forgotten out of the database's own old copies. False: somebody still reads them."""


class Transfer(Protocol):
    """Export and import of a memory.

    Parts: conversation, exchange, block, version, passage, fact, ended, learned, edit.
    """

    async def edge(self, agent: Agent) -> dict[str, int]:
        """Returns where the memory ends now, for `page`. Raises: NotFound.

        seq: the last number that was given out. learned: how far learning has come.
        """

    async def page(
        self, agent: Agent, part: str, after: int, limit: int, edge: Mapping[str, int]
    ) -> list[tuple[int, TransferRecord]]:
        """Returns (position behind it, record) of one part, up to the edge."""

    async def begin(self, draft: Agent) -> Agent:
        """Makes a memory to be filled, which no request reaches. draft: for the scope where it shall be in the end.

        Raises: WriteConflict, where one is already.
        """

    async def under_way(self, scope: Scope) -> Agent | None:
        """Returns the memory that `begin` made."""

    async def chain(self, agent: Agent, seq: int) -> list[Ancestor]:
        """Returns the path to an exchange of it, oldest first. Raises: NotFound."""

    async def write(self, agent: Agent, records: Sequence[tuple[str, TransferRecord]]) -> None:
        """Writes (part, record) in the order in which they were read. Raises: WriteConflict, NotFound."""

    async def end(self, agent: Agent, next_seq: int) -> None:
        """Puts the memory in its place. Raises: WriteConflict, where something was said there meanwhile."""


class Summaries(Protocol):
    """Summaries of what was said on a path up to an exchange."""

    async def of(self, agent: int, conversation: int, limit: int = 16) -> list[Summary]:
        """Returns those of a conversation on any branch, the ones that cover most first."""

    async def at(self, agent: int, exchange: int) -> Summary | None:
        """Returns the one that covers the path up to this exchange."""

    async def tip(self, agent: int, name: str | None) -> tuple[int, int] | None:
        """Returns (last standing exchange, conversation). name: its public one or the client's; None: the newest."""

    async def project(self, agent: int) -> str | None:
        """Returns the project of a memory."""

    async def path(self, agent: int, exchange: int, limit: int = 2000) -> list[Exchange]:
        """Returns the path to an exchange with content, oldest first, from the last that has a summary or its root."""

    def adding(
        self, agent: int, exchange: Exchange, text: str, *, tokens: int, at: float, model: str
    ) -> Effect:
        """Returns the effect that adds a summary, for the job that made it. One that is there already stays."""


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
    def transfer(self) -> Transfer: ...

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
