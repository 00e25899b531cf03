"""The lines of an exported memory: records of the store as JSON objects, and back.

A line has one key that names its kind. `transfer_operations.py` says what lines hold and what not; `export_lines.py`
has their fields.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from gateway.core.conversation.canonical import MessageHasher, WireMessage, text_of
from gateway.core.conversation.change import prefix_hashes
from gateway.core.conversation.private import own_length, private_of
from gateway.core.conversation.tree import is_tombstone
from gateway.core.memory.learn import fact_key
from gateway.core.nul import without_nul
from gateway.core.tags import mark_of, with_mark
from gateway.run.admin.export_lines import check_line, with_present_names
from storage.commands import TransferRecord
from storage.records import REPLY, Agent, Atom, Exchange, State
from storage.sql.store import Store

PARTS = (
    "conversation", "definition", "exchange", "block", "version", "file", "passage", "fact", "ended", "learned", "edit",
    "tag", "attached", "run", "step", "import", "imported", "imported_fact",
)  # fmt: skip
# The most path hashes that are cached within one call, for the exchanges that follow.
CACHED_PATHS = 4096
# The exceptions of `LineReader.read` for a line that is no line of an export.
MALFORMED_LINE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)

# Fields of an exchange that a line has as they are. Its words, hashes and position in the tree are translated.
_PLAIN_FIELDS = (
    "seq", "begun", "touched", "ended", "stopped", "superseded", "continued", "active", "edits", "opaque",
    "model", "merged", "size",
)  # fmt: skip
# States of exchanges without stored words.
_STATES_WITHOUT_WORDS = (State.OFF, State.FORGOTTEN)


# -- records to lines


def line_of(record: TransferRecord) -> dict[str, Any]:
    """Returns the value of a record's line."""
    line: dict[str, Any] = record.values
    exchange = record.exchange
    if exchange is None:
        return line
    plain = {name: getattr(exchange, name) for name in _PLAIN_FIELDS}
    line = {
        **line,
        **plain,
        "run": exchange.gapless_from,
        "head": exchange.prefix_length,
        "state": exchange.state.value,
    }
    if is_tombstone(exchange):
        return {
            **line,
            "kinds": [_atom_kinds(atoms) for atoms in exchange.inputs],
            "reply": None if exchange.reply is None else _atom_kinds(exchange.reply),
        }
    line |= {
        "input": _parse_or_none(exchange.input),
        "shown_reply": _parse_or_none(exchange.shown_reply),
        "full": _parse_or_none(exchange.full_reply),
        "has_reply": exchange.reply is not None,
    }
    line["notes"] = {str(index): note for index, note in exchange.notes.items()}
    line["redactions"] = {
        str(index): _atom_kinds((exchange.reply or ()) if index == REPLY else exchange.inputs[index])
        for index in sorted(exchange.redactions)
    }
    return line


def count_messages(lines: Iterable[dict[str, Any]]) -> int:
    """Returns how many messages lines have, without single messages that were forgotten: so lists count them."""
    return sum(_count_in_exchange(line["exchange"]) for line in lines if "exchange" in line)


def _count_in_exchange(exchange: dict[str, Any]) -> int:
    if exchange["state"] in _STATES_WITHOUT_WORDS:
        return 0
    redacted_inputs = sum(int(index) >= 0 for index in exchange["redactions"])
    return len(exchange["input"] or ()) - redacted_inputs + (exchange["shown_reply"] is not None)


def _atom_kinds(atoms: tuple[Atom, ...]) -> str:
    """Returns the first character of each atom, which is its kind."""
    return b"".join(atom[:1] for atom in atoms).decode()


