"""Folders and their files, as the agents API takes and shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.dialects.letta.body import Body, Kept, Maybe, refused
from gateway.dialects.letta.query import PageQuery
from gateway.dialects.letta.resources.model import embedding_config_json
from gateway.dialects.letta.shown import time_of
from storage.records import Definition, StoredFile

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_CLOSED = refused("Files are searched, not held in the prompt, so none is open.")


class UpdateFolder(Body):
    """A change of a folder; what is left out stays."""

    name: Maybe[_Name] = UNSET
    description: Maybe[str] = UNSET
    instructions: Kept[str] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    embedding_config: Kept[dict[str, Any]] = UNSET


class CreateFolder(UpdateFolder):
    """A new folder."""

    name: _Name
    embedding: Kept[str] = UNSET
    embedding_chunk_size: Kept[int] = UNSET


class FoldersQuery(PageQuery):
    """A page of folders. name: exactly."""

    name: Maybe[str] = UNSET


class FilesQuery(PageQuery):
    """A page of files. include_content: with the whole text of each."""

    include_content: bool = False


class FileQuery(Body):
    include_content: bool = False


class AgentFilesQuery(PageQuery):
    """A page of the files that an agent can search."""

    is_open: Annotated[bool | None, _CLOSED] | UnsetType = UNSET


class UploadQuery(Body):
    """An upload. duplicate_handling: of a name that is taken. name: another one for the file."""

    duplicate_handling: Literal["skip", "error", "suffix", "replace"] = "suffix"
    name: Maybe[str] = UNSET


class UploadForm(Body):
    """The fields beside a file: none."""


# What a folder keeps of what it was made or changed with.
KEPT_FIELDS = (
    "description",
    "instructions",
    "metadata",
    "embedding",
    "embedding_chunk_size",
    "embedding_config",
)


def folder_json(folder: Definition) -> dict[str, Any]:
    """Returns a folder."""
    body = folder.body
    return {
        "id": ids.named("source", folder.uid),
        "name": folder.name,
        "description": body.get("description"),
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "embedding_config": embedding_config_json(body.get("embedding_config"), body.get("embedding") or ""),
        "vector_db_provider": "native",
        "created_at": time_of(folder.created),
        "updated_at": time_of(folder.updated),
        "created_by_id": None,
        "last_updated_by_id": None,
    }


def file_json(folder: Definition, file: StoredFile, parts: int, content: str | None) -> dict[str, Any]:
    """Returns a file. parts: passages that hold its text."""
    is_whole = file.state == "completed"
    return {
        "id": ids.named("file", file.uid),
        "source_id": ids.named("source", folder.uid),
        "folder_id": ids.named("source", folder.uid),
        "file_name": f"{folder.name}/{file.name}",
        "original_file_name": file.name,
        "file_path": None,
        "file_type": file.type or None,
        "file_size": file.bytes,
        "file_creation_date": None,
        "file_last_modified_date": None,
        "processing_status": file.state,
        "error_message": None,
        "total_chunks": parts if is_whole else None,
        "chunks_embedded": parts if is_whole else None,
        "content": content,
        "created_at": time_of(file.created),
        "updated_at": time_of(file.created),
        "is_deleted": False,
    }


def agent_file_json(folder: Definition, file: StoredFile) -> dict[str, Any]:
    """Returns a file as one that an agent can search."""
    return {
        "id": ids.named("file", file.uid),
        "file_id": ids.named("file", file.uid),
        "file_name": f"{folder.name}/{file.name}",
        "folder_id": ids.named("source", folder.uid),
        "folder_name": folder.name,
        "is_open": False,
        "last_accessed_at": None,
        "visible_content": None,
        "start_line": None,
        "end_line": None,
    }
