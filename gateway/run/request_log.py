"""The log of this process's requests: the requests in flight, and the newest ended ones. It holds no content."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import asdict

from gateway.masks import mask_keys_in_name, mask_keys_in_text
from gateway.run.receipt import Receipt
from gateway.run.request_figures import RequestFiguresRecorder
from storage.records import Scope

# The most ended requests that the log holds. Not measured: at some 500 bytes each an hour of a busy voice agent takes a
# megabyte.
_MAX_ENDED_REQUESTS = 2_000


class BegunRequest(Struct, frozen=True):
    """The facts of a request that are known from its beginning."""

    # The number of the request, which rises with each request of the process.
    number: int
    # The time at which the request began, in seconds since the epoch.
    started_at: float
    # The project of the caller.
    project: str
    # The model that the request names.
    model: str
    # True: the client asked for a stream.
    is_streamed: bool


class LoggedRequest(BegunRequest, frozen=True, kw_only=True):
    """A request as the operators' page lists it."""

    # The id of the request.
    id: str
    # The scope of the request's memory; None: the request has no memory.
    scope: Scope | None
    # The public id of its memory; None: the request has no memory.
    memory_uid: str | None
    # The public id of its conversation; None: the request has no conversation.
    conversation_uid: str | None
    # The memory mode, as in `x-mnemogate-memory`; "": it is not known yet.
    mode: str
    # The status of the reply; None: the request is in flight.
    status: int | None
    # The milliseconds from the beginning of the request to its end, or until now.
    ms: float
    # The milliseconds of `ms` that the gateway added.
    added_ms: float
    # The milliseconds until the first byte of the reply was sent; None: no byte was sent yet.
    first_ms: float | None
    # The upstream that answered; "": no upstream has answered.
    upstream: str
    # Each upstream that was asked with its status or failure, as in `x-mnemogate-tries`.
    tries: tuple[str, ...]
    # The number of recalled messages and facts.
    recalled: int
    # The tokens of the note with them.
    recalled_tokens: int
    # True: the record that explains the recall is stored with the turn.
    has_recall_record: bool
    # The exchange of the turn, which is an earlier exchange if the request was sent before; 0: it is not known.
    exchange_row: int
    # The kind of an application's own request, such as "title"; "": the request is a person's, or it is not known.
    side_request: str

    def is_of(self, project: str | None, memory_uid: str | None) -> bool:
        """Returns whether the request is of a project and a memory. None: of any."""
        return project in (None, self.project) and memory_uid in (None, self.memory_uid)


