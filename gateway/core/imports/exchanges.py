"""An imported conversation as exchanges, and the choice of the exchanges that are new to a memory.

A conversation is recognised by its source's id and by its path. The stored part of the path stays as it is. The rest is
added to the conversation that was imported under that id, else to a live conversation that ends where the path goes on,
else to a new one. A message that was forgotten comes as a tombstone.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from typing import Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.change import hash_prefixes
from gateway.core.conversation.off_record import redact_with_answers
from gateway.core.conversation.stored_path import abandon, finish_step
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.imports.records import SourceConversation, SourceMessage, Unreadable
from storage.import_commands import (
    ImportCandidates,
    ImportChange,
    ImportWrite,
    MatchedExchange,
    MessageCounts,
)
from storage.records import REPLY, Agent, Atom, Exchange, ExchangeState, make_message_key, make_tombstone

# The beginning of the key of an imported conversation.
KEY: Final = "import:"
# The most messages of a conversation, which is in memory as a whole. Chosen: far above the length of real ones.
MAX_MESSAGES: Final = 50_000
# The seconds between two messages if neither the messages nor their conversation have a date.
_STEP_S: Final = 1.0


class ImportDraft(Struct, frozen=True):
    """A conversation as it would be written if no part of it were stored."""

    # The exchanges, oldest first. They get their positions in a tree when they are written.
    exchanges: Sequence[Exchange]
    # For each exchange, the number of the source's messages in it.
    counts: Sequence[int]
    # The key of the conversation; None: the source gave it no id.
    key: str | None
    # The time of the first message, in seconds since the epoch.
    first_at: float
    # The number of characters of the messages.
    char_count: int
    # The hashes of the questions.
    questions: Sequence[bytes]
    # The hashes of all messages.
    atoms: Sequence[bytes]
    # The hashes by which the prefix is recognised.
    prefixes: Sequence[bytes]


class _Turn:
    """Messages up to a reply, and the reply. Several messages of the assistant in a row are one reply."""

    def __init__(self) -> None:
        # The messages before the reply.
        self.inputs: list[SourceMessage] = []
        # The messages of the reply.
        self.reply: list[SourceMessage] = []

    @property
    def message_count(self) -> int:
        """The number of the turn's messages, the reply included."""
        return len(self.inputs) + len(self.reply)


class _StoredPart(Struct, frozen=True):
    """The exchanges of a draft that are stored already, from the first one on."""

    # The number of these exchanges.
    count: int = 0
    # The last of them as it is stored; None: no exchange is stored, or the conversation does not go on from them.
    last_exchange: Exchange | None = None


def draft_import(
    source: SourceConversation, format_name: str, hasher: MessageHasher, now: float, oldest_at: float
) -> ImportDraft | Unreadable:
    """Returns the exchanges of a conversation, or the reason why it is left out.

    format_name: the name of the file's format.
    now: the time of the import, in seconds since the epoch.
    oldest_at: a time in seconds since the epoch; exchanges that ended before it become tombstones.
    """
    message_count = len(source.messages) + source.skipped_count
    if len(source.messages) > MAX_MESSAGES:
        return Unreadable(f"it has more than {MAX_MESSAGES:,} messages", message_count)
    turns = _group_turns(source.messages)
    if not turns:
        return Unreadable("it has no message of the user", message_count)
    times = _date_messages(source, now)
    exchanges = _make_exchanges(turns, times, hasher, oldest_at)
    if all(exchange.is_forgotten for exchange in exchanges):
        return Unreadable("it is older than what is retained", message_count)
    messages = [
        atoms for exchange in exchanges for atoms in (*exchange.inputs, exchange.reply or ()) if atoms
    ]
    return ImportDraft(
        exchanges=exchanges,
        counts=[turn.message_count for turn in turns],
        key=None if source.id is None else f"{KEY}{format_name}:{source.id}",
        first_at=min(times),
        char_count=sum(len(message.text) for message in source.messages),
        questions=list({make_message_key(exchange.inputs[-1]): None for exchange in exchanges}),
        atoms=list({make_message_key(atoms): None for atoms in messages}),
        prefixes=hash_prefixes(hasher, exchanges[0].inputs),
    )


def make_import_write(draft: ImportDraft, agent: Agent, row: int, uid: str, *, learns: bool) -> ImportWrite:
    """Returns the write of a conversation.

    row: the row of the import.
    uid: the public id of the conversation, if it is new.
    learns: True if facts are learned from the conversation.
    """
    return ImportWrite(
        agent=agent,
        row=row,
        learns=learns,
        key=draft.key,
        uid=uid,
        at=draft.first_at,
        path_hashes=[exchange.path_hash for exchange in draft.exchanges],
        questions=draft.questions,
        atoms=draft.atoms,
        prefixes=draft.prefixes,
        decide=partial(_decide, draft),
    )


