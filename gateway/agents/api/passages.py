"""Passages of agents, and archives of passages that agents share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta

from gateway.agents.api._paging import PASSAGES, cut_page, read_page_at, read_ref
from gateway.agents.api._query import AgentsOfQuery, PageQuery, PassageSearchQuery, PassagesQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.registry.archives import Archives
from gateway.agents.registry.memory_passages import MemoryPassages, PassageView
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.shown_values import NO_AUTHORS, render_time
from gateway.agents.wire.struct_fields import Body, Maybe, Name, Names, NoEffect
from gateway.core import ids
from gateway.core.dates import parse_moment
from gateway.errors import BadRequest, UnknownId
from gateway.validation import Fault, Path
from storage.definition_records import Definition, DefinitionKind
from storage.listing import PassageDraft, PassageFilter
from storage.records import Agent

_KIND: Final = DefinitionKind.ARCHIVE
# The most results of a search without `top_k`, as on Letta's server.
_DEFAULT_RESULTS = 5


class CreatePassage(Body):
    """A text to be saved; a long one becomes several passages."""

    text: Annotated[str, Meta(min_length=1)]
    tags: Maybe[Names] = UNSET
    created_at: Maybe[str] = UNSET


class SearchPassages(Body):
    """A search of the passages of an archive, or of an agent with the archives and folders that it has attached."""

    query: Maybe[str] = UNSET
    agent_id: Maybe[str] = UNSET
    archive_id: Maybe[str] = UNSET
    tags: Maybe[Names] = UNSET
    tag_match_mode: Literal["any", "all"] = "any"
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    start_date: Maybe[str] = UNSET
    end_date: Maybe[str] = UNSET


class CreateArchive(Body):
    """A new archive."""

    name: Name
    description: Maybe[str] = UNSET
    embedding: NoEffect[str] = UNSET
    embedding_config: NoEffect[dict[str, Any]] = UNSET


class UpdateArchive(Body):
    """A change of an archive; what is left out stays."""

    name: Maybe[Name] = UNSET
    description: Maybe[str] = UNSET


class CreateArchivePassage(CreatePassage):
    """A text to be saved in an archive."""

    metadata: Maybe[dict[str, Any]] = UNSET


class CreateArchivePassages(Body):
    """Texts to be saved in an archive, in this order."""

    passages: Annotated[list[CreateArchivePassage], Meta(min_length=1, max_length=1000)]


class ArchivesQuery(PageQuery):
    """A page of archives."""

    agent_id: Maybe[str] = UNSET  # the agent to which the archives are attached
    name: Maybe[str] = UNSET  # the whole name


def render_passage(view: PassageView) -> dict[str, Any]:
    """Returns the JSON of a passage."""
    uid, passage, file = view.uid, view.passage, view.file
    return {
        "id": ids.make_id_with_seq("passage", uid, passage.seq),
        "text": passage.text,
        "tags": list(passage.tags),
        "archive_id": ids.make_id("archive", uid) if file is None else None,
        "created_at": render_time(passage.at),
        "updated_at": None,
        "source_id": None if file is None else ids.make_id("source", uid),
        "file_id": None if file is None else ids.make_id("file", file.uid),
        "file_name": None if file is None else file.name,
        "metadata": passage.metadata,
        "embedding": None,
        "embedding_config": None,
        "is_deleted": False,
        **NO_AUTHORS,
    }


def _render_hit(view: PassageView) -> dict[str, Any]:
    """Returns the JSON of a passage in the result of a search of an agent's memory, which has fewer fields."""
    passage = view.passage
    return {
        "id": ids.make_id_with_seq("passage", view.uid, passage.seq),
        "content": passage.text,
        "timestamp": render_time(passage.at),
        "tags": list(passage.tags),
    }


