"""The names of turns, by which clients refer to them in place of sending them again, and the turns of a name.

The name of a turn has two parts, which both follow from its exchange. The time at which the request came names the
exchange in whatever form its words come back. A hash of its words and of their position names it as well, because the
same answer to the same words is stored once, under the time of the first. A superseded turn is found as others are, a
forgotten one is not.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence, Set
from itertools import chain

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.directions import (
    Direction,
    TurnMessages,
    path_with_directions,
    stored_directions,
)
from gateway.core.conversation.private import private_of, with_private, without_private
from gateway.core.conversation.wire_message import WireMessage, shown_reply_of, text_of
from gateway.core.turn_name import TurnName
from gateway.run.memory.memory_context import MemoryContext
from storage.errors import NotFound
from storage.listing import ListedExchange
from storage.records import REPLY, Agent, Exchange, RunState, Scope, State
from storage.sql.store import Store

# The turns that are read at once. Chosen, not measured.
_PAGE = 200
# The turns that an upstream's id is looked for in: a client that continues by one nearly always continues from a recent
# reply. Chosen, not measured.
_NEWEST_TURNS = 100
_TIME = struct.Struct(">d")
_TIME_CHARS = 2 * _TIME.size
# Enough to distinguish the few turns of a conversation that began at the same moment.
_CONTENT_HASH_BYTES = 4


def turn_name(context: MemoryContext) -> TurnName:
    """Returns the name of the turn that a request asks for."""
    plan = context.plan
    return TurnName(context.conversation_uid, _turn_hex(plan.exchange, plan.match.match_point))


class NamedTurn(Struct, frozen=True):
    """A stored turn of a path."""

    # The name of which the ids are made.
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
        """The system and developer messages of a list, each with the number of messages that follow."""
        own = len(self.exchange.inputs)
        return [each for each in stored_directions(self.reply) if each[0] <= own]


class TurnLocation(Struct, frozen=True):
    """Where the turn with a name is stored."""

    # The memory that has it.
    agent: Agent
    # If its reply was made in steps, the turn has the joined reply.
    turn: NamedTurn
    # The rows of its exchanges: several where its reply was made in steps.
    rows: tuple[int, ...]

    @property
    def exchange(self) -> Exchange:
        return self.turn.exchange


async def find_turn(store: Store, project: str, name: TurnName) -> TurnLocation | None:
    """Returns where the turn with a name is stored; None: the project has none. Raises: StoreError."""
    begun = await store.messages.find_begun(project, name.conversation_uid, turn_begin_time(name.turn))
    if begun is not None and begun[1].run_uid is None:
        agent, listed = begun
        return TurnLocation(agent, NamedTurn(name, listed.exchange), (listed.exchange.id,))
    if begun is None and (stored_name := await name_of_run(store, project, name.tag)) is not None:
        run_turn = await find_turn(store, project, stored_name)
        return None if run_turn is None else replace(run_turn, turn=NamedTurn(name, run_turn.exchange))
    # The same words were answered before, under the time of then; or several steps are one reply.
    owner = await store.messages.find_owner(project, name.conversation_uid)
    if owner is None:
        return None
    agent, _ = owner
    turns = await read_conversation(store, agent, name.conversation_uid)
    first_step = turns.find(name.turn)
    if first_step is None:
        return None
    exchange, rows = turns.join_steps(first_step)
    return TurnLocation(agent, NamedTurn(name, exchange), rows)


async def name_of_run(store: Store, project: str, uid: str, *, or_cancelled: bool = False) -> TurnName | None:
    """Returns the name of the turn of a response that was made in the background; None: it was made otherwise.

    or_cancelled: the response may be cancelled; its turn has what came until then.
    """
    found = await store.responses.find(project, uid)
    if found is None:
        return None
    run = found.run
    if or_cancelled and run.state is RunState.CANCELLED:
        names = await store.responses.load_turns(run.agent_row, run.id)
        return TurnName.decode(names[-1]) if names else None
    return None if run.otid is None else TurnName.decode(run.otid)


async def read_turns_to(store: Store, agent: Agent, exchange: Exchange) -> list[NamedTurn]:
    """Returns the turns of the path down to an exchange, oldest first. Raises: StoreError."""
    return name_turns(await store.messages.load_path(agent.id, exchange.id))


def name_turns(path: Sequence[ListedExchange]) -> list[NamedTurn]:
    """Returns the exchanges of a path as turns, with the names that they have in ids. path: oldest first."""
    turns = list[NamedTurn]()
    parent = None
    for listed in path:
        exchange = listed.exchange
        turns.append(NamedTurn(TurnName(listed.conversation_uid, _turn_hex(exchange, parent)), exchange))
        parent = exchange
    return turns


def turn_begin_time(turn: str) -> float:
    """Returns when a turn began, in seconds since the epoch. turn: as in `TurnName`."""
    begun: float = _TIME.unpack(bytes.fromhex(turn[:_TIME_CHARS]))[0]
    return begun


async def find_paths_by_id(store: Store, scope: Scope, ids: Set[str]) -> dict[str, list[WireMessage]]:
    """Returns the paths that end with replies, each by the id that an upstream gave its reply.

    Only the newest turns of the memory are searched. Raises: StoreError.
    """
    agent = await store.agents.find(scope)
    if agent is None:
        return {}
    paths: dict[str, list[WireMessage]] = {}
    turns: dict[str, ConversationTurns] = {}
    for conversation, begun, reply in await store.messages.list_newest_replies(agent.id, _NEWEST_TURNS):
        reply_ids = private_of(orjson.loads(reply)).get("ids")
        asked_ids = ids & {*map(str, reply_ids)} if isinstance(reply_ids, list) else ()
        if not asked_ids:
            continue
        if conversation not in turns:
            turns[conversation] = await read_conversation(store, agent, conversation)
        path = [*map(without_private, turns[conversation].path_to(_begun_hex(begun)))]
        if path:
            paths = {**dict.fromkeys(asked_ids, path), **paths}  # the newest is the one that an id names
    return paths


def _turn_hex(exchange: Exchange, parent: Exchange | None) -> str:
    """Returns the turn's part of its name."""
    return _begun_hex(exchange.begun) + _content_hex(exchange, parent)


