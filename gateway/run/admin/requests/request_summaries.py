"""Requests of the log, and stored recalls, as lists and explanations of requests show them."""

from __future__ import annotations

from typing import Any

from gateway.run.admin.memory_names import get_memory_name
from gateway.run.admin.records.request_records import RequestRecord
from gateway.run.request_log import LoggedRequest
from storage.recall_record import RecallRecord, unpack
from storage.sql.recalls import StoredRecall


def summarize_logged(logged: LoggedRequest) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request of the log."""
    return {
        "id": logged.id,
        "at": logged.started_at,
        "memory": logged.memory_uid,
        "name": None if logged.scope is None else get_memory_name(logged.scope),
        "mode": logged.mode,
        "model": logged.model,
        "upstream": logged.upstream,
        "status": logged.status,
        "streamed": logged.is_streamed,
        "ms": logged.ms,
        "added_ms": logged.added_ms,
        "recalled_tokens": logged.recalled_tokens,
    }


def summarize_recall(stored: StoredRecall, record: RecallRecord) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request with a stored recall."""
    upstream, _, model = stored.model.partition("/")
    return {
        "id": stored.request or "",
        "at": stored.at,
        "memory": stored.memory_uid,
        "name": get_memory_name(stored.scope),
        "mode": record.mode,
        "model": model,
        "upstream": upstream,
        "status": record.status,
        "streamed": record.is_streamed,
        "ms": record.ms,
        "added_ms": record.added_ms,
        "recalled_tokens": record.recalled_tokens,
    }


def make_recall_record(stored: StoredRecall) -> RequestRecord:
    """Returns a request with a stored recall as lists show it."""
    record = unpack(stored.data, reads_entries=False)
    return RequestRecord(**summarize_recall(stored, record), recalled=record.found - sum(record.left_out))


def make_logged_record(logged: LoggedRequest) -> RequestRecord:
    """Returns a request of the log as lists show it."""
    return RequestRecord(**summarize_logged(logged), recalled=logged.recalled)
