"""The files in folders. The text of a file is saved in passages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, NamedTuple

from msgspec import Struct

from gateway.core import ids
from gateway.core.memory.file_text import decode_text, split_text
from gateway.errors import BodyTooLarge, Conflict, UnsupportedFile
from storage.definition_records import Definition
from storage.errors import StoreError
from storage.file_records import FileState, OnTakenName, StoredFile
from storage.forget_commands import ForgetTarget
from storage.sql.store import Store

# The most bytes of a file.
MAX_BYTES = 10_000_000
# The most parts of a file that one transaction writes.
_PARTS_PER_WRITE = 64

# The way of handling a file with a name that is taken.
DuplicateHandling = Literal["skip", "error", "suffix", "replace"]
_ON_TAKEN_NAME: Mapping[DuplicateHandling, OnTakenName] = {
    "skip": "refuse",
    "error": "refuse",
    "suffix": "rename",
    "replace": "replace",
}


class UploadedFile(Struct, frozen=True):
    """An uploaded file. Raises: BodyTooLarge."""

    # The name that the file gets in the folder, unless another file has it.
    name: str
    # The media type that the client has sent.
    media_type: str
    # The bytes of the file.
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) > MAX_BYTES:
            raise BodyTooLarge(f"A file has at most {MAX_BYTES} bytes; this one has {len(self.data)}.")


class SavedFile(NamedTuple):
    """The outcome of an upload."""

    # The new file, or the file that the folder had.
    file: StoredFile
    # True: the file is new; False: the folder had a file of this name, which stays as it is.
    is_new: bool


class FileView(Struct, frozen=True):
    """A file as lists show it."""

    # The stored file, without its text.
    file: StoredFile
    # The number of passages with the text of the file.
    parts: int
    # The text of the file; None: the text was not read.
    content: str | None = None


class FolderContents(Struct, frozen=True):
    """Saves, shows and forgets the files in folders.

    Besides the errors that a method names, it raises the errors of `Folders`.
    """

    # The store with the files.
    store: Store
    # Returns seconds since the epoch.
    now: Callable[[], float]

    async def upload(
        self, folder: Definition, upload: UploadedFile, handling: DuplicateHandling
    ) -> SavedFile:
        """Saves a file.

        handling: the way of handling a name that is taken.

        Raises: UnsupportedFile if the file is no text; Conflict if the name is taken.
        """
        text = decode_text(upload.data, upload.media_type)
        if text is None:
            raise UnsupportedFile(
                f"{upload.name!r} is no text that can be read. Send text in UTF-8, such as Markdown, code or CSV."
            )
        return await self.save(folder.memory_row, upload, text, handling)

    async def save(
        self, memory_row: int, upload: UploadedFile, text: str, handling: DuplicateHandling
    ) -> SavedFile:
        """Saves a file with a known text, whatever its type, as `upload` does.

        memory_row: the row of the folder's memory.

        Raises: Conflict if the name is taken.
        """
        if handling in ("skip", "error"):
            namesake = await self.store.files.find_by_name(memory_row, upload.name)
            if namesake is not None and handling == "skip":
                return SavedFile(namesake, is_new=False)
            if namesake is not None:
                raise Conflict(f"There is a file {upload.name!r} in this folder already.", param="file")
        draft = StoredFile(
            id=0, uid=ids.new_uid(), memory_row=memory_row, state=FileState.PARSING, size_bytes=len(upload.data),
            created=self.now(), media_type=upload.media_type, name=upload.name,
        )  # fmt: skip
        file = await self.store.files.add(draft, on_taken_name=_ON_TAKEN_NAME[handling])
        try:
            parts = split_text(text)
            while batch := list(islice(parts, _PARTS_PER_WRITE)):
                await self.store.files.add_parts(file, batch)
            file = await self.store.files.complete(file)
        except BaseException:
            # A file that cannot be forgotten now is forgotten at the next start.
            with suppress(StoreError):
                await self.remove(file)
            raise
        if handling == "replace":
            # Only now, so that the folder has the earlier file or the new file even after a fault.
            for replaced_file in await self.store.files.find_replaced(file):
                await self.remove(replaced_file)
        return SavedFile(file, is_new=True)

    async def load_views(
        self, folder: Definition, files: Sequence[StoredFile], *, includes_content: bool = False
    ) -> Sequence[FileView]:
        """Returns files of a folder as lists show them. includes_content: True if their texts are read, too."""
        counts = await self.store.files.count_parts(folder.memory_row, [file.id for file in files])
        return [
            FileView(
                file,
                counts.get(file.id, 0),
                await self.store.files.load_text(file) if includes_content else None,
            )
            for file in files
        ]

    async def remove(self, file: StoredFile) -> None:
        """Forgets a file. At once no caller finds it any more."""
        await self.store.forgetting.forget(file.memory_row, ForgetTarget(file_rows=[file.id]))
