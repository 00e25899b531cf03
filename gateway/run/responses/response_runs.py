"""The runs of responses in the background as they are stored, and the seam to their dialect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.turn_hex import parse_turn_begin
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.client_view import ViewFactory
from gateway.core.turn_name import TurnName
from gateway.run.event_log import EventDialect
from gateway.run.memory.named_turns import NamedTurn
from gateway.run.store_errors import map_store_errors
from gateway.run.turn_services import TurnServices
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store


class BackgroundRequest(Protocol):
    """A request as its run has it."""

    @property
    def chat(self) -> ChatRequest: ...

    @property
    def key_id(self) -> int:
        """The id of the caller's key; 0: the caller has presented none."""

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that the request names and continues, if any."""

    @property
    def waiting_ids(self) -> Collection[str]:
        """The ids of the items of the conversation that the response has before its own input."""

    def with_waiting(self, ids: Collection[str]) -> BackgroundRequest:
        """Returns the request with the items of its conversation that still wait. ids: the ids of these items."""

    def make_view_factory(
        self,
        turn_name: Callable[[], TurnName | None],
        count_usage: Callable[[str], Json | None],
        answering_model: Callable[[], str],
        first_number: int,
        *,
        has_begun: bool,
    ) -> ViewFactory:
        """Returns the factory of the response's view.

        turn_name: returns the name of the response's turn; None: the turn is not stored.
        count_usage: returns the usage of a reply with a text.
        answering_model: returns the model that answers.
        first_number: the number of the response's first event.
        has_begun: True: an earlier attempt has sent the first event.
        """


class ResponsesDialect(EventDialect, Protocol):
    """The dialect of the responses. A response is JSON as its client sees it, and its events are bytes."""

    def restore(self, encoded_request: bytes, tag: str, created_at: float) -> BackgroundRequest:
        """Returns a request from its stored bytes.

        tag: the tag of the response's ids.
        created_at: the time of its creation, in seconds since the epoch.
        """

    def find_ended_response(self, data: bytes) -> Json | None:
        """Returns the response in the last event of a stream; None: `data` does not end with one."""

    def as_failed(self, shown: Json, code: str | None, message: str) -> Json:
        """Returns a response as it is shown after an error."""

    def as_cancelled(self, shown: Json, output: Sequence[Json] = ()) -> Json:
        """Returns a response as it is shown after its client has cancelled it. output: the items made until then."""

    def rebuild(self, tag: str, reply: WireMessage) -> Json | None:
        """Returns the response of a stored reply, or None if the reply is of no response. tag: the tag of its ids."""

    def render_last_events(self, response: Json, number: int) -> bytes:
        """Returns the last events of a response without a turn. number: the number of the first event."""

    def render_whole_events(self, response: Json, number: int = 0) -> bytes:
        """Returns all events of a response, with each item whole. number: the number of the first event."""


class NewResponse(Struct, frozen=True):
    """A response in the background as it is accepted."""

    # The tag of the response's ids.
    tag: str
    # Seconds since the epoch.
    created_at: float
    # The request as it is stored.
    request: bytes
    # The response as it is shown while it waits.
    shown: Json
    # A hash of all that the caller has sent.
    digest: bytes


class ResponseRuns(Struct, frozen=True):
    """Reads the stored texts of the runs of responses."""

    # The store of the runs.
    store: Store
    # The services that the process's turns share.
    turn_services: TurnServices
    # Renders responses.
    dialect: ResponsesDialect

    async def find_response(self, run: Run) -> Json | None:
        """Returns a response as it is shown before its turn is stored; None: the response was forgotten."""
        stored_response = await self._find_text(run, RunTextKind.RESPONSE)
        if stored_response is None:
            return None
        shown: Json = orjson.loads(stored_response)
        return await self.as_cancelled(run, shown) if run.state is RunState.CANCELLED else shown

    async def as_cancelled(self, run: Run, shown: Json) -> Json:
        """Returns a cancelled response as it is shown: with the items that the last attempt has made.

        shown: the response as it was shown before.

        Raises: MemoryUnavailable.
        """
        with map_store_errors():
            turns = await self.load_turns(run)
        made_response = self.dialect.rebuild(run.uid, turns[-1].reply) if turns else None
        return self.dialect.as_cancelled(shown, [] if made_response is None else made_response["output"])

    async def load_turns(self, run: Run) -> list[NamedTurn]:
        """Returns the stored turns that attempts at a response have begun, oldest first. Raises: StoreError.

        A turn that is being written is waited for, since an attempt that is cancelled does not wait for it.
        """
        names = [*map(TurnName.decode, await self.store.responses.load_turns(run.agent_row, run.id))]
        agent = await self.store.agents.find_by_id(run.agent_row) if names else None
        if agent is None:
            return []
        await self.turn_services.wait_written(agent.scope)
        project, find = agent.scope.project, self.store.messages.find_begun
        begun_turns = [
            (name, await find(project, name.conversation_uid, parse_turn_begin(name.turn))) for name in names
        ]
        return [NamedTurn(name, begun.listed.exchange) for name, begun in begun_turns if begun is not None]

    async def find_request(self, run: Run) -> bytes | None:
        """Returns the request of a response; None: the request is no longer stored. Raises: MemoryUnavailable."""
        return await self._find_text(run, RunTextKind.REQUEST)

    async def _find_text(self, run: Run, kind: RunTextKind) -> bytes | None:
        """Returns a text of a run, or None if it is no longer stored."""
        with map_store_errors():
            texts = await self.store.run_texts.load_texts(run.agent_row, run.id, kind)
        return texts[0].data or None if texts else None
