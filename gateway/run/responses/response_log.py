"""The log of a response that is being made in the background, and how its attempt has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from adapters.types import Json
from gateway.core.turn.upstream_error import find_openai_error_of_body
from gateway.run.event_log import EventLog
from gateway.run.responses.response_runs import ResponsesDialect
from storage.job_records import Job


class ErrorFields(NamedTuple):
    """The fields of an error that its response shows."""

    # The code that the upstream gave, or the status.
    code: str
    # The text of the error.
    message: str


class UpstreamErrorReply(NamedTuple):
    """An upstream's error."""

    # The status of the reply.
    status: int
    # The body of the reply.
    body: bytes

    def read_fields(self) -> ErrorFields:
        """Returns the fields of the error. A body that is no error has a fixed message."""
        error = find_openai_error_of_body(self.body)
        if error is None:
            return ErrorFields(str(self.status), "The upstream has answered with an error.")
        return ErrorFields(str(error["code"] or self.status), str(error["message"]))


@dataclass
class ResponseLog(EventLog):
    """The events of a response. The last events are held back until the end of the response is on disk."""

    # The dialect of the events.
    dialect: ResponsesDialect
    # The job that makes the response.
    job: Job = field(kw_only=True)
    # The response as it is shown while it has not ended.
    shown_response: Json = field(kw_only=True)
    # True: an earlier attempt has left events.
    has_events: bool = False
    # The number of this attempt's first event.
    first_number: int = field(default=0, init=False)
    # The events of the response's end, which are held back.
    last_events: bytes = field(default=b"", init=False)
    # The response as it ended; None: the response has not ended.
    final_response: Json | None = field(default=None, init=False)
    # The error with which an upstream has answered; None: no upstream has.
    error_reply: UpstreamErrorReply | None = field(default=None, init=False)

    async def write(self, data: bytes) -> None:
        ended_response = self.dialect.find_ended_response(data)
        if ended_response is None and not self.last_events:
            self.add(data)
            return
        self.last_events += data
        self.final_response = ended_response or self.final_response

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        if status >= 300:
            self.error_reply = UpstreamErrorReply(status, body)
        else:
            self.final_response = orjson.loads(body)

    def render_last_events(self, final_response: Json) -> bytes:
        """Returns the events that end the log. final_response: the response as it ends."""
        if final_response is self.final_response and self.last_events:
            return self.last_events
        if self.next_number > self.first_number:
            return self.dialect.render_last_events(final_response, self.next_number)
        # The events of earlier attempts are not stored any more.
        return self.dialect.render_whole_events(final_response, self.next_number)
