"""Makes the operations of the command line, the admin route, the page and MCP's tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

from gateway.page.page_operations import PageOperations
from gateway.run.admin.access.key_management import KeyManagement
from gateway.run.admin.access.key_operations import KeyOperations
from gateway.run.admin.access.key_records import KeyRecords
from gateway.run.admin.access.link_operations import LinkOperations
from gateway.run.admin.access.sign_in import SignIn
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.admin.forgetting.memory_forgetting import MemoryForgetting
from gateway.run.admin.imports.import_operations import ImportOperations
from gateway.run.admin.imports.import_performer import ImportPerformer
from gateway.run.admin.imports.import_throttle import ImportThrottle
from gateway.run.admin.mcp.mcp_memory import MCP_CALL, McpMemory
from gateway.run.admin.mcp.mcp_tool_calls import McpTools
from gateway.run.admin.memory.memory_edits import MemoryEdits
from gateway.run.admin.memory.memory_lists import ListOperations
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory.run_operations import RunOperations
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.admin.operation_arguments import Defaults
from gateway.run.admin.operation_table import OperationTable
from gateway.run.admin.overview_operation import OverviewOperation
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.memory_records import MemoryRecord
from gateway.run.admin.requests.recall_trials import RecallTrials
from gateway.run.admin.requests.request_operations import RequestOperations
from gateway.run.admin.transfer.memory_export import MemoryExport
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.run.admin.usage.limit_operations import LimitOperations
from gateway.run.admin.usage.usage_operations import UsageOperations
from gateway.run.admin.words.lost_words import LostWords
from gateway.run.admin.words.word_counts import WordCounts
from gateway.run.admin.words.word_search import WordSearches
from gateway.run.admin.work.batch_operations import BatchOperations
from gateway.run.admin.work.compact_operation import CompactOperation
from gateway.run.admin.work.job_operations import JobOperations
from gateway.run.admin.work.work_operations import WorkOperations
from gateway.run.background.embed import EMBED_JOB
from gateway.run.background.learner import LEARN_JOB
from gateway.run.directory import Directory
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.memory.trial import TrialRunner
from gateway.run.request_log import RequestLog
from gateway.run.usage.accounting import Accounting
from gateway.run.usage.meter import Meter
from gateway.settings import Settings
from storage.sql.store import Store

# The tokens of a trial's note if recall is off: the default of `memory.recall_tokens`.
_TRIAL_RECALL_TOKENS = 1000


class ServingParts(NamedTuple):
    """The parts that a process shares with its operations if it serves requests."""

    # The requests that the process answers. The operations use the log's clock.
    log: RequestLog
    # Lets operators into the page.
    sign_in: SignIn
    # Counts usage.
    meter: Meter
    # Performs imports.
    imports: ImportOperations


def make_request_operations(settings: Settings, store: Store, log: RequestLog | None) -> RequestOperations:
    """Makes the operations that explain requests. log: this process's requests; None: this process serves none."""
    now = store.read_shared_clock if log is None else log.now
    return RequestOperations(store, RecallRetention(now, settings.memory.keep_why_days), log)


def _make_trial_runner(
    settings: Settings, store: Store, now: Callable[[], float], embed_query: EmbedQuery | None
) -> TrialRunner:
    """Makes the operation that shows which messages and facts a sentence recalls.

    now: a function that returns the seconds since the epoch.
    embed_query: a function that returns the vector of a sentence, as for replies; None: memory is searched by words.
    """
    return TrialRunner(store, settings.memory.recall_tokens or _TRIAL_RECALL_TOKENS, now, embed_query)


def make_page_operations(
    settings: Settings,
    store: Store,
    sign_in: SignIn,
    log: RequestLog,
    embed_query: EmbedQuery | None,
    passed_over: Callable[[], Mapping[str, bool]],
) -> PageOperations:
    """Makes the operations of the page.

    passed_over: a function that returns whether failover passes each upstream over, by the upstream's name.
    embed_query: a function that returns the vector of a sentence, as for replies; None: memory is searched by words.
    """
    requests = make_request_operations(settings, store, log)
    memories = MemoryViews(store, log.now, settings.memory.keep_why_days)

    async def list_newest_memories(project: str | None, limit: int) -> Sequence[MemoryRecord]:
        return (await memories.list_page(project, limit=limit)).items

    word_counts = WordCounts(memories)
    return PageOperations(
        sign_in=sign_in,
        links=LinkOperations(store, log.now, settings.choose_default_profile),
        keys=KeyRecords(store.keys),
        runs=RunOperations(store),
        work=WorkOperations(
            store,
            log.now,
            settings.memory.background_daily_tokens,
            has_model=settings.background_model is not None,
        ),
        requests=requests,
        overview=OverviewOperation(
            store=store,
            log=log,
            requests=requests,
            newest_memories=list_newest_memories,
            passed_over=passed_over,
            version=version("mnemogate"),
        ),
        audit=AuditOperations(store, log.now, settings.ui.audit_days),
        edits=MemoryEdits(store, log.now),
        memories=memories,
        trials=RecallTrials(store, _make_trial_runner(settings, store, log.now, embed_query)),
        words=WordSearches(memories),
        word_counts=word_counts,
        lost_words=LostWords(word_counts),
        forgetting=MemoryForgetting(store, memories, log.now),
        export=MemoryExport(store, TransferOperations(store), memories),
    )


