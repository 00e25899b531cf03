"""Begins the memory of a turn: reads it, makes the prompt, and answers without memory if it is not available."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.plan import was_sent_again
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import STORING_MODES, MemoryState, Mode
from gateway.errors import BadRequest, CallerError, ContextExceeded, HistoryForgotten, MemoryUnavailable
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.named_turns import make_turn_name
from gateway.run.memory.native_prefix import mark_changed_prefix
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.turn_writer import STALE_TRIES
from gateway.run.receipt import Receipt
from gateway.run.sink import ClientGone
from gateway.run.stored_agents import StoredAgents
from gateway.run.tools.toolbox import Toolbox
from gateway.run.tree_memory import TreeMemory
from gateway.run.turn_services import TurnServices
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.form_choice import choose_endpoint_form
from storage.errors import StaleWrite, StoreError, is_known

_log = logging.getLogger("mnemogate")
_T = TypeVar("_T")
_MemoryT = TypeVar("_MemoryT", bound=TreeMemory)
# Returns the memory of a turn. Its parameters are the fields of `TreeMemory` in their order; the class is a factory.
MemoryFactory = Callable[[MemoryKeeper, MemoryContext, BlockEdits, Toolbox, Receipt], _MemoryT]


class TurnBeginning(NamedTuple, Generic[_MemoryT]):
    """The memory and the prompt with which a turn begins."""

    # The memory of the turn.
    memory: _MemoryT
    # The prompt of the turn's first call of the model.
    prompt: Prompt


class _FittingPrompt(NamedTuple):
    """A prompt that fits a target, and the context for this target."""

    # The context.
    context: MemoryContext
    # The prompt.
    prompt: Prompt


@dataclass(eq=False)
class ChatMemory:
    """Begins the memory of the turns of chat completions. One for the process."""

    # The memories of the process.
    keeper: MemoryKeeper
    # The services that the process's turns share.
    turn_services: TurnServices
    # The agents of the agents API.
    agents: StoredAgents
    # Is called with each request that names no user.
    warn_of_no_user: Callable[[], None]

    async def begin(
        self,
        call: ChatCall,
        attempts: Attempts,
        ticket: QueueTicket,
        make_memory: MemoryFactory[_MemoryT],
        *,
        opens: bool = True,
    ) -> TurnBeginning[_MemoryT] | None:
        """Returns the memory of a turn and its prompt, or None if the request has no memory.

        Sets the call's `memory_state`. If the store fails, or the request does not fit with memory, the request is
        answered without memory.

        opens: True: in append mode, the user's message is written now; False: the request is only counted or previewed.

        Raises:
            BadRequest, MemoryUnavailable: the request may not be answered without memory.
            HistoryForgotten: as `MemoryKeeper.begin`.
            ClientGone.
        """
        identity = call.identity
        if identity.scope is None:
            call.memory_state = self._choose_state_without_scope(identity)
            with suppress(StoreError):  # as any request without a memory, it does not need the store
                await self.keeper.check_history(call.request.memories)
            return None
        # In append mode the upstream would get the new messages alone if there were no memory.
        is_appended = call.kind is ConversationKind.APPENDED and call.native_request is None
        needs_memory = identity.mode is Mode.STRICT or is_appended or call.record is not None
        # A store that cannot be written may still be read, but then the turn would not be stored.
        if needs_memory and not (health := self.keeper.store.health).ok:
            raise MemoryUnavailable.for_status(health.status)
        read = partial(
            self._read, call, attempts, ticket, make_memory, opens=opens, needs_memory=needs_memory
        )
        try:
            return await _read_current(read)
        except (ClientGone, HistoryForgotten):
            raise
        except CallerError:
            if needs_memory:
                raise  # the prompt does not fit, and may not be cut
            # Without memory the client's list may fit.
        except StoreError as error:
            if not is_known(error):
                _log.warning("A request was answered without memory: %s", error.message)
            if needs_memory:
                raise MemoryUnavailable.for_status(error.status) from error
        except Exception as error:
            # Memory never breaks chat, not even by an error in its code.
            _log.exception("A request was answered without memory, by a fault in the gateway.")
            if needs_memory:
                raise MemoryUnavailable.for_status(StoreError.status) from error
        call.memory_state = "unavailable"
        return None

    def _choose_state_without_scope(self, identity: Identity) -> MemoryState:
        """Returns the state of a request without a memory. Raises: BadRequest: the request demands memory."""
        if identity.mode is Mode.OFF:
            return "off"
        self.warn_of_no_user()
        if identity.mode is Mode.STRICT:
            raise BadRequest(
                "x-mnemogate-memory: strict needs a user or a conversation to remember: send `user` or "
                "`x-mnemogate-conversation`.",
                param="x-mnemogate-memory",
            )
        return "none"

    async def _read(
        self,
        call: ChatCall,
        attempts: Attempts,
        ticket: QueueTicket,
        make_memory: MemoryFactory[_MemoryT],
        *,
        opens: bool,
        needs_memory: bool,
    ) -> TurnBeginning[_MemoryT]:
        """Reads memory and makes the prompt. Sets the call's `memory_state`.

        needs_memory: True: a fallback that has no room for memory is passed over.

        Raises: StoreError; HistoryForgotten; ClientGone; ContextExceeded.
        """
        memory_context = await self._read_context(call, attempts, ticket, opens=opens)
        call.identity = memory_context.request.identity
        block_edits = BlockEdits(list(memory_context.blocks))
        toolbox = self.agents.make_toolbox(call, memory_context, block_edits)
        memory_context, prompt = await self._make_fitting_prompt(
            call, attempts, memory_context, toolbox, needs_memory=needs_memory
        )
        block_edits.shown = prompt.section.shown_blocks
        if call.record is not None:
            await call.record.note_turn(make_turn_name(memory_context))
        if memory_context.plan.follows_head and opens:
            memory_context = await self.keeper.open(memory_context, prompt)
        if call.request.native_body is not None:
            prompt = mark_changed_prefix(memory_context, prompt)
        self._note_prompt(call, prompt)
        call.memory_state = _choose_memory_state(
            call.identity.mode, is_off_record=memory_context.plan.is_off_record
        )
        memory = make_memory(self.keeper, memory_context, block_edits, toolbox, call.receipt)
        return TurnBeginning(memory, prompt)

    async def _read_context(
        self, call: ChatCall, attempts: Attempts, ticket: QueueTicket, *, opens: bool
    ) -> MemoryContext:
        """Returns what the memory knows of a request, once the earlier turns of its conversation are written.

        Raises: StoreError; HistoryForgotten; ClientGone.
        """
        memory_request = MemoryRequest(
            chat=call.request,
            identity=call.identity,
            spec=call.spec,
            now=self.keeper.now(),
            target=attempts.target,
            kind=call.kind,
            ticket=ticket,
        )
        if opens:
            # Before the wait below, since a later request may have less to wait for.
            await self.keeper.enter_queue(memory_request, call.arrival_ticket)
        assert call.identity.scope is not None  # `begin` reads no memory without it
        await self.turn_services.wait_written(call.identity.scope)
        # The time is taken again, because the turns that this request waited for were written meanwhile.
        memory_context = await self.keeper.begin(replace(memory_request, now=self.keeper.now()))
        if opens and call.sink.is_gone and _was_sent_again(call, memory_context):
            raise ClientGone
        return memory_context

    async def _make_fitting_prompt(
        self,
        call: ChatCall,
        attempts: Attempts,
        context: MemoryContext,
        toolbox: Toolbox,
        *,
        needs_memory: bool,
    ) -> _FittingPrompt:
        """Returns the prompt for the first target with room for it, and the context for this target.

        Raises: ContextExceeded: no target has room, or the request may be answered without memory.
        """
        while True:
            form = choose_endpoint_form(call.request, attempts.endpoint, attempts.target.model)
            try:
                prompt = await self.keeper.composer.make_prompt(context, form, toolbox.list_definitions())
                return _FittingPrompt(context, prompt)
            except ContextExceeded:
                if not needs_memory or not attempts.skip_fallback():
                    raise
                context = context.with_expected_target(attempts.target)

    def _note_prompt(self, call: ChatCall, prompt: Prompt) -> None:
        """Notes the memory of a request and its recall in the metrics and in the receipt."""
        if prompt.composition.unrestored_rounds:
            self.turn_services.metrics.prefix_breaks.inc()
        receipt, recall = call.receipt, prompt.recall
        if recall.search_ms:
            self.turn_services.metrics.recall_s.observe(recall.search_ms / 1000)
            recall.note_search(receipt)
        receipt.memory.scope = call.identity.scope
        receipt.memory.mode = str(call.identity.mode)


async def _read_current(read: Callable[[], Awaitable[_T]]) -> _T:
    """Returns the result of `read`, which is called again if something was forgotten meanwhile. Raises: as `read`."""
    for _ in range(STALE_TRIES - 1):
        with suppress(StaleWrite):
            return await read()
    return await read()


def _choose_memory_state(mode: Mode, *, is_off_record: bool) -> MemoryState:
    """Returns the state of a request with memory. is_off_record: True: its turn is off the record."""
    if mode is Mode.OFF:
        return "off"
    # A request that repeats a turn off the record is off the record as well.
    return "on" if mode in STORING_MODES and not is_off_record else "read"


def _was_sent_again(call: ChatCall, context: MemoryContext) -> bool:
    """Returns whether the message of a request was sent again, and answered, before the queue let the request in.

    Another gateway may have answered it first.
    """
    plan, arrived_at = context.plan, call.arrived_at
    return plan.follows_head and arrived_at is not None and was_sent_again(context.tree, plan, arrived_at)