def _decide(draft: ImportDraft, candidates: ImportCandidates) -> ImportChange:
    """Returns the changes that a conversation makes to a memory. candidates: the exchanges that are stored."""
    stored_part = _match_stored(draft, candidates)
    last_stored = stored_part.last_exchange
    conversation_row = candidates.conversation_row if last_stored is None else last_stored.conversation_row
    refilled_stubs = _refill_stubs(draft, candidates, stored_part.count, conversation_row)
    new_exchanges = [
        _without_forgotten(exchange, candidates.forgotten_hashes)
        for exchange in draft.exchanges[stored_part.count :]
    ]
    parent = None if last_stored is None else last_stored.id
    superseded_exchanges = [
        replace(exchange, superseded=True, active=False)
        for exchange in (candidates.unanswered if new_exchanges else ())
        if exchange.conversation_row == conversation_row
        and exchange.parent == parent
        and exchange.inputs == new_exchanges[0].inputs
    ]
    return ImportChange(
        message_counts=_count_messages(draft, stored_part.count, refilled_stubs, new_exchanges),
        stored_count=stored_part.count,
        new_exchanges=new_exchanges,
        previous=last_stored,
        conversation_row=conversation_row,
        refilled_stubs=refilled_stubs,
        superseded=superseded_exchanges,
    )


def _count_messages(
    draft: ImportDraft,
    stored_count: int,
    refilled_stubs: Container[int],
    new_exchanges: Sequence[Exchange],
) -> list[MessageCounts]:
    """Returns the numbers of messages of each exchange of a conversation.

    stored_count: the number of exchanges that are stored, from the first on.
    refilled_stubs: the positions of the stored exchanges that get their words again.
    new_exchanges: the other exchanges, without forgotten messages.
    """
    counts = [
        MessageCounts(new=count, known=0, skipped=0)
        if i in refilled_stubs
        else MessageCounts(new=0, known=count, skipped=0)
        for i, count in enumerate(draft.counts[:stored_count])
    ]
    for exchange, count in zip(new_exchanges, draft.counts[stored_count:], strict=True):
        skipped_count = count if exchange.is_forgotten else len(exchange.redactions)
        counts.append(MessageCounts(new=count - skipped_count, known=0, skipped=skipped_count))
    return counts


def _match_stored(draft: ImportDraft, candidates: ImportCandidates) -> _StoredPart:
    """Returns the longest stored part of a conversation from which it goes on."""
    matches_by_path: dict[bytes, list[MatchedExchange]] = {}
    for match in candidates.matches:
        matches_by_path.setdefault(match.exchange.path_hash, []).append(match)
    for end in range(len(draft.exchanges), 0, -1):
        matches = matches_by_path.get(draft.exchanges[end - 1].path_hash, ())
        same_import_matches = [
            match for match in matches if match.exchange.conversation_row == candidates.conversation_row
        ]
        # A live conversation that ends here may go on with the rest. A conversation of another import, or a
        # conversation that has gone on, has to have the whole path: else it may only begin with the same greeting.
        continuable_matches = [
            match
            for match in matches
            if end == len(draft.exchanges) or (match.is_last and not match.is_import)
        ]
        if same_import_matches or (candidates.conversation_row is None and continuable_matches):
            ends = [match.exchange for match in same_import_matches or continuable_matches]
            return _StoredPart(end, max(ends, key=lambda exchange: (exchange.active, exchange.id)))
    return _StoredPart()


def _refill_stubs(
    draft: ImportDraft, candidates: ImportCandidates, stored_count: int, conversation_row: int | None
) -> dict[int, Exchange]:
    """Returns the exchanges of which an undone import has left stubs, with their words again, by their positions.

    stored_count: the number of exchanges that are stored, from the first on.
    """
    stubs = {
        match.exchange.path_hash: match.exchange
        for match in candidates.matches
        if match.is_stub and match.exchange.conversation_row == conversation_row
    }
    refilled_stubs = {}
    for i, exchange in enumerate(draft.exchanges[:stored_count]):
        stub = stubs.get(exchange.path_hash)
        if stub is not None and stub.inputs == exchange.inputs and not exchange.is_forgotten:
            refilled_stub = replace(
                stub,
                state=ExchangeState.FINISHED,
                active=True,
                size=exchange.size,
                input=exchange.input,
                shown_reply=exchange.shown_reply,
            )
            refilled_stubs[i] = _without_forgotten(refilled_stub, candidates.forgotten_hashes)
    return refilled_stubs


