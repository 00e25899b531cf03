"""The requests of this process's log, as the page looks them up. The store is only asked which memories are gone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from gateway.run.admin.records.request_records import RequestRecord
from gateway.run.admin.requests.request_summaries import make_logged_record
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.sql.store import Store


class LoggedRequests(Struct, frozen=True):
    """Finds requests of the log."""

    # The log of this process; None: the process serves no requests.
    log: RequestLog | None

    def find(self, memory: str | None, ids: Collection[str]) -> list[LoggedRequest]:
        """Returns the requests of the log with these ids that read a memory. memory: the uid; None: any memory."""
        return (
            []
            if self.log is None
            else [each for each in self.log.list_ended(memory=memory) if each.id in ids]
        )

    def find_projects(self, requests: Iterable[RequestRecord]) -> dict[str, str]:
        """Returns the projects of the memories that some requests of the log have read, by the memories' uids."""
        uids = {each.memory for each in requests if each.memory}
        if self.log is None or not uids:
            return {}
        logged = (*self.log.list_in_flight(project=None), *self.log.list_ended())
        return {
            each.memory_uid: each.scope.project for each in logged if each.memory_uid in uids and each.scope
        }

    def find_resent(self, requests: Iterable[RequestRecord]) -> dict[str, RequestRecord]:
        """Returns, for requests that got the stored reply of an earlier request in the log, the first such request."""
        ended_requests = self._list_ended_with_turn()
        first_by_turn = {(each.memory_uid, each.exchange_row): each for each in ended_requests}
        ids = {each.id for each in requests}
        pairs = [
            (each, first_by_turn[each.memory_uid, each.exchange_row])
            for each in ended_requests
            if each.id in ids
        ]
        return {each.id: make_logged_record(first) for each, first in pairs if first is not each}

    def find_unsearched(self, requests: Iterable[RequestRecord]) -> set[str]:
        """Returns the ids of requests with memory on that did not search it, since they asked nothing new."""
        ids = {each.id for each in requests if each.mode in ("on", "strict") and not each.recalled}
        return {
            each.id for each in self._list_ended_with_turn() if each.id in ids and not each.has_recall_record
        }

    def list_later(self, request: str, memory: str | None) -> Sequence[RequestRecord]:
        """Returns the requests of the log that sent a request again later, newest first. memory: the memory's uid."""
        memory_requests = [each for each in self._list_ended_with_turn() if each.memory_uid == memory]
        exchange_row = next((each.exchange_row for each in memory_requests if each.id == request), None)
        if exchange_row is None:
            return []
        turn_requests = [each for each in memory_requests if each.exchange_row == exchange_row]
        later_requests = itertools.takewhile(lambda each: each.id != request, turn_requests)
        return [make_logged_record(each) for each in later_requests]

    def _list_ended_with_turn(self) -> Sequence[LoggedRequest]:
        """Returns the requests of the log with a known turn, the newest first."""
        return () if self.log is None else [each for each in self.log.list_ended() if each.exchange_row]


async def find_forgotten_memories(store: Store, log: RequestLog, logged: Iterable[LoggedRequest]) -> set[str]:
    """Returns the uids of the requests' memories that are gone."""
    uids = {
        each.memory_uid for each in logged if each.memory_uid is not None and log.is_before_forgetting(each)
    }
    return uids - (await store.overview.load_scopes(uids)).keys() if uids else uids
