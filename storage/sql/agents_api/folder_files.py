"""The files of folders. A folder is a memory; its passages hold the texts of its files, each in parts."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from itertools import chain, count
from pathlib import PurePosixPath
from typing import NamedTuple

from msgspec.structs import replace

from storage.database import Connection, Database, Row
from storage.errors import LimitExceeded, NotFound, WriteConflict
from storage.file_records import MAX_FOLDER_FILES, FileState, OnTakenName, StoredFile
from storage.listing import Page
from storage.sql.agents import find_agent_by_id
from storage.sql.group import long_reads, reads, writes
from storage.sql.growth import GrowingGroup, Growth
from storage.sql.passages import insert_passage
from storage.sql.statements import load, load_column, load_rows

SQL = load("agents_api/folder_files.sql")

# The most bytes of all files of a folder.
MAX_FOLDER_BYTES = 100_000_000
# The most parts of a text that one statement reads.
_PARTS_PER_READ = 256
# The most files without a complete text that are listed at once. Not measured.
_MAX_UNFINISHED = 100


class FileRows(NamedTuple):
    """The rows of a file and of its folder."""

    # The row of the folder's memory.
    memory_row: int
    # The row of the file.
    file_row: int


class _FolderSize(NamedTuple):
    """The size of a folder."""

    # The number of its files.
    file_count: int
    # The sizes of all its files together.
    size_bytes: int


async def add_file(
    connection: Connection, draft: StoredFile, *, on_taken_name: OnTakenName = "refuse"
) -> StoredFile:
    """Adds a file without its text, which is written later.

    The limits do not count a file that is to be replaced. The caller removes that file when the new one is complete.

    Raises: WriteConflict if the name is taken and `on_taken_name` is "refuse"; LimitExceeded; NotFound if there is no
        such folder.
    """
    await connection.lock(draft.memory_row)
    if await find_agent_by_id(connection, draft.memory_row) is None:
        raise NotFound("there is no such folder")
    size = await _measure_folder(
        connection, draft.memory_row, draft.name if on_taken_name == "replace" else None
    )
    if size.file_count >= MAX_FOLDER_FILES:
        raise LimitExceeded(f"a folder has at most {MAX_FOLDER_FILES} files")
    if size.size_bytes + draft.size_bytes > MAX_FOLDER_BYTES:
        raise LimitExceeded(
            f"the files of a folder have at most {MAX_FOLDER_BYTES} bytes together, and {size.size_bytes} are there"
        )
    file = draft
    if on_taken_name != "replace":
        taken_names = set(await load_column(connection, SQL["names"], (draft.memory_row,)))
        if draft.name in taken_names and on_taken_name == "refuse":
            raise WriteConflict(f"there is a file {draft.name!r} in this folder already")
        file = replace(draft, name=_choose_free_name(draft.name, taken_names))
    values = (
        file.uid, file.memory_row, file.state, file.size_bytes, file.created, file.media_type, file.name
    )  # fmt: skip
    return replace(file, id=await connection.fetch_value(SQL["insert"], values))


class Files(GrowingGroup):
    """Files of folders. A method with the row of a folder finds nothing of another folder."""

    def __init__(self, database: Database, growth: Growth) -> None:
        super().__init__(database, growth)
        # The row of the first file that this process has added.
        self._first_row = math.inf

    @writes
    async def add(
        self, connection: Connection, draft: StoredFile, *, on_taken_name: OnTakenName = "refuse"
    ) -> StoredFile:
        """Adds a file without its text, as `add_file` does."""
        file = await add_file(connection, draft, on_taken_name=on_taken_name)
        self._first_row = min(self._first_row, file.id)
        return file

    async def load_text(self, file: StoredFile) -> str:
        """Returns the whole text of a file, which is read a page at a time."""
        parts: list[str] = []
        after_row = 0
        while rows := await self._load_parts(file, after_row):
            parts += [text for _, text in rows]
            after_row = rows[-1][0]
        return "".join(parts)

    @long_reads
    async def _load_parts(self, connection: Connection, file: StoredFile, after_row: int) -> list[Row]:
        """Returns a page of the parts of a text, each as the row of its passage and the part."""
        return await connection.fetch_rows(
            SQL["parts"], (file.id, file.memory_row, after_row, _PARTS_PER_READ)
        )

    async def add_parts(self, file: StoredFile, texts: Sequence[str]) -> None:
        """Adds parts to the end of a file's text. Raises: NotFound if the file or its folder is gone."""

        async def insert_parts(connection: Connection) -> None:
            await connection.lock(file.memory_row)
            if await connection.fetch_row(SQL["get"], (file.uid, file.memory_row)) is None:
                raise NotFound(f"there is no file {file.uid!r}")
            for text in texts:
                await insert_passage(connection, file.memory_row, text, at=file.created, file=file.id)

        await self._grow(file.memory_row, len(texts), self._database.bulk_write(insert_parts))

    @writes
    async def complete(self, connection: Connection, file: StoredFile) -> StoredFile:
        """Marks a file's text as complete. Raises: NotFound if the file is gone."""
        if not await connection.run(SQL["set_state"], (FileState.COMPLETED, file.id, file.memory_row)):
            raise NotFound(f"there is no file {file.uid!r}")
        return replace(file, state=FileState.COMPLETED)

    @reads
    async def get(self, connection: Connection, memory_row: int, uid: str) -> StoredFile:
        """Returns the file with this public id. Raises: NotFound."""
        row = await connection.fetch_row(SQL["get"], (uid, memory_row))
        if row is None:
            raise NotFound(f"there is no file {uid!r} in this folder")
        return _make_file(row)

    @reads
    async def find_by_name(self, connection: Connection, memory_row: int, name: str) -> StoredFile | None:
        """Returns the file with this name, the oldest while a new file is to replace it; None: no file has the name."""
        row = await connection.fetch_row(SQL["find_by_name"], (memory_row, name))
        return None if row is None else _make_file(row)

    @reads
    async def find_replaced(self, connection: Connection, file: StoredFile) -> list[StoredFile]:
        """Returns the older files of the folder with the same name as a file."""
        files = [
            _make_file(row)
            for row in await connection.fetch_rows(SQL["find_by_name"], (file.memory_row, file.name))
        ]
        return [namesake for namesake in files if namesake.id < file.id]

    @reads
    async def list_page(self, connection: Connection, memory_row: int, page: Page[int]) -> list[StoredFile]:
        """Returns a page of a folder's files. The cursors of the page are their rows."""
        rows = await connection.fetch_rows(
            SQL[f"list_{page.direction}"], (memory_row, *page.bounds, page.limit)
        )
        return [_make_file(row) for row in rows]

    @long_reads
    async def list_of_folders(self, connection: Connection, folder_rows: Sequence[int]) -> list[StoredFile]:
        """Returns the files of some folders that have a complete text.

        The files are in the order of the folders, and within a folder oldest first.
        """
        files = [_make_file(row) for row in await load_rows(connection, SQL["list_of_folders"], folder_rows)]
        places = {folder_row: place for place, folder_row in enumerate(folder_rows)}
        return sorted(
            (file for file in files if file.state is FileState.COMPLETED),
            key=lambda file: (places[file.memory_row], file.id),
        )

    @reads
    async def load_by_rows(self, connection: Connection, file_rows: Sequence[int]) -> dict[int, StoredFile]:
        """Returns the files of these rows that are stored, by their rows."""
        return {
            row[0]: _make_file(row) for row in await load_rows(connection, SQL["load_by_rows"], file_rows)
        }

    @reads
    async def count_parts(
        self, connection: Connection, memory_row: int, file_rows: Sequence[int]
    ) -> dict[int, int]:
        """Returns the number of parts of each file's text, by the file's row; a file without parts is missing."""
        return {
            row[0]: row[1] for row in await load_rows(connection, SQL["count_parts"], file_rows, memory_row)
        }

    @reads
    async def list_unfinished(self, connection: Connection, before: float) -> list[FileRows]:
        """Returns files without a complete text, left by a process that has died, at most `_MAX_UNFINISHED`.

        before: the time before which the upload of such a file began, if processes share the database; otherwise it is
            ignored.
        """
        is_shared = self._database.is_shared
        values = (FileState.PARSING, before if is_shared else math.inf, _MAX_UNFINISHED)
        rows = [FileRows(*row) for row in await connection.fetch_rows(SQL["list_unfinished"], values)]
        # After the read, so that each file that was read has set `_first_row`.
        return [row for row in rows if is_shared or row.file_row < self._first_row]


async def _measure_folder(connection: Connection, memory_row: int, replaced_name: str | None) -> _FolderSize:
    """Returns the size of a folder. replaced_name: the name of the files that do not count; None: all files count."""
    row = await connection.fetch_row(SQL["measure_folder"], (memory_row, replaced_name))
    assert row is not None  # sums have one row
    return _FolderSize(*row)


def _choose_free_name(name: str, taken_names: Container[str]) -> str:
    """Returns a name that is not taken: the name, or the first one free of `name_(1).md`, `name_(2).md`, ..."""
    path = PurePosixPath(name)
    numbered_names = (str(path.with_name(f"{path.stem}_({number}){path.suffix}")) for number in count(1))
    return next(candidate for candidate in chain([name], numbered_names) if candidate not in taken_names)


def _make_file(row: Row) -> StoredFile:
    file_row, uid, memory_row, state, *others = row
    return StoredFile(file_row, uid, memory_row, FileState(state), *others)