def make_limit_operations(settings: Settings, store: Store) -> LimitOperations:
    """Makes the operations on limits of usage."""
    return LimitOperations(store.limits, store.keys, [model.alias for model in settings.models])


def make_mcp_memory(
    settings: Settings,
    store: Store,
    embed_query: EmbedQuery | None,
    now: Callable[[], float],
    accounting: Accounting,
) -> McpMemory:
    """Makes the operations of MCP's tools.

    embed_query: a function that returns the vector of a sentence, as for replies; None: memory is searched by words.
    now: a function that returns the seconds since the epoch.
    """
    views = MemoryViews(store, now, settings.memory.keep_why_days)
    tools = McpTools(
        store=store,
        views=views,
        embed_query=embed_query,
        edits=MemoryEdits(store, now),
        forgetting=MemoryForgetting(store, views, now),
        now=now,
    )
    return McpMemory(
        tools, Directory(settings).find_spec_by_name, accounting, settings.choose_default_profile
    )


def make_import_operations(
    settings: Settings,
    store: Store,
    now: Callable[[], float] | None = None,
    *,
    idle: asyncio.Event | None = None,
) -> ImportOperations:
    """Makes the operations on imports.

    now: a function that returns the seconds since the epoch; None: the clock of the store.
    idle: an event that is set while no request is being answered; None: the process serves no requests.
    """
    now = now or store.read_shared_clock
    performer = ImportPerformer(
        store,
        now,
        retention_days={name: project.retention_days for name, project in settings.projects.items()},
        jobs_after=list_embedding_jobs(settings),
        learning_jobs=(LEARN_JOB,) if settings.memory.learn_every else (),
        throttle=ImportThrottle(idle),
    )
    defaults = Defaults(settings.default_user, settings.choose_default_profile)
    return ImportOperations(
        store=store,
        now=now,
        spec_of=Directory(settings).find_spec_by_name,
        performer=performer,
        defaults=defaults,
    )


def make_operations(
    settings: Settings,
    store: Store,
    embed_query: EmbedQuery | None = None,
    mcp: McpMemory | None = None,
    serving: ServingParts | None = None,
) -> OperationTable:
    """Returns the table of all operations over a store.

    embed_query: a function that returns the vector of a sentence, as for replies; None: memory is searched by words.
    mcp: the operations of MCP's tools; None: the table has no such operations.
    serving: the parts of a process that serves requests; None: this process serves none.
    """
    now = store.read_shared_clock if serving is None else serving.log.now
    imports = make_import_operations(settings, store) if serving is None else serving.imports
    defaults = Defaults(settings.default_user, settings.choose_default_profile)
    limits = make_limit_operations(settings, store)
    usage = UsageOperations(store.usage, now, None if serving is None else serving.meter)
    show = ShowOperation(store, _make_trial_runner(settings, store, now, embed_query), defaults)
    edits = MemoryEdits(store, now, defaults)
    forgetting = ForgetOperations(store, now, defaults)
    transfer = TransferOperations(store, defaults, list_embedding_jobs(settings))
    compact = CompactOperation(store, defaults, has_model=settings.background_model is not None)
    listing = ListOperations(store, defaults)
    batches = BatchOperations(store, now)
    requests = make_request_operations(settings, store, None if serving is None else serving.log)
    keys = KeyOperations(store.keys, settings.projects)
    jobs = JobOperations(store, now)
    return OperationTable(
        {
            "keys-create": keys.create,
            "keys-rotate": KeyManagement(store.keys, limits).rotate_named,
            "keys-list": keys.show_all,
            "keys-revoke": keys.revoke,
            "jobs-list": jobs.show_all,
            "jobs-show": jobs.show,
            "jobs-retry": jobs.retry,
            "jobs-cancel": jobs.cancel,
            "batches-list": batches.show_all,
            "batches-show": batches.show,
            "batches-cancel": batches.cancel,
            "users": listing.list_memories,
            "conversations": listing.list_conversations,
            "memory-show": show.show,
            "memory-forget": forgetting.forget,
            "memory-forget-preview": forgetting.preview,
            "memory-undo": forgetting.undo,
            "memory-add": edits.add,
            "memory-correct": edits.correct,
            "memory-mute": edits.mute,
            "memory-why": requests.why,
            "requests": requests.lists.show_all,
            "usage": usage.show,
            "limits-list": limits.show_all,
            "limits-add": limits.add,
            "limits-remove": limits.remove_named,
            "audit": AuditOperations(store, now, settings.ui.audit_days).show_all,
            "memory-export": transfer.export,
            "memory-import": transfer.restore,
            "imports-begin": imports.begin_file,
            "imports-show": imports.show_named,
            "imports-list": imports.show_all,
            "imports-undo": imports.undo_named,
            "compact": compact.enqueue,
            **({} if serving is None else {"ui": serving.sign_in.make_code}),
            **({} if mcp is None else {MCP_CALL: mcp.call_for_command_line}),
        }
    )


def list_embedding_jobs(settings: Settings) -> tuple[str, ...]:
    """Returns the kinds of the jobs that embed texts from outside of a turn, such as imported texts."""
    return () if settings.memory.embedder is None else (EMBED_JOB,)
