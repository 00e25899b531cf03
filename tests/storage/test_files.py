"""Files of folders: their names, limits and parts; and what of them is left when they go."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from gateway.core.ids import new_uid
from gateway.run.background.retention import YOUNG_S, Retention
from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.errors import LimitExceeded, NotFound, WriteConflict
from storage.file_records import FileState, StoredFile
from storage.forget_commands import ForgetTarget
from storage.listing import Page
from storage.records import Agent, Scope
from storage.sql.agents_api.folder_files import MAX_FOLDER_BYTES, add_file
from storage.sql.store import Store
from tests.storage.conftest import Holds, OpenStore
from tests.stored import keeps_emptied_rows, rows

DAY = 86_400.0


async def folder(store: Store, name: str = "notes") -> Agent:
    draft = store.agents.get_draft(Scope("default", "@", f"folder:{name}"))
    made, _ = await store.definitions.create_memory(draft, DefinitionKind.FOLDER, name, {}, at=1.0)
    return made


def draft(memory: Agent, name: str, *, size: int = 1, at: float = 5.0) -> StoredFile:
    return StoredFile(0, new_uid(), memory.id, FileState.PARSING, size, at, "text/plain", name)


async def save(store: Store, memory: Agent, name: str, *texts: str, at: float = 5.0) -> StoredFile:
    file = await store.files.add(draft(memory, name, at=at))
    await store.files.add_parts(file, texts)
    return await store.files.complete(file)


async def test_files_are_numbered_where_a_name_is_taken(store: Store) -> None:
    notes, other = await folder(store), await folder(store, "other")
    names = [
        (await store.files.add(draft(notes, "a.md", at=n), on_taken_name="rename")).name
        for n in (1.0, 2.0, 3.0)
    ]
    assert names == ["a.md", "a_(1).md", "a_(2).md"]
    with pytest.raises(WriteConflict, match="already"):
        await store.files.add(draft(notes, "a.md", at=4.0))
    assert (await store.files.add(draft(other, "a.md"))).name == "a.md"
    assert [f.name for f in await store.files.list_page(notes.id, Page(limit=2))] == ["a_(2).md", "a_(1).md"]
    first = await store.files.find_by_name(notes.id, "a.md")
    assert first is not None
    with pytest.raises(NotFound):
        await store.files.get(other.id, first.uid)


async def test_a_name_that_many_files_have_takes_no_more_statements(store: Store) -> None:
    notes, counts = await folder(store), list[int]()

    async def add(connection: Connection) -> None:
        watched = Mock(wraps=connection)
        await add_file(watched, draft(notes, "a.md"), on_taken_name="rename")
        counts.append(len(watched.mock_calls))

    for _ in range(4):
        await store.database.write(add)
    assert counts == counts[:1] * 4


async def test_files_that_come_at_once_have_names_and_limits_all_the_same(store: Store) -> None:
    notes, full = await folder(store), await folder(store, "full")
    made = await asyncio.gather(
        *(store.files.add(draft(notes, "a.md"), on_taken_name="rename") for _ in range(6)),
        *(store.files.add(draft(full, str(n), size=MAX_FOLDER_BYTES)) for n in range(4)),
        return_exceptions=True,
    )
    assert sorted(file.name for file in made[:6]) == ["a.md", *(f"a_({n}).md" for n in range(1, 6))]
    assert sorted(type(each).__name__ for each in made[6:]) == [*["LimitExceeded"] * 3, "StoredFile"]


async def test_the_files_of_a_folder_have_so_many_bytes_at_most(store: Store) -> None:
    notes = await folder(store)
    await store.files.add(draft(notes, "a", size=MAX_FOLDER_BYTES))
    with pytest.raises(LimitExceeded, match="bytes together"):
        await store.files.add(draft(notes, "b", size=1))
    # The one that it replaces is removed later.
    await store.files.add(draft(notes, "a", size=MAX_FOLDER_BYTES), on_taken_name="replace")
    with pytest.raises(NotFound):
        await store.files.add(replace(draft(notes, "b"), memory_row=999))


async def test_a_forgotten_file_is_gone_with_its_parts_and_its_neighbours_stay(
    store: Store, holds: Holds
) -> None:
    notes = await folder(store)
    gone = await save(store, notes, "zqgonenamex", "zqgonex one", "zqgonex two")
    kept = await save(store, notes, "zqkeptnamex", "zqkeptx one", "zqkeptx two")
    while await store.search_index.advance(notes.id):
        pass
    begun = await store.forgetting.begin(notes.id, ForgetTarget(file_rows=[gone.id]))
    with pytest.raises(NotFound):
        await store.files.get(notes.id, gone.uid)
    with pytest.raises(NotFound):
        await store.files.add_parts(gone, ["zqgonex three"])
    assert await store.forgetting.run(begun)
    assert await store.forgetting.sweep()
    assert [word for word in ("gone", "gonename", "kept", "keptname") if holds(f"zq{word}x".encode())] == [
        "kept",
        "keptname",
    ]
    assert await store.files.load_text(kept) == "zqkeptx onezqkeptx two"
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    assert await store.files.count_parts(notes.id, [gone.id, kept.id]) == {kept.id: 2}
    other = await folder(store, "other")
    await store.forgetting.run(await store.forgetting.begin(other.id, ForgetTarget(file_rows=[kept.id])))
    assert await store.files.get(notes.id, kept.uid) == kept


async def test_files_that_are_too_old_go(store: Store, holds: Holds) -> None:
    notes = await folder(store)
    await save(store, notes, "zqoldx", "zqoldtextx", at=5.0)
    new = await save(store, notes, "zqnewx", "zqnewtextx", at=10 * DAY)
    await Retention(store, {"default": 1.0}, lambda: 10 * DAY + 1).forget_old()
    assert [word for word in ("old", "oldtext", "new", "newtext") if holds(f"zq{word}x".encode())] == [
        "new",
        "newtext",
    ]
    assert await store.files.list_page(notes.id, Page()) == [new]
    assert await keeps_emptied_rows(store) is not store.database.is_shared


async def test_an_upload_that_a_dead_process_left_goes_at_the_next_start(
    open_store: OpenStore, holds: Holds
) -> None:
    store = await open_store()
    notes = await folder(store)
    cut = await store.files.add(draft(notes, "zqcutx"))
    await store.files.add_parts(cut, ["zqcuttextx"])
    whole = await save(store, notes, "whole", "text", at=6.0)
    assert await store.files.list_of_folders([notes.id]) == [whole]
    # It may be under way, in another process or, whatever the clock shows, in this one.
    await Retention(store, {}, lambda: 9.0 if store.database.is_shared else 9.0 + YOUNG_S).forget_old()
    assert holds(b"zqcutx")
    await store.close()
    store = await open_store()
    # A file has no other process: its clock may have been put back.
    await Retention(store, {}, lambda: 9.0 + YOUNG_S if store.database.is_shared else 1.0).forget_old()
    assert not holds(b"zqcutx")
    assert not holds(b"zqcuttextx")
    assert await store.files.list_page(notes.id, Page()) == [whole]
    assert await rows(store, "SELECT count(*) FROM passages WHERE file IS NOT NULL") == [(1,)]
