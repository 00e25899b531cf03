"""`mnemogate memory export` and `import`: a memory as JSON lines, a page at a time.

The lines hold everything that was stored and nothing that belongs to a database: no rows, no secret, no hashes. A line
has one key that names its kind. Exchanges are known by their numbers, all that has a public name by that, and a line
stands after those to which it refers. What is attached to an agent travels with it, but for archives and folders,
which are memories of their own. Hashes are made again under the secret of the new memory, and notes get its mark. A
forgotten message keeps its position, and matches nothing there, since its words are unknown.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import astuple, replace

from gateway.core.conversation.canonical import MessageHasher, WireMessage, text_of
from gateway.core.conversation.change import prefix_hashes
from gateway.core.conversation.private import own_length, private_of
from gateway.core.conversation.tree import is_tombstone
from gateway.core.memory.learn import fact_key
from gateway.core.nul import without_nul
from gateway.core.tags import mark_of, with_mark
from gateway.errors import BadRequest
from gateway.run.admin.export_lines import check_header, check_line, with_present_names
from gateway.run.admin.memory_lists import other_profiles
from gateway.run.admin.operation_arguments import (
    NO_DEFAULTS,
    Arguments,
    Defaults,
    RawArguments,
    nothing_found,
)
from storage.commands import TransferRecord
from storage.errors import NotFound, StatementFailed, WriteConflict
from storage.records import Agent, Atom, Exchange, Scope, State
from storage.sql.store import Store

FORMAT = 3
# 1: before agents were made over REST; 2: with `FORMER_NAMES`.
FORMATS = (1, 2, FORMAT)
PARTS = (
    "conversation", "definition", "exchange", "block", "version", "file", "passage", "fact", "ended", "learned", "edit",
    "tag", "attached", "run", "step", "import", "imported", "imported_fact",
)  # fmt: skip
# The last line: without it something is missing.
END_LINE: dict[str, Any] = {"end": {}}
# Lines of an answer.
PAGE_LINES = 100
# Lines of a transaction; one line may be a whole request.
LINES_OF_TRANSACTION = 8
# The path hashes of exchanges are cached, within one call, for those that follow them.
CACHED_PATHS = 4096

# Fields of an exchange that a line holds as they are; its words, hashes and position in the tree need translation.
_PLAIN_FIELDS = (
    "seq", "begun", "touched", "ended", "stopped", "superseded", "continued", "active", "edits", "opaque",
    "model", "merged", "size",
)  # fmt: skip


class ExportPosition(Struct, frozen=True):
    """Where the next page of an export begins."""

    # The memory's.
    uid: str
    # One of PARTS.
    part: str
    # The last row of that part that was exported.
    after: int
    # The ends of all parts when the export began, as `Transfer.export_end` returns them.
    export_end: dict[str, Any]


# The errors of reading a line that is no line of an export.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
# A line and a record, each with the number of the line.
_NumberedLine = tuple[int, str | bytes]
_NumberedRecord = tuple[int, tuple[str, TransferRecord]]


class ImportPosition(Struct, frozen=True):
    """How far an import has come."""

    # Of the memory that is filled.
    uid: str
    # The number after those that the exported memory has given out.
    next_seq: int
    # The last line of the export was read.
    is_whole: bool
    # The public name of the exported memory.
    name: str | None
    # When it began, in seconds since the epoch.
    created: float


@dataclass(eq=False)
class TransferOperations:
    """Exports and imports memories."""

    store: Store
    defaults: Defaults = NO_DEFAULTS
    # Kinds of the jobs that make again what an export leaves out.
    follow_up_jobs: Sequence[str] = ()

    async def export(self, raw: RawArguments) -> dict[str, Any]:
        """Writes a page of a memory. from: the answer's `next`.

        Returns {"lines", "next", "messages": how many are in these lines}, and first "others": profiles in which the
        same person has a memory, too.
        """
        arguments = Arguments(raw)
        scope = arguments.owner(self.defaults).scope
        agent = await self.store.agents.find(scope)
        if agent is None:
            raise BadRequest(nothing_found(scope), param="user")
        at = ExportPosition(*arguments.list_of("from", 4)) if "from" in arguments else None
        lines, following = await self.read_page(agent, at)
        answer = {
            "lines": [orjson.dumps(each).decode() for each in lines],
            "next": None if following is None else list(astuple(following)),
            "messages": sum(_messages_in(each["exchange"]) for each in lines if "exchange" in each),
        }
        return answer if at is not None else {**answer, "others": await other_profiles(self.store, scope)}

    async def read_page(
        self, agent: Agent, at: ExportPosition | None = None
    ) -> tuple[list[dict[str, Any]], ExportPosition | None]:
        """Returns the lines of a page of a memory, and where the next one begins.

        Raises: BadRequest: it was forgotten meanwhile.
        """
        if at is None:
            return await self._begin_export(agent)
        if at.uid != agent.uid or at.part not in PARTS:
            raise _forgotten()
        found = await self.store.transfer.page(agent, at.part, at.after, PAGE_LINES, at.export_end)
        if found:
            lines = [{at.part: _line_of(record)} for _, record in found]
            return lines, ExportPosition(at.uid, at.part, found[-1][0], at.export_end)
        following = PARTS.index(at.part) + 1
        if following == len(PARTS):
            await self.check_is_there(agent)
            return [END_LINE], None
        return [], ExportPosition(at.uid, PARTS[following], 0, at.export_end)

    async def _begin_export(self, agent: Agent) -> tuple[list[dict[str, Any]], ExportPosition]:
        export_end = await self.store.transfer.export_end(agent)
        header = {
            "format": FORMAT,
            "uid": agent.uid,
            "next_seq": export_end["seq"] + 1,
            "created": agent.created,
        }
        return [{"memory": header}], ExportPosition(agent.uid, PARTS[0], 0, export_end)

    async def check_is_there(self, agent: Agent) -> None:
        """Checks that an export which has read a memory to its end has all of it. Raises: BadRequest."""
        if await self.store.agents.load(agent.id) is None:
            raise _forgotten()

    async def restore(self, raw: RawArguments) -> dict[str, Any]:
        """Reads lines of an export into a memory that must be new.

        line: the number of the first one, for errors. at: what the call before answered, None at first. end: there are
        no more lines. Returns {"at"}.
        """
        arguments = Arguments(raw)
        scope, lines = arguments.owner(self.defaults, is_new=True).scope, arguments.texts("lines")
        at = ImportPosition(*arguments.list_of("at", 5)) if "at" in arguments else None
        first = arguments.optional_number("line") or 1
        done = await self.write_page(scope, at, lines, first=first, is_end=arguments.flag("end"))
        return {"at": list(astuple(done))}

    async def write_page(
        self,
        scope: Scope,
        at: ImportPosition | None,
        lines: Sequence[str | bytes],
        *,
        first: int = 1,
        is_end: bool = False,
    ) -> ImportPosition:
        """Writes lines of an export into a memory that must be new.

        at: what the call before returned.
        first: the number of the first line, for errors.
        is_end: there are no more lines.

        Raises: BadRequest.
        """
        numbered = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
        with _translating_errors():
            return await self._write_numbered(scope, at, numbered, is_end=is_end)

    async def _write_numbered(
        self, scope: Scope, at: ImportPosition | None, lines: list[_NumberedLine], *, is_end: bool
    ) -> ImportPosition:
        if at is None:
            if not lines:
                raise BadRequest("There is nothing to import.", param="lines")
            number, line = lines.pop(0)
            with _translating_errors(number):
                at = await self._begin_memory(scope, orjson.loads(line))
        memory = await self.store.transfer.find_unfinished(scope)
        if memory is None or memory.uid != at.uid:
            raise BadRequest("This import is not under way any more.", param="at")
        at = await self._write_lines(memory, at, lines)
        if is_end:
            if not at.is_whole:
                raise BadRequest("This export was cut off: its last line is missing.", param="lines")
            await self.store.transfer.finish_import(memory, at.next_seq, at.name, at.created)
            for kind in self.follow_up_jobs:
                await self.store.jobs.enqueue(kind, memory.id, kind)
        return at

    async def _write_lines(
        self, memory: Agent, at: ImportPosition, lines: list[_NumberedLine]
    ) -> ImportPosition:
        """Writes lines into a memory that has begun, each few in a transaction."""
        reader, is_whole = LineReader(self.store, memory, at.next_seq), at.is_whole
        for start in range(0, len(lines), LINES_OF_TRANSACTION):
            records: list[_NumberedRecord] = []
            for number, text in lines[start : start + LINES_OF_TRANSACTION]:
                with _translating_errors(number):
                    line = orjson.loads(text)
                    if is_whole:
                        raise ValueError("it stands behind the line that ends the export")
                    if line == END_LINE:
                        is_whole = True
                    else:
                        records.append((number, await reader.read(line)))
            if records:
                await self._write_records(memory, records)
        return replace(at, is_whole=is_whole)

    async def _write_records(self, agent: Agent, records: list[_NumberedRecord]) -> None:
        try:
            await self.store.transfer.write(agent, [record for _, record in records])
        except (*MALFORMED, WriteConflict, NotFound, StatementFailed):
            # One by one, so that an error names the line. If a public name was taken in the moment in which it was
            # found free, another one is given now, and none is wrong.
            for number, record in records:
                with _translating_errors(number):
                    await self.store.transfer.write(agent, [record])

    async def _begin_memory(self, scope: Scope, line: Any) -> ImportPosition:
        """Makes the memory that is filled; it cannot be found before the import has ended."""
        header = line.get("memory")
        if not isinstance(header, dict) or header.get("format") not in FORMATS:
            seen = header.get("format") if isinstance(header, dict) else None
            known = " or ".join(map(str, FORMATS))
            raise _not_an_export(f"its first line must name the format {known}, saw {seen!r}")
        check_header(header)
        agent = await self.store.transfer.begin_import(self.store.agents.new(scope))
        return ImportPosition(
            agent.uid, header["next_seq"], False, header.get("uid"), float(header["created"])
        )


def _forgotten() -> BadRequest:
    return BadRequest("This memory was forgotten while it was exported.", param="from")


def _not_an_export(why: str) -> BadRequest:
    return BadRequest(f"This is no exported memory: {why}.", param="lines")


@contextmanager
def _translating_errors(line: int | None = None) -> Iterator[None]:
    """Raises BadRequest for what an import may raise. line: the number of the line that is at fault."""
    where = "" if line is None else f"line {line}: "
    try:
        yield
    except orjson.JSONDecodeError as error:
        raise _not_an_export(f"line {line} is no JSON ({error.msg}, column {error.colno})") from error
    except (WriteConflict, NotFound) as error:
        raise BadRequest(f"This cannot be imported: {where}{error.message}.", param="lines") from error
    except StatementFailed as error:  # a field that the database has refused
        raise _not_an_export(f"{where}{error.message}") from error
    except MALFORMED as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise _not_an_export(f"{where}{why}") from error


# -- records to lines


def _line_of(record: TransferRecord) -> dict[str, Any]:
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
            "kinds": [_atom_kinds(a) for a in exchange.inputs],
            "reply": None if exchange.reply is None else _atom_kinds(exchange.reply),
        }
    line |= {
        "input": _parse_or_none(exchange.input),
        "shown_reply": _parse_or_none(exchange.shown_reply),
        "full": _parse_or_none(exchange.full),
        "has_reply": exchange.reply is not None,
    }
    line["notes"] = {str(i): note for i, note in exchange.notes.items()}
    line["redactions"] = {
        str(i): _atom_kinds((exchange.reply or ()) if i < 0 else exchange.inputs[i])
        for i in sorted(exchange.redactions)
    }
    return line


def _messages_in(exchange: dict[str, Any]) -> int:
    """Returns how many messages a line has, as lists count them: without those that were forgotten alone."""
    if exchange["state"] in _WITHOUT_WORDS:
        return 0
    redacted_inputs = sum(int(at) >= 0 for at in exchange["redactions"])
    return len(exchange["input"] or ()) - redacted_inputs + (exchange["shown_reply"] is not None)


def _atom_kinds(atoms: tuple[Atom, ...]) -> str:
    """Returns the first character of each atom, which is its kind."""
    return b"".join(a[:1] for a in atoms).decode()


def _parse_or_none(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


# -- lines to records

# States of exchanges without stored words.
_WITHOUT_WORDS = (State.OFF, State.FORGOTTEN)


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
    path: bytes = b""
    # Of the next exchange.
    depth: int = 0
    # How many atoms and messages the path has.
    atoms: int = 0
    messages: int = 0


class LineReader:
    """Makes records of lines, within one call. The hash of a path is made from that of the exchange before it.

    next_seq: the number after those that the memory has given out.
    """

    def __init__(self, store: Store, agent: Agent, next_seq: int) -> None:
        self._store = store
        self._agent = agent
        self._next_seq = next_seq
        self._hasher = MessageHasher(agent.secret)
        self._mark = mark_of(agent.secret)
        # By the number of the last exchange.
        self._path_ends: dict[int, _PathEnd] = {}

    async def read(self, line: dict[str, Any]) -> tuple[str, TransferRecord]:
        """Returns what a line is, one of `PARTS`, and its record. Raises: one of `MALFORMED`: it is no such line."""
        if not isinstance(line, dict) or len(line) != 1:
            raise ValueError("expected an object with one key, which says what the line is")
        ((part, values),) = line.items()
        if part not in PARTS:
            raise ValueError(f"unknown line {part!r}")
        if part in ("conversation", "exchange") and isinstance(values, dict):
            values = with_present_names(values)
        is_gone = part == "exchange" and isinstance(values, dict) and values.get("state") in _WITHOUT_WORDS
        check_line(part, values, is_gone=is_gone)
        if part in ("passage", "fact"):
            self._check_number(values["seq"])
        if part == "exchange":
            return part, await self._read_exchange(values)
        values = without_nul(values)  # a message stays as it came; the rest is stored as anywhere
        if part == "fact":
            values = {**values, "key": fact_key(values["text"])}
        return part, TransferRecord(values)

    def _check_number(self, last: int) -> None:
        """Raises: ValueError: the memory would give that number out once more."""
        if last >= self._next_seq:
            raise ValueError(
                f"the number {last} does not lie before {self._next_seq}, the next one of the memory"
            )

    async def _read_exchange(self, line: dict[str, Any]) -> TransferRecord:
        state = State(line["state"])
        is_gone = state in _WITHOUT_WORDS
        if not is_gone:
            line = _with_mark(line, self._mark)
        inputs, media, reply = _tombstone_hashes(line) if is_gone else self._hashes(line)
        self._check_number(line["seq"] + len(inputs) - (reply is None))
        before = await self._find_path_end(line["parent"])
        flat = [a for atoms in inputs for a in atoms]
        path = self._hasher.hash_path((*flat, *(reply or ())), before.path)
        exchange = Exchange(
            id=0,
            conversation=0,
            parent=None,
            depth=before.depth,
            offset=before.atoms,
            length=before.messages + len(inputs) + 1,
            inputs=inputs,
            media=media,
            reply=reply,
            path=path if reply is not None else b"",
            reply_key=None if reply is None else self._hasher.reply_key(reply),
            state=state,
            gapless_from=line["run"],
            prefix_length=line["head"],
            **{name: line[name] for name in _PLAIN_FIELDS},
            **({} if is_gone else _content_fields(line)),
        )
        if len(self._path_ends) >= CACHED_PATHS:
            self._path_ends.pop(next(iter(self._path_ends)))
        atoms = before.atoms + len(flat) + len(reply or ())
        self._path_ends[exchange.seq] = _PathEnd(path, exchange.depth + 1, atoms, exchange.length)
        prefixes = prefix_hashes(self._hasher, inputs) if line["parent"] is None else []
        return TransferRecord(
            {**{name: line[name] for name in ("conversation", "parent", "prior")}, "prefixes": prefixes},
            exchange,
        )

    def _hashes(self, line: dict[str, Any]) -> _Hashes:
        """Returns the hashes of an exchange with content; forgotten messages get random ones."""
        messages: list[WireMessage] = line["input"] or []
        redactions = {int(i): _random_atoms(kinds) for i, kinds in line["redactions"].items()}
        inputs = tuple(redactions.get(i) or self._hasher.atoms(m) for i, m in enumerate(messages))
        media = tuple(self._hasher.media_digest(m) for m in messages)
        reply_atoms = self._hasher.atoms(line["shown_reply"]) if line["shown_reply"] is not None else ()
        reply = (
            (redactions.get(-1) or tuple(sorted(reply_atoms, key=lambda a: a[:1])))
            if line["has_reply"]
            else None
        )
        return _Hashes(inputs, media, reply)

    async def _find_path_end(self, seq: int | None) -> _PathEnd:
        """Returns the end of the path up to an exchange and its reply. None: the path is empty."""
        if seq is None:
            return _PathEnd()
        if seq not in self._path_ends:
            path, flat = b"", list[Atom]()
            exchanges = await self._store.transfer.path_end(self._agent, seq)
            for each in exchanges:
                flat = [*(a for atoms in each.inputs for a in atoms), *(each.reply or ())]
                path = each.path if each.reply is not None else self._hasher.hash_path(flat, path)
            last = exchanges[-1]
            self._path_ends[seq] = _PathEnd(path, last.depth + 1, last.offset + len(flat), last.length)
        return self._path_ends[seq]


def _with_mark(line: dict[str, Any], mark: str) -> dict[str, Any]:
    """Returns an exchange with notes that bear the mark of the memory that it comes into."""
    full = line["full"]
    if full is not None:
        full = {**full, "messages": [_with_own_mark(message, mark) for message in full["messages"]]}
    return {
        **line,
        "input": line["input"] and [_with_own_mark(message, mark) for message in line["input"]],
        "full": full,
        "notes": {at: with_mark(note, mark) for at, note in line["notes"].items()},
    }


def _with_own_mark(message: WireMessage, mark: str) -> WireMessage:
    """Returns a message whose note of the gateway's, if it has one, bears this mark."""
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
        "full": None if line["full"] is None else orjson.dumps(line["full"]),
        "has_full": line["full"] is not None,
        "notes": {int(i): note for i, note in line["notes"].items()},
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