def _render_archive(archive: Definition) -> dict[str, Any]:
    """Returns the JSON of an archive."""
    return {
        "id": ids.make_id("archive", archive.uid),
        "name": archive.name,
        "description": archive.body.get("description"),
        "embedding": archive.body.get("embedding"),
        "embedding_config": archive.body.get("embedding_config"),
        "vector_db_provider": "native",
        "metadata": {},
        "created_at": render_time(archive.created),
        "updated_at": render_time(archive.updated),
        **NO_AUTHORS,
    }


def check_text(text: str, path: Path) -> None:
    """Raises: Unprocessable if a text is blank."""
    if not text.strip():
        raise Unprocessable(Fault(path, "Expected a text that is not blank"))


def read_moment(text: Maybe[str], path: Path, *, is_end: bool = False) -> float | None:
    """Returns a time in seconds since the epoch; None if no time was sent. A time without a zone is in UTC.

    path: the path of the field in the request, for errors.
    is_end: a day without a time stands for the end of the day; False: for its beginning.

    Raises: Unprocessable.
    """
    sent_text = find_sent(text)
    if sent_text is None:
        return None
    moment = sent_text.strip()
    if "T" in moment:
        # The `+` of an offset that was not escaped in a query arrives as a blank. ISO 8601 has no other blank.
        moment = moment.replace(" ", "+")
    try:
        return parse_moment(moment, is_end=is_end)
    except ValueError:
        message = "Expected a date or time of ISO 8601"
        raise Unprocessable(Fault(path, message, "datetime_from_date_parsing", sent_text[:100])) from None


