"""Files of folders. A folder is a memory; a file's text lies in its passages, which are written a page at a time."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from msgspec.structs import replace

from storage.database import Connection, Row
from storage.errors import NotFound, OverLimit, WriteConflict
from storage.listing import Page
from storage.records import StoredFile
from storage.sql.agents import find_agent_by_id
from storage.sql.group import as_method, long_reads, reads, writes
from storage.sql.growth import GrowingGroup
from storage.sql.passages import insert_passage
from storage.sql.statements import load, rows_of

SQL = load("agents_api/folder_files.sql")

# The states of a file: its text is being written, or is there.
PARSING, COMPLETED = "parsing", "completed"
MAX_FILES = 1000  # of a folder
MAX_BYTES = 100_000_000  # of all files of a folder
_PARTS = 256  # of a file's text that are read at once


class FileRows(NamedTuple):
    """The rows of a file and of its folder."""

    memory_row: int
    row: int


class _FolderSize(NamedTuple):
    """How many files a folder has, and their bytes together."""

    files: int
    bytes: int


async def add_file(
    connection: Connection, draft: StoredFile, *, renames: bool = False, replaces: bool = False
) -> StoredFile:
    """Adds a file without its text, which is written later.

    renames: a name that is taken gets a number.
    replaces: files with the name are not counted, since they will be removed.

    Raises: WriteConflict if the name is taken; OverLimit; NotFound if there is no such folder.
    """
    await connection.lock(draft.memory_row)
    if await find_agent_by_id(connection, draft.memory_row) is None:
        raise NotFound("there is no such folder")
    size = await _measure_folder(connection, draft.memory_row, draft.name if replaces else None)
    if size.files >= MAX_FILES:
        raise OverLimit(f"a folder has at most {MAX_FILES} files")
    if size.bytes + draft.bytes > MAX_BYTES:
        raise OverLimit(
            f"the files of a folder have at most {MAX_BYTES} bytes together, and {size.bytes} are there"
        )
    name = draft.name
    if not replaces:
        names = {row[0] for row in await connection.rows(SQL["names"], (draft.memory_row,))}
        if name in names and not renames:
            raise WriteConflict(f"there is a file {name!r} in this folder already")
        path, number = PurePosixPath(draft.name), 0
        while name in names:
            number += 1
            name = str(path.with_name(f"{path.stem}_({number}){path.suffix}"))
    file = replace(draft, name=name)
    values = (file.uid, file.memory_row, file.state, file.bytes, file.created, file.type, file.name)
    return replace(file, id=await connection.value(SQL["insert"], values))


class Files(GrowingGroup):
    """Files of folders. memory_row: the folder's row; nothing of another folder is found."""

    add = writes(as_method(add_file))

    async def load_text(self, file: StoredFile) -> str:
        """Returns the whole text of a file, which is read a page at a time."""
        parts: builtins.list[str] = []
        after = 0
        while some := await self._load_parts(file, after):
            parts += [row[1] for row in some]
            after = some[-1][0]
        return "".join(parts)

    @long_reads
    async def _load_parts(self, connection: Connection, file: StoredFile, after: int) -> builtins.list[Row]:
        return await connection.rows(SQL["parts"], (file.id, file.memory_row, after, _PARTS))

    async def write(self, file: StoredFile, texts: Sequence[str]) -> None:
        """Adds parts after those that are there. Raises: NotFound if the file or its folder is gone."""

        async def write(connection: Connection) -> None:
            await connection.lock(file.memory_row)
            if await connection.row(SQL["get"], (file.uid, file.memory_row)) is None:
                raise NotFound(f"there is no file {file.uid!r}")
            for text in texts:
                await insert_passage(connection, file.memory_row, text, at=file.created, file=file.id)

        await self._grow(file.memory_row, len(texts), self._database.bulk(write))

    @writes
    async def complete(self, connection: Connection, file: StoredFile) -> StoredFile:
        """Marks its text as complete. Raises: NotFound if it is gone."""
        if not await connection.run(SQL["set_state"], (COMPLETED, file.id, file.memory_row)):
            raise NotFound(f"there is no file {file.uid!r}")
        return replace(file, state=COMPLETED)

    @reads
    async def get(self, connection: Connection, memory_row: int, uid: str) -> StoredFile:
        """Returns the file with this public name. Raises: NotFound."""
        row = await connection.row(SQL["get"], (uid, memory_row))
        if row is None:
            raise NotFound(f"there is no file {uid!r} in this folder")
        return _file(row)

    @reads
    async def find_by_name(self, connection: Connection, memory_row: int, name: str) -> StoredFile | None:
        """Returns the file with this name; the oldest where another is to replace it."""
        row = await connection.row(SQL["named"], (memory_row, name))
        return None if row is None else _file(row)

    @reads
    async def find_replaced(self, connection: Connection, file: StoredFile) -> builtins.list[StoredFile]:
        """Returns the older files with the name of one."""
        files = [_file(row) for row in await connection.rows(SQL["named"], (file.memory_row, file.name))]
        return [namesake for namesake in files if namesake.id < file.id]

    @reads
    async def list(
        self, connection: Connection, memory_row: int, page: Page[int]
    ) -> builtins.list[StoredFile]:
        """Returns a page of a folder's files. The cursors of the page are their rows."""
        rows = await connection.rows(SQL[f"list_{page.direction}"], (memory_row, *page.bounds, page.limit))
        return [_file(row) for row in rows]

    @long_reads
    async def list_of_folders(
        self, connection: Connection, folder_rows: Sequence[int]
    ) -> builtins.list[StoredFile]:
        """Returns the files of these folders that are whole, in the order of the folders; of one, the oldest first."""
        files = [_file(row) for row in await rows_of(connection, SQL["of_folders"], folder_rows)]
        order = {row: index for index, row in enumerate(folder_rows)}
        return sorted(
            (file for file in files if file.state == COMPLETED),
            key=lambda file: (order[file.memory_row], file.id),
        )

    @reads
    async def find_by_ids(self, connection: Connection, ids: Sequence[int]) -> dict[int, StoredFile]:
        """Returns files by their rows, as far as they are there."""
        return {row[0]: _file(row) for row in await rows_of(connection, SQL["several"], ids)}

    @reads
    async def count_parts(
        self, connection: Connection, memory_row: int, files: Sequence[int]
    ) -> dict[int, int]:
        """Returns of how many parts the text of each of these files is."""
        return {row[0]: row[1] for row in await rows_of(connection, SQL["part_count"], files, memory_row)}

    @reads
    async def list_unfinished(
        self, connection: Connection, before: float, limit: int = 100
    ) -> builtins.list[FileRows]:
        """Returns the files that were begun before a time and have no complete text."""
        rows = await connection.rows(SQL["unfinished"], (PARSING, before, limit))
        return [FileRows(*row) for row in rows]


async def _measure_folder(connection: Connection, memory_row: int, replaced: str | None) -> _FolderSize:
    """Returns the size of a folder without the files with a name that will be replaced."""
    row = await connection.row(SQL["extent"], (memory_row, replaced))
    assert row is not None  # sums have one row
    return _FolderSize(*row)


def _file(row: Row) -> StoredFile:
    return StoredFile(*row)