def _parse_or_none(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


# -- lines to records


class _Hashes(NamedTuple):
    """The hashes of an exchange."""

    # The atoms of each message.
    inputs: tuple[tuple[Atom, ...], ...]
    # The media of each message.
    media: tuple[bytes, ...]
    # The atoms of the reply; None: it has none.
    reply: tuple[Atom, ...] | None


class _PathEnd(NamedTuple):
    """The end of a path, after which the next exchange stands."""

    # The hash of the path.
    path_hash: bytes = b""
    # The depth of the next exchange.
    depth: int = 0
    # How many atoms and messages the path has.
    atom_count: int = 0
    message_count: int = 0


class LineReader:
    """Makes records of lines, within one call. The hash of a path is made from the hash of the path before it."""

    def __init__(self, store: Store, agent: Agent, next_seq: int) -> None:
        """next_seq: the first number that the exported memory had not given out."""
        self._store = store
        self._agent = agent
        self._next_seq = next_seq
        self._hasher = MessageHasher(agent.secret)
        self._mark = mark_of(agent.secret)
        # The ends of paths, by the number of their last exchange.
        self._path_ends: dict[int, _PathEnd] = {}

    async def read(self, line: dict[str, Any]) -> tuple[str, TransferRecord]:
        """Returns the part of a line, one of `PARTS`, and its record.

        Raises: `MALFORMED_LINE_ERRORS`: the line is no line of an export.
        """
        if not isinstance(line, dict) or len(line) != 1:
            raise ValueError("expected an object with one key, which says what the line is")
        ((part, values),) = line.items()
        if part not in PARTS:
            raise ValueError(f"unknown line {part!r}")
        if part in ("conversation", "exchange") and isinstance(values, dict):
            values = with_present_names(values)
        is_gone = (
            part == "exchange" and isinstance(values, dict) and values.get("state") in _STATES_WITHOUT_WORDS
        )
        check_line(part, values, is_gone=is_gone)
        if part in ("passage", "fact"):
            self._check_number(values["seq"])
        if part == "exchange":
            return part, await self._read_exchange(values)
        # The store has no NUL in its texts, but for messages, which stay as they came.
        values = without_nul(values)
        if part == "fact":
            values = {**values, "key": fact_key(values["text"])}
        return part, TransferRecord(values)

    def _check_number(self, number: int) -> None:
        """Checks that the memory has given a number out. Raises: ValueError: the memory would give it out again."""
        if number >= self._next_seq:
            raise ValueError(
                f"the number {number} does not lie before {self._next_seq}, the next one of the memory"
            )

    async def _read_exchange(self, line: dict[str, Any]) -> TransferRecord:
        state = State(line["state"])
        is_gone = state in _STATES_WITHOUT_WORDS
        if not is_gone:
            line = _with_mark(line, self._mark)
        inputs, media, reply = _tombstone_hashes(line) if is_gone else self._hash_messages(line)
        self._check_number(line["seq"] + len(inputs) - (reply is None))
        before = await self._find_path_end(line["parent"])
        atoms = [atom for message in inputs for atom in message] + [*(reply or ())]
        path_hash = self._hasher.hash_path(atoms, before.path_hash)
        exchange = Exchange(
            id=0,
            conversation_row=0,
            parent=None,
            depth=before.depth,
            offset=before.atom_count,
            length=before.message_count + len(inputs) + 1,
            inputs=inputs,
            media=media,
            reply=reply,
            path_hash=path_hash if reply is not None else b"",
            reply_key=None if reply is None else self._hasher.reply_key(reply),
            state=state,
            gapless_from=line["run"],
            prefix_length=line["head"],
            **{name: line[name] for name in _PLAIN_FIELDS},
            **({} if is_gone else _content_fields(line)),
        )
        if len(self._path_ends) >= CACHED_PATHS:
            self._path_ends.pop(next(iter(self._path_ends)))
        self._path_ends[exchange.seq] = _PathEnd(
            path_hash=path_hash,
            depth=exchange.depth + 1,
            atom_count=before.atom_count + len(atoms),
            message_count=exchange.length,
        )
        prefixes = prefix_hashes(self._hasher, inputs) if line["parent"] is None else []
        return TransferRecord(
            {**{name: line[name] for name in ("conversation", "parent", "prior")}, "prefixes": prefixes},
            exchange,
        )

    def _hash_messages(self, line: dict[str, Any]) -> _Hashes:
        """Returns the hashes of an exchange with content; forgotten messages get random ones."""
        messages: list[WireMessage] = line["input"] or []
        redactions = {int(index): _random_atoms(kinds) for index, kinds in line["redactions"].items()}
        inputs = tuple(
            redactions.get(index) or self._hasher.atoms(message) for index, message in enumerate(messages)
        )
        media = tuple(self._hasher.media_digest(message) for message in messages)
        if not line["has_reply"]:
            return _Hashes(inputs, media, None)
        shown_reply = line["shown_reply"]
        atoms = () if shown_reply is None else self._hasher.atoms(shown_reply)
        return _Hashes(
            inputs, media, redactions.get(REPLY) or tuple(sorted(atoms, key=lambda atom: atom[:1]))
        )

    async def _find_path_end(self, seq: int | None) -> _PathEnd:
        """Returns the end of the path up to an exchange and its reply. None: the path is empty."""
        if seq is None:
            return _PathEnd()
        if seq not in self._path_ends:
            path_hash = b""
            atoms: list[Atom] = []
            exchanges = await self._store.transfer.path_end(self._agent, seq)
            for exchange in exchanges:
                atoms = [atom for message in exchange.inputs for atom in message] + [*(exchange.reply or ())]
                path_hash = (
                    exchange.path_hash
                    if exchange.reply is not None
                    else self._hasher.hash_path(atoms, path_hash)
                )
            last = exchanges[-1]
            self._path_ends[seq] = _PathEnd(
                path_hash=path_hash,
                depth=last.depth + 1,
                atom_count=last.offset + len(atoms),
                message_count=last.length,
            )
        return self._path_ends[seq]


def _with_mark(line: dict[str, Any], mark: str) -> dict[str, Any]:
    """Returns an exchange whose notes bear the mark of its new memory."""
    full_reply = line["full"]
    if full_reply is not None:
        messages = [_with_own_mark(message, mark) for message in full_reply["messages"]]
        full_reply = {**full_reply, "messages": messages}
    return {
        **line,
        "input": line["input"] and [_with_own_mark(message, mark) for message in line["input"]],
        "full": full_reply,
        "notes": {index: with_mark(note, mark) for index, note in line["notes"].items()},
    }


def _with_own_mark(message: WireMessage, mark: str) -> WireMessage:
    """Returns a message in which the gateway's note, if the message has one, bears this mark."""
    private = private_of(message)
    start = own_length(message)
    if start is None and "shown_blocks" in private and message.get("role") == "user":
        start = 0
    if start is None:
        return message
    text = text_of(message)
    return {**message, "content": text[:start] + with_mark(text[start:], mark)}


def _content_fields(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of an exchange that hold content."""
    return {
        "input": None if line["input"] is None else orjson.dumps(line["input"] or []),
        "shown_reply": None if line["shown_reply"] is None else orjson.dumps(line["shown_reply"]),
        "full_reply": None if line["full"] is None else orjson.dumps(line["full"]),
        "has_full_reply": line["full"] is not None,
        "notes": {int(index): note for index, note in line["notes"].items()},
        "redactions": frozenset(map(int, line["redactions"])),
    }


def _tombstone_hashes(line: dict[str, Any]) -> _Hashes:
    """Returns hashes for a tombstone; its line has only the kinds of its messages' atoms."""
    inputs = tuple(_random_atoms(kinds) for kinds in line["kinds"])
    reply = None if line["reply"] is None else _random_atoms(line["reply"])
    return _Hashes(inputs, (b"",) * len(inputs), reply)


def _random_atoms(kinds: str) -> tuple[Atom, ...]:
    """Returns atoms of these kinds that match nothing, for words that were forgotten."""
    return tuple(kind.encode() + secrets.token_bytes(11) for kind in kinds)