class PassageRoutes:
    """The passages of agents."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._passages = MemoryPassages(api.store, api.keeper.embed_query)

    def list_routes(self) -> list[AgentsRoute]:
        passages = "/v1/agents/{agent_id}/archival-memory"
        return [
            AgentsRoute("GET", passages, self.list_passages, paging=PASSAGES),
            AgentsRoute("POST", passages, self.create),
            AgentsRoute("GET", f"{passages}/search", self.search),
            AgentsRoute("DELETE", f"{passages}/{{memory_id}}", self.delete),
            AgentsRoute("POST", "/v1/passages/search", self.search_by_body),
        ]

    async def list_passages(self, request: ApiRequest, query: PassagesQuery) -> list[dict[str, Any]]:
        """List an agent's passages."""
        agent = await self._api.agents.get(request)
        passage_filter = PassageFilter(text=find_sent(query.search))
        page = read_page_at(query, partial(_get_seq, agent), size=100)
        return list(map(render_passage, await self._passages.list_page(agent, passage_filter, page)))

    async def create(self, request: ApiRequest, body: CreatePassage) -> list[dict[str, Any]]:
        """Save a text for an agent."""
        agent = await self._api.agents.get(request)
        draft = _make_draft(body, ("body",), self._api.now)
        return list(map(render_passage, await self._passages.add(agent, [draft])))

    async def search(self, request: ApiRequest, query: PassageSearchQuery) -> dict[str, Any]:
        """Search the passages of an agent, and of the archives and folders that it has attached."""
        agent = await self._api.agents.get(request)
        passage_filter = PassageFilter(
            since=read_moment(query.start_datetime, ("query", "start_datetime")),
            until=read_moment(query.end_datetime, ("query", "end_datetime"), is_end=True),
            tags=find_sent(query.tags) or (),
            needs_all_tags=query.tag_match_mode == "all",
        )
        limit = find_sent(query.top_k) or _DEFAULT_RESULTS
        memories = await self._passages.list_searched_memories(agent)
        hits = await self._passages.search(memories, query.query, passage_filter, limit=limit)
        return {"results": list(map(_render_hit, hits)), "count": len(hits)}

    async def search_by_body(self, request: ApiRequest, body: SearchPassages) -> list[dict[str, Any]]:
        """Search the passages of an archive, or those that an agent searches."""
        passage_filter = PassageFilter(
            since=read_moment(body.start_date, ("body", "start_date")),
            until=read_moment(body.end_date, ("body", "end_date"), is_end=True),
            tags=find_sent(body.tags) or (),
            needs_all_tags=body.tag_match_mode == "all",
        )
        if (agent := await self._api.agents.find_by_sent_id(request.project, body.agent_id)) is not None:
            memories = await self._passages.list_searched_memories(agent)
        elif (archive_id := find_sent(body.archive_id)) is not None:
            archives = Archives(self._api.store, self._api.now)
            memories = [await archives.load_memory(request.project, read_uid("archive", archive_id))]
        else:
            raise BadRequest("Name the agent or the archive that is to be searched.", param="agent_id")
        query = find_sent(body.query)
        if query is not None and query.strip():
            hits = await self._passages.search(memories, query, passage_filter, limit=body.limit)
        else:
            hits = await self._passages.list_newest(memories, passage_filter, limit=body.limit)
        # Scores of different memories cannot be compared, so the score is computed from the rank.
        return [
            {"passage": render_passage(hit), "score": 1 / (1 + rank), "metadata": {}}
            for rank, hit in enumerate(hits)
        ]

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a passage, and what quotes it."""
        agent = await self._api.agents.get(request)
        await self._passages.remove(agent, _get_seq(agent, request.path_params["memory_id"]))
        return {"message": "The passage is forgotten."}


class ArchiveRoutes:
    """Archives, their passages, and the agents that have them attached."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._archives = Archives(api.store, api.now)
        self._passages = MemoryPassages(api.store)

    def list_routes(self) -> list[AgentsRoute]:
        archives, archive = "/v1/archives", "/v1/archives/{archive_id}"
        passages, attached = f"{archive}/passages", "/v1/agents/{agent_id}/archives"
        return [
            AgentsRoute("GET", archives, self.list_archives),
            AgentsRoute("POST", archives, self.create),
            AgentsRoute("GET", archive, self.retrieve),
            AgentsRoute("PATCH", archive, self.update),
            AgentsRoute("DELETE", archive, self.delete),
            AgentsRoute("GET", f"{archive}/agents", self.list_agents),
            AgentsRoute("POST", passages, self.create_passage),
            AgentsRoute("POST", f"{passages}/batch", self.create_passages),
            AgentsRoute("DELETE", f"{passages}/{{passage_id}}", self.delete_passage),
            AgentsRoute("PATCH", f"{attached}/attach/{{archive_id}}", self.attach),
            AgentsRoute("PATCH", f"{attached}/detach/{{archive_id}}", self.detach),
        ]

    async def list_archives(self, request: ApiRequest, query: ArchivesQuery) -> list[dict[str, Any]]:
        """List archives."""
        definitions = self._api.store.definitions
        name = find_sent(query.name)
        agent = await self._api.agents.find_by_sent_id(request.project, query.agent_id)
        if agent is None:
            page = await self._api.read_definition_page(request.project, _KIND, "archive", query)
            archives = await definitions.list_page(request.project, _KIND, page, name=name)
            return list(map(_render_archive, archives))
        rows = await self._api.store.attached.load_targets(agent.id, _KIND)
        attached_archives = (await definitions.find_by_memories(_KIND, rows)).values()
        archives = [archive for archive in attached_archives if name is None or archive.name == name]
        archives.sort(key=lambda archive: archive.id)
        return cut_page(list(map(_render_archive, archives)), query)

    async def create(self, request: ApiRequest, body: CreateArchive) -> dict[str, Any]:
        """Make an archive."""
        stored_names = ("description", "embedding", "embedding_config")
        fields = {name: find_sent(getattr(body, name)) for name in stored_names}
        return _render_archive(await self._archives.create(request.project, body.name, fields))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an archive."""
        return _render_archive(await self._get_archive(request))

    async def update(self, request: ApiRequest, body: UpdateArchive) -> dict[str, Any]:
        """Change an archive."""
        archive = await self._archives.get_shared(request.project, request.read_uid("archive", "archive_id"))
        fields = dict(archive.body)
        if body.description is not UNSET:
            fields["description"] = body.description
        name = find_sent(body.name)
        changed = await self._api.store.definitions.change(archive, fields, at=self._api.now(), name=name)
        return _render_archive(changed)

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an archive with its passages, and take it from all agents."""
        await self._archives.delete(request.project, request.read_uid("archive", "archive_id"))
        return {"message": "The archive is deleted."}

    async def list_agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List the agents that have an archive."""
        archive = await self._get_archive(request)
        if archive.is_stored:
            attached = self._api.store.attached
            rows = await attached.load_agents_with(request.project, _KIND, archive.memory_row)
        else:
            # An agent's own archive is the agent's memory, and no other agent has it.
            rows = [archive.memory_row]
        return await self._api.agents.list_page(request.project, rows, query)

    async def create_passage(self, request: ApiRequest, body: CreateArchivePassage) -> dict[str, Any]:
        """Save a text in an archive."""
        memory = await self._load_memory(request)
        draft = _make_draft(body, ("body",), self._api.now, body.metadata)
        first, *more = map(render_passage, await self._passages.add(memory, [draft]))
        # Clients expect one passage, so the first passage of a long text lists the ids of all.
        part_ids = [passage["id"] for passage in (first, *more)]
        return {**first, "metadata": {**first["metadata"], "parts": part_ids}} if more else first

    async def create_passages(self, request: ApiRequest, body: CreateArchivePassages) -> list[dict[str, Any]]:
        """Save several texts in an archive."""
        memory = await self._load_memory(request)
        drafts = [
            _make_draft(each, ("body", "passages", n), self._api.now, each.metadata)
            for n, each in enumerate(body.passages)
        ]
        return list(map(render_passage, await self._passages.add(memory, drafts)))

    async def delete_passage(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a passage of an archive, and what quotes it."""
        memory = await self._load_memory(request)
        seq = _get_seq(memory, request.path_params["passage_id"], owner="archive")
        await self._passages.remove(memory, seq)
        return {"message": "The passage is forgotten."}

    async def attach(self, request: ApiRequest) -> None:
        """Attach an archive to an agent."""
        entry = await self._api.agents.get_entry(request)
        self._api.registry.require_definition(entry)
        await self._archives.attach(entry.agent, await self._get_archive(request))

    async def detach(self, request: ApiRequest) -> None:
        """Take an archive from an agent."""
        await self._archives.detach(await self._api.agents.get(request), await self._get_archive(request))

    async def _get_archive(self, request: ApiRequest) -> Definition:
        return await self._archives.get(request.project, request.read_uid("archive", "archive_id"))

    async def _load_memory(self, request: ApiRequest) -> Agent:
        return await self._archives.load_memory(request.project, request.read_uid("archive", "archive_id"))


def _make_draft(
    passage: CreatePassage, path: Path, now: Callable[[], float], metadata: Maybe[dict[str, Any]] = UNSET
) -> PassageDraft:
    """Returns the draft of a passage. Raises: Unprocessable.

    path: the path of the passage in the request, for errors.
    """
    created = read_moment(passage.created_at, (*path, "created_at"))
    check_text(passage.text, (*path, "text"))
    return PassageDraft(
        text=passage.text,
        at=now() if created is None else created,
        tags=find_sent(passage.tags) or (),
        metadata=find_sent(metadata) or {},
    )


def _get_seq(memory: Agent, passage_id: str, *, owner: str = "agent") -> int:
    """Returns the number of a passage in a memory. Raises: UnknownId.

    owner: the noun for the memory's owner in errors.
    """
    ref = read_ref("passage", passage_id)
    if ref.uid != memory.uid:
        raise UnknownId(f"There is no passage {passage_id!r} of this {owner}.")
    return ref.seq
