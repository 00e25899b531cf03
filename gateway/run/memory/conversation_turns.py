"""The turns of a stored conversation, each with its whole path and the reply as its client has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.directions import TurnMessages, insert_directions, read_stored_directions
from gateway.core.conversation.private import read_private, with_private, without_private
from gateway.core.conversation.turn_hex import TIME_CHARS, make_begun_hex, make_content_hex
from gateway.core.conversation.wire_message import (
    WireMessage,
    has_result_role,
    make_shown_reply,
    read_result_id,
    read_text,
)
from storage.errors import NotFound
from storage.listing import ListedExchange
from storage.records import Agent, Exchange, ExchangeState
from storage.sql.store import Store

# The exchanges that are read at once. Not measured: a larger page holds more rows in memory, and all pages are read in
# any case.
_PAGE_EXCHANGES = 200


class JoinedTurn(NamedTuple):
    """A turn as its client has it."""

    # The first step, with the reply of all steps.
    exchange: Exchange
    # The rows of the steps.
    step_rows: tuple[int, ...]


class ConversationTurns:
    """The turns of a conversation, each with its whole path."""

    def __init__(self) -> None:
        # The exchanges by their rows.
        self._by_row: dict[int, ListedExchange] = {}
        # The exchanges that begin turns, by the time at which they began.
        self._by_begin_time: dict[str, ListedExchange] = {}
        # The exchanges with the same words after the same exchange.
        self._by_content: dict[str, list[ListedExchange]] = {}
        # The rows of the exchanges of which a part, or a part of their path, is forgotten.
        self._forgotten_rows: set[int] = set()
        # The steps of each run, by its public id.
        self._steps_by_run: dict[str, list[Exchange]] = {}

    def add(self, entry: ListedExchange) -> None:
        """Adds an exchange, after its parent."""
        exchange = entry.exchange
        parent = None if exchange.parent is None else self._by_row.get(exchange.parent)
        self._by_row[exchange.id] = entry
        is_cut_off = exchange.parent is not None and (
            parent is None or parent.exchange.id in self._forgotten_rows
        )
        if exchange.is_forgotten or exchange.redactions or is_cut_off:
            self._forgotten_rows.add(exchange.id)
        elif entry.run_uid is not None:
            steps = self._steps_by_run.setdefault(entry.run_uid, [])
            steps.append(exchange)
            if len(steps) > 1:
                return  # the client has one reply of all steps, named by the first step
        self._by_begin_time[make_begun_hex(exchange.begun)] = entry
        content = make_content_hex(exchange, None if parent is None else parent.exchange)
        self._by_content.setdefault(content, []).append(entry)

    def join_steps(self, entry: ListedExchange) -> JoinedTurn:
        """Returns a turn of one or more steps. entry: the first step."""
        exchange = entry.exchange
        steps = self._list_steps(entry)
        reply = join_reply(steps)
        last_reply = steps[-1].shown_reply
        if len(steps) == 1 or not reply or last_reply is None:
            return JoinedTurn(exchange, (exchange.id,))
        joined_reply = with_private(reply[0], **read_private(orjson.loads(last_reply)))
        joined_exchange = replace(exchange, shown_reply=orjson.dumps(joined_reply))
        return JoinedTurn(joined_exchange, tuple(step.id for step in steps))

    def _list_steps(self, entry: ListedExchange) -> list[Exchange]:
        return [entry.exchange] if entry.run_uid is None else self._steps_by_run[entry.run_uid]

    def find(self, turn: str) -> ListedExchange | None:
        """Returns the exchange of a turn, or its first step; None: there is no such turn, or it is forgotten.

        turn: the `TurnName.turn`, or its time.
        """
        begin_time = turn[:TIME_CHARS]
        entry = self._by_begin_time.get(begin_time)
        if entry is None:
            # The same answer to the same words is stored once, and each request that gets it touches the exchange.
            entries = self._by_content.get(turn[TIME_CHARS:], [])
            later_entries = [each for each in entries if begin_time <= make_begun_hex(each.exchange.touched)]
            entry = min(
                later_entries, key=lambda each: _measure_distance(each.exchange, begin_time), default=None
            )
        return None if entry is None or entry.exchange.id in self._forgotten_rows else entry

    def read_reply(self, turn: str) -> list[WireMessage]:
        """Returns the reply of a turn as its client has it; []: there is none."""
        entry = self.find(turn)
        return [] if entry is None else join_reply(self._list_steps(entry))

    def list_path_to(self, turn: str) -> list[WireMessage]:
        """Returns the path that ends with the reply of a turn as its client has it, oldest first; []: there is none."""
        if not self.read_reply(turn):
            return []
        entry = self.find(turn)
        turns: list[list[Exchange]] = []  # each as its steps, newest first
        while entry is not None:
            turns.append(self._list_steps(entry))
            parent = turns[-1][0].parent
            entry = None if parent is None else self._by_row[parent]
        return insert_directions([*map(_make_turn_messages, reversed(turns))])


def _measure_distance(exchange: Exchange, begin_time: str) -> tuple[bool, float]:
    """Returns the distance of an exchange from a request with its words. The nearest one likely has the answer.

    An exchange that began before the request was touched by it, last of all if no other request came since. An exchange
    that began after the request had the same answer at the same time.

    begin_time: the time at which the request began, as `make_begun_hex` writes it, and not after the last touch.
    """
    is_later = make_begun_hex(exchange.begun) > begin_time
    return is_later, exchange.begun if is_later else exchange.touched


def _make_turn_messages(steps: Sequence[Exchange]) -> TurnMessages:
    """Returns the messages of a turn. steps: the exchanges of the turn, oldest first."""
    inputs = [with_model(each, steps[0]) for each in orjson.loads(steps[0].input or b"[]")]
    last_reply: WireMessage = orjson.loads(steps[-1].shown_reply or b"{}")
    return TurnMessages(inputs, join_reply(steps), read_stored_directions(last_reply))


async def load_turns(store: Store, agent: Agent, uid: str) -> ConversationTurns:
    """Returns the turns of a conversation; a conversation that is gone has none. Raises: StoreError."""
    turns = ConversationTurns()
    try:
        conversation = await store.messages.get_conversation(agent.id, uid)
    except NotFound:
        return turns
    after = -1
    while True:
        page = await store.messages.list_conversation_exchanges(
            agent.id, conversation.id, after, _PAGE_EXCHANGES
        )
        for entry in page:
            turns.add(entry)
        if len(page) < _PAGE_EXCHANGES:
            return turns
        after = page[-1].exchange.seq


def join_reply(steps: Sequence[Exchange]) -> list[WireMessage]:
    """Returns the reply of a turn as its client has it, with the replies of all steps joined; []: there is none."""
    replies = [each for each in map(_parse_reply, steps) if each]
    if len(steps) == 1 or not replies:
        return replies
    gateway_call_ids = {
        read_result_id(message)
        for step in steps[1:]
        for message in orjson.loads(step.input or b"[]")
        if has_result_role(message)
    }
    return [make_shown_reply(replies, gateway_call_ids)]


def with_model(message: WireMessage, exchange: Exchange) -> WireMessage:
    """Returns a message of an exchange as it goes upstream; an assistant's has its model as a private field."""
    public_message = without_private(message)
    if message.get("role") != "assistant":
        return public_message
    return with_private(public_message, model=exchange.model)


def _parse_reply(exchange: Exchange) -> WireMessage:
    """Returns the reply of one exchange, with its model as a private field; {}: there is none."""
    stored_reply = exchange.shown_reply
    reply: WireMessage = {} if stored_reply is None else with_model(orjson.loads(stored_reply), exchange)
    if exchange.state is ExchangeState.FINISHED:
        return reply
    # The calls of a reply that was cut may lack their ends, and get no answer.
    text = read_text(reply)
    return {"role": "assistant", "content": text} if text else {}
