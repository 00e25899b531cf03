"""The routes of a gateway, as data: each leads a path to what serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.dialects.responses.errors import ResponsesErrors
from gateway.errors import ErrorForm
from gateway.operations import (
    ServingParts,
    make_limit_operations,
    make_operations,
    make_request_operations,
)
from gateway.run.admin.key_management import KeyManagement, KeyReport
from gateway.run.admin.link_operations import LinkOperations
from gateway.run.admin.operation_table import OperationTable
from gateway.run.admin.usage_operations import UsageOperations
from gateway.run.stored_responses import StoredResponses
from gateway.run.upstream.forward import Forwarder
from gateway.services import Services
from gateway.web.admin import admin_routes
from gateway.web.auth import Guard
from gateway.web.body import BodyReader
from gateway.web.compaction_routes import COMPACT_PATH, INPUT_TOKENS_PATH, CompactRoute, InputTokensRoute
from gateway.web.completions import CHAT_PATH, LETTA_CHAT_PATHS, ChatRoute
from gateway.web.forwarding import ForwardingParts, forwarding_routes
from gateway.web.manage.access import Access
from gateway.web.manage.import_routes import import_routes
from gateway.web.manage.key_routes import key_routes
from gateway.web.manage.record_routes import LIMITS_PATH, record_routes
from gateway.web.manage.usage_routes import usage_routes
from gateway.web.memory_api import memory_routes
from gateway.web.messages import COUNT_PATH, MESSAGES_PATH, CountRoute, MessagesRoute
from gateway.web.models import model_routes
from gateway.web.response_owners import ResponseOwners
from gateway.web.responses import RESPONSES_PATH, ResponsesRoute
from gateway.web.sockets.responses_socket import HandshakeRoute
from gateway.web.stored_responses import GatewayResponses
from gateway.web.stored_routes import stored_routes
from gateway.web.upstream_responses import UpstreamResponses
from storage.listing import NamedAgent


class DialectPath(NamedTuple):
    """A path at which a dialect is spoken."""

    path: str
    # Answers POSTs to the path. The router, which costs time, is not asked for them.
    app: ASGIApp
    # A user's own key may be used here: a request reaches nothing of other users.
    is_for_users: bool
    # The form of errors at all paths that begin with this path, until a route has named its own form (for a wrong key,
    # an unknown path); None: OpenAI's form, or what `messages_error_form` returns.
    error_form: ErrorForm | None = None


class Endpoints(NamedTuple):
    """The endpoints of a gateway."""

    # Answers POSTs to the paths of chat completions.
    chat: ChatRoute
    dialects: Sequence[DialectPath]
    # Reads the users of requests for stored responses.
    owners: ResponseOwners
    # All other routes but those of health and MCP, in the order in which the router tries them.
    routes: list[Route]


def make_endpoints(
    services: Services, bodies: BodyReader, guard: Guard, admin_token: str | None
) -> Endpoints:
    """Makes the endpoints. admin_token: of the command line; None: the command line performs its operations itself."""
    settings, limits, chat = services.settings, services.limits, services.chat
    forwarder = Forwarder(
        settings=settings,
        providers=services.providers,
        failover=chat.failover,
        rules=chat.resolver.rules,
        limiter=services.accounting.limiter,
    )
    forwarding_parts = ForwardingParts(forwarder, bodies, settings.server.max_upload_bytes, limits)
    chat_route = ChatRoute(
        settings=settings.server,
        chat=chat,
        native_chat=services.native_chat,
        bodies=bodies,
        send_timeout_s=limits.send_timeout_s,
        requests=services.requests,
    )
    stored_responses = StoredResponses(services.store, chat.turns)
    owners = ResponseOwners(chat.resolver.rules, services.store)
    gateway_responses = GatewayResponses(
        stored=stored_responses,
        background=services.background_responses,
        conversations=chat.conversations,
        owners=owners,
        bodies=bodies,
        send_timeout_s=limits.send_timeout_s,
    )
    upstream_responses = UpstreamResponses(
        stored=stored_responses,
        owners=owners,
        native_chat=services.native_chat,
        pending_usage=services.accounting.pending_usage,
        max_messages=settings.server.max_messages,
    )

    def make_responses_route(route_type: type[ResponsesRoute]) -> ResponsesRoute:
        return route_type("responses", forwarding_parts, chat_route, gateway_responses)

    prompts = [spec.system for spec in chat.directory.specs]
    agent_routes = []
    agent_names = _no_agent_names
    if services.agents is not None:
        agent_routes = services.agents.routes(services.models, limits, bodies)
        agent_names = services.agents.chat.names
    dialects = [
        DialectPath(CHAT_PATH, chat_route, is_for_users=True),
        *(DialectPath(path, chat_route, is_for_users=False) for path in LETTA_CHAT_PATHS),
        DialectPath(
            RESPONSES_PATH,
            make_responses_route(ResponsesRoute),
            is_for_users=True,
            error_form=ResponsesErrors(),
        ),
        DialectPath(MESSAGES_PATH, MessagesRoute(chat_route, forwarder), is_for_users=True),
    ]
    routes = [
        # Gives other methods their 405. POSTs to these paths are answered before the router.
        *(Route(dialect.path, _answered_before_router, methods=["POST"]) for dialect in dialects),
        # Before the routes of agents, one of which has a pattern that this path fits as well.
        Route(COUNT_PATH, CountRoute(chat_route, forwarder), methods=["POST"]),
        # Before the routes of models and conversations, some of whose paths these have as well.
        *agent_routes,
        *model_routes(services.models, agent_names),
        Route(INPUT_TOKENS_PATH, make_responses_route(InputTokensRoute), methods=["POST"]),
        Route(COMPACT_PATH, make_responses_route(CompactRoute), methods=["POST"]),
        Route(RESPONSES_PATH, HandshakeRoute(), methods=["GET"]),
        *stored_routes(forwarding_parts, prompts, gateway_responses, upstream_responses),
        *forwarding_routes(forwarding_parts),
        *memory_routes(
            make_request_operations(settings, services.store, services.requests),
            LinkOperations(services.store, services.now, settings.default_profile),
            bodies,
            settings.ui,
            owners.read_owner,
        ),
        *_manage_routes(services, bodies, Access(guard, admin_token)),
        *([] if admin_token is None else admin_routes(_operations(services), admin_token)),
    ]
    return Endpoints(chat_route, dialects, owners, routes)


def _manage_routes(services: Services, bodies: BodyReader, access: Access) -> list[Route]:
    """Returns the routes at which operators manage a gateway."""
    settings, store, now, accounting = services.settings, services.store, services.now, services.accounting
    limits = make_limit_operations(settings, store)
    max_upload_bytes, timeout_s = settings.server.max_upload_bytes, services.limits.body_timeout_s
    return [
        *usage_routes(UsageOperations(store.usage, now, accounting.meter), access),
        *record_routes(LIMITS_PATH, limits, access, bodies),
        *import_routes(services.imports, access, bodies, max_upload_bytes, timeout_s),
        *key_routes(
            KeyManagement(store.keys, limits),
            KeyReport(store.usage, accounting.meter, accounting.limiter, now),
            access,
            bodies,
        ),
    ]


def _operations(services: Services) -> OperationTable:
    """Returns the operations of the command line, as the process that serves performs them."""
    parts = ServingParts(services.requests, services.sign_in, services.accounting.meter, services.imports)
    return make_operations(services.settings, services.store, services.embed_query, services.mcp, parts)


async def _no_agent_names(project: str) -> Sequence[NamedAgent]:
    """Returns the names of agents where none can be made."""
    return ()


async def _answered_before_router(request: Request) -> Any:
    """Stands in a route whose POSTs never reach the router. The route is there to refuse other methods."""
    raise HTTPException(404)
