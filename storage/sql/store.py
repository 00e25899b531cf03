"""The store: its groups of operations over one database. It has no protocol; the seam is storage/database.py.

    store = await open_store("mnemogate.db", rules)       # storage/open.py
    agent = await store.agents.find(scope)
    await store.turns.commit(write)
    await store.close()

Reads are awaited, though a local file answers at once. Writes that return a future are plain functions: such a write
begins whether or not its future is awaited. Every method raises errors of storage.errors and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from storage.database import Database, StoreHealth, begin_work
from storage.sql.agents import Agents
from storage.sql.agents_api.agents import DefinedAgents
from storage.sql.agents_api.attached import Attached
from storage.sql.agents_api.attached_folders import AttachedFolders
from storage.sql.agents_api.batch_items import BatchItems
from storage.sql.agents_api.batches import Batches
from storage.sql.agents_api.blocks import NamedBlocks
from storage.sql.agents_api.conversations import Conversations
from storage.sql.agents_api.definitions import Definitions
from storage.sql.agents_api.folder_files import Files
from storage.sql.agents_api.forks import Forks
from storage.sql.agents_api.messages import Messages
from storage.sql.agents_api.run_texts import RunTexts
from storage.sql.agents_api.runs import Runs
from storage.sql.agents_api.sleeptime_agents import SleeptimeAgents
from storage.sql.audit import Audit
from storage.sql.blocks import Blocks
from storage.sql.conversation_locks import ConversationLocks
from storage.sql.database_secrets import DatabaseSecrets
from storage.sql.default_blocks import DefaultBlocks
from storage.sql.facts import Facts
from storage.sql.forget import Forgetting
from storage.sql.forget_preview import ForgetPreviews
from storage.sql.forget_targets import ForgetTargets
from storage.sql.growth import Growth
from storage.sql.imports import Imports
from storage.sql.jobs import Jobs
from storage.sql.keys import Keys
from storage.sql.limits import UsageLimits
from storage.sql.links import Links
from storage.sql.memory_cache import MemoryCache
from storage.sql.memory_pages import MemoryPages
from storage.sql.move_source import MoveSource
from storage.sql.move_target import MoveTarget
from storage.sql.overview import Overview
from storage.sql.passages import Passages
from storage.sql.people_search import PeopleSearch
from storage.sql.readers import Readers
from storage.sql.recall import Recall
from storage.sql.recalls import Recalls
from storage.sql.responses import Responses
from storage.sql.search_index import SearchIndex
from storage.sql.sections import Sections
from storage.sql.snapshot_cache import SnapshotCache
from storage.sql.stored_paths import StoredPaths
from storage.sql.summaries import Summaries
from storage.sql.transfer_export import ExportReader
from storage.sql.transfer_import import ImportWriter
from storage.sql.turn_edits import TurnEdits
from storage.sql.turns import Turns
from storage.sql.usage import Usage
from storage.sql.vectors import Vectors
from storage.store_rules import Rules


def _read_no_clock() -> None:
    """A clock that returns None: the statement then reads the database's clock itself."""


