"""Turns that a client names instead of sending them again: found by an id that was sent with the reply.

The name of a turn has two parts, which both follow from its exchange. The time at which the request came names the
exchange in whatever form its words come back. A hash of its words and of their position names it as well, because the
same answer to the same words is stored once, under the time of the first. A superseded turn is found as others are, a
forgotten one is not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence, Set
from itertools import chain

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher, WireMessage, call_id, text_of, visible_reply
from gateway.core.conversation.directions import (
    Direction,
    TurnMessages,
    path_with_directions,
    stored_directions,
)
from gateway.core.conversation.heard import as_heard
from gateway.core.conversation.private import private_of, with_private, without_private
from gateway.core.conversation.provider_fields import THOUGHTS
from gateway.core.request.chat_request import ChatRequest, MemoryChoice, Reference
from gateway.core.turn_name import TurnName
from gateway.errors import BadRequest, BodyTooLarge
from gateway.run.memory.memory_context import MemoryContext
from storage.errors import NotFound
from storage.listing import ListedExchange
from storage.records import REPLY, Agent, Exchange, Scope, State
from storage.sql.store import Store

_PAGE = 200
_NEWEST_TURNS = (
    100  # a client that continues by an id nearly always continues from a recent reply; no measurement
)
_TIME = struct.Struct(">d")
_TIME_CHARS = 2 * _TIME.size
_CONTENT_HASH_BYTES = 4


def turn_name(context: MemoryContext) -> TurnName:
    """Returns the name of the turn that a request asks for."""
    plan = context.plan
    turn = _begun_hex(plan.exchange.begun) + _content_hex(plan.exchange, plan.match.match_point)
    return TurnName(context.conversation_uid, turn)


async def fill_references(
    store: Store, project: str, scope: Scope | None, request: ChatRequest, most_bytes: int
) -> ChatRequest:
    """Returns a request with the messages that its references stand for.

    scope: the scope of the memory that is searched; None: the request names no user. It gets the memory in which its
        ids are.
    most_bytes: of the replies that take the place of references.

    Raises: BadRequest: a reference is not found; BodyTooLarge; StoreError.
    """
    filler, turns = _ReferenceFiller(request, most_bytes), _ReferencedTurns(store, project, scope)
    for each in request.references:
        messages = await turns.messages_of(each)
        if messages:
            filler.fill(each, messages)
        elif each.kind != "thoughts":  # else they are left out, as those of another provider are
            raise _not_found_error(each)
    whole = filler.filled_request()
    if scope is None and turns.owner is not None:
        agent, key = turns.owner
        return replace(
            whole, memory_choice=MemoryChoice(None if agent.scope.spans_conversations else key, agent.scope)
        )
    return whole


class _ReferencedTurns:
    """The turns that references name."""

    def __init__(self, store: Store, project: str, scope: Scope | None) -> None:
        # The memory that has them, and the client's id of the first one's conversation.
        self.owner: tuple[Agent, str | None] | None = None
        self._store = store
        self._project = project
        self._scope = scope
        self._messages: dict[tuple[TurnName, str, int | None], list[WireMessage]] = {}
        self._by_conversation: dict[str, _ConversationTurns] = {}

    async def messages_of(self, reference: Reference) -> list[WireMessage]:
        """Returns what a reference stands for: the path that ends with a reply, or the reply alone; []: not found."""
        name = reference.turn
        if name is None:
            return []
        key = name, reference.kind, reference.input_index
        if key not in self._messages:
            self._messages[key] = await self._find(reference, name)
        return self._messages[key]

    async def _find(self, reference: Reference, name: TurnName) -> list[WireMessage]:
        """Returns what a reference stands for in the turn of this name."""
        found = await self._store.messages.find_begun(self._project, name.conversation, turn_begun(name.turn))
        if found is not None:
            agent, listed = found
            if not self._accept_owner(agent, listed.key):
                return []
            if reference.input_index is not None:
                inputs = dict(NamedTurn(name, listed.exchange).inputs)
                message = inputs.get(reference.input_index)
                return [] if message is None else [_with_model(message, listed.exchange)]
            if listed.run is None:
                return await self._messages_to(agent, listed.exchange, reference, name)
        stored_name = await _name_of_run(self._store, self._project, name.tag)
        if stored_name is not None:
            return await self._find(reference, stored_name)
        # The same words were answered before, or several steps are one reply.
        turns = await self._turns_of(name.conversation)
        return turns.path_to(name.turn, is_whole=reference.kind == "path")

    async def _messages_to(
        self, agent: Agent, exchange: Exchange, reference: Reference, name: TurnName
    ) -> list[WireMessage]:
        if reference.kind != "path":
            return [] if exchange.redactions else _joined_reply([exchange])
        turns = _ConversationTurns()
        for listed in await self._store.messages.path_to(agent.id, exchange.id):
            turns.add(listed)
        return turns.path_to(name.turn, is_whole=True)

    async def _turns_of(self, conversation: str) -> _ConversationTurns:
        if conversation not in self._by_conversation:
            owner = await self._store.messages.owner(self._project, conversation)
            self._by_conversation[conversation] = (
                await _read_conversation(self._store, owner[0], conversation)
                if owner is not None and self._accept_owner(*owner)
                else _ConversationTurns()
            )
        return self._by_conversation[conversation]

    def _accept_owner(self, agent: Agent, key: str | None) -> bool:
        """Returns whether this memory may be read. Where no user is named, the first one is the owner of all."""
        if self._scope is not None:
            return agent.scope == self._scope
        if self.owner is None:
            self.owner = agent, key
        return agent.id == self.owner[0].id


class NamedTurn(Struct, frozen=True):
    """A stored turn of a path."""

    # Of which ids are made.
    name: TurnName
    exchange: Exchange

    @property
    def reply(self) -> WireMessage:
        """The reply with its private fields; an empty one: there is none."""
        stored = self.exchange.shown_reply
        if stored is None or REPLY in self.exchange.redactions:
            return {}
        return with_private(orjson.loads(stored), model=self.exchange.model)

    @property
    def inputs(self) -> list[tuple[int, WireMessage]]:
        """The messages before the reply that are still there, each with its place."""
        messages = orjson.loads(self.exchange.input or b"[]")
        return [(n, m) for n, m in enumerate(messages) if n not in self.exchange.redactions]

    @property
    def directions(self) -> list[Direction]:
        """The system and developer messages among these, each with the number of those that follow it."""
        own = len(self.exchange.inputs)
        return [each for each in stored_directions(self.reply) if each[0] <= own]


class FoundTurn(Struct, frozen=True):
    """A stored turn that a name stands for."""

    # The memory that has it.
    agent: Agent
    # Where its reply was made in steps, it has the joined reply.
    turn: NamedTurn
    # The rows of its exchanges: several where its reply was made in steps.
    rows: tuple[int, ...]

    @property
    def exchange(self) -> Exchange:
        return self.turn.exchange


async def find_turn(store: Store, project: str, name: TurnName) -> FoundTurn | None:
    """Returns the turn of a project that a name stands for; None: there is none. Raises: StoreError."""
    found = await store.messages.find_begun(project, name.conversation, turn_begun(name.turn))
    if found is not None and found[1].run is None:
        agent, listed = found
        return FoundTurn(agent, NamedTurn(name, listed.exchange), (listed.exchange.id,))
    if found is None and (stored_name := await _name_of_run(store, project, name.tag)) is not None:
        made = await find_turn(store, project, stored_name)
        return None if made is None else replace(made, turn=NamedTurn(name, made.exchange))
    # The same words were answered before, under the time of then; or several steps are one reply.
    owner = await store.messages.owner(project, name.conversation)
    if owner is None:
        return None
    agent, _ = owner
    turns = await _read_conversation(store, agent, name.conversation)
    first_step = turns.find(name.turn)
    if first_step is None:
        return None
    exchange, rows = turns.joined(first_step)
    return FoundTurn(agent, NamedTurn(name, exchange), rows)


async def _name_of_run(store: Store, project: str, uid: str) -> TurnName | None:
    """Returns the name of the turn of a response that was made in the background; None: it was not."""
    found = await store.runs.response(project, uid)
    if found is None or found[1].otid is None:
        return None
    return TurnName.decode(found[1].otid)


async def read_turns_to(store: Store, agent: Agent, exchange: Exchange) -> list[NamedTurn]:
    """Returns the turns of the path down to an exchange, oldest first. Raises: StoreError."""
    return name_turns(await store.messages.path_to(agent.id, exchange.id))


def name_turns(path: Sequence[ListedExchange]) -> list[NamedTurn]:
    """Returns the exchanges of a path as turns, with the names that they have in ids. path: oldest first."""
    turns, parent = list[NamedTurn](), None
    for listed in path:
        exchange = listed.exchange
        turn = _begun_hex(exchange.begun) + _content_hex(exchange, parent)
        turns.append(NamedTurn(TurnName(listed.conversation, turn), exchange))
        parent = exchange
    return turns


def turn_begun(turn: str) -> float:
    """Returns when a turn began, in seconds since the epoch. turn: as in `TurnName`."""
    begun: float = _TIME.unpack(bytes.fromhex(turn[:_TIME_CHARS]))[0]
    return begun


async def find_paths_by_id(store: Store, scope: Scope, ids: Set[str]) -> dict[str, list[WireMessage]]:
    """Returns the paths that end with the replies of these ids, which an upstream gave them.

    Only the newest turns of the memory are searched. Raises: StoreError.
    """
    agent, paths = await store.agents.find(scope), dict[str, list[WireMessage]]()
    if agent is None:
        return paths
    turns: dict[str, _ConversationTurns] = {}
    for conversation, begun, reply in await store.messages.newest(agent.id, _NEWEST_TURNS):
        named = private_of(orjson.loads(reply)).get("ids")
        found = ids & {*map(str, named)} if isinstance(named, list) else ()
        if not found:
            continue
        if conversation not in turns:
            turns[conversation] = await _read_conversation(store, agent, conversation)
        path = [*map(without_private, turns[conversation].path_to(_begun_hex(begun), is_whole=True))]
        if path:
            paths = {**dict.fromkeys(found, path), **paths}  # the newest is the one that an id names
    return paths


class _ReferenceFiller:
    """Replaces the references of a request by the messages that they stand for, one after the other."""

    def __init__(self, request: ChatRequest, most_bytes: int) -> None:
        self._request = request
        self._most_bytes = self._left_bytes = most_bytes
        self._results = _CallResults(request.messages)
        # By the index of each message in the request: what stands there now, each with its model as a private field.
        models = request.reply_models
        self._messages = [[with_private(m, model=models.get(n))] for n, m in enumerate(request.messages)]
        self._reply_indices = {each.index for each in request.references if each.kind == "message"}
        # The indices of messages that are dropped, since a path has them.
        self._repeats = set[int]()

    def fill(self, reference: Reference, messages: Sequence[WireMessage]) -> None:
        """Inserts a path before the reference's message, or replaces the message. messages: ends with the reply.

        Raises: BodyTooLarge.
        """
        at = reference.index
        if reference.kind == "thoughts":
            self._add_thoughts(at, messages[-1])
            return
        messages = [with_private(message, stored=True) for message in messages]
        messages = self._as_heard(messages, at if reference.kind == "path" else at + 1)
        if reference.kind == "path":
            self._messages[at][:0] = messages
            return
        # The same reply may be named again and again.
        self._left_bytes -= len(orjson.dumps(messages[-1]))
        if self._left_bytes < 0:
            raise BodyTooLarge(
                f"What the items stand for has more than {self._most_bytes} bytes (server.max_body_bytes)."
            )
        is_reply = reference.input_index is None
        message = _with_answered_calls(messages[-1], self._results.after(at)) if is_reply else messages[-1]
        self._messages[at][-1:] = [message]

    def _add_thoughts(self, at: int, reply: WireMessage) -> None:
        if at in self._repeats:
            return
        message = self._messages[at][-1]
        thoughts = {key: reply[key] for key in THOUGHTS if key in reply and key not in message}
        self._left_bytes -= len(orjson.dumps(thoughts))
        if thoughts and self._left_bytes >= 0:
            model = private_of(reply).get("model")
            self._messages[at][-1:] = [with_private({**message, **thoughts}, model=model)]

    def filled_request(self) -> ChatRequest:
        filled = [*chain.from_iterable(self._messages)]
        messages = [*map(without_private, filled)]
        models = [private_of(message).get("model") for message in filled]
        json = {**self._request.json, "messages": messages}
        return replace(
            self._request,
            raw=orjson.dumps(json),
            json=json,
            messages=messages,
            references=(),
            reply_models={n: model for n, model in enumerate(models) if model is not None},
            stored_messages=frozenset(n for n, m in enumerate(filled) if private_of(m).get("stored")),
        )

    def _as_heard(self, path: Sequence[WireMessage], start: int) -> Sequence[WireMessage]:
        """Returns a path as far as it was heard, and drops the client's repetitions of it.

        start: the index in the request from which on the client may repeat it.
        """
        messages = self._request.messages
        end = min((at for at in self._reply_indices if at >= start), default=len(messages))
        heard = as_heard(path, messages[start:end])
        for index in heard.repeats:
            self._messages[start + index].clear()
            self._repeats.add(start + index)
        return heard.path


class _CallResults:
    """The results of calls in a list. A result belongs to a call of its run, which is a row of replies and results."""

    def __init__(self, messages: Sequence[WireMessage]) -> None:
        self._runs: list[int] = []
        self._last: dict[tuple[int, str], int] = {}
        run = 0
        for at, message in enumerate(messages):
            run += message.get("role") not in ("assistant", "tool")
            self._runs.append(run)
            if message.get("role") == "tool":
                self._last[run, message["tool_call_id"]] = at

    def after(self, at: int) -> Callable[[str], bool]:
        """Returns a test whether the result of a call follows a reply, in its run."""
        return lambda id: self._last.get((self._runs[at], id), -1) > at


def _with_answered_calls(reply: WireMessage, has_result: Callable[[str], bool]) -> WireMessage:
    """Returns a reply without the calls that have no result: its client may have left out their items."""
    calls = [call for call in reply.get("tool_calls") or () if has_result(call_id(call))]
    rest = {key: value for key, value in reply.items() if key != "tool_calls"}
    return {**rest, "tool_calls": calls} if calls else {**rest, "content": rest.get("content") or ""}


def _begun_hex(begun: float) -> str:
    return _TIME.pack(begun).hex()


def _content_hex(exchange: Exchange, parent: Exchange | None) -> str:
    start = b"" if parent is None else b"%d" % parent.seq
    return MessageHasher.hash_path(chain.from_iterable(exchange.inputs), start)[:_CONTENT_HASH_BYTES].hex()


class _ConversationTurns:
    """The turns of a conversation, each with its whole path."""

    def __init__(self) -> None:
        self._by_id: dict[int, ListedExchange] = {}
        self._by_name: dict[str, ListedExchange] = {}
        self._runs: dict[str, list[Exchange]] = {}

    def add(self, listed: ListedExchange) -> None:
        """Adds an exchange, unless a part of its path was forgotten. Its parent comes before it."""
        exchange = listed.exchange
        parent = None if exchange.parent is None else self._by_id.get(exchange.parent)
        is_cut_off = parent is None and exchange.parent is not None
        if exchange.state is State.FORGOTTEN or exchange.redactions or is_cut_off:
            return
        self._by_id[exchange.id] = listed
        if listed.run is not None:
            steps = self._runs.setdefault(listed.run, [])
            steps.append(exchange)
            if len(steps) > 1:
                return  # its client has one reply of a run, named by the first step
        self._by_name[_begun_hex(exchange.begun)] = listed
        content = _content_hex(exchange, None if parent is None else parent.exchange)
        if exchange.active or content not in self._by_name:
            self._by_name[content] = listed

    def joined(self, listed: ListedExchange) -> tuple[Exchange, tuple[int, ...]]:
        """Returns a turn with its reply as its client has it, and the rows of its steps."""
        exchange, steps = listed.exchange, self._steps(listed)
        reply, last = _joined_reply(steps), steps[-1].shown_reply
        if len(steps) == 1 or not reply or last is None:
            return exchange, (exchange.id,)
        shown = with_private(reply[0], **private_of(orjson.loads(last)))
        return replace(exchange, shown_reply=orjson.dumps(shown)), tuple(step.id for step in steps)

    def _steps(self, listed: ListedExchange) -> list[Exchange]:
        return [listed.exchange] if listed.run is None else self._runs[listed.run]

    def find(self, turn: str) -> ListedExchange | None:
        return self._by_name.get(turn[:_TIME_CHARS]) or self._by_name.get(turn[_TIME_CHARS:])

    def path_to(self, turn: str, *, is_whole: bool) -> list[WireMessage]:
        """Returns the path that ends with a turn as its client has it, oldest first; []: it is not found.

        is_whole: else the turn's reply alone.
        """
        listed = self.find(turn)
        if listed is None or not (reply := _joined_reply(self._steps(listed))):
            return []
        if not is_whole:
            return reply
        turns = list[list[Exchange]]()  # each as its steps, newest first
        while listed is not None:
            turns.append(self._steps(listed))
            parent = turns[-1][0].parent
            listed = None if parent is None else self._by_id[parent]
        return path_with_directions([*map(_turn_messages, reversed(turns))])


def _turn_messages(steps: Sequence[Exchange]) -> TurnMessages:
    inputs = [_with_model(each, steps[0]) for each in orjson.loads(steps[0].input or b"[]")]
    last: WireMessage = orjson.loads(steps[-1].shown_reply or b"{}")
    return TurnMessages(inputs, _joined_reply(steps), stored_directions(last))


async def _read_conversation(store: Store, agent: Agent, uid: str) -> _ConversationTurns:
    turns = _ConversationTurns()
    try:
        conversation = await store.messages.conversation(agent.id, uid)
    except NotFound:
        return turns
    after = -1
    while True:
        found = await store.messages.of_conversation(agent.id, conversation.id, after, _PAGE)
        for listed in found:
            turns.add(listed)
        if len(found) < _PAGE:
            return turns
        after = found[-1].exchange.seq


def _joined_reply(steps: Sequence[Exchange]) -> list[WireMessage]:
    """Returns the reply of a turn as its client has it: one message, of several steps as well; []: there is none."""
    replies = [each for each in map(_own_reply, steps) if each]
    if len(steps) == 1 or not replies:
        return replies
    gateway_calls = {m.get("tool_call_id") for e in steps[1:] for m in orjson.loads(e.input or b"[]")}
    return [visible_reply(replies, gateway_calls)]


def _with_model(message: WireMessage, exchange: Exchange) -> WireMessage:
    """Returns a message of an exchange as it goes upstream; an assistant's has its model as a private field."""
    bare = without_private(message)
    return with_private(bare, model=exchange.model) if bare.get("role") == "assistant" else bare


def _own_reply(exchange: Exchange) -> WireMessage:
    """Returns the reply of one exchange, with its model as a private field; {}: there is none."""
    stored = exchange.shown_reply
    reply: WireMessage = {} if stored is None else _with_model(orjson.loads(stored), exchange)
    if exchange.state is State.FINISHED:
        return reply
    # Its calls may be cut, and get no answer.
    text = text_of(reply)
    return {"role": "assistant", "content": text} if text else {}


def _not_found_error(reference: Reference) -> BadRequest:
    what = "Previous response" if reference.kind == "path" else "Item"
    return BadRequest(
        f"{what} with id {reference.id[:120]!r} not found. It has not ended yet, was not stored, or was forgotten, or "
        "another user or project has it.",
        param=reference.param,
        code="previous_response_not_found" if reference.kind == "path" else None,
    )
