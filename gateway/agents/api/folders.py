"""Folders, and the agents that have folders attached. Their files are in `folder_files.py`."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET
from msgspec.structs import replace

from gateway.agents.api._paging import OLDEST_FIRST, cut_page
from gateway.agents.api._query import AgentsOfQuery, PageQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.folder_files import FolderFileRoutes
from gateway.agents.api.model_json import render_embedder
from gateway.agents.files.folders import Folders
from gateway.agents.wire.sent_values import find_sent, get_sent_fields
from gateway.agents.wire.shown_values import NO_AUTHORS, render_time
from gateway.agents.wire.struct_fields import Body, Maybe, Name, NoEffect
from gateway.core import ids
from gateway.errors import UnknownId
from storage.definition_records import Definition, DefinitionKind

_KIND: Final = DefinitionKind.FOLDER


class UpdateFolder(Body):
    """A change of a folder; what is left out stays."""

    name: Maybe[Name] = UNSET
    description: Maybe[str] = UNSET
    instructions: NoEffect[str] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    embedding_config: NoEffect[dict[str, Any]] = UNSET


class CreateFolder(UpdateFolder):
    """A new folder."""

    name: Name
    embedding: NoEffect[str] = UNSET
    embedding_chunk_size: NoEffect[int] = UNSET


class FoldersQuery(PageQuery):
    """A page of folders."""

    name: Maybe[str] = UNSET  # the whole name


# The fields of a folder that are stored and shown again.
_STORED_FIELDS = [name for name in CreateFolder.__struct_fields__ if name != "name"]


def render_folder(folder: Definition) -> dict[str, Any]:
    """Returns the JSON of a folder."""
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
        **NO_AUTHORS,
    }


class FolderRoutes:
    """The routes of folders."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._definitions = api.store.definitions
        self._folders = Folders(api.store, api.registry, api.now)
        self._files = FolderFileRoutes(api, self._folders)

    def list_routes(self) -> list[AgentsRoute]:
        """Returns the routes, each also under the name of folders in Letta 0.6."""
        sources = [
            replace(route, title=f"{route.summary[:-1]} (0.6).") for route in self._list_routes_of("sources")
        ]
        return [*self._list_routes_of("folders"), *sources, *self._files.list_agent_routes()]

    def _list_routes_of(self, name: str) -> list[AgentsRoute]:
        """Returns the routes under one name of folders. name: `folders`, or `sources` as in Letta 0.6."""
        folders, folder = f"/v1/{name}", f"/v1/{name}/{{folder_id}}"
        agent_folders = f"/v1/agents/{{agent_id}}/{name}"
        return [
            AgentsRoute("GET", folders, self.list_folders, paging=OLDEST_FIRST),
            AgentsRoute("POST", folders, self.create),
            AgentsRoute("GET", f"{folders}/count", self.count),
            AgentsRoute("GET", f"{folders}/name/{{name}}", self.get_id_by_name),
            AgentsRoute("GET", folder, self.retrieve),
            AgentsRoute("PATCH", folder, self.update),
            AgentsRoute("DELETE", folder, self.delete),
            *self._files.list_folder_routes(folder),
            AgentsRoute("GET", f"{folder}/agents", self.list_agents),
            AgentsRoute("DELETE", f"{folder}/{{file_id}}", self._files.delete_file),
            AgentsRoute("GET", agent_folders, self.list_folders_of_agent),
            AgentsRoute("PATCH", f"{agent_folders}/attach/{{folder_id}}", self.attach),
            AgentsRoute("PATCH", f"{agent_folders}/detach/{{folder_id}}", self.detach),
        ]

    async def list_folders(self, request: ApiRequest, query: FoldersQuery) -> list[dict[str, Any]]:
        """List folders."""
        page = await self._api.read_definition_page(request.project, _KIND, "source", query)
        name = find_sent(query.name)
        folders = await self._definitions.list_page(request.project, _KIND, page, name=name)
        return list(map(render_folder, folders))

    async def count(self, request: ApiRequest) -> int:
        """Count folders."""
        return await self._definitions.count(request.project, _KIND)

    async def get_id_by_name(self, request: ApiRequest) -> str:
        """Return the id of the folder with a name."""
        name = request.path_params["name"]
        folders = await self._definitions.find_by_name(request.project, _KIND, name)
        if not folders:
            raise UnknownId(f"There is no folder named {name!r}.")
        return ids.make_id("source", folders[0].uid)

    async def create(self, request: ApiRequest, body: CreateFolder) -> dict[str, Any]:
        """Make a folder."""
        fields = get_sent_fields(body)
        stored_fields = {name: fields[name] for name in _STORED_FIELDS if fields.get(name) is not None}
        return render_folder(await self._folders.create(request.project, body.name, stored_fields))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a folder."""
        return render_folder(await self._files.get_folder(request))

    async def update(self, request: ApiRequest, body: UpdateFolder) -> dict[str, Any]:
        """Change a folder."""
        folder = await self._files.get_folder(request)
        fields = get_sent_fields(body)
        stored_fields = {**folder.body, **{name: fields[name] for name in _STORED_FIELDS if name in fields}}
        return render_folder(await self._folders.change(folder, find_sent(body.name), stored_fields))

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete a folder with its files, and take it from all agents."""
        await self._folders.delete(await self._files.get_folder(request))
        return {"message": "The folder is deleted, and its files are forgotten."}

    async def list_agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List the agents of a folder."""
        rows = await self._folders.list_agent_rows(await self._files.get_folder(request))
        return [agent["id"] for agent in await self._api.agents.list_page(request.project, rows, query)]

    async def list_folders_of_agent(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List the folders of an agent."""
        folders = await self._folders.load_attached(await self._api.agents.get(request))
        return cut_page(list(map(render_folder, folders)), query)

    async def attach(self, request: ApiRequest) -> dict[str, Any]:
        """Attach a folder to an agent, and give it the tools that read files."""
        entry = await self._api.agents.get_entry(request)
        await self._folders.attach(entry, await self._files.get_folder(request))
        return await self._api.agents.render_requested(request)

    async def detach(self, request: ApiRequest) -> dict[str, Any]:
        """Take a folder from an agent, and with the last one the tools that read files."""
        entry = await self._api.agents.get_entry(request)
        await self._folders.detach(entry, await self._files.get_folder(request))
        return await self._api.agents.render_requested(request)
