"""`mnemogate memory export` and `import`: a memory as JSON lines, a page at a time.

The lines have everything that was stored, except for what belongs to one database: rows, secrets and hashes. A line has
one key, which names its kind. It refers to exchanges by their numbers and to other records by their public ids, and
comes after the lines to which it refers. Tools, blocks and the like that are attached to an agent are exported with it;
archives and folders are not, since they are memories of their own.

An import makes hashes with the secret of the new memory, and gives notes its mark. A forgotten message keeps its
position, and matches no message, since its words are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import astuple, replace

from gateway.errors import BadRequest
from gateway.run.admin.memory_by_uid import load_other_profiles
from gateway.run.admin.memory_names import make_nothing_found_error
from gateway.run.admin.operation_arguments import NO_DEFAULTS, Arguments, Defaults, RawArguments
from gateway.run.admin.transfer.export_lines import MalformedLine, check_header
from gateway.run.admin.transfer.transfer_lines import (
    PARTS,
    LineReader,
    count_messages,
    find_part,
    make_fields,
)
from storage.errors import NotFound, StatementFailed, WriteConflict
from storage.records import Agent, Scope
from storage.sql.store import Store
from storage.transfer_commands import ImportedRecord

# The version of the lines of an export.
_FORMAT = 3
# The versions that an import reads. 1: before the agents API; 2: with `FORMER_NAMES`.
READ_FORMATS = (1, 2, _FORMAT)
# The last line of an export. Without it the export was cut off.
_END_LINE: dict[str, Any] = {"end": {}}
# The most lines of a page.
PAGE_LINES = 100
# The most lines that one transaction writes; one line may be a whole request.
LINES_OF_TRANSACTION = 8


class ExportPosition(Struct, frozen=True):
    """Where the next page of an export begins."""

    # The memory's uid.
    uid: str
    # The name of a part, as the client has sent it.
    part: str
    # The last row of that part that was exported; 0: none was.
    after: int
    # The ends of all parts when the export began, as `ExportReader.find_end` returns them.
    export_end: dict[str, Any]


class ExportPage(NamedTuple):
    """A page of an export."""

    lines: list[dict[str, Any]]
    # Where the next page begins; None: this was the last one.
    next: ExportPosition | None


class _NumberedLine(NamedTuple):
    """A line of an import, with its number for errors."""

    number: int
    text: str | bytes


class _NumberedRecord(NamedTuple):
    """The record of a line, with the line's number for errors."""

    number: int
    record: ImportedRecord


class ImportPosition(Struct, frozen=True):
    """How far an import has come."""

    # The uid of the memory that is filled.
    uid: str
    # The number after those that the exported memory has given out.
    next_seq: int
    # True: the last line of the export was read.
    is_whole: bool
    # The public id of the exported memory.
    name: str | None
    # The time at which that memory began, in seconds since the epoch.
    created: float


