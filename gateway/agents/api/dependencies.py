"""The parts of the gateway that handlers of the agents API use, and the models that a caller may name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from gateway.agents.api._paging import read_page
from gateway.agents.api._query import PageQuery
from gateway.agents.api._route import ApiRequest, read_uid
from gateway.agents.api.agent_lookup import AgentLookup
from gateway.agents.batches.batch_requests import BatchRequests
from gateway.agents.registry.agent_models import make_handle
from gateway.agents.registry.registry import Registry
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.background.background_runs import BackgroundRuns
from gateway.agents.runs.system_message import SystemMessageRenderer
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.errors import BadRequest
from gateway.run.background.compact import Compactor
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.upstream.model_list import ModelList
from gateway.run.upstream.route import split_model
from gateway.settings import Settings
from gateway.web.request_info import get_request_info
from storage.definition_records import DefinitionKind
from storage.listing import Page
from storage.sql.store import Store


class AgentsApi(Struct, frozen=True):
    """The parts of a gateway that the handlers use."""

    # The settings of the gateway.
    settings: Settings
    # The store of all records.
    store: Store
    # Makes, reads and changes agents and tools.
    registry: Registry
    # Looks up the agents that requests name.
    agents: AgentLookup
    # Performs runs for which a client waits.
    agent_runs: AgentRuns
    # Accepts and follows runs that go on without their clients.
    background_runs: BackgroundRuns
    # Accepts batches.
    batches: BatchRequests
    # Has the services of memory, such as the embedder of queries.
    keeper: MemoryKeeper
    # The list of models that the upstreams offer.
    models: ModelList
    # Summarises conversations.
    compactor: Compactor
    # Returns seconds since the epoch.
    now: Callable[[], float]
    # The seconds for which a client may leave a reply unread.
    send_timeout_s: float
    # The seconds of silence after which a stream sends a ping.
    ping_s: float

    @property
    def system_messages(self) -> SystemMessageRenderer:
        """The renderer of system messages, which are not stored."""
        return SystemMessageRenderer(self.store, self.registry, self.agent_runs)

    async def read_definition_page(
        self, project: str, kind: DefinitionKind, prefix: str, query: PageQuery
    ) -> Page[int]:
        """Returns the page of a list of definitions that a query selects.

        prefix: the prefix of the ids in the list.

        Raises: UnknownId, NotFound.
        """

        async def get_row(public_id: str) -> int:
            return (await self.store.definitions.get(project, kind, read_uid(prefix, public_id))).id

        return await read_page(query, get_row)

    def check_models(self, request: ApiRequest, models: Iterable[str | None]) -> None:
        """Raises: NotAllowed if the caller's key may not ask for one of these models.

        models: the names of models with their upstreams, as agents have them; None: a model that is chosen elsewhere.
            Keys name models without upstreams.
        """
        caller = get_request_info(request.http.scope).caller
        for model in models:
            _, name = split_model(self.settings, model)
            if name is not None:
                caller.check_model(name)

    def choose_first_model(self, request: ApiRequest) -> str:
        """Returns the model of an agent that is created without a model: the first that the caller's key may ask for.

        Raises: BadRequest if no such model is known.
        """
        caller = get_request_info(request.http.scope).caller
        for name in (str(entry["id"]) for entry in self.models.entries):
            if caller.may_ask(name) and not name.startswith(AGENT_PREFIX):
                return make_handle(self.settings, name)
        raise BadRequest(
            "Name a model, such as 'openai/gpt-4o': the gateway knows of none yet that this key may ask for.",
            param="model",
        )


def read_sent_uid(kind: str, sent_id: Maybe[str]) -> str | None:
    """Returns the uid in the id of a parameter; None if it was not sent. Raises: UnknownId."""
    return None if (public_id := find_sent(sent_id)) is None else read_uid(kind, public_id)