class Store:
    """All groups of one store. Each process opens one."""

    def __init__(
        self,
        database: Database,
        rules: Rules,
        path: str | None,
        now: Callable[[], float] | None = None,
        tick: Callable[[], float] | None = None,
    ) -> None:
        """Makes the groups of a store.

        path: the path of the SQLite file; None: the database is on a server.
        now: the function that returns the seconds since the epoch; None: the clock is the machine's, or the database's
            if processes share it.
        tick: the function that reads a clock that never jumps, for leases; None: as for `now`.
        """
        self.database = database
        # Outside of statements `read_shared_clock` estimates the clock of a shared database, which statements read.
        groups_now = now or self.read_shared_clock
        self.agents = Agents(database, groups_now)
        self.keys = Keys(database, groups_now, path)
        self.blocks = Blocks(database)
        self.default_blocks = DefaultBlocks(database)
        self.turn_edits = TurnEdits(database)
        self.sections = Sections(database)
        self.growth = Growth()
        self.passages = Passages(database, self.growth)
        self.attached_folders = AttachedFolders(database)
        self.files = Files(database, self.growth)
        snapshots = SnapshotCache()
        memories = MemoryCache(rules)
        self.turns = Turns(database, self.agents, rules, snapshots, memories)
        self.search_index = SearchIndex(database, self.growth, memories, rules)
        self.recall = Recall(database, memories, rules, self.search_index)
        self.vectors = Vectors(database, rules)
        statement_now = now or (_read_no_clock if database.is_shared else time.time)
        statement_tick = tick or (_read_no_clock if database.is_shared else time.monotonic)
        self.jobs = Jobs(database, statement_now, statement_tick)
        self.conversation_locks = ConversationLocks(database, statement_now)
        self.stored_paths = StoredPaths(database, self.agents, rules, self.jobs)
        self.usage = Usage(database)
        self.secrets = DatabaseSecrets(database)
        self.limits = UsageLimits(database)
        self.forgetting = Forgetting(
            database,
            agents=self.agents,
            now=groups_now,
            memories=memories,
            snapshots=snapshots,
            wake=self.jobs.wake,
            rules=rules,
            usage=self.usage,
        )
        self.facts = Facts(database, self.growth)
        self.readers = Readers(database, rules)
        self.recalls = Recalls(database)
        self.summaries = Summaries(database)
        self._add_operator_groups(database, rules)
        self._add_agents_api(database, rules)
        database.add_change_listener(snapshots.apply_changes)
        # While the database was out of reach, other processes may have written, and jobs have become due.
        for callback in (self.agents.clear, snapshots.clear, memories.clear, self.jobs.wake):
            database.add_recovery_listener(callback)

    def _add_operator_groups(self, database: Database, rules: Rules) -> None:
        """Adds the groups of the page and of the command line: previews, lists, exports, imports and moves."""
        self.forget_targets = ForgetTargets(database)
        self.forget_previews = ForgetPreviews(database, rules)
        self.export_reader = ExportReader(database)
        self.import_writer = ImportWriter(database, self.growth, self.agents, self.forgetting)
        self.imports = Imports(database)
        self.move_source = MoveSource(database)
        self.move_target = MoveTarget(database)
        self.overview = Overview(database)
        self.memory_pages = MemoryPages(database)
        self.people_search = PeopleSearch(database, rules, self.memory_pages, self.recall)
        self.audit = Audit(database)
        self.links = Links(database)

    def _add_agents_api(self, database: Database, rules: Rules) -> None:
        """Adds the groups of the agents API and of the Responses API."""
        self.runs = Runs(database, self.jobs)
        self.run_texts = RunTexts(database)
        self.responses = Responses(database, self.jobs)
        self.batch_items = BatchItems(database, rules)
        self.batches = Batches(database, self.jobs, self.batch_items)
        self.definitions = Definitions(database)
        self.defined_agents = DefinedAgents(database)
        self.attached = Attached(database)
        self.messages = Messages(database)
        self.conversations = Conversations(database)
        self.forks = Forks(database, rules)
        self.named_blocks = NamedBlocks(database)
        self.sleeptime_agents = SleeptimeAgents(database, self.jobs)

    def begin_work(self) -> None:
        """Begins the work of a request, or of a step of a periodic task, as `storage.database.begin_work`."""
        begin_work(self.database)

    def read_shared_clock(self) -> float:
        """Returns the time by the clock of all processes that share the database, in seconds since the epoch."""
        return time.time() + self.database.clock_ahead_s

    @property
    def health(self) -> StoreHealth:
        return self.database.health

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all writes are on disk, for `timeout_s` at most. Returns whether they are."""
        return await self.database.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Closes the database. Writes that still wait after `timeout_s` fail with StoreClosed. Idempotent."""
        await self.database.close(timeout_s)
