"""Folders, their files, and the agents that have folders attached."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._paging import OLDEST_FIRST, cut_page, read_page, read_page_at, read_ref
from gateway.agents.api._query import AgentsOfQuery, PageQuery, PassagesQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, uid_in
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.model import render_embedder
from gateway.agents.api.passages import render_passage
from gateway.agents.files.folders import FileView, Folders, SentFile
from gateway.agents.registry.archives import Archives
from gateway.agents.wire.sent_values import sent_fields, sent_or_none
from gateway.agents.wire.shown_values import render_time
from gateway.agents.wire.struct_fields import Body, Form, Maybe, NoEffect, UrlQuery, refused
from gateway.core import ids
from gateway.core.memory.file_text import clean_file_name
from gateway.errors import BadRequest, Conflict, UnknownId
from storage.listing import PassageFilter
from storage.records import Definition, DefinitionKind, FileState, StoredFile

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_KIND: Final = DefinitionKind.FOLDER
_NO_OPEN_FILES = refused("Files are searched, not held in the prompt, so none is open.")


class UpdateFolder(Body):
    """A change of a folder; what is left out stays."""

    name: Maybe[_Name] = UNSET
    description: Maybe[str] = UNSET
    instructions: NoEffect[str] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    embedding_config: NoEffect[dict[str, Any]] = UNSET


class CreateFolder(UpdateFolder):
    """A new folder."""

    name: _Name
    embedding: NoEffect[str] = UNSET
    embedding_chunk_size: NoEffect[int] = UNSET


class FoldersQuery(PageQuery):
    """A page of folders."""

    name: Maybe[str] = UNSET  # the whole name


class FilesQuery(PageQuery):
    """A page of files."""

    include_content: bool = False  # the text of each file


class FileQuery(UrlQuery):
    """One file."""

    include_content: bool = False  # the whole text


class AgentFilesQuery(PageQuery):
    """A page of the files that an agent can search."""

    is_open: Annotated[bool | None, _NO_OPEN_FILES] | UnsetType = UNSET


class UploadQuery(UrlQuery):
    """An upload of a file."""

    # What happens if the folder has a file of this name.
    duplicate_handling: Literal["skip", "error", "suffix", "replace"] = "suffix"
    # The name of the file in the folder; left out: the name in the form.
    name: Maybe[str] = UNSET


class UploadForm(Form):
    """The form fields sent with a file: none."""


# The fields of a folder that are stored and shown again.
STORED_FIELDS = (
    "description", "instructions", "metadata", "embedding", "embedding_chunk_size", "embedding_config"
)  # fmt: skip


def render_folder(folder: Definition) -> dict[str, Any]:
    """Returns a folder as the API shows it."""
    body = folder.body
    return {
        "id": ids.make_id("source", folder.uid),
        "name": folder.name,
        "description": body.get("description"),
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "embedding_config": render_embedder(body.get("embedding_config"), body.get("embedding") or ""),
        "vector_db_provider": "native",
        "created_at": render_time(folder.created),
        "updated_at": render_time(folder.updated),
        "created_by_id": None,
        "last_updated_by_id": None,
    }


def render_file(folder: Definition, view: FileView) -> dict[str, Any]:
    """Returns a file as its folder shows it."""
    file = view.file
    parts = view.parts if file.state is FileState.COMPLETED else None
    return {
        "id": ids.make_id("file", file.uid),
        "source_id": ids.make_id("source", folder.uid),
        "folder_id": ids.make_id("source", folder.uid),
        "file_name": f"{folder.name}/{file.name}",
        "original_file_name": file.name,
        "file_path": None,
        "file_type": file.type or None,
        "file_size": file.bytes,
        "file_creation_date": None,
        "file_last_modified_date": None,
        "processing_status": file.state,
        "error_message": None,
        "total_chunks": parts,
        "chunks_embedded": parts,
        "content": view.content,
        "created_at": render_time(file.created),
        "updated_at": render_time(file.created),
        "is_deleted": False,
    }


def render_agent_file(folder: Definition, file: StoredFile) -> dict[str, Any]:
    """Returns a file as an agent that can search it shows it."""
    return {
        "id": ids.make_id("file", file.uid),
        "file_id": ids.make_id("file", file.uid),
        "file_name": f"{folder.name}/{file.name}",
        "folder_id": ids.make_id("source", folder.uid),
        "folder_name": folder.name,
        "is_open": False,
        "last_accessed_at": None,
        "visible_content": None,
        "start_line": None,
        "end_line": None,
    }


class FolderRoutes:
    """The routes of folders and their files."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._definitions = api.store.definitions
        self._folders = Folders(api.store, api.registry, api.now)
        self._archives = Archives(api.store, api.now, api.keeper.embed_query)

    def routes(self) -> list[AgentsRoute]:
        """Returns the routes, each also under the name that Letta 0.6 gave to folders."""
        files = "/v1/agents/{agent_id}/files"
        sources = [replace(row, title=f"{row.summary[:-1]} (0.6).") for row in self._routes_of("sources")]
        return [
            *self._routes_of("folders"),
            *sources,
            AgentsRoute("GET", files, self.list_files_of_agent, pages=OLDEST_FIRST),
        ]

    def _routes_of(self, name: str) -> list[AgentsRoute]:
        folders, folder = f"/v1/{name}", f"/v1/{name}/{{folder_id}}"
        agent_folders = f"/v1/agents/{{agent_id}}/{name}"
        return [
            AgentsRoute("GET", folders, self.list_folders, pages=OLDEST_FIRST),
            AgentsRoute("POST", folders, self.create),
            AgentsRoute("GET", f"{folders}/count", self.count),
            AgentsRoute("GET", f"{folders}/name/{{name}}", self.get_id_by_name),
            AgentsRoute("GET", folder, self.retrieve),
            AgentsRoute("PATCH", folder, self.update),
            AgentsRoute("DELETE", folder, self.delete),
            AgentsRoute("POST", f"{folder}/upload", self.upload),
            AgentsRoute("GET", f"{folder}/files", self.list_files),
            AgentsRoute("GET", f"{folder}/files/{{file_id}}", self.retrieve_file),
            AgentsRoute("GET", f"{folder}/passages", self.list_passages, pages=OLDEST_FIRST),
            AgentsRoute("GET", f"{folder}/agents", self.list_agents),
            AgentsRoute("DELETE", f"{folder}/{{file_id}}", self.delete_file),
            AgentsRoute("GET", agent_folders, self.list_folders_of_agent),
            AgentsRoute("PATCH", f"{agent_folders}/attach/{{folder_id}}", self.attach),
            AgentsRoute("PATCH", f"{agent_folders}/detach/{{folder_id}}", self.detach),
        ]

    # -- folders

    async def list_folders(self, request: ApiRequest, query: FoldersQuery) -> list[dict[str, Any]]:
        """List folders."""
        page = await self._api.read_definition_page(request.project, _KIND, "source", query)
        name = sent_or_none(query.name)
        return list(map(render_folder, await self._definitions.list(request.project, _KIND, page, name=name)))

    async def count(self, request: ApiRequest) -> int:
        """Count folders."""
        return await self._definitions.count(request.project, _KIND)

    async def get_id_by_name(self, request: ApiRequest) -> str:
        """Return the id of the folder with a name."""
        name = request.path["name"]
        folders = await self._definitions.find_by_name(request.project, _KIND, name)
        if not folders:
            raise UnknownId(f"There is no folder named {name!r}.")
        return ids.make_id("source", folders[0].uid)

    async def create(self, request: ApiRequest, body: CreateFolder) -> dict[str, Any]:
        """Make a folder."""
        sent = sent_fields(body)
        stored = {name: sent[name] for name in STORED_FIELDS if sent.get(name) is not None}
        return render_folder(await self._folders.create(request.project, body.name, stored))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a folder."""
        return render_folder(await self._get_folder(request))

    async def update(self, request: ApiRequest, body: UpdateFolder) -> dict[str, Any]:
        """Change a folder."""
        folder = await self._get_folder(request)
        sent = sent_fields(body)
        stored = {**folder.body, **{name: sent[name] for name in STORED_FIELDS if name in sent}}
        name = sent_or_none(body.name)
        if name is not None and name != folder.name:
            same_name = await self._definitions.find_by_name(request.project, _KIND, name)
            if same_name:
                raise Conflict(f"There is a folder named {name!r} already.", param="name")
        changed = await self._definitions.change(folder, stored, at=self._api.now(), name=name)
        return render_folder(changed)

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete a folder with its files, and take it from all agents."""
        await self._folders.delete(await self._get_folder(request))
        return {"message": "The folder is deleted, and its files are forgotten."}

    # -- files

    async def upload(self, request: ApiRequest, query: UploadQuery, _body: UploadForm) -> dict[str, Any]:
        """Save a file."""
        folder = await self._get_folder(request)
        file = request.file
        assert file is not None  # the body is an `UploadForm`
        # Some clients send the whole path that the file has on their machine.
        form_name = re.split(r"[/\\]", file.file_name or "")[-1]
        name = clean_file_name(sent_or_none(query.name) or form_name)
        if not name:
            raise BadRequest("Name the file.", param="file")
        upload = SentFile(name, file.type, file.data)
        stored, is_new = await self._folders.upload(folder, upload, query.duplicate_handling)
        request.headers["x-upload-result"] = "created" if is_new else "skipped"
        (view,) = await self._folders.view(folder, [stored])
        return render_file(folder, view)

    async def list_files(self, request: ApiRequest, query: FilesQuery) -> list[dict[str, Any]]:
        """List the files of a folder."""
        folder = await self._get_folder(request)
        page = await read_page(query, partial(self._get_file_row, folder))
        files = await self._folders.list(folder, page)
        views = await self._folders.view(folder, files, with_content=query.include_content)
        return [render_file(folder, view) for view in views]

    async def retrieve_file(self, request: ApiRequest, query: FileQuery) -> dict[str, Any]:
        """Return a file."""
        folder = await self._get_folder(request)
        file = await self._folders.get_file(folder, request.uid("file", "file_id"))
        (view,) = await self._folders.view(folder, [file], with_content=query.include_content)
        return render_file(folder, view)

    async def delete_file(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a file."""
        folder = await self._get_folder(request)
        await self._folders.remove(await self._folders.get_file(folder, request.uid("file", "file_id")))
        return {"message": "The file is forgotten."}

    async def list_passages(self, request: ApiRequest, query: PassagesQuery) -> list[dict[str, Any]]:
        """List the parts of a folder's files."""
        folder = await self._get_folder(request)
        page = read_page_at(query, lambda id: read_ref("passage", id).seq, size=100)
        passages = await self._archives.list(
            await self._folders.load_memory(folder), PassageFilter(text=sent_or_none(query.search)), page
        )
        return list(map(render_passage, passages))

    async def list_files_of_agent(self, request: ApiRequest, query: AgentFilesQuery) -> dict[str, Any]:
        """List the files that an agent can search."""
        folders = {folder.memory_row: folder for folder in await self._load_attached_folders(request)}
        files = await self._api.store.files.list_of_folders(list(folders))
        shown = [render_agent_file(folders[file.memory_row], file) for file in files]
        page = cut_page(shown, query)
        has_more = bool(page) and page[-1] is not shown[0 if query.newest_first() else -1]
        return {"files": page, "next_cursor": page[-1]["id"] if has_more else None, "has_more": has_more}

    # -- agents

    async def list_agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List the agents of a folder."""
        rows = await self._folders.list_agent_rows(await self._get_folder(request))
        return [agent["id"] for agent in await self._api.agents.list_page(request.project, rows, query)]

    async def list_folders_of_agent(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List the folders of an agent."""
        return cut_page(list(map(render_folder, await self._load_attached_folders(request))), query)

    async def attach(self, request: ApiRequest) -> dict[str, Any]:
        """Attach a folder to an agent, and give it the tools that read files."""
        await self._folders.attach(await self._api.agents.get_entry(request), await self._get_folder(request))
        return await self._api.agents.render_requested(request)

    async def detach(self, request: ApiRequest) -> dict[str, Any]:
        """Take a folder from an agent, and with the last one the tools that read files."""
        await self._folders.detach(await self._api.agents.get_entry(request), await self._get_folder(request))
        return await self._api.agents.render_requested(request)

    async def _get_folder(self, request: ApiRequest) -> Definition:
        return await self._folders.get(request.project, request.uid("source", "folder_id"))

    async def _load_attached_folders(self, request: ApiRequest) -> list[Definition]:
        """Returns the folders that the agent in the path has attached, in order."""
        agent = await self._api.agents.get(request)
        rows = await self._api.store.attached.load_targets(agent.id, _KIND)
        folders = await self._definitions.find_by_memories(_KIND, rows)
        return [folders[row] for row in rows if row in folders]

    async def _get_file_row(self, folder: Definition, id: str) -> int:
        return (await self._folders.get_file(folder, uid_in("file", id))).id
