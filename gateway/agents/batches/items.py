"""The turn of one item of a batch, performed by `TurnRun` as every turn is.

Nothing of a turn stays in memory between two requests. To continue it, the conversation is read again and the stored
rounds are replayed with the stored results of their tools, so that rules, counts and names of calls come out as before.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from adapters.errors import ProviderError
from adapters.json_escapes import read_json
from gateway.agents.batches.item_ending import EndedTurn, make_ended_turn
from gateway.agents.batches.item_failure import AGENT_CHANGED, AGENT_GONE, FORGOTTEN, ItemFailed
from gateway.agents.batches.item_texts import ItemRequest, ItemTexts, RequestState, StoredEdit, StoredRound
from gateway.agents.batches.item_turn import ItemTurn
from gateway.agents.batches.stored_replies import ReplayedTools, ReplyNotStored, StoredReplies
from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.agents.runs.calls.toolboxes import Toolboxes
from gateway.agents.runs.run import RunRequest, make_chat_request, make_identity
from gateway.agents.runs.stored_conversation import read_stored_context, rewind_context
from gateway.agents.runs.stored_run import INTERNAL_ERROR
from gateway.agents.runs.turn_guide import is_overfull, make_guide
from gateway.agents.tools.agent_tools import find_serial_tools, read_asides
from gateway.core.conversation.kind import ConversationKind
from gateway.core.json_limits import is_too_deep
from gateway.core.memory import edits
from gateway.core.memory.memory_tools import STORED_SOURCES
from gateway.core.turn.client_view import UnseenView
from gateway.core.turn.stop_reason import STOP_MESSAGES, StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.upstream.policy import Target
from gateway.core.usage.reported import find_reported_counts
from gateway.errors import GatewayError, NotAllowed, UnknownModel
from gateway.metrics import Metrics
from gateway.run.call import ChatCall, Forwarded
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.pending import PendingWrites
from gateway.run.receipt import Receipt
from gateway.run.sink import UnseenSink
from gateway.run.tools.call_journal import CallJournal
from gateway.run.tools.toolbox import MAX_PARALLEL
from gateway.run.turn import TurnRun
from gateway.run.turn_services import TurnLimits, TurnServices
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.form_choice import choose_endpoint_form
from gateway.run.upstream.route import Route, make_agent_route
from gateway.settings import Settings
from storage.batch_records import BatchItem, ItemEnd, ItemRound
from storage.errors import NotFound, StoreError
from storage.run_records import RunTextKind, TokenCounts

_log = logging.getLogger("mnemogate")
# A replay writes and streams nothing, and the agent's rules bound its rounds.
_REPLAY_LIMITS = TurnLimits(commit_wait_s=1.0, max_hidden_rounds=0, max_streamed_bytes=0)


class ComposedRequest(Struct, frozen=True):
    """A request for a provider."""

    # The name of the upstream that answers the request.
    upstream: str
    # The upstream's name of the model that answers the request.
    model: str
    # The body in the upstream's form.
    body: bytes
    # The last exchange of the path before the request; 0: the path is empty.
    last_exchange: int
    # The epoch of the agent's memory when the request was composed.
    epoch: int
    # The state to be stored with the request.
    state: RequestState


@dataclass(eq=False, slots=True)
class ItemReplayer:
    """Replays the turns of items, to compose their requests and to feed them replies. One for the process."""

    # The settings, which route models to upstreams.
    settings: Settings
    # The memory, which has the conversations of items.
    keeper: MemoryKeeper
    # Finds the agents of items, with the settings of their conversations.
    resolver: AgentResolver
    # Makes the tools of items.
    toolboxes: Toolboxes
    # The upstreams, of which only the endpoints and the context windows are read.
    failover: Failover
    # Bounds the tools of all items that run at once.
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_PARALLEL), init=False)
    # Not the services of the process, since a replay is not counted or awaited as a turn of the process.
    _turn_services: TurnServices = field(
        default_factory=lambda: TurnServices(PendingWrites(), Metrics(), _REPLAY_LIMITS), init=False
    )

    # -- reading

    async def open_turn(
        self,
        item: BatchItem,
        reply: bytes | None = None,
        failure: ProviderError | None = None,
        *,
        composes: bool = False,
    ) -> ItemTurn:
        """Reads an item. Returns its turn before the replay.

        reply: the reply that the provider has just given; None: no new reply.
        failure: the error in place of a further reply; None: a further reply may come.
        composes: True if the replay makes the request for the next reply.

        Raises: ItemFailed, StoreError.
        """
        run = item.run
        store = self.keeper.store
        if run is None or not item.conversation_name:
            raise ItemFailed(AGENT_GONE)
        load_texts = partial(store.batch_items.load_texts, run.agent_row, run.id)
        texts = await ItemTexts.load(store, run)
        memory_request, route = await self._make_memory_request(item, texts.request)
        target = memory_request.target
        context = await self._read_context(item, memory_request, texts.request)
        block_edits = BlockEdits(list(context.blocks), shown={} if texts.state is None else texts.state.shown)
        # Passages and facts of earlier rounds are stored when the turn ends. Until then searches find them in `edits`.
        block_edits.edits += [insert.load() for stored in texts.rounds for insert in stored.inserts]
        bodies = [orjson.dumps(stored.reply) for stored in texts.rounds]
        journal = CallJournal(partial(store.batch_items.add_text_of_open_item, run.agent_row, run.id))
        if reply is not None:
            journal.stored_replies.update(await load_texts(RunTextKind.REPLY))
            journal.restore_calls(await load_texts(RunTextKind.CALL), await load_texts(RunTextKind.RESULT))
            journal.note_reply(len(bodies), reply)
            bodies.append(reply)
        replies = StoredReplies(target, self._get_endpoint(target), bodies, failure, composes)
        toolbox = self.toolboxes.make_for_item(context, block_edits, run, journal)
        tools = ReplayedTools(toolbox, replies, texts.rounds, self._slots)
        return ItemTurn(item, texts, context, block_edits, tools, replies, route, self.keeper.now)

    async def _read_context(
        self, item: BatchItem, memory_request: MemoryRequest, request: ItemRequest
    ) -> MemoryContext:
        """Returns the context of an item as it was when the item began. Raises: ItemFailed, StoreError."""
        store, idle_s = self.keeper.store, self.keeper.settings.idle_s
        try:
            context = await read_stored_context(store, memory_request, request.messages, idle_s)
            check_not_paused(context.agent)
        except NotFound as error:
            raise ItemFailed(AGENT_GONE) from error
        except NotAllowed as error:
            raise ItemFailed(error.message) from error
        if item.epoch is not None and context.agent.epoch != item.epoch:
            raise ItemFailed(FORGOTTEN)
        return rewind_context(context, request.messages, item.last_exchange)

    async def _replay(self, turn: ItemTurn, prompt: Prompt | None = None) -> None:
        """Replays an item's turn up to the next reply that is not stored.

        prompt: the prompt of the request for that reply; None: no request is made.
        """
        memory_request = turn.context.request
        spec = memory_request.spec
        prompt = prompt or Prompt(memory_request.chat, memory_request.target)
        tools = turn.toolbox.list_definitions()
        call = ChatCall(
            request=memory_request.chat,
            forwarded=Forwarded(),
            identity=memory_request.identity,
            spec=spec,
            route=turn.route,
            kind=memory_request.kind,
            make_view=UnseenView,
            sink=UnseenSink(),
            receipt=Receipt(),
        )
        guide = make_guide(spec, replace(prompt, tools=tools), turn.texts.request.max_steps, can_ask=True)
        terms = TurnTerms(
            gateway_tools=AllBut() if tools else (),
            holds_end=True,
            serial_tools=find_serial_tools(spec),
            asides=read_asides(spec),
        )
        try:
            await TurnRun(call, turn.replies, prompt, turn, self._turn_services, guide, terms).run()
        except ReplyNotStored:
            pass
        except GatewayError:
            if turn.outcome is None:  # otherwise the error is of a reply, with which the turn has ended
                raise

    def _get_endpoint(self, target: Target) -> Endpoint:
        return self.failover.endpoints[target.upstream][0]

    async def _make_memory_request(
        self, item: BatchItem, request: ItemRequest
    ) -> tuple[MemoryRequest, Route]:
        """Returns an item's request to memory, and the route to its model. Raises: ItemFailed, StoreError."""
        try:
            resolved = await self.resolver.resolve_for_send(
                item.project,
                item.agent_uid,
                item.conversation_name,
                model=request.model,
                system=request.system,
            )
        except NotFound as error:
            raise ItemFailed(AGENT_GONE) from error
        # A provider's prefix cache does not last between requests.
        spec = replace(resolved.spec, rebuilds_section=True)
        try:
            route = make_agent_route(self.settings, spec)
        except UnknownModel as error:
            raise ItemFailed(error.message) from error
        target = self.failover.context_windows.with_known_window(route.first)
        run_request = RunRequest(
            spec, resolved.scope, item.conversation_name, fields=spec.definition.sampling
        )
        memory_request = MemoryRequest(
            chat=make_chat_request(run_request, is_streamed=False),
            identity=make_identity(run_request),
            spec=spec,
            now=self.keeper.now(),
            target=target,
            kind=ConversationKind.AGENT,
        )
        return memory_request, route

    # -- composing

    async def compose(self, item: BatchItem) -> ComposedRequest:
        """Returns the request for the item's next reply. Raises: ItemFailed, StoreError."""
        turn = await self.open_turn(item, composes=True)
        context, target = turn.context, turn.context.request.target
        form = choose_endpoint_form(context.request.chat, self._get_endpoint(target), target.model)
        last_state = turn.texts.state
        notes = None if last_state is None else last_state.notes
        tools = turn.toolbox.list_definitions()
        prompt = await self.keeper.composer.make_prompt(context, form, tools, notes)
        if await is_overfull(prompt):
            message = "The agent's own prompt leaves no room in the window of its model."
            raise ItemFailed(message, StopReason.SYSTEM_OVERFLOW)
        turn.block_edits.shown = shown = dict(prompt.section.shown_blocks)
        await self._replay(turn, prompt)
        request = turn.replies.request
        if request is None:
            raise ItemFailed(AGENT_CHANGED)
        began = self.keeper.now() if last_state is None else last_state.began
        return ComposedRequest(
            target.upstream,
            target.model,
            request.body,
            last_exchange=context.path[-1].id if context.path else 0,
            epoch=context.agent.epoch,
            state=RequestState(shown, dict(prompt.new_notes), len(context.plan.pending), began),
        )

    # -- the reply

    async def feed_reply(self, item: BatchItem, body: bytes) -> ItemRound | EndedTurn:
        """Feeds the turn of an item a reply, and runs its tools. Returns the round, or the turn if it has ended.

        Raises: ItemFailed, StoreError.
        """
        reply, _ = read_json(body)
        if is_too_deep(reply):
            raise ItemFailed(STOP_MESSAGES[StopReason.BAD_REPLY], StopReason.BAD_REPLY)
        turn = await self.open_turn(item, body)
        await self._replay(turn)
        if turn.replies.taken_count <= len(turn.texts.rounds):
            raise ItemFailed(AGENT_CHANGED)
        counts = _read_counts(reply)
        inserts = [edit for edit in turn.new_edits if edit.op in STORED_SOURCES]
        block_edits = [edit for edit in turn.new_edits if edit.op not in STORED_SOURCES]
        merged = edits.make_block_merge(turn.context.blocks, block_edits)
        versions = {block.id: block.version for block in turn.context.blocks}
        if turn.outcome is not None:
            return make_ended_turn(turn, turn.outcome, counts, merged, versions)
        stored = StoredRound(reply, turn.toolbox.results, list(map(StoredEdit.of, inserts)), counts)
        number, data = len(turn.texts.rounds), to_builtins(stored)
        return ItemRound(item, number, data, merged, versions, counts, self.keeper.now())

    async def read_noted_reply(self, item: BatchItem) -> bytes | None:
        """Returns the reply to an item's last request if some of the reply's calls were begun, or None.

        Raises: StoreError.
        """
        if (run := item.run) is None:
            return None
        load_texts = partial(self.keeper.store.batch_items.load_texts, run.agent_row, run.id)
        return (await load_texts(RunTextKind.REPLY)).get(len(await load_texts(RunTextKind.ROUND)))

    async def make_early_end(
        self, item: BatchItem, failure: ItemFailed, reply: bytes = b""
    ) -> EndedTurn | ItemEnd:
        """Returns the end of an item that cannot continue, with its turn if the turn has rounds, which stay.

        reply: a reply that the provider has billed, of which only the tokens count; b"": no reply was billed.

        Raises: StoreError.
        """
        counts, now = _read_counts(read_json(reply)[0]), self.keeper.now()
        end = ItemEnd(item, failure.state, failure.stop, now, failure.message, item.epoch, counts)
        try:
            turn = await self.open_turn(item, failure=ProviderError(failure.message))
            if not turn.texts.rounds:
                return end
            await self._replay(turn)
        except ItemFailed as error:
            # A provider's error may quote messages that were forgotten.
            return replace(end, error_message=error.message, epoch=None)
        except StoreError:
            raise
        except Exception:
            # The other items of the batch continue after any error.
            _log.exception("An item of a batch could not be read, by a fault in the gateway; the item fails.")
            return replace(end, error_message=INTERNAL_ERROR, epoch=None)
        return EndedTurn(turn, end)


def _read_counts(reply: Any) -> TokenCounts:
    """Returns the tokens that a reply, which may be any JSON, reports; zeros if it reports none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    return find_reported_counts(usage) or TokenCounts()
