"""The files of folders, which clients upload, list and forget, and the files that an agent can search."""

import re
from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, UnsetType

from gateway.agents.api._paging import OLDEST_FIRST, cut_page, read_page, read_page_at, read_ref
from gateway.agents.api._query import PageQuery, PassagesQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.passages import render_passage
from gateway.agents.files.folder_contents import DuplicateHandling, FileView, FolderContents, UploadedFile
from gateway.agents.files.folders import Folders
from gateway.agents.registry.memory_passages import MemoryPassages
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.shown_values import render_time
from gateway.agents.wire.struct_fields import Form, Maybe, UrlQuery, refused
from gateway.core import ids
from gateway.core.memory.file_text import clean_file_name
from gateway.errors import BadRequest
from storage.definition_records import Definition, DefinitionKind
from storage.file_records import FileState, StoredFile
from storage.listing import PassageFilter

_NO_OPEN_FILES = refused("Files are searched, not held in the prompt, so none is open.")


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
    duplicate_handling: DuplicateHandling = "suffix"
    # The name of the file in the folder; left out: the name in the form.
    name: Maybe[str] = UNSET


class UploadForm(Form):
    """The form fields sent with a file: none."""


def render_file(folder: Definition, view: FileView) -> dict[str, Any]:
    """Returns the JSON of a file in its folder."""
    file = view.file
    parts = view.parts if file.state is FileState.COMPLETED else None
    return {
        "id": ids.make_id("file", file.uid),
        "source_id": ids.make_id("source", folder.uid),
        "folder_id": ids.make_id("source", folder.uid),
        "file_name": f"{folder.name}/{file.name}",
        "original_file_name": file.name,
        "file_path": None,
        "file_type": file.media_type or None,
        "file_size": file.size_bytes,
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


def _render_agent_file(folder: Definition, file: StoredFile) -> dict[str, Any]:
    """Returns the JSON of a file as an agent has it that can search the file."""
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


class FolderFileRoutes:
    """The routes of the files of folders."""

    def __init__(self, api: AgentsApi, folders: Folders) -> None:
        self._api = api
        self._folders = folders
        self._contents = FolderContents(api.store, api.now)
        self._passages = MemoryPassages(api.store)

    def list_folder_routes(self, path: str) -> list[AgentsRoute]:
        """Returns the routes of a folder's files. path: the path of the folder's routes."""
        return [
            AgentsRoute("POST", f"{path}/upload", self.upload),
            AgentsRoute("GET", f"{path}/files", self.list_files),
            AgentsRoute("GET", f"{path}/files/{{file_id}}", self.retrieve_file),
            AgentsRoute("GET", f"{path}/passages", self.list_passages, paging=OLDEST_FIRST),
        ]

    def list_agent_routes(self) -> list[AgentsRoute]:
        """Returns the routes of the files that agents can search."""
        path = "/v1/agents/{agent_id}/files"
        return [AgentsRoute("GET", path, self.list_files_of_agent, paging=OLDEST_FIRST)]

    async def upload(self, request: ApiRequest, query: UploadQuery, _body: UploadForm) -> dict[str, Any]:
        """Save a file."""
        folder = await self.get_folder(request)
        file = request.file
        assert file is not None  # the body is an `UploadForm`
        # Some clients send the whole path that the file has on their machine.
        form_name = re.split(r"[/\\]", file.file_name or "")[-1]
        name = clean_file_name(find_sent(query.name) or form_name)
        if not name:
            raise BadRequest("Name the file.", param="file")
        upload = UploadedFile(name, file.content_type, file.data)
        saved_file = await self._contents.upload(folder, upload, query.duplicate_handling)
        request.headers["x-upload-result"] = "created" if saved_file.is_new else "skipped"
        (view,) = await self._contents.load_views(folder, [saved_file.file])
        return render_file(folder, view)

    async def list_files(self, request: ApiRequest, query: FilesQuery) -> list[dict[str, Any]]:
        """List the files of a folder."""
        folder = await self.get_folder(request)
        page = await read_page(query, partial(self._get_file_row, folder))
        files = await self._api.store.files.list_page(folder.memory_row, page)
        views = await self._contents.load_views(folder, files, includes_content=query.include_content)
        return [render_file(folder, view) for view in views]

    async def retrieve_file(self, request: ApiRequest, query: FileQuery) -> dict[str, Any]:
        """Return a file."""
        folder = await self.get_folder(request)
        file = await self._get_file(folder, request.read_uid("file", "file_id"))
        (view,) = await self._contents.load_views(folder, [file], includes_content=query.include_content)
        return render_file(folder, view)

    async def delete_file(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a file."""
        folder = await self.get_folder(request)
        await self._contents.remove(await self._get_file(folder, request.read_uid("file", "file_id")))
        return {"message": "The file is forgotten."}

    async def list_passages(self, request: ApiRequest, query: PassagesQuery) -> list[dict[str, Any]]:
        """List the parts of a folder's files."""
        folder = await self.get_folder(request)
        page = read_page_at(query, lambda passage_id: read_ref("passage", passage_id).seq, size=100)
        passages = await self._passages.list_page(
            await self._folders.load_memory(folder), PassageFilter(text=find_sent(query.search)), page
        )
        return list(map(render_passage, passages))

    async def list_files_of_agent(self, request: ApiRequest, query: AgentFilesQuery) -> dict[str, Any]:
        """List the files that an agent can search."""
        attached_folders = await self._folders.load_attached(await self._api.agents.get(request))
        folders_by_row = {folder.memory_row: folder for folder in attached_folders}
        files = await self._api.store.files.list_of_folders(list(folders_by_row))
        rendered = [_render_agent_file(folders_by_row[file.memory_row], file) for file in files]
        page = cut_page(rendered, query)
        has_more = bool(page) and page[-1]["id"] != rendered[0 if query.is_newest_first() else -1]["id"]
        return {"files": page, "next_cursor": page[-1]["id"] if has_more else None, "has_more": has_more}

    async def get_folder(self, request: ApiRequest) -> Definition:
        """Returns the folder in the path of a request. Raises: UnknownId, NotFound."""
        uid = request.read_uid("source", "folder_id")
        return await self._api.store.definitions.get(request.project, DefinitionKind.FOLDER, uid)

    async def _get_file(self, folder: Definition, uid: str) -> StoredFile:
        return await self._api.store.files.get(folder.memory_row, uid)

    async def _get_file_row(self, folder: Definition, file_id: str) -> int:
        return (await self._get_file(folder, read_uid("file", file_id))).id
