"""The turn of a native request as a machine: the reply passes in its dialect, and its last bytes wait for the save.

It has the events and commands of `machine.Turn`, so one shell performs both. It has one round and no tools: hidden
rounds would change the conversation that the upstream stores. A `NativeReader` notices the end of the reply.
"""

from __future__ import annotations

from typing import Final

from adapters.types import Event, Header
from gateway.core.turn import commands, events
from gateway.core.turn.commands import Command, End, TurnOutcome
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.native_reader import NativeReader
from gateway.core.turn.refusal import is_permanent_refusal
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.turn.upstream_error import RESPONSE_FAILED, find_stream_exception
from gateway.core.usage.reported import UsageReader
from gateway.errors import GatewayError, UpstreamReplyBroken

_EARLY_END: Final = "The upstream's stream ended before its reply was complete"


class NativeTurn:
    """The counterpart of `machine.Turn` for a request that goes upstream in its own dialect."""

    first_call = commands.CallModel(messages=(), budget_tokens=None)

    def __init__(self, reader: NativeReader, change: ReplyChange, path: str) -> None:
        """Begins a turn. path: the path of the call, below the upstream's base URL."""
        # Reads the usage of the reply.
        self.usage = UsageReader(path)
        self._reader = reader
        self._change = change
        # The status of the reply.
        self._status = 200
        # The headers of the reply.
        self._headers: tuple[Header, ...] = ()
        # True: the head of the reply has come.
        self._has_begun = False
        # The error that an event of the upstream has reported; None: no event has reported one.
        self._error: UpstreamReplyBroken | None = None
        # True: the command to save the turn was given.
        self._is_saved = False
        # True: the command to save the id of a background response was given.
        self._is_id_saved = False
        # The commands that wait until the turn or the id is saved.
        self._after_save: list[Command] = []

    def feed_texts(self, batch: list[Event]) -> bytes | None:
        """Returns None: there is no fast path, all events have to be fed."""
        return None

    def with_stored_fields(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns the outcome as it is: `NativeMemory` adds the fields that the dialect stores."""
        return outcome

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns the commands that follow from an event, in order."""
        try:
            return self._feed(event)
        except GatewayError as error:  # the reply cannot be changed
            return self._fail(error)

    def _feed(self, event: TurnEvent) -> list[Command]:
        """Returns the commands that follow from an event. Raises: GatewayError: the reply cannot be changed."""
        match event:
            case events.Received(batch):
                return self._on_received(batch)
            case events.ReplyStarted(status, headers):
                self._status, self._headers = status, headers
                return []
            case events.ReceivedWhole(body):
                return self._on_received_whole(body)
            case events.Silence():
                return self._send(commands.KEEP_ALIVE)
            case events.Saved():
                after_save, self._after_save = self._after_save, []
                return after_save
            case events.ReplyEnded():
                # A complete reply is saved by now, with its dialect's last event. Any other reply broke off too early.
                return self._end_early(b"", self._error or UpstreamReplyBroken(_EARLY_END))
            case events.ReplyFailed(error, unfinished_event) if unfinished_event:
                return self._end_early(self._change.change_unfinished(unfinished_event), error)
            case events.ReplyFailed(error):
                return self._fail(error)
            case events.ClientLeft():
                return [commands.CloseUpstream(), *self._save_unfinished(End.CANCELLED), commands.FINISH]
            case _:  # without tools and steps, their events never come
                return []

    def _on_received(self, batch: list[Event]) -> list[Command]:
        """Passes events on, and saves the turn before its end leaves."""
        data = b"".join(map(self._change.change_event, batch))
        self.usage.read_events(data)
        sends = self._send(data)
        for event in batch:
            self._reader.read(event)
            if event.name in ("error", RESPONSE_FAILED):
                self._error = self._error or find_stream_exception(event.raw)
        if self._is_saved:
            return sends
        if self._reader.is_over:
            return self._save(sends)
        if self._reader.background_id is None or self._is_id_saved:
            return sends
        # The id is on disk before the client has it, so that any process can find the reply by its id. CANCELLED is the
        # state until the reply ends, as the client may never ask for the reply.
        self._is_id_saved = True
        self._after_save = sends
        return [commands.Save(TurnOutcome(End.CANCELLED, background_id=self._reader.background_id))]

    def _on_received_whole(self, body: bytes) -> list[Command]:
        """Answers with a whole reply or error, and saves the turn."""
        if not 200 <= self._status < 300:
            is_refused = is_permanent_refusal(self._status, body)
            error_reply = commands.SendWhole(self._status, self._headers, body)
            return [error_reply, *self._save_unfinished(End.FAILED, is_refused=is_refused), commands.FINISH]
        self.usage.read_body(body)
        body = self._change.change_body(body)
        self._reader.read_whole(body)
        return [commands.SendWhole(self._status, self._headers, body), *self._save([commands.FINISH])]

    def _send(self, data: bytes) -> list[Command]:
        head = [] if self._has_begun else [commands.SendHead(self._status, self._headers)]
        self._has_begun = True
        return [*head, *([commands.SendBody(data)] if data else [])]

    def _save(self, after_save: list[Command]) -> list[Command]:
        """Saves the turn of a reply that is over. after_save: the commands that wait until it is saved."""
        self._is_saved = True
        self._after_save = after_save
        reply = self._reader.make_reply()
        outcome = TurnOutcome(
            reply.end, shown_reply=reply.shown_reply, background_id=self._reader.background_id
        )
        return [commands.Save(outcome)]

    def _end_early(self, last_bytes: bytes, error: GatewayError) -> list[Command]:
        """Ends a stream that has begun to be sent. error: the reason for which the stream may lack its end."""
        is_proper_end = self._is_saved and error is not self._error
        closes = [] if is_proper_end else [commands.CloseUpstream(error)]
        return [*self._send(last_bytes), *closes, *self._save_unfinished(End.FAILED), commands.FINISH]

    def _fail(self, error: GatewayError) -> list[Command]:
        ending = [commands.CloseUpstream(error), *self._save_unfinished(End.FAILED), commands.FINISH]
        return [commands.SendError(error), *ending]

    def _save_unfinished(self, end: End, *, is_refused: bool = False) -> list[Command]:
        """Saves the part of a reply without a proper end, unless the turn or a background response's id is saved."""
        if self._is_saved or self._is_id_saved:
            return []
        self._is_saved = True
        shown_reply = self._reader.make_reply().shown_reply
        return [commands.Save(TurnOutcome(end, shown_reply=shown_reply, is_refused=is_refused))]
