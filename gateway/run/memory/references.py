"""Puts stored messages in the place of the ids by which a request names them (`ChatRequest.references`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.heard import as_heard
from gateway.core.conversation.private import read_private, with_private, without_private
from gateway.core.conversation.provider_fields import THOUGHT_FIELDS
from gateway.core.conversation.turn_hex import parse_turn_begin
from gateway.core.conversation.wire_message import WireMessage, list_raw_calls, read_call_id, read_result_id
from gateway.core.prompt.result_order import find_results_order
from gateway.core.request.chat_request import ChatRequest, MemoryChoice, Reference
from gateway.core.request.identity import Identity
from gateway.core.turn_name import TurnName
from gateway.errors import QUOTED_ID_CHARS, BadRequest, BodyTooLarge, UnknownId
from gateway.run.memory.conversation_turns import ConversationTurns, join_reply, load_turns, with_model
from gateway.run.memory.named_turns import NamedTurn, find_run_turn_name
from storage.records import Agent, Exchange, Scope
from storage.sql.store import Store


async def fill_references(
    store: Store, identity: Identity, request: ChatRequest, max_reply_bytes: int
) -> ChatRequest:
    """Returns a request with the messages that its references stand for.

    identity: its scope is the scope of the memory that is searched. Without a scope the request names no user, and gets
        the memory to which its ids belong, unless it names another agent.
    max_reply_bytes: the most bytes of messages and thoughts that are put in one by one; paths do not count.

    Raises: BadRequest: a response is not found; UnknownId: an item is not found; BodyTooLarge; StoreError.
    """
    filler = _ReferenceFiller(request, max_reply_bytes)
    turns = _ReferencedTurns(store, identity.project, identity.scope)
    for each in request.references:
        messages = await turns.load_messages_of(each)
        if messages:
            filler.fill(each, messages)
        elif each.kind != "thoughts":  # unknown thoughts are left out, like the thoughts of another provider
            raise _make_not_found_error(each)
    filled_request = filler.make_filled_request()
    if turns.owner is None:
        return filled_request
    agent, conversation_key = turns.owner
    memory_choice = filled_request.memory_choice
    is_for_agent = identity.agent in (None, agent.scope.profile)
    # A conversation without a user may be copied into one with another agent; a person's words stay in their memory.
    if identity.scope is None and (is_for_agent or agent.scope.is_person):
        memory_choice = MemoryChoice(
            None if agent.scope.spans_conversations else conversation_key, agent.scope
        )
    return replace(filled_request, memory_choice=memory_choice, memories=filled_request.memories | {agent.id})


class _Owner(NamedTuple):
    """The memory that has the turns."""

    # The owner of the memory.
    agent: Agent
    # The client's own id of the first turn's conversation; None: the client has given none.
    conversation_key: str | None


class _ReferencedTurns:
    """The turns that references name."""

    def __init__(self, store: Store, project: str, scope: Scope | None) -> None:
        # The memory that has the turns; None: no turn was found yet.
        self.owner: _Owner | None = None
        self._store = store
        self._project = project
        self._scope = scope
        # The messages of references, by turn, kind and index of the input.
        self._messages: dict[tuple[TurnName, str, int | None], list[WireMessage]] = {}
        # The turns of conversations, by the public ids of these.
        self._by_conversation: dict[str, ConversationTurns] = {}

    async def load_messages_of(self, reference: Reference) -> list[WireMessage]:
        """Returns the messages of a reference: the path that ends with a reply, or the reply alone; []: not found."""
        name = reference.turn
        if name is None:
            return []
        key = name, reference.kind, reference.input_index
        if key not in self._messages:
            self._messages[key] = await self._find_in_turn(reference, name)
        return self._messages[key]

    async def _find_in_turn(self, reference: Reference, name: TurnName) -> list[WireMessage]:
        """Returns the messages of a reference in the turn of this name."""
        begun_turn = await self._store.messages.find_begun(
            self._project, name.conversation_uid, parse_turn_begin(name.turn)
        )
        if begun_turn is not None:
            agent, entry = begun_turn
            if not self._is_accepted_owner(agent, entry.key):
                return []
            if reference.input_index is not None:
                inputs = dict(NamedTurn(name, entry.exchange).inputs)
                message = inputs.get(reference.input_index)
                return [] if message is None else [with_model(message, entry.exchange)]
            if entry.run_uid is None:
                return await self._read_exchange_messages(agent, entry.exchange, reference, name)
        run_turn_name = await find_run_turn_name(
            self._store, self._project, name.tag, includes_cancelled=True
        )
        if run_turn_name is not None:
            # The id of a run is random and no turn's name, so this call finds no further run.
            return await self._find_in_turn(reference, run_turn_name)
        # The reply was stored by an earlier request with the same words, or has several steps.
        turns = await self._load_turns(name.conversation_uid)
        return turns.list_path_to(name.turn) if reference.kind == "path" else turns.read_reply(name.turn)

    async def _read_exchange_messages(
        self, agent: Agent, exchange: Exchange, reference: Reference, name: TurnName
    ) -> list[WireMessage]:
        """Returns the messages of a reference if its turn is this exchange."""
        if reference.kind != "path":
            return [] if exchange.redactions else join_reply([exchange])
        turns = ConversationTurns()
        for entry in await self._store.messages.load_path(agent.id, exchange.id):
            turns.add(entry)
        return turns.list_path_to(name.turn)

    async def _load_turns(self, conversation_uid: str) -> ConversationTurns:
        """Returns the turns of a conversation, or none if the request may not read them. Raises: StoreError."""
        if conversation_uid not in self._by_conversation:
            conversation = await self._store.messages.find_conversation(self._project, conversation_uid)
            self._by_conversation[conversation_uid] = (
                await load_turns(self._store, conversation.agent, conversation_uid)
                if conversation is not None and self._is_accepted_owner(*conversation)
                else ConversationTurns()
            )
        return self._by_conversation[conversation_uid]

    def _is_accepted_owner(self, agent: Agent, key: str | None) -> bool:
        """Returns whether the turns of a memory may be read: it is the user's own, and the first memory of the request.

        The first memory becomes the owner. So a request that names no user reads one user's memory, and no memory that
        was made since.
        """
        if self._scope not in (None, agent.scope):
            return False
        if self.owner is None:
            self.owner = _Owner(agent, key)
        return agent.id == self.owner.agent.id


class _ReferenceFiller:
    """Replaces the references of a request, one after the other, by the messages for which they stand."""

    def __init__(self, request: ChatRequest, max_reply_bytes: int) -> None:
        self._request = request
        self._max_reply_bytes = max_reply_bytes
        # The bytes that further messages and thoughts may have.
        self._remaining_bytes = max_reply_bytes
        models = request.reply_models
        # The messages that replace each message of the request, by its index, with their models as private fields.
        self._messages = [[with_private(m, model=models.get(n))] for n, m in enumerate(request.messages)]
        # The indices of the messages that stand for a stored message.
        self._reply_indices = {each.index for each in request.references if each.kind == "message"}
        # The indices of the messages that are replaced by a reply, and not by an input of a turn.
        self._filled_reply_indices: set[int] = set()
        # The indices of the messages that are dropped, since a path has them.
        self._repeat_indices: set[int] = set()

    def fill(self, reference: Reference, messages: Sequence[WireMessage]) -> None:
        """Puts the stored messages of a reference into the request.

        messages: the stored messages, with the reply last.

        Raises: BodyTooLarge: the replaced messages exceed the limit. Thoughts that exceed it are left out.
        """
        match reference.kind:
            case "path":
                self._insert_path(reference.index, messages)
            case "message":
                self._replace_message(reference, messages)
            case "thoughts":
                self._add_thoughts(reference.index, messages[-1])

    def make_filled_request(self) -> ChatRequest:
        """Returns the request with stored messages in place of its references."""
        self._drop_unanswered_calls()
        private_messages = [*chain.from_iterable(self._messages)]
        if (order := find_results_order(private_messages)) is not None:
            private_messages = [private_messages[i] for i in order]
        messages = [*map(without_private, private_messages)]
        models = [read_private(message).get("model") for message in private_messages]
        is_stored = [read_private(message).get("stored") for message in private_messages]
        json = {**self._request.json, "messages": messages}
        return replace(
            self._request,
            raw=orjson.dumps(json),
            json=json,
            messages=messages,
            references=(),
            reply_models={n: model for n, model in enumerate(models) if model is not None},
            stored_indexes=frozenset(n for n, stored in enumerate(is_stored) if stored),
            follows_response=any(each.kind == "path" for each in self._request.references),
        )

    def _insert_path(self, index: int, path: Sequence[WireMessage]) -> None:
        """Inserts a stored path before a message of the request."""
        self._messages[index][:0] = self._as_heard(path, index)

    def _replace_message(self, reference: Reference, messages: Sequence[WireMessage]) -> None:
        """Replaces the message of a reference by the last of its stored messages. Raises: BodyTooLarge."""
        message = self._as_heard(messages, reference.index + 1)[-1]
        # The same reply may be named again and again.
        self._remaining_bytes -= len(orjson.dumps(message))
        if self._remaining_bytes < 0:
            raise BodyTooLarge(
                f"What the items stand for has more than {self._max_reply_bytes} bytes (server.max_body_bytes)."
            )
        if reference.input_index is None:
            self._filled_reply_indices.add(reference.index)
        # An earlier path may have dropped the message as its repetition.
        self._messages[reference.index][-1:] = [message]

    def _add_thoughts(self, index: int, reply: WireMessage) -> None:
        """Adds the thoughts of a stored reply to a message of the request, if there is room for them."""
        if index in self._repeat_indices:
            return
        message = self._messages[index][-1]
        thoughts = {key: reply[key] for key in THOUGHT_FIELDS if key in reply and key not in message}
        size = len(orjson.dumps(thoughts))
        if thoughts and size <= self._remaining_bytes:
            self._remaining_bytes -= size
            model = read_private(reply).get("model")
            self._messages[index][-1] = with_private({**message, **thoughts}, model=model)

    def _drop_unanswered_calls(self) -> None:
        """Drops the calls without a result from replies that were filled in: the client may have left out their items.

        A result belongs to the nearest call before it, since some models repeat ids.
        """
        answered_ids: set[str] = set()
        for index in reversed(range(len(self._messages))):
            messages = self._messages[index]
            for offset in reversed(range(len(messages))):
                message = messages[offset]
                if message.get("role") == "tool":
                    answered_ids.add(read_result_id(message))
                    continue
                calls = list_raw_calls(message)
                if calls and index in self._filled_reply_indices and offset == len(messages) - 1:
                    messages[offset] = _with_answered_calls(message, answered_ids)
                answered_ids.difference_update(map(read_call_id, calls))

    def _as_heard(self, path: Sequence[WireMessage], start: int) -> Sequence[WireMessage]:
        """Returns a stored path as far as it was heard, and drops the client's repetitions of its messages.

        start: the index of the first message of the request that may be such a repetition.
        """
        messages = self._request.messages
        end = min((each for each in self._reply_indices if each >= start), default=len(messages))
        heard_path = as_heard([with_private(each, stored=True) for each in path], messages[start:end])
        for index in heard_path.repeat_indices:
            self._messages[start + index].clear()
            self._repeat_indices.add(start + index)
        return heard_path.path


def _with_answered_calls(reply: WireMessage, answered_ids: Collection[str]) -> WireMessage:
    """Returns a reply with its answered calls alone. answered_ids: the ids of the calls that have a result."""
    calls = [call for call in list_raw_calls(reply) if read_call_id(call) in answered_ids]
    without_calls = {key: value for key, value in reply.items() if key != "tool_calls"}
    return (
        {**without_calls, "tool_calls": calls}
        if calls
        else {**without_calls, "content": without_calls.get("content") or ""}
    )


def _make_not_found_error(reference: Reference) -> BadRequest | UnknownId:
    """Returns the error for an id that is not found. As at OpenAI, it is a 400 for a response and a 404 for an item."""
    is_path = reference.kind == "path"
    name = "Previous response" if is_path else "Item"
    quoted_id = reference.id[:QUOTED_ID_CHARS]
    message = (
        f"{name} with id {quoted_id!r} not found. It has not ended yet, was not stored, or was forgotten, or another "
        "user or project has it."
    )
    if is_path:
        return BadRequest(message, param=reference.param, code="previous_response_not_found")
    return UnknownId(message, param=reference.param)
