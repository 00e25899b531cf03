"""The exchanges that go with a forgotten message or exchange: those that it replaced, and those that repeat it.

No list has a replaced exchange: a transcript that grew, a cancelled request, an answer that was repeated. This module
only reads; storage/sql/erase_exchanges.py erases, and a preview counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from storage.database import Connection
from storage.records import Atom, Exchange, ExchangeState
from storage.search.text_words import has_whole_words
from storage.sql import exchanges
from storage.sql.statements import load, load_column
from storage.store_rules import Rules

SQL = load("replaced_exchanges.sql")


class MessageOccurrence(NamedTuple):
    """An exchange that has a message."""

    # The row of the exchange.
    exchange_row: int
    # The number of the message in the exchange.
    seq: int


async def find_occurrences(connection: Connection, agent_row: int, seq: int) -> list[MessageOccurrence]:
    """Returns all occurrences of a message, with the replies to later sends that repeat it.

    The message may occur again in an exchange that replaced its own, also if the exchange was replaced after the
    message was listed, as when its question was asked again. It may occur in later cancelled sends that repeat it, and
    in earlier sends that the upstream refused.
    """
    exchange_row = await exchanges.find_exchange_row(connection, agent_row, seq)
    if exchange_row is None:
        return []
    occurrences = [MessageOccurrence(exchange_row, seq)]
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None or seq == exchange.reply_seq:
        return occurrences
    alternatives = await _load_alternatives(connection, agent_row, exchange, is_active=False)
    if not exchange.active:
        alternatives = [
            *await _load_alternatives(connection, agent_row, exchange, is_active=True),
            *alternatives,
        ]
    atoms = exchange.inputs[seq - exchange.seq]
    for refused in await _load_refused(connection, agent_row, exchange):
        occurrences += _list_occurrences(refused, atoms)
    for alternative in alternatives:
        if not alternative.active:
            if not _is_repeated_in(alternative, exchange, seq):
                continue
            if alternative.shown_reply is not None:
                # No list has the reply of such a send, which may quote the message.
                occurrences.append(MessageOccurrence(alternative.id, alternative.reply_seq))
        occurrences += _list_occurrences(alternative, atoms)
    return occurrences


def _list_occurrences(exchange: Exchange, atoms: tuple[Atom, ...]) -> list[MessageOccurrence]:
    """Returns the occurrences of a message in an exchange. atoms: the atoms of the message."""
    return [
        MessageOccurrence(exchange.id, exchange.seq + index)
        for index, input_atoms in enumerate(exchange.inputs)
        if input_atoms == atoms
    ]


async def _load_refused(connection: Connection, agent_row: int, exchange: Exchange) -> list[Exchange]:
    """Returns the earlier exchanges that the upstream refused, and that an exchange replaced: its send came again."""
    values = (agent_row, exchange.conversation_row, exchange.id, exchange.depth)
    return await _load_exchanges(connection, agent_row, await load_column(connection, SQL["refused"], values))


def _is_repeated_in(send: Exchange, exchange: Exchange, seq: int) -> bool:
    """Returns whether a later cancelled send repeats a message of an exchange before messages of its own.

    In append mode such a message is sent with the next one.

    send: an alternative of the exchange.
    seq: the number of the message, which is no reply.
    """
    is_later = send.state is ExchangeState.CANCELLED and send.begun > exchange.begun
    return is_later and exchange.inputs[seq - exchange.seq] in send.inputs[:-1]


async def _load_alternatives(
    connection: Connection, agent_row: int, exchange: Exchange, *, is_active: bool
) -> list[Exchange]:
    """Returns the other exchanges with an exchange's parent. is_active: True for active exchanges."""
    values = (
        agent_row, exchange.conversation_row, exchange.depth, exchange.parent, exchange.id, int(is_active)
    )  # fmt: skip
    return await _load_exchanges(
        connection, agent_row, await load_column(connection, SQL["alternatives"], values)
    )


async def _load_exchanges(
    connection: Connection, agent_row: int, exchange_rows: Iterable[int]
) -> list[Exchange]:
    """Returns the exchanges in these rows. Over PostgreSQL a preview has no transaction, so one may be gone."""
    loaded = [await exchanges.find_exchange(connection, agent_row, row) for row in exchange_rows]
    return [exchange for exchange in loaded if exchange is not None]


class ReplacedExchange(NamedTuple):
    """An exchange that another one replaced."""

    # The replaced exchange.
    exchange: Exchange
    # True if the whole exchange is forgotten with the exchange that replaced it; False: only its reply.
    is_whole: bool