def _without_forgotten(exchange: Exchange, forgotten_hashes: frozenset[bytes]) -> Exchange:
    """Returns a copy of an exchange without the forgotten messages, and without the answers to them."""
    if not forgotten_hashes or exchange.is_forgotten:
        return exchange
    messages: list[WireMessage] = orjson.loads(exchange.input or b"[]")
    forgotten_indices = {
        i for i, atoms in enumerate(exchange.inputs) if _is_forgotten(atoms, forgotten_hashes)
    }
    redactions = redact_with_answers(forgotten_indices, messages)
    if exchange.reply and (
        _is_forgotten(exchange.reply, forgotten_hashes) or len(exchange.inputs) - 1 in redactions
    ):
        redactions.add(REPLY)
    if not redactions:
        return exchange
    if len(redactions) == len(exchange.inputs) + bool(exchange.reply):
        return make_tombstone(exchange)
    redacted_messages = [
        {**message, "content": ""} if i in redactions else message for i, message in enumerate(messages)
    ]
    return replace(
        exchange,
        redactions=frozenset(redactions),
        input=orjson.dumps(redacted_messages),
        shown_reply=None if REPLY in redactions else exchange.shown_reply,
    )


def _is_forgotten(atoms: Sequence[Atom], forgotten_hashes: frozenset[bytes]) -> bool:
    return bool(atoms) and make_message_key(atoms) in forgotten_hashes


def _group_turns(messages: Sequence[SourceMessage]) -> list[_Turn]:
    """Returns the turns of a conversation; []: the conversation has no message of the user.

    Messages of an assistant before the first question are inputs of the first turn.
    """
    turns: list[_Turn] = []
    turn = _Turn()
    has_question = False
    for message in messages:
        has_question = has_question or message.role == "user"
        if message.role == "assistant" and has_question:
            turn.reply.append(message)
        else:
            if turn.reply:
                turns.append(turn)
                turn = _Turn()
            turn.inputs.append(message)
    return [*turns, turn] if has_question else []


def _make_exchanges(
    turns: Sequence[_Turn], times: Sequence[float], hasher: MessageHasher, oldest_at: float
) -> list[Exchange]:
    """Returns the exchanges of a conversation's turns; those that ended before `oldest_at` are tombstones.

    times: the times of the messages, in seconds since the epoch.
    """
    exchanges: list[Exchange] = []
    path_hash = b""
    start = 0
    for turn in turns:
        end = start + turn.message_count
        exchange = _make_exchange(
            turn, times[start:end], hasher, path_hash, exchanges[-1] if exchanges else None
        )
        is_retained = (exchange.ended or exchange.begun) >= oldest_at
        exchanges.append(exchange if is_retained else make_tombstone(exchange))
        path_hash = exchange.path_hash
        start = end
    # Only the last exchange may be superseded by a later turn.
    exchanges[-1] = replace(exchanges[-1], continued=False)
    return exchanges


def _make_exchange(
    turn: _Turn,
    times: Sequence[float],
    hasher: MessageHasher,
    parent_path_hash: bytes,
    previous: Exchange | None,
) -> Exchange:
    """Returns a turn as an exchange.

    parent_path_hash: the hash of the path before the turn.
    previous: the last exchange of this path; None: the turn is the first.
    """
    messages: list[WireMessage] = [{"role": message.role, "content": message.text} for message in turn.inputs]
    inputs = tuple(map(hasher.make_atoms, messages))
    offset = 0
    if previous is not None:
        offset = previous.offset + sum(map(len, previous.inputs)) + len(previous.reply or ())
    exchange = Exchange(
        id=-1,
        conversation_row=0,
        parent=None,
        depth=0,
        offset=offset,
        inputs=inputs,
        media=(b"",) * len(inputs),
        reply=None,
        path_hash=b"",
        reply_key=None,
        begun=times[0],
        touched=times[0],
        input=orjson.dumps(messages),
        prefix_length=0 if previous is not None else _count_greetings(turn),
    )
    if not turn.reply:
        return abandon(exchange, hasher, parent_path_hash, times[-1])
    reply: WireMessage = {"role": "assistant", "content": "\n\n".join(message.text for message in turn.reply)}
    return finish_step(
        exchange,
        hasher,
        parent_path_hash,
        full_reply=(reply,),
        shown_reply=None,
        model="",
        evicted=None,
        now=times[-1],
    )


def _count_greetings(turn: _Turn) -> int:
    """Returns the number of messages that an assistant has written before the first question."""
    return next(i for i, message in enumerate(turn.inputs) if message.role == "user")


def _date_messages(source: SourceConversation, now: float) -> list[float]:
    """Returns the time of each message, in seconds since the epoch.

    A message without a date has the time of the message before it. The first one has the date of the conversation, or
    else of the next message with a date. If there is no date, the messages have times before now, one after the other.
    """
    count = len(source.messages)
    dates = (source.begun_at, *(message.at for message in source.messages))
    time = next((date for date in dates if date is not None), None)
    if time is None:
        return [now - _STEP_S * (count - i) for i in range(count)]
    times: list[float] = []
    for message in source.messages:
        time = min(now, time if message.at is None else message.at)
        times.append(time)
    return times
