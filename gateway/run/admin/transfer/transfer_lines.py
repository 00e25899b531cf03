"""The lines of an exported memory: records of the store as JSON objects, and back.

A line is an object with one key, the part of the memory, such as "fact"; its value has the fields.
`transfer_operations.py` has the parts of an export; `export_lines.py` describes and checks the fields.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

import orjson

from gateway.core.conversation.canonical import ATOM_DIGEST_BYTES, MessageHasher
from gateway.core.conversation.change import hash_prefixes
from gateway.core.conversation.exchange import TOMBSTONE_STATES, is_tombstone
from gateway.core.conversation.exchange_content import parse_json
from gateway.core.conversation.private import find_own_length, read_private
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.memory.fact_words import make_fact_key
from gateway.core.nul import without_nul
from gateway.core.tags import make_mark, with_mark
from gateway.run.admin.transfer.export_lines import MalformedLine, check_line, with_present_names
from storage.records import REPLY, Agent, Atom, Exchange, ExchangeState
from storage.sql.store import Store
from storage.transfer_commands import ImportedRecord, TransferPart, TransferRecord

# The parts of a memory, in the order in which they are exported.
PARTS: tuple[TransferPart, ...] = get_args(TransferPart)
# The most path hashes that are cached within one call, for the exchanges that follow.
_CACHED_PATHS = 4096

# Fields of an exchange that a line has as they are. Its content, hashes and position in the tree are translated.
_PLAIN_FIELDS = (
    "seq", "begun", "touched", "ended", "stopped", "superseded", "continued", "active", "edits", "opaque",
    "model", "merged", "size",
)  # fmt: skip


def find_part(name: str) -> TransferPart | None:
    """Returns the part with a name; None: no part has the name."""
    return next((part for part in PARTS if part == name), None)


# -- records to lines


def make_fields(record: TransferRecord) -> dict[str, Any]:
    """Returns the fields of a record's line."""
    exchange = record.exchange
    if exchange is None:
        return record.values
    fields: dict[str, Any] = {
        **record.values,
        **{name: getattr(exchange, name) for name in _PLAIN_FIELDS},
        # The format is older than the present names of these two.
        "run": exchange.gapless_from,
        "head": exchange.prefix_length,
        "state": exchange.state.value,
    }
    if is_tombstone(exchange):
        return {
            **fields,
            "kinds": [_render_atom_kinds(atoms) for atoms in exchange.inputs],
            "reply": None if exchange.reply is None else _render_atom_kinds(exchange.reply),
        }
    return {
        **fields,
        "input": parse_json(exchange.input),
        "shown_reply": parse_json(exchange.shown_reply),
        "full": parse_json(exchange.full_reply),
        "has_reply": exchange.reply is not None,
        "notes": {str(index): note for index, note in exchange.notes.items()},
        "redactions": {
            str(index): _render_atom_kinds(
                (exchange.reply or ()) if index == REPLY else exchange.inputs[index]
            )
            for index in sorted(exchange.redactions)
        },
    }


def count_messages(lines: Iterable[dict[str, Any]]) -> int:
    """Returns the number of messages in lines, without single messages that were forgotten, as lists count them."""
    return sum(_count_in_exchange(line["exchange"]) for line in lines if "exchange" in line)


def _count_in_exchange(fields: dict[str, Any]) -> int:
    if fields["state"] in TOMBSTONE_STATES:
        return 0
    redacted_count = sum(int(index) >= 0 for index in fields["redactions"])
    return len(fields["input"] or ()) - redacted_count + (fields["shown_reply"] is not None)


def _render_atom_kinds(atoms: tuple[Atom, ...]) -> str:
    """Returns the first character of each atom, which is its kind."""
    return b"".join(atom[:1] for atom in atoms).decode()


# -- lines to records


class _Hashes(NamedTuple):
    """The hashes of an exchange."""

    # The atoms of each message.
    inputs: tuple[tuple[Atom, ...], ...]
    # The media of each message.
    media: tuple[bytes, ...]
    # The atoms of the reply; None: the exchange has no reply.
    reply: tuple[Atom, ...] | None