async def find_replaced(
    connection: Connection,
    rules: Rules,
    agent_row: int,
    exchange_row: int,
    seq: int | None = None,
    *,
    keeps_finished: bool = False,
) -> list[ReplacedExchange]:
    """Returns the exchanges that are forgotten with the exchange that replaced them.

    These are transcripts that grew, cancelled and refused requests, and answers that were repeated. No list has the
    replaced exchanges, the exchanges after them in their turns, or requests that were cancelled after them.

    rules: the rules that make messages of an exchange.
    exchange_row: the row of the exchange that replaced others.
    seq: the number of the message that is forgotten, which is not erased yet; None: the whole exchange is forgotten. If
        it is the reply, only the replies of the replaced exchanges are forgotten, with the results of their calls.
    keeps_finished: True if finished turns stay, as `ForgetTarget.keeps_replaced`.
    """
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None:
        return []
    is_reply = seq == exchange.reply_seq
    turn = await _load_turn(connection, agent_row, exchange) if is_reply else [exchange]
    # A reply to the same question counts as another reply, even if it repeats parts of the forgotten reply.
    named_seq = None if is_reply else seq
    replaced_exchanges: list[ReplacedExchange] = []
    if seq is None:
        refused_exchanges = await _load_refused(connection, agent_row, exchange)
        replaced_exchanges += [ReplacedExchange(refused, True) for refused in refused_exchanges]
    for step in turn:
        for alternative in await _load_alternatives(connection, agent_row, step, is_active=False):
            if keeps_finished and alternative.state is ExchangeState.FINISHED:
                continue
            if named_seq is not None and _is_repeated_in(alternative, step, named_seq):
                continue  # the message alone is erased (`find_occurrences`)
            is_newer = await _is_newer(connection, agent_row, alternative, step)
            if is_newer and not any(
                _repeats_message(alternative, turn_step, named_seq, rules) for turn_step in turn
            ):
                continue
            later_exchanges = await _find_rest_of_turn(
                connection, agent_row, alternative, takes_cancelled=not is_reply
            )
            replaced_exchanges.append(ReplacedExchange(alternative, not is_reply))
            replaced_exchanges += [ReplacedExchange(later, True) for later in later_exchanges]
    return replaced_exchanges


async def _load_turn(connection: Connection, agent_row: int, exchange: Exchange) -> list[Exchange]:
    """Returns an exchange and the earlier exchanges of its turn, the last first."""
    turn = [exchange]
    while turn[-1].parent is not None and not turn[-1].has_user_message:
        previous = await exchanges.find_exchange(connection, agent_row, turn[-1].parent)
        if previous is None:
            break
        turn.append(previous)
    return turn


async def _find_rest_of_turn(
    connection: Connection, agent_row: int, exchange: Exchange, *, takes_cancelled: bool
) -> list[Exchange]:
    """Returns the exchanges after a replaced exchange that belong to its turn.

    takes_cancelled: True to return cancelled sends with unheard replies, too: a later exchange has their messages.
    """
    following_exchanges: list[Exchange] = []
    pending = [exchange]
    while pending:
        parent = pending.pop()
        values = (agent_row, parent.conversation_row, parent.depth + 1, parent.id)
        rows = await load_column(connection, SQL["inactive_after"], values)
        for child in await _load_exchanges(connection, agent_row, rows):
            if (takes_cancelled and child.ended is None) or not child.has_user_message:
                following_exchanges.append(child)
                pending.append(child)
    return following_exchanges


async def _is_newer(
    connection: Connection, agent_row: int, alternative: Exchange, exchange: Exchange
) -> bool:
    """Returns whether an alternative began after all requests that repeated an exchange or went on from it.

    Then the exchange has not replaced the alternative: the client has the alternative's list now, as a voice agent that
    took over a named call without its history.
    """
    if alternative.begun <= exchange.touched:
        return False
    values = (agent_row, exchange.conversation_row, exchange.id, exchange.depth, exchange.touched)
    return alternative.begun > float(await connection.fetch_value(SQL["branch_touched"], values))


def _repeats_message(alternative: Exchange, exchange: Exchange, seq: int | None, rules: Rules) -> bool:
    """Returns whether an alternative repeats or quotes a message of an exchange.

    seq: the number of the message; None: any message of the exchange.
    """
    inputs = {
        atoms
        for input_seq, atoms in enumerate(exchange.inputs, exchange.seq)
        if seq is None or input_seq == seq
    }
    if not inputs.isdisjoint(alternative.inputs):
        return True
    content = [orjson.loads(data) for data in (alternative.input, alternative.shown_reply) if data]
    words = _fold("\n".join(_list_strings(content)))
    messages = rules.list_messages(exchange, False, None, None if seq is None else (seq,))
    return any(has_whole_words(words, _fold(message.text)) for message in messages)


def _list_strings(value: Any) -> Iterator[str]:
    """Yields the strings in a JSON value, except for keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _list_strings(item)


def _fold(text: str) -> str:
    """Returns a text in small letters, with one blank for any white space."""
    return " ".join(text.split()).casefold()
