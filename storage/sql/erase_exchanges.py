"""The first phase of a forgetting: erases the content of exchanges in place, or of single messages of them.

An exchange stays as a tombstone, which matches by hashes and has no content. The exchanges that it replaced go with it,
since no list has them: a transcript that grew, a cancelled request, an answer that was repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.database import Connection
from storage.records import (
    REPLY,
    RESULT_ATOM,
    TEXT_ATOM,
    USER_ATOM,
    Exchange,
    ExchangeState,
    MarkKind,
    make_message_key,
    make_tombstone,
)
from storage.sql import exchanges
from storage.sql.agents import find_agent_by_id
from storage.sql.erasing_work import PAGE_ROWS, ErasingWork, StoredTarget
from storage.sql.exchange_rows import is_step
from storage.sql.job_rows import raise_epoch
from storage.sql.rebuild import has_whole_words
from storage.sql.sections import empty_sections
from storage.sql.statements import load, load_column
from storage.sql.vector_chunks import forget_indexed
from storage.store_rules import Rules

SQL = load("erase_exchanges.sql")


async def erase_exchanges(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of the target's exchanges. An `ErasingPhase`.

    position: the number of named messages and exchanges that are erased; of an import, the row of the last exchange.
    """
    agent_row = work.agent_row
    target = work.target
    # The whole memory may have been forgotten meanwhile.
    if await find_agent_by_id(connection, agent_row) is None:
        return None
    # Messages and exchanges that are named one by one come first, so that `position` counts them. The exchanges of a
    # conversation, and old exchanges, are looked up for each page: the statements no longer find erased rows.
    named_seqs = target.message_seqs[position : position + PAGE_ROWS]
    if named_seqs:
        await _erase_messages(connection, work, named_seqs)
        return position + len(named_seqs)
    start = position - len(target.message_seqs)
    named_rows = target.exchange_rows[start : start + PAGE_ROWS]
    if named_rows:
        for exchange_row in named_rows:
            await _erase_replaced(connection, work, exchange_row)
        await _erase_each(connection, agent_row, named_rows)
        return position + len(named_rows)
    if target.import_row is not None:
        return await _erase_imported(connection, work, position)
    exchange_rows = await _find_exchanges(connection, agent_row, target)
    if not exchange_rows:
        return None
    await _erase_each(
        connection, agent_row, exchange_rows, mark=MarkKind.RESET if target.keeps_memory else MarkKind.ERASED
    )
    return position


async def _find_exchanges(connection: Connection, agent_row: int, target: StoredTarget) -> list[int]:
    """Returns a page of the exchanges of the target's conversation, else of the exchanges that are too old."""
    exchange_rows: list[int] = []
    if target.conversation_row is not None:
        exchange_rows = await load_column(
            connection, SQL["exchanges_of"], (agent_row, target.conversation_row, PAGE_ROWS)
        )
    if target.before is not None and not exchange_rows:
        exchange_rows = await load_column(
            connection, SQL["exchanges_before"], (agent_row, target.before, PAGE_ROWS)
        )
    return exchange_rows