class RequestLog:
    """Notes requests as they begin and end. There is one log for the process."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Makes an empty log. now: returns the seconds since the epoch."""
        self.now = now
        # The figures of the requests, by the minute.
        self.figures = RequestFiguresRecorder()
        # The requests in flight, by their receipts.
        self._begun_requests: dict[Receipt, BegunRequest] = {}
        # The newest requests that have ended. The request that ended last is the last one.
        self._ended_requests: deque[LoggedRequest] = deque(maxlen=_MAX_ENDED_REQUESTS)
        # The number of the last request.
        self._number = 0
        # The number of the last request before a forgetting: the memories of requests up to it may be gone.
        self._last_before_forgetting = 0

    def begin(self, receipt: Receipt, project: str, model: str, *, is_streamed: bool) -> None:
        """Notes that a request is being answered. Keys in the name of its model are masked."""
        self._number += 1
        self._begun_requests[receipt] = BegunRequest(
            self._number, self.now(), project, mask_keys_in_name(model), is_streamed
        )

    def end(self, receipt: Receipt, status: int) -> None:
        """Notes the end of a request, unless its beginning was not noted. status: the status of the reply."""
        begun_request = self._begun_requests.pop(receipt, None)
        if begun_request is not None:
            logged_request = _make_logged_request(begun_request, receipt, status)
            self._ended_requests.append(logged_request)
            self.figures.add(
                self.now(), begun_request.project, logged_request.mode, status, receipt.clock.added_ms
            )

    def list_in_flight(self, *, project: str | None, memory: str | None = None) -> list[LoggedRequest]:
        """Returns the requests that are being answered, the newest first. The parameters are as in `list_ended`."""
        requests = (
            _make_logged_request(request, receipt, status=None)
            for receipt, request in reversed(self._begun_requests.items())
        )
        return [request for request in requests if request.is_of(project, memory)]

    def find(
        self, request_id: str, project: str | None = None, user: str | None = None
    ) -> LoggedRequest | None:
        """Returns the ended request with an id; None: there is no such request.

        If several requests have the id, the one that began last is returned.

        project: the project of the request; None: any project.
        user: the owner of the memory that the request read, if it read a memory; None: any owner.
        """
        masked_id = mask_keys_in_text(request_id)
        matching_requests = (
            request
            for request in self._ended_requests
            if request.id == masked_id
            and request.is_of(project, None)
            and (request.scope is None or request.scope.is_open_to(user))
        )
        return max(matching_requests, key=lambda request: request.number, default=None)

    def list_ended(self, *, project: str | None = None, memory: str | None = None) -> list[LoggedRequest]:
        """Returns the requests that have ended. The request that began last comes first.

        project: the name of the project; None: requests of all projects.
        memory: the public id of the memory; None: requests of all memories.
        """
        requests = (request for request in self._ended_requests if request.is_of(project, memory))
        return sorted(requests, key=lambda request: request.number, reverse=True)

    def note_forgetting(self) -> None:
        """Notes that something was forgotten: the memories of earlier requests may be gone."""
        self._last_before_forgetting = self._number

    def is_before_forgetting(self, request: LoggedRequest) -> bool:
        """Returns whether something was forgotten after a request began, so that its memory may be gone."""
        return request.number <= self._last_before_forgetting

    def drop_memories(self, memories: Collection[str]) -> None:
        """Drops the requests of memories that are gone. memories: the public ids of the memories."""
        remaining_requests = (
            request
            for request in self._ended_requests
            if request.memory_uid not in memories or not self.is_before_forgetting(request)
        )
        self._ended_requests = deque(remaining_requests, self._ended_requests.maxlen)


def _list_tries(receipt: Receipt, upstream: str) -> tuple[str, ...]:
    """Returns each upstream that was asked, with its status or failure. upstream: the upstream that answered, or ""."""
    if header := receipt.headers.get("x-mnemogate-tries"):
        return tuple(header.split(";"))
    # The first try was the only one. The status of the reply may be the gateway's own, of a turn that was not written.
    call = receipt.last_call
    outcome = call and (call.failure or call.status)
    return (f"{upstream}:{outcome}",) if upstream and outcome else ()


def _make_logged_request(begun_request: BegunRequest, receipt: Receipt, status: int | None) -> LoggedRequest:
    """Returns a request as the log lists it now. status: the status of the reply; None: the request is in flight."""
    headers = receipt.headers
    upstream = headers.get("x-mnemogate-upstream") or ""
    return LoggedRequest(
        **asdict(begun_request),
        id=mask_keys_in_text(receipt.request_id),
        scope=receipt.memory.scope,
        memory_uid=headers.get("x-mnemogate-agent"),
        conversation_uid=headers.get("x-mnemogate-conversation"),
        mode=headers.get("x-mnemogate-memory") or "",
        status=status,
        ms=receipt.clock.measure_ms(),
        added_ms=receipt.clock.added_ms or 0.0,
        first_ms=receipt.clock.first_ms,
        upstream=upstream,
        tries=_list_tries(receipt, upstream),
        recalled=receipt.memory.recalled,
        recalled_tokens=int(headers.get("x-mnemogate-recalled-tokens") or 0),
        has_recall_record=receipt.memory.has_recall_record,
        exchange_row=receipt.memory.exchange_row,
        side_request=unquote(headers.get("x-mnemogate-side-request") or ""),
    )
