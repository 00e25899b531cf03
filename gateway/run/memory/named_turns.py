"""The names of turns, and the stored turns with a name. A client refers to a turn by its name in place of its messages.

A superseded turn is found, a forgotten turn is not.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.directions import Direction, read_stored_directions
from gateway.core.conversation.private import read_private, with_private, without_private
from gateway.core.conversation.turn_hex import make_begun_hex, make_turn_hex, parse_turn_begin
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.turn_name import TurnName
from gateway.run.memory.conversation_turns import ConversationTurns, load_turns
from gateway.run.memory.memory_context import MemoryContext
from storage.listing import ListedExchange
from storage.records import REPLY, Agent, Exchange, Scope
from storage.run_records import RunState
from storage.sql.store import Store

# The most turns that are searched for an upstream's id: a client that continues by such an id nearly always continues
# from a recent reply. Not measured: each turn is read and decoded, and the id of an older reply is not found.
_NEWEST_TURNS = 100


def make_turn_name(context: MemoryContext) -> TurnName:
    """Returns the name of the turn that a request asks for."""
    plan = context.plan
    return TurnName(context.conversation_uid, make_turn_hex(plan.exchange, plan.match.match_point))


class NamedTurn(Struct, frozen=True):
    """A stored turn of a path."""

    # The name of the turn, of which the client's ids are made.
    name: TurnName
    # The exchange of the turn.
    exchange: Exchange

    @property
    def reply(self) -> WireMessage:
        """The reply with its private fields; {}: there is no reply, or it is forgotten."""
        stored_reply = self.exchange.shown_reply
        if stored_reply is None or REPLY in self.exchange.redactions:
            return {}
        return with_private(orjson.loads(stored_reply), model=self.exchange.model)

    @property
    def inputs(self) -> list[tuple[int, WireMessage]]:
        """The messages before the reply that are not forgotten, each with its index in the request."""
        messages = orjson.loads(self.exchange.input or b"[]")
        return [(n, message) for n, message in enumerate(messages) if n not in self.exchange.redactions]

    @property
    def directions(self) -> list[Direction]:
        """The system and developer messages of the request, without those before messages of earlier turns."""
        input_count = len(self.exchange.inputs)
        return [each for each in read_stored_directions(self.reply) if each.following_count <= input_count]


class TurnLocation(Struct, frozen=True):
    """The location of the turn with a name."""

    # The memory that has the turn.
    agent: Agent
    # The turn. A reply that was made in steps is joined.
    turn: NamedTurn
    # The rows of the turn's exchanges, one for each step.
    rows: tuple[int, ...]

    @property
    def exchange(self) -> Exchange:
        return self.turn.exchange


async def find_turn(store: Store, project: str, name: TurnName) -> TurnLocation | None:
    """Returns the location of the turn with a name; None: the project has no such turn. Raises: StoreError."""
    begun_turn = await store.messages.find_begun(project, name.conversation_uid, parse_turn_begin(name.turn))
    if begun_turn is None:
        run_turn_name = await find_run_turn_name(store, project, name.tag)
        if run_turn_name is not None:
            # The id of a run is random and no turn's name, so this call finds no further run.
            run_turn = await find_turn(store, project, run_turn_name)
            return None if run_turn is None else replace(run_turn, turn=NamedTurn(name, run_turn.exchange))
    elif begun_turn.listed.run_uid is None:
        exchange = begun_turn.listed.exchange
        return TurnLocation(begun_turn.agent, NamedTurn(name, exchange), (exchange.id,))
    return await _find_in_conversation(store, project, name)


async def _find_in_conversation(store: Store, project: str, name: TurnName) -> TurnLocation | None:
    """Returns the location of a turn with several steps, or with a reply that an earlier request had stored.

    Returns None if the conversation has no such turn.
    """
    conversation = await store.messages.find_conversation(project, name.conversation_uid)
    if conversation is None:
        return None
    turns = await load_turns(store, conversation.agent, name.conversation_uid)
    first_step = turns.find(name.turn)
    if first_step is None:
        return None
    turn = turns.join_steps(first_step)
    return TurnLocation(conversation.agent, NamedTurn(name, turn.exchange), turn.step_rows)


async def find_run_turn_name(
    store: Store, project: str, uid: str, *, includes_cancelled: bool = False
) -> TurnName | None:
    """Returns the name of the turn of a response that was made in the background, or None for any other response.

    includes_cancelled: True: a cancelled response also has a name; its turn has the part that had arrived.
    """
    stored_response = await store.responses.find(project, uid)
    if stored_response is None:
        return None
    run = stored_response.run
    if includes_cancelled and run.state is RunState.CANCELLED:
        names = await store.responses.load_turns(run.agent_row, run.id)
        return TurnName.decode(names[-1]) if names else None
    return None if run.otid is None else TurnName.decode(run.otid)


async def load_turns_to(store: Store, agent: Agent, exchange: Exchange) -> list[NamedTurn]:
    """Returns the turns of the path down to an exchange, oldest first. Raises: StoreError."""
    return name_turns(await store.messages.load_path(agent.id, exchange.id))


def name_turns(path: Sequence[ListedExchange]) -> list[NamedTurn]:
    """Returns the exchanges of a path as turns, with the names that they have in ids. path: oldest first."""
    turns: list[NamedTurn] = []
    parent = None
    for listed_exchange in path:
        exchange = listed_exchange.exchange
        name = TurnName(listed_exchange.conversation_uid, make_turn_hex(exchange, parent))
        turns.append(NamedTurn(name, exchange))
        parent = exchange
    return turns


async def find_paths_by_id(store: Store, scope: Scope, ids: Set[str]) -> dict[str, list[WireMessage]]:
    """Returns the paths that end with replies, each by the id that an upstream gave its reply.

    Only the newest turns of the memory are searched. Raises: StoreError.
    """
    agent = await store.agents.find(scope)
    if agent is None:
        return {}
    paths: dict[str, list[WireMessage]] = {}
    turns: dict[str, ConversationTurns] = {}
    for conversation, begun_at, reply in await store.messages.list_newest_replies(agent.id, _NEWEST_TURNS):
        reply_ids = read_private(orjson.loads(reply)).get("ids")
        matching_ids = ids & {*map(str, reply_ids)} if isinstance(reply_ids, list) else ()
        if not matching_ids:
            continue
        if conversation not in turns:
            turns[conversation] = await load_turns(store, agent, conversation)
        path = [*map(without_private, turns[conversation].list_path_to(make_begun_hex(begun_at)))]
        if path:
            for reply_id in matching_ids:
                # Of replies with the same id the newest counts, which comes first.
                paths.setdefault(reply_id, path)
    return paths