@dataclass(eq=False)
class TransferOperations:
    """Exports and imports memories."""

    store: Store
    defaults: Defaults = NO_DEFAULTS
    # Kinds of the jobs that make again the data that an export leaves out.
    follow_up_jobs: Sequence[str] = ()

    async def export(self, raw: RawArguments) -> dict[str, Any]:
        """Exports a page of a memory. from: `next` of the answer before; left out for the first page.

        Returns {"lines", "next", "messages": how many are in these lines}; of the first page also "others": profiles in
        which the same person has a memory, too.
        """
        arguments = Arguments(raw)
        scope = arguments.read_owner(self.defaults).scope
        agent = await self.store.agents.find(scope)
        if agent is None:
            raise make_nothing_found_error(scope)
        position = ExportPosition(*arguments.read_position("from", 4)) if "from" in arguments else None
        page = await self.read_page(agent, position)
        answer = {
            "lines": [orjson.dumps(line).decode() for line in page.lines],
            "next": None if page.next is None else list(astuple(page.next)),
            "messages": count_messages(page.lines),
        }
        if position is None:
            answer["others"] = await load_other_profiles(self.store, scope)
        return answer

    async def read_page(self, agent: Agent, position: ExportPosition | None = None) -> ExportPage:
        """Returns a page of the export of a memory.

        position: the position at which the page begins; None: the beginning of the export.

        Raises: BadRequest: the memory was forgotten meanwhile.
        """
        if position is None:
            return await self._begin_export(agent)
        part = find_part(position.part)
        export_end = position.export_end
        if position.uid != agent.uid or part is None:
            raise _make_forgotten_error()
        records = await self.store.export_reader.load_page(
            agent, part, position.after, PAGE_LINES, export_end
        )
        if records:
            lines: list[dict[str, Any]] = [{part: make_fields(exported.record)} for exported in records]
            return ExportPage(lines, replace(position, after=records[-1].cursor))
        if part == PARTS[-1]:
            await self.check_not_forgotten(agent)
            return ExportPage([_END_LINE], None)
        return ExportPage([], replace(position, part=PARTS[PARTS.index(part) + 1], after=0))

    async def _begin_export(self, agent: Agent) -> ExportPage:
        export_end = await self.store.export_reader.find_end(agent)
        header = {
            "format": _FORMAT,
            "uid": agent.uid,
            "next_seq": export_end["seq"] + 1,
            "created": agent.created,
        }
        first_position = ExportPosition(uid=agent.uid, part=PARTS[0], after=0, export_end=export_end)
        return ExportPage([{"memory": header}], first_position)

    async def check_not_forgotten(self, agent: Agent) -> None:
        """Checks that a memory that was read to its end was not forgotten meanwhile. Raises: BadRequest."""
        if await self.store.agents.find_by_id(agent.id) is None:
            raise _make_forgotten_error()

    async def restore(self, raw: RawArguments) -> dict[str, Any]:
        """Writes lines of an export into a memory that must be new. Returns {"at"}.

        lines: the next lines of the export.
        line: the number of the first of them, for errors.
        at: the `at` of the answer before; left out at the beginning.
        end: True: there are no more lines.
        """
        arguments = Arguments(raw)
        scope = arguments.read_owner(self.defaults, is_new=True).scope
        position = await self.write_page(
            scope,
            ImportPosition(*arguments.read_position("at", 5)) if "at" in arguments else None,
            arguments.read_texts("lines"),
            first_number=arguments.read_optional_number("line") or 1,
            is_end=arguments.read_flag("end"),
        )
        return {"at": list(astuple(position))}

    async def write_page(
        self,
        scope: Scope,
        position: ImportPosition | None,
        lines: Sequence[str | bytes],
        *,
        first_number: int = 1,
        is_end: bool = False,
    ) -> ImportPosition:
        """Writes lines of an export into a memory that must be new. Returns the position after them.

        position: the position that the call before returned; None: the beginning.
        first_number: the number of the first line, for errors.
        is_end: True: there are no more lines.

        Raises: BadRequest.
        """
        numbered_lines = [
            _NumberedLine(number, line) for number, line in enumerate(lines, first_number) if line.strip()
        ]
        with _map_errors():
            return await self._write_numbered_lines(scope, position, numbered_lines, is_end=is_end)

    async def _write_numbered_lines(
        self, scope: Scope, position: ImportPosition | None, lines: list[_NumberedLine], *, is_end: bool
    ) -> ImportPosition:
        """Writes the lines, for `write_page`. Raises: BadRequest, StoreError."""
        if position is None:
            if not lines:
                raise BadRequest("There is nothing to import.", param="lines")
            header_line = lines.pop(0)
            with _map_errors(header_line.number):
                position = await self._begin_memory(scope, orjson.loads(header_line.text))
        agent = await self.store.import_writer.find_unfinished(scope)
        if agent is None or agent.uid != position.uid:
            raise BadRequest("This import is not under way any more.", param="at")
        position = await self._write_lines(agent, position, lines)
        if is_end:
            if not position.is_whole:
                raise BadRequest("This export was cut off: its last line is missing.", param="lines")
            await self.store.import_writer.finish(agent, position.next_seq, position.name, position.created)
            for kind in self.follow_up_jobs:
                await self.store.jobs.enqueue(kind, agent.id, kind)
        return position

    async def _write_lines(
        self, agent: Agent, position: ImportPosition, lines: list[_NumberedLine]
    ) -> ImportPosition:
        """Writes lines into a memory that has begun, `LINES_OF_TRANSACTION` in each transaction."""
        reader = LineReader(self.store, agent, position.next_seq)
        is_whole = position.is_whole
        for start in range(0, len(lines), LINES_OF_TRANSACTION):
            records: list[_NumberedRecord] = []
            for number, text in lines[start : start + LINES_OF_TRANSACTION]:
                with _map_errors(number):
                    line = orjson.loads(text)
                    if is_whole:
                        raise MalformedLine("the export has ended before this line")
                    if line == _END_LINE:
                        is_whole = True
                    else:
                        records.append(_NumberedRecord(number, await reader.read(line)))
            if records:
                await self._write_records(agent, records)
        return replace(position, is_whole=is_whole)

    async def _write_records(self, agent: Agent, records: list[_NumberedRecord]) -> None:
        """Writes records in one transaction, or one by one if it fails. Raises: BadRequest: it names the line."""
        try:
            await self.store.import_writer.write(agent, [record for _, record in records])
        except (WriteConflict, NotFound, StatementFailed):
            # One by one, so that an error names the line. A second try may succeed: a public id that was taken just
            # after it was found free is replaced by another one.
            for number, record in records:
                with _map_errors(number):
                    await self.store.import_writer.write(agent, [record])

    async def _begin_memory(self, scope: Scope, line: Any) -> ImportPosition:
        """Makes the memory that is filled; it cannot be found before the import has ended."""
        header = line.get("memory") if isinstance(line, dict) else None
        if not isinstance(header, dict) or header.get("format") not in READ_FORMATS:
            named_format = header.get("format") if isinstance(header, dict) else None
            formats = " or ".join(map(str, READ_FORMATS))
            raise _make_no_export_error(
                f"its first line must name the format {formats}, saw {named_format!r}"
            )
        check_header(header)
        agent = await self.store.import_writer.begin(self.store.agents.make_draft(scope))
        return ImportPosition(
            uid=agent.uid,
            next_seq=header["next_seq"],
            is_whole=False,
            name=header.get("uid"),
            created=float(header["created"]),
        )


def _make_forgotten_error() -> BadRequest:
    return BadRequest("This memory was forgotten while it was exported.", param="from")


def _make_no_export_error(reason: str) -> BadRequest:
    return BadRequest(f"This is no exported memory: {reason}.", param="lines")


@contextmanager
def _map_errors(line: int | None = None) -> Iterator[None]:
    """Raises BadRequest in place of the errors that a file may cause. line: the number of the line at fault."""
    place = "" if line is None else f"line {line}: "
    try:
        yield
    except orjson.JSONDecodeError as error:
        raise _make_no_export_error(f"line {line} is no JSON ({error.msg}, column {error.colno})") from error
    except (WriteConflict, NotFound) as error:
        raise BadRequest(f"This cannot be imported: {place}{error.message}.", param="lines") from error
    except StatementFailed as error:
        # The database has refused a field.
        raise _make_no_export_error(f"{place}{error.message}") from error
    except MalformedLine as error:
        raise _make_no_export_error(f"{place}{error}") from error