def _begun_hex(begun: float) -> str:
    return _TIME.pack(begun).hex()


def _content_hex(exchange: Exchange, parent: Exchange | None) -> str:
    start = b"" if parent is None else b"%d" % parent.seq
    # A turn may have no message of its own: a developer message alone asked for its reply.
    atoms = [*chain.from_iterable(exchange.inputs)] or [b""]
    return MessageHasher.hash_path(atoms, start)[:_CONTENT_HASH_BYTES].hex()


class ConversationTurns:
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
        if listed.run_uid is not None:
            steps = self._runs.setdefault(listed.run_uid, [])
            steps.append(exchange)
            if len(steps) > 1:
                return  # its client has one reply of a run, named by the first step
        self._by_name[_begun_hex(exchange.begun)] = listed
        content = _content_hex(exchange, None if parent is None else parent.exchange)
        if exchange.active or content not in self._by_name:
            self._by_name[content] = listed

    def join_steps(self, listed: ListedExchange) -> tuple[Exchange, tuple[int, ...]]:
        """Returns a turn with the reply as the client has it, and the rows of the turn's steps."""
        exchange = listed.exchange
        steps = self._steps(listed)
        reply = joined_reply(steps)
        last = steps[-1].shown_reply
        if len(steps) == 1 or not reply or last is None:
            return exchange, (exchange.id,)
        shown = with_private(reply[0], **private_of(orjson.loads(last)))
        return replace(exchange, shown_reply=orjson.dumps(shown)), tuple(step.id for step in steps)

    def _steps(self, listed: ListedExchange) -> list[Exchange]:
        return [listed.exchange] if listed.run_uid is None else self._runs[listed.run_uid]

    def find(self, turn: str) -> ListedExchange | None:
        """Returns the exchange of a turn, of several steps the first. turn: as in `TurnName`, or its time alone."""
        return self._by_name.get(turn[:_TIME_CHARS]) or self._by_name.get(turn[_TIME_CHARS:])

    def reply(self, turn: str) -> list[WireMessage]:
        """Returns the reply of a turn as its client has it; []: there is none."""
        listed = self.find(turn)
        return [] if listed is None else joined_reply(self._steps(listed))

    def path_to(self, turn: str) -> list[WireMessage]:
        """Returns the path that ends with the reply of a turn as its client has it, oldest first; []: there is none."""
        if not self.reply(turn):
            return []
        listed = self.find(turn)
        turns = list[list[Exchange]]()  # each as its steps, newest first
        while listed is not None:
            turns.append(self._steps(listed))
            parent = turns[-1][0].parent
            listed = None if parent is None else self._by_id[parent]
        return path_with_directions([*map(_turn_messages, reversed(turns))])


def _turn_messages(steps: Sequence[Exchange]) -> TurnMessages:
    inputs = [with_model(each, steps[0]) for each in orjson.loads(steps[0].input or b"[]")]
    last: WireMessage = orjson.loads(steps[-1].shown_reply or b"{}")
    return TurnMessages(inputs, joined_reply(steps), stored_directions(last))


async def read_conversation(store: Store, agent: Agent, uid: str) -> ConversationTurns:
    """Returns the turns of a conversation; none where it is gone. Raises: StoreError."""
    turns = ConversationTurns()
    try:
        conversation = await store.messages.get_conversation(agent.id, uid)
    except NotFound:
        return turns
    after = -1
    while True:
        page = await store.messages.list_of_conversation(agent.id, conversation.id, after, _PAGE)
        for listed in page:
            turns.add(listed)
        if len(page) < _PAGE:
            return turns
        after = page[-1].exchange.seq


def joined_reply(steps: Sequence[Exchange]) -> list[WireMessage]:
    """Returns the reply of a turn as its client has it: one message, of several steps as well; []: there is none."""
    replies = [each for each in map(_own_reply, steps) if each]
    if len(steps) == 1 or not replies:
        return replies
    gateway_calls = {m.get("tool_call_id") for e in steps[1:] for m in orjson.loads(e.input or b"[]")}
    return [shown_reply_of(replies, gateway_calls)]


def with_model(message: WireMessage, exchange: Exchange) -> WireMessage:
    """Returns a message of an exchange as it goes upstream; an assistant's has its model as a private field."""
    bare = without_private(message)
    return with_private(bare, model=exchange.model) if bare.get("role") == "assistant" else bare


def _own_reply(exchange: Exchange) -> WireMessage:
    """Returns the reply of one exchange, with its model as a private field; {}: there is none."""
    stored = exchange.shown_reply
    reply: WireMessage = {} if stored is None else with_model(orjson.loads(stored), exchange)
    if exchange.state is State.FINISHED:
        return reply
    # Its calls may be cut, and get no answer.
    text = text_of(reply)
    return {"role": "assistant", "content": text} if text else {}
