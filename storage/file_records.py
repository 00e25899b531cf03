"""Files of folders, as frozen values."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct

# The most files of a folder. Chosen, not measured.
MAX_FOLDER_FILES = 1000

# The ways to treat a new file with the name of another: the new file is refused, gets a number, or replaces the other.
OnTakenName = Literal["refuse", "rename", "replace"]


class FileState(StrEnum):
    """The state of a file's text, which is being written or complete."""

    PARSING = "parsing"
    COMPLETED = "completed"


class StoredFile(Struct, frozen=True):
    """A file of a folder."""

    # The row of the file.
    id: int
    # The public id of the file.
    uid: str
    # The row of the folder's memory, whose passages have the text.
    memory_row: int
    # The state of the text.
    state: FileState
    # The size of the uploaded file, whose text is stored as passages.
    size_bytes: int
    # The time of the upload, in seconds since the epoch.
    created: float
    # The media type of the uploaded file.
    media_type: str
    # The name in the folder.
    name: str
