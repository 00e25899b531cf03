"""The operations that the page shows and performs, as `gateway/operations.py` makes them."""

from __future__ import annotations

from msgspec import Struct

from gateway.run.admin.access.key_records import KeyRecords
from gateway.run.admin.access.link_operations import LinkOperations
from gateway.run.admin.access.sign_in import SignIn
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.forgetting.memory_forgetting import MemoryForgetting
from gateway.run.admin.memory.memory_edits import MemoryEdits
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory.run_operations import RunOperations
from gateway.run.admin.overview_operation import OverviewOperation
from gateway.run.admin.requests.recall_trials import RecallTrials
from gateway.run.admin.requests.request_operations import RequestOperations
from gateway.run.admin.transfer.memory_export import MemoryExport
from gateway.run.admin.words.lost_words import LostWords
from gateway.run.admin.words.word_counts import WordCounts
from gateway.run.admin.words.word_search import WordSearches
from gateway.run.admin.work.work_operations import WorkOperations


class PageOperations(Struct, frozen=True):
    """The groups of operations, one in each field."""

    sign_in: SignIn
    links: LinkOperations
    keys: KeyRecords
    work: WorkOperations
    runs: RunOperations
    requests: RequestOperations
    overview: OverviewOperation
    audit: AuditOperations
    edits: MemoryEdits
    memories: MemoryViews
    trials: RecallTrials
    words: WordSearches
    word_counts: WordCounts
    lost_words: LostWords
    forgetting: MemoryForgetting
    export: MemoryExport
