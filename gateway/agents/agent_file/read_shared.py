"""Reads the parts that the agents of a file share: groups, blocks and folders, and the uids that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.agent_file.file_structs import FILE_FIELD, File, FileGroupConfig
from gateway.agents.api.blocks import CreateBlock, make_block_draft
from gateway.agents.core.agent_file import PortableFile, PortableFolder
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import convert
from gateway.core import ids
from gateway.core.json_object import without_none
from gateway.core.memory.file_text import clean_file_name
from gateway.validation import Fault, Path
from storage.listing import BlockDraft

_BLOCK_FIELDS = ("label", "value", "description", "limit", "read_only", "metadata", "tags", "hidden")
_FOLDER_FIELDS = ("description", "instructions", "metadata", "embedding_config")


def read_retained_uids(file: File) -> dict[str, str]:
    """Returns the uids of a moved file's agents, blocks and folders, by their ids. Raises: Unprocessable."""
    parts = {
        "agents": [str(agent.get("id")) for agent in file.agents],
        "blocks": [str(block.get("id")) for block in file.blocks],
        "sources": [source.id for source in file.sources],
    }
    return {
        part_id: read_uid(part_id, (*FILE_FIELD, part, n, "id"))
        for part, part_ids in parts.items()
        for n, part_id in enumerate(part_ids)
    }


def read_uid(part_id: str, path: Path) -> str:
    """Returns the uid in an id that stays. path: the path of the id in the request. Raises: Unprocessable."""
    uid = ids.parse_uid(part_id.partition("-")[0], part_id)
    if uid is None:
        raise Unprocessable(Fault(path, "Expected an id of Letta's: a kind and a UUID", value=part_id[:100]))
    return uid


def read_references(part_ids: Sequence[str] | None, parts: Mapping[str, Any], path: Path) -> list[str]:
    """Returns ids of parts of the file, each once. Raises: Unprocessable if the file lacks a part with such an id.

    parts: the parts of the file, by id.
    path: the path of the ids in the request, for errors.
    """
    for n, part_id in enumerate(part_ids or ()):
        _check_reference(part_id, parts, (*path, n))
    return list(dict.fromkeys(part_ids or ()))


def _check_reference(part_id: str, parts: Mapping[str, Any], path: Path) -> None:
    """Raises: Unprocessable if the file lacks the part with an id. path: the path of the id in the request."""
    if part_id not in parts:
        raise Unprocessable(Fault(path, "This names nothing in the file", value=part_id[:100]))


class FileGroups(Struct, frozen=True):
    """The groups of a file."""

    # The groups of sleeptime agents, by the ids of the agents that they read.
    sleeptimes: Mapping[str, FileGroupConfig]
    # The ids of the sleeptime agents.
    sleeptime_agent_ids: Set[str]
    # The names of groups of other kinds, which are left out.
    left_out: Sequence[str]


def read_groups(file: File) -> FileGroups:
    """Returns the groups of a file, of which the gateway has only those of sleeptime agents."""
    agent_ids = {str(agent.get("id")) for agent in file.agents}
    sleeptimes: dict[str, FileGroupConfig] = {}
    sleeptime_agent_ids: set[str] = set()
    left_out: list[str] = []
    for n, group in enumerate(file.groups):
        config = group.manager_config or FileGroupConfig()
        manager = config.manager_agent_id
        is_sleeptime = config.manager_type in ("sleeptime", "voice_sleeptime")
        if is_sleeptime and manager is not None and manager in agent_ids:
            sleeptimes[manager] = config
            sleeptime_agent_ids.update(agent_ids & {*group.agent_ids} - {manager})
        else:
            left_out.append(f"groups.{n}")
    return FileGroups(sleeptimes, sleeptime_agent_ids, left_out)


def read_block(raw: dict[str, Any], n: int) -> BlockDraft:
    """Returns the block with the index n in the file. Raises: Unprocessable."""
    fields = {name: raw[name] for name in _BLOCK_FIELDS if raw.get(name) is not None}
    # A file has all of a block, so a block without a description gets no default description.
    fields.setdefault("description", "")
    draft = make_block_draft(convert(fields, CreateBlock, (*FILE_FIELD, "blocks", n)))
    # Letta 0.16 prints limits and does not enforce them.
    limit = max(draft.block.limit, len(draft.block.value))
    return replace(draft, block=replace(draft.block, limit=limit))


def read_folders(file: File, retained_uids: Mapping[str, str]) -> dict[str, PortableFolder]:
    """Returns the folders of a file, by their ids in the file, with the texts of their files. Raises: Unprocessable.

    retained_uids: the uids that stay, by ids in the file.
    """
    files: dict[str, list[PortableFile]] = {source.id: [] for source in file.sources}
    for n, entry in enumerate(file.files):
        _check_reference(entry.source_id, files, (*FILE_FIELD, "files", n, "source_id"))
        name = clean_file_name(entry.original_file_name or entry.file_name or "") or entry.id
        if entry.content is not None:
            files[entry.source_id].append(PortableFile(name, entry.file_type or "text/plain", entry.content))
    folders = {}
    for source in file.sources:
        body = without_none({name: getattr(source, name) for name in _FOLDER_FIELDS})
        folders[source.id] = PortableFolder(source.name, body, files[source.id], retained_uids.get(source.id))
    return folders
