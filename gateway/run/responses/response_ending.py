"""Ends a response that was made in the background: its run, and its log."""

from __future__ import annotations

from typing import Final

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.turn_hex import parse_turn_begin
from gateway.core.request.identity import Identity
from gateway.core.turn_name import TurnName
from gateway.errors import MemoryUnavailable
from gateway.run.receipt import Receipt
from gateway.run.responses.response_log import ResponseLog, UpstreamErrorReply
from gateway.run.responses.response_services import ResponseServices
from storage.errors import NotFound
from storage.run_commands import ResponseEnd
from storage.run_records import RunState

# The errors of responses that have failed, as their clients read them.
_NOT_STORED_ERROR: Final = (
    "The response could not be stored: its memory was changed by a forgetting, or is not available."
)
# The most seconds that a response waits for the commit of its turn: no client waits for it.
_DISK_WAIT_S: Final = 3600.0
# The statuses with which an upstream refuses a key.
_KEY_REFUSED_STATUSES: Final = (401, 403)
_KEY_GONE_ERROR: Final = (
    "Another process made the response than the one that took the request, and no caller's key is stored. Send the "
    "request again, or give the upstream a key in the settings."
)


class ResponseEnding(Struct, frozen=True):
    """Ends one response. Its methods raise StoreError."""

    # The services that make responses.
    services: ResponseServices
    # The log of the response.
    log: ResponseLog

    async def end(self, response: Json, turn_name: TurnName | None = None) -> None:
        """Ends the run and its log.

        response: the response as it has ended.
        turn_name: the name of the turn with the response; None: no turn has it.
        """
        status = response["status"]
        state = {"failed": RunState.FAILED, "cancelled": RunState.CANCELLED}.get(status, RunState.COMPLETED)
        turn = turn_name.encode() if turn_name is not None and state is RunState.COMPLETED else None
        number = self.log.next_number
        last_events = self.log.render_last_events(response)
        # For a reader in another process, no event follows once the run has ended.
        await self.log.flush()
        last_number = number + len(self.services.dialect.number_events(last_events, number)) - 1
        end = ResponseEnd(
            state=state,
            at=self.services.now(),
            shown=orjson.dumps(response),
            turn=turn,
            events=last_events,
            last_number=last_number,
            epoch=self.log.epoch,
        )
        try:
            ended_run = await self.services.store.responses.finish(self.log.run, end, self.log.job)
        except NotFound:
            return
        # A run that was cancelled, or ended by another attempt, has other last events (`follow_events` reads them).
        if (ended_run.state, ended_run.otid) == (state, turn):
            self.log.add_stored(last_events)

    async def fail(self, message: str, code: str | None = None) -> None:
        """Ends a response with an error."""
        await self.end(self.services.dialect.as_failed(self.log.shown_response, code, message))

    async def end_refused(self, error: UpstreamErrorReply, *, has_caller_key: bool) -> None:
        """Ends a response with an upstream's error. has_caller_key: False: no key of a caller was sent upstream."""
        code, message = error.read_fields()
        if not has_caller_key and error.status in _KEY_REFUSED_STATUSES:
            message = _KEY_GONE_ERROR
        await self.fail(message, code)

    async def end_answered(self, identity: Identity, receipt: Receipt) -> None:
        """Ends a response that was answered. It fails if its turn is not stored.

        Raises: MemoryUnavailable: the database has failed meanwhile, and another attempt has to be made.
        """
        if self.log.final_response is None:
            await self.fail("The upstream's answer has no end.")
            return
        turn_name = receipt.find_turn_name()
        needs_turn = self.log.final_response["status"] in ("completed", "incomplete")
        if needs_turn and (turn_name is None or not await self._is_stored(identity, receipt, turn_name)):
            epoch = await self.services.store.responses.load_epoch(self.log.run.agent_row)
            if turn_name is not None and epoch == self.log.epoch:
                # Nothing was forgotten, so the database has failed.
                raise MemoryUnavailable("The turn of a response could not be stored.")
            await self.fail(_NOT_STORED_ERROR)
            return
        await self.end(self.log.final_response, turn_name)

    async def _is_stored(self, identity: Identity, receipt: Receipt, turn_name: TurnName) -> bool:
        """Returns whether the turn of an answer is on disk."""
        if receipt.headers.get("x-mnemogate-durable") != "false":
            return True
        if identity.scope is not None:
            await self.services.chat.turn_services.pending.wait_written(identity.scope, _DISK_WAIT_S)
        exchange = await self.services.store.messages.find_begun(
            identity.project, turn_name.conversation_uid, parse_turn_begin(turn_name.turn)
        )
        return exchange is not None
