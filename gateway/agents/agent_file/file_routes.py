"""Agent files: an agent as a file that Letta's server reads as well, and agents made of such a file."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from msgspec import UNSET
from msgspec.structs import replace
from starlette.responses import Response

from gateway.agents.agent_file.file_fields import EXTENSION
from gateway.agents.agent_file.import_form import ImportForm
from gateway.agents.agent_file.read import read_file
from gateway.agents.agent_file.write import ExportedAgent, ExportedFolder, write_agent_file
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.agent_bodies import list_models
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.folder_files import render_file
from gateway.agents.api.folders import render_folder
from gateway.agents.files.agent_export import AgentExport
from gateway.agents.files.agent_import import AgentImport, ImportServices
from gateway.agents.files.folder_contents import FolderContents
from gateway.agents.wire.sent_values import get_sent_or
from gateway.agents.wire.struct_fields import Maybe, NoEffect, UrlQuery
from gateway.core import ids
from gateway.core.definition import AgentDefinition
from gateway.errors import BadRequest
from storage.definition_records import Definition
from storage.file_records import MAX_FOLDER_FILES, FileState
from storage.listing import Page
from storage.records import DEFAULT_CONVERSATION

# The most characters of the header with the names of parts that are left out. Proxies before the gateway refuse long
# headers, nginx all beyond 4 or 8 KB together.
_MAX_HEADER_CHARS = 2000


class ExportQuery(UrlQuery):
    """The query of an export."""

    # The conversation to export; default: the agent's own conversation.
    conversation_id: Maybe[str] = UNSET
    # True: the file is written without the messages.
    scrub_messages: bool = False
    use_legacy_format: bool = False
    max_steps: NoEffect[int] = UNSET


class AgentFileRoutes:
    """The routes of agent files."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._contents = FolderContents(api.store, api.now)
        self._export = AgentExport(api.store)
        self._services = ImportServices(
            api.store, api.registry, self._contents, api.agent_runs.defined_tools, api.now
        )

    def list_routes(self) -> list[AgentsRoute]:
        return [
            AgentsRoute("GET", "/v1/agents/{agent_id}/export", self.export),
            AgentsRoute("POST", "/v1/agents/import", self.import_agents),
        ]

    async def export(self, request: ApiRequest, query: ExportQuery) -> Response:
        """Return an agent as a file."""
        if query.use_legacy_format:
            raise BadRequest("Agents are exported in the newer form alone.", param="use_legacy_format")
        view = await self._api.agents.get_view(request)
        name = get_sent_or(query.conversation_id, DEFAULT_CONVERSATION)
        definition = AgentDefinition.of(view.definition.body)
        exported_agent = ExportedAgent(
            state=await self._api.agents.render(view),
            sleeptime=definition.sleeptime,
            initial_messages=definition.initial_messages,
            messages=() if query.scrub_messages else await self._export.load_messages(view.agent, name),
            folders=[await self._export_folder(folder) for folder in view.folders],
            passages=await self._export.load_passages(view.agent),
            archives=await self._export.load_archives(view.agent),
        )
        # In a thread, since an agent may have thousands of messages.
        data = await asyncio.to_thread(write_agent_file, exported_agent, self._api.now())
        return Response(data, headers=request.headers, media_type="application/json")

    async def _export_folder(self, folder: Definition) -> ExportedFolder:
        """Returns a folder with the texts of its completed files."""
        page: Page[int] = Page(limit=MAX_FOLDER_FILES, newest_first=False)
        files = await self._api.store.files.list_page(folder.memory_row, page)
        completed_files = [file for file in files if file.state is FileState.COMPLETED]
        views = await self._contents.load_views(folder, completed_files, includes_content=True)
        return ExportedFolder(render_folder(folder), [render_file(folder, view) for view in views])

    async def import_agents(self, request: ApiRequest, form: ImportForm) -> dict[str, Any]:
        """Make the agents of a file, with the tools, folders and archives that it has."""
        assert request.file is not None  # the body is an `ImportForm`
        # In a thread, since a file may have thousands of blocks and messages, each of which is checked.
        file = await asyncio.to_thread(read_file, request.file.data, form, self._api.now())
        agents = []
        for agent in file.agents:
            model = agent.definition.model or self._api.choose_first_model(request)
            definition = replace(agent.definition, model=model)
            conversation_models = {each.definition.model or None for each in agent.conversations}
            self._api.check_models(request, list_models(definition) | conversation_models)
            agents.append(replace(agent, definition=definition))
        importing = AgentImport(self._services, request.project, replace(file, agents=agents))
        uids = await importing.run(overrides_tools=form.override_existing_tools)
        left_out = importing.left_out
        if left_out:
            names = ",".join(quote(name, safe="") for name in left_out)
            if len(names) > _MAX_HEADER_CHARS:
                names = names[:_MAX_HEADER_CHARS].rpartition(",")[0]
            request.headers["x-mnemogate-left-out"] = names
        # The body names the parts as well, for programs that read no headers.
        extension = {EXTENSION: {"left_out": left_out}} if left_out else {}
        return {"agent_ids": [ids.make_id("agent", uid) for uid in uids], **extension}