async def _erase_imported(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of an import's exchanges. They get no tombstones, since the file may be imported again."""
    exchange_rows = await load_column(
        connection, SQL["imported_exchanges"], (work.target.import_row, position, PAGE_ROWS)
    )
    await _erase_each(connection, work.agent_row, exchange_rows, leaves_tombstones=False)
    return exchange_rows[-1] if len(exchange_rows) == PAGE_ROWS else None


async def _erase_each(
    connection: Connection,
    agent_row: int,
    exchange_rows: Iterable[int],
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> None:
    """Erases whole exchanges. The other parameters are as in `_erase_exchange`."""
    seqs: list[int] = []
    for exchange_row in exchange_rows:
        exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
        if exchange is not None and not exchange.is_forgotten:
            seqs += await _erase_exchange(
                connection, agent_row, exchange, leaves_tombstones=leaves_tombstones, mark=mark
            )
    # For all of them at once: neighbours share a chunk of the index, and each call rewrites it.
    await forget_indexed(connection, agent_row, seqs)
    await raise_epoch(connection, agent_row)


async def _erase_exchange(
    connection: Connection,
    agent_row: int,
    exchange: Exchange,
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> list[int]:
    """Erases a whole exchange, except for its row. Returns the numbers of its messages, which are still indexed.

    leaves_tombstones: True if the exchange's messages are to be recognised when they are sent again.
    mark: the kind of its mark, ERASED or RESET.
    """
    indices = [*range(len(exchange.inputs)), REPLY]
    seqs = await _erase_traces(
        connection, agent_row, exchange, indices, leaves_tombstones=leaves_tombstones, mark=mark
    )
    tombstone = replace(make_tombstone(exchange), merged="", model="", redactions=frozenset())
    await exchanges.update_exchange(connection, agent_row, tombstone, is_whole=True)
    return seqs


async def _erase_messages(connection: Connection, work: ErasingWork, seqs: Iterable[int]) -> None:
    """Erases messages by their numbers, and the messages that they replaced."""
    agent_row = work.agent_row
    for seq in seqs:
        for exchange_row, occurrence_seq in await find_occurrences(connection, agent_row, seq):
            await _erase_replaced(connection, work, exchange_row, occurrence_seq)
            await _erase_message(connection, agent_row, exchange_row, occurrence_seq)
    await raise_epoch(connection, agent_row)


class MessageOccurrence(NamedTuple):
    """A place of a message: the exchange that has the message, and the message's number there."""

    exchange_row: int
    seq: int


async def find_occurrences(connection: Connection, agent_row: int, seq: int) -> list[MessageOccurrence]:
    """Returns all occurrences of a message, with the replies to later sends that repeat it.

    The message may occur again in an exchange that replaced its own, also if the exchange was replaced after the
    message was listed, as when its question was asked again. It may occur in later cancelled sends that repeat it.
    """
    exchange_row = await exchanges.find_exchange_row(connection, agent_row, seq)
    if exchange_row is None:
        return []
    occurrences = [MessageOccurrence(exchange_row, seq)]
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None or seq == exchange.reply_seq:
        return occurrences
    replacing_rows = (
        [] if exchange.active else await _find_alternatives(connection, agent_row, exchange, is_active=True)
    )
    inactive_rows = await _find_alternatives(connection, agent_row, exchange, is_active=False)
    atoms = exchange.inputs[seq - exchange.seq]
    for row in (*replacing_rows, *inactive_rows):
        alternative = await exchanges.find_exchange(connection, agent_row, row)
        assert alternative is not None  # it was found in this transaction
        if not alternative.active:
            if not _is_repeated_in(alternative, exchange, seq):
                continue
            if alternative.shown_reply is not None:
                # No list has the reply of such a send, which may quote the message.
                occurrences.append(MessageOccurrence(row, alternative.reply_seq))
        occurrences += [
            MessageOccurrence(row, alternative.seq + index)
            for index, input_atoms in enumerate(alternative.inputs)
            if input_atoms == atoms
        ]
    return occurrences


def _is_repeated_in(send: Exchange, exchange: Exchange, seq: int) -> bool:
    """Returns whether a later cancelled send repeats a message of an exchange before messages of its own.

    In append mode such a message is sent with the next one.

    send: an alternative of the exchange.
    seq: the number of the message, which is no reply.
    """
    is_later = send.state is ExchangeState.CANCELLED and send.begun > exchange.begun
    return is_later and exchange.inputs[seq - exchange.seq] in send.inputs[:-1]


async def _find_alternatives(
    connection: Connection, agent_row: int, exchange: Exchange, *, is_active: bool
) -> list[int]:
    """Returns the rows of the other exchanges with an exchange's parent. is_active: True for active exchanges."""
    values = (
        agent_row, exchange.conversation_row, exchange.depth, exchange.parent, exchange.id, int(is_active)
    )  # fmt: skip
    return await load_column(connection, SQL["alternatives"], values)


async def _erase_message(connection: Connection, agent_row: int, exchange_row: int, seq: int) -> None:
    """Erases one message of an exchange, which becomes a redaction; with the last message, the whole exchange."""
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None or exchange.state in (ExchangeState.FORGOTTEN, ExchangeState.OFF):
        return
    index = seq - exchange.seq if seq < exchange.reply_seq else REPLY
    redactions = exchange.redactions | {index}
    # Results of tools do not count: with nothing but these left, the exchange has no message any more.
    remaining = [
        i
        for i, atoms in enumerate(exchange.inputs)
        if i not in redactions and atoms and atoms[0][:1] != RESULT_ATOM
    ]
    if exchange.shown_reply is not None and REPLY not in redactions:
        remaining.append(REPLY)
    if not remaining:
        await forget_indexed(connection, agent_row, await _erase_exchange(connection, agent_row, exchange))
        return
    await forget_indexed(connection, agent_row, await _erase_traces(connection, agent_row, exchange, [index]))
    messages = orjson.loads(exchange.input or b"[]")
    if index != REPLY and index < len(messages):
        messages[index] = {"role": messages[index].get("role"), "content": ""}
    # Notes, hidden rounds and the memory section of this turn may quote the message, so they go whatever they say.
    full_reply = exchange.full_reply if index != REPLY and is_step(exchange) else None
    reduced = replace(
        exchange, redactions=redactions, edits=False, has_full_reply=full_reply is not None, section=None,
        opaque=False if index == REPLY else exchange.opaque, notes=dict.fromkeys(exchange.notes, ""),
        input=orjson.dumps(messages), shown_reply=None if index == REPLY else exchange.shown_reply,
        full_reply=full_reply,
    )  # fmt: skip
    await exchanges.update_exchange(connection, agent_row, reduced, is_whole=True)


async def _erase_replaced(
    connection: Connection, work: ErasingWork, exchange_row: int, seq: int | None = None
) -> None:
    """Erases the exchanges that an exchange replaced, or their replies. seq: as in `find_replaced`."""
    replaced_exchanges = await find_replaced(
        connection, work.rules, work.agent_row, exchange_row, seq, keeps_finished=work.target.keeps_replaced
    )
    for exchange, is_whole in replaced_exchanges:
        if not is_whole:
            await _erase_message(connection, work.agent_row, exchange.id, exchange.reply_seq)
    whole_rows = [exchange.id for exchange, is_whole in replaced_exchanges if is_whole]
    if whole_rows:
        await _erase_each(connection, work.agent_row, whole_rows)


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

    These are transcripts that grew, cancelled requests, and answers that were repeated. No list has the replaced
    exchanges, the exchanges after them in their turns, or requests that were cancelled after them.

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
    for step in turn:
        for row in await _find_alternatives(connection, agent_row, step, is_active=False):
            alternative = await exchanges.find_exchange(connection, agent_row, row)
            assert alternative is not None  # it was found in this transaction
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
        for row in await load_column(connection, SQL["inactive_after"], values):
            child = await exchanges.find_exchange(connection, agent_row, row)
            assert child is not None  # it was found in this transaction
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


async def _erase_traces(
    connection: Connection,
    agent_row: int,
    exchange: Exchange,
    indices: Collection[int],
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> list[int]:
    """Erases the data derived from these messages: the calls of the reply that wait, and the edits of the turn.

    indices: the indices of the messages among the inputs; REPLY stands for the reply.
    mark: the kind of the exchange's mark, ERASED or RESET.

    Returns the numbers of these messages, which the caller takes out of the index.
    """
    seqs, tombstone_hashes = [], []
    for index in indices:
        if index == REPLY:
            atoms, seq = exchange.reply or (), exchange.reply_seq
        else:
            atoms = exchange.inputs[index]
            seq = exchange.seq + index
        seqs.append(seq)
        if leaves_tombstones and atoms and atoms[0][:1] in (USER_ATOM, TEXT_ATOM):
            tombstone_hashes.append(make_message_key(atoms))
    await exchanges.add_marks(connection, agent_row, MarkKind.TOMBSTONE, tombstone_hashes, exchange.id)
    await exchanges.add_marks(connection, agent_row, mark, (b"",), exchange.id)
    if REPLY in indices:
        await connection.run(SQL["waiting_erase"], (exchange.id, agent_row))
    if await connection.run(SQL["edits_erase"], (agent_row, exchange.id, b"{}")):
        await empty_sections_with_edits(connection, agent_row)
    return seqs


async def empty_sections_with_edits(connection: Connection, agent_row: int) -> None:
    """Empties the memory sections that may show erased edits.

    A turn's edits are shown at once in the sections of its own path, before they are merged.
    """
    await exchanges.add_marks(connection, agent_row, MarkKind.BLOCKS, (b"",), 0)
    await empty_sections(connection, agent_row)
