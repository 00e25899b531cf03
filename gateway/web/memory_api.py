"""`/v1/memory/…`, for applications: the sources of a reply, and links by which a person opens their own memory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from gateway.errors import UnknownPath
from gateway.run.admin.link_operations import LinkOperations
from gateway.run.admin.request_operations import RequestOperations
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
    owner_of: Callable[[Scope], ResponseOwner],
) -> list[Route]:
    """Returns the routes. A caller sees the requests of its key's project.

    owner_of: returns the project and the user of a request. A caller that names a user sees only this user's requests.
    """

    async def explain(request: Request) -> Response:
        info = get_request_info(request.scope)
        info.route = "memory"
        owner = owner_of(request.scope)
        with map_store_errors():
            explained = await requests.explain(request.path_params["id"], owner.project, owner.user)
        return Response(msgspec.json.encode(explained), media_type="application/json")

    async def create_link(request: Request) -> Response:
        info = get_request_info(request.scope)
        info.route = "memory"
        if not ui.enabled:
            raise UnknownPath("A link would open nothing: ui.enabled is false.")
        async with bodies.read(request.scope, request.receive) as raw:
            body = await parse_json_body(bytes(raw))
        with map_store_errors():
            caller = info.caller
            made_link = await links.create(
                body, caller.project, caller.key_id, caller.key_name, caller.expires_at
            )
        scheme = "https" if ui.https else request.url.scheme
        url = f"{scheme}://{request.url.netloc}{made_link.url}"
        return Response(msgspec.json.encode(replace(made_link, url=url)), media_type="application/json")

    return [
        Route("/v1/memory/requests/{id:path}", explain, methods=["GET"]),
        Route("/v1/memory/links", create_link, methods=["POST"]),
    ]