class _PathEnd(NamedTuple):
    """The end of a path, after which the next exchange stands."""

    # The hash of the path.
    path_hash: bytes = b""
    # The depth of the next exchange.
    depth: int = 0
    # The number of the path's atoms.
    atom_count: int = 0
    # The number of the path's messages.
    message_count: int = 0

    @classmethod
    def after(cls, exchange: Exchange, path_hash: bytes) -> _PathEnd:
        """Returns the end of the path up to an exchange and its reply. path_hash: the hash of that path."""
        return cls(
            path_hash=path_hash,
            depth=exchange.depth + 1,
            atom_count=exchange.offset + len(_make_atoms(exchange.inputs, exchange.reply)),
            message_count=exchange.length,
        )


class LineReader:
    """Makes records of lines, within one call. The hash of a path is made from the hash of the path before it."""

    def __init__(self, store: Store, agent: Agent, next_seq: int) -> None:
        """Reads nothing yet. next_seq: the first number that the exported memory had not given out."""
        self._store = store
        self._agent = agent
        self._next_seq = next_seq
        self._hasher = MessageHasher(agent.secret)
        self._note_mark = make_mark(agent.secret)
        # The ends of paths, by the number of their last exchange.
        self._path_ends: dict[int, _PathEnd] = {}

    async def read(self, line: dict[str, Any]) -> ImportedRecord:
        """Returns the record of a line.

        Raises: MalformedLine: the line is no line of an export.
        """
        if not isinstance(line, dict) or len(line) != 1:
            raise MalformedLine("expected an object with one key, which says what the line is")
        ((name, fields),) = line.items()
        part = find_part(name)
        if part is None:
            raise MalformedLine(f"unknown line {name!r}")
        if not isinstance(fields, dict):
            raise MalformedLine(f"{part}: expected an object")
        if part == "exchange":
            return ImportedRecord(part, await self._read_exchange(with_present_names(fields)))
        if part == "conversation":
            fields = with_present_names(fields)
        check_line(part, fields)
        # The store has no NUL in its texts, but for messages, which stay as they came.
        fields = without_nul(fields)
        if part in ("passage", "fact"):
            self._check_seq(fields["seq"])
        if part == "fact":
            fields = {**fields, "key": make_fact_key(fields["text"])}
        return ImportedRecord(part, TransferRecord(fields))

    def _check_seq(self, seq: int) -> None:
        """Checks that the memory has given a number out. Raises: MalformedLine: the memory would give it out again."""
        if seq >= self._next_seq:
            raise MalformedLine(
                f"the number {seq} does not lie before {self._next_seq}, the next one of the memory"
            )

    async def _read_exchange(self, fields: dict[str, Any]) -> TransferRecord:
        is_for_tombstone = fields.get("state") in TOMBSTONE_STATES
        check_line("exchange", fields, is_for_tombstone=is_for_tombstone)
        if not is_for_tombstone:
            fields = _replace_marks(fields, self._note_mark)
        inputs, media, reply = (
            _make_tombstone_hashes(fields) if is_for_tombstone else self._hash_messages(fields)
        )
        # The number of the exchange's last message: a reply has the number after those of the input.
        self._check_seq(fields["seq"] + len(inputs) - (reply is None))
        path_end = await self._get_path_end(fields["parent"])
        path_hash = self._hasher.hash_path(_make_atoms(inputs, reply), path_end.path_hash)
        exchange = Exchange(
            id=0,
            conversation_row=0,
            parent=None,
            depth=path_end.depth,
            offset=path_end.atom_count,
            length=path_end.message_count + len(inputs) + 1,
            inputs=inputs,
            media=media,
            reply=reply,
            path_hash=path_hash if reply is not None else b"",
            reply_key=None if reply is None else self._hasher.make_reply_key(reply),
            state=ExchangeState(fields["state"]),
            gapless_from=fields["run"],
            prefix_length=fields["head"],
            **{name: fields[name] for name in _PLAIN_FIELDS},
            **({} if is_for_tombstone else _make_content_fields(fields)),
        )
        if len(self._path_ends) >= _CACHED_PATHS:
            self._path_ends.pop(next(iter(self._path_ends)))
        self._path_ends[exchange.seq] = _PathEnd.after(exchange, path_hash)
        prefixes = hash_prefixes(self._hasher, inputs) if fields["parent"] is None else []
        return TransferRecord(
            {**{name: fields[name] for name in ("conversation", "parent", "prior")}, "prefixes": prefixes},
            exchange,
        )

    def _hash_messages(self, fields: dict[str, Any]) -> _Hashes:
        """Returns the hashes of an exchange with content; forgotten messages get random ones."""
        messages: list[WireMessage] = fields["input"] or []
        redactions = {int(index): _make_random_atoms(kinds) for index, kinds in fields["redactions"].items()}
        inputs = tuple(
            redactions.get(index) or self._hasher.make_atoms(message)
            for index, message in enumerate(messages)
        )
        media = tuple(self._hasher.digest_media(message) for message in messages)
        if not fields["has_reply"]:
            return _Hashes(inputs, media, None)
        shown_reply = fields["shown_reply"]
        atoms = () if shown_reply is None else self._hasher.make_atoms(shown_reply)
        return _Hashes(inputs, media, redactions.get(REPLY) or atoms)

    async def _get_path_end(self, seq: int | None) -> _PathEnd:
        """Returns the end of the path up to an exchange and its reply.

        seq: the number of the exchange; None: the path is empty.

        Raises: NotFound: there is no such exchange.
        """
        if seq is None:
            return _PathEnd()
        if seq not in self._path_ends:
            path_hash = b""
            exchanges = await self._store.import_writer.load_path_end(self._agent, seq)
            for exchange in exchanges:
                # An exchange without a reply has no hash of its path.
                path_hash = (
                    exchange.path_hash
                    if exchange.reply is not None
                    else self._hasher.hash_path(_make_atoms(exchange.inputs, None), path_hash)
                )
            self._path_ends[seq] = _PathEnd.after(exchanges[-1], path_hash)
        return self._path_ends[seq]


