"""Answers requests that go upstream in their own dialect (gateway.run.native_request) and have memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from gateway.core.agent import AgentSpec
from gateway.core.conversation.wire_message import is_system
from gateway.core.request.identity import Identity
from gateway.core.request.known_replies import MemoryKey
from gateway.core.request.memory_mode import MemoryState, Mode
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.turn.native_reader import NativeReader
from gateway.core.turn.native_turn import NativeTurn
from gateway.errors import BadRequest, GatewayError, MemoryUnavailable
from gateway.run.call import ChatCall, Forwarded, make_native_call, note_identity
from gateway.run.chat import Chat
from gateway.run.chat_memory import TurnBeginning
from gateway.run.deferred_replies import DeferredReplies, DeferredReply, DeferredReplyRow
from gateway.run.earlier_replies import EarlierReplies, ReferencedReplies
from gateway.run.memory.named_turns import find_paths_by_id
from gateway.run.memory.queue import QueueTicket
from gateway.run.native_memory import BoundedReader, NativeMemory
from gateway.run.native_request import NativeRequest
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.sink import Sink, UnseenSink
from gateway.run.turn import TurnRun
from gateway.run.turn_saving import TurnSaving
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.outgoing import with_codex_headers
from gateway.run.upstream.relay import relay
from gateway.run.upstream.route import Route
from storage.errors import StoreError
from storage.records import Agent, Scope

_log = logging.getLogger("mnemogate")

# The key in place of one that could not be read. All memories have it then, so nothing is cached under it.
_UNREAD_KEY: Final[MemoryKey] = ("", 0)


class NativeChat:
    """Answers native requests. One for the process."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._keeper = chat.keeper
        self._turn_services = chat.turn_services
        # The replies that upstreams gave ids, cached.
        self._earlier_replies = EarlierReplies()
        # The replies that upstreams make in the background.
        self.deferred_replies = DeferredReplies(chat.keeper.store, chat.keeper.now)
        chat.keeper.store.forgetting.add_forget_listener(self._earlier_replies.clear)

    async def answer(
        self,
        native: NativeRequest,
        route: Route,
        request_context: RequestContext,
        sink: Sink,
        receipt: Receipt,
    ) -> MemoryState | Literal[""]:
        """Answers a request in its own dialect, and returns the state of memory for it, as `Chat.answer` does.

        native: a request for which `Resolver.choose_memory_state` is "on".
        route: the route to the upstream that answers.

        Raises: GatewayError while nothing was sent; ClientGone.
        """
        resolver = self._chat.resolver
        identity = resolver.identify(native.chat, request_context)
        spec = self._chat.directory.find_requested_spec(identity)
        assert spec is not None  # else there is no memory
        lookup_key: MemoryKey | None = None
        if identity.scope is not None:
            await self._turn_services.wait_written(identity.scope)
            if native.referenced_ids:
                lookup_key = await self._read_memory_key(identity.scope)
                native = await self._with_available_history(native, identity.scope, lookup_key)
        request = native.chat
        # Once more: the whole list decides the kind of the request.
        identity = resolver.with_delegated_task(resolver.identify(request, request_context), request)
        note_identity(receipt, identity)
        if native.conversation_id is None and native.previous_id is None:
            _check_has_history(identity, spec)
        forwarded = Forwarded(
            headers=with_codex_headers(request_context.headers),
            credential=request_context.credential,
            models=request_context.models,
            key_id=request_context.key_id,
            upstream=route.original.upstream,
        )
        call = make_native_call(
            native,
            forwarded=forwarded,
            identity=identity,
            spec=spec,
            route=route,
            sink=sink,
            receipt=receipt,
        )
        await self._chat.admit(call)
        await self._answer_call(call, native, lookup_key)
        return call.memory_state

    async def save_deferred(
        self,
        project: str,
        reply_id: str,
        response: bytes,
        read: Callable[[DeferredReply], NativeRequest | None],
    ) -> None:
        """Writes the turn of a deferred reply that its upstream has made since.

        A fault is logged, and the request stays stored: the next GET of the reply tries again.

        reply_id: the upstream's id of the reply.
        read: returns the request of a deferred reply, or None if it cannot be read.
        """
        try:
            row = await self.deferred_replies.find(project, reply_id)
            if row is not None and (native := read(row.reply)) is not None:
                await self._save_response(native, row, response)
        except (StoreError, GatewayError) as error:
            _log.warning("A response that was made in the background was not stored: %s", error.message)
        except Exception:
            # Memory never breaks chat: an error in its code must not either.
            _log.exception(
                "A response that was made in the background was not stored, by a fault in the gateway."
            )

    async def _save_response(self, native: NativeRequest, row: DeferredReplyRow, response: bytes) -> None:
        """Writes the turn of a response that its upstream has made. Raises: StoreError, GatewayError."""
        scope = row.agent.scope
        reader = native.make_reader()
        reader.read_whole(response)
        await self._turn_services.wait_written(scope)
        if native.referenced_ids:
            native = await self._with_stored_history(native, scope, await self._read_memory_key(scope))
        await self._save_deferred_reply(native, row, reader)

    async def _save_deferred_reply(
        self, native: NativeRequest, row: DeferredReplyRow, reader: NativeReader
    ) -> None:
        """Writes the turn of a deferred reply that has ended, and removes its row.

        reader: a reader that has read the reply.
        """
        identity = row.reply.identity
        reply = reader.make_reply()
        spec = self._chat.directory.find_requested_spec(identity)
        scope = identity.scope
        if spec is None or scope is None or reply.end is not FINISHED:
            await self.deferred_replies.remove(row)
            return
        route = self._chat.model_routes.get_route(native.chat.model)
        receipt = Receipt(project=scope.project)
        call = make_native_call(
            native,
            forwarded=Forwarded(()),
            identity=identity,
            spec=spec,
            route=route,
            sink=UnseenSink(),
            receipt=receipt,
        )
        attempts = self._chat.failover.make_attempts_at_first_key(route, receipt)
        with QueueTicket() as ticket:
            ticket.timeout_s = self._turn_services.limits.commit_wait_s
            beginning = await self._begin_memory(call, native, attempts, ticket)
            if beginning is None:
                return  # the next GET finds the row, as where the turn could not be written
            memory, prompt = beginning
            memory.reader = reader
            saving = TurnSaving(call, memory, self._turn_services)
            with saving.track_turn():
                saved_event = await saving.save(prompt, TurnOutcome(FINISHED, shown_reply=reply.shown_reply))
        if saved_event.is_durable or saved_event.loss is not None:
            await self.deferred_replies.remove(row)

    async def _answer_call(self, call: ChatCall, native: NativeRequest, lookup_key: MemoryKey | None) -> None:
        """Answers a request. Sets the call's `memory_state`.

        lookup_key: the memory in which the ids of the request were looked up; None: the request has no ids.
        """
        attempts = self._chat.failover.make_attempts_at_first_key(
            call.route,
            call.receipt,
            # The upstream stores the reply in the account of one key. Sent again, the request would make a second one.
            sends_once=native.is_stored or native.conversation_id is not None,
        )
        # Requests side by side in one conversation are the upstream's to refuse, and none waits for another here.
        with QueueTicket() as ticket:
            ticket.timeout_s = self._turn_services.limits.commit_wait_s
            beginning = await self._begin_known_memory(call, native, attempts, ticket, lookup_key)
            if beginning is not None:
                memory, prompt = beginning
                machine = NativeTurn(memory.reader, native.make_change(), native.upstream_path)
                turn = TurnRun(
                    call=call,
                    attempts=attempts,
                    prompt=prompt,
                    memory=memory,
                    services=self._turn_services,
                    machine=machine,
                )
                await self._chat.await_reply(call, attempts, turn.run())
                return
            if call.identity.mode is Mode.STRICT:
                raise MemoryUnavailable("The conversation is not known here by its ids.", retry_after_s=1.0)
            reply = relay(
                attempts,
                call.make_request_without_memory,
                call.sink,
                call.receipt,
                keep_alive_s=self._turn_services.limits.keep_alive_s,
                change=native.make_change(),
            )
            await self._chat.await_reply(call, attempts, reply)

    async def _begin_known_memory(
        self,
        call: ChatCall,
        native: NativeRequest,
        attempts: Attempts,
        ticket: QueueTicket,
        lookup_key: MemoryKey | None,
    ) -> TurnBeginning[NativeMemory] | None:
        """Returns the turn's memory and its prompt, or None if the request's conversation is not known here.

        Sets the call's `memory_state`. lookup_key: as for `_answer_call`.
        """
        beginning = None
        call.memory_state = "unavailable"
        # A request without messages refers to a conversation that is unknown here.
        if not all(map(is_system, call.request.messages)):
            beginning = await self._begin_memory(call, native, attempts, ticket)
        if beginning is not None and lookup_key not in (
            None,
            _make_memory_key(beginning.memory.context.agent),
        ):
            # Another process has forgotten something since, perhaps a reply that the ids name.
            call.memory_state = "unavailable"
            return None
        return beginning

    async def _begin_memory(
        self, call: ChatCall, native: NativeRequest, attempts: Attempts, ticket: QueueTicket
    ) -> TurnBeginning[NativeMemory] | None:
        """Returns the turn's memory and its prompt, or None if memory has no part in the turn."""
        make_memory = partial(
            NativeMemory,
            native=native,
            reader=BoundedReader(native.make_reader(), self._turn_services.limits.max_streamed_bytes),
            earlier_replies=self._earlier_replies,
            deferred_replies=self.deferred_replies,
            save_deferred_reply=self._save_deferred_reply,
        )
        return await self._chat.memory.begin(call, attempts, ticket, make_memory)

    async def _with_available_history(
        self, native: NativeRequest, scope: Scope, memory: MemoryKey
    ) -> NativeRequest:
        """Returns the result of `_with_stored_history`. If the store fails, only cached replies are known."""
        try:
            return await self._with_stored_history(native, scope, memory)
        except StoreError as error:
            _log.warning(
                "Earlier responses could not be looked up, so they count as unknown: %s", error.message
            )
            return native.with_history(self._earlier_replies, memory)

    async def _with_stored_history(
        self, native: NativeRequest, scope: Scope, memory: MemoryKey
    ) -> NativeRequest:
        """Returns the request with the replies that it refers to, from this process's cache or the store.

        Raises: StoreError.
        """
        if unknown_ids := self._earlier_replies.list_unknown_ids(memory, native.referenced_ids):
            paths = await find_paths_by_id(self._keeper.store, scope, unknown_ids)
            with_history = native.with_history(ReferencedReplies(paths, self._earlier_replies), memory)
            if memory != _UNREAD_KEY:
                # Afterwards, since the cache may drop other replies that this request names.
                for reply_id, path in paths.items():
                    self._earlier_replies.add(memory, (reply_id,), None, path[:-1], path[-1])
            return with_history
        return native.with_history(self._earlier_replies, memory)

    async def _read_memory_key(self, scope: Scope) -> MemoryKey:
        """Returns the present key of a scope's memory, as this process knows it; `_UNREAD_KEY`: the store fails."""
        try:
            return _make_memory_key(await self._keeper.store.agents.find_or_draft(scope))
        except StoreError:
            return _UNREAD_KEY


def _check_has_history(identity: Identity, spec: AgentSpec) -> None:
    """Refuses a request that leaves its history to the gateway and names none. Raises: BadRequest."""
    if identity.uses_append_mode(spec.history):
        raise BadRequest(
            "The gateway does not prepend history to a request for a response that it passes on. Send all of "
            "the input, `previous_response_id` or `conversation`, or have `takes = { responses = false }` set.",
            param="x-mnemogate-history",
        )


def _make_memory_key(agent: Agent) -> MemoryKey:
    return agent.uid, agent.epoch
