"""How far a response in the background has come: the turns, replies and calls that its attempts have stored."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.turn_name import TurnName
from gateway.run.call import TurnRecord
from gateway.run.responses.response_log import ResponseLog
from gateway.run.responses.response_services import ResponseServices
from gateway.run.sink import ClientGone
from gateway.run.tools.call_journal import CallJournal
from storage.errors import RunEnded, StaleWrite
from storage.records import ExchangeState
from storage.run_records import RunTextKind


class MadeResponse(NamedTuple):
    """A response that is made."""

    # The response.
    response: Json
    # The name of its turn.
    turn_name: TurnName


class ResponseProgress(Struct, frozen=True):
    """Stores how far a response has come, so that another attempt continues it. Its methods raise StoreError."""

    # The services that make responses.
    services: ResponseServices
    # The log of the response.
    log: ResponseLog

    async def has_begun(self) -> bool:
        """Returns whether an attempt has begun a turn."""
        run = self.log.run
        return bool(await self.services.store.responses.load_turns(run.agent_row, run.id))

    async def find_made_response(self) -> MadeResponse | None:
        """Returns the response that an earlier attempt has made without ending the run."""
        run = self.log.run
        for turn in await self.services.runs.load_turns(run):
            if turn.exchange.state is ExchangeState.FINISHED:
                response = self.services.dialect.rebuild(run.uid, turn.reply)
                if response is not None:
                    return MadeResponse(response, turn.name)
        return None

    async def make_record(self, *, is_begun: bool) -> TurnRecord | None:
        """Returns the record of a response's turn, with the replies and the calls of earlier attempts.

        Returns None if the record was erased, because something of the memory was forgotten.

        is_begun: True: an earlier attempt has begun a turn.
        """
        run = self.log.run
        add_text = partial(self.services.store.responses.add_text, run.agent_row, run.id, job=self.log.job)
        journal = CallJournal(add_text)
        record = TurnRecord(self._note_turn, journal)
        if not is_begun:
            return record
        calls, results = await self._load_texts(RunTextKind.CALL), await self._load_texts(RunTextKind.RESULT)
        if not journal.restore_calls(calls, results):
            return None
        replies = await self._load_texts(RunTextKind.REPLY)
        journal.stored_replies.update(replies)
        return replace(record, replies=list(replies.values()))

    async def _load_texts(self, kind: RunTextKind) -> dict[int, bytes]:
        """Returns the stored texts of a kind by their numbers, in order."""
        run = self.log.run
        texts = await self.services.store.run_texts.load_texts(run.agent_row, run.id, kind)
        return {text.seq: text.data for text in texts}

    async def _note_turn(self, name: TurnName) -> None:
        """Notes a turn that an attempt begins.

        Raises: ClientGone: the response has ended, or is gone; RunEnded: another attempt makes it; StoreError.
        """
        run = self.log.run
        try:
            is_noted = await self.services.store.responses.note_turn(
                run.agent_row, run.id, name.encode(), self.log.job
            )
        except StaleWrite as error:
            # A turn that is stale is planned again, which would be in vain.
            raise RunEnded(error.message) from error
        if not is_noted:
            raise ClientGone
