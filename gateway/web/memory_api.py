"""`/v1/memory/…`, for applications: the sources of a reply, and links by which a person opens their own memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from gateway.errors import UnknownPath
from gateway.run.admin.access.link_operations import LinkOperations
from gateway.run.admin.requests.request_operations import RequestOperations
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import ResponseOwner
from gateway.settings import UiSettings
from gateway.web.body import BodyReader, parse_json_body
from gateway.web.request_info import get_request_info


def make_memory_routes(
    requests: RequestOperations,
    links: LinkOperations,
    bodies: BodyReader,
    ui: UiSettings,
    read_owner: Callable[[Scope], ResponseOwner],
) -> list[Route]:
    """Returns the routes. The parameters are the fields of `_MemoryHandlers`."""
    handlers = _MemoryHandlers(requests, links, bodies, ui, read_owner)
    return [
        Route("/v1/memory/requests/{id:path}", handlers.explain, methods=["GET"]),
        Route("/v1/memory/links", handlers.create_link, methods=["POST"]),
    ]


@dataclass(eq=False)
class _MemoryHandlers:
    """Answers applications about the memories of their users. A caller sees the requests of its key's project."""

    # Explains requests.
    requests: RequestOperations
    # Creates links to memories.
    links: LinkOperations
    # Reads bodies within their limits.
    bodies: BodyReader
    # The table [ui] of the settings.
    ui: UiSettings
    # Returns the project and the user of a request. A caller that names a user sees only this user's requests.
    read_owner: Callable[[Scope], ResponseOwner]

    async def explain(self, request: Request) -> Response:
        """Returns the sources of a reply, by the id of its request."""
        info = get_request_info(request.scope)
        info.route = "memory"
        owner = self.read_owner(request.scope)
        with map_store_errors():
            explained = await self.requests.explain(request.path_params["id"], owner.project, owner.user)
        return Response(msgspec.json.encode(explained), media_type="application/json")

    async def create_link(self, request: Request) -> Response:
        """Creates a link by which a user opens their memory, and returns its URL."""
        info = get_request_info(request.scope)
        info.route = "memory"
        if not self.ui.enabled:
            raise UnknownPath("A link would open nothing: ui.enabled is false.")
        async with self.bodies.read(request.scope, request.receive) as raw:
            body = await parse_json_body(bytes(raw))
        with map_store_errors():
            caller = info.caller
            made_link = await self.links.create(
                body, caller.project, caller.key_id, caller.key_name, caller.expires_at
            )
        scheme = "https" if self.ui.https else request.url.scheme
        url = f"{scheme}://{request.url.netloc}{made_link.url}"
        return Response(msgspec.json.encode(replace(made_link, url=url)), media_type="application/json")