def _make_atoms(inputs: tuple[tuple[Atom, ...], ...], reply: tuple[Atom, ...] | None) -> list[Atom]:
    """Returns the atoms of an exchange in their order."""
    return [atom for message in (*inputs, reply or ()) for atom in message]


def _replace_marks(fields: dict[str, Any], note_mark: str) -> dict[str, Any]:
    """Returns the fields of an exchange with the mark of its new memory in all notes."""
    full_reply = fields["full"]
    if full_reply is not None:
        messages = [_replace_mark(message, note_mark) for message in full_reply["messages"]]
        full_reply = {**full_reply, "messages": messages}
    return {
        **fields,
        "input": fields["input"] and [_replace_mark(message, note_mark) for message in fields["input"]],
        "full": full_reply,
        "notes": {index: with_mark(note, note_mark) for index, note in fields["notes"].items()},
    }


def _replace_mark(message: WireMessage, note_mark: str) -> WireMessage:
    """Returns a message with this mark in the gateway's note, if the message has a note."""
    private = read_private(message)
    start = find_own_length(message)
    if start is None and "shown_blocks" in private and message.get("role") == "user":
        start = 0
    if start is None:
        return message
    text = read_text(message)
    return {**message, "content": text[:start] + with_mark(text[start:], note_mark)}


def _make_content_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of an exchange that hold content."""
    return {
        "input": None if fields["input"] is None else orjson.dumps(fields["input"] or []),
        "shown_reply": None if fields["shown_reply"] is None else orjson.dumps(fields["shown_reply"]),
        "full_reply": None if fields["full"] is None else orjson.dumps(fields["full"]),
        "has_full_reply": fields["full"] is not None,
        "notes": {int(index): note for index, note in fields["notes"].items()},
        "redactions": frozenset(map(int, fields["redactions"])),
    }


def _make_tombstone_hashes(fields: dict[str, Any]) -> _Hashes:
    """Returns hashes for a tombstone; its fields have only the kinds of its messages' atoms."""
    inputs = tuple(_make_random_atoms(kinds) for kinds in fields["kinds"])
    reply = None if fields["reply"] is None else _make_random_atoms(fields["reply"])
    return _Hashes(inputs, (b"",) * len(inputs), reply)


def _make_random_atoms(kinds: str) -> tuple[Atom, ...]:
    """Returns atoms of these kinds that match nothing, for content that was forgotten."""
    return tuple(kind.encode() + secrets.token_bytes(ATOM_DIGEST_BYTES) for kind in kinds)
