"""Folders: memories that hold the text of files.

Agents search the folders that are attached to them by special tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

from msgspec import Struct

from gateway.agents.registry.memory_scope import draft_memory
from gateway.agents.registry.registry import Registry
from gateway.agents.registry.tool_registry import number_file_tools
from gateway.core import ids
from gateway.core.memory.file_text import decode_text, split_text
from gateway.errors import BodyTooLarge, Conflict, UnsupportedFile
from storage.commands import ForgetTarget
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound, StoreError
from storage.file_records import FileState, OnTakenName, StoredFile
from storage.listing import AgentEntry, Page
from storage.records import Agent
from storage.sql.store import Store

# The size of a file, at most.
MAX_BYTES = 10_000_000
_KIND = DefinitionKind.FOLDER
# Parts of a file that one transaction writes.
_PARTS_WRITTEN = 64

# What becomes of a file with a name that is taken.
Handling = Literal["skip", "error", "suffix", "replace"]
_ON_TAKEN_NAME: Mapping[Handling, OnTakenName] = {
    "skip": "refuse", "error": "refuse", "suffix": "rename", "replace": "replace"
}  # fmt: skip


class SentFile(Struct, frozen=True):
    """An uploaded file. Raises: BodyTooLarge."""

    name: str
    # The media type, as the client named it.
    type: str
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) > MAX_BYTES:
            raise BodyTooLarge(f"A file has at most {MAX_BYTES} bytes; this one has {len(self.data)}.")


class FileView(Struct, frozen=True):
    """A file as lists show it."""

    file: StoredFile
    # The number of passages that hold its text.
    parts: int
    # Its text; None: it was not asked for.
    content: str | None = None


class Folders:
    """Folders and their files. project: the caller's; a folder of another one is not found.

    Raises besides what the methods name: NotFound, WriteConflict, OverLimit, Unavailable, as the store does.
    """

    def __init__(self, store: Store, registry: Registry, now: Callable[[], float]) -> None:
        self._store = store
        self._files = store.files
        self._attached = store.attached_folders
        self._registry = registry
        self._now = now

    # -- folders

    async def create(self, project: str, name: str, body: dict[str, Any]) -> Definition:
        """Makes a folder. Raises: Conflict if a folder has that name."""
        if await self._store.definitions.find_by_name(project, _KIND, name):
            raise Conflict(f"There is a folder named {name!r} already.", param="name")
        memory = draft_memory(self._store, project, _KIND)
        _, folder = await self._store.definitions.create_memory(memory, _KIND, name, body, at=self._now())
        return folder

    async def get(self, project: str, uid: str) -> Definition:
        return await self._store.definitions.get(project, _KIND, uid)

    async def delete(self, folder: Definition) -> None:
        """Deletes a folder with its files; agents lose it."""
        agents = await self.list_agent_rows(folder)
        await self._attached.detach(agents, folder.memory_row, number_file_tools(), at=self._now())
        self._registry.clear_cache()
        await self._store.forgetting.forget(folder.memory_row, ForgetTarget(is_all=True))

    async def load_memory(self, folder: Definition) -> Agent:
        memories = await self._store.defined_agents.load_memories(folder.project, [folder.memory_row])
        if not memories:  # deleted meanwhile
            raise NotFound(f"there is no folder {folder.uid!r}")
        return memories[0]

    # -- agents

    async def list_agent_rows(self, folder: Definition) -> Sequence[int]:
        """Returns the agents that have a folder attached, by the rows of their memories."""
        return await self._store.attached.load_agents_with(folder.project, _KIND, folder.memory_row)

    async def attach(self, entry: AgentEntry, folder: Definition) -> None:
        """Gives an agent a folder, and the tools that read files.

        Raises: OverLimit if it has too many; Conflict for a profile's memory.
        """
        self._registry.require_definition(entry)
        await self._attached.attach(entry.agent.id, folder.memory_row, number_file_tools(), at=self._now())
        self._registry.clear_cache()

    async def detach(self, entry: AgentEntry, folder: Definition) -> None:
        """Takes a folder from an agent, and with the last one the tools that read files."""
        await self._attached.detach([entry.agent.id], folder.memory_row, number_file_tools(), at=self._now())
        self._registry.clear_cache()

    # -- files

    async def upload(
        self, folder: Definition, upload: SentFile, handling: Handling
    ) -> tuple[StoredFile, bool]:
        """Saves a file. handling: of a name that is taken. Returns the file, and whether it is a new one.

        Raises: UnsupportedFile if it is no text; Conflict if the name is taken.
        """
        text = decode_text(upload.data, upload.type)
        if text is None:
            raise UnsupportedFile(
                f"{upload.name!r} is no text that can be read. Send text in UTF-8, such as Markdown, code or CSV."
            )
        return await self.save(folder.memory_row, upload, text, handling)

    async def save(
        self, memory_row: int, upload: SentFile, text: str, handling: Handling
    ) -> tuple[StoredFile, bool]:
        """Saves a file with a known text, whatever its type, as `upload` does.

        memory_row: the row of the folder's memory.

        Raises: Conflict if the name is taken.
        """
        if handling in ("skip", "error"):
            namesake = await self._files.find_by_name(memory_row, upload.name)
            if namesake is not None and handling == "skip":
                return namesake, False
            if namesake is not None:
                raise Conflict(f"There is a file {upload.name!r} in this folder already.", param="file")
        draft = StoredFile(
            id=0, uid=ids.new_uid(), memory_row=memory_row, state=FileState.PARSING, bytes=len(upload.data),
            created=self._now(), type=upload.type, name=upload.name,
        )  # fmt: skip
        file = await self._files.add(draft, on_taken_name=_ON_TAKEN_NAME[handling])
        try:
            parts = split_text(text)
            while some_parts := list(islice(parts, _PARTS_WRITTEN)):
                await self._files.add_parts(file, some_parts)
            file = await self._files.complete(file)
        except BaseException:
            # What cannot be forgotten now is forgotten at the next start.
            with suppress(StoreError):
                await self.remove(file)
            raise
        if handling == "replace":
            # Only now, so that the earlier file or the new one is there whatever goes wrong.
            for earlier in await self._files.find_replaced(file):
                await self.remove(earlier)
        return file, True

    async def get_file(self, folder: Definition, uid: str) -> StoredFile:
        return await self._files.get(folder.memory_row, uid)

    async def view(
        self, folder: Definition, files: Sequence[StoredFile], *, with_content: bool = False
    ) -> Sequence[FileView]:
        """Returns files of a folder as lists show them."""
        counts = await self._files.count_parts(folder.memory_row, [file.id for file in files])
        return [
            FileView(
                file, counts.get(file.id, 0), await self._files.load_text(file) if with_content else None
            )
            for file in files
        ]

    async def load_attached(self, agent: Agent) -> Sequence[Definition]:
        """Returns the folders that an agent has attached, in order."""
        rows = await self._store.attached.load_targets(agent.id, _KIND)
        folders = await self._store.definitions.find_by_memories(_KIND, rows)
        return [folders[row] for row in rows if row in folders]

    async def list(self, folder: Definition, page: Page[int]) -> Sequence[StoredFile]:
        """Returns a page of a folder's files, by their rows."""
        return await self._files.list(folder.memory_row, page)

    async def remove(self, file: StoredFile) -> None:
        """Forgets a file; it is not found any more at once."""
        await self._store.forgetting.forget(file.memory_row, ForgetTarget(files=[file.id]))
